// ${ir}
// Many tokens. Tokens and the query heads of one key head are the rows of a tile: row = token * HEADS + head. A warp holds ${warp_rows} rows and
// walks pieces of 32 keys, with keys and values loaded straight into fragments. Keys are cut at fixed positions: 4 pieces are a chunk, 4 chunks a
// quad, 4 quads a run; each is folded into the next, runs into the result, in order, and pieces of a narrow window at once, as steps that decode do.
// None of this depends on other rows, and a piece without a visible key changes nothing, so a row's bits are its own.
typedef ${type} T;
constexpr int DIM = ${dim};          // elements of a head
constexpr int KV_HEADS = ${kv_heads};
constexpr int GROUP = ${group};        // query heads of a key head
constexpr int PAGE = ${page};         // keys of a page
constexpr int WINDOW = ${window};       // 0: all keys
constexpr bool NARROW = ${narrow};  // pieces of a window are folded as they come
constexpr int HEADS = ${heads};        // query heads in a tile
constexpr int TOKENS = ${tokens};       // tokens in a tile
constexpr int WARPS = ${warps};
constexpr int RT = ${row_tiles};           // tiles of 16 rows a warp holds
constexpr int QC = (DIM + 31) / 32;  // steps of 32 elements of q and k
constexpr int PARTS = DIM > 128 ? 2 : 1;  // blocks that share the elements of v: registers hold the sums of 128
constexpr int VC = (DIM / PARTS + 63) / 64;  // steps of 64 elements of v in a block
constexpr int OUT = RT * VC * 32;    // sums a lane holds
constexpr int STATE = OUT + RT * 4;

// One running softmax: greatest logit and sum of exponentials of rows g and g + 8 of each tile, and the weighted sums of values.
struct State {
  f32 most[RT][2];
  f32 sum[RT][2];
  f32 out[RT][VC][8][4];
};

__device__ __forceinline__ void clear(State& s) {
#pragma unroll
  for (int r = 0; r < RT; r++) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      s.most[r][h] = -INF;
      s.sum[r][h] = 0.0f;
    }
#pragma unroll
    for (int v = 0; v < VC; v++) {
#pragma unroll
      for (int j = 0; j < 8; j++) {
#pragma unroll
        for (int e = 0; e < 4; e++) s.out[r][v][j][e] = 0.0f;
      }
    }
  }
}
// A lane's state in shared memory: value i of all lanes side by side, sums of values first.
__device__ __forceinline__ f32& most_of(f32* at, int r, int h) { return at[(OUT + 4 * r + h) * 32]; }
__device__ __forceinline__ f32& sum_of(f32* at, int r, int h) { return at[(OUT + 4 * r + 2 + h) * 32]; }
__device__ __forceinline__ f32& out_of(f32* at, int r, int v, int j, int e) {
  return at[(((r * VC + v) * 8 + j) * 4 + e) * 32];
}
__device__ __forceinline__ void save(f32* at, const State& s) {
#pragma unroll
  for (int r = 0; r < RT; r++) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      most_of(at, r, h) = s.most[r][h];
      sum_of(at, r, h) = s.sum[r][h];
    }
#pragma unroll
    for (int v = 0; v < VC; v++) {
#pragma unroll
      for (int j = 0; j < 8; j++) {
#pragma unroll
        for (int e = 0; e < 4; e++) out_of(at, r, v, j, e) = s.out[r][v][j][e];
      }
    }
  }
}
__device__ __forceinline__ void restore(State& s, f32* at) {
#pragma unroll
  for (int r = 0; r < RT; r++) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      s.most[r][h] = most_of(at, r, h);
      s.sum[r][h] = sum_of(at, r, h);
    }
#pragma unroll
    for (int v = 0; v < VC; v++) {
#pragma unroll
      for (int j = 0; j < 8; j++) {
#pragma unroll
        for (int e = 0; e < 4; e++) s.out[r][v][j][e] = out_of(at, r, v, j, e);
      }
    }
  }
}
// Adds s to the state at `at`. Roundings are spelled out here and in fold(), as in the kernel for few tokens.
__device__ __forceinline__ void merge(f32* at, const State& s) {
#pragma unroll
  for (int r = 0; r < RT; r++) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const f32 before = most_of(at, r, h);
      const f32 most = fmaxf(before, s.most[r][h]);
      const f32 base = most == -INF ? 0.0f : most;
      const f32 a = exp2_fast(before - base);
      const f32 b = exp2_fast(s.most[r][h] - base);
      most_of(at, r, h) = most;
      sum_of(at, r, h) = fmaf(sum_of(at, r, h), a, __fmul_rn(s.sum[r][h], b));
#pragma unroll
      for (int v = 0; v < VC; v++) {
#pragma unroll
        for (int j = 0; j < 8; j++) {
#pragma unroll
          for (int e = 2 * h; e < 2 * h + 2; e++) {
            out_of(at, r, v, j, e) = fmaf(out_of(at, r, v, j, e), a, __fmul_rn(s.out[r][v][j][e], b));
          }
        }
      }
    }
  }
}

