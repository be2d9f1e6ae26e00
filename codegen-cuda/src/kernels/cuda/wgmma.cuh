// Tensor maps: what a hardware copy must know of a tensor in global memory. A kernel takes them as `const __grid_constant__ TensorMap`.
struct alignas(64) TensorMap { u64 words[16]; };

// Copies a box of a two-dimensional tensor to shared memory in the background: `column` is the innermost coordinate. Parts of the box outside the
// tensor become zeros; the signal counts all of the box's bytes. One lane (see elected) calls.
__device__ __forceinline__ void fetch_box(u32 to, const TensorMap* map, int column, int row, u32 signal) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to), "l"(map), "r"(column), "r"(row), "r"(signal) : "memory");
}
// The same to this place of every block of a cluster whose bit is set in `blocks`; each block's own signal at that place counts the bytes.
__device__ __forceinline__ void fetch_box_to(u32 to, const TensorMap* map, int column, int row, u32 signal, u16 blocks) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to), "l"(map), "r"(column), "r"(row), "r"(signal), "h"(blocks) : "memory");
}
// Fetches the map itself; it is an argument, so at any time.
__device__ __forceinline__ void prefetch_map(const TensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }

// Arrives at the signal that lies at `at` in block `rank` of the cluster. Says only that something was read: orders no writes.
__device__ __forceinline__ void signal_arrive_at(u32 at, u32 rank) {
  asm volatile("{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\nmbarrier.arrive.shared::cluster.b64 _, [remote];\n}" ::"r"(at), "r"(rank) : "memory");
}
// Number of this block in its cluster.
__device__ __forceinline__ u32 rank_in_cluster() {
  u32 rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// All threads of all blocks of the cluster meet here; what was written to shared memory before is visible after.
__device__ __forceinline__ void meet_cluster() {
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}

// Operand of wgmma in shared memory: rows of 64 16-bit elements along K (128 bytes), 16-byte run c of row r at place c ^ (r % 8), as fetch_box writes
// them with a 128-byte swizzle. `at` is the first of its rows and starts at a multiple of 1024 bytes. 16 elements further along K: + 2; 8 rows
// further: + 64.
__device__ __forceinline__ u64 operand_at(u32 at) { return (u64)((at & 0x3ffffu) >> 4) | (u64)1 << 16 | (u64)64 << 32 | (u64)1 << 62; }
// The same in two steps: its lower word, to which steps are added in 32 bits, and the whole.
__device__ __forceinline__ u32 operand_low(u32 at) { return at >> 4 | 1u << 16; }
__device__ __forceinline__ u64 operand_of(u32 low) { return (u64)0x40000040u << 32 | low; }
// Where ordinary code puts byte `byte` (of 128) of row `row` of such an operand.
__device__ __forceinline__ u32 swizzled(u32 row, u32 byte) { return row * 128 + (byte ^ (row & 7) << 4); }

// Before the first multiply of a batch, and whenever registers of operands or sums were written by other instructions.
__device__ __forceinline__ void multiply_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Ends a batch of multiplies.
__device__ __forceinline__ void multiply_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most PENDING batches are under way.
template <int PENDING> __device__ __forceinline__ void multiply_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory"); }
// Between ordinary writes to shared memory and hardware (wgmma, bulk copies) that reads them.
__device__ __forceinline__ void publish_to_hardware() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// A warpgroup of 128 threads gives registers back, or gets more: COUNT a thread, a multiple of 8 in 24..256. The kernel's launch bounds must name
// its threads and blocks.
template <int COUNT> __device__ __forceinline__ void fewer_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT)); }
template <int COUNT> __device__ __forceinline__ void more_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT)); }

// Operand of wgmma that lies across: rows of 64 16-bit elements of its N, one row for each element along K, swizzled as above. `next`: bytes to the
// next 64 of N. 16 further along K: + 128.
__device__ __forceinline__ u64 operand_across(u32 at, u32 next) { return (u64)((at & 0x3ffffu) >> 4) | (u64)(next >> 4) << 16 | (u64)64 << 32 | (u64)1 << 62; }
// Registers of sums or operands are final here, or not read before: the compiler moves no instruction that touches them across.
template <int N> __device__ __forceinline__ void hold(f32 (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(x[i])::"memory");
}
template <int N> __device__ __forceinline__ void hold(u32 (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+r"(x[i])::"memory");
}

// Copies 16 bytes to shared memory in the background; writes zeros instead if !valid.
__device__ __forceinline__ void copy16_to(u32 to, const void* from, bool valid) {
  const u32 bytes = valid ? 16u : 0u;
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
// This thread arrives at the signal when its copies of 16 bytes up to here have landed. Hardware (wgmma) may read them after publish_to_hardware() by
// the thread that has waited.
__device__ __forceinline__ void signal_when_copied(u32 at) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(at) : "memory");
}
// Waits until all copies of 16 bytes of this thread have landed.
__device__ __forceinline__ void copies_landed() { asm volatile("cp.async.wait_all;" ::: "memory"); }
