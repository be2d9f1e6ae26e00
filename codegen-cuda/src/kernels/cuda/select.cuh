// Where a running sum over 256 bins, from the last to the first, reaches `wanted`: the bin, and what of `wanted` is left in it. The first
// bin if it never does.
template <class T> struct Bin {
  u32 index;
  T left;
};
// Called by one whole warp; `count(bin)` is the weight of a bin.
template <class T, class Count> __device__ __forceinline__ Bin<T> find_bin(Count count, T wanted) {
  const int lane = threadIdx.x & 31;
  T mine = 0;
#pragma unroll
  for (int i = 0; i < 8; i++) mine += count(255 - (lane * 8 + i));
  T through = mine;
#pragma unroll
  for (int m = 1; m < 32; m <<= 1) {
    const T other = __shfl_up_sync(0xffffffffu, through, m);
    if (lane >= m) through += other;
  }
  const u32 reached = __ballot_sync(0xffffffffu, through >= wanted);
  const int owner = reached == 0 ? 31 : __ffs((int)reached) - 1;
  T above = through - mine;
  u32 bin = 255 - lane * 8;
#pragma unroll
  for (int i = 0; i < 7; i++) {
    const T here = count(bin);
    if (above + here < wanted && bin == 255u - lane * 8 - i) {
      above += here;
      bin--;
    }
  }
  Bin<T> found;
  found.index = __shfl_sync(0xffffffffu, bin, owner);
  found.left = __shfl_sync(0xffffffffu, wanted - above, owner);
  return found;
}
