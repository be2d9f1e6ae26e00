// ${ir}
// Experts' weights for few rows. A group of PIECES warps makes the rows of an item (rows that share an expert) times a strip of w (TILES tiles of 16
// rows of w); its warps share out K in pieces. Each warp streams its own packed weights and columns of x through a ring in shared memory, AHEAD
// chunks of CHUNK tiles of 64 k deep, across the borders of units, and decodes fragments in registers. Pieces are added up in order, so a
// row's bits depend neither on the other rows nor on which kernel of the family made them.
${constants}
constexpr int PIECES = ${pieces};
constexpr int GROUPS = ${groups};  // of a block
constexpr int TILES = ${tiles};
constexpr int XROWS = ${x_rows};   // rows of an item at most
constexpr int ROWS = ${rows};      // rows in all at most
constexpr int CHUNK = ${chunk};
constexpr int AHEAD = ${ahead};
constexpr bool FAST = ${fast};     // scales are stored as scale + 126
constexpr bool EARLY = ${early};   // ids are complete before the kernel in front is
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
constexpr int X_AT = TILES * CHUNK * RECORD;  // in a slot of the ring: weights, x
constexpr int X_PITCH = CHUNK * 128 + 16;
constexpr int SLOT = X_AT + XROWS * X_PITCH;
constexpr int PITCH = HEIGHT + 4;
constexpr int PART = PIECES * XROWS * PITCH;
constexpr int RING = GROUPS * PIECES * AHEAD * SLOT;
constexpr int BUFFERS = ${buffers};  // of partial sums; with one, a group waits until they are read
constexpr int PARTS = GROUPS * BUFFERS * PART * 4;
static_assert(TILES + XROWS <= 32, "a lane copies one strip or one row");

// A chunk that is to be fetched.
struct Cursor {
  int item;
  int strip;
  int chunk;  // of the piece
  int phase;  // where in the ring
  int tiles;  // 0: there is nothing to fetch
  int count;  // rows of x
  const u8* from;  // what this lane copies: lane r < TILES a strip of weights, lane TILES + i row i of x
};

