// ${ir}
extern "C" __global__ void __launch_bounds__(256)
${entry}(${y_type}* y, i64 n) {
  const i64 i = (i64)blockIdx.x * 256 + threadIdx.x;
  if (i >= n) return;
  y[i] = ${value};
}
