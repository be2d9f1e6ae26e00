// ${ir}
// One block four tiles of 16 x 64, one above the other, in fragment order (layout/mxfp4.rs); padding is 0.
extern "C" __global__ void __launch_bounds__(128)
${entry}(const u8* __restrict__ codes, const u8* __restrict__ scales, u8* __restrict__ packed, i64 rows, i64 columns,
         u32 row_tiles, u32 k_tiles) {
  const u32 t = threadIdx.x;
  const u32 k_tile = blockIdx.x % k_tiles;
  const u32 fours = (row_tiles + 3) / 4;
  const u32 row_tile = blockIdx.x / k_tiles % fours * 4 + (t >> 5);
  const u32 expert = blockIdx.x / k_tiles / fours;
  if (row_tile >= row_tiles) return;
  u8* record = packed + (((i64)expert * row_tiles + row_tile) * k_tiles + k_tile) * 544;
  const i64 first = (i64)expert * rows;
  const u32 g = (t >> 2) & 7;
  const u32 c = t & 3;
  u32 words[4];
#pragma unroll
  for (u32 s = 0; s < 4; s++) {
    u32 byte[4];
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
      const i64 n = (i64)row_tile * 16 + g + 8 * (j & 1);
      const i64 k = (i64)k_tile * 64 + 16 * s + 8 * (j >> 1) + 2 * c;
      byte[j] = n < rows && k < columns ? codes[((first + n) * columns + k) / 2] : 0u;
    }
    words[s] = gs_mxfp4_pack8(byte);
  }
  *(uint4*)(record + 16 * (t & 31)) = make_uint4(words[0], words[1], words[2], words[3]);
  const i64 n = (i64)row_tile * 16 + g + 8 * (c >> 1);
  const i64 k = (i64)k_tile * 64 + 32 * (c & 1);
  record[512 + (t & 31)] = n < rows && k < columns ? scales[((first + n) * columns + k) / 32] : (u8)0;
}
