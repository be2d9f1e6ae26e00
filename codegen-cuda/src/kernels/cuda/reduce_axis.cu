// ${ir}
// One thread a result; elements of the axis are inner apart and taken in order.
extern "C" __global__ void __launch_bounds__(256)
${entry}(const ${type}* __restrict__ x, ${type}* __restrict__ y, i64 n, i64 axis, i64 inner) {
  const i64 i = (i64)blockIdx.x * 256 + threadIdx.x;
  if (i >= n) return;
  const i64 outer = i / inner;
  const ${type}* row = x + outer * axis * inner + (i - outer * inner);
  f32 acc = ${start};
  for (i64 a = 0; a < axis; a++) {
    const f32 v = to_f32(row[a * inner]);
    acc = ${combine};
  }
  y[i] = from_f32<${type}>(${finish});
}
