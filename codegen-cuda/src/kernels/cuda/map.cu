// ${ir}
// One thread an element.
extern "C" __global__ void __launch_bounds__(256)
${entry}(${params}) {
  let_successors_start();
  wait_for_predecessors();
  i64 rest = (i64)blockIdx.x * 256 + threadIdx.x;
  if (rest >= n) return;
  ${code}
}
