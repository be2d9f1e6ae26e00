// ${ir}
// Angles are f32 products; their cosines and sines are taken in f64, with the angle reduced to a quarter turn by hand: the library's
// reduction of large angles needs local memory.
__constant__ f32 frequency[${half}] = {
  ${frequencies}
};
extern "C" __global__ void __launch_bounds__(256)
${entry}(f32* __restrict__ table, i64 n) {
  constexpr i64 HALF = ${half};
  const i64 i = (i64)blockIdx.x * 256 + threadIdx.x;
  if (i >= n) return;
  const i64 p = i / HALF;
  const i64 j = i - p * HALF;
  const f32 angle = (f32)p * frequency[j];
  const f64 quarters = rint((f64)angle * 0.63661977236758138);
  f64 r = fma(-quarters, 1.5707963267948966, (f64)angle);
  r = fma(-quarters, 6.123233995736766e-17, r);
  const f64 q = r * r;
  f64 s = -7.6471637318198164e-13;
  s = fma(s, q, 1.6059043836821613e-10);
  s = fma(s, q, -2.5052108385441719e-08);
  s = fma(s, q, 2.7557319223985893e-06);
  s = fma(s, q, -1.9841269841269841e-04);
  s = fma(s, q, 8.3333333333333332e-03);
  s = fma(s, q, -1.6666666666666666e-01);
  const f64 sine = fma(s * q, r, r);
  f64 c = 4.7794773323873853e-14;
  c = fma(c, q, -1.1470745597729725e-11);
  c = fma(c, q, 2.0876756987868099e-09);
  c = fma(c, q, -2.7557319223985888e-07);
  c = fma(c, q, 2.4801587301587302e-05);
  c = fma(c, q, -1.3888888888888889e-03);
  c = fma(c, q, 4.1666666666666664e-02);
  c = fma(c, q, -0.5);
  const f64 cosine = fma(c, q, 1.0);
  const i64 turn = (i64)quarters & 3;
  const f64 x = turn == 0 ? cosine : turn == 1 ? -sine : turn == 2 ? -cosine : sine;
  const f64 y = turn == 0 ? sine : turn == 1 ? cosine : turn == 2 ? -sine : -cosine;
  table[p * 2 * HALF + j] = (f32)x * ${scale};
  table[p * 2 * HALF + HALF + j] = (f32)y * ${scale};
}
