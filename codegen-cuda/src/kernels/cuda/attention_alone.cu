// Many works: a warp has works of its own and walks their pieces alone, the keys and values of the next piece under way while it multiplies. It
// folds as the warps of a block do together, so the bits are the same.

// For heads 2c and 2c + 1 of a lane: element 64 v + 8 g + 2 j + h in out[v][j][2 h + e].
struct Sums {
  f32 most[2];
  f32 sum[2];
  f32 out[VC][4][4];
};
__device__ __forceinline__ void clear(Sums& f) {
#pragma unroll
  for (int e = 0; e < 2; e++) {
    f.most[e] = -INF;
    f.sum[e] = 0.0f;
  }
#pragma unroll
  for (int v = 0; v < VC; v++) {
#pragma unroll
    for (int i = 0; i < 16; i++) f.out[v][i / 4][i % 4] = 0.0f;
  }
}
// As merge() of folds: the factors of what was there and of what joins it.
__device__ __forceinline__ void join(f32 (&f_most)[2], f32 (&f_sum)[2], const f32 (&most)[2], const f32 (&sum)[2], f32 (&a)[2], f32 (&b)[2]) {
#pragma unroll
  for (int e = 0; e < 2; e++) {
    const f32 top = fmaxf(f_most[e], most[e]);
    const f32 base = top == -INF ? 0.0f : top;
    a[e] = exp2_fast(f_most[e] - base);
    b[e] = exp2_fast(most[e] - base);
    f_most[e] = top;
    f_sum[e] = fmaf(f_sum[e], a[e], __fmul_rn(sum[e], b[e]));
  }
}
__device__ __forceinline__ void merge(Sums& f, const Sums& g) {
  f32 a[2];
  f32 b[2];
  join(f.most, f.sum, g.most, g.sum, a, b);
#pragma unroll
  for (int v = 0; v < VC; v++) {
#pragma unroll
    for (int i = 0; i < 16; i++) {
      f32& x = f.out[v][i / 4][i % 4];
      x = fmaf(x, a[i & 1], __fmul_rn(g.out[v][i / 4][i % 4], b[i & 1]));
    }
  }
}
// A lane's sums in shared memory: value i of all lanes side by side.
__device__ __forceinline__ void save(f32* at, const Sums& f) {
#pragma unroll
  for (int e = 0; e < 2; e++) {
    at[32 * e] = f.most[e];
    at[32 * (2 + e)] = f.sum[e];
  }
#pragma unroll
  for (int v = 0; v < VC; v++) {
#pragma unroll
    for (int i = 0; i < 16; i++) at[32 * (4 + 16 * v + i)] = f.out[v][i / 4][i % 4];
  }
}
__device__ __forceinline__ void restore(Sums& f, const f32* at) {
#pragma unroll
  for (int e = 0; e < 2; e++) {
    f.most[e] = at[32 * e];
    f.sum[e] = at[32 * (2 + e)];
  }
#pragma unroll
  for (int v = 0; v < VC; v++) {
#pragma unroll
    for (int i = 0; i < 16; i++) f.out[v][i / 4][i % 4] = at[32 * (4 + 16 * v + i)];
  }
}
// Adds what is at `from` to what is at `into` and leaves nothing there.
__device__ __forceinline__ void fold(f32* into, f32* from) {
  Sums f;
  Sums g;
  restore(f, into);
  restore(g, from);
  merge(f, g);
  save(into, f);
  clear(g);
  save(from, g);
}
// A part of a result in memory: sums of each head, then greatest logits and sums of exponentials.
__device__ __forceinline__ void store_part(f32* to, const Sums& f) {
  const int g = (threadIdx.x & 31) >> 2;
  const int c = threadIdx.x & 3;
#pragma unroll
  for (int e = 0; e < 2; e++) {
    const int head = 2 * c + e;
    if (head >= HEADS) continue;
    if (g == 0) *(Pack<f32, 2>*)(to + HEADS * DIM + 2 * head) = {f.most[e], f.sum[e]};
#pragma unroll
    for (int v = 0; v < VC; v++) {
      const int d = 64 * v + 8 * g;
      if (DIM % 64 != 0 && d >= DIM) continue;
#pragma unroll
      for (int j = 0; j < 4; j += 2) {
        *(Pack<f32, 4>*)(to + head * DIM + d + 2 * j) = {f.out[v][j][e], f.out[v][j][2 + e], f.out[v][j + 1][e], f.out[v][j + 1][2 + e]};
      }
    }
  }
}
__device__ __forceinline__ void load_part(Sums& f, const f32* from) {
  const int g = (threadIdx.x & 31) >> 2;
  const int c = threadIdx.x & 3;
#pragma unroll
  for (int e = 0; e < 2; e++) {
    const int head = 2 * c + e < HEADS ? 2 * c + e : 0;
    f.most[e] = from[HEADS * DIM + 2 * head];
    f.sum[e] = from[HEADS * DIM + 2 * head + 1];
#pragma unroll
    for (int v = 0; v < VC; v++) {
      const int d = DIM % 64 == 0 || 64 * v + 8 * g < DIM ? 64 * v + 8 * g : 0;
#pragma unroll
      for (int j = 0; j < 4; j += 2) {
        const Pack<f32, 4> x = *(const Pack<f32, 4>*)(from + head * DIM + d + 2 * j);
        f.out[v][j][e] = x.at[0];
        f.out[v][j][2 + e] = x.at[1];
        f.out[v][j + 1][e] = x.at[2];
        f.out[v][j + 1][2 + e] = x.at[3];
      }
    }
  }
}

