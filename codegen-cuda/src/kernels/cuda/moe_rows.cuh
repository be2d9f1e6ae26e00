// Rows (t, j) by expert in shared memory, built by each block for itself. An item is up to PER rows of one expert; rows whose id is no expert form
// items of expert EXPERTS. Items are in the order of experts, rows within them in order: the same in every block.
//
// Threads are WARPS warps that count, each a run of the rows, and one warp more. First all call count_rows, then all list_items, then the warps that
// counted place_rows; between these, and before what is listed is read, the threads concerned meet.
struct RowItem {
  i32 expert;
  u16 first;  // in `row`
  u16 count;
};
template <int ROWS, int PER, int EXPERTS> struct RowLists {
  i32 items;
  RowItem item[ROWS / PER + (ROWS < EXPERTS + 1 ? ROWS : EXPERTS + 1)];
  i32 first[EXPERTS + 1];  // of an expert's rows in `row`; before that how many there are
  u16 row[ROWS];
};
// What a lane of a warp that counts keeps: keys of its rows (-1: none), and how many of the warp's rows of that key stand before each.
template <int ROWS, int WARPS> struct OwnRows {
  static constexpr int TURNS = (ROWS + 32 * WARPS - 1) / (32 * WARPS);
  i32 key[TURNS];
  i32 before[TURNS];
  // Number of row `turn` of this lane.
  __device__ __forceinline__ static int row(int warp, int turn, int rows) {
    const int turns = (rows + 32 * WARPS - 1) / (32 * WARPS);
    return turn < turns ? (warp * turns + turn) * 32 + (int)(threadIdx.x & 31) : rows;
  }
};
// `counts` holds WARPS x (EXPERTS + 1) zeros: rows of each key in each warp.
template <int EXPERTS, int ROWS, int WARPS>
__device__ __forceinline__ void count_rows(OwnRows<ROWS, WARPS>& own, u16* counts, const i32* ids, int rows, int warp) {
#pragma unroll
  for (int i = 0; i < own.TURNS; i++) {
    const int at = own.row(warp, i, rows);
    const i32 id = at < rows ? load_now(ids + at) : 0;
    own.key[i] = at >= rows ? -1 : id < 0 || id >= EXPERTS ? EXPERTS : id;
  }
  u16* const mine = counts + warp * (EXPERTS + 1);
  const u32 lower = (1u << (threadIdx.x & 31)) - 1;
#pragma unroll
  for (int i = 0; i < own.TURNS; i++) {
    const i32 key = own.key[i];
    const u32 same = __match_any_sync(0xffffffffu, key);
    const i32 old = key >= 0 ? mine[key] : 0;
    __syncwarp();
    if (key >= 0 && (same & lower) == 0) mine[key] = (u16)(old + __popc(same));
    __syncwarp();
    own.before[i] = old + __popc(same & lower);
  }
}
// Sums over warps: counts become those of the warps in front. All THREADS threads call.
template <int WARPS, int THREADS, int ROWS, int PER, int EXPERTS>
__device__ __forceinline__ void add_counts(RowLists<ROWS, PER, EXPERTS>& lists, u16* counts) {
  for (int key = threadIdx.x; key <= EXPERTS; key += THREADS) {
    i32 found[WARPS];
#pragma unroll
    for (int w = 0; w < WARPS; w++) found[w] = counts[w * (EXPERTS + 1) + key];
    i32 sum = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
      counts[w * (EXPERTS + 1) + key] = (u16)sum;
      sum += found[w];
    }
    lists.first[key] = sum;
  }
}
// Cuts every expert's rows into items. One whole warp calls.
template <int ROWS, int PER, int EXPERTS> __device__ __forceinline__ void list_items(RowLists<ROWS, PER, EXPERTS>& lists) {
  const int lane = threadIdx.x & 31;
  i32 row = 0;
  i32 item = 0;
  for (int from = 0; from <= EXPERTS; from += 32) {
    const int key = from + lane;
    const i32 count = key <= EXPERTS ? lists.first[key] : 0;
    const i32 cut = (count + PER - 1) / PER;
    i32 rows_to = count;
    i32 items_to = cut;
#pragma unroll
    for (int far = 1; far < 32; far *= 2) {
      const i32 r = __shfl_up_sync(0xffffffffu, rows_to, far);
      const i32 t = __shfl_up_sync(0xffffffffu, items_to, far);
      if (lane >= far) {
        rows_to += r;
        items_to += t;
      }
    }
    const i32 first = row + rows_to - count;
    if (key <= EXPERTS) lists.first[key] = first;
    for (i32 i = 0; i < cut; i++) {
      const i32 left = count - i * PER;
      lists.item[item + items_to - cut + i] = {key, (u16)(first + i * PER), (u16)(left < PER ? left : PER)};
    }
    row += __shfl_sync(0xffffffffu, rows_to, 31);
    item += __shfl_sync(0xffffffffu, items_to, 31);
  }
  if (lane == 0) lists.items = item;
}
template <int ROWS, int PER, int EXPERTS, int WARPS>
__device__ __forceinline__ void place_rows(RowLists<ROWS, PER, EXPERTS>& lists, const OwnRows<ROWS, WARPS>& own, const u16* counts, int rows, int warp) {
#pragma unroll
  for (int i = 0; i < own.TURNS; i++) {
    const i32 key = own.key[i];
    if (key >= 0) lists.row[lists.first[key] + counts[warp * (EXPERTS + 1) + key] + own.before[i]] = (u16)own.row(warp, i, rows);
  }
}
