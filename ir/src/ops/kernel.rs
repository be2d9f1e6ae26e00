//! Fused kernels.

use crate::attr::AttrKind;
use crate::interp::kernel as eval;
use crate::op::{Class, Default, OpInfo, attr, many};

/// `kernel`: ops that run as one kernel.
pub static KERNEL: OpInfo = OpInfo {
    name: "kernel",
    class: Class::Kernel,
    summary: "Ops that run as one kernel",
    doc: "What fusion makes. Written with its regions after the attributes: `kernel %x, %w {template = stream} main(%x: f32[T, 8], %w: f32[4, 8]) { .. yield %y } : f32[T, 4]`. \
          It means what its ops mean, run in order; the template says how they are computed. Operands go to `prologue`, then (after the prologue's yields) to \
          `main`, then (after main's yields) to `epilogue`; the results are the yields of the last region. A kernel that runs one main loop after the other has several \
          stages: after the word `then` the same regions again, of which the first takes what the stage before yields, all of it and in front of its operands.",
    operands: &[many("operands", "for the parameters of the regions, in order")],
    attrs: &[attr("body", AttrKind::Kernel, Default::Required, "written as `template` and the regions")],
    results: &[],
    infer: |cx| match cx.attrs.kernel() {
        Some(kernel) => kernel.check_flow(cx.operands),
        None => Err("has no body".into()),
    },
    eval: eval::kernel,
    tolerance: 2e-2,
    decomposition: None,
};
