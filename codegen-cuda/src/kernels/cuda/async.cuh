// Dependent launches: a kernel may start while the one before it still runs. wait_inputs returns when that kernel is complete and its writes are
// visible; every thread calls it before it touches what other kernels write. Every kernel lets the next one start only after its own wait, so
// what a kernel two or more back wrote may be read before the wait.
__device__ __forceinline__ void wait_inputs() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ __forceinline__ void start_next() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// A word as another kernel left it; not moved across waits by the compiler.
__device__ __forceinline__ i32 load_now(const i32* p) {
  i32 v;
  asm volatile("ld.global.cg.s32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}

// Four 8 x 8 matrices of 16-bit elements: lane l gives the address of row l % 8 of matrix l / 8, and gets elements 2 (l % 4), + 1 of row l / 4
// of each.
__device__ __forceinline__ void load_matrices(u32 (&d)[4], u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(at)
               : "memory");
}

// Barrier of THREADS threads of a block, whole warps; id 1..15.
template <int THREADS> __device__ __forceinline__ void barrier(int id) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(THREADS) : "memory");
}

// Signals are barriers in shared memory that background copies report to. One thread initialises and publishes them; all are synchronised before
// the first use.
__device__ __forceinline__ void signal_init(u32 at, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void signal_publish() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ __forceinline__ void signal_arrive(u32 at) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(at) : "memory"); }
// Arrives, and makes the signal wait for this many bytes.
__device__ __forceinline__ void signal_expect(u32 at, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
}
__device__ __forceinline__ void signal_wait(u32 at, u32 parity) {
  asm volatile("{\n.reg .pred p;\nL_%=:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@!p bra L_%=;\n}" ::"r"(at), "r"(parity) : "memory");
}

// True in one lane of a whole warp. A copy that this lane makes needs no loop over lanes.
__device__ __forceinline__ bool elected() {
  u32 one;
  asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(one)::"memory");
  return one != 0;
}

// What the kernel behind this one reads first: `bytes` of each of some parts of its weights.
struct Wanted {
  const u8* at;
  i64 apart;
  u32 parts;
  u32 bytes;
};
// Asks memory for at most MOST bytes of each part; nothing waits for that. One thread of each block calls.
template <u32 MOST> __device__ __forceinline__ void ask_ahead(const Wanted& wanted) {
  constexpr u32 RUN = 16384;
  const u32 all = wanted.bytes < MOST ? wanted.bytes : MOST;
  for (u32 p = blockIdx.x; p < wanted.parts; p += gridDim.x) {
    for (u32 from = 0; from < all; from += RUN) {
      const u32 bytes = all - from < RUN ? all - from : RUN;
      asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(wanted.at + p * wanted.apart + from), "r"(bytes) : "memory");
    }
  }
}

// Copies bytes, a multiple of 16, to shared memory in the background. What is read once (weights) leaves the L2 cache first.
__device__ __forceinline__ void fetch(u32 to, const void* from, u32 bytes, u32 signal) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from), "r"(bytes), "r"(signal) : "memory");
}
__device__ __forceinline__ void fetch_once(u32 to, const void* from, u32 bytes, u32 signal) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(to), "l"(from), "r"(bytes), "r"(signal), "l"(0x12F0000000000000ull) : "memory");
}
