// ${ir}
// Bit 31 of a count marks a prompt token; the rest is how often the token was generated.
extern "C" __global__ void __launch_bounds__(256)
${entry}(u32* __restrict__ counts, const i32* __restrict__ tokens, const i32* __restrict__ pos, const i32* __restrict__ seq,
         const i32* __restrict__ slots, const i32* __restrict__ prompt_len, i64 n, i64 sequences) {
  constexpr i64 VOCAB = ${vocab};
  const i64 t = (i64)blockIdx.x * 256 + threadIdx.x;
  if (t >= n) return;
  const i64 s = seq[t];
  const i64 token = tokens[t];
  if (s < 0 || s >= sequences || token < 0 || token >= VOCAB) return;
  const i64 slot = slots[s];
  if (slot < 0) return;
  u32* count = counts + slot * VOCAB + token;
  if (pos[t] >= prompt_len[s]) {
    atomicAdd(count, 1u);
  } else {
    atomicOr(count, 0x80000000u);
  }
}
