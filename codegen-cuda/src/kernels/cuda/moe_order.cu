// ${ir}
// A cluster of BLOCKS blocks lists the rows (t, j) by expert, those of an expert in order, rows whose id is no expert last, and cuts each list into
// tiles of up to SLOTS rows: expert, first place in `rows`, number of rows. Word 0 of the first entry of `tiles` counts the others.
constexpr int EXPERTS = ${experts};
constexpr int SLOTS = ${slots};
constexpr int BLOCKS = ${blocks};
constexpr int WARPS = ${warps};
constexpr int THREADS = 32 * WARPS;
constexpr int KEYS = EXPERTS + 1;

// Where a key's rows of a warp go among those of the block, then among all.
struct Places {
  i32 of[WARPS][KEYS];
  i32 block[BLOCKS][KEYS];  // rows of each key in each block
  i32 rows[KEYS];
  i32 first_row[KEYS + 1];
  i32 first_tile[KEYS + 1];
};

extern "C" __global__ void ${cluster}__launch_bounds__(THREADS)
${entry}(const i32* ids, i32* rows, int4* tiles, i32 n) {
  extern __shared__ uint4 shared[];
  Places& places = *(Places*)shared;
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const int block = (int)blockIdx.x;
  cluster_arrive<BLOCKS>();
  for (int i = threadIdx.x; i < WARPS * KEYS; i += THREADS) places.of[i / KEYS][i % KEYS] = 0;
  let_successors_start();
  wait_for_predecessors();
  __syncthreads();
  // A warp's share of the rows is one run of them, so ranks follow the order of rows.
  const int share = (n + 32 * WARPS * BLOCKS - 1) / (32 * WARPS * BLOCKS) * 32;
  const int first = (block * WARPS + warp) * share;
  const int end = first + share < n ? first + share : n;
  auto key_of = [&](int i) {
    const i32 id = i < end ? ids[i] : 0;
    return i >= end ? -1 : id < 0 || id >= EXPERTS ? EXPERTS : id;
  };
#pragma unroll 4
  for (int i = first + lane; i - lane < end; i += 32) {
    const int key = key_of(i);
    const u32 same = __match_any_sync(0xffffffffu, key);
    if (key >= 0 && lane == __ffs(same) - 1) places.of[warp][key] += __popc(same);
    __syncwarp();
  }
  __syncthreads();
  cluster_wait<BLOCKS>();  // all blocks have begun, so they may be written to
  for (int key = threadIdx.x; key < KEYS; key += THREADS) {
    i32 sum = 0;
    for (int w = 0; w < WARPS; w++) {
      const i32 found = places.of[w][key];
      places.of[w][key] = sum;
      sum += found;
    }
    for (int b = 0; b < BLOCKS; b++) store_peer<BLOCKS>((f32*)&places.block[block][key], b, __int_as_float(sum));
  }
  cluster_sync<BLOCKS>();
  for (int key = threadIdx.x; key < KEYS; key += THREADS) {
    i32 before = 0;
    i32 all = 0;
    for (int b = 0; b < BLOCKS; b++) {
      const i32 found = places.block[b][key];
      if (b < block) before += found;
      all += found;
    }
    places.rows[key] = all;
    for (int w = 0; w < WARPS; w++) places.of[w][key] += before;
  }
  __syncthreads();
  if (warp == 0) {
    i32 row = 0;
    i32 tile = 0;
    for (int chunk = 0; chunk < KEYS; chunk += 32) {
      const int key = chunk + lane;
      const i32 count = key < KEYS ? places.rows[key] : 0;
      const i32 cut = (count + SLOTS - 1) / SLOTS;
      i32 rows_to = count;
      i32 tiles_to = cut;
#pragma unroll
      for (int far = 1; far < 32; far *= 2) {
        const i32 r = __shfl_up_sync(0xffffffffu, rows_to, far);
        const i32 t = __shfl_up_sync(0xffffffffu, tiles_to, far);
        if (lane >= far) {
          rows_to += r;
          tiles_to += t;
        }
      }
      if (key < KEYS) {
        places.first_row[key] = row + rows_to - count;
        places.first_tile[key] = tile + tiles_to - cut;
      }
      row += __shfl_sync(0xffffffffu, rows_to, 31);
      tile += __shfl_sync(0xffffffffu, tiles_to, 31);
    }
    if (lane == 0) {
      places.first_row[KEYS] = row;
      places.first_tile[KEYS] = tile;
      if (block == 0) tiles[0] = make_int4(tile, 0, 0, 0);
    }
  }
  __syncthreads();
  for (int i = block * THREADS + threadIdx.x; i < places.first_tile[KEYS]; i += BLOCKS * THREADS) {
    int low = 0;  // the last key whose tiles begin at or before i
    int high = KEYS - 1;
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (places.first_tile[middle] <= i) low = middle; else high = middle - 1;
    }
    const i32 from = places.first_row[low] + (i - places.first_tile[low]) * SLOTS;
    const i32 left = places.first_row[low + 1] - from;
    tiles[1 + i] = make_int4(low, from, left < SLOTS ? left : SLOTS, 0);
  }
#pragma unroll 4
  for (int i = first + lane; i - lane < end; i += 32) {
    const int key = key_of(i);
    const u32 same = __match_any_sync(0xffffffffu, key);
    if (key >= 0) rows[places.first_row[key] + places.of[warp][key] + __popc(same & ((1u << lane) - 1))] = i;
    __syncwarp();
    if (key >= 0 && lane == __ffs(same) - 1) places.of[warp][key] += __popc(same);
    __syncwarp();
  }
}
