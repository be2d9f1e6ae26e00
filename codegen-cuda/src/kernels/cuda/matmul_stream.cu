// ${ir}
// Few rows of x. A block makes ${slots} of them (slots) times ${height} rows of w; its warps share out K in pieces and load their fragments
// straight from memory, as each element of w is used once. Pieces are added up in order, so a result does not depend on the
// other rows or on which kernel of this family made it.
typedef ${in_type} In;
typedef ${out_type} Out;
${constants}
constexpr int PIECES = ${pieces};  // warps
constexpr int RT = ${row_tiles};  // tiles of 16 rows of w
constexpr int NT = ${slot_tiles};  // tiles of 8 slots
constexpr int HEIGHT = RT * 16;
constexpr int SLOTS = NT * 8;

extern "C" __global__ void __launch_bounds__(PIECES * 32)
${entry}(const In* __restrict__ x, const In* __restrict__ w, Out* __restrict__ y, u32 tiles${params}) {
  __shared__ f32 sums[PIECES][SLOTS][HEIGHT + 4];
  const int lane = threadIdx.x & 31;
  const int piece = threadIdx.x >> 5;
  const int g = lane >> 2;
  const int c = lane & 3;
  const u32 tile = blockIdx.x % tiles;
  const i64 n0 = (i64)(blockIdx.x / tiles) * HEIGHT;
  ${locate}
  const In* w_row[RT][2];
  const In* x_row[NT];
#pragma unroll
  for (int r = 0; r < RT; r++) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const i64 n = n0 + 16 * r + 8 * h + g;
      w_row[r][h] = w + (n < N ? n : N - 1) * K;  // rows beyond the end are computed and not stored
    }
  }
#pragma unroll
  for (int s = 0; s < NT; s++) {
    const int slot = 8 * s + g < count ? 8 * s + g : 0;
    x_row[s] = x + (i64)(${x_row}) * K;
  }
  f32 acc[RT][NT][4] = {};
  const int units = (int)((K + 63) / 64);
  const int first_unit = (int)((i64)units * piece / PIECES);
  const int unit_count = ${unit_count};
#pragma unroll ${unroll}
  for (int i = 0; i < unit_count; i++) {
    const int u = first_unit + i;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const i64 k = (i64)u * 64 + half * 32;
      uint4 a[RT][2];
      uint4 b[NT];
#pragma unroll
      for (int r = 0; r < RT; r++) {
#pragma unroll
        for (int h = 0; h < 2; h++) a[r][h] = ${load_w};
      }
#pragma unroll
      for (int s = 0; s < NT; s++) b[s] = ${load_x};
#pragma unroll
      for (int r = 0; r < RT; r++) {
#pragma unroll
        for (int s = 0; s < NT; s++) mma_k32<In>(acc[r][s], a[r][0], a[r][1], b[s]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < RT; r++) {
#pragma unroll
    for (int s = 0; s < NT; s++) {
#pragma unroll
      for (int e = 0; e < 4; e++) sums[piece][8 * s + 2 * c + (e & 1)][16 * r + 8 * (e >> 1) + g] = acc[r][s][e];
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < count * HEIGHT; i += PIECES * 32) {
    const int slot = i / HEIGHT;
    const i64 n = n0 + i % HEIGHT;
    if (n >= N) continue;
    f32 sum = 0.0f;
#pragma unroll
    for (int p = 0; p < PIECES; p++) sum += sums[p][slot][i % HEIGHT];
    ${epilogue}
  }
}
