// ${ir}
// Experts' weights for rows that share experts. A unit is a strip of w (TILES tiles of 16 rows of w) for an item (rows of one expert). Its K is cut into
// pieces, one a warp, which are dealt to WARPS warps in turn. One more warp asks for everything: packed weights, into a ring of slots of the warp that
// multiplies them, and an item's rows of x, which all warps share. A few more take turns to add up the pieces of a unit in order and to finish it, so a
// row's bits depend neither on the other rows nor on which kernel of the family made them. A block makes a run of units of its own, and then takes more
// from a counter, so that all blocks end together.
${constants}
constexpr int PIECES = ${pieces};
constexpr int WARPS = ${warps};    // that multiply
constexpr int FINISHERS = ${finishers};  // warps that finish
constexpr int TILES = ${tiles};
constexpr int XROWS = ${x_rows};   // rows of an item at most
constexpr int ROWS = ${rows};      // rows in all at most
constexpr int HELD = ${held};      // items whose rows of x are held
constexpr int CHUNK = ${chunk};    // tiles of 64 k of a slot
constexpr int AHEAD = ${ahead};    // slots of a warp
constexpr int KEPT = ${kept};      // units whose partial sums are kept
constexpr int OWN = ${own};        // percent of the units that blocks make without asking
constexpr int RUN = ${run};        // units that a block asks for at a time
constexpr bool FAST = ${fast};     // scales are stored as scale + 126
constexpr bool EARLY = ${early};   // ids are complete before the kernel in front is
constexpr int THREADS = 32 * (1 + FINISHERS + WARPS);
constexpr int NT = (XROWS + 7) / 8;
constexpr int HEIGHT = TILES * 16;
constexpr int K_TILES = (K + 63) / 64;
constexpr int ROW_TILES = (N + 15) / 16;
constexpr int CHUNKS = (K_TILES + PIECES * CHUNK - 1) / (PIECES * CHUNK);  // of a piece
constexpr bool EVEN = K_TILES == PIECES * CHUNK * CHUNKS;
constexpr bool HALF_TAIL = K % 64 != 0;
constexpr int RECORD = 544;
constexpr int ROOM = ${room};  // of a slot beyond its records at least, 0 or 96
constexpr int SLOT = ROOM == 0 ? TILES * CHUNK * RECORD : (CHUNK * RECORD + ROOM + 127) / 128 * 128;
constexpr int X_PITCH = K_TILES * 128 + 16;  // of a row of x that is held
constexpr int X_AT = WARPS * AHEAD * SLOT;
constexpr int X_ITEM = XROWS * X_PITCH;
constexpr int PARTS_AT = X_AT + HELD * X_ITEM;
constexpr int PITCH = HEIGHT + 4;
constexpr int PART = PIECES * XROWS * PITCH;
static_assert(HELD == 1 || HELD == 2, "whose units end before rows are fetched over those of another item");
static_assert(FINISHERS <= KEPT && WARPS <= 32, "signals that wake them at the end");
static_assert(TILES * PIECES <= 32 && XROWS <= 32, "a lane makes a copy");
static_assert(ROOM == 0 || TILES == 1, "a slot is one copy");

// Where records begin in their slot: as far into a line of 128 bytes as where they are copied from, which is faster. `from`: low bits of that address.
__device__ __forceinline__ u32 begin_of(u32 from) { return ROOM == 0 ? 0 : from & 96; }

