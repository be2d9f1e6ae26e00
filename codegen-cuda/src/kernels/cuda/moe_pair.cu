// ${ir}
// Two products with a row's experts in one kernel: h, what the first makes of the rows of x, goes through memory to the second.
//
// BLOCKS blocks, one a multiprocessor and all resident. Each streams its share of both matrices through ONE ring of strips (16 rows of w, all of K),
// so memory does not pause between the two products. Roles of warps:
//   0              asks for weights, unit after unit of the block's walk (struct Walk), as slots of the ring become free;
//   1              copies the rows that an item multiplies (of x; of h when all blocks have made the item's h) into slots of shared memory;
//   2 .. 1 + F     finish units: add up the pieces and store h (first product), or keep the sums (second) until the epilogue at the end;
//   the rest       GROUPS groups of PIECES warps decode and multiply: unit `seq` belongs to group seq % GROUPS, a warp makes one piece of K.
// Every wait is for something earlier in the order of the walks, which all blocks share, and no wait depends on timing, so neither do results.
//
// Between blocks: `ready` counts the strips of the first product that are stored, item by item. A block that has seen all items complete says so in
// `seen`; the last one sets all to zero again. So the counters are zero before and after each launch.
//
// Bits: a piece is a chain of k16 multiplies, pieces are added in order from 0, choices in order: as in moe_stream.
constexpr int EXPERTS = ${experts};
constexpr int CHOICES = ${choices};
constexpr int TOKENS = ${tokens};   // at most
constexpr int ROWS = TOKENS * CHOICES;  // rows (token, choice) in all at most
constexpr int TABLE = ROWS <= 32 ? ROWS : (ROWS + 31) / 32 * 32;  // rows of the tables of items
constexpr int XROWS = ${x_rows};    // rows of an item at most
constexpr int N1 = ${n1};           // the first product: rows of w of an expert
constexpr int K1 = ${k1};
constexpr int OUTPUTS1 = ${outputs1};  // columns of h that a strip makes
constexpr int N2 = ${n2};           // the second
constexpr int K2 = ${k2};
constexpr int OUTPUTS2 = ${outputs2};
constexpr int WIDTH2 = ${width2};   // columns of results
constexpr int HEIGHT = 16;          // rows of w in a strip
constexpr int PIECES1 = ${pieces1};
constexpr int PIECES2 = ${pieces2};
constexpr int BLOCKS = ${blocks};
constexpr int GROUPS = ${groups};
constexpr int SLOTS = ${slots};     // strips in the ring
constexpr int SPLIT = ${split};     // copies of a strip
constexpr int HELD = ${held};       // slots for rows
constexpr int USES = ${uses};       // items whose rows are held at a time, at most
constexpr int FINISHERS = ${finishers};
constexpr int BUFFERS = ${buffers};  // of partial sums
constexpr int LAG = ${lag};         // the second product of item i comes behind the first of item i + LAG; ROWS: behind all of them
constexpr bool FAST1 = ${fast1};    // scales are stored as scale + 126
constexpr bool FAST2 = ${fast2};
constexpr int PIECES = PIECES1 > PIECES2 ? PIECES1 : PIECES2;
constexpr int WARPS = GROUPS * PIECES;  // that multiply
constexpr int FIRST = 2 + FINISHERS;    // of them
constexpr int THREADS = 32 * (FIRST + WARPS);
constexpr int TILES1 = (K1 + 63) / 64;  // of a strip
constexpr int TILES2 = (K2 + 63) / 64;
constexpr int TILES = TILES1 > TILES2 ? TILES1 : TILES2;
constexpr int STRIPS1 = (N1 + 15) / 16;
constexpr int STRIPS2 = (N2 + 15) / 16;
constexpr int RECORD = 544;
constexpr int SLOT = TILES * RECORD;
constexpr int ROW_PITCH = TILES * 128 + 16;
constexpr int NT = (XROWS + 7) / 8;
constexpr int PITCH = 20;
constexpr int PART = PIECES * XROWS * PITCH;
constexpr int OWN2 = (STRIPS2 + BLOCKS - 1) / BLOCKS;  // strips of the second product of a block at most
constexpr int RUN1 = (TILES1 + PIECES1 - 1) / PIECES1;
constexpr int RUN2 = (TILES2 + PIECES2 - 1) / PIECES2;
constexpr int LONGEST = RUN1 > RUN2 ? RUN1 : RUN2;     // tiles of a piece at most
constexpr bool EVEN = TILES1 == PIECES1 * RUN1 && TILES2 == PIECES2 * RUN2 && RUN1 == RUN2 && PIECES1 == PIECES2;
constexpr int COUNTER_PITCH = 8;
// Blocks 0 .. HEAVY - 1 own a strip of the second product more than the others. Strips of the first are dealt in rounds of one a block, in which heavy blocks take part only
// as often as makes the tiles of both matrices even: SHARE_HEAVY rounds of SHARE_LIGHT.
constexpr int HEAVY = STRIPS2 % BLOCKS;
constexpr int LIGHT = BLOCKS - HEAVY;
constexpr i64 SHARE_LIGHT = (i64)STRIPS1 * TILES1 + (i64)STRIPS2 * TILES2 - (i64)(STRIPS2 / BLOCKS) * TILES2 * BLOCKS;
constexpr i64 SHARE_HEAVY = SHARE_LIGHT > (i64)TILES2 * BLOCKS ? SHARE_LIGHT - (i64)TILES2 * BLOCKS : 0;
// Shared memory.
constexpr int ROWS_AT = SLOTS * SLOT;
constexpr int PARTS_AT = ROWS_AT + HELD * ROW_PITCH;
constexpr int SUMS_AT = PARTS_AT + BUFFERS * PART * 4;              // f32[OWN2, ROWS, 16]: the second product
constexpr int SIGNALS_AT = SUMS_AT + OWN2 * ROWS * 16 * 4;
constexpr int FULL = 0;                                             // signals: a part of a slot has come,
constexpr int EMPTY = FULL + SLOTS * SPLIT;                         // has been decoded;
constexpr int DONE = EMPTY + SLOTS;                                 // the pieces of a unit are in their buffer,
constexpr int FREE = DONE + BUFFERS;                                // have been added up;
constexpr int ROWS_FULL = FREE + BUFFERS;                           // rows of a use have come,
constexpr int ROWS_DONE = ROWS_FULL + USES;                         // are no longer needed
constexpr int SIGNALS = ROWS_DONE + USES;
constexpr int ITEMS_AT = (SIGNALS_AT + SIGNALS * 8 + 15) / 16 * 16;
constexpr int HELD_COUNTS_AT = (ITEMS_AT + (int)sizeof(Items<TABLE>) + 15) / 16 * 16;  // i32[USES]: rows of a use
constexpr int SHARED = HELD_COUNTS_AT + USES * 4;
static_assert(SIGNALS_AT % 8 == 0 && ROW_PITCH % 16 == 0, "aligned");
static_assert(SLOTS % GROUPS == 0, "a slot belongs to a group");
static_assert(BUFFERS % GROUPS == 0 && BUFFERS % FINISHERS == 0, "a buffer belongs to a group and to a finisher");
static_assert(SPLIT == 1 || (PIECES1 == PIECES2 && PIECES1 % SPLIT == 0), "a piece lies in one part of a strip");
static_assert(HELD >= XROWS, "rows of an item fit");
static_assert(SHARED == ${shared}, "what the launch asks for");

