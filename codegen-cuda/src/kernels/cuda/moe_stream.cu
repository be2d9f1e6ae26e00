// ${ir}
// Experts' weights for few rows. A group of PIECES warps makes the rows of an item (rows that share an expert) times a strip of w (TILES tiles of 16
// rows of w); its warps share out K in pieces. Each warp streams its own packed weights through a ring in shared memory, AHEAD chunks of CHUNK tiles of
// 64 k deep, across the borders of units, and decodes fragments in registers. Rows of x are held by the block if they are few, else each warp
// reads them as it needs them. Pieces are added up in order, so a row's bits depend neither on the other rows nor on which kernel of the family made
// them. The sums of a unit are finished while the next one is under way, so a warp waits for another only if that is a unit behind.
${constants}
constexpr int PIECES = ${pieces};
constexpr int GROUPS = ${groups};  // of a block
constexpr int TILES = ${tiles};
constexpr int XROWS = ${x_rows};   // rows of an item at most
constexpr int ROWS = ${rows};      // rows in all at most
constexpr int HELD = ${held};      // rows of x that a block holds; 0: warps read them
constexpr int CHUNK = ${chunk};
constexpr int AHEAD = ${ahead};
constexpr bool FAST = ${fast};     // scales are stored as scale + 126
constexpr bool EARLY = ${early};   // ids are complete before the kernel in front is
constexpr bool LATE = ${late};    // the next kernel starts when the last weights are there: its own are not to come in between
constexpr bool OWNER = ${owner};   // a group keeps its strip and goes through all items
constexpr int GROUP = PIECES * 32;
constexpr int THREADS = GROUPS * GROUP;
constexpr int NT = (XROWS + 7) / 8;
constexpr int HEIGHT = TILES * 16;
constexpr int K_TILES = (K + 63) / 64;
constexpr int ROW_TILES = (N + 15) / 16;
constexpr int CHUNKS = (K_TILES + PIECES * CHUNK - 1) / (PIECES * CHUNK);  // of a piece
constexpr bool EVEN = K_TILES == PIECES * CHUNK * CHUNKS;
constexpr bool HALF_TAIL = K % 64 != 0;
constexpr int RECORD = 544;
constexpr int X_PITCH = K_TILES * 128 + 16;  // of a row of x that is held
// A copy whose place lies like its source within a line of 128 bytes is faster, so a slot has room to begin 0 to 96 bytes later.
constexpr int SLOT = TILES == 1 ? (CHUNK * RECORD + 96 + 127) / 128 * 128 : TILES * CHUNK * RECORD;
constexpr int PITCH = HEIGHT + 4;
constexpr int PART = PIECES * XROWS * PITCH;
constexpr int HELD_AT = GROUPS * PIECES * AHEAD * SLOT;
constexpr int RING = HELD_AT + HELD * X_PITCH;
constexpr int BUFFERS = ${buffers};  // of partial sums; with one, a group waits until they are read
constexpr int PARTS = GROUPS * BUFFERS * PART * 4;
static_assert(TILES <= 32, "a lane copies one strip");
static_assert(AHEAD <= 16, "two bits of a word say where a chunk begins in its slot");

// A chunk that is to be fetched.
struct Cursor {
  int item;
  int strip;
  int chunk;  // of the piece
  int phase;  // where in the ring
  int tiles;  // 0: there is nothing to fetch
  const u8* from;  // weights; lane r of TILES has its own
};

