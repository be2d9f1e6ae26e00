// ${ir}
// One block a row. Sums have the order of the op's own kernel.
extern "C" __global__ void __launch_bounds__(${threads})
${entry}(${params}) {
  constexpr int N = ${n};
  let_successors_start();
  wait_for_predecessors();
  ${row}
  ${statistics}
  for (int k = threadIdx.x; k < N; k += ${threads}) {
    ${store}
  }
}
