// ${ir}
extern "C" __global__ void __launch_bounds__(256)
${entry}(const f32* __restrict__ logits, const u32* __restrict__ counts, const i32* __restrict__ slots,
         const f32* __restrict__ repetition, const f32* __restrict__ presence, const f32* __restrict__ frequency,
         f32* __restrict__ y, i64 n) {
  constexpr i64 VOCAB = ${vocab};
  const i64 i = (i64)blockIdx.x * 256 + threadIdx.x;
  if (i >= n) return;
  const i64 r = i / VOCAB;
  const i64 slot = slots[r];
  f32 z = logits[i];
  const u32 count = slot < 0 ? 0u : counts[slot * VOCAB + (i - r * VOCAB)];
  if (count != 0) {
    const u32 generated = count & 0x7fffffffu;
    z = z > 0.0f ? z / repetition[r] : z * repetition[r];
    if (generated != 0) z = z - __fmul_rn(frequency[r], (f32)generated) - presence[r];
  }
  y[i] = z;
}
