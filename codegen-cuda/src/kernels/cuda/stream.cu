// ${ir}
// Few rows of x, ${slots} a block (slots). A tile is ${height} columns of the product; the warps of a block share out K in pieces. Weights pass through a ring
// in shared memory of its own for each warp, so that requests are under way before the rows of x are there, from tile to tile and, where room is left,
// while the kernel before still runs. Pieces are added up in order: a result does not depend on the
// other rows or on which kernel of the family made it.
typedef ${in_type} In;
constexpr int K = ${k};
constexpr int N = ${n};
constexpr int HEIGHT = 16;
constexpr u32 TILES = ${tiles};
constexpr u32 GROUP = ${group};  // tiles in a row that a block works on
constexpr int PIECES = ${pieces};  // warps
constexpr int THREADS = PIECES * 32;
constexpr int UNITS = (K + 63) / 64;
constexpr int STAGES = ${stages};  // units of a warp's ring
constexpr int SLOTS = ${slots};
constexpr int NT = (SLOTS + 7) / 8;  // tiles of 8 slots
constexpr int X_ROW = UNITS * 64 + 8;  // elements; 16 bytes off, so that load_matrices finds 8 rows in different banks
constexpr int SUMS = ${sums};  // buffers for sums: with two, a tile's epilogue runs beside the next tile
constexpr int OUTPUTS = SLOTS * HEIGHT < 32 ? 32 : SLOTS * HEIGHT;
${constants}

extern "C" __global__ void __launch_bounds__(THREADS, ${blocks})
${entry}(${params}) {
  extern __shared__ uint4 shared[];
  __shared__ f32 sums[SUMS][PIECES][SLOTS][HEIGHT + 4];
  ${shared}
  const int lane = threadIdx.x & 31;
  const int piece = threadIdx.x >> 5;
  const int g = lane >> 2;
  const int c = lane & 3;
  // A unit of the ring: [half of 32 k][rows 0..7, 8..15][row][16 bytes at place (k / 8) ^ (row / 2)], for the banks' sake.
  uint4* const ring = shared + piece * STAGES * 128;
  const int put = 4 * g + (c ^ (g >> 1));  // where this lane's copies go
  In* const x_rows = (In*)(shared + PIECES * STAGES * 128);
  const u32 row_tiles = (u32)(rows + SLOTS - 1) / SLOTS;
  const int row0 = (int)(blockIdx.x % row_tiles) * SLOTS;
  const int count = rows - row0 < SLOTS ? rows - row0 : SLOTS;
  const u32 first_tile = blockIdx.x / row_tiles * GROUP;
  const u32 stride = gridDim.x / row_tiles * GROUP;
  auto next_tile = [&](u32 tile) {
    if (GROUP == 1) return tile + stride;
    return (tile + 1) % GROUP != 0 && tile + 1 < TILES ? tile + 1 : tile / GROUP * GROUP + stride;
  };
  const int first_unit = UNITS * piece / PIECES;
  const int unit_count = UNITS * (piece + 1) / PIECES - first_unit;

  // The next unit to ask for: its tile, and where this lane's 16 bytes of two rows begin.
  u32 fetch_tile = first_tile;
  int fetch_left = 0;
  int fetch_stage = 0;
  int fetch_k = 0;
  const In* from[2];
  auto begin_fetch = [&]() {
    fetch_left = unit_count;
    fetch_k = first_unit * 64 + c * 8;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int local = 8 * h + g;
      const int n = ${column_of_fetch};
      from[h] = ${weights} + (i64)(n < N ? n : N - 1) * K;  // rows beyond the end are computed and not stored
    }
  };
  auto fetch = [&]() {
    if (fetch_tile < TILES) {
      uint4* const to = ring + fetch_stage * 128 + put;
#pragma unroll
      for (int half = 0; half < 2; half++) {
#pragma unroll
        for (int h = 0; h < 2; h++) ${fetch}
      }
      fetch_k += 64;
      if (--fetch_left == 0) {
        fetch_tile = next_tile(fetch_tile);
        if (fetch_tile < TILES) begin_fetch();
      }
    }
    fetch_stage = (fetch_stage + 1) % STAGES;
    copy_commit();
  };
  if (fetch_tile < TILES) begin_fetch();
#pragma unroll
  for (int i = 0; i < STAGES; i++) fetch();
  ${prefetch}
  ${look_up}
  let_successors_start();
  wait_for_predecessors();
  // Loads of rows of x and of what the first epilogue needs are under way together.
  ${load_x}
  ${look_up_first}
  ${stage_x}
  __syncthreads();

  // Addresses for load_matrices. Of weights, matrices are rows 0..7 and 8..15 of 8 k, then of the next 8, so that four are the operand of a multiply of
  // 16 k; of rows of x they are 8 k each, those of two multiplies.
  const int matrix = lane >> 3;
  const int matrix_row = lane & 7;
  const u32 w_row = shared_address(ring) + (u32)((matrix & 1) * 512 + matrix_row * 64);
  const u32 w_at[2] = {w_row + (u32)((matrix >> 1) ^ (matrix_row >> 1)) * 16, w_row + (u32)((matrix >> 1) ^ (matrix_row >> 1) ^ 2) * 16};
  u32 x_at[NT];
#pragma unroll
  for (int s = 0; s < NT; s++) {
    const int row = 8 * s + matrix_row < count ? 8 * s + matrix_row : 0;
    x_at[s] = shared_address(x_rows) + (u32)(row * X_ROW * 2 + first_unit * 128 + matrix * 16);
  }
  int stage = 0;
  int buffer = 0;
  for (u32 tile = first_tile; tile < TILES; tile = next_tile(tile)) {
    ${look_up_next}
    f32 acc[NT][4] = {};
    for (int i = 0; i < unit_count; i++) {
      copy_wait<STAGES - 1>();
      __syncwarp();  // the copies of all lanes are there
#pragma unroll
      for (int half = 0; half < 2; half++) {
        u32 a[2][4];
#pragma unroll
        for (int m = 0; m < 2; m++) load_matrices(a[m], w_at[m] + (u32)(stage * 2048 + half * 1024));
#pragma unroll
        for (int s = 0; s < NT; s++) {
          u32 b[4];
          load_matrices(b, x_at[s] + (u32)(i * 128 + half * 64));
          mma(In(), acc[s], a[0][0], a[0][1], a[0][2], a[0][3], b[0], b[1]);
          mma(In(), acc[s], a[1][0], a[1][1], a[1][2], a[1][3], b[2], b[3]);
        }
      }
      __syncwarp();  // all lanes are done with the stage
      stage = (stage + 1) % STAGES;
      fetch();
    }
#pragma unroll
    for (int s = 0; s < NT; s++) {
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int slot = 8 * s + 2 * c + (e & 1);
        if (slot < SLOTS) sums[buffer][piece][slot][8 * (e >> 1) + g] = acc[s][e];
      }
    }
    __syncthreads();
    auto product = [&](int slot, int local) {
      f32 sum = 0.0f;
#pragma unroll
      for (int p = 0; p < PIECES; p++) sum += sums[buffer][p][slot][local];
      return sum;
    };
    ${epilogue}
    if (SUMS == 1) __syncthreads();
    else buffer ^= 1;
  }
}
