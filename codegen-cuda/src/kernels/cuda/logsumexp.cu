// ${ir}
// One block a row.
extern "C" __global__ void __launch_bounds__(${threads})
${entry}(const ${x_type}* __restrict__ x, ${tokens}${y_type}* __restrict__ y, i64 n) {
  x += blockIdx.x * n;
  f32 most = __uint_as_float(0xff800000u);
  for (i64 i = threadIdx.x; i < n; i += ${threads}) most = max_nan(most, to_f32(x[i]));
  most = block_max<${warps}>(most);
  f32 sum = 0.0f;
  for (i64 i = threadIdx.x; i < n; i += ${threads}) sum += expf(to_f32(x[i]) - most);
  sum = block_sum<${warps}>(sum);
  if (threadIdx.x == 0) {
    ${finish}
  }
}
