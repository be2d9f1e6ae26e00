extern "C" __global__ void __launch_bounds__(256, DIM == 64 && PAGE % 32 == 0 && GROUP % 8 == 0 ? 2 : 1)
${entry}(const T* q, const T* keys, const T* values, const i32* pos, const i32* seq, const i32* pages, ${sinks}T* y, f32* scratch,
         u32* counters, i32 n, i32 sequences, i64 row_pages) {
  extern __shared__ uint4 shared[];
  f32* const states = (f32*)shared;             // [2][WARPS][HEADS][ROW]; or parts to fold
  i32* const before = (i32*)(states + STATES);  // [n + 1], parts of the tokens before
  __shared__ f32 stats[2][WARPS][8][2];
  __shared__ i32 warp_part[WARPS];
  __shared__ Work rounds[3];  // what a round is for, by its number; registers are short
  __shared__ Fold all[PAIRS][256];
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
  // Pieces of a part as a power of two: a chunk, or a run or all where there are too many.
  // Runs where their results keep all warps busy.
  int shift = NARROW ? 31 : HELD && fills(n * UNITS) ? 7 : 3;
  i32 total = n;
  while (!NARROW) {
    total = 0;
    for (i32 t0 = 0; t0 < n; t0 += 256) {
      const i32 t = t0 + (i32)threadIdx.x;
      i32 through = 0;
      if (t < n) {
        i32 low;
        i32 high;
        see(seq[t], pos[t], low, high);
        through = high < low ? 1 : (high >> shift) - (low >> shift) + 1;
      }
#pragma unroll
      for (int m = 1; m < 32; m <<= 1) {
        const i32 other = __shfl_up_sync(0xffffffffu, through, m);
        if (lane >= m) through += other;
      }
      __syncthreads();
      if (lane == 31) warp_part[warp] = through;
      __syncthreads();
      through += total;
#pragma unroll
      for (int w = 0; w < WARPS; w++) {
        if (w < warp) through += warp_part[w];
        total += warp_part[w];
      }
      if (t < n) before[t + 1] = through;
    }
    if (threadIdx.x == 0) before[0] = 0;
    __syncthreads();
    if (shift == 31 || (i64)total * UNITS <= LIMIT) break;
    shift = shift == 3 ? 7 : 31;
  }
  const i32 works = total * UNITS;
  if (HELD && fills(works)) {
    attend_alone(q, keys, values, pos, seq, pages, ${sinks_passed}y, scratch, counters, n, row_pages, states, before, shift, see);
    return;
  }
  i32 at = (i32)blockIdx.x;
  if (at >= works) return;

  i32 sequence;  // of the work that is loaded
  auto open = [&](i32 at) -> Work {
    Work w;
    w.unit = at % UNITS;
    const i32 j = at / UNITS;
    w.token = j;
    w.part = 0;
    if (!NARROW) {
      i32 past = n;
      for (w.token = 0; past - w.token > 1;) {
        const i32 middle = (w.token + past) / 2;
        if (before[middle] <= j) w.token = middle;
        else past = middle;
      }
      w.part = j - before[w.token];
    }
    sequence = seq[w.token];
    w.pos = pos[w.token];
    i32 low;
    i32 high;
    see(sequence, w.pos, low, high);
    const u32 span = (u32)((low >> shift) + w.part);
    w.begin = (i32)(span << shift);
    w.end = shift == 31 ? high : (i32)((span + 1) << shift) - 1;
    if (w.begin < low) w.begin = low;
    if (w.end > high) w.end = high;
    w.first = NARROW ? w.begin : w.begin & ~7;
    return w;
  };
  Work w = open(at);

  // Loads. Memory without a key may hold anything: keys there are masked, values must be 0.
  constexpr bool ALIGNED = PAGE % 32 == 0;  // a piece is in one page
  uint4 k_held[HELD ? QC : 1][4];
  uint4 v_held[HELD ? VC : 1][8];
  i64 base = -1;  // offset of the piece's first key, -1: no page
  i64 k_at[4] = {};  // else of keys 8 i + g
  i64 v_at[8] = {};  // and of those whose values this lane has
  auto v_key = [&](int i) -> int { return 16 * (i >> 2) + 2 * c + (i & 1) + 8 * (i >> 1 & 1); };
  auto k_there = [&](int i) -> bool { return ALIGNED ? base >= 0 : k_at[i] >= 0; };
  auto load_key = [&](int i, int d) -> uint4 {
    if (!k_there(i) || (DIM % 32 != 0 && d >= DIM)) return make_uint4(0, 0, 0, 0);
    return load16(keys + (ALIGNED ? base + (8 * i + g) * DIM : k_at[i]) + d);
  };
  auto load_value = [&](const Work& w, int i, int d) -> uint4 {
    const bool there = (ALIGNED ? base >= 0 : v_at[i] >= 0) && (w.first + warp) * 32 + v_key(i) <= w.pos;
    if (!there || (DIM % 64 != 0 && d >= DIM)) return make_uint4(0, 0, 0, 0);
    return load16(values + (ALIGNED ? base + v_key(i) * DIM : v_at[i]) + d);
  };
  auto load_keys = [&](const Work& w) {
    const i32 piece = w.first + warp;
    if (piece < w.begin || piece > w.end) return;
    const i32* const table = pages + sequence * row_pages;
    auto place = [&](i32 key) -> i64 {
      const i32 page = key / PAGE;
      const i32 id = page < row_pages ? table[page] : -1;
      return id < 0 ? -1 : (((i64)id * KV_HEADS + w.unit / SETS) * PAGE + key % PAGE) * DIM;
    };
    if (ALIGNED) {
      base = place(piece * 32);
    } else {
#pragma unroll
      for (int i = 0; i < 4; i++) k_at[i] = place(piece * 32 + 8 * i + g);
#pragma unroll
      for (int i = 0; i < 8; i++) v_at[i] = place(piece * 32 + v_key(i));
    }
    if (HELD) {
#pragma unroll
      for (int d = 0; d < QC; d++) {
#pragma unroll
        for (int i = 0; i < 4; i++) k_held[HELD ? d : 0][i] = load_key(i, 32 * d + 8 * c);
      }
    }
  };
  auto load_values = [&](const Work& w) {
    const i32 piece = w.first + warp;
    if (!HELD || piece < w.begin || piece > w.end) return;
#pragma unroll
    for (int v = 0; v < VC; v++) {
#pragma unroll
      for (int i = 0; i < 8; i++) v_held[HELD ? v : 0][i] = load_value(w, i, 64 * v + 8 * g);
    }
  };
  auto query_row = [&](const Work& w) -> const T* {
    const int head = (w.unit % SETS) * HEADS + g;
    if (g >= HEADS || head >= GROUP) return nullptr;
    return q + (((i64)w.token * KV_HEADS + w.unit / SETS) * GROUP + head) * DIM;
  };

  // Keys of positions that no token of this step has were written by earlier steps.
  bool loaded = false;
  if (EARLY) {
    i32 fresh = w.pos;
    if (n > 1) {
#pragma unroll 1
      for (i32 t = (i32)threadIdx.x; t < n; t += 256) {
        const i32 p = pos[t];
        if (seq[t] == sequence && p < fresh) fresh = p;
      }
#pragma unroll
      for (int m = 16; m > 0; m >>= 1) {
        const i32 other = __shfl_xor_sync(0xffffffffu, fresh, m);
        fresh = other < fresh ? other : fresh;
      }
      __syncthreads();
      if (lane == 0) warp_part[warp] = fresh;
      __syncthreads();
#pragma unroll
      for (int i = 0; i < WARPS; i++) fresh = warp_part[i] < fresh ? warp_part[i] : fresh;
    }
    loaded = HELD && (w.first + warp + 1) * 32 <= fresh;
    if (loaded) {
      load_keys(w);
      load_values(w);
    }
    wait_for_predecessors();
  }
  if (!loaded) load_keys(w);
  Fold run[PAIRS];
  auto clear_all = [&]() {
#pragma unroll
    for (int i = 0; i < PAIRS; i++) all[i][threadIdx.x] = {-INF, 0.0f, 0.0f, 0.0f};
  };
  int side = 0;
  clear(run);
  clear_all();
  if (threadIdx.x == 0) rounds[0] = w;
  for (int number = 0;; number = number == 2 ? 0 : number + 1, side ^= 1) {
    f32* const state = states + side * STATE;
    const i32 piece = w.first + warp;
    if (!loaded) load_values(w);
    loaded = false;
    if (piece >= w.begin && piece <= w.end) {
      const i32 first = piece * 32;
      uint4 q_held[QC];
      const T* const row = query_row(w);
#pragma unroll
      for (int d = 0; d < QC; d++) {
        const bool there = row != nullptr && (DIM % 32 == 0 || 32 * d + 8 * c < DIM);
        q_held[d] = there ? load16(row + 32 * d + 8 * c) : make_uint4(0, 0, 0, 0);
      }
      f32 z[2][4] = {};
#pragma unroll
      for (int d = 0; d < QC; d++) {
        uint4 k[4];
#pragma unroll
        for (int i = 0; i < 4; i++) k[i] = HELD ? k_held[HELD ? d : 0][i] : load_key(i, 32 * d + 8 * c);
#pragma unroll
        for (int u = 0; u < 2; u++) mma_k32<T>(z[u], k[2 * u], k[2 * u + 1], q_held[d]);
      }
      f32 most[2];
#pragma unroll
      for (int e = 0; e < 2; e++) {
        most[e] = -INF;
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const i32 key = first + 8 * i + g;
          const bool seen = k_there(i) && key <= w.pos && (WINDOW == 0 || key > w.pos - WINDOW);
          f32& logit = z[i >> 1][2 * (i & 1) + e];
          logit = seen ? __fmul_rn(logit, ${scale}) : -INF;
          most[e] = fmaxf(most[e], logit);
        }
#pragma unroll
        for (int m = 4; m < 32; m <<= 1) most[e] = fmaxf(most[e], __shfl_xor_sync(0xffffffffu, most[e], m));
        const f32 base = most[e] == -INF ? 0.0f : most[e];
#pragma unroll
        for (int i = 0; i < 4; i++) {
          f32& p = z[i >> 1][2 * (i & 1) + e];
          p = exp2_fast(p - base);
        }
      }
      u32 p[2][2];
#pragma unroll
      for (int u = 0; u < 2; u++) {
#pragma unroll
        for (int h = 0; h < 2; h++) p[u][h] = transpose8(pack2<T>(z[u][2 * h], z[u][2 * h + 1]));
      }
      // Exponentials are summed as rounded, by multiplying them with ones.
      f32 sum[4] = {};
      const u32 ones = pack2<T>(1.0f, 1.0f);
#pragma unroll
      for (int u = 0; u < 2; u++) mma(T(), sum, ones, ones, ones, ones, p[u][0], p[u][1]);
#pragma unroll(HELD ? VC : 1)
      for (int v = 0; v < VC; v++) {
        uint4 x[8];
#pragma unroll
        for (int i = 0; i < 8; i++) x[i] = HELD ? v_held[HELD ? v : 0][i] : load_value(w, i, 64 * v + 8 * g);
        // Row r of tile j of the values is element 8 r + 2 j (rows of the upper half: 8 (r - 8) + 2 j + 1) of a run of 64.
        f32 out[4][4] = {};
#pragma unroll
        for (int u = 0; u < 2; u++) {
          const u32 words[4][4] = {
            {x[4 * u].x, x[4 * u].y, x[4 * u].z, x[4 * u].w},
            {x[4 * u + 1].x, x[4 * u + 1].y, x[4 * u + 1].z, x[4 * u + 1].w},
            {x[4 * u + 2].x, x[4 * u + 2].y, x[4 * u + 2].z, x[4 * u + 2].w},
            {x[4 * u + 3].x, x[4 * u + 3].y, x[4 * u + 3].z, x[4 * u + 3].w},
          };
#pragma unroll
          for (int j = 0; j < 4; j++) {
            mma(T(), out[j], __byte_perm(words[0][j], words[1][j], 0x5410u), __byte_perm(words[0][j], words[1][j], 0x7632u),
                __byte_perm(words[2][j], words[3][j], 0x5410u), __byte_perm(words[2][j], words[3][j], 0x7632u), p[u][0], p[u][1]);
          }
        }
        const int d = 64 * v + 8 * g;
#pragma unroll
        for (int e = 0; e < 2; e++) {
          if (2 * c + e >= HEADS || (DIM % 64 != 0 && d >= DIM)) continue;
          f32* const to = state + (warp * HEADS + 2 * c + e) * ROW + d;
          *(Pack<f32, 4>*)to = {out[0][e], out[0][2 + e], out[1][e], out[1][2 + e]};
          *(Pack<f32, 4>*)(to + 4) = {out[2][e], out[2][2 + e], out[3][e], out[3][2 + e]};
        }
      }
      if (g == 0) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
          stats[side][warp][2 * c + e][0] = most[e];
          stats[side][warp][2 * c + e][1] = sum[e];
        }
      }
    }
    // What comes next is loaded while this round is merged.
    Work next = w;
    bool more = true;
    const bool closes = NARROW || w.first + WARPS > w.end;
    if (!closes) {
      next.first = w.first + WARPS;
    } else {
      at += (i32)gridDim.x;
      more = at < (NARROW ? n : before[n]) * UNITS;  // not held: registers are short
      if (more) next = open(at);
    }
    if (more) load_keys(next);
    if (threadIdx.x == 0) rounds[number == 2 ? 0 : number + 1] = next;
    __syncthreads();
    const Work& done = rounds[number];
    ${sink_early}
    Fold chunk[PAIRS];
    clear(chunk);
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
      const int pair = (int)threadIdx.x + 256 * i;
      if (HEADS * DIM / 2 % 256 != 0 && pair >= HEADS * DIM / 2) continue;
      const int head = pair / (DIM / 2);
      const int d = pair % (DIM / 2) * 2;
