// ${ir}
// Rows that keep all tokens need one pass: the greatest logit, or the greatest z + Gumbel noise with z = logit / temperature. Some blocks share
// such a row out, and the last to finish compares their winners.
// Rows with filters are drawn by one cluster of blocks, which hold the logits in shared memory. Which tokens are kept depends on their order
// only, so each filter is a threshold on the order key of z. A threshold is found by histograms: first over the distance to the
// greatest z, in steps of 1/8, then over the four bytes of the key within one step. Probabilities are summed in units of 2^-40 of the
// greatest, as integers, so no order of summation matters.
constexpr int WARPS = ${warps};
constexpr int THREADS = 32 * WARPS;
constexpr int BLOCKS = ${blocks};  // of a cluster
constexpr int TILE = ${tile};  // logits for each of the given maxima; 0: none are given
constexpr bool ALIGNED = ${aligned};  // rows are a whole number of 16 bytes

struct Row {
  const f32* logits;
  const f32* slice;  // those of this block, from `first` on
  i32 first;
  i32 last;
  f32 temperature;
  f32 most;   // greatest z
  f32 min_p;  // least probability relative to the greatest
  u32 cut;    // least key that is kept
};

__device__ __forceinline__ f32 scaled(const Row& row, i32 i) { return scale(row.slice[i - row.first], row.temperature); }

// Probability relative to the greatest, or less than 0 for a token that is not kept.
__device__ __forceinline__ f32 weight(const Row& row, f32 z) {
  if (order_key(z) < row.cut) return -1.0f;
  const f32 w = expf(z - row.most);
  return w >= row.min_p ? w : -1.0f;
}

// Histogram of 256 bins with sums of up to 2^41 times ${n_text} tokens, in parts that cannot overflow 32 bits.
constexpr int PART = ${part};
constexpr int PARTS = (41 + PART - 1) / PART;
struct Histogram { u32 part[PARTS][256]; };
__device__ __forceinline__ void add(Histogram& h, u32 bin, u64 weight) {
#pragma unroll
  for (int p = 0; p < PARTS; p++) {
    const u32 part = (u32)(weight >> (PART * p)) & ((1u << PART) - 1);
    if (part != 0) atomicAdd(&h.part[p][bin], part);
  }
}
__device__ __forceinline__ u64 total(const Histogram& h, u32 bin) {
  u64 sum = 0;
#pragma unroll
  for (int p = 0; p < PARTS; p++) sum += (u64)h.part[p][bin] << (PART * p);
  return sum;
}

// Bin of the distance to the greatest z; greater z, greater bin.
__device__ __forceinline__ u32 coarse(const Row& row, f32 z) { return 255u - (u32)fminf((row.most - z) * 8.0f, 255.0f); }

// The greatest key such that the tokens with at least that key have `wanted` units. count: a token is a unit; else units of probability, of
// which `share` of all are wanted. Called by a whole cluster.
__device__ __forceinline__ u32 threshold(const Row& row, bool count, u64 wanted, f32 share) {
  __shared__ Histogram own[2];  // alternate, so that one can be cleared while others read the other
  __shared__ Histogram h;
  __shared__ Bin<u64> bin;
  u32 step = 0;
  u32 found = 0;
  for (int i = threadIdx.x; i < PARTS * 256; i += THREADS) (&own[0].part[0][0])[i] = 0;
  __syncthreads();
  for (int level = 0; level < 5; level++) {
    const int shift = 32 - 8 * level;
    Histogram& mine = own[level & 1];
#pragma unroll 4
    for (i32 i = row.first + (i32)threadIdx.x; i < row.last; i += THREADS) {
      const f32 z = scaled(row, i);
      const u32 at = coarse(row, z);
      const u32 key = order_key(z);
      if (level > 0 && (at != step || (((u64)(key ^ found)) >> shift) >= 256)) continue;
      const u64 units = count ? 1u : (u64)(fmaxf(weight(row, z), 0.0f) * 1099511627776.0f);
      add(mine, level == 0 ? at : (key >> shift) & 255u, units);
    }
    cluster_sync<BLOCKS>();
    for (int i = threadIdx.x; i < PARTS * 256; i += THREADS) {
      u32 sum = 0;
#pragma unroll
      for (int b = 0; b < BLOCKS; b++) sum += load_peer<BLOCKS>(&mine.part[0][0] + i, b);
      (&h.part[0][0])[i] = sum;
      (&own[~level & 1].part[0][0])[i] = 0;
    }
    __syncthreads();
    if (threadIdx.x < 32) {
      if (level == 0 && !count) {
        u64 all = 0;
        for (int b = threadIdx.x; b < 256; b += 32) all += total(h, b);
#pragma unroll
        for (int m = 16; m > 0; m >>= 1) all += __shfl_xor_sync(0xffffffffu, all, m);
        const f64 part = ceil((f64)share * (f64)all);
        wanted = part > 1.0 ? (u64)part : 1u;
      }
      const Bin<u64> b = find_bin([&](u32 i) { return total(h, i); }, wanted);
      if (threadIdx.x == 0) bin = b;
    }
    __syncthreads();
    if (level == 0) step = bin.index;
    else found |= bin.index << shift;
    wanted = bin.left;
  }
  cluster_sync<BLOCKS>();  // the histograms may be used again
  return found;
}

