// ${ir}
// Steps that decode: tokens with keys of their own. Keys are cut at fixed positions: a piece is 32 keys, a chunk 4 pieces, a quad 4 chunks, a run 4
// quads. Pieces are folded into chunks, chunks into quads, quads into runs, runs into the result, each in order, whatever warps and blocks they
// came from; the few pieces of a narrow window are folded as they come. So a row's bits are its own, and those of the kernel for many tokens.
// A block does a chunk, a quad or a run of a token's keys at a time, whichever keeps the grid busy; its warps take pieces of a chunk, else chunks in
// turn, with the next piece's keys and values under way. Blocks that make one result together leave their parts in memory for the last of them.
// Multiplies have keys (or elements of values) as rows and query heads as columns.
typedef ${type} T;
constexpr int DIM = ${dim};        // elements of a head
constexpr int KV_HEADS = ${kv_heads};
constexpr int GROUP = ${group};      // query heads of a key head
constexpr int PAGE = ${page};       // keys of a page
constexpr int WINDOW = ${window};     // 0: all keys
constexpr bool EARLY = ${early};  // positions and pages are inputs of the step, so they, and keys of earlier steps, may be read at once
constexpr int HEADS = GROUP < 8 ? GROUP : 8;
constexpr int SETS = (GROUP + HEADS - 1) / HEADS;  // sets of query heads of a key head
constexpr int UNITS = KV_HEADS * SETS;
constexpr bool NARROW = ${narrow};  // a block holds all pieces of a window, a warp each
constexpr int WARPS = ${warps};
constexpr int THREADS = WARPS * 32;
constexpr int LIMIT = ${limit};       // parts that fit the scratch memory
constexpr bool ALIGNED = PAGE % 32 == 0;  // a piece is in one page
constexpr bool HELD = ${held};  // a piece's keys and values fit the registers; those of the next one are loaded ahead
constexpr int QC = (DIM + 31) / 32;   // steps of 32 elements of q and k
constexpr int VC = (DIM + 63) / 64;   // steps of 64 elements of v
constexpr int ROW = DIM + 4;          // a head's sums in shared memory
constexpr int SLOTS = NARROW ? WARPS : 16;  // pieces or chunks that are folded at a time
constexpr int FOURS = HEADS * DIM / 4;
constexpr int TURNS = (FOURS + THREADS - 1) / THREADS;  // fours of sums that a thread folds
constexpr int PART = (HEADS * (DIM + 2) + 3) / 4 * 4;   // floats of a part in memory
constexpr int FULL = 31;  // shift of works that are a whole token

// What a block does for one result or part of it.
struct Work {
  i32 token;
  i32 unit;        // key head and set of query heads
  i32 sequence;
  i32 pos;
  i32 part;        // which of the token's parts
  i32 begin, end;  // pieces of this round; none if end < begin
  i32 high;        // last piece of the token
};

