// ${ir}
// One block a row: an element's place is the number of greater ones.
extern "C" __global__ void __launch_bounds__(${threads})
${entry}(const ${type}* __restrict__ x, ${type}* __restrict__ values, i32* __restrict__ indices, i64 n) {
  constexpr int K = ${k};
  __shared__ u64 keys[${capacity}];
  const i64 row = blockIdx.x;
  x += row * n;
  for (int i = threadIdx.x; i < n; i += ${threads}) keys[i] = order_key(to_f32(x[i]), (u32)i);
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += ${threads}) {
    const u64 key = keys[i];
    int rank = 0;
    for (int j = 0; j < n; j++) rank += keys[j] > key;
    if (rank < K) {
      values[row * K + rank] = x[i];
      indices[row * K + rank] = i;
    }
  }
}