extern "C" __global__ void __launch_bounds__(THREADS, ${blocks})
${entry}(const bf16* x, const u8* w, const i32* ids, u32 tokens${params}) {
  extern __shared__ uint4 shared[];
  __shared__ Items<ROWS> items;
  __shared__ u64 signals[GROUPS * PIECES * AHEAD];
  const int lane = threadIdx.x & 31;
  const int group = GROUPS == 1 ? 0 : threadIdx.x / GROUP;
  const int member = threadIdx.x - group * GROUP;
  const int piece = member >> 5;
  const int groups = gridDim.x * GROUPS;
  const int own = group * gridDim.x + blockIdx.x;
  const int k_first = K_TILES * piece / PIECES;
  const int k_count = EVEN ? CHUNK * CHUNKS : K_TILES * (piece + 1) / PIECES - k_first;
  const u8* const ring = (const u8*)shared + (threadIdx.x >> 5) * (AHEAD * SLOT);
  const u32 ring_at = shared_address(ring);
  const u32 signal = shared_address(signals + (threadIdx.x >> 5) * AHEAD);
  f32* const parts = (f32*)((u8*)shared + RING) + group * (BUFFERS * PART);
  ${sums}

  if (lane == 0) {
#pragma unroll
    for (int i = 0; i < AHEAD; i++) signal_init(signal + 8 * i, 1);
    signal_publish();
  }
  if (!EARLY) {
    wait_inputs();
    start_next();
  }
  find_items<ROWS, XROWS, THREADS, EXPERTS>(items, ids, (int)tokens * CHOICES);
  const int item_count = items.count;

  auto tile_of = [&](int strip, int r) {  // tile of 16 rows of w
    const int tile = ${tile};
    return tile < ROW_TILES ? tile : ROW_TILES - 1;
  };
  auto seek = [&](Cursor& c) {
    c.tiles = 0;
    if (OWNER ? c.strip >= STRIPS : c.item >= item_count) return;
    const int left = k_count - c.chunk * CHUNK;
    c.tiles = EVEN || left > CHUNK ? CHUNK : left;
    const int k = k_first + c.chunk * CHUNK;
    const int first = items.first[c.item];
    c.count = items.first[c.item + 1] - first;
    if (lane < TILES) {
      const int id = items.expert[c.item];
      const int expert = id < EXPERTS ? id : 0;  // rows of no expert are computed with some weights and then replaced
      c.from = w + ((i64)(expert * ROW_TILES + tile_of(c.strip, lane)) * K_TILES + k) * RECORD;
    } else {
      const int row = items.row[first + (lane - TILES < c.count ? lane - TILES : 0)];
      c.from = (const u8*)(x + (i64)(${x_row}) * K + k * 64);
    }
  };
  auto advance = [&](Cursor& c) {
    c.phase = c.phase + 1 == AHEAD ? 0 : c.phase + 1;
    if (CHUNKS > 1 && ++c.chunk < CHUNKS) return seek(c);
    c.chunk = 0;
    if (OWNER) {
      if (++c.item >= item_count) {
        c.item = 0;
        c.strip += groups;
      }
    } else {
      const u32 next = (u32)(c.strip + groups);
      c.item += next / STRIPS;
      c.strip = next % STRIPS;
    }
    seek(c);
  };
  // Bytes of a row of x in a chunk: columns beyond K do not exist.
  auto x_bytes = [&](const Cursor& c) -> u32 {
    return HALF_TAIL && k_first + c.chunk * CHUNK + c.tiles == K_TILES ? c.tiles * 128 - 64 : c.tiles * 128;
  };
  auto fetch_w = [&](const Cursor& c) {
    if (c.tiles == 0) return;
    const u32 full = signal + 8 * c.phase;
    const u32 bytes = c.tiles * RECORD;
    if (lane == 0) signal_expect(full, TILES * bytes + c.count * x_bytes(c));
    if (lane < TILES) fetch_once(ring_at + c.phase * SLOT + lane * (CHUNK * RECORD), c.from, bytes, full);
  };
  auto fetch_x = [&](const Cursor& c) {
    const int row = lane - TILES;
    if (c.tiles == 0 || row < 0 || row >= c.count) return;
    fetch(ring_at + c.phase * SLOT + X_AT + row * X_PITCH, c.from, x_bytes(c), signal + 8 * c.phase);
  };

  Cursor head;
  head.item = OWNER ? 0 : own / STRIPS;
  head.strip = OWNER ? own : own % STRIPS;
  head.chunk = 0;
  head.phase = 0;
  int item = head.item;
  int strip = head.strip;
  seek(head);
  if (EARLY) {
    Cursor again = head;
#pragma unroll 1
    for (int i = 0; i < AHEAD; i++) {
      fetch_w(head);
      advance(head);
    }
    wait_inputs();
    start_next();
#pragma unroll 1
    for (int i = 0; i < AHEAD; i++) {
      fetch_x(again);
      advance(again);
    }
  } else {
#pragma unroll 1
    for (int i = 0; i < AHEAD; i++) {
      fetch_w(head);
      fetch_x(head);
      advance(head);
    }
  }

  const int g = lane >> 2;
  const int c = lane & 3;
  // Row of x and first column for load_matrices; rows beyond XROWS repeat others and are not used.
  const u32 x_lane = ring_at + X_AT + (lane % 8 % (XROWS < 8 ? XROWS : 8)) * X_PITCH + (lane >> 3) * 16;
  int phase = 0;
  u32 parity = 0;
  int unit = 0;
  while (OWNER ? strip < STRIPS : item < item_count) {
    const int first = items.first[item];
    const int count = items.first[item + 1] - first;
    f32 acc[TILES][NT][4] = {};
#pragma unroll 1
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
      signal_wait(signal + 8 * phase, parity);
      const u32 at = phase * SLOT;
      const u8* const from = ring + at;
#pragma unroll ${unroll}
      for (int k = 0; k < CHUNK; k++) {
        if (!EVEN && chunk * CHUNK + k >= k_count) break;
        u32 b[NT][2][4];
#pragma unroll
        for (int s = 0; s < NT; s++) {
          if (s > 0 && 8 * s >= count) break;
          load_matrices(b[s][0], x_lane + at + s * (8 * X_PITCH) + k * 128);
          load_matrices(b[s][1], x_lane + at + s * (8 * X_PITCH) + k * 128 + 64);
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
      fetch_w(head);
      fetch_x(head);
      advance(head);
      phase++;
      if (phase == AHEAD) {
        phase = 0;
        parity ^= 1;
      }
    }
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
    barrier<GROUP>(group + 1);
    const bool valid = items.expert[item] < EXPERTS;
    // Sum of all pieces: column `at` of the strip of row `i` of the item.
    auto total = [&](int i, int at) {
      f32 sum = 0.0f;
#pragma unroll
      for (int p = 0; p < PIECES; p++) sum += part[(p * XROWS + i) * PITCH + at];
      return valid ? sum : 0.0f;
    };
    // The work moves from warp to warp, so that none falls behind.
    const int turn = (member + GROUP - unit % PIECES * 32) % GROUP;
    ${finish}
    if (BUFFERS == 1) barrier<GROUP>(group + 1);
    unit++;
  }
}