extern "C" __global__ void __launch_bounds__(THREADS, ${resident})
${entry}(const T* q, const T* keys, const T* values, const i32* pos, const i32* seq, const i32* pages, ${sinks}T* y, f32* scratch,
         u32* counters, i32 n, i32 sequences, i64 row_pages) {
  extern __shared__ uint4 shared[];
  f32* const slots = (f32*)shared;                          // [SLOTS][HEADS][ROW]
  f32* const stats = slots + SLOTS * HEADS * ROW;           // [SLOTS][HEADS][2]
  Fold* const all = (Fold*)(stats + SLOTS * HEADS * 2);     // [TURNS][THREADS], runs so far of a token that is one work
  i32* const before = (i32*)(all + (NARROW ? 0 : TURNS * THREADS));  // [n + 1], parts of the tokens before
  __shared__ i32 warp_part[3][WARPS];
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const int g = lane >> 2;
  const int c = lane & 3;
  let_successors_start();
  if (!EARLY) wait_for_predecessors();

  // The pieces a token sees.
  auto see = [&](i32 s, i32 p, i32& low, i32& high) {
    low = 0;
    high = -1;
    if (s < 0 || s >= sequences || p < 0) return;
    const i64 mapped = row_pages * PAGE - 1;
    const i32 oldest = WINDOW == 0 || p < WINDOW ? 0 : p - WINDOW + 1;
    const i32 newest = p < mapped ? p : (i32)mapped;
    if (newest < oldest) return;
    low = oldest / 32;
    high = newest / 32;
  };
  auto parts_of = [&](i32 t, int shift) -> i32 {
    i32 low;
    i32 high;
    see(seq[t], pos[t], low, high);
    return high < low ? 1 : (high >> shift) - (low >> shift) + 1;
  };
  // Pieces of a part as a power of two: the smallest whose parts the grid does in about a round, as far as there is memory for parts.
  int shift = FULL;
  i32 total = n;
  if (!NARROW) {
    i32 sums[3] = {};
#pragma unroll 1
    for (i32 t = n > 1 ? (i32)threadIdx.x : 0; t < n; t += THREADS) {
#pragma unroll
      for (int i = 0; i < 3; i++) sums[i] += parts_of(t, 2 + 2 * i);
    }
    if (n > 1) {
#pragma unroll
      for (int i = 0; i < 3; i++) {
#pragma unroll
        for (int m = 16; m > 0; m >>= 1) sums[i] += __shfl_xor_sync(0xffffffffu, sums[i], m);
        if (lane == 0) warp_part[i][warp] = sums[i];
      }
      __syncthreads();
#pragma unroll
      for (int i = 0; i < 3; i++) {
        sums[i] = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) sums[i] += warp_part[i][w];
      }
    }
#pragma unroll
    for (int i = 2; i >= 0; i--) {
      const i64 works = (i64)sums[i] * UNITS;
      if (works > LIMIT || (i < 2 && works * 2 > (i64)gridDim.x * 3)) continue;
      shift = 2 + 2 * i;
      total = sums[i];
    }
    if (n > 1) {
      i32 through_all = 0;
#pragma unroll 1
      for (i32 t0 = 0; t0 < n; t0 += THREADS) {
        const i32 t = t0 + (i32)threadIdx.x;
        const i32 through = sum_through(t < n ? (shift == FULL ? 1 : parts_of(t, shift)) : 0, warp_part[0], through_all);
        if (t < n) before[t + 1] = through;
      }
      if (threadIdx.x == 0) before[0] = 0;
      __syncthreads();
    }
  }
  const bool single = NARROW || shift == 2;  // a warp has at most one piece of a round
  i32 at = (i32)blockIdx.x;
  if (at >= total * UNITS) return;

  auto parts_before = [&](i32 t) -> i32 { return NARROW ? t : n > 1 ? before[t] : 0; };
  auto open = [&](i32 at) -> Work {
    Work w;
    w.unit = at % UNITS;
    const i32 j = at / UNITS;
    w.token = NARROW ? j : 0;
    w.part = 0;
    if (!NARROW) {
      for (i32 past = n; past - w.token > 1;) {
        const i32 middle = (w.token + past) / 2;
        if (before[middle] <= j) w.token = middle;
        else past = middle;
      }
      w.part = j - parts_before(w.token);
    }
    w.sequence = seq[w.token];
    w.pos = pos[w.token];
    i32 low;
    i32 high;
    see(w.sequence, w.pos, low, high);
    w.high = high;
    const i32 span = NARROW ? 0 : (low >> shift) + w.part;
    w.begin = NARROW || shift == FULL || span << shift < low ? low : span << shift;
    w.end = NARROW ? high : shift == FULL ? w.begin | 63 : w.begin | ((1 << shift) - 1);
    if (w.end > high) w.end = high;
    return w;
  };
  auto low_of = [&](const Work& w) -> i32 { return WINDOW == 0 || w.pos < WINDOW ? 0 : (w.pos - WINDOW + 1) / 32; };
  // A token that is one work takes a round for each run.
  auto closes = [&](const Work& w) -> bool { return NARROW || shift != FULL || w.end >= w.high; };
  auto follow = [&](const Work& w) -> Work {  // the next round; its token is -1 if there is none
    Work next = w;
    if (!closes(w)) {
      next.begin = w.end + 1;
      next.end = w.high < (next.begin | 63) ? w.high : next.begin | 63;
      return next;
    }
    at += (i32)gridDim.x;
    next.token = -1;
    return at < total * UNITS ? open(at) : next;
  };
  // Pieces of this warp in a round, -1: none (left).
  auto first_piece = [&](const Work& w) -> i32 {
    i32 piece = single ? (NARROW ? w.begin : w.begin & ~3) + warp : (w.begin & ~15) + 4 * warp;
    if (!single && piece + 3 < w.begin) piece += 16;
    if (!single && piece < w.begin) piece = w.begin;
    return piece < w.begin || piece > w.end ? -1 : piece;
  };
  auto next_piece = [&](const Work& w, i32 piece) -> i32 {
    const i32 next = (piece & 3) == 3 ? piece + 13 : piece + 1;
    return single || next > w.end ? -1 : next;
  };
  // Pages of the warp's pieces in a round, one a lane: that of piece p is in lane p / 16 % 4 * 4 + p % 4.
  auto page_of = [&](i32 sequence, i32 key) -> i32 {
    const i32 page = key / PAGE;
    return page < row_pages ? pages[sequence * row_pages + page] : -1;
  };
  auto look_up = [&](const Work& w) -> i32 {
    if (!ALIGNED) return -1;
    const i32 piece = single ? first_piece(w) : (w.begin & ~63) + 16 * (lane >> 2 & 3) + 4 * warp + (lane & 3);
    return piece < w.begin || piece > w.end ? -1 : page_of(w.sequence, piece * 32);
  };

  // Loads. Memory without a key may hold anything: those keys are masked, and neither they nor their values are read. Where a page holds a whole
  // piece, loads of rows that the token does not see go to the nearest row that it sees instead; a piece without a page is left out.
  struct From {  // whose keys are loaded
    i32 piece;
    i32 unit;
    i32 sequence;
    i32 pos;
    i64 base;  // offset of the piece's first key, -1: no page
  };
  uint4 k_held[HELD ? QC : 1][4];
  uint4 v_held[HELD ? VC : 1][8];
  uint4 query[HELD ? QC : 1];
  auto place = [&](i32 unit, i32 key, i32 page) -> i64 {
    return page < 0 ? -1 : ((i64)(page * KV_HEADS + unit / SETS) * PAGE + key % PAGE) * DIM;
  };
  auto from = [&](i32 piece, i32 unit, i32 sequence, i32 pos, i32 ids) -> From {
    const i32 page = __shfl_sync(0xffffffffu, ids, (piece >> 4 & 3) * 4 + (piece & 3));
    return {piece, unit, sequence, pos, ALIGNED ? place(unit, piece * 32, page) : 0};
  };
  auto seen = [&](const From& f, int i) -> bool {
    const i32 key = f.piece * 32 + i;
    const bool there = ALIGNED || page_of(f.sequence, key) >= 0;
    return there && key <= f.pos && (WINDOW == 0 || key > f.pos - WINDOW);
  };
  auto row = [&](const From& f, int i) -> i64 {  // offset of key i of the piece or -1
    const i32 key = f.piece * 32 + i;
    if (!ALIGNED) return seen(f, i) ? place(f.unit, key, page_of(f.sequence, key)) : -1;
    i32 nearest = key;
    if (WINDOW > 0 && nearest <= f.pos - WINDOW) nearest = f.pos - WINDOW + 1;
    if (nearest > f.pos) nearest = f.pos;
    return f.base + (nearest - f.piece * 32) * DIM;
  };
  auto load_part = [&](const T* from, i64 offset, int d) -> uint4 {
    return (ALIGNED || offset >= 0) && (DIM % 64 == 0 || d < DIM) ? load16(from + offset + d) : make_uint4(0, 0, 0, 0);
  };
  auto load_key = [&](const From& f, int i, int d) -> uint4 { return load_part(keys, row(f, 8 * i + g), 32 * d + 8 * c); };
  auto load_value = [&](const From& f, int i, int v) -> uint4 { return load_part(values, row(f, key_of_row(i, c)), 64 * v + 8 * g); };
  auto load_keys = [&](const From& f) {
    if (!HELD || f.base < 0) return;
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
      for (int d = 0; d < QC; d++) k_held[HELD ? d : 0][i] = load_key(f, i, d);
    }
  };
  auto load_values = [&](const From& f) {
    if (!HELD || f.base < 0) return;
#pragma unroll
    for (int i = 0; i < 8; i++) {
#pragma unroll
      for (int v = 0; v < VC; v++) v_held[HELD ? v : 0][i] = load_value(f, i, v);
    }
  };
  auto query_at = [&](const Work& w, int d) -> uint4 {
    const int head = w.unit % SETS * HEADS + g;
    const bool there = g < HEADS && head < GROUP && (DIM % 32 == 0 || 32 * d + 8 * c < DIM);
    const T* const from = q + (((i64)w.token * KV_HEADS + w.unit / SETS) * GROUP + head) * DIM;
    return there ? load16(from + 32 * d + 8 * c) : make_uint4(0, 0, 0, 0);
  };
  auto load_query = [&](const Work& w) {
#pragma unroll
    for (int d = 0; HELD && d < QC; d++) query[HELD ? d : 0] = query_at(w, d);
  };

  Work w = open(at);
  i32 ids = look_up(w);
  i32 piece = first_piece(w);
  From now = from(piece, w.unit, w.sequence, w.pos, ids);
  bool old = false;  // keys of positions that no token of this step has were written by earlier steps
  if (EARLY) {
    i32 fresh = w.pos;
#pragma unroll 1
    for (i32 t = lane; n > 1 && t < n; t += 32) {
      if (seq[t] == w.sequence && pos[t] < fresh) fresh = pos[t];
    }
    if (n > 1) fresh = (i32)(__reduce_min_sync(0xffffffffu, (u32)fresh ^ 0x80000000u) ^ 0x80000000u);
    old = piece >= 0 && piece * 32 + 32 <= fresh;
    if (!old && piece >= 0 && now.base >= 0 && seen(now, lane)) {
      const i64 offset = row(now, lane);
#pragma unroll
      for (int d = 0; d < DIM; d += 64) {
        prefetch_l2(keys + offset + d);
        prefetch_l2(values + offset + d);
      }
    }
  }
  // Twice in the text: in a loop the compiler would wait for the first loads before the second turn, and so before the wait.
  if (old) {
    load_keys(now);
    load_values(now);
  }
  if (EARLY) wait_for_predecessors();
  load_query(w);
  if (piece >= 0 && !old) {
    load_keys(now);
    load_values(now);
  }

