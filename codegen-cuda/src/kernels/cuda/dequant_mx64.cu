// ${ir}
// One block four tiles of 16 x 64, one above the other; they turn from fragment order to rows in shared memory.
extern "C" __global__ void __launch_bounds__(128)
${entry}(const u8* __restrict__ packed, ${type}* __restrict__ y, i64 rows, i64 columns, u32 row_tiles, u32 k_tiles) {
  alignas(16) __shared__ u16 tile[64][72];
  constexpr bool FAST = ${fast};  // scales are stored as scale + 126
  const u32 t = threadIdx.x;
  const u32 k_tile = blockIdx.x % k_tiles;
  const u32 fours = (row_tiles + 3) / 4;
  const u32 first = blockIdx.x / k_tiles % fours * 4;
  const u32 expert = blockIdx.x / k_tiles / fours;
  const u32 row_tile = first + (t >> 5) < row_tiles ? first + (t >> 5) : first;  // of the last four, some may not exist
  const u8* record = gs_mxfp4_record(packed, row_tiles, k_tiles, expert, row_tile, k_tile);
  const uint4 codes = gs_mxfp4_load_codes(record, t & 31);
  const u32 scales = gs_mxfp4_load_scales(record, t & 31);
  u32 a[4][4];
  gs_mxfp4_decode_tile<FAST>(codes, scales, a);
  const u32 row = 16 * (t >> 5) + ((t >> 2) & 7);
  const u32 c = t & 3;
#pragma unroll
  for (u32 s = 0; s < 4; s++) {
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
      const u32 byte = (scales >> (8 * ((s >> 1) + 2 * (j & 1)))) & 255u;
      const u32 pair = !FAST && byte == 255u ? 0x7fff7fffu : a[s][j];
      *(u32*)&tile[row + 8 * (j & 1)][16 * s + 8 * (j >> 1) + 2 * c] = pair;
    }
  }
  __syncthreads();
  for (u32 i = t; i < 64 * 8; i += 128) {
    const i64 n = (i64)first * 16 + (i >> 3);
    const i64 k = (i64)k_tile * 64 + (i & 7) * 8;
    if (n >= rows || k >= columns) continue;
    const uint4 v = *(const uint4*)&tile[i >> 3][(i & 7) * 8];
    ${type}* to = y + ((i64)expert * rows + n) * columns + k;
    ${stores}
  }
}
