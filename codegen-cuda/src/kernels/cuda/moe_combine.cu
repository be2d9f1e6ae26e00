// ${ir}
extern "C" __global__ void __launch_bounds__(256)
${entry}(const ${type}* __restrict__ x, const ${w_type}* __restrict__ w, ${type}* __restrict__ y, i64 n, i64 experts, i64 width) {
  const i64 i = (i64)blockIdx.x * 256 + threadIdx.x;
  if (i >= n) return;
  i64 t = i;
  const i64 at = take_dim(t, width);
  f32 sum = 0.0f;
  for (i64 j = 0; j < experts; j++) {
    sum += to_f32(w[t * experts + j]) * to_f32(x[(t * experts + j) * width + at]);
  }
  y[i] = from_f32<${type}>(sum);
}
