//! Where kernels come from: the rules that fusion recorded, and the cost it chose by.

use std::collections::BTreeSet;

use gossamer_ir::{Kernel, OpId, OpKind};
use gossamer_passes::{Options, Plan, Trace, cost};

use super::{Prediction, RuleStep};

/// The rules that made a kernel, in order.
pub fn rules(trace: &Trace, kernel: &Kernel) -> Vec<RuleStep> {
    let found = trace.passes.iter().filter_map(|p| p.fusion.as_ref()).find_map(|report| report.kernel(kernel));
    let steps = found.map(|report| report.history.iter());
    steps.into_iter().flatten().map(|o| RuleStep { rule: o.rule.to_string(), op: o.op.name().to_string() }).collect()
}

/// The cost of an op of a plan on the machine of the options; `None` if the model has none for it.
pub fn predict(plan: &Plan, id: OpId, options: &Options) -> Option<Prediction> {
    let at_load: BTreeSet<OpId> = plan.load.iter().copied().collect();
    let weight = |v: gossamer_ir::Value| at_load.contains(&v.op) || plan.func.graph.op(v.op).kind == OpKind::Weight;
    let shape = cost::of_op(&plan.decls, &plan.func, id, &weight, &plan.sizes).ok()?;
    let terms = cost::cost(&shape, &options.machine).ok()?;
    Some(Prediction {
        total_us: terms.total_us,
        roofline_us: terms.roofline_us,
        bytes: terms.bytes.total(),
        flops: terms.flops,
        terms: terms.text().lines().filter_map(line).collect(),
        json: terms.json(),
    })
}

/// A line of terms as name and the rest.
fn line(text: &str) -> Option<(String, String)> {
    let (name, rest) = text.split_once(' ')?;
    let rest: Vec<&str> = rest.split_whitespace().collect();
    Some((name.to_string(), rest.join(" ")))
}

/// Name of the machine that costs are for.
pub fn machine(options: &Options) -> String {
    options.machine.name.clone()
}
