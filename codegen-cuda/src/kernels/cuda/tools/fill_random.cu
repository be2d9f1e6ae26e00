// Values uniform in [-1, 1), the same for the same seed.
extern "C" __global__ void __launch_bounds__(256)
${entry}(${type}* out, i64 n, u64 seed) {
  const i64 stride = (i64)gridDim.x * 256;
  for (i64 i = (i64)blockIdx.x * 256 + threadIdx.x; i < n; i += stride) {
    u64 z = seed + (u64)(i + 1) * 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    out[i] = from_f32<${type}>((f32)(i32)((u32)(z >> 32) ^ (u32)z) * 4.656612873e-10f);
  }
}
