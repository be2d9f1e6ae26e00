// Integer keys in the order of the floats: NaN is least, the two zeros are equal.
__device__ __forceinline__ u32 order_key(f32 x) {
  const u32 bits = __float_as_uint(x + 0.0f);
  const u32 key = bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
  return x != x ? 0u : key;
}

// The same with the index below it: greater means greater value or, among equals, lower index. Never 0.
__device__ __forceinline__ u64 order_key(f32 x, u32 index) {
  return (u64)order_key(x) << 32 | (0xffffffffu - index);
}
__device__ __forceinline__ u32 key_index(u64 key) { return 0xffffffffu - (u32)key; }
