// Rows with filters. Each is drawn by one cluster of blocks, which hold the logits in shared memory.
// Which tokens are kept depends on their order only, so each filter is a threshold on the order key of z. A threshold is found by histograms:
// first over the distance to the greatest z, in steps of 1/8, then over the four bytes of the key within one step. Probabilities are summed in
// units of 2^-40 of the greatest, as integers, so no order of summation matters.
constexpr int BLOCKS = ${blocks};  // of a cluster

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

// The greatest key such that the tokens with at least that key have `wanted` units. COUNT: a token is a unit; else units of probability, of
// which `share` of all are wanted. Called by a whole cluster.
template <bool COUNT> __device__ __forceinline__ u32 threshold(const Row& row, u64 wanted, f32 share) {
  __shared__ Histogram own[2];  // alternate, so that one can be cleared while others read the other
  __shared__ Histogram h;
  __shared__ Bin<u64> bin;
  u32 step = 0;
  u32 found = 0;
  for (int i = threadIdx.x; i < PARTS * 256; i += 1024) (&own[0].part[0][0])[i] = 0;
  __syncthreads();
  for (int level = 0; level < 5; level++) {
    const int shift = 32 - 8 * level;
    Histogram& mine = own[level & 1];
    for (i32 i = row.first + (i32)threadIdx.x; i < row.last; i += 1024) {
      const f32 z = scaled(row, i);
      const u32 at = coarse(row, z);
      const u32 key = order_key(z);
      if (level > 0 && (at != step || (((u64)(key ^ found)) >> shift) >= 256)) continue;
      const u64 units = COUNT ? 1u : (u64)(fmaxf(weight(row, z), 0.0f) * 1099511627776.0f);
      add(mine, level == 0 ? at : (key >> shift) & 255u, units);
    }
    cluster_sync<BLOCKS>();
    for (int i = threadIdx.x; i < PARTS * 256; i += 1024) {
      u32 sum = 0;
#pragma unroll
      for (int b = 0; b < BLOCKS; b++) sum += load_peer<BLOCKS>(&mine.part[0][0] + i, b);
      (&h.part[0][0])[i] = sum;
      (&own[~level & 1].part[0][0])[i] = 0;
    }
    __syncthreads();
    if (threadIdx.x < 32) {
      if (level == 0 && !COUNT) {
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
  x = block_max<32>(x);
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

// The token of a row, in every thread of the cluster.
__device__ __forceinline__ i32 draw_row(const f32* logits, i32 n, const Filters& by, u32 pos, u32 key0, u32 key1) {
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
#pragma unroll 8
  for (i32 i = row.first + (i32)threadIdx.x; i < row.last; i += 1024) {
    const f32 logit = logits[i];
    ${hold}
    const u64 key = order_key(logit, (u32)i);
    greatest = greatest > key ? greatest : key;
  }
  ${held}
  greatest = cluster_max(greatest);
  row.most = scale(logits[key_index(greatest)], by.temperature);
  if (!(fabsf(row.most) < INF)) return (i32)key_index(greatest);
  if (by.k > 0 && by.k < n) row.cut = threshold<true>(row, by.k, 0.0f);
  if (by.least > 0.0f) row.min_p = fminf(by.least, 1.0f);
  if (by.p < 1.0f) {
    const u32 cut = threshold<false>(row, 0, by.p);
    row.cut = cut > row.cut ? cut : row.cut;
  }
  u64 best = 0;
  f32 floor = -INF;
  for (i32 q = row.first / 4 + (i32)threadIdx.x; 4 * q < row.last; q += 1024) {
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
    const uint4 random = philox(make_uint4((u32)q, pos, 0, 0), key0, key1);
    const u64 key = draw(z, random, (u32)q, floor, [&](int e) { return keeps[e]; });
    best = best > key ? best : key;
  }
  return (i32)key_index(cluster_max(best));
}
