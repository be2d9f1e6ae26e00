// ${ir}
// Experts' weights for the rows of many sequences, on warpgroup multiplies. What there is to do is a list of slabs: 4 strips of w, one a warp, times the
// rows of an item (rows that share an expert). Every block has the list. It makes a run of it, then takes more from a counter, since multiprocessors
// are not served evenly; GROUPS slabs of an item at a time are a unit. A ring of STAGES stages, each up to CHUNK tiles of 64 k, holds the rows of x,
// gathered with the swizzle that the multiply reads, and w as it is packed. One warp chooses units and asks for w, three warps copy x; all run ahead
// across the borders of units. In each group of 128 threads a warp decodes its strip into registers, as the left operand, while other multiplies run.
// A stage lies within one piece of K; pieces are added up in order, so a row has the bits that kernels for few rows give it.
${constants}
constexpr int PIECES = ${pieces};
constexpr int ROWS = ${rows};      // rows in all at most
constexpr int SLOTS = ${slots};    // rows of an item at most
constexpr int STAGES = ${stages};
constexpr int GROUPS = ${groups};  // groups of 128 threads that multiply
constexpr int PARTS = ${parts};    // tiles of 16 rows of w in a strip
constexpr int CHUNK = ${chunk};    // tiles of 64 k of a stage at most
constexpr int FINISHED = ${finished};  // rows whose results are finished at a time
constexpr bool FAST = ${fast};     // scales are stored as scale + 126
constexpr bool EARLY = ${early};   // ids are complete before the kernel in front is
constexpr int OWN = ${own};        // percent of the slabs that are divided beforehand
constexpr int MULTIPLIERS = 4 * GROUPS;     // warps
constexpr int COPIERS = 3;                  // warps that copy x
constexpr int LISTERS = MULTIPLIERS + COPIERS;
constexpr int THREADS = 32 * LISTERS + 32;  // and the warp that asks for w
constexpr int TILES = PARTS;
constexpr int HEIGHT = 16 * TILES;  // rows of w of a strip
constexpr int SLABS = (STRIPS + 3) / 4;
constexpr int K_TILES = (K + 63) / 64;
constexpr int ROW_TILES = (N + 15) / 16;
constexpr bool EVEN = K_TILES == PIECES * CHUNK;  // every stage is a whole piece
constexpr bool UNROLLED = EVEN && PARTS == 1 && CHUNK > 2;  // which takes a sixth fewer instructions
constexpr int RECORD = 544;
constexpr int RECORDS = TILES * MULTIPLIERS;
constexpr int RUN = CHUNK * RECORD;  // of a tile of 16 rows
constexpr int ROOM = ${room};  // behind each run at least, 0 or 96
constexpr int PLACE = ROOM == 0 ? RUN : (RUN + ROOM + 127) / 128 * 128;
constexpr int X_TILE = SLOTS * 128;
constexpr int X_STAGE = CHUNK * X_TILE;
constexpr int W_STAGE = RECORDS * PLACE;
constexpr int PITCH = HEIGHT + 4;
// In shared memory: rows of x, w, results under way (before that counts of rows).
constexpr int W_AT = STAGES * X_STAGE;
constexpr int OUT_AT = W_AT + STAGES * W_STAGE;
constexpr int QUEUE = 4;  // units that are known ahead
static_assert(RECORDS <= 32, "a lane asks for the run of one tile");
static_assert(ROOM == 0 || PARTS == 1, "a warp reads runs that begin alike");

${multiplies}

// Columns of a multiply.
template <int COUNT> struct Width { static constexpr int value = COUNT; };

// A place in a ring; the parity changes each time round.
template <int COUNT> struct Place {
  int at;
  u32 parity;
  __device__ __forceinline__ void next() {
    if (++at < COUNT) return;
    at = 0;
    parity ^= 1;
  }
};

// Tiles of 64 k of a stage: k .. k + count, all in one piece.
struct Span {
  int k;
  int count;
  int piece;
  bool begins;  // the piece
  bool ends;
  __device__ __forceinline__ Span() : k(0), piece(0), begins(true) { cut(); }
  __device__ __forceinline__ void cut() {
    const int left = EVEN ? CHUNK : (int)((i64)K_TILES * (piece + 1) / PIECES) - k;
    count = left < CHUNK ? left : CHUNK;
    ends = EVEN || count == left;
  }
  __device__ __forceinline__ bool there() const { return piece < PIECES; }
  __device__ __forceinline__ void next() {
    k += count;
    piece += ends;
    begins = ends;
    cut();
  }
};

