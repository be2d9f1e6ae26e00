// d += a * b of one warp: a is 16 x 16 (rows of weights or queries), b is 16 x 8, d is 16 x 8, sums in f32.
// With g = lane / 4, c = lane % 4: a0 (row g, k 2c..), a1 (row g + 8, k 2c..), a2 (row g, k 2c + 8..), a3 (row g + 8, k 2c + 8..);
// b0 (k 2c.., column g), b1 (k 2c + 8.., column g); d0, d1 (row g, columns 2c, 2c + 1), d2, d3 (row g + 8).
__device__ __forceinline__ void mma(bf16, f32 (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma(f16, f32 (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// d += a * b over 32 k in two multiplies of 16. Lane c holds, of row g (lo), of row g + 8 (hi) and of column g (b), four elements of k for the first
// multiply in x and y and four for the second in z and w; which ones is up to the caller, as long as all three agree.
template <class T> __device__ __forceinline__ void mma_k32(f32 (&d)[4], uint4 lo, uint4 hi, uint4 b) {
  mma(T(), d, lo.x, hi.x, lo.y, hi.y, b.x, b.y);
  mma(T(), d, lo.z, hi.z, lo.w, hi.w, b.z, b.w);
}

// Two floats rounded to T in one register, x in the lower half.
template <class T> __device__ __forceinline__ u32 pack2(f32 x, f32 y);
template <> __device__ __forceinline__ u32 pack2<bf16>(f32 x, f32 y) {
  u32 d;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(y), "f"(x));
  return d;
}
template <> __device__ __forceinline__ u32 pack2<f16>(f32 x, f32 y) {
  u32 d;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(y), "f"(x));
  return d;
}

// Stores four neighbours in global memory at once; `to` is a multiple of their size. The compiler would cut a plain vector store in four.
template <class T> __device__ __forceinline__ void store_four(T* to, f32 a, f32 b, f32 c, f32 d) {
  asm volatile("st.global.v2.b32 [%0], {%1,%2};" ::"l"(to), "r"(pack2<T>(a, b)), "r"(pack2<T>(c, d)));
}
__device__ __forceinline__ void store_four(f32* to, f32 a, f32 b, f32 c, f32 d) {
  asm volatile("st.global.v4.f32 [%0], {%1,%2,%3,%4};" ::"l"(to), "f"(a), "f"(b), "f"(c), "f"(d));
}

// Elements k .. k + 7 of a row of K; those beyond its end are 0. ALIGNED: K is a multiple of 8 and rows start at 16 bytes.
template <bool ALIGNED, class T> __device__ __forceinline__ uint4 load8(const T* row, i64 k, i64 K) {
  uint4 v = make_uint4(0, 0, 0, 0);
  if (ALIGNED) {
    if (k < K) v = *(const uint4*)(row + k);
    return v;
  }
  u32 h[8];
#pragma unroll
  for (int i = 0; i < 8; i++) h[i] = k + i < K ? row[k + i].bits : 0u;
  v.x = h[0] | h[1] << 16;
  v.y = h[2] | h[3] << 16;
  v.z = h[4] | h[5] << 16;
  v.w = h[6] | h[7] << 16;
  return v;
}

// A lane's share of 32 elements of a row for mma_k32: elements 4 c .. 4 c + 3 of the first 16 and of the second 16. All matmuls multiply these sets of
// 16, whichever instruction they use: the sum of a multiply does not depend on the order within them, only on which elements are in it.
__device__ __forceinline__ uint4 halves16(uint2 first, uint2 second) { return make_uint4(first.x, first.y, second.x, second.y); }

// The same share from 16-byte loads, which take half as many requests: the lanes of four load 8 elements each, in the order that second_first gives, and
// then neighbours exchange halves. Lane 0 has 0 .. 7 and lane 1 has 16 .. 23; lane 0 keeps 0 .. 3 and gets 16 .. 19 for 4 .. 7.
__device__ __forceinline__ int second_first(int c) { return (c & 1) * 2 + (c >> 1); }
__device__ __forceinline__ uint4 share_of_eight(uint4 v) {
  const bool odd = threadIdx.x & 1;
  const u32 x = __shfl_xor_sync(0xffffffffu, odd ? v.x : v.z, 1);
  const u32 y = __shfl_xor_sync(0xffffffffu, odd ? v.y : v.w, 1);
  return odd ? make_uint4(x, y, v.z, v.w) : make_uint4(v.x, v.y, x, y);
}

// 8 bytes that are read once and not written by this kernel.
__device__ __forceinline__ uint2 load_stream8(const void* p) {
  uint2 v;
  asm("ld.global.nc.L2::128B.v2.u32 {%0,%1}, [%2];"
      : "=r"(v.x), "=r"(v.y)
      : "l"(p));
  return v;
}

// The share of elements k .. k + 31 of a row of K, k a multiple of 32; those beyond the row's end are 0. ALIGNED: K is a multiple of 8 and rows start at
// 16 bytes.
template <bool ALIGNED, class T> __device__ __forceinline__ uint2 load4(const T* row, i64 k, i64 K) {
  uint2 v = make_uint2(0, 0);
  if (ALIGNED) {
    if (k < K) v = *(const uint2*)(row + k);
    return v;
  }
  u32 h[4];
#pragma unroll
  for (int i = 0; i < 4; i++) h[i] = k + i < K ? row[k + i].bits : 0u;
  v.x = h[0] | h[1] << 16;
  v.y = h[2] | h[3] << 16;
  return v;
}
template <bool ALIGNED, class T> __device__ __forceinline__ uint4 load_share(const T* row, i64 k, int c, i64 K) {
  return halves16(load4<ALIGNED>(row, k + 4 * c, K), load4<ALIGNED>(row, k + 16 + 4 * c, K));
}
// The same of weights, all of which are inside.
template <class T> __device__ __forceinline__ uint4 stream_share(const T* row, i64 k, int c) {
  return halves16(load_stream8(row + k + 4 * c), load_stream8(row + k + 16 + 4 * c));
}

// Copies 16 bytes to shared memory in the background; writes zeros instead if !valid.
__device__ __forceinline__ void copy16_async(void* shared, const void* global, bool valid) {
  const u32 to = (u32)__cvta_generic_to_shared(shared);
  const u32 bytes = valid ? 16u : 0u;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
}
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most PENDING of this thread's groups are under way.
template <int PENDING> __device__ __forceinline__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}
