// ${ir}
// One block a row: the greatest element is in the first tile with the greatest maximum.
constexpr int TILE = ${tile};
extern "C" __global__ void __launch_bounds__(256)
${entry}(const ${x_type}* x, const ${x_type}* maxima, i32* y, i64 n) {
  let_successors_start();
  wait_for_predecessors();
  x += blockIdx.x * n;
  maxima += blockIdx.x * ((n + TILE - 1) / TILE);
  const u32 best = argmax_by_tile<TILE, 256>(x, maxima, n);
  if (threadIdx.x == 0) y[blockIdx.x] = (i32)best;
}