#pragma unroll
      for (int p = 0; p < WARPS; p++) {
        const i32 piece = done.first + p;
        if (NARROW && p > 0 && piece % 8 == 0) {
          merge(run[i], chunk[i]);
          chunk[i] = {-INF, 0.0f, 0.0f, 0.0f};
          if (piece % 128 == 0) {
            merge(all[i][threadIdx.x], run[i]);
            run[i] = {-INF, 0.0f, 0.0f, 0.0f};
          }
        }
        if (piece < done.begin || piece > done.end) continue;
        const Pack<f32, 2> sums = *(const Pack<f32, 2>*)(state + (p * HEADS + head) * ROW + d);
        merge(chunk[i], {stats[side][p][head][0], stats[side][p][head][1], sums.at[0], sums.at[1]});
      }
      merge(run[i], chunk[i]);
      // The end of a run within a work of several, or of a window.
      if (shift == 31 && (closes || (done.first + WARPS) % 128 == 0)) {
        merge(all[i][threadIdx.x], run[i]);
        run[i] = {-INF, 0.0f, 0.0f, 0.0f};
      }
    }
    if (closes) {
      bool whole = true;  // this block has the result
      if (shift == 31) {
#pragma unroll
        for (int i = 0; i < PAIRS; i++) run[i] = all[i][threadIdx.x];
      } else if (done.end >= done.begin) {
        i32 low;
        i32 high;
        see(0, done.pos, low, high);
        const i32 parts = (high >> shift) - (low >> shift) + 1;
        auto part_at = [&](i32 part) -> f32* {
          return scratch + (i64)((before[done.token] + part) * UNITS + done.unit) * PART;
        };
        auto store = [&](i32 part) {
          f32* const to = part_at(part);
#pragma unroll
          for (int i = 0; i < PAIRS; i++) {
            const int pair = (int)threadIdx.x + 256 * i;
            if (HEADS * DIM / 2 % 256 != 0 && pair >= HEADS * DIM / 2) continue;
            *(Pack<f32, 2>*)(to + 2 * pair) = {run[i].x, run[i].y};
            if (pair % (DIM / 2) == 0) *(Pack<f32, 2>*)(to + HEADS * DIM + 2 * (pair / (DIM / 2))) = {run[i].most, run[i].sum};
          }
        };
        auto fold = [&](i32 count, auto where) {  // through shared memory, 16 parts at a time
          clear(run);
          for (i32 j0 = 0; j0 < count; j0 += 16) {
            const i32 some = count - j0 < 16 ? count - j0 : 16;
            for (i32 i = (i32)threadIdx.x; i < some * (PART / 4); i += 256) {
              copy16_async(states + 4 * i, part_at(where(j0 + i / (PART / 4))) + i % (PART / 4) * 4, true);
            }
            copy_commit();
            copy_wait<0>();
            __syncthreads();
#pragma unroll
            for (int i = 0; i < PAIRS; i++) {
              const int pair = (int)threadIdx.x + 256 * i;
              if (HEADS * DIM / 2 % 256 != 0 && pair >= HEADS * DIM / 2) continue;
#pragma unroll 4
              for (i32 j = 0; j < some; j++) {
                const f32* const from = states + j * PART;
                const Pack<f32, 2> sums = *(const Pack<f32, 2>*)(from + 2 * pair);
                const Pack<f32, 2> stat = *(const Pack<f32, 2>*)(from + HEADS * DIM + 2 * (pair / (DIM / 2)));
                merge(run[i], {stat.at[0], stat.at[1], sums.at[0], sums.at[1]});
              }
            }
            __syncthreads();
          }
        };
        u32* const own = counters + before[done.token] * UNITS + done.unit;
        if (parts > 1) store(done.part);
        i32 runs = parts;
        const i32 skipped = (low >> 3) & 15;  // chunks of the first run before the first part
        if (shift == 3 && parts > 1) {
          const i32 from = done.part < 16 - skipped ? 0 : (done.part + skipped & ~15) - skipped;
          i32 to = (done.part + skipped & ~15) - skipped + 16;
          to = to < parts ? to : parts;
          runs = (high >> 7) - (low >> 7) + 1;
          whole = last_of(own + from * UNITS, (u32)(to - from));
          if (whole) {
            fold(to - from, [&](i32 j) { return from + j; });
            if (runs > 1) store(from);
          }
        }
        if (whole && runs > 1) {
          whole = last_of(own + LIMIT, (u32)runs);
          // The fold of a run of chunks lies where its first chunk was.
          if (whole) fold(runs, [&](i32 j) { return shift == 7 || j == 0 ? j : 16 * j - skipped; });
        }
      }
      if (whole) {
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
          const int pair = (int)threadIdx.x + 256 * i;
          if (HEADS * DIM / 2 % 256 != 0 && pair >= HEADS * DIM / 2) continue;
          const int head = (done.unit % SETS) * HEADS + pair / (DIM / 2);
          if (SETS > 1 && head >= GROUP) continue;
          const f32 most = run[i].most;
          f32 sum = run[i].sum;
          f32 factor = 1.0f;
          ${sink}
          factor = sum > 0.0f || sum != sum ? factor / sum : 0.0f;
          T* const to = y + (((i64)done.token * KV_HEADS + done.unit / SETS) * GROUP + head) * DIM + pair % (DIM / 2) * 2;
          *(u32*)to = pack2<T>(run[i].x * factor, run[i].y * factor);
        }
      }
      clear(run);
      clear_all();
    }
    if (!more) break;
    w = rounds[number == 2 ? 0 : number + 1];
  }
}