// The rows of a warp. Queries stay in registers unless heads are large.
constexpr bool HELD = DIM <= 128;
struct Rows {
  const T* q[RT][2];  // start of rows g and g + 8, null: no row
  uint4 held[RT][HELD ? QC : 1][2];
  i32 token[RT][2];   // token in the step, -1: no row
  i32 pos[RT][2];
};

// Element (row, d .. d + 7) of keys or values; zeros beyond the head or where there is no key.
__device__ __forceinline__ uint4 load_head(const T* row, int d) {
  if ((DIM % 64 == 0 || d < DIM) && row != nullptr) return *(const uint4*)(row + d);
  return make_uint4(0, 0, 0, 0);
}

// Folds keys first .. first + 31 of a sequence into s, for the rows of tokens t0 .. t1 - 1, whose positions are at most `high`.
__device__ __forceinline__ void fold(State& s, const Rows& rows, const T* keys, const T* values, const i32* pages, i64 row_pages,
                                     i32 first, i32 high, i32 t0, i32 t1, int part) {
  const int lane = threadIdx.x & 31;
  const int g = lane >> 2;
  const int c = lane & 3;
  // Offset of a key's row, or -1.
  auto place = [&](i32 key) -> i64 {
    const i32 page = key / PAGE;
    const i32 at = page < row_pages ? pages[page] : -1;
    return at < 0 ? -1 : ((i64)at * KV_HEADS * PAGE + key % PAGE) * DIM;
  };
  i64 base = 0;
  if (PAGE % 32 == 0) base = place(first);
  auto offset = [&](int i) -> i64 {  // of key first + i
    if (PAGE % 32 == 0) return base < 0 ? -1 : base + i * DIM;
    return place(first + i);
  };
  // Values of keys 2c, 2c + 1, 2c + 8, 2c + 9 of a run of 16: zero where no row looks, as memory there may hold anything.
  auto load_values = [&](uint4 (&v)[4], int u, int w) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int key = 16 * u + 2 * c + (i & 1) + 8 * (i >> 1);
      const i64 at = first + key <= high ? offset(key) : -1;
      v[i] = load_head(at < 0 ? nullptr : values + at, 64 * (VC * part + w) + 8 * g);
    }
  };
  constexpr bool EARLY = VC == 1;  // registers allow to load values before they are needed
  uint4 early[2][4];
  if (EARLY) {
    load_values(early[0], 0, 0);
    load_values(early[1], 1, 0);
  }
  f32 z[RT][4][4] = {};
  const T* key_row[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const i64 at = offset(8 * i + g);
    key_row[i] = at < 0 ? nullptr : keys + at;
  }
#pragma unroll(HELD ? QC : 2)
  for (int d = 0; d < QC; d++) {
    uint4 k[4];
#pragma unroll
    for (int i = 0; i < 4; i++) k[i] = load_head(key_row[i], 32 * d + 8 * c);
#pragma unroll
    for (int r = 0; r < RT; r++) {
      const uint4 lo = HELD ? rows.held[r][HELD ? d : 0][0] : load_head(rows.q[r][0], 32 * d + 8 * c);
      const uint4 hi = HELD ? rows.held[r][HELD ? d : 0][1] : load_head(rows.q[r][1], 32 * d + 8 * c);
#pragma unroll
      for (int i = 0; i < 4; i++) mma_k32<T>(z[r][i], lo, hi, k[i]);
    }
  }
  f32 keep[RT][2];  // factors of what was there and of this piece
  f32 gain[RT][2];
#pragma unroll
  for (int r = 0; r < RT; r++) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const bool live = rows.token[r][h] >= t0 && rows.token[r][h] < t1;
      const i32 pos = rows.pos[r][h];
      f32 most = -INF;