__device__ __forceinline__ void hide(i32& x) { asm volatile("" : "+r"(x)); }

// The block's part of all works. `see` gives the pieces of a token, `before` and `shift` say how tokens are cut into parts. Uses OWN floats of
// `states` a warp. Every thread calls.
template <class See>
__device__ __forceinline__ void attend_alone(const T* q, const T* keys, const T* values, const i32* pos, const i32* seq, const i32* pages, ${sinks}T* y,
                                             f32* scratch, u32* counters, i32 n, i64 row_pages, f32* states, const i32* before, int shift, See see) {
  constexpr bool ALIGNED = PAGE % 32 == 0;  // a piece is in one page
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const int g = lane >> 2;
  const int c = lane & 3;
  f32* const chunk = states + warp * OWN + lane;
  f32* const run = chunk + LEVEL * 32;
  f32* const runs = run + LEVEL * 32;
  uint4* const query = (uint4*)(states + warp * OWN + 3 * LEVEL * 32) + lane;
  // Of the work that is under way. What is seldom needed lies in shared memory, as registers are short.
  volatile i32* const work = (volatile i32*)(states + warp * OWN + (3 * LEVEL + 4 * QC) * 32);
  volatile i32& at = work[0];
  volatile i32& token = work[1];
  volatile i32& part = work[2];
  volatile i32& begin = work[3];
  i32 unit = 0;
  i32 sequence = -1;
  i32 newest = -1;
  i32 end = -1;
  auto open = [&]() {
    unit = at % UNITS;
    const i32 j = at / UNITS;
    i32 t = j;
    i32 in_token = 0;
    if (!NARROW) {
      i32 past = n;
      for (t = 0; past - t > 1;) {
        const i32 middle = (t + past) / 2;
        if (before[middle] <= j) t = middle;
        else past = middle;
      }
      in_token = j - before[t];
    }
    token = t;
    part = in_token;
    sequence = seq[t];
    newest = pos[t];
    i32 low;
    i32 high;
    see(sequence, newest, low, high);
    const u32 span = (u32)((low >> shift) + in_token);
    const i32 from = (i32)(span << shift);
    end = shift == 31 ? high : (i32)((span + 1) << shift) - 1;
    begin = from < low ? low : from;
    if (end > high) end = high;
  };

  // Loads. Memory without a key may hold anything: keys there are masked, values must be 0.
  uint4 k[HELD ? QC : 1][4];
  uint4 v[HELD ? VC : 1][8];
  i64 base = -1;     // offset of the piece's first key, -1: no page
  i64 k_at[4] = {};  // else of keys 8 i + g
  i64 v_at[8] = {};  // and of those whose values this lane has
  auto v_key = [&](int i) -> int { return 16 * (i >> 2) + 2 * c + (i & 1) + 8 * (i >> 1 & 1); };
  auto page_of = [&](i32 key) -> i32 {
    const i32 page = key / PAGE;
    return page < row_pages ? pages[sequence * row_pages + page] : -1;
  };
  auto place = [&](i32 key, i32 page) -> i64 {
    return page < 0 ? -1 : (((i64)page * KV_HEADS + unit / SETS) * PAGE + key % PAGE) * DIM;
  };
  auto k_there = [&](int i) -> bool { return ALIGNED ? base >= 0 : k_at[i] >= 0; };
  auto load_key = [&](int i, int d) -> uint4 {
    if (!k_there(i) || (DIM % 32 != 0 && d >= DIM)) return make_uint4(0, 0, 0, 0);
    return load16(keys + (ALIGNED ? base + (8 * i + g) * DIM : k_at[i]) + d);
  };
  auto load_value = [&](i32 piece, int i, int d) -> uint4 {
    const bool there = (ALIGNED ? base >= 0 : v_at[i] >= 0) && piece * 32 + v_key(i) <= newest;
    if (!there || (DIM % 64 != 0 && d >= DIM)) return make_uint4(0, 0, 0, 0);
    return load16(values + (ALIGNED ? base + v_key(i) * DIM : v_at[i]) + d);
  };
  // `page` is that of the piece if it is in one.
  auto load_keys = [&](i32 piece, i32 page) {
    if (ALIGNED) {
      base = place(piece * 32, page);
    } else {
#pragma unroll
      for (int i = 0; i < 4; i++) k_at[i] = place(piece * 32 + 8 * i + g, page_of(piece * 32 + 8 * i + g));
#pragma unroll
      for (int i = 0; i < 8; i++) v_at[i] = place(piece * 32 + v_key(i), page_of(piece * 32 + v_key(i)));
    }
    if (!HELD) return;
#pragma unroll
    for (int d = 0; d < QC; d++) {
#pragma unroll
      for (int i = 0; i < 4; i++) k[HELD ? d : 0][i] = load_key(i, 32 * d + 8 * c);
    }
  };
  auto load_values = [&](i32 piece) {
    if (!HELD) return;
#pragma unroll
    for (int j = 0; j < VC; j++) {
#pragma unroll
      for (int i = 0; i < 8; i++) v[HELD ? j : 0][i] = load_value(piece, i, 64 * j + 8 * g);
    }
  };

  auto advance = [&]() {
    __syncwarp();
    if (lane == 0) at = at + (i32)gridDim.x * WARPS;
    __syncwarp();
  };
  auto works = [&]() -> i32 { return (NARROW ? n : before[n]) * UNITS; };  // not held: registers are short
  at = (i32)blockIdx.x * WARPS + warp;
  if (at < works()) open();
  if (EARLY) {
    wait_for_predecessors();
  }

#pragma unroll 1
  for (; at < works(); advance()) {
    if (at >= (i32)gridDim.x * WARPS) open();
#pragma unroll 1
    for (int i = 0; i < 3 * LEVEL; i++) chunk[32 * i] = i % LEVEL < 2 ? -INF : 0.0f;
    if (begin <= end) {
      load_keys(begin, ALIGNED ? page_of(begin * 32) : -1);
      load_values(begin);
    }
    {
      const int head = unit % SETS * HEADS + g;
      const bool there = g < HEADS && head < GROUP;
      const T* const row = q + (((i64)token * KV_HEADS + unit / SETS) * GROUP + head) * DIM;
#pragma unroll 1
      for (int d = 0; d < QC; d++) {
        query[32 * d] = there && (DIM % 32 == 0 || 32 * d + 8 * c < DIM) ? load16(row + 32 * d + 8 * c) : make_uint4(0, 0, 0, 0);
      }
    }
    i32 page = ALIGNED && begin < end ? page_of(begin * 32 + 32) : -1;
#pragma unroll 1
    for (i32 piece = begin; piece <= end; piece++) {
      const bool more = piece < end;
      auto load_next_keys = [&]() {
        if (!more) return;
        load_keys(piece + 1, page);
        if (ALIGNED && piece + 2 <= end) page = page_of(piece * 32 + 64);
      };
      f32 z[2][4] = {};
#pragma unroll
      for (int d = 0; d < QC; d++) {
        const uint4 x = query[32 * d];
        uint4 held[4];
#pragma unroll
        for (int i = 0; i < 4; i++) held[i] = HELD ? k[HELD ? d : 0][i] : load_key(i, 32 * d + 8 * c);
#pragma unroll
        for (int u = 0; u < 2; u++) mma_k32<T>(z[u], held[2 * u], held[2 * u + 1], x);
      }
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const i32 key = piece * 32 + 8 * i + g;
        const bool seen = k_there(i) && key <= newest && (WINDOW == 0 || key > newest - WINDOW);
#pragma unroll
        for (int e = 0; e < 2; e++) {
          f32& logit = z[i >> 1][2 * (i & 1) + e];
          logit = seen ? __fmul_rn(logit, ${scale}) : -INF;
        }
      }
      if (HELD) load_next_keys();
      f32 most[2];
#pragma unroll
      for (int e = 0; e < 2; e++) {
        most[e] = -INF;
#pragma unroll
        for (int i = 0; i < 4; i++) most[e] = fmaxf(most[e], z[i >> 1][2 * (i & 1) + e]);
#pragma unroll
        for (int m = 4; m < 32; m <<= 1) most[e] = fmaxf(most[e], __shfl_xor_sync(0xffffffffu, most[e], m));
        const f32 top = most[e] == -INF ? 0.0f : most[e];
#pragma unroll
        for (int i = 0; i < 4; i++) {
          f32& p = z[i >> 1][2 * (i & 1) + e];
          p = exp2_fast(p - top);
        }
      }
      u32 p[2][2];
#pragma unroll
      for (int u = 0; u < 2; u++) {
#pragma unroll
        for (int h = 0; h < 2; h++) p[u][h] = transpose8(pack2<T>(z[u][2 * h], z[u][2 * h + 1]));
      }
      f32 ones_sum[4] = {};
      const u32 ones = pack2<T>(1.0f, 1.0f);
#pragma unroll
      for (int u = 0; u < 2; u++) mma(T(), ones_sum, ones, ones, ones, ones, p[u][0], p[u][1]);
      const f32 sum[2] = {ones_sum[0], ones_sum[1]};
      f32 a[2];
      f32 b[2];
      f32 chunk_most[2] = {chunk[0], chunk[32]};
      f32 chunk_sum[2] = {chunk[64], chunk[96]};
      join(chunk_most, chunk_sum, most, sum, a, b);
#pragma unroll
      for (int e = 0; e < 2; e++) {
        chunk[32 * e] = chunk_most[e];
        chunk[32 * (2 + e)] = chunk_sum[e];
      }
#pragma unroll
      for (int j = 0; j < VC; j++) {
        uint4 x[8];
#pragma unroll
        for (int i = 0; i < 8; i++) x[i] = HELD ? v[HELD ? j : 0][i] : load_value(piece, i, 64 * j + 8 * g);
        auto word = [&](int i, int t) -> u32 { return t == 0 ? x[i].x : t == 1 ? x[i].y : t == 2 ? x[i].z : x[i].w; };
#pragma unroll
        for (int t = 0; t < 4; t++) {
          f32 out[4] = {};
#pragma unroll
          for (int u = 0; u < 2; u++) {
            const u32 w0 = word(4 * u, t);
            const u32 w1 = word(4 * u + 1, t);
            const u32 w2 = word(4 * u + 2, t);
            const u32 w3 = word(4 * u + 3, t);
            mma(T(), out, __byte_perm(w0, w1, 0x5410u), __byte_perm(w0, w1, 0x7632u), __byte_perm(w2, w3, 0x5410u),
                __byte_perm(w2, w3, 0x7632u), p[u][0], p[u][1]);
          }
#pragma unroll
          for (int i = 0; i < 4; i++) {
            f32& x = chunk[32 * (4 + 16 * j + 4 * t + i)];
            x = fmaf(x, a[i & 1], __fmul_rn(out[i], b[i & 1]));
          }
        }
      }
      if (!HELD) load_next_keys();
      if (more) load_values(piece + 1);
      if (piece % 8 != 7 || !more) continue;
      fold(run, chunk);
      if (piece % 128 == 127) fold(runs, run);
    }
    fold(run, chunk);
    fold(runs, run);
    Sums sums;
    restore(sums, runs);
    bool whole = true;  // this warp has the result
    i32 low;
    i32 high;
    see(sequence, newest, low, high);
    i32 parts = end < begin || shift == 31 ? 1 : (high >> shift) - (low >> shift) + 1;
    if (parts > 1) {
      auto part_at = [&](i32 j) -> f32* { return scratch + (i64)((before[token] + j) * UNITS + unit) * PART; };
      auto fold_parts = [&](i32 count, auto where) {  // through shared memory, as many at a time as fit
        constexpr i32 ROOM = OWN / PART;
        f32* const room = states + warp * OWN;
        clear(sums);
#pragma unroll 1
        for (i32 j0 = 0; j0 < count; j0 += ROOM) {
          const i32 some = count - j0 < ROOM ? count - j0 : ROOM;
          __syncwarp();
          for (i32 i = lane; i < some * (PART / 4); i += 32) {
            copy16_async(room + 4 * i, part_at(where(j0 + i / (PART / 4))) + i % (PART / 4) * 4, true);
          }
          copy_commit();
          copy_wait<0>();
          __syncwarp();
#pragma unroll 1
          for (i32 j = 0; j < some; j++) {
            Sums x;
            load_part(x, room + j * PART);
            merge(sums, x);
          }
        }
        __syncwarp();
      };
      auto counter = [&](i32 j) -> u32* { return counters + (before[token] + j) * UNITS + at % UNITS; };
      store_part(part_at(part), sums);
      // Chunks of the first run before the first part, and runs.
      auto skipped = [&]() -> i32 { return (low >> 3) & 15; };
      auto runs_seen = [&]() -> i32 { return shift == 7 ? parts : (high >> 7) - (low >> 7) + 1; };
      if (shift == 3) {
        const i32 from = part < 16 - skipped() ? 0 : (part + skipped() & ~15) - skipped();
        i32 to = (part + skipped() & ~15) - skipped() + 16;
        to = to < parts ? to : parts;
        whole = last_warp_of(counter(from), (u32)(to - from));
        if (whole) {
          fold_parts(to - from, [&](i32 j) { return from + j; });
          hide(newest);
          see(sequence, newest, low, high);
          if (runs_seen() > 1) store_part(part_at(from), sums);
        }
      }
      hide(newest);
      see(sequence, newest, low, high);  // rather than held
      if (whole && runs_seen() > 1) {
        whole = last_warp_of(counter(0) + LIMIT, (u32)runs_seen());
        // The fold of a run of chunks lies where its first chunk was.
        if (whole) fold_parts(runs_seen(), [&](i32 j) { return shift == 7 || j == 0 ? j : 16 * j - skipped(); });
      }
    }
    if (!whole) continue;
#pragma unroll
    for (int e = 0; e < 2; e++) {
      const int head = unit % SETS * HEADS + 2 * c + e;
      if (2 * c + e >= HEADS || head >= GROUP) continue;
      const f32 most = sums.most[e];
      f32 sum = sums.sum[e];
      f32 factor = 1.0f;
      ${sink_alone}
      factor = sum > 0.0f || sum != sum ? factor / sum : 0.0f;
      T* const to = y + (((i64)token * KV_HEADS + unit / SETS) * GROUP + head) * DIM + 8 * g;
#pragma unroll
      for (int j = 0; j < VC; j++) {
        if (DIM % 64 != 0 && 64 * j + 8 * g >= DIM) continue;
        u32 words[4];
#pragma unroll
        for (int t = 0; t < 4; t++) words[t] = pack2<T>(sums.out[j][t][e] * factor, sums.out[j][t][2 + e] * factor);
        *(uint4*)(to + 64 * j) = make_uint4(words[0], words[1], words[2], words[3]);
      }
    }
  }
}

