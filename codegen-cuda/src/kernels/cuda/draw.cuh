// Drawing by noise: of tokens with z = logit / temperature the one with the greatest z + Gumbel noise. Few tokens can win, and an approximate
// noise that is never too small tells which; only for those the exact one is computed.
__device__ __forceinline__ f32 log2_fast(f32 x) {
  f32 y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ f32 scale(f32 logit, f32 temperature) { return logit != logit ? -INF : logit / temperature; }

// The noise of a word is at most -ln of it as a fraction; the logarithm here is good to 2^-20 or so. A lesser word has more noise.
__device__ __forceinline__ f32 most_noise(u32 word) {
  return -0.6931472f * log2_fast((__uint2float_rn(word) + 0.5f) * 2.3283064e-10f);
}
// With v the word as a fraction it is at least -ln v - 2 v, if v is at most 1/2.
__device__ __forceinline__ f32 least_noise(u32 word) {
  return word >> 31 ? -INF : most_noise(word) - 4.6566129e-10f * __uint2float_rn(word);
}
// Below all that an approximate sum of this size may stand for.
__device__ __forceinline__ f32 below(f32 sum) { return sum - 0.01f - fabsf(sum) * 1e-5f; }

// Tokens 4 q .. 4 q + 3: the greatest key of z + noise of those that are kept, if any may be as great as `floor`.
template <class Keep> __device__ __forceinline__ u64 draw(const f32 (&z)[4], uint4 random, u32 q, f32& floor, Keep keep) {
  const u32 words[4] = {random.x, random.y, random.z, random.w};
  u64 best = 0;
#pragma unroll
  for (int e = 0; e < 4; e++) {
    const f32 bound = z[e] + most_noise(words[e]);
    if (!(bound > -INF && bound >= below(floor)) || !keep(e)) continue;
    const f32 score = z[e] + gumbel(words[e]);
    const u64 key = order_key(score, 4 * q + e);
    best = best > key ? best : key;
    floor = fmaxf(floor, score);
  }
  return best;
}

// What the best of four tokens has at least.
__device__ __forceinline__ f32 sure(const f32 (&z)[4], uint4 random) {
  const f32 a = fmaxf(z[0] + least_noise(random.x), z[1] + least_noise(random.y));
  const f32 b = fmaxf(z[2] + least_noise(random.z), z[3] + least_noise(random.w));
  return below(fmaxf(a, b));
}

// How a row is drawn. At temperature 0 the greatest logit is taken, and no filter matters.
struct Filters {
  f32 temperature;
  i32 k;
  f32 p;
  f32 least;  // probability relative to the greatest
};
__device__ __forceinline__ bool any(const Filters& by, i32 n) {
  return by.temperature > 0.0f && ((by.k > 0 && by.k < n) || by.p < 1.0f || by.least > 0.0f);
}