// The greatest of a value of each block of the cluster.
__device__ __forceinline__ u64 cluster_max(u64 x) {
  __shared__ u32 slots[2][2];
  x = block_max<WARPS>(x);
  if (BLOCKS == 1) return x;
  if (threadIdx.x == 0) {
    slots[0][0] = (u32)x;
    slots[0][1] = (u32)(x >> 32);
  }
  cluster_sync<BLOCKS>();
#pragma unroll
  for (int b = 0; b < BLOCKS; b++) {
    const u64 other = (u64)load_peer<BLOCKS>(&slots[0][1], b) << 32 | load_peer<BLOCKS>(&slots[0][0], b);
    x = other > x ? other : x;
  }
  cluster_sync<BLOCKS>();
  return x;
}

// How a row is drawn.
struct Draw {
  f32 temperature;
  i32 k;
  f32 p;
  f32 min_p;
  u32 pos;
  u32 key0;
  u32 key1;
  bool greedy;
  bool filters;
};

// The token of a row with filters, in every thread of the cluster.
__device__ __forceinline__ i32 draw_filtered(const f32* logits, i32 n, const Draw& by) {
  ${shared}
  Row row = {logits, logits, 0, n, by.temperature, 0.0f, -INF, 0};
  if (BLOCKS > 1) {
    const i32 part = (n + 4 * BLOCKS - 1) / (4 * BLOCKS) * 4;
    row.first = part * (i32)(blockIdx.x % BLOCKS);
    row.first = row.first < n ? row.first : n;
    row.last = row.first + part < n ? row.first + part : n;
  }
  row.slice = logits + row.first;
  u64 greatest = 0;
#pragma unroll 4
  for (i32 i = row.first + (i32)threadIdx.x; i < row.last; i += THREADS) {
    const f32 logit = logits[i];
    ${hold}
    const u64 key = order_key(logit, (u32)i);
    greatest = greatest > key ? greatest : key;
  }
  ${held}
  greatest = cluster_max(greatest);
  row.most = scale(logits[key_index(greatest)], by.temperature);
  if (!(fabsf(row.most) < INF)) return (i32)key_index(greatest);
  if (by.k > 0 && by.k < n) row.cut = threshold(row, true, (u64)by.k, 0.0f);
  if (by.min_p > 0.0f) row.min_p = fminf(by.min_p, 1.0f);
  if (by.p < 1.0f) {
    const u32 cut = threshold(row, false, 0, by.p);
    row.cut = cut > row.cut ? cut : row.cut;
  }
  u64 best = 0;
  f32 floor = -INF;
  for (i32 q = row.first / 4 + (i32)threadIdx.x; 4 * q < row.last; q += THREADS) {
    f32 z[4];
    bool kept = false;
    bool keeps[4];
#pragma unroll
    for (int e = 0; e < 4; e++) {
      z[e] = 4 * q + e < row.last ? scaled(row, 4 * q + e) : -INF;
      keeps[e] = 4 * q + e < row.last && weight(row, z[e]) >= 0.0f;
      kept = kept || keeps[e];
    }
    if (!kept) continue;
    const uint4 random = philox(make_uint4((u32)q, by.pos, 0, 0), by.key0, by.key1);
    const u64 key = draw(z, random, (u32)q, floor, [&](int e) { return keeps[e]; });
    best = best > key ? best : key;
  }
  return (i32)key_index(cluster_max(best));
}

