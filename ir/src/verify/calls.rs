//! Calls and stages: V10, V13.

use std::collections::BTreeSet;

use super::{Place, Report, Stage};
use crate::graph::OpId;
use crate::module::Module;
use crate::op::OpKind;

pub(super) fn check(module: &Module, place: &Place<'_>, stage: Stage, report: &mut Report) {
    let f = place.func;
    for id in &place.order {
        let op = f.graph.op(*id);
        if op.kind != OpKind::Call {
            continue;
        }
        let name = op.attrs.word("callee");
        let message = match module.funcs.iter().position(|g| &*g.name == name) {
            Some(i) if i < place.index => None,
            Some(i) if i == place.index => {
                Some(format!("@{name} calls itself; functions call only functions before them"))
            }
            Some(_) => Some(format!("@{name} is defined after @{}; move it before", f.name)),
            None => {
                let near = crate::text::nearest(name, module.funcs[..place.index].iter().map(|g| &*g.name));
                let hint = near.first().map(|n| format!("; did you mean `@{n}`?")).unwrap_or_default();
                Some(format!("there is no function `@{name}`{hint}"))
            }
        };
        if let Some(message) = message {
            report.op("V10", place, *id, message);
        }
        if stage == Stage::Planned {
            report.op("V13", place, *id, "a planned module has no calls; inline them before".into());
        }
    }
    for id in dead(place) {
        match stage {
            Stage::Planned => {
                report.op("V13", place, id, "no result depends on the op; remove it before planning".into());
            }
            Stage::Tensor | Stage::Fused => report.warn(place, id, "no result depends on the op".into()),
        }
    }
}

/// Ops on which no result depends, in print order; leaves are no work and do not count.
fn dead(place: &Place<'_>) -> Vec<OpId> {
    let f = place.func;
    let mut live: BTreeSet<OpId> = f.results.iter().map(|v| v.op).collect();
    for id in place.order.iter().rev() {
        if live.contains(id) {
            live.extend(f.graph.op(*id).operands.iter().map(|v| v.op));
        }
    }
    let leaf = |id: &OpId| matches!(f.graph.op(*id).kind, OpKind::Param | OpKind::Weight);
    place.order.iter().filter(|id| !leaf(id) && !live.contains(id)).copied().collect()
}
