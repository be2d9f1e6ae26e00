// ${ir}
// Operands that tensor cores would round: one block a token and query head, keys in blocks of 128 from the first, in f32.
constexpr int DIM = ${dim};
constexpr int KV_HEADS = ${kv_heads};
constexpr int GROUP = ${group};   // query heads of a key head
constexpr int PAGE = ${page};    // keys of a page
constexpr int WINDOW = ${window};  // 0: all keys

extern "C" __global__ void __launch_bounds__(128)
${entry}(const ${q_type}* __restrict__ q, const ${kv_type}* __restrict__ keys, const ${kv_type}* __restrict__ values,
         const i32* __restrict__ pos, const i32* __restrict__ seq, const i32* __restrict__ pages, ${sinks}${q_type}* __restrict__ y,
         i32 n, i32 sequences, i64 row_pages) {
  __shared__ f32 query[DIM];
  __shared__ f32 part[128];
  __shared__ i64 place[128];
  const int head = blockIdx.x % (KV_HEADS * GROUP);
  const i64 t = blockIdx.x / (KV_HEADS * GROUP);
  const i64 row = (i64)blockIdx.x * DIM;
  const i32 s = seq[t];
  const i32 p = pos[t];
  for (int d = threadIdx.x; d < DIM; d += 128) query[d] = to_f32(q[row + d]);
  f32 most = -INF;
  f32 sum = 0.0f;
  f32 out[(DIM + 127) / 128] = {};
  const bool live = s >= 0 && s < sequences;
  const i32 oldest = WINDOW == 0 || p < WINDOW ? 0 : p - WINDOW + 1;
  for (i32 first = oldest / 128 * 128; live && first <= p; first += 128) {
    const i32 key = first + threadIdx.x;
    const i32 page = key / PAGE < row_pages ? pages[s * row_pages + key / PAGE] : -1;
    const bool seen = key <= p && key >= oldest && page >= 0;
    const i64 at = (((i64)page * KV_HEADS + head / GROUP) * PAGE + key % PAGE) * DIM;
    __syncthreads();
    f32 z = -INF;
    if (seen) {
      z = 0.0f;
      for (int d = 0; d < DIM; d++) z = fmaf(query[d], to_f32(keys[at + d]), z);
      z *= ${scale};
    }
    const f32 block_most = block_max<4>(z);
    const f32 next = max_nan(most, block_most);
    const f32 base = next == -INF ? 0.0f : next;
    const f32 weight = exp2f(z - base);
    const f32 keep = exp2f(most - base);
    part[threadIdx.x] = weight;
    place[threadIdx.x] = seen ? at : -1;
    sum = sum * keep + block_sum<4>(weight);
    most = next;
#pragma unroll
    for (int i = 0; i < (DIM + 127) / 128; i++) {
      const int d = i * 128 + threadIdx.x;
      out[i] *= keep;
      if (d >= DIM) continue;
      for (int j = 0; j < 128; j++) {
        if (place[j] >= 0) out[i] += part[j] * to_f32(values[place[j] + d]);
      }
    }
  }
  f32 factor = 1.0f;
  ${sink}
  factor = sum > 0.0f || sum != sum ? factor / sum : 0.0f;
#pragma unroll
  for (int i = 0; i < (DIM + 127) / 128; i++) {
    const int d = i * 128 + threadIdx.x;
    if (d < DIM) y[row + d] = from_f32<${q_type}>(out[i] * factor);
  }
}
