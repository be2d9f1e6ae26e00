// Reads n times 16 bytes once, as fast as the memory gives them: 64 KB of every multiprocessor under way with two blocks on each.
extern "C" __global__ void __launch_bounds__(512, 2)
${entry}(const uint4* data, i64 n, u32* out) {
  constexpr int DEEP = 4;
  const i64 stride = (i64)gridDim.x * 512;
  u32 sum = 0;
  for (i64 i = (i64)blockIdx.x * 512 + threadIdx.x; i < n; i += DEEP * stride) {
    uint4 v[DEEP];
#pragma unroll
    for (int d = 0; d < DEEP; d++) {
      const i64 at = i + d * stride;
      v[d] = make_uint4(0, 0, 0, 0);
      if (at < n) {
        asm volatile("ld.global.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(v[d].x), "=r"(v[d].y), "=r"(v[d].z), "=r"(v[d].w)
                     : "l"(data + at));
      }
    }
#pragma unroll
    for (int d = 0; d < DEEP; d++) sum ^= v[d].x ^ v[d].y ^ v[d].z ^ v[d].w;
  }
  if (sum == 0x9e3779b9u) *out = sum;  // never mind what it is; the loads must not be dropped
}