// Logits 4 q .. 4 q + 3; minus infinity behind the end.
typedef Pack<f32, 4> Quad;
__device__ __forceinline__ Quad load_quad(const f32* logits, i32 n, i32 q) {
  Quad x = {{-INF, -INF, -INF, -INF}};
  if (ALIGNED) {
    if (4 * q < n) x = *((const Quad*)logits + q);
  } else {
#pragma unroll
    for (int e = 0; e < 4; e++) {
      if (4 * q + e < n) x.at[e] = logits[4 * q + e];
    }
  }
  return x;
}

// The index of the greatest logit. All of a block calls.
__device__ __forceinline__ u32 greatest_logit(const f32* logits, const f32* maxima, i32 n) {
  if (TILE > 0) return argmax_by_tile<(TILE > 0 ? TILE : 1), THREADS>(logits, maxima, n);
  u64 best = 0;
  for (i32 i = threadIdx.x; i < n; i += THREADS) {
    const u64 key = order_key(logits[i], (u32)i);
    best = best > key ? best : key;
  }
  return key_index(block_max<WARPS>(best));
}

// Quads first .. last - 1 of a row without filters by a block: the thread's part of the greatest key.
__device__ __forceinline__ u64 draw_quads(const f32* logits, i32 n, const Draw& by, i32 first, i32 last) {
  constexpr int AT_ONCE = 4;
  // About z of a logit is logit * inverse. Where that would not be near, it is NaN, and every token is looked at.
  const bool usual = by.temperature > 1e-37f && by.temperature < 1e37f;
  const f32 inverse = usual ? 1.0f / by.temperature : INF - INF;
  auto words_of = [&](u32 q) { return philox(make_uint4(q, by.pos, 0, 0), by.key0, by.key1); };
  u64 best = 0;
  f32 floor = -INF;
  f32 least = -INF;  // what is below it cannot reach the floor
  for (i32 from = first; from < last; from += AT_ONCE * THREADS) {
    Quad x[AT_ONCE];
    f32 bound[AT_ONCE];
    f32 most = -INF;
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) x[i] = load_quad(logits, n, from + i * THREADS + (i32)threadIdx.x);
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      bound[i] = -INF;
      if (from + i * THREADS >= last) continue;
      const uint4 random = words_of((u32)(from + i * THREADS + (i32)threadIdx.x));
      // The greatest logit and the least word, which has the most noise, bound all four.
      const f32 greatest = fmaxf(fmaxf(x[i].at[0], x[i].at[1]), fmaxf(x[i].at[2], x[i].at[3]));
      const u32 word = min(min(random.x, random.y), min(random.z, random.w));
      bound[i] = greatest * inverse + most_noise(word);
      if (from == first) {
        const f32 z[4] = {x[i].at[0] * inverse, x[i].at[1] * inverse, x[i].at[2] * inverse, x[i].at[3] * inverse};
        most = fmaxf(most, sure(z, random));
      }
    }
    if (from == first) {
      // What some thread has for sure is a floor for all.
      floor = block_max<WARPS>(most);
      least = below(floor);
    }
    u32 may = 0;
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      // A bound that is no number says nothing.
      if (!(bound[i] < least) && from + i * THREADS + (i32)threadIdx.x < last) may |= 1u << i;
    }
    for (; may != 0; may &= may - 1) {
      const i32 q = from + (__ffs((int)may) - 1) * THREADS + (i32)threadIdx.x;
      // Few come here, so nothing is kept for them.
      const Quad again = load_quad(logits, n, q);
      const uint4 random = words_of((u32)q);
      f32 z[4];
#pragma unroll
      for (int e = 0; e < 4; e++) z[e] = scale(again.at[e], by.temperature);
      const u64 key = draw(z, random, (u32)q, floor, [&](int e) { return 4 * q + e < n; });
      best = best > key ? best : key;
      least = below(floor);
    }
  }
  return best;
}

