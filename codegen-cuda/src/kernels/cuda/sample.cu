// ${ir}
// One block a row. Which tokens are kept depends on their order only, so each filter is a threshold on the order key of z = logit /
// temperature. A threshold is found by histograms: first over the distance to the greatest z, in steps of 1/8, then over the four bytes of
// the key within one step. Probabilities are summed in units of 2^-40 of the greatest, as integers, so no order of summation
// matters. The draw is the greatest of z + Gumbel noise among the kept tokens.
struct Row {
  const f32* logits;
  i64 n;
  f32 temperature;
  f32 most;   // greatest z
  f32 min_p;  // least probability relative to the greatest
  u32 cut;    // least key that is kept
};

__device__ __forceinline__ f32 scaled(const Row& row, i64 i) {
  const f32 logit = row.logits[i];
  return logit != logit ? -INF : logit / row.temperature;
}

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
// which `share` of all are wanted.
template <bool COUNT> __device__ __forceinline__ u32 threshold(const Row& row, u64 wanted, f32 share) {
  __shared__ Histogram h;
  __shared__ Bin<u64> bin;
  u32 step = 0;
  u32 found = 0;
  for (int level = 0; level < 5; level++) {
    const int shift = 32 - 8 * level;
    for (int i = threadIdx.x; i < PARTS * 256; i += 1024) (&h.part[0][0])[i] = 0;
    __syncthreads();
    for (i64 i = threadIdx.x; i < row.n; i += 1024) {
      const f32 z = scaled(row, i);
      const u32 at = coarse(row, z);
      const u32 key = order_key(z);
      if (level > 0 && (at != step || (((u64)(key ^ found)) >> shift) >= 256)) continue;
      const u64 units = COUNT ? 1u : (u64)(fmaxf(weight(row, z), 0.0f) * 1099511627776.0f);
      add(h, level == 0 ? at : (key >> shift) & 255u, units);
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
  __syncthreads();
  return found;
}

extern "C" __global__ void __launch_bounds__(1024, 1)
${entry}(const f32* __restrict__ logits, const f32* __restrict__ temperature, const i32* __restrict__ top_k,
         const f32* __restrict__ top_p, const f32* __restrict__ min_p, const i32* __restrict__ seed,
         const i32* __restrict__ pos, i32* __restrict__ tokens, i64 n) {
  const int r = blockIdx.x;
  Row row = {logits + r * n, n, temperature[r], 0.0f, -INF, 0};
  f32 most = -INF;
  u64 greatest = 0;  // greedy choice
  for (i64 i = threadIdx.x; i < n; i += 1024) {
    const u64 key = order_key(row.logits[i], (u32)i);
    greatest = greatest > key ? greatest : key;
    most = fmaxf(most, scaled(row, i));
  }
  greatest = block_max<32>(greatest);
  row.most = block_max<32>(most);
  if (!(row.temperature > 0.0f) || !(fabsf(row.most) < INF)) {
    if (threadIdx.x == 0) tokens[r] = (i32)key_index(greatest);
    return;
  }
  const i32 k = top_k[r];
  if (k > 0 && k < n) row.cut = threshold<true>(row, k, 0.0f);
  if (min_p[r] > 0.0f) row.min_p = fminf(min_p[r], 1.0f);
  if (top_p[r] < 1.0f) {
    const u32 cut = threshold<false>(row, 0, top_p[r]);
    row.cut = cut > row.cut ? cut : row.cut;
  }
  const u32 key0 = (u32)seed[2 * r];
  const u32 key1 = (u32)seed[2 * r + 1];
  u64 best = 0;
  for (i64 i4 = threadIdx.x; i4 * 4 < n; i4 += 1024) {
    const uint4 random = philox(make_uint4((u32)i4, (u32)pos[r], 0, 0), key0, key1);
    const u32 words[4] = {random.x, random.y, random.z, random.w};
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const i64 i = i4 * 4 + e;
      if (i >= n) continue;
      const f32 z = scaled(row, i);
      if (weight(row, z) < 0.0f) continue;
      const u64 key = order_key(z + gumbel(words[e]), (u32)i);
      best = best > key ? best : key;
    }
  }
  best = block_max<32>(best);
  if (threadIdx.x == 0) tokens[r] = (i32)key_index(best);
}
