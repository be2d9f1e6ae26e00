// Which expert, where in the list and how many rows tile number `tile` has, when every expert's rows are cut into tiles of `slots`. One
// whole warp calls; count 0: there are fewer tiles.
struct Group {
  i32 expert;
  i32 first;
  i32 count;
};
__device__ __forceinline__ void find_group(Group* out, const i32* start, i32 experts, i32 slots, i32 tile) {
  const int lane = threadIdx.x & 31;
  i32 base = 0;
  for (i32 e0 = 0; e0 <= experts; e0 += 32) {
    const i32 e = e0 + lane;
    const i32 begin = e <= experts ? start[e] : 0;
    const i32 length = e <= experts ? start[e + 1] - begin : 0;
    const i32 tiles = (length + slots - 1) / slots;
    i32 through = tiles;
#pragma unroll
    for (int m = 1; m < 32; m <<= 1) {
      const i32 other = __shfl_up_sync(0xffffffffu, through, m);
      if (lane >= m) through += other;
    }
    const i32 own = tile - (base + through - tiles);  // number of the tile within expert e
    const bool hit = own >= 0 && own < tiles;
    if (hit) {
      const i32 left = length - own * slots;
      *out = {e, begin + own * slots, left < slots ? left : slots};
    }
    if (__any_sync(0xffffffffu, hit)) return;
    base += __shfl_sync(0xffffffffu, through, 31);
  }
  if (lane == 0) *out = {0, 0, 0};
}
