// Rows (t, j) by expert, built by each block for itself. An item is up to PER rows of one expert; rows whose id is no expert form items of
// expert EXPERTS. Items are in the order of experts, rows within them in order: the same in every block.
template <int ROWS> struct Items {
  i32 count;
  i32 key[ROWS];       // expert of a row
  i32 expert[ROWS];    // of an item
  u16 first[ROWS + 1];  // of an item in `row`; first[count] is the number of rows
  u16 row[ROWS];
  alignas(16) u32 order[ROWS];  // expert, then row: what rows are sorted by
  u32 experts[(ROWS + 31) / 32];  // bits of places in the order where an expert starts
  u32 heads[(ROWS + 31) / 32];    // where an item starts
};
// The id that a thread gives to find_items, to be asked for as early as ids may be read.
__device__ __forceinline__ i32 first_id(const i32* ids, int rows) { return (int)threadIdx.x < rows ? load_now(ids + threadIdx.x) : 0; }
template <int ROWS, int PER, int THREADS, int EXPERTS>
__device__ __forceinline__ void find_items(Items<ROWS>& items, const i32* ids, int rows, i32 first) {
  if (ROWS <= 32) {  // one warp, a row a lane
    if (threadIdx.x < 32) {
      const int lane = threadIdx.x;
      const i32 own = lane >= rows ? EXPERTS + 1 : first < 0 || first >= EXPERTS ? EXPERTS : first;
      int before = 0;
      int same = 0;
#pragma unroll 4
      for (int k = 0; k < rows; k++) {
        const i32 other = __shfl_sync(0xffffffffu, own, k);
        before += other < own;
        same += other == own && k < lane;
      }
      const int to = before + same;
      const bool head = lane < rows && same % PER == 0;
      const u32 heads = __reduce_or_sync(0xffffffffu, head ? 1u << to : 0u);
      if (lane < rows) {
        items.key[lane] = own;
        items.row[to] = (u16)lane;
      }
      if (head) {
        const int at = __popc(heads & ((1u << to) - 1));
        items.expert[at] = own;
        items.first[at] = (u16)to;
      }
      if (lane == 0) {
        items.count = __popc(heads);
        items.first[__popc(heads)] = (u16)rows;
      }
    }
    __syncthreads();
    return;
  }
  static_assert(ROWS <= 32 || (ROWS % 32 == 0 && THREADS % 32 == 0), "whole warps take part in votes");
  for (int i = threadIdx.x; i < ROWS; i += THREADS) {
    u32 order = 0xffffffffu;  // behind all rows
    if (i < rows) {
      const i32 id = i < THREADS ? first : load_now(ids + i);
      const i32 own = id < 0 || id >= EXPERTS ? EXPERTS : id;
      items.key[i] = own;
      order = (u32)own * ROWS + i;
    }
    items.order[i] = order;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < rows; i += THREADS) {
    const u32 own = items.order[i];
    int before = 0;
#pragma unroll 4
    for (int k = 0; k < rows; k += 4) {
      const uint4 other = *(const uint4*)(items.order + k);
      before += (other.x < own) + (other.y < own) + (other.z < own) + (other.w < own);
    }
    items.row[before] = (u16)i;
  }
  __syncthreads();
  const int lane = threadIdx.x & 31;
  for (int i = threadIdx.x; i < ROWS; i += THREADS) {
    const bool starts = i < rows && (i == 0 || items.key[items.row[i]] != items.key[items.row[i - 1]]);
    const u32 bits = __ballot_sync(0xffffffffu, starts);
    if (lane == 0) items.experts[i / 32] = bits;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < ROWS; i += THREADS) {
    int start = 0;  // of this place's expert
    for (int w = 0; w <= i / 32; w++) {
      const u32 bits = items.experts[w] & (w == i / 32 ? 0xffffffffu >> (31 - lane) : 0xffffffffu);
      if (bits != 0) start = 32 * w + 31 - __clz((int)bits);
    }
    const u32 bits = __ballot_sync(0xffffffffu, i < rows && (i - start) % PER == 0);
    if (lane == 0) items.heads[i / 32] = bits;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < rows; i += THREADS) {
    const u32 own = items.heads[i / 32];
    int at = __popc(own & ((1u << lane) - 1));
    for (int w = 0; w < i / 32; w++) at += __popc(items.heads[w]);
    const bool head = (own >> lane & 1) != 0;
    if (head) {
      items.expert[at] = items.key[items.row[i]];
      items.first[at] = (u16)i;
    }
    if (i == rows - 1) {
      at += head;
      items.count = at;
      items.first[at] = (u16)rows;
    }
  }
  __syncthreads();
}
