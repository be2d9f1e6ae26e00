// Clusters: blocks that run at the same time and read each other's shared memory.
// A barrier of all threads of the cluster; what was written before it is seen behind it.
template <int BLOCKS> __device__ __forceinline__ void cluster_sync() {
  if (BLOCKS > 1) {
    asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
  } else {
    __syncthreads();
  }
}
// The word at `p` of this block's shared memory, in that of block `rank`.
template <int BLOCKS> __device__ __forceinline__ u32 load_peer(const u32* p, u32 rank) {
  u32 x = *p;
  if (BLOCKS > 1) {
    u32 at = (u32)__cvta_generic_to_shared(p);
    asm volatile("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(at) : "r"(rank));
    asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(x) : "r"(at) : "memory");
  }
  return x;
}
// The two halves of a barrier that only says that the others have started.
template <int BLOCKS> __device__ __forceinline__ void cluster_arrive() {
  if (BLOCKS > 1) asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
template <int BLOCKS> __device__ __forceinline__ void cluster_wait() {
  if (BLOCKS > 1) asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
}
// Writes the float at `p` of block `rank`.
template <int BLOCKS> __device__ __forceinline__ void store_peer(f32* p, u32 rank, f32 x) {
  if (BLOCKS == 1) {
    *p = x;
  } else {
    u32 at = (u32)__cvta_generic_to_shared(p);
    asm volatile("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(at) : "r"(rank));
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(at), "f"(x) : "memory");
  }
}
// The same in the background. The bytes are reported to the signal that block `rank` has where this one has `signal`; it must have started, and must not
// end before they are there. A block alone writes at once and reports nothing.
template <int BLOCKS> __device__ __forceinline__ void send_peer(f32* p, u32 rank, f32 x, u32 signal) {
  if (BLOCKS == 1) {
    *p = x;
  } else {
    u32 at = (u32)__cvta_generic_to_shared(p);
    asm volatile("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(at) : "r"(rank));
    asm volatile("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(signal) : "r"(rank));
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(at), "r"(__float_as_uint(x)), "r"(signal) : "memory");
  }
}