// True in the warp that comes last of the `n` that share `counter`; what the others wrote before can be read then, past the first cache level. Leaves
// the counter at 0, as it was.
__device__ __forceinline__ bool warp_is_last(u32* counter, u32 n) {
  u32 before = 0;
  __syncwarp();
  if ((threadIdx.x & 31) == 0) {
    __threadfence();
    before = atomicInc(counter, n - 1);
  }
  const bool last = __shfl_sync(0xffffffffu, before, 0) == n - 1;
  if (last) __threadfence();
  return last;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
${entry}(const bf16* x, const u8* w, const i32* ids, u32 tokens, u32* counters${params}) {
  alignas(128) extern __shared__ uint4 shared[];  // bulk copies to places 16 bytes off a sector of 32 take longer
  __shared__ Items<ROWS> items;
  __shared__ u64 full[WARPS * AHEAD];   // weights of a slot are there
  __shared__ u64 empty[WARPS * AHEAD];  // they were used
  __shared__ u64 rows_full[HELD];      // an item's rows of x are there
  __shared__ u64 complete[KEPT];        // all partial sums of a unit are there
  __shared__ u64 finished[KEPT];        // they were used
  __shared__ volatile int number_of[KEPT];  // of the unit in this place
  __shared__ int unit_of[KEPT];         // item * STRIPS + strip
  __shared__ u32 source_of[KEPT];       // low bits of where its first tile is in memory
  __shared__ int turn_of[KEPT];         // number of the unit's item among those that this block meets
  __shared__ volatile int made;         // units of this block, once that is known
  ${shared}
  const int lane = threadIdx.x & 31;
  const int warp = __shfl_sync(0xffffffffu, (int)threadIdx.x >> 5, 0);
  const u32 ring_at = shared_address(shared);
  const u32 full_at = shared_address(full);
  const u32 empty_at = shared_address(empty);
  const u32 rows_full_at = shared_address(rows_full);
  const u32 complete_at = shared_address(complete);
  const u32 finished_at = shared_address(finished);
  f32* const parts = (f32*)((u8*)shared + PARTS_AT);
  if (threadIdx.x == 0) {
    for (int i = 0; i < WARPS * AHEAD; i++) {
      signal_init(full_at + 8 * i, TILES);
      signal_init(empty_at + 8 * i, 1);
    }
    for (int i = 0; i < HELD; i++) signal_init(rows_full_at + 8 * i, 1);
    for (int i = 0; i < KEPT; i++) {
      number_of[i] = -1;
      signal_init(complete_at + 8 * i, PIECES);
      signal_init(finished_at + 8 * i, 1);
    }
    made = 0x7fffffff;
    ${begin}
    signal_publish();
  }
  if (!EARLY) {
    wait_inputs();
    start_next();
  }
  find_items<ROWS, XROWS, THREADS, EXPERTS>(items, ids, (int)tokens * CHOICES, first_id(ids, (int)tokens * CHOICES));

  if (warp == 0) {  // asks for weights and rows
    const int grid = gridDim.x;
    const int total = items.count * STRIPS;
    const int own = (int)((i64)total * OWN / 100 / grid);
    // Every block takes a run in vain once, so this is how many are taken in all; the last one leaves the counter at 0.
    const u32 last = (total - own * grid + RUN - 1) / RUN + grid - 1;
    const int piece = lane % PIECES;
    const int tile_in_strip = lane / PIECES;
    const int k_first = K_TILES * piece / PIECES;
    const int k_count = K_TILES * (piece + 1) / PIECES - k_first;
    int unit = blockIdx.x * own;  // next one, up to `end`
    int end = unit + own;
    int count = 0;      // units so far
    int turn = -1;      // of the item
    int item = -1;
    int begun = 0;      // number of the item's first unit
    int usable = -1;    // the item's rows can be fetched when this many units are multiplied; -1: they are fetched
    int multiplied = 0;  // units that are, as far as this warp has looked
    bool waited = !EARLY;
    // True if one more than this many units, all beyond those that can be multiplied without further rows, may not find room in the rings.
    auto enough = [&](int units) { return (units + 1) * PIECES > WARPS * (AHEAD / CHUNKS) || units >= KEPT; };
    auto wait = [&] {
      if (waited) return;
      wait_inputs();
      start_next();
      waited = true;
    };
    auto fetch_rows = [&] {
      if (usable < 0) return;
      wait();
      // What is behind a finished unit is multiplied; signals tell of the last KEPT units only.
      if (multiplied < count - KEPT) multiplied = count - KEPT;
      for (; multiplied < usable; multiplied++) signal_wait(complete_at + 8 * (multiplied % KEPT), multiplied / KEPT & 1);
      usable = -1;
      const int first = items.first[item];
      const int rows = items.first[item + 1] - first;
      const u32 signal = rows_full_at + 8 * (turn % HELD);
      if (lane == 0) signal_expect(signal, rows * (K * 2));
      __syncwarp();
      if (lane < rows) {
        const int row = items.row[first + lane];
        fetch(ring_at + X_AT + turn % HELD * X_ITEM + lane * X_PITCH, x + (i64)(${x_row}) * K, K * 2, signal);
      }
    };
    u32 ticket = 0;  // of the run after this one
    bool asked = false;
#pragma unroll 1
    while (true) {
      if (unit >= end && !waited) {  // the kernel in front may use the same counters
        fetch_rows();
        wait();
      }
      if (waited && !asked) {
        if (lane == 0) ticket = atomicInc(counters, last);
        asked = true;
      }
      if (unit >= end) {
        unit = own * grid + (int)__shfl_sync(0xffffffffu, ticket, 0) * RUN;
        if (unit >= total) break;
        end = unit + RUN < total ? unit + RUN : total;
        if (lane == 0) ticket = atomicInc(counters, last);
      }
      const int next = unit / STRIPS;
      const int strip = unit - next * STRIPS;
      if (next != item) {
        fetch_rows();
        item = next;
        turn++;
        // A signal tells of two fetches at most, so the one before must be over before anybody waits for the next.
        if (turn >= HELD) signal_wait(rows_full_at + 8 * (turn % HELD), (turn / HELD - 1) & 1);
        // They go where those of HELD items before were.
        usable = HELD == 1 ? count : begun;
        begun = count;
      }
      if (usable >= 0 && (enough(count - begun) || (HELD > 1 && waited))) fetch_rows();
      if (enough(count)) wait();
      const int kept = count % KEPT;
      if (count >= KEPT) signal_wait(finished_at + 8 * kept, (count / KEPT - 1) & 1);
      const int id = items.expert[item];
      const int expert = id < EXPERTS ? id : 0;  // rows of no expert are computed with some weights and then replaced
      const int r = tile_in_strip;
      const int tile = ${tile};
      const u32 record = (u32)(expert * ROW_TILES + (tile < ROW_TILES ? tile : ROW_TILES - 1)) * K_TILES + k_first;
      const u8* from = w + (u64)record * RECORD;
      if (lane == 0) {  // whose records are the first of a tile
        number_of[kept] = count;
        unit_of[kept] = unit;
        source_of[kept] = (u32)(u64)from;
        turn_of[kept] = turn;
      }
      __syncwarp();
      if (tile_in_strip < TILES) {
        const int task = count * PIECES + piece;
#pragma unroll 1
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
          const int left = k_count - chunk * CHUNK;
          const u32 bytes = (EVEN || left > CHUNK ? CHUNK : left) * RECORD;
          const int use = task / WARPS * CHUNKS + chunk;
          const int slot = task % WARPS * AHEAD + use % AHEAD;
          if (use >= AHEAD) signal_wait(empty_at + 8 * slot, (use / AHEAD - 1) & 1);
          signal_expect(full_at + 8 * slot, bytes);
          fetch_once(ring_at + slot * SLOT + r * (CHUNK * RECORD) + begin_of((u32)(u64)from), from, bytes, full_at + 8 * slot);
          from += CHUNK * RECORD;
        }
      }
      __syncwarp();
      count++;
      unit++;
    }
    fetch_rows();
    if (lane == 0) made = count;
    __syncwarp();
    // Wakes everybody once more.
    if (lane < WARPS) {
      const int use = (count * PIECES + lane) / WARPS * CHUNKS;
      const int slot = (count * PIECES + lane) % WARPS * AHEAD + use % AHEAD;
      if (use >= AHEAD) signal_wait(empty_at + 8 * slot, (use / AHEAD - 1) & 1);
      for (int i = 0; i < TILES; i++) signal_arrive(full_at + 8 * slot);
    }
    for (int i = count; i < count + FINISHERS; i++) {
      if (i >= KEPT) signal_wait(finished_at + 8 * (i % KEPT), (i / KEPT - 1) & 1);
      if (lane == 0) number_of[i % KEPT] = i;
      __syncwarp();
      if (lane < PIECES) signal_arrive(complete_at + 8 * (i % KEPT));
    }
    return;
  }

  if (EARLY) {
    wait_inputs();
    start_next();
  }
  if (warp <= FINISHERS) {  // finishes units
#pragma unroll 1
    for (int number = warp - 1;; number += FINISHERS) {
      const int kept = number % KEPT;
      // The signal tells one use of this place from the next only, so the unit must be the one in it.
      while (number_of[kept] != number) __nanosleep(64);
      signal_wait(complete_at + 8 * kept, number / KEPT & 1);
      if (number >= made) break;
      const int item = unit_of[kept] / STRIPS;
      const int strip = unit_of[kept] - item * STRIPS;
      const int first = items.first[item];
      const int count = items.first[item + 1] - first;
      const bool valid = items.expert[item] < EXPERTS;
      const f32* const part = parts + kept * PART;
      // Sum of all pieces: column `at` of the strip of row `i` of the item.
      auto total = [&](int i, int at) {
        f32 sum = 0.0f;
#pragma unroll
        for (int p = 0; p < PIECES; p++) sum += part[(p * XROWS + i) * PITCH + at];
        return valid ? sum : 0.0f;
      };
      ${finish}
      __syncwarp();
      if (lane == 0) signal_arrive(finished_at + 8 * kept);
      ${after}
    }
  } else {  // multiplies
    const int own_warp = warp - 1 - FINISHERS;
    const int g = lane >> 2;
    const int c = lane & 3;
    const u8* const ring = (const u8*)shared + own_warp * (AHEAD * SLOT);
    const u32 own_full = full_at + 8 * own_warp * AHEAD;
    const u32 own_empty = empty_at + 8 * own_warp * AHEAD;
    int slot = 0;
    u32 parity = 0;
#pragma unroll 1
    for (int task = own_warp;; task += WARPS) {
      signal_wait(own_full + 8 * slot, parity);
      const int number = task / PIECES;
      if (number >= made) break;
      const int piece = task - number * PIECES;
      const int kept = number % KEPT;
      const int item = unit_of[kept] / STRIPS;
      const int first = items.first[item];
      const int count = items.first[item + 1] - first;
      const int k_first = K_TILES * piece / PIECES;
      const int k_count = EVEN ? CHUNK * CHUNKS : K_TILES * (piece + 1) / PIECES - k_first;
      signal_wait(rows_full_at + 8 * (turn_of[kept] % HELD), turn_of[kept] / HELD & 1);
      // Where load_matrices finds a lane's row of x. Columns beyond the item's rows repeat the first one and are not used.
      u32 held[NT];
#pragma unroll
      for (int s = 0; s < NT; s++) {
        const int i = 8 * s + (lane & 7);
        const int at = i < count ? i : 0;
        held[s] = ring_at + X_AT + turn_of[kept] % HELD * X_ITEM + at * X_PITCH + k_first * 128 + (lane >> 3) * 16;
      }
      const u32 source = source_of[kept] + k_first * RECORD;
      f32 acc[TILES][NT][4] = {};
#pragma unroll 1
      for (int chunk = 0; chunk < CHUNKS; chunk++) {
        if (chunk > 0) signal_wait(own_full + 8 * slot, parity);
        const u8* const from = ring + slot * SLOT + begin_of(source + chunk * (CHUNK * RECORD));
#pragma unroll ${unroll}
        for (int k = 0; k < CHUNK; k++) {
          const int at = chunk * CHUNK + k;
          if (!EVEN && at >= k_count) break;
          const bool half = HALF_TAIL && k_first + at == K_TILES - 1;
          u32 b[NT][2][4];
#pragma unroll
          for (int s = 0; s < NT; s++) {
            if (s > 0 && 8 * s >= count) break;
            load_matrices(b[s][0], held[s] + at * 128);
            load_matrices(b[s][1], held[s] + at * 128 + 64);
            if (half) b[s][1][0] = b[s][1][1] = b[s][1][2] = b[s][1][3] = 0;
          }
#pragma unroll
          for (int r = 0; r < TILES; r++) {
            const u8* const record = from + (r * CHUNK + k) * RECORD;
            u32 a[4][4];
            gs_mxfp4_decode_tile<FAST>(gs_mxfp4_load_codes(record, lane), gs_mxfp4_load_scales(record, lane), a);
#pragma unroll
            for (int s = 0; s < NT; s++) {
              if (s > 0 && 8 * s >= count) break;
#pragma unroll
              for (int i = 0; i < 4; i++) {
                const u32* const pair = b[s][i >> 1] + 2 * (i & 1);
                mma(bf16(), acc[r][s], a[i][0], a[i][1], a[i][2], a[i][3], pair[0], pair[1]);
              }
            }
          }
        }
        __syncwarp();  // all lanes are done with the slot
        if (lane == 0) signal_arrive(own_empty + 8 * slot);
        slot++;
        if (slot == AHEAD) {
          slot = 0;
          parity ^= 1;
        }
      }
      f32* const part = parts + kept * PART;
#pragma unroll
      for (int r = 0; r < TILES; r++) {
#pragma unroll
        for (int s = 0; s < NT; s++) {
#pragma unroll
          for (int e = 0; e < 4; e++) {
            const int at = 8 * s + 2 * c + (e & 1);
            if (at < XROWS) part[(piece * XROWS + at) * PITCH + 16 * r + 8 * (e >> 1) + g] = acc[r][s][e];
          }
        }
      }
      __syncwarp();
      if (lane == 0) signal_arrive(complete_at + 8 * kept);
    }
  }
  ${end}
}
