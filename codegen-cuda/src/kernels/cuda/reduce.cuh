// Every lane gets the result; partners are combined in a fixed tree.
__device__ __forceinline__ f32 warp_sum(f32 x) {
#pragma unroll
  for (int m = 16; m > 0; m >>= 1) x += __shfl_xor_sync(0xffffffffu, x, m);
  return x;
}
__device__ __forceinline__ f32 warp_max(f32 x) {
#pragma unroll
  for (int m = 16; m > 0; m >>= 1) x = max_nan(x, __shfl_xor_sync(0xffffffffu, x, m));
  return x;
}
__device__ __forceinline__ i32 warp_sum(i32 x) {
#pragma unroll
  for (int m = 16; m > 0; m >>= 1) x += __shfl_xor_sync(0xffffffffu, x, m);
  return x;
}
__device__ __forceinline__ u64 warp_max(u64 x) {
#pragma unroll
  for (int m = 16; m > 0; m >>= 1) {
    const u64 y = __shfl_xor_sync(0xffffffffu, x, m);
    x = x > y ? x : y;
  }
  return x;
}

// The same over a block of WARPS warps; every thread of the block must call.
template <int WARPS, class T> __device__ __forceinline__ T block_sum(T x) {
  __shared__ T part[WARPS];
  const int lane = threadIdx.x & 31;
  x = warp_sum(x);
  if (lane == 0) part[threadIdx.x >> 5] = x;
  __syncthreads();
  x = warp_sum(lane < WARPS ? part[lane] : T(0));
  __syncthreads();
  return x;
}
template <int WARPS, class T> __device__ __forceinline__ T block_max(T x) {
  __shared__ T part[WARPS];
  const int lane = threadIdx.x & 31;
  x = warp_max(x);
  if (lane == 0) part[threadIdx.x >> 5] = x;
  __syncthreads();
  x = warp_max(part[lane < WARPS ? lane : 0]);
  __syncthreads();
  return x;
}
