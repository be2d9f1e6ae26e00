// ${ir}
// A thread expands 8 codes, exactly: E2M1(code) * 2^(scale - 127).
extern "C" __global__ void __launch_bounds__(256)
${entry}(const u32* __restrict__ codes, const u8* __restrict__ scales, ${type}* __restrict__ y, i64 n) {
  const i64 i = (i64)blockIdx.x * 256 + threadIdx.x;
  if (i >= n) return;
  const u32 word = codes[i];
  const u32 e = scales[i >> 2];
  const f32 scale = __uint_as_float(e == 255 ? 0x7fffffffu : e == 0 ? 0x00400000u : e << 23);
  constexpr int W = 16 / sizeof(${type});
  Pack<${type}, W> out[8 / W];
#pragma unroll
  for (int k = 0; k < 8; k++) {
    // As bits of a float the code is its value times 2^-126; code 1 is a subnormal.
    const u32 code = word >> (4 * k);
    const f32 value = __uint_as_float((code & 8u) << 28 | (code & 7u) << 22) * 8.50705917e37f;
    out[k / W].at[k % W] = from_f32<${type}>(value * scale);
  }
#pragma unroll
  for (int o = 0; o < 8 / W; o++) ((Pack<${type}, W>*)y)[i * (8 / W) + o] = out[o];
}
