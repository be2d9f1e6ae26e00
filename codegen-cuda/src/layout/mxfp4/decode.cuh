// Reading the packed MXFP4 layout. Types and formulas: the module documentation of layout/mxfp4.rs.
#define GS_MXFP4_RECORD_BYTES 544u
#define GS_MXFP4_CODE_BYTES 512u

// Two bf16 products. Subnormals are kept: the PTX instruction has no flushing form.
__device__ __forceinline__ unsigned gs_mxfp4_mul2(unsigned a, unsigned b) {
  unsigned d;
  asm("mul.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}

// Address of a record.
__device__ __forceinline__ const unsigned char* gs_mxfp4_record(const void* packed, unsigned row_tiles, unsigned k_tiles,
                                                                unsigned expert, unsigned row_tile, unsigned k_tile) {
  unsigned long long index = ((unsigned long long)expert * row_tiles + row_tile) * k_tiles + k_tile;
  return (const unsigned char*)packed + index * GS_MXFP4_RECORD_BYTES;
}

// The four words of thread t of 32 (global or shared memory).
__device__ __forceinline__ uint4 gs_mxfp4_load_codes(const unsigned char* record, unsigned t) {
  return *(const uint4*)(record + 16u * t);
}

// The four scale bytes of thread t: (row g, block 0), (row g, block 1), (row g + 8, block 0), (row g + 8, block 1).
__device__ __forceinline__ unsigned gs_mxfp4_load_scales(const unsigned char* record, unsigned t) {
  return *(const unsigned*)(record + GS_MXFP4_CODE_BYTES + 4u * (t >> 2));
}

// Factors of a block (0, 1) of 32 k as two bf16: of row g in the lower half, of row g + 8 in the upper. FAST: 2^(scale - 1). General:
// 2^(scale - 127), where 2^-127 is subnormal.
template <bool FAST>
__device__ __forceinline__ unsigned gs_mxfp4_factors(unsigned scales, unsigned block) {
  unsigned both = block == 0u ? (scales & 0x00FF00FFu) << 7 : (scales >> 1) & 0x7F807F80u;
  if (FAST) return both;
  if ((both & 0xFFFFu) == 0u) both |= 0x0040u;
  if (both >> 16 == 0u) both |= 0x00400000u;
  return both;
}

// One half of a register twice. A multiply reads either half of a register, so this costs no instruction.
__device__ __forceinline__ unsigned gs_mxfp4_twice(unsigned x, bool upper) {
  unsigned d;
  if (upper) {
    asm("{\n.reg .b16 l, u;\nmov.b32 {l, u}, %1;\nmov.b32 %0, {u, u};\n}" : "=r"(d) : "r"(x));
  } else {
    asm("{\n.reg .b16 l, u;\nmov.b32 {l, u}, %1;\nmov.b32 %0, {l, l};\n}" : "=r"(d) : "r"(x));
  }
  return d;
}

// Eight codes of a word as four pairs of bf16, each E2M1 value times 2^-126.
__device__ __forceinline__ void gs_mxfp4_unpack8(unsigned x, unsigned (&a)[4]) {
  const unsigned mask = 0x81C081C0u;
  a[0] = x & mask;
  a[1] = (x << 4) & mask;
  a[2] = __funnelshift_l(x, x, 10) & mask;
  a[3] = ((x << 6) & 0x80C080C0u) | ((x >> 2) & 0x01000100u);
}

// The word of four bytes of a checkpoint, the reverse: their pairs of codes come out as a[0] to a[3].
__device__ __forceinline__ unsigned gs_mxfp4_pack8(const unsigned (&byte)[4]) {
  unsigned pair[4];
#pragma unroll
  for (int j = 0; j < 4; j++) {
    const unsigned low = byte[j] & 15u;
    const unsigned high = byte[j] >> 4;
    pair[j] = (low & 8u) << 12 | (low & 7u) << 6 | (high & 8u) << 28 | (high & 7u) << 22;
  }
  return pair[0] | pair[1] >> 4 | __funnelshift_r(pair[2], pair[2], 10) | (pair[3] & 0x80C080C0u) >> 6 | (pair[3] & 0x01000100u) << 2;
}

// Eight codes of a word as the A registers of one m16n8k16, exact: registers 0 and 2 are row g, 1 and 3 row g + 8.
template <bool FAST>
__device__ __forceinline__ void gs_mxfp4_decode8(unsigned x, unsigned factors, unsigned (&a)[4]) {
  gs_mxfp4_unpack8(x, a);
#pragma unroll
  for (int j = 0; j < 4; j++) {
    if (!FAST) a[j] = gs_mxfp4_mul2(a[j], 0x7E807E80u);  // 2^126
    a[j] = gs_mxfp4_mul2(a[j], gs_mxfp4_twice(factors, j & 1));
  }
}

// A thread's part of a tile: a[s] are the A registers for k = 16 s.
template <bool FAST>
__device__ __forceinline__ void gs_mxfp4_decode_tile(uint4 codes, unsigned scales, unsigned (&a)[4][4]) {
  const unsigned words[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
  for (int s = 0; s < 4; s++) {
    gs_mxfp4_decode8<FAST>(words[s], gs_mxfp4_factors<FAST>(scales, s >> 1), a[s]);
  }
}

// Element (row < 16, k < 64) of a tile, as float.
template <bool FAST>
__device__ __forceinline__ float gs_mxfp4_value(const unsigned char* record, unsigned row, unsigned k) {
  const unsigned thread = 4u * (row & 7u) + ((k & 7u) >> 1);
  const unsigned pair = (row >> 3) + 2u * ((k >> 3) & 1u);
  unsigned a[4];
  gs_mxfp4_unpack8(*(const unsigned*)(record + 16u * thread + 4u * (k >> 4)), a);
  const unsigned both = pair == 0u ? a[0] : pair == 1u ? a[1] : pair == 2u ? a[2] : a[3];
  const unsigned code = k & 1u ? both & 0xFFFF0000u : both << 16;  // a bf16 is the upper half of a float
  const unsigned byte = record[GS_MXFP4_CODE_BYTES + 4u * (row & 7u) + 2u * (row >> 3) + (k >> 5)];
  const unsigned factor = FAST || byte ? byte << 23 : 0x00400000u;
  // Scaling up first keeps the general product exact; in the fast one 2^126 is part of the factor.
  const float up = FAST ? 1.0f : __uint_as_float(0x7E800000u);
  return __uint_as_float(code) * up * __uint_as_float(factor);
}
