// ${ir}
// Both stages of template moe_pair, one element after the other in one block: what its slots mean, for tests. Slow on purpose.
${first}
${second}
constexpr bool SHARED_X = ${shared_x};

// Element [row, k] of an expert's packed weights.
template <bool FAST>
__device__ f32 weight(const u8* w, int row_tiles, int k_tiles, int expert, int row_tile, int row, int k) {
  const u8* const record = gs_mxfp4_record(w, row_tiles, k_tiles, expert, row_tile, k / 64);
  const int lane = (row & 7) * 4 + ((k & 7) >> 1);
  u32 a[4][4];
  gs_mxfp4_decode_tile<FAST>(gs_mxfp4_load_codes(record, lane), gs_mxfp4_load_scales(record, lane), a);
  const u32 pair = a[k % 64 / 16][(row >> 3) + 2 * (k % 16 / 8)];
  return __uint_as_float((k & 1 ? pair >> 16 : pair & 0xffffu) << 16);
}

__device__ f32 value(bf16 x) { return __uint_as_float((u32)x.bits << 16); }

extern "C" __global__ void __launch_bounds__(256)
${entry}(const bf16* x, const u8* w_first, const u8* w_second, const i32* ids, u32 tokens, bf16* h, u32* counters${params}) {
  wait_for_predecessors();
  {
    using namespace first;
    for (int i = threadIdx.x; i < (int)tokens * CHOICES * WIDTH; i += 256) {
      const int n = i % WIDTH;
      const int t = i / WIDTH / CHOICES;
      const int j = i / WIDTH % CHOICES;
      const int strip = n / OUTPUTS;
      auto expert = [&](int choice) {
        const int id = ids[t * CHOICES + choice];
        return id >= 0 && id < EXPERTS ? id : EXPERTS;
      };
      auto total = [&](int choice, int at) {
        const int id = expert(choice);
        f32 sum = 0.0f;
        for (int k = 0; k < (id < EXPERTS ? K : 0); k++) {
          const f32 a = weight<FAST>(w_first, ROW_TILES, K_TILES, id, tile(strip, at / 16), at % 16, k);
          sum += a * value(x[(SHARED_X ? t : t * CHOICES + choice) * K + k]);
        }
        return sum;
      };
      ${finish_first}
    }
  }
  __syncthreads();
  {
    using namespace second;
    for (int i = threadIdx.x; i < (int)tokens * WIDTH; i += 256) {
      const int n = i % WIDTH;
      const int t = i / WIDTH;
      const int strip = n / OUTPUTS;
      auto expert = [&](int choice) {
        const int id = ids[t * CHOICES + choice];
        return id >= 0 && id < EXPERTS ? id : EXPERTS;
      };
      auto total = [&](int choice, int at) {
        const int id = expert(choice);
        f32 sum = 0.0f;
        for (int k = 0; k < (id < EXPERTS ? K : 0); k++) {
          const f32 a = weight<FAST>(w_second, ROW_TILES, K_TILES, id, tile(strip, at / 16), at % 16, k);
          sum += a * value(h[(t * CHOICES + choice) * K + k]);
        }
        return sum;
      };
      ${finish_second}
    }
  }
}
