// ${ir}
// ${lanes} threads a row.
extern "C" __global__ void __launch_bounds__(256)
${entry}(const ${type}* __restrict__ x, ${type}* __restrict__ y, i64 n, i64 axis) {
  constexpr int LANES = ${lanes};
  const i64 i = (i64)blockIdx.x * (256 / LANES) + threadIdx.x / LANES;
  const ${type}* row = x + i * axis;
  f32 acc = ${start};
  if (i < n) {
    for (i64 a = threadIdx.x % LANES; a < axis; a += LANES) {
      const f32 v = to_f32(row[a]);
      acc = ${combine};
    }
  }
  acc = ${tree};
  if (i < n && threadIdx.x % LANES == 0) y[i] = from_f32<${type}>(${finish});
}
