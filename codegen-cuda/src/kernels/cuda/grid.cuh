// 16 bytes that are read once; the compiler does not move this across a wait for predecessors.
__device__ __forceinline__ uint4 load16(const void* p) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

// Orders what this thread wrote and saw before with what it writes and sees after, for all threads of the device.
__device__ __forceinline__ void fence_device() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

// True in every thread of the block that comes last of the `n` that share `counter`; what the others wrote before can be read then,
// past the first cache level. Leaves the counter at 0, as it was. Every thread of the block must call.
__device__ __forceinline__ bool last_of(u32* counter, u32 n) {
  __shared__ u32 ticket;
  __syncthreads();
  if (threadIdx.x == 0) {  // for the whole block, which the barriers order: a fence a thread takes longer
    fence_device();
    ticket = atomicInc(counter, n - 1);
    fence_device();
  }
  __syncthreads();
  return ticket == n - 1;
}

// As last_of, for warps. All lanes of a warp call.
__device__ __forceinline__ bool last_warp_of(u32* counter, u32 n) {
  __threadfence();
  __syncwarp();
  u32 ticket = 0;
  if ((threadIdx.x & 31) == 0) ticket = atomicInc(counter, n - 1);
  const bool last = __shfl_sync(0xffffffffu, ticket, 0) == n - 1;
  if (last) __threadfence();
  return last;
}
