// Rows (t, j) by expert, built by each block for itself. An item is up to PER rows of one expert; rows whose id is no expert form items of
// expert EXPERTS. Items are in the order of experts, rows within them in order: the same in every block.
template <int ROWS> struct Items {
  i32 count;
  i32 key[ROWS];       // expert of a row
  i32 expert[ROWS];    // of an item
  u16 first[ROWS + 1];  // of an item in `row`; first[count] is the number of rows
  u16 row[ROWS];
  u8 head[ROWS];       // whether an item starts here
};
template <int ROWS, int PER, int THREADS, int EXPERTS>
__device__ __forceinline__ void find_items(Items<ROWS>& items, const i32* ids, int rows) {
  if (ROWS <= 32) {  // one warp, a row a lane
    if (threadIdx.x < 32) {
      const int lane = threadIdx.x;
      const i32 id = lane < rows ? load_now(ids + lane) : 0;
      const i32 own = lane >= rows ? EXPERTS + 1 : id < 0 || id >= EXPERTS ? EXPERTS : id;
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
  for (int i = threadIdx.x; i < rows; i += THREADS) {
    const i32 id = load_now(ids + i);
    items.key[i] = id < 0 || id >= EXPERTS ? EXPERTS : id;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < rows; i += THREADS) {
    const i32 own = items.key[i];
    int before = 0;
    int same = 0;
    for (int k = 0; k < rows; k++) {
      const i32 other = items.key[k];
      before += other < own;
      same += other == own && k < i;
    }
    items.row[before + same] = (u16)i;
    items.head[before + same] = same % PER == 0;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < rows; i += THREADS) {
    int at = 0;
    for (int k = 0; k < i; k++) at += items.head[k];
    if (items.head[i]) {
      items.expert[at] = items.key[items.row[i]];
      items.first[at] = (u16)i;
    }
    if (i == rows - 1) {
      at += items.head[i];
      items.count = at;
      items.first[at] = (u16)rows;
    }
  }
  __syncthreads();
}