__device__ __forceinline__ u32 load_acquire(const u32* p) {
  u32 v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
// Adds behind everything that this thread, and threads it has synchronised with, stored.
__device__ __forceinline__ void add_release(u32* p, u32 x) { asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(x) : "memory"); }
// Counts up to limit, then from 0; gives what was there.
__device__ __forceinline__ u32 count_up(u32* p, u32 limit) {
  u32 v;
  asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;" : "=r"(v) : "l"(p), "r"(limit) : "memory");
  return v;
}
// Arrives at the signal when all of this thread's copies so far are complete.
__device__ __forceinline__ void copy_arrive(u32 at) { asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(at) : "memory"); }

// find_items by one warp, for itself; a row a lane.
template <int ROWS, int PER, int EXPERTS> __device__ __forceinline__ void find_items_of_warp(Items<ROWS>& items, const i32* ids, int rows) {
  const int lane = threadIdx.x & 31;
  const i32 id = lane < rows ? load_now(ids + lane) : 0;
  const i32 own = lane >= rows ? EXPERTS + 1 : id < 0 || id >= EXPERTS ? EXPERTS : id;
  int before = 0;
  int same = 0;
#pragma unroll 4
  for (int k = 0; k < rows; k++) {
    const i32 other = __shfl_sync(0xffffffffu, own, k);
    before += other < own;
    same += other == own && k < lane;
  }
  const int to = before + same;
  const bool head = lane < rows && same % PER == 0;
  const u32 heads = __reduce_or_sync(0xffffffffu, head ? 1u << to : 0u);
  if (lane < rows) {
    items.key[lane] = own;
    items.row[to] = (u16)lane;
  }
  if (head) {
    const int at = __popc(heads & ((1u << to) - 1));
    items.expert[at] = own;
    items.first[at] = (u16)to;
  }
  if (lane == 0) {
    items.count = __popc(heads);
    items.first[__popc(heads)] = (u16)rows;
  }
  __syncwarp();
}

