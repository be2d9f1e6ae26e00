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

// d += a * b over 32 k, with k relabelled so that a lane's operands are 8 adjacent elements: lane c holds k 8c .. 8c + 7 of
// row g (lo), of row g + 8 (hi) and of column g (b). The first multiply takes elements 0..3 of each lane, the second 4..7.
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

// 16 bytes that are read once and not written by this kernel.
__device__ __forceinline__ uint4 load_stream(const void* p) {
  uint4 v;
  asm("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(p));
  return v;
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
