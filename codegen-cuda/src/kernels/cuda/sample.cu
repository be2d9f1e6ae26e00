
// ${ir}
${which}
extern "C" __global__ void ${launched}
${entry}(const f32* logits, const f32* temperature, const i32* top_k, const f32* top_p, const f32* min_p, const i32* seed, const i32* pos,
         ${maxima}i32* tokens, u64* scratch, u32* counters, i32 n, i32 share) {
  let_successors_start();
  ${wait_first}
  const int r = blockIdx.x / share;
  const int b = blockIdx.x - r * share;
  const Filters by = {temperature[r], top_k[r], top_p[r], min_p[r]};
  const u32 at = (u32)pos[r];
  const u32 key0 = (u32)seed[2 * r];
  const u32 key1 = (u32)seed[2 * r + 1];
  if (any(by, n)) {
    ${wait_later}
    ${filtered}
    return;
  }
  const Plain row = plain_row(logits + (i64)r * n, n, by.temperature, at, key0, key1);
  ${maxima_of_row}
  draw_plain(row, of_tiles, r, b, share, tokens, scratch, counters);
}
