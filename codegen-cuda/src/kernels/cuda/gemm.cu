// ${ir}
// Many rows of x on warpgroup multiplies. One warp copies boxes of x (rows of the product) and w (its columns) into a ring in shared memory, 64 of K
// at a time; ${groups} warpgroups multiply, each 64 rows by ${width} columns, and keep the sums in registers: one chain over K in order, so that
// a row has the same bits whatever the tile. Blocks stay for several tiles; copies for the next one go on while results are made.
typedef ${in_type} In;
constexpr i32 N = ${n};  // rows of w
constexpr i32 K = ${k};  // columns
constexpr int UNITS = ${units};  // of 64 along K; what is beyond K is copied as zeros
constexpr int GROUPS = ${groups};
constexpr int WIDTH = ${width};
constexpr int HEIGHT = GROUPS * 64;
constexpr int STAGES = ${stages};
constexpr int THREADS = 128 * (GROUPS + 1);
constexpr int X_BYTES = HEIGHT * 128;
constexpr int W_BYTES = WIDTH * 128;
constexpr int STAGE = X_BYTES + W_BYTES;
constexpr int W_BOX = ${w_box};  // rows of w that are neighbours in memory and in the tile
constexpr int W_BOXES = WIDTH / W_BOX;
// A thread has columns 8 j + 2 c and the next of rows g and g + 8 of each multiply (g = lane / 4, c = lane % 4). Results are made from groups of four
// j and their partners APART columns further on: what an epilogue needs together is in one thread.
constexpr int APART = ${apart};
constexpr int PARTS = WIDTH / 64;

${multiply}

// The first column of the i-th eight that have their partners behind them.
constexpr int low_column(int i) { return i / (APART / 8) * (2 * APART) + i % (APART / 8) * 8; }
// The sums of the J-th eight of part I % PARTS, in row g + 8 (I / PARTS), and of its partners.
template <int I, int J> __device__ __forceinline__ void hold_eight(f32 (&held)[4], const f32 (&sums)[WIDTH / 2]) {
  constexpr int LOW = low_column(I % PARTS * 4 + J) / 2 + I / PARTS * 2;
  held[0] = sums[LOW];
  held[1] = sums[LOW + 1];
  held[2] = sums[LOW + APART / 2];
  held[3] = sums[LOW + APART / 2 + 1];
}
// Registers have no index at run time: this is one.
template <int I = 0> __device__ __forceinline__ void hold(int wanted, f32 (&held)[4][4], const f32 (&sums)[WIDTH / 2]) {
  if (wanted == I) {
    hold_eight<I, 0>(held[0], sums);
    hold_eight<I, 1>(held[1], sums);
    hold_eight<I, 2>(held[2], sums);
    hold_eight<I, 3>(held[3], sums);
  }
  if constexpr (I + 1 < 2 * PARTS) hold<I + 1>(wanted, held, sums);
}

