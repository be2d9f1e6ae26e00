// Philox-4x32-10 (Salmon et al. 2011): four random words from a counter and a key.
__device__ __forceinline__ uint4 philox(uint4 counter, u32 key0, u32 key1) {
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const u32 hi_x = __umulhi(0xD2511F53u, counter.x);
    const u32 lo_x = 0xD2511F53u * counter.x;
    const u32 hi_z = __umulhi(0xCD9E8D57u, counter.z);
    const u32 lo_z = 0xCD9E8D57u * counter.z;
    counter = make_uint4(hi_z ^ counter.y ^ key0, lo_z, hi_x ^ counter.w ^ key1, lo_x);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// Standard Gumbel noise: -ln(-ln u) with 1 - u uniform and precise near 0.
__device__ __forceinline__ f32 gumbel(u32 word) {
  const f32 v = fminf((__uint2float_rn(word) + 0.5f) * 2.3283064e-10f, 0.99999994f);
  return -logf(-log1pf(-v));
}
