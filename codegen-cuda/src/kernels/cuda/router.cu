// ${ir}
// A matmul with few columns, its rows normed in front and ranked behind. A cluster of blocks makes ${rows} rows (of ${slots} slots): each norms them for
// itself and makes its share of the columns, ${height} (a tile) at a time; then each ranks some of the rows. Weights are requested before the rows are there.
// The product's sums are those of the other matmuls, the norm's those of its own kernel.
typedef ${x_type} X;
typedef ${in_type} In;
constexpr int K = ${k};
constexpr int N = ${n};
constexpr int BLOCKS = ${blocks};
constexpr int HEIGHT = ${height};  // columns of a tile
constexpr int TILES = (N + HEIGHT * BLOCKS - 1) / (HEIGHT * BLOCKS);  // of a block
constexpr int PIECES = ${pieces};  // warps; each sums a piece of K
constexpr int SLOTS = ${slots};
constexpr int ROWS = ${rows};  // of a cluster
constexpr int NT = SLOTS / 8;
constexpr int UNITS = (K + 63) / 64;
constexpr int LONGEST = (UNITS + PIECES - 1) / PIECES;
constexpr int RESIDENT = ${resident};  // blocks of a multiprocessor: two work at different things, and have half of the registers each
constexpr bool HELD = RESIDENT == 1 && LONGEST <= 6;  // a piece's weights fit the registers
constexpr int THREADS = PIECES * 32;
constexpr int X_ROW = UNITS * 64 + 16;  // elements; 32 bytes beside, as lanes read that much of 4 rows at a time
constexpr int LANES = ${lanes};  // warps of the norm's own kernel
constexpr int TOP = ${top};  // of the greatest that are wanted
constexpr int STEPS = (K + LANES * 32 - 1) / (LANES * 32);
constexpr int ABREAST = ${abreast};  // rows that are normed at a time
constexpr int JOBS = (ABREAST * LANES + PIECES - 1) / PIECES;

extern "C" __global__ void ${cluster}__launch_bounds__(THREADS, RESIDENT)
${entry}(${params}, i32 rows, const Wanted wanted) {
  extern __shared__ uint4 shared[];
  In* const x_rows = (In*)shared;                                       // [SLOTS][X_ROW]
  f32* const sums = (f32*)(x_rows + SLOTS * X_ROW);                     // [PIECES][SLOTS][20]
  f32* const logits = sums + PIECES * SLOTS * 20;                       // [SLOTS][N]
  ${norm_shared}
  const int lane = threadIdx.x & 31;
  const int piece = threadIdx.x >> 5;
  const int g = lane >> 2;
  const int c = lane & 3;
  const u32 rank = BLOCKS > 1 ? blockIdx.x % BLOCKS : 0;
  const i32 row0 = (i32)(${group}) * ROWS;
  const int count = rows - row0 < ROWS ? rows - row0 : ROWS;
  // Logits come from all blocks of the cluster to the one that ranks their row: it waits for their bytes, the others may end.
  __shared__ u64 logits_there;
  const u32 signal = shared_address(&logits_there);
  const int own_rows = count > (int)rank ? (count - (int)rank + BLOCKS - 1) / BLOCKS : 0;
  let_successors_start();
  if (BLOCKS > 1 && threadIdx.x == 0) {
    signal_init(signal, 1);
    signal_publish();
    signal_expect(signal, (u32)(own_rows * N) * 4);
  }
  cluster_arrive<BLOCKS>();

  // What is asked for before the wait is not touched there: a block that waits for weights is late for the rows.
  const int first_unit = UNITS * piece / PIECES;
  const int unit_count = UNITS * (piece + 1) / PIECES - first_unit;
  uint4 a[HELD ? LONGEST : 1][2][HEIGHT / 8];
  auto load_unit = [&](uint4 (&a)[2][HEIGHT / 8], int tile, int u) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
#pragma unroll
      for (int h = 0; h < HEIGHT / 8; h++) {
        const int n = (tile * BLOCKS + (int)rank) * HEIGHT + 8 * h + g;
        const In* const row = ${weights} + (i64)(n < N ? n : N - 1) * K;  // rows beyond the end are computed and not stored
        const int k = (first_unit + u) * 64 + half * 32;
        a[half][h] = ${load_w};
      }
    }
  };
  auto load_tile = [&](int tile) {
    if (!HELD) return;
#pragma unroll
    for (int u = 0; u < LONGEST; u++) {
      if (UNITS % PIECES == 0 || u < unit_count) load_unit(a[HELD ? u : 0], tile, u);
    }
  };
  ${early}
  load_tile(0);
  wait_for_predecessors();
  ${stage}
  __syncthreads();
  // Rows are there, weights are under way: from here on memory would be idle.
  if (threadIdx.x == THREADS - 1) ask_ahead<128 << 10>(wanted);
  ${export_first}

  bool peers = false;