#pragma unroll 1
  for (;;) {
    const Work next = follow(w);
    const bool more = next.token >= 0;
    const i32 next_ids = more ? look_up(next) : -1;
    ${sink_early}
    // Sums of a piece or chunk. For heads 2c and 2c + 1: element 64 v + 8 g + 2 j + h in out[v][j][2 h + e].
    f32 most[2] = {-INF, -INF};
    f32 sum[2] = {0.0f, 0.0f};
    f32 out[VC][4][4] = {};
#pragma unroll 1
    for (bool walks = true; walks;) {
      const bool active = piece >= 0 && now.base >= 0;
      const i32 in_round = piece >= 0 ? next_piece(w, piece) : -1;
      walks = in_round >= 0;
      f32 z[2][4] = {};
      if (active) {
#pragma unroll(HELD ? QC : 1)
        for (int d = 0; d < QC; d++) {
          const uint4 x = HELD ? query[HELD ? d : 0] : query_at(w, d);
          uint4 k[4];
#pragma unroll
          for (int i = 0; i < 4; i++) k[i] = HELD ? k_held[HELD ? d : 0][i] : load_key(now, i, d);
#pragma unroll
          for (int u = 0; u < 2; u++) mma_k32<T>(z[u], k[2 * u], k[2 * u + 1], x);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const bool there = seen(now, 8 * i + g);
#pragma unroll
          for (int e = 0; e < 2; e++) {
            f32& logit = z[i >> 1][2 * (i & 1) + e];
            logit = there ? __fmul_rn(logit, ${scale}) : -INF;
          }
        }
      }
      // What comes next is loaded meanwhile.
      const From done = now;
      const i32 after = walks ? in_round : more ? first_piece(next) : -1;
      if (after >= 0) {
        now = from(after, walks ? w.unit : next.unit, walks ? w.sequence : next.sequence, walks ? w.pos : next.pos, walks ? ids : next_ids);
        load_keys(now);
      }
      if (!walks && more) load_query(next);
      if (active) {
        u32 p[2][2];
        f32 keep[2];
        f32 gain[2];
        fold_logits<T>(z, most, sum, p, keep, gain);
#pragma unroll
        for (int v = 0; v < VC; v++) {
          uint4 x[8];
#pragma unroll
          for (int i = 0; i < 8; i++) x[i] = HELD ? v_held[HELD ? v : 0][i] : load_value(done, i, v);
          fold_values<T>(out[v], x, p, keep, gain);
        }
      }
      if (after >= 0) load_values(now);
      if (piece >= 0 && (!walks || (piece & 3) == 3)) {
        const int slot = single ? warp : piece >> 2 & 15;
#pragma unroll
        for (int e = 0; e < 2; e++) {
          if (2 * c + e >= HEADS) continue;
          const int head = slot * HEADS + 2 * c + e;
          if (g == 0) *(Pack<f32, 2>*)(stats + 2 * head) = {most[e], sum[e]};
#pragma unroll
          for (int v = 0; v < VC; v++) {
            const int d = 64 * v + 8 * g;
            if (DIM % 64 != 0 && d >= DIM) continue;
            *(Pack<f32, 4>*)(slots + head * ROW + d) = {out[v][0][e], out[v][0][2 + e], out[v][1][e], out[v][1][2 + e]};
            *(Pack<f32, 4>*)(slots + head * ROW + d + 4) = {out[v][2][e], out[v][2][2 + e], out[v][3][e], out[v][3][2 + e]};
          }
          most[e] = -INF;
          sum[e] = 0.0f;
        }
#pragma unroll
        for (int v = 0; v < VC; v++) {
#pragma unroll
          for (int i = 0; i < 16; i++) out[v][i / 4][i % 4] = 0.0f;
        }
      }
      piece = after;
    }
    __syncthreads();

    Fold result[TURNS];
    // The thread's four sums of a slot. Nothing where there is none: folding that in changes nothing, and all are loaded before the first is needed.
    auto slot_at = [&](int i, int slot, bool there) -> Fold {
      const int four = (int)threadIdx.x + THREADS * i;
      const int row = (there ? slot : 0) * HEADS + four / (DIM / 4);
      const Pack<f32, 2> stat = *(const Pack<f32, 2>*)(stats + 2 * row);
      const Pack<f32, 4> x = *(const Pack<f32, 4>*)(slots + row * ROW + four % (DIM / 4) * 4);
      return there ? Fold{stat.at[0], stat.at[1], x} : nothing();
    };
    // Folds nodes first .. last, of which `node` is in slot node - base, into what there is. `flat`: one after the other; else fours into the next
    // level, and with `runs` those into `run`, which is folded in after 16 nodes and after node `end`.
    auto fold_slots = [&](int i, i32 base, i32 first, i32 last, bool flat, bool runs, Fold& run, i32 end) {
#pragma unroll 1
      for (i32 node = first & ~3; node <= last; node += 4) {
        Fold held[4];
#pragma unroll
        for (int s = 0; s < 4; s++) held[s] = slot_at(i, node + s - base, node + s >= first && node + s <= last);
        Fold f = flat ? result[i] : nothing();
#pragma unroll
        for (int s = 0; s < 4; s++) merge(f, held[s]);
        if (flat) {
          result[i] = f;
        } else if (!runs) {
          merge(result[i], f);
        } else {
          merge(run, f);
          if ((node & 15) != 12 && node + 4 <= end) continue;
          merge(result[i], run);
          run = nothing();
        }
      }
    };
    auto each_four = [&](auto of) {
#pragma unroll
      for (int i = 0; i < TURNS; i++) {
        const int four = (int)threadIdx.x + THREADS * i;
        if (FOURS % THREADS == 0 || four < FOURS) of(i, four);
      }
    };
    Fold runs[TURNS];
    each_four([&](int i, int) {
      result[i] = nothing();
      if (NARROW) {
        Fold held[WARPS];
#pragma unroll
        for (int s = 0; s < WARPS; s++) held[s] = slot_at(i, s, w.begin + s <= w.end);
#pragma unroll
        for (int s = 0; s < WARPS; s++) merge(result[i], held[s]);
        return;
      }
      const i32 level = single ? 0 : 2;
      const i32 base = single ? w.begin & ~3 : w.begin >> 2 & ~15;
      fold_slots(i, base, w.begin >> level, w.end >> level, single, false, runs[i], 0);
    });
    bool whole = closes(w);  // this block has the result
    if (!NARROW && shift == FULL) {
      each_four([&](int i, int) {
        Fold f = w.begin <= low_of(w) ? nothing() : all[THREADS * i + threadIdx.x];
        merge(f, result[i]);
        all[THREADS * i + threadIdx.x] = f;
        result[i] = f;
      });
    } else if (!NARROW && w.end >= w.begin && w.high >> shift > low_of(w) >> shift) {
      const i32 first = low_of(w) >> shift;
      const i32 last = w.high >> shift;
      f32* const own = scratch + ((i64)parts_before(w.token) * UNITS + w.unit) * PART;
      each_four([&](int i, int four) {
        f32* const to = own + (i64)w.part * UNITS * PART;
        *(Pack<f32, 4>*)(to + 4 * four) = result[i].x;
        if (four % (DIM / 4) == 0) *(Pack<f32, 2>*)(to + HEADS * DIM + 2 * (four / (DIM / 4))) = {result[i].most, result[i].sum};
        result[i] = nothing();
        runs[i] = nothing();
      });
      whole = last_of(counters + parts_before(w.token) * UNITS + w.unit, (u32)(last - first + 1));
#pragma unroll 1
      for (i32 base = first & ~15; whole && base <= last; base += 16) {
        const i32 low = base < first ? first : base;
        const i32 high = base + 15 < last ? base + 15 : last;
        for (i32 i = (i32)threadIdx.x; i < (high - low + 1) * FOURS; i += THREADS) {
          const i32 node = low + i / FOURS;
          const int four = i % FOURS;
          copy16_async(slots + ((node - base) * HEADS + four / (DIM / 4)) * ROW + four % (DIM / 4) * 4, own + (i64)(node - first) * UNITS * PART + 4 * four, true);
        }
        copy_commit();
        for (i32 i = (i32)threadIdx.x; i < (high - low + 1) * HEADS; i += THREADS) {
          const i32 node = low + i / HEADS;
          const f32* const stat = own + (i64)(node - first) * UNITS * PART + HEADS * DIM + 2 * (i % HEADS);
          *(Pack<f32, 2>*)(stats + 2 * ((node - base) * HEADS + i % HEADS)) = {__ldcg(stat), __ldcg(stat + 1)};
        }
        copy_wait<0>();
        __syncthreads();
        each_four([&](int i, int) { fold_slots(i, base, low, high, shift == 6, shift == 2, runs[i], last); });
        __syncthreads();
      }
    }
    if (whole) {
#pragma unroll
      for (int i = 0; i < TURNS; i++) {
        const int four = (int)threadIdx.x + THREADS * i;
        if (FOURS % THREADS != 0 && four >= FOURS) continue;
        const int head = w.unit % SETS * HEADS + four / (DIM / 4);
        if (SETS > 1 && head >= GROUP) continue;
        const f32 most = result[i].most;
        f32 sum = result[i].sum;
        f32 factor = 1.0f;
        ${sink}
        factor = sum > 0.0f || sum != sum ? factor / sum : 0.0f;
        T* const to = y + (((i64)w.token * KV_HEADS + w.unit / SETS) * GROUP + head) * DIM + four % (DIM / 4) * 4;
        *(Pack<u32, 2>*)to = scaled<T>(result[i].x, factor);
      }
    }
    if (!more) break;
    __syncthreads();  // slots are free
    w = next;
    ids = next_ids;
  }
}
