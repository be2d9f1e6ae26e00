// ${ir}
// One block a row.
extern "C" __global__ void __launch_bounds__(${threads})
${entry}(const ${x_type}* __restrict__ x, const ${w_type}* __restrict__ w, const ${b_type}* __restrict__ b,
         ${x_type}* __restrict__ y, i64 n) {
  x += blockIdx.x * n;
  y += blockIdx.x * n;
  f32 sum = 0.0f;
  for (i64 i = threadIdx.x; i < n; i += ${threads}) sum += to_f32(x[i]);
  const f32 mean = block_sum<${warps}>(sum) / (f32)n;
  f32 squares = 0.0f;
  for (i64 i = threadIdx.x; i < n; i += ${threads}) {
    const f32 v = to_f32(x[i]) - mean;
    squares += v * v;
  }
  squares = block_sum<${warps}>(squares);
  const f32 scale = 1.0f / sqrtf(squares / (f32)n + ${eps});
  for (i64 i = threadIdx.x; i < n; i += ${threads}) {
    y[i] = from_f32<${x_type}>((to_f32(x[i]) - mean) * scale * to_f32(w[i]) + to_f32(b[i]));
  }
}
