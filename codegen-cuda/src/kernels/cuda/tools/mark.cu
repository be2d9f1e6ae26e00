// Does nothing once everything before it has ended.
extern "C" __global__ void __launch_bounds__(32)
${entry}() {
  wait_for_predecessors();
}
