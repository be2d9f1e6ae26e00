// ${ir}
// Experts' weights for a prompt's rows, on warpgroup multiplies. Blocks take units from a counter: a tile of up to SLOTS of the rows that chose one
// expert times a band of its w. Pieces of 128 k of both pass through shared memory, STAGES deep: rows of x gathered, with the swizzle that the multiply
// reads, w as it is packed. One group of 128 threads copies. In each of the others a warp has a strip of the band: PARTS tiles of 16 rows of w, which it
// decodes into registers, as the left operand, while other multiplies run. A result is one chain of sums over K in order whatever the tile, so a row's
// bits depend on nothing else.
${constants}
constexpr int SLOTS = ${slots};
constexpr int STAGES = ${stages};
constexpr int GROUPS = ${groups};  // groups of 128 threads that multiply
constexpr int PARTS = ${parts};    // tiles of a strip; a group multiplies 64 rows of w at a time, one tile of each warp
constexpr int HELD = ${held_tiles};     // decoded tiles of a warp: of 2 one is multiplied while the next is decoded, with 1 other groups multiply meanwhile
constexpr int CHUNK = ${chunk};    // rows whose results are finished at a time
constexpr int LANES = ${lanes};    // that make a row's columns of a strip
constexpr bool FAST = ${fast};     // scales are stored as scale + 126
constexpr int THREADS = 128 * GROUPS + 128;
constexpr int TILES = PARTS;
constexpr int HEIGHT = 16 * TILES;  // rows of w of a strip
constexpr int BAND = 4 * GROUPS;    // strips of a band
constexpr int BANDS = (STRIPS + BAND - 1) / BAND;
constexpr int RECORDS = TILES * BAND;
constexpr int RECORD = 544;
constexpr int K_TILES = (K + 63) / 64;
constexpr int ROW_TILES = (N + 15) / 16;
constexpr int PITCH = HEIGHT + 4;
constexpr int STEP = ${step};  // tiles of 64 k in a stage
constexpr int STEPS = (K_TILES + STEP - 1) / STEP;
constexpr bool ODD = K_TILES % STEP != 0;  // the last stage holds one
constexpr int TURNS = HELD > PARTS ? STEP : 1;  // to be unrolled: two multiplies have registers of their own
constexpr int X_TILE = SLOTS * 128;
constexpr int X_STAGE = STEP * X_TILE;
constexpr int RUN = STEP * RECORD;  // of a tile of 16 rows
constexpr int W_STAGE = RECORDS * RUN;
// In shared memory: rows of x, w, results under way, rows of a tile, units, signals.
constexpr int W_AT = STAGES * X_STAGE;
constexpr int OUT_AT = W_AT + STAGES * W_STAGE;
constexpr int ROWS_AT = OUT_AT + BAND * CHUNK * PITCH * 4;
constexpr int UNITS_AT = ROWS_AT + GROUPS * SLOTS * 4;
constexpr int FULL_AT = UNITS_AT + STAGES * 16 + 16;
constexpr int EMPTY_AT = FULL_AT + STAGES * 8;

${multiplies}

// Words at a place of shared memory.
__device__ __forceinline__ uint4 load16_at(u32 at) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at) : "memory");
  return v;
}
__device__ __forceinline__ u32 load4_at(u32 at) {
  u32 v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at) : "memory");
  return v;
}

// A place in the ring of stages; the parity changes each time round.
struct Place {
  int stage;
  u32 parity;
  __device__ __forceinline__ void next() {
    if (++stage < STAGES) return;
    stage = 0;
    parity ^= 1;
  }
};

// Tile `r` of a strip.
__device__ __forceinline__ int tile_of(int strip, int r) { return ${tile}; }