#pragma unroll 1
  for (int tile = 0; tile < TILES; tile++) {
    f32 acc[NT][4] = {};
    auto multiply = [&](int u, const uint4 (&a)[2][HEIGHT / 8]) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int k = (first_unit + u) * 64 + half * 32 + 4 * c;
        const uint4 lo = ${share}(a[half][0]);
        const uint4 hi = HEIGHT == 16 ? ${share}(a[half][HEIGHT / 16]) : make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int s = 0; s < NT; s++) {
          const In* const row = x_rows + (8 * s + g) * X_ROW + k;
          const uint4 b = halves16(*(const uint2*)row, *(const uint2*)(row + 16));
          mma_k32<In>(acc[s], lo, hi, b);
        }
      }
    };
    if (HELD) {
#pragma unroll
      for (int u = 0; u < LONGEST; u++) {
        if (UNITS % PIECES == 0 || u < unit_count) multiply(u, a[HELD ? u : 0]);
      }
    } else {
#pragma unroll RESIDENT > 1 ? LONGEST : 1
      for (int u = 0; u < LONGEST; u++) {
        if (u >= unit_count) break;
        load_unit(a[0], tile, u);
        multiply(u, a[0]);
      }
    }
    if (tile + 1 < TILES) load_tile(tile + 1);
#pragma unroll
    for (int s = 0; s < NT; s++) {
#pragma unroll
      for (int e = 0; e < HEIGHT / 4; e++) sums[(piece * SLOTS + 8 * s + 2 * c + (e & 1)) * 20 + 8 * (e >> 1) + g] = acc[s][e];
    }
    __syncthreads();
    if (!peers) cluster_wait<BLOCKS>();
    peers = true;
    for (int i = threadIdx.x; i < count * HEIGHT; i += THREADS) {
      const int slot = i / HEIGHT;
      const int n = (tile * BLOCKS + (int)rank) * HEIGHT + i % HEIGHT;
      if (n >= N) continue;
      f32 z = 0.0f;
#pragma unroll
      for (int p = 0; p < PIECES; p++) z += sums[(p * SLOTS + slot) * 20 + i % HEIGHT];
      ${bias}
      ${store_logits}
      send_peer<BLOCKS>(logits + slot * N + n, (u32)slot % BLOCKS, z, signal);
    }
    if (BLOCKS == 1 || tile + 1 < TILES) __syncthreads();
  }
  ${export_last}
  if (BLOCKS > 1 && piece < own_rows) signal_wait(signal, 0);
  // The greatest of a row, a warp a row: lane r gets the r-th. Equal elements go by index, NaN counts as the least.
  for (int slot = (int)rank + piece * BLOCKS; TOP > 0 && slot < count; slot += PIECES * BLOCKS) {
    const i64 t = row0 + slot;
    u32 keys[(N + 31) / 32];  // 0: taken
#pragma unroll
    for (int j = 0; j < (N + 31) / 32; j++) {
      const int n = lane + 32 * j;
      keys[j] = N % 32 == 0 || n < N ? order_key(logits[slot * N + n]) + 1 : 0u;
    }
    i32 index = 0;
#pragma unroll
    for (int r = 0; r < TOP; r++) {
      u32 most = 0;
      i32 own = 0x7fffffff;
#pragma unroll
      for (int j = 0; j < (N + 31) / 32; j++) {
        if (keys[j] > most) {
          most = keys[j];
          own = lane + 32 * j;
        }
      }
      const u32 all = __reduce_max_sync(0xffffffffu, most);
      const i32 winner = (i32)__reduce_min_sync(0xffffffffu, most == all ? (u32)own : 0xffffffffu);
      if (lane == r) index = winner;
#pragma unroll
      for (int j = 0; j < (N + 31) / 32; j++) {
        if (lane + 32 * j == winner) keys[j] = 0;
      }
    }
    const bool active = lane < TOP;
    const f32 value = active ? logits[slot * N + index] : -INF;
    ${softmax}
    if (active) {
      ${store}
    }
  }
}
