// ${ir}
extern "C" __global__ void __launch_bounds__(256)
${entry}(${params}, i64 n) {
  constexpr int V = ${v};  // elements a thread handles
  const i64 i = ((i64)blockIdx.x * 256 + threadIdx.x) * V;
  if (i >= n) return;
  ${loads}
  Pack<${y_type}, V> out;
#pragma unroll
  for (int e = 0; e < V; e++) {
    ${region}
  }
  *(Pack<${y_type}, V>*)(y + i) = out;
}
