//! Fused kernels: V11, V12, and what is left unfused: V13 of stage `fused`.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Place, Report, Stage, graph};
use crate::graph::OpId;
use crate::module::{Func, Module};
use crate::op::OpKind;
use crate::template::{TEMPLATES, template};
use crate::text::nearest;
use crate::ty::Type;

pub(super) fn check(
    module: &Module,
    place: &Place<'_>,
    stage: Stage,
    bad_states: &BTreeSet<Arc<str>>,
    report: &mut Report,
) {
    for id in &place.order {
        if place.func.graph.op(*id).kind == OpKind::Kernel {
            kernel(module, place, *id, bad_states, report);
        }
    }
    if stage == Stage::Fused {
        unfused(place, report);
    }
}

/// V11 and V12 of one kernel.
fn kernel(module: &Module, place: &Place<'_>, id: OpId, bad_states: &BTreeSet<Arc<str>>, report: &mut Report) {
    let op = place.func.graph.op(id);
    let Some(kernel) = op.attrs.kernel() else { return };
    let before = report.errors.len();
    for (number, region) in kernel.numbered() {
        let name = kernel.place(number);
        isolated(place, id, region, &name, report);
        // The region's ops by themselves, reported where they are written.
        let inner = Place::new(place.index, region);
        let mut found = Report::default();
        graph::check(module, &inner, &BTreeSet::new(), bad_states, &mut found);
        for (_, _, error) in found.errors {
            let message = format!("in {name}, `{}`: {} ({})", error.line, error.message, error.rule);
            match error.loc {
                Some(loc) => report.push("V11", place, place.position[&id] + 1, place.line(id), Some(loc), message),
                None => report.op("V11", place, id, message),
            }
        }
        if region.results.is_empty() {
            report.op("V11", place, id, format!("{name} yields nothing; what it computes is lost"));
        }
    }
    let operands: Vec<Type> = op.operands.iter().map(|v| place.func.graph.ty(*v).clone()).collect();
    if let Err(message) = kernel.check_flow(&operands) {
        report.op("V11", place, id, message);
    }
    let Some(t) = template(kernel.template()) else {
        let known: Vec<&str> = TEMPLATES.iter().map(|t| t.name).collect();
        let near = nearest(kernel.template(), known.iter().copied());
        let hint = near.first().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
        let message = format!("there is no template `{}`{hint} (known: {})", kernel.template(), known.join(", "));
        report.op("V12", place, id, message);
        return;
    };
    // A broken body may not be followed.
    if report.errors.len() == before
        && let Err(message) = t
            .check(kernel)
            .and_then(|()| t.complete(kernel))
            .and_then(|()| t.check_shared(kernel, &|a, b| op.operands.get(a) == op.operands.get(b)))
    {
        report.op("V12", place, id, message);
    }
}

/// Values come in as parameters only.
fn isolated(place: &Place<'_>, id: OpId, region: &Func, name: &str, report: &mut Report) {
    for inner in region.graph.ids() {
        let kind = region.graph.op(inner).kind;
        if matches!(kind, OpKind::Weight | OpKind::Call | OpKind::Kernel) {
            let message = format!("{name} holds a `{}`; regions are isolated: pass values as operands", kind.name());
            report.op("V11", place, id, message);
        }
    }
}

/// V13 of stage `fused`: every op of a step is in a kernel.
fn unfused(place: &Place<'_>, report: &mut Report) {
    let at_load = super::weight_only(place.func);
    for id in &place.order {
        let op = place.func.graph.op(*id);
        let free = matches!(op.kind, OpKind::Param | OpKind::Weight | OpKind::Call | OpKind::Kernel | OpKind::Reshape);
        if !free && !at_load.contains(&crate::graph::Value { op: *id, result: 0 }) {
            let message = format!("`{}` is in no kernel; fusion must give every op of a step one", op.kind.name());
            report.op("V13", place, *id, message);
        }
    }
}
