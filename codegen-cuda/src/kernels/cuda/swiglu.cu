// ${ir}
extern "C" __global__ void __launch_bounds__(256)
${entry}(const ${type}* __restrict__ x, ${type}* __restrict__ y, i64 n) {
  constexpr i64 I = ${half};  // features
  const i64 i = (i64)blockIdx.x * 256 + threadIdx.x;
  if (i >= n) return;
  ${pair}
  const f32 g = min_nan(gate, ${limit});
  const f32 u = min_nan(max_nan(up, -(${limit})), ${limit});
  const f32 z = g * logistic(${alpha} * g) * (u + 1.0f);
  y[i] = from_f32<${type}>(z);
}