extern "C" __global__ void ${cluster}__launch_bounds__(THREADS, 2)
${entry}(const f32* logits, const f32* temperature, const i32* top_k, const f32* top_p, const f32* min_p, const i32* seed, const i32* pos,
         ${maxima}i32* tokens, u64* scratch, u32* counters, i32 n, i32 rows, i32 share) {
  let_successors_start();
  ${wait_first}
  auto draw_of = [&](i32 r) {
    Draw by;
    by.temperature = temperature[r];
    by.k = top_k[r];
    by.p = top_p[r];
    by.min_p = min_p[r];
    by.pos = (u32)pos[r];
    by.key0 = (u32)seed[2 * r];
    by.key1 = (u32)seed[2 * r + 1];
    by.greedy = !(by.temperature > 0.0f);
    by.filters = !by.greedy && ((by.k > 0 && by.k < n) || by.p < 1.0f || by.min_p > 0.0f);
    return by;
  };
  // `share` blocks share a row: some clusters, or a part of one. A cluster draws the rows with filters that start in it.
  const i32 leader = blockIdx.x / BLOCKS * BLOCKS;
  u32 filtered = 0;
#pragma unroll
  for (int i = 0; i < BLOCKS; i++) {
    const i32 row = leader / share + i;
    if (row >= rows || row * share >= leader + BLOCKS) break;
    if (draw_of(row).filters && row * share >= leader) filtered |= 1u << i;
  }
  ${wait_later}
  for (; filtered != 0; filtered &= filtered - 1) {
    const i32 row = leader / share + __ffs((int)filtered) - 1;
    const i32 token = draw_filtered(logits + (i64)row * n, n, draw_of(row));
    if (threadIdx.x == 0 && blockIdx.x == leader) tokens[row] = token;
  }
  const i32 r = blockIdx.x / share;
  const i32 b = blockIdx.x - r * share;
  if (r >= rows) return;
  const Draw own = draw_of(r);
  if (own.filters) return;
  logits += (i64)r * n;
  ${maxima_of_row}
  if (TILE > 0 && own.greedy) {
    // The greatest logit is in the first tile with the greatest maximum.
    if (b != 0) return;
    const u32 top = greatest_logit(logits, of_tiles, n);
    if (threadIdx.x == 0) tokens[r] = (i32)top;
    return;
  }
  u64 best = 0;
  if (own.greedy) {
    for (i32 i = b * THREADS + (i32)threadIdx.x; i < n; i += share * THREADS) {
      const u64 key = order_key(logits[i], (u32)i);
      best = best > key ? best : key;
    }
  } else {
    const i32 quads = (n - 1) / 4 + 1;
    const i32 per = (quads - 1) / share + 1;
    best = draw_quads(logits, n, own, b * per, (b + 1) * per < quads ? (b + 1) * per : quads);
  }
  best = block_max<WARPS>(best);
  if (share > 1) {
    u64* const slots = scratch + (i64)r * share;
    if (threadIdx.x == 0) slots[b] = best;
    if (!last_of(counters + r, (u32)share)) return;
    for (int i = threadIdx.x & 31; i < share; i += 32) {
      const u64 other = __ldcg(slots + i);
      best = best > other ? best : other;
    }
    best = warp_max(best);
  }
  // Where the greatest z is not finite, no score is.
  u32 token = key_index(best);
  const u32 score = (u32)(best >> 32);
  if (!own.greedy && (score <= order_key(-INF) || score >= order_key(INF))) token = greatest_logit(logits, of_tiles, n);
  if (threadIdx.x == 0) tokens[r] = (i32)token;
}