// Slabs of one item that a block makes at a time, one a group.
struct Unit {
  int expert;
  int first;  // of the item's rows in the list
  int rows;
  int slab;
  int count;  // of slabs; 0: there are no more units
};

// Tile `r` of a strip.
__device__ __forceinline__ int tile_of(int strip, int r) { return ${tile}; }

// Price of a slab of an item, and of an item as such: half of a slab is what it costs to begin one. Multiplies of 24 columns take a sixteenth more time
// than those of up to 16, and so on.
__device__ __forceinline__ int price_of(const RowItem& item) {
  const int count = item.count;
  const int width = ${width};
  return item.expert == EXPERTS ? 1 : 14 + (width < 16 ? 16 : width) / 8;
}
constexpr int ITEM_PRICE = 8;

// Divides the first OWN percent of all slabs among the blocks, by price: this block's are begin .. end, the rest starts at `divided`. One warp calls.
__device__ __forceinline__ void share_out(const RowLists<ROWS, SLOTS, EXPERTS>& lists, int& begin, int& end, int& divided) {
  const int lane = threadIdx.x & 31;
  int total = 0;
  for (int i = lane; i < lists.items; i += 32) total += SLABS * price_of(lists.item[i]) + ITEM_PRICE;
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) total += __shfl_xor_sync(0xffffffffu, total, o);
  const int own = total / 100 * OWN + total % 100 * OWN / 100;
  const int grid = (int)gridDim.x;
  const int block = (int)blockIdx.x;
  const int share = own / grid;
  const int rest = own % grid;
  const int wanted[3] = {block * share + (block < rest ? block : rest), (block + 1) * share + (block + 1 < rest ? block + 1 : rest), own};
  int found[3] = {0, 0, 0};
  int front = 0;  // price of the items in front
  for (int first = 0; first < lists.items; first += 32) {
    const int i = first + lane;
    const int each = i < lists.items ? price_of(lists.item[i]) : 1;
    const int price = i < lists.items ? SLABS * each + ITEM_PRICE : 0;
    int sum = price;
#pragma unroll
    for (int o = 1; o < 32; o <<= 1) {
      const int other = __shfl_up_sync(0xffffffffu, sum, o);
      if (lane >= o) sum += other;
    }
    const int before = front + sum - price;
#pragma unroll
    for (int p = 0; p < 3; p++) {
      if (p == 2 && OWN == 100) continue;
      // The slab that begins nearest to a price.
      const int inside = wanted[p] - before;
      const int slab = inside <= ITEM_PRICE ? 0 : (inside - ITEM_PRICE + each / 2) / each;
      const u32 lanes = __ballot_sync(0xffffffffu, inside > 0 && inside <= price);
      const int there = __shfl_sync(0xffffffffu, i * SLABS + slab, __ffs(lanes) - 1);
      if (lanes != 0) found[p] = there;
    }
    front += __shfl_sync(0xffffffffu, sum, 31);
  }
  begin = found[0];
  end = found[1];
  divided = OWN == 100 ? lists.items * SLABS : found[2];
}

// Where a run begins in its place: as far into a line of 128 bytes as where it is copied from, which is faster. `from`: low bits of that address.
__device__ __forceinline__ u32 begin_of(u32 from) { return ROOM == 0 ? 0 : from & 96; }