#pragma unroll
      for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
          const i32 key = first + 8 * i + 2 * c + e;
          const bool there = PAGE % 32 == 0 ? base >= 0 : place(key) >= 0;
          const bool seen = live && there && key <= pos && (WINDOW == 0 || key > pos - WINDOW);
          f32& logit = z[r][i][2 * h + e];
          logit = seen ? __fmul_rn(logit, ${scale}) : -INF;
          most = fmaxf(most, logit);
        }
      }
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
      const f32 own = most == -INF ? 0.0f : most;
#pragma unroll
      for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
          f32& p = z[r][i][2 * h + e];
          p = exp2_fast(p - own);
        }
      }
      const f32 both = fmaxf(s.most[r][h], most);
      const f32 base_most = both == -INF ? 0.0f : both;
      keep[r][h] = exp2_fast(s.most[r][h] - base_most);
      gain[r][h] = exp2_fast(most - base_most);
      s.most[r][h] = both;
    }
  }
  u32 p[2][RT][4];
#pragma unroll
  for (int r = 0; r < RT; r++) {
    // Exponentials are summed as rounded, by multiplying them with ones.
    f32 sum[4] = {};
    const u32 ones = pack2<T>(1.0f, 1.0f);
#pragma unroll
    for (int u = 0; u < 2; u++) {
      p[u][r][0] = pack2<T>(z[r][2 * u][0], z[r][2 * u][1]);
      p[u][r][1] = pack2<T>(z[r][2 * u][2], z[r][2 * u][3]);
      p[u][r][2] = pack2<T>(z[r][2 * u + 1][0], z[r][2 * u + 1][1]);
      p[u][r][3] = pack2<T>(z[r][2 * u + 1][2], z[r][2 * u + 1][3]);
      mma(T(), sum, p[u][r][0], p[u][r][1], p[u][r][2], p[u][r][3], ones, ones);
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
      s.sum[r][h] = fmaf(s.sum[r][h], keep[r][h], __fmul_rn(sum[2 * h], gain[r][h]));
    }
  }
  // Column n of tile j of the values is element 8 n + j of a run of 64, so that a lane's loads are 8 adjacent elements.
