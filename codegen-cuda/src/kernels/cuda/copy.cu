// Copy between strided tensors in units of ${bytes} bytes: reshape, permute, slice, broadcast and concat.
typedef ${unit} Unit;
extern "C" __global__ void __launch_bounds__(256)
${entry}(const Unit* __restrict__ x, Unit* __restrict__ y, i64 n${params}) {
  const i64 index = (i64)blockIdx.x * 256 + threadIdx.x;
  if (index >= n) return;
  i64 rest = index;
  i64 from = x0;
  i64 to = y0;
  ${steps}
  y[to] = x[from];
}