extern "C" __global__ void __launch_bounds__(THREADS, 1)
${entry}(const bf16* x, const u8* w, const i32* ids, u32 tokens, u32* counter${params}, const Wanted wanted) {
  extern __shared__ uint4 shared[];
  __shared__ RowLists<ROWS, SLOTS, EXPERTS> lists;
  __shared__ Unit queue[QUEUE];
  __shared__ u64 signals[2 * STAGES + 2 * QUEUE];
  u8* const memory = (u8*)shared + (-shared_address(shared) & 1023u);  // the swizzle repeats every 1024 bytes
  const u32 base = shared_address(memory);
  const u32 full = shared_address(signals);
  const u32 empty = full + 8 * STAGES;
  const u32 given = empty + 8 * STAGES;  // of units
  const u32 taken = given + 8 * QUEUE;
  const int lane = threadIdx.x & 31;
  const int warp = __shfl_sync(0xffffffffu, (int)threadIdx.x >> 5, 0);  // 0: asks for w
  const int lister = warp - 1;
  const int rows = (int)tokens * CHOICES;

  u16* const counts = (u16*)(memory + OUT_AT);
  for (int i = threadIdx.x; i < LISTERS * (EXPERTS + 1); i += THREADS) counts[i] = 0;
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) {
      signal_init(full + 8 * i, 1 + 32 * COPIERS);
      signal_init(empty + 8 * i, MULTIPLIERS);
    }
    for (int i = 0; i < QUEUE; i++) {
      signal_init(given + 8 * i, 1);
      signal_init(taken + 8 * i, LISTERS);
    }
    signal_publish();
  }
  __syncthreads();
  if (!EARLY) {
    wait_inputs();
    start_next();
  }
  OwnRows<ROWS, LISTERS> own_rows;
  if (warp > 0) count_rows<EXPERTS>(own_rows, counts, ids, rows, lister);
  __syncthreads();
  add_counts<LISTERS, THREADS>(lists, counts);
  __syncthreads();
  if (warp == 0) list_items(lists);
  __syncthreads();

  if (warp <= COPIERS) fewer_registers<${copy_registers}>();
  if (warp == 0) {
    const int slabs = lists.items * SLABS;
    int next = 0;
    int end = 0;
    int divided = 0;
    share_out(lists, next, end, divided);
    const int grid = (int)gridDim.x;
    Place<STAGES> at = {0, 1};
    Place<QUEUE> to = {0, 1};
    for (;;) {
      if (next >= end && OWN < 100) {
        if (EARLY) wait_inputs();  // the kernel in front may use the counter as well
        // Whoever takes last leaves the counter at 0. Who makes a unit changes no result.
        const u32 takes = (slabs - divided + GROUPS - 1) / GROUPS + grid;
        const u32 ticket = lane == 0 ? atomicInc(counter, takes - 1) : 0;
        next = divided + (int)__shfl_sync(0xffffffffu, ticket, 0) * GROUPS;
        end = next + GROUPS < slabs ? next + GROUPS : slabs;
      }
      const bool more = next < end;
      const RowItem item = lists.item[more ? next / SLABS : 0];
      const int slab = next % SLABS;
      const int left = end - next < SLABS - slab ? end - next : SLABS - slab;
      const int turns = (left + GROUPS - 1) / GROUPS;
      const int count = more ? (left + turns - 1) / turns : 0;  // turns of about the same size
      signal_wait(taken + 8 * to.at, to.parity);
      __syncwarp();  // no lane waits for a use that has passed
      if (lane == 0) {
        queue[to.at] = {item.expert, item.first, item.count, slab, count};
        signal_arrive(given + 8 * to.at);
      }
      to.next();
      if (!more) {
        // What this block reads has been multiplied, and other blocks end up to 5 us later: memory has time for what comes next. Asked for as soon as the last
        // stage is, it would keep them from theirs.
        for (int i = 0; i < STAGES; i++) {
          signal_wait(empty + 8 * at.at, at.parity);
          at.next();
        }
        if (lane == 0) ask_ahead<64 << 10>(wanted);
        return;
      }
      next += count;
      if (item.expert == EXPERTS) continue;  // products of no expert are 0
      // A lane asks for the runs of one tile.
      const int strip = slab * 4 + lane / TILES;
      const int tile = tile_of(strip, lane % TILES);
      const bool there = lane < count * 4 * TILES && strip < STRIPS && tile < ROW_TILES;
      const int runs = __popc(__ballot_sync(0xffffffffu, there));
      const u8* from = w + ((i64)item.expert * ROW_TILES + (there ? tile : 0)) * (K_TILES * RECORD);
#pragma unroll 1
      for (Span span; span.there(); span.next()) {
        const u32 bytes = span.count * RECORD;
        const u32 signal = full + 8 * at.at;
        signal_wait(empty + 8 * at.at, at.parity);
        __syncwarp();
        if (lane == 0) signal_expect(signal, runs * bytes);
        __syncwarp();
        if (there) fetch_once(base + W_AT + at.at * W_STAGE + lane * PLACE + begin_of((u32)(u64)from), from, bytes, signal);
        from += bytes;
        at.next();
      }
    }
  }

  place_rows(lists, own_rows, counts, rows, lister);
  if (EARLY) {
    wait_inputs();
    start_next();
  }
  barrier<32 * LISTERS>(1);
  Place<QUEUE> from_queue = {0, 0};
  auto next_unit = [&] {
    signal_wait(given + 8 * from_queue.at, from_queue.parity);
    const Unit& there = queue[from_queue.at];
    Unit unit;
    unit.expert = __shfl_sync(0xffffffffu, there.expert, 0);
    unit.first = __shfl_sync(0xffffffffu, there.first, 0);
    unit.rows = __shfl_sync(0xffffffffu, there.rows, 0);
    unit.slab = __shfl_sync(0xffffffffu, there.slab, 0);
    unit.count = __shfl_sync(0xffffffffu, there.count, 0);
    if (lane == 0) signal_arrive(taken + 8 * from_queue.at);
    from_queue.next();
    return unit;
  };
  if (warp <= COPIERS) {
    // A thread copies the same 16 bytes of every STRIDE-th row.
    constexpr int STRIDE = 4 * COPIERS;
    constexpr int COPIES = (SLOTS + STRIDE - 1) / STRIDE;
    const int own_slot = (int)(threadIdx.x - 32) >> 3;
    const int own_k = (threadIdx.x & 7) * 8;
    Place<STAGES> at = {0, 1};
    for (;;) {
      const Unit unit = next_unit();
      if (unit.count == 0) break;
      if (unit.expert == EXPERTS) continue;
      const bf16* from[COPIES];
#pragma unroll
      for (int i = 0; i < COPIES; i++) {
        const int slot = own_slot + STRIDE * i;
        const int row = lists.row[unit.first + (slot < unit.rows ? slot : 0)];
        from[i] = x + (i64)(${x_row}) * K + own_k;
      }
#pragma unroll 1
      for (Span span; span.there(); span.next()) {
        signal_wait(empty + 8 * at.at, at.parity);
        const u32 to_stage = base + at.at * X_STAGE;
#pragma unroll
        for (int i = 0; i < COPIES; i++) {
          const int slot = own_slot + STRIDE * i;
          if (slot < unit.rows) {
            const u32 to_row = to_stage + swizzled(slot, own_k * 2);
#pragma unroll
            for (int s = 0; s < CHUNK; s++) {
              if (EVEN || s < span.count) copy16_to(to_row + s * X_TILE, from[i] + 64 * s, K % 64 == 0 || (span.k + s) * 64 + own_k < K);
            }
          }
          from[i] += 64 * span.count;
        }
        signal_when_copied(full + 8 * at.at);
        at.next();
      }
    }
    copies_landed();
    return;
  }

  more_registers<${multiply_registers}>();
  const int multiplier = warp - 1 - COPIERS;
  const int group = multiplier / 4;
  f32* const out = (f32*)(memory + OUT_AT) + multiplier * (FINISHED * PITCH);  // of this warp: [row][PITCH]
  const u8* const records = memory + W_AT + multiplier * TILES * PLACE;
  Place<STAGES> at = {0, 0};
  for (;;) {
    const Unit unit = next_unit();
    if (unit.count == 0) return;
    const int expert = unit.expert;
    const int count = unit.rows;
    const bool multiplied = expert < EXPERTS;
    if (group >= unit.count) {  // this group has no slab
      if (multiplied) {
        for (Span span; span.there(); span.next()) {
          signal_wait(full + 8 * at.at, at.parity);
          __syncwarp();
          if (lane == 0) signal_arrive(empty + 8 * at.at);
          at.next();
        }
      }
      continue;
    }
    const int strip = (unit.slab + group) * 4 + multiplier % 4;
    // Low bits of where the strip's first tile is in memory.
    const u32 source = (u32)(u64)w + (u32)(expert * ROW_TILES + tile_of(strip, 0)) * (K_TILES * RECORD);
    f32 total[PARTS][SLOTS / 2] = {};
    // Stages of as many tiles as CHUNK: what is known of them is known to the compiler.
    auto multiply = [&](auto wide) {
      constexpr int W = decltype(wide)::value;
      f32 sum[W / 2] = {};  // of a piece
      u32 a[2][4][4];  // of two multiplies: one runs while the next is decoded
#pragma unroll 1
      for (Span span; span.there(); span.next()) {
        const int stage = at.at;
        const u8* record = records + stage * W_STAGE + begin_of(source + span.k * RECORD);
        const u32 rows_at = __shfl_sync(0xffffffffu, operand_low(base + stage * X_STAGE), 0);  // so that steps are added once a warp
        signal_wait(full + 8 * stage, at.parity);
        publish_to_hardware();  // rows of x came by copies that count as ordinary writes
        uint4 codes = gs_mxfp4_load_codes(record, lane);
        u32 scales = gs_mxfp4_load_scales(record, lane);
#pragma unroll
        for (int tile = 0; tile < CHUNK; tile++) {
          multiply_wait<1>();  // the one before the last, which read these registers, is done
          gs_mxfp4_decode_tile<FAST>(codes, scales, a[tile & 1]);
          if (tile + 1 < CHUNK) {
            codes = gs_mxfp4_load_codes(record + (tile + 1) * RECORD, lane);
            scales = gs_mxfp4_load_scales(record + (tile + 1) * RECORD, lane);
          }
          const u32 b = rows_at + tile * (X_TILE / 16);
          multiply_begin();
          multiply_held(sum, a[tile & 1][0], operand_of(b), tile > 0);
          multiply_held(sum, a[tile & 1][1], operand_of(b + 2), true);
          multiply_held(sum, a[tile & 1][2], operand_of(b + 4), true);
          multiply_held(sum, a[tile & 1][3], operand_of(b + 6), true);
          multiply_commit();
        }
        multiply_wait<0>();
        if (lane == 0) signal_arrive(empty + 8 * stage);
#pragma unroll
        for (int i = 0; i < W / 2; i++) total[0][i] += sum[i];
        at.next();
      }
    };
    if (multiplied && UNROLLED) {
      ${unrolled}
    } else if (multiplied) {
      const int width = ${width};  // of a multiply
      f32 sum[PARTS][SLOTS / 2] = {};  // of a piece
      u32 a[2][4][4];  // of two multiplies: one runs while the next is decoded
#pragma unroll 1
      for (Span span; span.there(); span.next()) {
        const int stage = at.at;
        const u8* record = records + stage * W_STAGE + begin_of(source + span.k * RECORD);
        signal_wait(full + 8 * stage, at.parity);
        publish_to_hardware();  // rows of x came by copies that count as ordinary writes
        uint4 codes = gs_mxfp4_load_codes(record, lane);
        u32 scales = gs_mxfp4_load_scales(record, lane);
        int tiles = span.count;
        asm volatile("" : "+r"(tiles));  // a loop even of one turn: without one ptxas makes multiplies wait for each other
#pragma unroll 1
        for (int s = 0; s < tiles; s += PARTS == 1 ? 2 : 1) {
#pragma unroll
          for (int i = 0; i < 2; i++) {
            const int p = PARTS == 1 ? 0 : i;
            const int tile = PARTS == 1 ? s + i : s;
            if (PARTS == 1 && i == 1 && tile >= tiles) break;
            multiply_wait<1>();  // the one before the last, which read these registers, is done
            gs_mxfp4_decode_tile<FAST>(codes, scales, a[i]);
            const bool last = tile + 1 == tiles && p + 1 == PARTS;
            const int step = PARTS == 1 ? RECORD : p == 0 ? PLACE : RECORD - PLACE;
            if (!last) record += step;
            codes = gs_mxfp4_load_codes(record, lane);  // of the next tile
            scales = gs_mxfp4_load_scales(record, lane);
            const u32 b = operand_low(base + stage * X_STAGE + tile * X_TILE);
            const bool keep = tile > 0 || !span.begins;
            ${widths}
          }
        }
        multiply_wait<0>();
        if (lane == 0) signal_arrive(empty + 8 * stage);
        if (span.ends) {
#pragma unroll
          for (int p = 0; p < PARTS; p++) {
#pragma unroll
            for (int i = 0; i < SLOTS / 2; i++) total[p][i] += sum[p][i];
          }
        }
        at.next();
      }
    }
    // A warp's sums pass through its own shared memory, some rows at a time, to lanes that store columns beside each other. A lane keeps its column.
    const int n = strip * OUTPUTS + lane % OUTPUTS;
#pragma unroll
    for (int chunk = 0; chunk < SLOTS / FINISHED; chunk++) {
      if (chunk * FINISHED >= count) break;
#pragma unroll
      for (int p = 0; p < PARTS; p++) {
#pragma unroll
        for (int i = 0; i < FINISHED / 2; i++) {
          const int slot = i / 4 * 8 + 2 * (lane & 3) + (i & 1);
          out[slot * PITCH + p * 16 + (lane >> 2) + (i & 2) * 4] = total[p][chunk * (FINISHED / 2) + i];
        }
      }
      __syncwarp();
      if (strip < STRIPS && n < WIDTH) {
#pragma unroll
        for (int i = 0; i < FINISHED; i += 32 / OUTPUTS) {
          const int own = i + lane / OUTPUTS;
          const int last = count - 1 - chunk * FINISHED;
          const int slot = own < last ? own : last;  // the last row may be stored again
          const int row = lists.row[unit.first + chunk * FINISHED + slot];
          const int t = row / CHOICES;
          const int j = row % CHOICES;
          ${finish}
        }
      }
      __syncwarp();
    }
  }
}