extern "C" __global__ void __launch_bounds__(THREADS, 1)
${entry}(const bf16* x, const u8* w, const i32* list, const int4* tiles, i32* counters${params}) {
  extern __shared__ uint4 shared[];
  u8* const memory = (u8*)shared + (-shared_address(shared) & 1023u);  // the swizzle repeats every 1024 bytes
  const u32 base = shared_address(memory);
  const u32 full = base + FULL_AT;
  const u32 empty = base + EMPTY_AT;
  int4* const units = (int4*)(memory + UNITS_AT);  // of stages that begin a unit: expert (-1: no more units), first in list, rows, band
  i32* const turns = (i32*)(units + STAGES);
  const int group = threadIdx.x >> 7;
  const int thread = threadIdx.x & 127;
  const int warp = thread >> 5;
  const int lane = threadIdx.x & 31;
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) {
      signal_init(full + 8 * i, 128 + 4);
      signal_init(empty + 8 * i, BAND);
    }
    signal_publish();
  }
  __syncthreads();
  let_successors_start();
  wait_for_predecessors();

  if (group == GROUPS) {
    fewer_registers<${copy_registers}>();
    // A thread copies 16 bytes of every 16th row, a warp every 4th run of w.
    const int own_row = thread >> 3;
    const int own_k = (thread & 7) * 8;
    const u32 x_to = base + swizzled(own_row, own_k * 2);
    const int count = load_now((const i32*)tiles) * BANDS;
    auto tile_at = [&](int unit) { return unit < count ? tiles[1 + unit / BANDS] : make_int4(-1, 0, 0, 0); };
    auto row_at = [&](const int4& tile, int i) {
      const int slot = own_row + 16 * i;
      const i32 row = list[tile.y + (slot < tile.z ? slot : 0)];
      return ${x_row};
    };
    // Who makes a unit changes no result. Word 0 counts units that were taken behind the first of each block, word 1 blocks that take no more.
    i32 taken = 0;
    if (thread == 0) taken = atomicAdd(counters, 1);
    int unit = (int)blockIdx.x;
    int4 tile = tile_at(unit);
    i32 x_row[SLOTS / 16];
#pragma unroll
    for (int i = 0; i < SLOTS / 16; i++) x_row[i] = row_at(tile, i);
    Place at = {0, 1};
    for (int turn = 0;; turn ^= 1) {
      const bool more = tile.x >= 0;
      const bool multiplied = more && tile.x < EXPERTS;  // rows of no expert are 0
      const int band = unit % BANDS;
      u32 x_from[SLOTS / 16];  // in units of 8 elements, so that a place is one register
#pragma unroll
      for (int i = 0; i < SLOTS / 16; i++) x_from[i] = (u32)x_row[i] * (K / 8) + own_k / 8;
      i32 w_from[RECORDS / 4];  // tiles of 16 rows; -1: none
      int runs = 0;
#pragma unroll
      for (int i = 0; i < RECORDS / 4; i++) {
        const int r = 4 * i + warp;
        const int strip = band * BAND + r / TILES;
        const int row_tile = tile_of(strip, r % TILES);
        const bool there = multiplied && strip < STRIPS && row_tile < ROW_TILES;
        w_from[i] = there ? tile.x * ROW_TILES + row_tile : -1;
        runs += there;
      }
      int4 next = make_int4(-1, 0, 0, 0);
      const int steps = multiplied ? STEPS : 1;
#pragma unroll 1
      for (int u = 0; u < steps; u++) {
        const bool whole = !ODD || u + 1 < STEPS;
        signal_wait(empty + 8 * at.stage, at.parity);
        const u32 signal = full + 8 * at.stage;
        if (u == 0 && thread == 0) units[at.stage] = make_int4(tile.x, tile.y, tile.z, band);
        if (elected()) {
          const u32 bytes = whole ? RUN : RECORD;
          const u32 w_to = base + W_AT + at.stage * W_STAGE + warp * RUN;
          signal_expect(signal, runs * bytes);
#pragma unroll
          for (int i = 0; i < RECORDS / 4; i++) {
            if (w_from[i] >= 0) fetch(w_to + 4 * i * RUN, w + (i64)w_from[i] * (K_TILES * RECORD) + u * RUN, bytes, signal);
          }
        }
        if (multiplied) {
          const u32 to = x_to + at.stage * X_STAGE;
          const bf16* const from = x + u * (64 * STEP);
          auto gather = [&](int i, int s) {
            const bool there = K % 64 == 0 || (u * STEP + s) * 64 + own_k < K;
            copy16_to(to + 2048 * i + s * X_TILE, from + (u64)x_from[i] * 8 + 64 * s, there);
          };
          if (whole && tile.z > SLOTS - 16) {  // no branches between copies
#pragma unroll
            for (int i = 0; i < SLOTS / 16; i++) {
              gather(i, 0);
              if (STEP > 1) gather(i, 1);
            }
          } else {
#pragma unroll
            for (int i = 0; i < SLOTS / 16; i++) {
              if (16 * i < tile.z) gather(i, 0);
              if (STEP > 1 && 16 * i < tile.z && whole) gather(i, 1);
            }
          }
        }
        signal_when_copied(signal);
        at.next();
        // What comes next is looked up while copies are under way.
        if (more && u == 0) {
          if (thread == 0) turns[turn] = taken + (i32)gridDim.x;
          barrier<128>(GROUPS + 1);
          unit = turns[turn];
          if (thread == 0) taken = atomicAdd(counters, 1);
          next = tile_at(unit);
        }
        if (more && (u == 2 || u + 1 == steps && u < 2)) {
#pragma unroll
          for (int i = 0; i < SLOTS / 16; i++) x_row[i] = row_at(next, i);
        }
      }
      if (!more) {
        if (thread == 0) {
          __threadfence();
          if (atomicAdd(counters + 1, 1) == (i32)gridDim.x - 1) {  // the last: the next kernel finds zeros
            counters[0] = 0;
            counters[1] = 0;
          }
        }
        return;
      }
      tile = next;
    }
  }

  more_registers<${multiply_registers}>();
  f32* const out = (f32*)(memory + OUT_AT) + (group * 4 + warp) * (CHUNK * PITCH);  // of this warp: [row of the chunk][PITCH]
  u32* const rows = (u32*)(memory + ROWS_AT) + group * SLOTS;
  const u32 records = base + W_AT + (group * 4 + warp) * TILES * RUN;
  Place at = {0, 0};
  for (;;) {
    signal_wait(full + 8 * at.stage, at.parity);
    const int4 tile = units[at.stage];
    if (tile.x < 0) return;
    const int expert = tile.x;
    const int count = tile.z;
    const int first_strip = tile.w * BAND + group * 4;
    const bool multiplied = expert < EXPERTS;
    i32 row_of[(SLOTS + 127) / 128];
#pragma unroll
    for (int i = 0; i < (SLOTS + 127) / 128; i++) row_of[i] = list[tile.y + (thread + 128 * i < count ? thread + 128 * i : 0)];
    if (first_strip >= STRIPS || !multiplied) {
      const int steps = multiplied ? STEPS : 1;
      for (int u = 0; u < steps; u++) {
        signal_wait(full + 8 * at.stage, at.parity);
        if (lane == 0) signal_arrive(empty + 8 * at.stage);
        at.next();
      }
      if (first_strip >= STRIPS) continue;
    }
    // A lane keeps its columns of results, so what depends on them alone is asked for before the first multiply.
    const int strip = first_strip + warp;
    const int own = lane % LANES * (OUTPUTS / LANES);  // its first column in the strip
    const bool inside = strip < STRIPS && strip * OUTPUTS + own < WIDTH;
    const int n = inside ? strip * OUTPUTS + own : 0;
    ${once}
    f32 sum[PARTS][SLOTS / 2];
    if (multiplied) {
      const int width = __shfl_sync(0xffffffffu, ${width}, 0);  // of a multiply
      // A lane's words in the first stage; ptxas is kept from computing them anew for every tile.
      u32 codes_at = records + 16 * lane;
      u32 scales_at = records + 512 + (lane & 28);
      asm volatile("" : "+r"(codes_at), "+r"(scales_at));
      u32 a[HELD][4][4];
      int last = 0;    // the stage in front of this one
      int stage = 0;
      int steps = STEPS;
      asm volatile("" : "+r"(steps));  // a loop even of one step: without one ptxas makes multiplies wait for each other
#pragma unroll 1
      for (int u = 0; u < steps; u++) {
        last = stage;
        stage = at.stage;
        signal_wait(full + 8 * stage, at.parity);
        publish_to_hardware();  // rows of x came by copies that count as ordinary writes
#pragma unroll TURNS
        for (int s = 0; s < STEP; s++) {
          if (s > 0 && ODD && u + 1 == STEPS) break;
          const u32 b = __shfl_sync(0xffffffffu, operand_low(base + stage * X_STAGE + s * X_TILE), 0);  // so that steps are added once a warp
#pragma unroll
          for (int p = 0; p < PARTS; p++) {
            const int i = HELD == 1 ? 0 : PARTS == 2 ? p : s;
            const u32 from = stage * W_STAGE + p * RUN + s * RECORD;
            const uint4 codes = load16_at(codes_at + from);
            const u32 scales = load4_at(scales_at + from);
            multiply_wait<HELD - 1>();  // the one that read these registers is done
            if (u > 0 && s + p == HELD - 1 && i == HELD - 1 && lane == 0) signal_arrive(empty + 8 * last);
            gs_mxfp4_decode_tile<FAST>(codes, scales, a[i]);
            ${widths}
          }
        }
        at.next();
      }
      multiply_wait<0>();
      if (lane == 0) {
        if (HELD > PARTS && ODD && STEPS > 1) signal_arrive(empty + 8 * last);
        signal_arrive(empty + 8 * stage);
      }
    }
#pragma unroll
    for (int i = 0; i < (SLOTS + 127) / 128; i++) {
      if (thread + 128 * i < SLOTS) rows[thread + 128 * i] = (u32)row_of[i];
    }
    barrier<128>(group + 1);
    // A warp's sums pass through its own shared memory, some rows at a time, to lanes that store columns beside each other.
#pragma unroll
    for (int chunk = 0; chunk < SLOTS / CHUNK; chunk++) {
      if (chunk * CHUNK >= count) break;
#pragma unroll
      for (int p = 0; p < PARTS; p++) {
#pragma unroll
        for (int i = 0; i < CHUNK / 2; i++) {
          const int slot = i / 4 * 8 + 2 * (lane & 3) + (i & 1);
          out[slot * PITCH + p * 16 + (lane >> 2) + (i & 2) * 4] = multiplied ? sum[p][chunk * (CHUNK / 2) + i] : 0.0f;
        }
      }
      __syncwarp();
      if (inside) {
#pragma unroll
        for (int i = 0; i < CHUNK; i += 32 / LANES) {
          const int last = count - 1 - chunk * CHUNK;
          const int slot = i + lane / LANES < last ? i + lane / LANES : last;  // the last row may be stored again
          const f32* const own_row = out + slot * PITCH;
          const u32 listed = rows[chunk * CHUNK + slot];
          const i32 t = (i32)(listed / CHOICES);
          const i32 j = (i32)(listed % CHOICES);
          ${held}
          ${finish}
        }
      }
      __syncwarp();
    }
    barrier<128>(group + 1);  // the next unit's rows overwrite these
  }
}
