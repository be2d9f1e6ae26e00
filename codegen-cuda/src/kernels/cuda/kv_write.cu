// ${ir}
// A thread moves ${v} elements of a head of k and of v. Buffers are [pages, ${heads}, ${page}, ${dim}].
extern "C" __global__ void __launch_bounds__(256)
${entry}(${kv_type}* __restrict__ keys, ${kv_type}* __restrict__ values, const ${k_type}* __restrict__ k,
         const ${v_type}* __restrict__ v, const i32* __restrict__ pos, const i32* __restrict__ seq,
         const i32* __restrict__ pages, i64 n, i64 sequences, i64 row_pages) {
  constexpr int V = ${v};
  constexpr i64 HEADS = ${heads};
  constexpr i64 PAGE = ${page};
  constexpr i64 DIM = ${dim};
  const i64 i = (i64)blockIdx.x * 256 + threadIdx.x;
  if (i >= n) return;
  const i64 head_of_step = i / (DIM / V);
  const i64 d = (i - head_of_step * (DIM / V)) * V;
  const i64 t = head_of_step / HEADS;
  const i64 head = head_of_step - t * HEADS;
  const i64 s = seq[t];
  const i64 p = pos[t];
  if (s < 0 || s >= sequences || p < 0 || p / PAGE >= row_pages) return;
  const i64 page = pages[s * row_pages + p / PAGE];
  if (page < 0) return;
  const i64 from = head_of_step * DIM + d;
  const i64 to = ((page * HEADS + head) * PAGE + p % PAGE) * DIM + d;
  const auto k_in = *(const Pack<${k_type}, V>*)(k + from);
  const auto v_in = *(const Pack<${v_type}, V>*)(v + from);
  Pack<${kv_type}, V> k_out;
  Pack<${kv_type}, V> v_out;
#pragma unroll
  for (int e = 0; e < V; e++) {
    k_out.at[e] = from_f32<${kv_type}>(to_f32(k_in.at[e]));
    v_out.at[e] = from_f32<${kv_type}>(to_f32(v_in.at[e]));
  }
  *(Pack<${kv_type}, V>*)(keys + to) = k_out;
  *(Pack<${kv_type}, V>*)(values + to) = v_out;
}
