// ${ir}
// Operands that tensor cores would round: 16 rows of x (slots) times 64 rows of w in f32, summed in the order of k.
typedef ${out_type} Out;
${constants}
constexpr int SLOTS = 16;
constexpr int HEIGHT = 64;

extern "C" __global__ void __launch_bounds__(256)
${entry}(const ${x_type}* __restrict__ x, const ${w_type}* __restrict__ w, Out* __restrict__ y, u32 tiles${params}) {
  __shared__ f32 x_tile[SLOTS][33];
  __shared__ f32 w_tile[HEIGHT][33];
  const u32 tile = blockIdx.x % tiles;
  const i64 n0 = (i64)(blockIdx.x / tiles) * HEIGHT;
  ${locate}
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const int column = threadIdx.x & 15;
  const int own = threadIdx.x >> 4;
  f32 acc[4] = {};
  for (i64 k0 = 0; k0 < K; k0 += 32) {
    const i64 k = k0 + lane;
    for (int i = warp; i < SLOTS; i += 8) {
      const int slot = i < count ? i : 0;
      x_tile[i][lane] = k < K ? to_f32(x[(i64)(${x_row}) * K + k]) : 0.0f;
    }
    for (int i = warp; i < HEIGHT; i += 8) {
      const i64 n = n0 + i < N ? n0 + i : N - 1;
      w_tile[i][lane] = k < K ? to_f32(w[n * K + k]) : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < 32; j++) {
#pragma unroll
      for (int i = 0; i < 4; i++) acc[i] = fmaf(x_tile[own][j], w_tile[column + 16 * i][j], acc[i]);
    }
    __syncthreads();
  }
  if (own >= count) return;
  const int slot = own;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const i64 n = n0 + column + 16 * i;
    if (n >= N) continue;
    const f32 sum = acc[i];
    ${epilogue}
  }
}
