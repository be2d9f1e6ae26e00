// ${ir}
// Rows that keep all tokens: the greatest logit, or the greatest z + Gumbel noise with z = logit / temperature. The blocks of a row share it out,
// and the last to finish compares their winners. Rows with filters are left to the launch in front.
// Noise depends on seed and position only. So with maxima a warp draws the random words of its tiles first, while the logits may still be in the
// making. A tile's least word, which has the most noise, and its greatest logit bound what is in it: only the few tiles that may win are read.
constexpr int WARPS = ${warps};
constexpr int THREADS = 32 * WARPS;
constexpr int TILE = ${tile};         // logits of each of the given maxima; 0: none are given
constexpr bool ALIGNED = ${aligned};  // rows are a whole number of 16 bytes
constexpr u32 ALL = 0xffffffffu;

struct Row {
  const f32* logits;
  i32 n;
  f32 temperature;
  f32 inverse;  // 1 / temperature
  bool usual;   // if that is an ordinary number
  u32 pos;
  u32 key0;
  u32 key1;
};

__device__ __forceinline__ uint4 words_of(const Row& row, u32 q) { return philox(make_uint4(q, row.pos, 0, 0), row.key0, row.key1); }
__device__ __forceinline__ u32 least_of(uint4 x) { return min(min(x.x, x.y), min(x.z, x.w)); }

// Logits 4 q .. 4 q + 3; minus infinity behind the end.
typedef Pack<f32, 4> Quad;
__device__ __forceinline__ Quad load_quad(const Row& row, i32 q) {
  Quad x = {{-INF, -INF, -INF, -INF}};
  if (ALIGNED) {
    if (4 * q < row.n) x = *((const Quad*)row.logits + q);
  } else {
#pragma unroll
    for (int e = 0; e < 4; e++) {
      if (4 * q + e < row.n) x.at[e] = row.logits[4 * q + e];
    }
  }
  return x;
}

// About z of a logit.
__device__ __forceinline__ f32 about(const Row& row, f32 logit) {
  return row.usual ? logit * row.inverse : logit / row.temperature;
}

// The index of the greatest logit. All of a block calls.
__device__ __forceinline__ u32 greatest_logit(const Row& row, const f32* maxima) {
  if (TILE > 0) return argmax_by_tile<(TILE > 0 ? TILE : 1), THREADS>(row.logits, maxima, row.n);
  u64 best = 0;
  for (i32 i = threadIdx.x; i < row.n; i += THREADS) {
    const u64 key = order_key(row.logits[i], (u32)i);
    best = best > key ? best : key;
  }
  return key_index(block_max<WARPS>(best));
}

// The lane's part of the greatest key of a tile; raises the floor of all lanes.
__device__ __forceinline__ u64 draw_tile(const Row& row, i32 tile, f32& floor) {
  u64 best = 0;
  for (int part = 0; part < TILE / 128; part++) {
    const i32 q = tile * (TILE / 4) + part * 32 + (threadIdx.x & 31);
    const Quad x = load_quad(row, q);
    const uint4 random = words_of(row, (u32)q);
    f32 z[4];
#pragma unroll
    for (int e = 0; e < 4; e++) z[e] = scale(x.at[e], row.temperature);
    floor = fmaxf(floor, warp_max(sure(z, random)));
    const u64 key = draw(z, random, (u32)q, floor, [&](int e) { return 4 * q + e < row.n; });
    best = best > key ? best : key;
    floor = warp_max(floor);
  }
  return best;
}

// Tiles first .. last - 1 by a warp: the lane's part of the greatest key.
__device__ __forceinline__ u64 draw_tiles(const Row& row, const f32* maxima, i32 first, i32 last) {
  const int lane = threadIdx.x & 31;
  // Of the least words of up to 32 tiles each lane keeps one.
  auto least_words = [&](i32 from) {
    const int count = last - from < 32 ? last - from : 32;
    u32 mine = ALL;
    for (int i = 0; i < count; i += 2) {
      u32 least[2] = {ALL, ALL};
#pragma unroll
      for (int j = 0; j < 2; j++) {
#pragma unroll
        for (int part = 0; part < TILE / 128; part++) {
          const u32 q = (u32)((from + i + j) * (TILE / 4) + part * 32 + lane);
          least[j] = min(least[j], least_of(words_of(row, q)));
        }
      }
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const u32 of_tile = __reduce_min_sync(ALL, least[j]);
        if (lane == i + j) mine = of_tile;
      }
    }
    return mine;
  };
  u32 least = least_words(first);
  ${wait_later}
  u64 best = 0;
  f32 floor = -INF;
  for (i32 from = first; from < last; from += 32) {
    if (from > first) least = least_words(from);
    f32 bound = -INF;
    if (from + lane < last) bound = about(row, maxima[from + lane]) + most_noise(least);
    while (true) {
      // The greatest bound first, as that raises the floor most.
      const u32 key = bound > -INF && bound >= below(floor) ? order_key(bound) : 0u;
      const u32 greatest = __reduce_max_sync(ALL, key);
      if (greatest == 0) break;
      const int at = __ffs((int)__ballot_sync(ALL, key == greatest)) - 1;
      const u64 found = draw_tile(row, from + at, floor);
      best = best > found ? best : found;
      if (lane == at) bound = -INF;
    }
  }
  return best;
}

