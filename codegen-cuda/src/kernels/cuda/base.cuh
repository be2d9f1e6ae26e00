typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef long long i64;
typedef float f32;
typedef double f64;

// Elements that arithmetic does not apply to directly.
struct bf16 { u16 bits; };
struct f16 { u16 bits; };
struct b8 { u8 bits; };

// Adjacent elements that are moved together; at most 16 bytes.
template <class T, int N> struct alignas(sizeof(T) * N) Pack { T at[N]; };

__device__ __forceinline__ f32 to_f32(f32 x) { return x; }
__device__ __forceinline__ f32 to_f32(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
__device__ __forceinline__ f32 to_f32(f16 x) {
  f32 y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}

// Rounds to nearest, ties to even; subnormals are kept.
template <class T> __device__ __forceinline__ T from_f32(f32 x);
template <> __device__ __forceinline__ f32 from_f32<f32>(f32 x) { return x; }
template <> __device__ __forceinline__ bf16 from_f32<bf16>(f32 x) {
  bf16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
template <> __device__ __forceinline__ f16 from_f32<f16>(f32 x) {
  f16 y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}

// NaN if either is NaN.
__device__ __forceinline__ f32 max_nan(f32 x, f32 y) {
  f32 z;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
  return z;
}
__device__ __forceinline__ f32 min_nan(f32 x, f32 y) {
  f32 z;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
  return z;
}

// 2^x, two units in the last place; 2^0 is exactly 1.
__device__ __forceinline__ f32 exp2_fast(f32 x) {
  f32 y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// 1 / x, one unit in the last place; 0 if |x| is above 2^126.
__device__ __forceinline__ f32 reciprocal_fast(f32 x) {
  f32 y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// 1 / (1 + e^-x): 0 at -inf, 1 at inf. The exponent of 2 is rounded once, so the relative error is below (5 + |x|) * 2^-23 for negative x and below
// 5 * 2^-23 for others, which is far from what a bf16 keeps (2^-9) down to x = -87, where results of less than 2^-126 become 0.
__device__ __forceinline__ f32 logistic(f32 x) { return reciprocal_fast(1.0f + exp2_fast(x * -1.44269504f)); }

// Takes the coordinate along a dim of size d off a row-major index.
__device__ __forceinline__ i64 take_dim(i64& index, i64 d) {
  i64 rest;
  i64 at;
  if (((index | d) >> 32) == 0) {
    rest = (u32)index / (u32)d;
    at = (u32)index - (u32)rest * (u32)d;
  } else {
    rest = index / d;
    at = index - rest * d;
  }
  index = rest;
  return at;
}
