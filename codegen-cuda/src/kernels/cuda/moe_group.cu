// ${ir}
// Block e lists the rows (t, j) of expert e in order; block E those whose id is no expert. `start[e]` is where a list begins in `rows`.
extern "C" __global__ void __launch_bounds__(256)
${entry}(const i32* __restrict__ ids, i32* __restrict__ start, i32* __restrict__ rows, i32 n, i32 experts) {
  ${start}
  __shared__ i32 found[8];
  const i32 own = blockIdx.x;
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  i32 before = 0;
  for (i32 i = threadIdx.x; i < n; i += 256) {
    const i32 id = ids[i];
    before += (id < 0 || id >= experts ? experts : id) < own;
  }
  i32 at = block_sum<8>(before);
  if (threadIdx.x == 0) {
    start[own] = at;
    if (own == experts) start[experts + 1] = n;
  }
  for (i32 first = 0; first < n; first += 256) {
    const i32 i = first + threadIdx.x;
    const i32 id = i < n ? ids[i] : -1;
    const bool mine = i < n && (id < 0 || id >= experts ? experts : id) == own;
    const u32 mask = __ballot_sync(0xffffffffu, mine);
    if (lane == 0) found[warp] = __popc(mask);
    __syncthreads();
    i32 to = at + __popc(mask & ((1u << lane) - 1));
    for (int i = 0; i < 8; i++) {
      if (i < warp) to += found[i];
      at += found[i];
    }
    if (mine) rows[to] = i;
    __syncthreads();
  }
}
