// ${ir}
// Many rows of x on warpgroup multiplies. One warp copies boxes of x (rows of the product) and w (its columns) into a ring in shared memory, 64 of K
// at a time; ${groups} warpgroups multiply, each 64 rows by ${width} columns, and keep the sums in registers: ${order}, so that
// a row has the same bits whatever the tile. Blocks stay for several tiles: a warpgroup makes results of one while the others multiply the next.
typedef ${in_type} In;
constexpr i32 N = ${n};  // rows of w
constexpr i32 K = ${k};  // columns
constexpr int UNITS = ${units};  // of 64 along K; what is beyond K is copied as zeros
${pieces}
constexpr int GROUPS = ${groups};
constexpr int WIDTH = ${width};
constexpr int HEIGHT = GROUPS * 64;
constexpr int STAGES = ${stages};
constexpr int THREADS = 128 * (GROUPS + 2);
constexpr int X_BYTES = HEIGHT * 128;
constexpr int W_BYTES = WIDTH * 128;
constexpr int STAGE = X_BYTES + W_BYTES;
constexpr int W_BOX = ${w_box};  // rows of w that are neighbours in memory and in the tile
constexpr int W_BOXES = WIDTH / W_BOX;
// Results are made from strips of 512 elements, up to 64 columns wide: a lane has two columns of a row and two more that are APART columns further on, as
// an epilogue may need them together. A lane's rows are computed before any is stored, so that their loads are under way together.
constexpr int HELD = WIDTH / ${halves};  // columns of a tile whose sums lie in shared memory at one time
constexpr int APART = ${apart};
constexpr int PITCH = HELD + 8;  // of the sums that strips are taken from
constexpr int COLUMNS = HELD % 64 == 0 ? 64 : HELD % 32 == 0 ? 32 : 16;  // of a strip
constexpr int LANES = COLUMNS / 4;                                         // that have a row of it
constexpr int DOWN = 32 / LANES;                                           // rows that a warp has at a time
constexpr int STEPS = 4;
constexpr int ROWS = STEPS * DOWN;  // of a strip
constexpr int PARTS = HELD / COLUMNS;
constexpr int STRIPS = HEIGHT / ROWS * PARTS;
${run}

${multiply}

// An element of a result and where it goes, if anywhere.
template <class T> struct Later {
  T* at = nullptr;
  T value;
};
template <class T> struct LaterIn {
  T* base;
  Later<T>& element;
  bool there;
  __device__ __forceinline__ T& operator[](i64 i) const {
    element.at = there ? base + i : nullptr;
    return element.value;
  }
};
template <class T> __device__ __forceinline__ LaterIn<T> later(T* base, Later<T>& element) { return {base, element, true}; }
template <class T> __device__ __forceinline__ LaterIn<T> only_if(bool there, LaterIn<T> place) { return {place.base, place.element, there}; }
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

extern "C" __global__ void ${cluster}__launch_bounds__(THREADS, ${blocks})
${entry}(${params}) {
  let_successors_start();
  extern __shared__ uint4 shared[];
  __shared__ u64 signals[2 * STAGES + 2];
  const u32 ring = (shared_address(shared) + 1023u) & ~1023u;
  const u32 full = shared_address(signals);  // a stage has arrived
  const u32 empty = full + 8 * STAGES;       // and has been read
  const u32 summed = empty + 8 * STAGES;     // sums lie in shared memory
  const u32 finished = summed + 8;           // and have been used
  f32* const ring_sums = (f32*)((u8*)shared + (ring - shared_address(shared)));  // [HEIGHT][PITCH] each, when the ring is not used any more
  f32* const tile_sums = (f32*)((u8*)ring_sums + STAGES * STAGE);
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const int group = threadIdx.x >> 7;
  ${rank}
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; s++) {
      signal_init(full + 8 * s, 1);
      signal_init(empty + 8 * s, ${readers});
    }
    signal_init(summed, GROUPS * 128);
    signal_init(finished, 128);
    signal_publish();
  }
  ${meet}

  // Tiles in bands of ${band} rows of tiles, down the columns of a band: those that run at one time share what they read in the L2 cache.
  constexpr int COLUMN_TILES = (N + WIDTH - 1) / WIDTH;
  const int tiles = row_tiles * COLUMN_TILES;
  auto place = [&](int tile, i32& row0, int& column0) {
    const int band = tile / (${band} * COLUMN_TILES);
    const int inside = tile % (${band} * COLUMN_TILES);
    const int rest = row_tiles - band * ${band};
    const int high = rest < ${band} ? rest : ${band};
    row0 = ${row};
    column0 = inside / high * WIDTH;
  };

  // Makes results from the sums at `from`${which}.
  auto finish = [&](int tile, ${half}const f32* from, int worker, int workers) __attribute__((always_inline)) {
    i32 row0;
    int column0;
    place(tile, row0, column0);
    ${maxima}
    ${strips}
  };

  if (group == GROUPS + 1) {
    ${fewer}
    if (warp == (GROUPS + 1) * 4) {
      if (elected()) {
        prefetch_map(&w_map);
        prefetch_map(&x_map);
      }
      __syncwarp();
      auto fetch_w = [&](int s, int unit, int column) {
        const u32 to = ring + s * STAGE + X_BYTES;
        ${fetch_w}
        __syncwarp();
      };
      auto fetch_x = [&](int s, int unit, i32 row) {
        if (elected()) fetch_box(ring + s * STAGE, &x_map, unit * 64, row, full + 8 * s);
        __syncwarp();
      };
      // A box of x has no more rows than there are; what a stage holds beyond them makes sums that nobody reads.
      const u32 copied = (rows < HEIGHT ? (rows + 7) / 8 * 8 : HEIGHT) * 128 + W_BYTES;
      auto expect = [&](int s) {
        if (elected()) signal_expect(full + 8 * s, copied);
        __syncwarp();
      };
      // The first of the rows of w that this lane copies.
      auto first_of_box = [&](int column0) -> int {
        const int local = ${box};
        return ${w_row};
      };
      int tile = ${start};
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
        tile += ${stride};
        if (tile >= tiles) break;
        place(tile, row0, column0);
        column = first_of_box(column0);
        unit = 0;
      }
    } else {
      wait_for_predecessors();
    }
  } else if (group == GROUPS) {
    ${finisher_registers}
    wait_for_predecessors();
    ${finisher}
  } else {
    ${more}
    wait_for_predecessors();
    f32 sums[WIDTH / 2];
    ${total}
    ${kept}
    int s = 0;
    u32 parity = 0;
    ${turn}
    int tile = ${start};
    // Puts sums of a lane at two rows of eight columns.
    f32* const home = tile_sums + (warp * 16 + (lane >> 2)) * PITCH + 2 * (lane & 3);
    auto put = [&](f32* to, const f32* of) {
      *(float2*)to = make_float2(of[0], of[1]);
      *(float2*)(to + 8 * PITCH) = make_float2(of[2], of[3]);
    };
    auto release = [&](int stage) {
      ${release}
    };
#pragma unroll 1
    while (true) {
      ${sum}
      ${give}
      tile += ${stride};
    }
    // Nothing is left to multiply: all join in the results of the last tile.
    ${finish_last}
  }
  ${leave}
}
