// ${ir}
// Many rows of x. A block makes ${slots} of them (slots) times ${height} rows of w; tiles of both pass through shared memory, ${stages} units of K
// deep. Pieces of K are summed apart and added up in order, as the kernels for few rows do, so results are the same bits.
typedef ${in_type} In;
${out}
${constants}
constexpr int PIECES = ${pieces};
constexpr int HEIGHT = ${height};
constexpr int SLOTS = ${slots};
constexpr int WARPS_N = ${warps_n};  // warps along w; the others of 8 are along the slots
constexpr int RT = HEIGHT / WARPS_N / 16;
constexpr int NT = SLOTS * WARPS_N / 8 / 8;
constexpr int STAGES = ${stages};
// A stage holds both halves of a unit of 64 k: [half][row][16 bytes at place (k / 8) ^ (row / 2 % 4)], so that load_matrices finds 8 rows in different
// banks. The second half starts 64 bytes off, for the sake of the copies.
constexpr int W_HALF = HEIGHT * 64 + 64;
constexpr int X_HALF = SLOTS * 64 + 64;
constexpr int STAGE = 2 * (W_HALF + X_HALF);

extern "C" __global__ void __launch_bounds__(256, ${blocks})
${entry}(${pointers}, u32 tiles${params}) {
  ${start}
  extern __shared__ uint4 shared[];
  u8* const stages = (u8*)shared;
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const int g = lane >> 2;
  const int c = lane & 3;
  const u32 tile = blockIdx.x % tiles;
  const i64 n0 = (i64)(blockIdx.x / tiles) * HEIGHT;
  ${locate}
  // A thread copies the same 8 columns of some rows of each tile: row, row + 32, ...
  const int copy_row = threadIdx.x >> 3;
  const int copy_k = threadIdx.x & 7;
  const In* const w_tile = w + ${w_base};
  u32 w_row[HEIGHT / 32];
  u32 x_row[SLOTS / 32];
#pragma unroll
  for (int i = 0; i < HEIGHT / 32; i++) {
    const int n = copy_row + 32 * i;
    ${w_row}
  }
#pragma unroll
  for (int i = 0; i < SLOTS / 32; i++) {
    const int slot = copy_row + 32 * i < count ? copy_row + 32 * i : 0;
    x_row[i] = (u32)(${x_row}) * (u32)K;  // x has fewer than 2^32 elements: registers are short here
  }
  const int units = (int)((K + 63) / 64);
  auto fetch = [&](int u) {
    u8* const to = stages + (u % STAGES) * STAGE;
    const i64 k = (i64)u * 64 + copy_k * 8;
    const int place = ((copy_k & 3) ^ (copy_row >> 1 & 3)) * 16;  // the same in all of the thread's rows
    const int w_at = (copy_k >> 2) * W_HALF + copy_row * 64 + place;
    const int x_at = 2 * W_HALF + (copy_k >> 2) * X_HALF + copy_row * 64 + place;
#pragma unroll
    for (int i = 0; i < HEIGHT / 32; i++) {
      u8* const at = to + w_at + i * 32 * 64;
      if (ALIGNED) copy16_async(at, w_tile + w_row[i] + (k < K ? k : 0), k < K);
      else *(uint4*)at = load8<false>(w_tile + w_row[i], k, K);
    }
#pragma unroll
    for (int i = 0; i < SLOTS / 32; i++) {
      u8* const at = to + x_at + i * 32 * 64;
      if (ALIGNED) copy16_async(at, x + x_row[i] + (k < K ? k : 0), k < K);
      else *(uint4*)at = load8<false>(x + x_row[i], k, K);
    }
  };
  const int first_row = (warp % WARPS_N) * RT * 16;
  const int first_slot = (warp / WARPS_N) * NT * 8;
  // Addresses for load_matrices. Of w, matrices are rows 0..7 and 8..15 of 8 k, then of the next 8, the operand of a multiply of 16 k; of x they are 8 k
  // each of 8 slots, those of two multiplies.
  const int matrix = lane >> 3;
  const int matrix_row = lane & 7;
  const u32 turn = (u32)(matrix_row >> 1);
  const u32 w_lane = shared_address(stages) + (u32)((first_row + (matrix & 1) * 8 + matrix_row) * 64);
  const u32 w_at[2] = {w_lane + ((u32)(matrix >> 1) ^ turn) * 16, w_lane + ((u32)(matrix >> 1 | 2) ^ turn) * 16};
  const u32 x_at = shared_address(stages) + (u32)(2 * W_HALF + (first_slot + matrix_row) * 64) + ((u32)matrix ^ turn) * 16;
  f32 acc[RT][NT][4] = {};
  f32 sum[RT][NT][4] = {};
#pragma unroll
  for (int u = 0; u < STAGES - 1; u++) {
    if (u < units) fetch(u);
    copy_commit();
  }
  int u = 0;
#pragma unroll 1
  for (int piece = 0; piece < PIECES; piece++) {
    const int end = (int)((i64)units * (piece + 1) / PIECES);
#pragma unroll 1
    for (; u < end; u++) {
      copy_wait<STAGES - 2>();
      __syncthreads();
      if (u + STAGES - 1 < units) fetch(u + STAGES - 1);
      copy_commit();
      const u32 from = (u32)((u % STAGES) * STAGE);
#pragma unroll
      for (int half = 0; half < 2; half++) {
        u32 a[RT][2][4];
        u32 b[NT][4];
#pragma unroll
        for (int r = 0; r < RT; r++) {
#pragma unroll
          for (int m = 0; m < 2; m++) load_matrices(a[r][m], w_at[m] + from + half * W_HALF + r * 16 * 64);
        }
#pragma unroll
        for (int s = 0; s < NT; s++) load_matrices(b[s], x_at + from + half * X_HALF + s * 8 * 64);
#pragma unroll
        for (int r = 0; r < RT; r++) {
#pragma unroll
          for (int s = 0; s < NT; s++) {
#pragma unroll
            for (int m = 0; m < 2; m++) mma(In(), acc[r][s], a[r][m][0], a[r][m][1], a[r][m][2], a[r][m][3], b[s][2 * m], b[s][2 * m + 1]);
          }
        }
      }
    }
#pragma unroll
    for (int r = 0; r < RT; r++) {
#pragma unroll
      for (int s = 0; s < NT; s++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
          sum[r][s][e] += acc[r][s][e];
          acc[r][s][e] = 0.0f;
        }
      }
    }
  }
  copy_wait<0>();
  __syncthreads();
  f32* const out = (f32*)shared;  // [slot][HEIGHT + 4]
#pragma unroll
  for (int r = 0; r < RT; r++) {
#pragma unroll
    for (int s = 0; s < NT; s++) {
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int slot = first_slot + 8 * s + 2 * c + (e & 1);
        out[slot * (HEIGHT + 4) + first_row + 16 * r + 8 * (e >> 1) + g] = sum[r][s][e];
      }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < count * HEIGHT; i += 256) {
    const int slot = i / HEIGHT;
    ${finish}
  }
}
