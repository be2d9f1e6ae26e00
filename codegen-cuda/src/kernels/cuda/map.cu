// ${ir}
// A thread makes EACH elements of every result, 256 apart so that neighbours are read and written together. All are computed before the first is stored: what they read
// is under way at once.
constexpr int EACH = ${each};
extern "C" __global__ void __launch_bounds__(256)
${entry}(${params}) {
  let_successors_start();
  wait_for_predecessors();
  const i64 first = (i64)blockIdx.x * (256 * EACH) + threadIdx.x;
  ${held}
#pragma unroll
  for (int e = 0; e < EACH; e++) {
    const i64 at = first + 256 * e;
    i64 rest = at < n ? at : n - 1;
    ${code}
  }
#pragma unroll
  for (int e = 0; e < EACH; e++) {
    const i64 at = first + 256 * e;
    if (at >= n) break;
    ${store}
  }
}