// Quads first .. last - 1 by a block: the thread's part of the greatest key.
__device__ __forceinline__ u64 draw_quads(const Row& row, i32 first, i32 last) {
  constexpr int AT_ONCE = 4;
  ${wait_later}
  u64 best = 0;
  f32 floor = -INF;
  for (i32 from = first; from < last; from += AT_ONCE * THREADS) {
    Quad x[AT_ONCE];
    uint4 random[AT_ONCE];
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) x[i] = load_quad(row, from + i * THREADS + (i32)threadIdx.x);
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) random[i] = words_of(row, (u32)(from + i * THREADS + (i32)threadIdx.x));
    if (from == first) {
      // What some thread has is a bound for all.
      f32 most = -INF;
#pragma unroll
      for (int i = 0; i < AT_ONCE; i++) {
        f32 z[4];
#pragma unroll
        for (int e = 0; e < 4; e++) z[e] = about(row, x[i].at[e]);
        most = fmaxf(most, sure(z, random[i]));
      }
      floor = fmaxf(floor, block_max<WARPS>(most));
    }
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      const i32 q = from + i * THREADS + (i32)threadIdx.x;
      const f32 greatest = fmaxf(fmaxf(x[i].at[0], x[i].at[1]), fmaxf(x[i].at[2], x[i].at[3]));
      const f32 bound = about(row, greatest) + most_noise(least_of(random[i]));
      if (q >= last || !(bound > -INF && bound >= below(floor))) continue;
      f32 z[4];
#pragma unroll
      for (int e = 0; e < 4; e++) z[e] = scale(x[i].at[e], row.temperature);
      const u64 key = draw(z, random[i], (u32)q, floor, [&](int e) { return 4 * q + e < row.n; });
      best = best > key ? best : key;
    }
  }
  return best;
}

extern "C" __global__ void __launch_bounds__(THREADS)
${entry}(const f32* logits, const f32* temperature, const i32* top_k, const f32* top_p, const f32* min_p, const i32* seed, const i32* pos,
         ${maxima}i32* tokens, u64* scratch, u32* counters, i32 n, i32 share) {
  let_successors_start();
  ${wait_first}
  const int r = blockIdx.x / share;
  const int b = blockIdx.x - r * share;
  const f32 heat = temperature[r];
  const i32 k = top_k[r];
  const bool greedy = !(heat > 0.0f);
  const bool filters = !greedy && ((k > 0 && k < n) || top_p[r] < 1.0f || min_p[r] > 0.0f);
  Row row;
  row.logits = logits + (i64)r * n;
  row.n = n;
  row.temperature = heat;
  row.inverse = 1.0f / heat;
  row.usual = heat > 1e-37f && heat < 1e37f;
  row.pos = (u32)pos[r];
  row.key0 = (u32)seed[2 * r];
  row.key1 = (u32)seed[2 * r + 1];
  ${maxima_of_row}
  if (filters || (greedy && TILE > 0)) {
    ${wait_later}
    if (filters || b != 0) return;
    const u32 top = greatest_logit(row, of_tiles);
    if (threadIdx.x == 0) tokens[r] = (i32)top;
    return;
  }
  u64 best = 0;
  if (greedy) {
    ${wait_later}
    for (i32 i = b * THREADS + (i32)threadIdx.x; i < n; i += share * THREADS) {
      const u64 key = order_key(row.logits[i], (u32)i);
      best = best > key ? best : key;
    }
  } else if (TILE > 0) {
    const i32 tiles = (n - 1) / (TILE > 0 ? TILE : 1) + 1;
    const i32 per = (tiles - 1) / (share * WARPS) + 1;
    i32 first = (b * WARPS + (i32)(threadIdx.x >> 5)) * per;
    first = first < tiles ? first : tiles;
    best = draw_tiles(row, of_tiles, first, first + per < tiles ? first + per : tiles);
  } else {
    const i32 quads = (n - 1) / 4 + 1;
    const i32 per = (quads - 1) / share + 1;
    const i32 first = b * per;
    best = draw_quads(row, first, first + per < quads ? first + per : quads);
  }
  best = block_max<WARPS>(best);
  if (share > 1) {
    u64* const slots = scratch + (i64)r * share;
    if (threadIdx.x == 0) slots[b] = best;
    if (!last_of(counters + r, (u32)share)) return;
    for (int i = threadIdx.x & 31; i < share; i += 32) {
      const u64 other = __ldcg(slots + i);
      best = best > other ? best : other;
    }
    best = warp_max(best);
  }
  // Where the greatest z is not finite, no score is.
  u32 token = key_index(best);
  const u32 score = (u32)(best >> 32);
  if (!greedy && (score <= order_key(-INF) || score >= order_key(INF))) token = greatest_logit(row, of_tiles);
  if (threadIdx.x == 0) tokens[r] = (i32)token;
}