${limits}
extern "C" __global__ void LIMITS
${entry}(const bf16* x, const u8* w, const i32* ids, u32 tokens${params}) {
  alignas(128) extern __shared__ uint4 shared[];  // bulk copies to places 16 bytes off a sector of 32 take longer
  __shared__ Items<ROWS> items;
  __shared__ u64 signals[GROUPS * PIECES * AHEAD];
  __shared__ u64 complete[GROUPS];  // all partial sums of a unit are there
  const int lane = threadIdx.x & 31;
  const int warp = __shfl_sync(0xffffffffu, (int)threadIdx.x >> 5, 0);
  const int group = GROUPS == 1 ? 0 : warp / PIECES;
  const int piece = warp - group * PIECES;
  const int member = threadIdx.x - group * GROUP;
  const int groups = gridDim.x * GROUPS;
  const int own = group * gridDim.x + blockIdx.x;
  const int k_first = K_TILES * piece / PIECES;
  const int k_count = EVEN ? CHUNK * CHUNKS : K_TILES * (piece + 1) / PIECES - k_first;
  const u8* const ring = (const u8*)shared + warp * (AHEAD * SLOT);
  const u32 ring_at = shared_address(ring);
  const u32 signal = shared_address(signals + warp * AHEAD);
  const u32 done = shared_address(complete + group);
  const u32 held_at = shared_address(shared) + HELD_AT;
  f32* const parts = (f32*)((u8*)shared + RING) + group * (BUFFERS * PART);
  ${sums}

  if (lane == 0) {
#pragma unroll
    for (int i = 0; i < AHEAD; i++) signal_init(signal + 8 * i, 1);
    if (piece == 0) signal_init(done, PIECES);
    signal_publish();
  }
  auto hold_x = [&] {
    const int pieces = (int)(${x_all}) * (K / 8);
    for (int i = threadIdx.x; i < (HELD ? pieces : 0); i += THREADS) {
      copy16_async((u8*)shared + HELD_AT + i / (K / 8) * X_PITCH + i % (K / 8) * 16, x + (i64)i * 8, true);
    }
    copy_commit();
  };
  if (!EARLY) wait_inputs();
  const i32 id = first_id(ids, (int)tokens * CHOICES);  // asked for in front of the rows, as all weights wait for it
  if (!EARLY) {
    if (!LATE) start_next();
    hold_x();
  }
  find_items<ROWS, XROWS, THREADS, EXPERTS>(items, ids, (int)tokens * CHOICES, id);
  const int item_count = items.count;

  auto tile_of = [&](int strip, int r) {  // tile of 16 rows of w
    const int tile = ${tile};
    return tile < ROW_TILES ? tile : ROW_TILES - 1;
  };
  auto size = [&](const Cursor& c) {
    const int left = k_count - c.chunk * CHUNK;
    return EVEN || left > CHUNK ? CHUNK : left;
  };
  auto seek = [&](Cursor& c) {
    c.tiles = 0;
    if (OWNER ? c.strip >= STRIPS : c.item >= item_count) return;
    c.tiles = size(c);
    const int id = items.expert[c.item];
    const int expert = id < EXPERTS ? id : 0;  // rows of no expert are computed with some weights and then replaced
    const u32 record = (u32)(expert * ROW_TILES + tile_of(c.strip, TILES == 1 ? 0 : lane % TILES)) * K_TILES + k_first;
    c.from = w + (u64)record * RECORD;
  };
  auto next_unit = [&](int& item, int& strip) {
    if (OWNER) {
      if (++item >= item_count) {
        item = 0;
        strip += groups;
      }
    } else {
      const u32 next = (u32)(strip + groups);
      item += next / STRIPS;
      strip = next % STRIPS;
    }
  };
  auto advance = [&](Cursor& c) {
    c.phase = c.phase + 1 == AHEAD ? 0 : c.phase + 1;
    if (CHUNKS > 1 && c.chunk + 1 < CHUNKS) {
      c.chunk++;
      if (c.tiles) {
        c.from += CHUNK * RECORD;
        c.tiles = size(c);
      }
      return;
    }
    c.chunk = 0;
    next_unit(c.item, c.strip);
    seek(c);
  };
  u32 begins = 0;  // where the chunk of each slot begins, in units of 32 bytes
  auto fetch_chunk = [&](const Cursor& c) {
    if (c.tiles == 0) return;
    const u32 full = signal + 8 * c.phase;
    const u32 bytes = c.tiles * RECORD;
    u32 to = ring_at + c.phase * SLOT;
    if (TILES == 1) {
      const u32 offset = (u32)(u64)c.from & 96;
      to += offset;
      begins = (begins & ~(3u << 2 * c.phase)) | offset / 32 << 2 * c.phase;
      if (elected()) {
        signal_expect(full, bytes);
        fetch_once(to, c.from, bytes, full);
      }
    } else {
      if (lane == 0) signal_expect(full, TILES * bytes);
      if (lane < TILES) fetch_once(to + lane * (CHUNK * RECORD), c.from, bytes, full);
    }
  };
  Cursor head;
  head.item = OWNER ? 0 : own / STRIPS;
  head.strip = OWNER ? own : own % STRIPS;
  head.chunk = 0;
  head.phase = 0;
  int item = head.item;  // of the unit that is finished next
  int strip = head.strip;
  int at_item = item;    // of the unit that is multiplied next
  int at_strip = strip;
  seek(head);
#pragma unroll 1
  for (int i = 0; i < AHEAD; i++) {
    fetch_chunk(head);
    advance(head);
  }
  if (EARLY) {
    wait_inputs();
    if (!LATE) start_next();
    hold_x();
  }
  if (HELD) {
    copy_wait<0>();
    __syncthreads();
  }

  if (LATE && head.tiles == 0) start_next();
  const int g = lane >> 2;
  const int c = lane & 3;
  int phase = 0;
  u32 parity = 0;
  int unit = 0;
  while (true) {
    const bool more = OWNER ? at_strip < STRIPS : at_item < item_count;
    f32 acc[TILES][NT][4] = {};
    if (more) {
      const int first = items.first[at_item];
      const int count = items.first[at_item + 1] - first;
      // Rows of x: where load_matrices finds a lane's row, or where a lane's words of its column begin. Columns beyond the item's rows repeat the first
      // one or are zero, and are not used.
      u32 held[NT];
      const u32* read[NT];
#pragma unroll
      for (int s = 0; s < NT; s++) {
        const int i = 8 * s + (HELD ? lane & 7 : g);
        const int row = items.row[first + (i < count ? i : 0)];
        held[s] = held_at + (HELD == 1 ? 0 : (${x_row}) * X_PITCH) + k_first * 128 + (lane >> 3) * 16;
        read[s] = (const u32*)(x + ((i64)(${x_row}) * K + k_first * 64)) + c;
      }
#pragma unroll 1
      for (int chunk = 0; chunk < CHUNKS; chunk++) {
        u32 words[HELD ? 1 : CHUNK][NT][8];
        if (!HELD) {
#pragma unroll
          for (int k = 0; k < CHUNK; k++) {
            const int at = chunk * CHUNK + k;
            if (!EVEN && at >= k_count) break;
#pragma unroll
            for (int s = 0; s < NT; s++) {
              if (s > 0 && 8 * s >= count) break;
#pragma unroll
              for (int i = 0; i < 8; i++) {
                const bool beyond = HALF_TAIL && i >= 4 && k_first + at == K_TILES - 1;
                words[k][s][i] = 8 * s + g < count && !beyond ? read[s][at * 32 + 4 * i] : 0;
              }
            }
          }
        }
        signal_wait(signal + 8 * phase, parity);
        if (LATE && head.tiles == 0) start_next();
        const u8* const from = ring + phase * SLOT + (TILES == 1 ? (begins >> 2 * phase & 3) * 32 : 0);
#pragma unroll ${unroll}
        for (int k = 0; k < CHUNK; k++) {
          if (!EVEN && chunk * CHUNK + k >= k_count) break;
          u32 b[NT][2][4];
#pragma unroll
          for (int s = 0; s < NT; s++) {
            if (s > 0 && 8 * s >= count) break;
            if (!HELD) {
#pragma unroll
              for (int i = 0; i < 8; i++) b[s][i >> 2][i & 3] = words[k][s][i];
              continue;
            }
            const u32 at = held[s] + (chunk * CHUNK + k) * 128;
            load_matrices(b[s][0], at);
            load_matrices(b[s][1], at + 64);
            if (HALF_TAIL && k_first + chunk * CHUNK + k == K_TILES - 1) b[s][1][0] = b[s][1][1] = b[s][1][2] = b[s][1][3] = 0;
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
        __syncwarp();  // all lanes are done with the chunk
        fetch_chunk(head);
        advance(head);
        phase++;
        if (phase == AHEAD) {
          phase = 0;
          parity ^= 1;
        }
      }
    }
    if (unit > 0) {
      const int last = unit - 1;
      signal_wait(done, last & 1);
      const f32* const part = parts + last % BUFFERS * PART;
      const int first = items.first[item];
      const int count = items.first[item + 1] - first;
      const bool valid = items.expert[item] < EXPERTS;
      // Sum of all pieces: column `at` of the strip of row `i` of the item.
      auto total = [&](int i, int at) {
        f32 sum = 0.0f;
#pragma unroll
        for (int p = 0; p < PIECES; p++) sum += part[(p * XROWS + i) * PITCH + at];
        return valid ? sum : 0.0f;
      };
      // The work moves from warp to warp, so that none falls behind.
      const int turn = (member + GROUP - last % PIECES * 32) % GROUP;
      ${finish}
    }
    if (!more) break;
    if (BUFFERS == 1) barrier<GROUP>(group + 1);
    f32* const part = parts + unit % BUFFERS * PART;
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
    if (lane == 0) signal_arrive(done);
    next_unit(at_item, at_strip);
    unit++;
  }
}
