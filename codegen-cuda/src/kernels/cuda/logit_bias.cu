// ${ir}
// A block copies 1024 logits of a row, then adds the biases that fall among them.
extern "C" __global__ void __launch_bounds__(256)
${entry}(const f32* __restrict__ logits, const i32* __restrict__ ids, const f32* __restrict__ values, f32* __restrict__ y,
         i64 vocab, i64 chunks, i64 biases) {
  const i64 r = blockIdx.x / chunks;
  const i64 first = (blockIdx.x - r * chunks) * 1024;
  const i64 last = first + 1024 < vocab ? first + 1024 : vocab;
  for (i64 i = first + threadIdx.x; i < last; i += 256) y[r * vocab + i] = logits[r * vocab + i];
  __syncthreads();
  for (i64 b = threadIdx.x; b < biases; b += 256) {
    const i64 id = ids[r * biases + b];
    if (id >= first && id < last) y[r * vocab + id] += values[r * biases + b];
  }
}
