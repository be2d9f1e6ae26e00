// Rows that keep all tokens: the greatest logit, or the greatest z + Gumbel noise with z = logit / temperature. The blocks of a row share it out,
// and the last to finish compares their winners.
constexpr int WARPS = ${warps};
constexpr int THREADS = 32 * WARPS;
constexpr int AT_ONCE = ${at_once};  // loads of 16 bytes that a thread has under way
constexpr int TILE = ${tile};  // logits of each of the given maxima; 0: none are given
constexpr bool ALIGNED = ${aligned};  // rows are a whole number of 16 bytes
constexpr bool FEW = ${few};  // few rows: equal parts, no whole strides, and the first random words are made before the logits are there

struct Plain {
  const f32* logits;
  i32 n;
  f32 temperature;
  f32 inverse;  // 1 / temperature
  bool usual;   // if that is an ordinary number
  u32 pos;
  u32 key0;
  u32 key1;
};

__device__ __forceinline__ uint4 words_of(const Plain& row, u32 q) { return philox(make_uint4(q, row.pos, 0, 0), row.key0, row.key1); }
__device__ __forceinline__ u32 least_of(uint4 x) { return min(min(x.x, x.y), min(x.z, x.w)); }

// Logits 4 q .. 4 q + 3; minus infinity from quad `last` on and behind the end.
typedef Pack<f32, 4> Quad;
__device__ __forceinline__ Quad load_quad(const Plain& row, i32 q, i32 last) {
  Quad x = {{-INF, -INF, -INF, -INF}};
  if (ALIGNED) {
    if (q < last) x = *((const Quad*)row.logits + q);
  } else {
#pragma unroll
    for (int e = 0; e < 4; e++) {
      if (q < last && 4 * q + e < row.n) x.at[e] = row.logits[4 * q + e];
    }
  }
  return x;
}

// About z of a logit.
__device__ __forceinline__ f32 about(const Plain& row, f32 logit) {
  return row.usual ? logit * row.inverse : logit / row.temperature;
}

// The index of the greatest logit. All of a block calls.
__device__ __forceinline__ u32 greatest_logit(const Plain& row, const f32* maxima) {
  if (TILE > 0) return argmax_by_tile<(TILE > 0 ? TILE : 1), THREADS>(row.logits, maxima, row.n);
  u64 best = 0;
  for (i32 i = threadIdx.x; i < row.n; i += THREADS) {
    const u64 key = order_key(row.logits[i], (u32)i);
    best = best > key ? best : key;
  }
  return key_index(block_max<WARPS>(best));
}

// The random words of a stride; where there are no tokens, those that stand for no noise.
__device__ __forceinline__ void make_words(const Plain& row, i32 from, i32 last, uint4 (&random)[AT_ONCE]) {
#pragma unroll
  for (int i = 0; i < AT_ONCE; i++) {
    const i32 q = from + i * THREADS + (i32)threadIdx.x;
    if (FEW && q >= last) random[i] = make_uint4(~0u, ~0u, ~0u, ~0u);
    else random[i] = words_of(row, (u32)q);
  }
}

// Quads first .. last - 1 by a block: the thread's part of the greatest key.
__device__ __forceinline__ u64 draw_quads(const Plain& row, i32 first, i32 last) {
  uint4 random[AT_ONCE];
  if (FEW) make_words(row, first, last, random);
  ${wait_later}
  u64 best = 0;
  f32 floor = -INF;
  for (i32 from = first; from < last; from += AT_ONCE * THREADS) {
    Quad x[AT_ONCE];
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) x[i] = load_quad(row, from + i * THREADS + (i32)threadIdx.x, last);
    if (!FEW || from != first) make_words(row, from, last, random);
    if (from == first) {
      // What some thread has is a bound for all.
      f32 most = -INF;
#pragma unroll
      for (int i = 0; i < AT_ONCE; i++) {
        f32 z[4];
#pragma unroll
        for (int e = 0; e < 4; e++) z[e] = about(row, x[i].at[e]);
        most = fmaxf(most, sure(z, random[i]));
      }
      floor = fmaxf(floor, block_max<WARPS>(most));
    }
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      const i32 q = from + i * THREADS + (i32)threadIdx.x;
      // The greatest logit and the least word, which has the most noise, bound all four.
      const f32 greatest = fmaxf(fmaxf(x[i].at[0], x[i].at[1]), fmaxf(x[i].at[2], x[i].at[3]));
      const f32 bound = about(row, greatest) + most_noise(least_of(random[i]));
      if (q >= last || !(bound > -INF && bound >= below(floor))) continue;
      f32 z[4];
#pragma unroll
      for (int e = 0; e < 4; e++) z[e] = scale(x[i].at[e], row.temperature);
      const u64 key = draw(z, random[i], (u32)q, floor, [&](int e) { return 4 * q + e < row.n; });
      best = best > key ? best : key;
    }
  }
  return best;
}

// Block b of `share` that have row r: the last to finish writes the token. All of a block calls.
__device__ __forceinline__ void draw_plain(const Plain& row, const f32* maxima, int r, int b, i32 share, i32* tokens, u64* scratch, u32* counters) {
  const i32 n = row.n;
  const bool greedy = !(row.temperature > 0.0f);
  if (greedy && TILE > 0) {
    ${wait_later}
    if (b != 0) return;
    const u32 top = greatest_logit(row, maxima);
    if (threadIdx.x == 0) tokens[r] = (i32)top;
    return;
  }
  u64 best = 0;
  if (greedy) {
    ${wait_later}
    for (i32 i = b * THREADS + (i32)threadIdx.x; i < n; i += share * THREADS) {
      const u64 key = order_key(row.logits[i], (u32)i);
      best = best > key ? best : key;
    }
  } else {
    const i32 quads = (n - 1) / 4 + 1;
    const i32 unit = FEW ? 1 : AT_ONCE * THREADS;
    const i32 per = ((quads - 1) / (share * unit) + 1) * unit;
    const i32 first = b * per;
    best = draw_quads(row, first, first + per < quads ? first + per : quads);
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
  if (!greedy && (score <= order_key(-INF) || score >= order_key(INF))) token = greatest_logit(row, maxima);
  if (threadIdx.x == 0) tokens[r] = (i32)token;
}

// A row as its parameters say.
__device__ __forceinline__ Plain plain_row(const f32* logits, i32 n, f32 temperature, u32 pos, u32 key0, u32 key1) {
  Plain row;
  row.logits = logits;
  row.n = n;
  row.temperature = temperature;
  row.inverse = 1.0f / temperature;
  row.usual = temperature > 1e-37f && temperature < 1e37f;
  row.pos = pos;
  row.key0 = key0;
  row.key1 = key1;
  return row;
}
