// ${ir}
// Experts' weights for many rows. A block makes a strip of w (TILES tiles of 16 rows) of one expert times up to SLOTS of the rows that chose it. Units
// of 64 k of both pass through shared memory, STAGES deep, the weights as they are packed: a warp decodes the fragments of its own tiles in
// registers. The order of multiplies within a piece of K and of the pieces is that of the kernels for few rows, so results are the same bits.
${constants}
constexpr int PIECES = ${pieces};
constexpr int SLOTS = ${slots};
constexpr int RT = ${row_tiles};  // tiles of a warp
constexpr int STAGES = ${stages};
constexpr bool FAST = ${fast};  // scales are stored as scale + 126
constexpr int TILES = 8 * RT;
constexpr int NT = SLOTS / 8;
constexpr int HEIGHT = TILES * 16;
constexpr int K_TILES = (K + 63) / 64;
constexpr int ROW_TILES = (N + 15) / 16;
constexpr int RECORD = 544;
constexpr int X_AT = TILES * RECORD;  // in a stage: weights, x
constexpr int X_PITCH = 144;
constexpr int STAGE = X_AT + SLOTS * X_PITCH;
constexpr int PITCH = HEIGHT + 4;

extern "C" __global__ void __launch_bounds__(256, ${blocks})
${entry}(const bf16* x, const u8* w, const i32* start, const i32* list, u32 tiles${params}) {
  extern __shared__ uint4 shared[];
  __shared__ Group group;
  __shared__ i32 rows[SLOTS];
  let_successors_start();
  wait_for_predecessors();
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const int strip = (int)(blockIdx.x / tiles);
  if (warp == 0) find_group(&group, start, EXPERTS, SLOTS, (i32)(blockIdx.x % tiles));
  __syncthreads();
  const int count = group.count;
  if (count == 0) return;
  if (threadIdx.x < SLOTS) rows[threadIdx.x] = list[group.first + (threadIdx.x < count ? threadIdx.x : 0)];
  __syncthreads();
  f32 sum[RT][NT][4] = {};
  if (group.expert < EXPERTS) {  // rows of no expert are 0
    u8* const stages = (u8*)shared;
    const u8* w_from[RT];
#pragma unroll
    for (int i = 0; i < RT; i++) {
      const int r = warp * RT + i;
      const int tile = ${tile};
      w_from[i] = w + (i64)(group.expert * ROW_TILES + (tile < ROW_TILES ? tile : ROW_TILES - 1)) * K_TILES * RECORD + lane * 16;
    }
    // A thread copies the same 8 columns of some rows of x.
    const int copy_row = threadIdx.x >> 3;
    const int copy_k = (threadIdx.x & 7) * 8;
    const bf16* x_from[(SLOTS + 31) / 32];
#pragma unroll
    for (int i = 0; i < (SLOTS + 31) / 32; i++) {
      const i32 row = rows[(copy_row + 32 * i) % SLOTS];
      x_from[i] = x + (i64)(${x_row}) * K;
    }
    auto fetch = [&](int u) {
      u8* const to = stages + u % STAGES * STAGE;
#pragma unroll
      for (int i = 0; i < RT; i++) {
        u8* const at = to + (warp * RT + i) * RECORD + lane * 16;
        const u8* const from = w_from[i] + (i64)u * RECORD;
        copy16_async(at, from, true);
        if (lane < 2) copy16_async(at + 512, from + 512, true);
      }
      const int k = u * 64 + copy_k;
#pragma unroll
      for (int i = 0; i < (SLOTS + 31) / 32; i++) {
        const int row = copy_row + 32 * i;
        if (SLOTS % 32 == 0 || row < SLOTS) {
          copy16_async(to + X_AT + row * X_PITCH + copy_k * 2, x_from[i] + (k < K ? k : 0), k < K);
        }
      }
    };
#pragma unroll
    for (int u = 0; u < STAGES - 1; u++) {
      if (u < K_TILES) fetch(u);
      copy_commit();
    }
    // Row of x and first column for load_matrices.
    const u32 x_lane = shared_address(stages) + X_AT + lane % 8 * X_PITCH + (lane >> 3) * 16;
    int u = 0;
#pragma unroll 1
    for (int piece = 0; piece < PIECES; piece++) {
      const int end = (int)((i64)K_TILES * (piece + 1) / PIECES);
      f32 acc[RT][NT][4] = {};
#pragma unroll 1
      for (; u < end; u++) {
        copy_wait<STAGES - 2>();
        __syncthreads();
        if (u + STAGES - 1 < K_TILES) fetch(u + STAGES - 1);
        copy_commit();
        const int at = u % STAGES * STAGE;
        u32 a[RT][4][4];
#pragma unroll
        for (int r = 0; r < RT; r++) {
          const u8* const record = stages + at + (warp * RT + r) * RECORD;
          gs_mxfp4_decode_tile<FAST>(gs_mxfp4_load_codes(record, lane), gs_mxfp4_load_scales(record, lane), a[r]);
        }
#pragma unroll
        for (int s = 0; s < NT; s++) {
          if (s > 0 && 8 * s >= count) break;
          u32 b[2][4];
          load_matrices(b[0], x_lane + at + s * (8 * X_PITCH));
          load_matrices(b[1], x_lane + at + s * (8 * X_PITCH) + 64);
#pragma unroll
          for (int r = 0; r < RT; r++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
              const u32* const pair = b[i >> 1] + 2 * (i & 1);
              mma(bf16(), acc[r][s], a[r][i][0], a[r][i][1], a[r][i][2], a[r][i][3], pair[0], pair[1]);
            }
          }
        }
      }
#pragma unroll
      for (int r = 0; r < RT; r++) {
#pragma unroll
        for (int s = 0; s < NT; s++) {
#pragma unroll
          for (int e = 0; e < 4; e++) sum[r][s][e] += acc[r][s][e];
        }
      }
    }
    copy_wait<0>();
    __syncthreads();
  }
  f32* const out = (f32*)shared;  // [slot][PITCH]
#pragma unroll
  for (int r = 0; r < RT; r++) {
#pragma unroll
    for (int s = 0; s < NT; s++) {
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int slot = 8 * s + 2 * (lane & 3) + (e & 1);
        out[slot * PITCH + (warp * RT + r) * 16 + 8 * (e >> 1) + (lane >> 2)] = sum[r][s][e];
      }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < count * OUTPUTS; i += 256) {
    const int slot = i / OUTPUTS;
    const int row = rows[slot];
    const int n = strip * OUTPUTS + i % OUTPUTS;
    if (n >= WIDTH) continue;
    const int t = row / CHOICES;
    const int j = row % CHOICES;
    ${finish}
  }
}