#pragma unroll
  for (int w = 0; w < VC; w++) {
    uint4 v[2][4];
#pragma unroll
    for (int u = 0; u < 2; u++) {
      if (EARLY) {
#pragma unroll
        for (int i = 0; i < 4; i++) v[u][i] = early[u][i];
      } else {
        load_values(v[u], u, w);
      }
    }
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const u32 half = j & 1 ? 0x7632u : 0x5410u;
      u32 b[2][2];
#pragma unroll
      for (int u = 0; u < 2; u++) {
        const u32 words[4][4] = {
          {v[u][0].x, v[u][0].y, v[u][0].z, v[u][0].w},
          {v[u][1].x, v[u][1].y, v[u][1].z, v[u][1].w},
          {v[u][2].x, v[u][2].y, v[u][2].z, v[u][2].w},
          {v[u][3].x, v[u][3].y, v[u][3].z, v[u][3].w},
        };
        b[u][0] = __byte_perm(words[0][j / 2], words[1][j / 2], half);
        b[u][1] = __byte_perm(words[2][j / 2], words[3][j / 2], half);
      }
#pragma unroll
      for (int r = 0; r < RT; r++) {
        f32 out[4] = {};
#pragma unroll
        for (int u = 0; u < 2; u++) mma(T(), out, p[u][r][0], p[u][r][1], p[u][r][2], p[u][r][3], b[u][0], b[u][1]);
#pragma unroll
        for (int e = 0; e < 4; e++) {
          s.out[r][w][j][e] = fmaf(s.out[r][w][j][e], keep[r][e >> 1], __fmul_rn(out[e], gain[r][e >> 1]));
        }
      }
    }
  }
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, 1)
${entry}(const T* __restrict__ q, const T* __restrict__ keys, const T* __restrict__ values, const i32* __restrict__ pos,
         const i32* __restrict__ seq, const i32* __restrict__ pages, ${sinks}T* __restrict__ y, i32 n, i32 sequences, i64 row_pages) {
  extern __shared__ uint4 shared[];  // f32 [warp][quad, run, all][STATE][lane]
  constexpr int CHUNKS = (GROUP + HEADS - 1) / HEADS;
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const int g = lane >> 2;
  const int c = lane & 3;
  u32 rest = blockIdx.x;
  const int part = rest % PARTS;
  rest /= PARTS;
  const int kv_head = rest % KV_HEADS;
  rest /= KV_HEADS;
  const int head0 = kv_head * GROUP + (int)(rest % CHUNKS) * HEADS;
  const i32 tile0 = (i32)(rest / CHUNKS) * TOKENS;
  const int row0 = warp * RT * 16;
  keys += (i64)kv_head * PAGE * DIM;
  values += (i64)kv_head * PAGE * DIM;

  Rows rows;
  i64 out_row[RT][2];
  int head[RT][2];
#pragma unroll
  for (int r = 0; r < RT; r++) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int row = row0 + 16 * r + 8 * h + g;
      const i32 token = tile0 + row / HEADS;
      head[r][h] = head0 + row % HEADS;
      const bool there = row < TOKENS * HEADS && token < n && head[r][h] < (kv_head + 1) * GROUP;
      out_row[r][h] = ((i64)token * KV_HEADS * GROUP + head[r][h]) * DIM;
      rows.q[r][h] = there ? q + out_row[r][h] : nullptr;
      rows.token[r][h] = there ? token : -1;
      rows.pos[r][h] = there ? pos[token] : 0;
      if (HELD) {
#pragma unroll
        for (int d = 0; d < QC; d++) rows.held[r][HELD ? d : 0][h] = load_head(rows.q[r][h], 32 * d + 8 * c);
      }
    }
  }
  // Tokens of this warp.
  const i32 from = tile0 + row0 / HEADS;
  i32 to = tile0 + (row0 + RT * 16 - 1) / HEADS + 1;
  to = to < tile0 + TOKENS ? to : tile0 + TOKENS;
  to = to < n ? to : n;

  f32* const quad = (f32*)shared + (i64)warp * 3 * STATE * 32 + lane;
  f32* const run = quad + STATE * 32;
  f32* const own = run + STATE * 32;
  State s;
  clear(s);
  save(quad, s);
  save(run, s);
  save(own, s);
  auto close = [&](f32* from, f32* into) {
    restore(s, from);
    merge(into, s);
    clear(s);
    save(from, s);
  };
  // Tokens of one sequence at a time.
  for (i32 t0 = from; t0 < to;) {
    const i32 sequence = seq[t0];
    i32 t1 = t0;
    i32 low = 0x7fffffff;
    i32 high = -1;
    for (; t1 < to && seq[t1] == sequence; t1++) {
      const i32 p = pos[t1];
      low = p < low ? p : low;
      high = p > high ? p : high;
    }
    if (sequence >= 0 && sequence < sequences) {
      const i32 oldest = WINDOW == 0 || low < WINDOW ? 0 : low - WINDOW + 1;
      const i64 mapped = row_pages * PAGE - 1;
      const i32 newest = high < mapped ? high : (i32)mapped;
      const i32* row_of_pages = pages + sequence * row_pages;
      for (i32 piece = oldest / 32; piece * 32 <= newest; piece++) {
        fold(s, rows, keys, values, row_of_pages, row_pages, piece * 32, high, t0, t1, part);
        if (NARROW || piece % 4 != 3) continue;
        merge(quad, s);
        clear(s);
        if (piece % 16 == 15) close(quad, run);
        if (piece % 64 == 63) close(run, own);
      }
      merge(quad, s);
      clear(s);
      close(quad, run);
      close(run, own);
    }
    t0 = t1;
  }
#pragma unroll
  for (int r = 0; r < RT; r++) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const f32 most = most_of(own, r, h);
      f32 sum = sum_of(own, r, h);
      if (rows.token[r][h] < 0) continue;
      f32 factor = 1.0f;
      ${sink}
      factor = sum > 0.0f || sum != sum ? factor / sum : 0.0f;
#pragma unroll
      for (int v = 0; v < VC; v++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
          const int d = 64 * (VC * part + v) + 8 * (2 * c + e);
          if (d >= DIM) continue;
          Pack<T, 8> out;
#pragma unroll
          for (int j = 0; j < 8; j++) out.at[j] = from_f32<T>(fmaf(out_of(own, r, v, j, 2 * h + e), factor, 0.0f));
          *(Pack<T, 8>*)(y + out_row[r][h] + d) = out;
        }
      }
    }
  }
}
