// ${ir}
// One warp a tile. fmaxf passes numbers over NaN.
extern "C" __global__ void __launch_bounds__(256)
${entry}(const ${type}* __restrict__ x, ${type}* __restrict__ y, i64 rows, i64 n, i64 tiles) {
  constexpr int TILE = ${tile};
  const i64 i = (i64)blockIdx.x * 8 + (threadIdx.x >> 5);
  if (i >= rows * tiles) return;
  const i64 row = i / tiles;
  const i64 first = (i - row * tiles) * TILE;
  const i64 end = first + TILE < n ? first + TILE : n;
  f32 most = __uint_as_float(0xff800000u);
  for (i64 c = first + (threadIdx.x & 31); c < end; c += 32) most = fmaxf(most, to_f32(x[row * n + c]));
  most = warp_max(most);
  if ((threadIdx.x & 31) == 0) y[i] = from_f32<${type}>(most);
}
