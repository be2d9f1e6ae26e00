// ${ir}
// One block a row.${how} Sums have the order of the op's own kernel.
extern "C" __global__ void __launch_bounds__(${bounds})
${entry}(${params}) {
  constexpr int N = ${n};
  constexpr int THREADS = ${threads};
  ${prefetch}
  let_successors_start();
  wait_for_predecessors();
  ${row}
  ${load}
  ${statistics}
  ${store}
}
