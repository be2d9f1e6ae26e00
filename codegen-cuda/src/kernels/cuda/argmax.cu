// ${ir}
// One block a row.
extern "C" __global__ void __launch_bounds__(${threads})
${entry}(const ${x_type}* __restrict__ x, i32* __restrict__ y, i64 n) {
  x += blockIdx.x * n;
  u64 best = 0;
  for (i64 i = threadIdx.x; i < n; i += ${threads}) {
    const u64 key = order_key(to_f32(x[i]), (u32)i);
    best = best > key ? best : key;
  }
  best = block_max<${warps}>(best);
  if (threadIdx.x == 0) y[blockIdx.x] = (i32)key_index(best);
}
