// Ends a step whose results are inputs of the next: shows them to the host in a slot of a ring, then makes them inputs. One block.
// A slot: u32 number of the step, counted from 1; at byte 8 u64 nanoseconds; then the results.
extern "C" __global__ void __launch_bounds__(256)
${entry}(${params}const i32* live, u32* steps, u8* ring) {
  wait_for_predecessors();
  const u32 step = *steps;
  u8* const slot = ring + (i64)(step % ${slots}u) * ${slot_bytes};
  ${publish}
  for (int i = threadIdx.x; i < ${n}; i += 256) {
    if (live[i] < 0) continue;  // padding
    ${feed}
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    *steps = step + 1;
    u64 now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    *(u64*)(slot + 8) = now;
    // What the block wrote before is there for whoever sees the number.
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(slot), "r"(step + 1) : "memory");
  }
}
