// Index of the greatest of n elements, the lowest of equals, by the maxima of their tiles: only the first tile with the greatest one can hold it.
// Maxima count NaN as nothing, so a row without a number or with nothing above minus infinity is looked through. All of a block calls.
template <int TILE, int THREADS, class T> __device__ __forceinline__ u32 argmax_by_tile(const T* x, const T* maxima, i64 n) {
  const i64 tiles = (n + TILE - 1) / TILE;
  u64 best = 0;
  for (i64 i = threadIdx.x; i < tiles; i += THREADS) {
    const u64 key = order_key(to_f32(maxima[i]), (u32)i);
    best = best > key ? best : key;
  }
  best = block_max<THREADS / 32>(best);
  i64 first = (i64)key_index(best) * TILE;
  i64 last = first + TILE < n ? first + TILE : n;
  if ((u32)(best >> 32) <= order_key(-__uint_as_float(0x7f800000u))) {
    first = 0;
    last = n;
  }
  best = 0;
  for (i64 i = first + threadIdx.x; i < last; i += THREADS) {
    const u64 key = order_key(to_f32(x[i]), (u32)i);
    best = best > key ? best : key;
  }
  return key_index(block_max<THREADS / 32>(best));
}
