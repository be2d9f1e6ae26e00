// Attention of steps that decode: what its kernels do alike, so that a row has the same bits whichever of them makes it. Roundings are spelled out, here and
// in the kernel for many tokens of a sequence. A warp has keys (or elements of values) as rows of its multiplies and query heads as columns; with
// g = lane / 4, c = lane % 4 a lane has sums of heads 2c and 2c + 1.

// Greatest logit, sum of exponentials and four of the weighted sums of a range of keys.
struct Fold {
  f32 most;
  f32 sum;
  Pack<f32, 4> x;
};
__device__ __forceinline__ Fold nothing() { return {-INF, 0.0f, {{0.0f, 0.0f, 0.0f, 0.0f}}}; }
__device__ __forceinline__ void merge(Fold& f, const Fold& g) {
  const f32 most = fmaxf(f.most, g.most);
  const f32 base = most == -INF ? 0.0f : most;
  const f32 a = exp2_fast(f.most - base);
  const f32 b = exp2_fast(g.most - base);
  f.most = most;
  f.sum = fmaf(f.sum, a, __fmul_rn(g.sum, b));
#pragma unroll
  for (int i = 0; i < 4; i++) f.x.at[i] = fmaf(f.x.at[i], a, __fmul_rn(g.x.at[i], b));
}

// Transposes a matrix of 8 x 8 elements that a warp holds, a row in 4 lanes.
__device__ __forceinline__ u32 transpose8(u32 x) {
  u32 y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

// The key of a piece of 32 whose values a lane holds as its row i of 8: of 16, keys 2c, 2c + 1, 2c + 8 and 2c + 9.
__device__ __forceinline__ int key_of_row(int i, int c) { return 16 * (i >> 2) + 2 * c + (i & 1) + 8 * (i >> 1 & 1); }

// Folds the logits of a piece into what there is of its heads. Key 8 i + g, head 2c + e in z[i / 2][2 (i % 2) + e]. Leaves its exponentials in `p`, as the
// right operand of multiplies with values, and the factors of what was there (`keep`) and of the piece (`gain`).
template <class T>
__device__ __forceinline__ void fold_logits(f32 (&z)[2][4], f32 (&most)[2], f32 (&sum)[2], u32 (&p)[2][2], f32 (&keep)[2], f32 (&gain)[2]) {
  f32 own_most[2];
#pragma unroll
  for (int e = 0; e < 2; e++) {
    own_most[e] = fmaxf(fmaxf(z[0][e], z[0][2 + e]), fmaxf(z[1][e], z[1][2 + e]));
#pragma unroll
    for (int m = 4; m < 32; m <<= 1) own_most[e] = fmaxf(own_most[e], __shfl_xor_sync(0xffffffffu, own_most[e], m));
    const f32 base = own_most[e] == -INF ? 0.0f : own_most[e];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      f32& x = z[i >> 1][2 * (i & 1) + e];
      x = exp2_fast(x - base);
    }
  }
#pragma unroll
  for (int u = 0; u < 2; u++) {
#pragma unroll
    for (int h = 0; h < 2; h++) p[u][h] = transpose8(pack2<T>(z[u][2 * h], z[u][2 * h + 1]));
  }
  // Exponentials are summed as rounded, by multiplying them with ones.
  f32 own_sum[4] = {};
  const u32 ones = pack2<T>(1.0f, 1.0f);
#pragma unroll
  for (int u = 0; u < 2; u++) mma(T(), own_sum, ones, ones, ones, ones, p[u][0], p[u][1]);
  // As merge() of folds.
#pragma unroll
  for (int e = 0; e < 2; e++) {
    const f32 top = fmaxf(most[e], own_most[e]);
    const f32 base = top == -INF ? 0.0f : top;
    keep[e] = exp2_fast(most[e] - base);
    gain[e] = exp2_fast(own_most[e] - base);
    most[e] = top;
    sum[e] = fmaf(sum[e], keep[e], __fmul_rn(own_sum[e], gain[e]));
  }
}

// Folds the values of a piece into the weighted sums of 64 elements of its heads. v[i]: elements 8 g .. 8 g + 7 of key key_of_row(i, c). Row r of tile j is
// element 8 r + 2 j (rows of the upper half: 8 (r - 8) + 2 j + 1), so element 8 g + 2 j + h of head 2c + e is in out[j][2 h + e].
template <class T>
__device__ __forceinline__ void fold_values(f32 (&out)[4][4], const uint4 (&v)[8], const u32 (&p)[2][2], const f32 (&keep)[2], const f32 (&gain)[2]) {
  auto word = [&](int i, int j) -> u32 { return j == 0 ? v[i].x : j == 1 ? v[i].y : j == 2 ? v[i].z : v[i].w; };
#pragma unroll
  for (int j = 0; j < 4; j++) {
    f32 own[4] = {};
#pragma unroll
    for (int u = 0; u < 2; u++) {
      const u32 a = word(4 * u, j);
      const u32 b = word(4 * u + 1, j);
      const u32 e = word(4 * u + 2, j);
      const u32 f = word(4 * u + 3, j);
      mma(T(), own, __byte_perm(a, b, 0x5410u), __byte_perm(a, b, 0x7632u), __byte_perm(e, f, 0x5410u), __byte_perm(e, f, 0x7632u), p[u][0], p[u][1]);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) out[j][i] = fmaf(out[j][i], keep[i & 1], __fmul_rn(own[i], gain[i & 1]));
  }
}

// Four weighted sums times the factor of their head, as elements. A zero has no sign: it would tell by what blocks it was made.
template <class T> __device__ __forceinline__ Pack<u32, 2> scaled(const Pack<f32, 4>& sums, f32 factor) {
  f32 x[4];
#pragma unroll
  for (int e = 0; e < 4; e++) x[e] = fmaf(sums.at[e], factor, 0.0f);
  return {pack2<T>(x[0], x[1]), pack2<T>(x[2], x[3])};
}

// Sum of the x of this thread and all in front of it, and of `all`, which becomes the sum up to the last thread. `sums`: a place for each warp of the block.
template <int WARPS> __device__ __forceinline__ i32 sum_through(i32 x, i32 (&sums)[WARPS], i32& all) {
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
#pragma unroll
  for (int m = 1; m < 32; m <<= 1) {
    const i32 other = __shfl_up_sync(0xffffffffu, x, m);
    if (lane >= m) x += other;
  }
  __syncthreads();
  if (lane == 31) sums[warp] = x;
  __syncthreads();
  x += all;
#pragma unroll
  for (int w = 0; w < WARPS; w++) {
    if (w < warp) x += sums[w];
    all += sums[w];
  }
  return x;
}