// An element of a result and where it goes, if anywhere. A lane computes several before it stores one, so that their loads are under way together.
template <class T> struct Later {
  T* at = nullptr;
  T value;
};
template <class T> struct LaterIn {
  T* base;
  Later<T>& element;
  __device__ __forceinline__ T& operator[](i64 i) const {
    element.at = base + i;
    return element.value;
  }
};
template <class T> __device__ __forceinline__ LaterIn<T> later(T* base, Later<T>& element) { return {base, element}; }
// Stores COUNT elements; WHOLE: they are neighbours, aligned, and go somewhere together or not at all.
template <int COUNT, bool WHOLE, class T> __device__ __forceinline__ void store_now(const Later<T>* e) {
  if (WHOLE) {
    Pack<T, COUNT> pack;
#pragma unroll
    for (int i = 0; i < COUNT; i++) pack.at[i] = e[i].value;
    if (e[0].at) *(Pack<T, COUNT>*)e[0].at = pack;
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      if (e[i].at) *e[i].at = e[i].value;
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, ${blocks})
${entry}(${params}) {
  let_successors_start();
  extern __shared__ uint4 shared[];
  __shared__ u64 signals[2 * STAGES];
  const u32 ring = (shared_address(shared) + 1023u) & ~1023u;
  const u32 full = shared_address(signals);  // a stage has arrived
  const u32 empty = full + 8 * STAGES;       // and has been read by all it was copied to
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const int group = threadIdx.x >> 7;
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; s++) {
      signal_init(full + 8 * s, 1);
      signal_init(empty + 8 * s, GROUPS * 4);
    }
    signal_publish();
  }
  __syncthreads();

  // Tiles in bands of ${band} rows of tiles, down the columns of a band: those that run at one time share what they read in the L2 cache.
  constexpr int COLUMN_TILES = (N + WIDTH - 1) / WIDTH;
  const int tiles = row_tiles * COLUMN_TILES;
  auto place = [&](int tile, i32& row0, int& column0) {
    const int band = tile / (${band} * COLUMN_TILES);
    const int inside = tile % (${band} * COLUMN_TILES);
    const int rest = row_tiles - band * ${band};
    const int high = rest < ${band} ? rest : ${band};
    row0 = (band * ${band} + inside % high) * HEIGHT;
    column0 = inside / high * WIDTH;
  };

  if (group == GROUPS) {
    ${fewer}
    if (warp == GROUPS * 4) {
      if (elected()) {
        prefetch_map(&w_map);
        prefetch_map(&x_map);
      }
      __syncwarp();
      auto fetch_w = [&](int s, int unit, int column) {
        const u32 to = ring + s * STAGE + X_BYTES;
        if (W_BOXES == 1) {
          if (elected()) fetch_box(to, &w_map, unit * 64, column, full + 8 * s);
        } else if (lane < W_BOXES) {
          fetch_box(to + lane * W_BOX * 128, &w_map, unit * 64, column, full + 8 * s);
        }
        __syncwarp();
      };
      auto fetch_x = [&](int s, int unit, i32 row) {
        if (elected()) fetch_box(ring + s * STAGE, &x_map, unit * 64, row, full + 8 * s);
        __syncwarp();
      };
      auto expect = [&](int s) {
        if (elected()) signal_expect(full + 8 * s, STAGE);
        __syncwarp();
      };
      // The first of the rows of w that this lane copies.
      auto first_of_box = [&](int column0) -> int {
        const int local = lane < W_BOXES ? lane * W_BOX : 0;
        return ${w_row};
      };
      int tile = (int)blockIdx.x;
      i32 row0 = 0;
      int column0 = 0;
      place(tile, row0, column0);
      int column = first_of_box(column0);
      constexpr int FIRST = STAGES < UNITS ? STAGES : UNITS;
      ${first}
      int unit = FIRST;
      int s = FIRST % STAGES;
      u32 parity = FIRST == STAGES ? 0 : 1;
      while (true) {
#pragma unroll 1
        for (; unit < UNITS; unit++) {
          signal_wait(empty + 8 * s, parity);
          expect(s);
          fetch_x(s, unit, row0);
          fetch_w(s, unit, column);
          if (++s == STAGES) {
            s = 0;
            parity ^= 1;
          }
        }
        tile += (int)gridDim.x;
        if (tile >= tiles) break;
        place(tile, row0, column0);
        column = first_of_box(column0);
        unit = 0;
      }
    } else {
      wait_for_predecessors();
    }
  } else {
    ${more}
    wait_for_predecessors();
    f32 sums[WIDTH / 2];
    int s = 0;
    u32 parity = 0;
    auto release = [&](int stage) {
      if (lane == 0) signal_arrive(empty + 8 * stage);
    };
    for (int tile = (int)blockIdx.x; tile < tiles; tile += (int)gridDim.x) {
      int last = 0;
#pragma unroll 1
      for (int unit = 0; unit < UNITS; unit++) {
        signal_wait(full + 8 * s, parity);
        const u64 x = operand_at(ring + s * STAGE + group * 64 * 128);
        const u64 w = operand_at(ring + s * STAGE + X_BYTES);
        multiply_begin();
#pragma unroll
        for (int k = 0; k < 4; k++) multiply(sums, x + k * 2, w + k * 2, unit + k > 0);
        multiply_commit();
        // One batch stays under way; the stage of the one before it is free.
        if (unit > 0) {
          multiply_wait<1>();
          release(last);
        }
        last = s;
        if (++s == STAGES) {
          s = 0;
          parity ^= 1;
        }
      }
      multiply_wait<0>();
      release(last);

      i32 row0;
      int column0;
      place(tile, row0, column0);
      // A row at a time: what depends on the row alone is found out once.
#pragma unroll 1
      for (int below = 0; below < 2; below++) {
        const i32 own_row = row0 + group * 64 + (warp & 3) * 16 + below * 8 + (lane >> 2);
        const i32 t = own_row < rows ? own_row : rows - 1;  // what is computed beyond the ends is not stored
        ${of_row}
#pragma unroll 1
        for (int part = 0; part < PARTS; part++) {
          f32 held[4][4];
          hold(below * PARTS + part, held, sums);
          // The first column of j, in the tile and in the product.
          auto column_of = [&](int j) -> i32 {
            const int local = low_column(part * 4 + j) + 2 * (lane & 3);
            return ${column};
          };
          ${finish}
        }
      }
    }
  }
}
