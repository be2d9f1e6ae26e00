// ${ir}
// Rows are moved in units of ${bytes} bytes.
typedef ${unit} Unit;
extern "C" __global__ void __launch_bounds__(256)
${entry}(const Unit* __restrict__ x, const i32* __restrict__ ids, Unit* __restrict__ y, i64 n, i64 row, i64 rows) {
  const i64 index = (i64)blockIdx.x * 256 + threadIdx.x;
  if (index >= n) return;
  i64 i = index;
  const i64 at = take_dim(i, row);
  const i64 id = ids[i];
  Unit v = {};
  if (id >= 0 && id < rows) v = x[id * row + at];
  y[index] = v;
}
