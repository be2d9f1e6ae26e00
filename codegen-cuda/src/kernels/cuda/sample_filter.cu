
// ${ir}
// The rows with filters, which the clusters share out. The others are left to the launch behind.
extern "C" __global__ void ${cluster}__launch_bounds__(1024, 1)
${entry}(const f32* logits, const f32* temperature, const i32* top_k, const f32* top_p, const f32* min_p, const i32* seed, const i32* pos,
         i32* tokens, i32 n, i32 rows) {
  let_successors_start();
  ${wait_first}
  const int clusters = gridDim.x / BLOCKS;
  const int own = blockIdx.x / BLOCKS;
  auto filters_of = [&](i32 r) {
    Filters by = {temperature[r], top_k[r], top_p[r], min_p[r]};
    return by;
  };
  // Most often no row has any.
  bool some = false;
  for (i32 r = own + (i32)threadIdx.x * clusters; r < rows; r += 1024 * clusters) some = some || any(filters_of(r), n);
  some = block_max<32>((u64)some) != 0;
  ${wait_later}
  if (!some) return;
  for (i32 r = own; r < rows; r += clusters) {
    const Filters by = filters_of(r);
    if (!any(by, n)) continue;
    const i32 token = draw_row(logits + (i64)r * n, n, by, (u32)pos[r], (u32)seed[2 * r], (u32)seed[2 * r + 1]);
    if (threadIdx.x == 0 && blockIdx.x % BLOCKS == 0) tokens[r] = token;
  }
}
