// Programmatic dependent launch. A kernel may start before the one before it has ended; until it has waited for that it may touch only what no
// step writes. Every kernel launched this way must wait, or those behind it would not wait for what is in front of it.
__device__ __forceinline__ void wait_for_predecessors() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
// Lets the next kernel of the stream start where there is room once every block has called this or ended.
__device__ __forceinline__ void let_successors_start() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// Fetches a line into the L2 cache: of anything at any time, as that cache is coherent.
__device__ __forceinline__ void prefetch_l2(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

// Copies 16 bytes that are read once to shared memory in the background; writes zeros instead if !valid. The line and its neighbour are fetched and
// leave the L2 cache first: what a step reads again stays there.
__device__ __forceinline__ void stream16_async(void* shared, const void* global, bool valid) {
  const u32 to = (u32)__cvta_generic_to_shared(shared);
  const u32 bytes = valid ? 16u : 0u;
  u64 policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  asm volatile("cp.async.cg.shared.global.L2::cache_hint.L2::256B [%0], [%1], 16, %2, %3;" ::"r"(to), "l"(global), "r"(bytes), "l"(policy) : "memory");
}
