// ${ir}
// A thread rotates one pair.
extern "C" __global__ void __launch_bounds__(256)
${entry}(const ${type}* __restrict__ x, const i32* __restrict__ pos, const f32* __restrict__ table, ${type}* __restrict__ y,
         i64 n, i64 positions) {
  constexpr i64 HALF = ${half};   // pairs of a head
  constexpr i64 PAIRS = ${pairs};  // pairs of a row
  const i64 i = (i64)blockIdx.x * 256 + threadIdx.x;
  if (i >= n) return;
  const i64 t = i / PAIRS;
  const i64 head = i / HALF;
  const i64 j = i - head * HALF;
  i64 p = pos[t];
  p = p < 0 ? 0 : p < positions ? p : positions - 1;
  const f32 cosine = table[p * 2 * HALF + j];
  const f32 sine = table[p * 2 * HALF + HALF + j];
  const i64 at = head * 2 * HALF + j;
  const f32 a = to_f32(x[at]);
  const f32 b = to_f32(x[at + HALF]);
  // Products are rounded on their own, whatever kernel the op is part of.
  y[at] = from_f32<${type}>(__fadd_rn(__fmul_rn(a, cosine), -__fmul_rn(b, sine)));
  y[at + HALF] = from_f32<${type}>(__fadd_rn(__fmul_rn(b, cosine), __fmul_rn(a, sine)));
}