// Multiprocessors of the device, or a few more.
__device__ __forceinline__ u32 multiprocessors() {
  u32 n;
  asm("mov.u32 %0, %%nsmid;" : "=r"(n));
  return n;
}

// A block's units in order. All roles walk the same way, each by itself.
struct Walk {
  bool more;       // there is a unit:
  bool second;     // of which product,
  int item;
  int strip;
  int own;         // of the second product: which of the block's strips
  int use;         // number of (item, product) pairs before it
  int row_at;      // slot of the item's first row
  int held;        // rows of the use
  int next_item;   // of the first product, dealt next; all items: there is none
  int next_strip;
  int round_item;  // where the next round is dealt from
  int round;
  i64 owed;        // to heavy blocks
  int second_item;  // of the second product, next
  int second_own;
};
__device__ __forceinline__ void deal(Walk& w, int items) {
  const int block = (int)blockIdx.x;
  const bool heavy = block < HEAVY;
  const int rank = heavy ? LIGHT + block : block - HEAVY;
  while (true) {
    w.next_item = w.round_item;
    w.next_strip = w.round + rank;
    if (w.round_item >= items) {
      w.next_item = items;
      return;
    }
    w.owed += SHARE_HEAVY;
    const bool all = w.owed >= SHARE_LIGHT;
    w.owed -= all ? SHARE_LIGHT : 0;
    w.round += all ? BLOCKS : LIGHT;
    while (w.round >= STRIPS1) {
      w.round -= STRIPS1;
      w.round_item++;
    }
    if (heavy && !all) continue;
    while (w.next_strip >= STRIPS1) {
      w.next_strip -= STRIPS1;
      w.next_item++;
    }
    if (w.next_item > items) w.next_item = items;
    return;
  }
}
__device__ __forceinline__ void step(Walk& w, const Items<TABLE>& items) {
  const int count = items.count;
  const int item = w.item;
  const bool second = w.second;
  w.more = true;
  if (w.next_item < count && w.next_item <= w.second_item + LAG) {
    w.second = false;
    w.item = w.next_item;
    w.strip = w.next_strip;
    deal(w, count);
  } else if (w.second_item < count) {
    w.second = true;
    w.item = w.second_item;
    w.own = w.second_own;
    w.strip = (int)blockIdx.x + w.own * BLOCKS;
    w.second_own++;
    if (w.strip + BLOCKS >= STRIPS2) {
      w.second_own = 0;
      w.second_item++;
    }
  } else {
    w.more = false;
    return;
  }
  if (w.item != item || w.second != second) {
    w.use++;
    w.row_at += w.held;
    w.row_at -= w.row_at >= HELD ? HELD : 0;
    w.held = items.first[w.item + 1] - items.first[w.item];
  }
}
__device__ __forceinline__ Walk start_walk(const Items<TABLE>& items) {
  Walk w;
  w.second = false;
  w.item = -1;
  w.strip = 0;
  w.own = 0;
  w.use = -1;
  w.row_at = 0;
  w.held = 0;
  w.round_item = 0;
  w.round = 0;
  w.owed = 0;
  w.second_item = (int)blockIdx.x < STRIPS2 ? 0 : items.count;
  w.second_own = 0;
  deal(w, items.count);
  step(w, items);
  return w;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
${entry}(const bf16* x, const u8* w1, const u8* w2, const i32* ids, u32 tokens, bf16* h, u32* counters${params}) {
  alignas(128) extern __shared__ uint4 shared[];
  u8* const base = (u8*)shared;
  Items<TABLE>& items = *(Items<TABLE>*)(base + ITEMS_AT);
  f32* const parts = (f32*)(base + PARTS_AT);
  f32* const sums = (f32*)(base + SUMS_AT);
  const u32 shared_at = shared_address(shared);
  const u32 signals = shared_at + SIGNALS_AT;
  const int lane = threadIdx.x & 31;
  const int warp = __shfl_sync(0xffffffffu, (int)threadIdx.x >> 5, 0);
  u32* const ready = counters;                              // of an item
  u32* const seen = counters + ROWS * COUNTER_PITCH;

  if (threadIdx.x == 0) {
    for (int i = 0; i < SLOTS * SPLIT; i++) signal_init(signals + 8 * (FULL + i), 1);
    for (int i = 0; i < SLOTS; i++) signal_init(signals + 8 * (EMPTY + i), PIECES);
    for (int i = 0; i < BUFFERS; i++) signal_init(signals + 8 * (DONE + i), PIECES);
    for (int i = 0; i < BUFFERS; i++) signal_init(signals + 8 * (FREE + i), 1);
    for (int i = 0; i < USES; i++) signal_init(signals + 8 * (ROWS_FULL + i), 32);
    for (int i = 0; i < USES; i++) signal_init(signals + 8 * (ROWS_DONE + i), WARPS);
    signal_publish();
  }
  // Blocks wait for each other, so all of them must be there at once: an error is better than a hang.
  if (BLOCKS > 1 && multiprocessors() < BLOCKS) __trap();
  wait_inputs();
  if (threadIdx.x == 0) start_next();

  // Asks for the weights of a unit.
  auto ask = [&](const Walk& w, int seq) {
    const int slot = seq % SLOTS;
    const int id = items.expert[w.item];
    const int expert = id < EXPERTS ? id : 0;  // rows of no expert are computed with some weights and then replaced
    const int strips = w.second ? STRIPS2 : STRIPS1;
    const int tiles = w.second ? TILES2 : TILES1;
    const u8* const from = (w.second ? w2 : w1) + (u64)(u32)(expert * strips + w.strip) * (u32)(tiles * RECORD);
#pragma unroll
    for (int p = 0; p < SPLIT; p++) {
      const int first = tiles * p / SPLIT;
      const u32 bytes = (tiles * (p + 1) / SPLIT - first) * RECORD;
      const u32 full = signals + 8 * (FULL + slot * SPLIT + p);
      signal_expect(full, bytes);
      fetch_once(shared_at + slot * SLOT + first * RECORD, from + first * RECORD, bytes, full);
    }
  };
  Walk w;
  int seq = 0;
  if (ROWS > 32) {
    find_items<TABLE, XROWS, THREADS, EXPERTS>(items, ids, (int)tokens * CHOICES, first_id(ids, (int)tokens * CHOICES));
    w = start_walk(items);
  } else if (warp == 0) {
    find_items_of_warp<TABLE, XROWS, EXPERTS>(items, ids, (int)tokens * CHOICES);
    w = start_walk(items);
    // The first weights are under way before the other warps know the items.
    if (lane == 0) {
      for (; seq < SLOTS && w.more; seq++) {
        ask(w, seq);
        step(w, items);
      }
    }
  }
  if (ROWS <= 32) {
    __syncthreads();
    if (warp != 0) w = start_walk(items);
  } else {
    __syncthreads();  // signals are there
  }

  if (warp == 0) {
    if (lane == 0) {
      for (; w.more; seq++) {
        if (seq >= SLOTS) signal_wait(signals + 8 * (EMPTY + seq % SLOTS), seq / SLOTS & 1 ^ 1);
        ask(w, seq);
        step(w, items);
      }
    }
    return;
  }

  if (warp == 1) {
    i32* const counts = (i32*)(base + HELD_COUNTS_AT);
    int use = -1;
    int oldest = 0;
    int used = 0;
    int complete = 0;  // items in front whose h is there
    for (; w.more; step(w, items)) {
      if (w.use == use) continue;
      use = w.use;
      while (used + w.held > HELD || use - oldest >= USES) {
        signal_wait(signals + 8 * (ROWS_DONE + oldest % USES), oldest / USES & 1);
        used -= counts[oldest % USES];
        oldest++;
      }
      used += w.held;
      __syncwarp();
      if (lane == 0) counts[use % USES] = w.held;
      if (w.second) {
        while (complete <= w.item) {  // looks at 32 items at a time
          const int i = complete + lane;
          const bool stored = i < items.count && load_acquire(ready + i * COUNTER_PITCH) == STRIPS1;
          const u32 missing = __ballot_sync(0xffffffffu, !stored);
          complete += missing ? __ffs(missing) - 1 : 32;
        }
        __syncwarp();
      }
      const int pieces = (w.second ? K2 : K1) / 8;
      const int first = items.first[w.item];
      for (int i = 0; i < w.held; i++) {
        const int row = items.row[first + i];
        const bf16* const from = w.second ? h + (i64)row * K2 : x + (i64)(${x_row}) * K1;
        const int slot = w.row_at + i;
        u8* const to = base + ROWS_AT + (slot < HELD ? slot : slot - HELD) * ROW_PITCH;
#pragma unroll 4
        for (int p = lane; p < pieces; p += 32) copy16_async(to + p * 16, from + p * 8, true);
      }
      copy_arrive(signals + 8 * (ROWS_FULL + use % USES));
    }
    // All items have been seen complete, so no counter is needed any more when all blocks are here.
    u32 before = 0;
    if (lane == 0) before = count_up(seen, BLOCKS - 1);
    before = __shfl_sync(0xffffffffu, before, 0);
    if (before == BLOCKS - 1) {
      for (int i = lane; i < items.count; i += 32) ready[i * COUNTER_PITCH] = 0;
    }
    copy_wait<0>();
    return;
  }

  if (warp < FIRST) {
    const int finisher = warp - 2;
    const int member = finisher * 32 + lane;
    const int own = ((int)blockIdx.x < STRIPS2 ? (STRIPS2 - 1 - (int)blockIdx.x) / BLOCKS + 1 : 0);
    // The results that this thread makes at the end, and what they read besides the sums.
    ${early_second}
    for (; w.more; step(w, items), seq++) {
      if (seq % FINISHERS != finisher) continue;
      const int buffer = seq % BUFFERS;
      const u32 done = signals + 8 * (DONE + buffer);
      const f32* const part = parts + buffer * PART;
      const int first = items.first[w.item];
      const int expert = items.expert[w.item];
      const bool valid = expert < EXPERTS;
      // Sum of all pieces: column `at` of the strip of row `i` of the item.
      auto total = [&](int i, int at, int pieces) {
        f32 sum = 0.0f;
#pragma unroll
        for (int p = 0; p < PIECES; p++) {
          if (PIECES1 == PIECES2 || p < pieces) sum += part[(p * XROWS + i) * PITCH + at];
        }
        return valid ? sum : 0.0f;
      };
      if (!w.second) {
        const int strip = w.strip;
        ${early_first}
        signal_wait(done, seq / BUFFERS & 1);
        ${late_first}
        __syncwarp();
        if (lane == 0) {
          signal_arrive(signals + 8 * (FREE + buffer));
          add_release(ready + w.item * COUNTER_PITCH, 1);
        }
      } else {
        constexpr int ROUNDS = (XROWS * 16 + 31) / 32;
        signal_wait(done, seq / BUFFERS & 1);
#pragma unroll
        for (int r = 0; r < ROUNDS; r++) {
          const int i = r * 2 + lane / 16;
          if (i < w.held) sums[(w.own * ROWS + items.row[first + i]) * 16 + lane % 16] = total(i, lane % 16, PIECES2);
        }
        __syncwarp();
        if (lane == 0) signal_arrive(signals + 8 * (FREE + buffer));
      }
    }
    barrier<FINISHERS * 32>(1);
    ${late_second}
    return;
  }

  const int group = (warp - FIRST) / PIECES;
  const int piece = (warp - FIRST) % PIECES;
  const int part_of = piece * SPLIT / PIECES;
  const int g = lane >> 2;
  const int c = lane & 3;
  int use = -1;
  for (; w.more; step(w, items), seq++) {
    if (w.use != use) {  // all warps go through all uses, whether or not they multiply them: a signal tells one use from the next only
      if (use >= 0) {
        __syncwarp();
        if (lane == 0) signal_arrive(signals + 8 * (ROWS_DONE + use % USES));
      }
      use = w.use;
      signal_wait(signals + 8 * (ROWS_FULL + use % USES), use / USES & 1);
    }
    if (seq % GROUPS != group) continue;
    const int slot = seq % SLOTS;
    const int tiles = w.second ? TILES2 : TILES1;
    const int pieces = w.second ? PIECES2 : PIECES1;
    const int k_first = EVEN ? piece * RUN1 : tiles * piece / pieces;
    const int k_count = EVEN ? RUN1 : piece < pieces ? tiles * (piece + 1) / pieces - k_first : 0;
    const bool half_tail = (w.second ? K2 : K1) % 64 != 0;
    u32 held[NT];
#pragma unroll
    for (int s = 0; s < NT; s++) {
      const int i = 8 * s + (lane & 7);
      const int at = w.row_at + (i < w.held ? i : 0);  // columns beyond the item's rows repeat the first and are not used
      held[s] = shared_at + ROWS_AT + (at < HELD ? at : at - HELD) * ROW_PITCH + k_first * 128 + (lane >> 3) * 16;
    }
    f32 acc[NT][4] = {};
    const u8* const from = base + slot * SLOT + k_first * RECORD;
    signal_wait(signals + 8 * (FULL + slot * SPLIT + part_of), seq / SLOTS & 1);
#pragma unroll
    for (int k = 0; k < LONGEST; k++) {
      if (!EVEN && k >= k_count) break;
      u32 b[NT][2][4];
#pragma unroll
      for (int s = 0; s < NT; s++) {
        if (s > 0 && 8 * s >= w.held) break;
        load_matrices(b[s][0], held[s] + k * 128);
        load_matrices(b[s][1], held[s] + k * 128 + 64);
        if ((K1 % 64 != 0 || K2 % 64 != 0) && half_tail && k_first + k == tiles - 1) b[s][1][0] = b[s][1][1] = b[s][1][2] = b[s][1][3] = 0;
      }
      const u8* const record = from + k * RECORD;
      u32 a[4][4];
      if (FAST1 == FAST2 || !w.second) {
        gs_mxfp4_decode_tile<FAST1>(gs_mxfp4_load_codes(record, lane), gs_mxfp4_load_scales(record, lane), a);
      } else {
        gs_mxfp4_decode_tile<FAST2>(gs_mxfp4_load_codes(record, lane), gs_mxfp4_load_scales(record, lane), a);
      }
#pragma unroll
      for (int s = 0; s < NT; s++) {
        if (s > 0 && 8 * s >= w.held) break;
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const u32* const pair = b[s][i >> 1] + 2 * (i & 1);
          mma(bf16(), acc[s], a[i][0], a[i][1], a[i][2], a[i][3], pair[0], pair[1]);
        }
      }
    }
    __syncwarp();  // all lanes are done with the slot
    if (lane == 0) signal_arrive(signals + 8 * (EMPTY + slot));
    const int buffer = seq % BUFFERS;
    signal_wait(signals + 8 * (FREE + buffer), seq / BUFFERS & 1 ^ 1);
    f32* const part = parts + buffer * PART + piece * (XROWS * PITCH);
#pragma unroll
    for (int s = 0; s < NT; s++) {
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int at = 8 * s + 2 * c + (e & 1);
        if (at < XROWS) part[at * PITCH + 8 * (e >> 1) + g] = acc[s][e];
      }
    }
    __syncwarp();
    if (lane == 0) signal_arrive(signals + 8 * (DONE + buffer));
  }
}
