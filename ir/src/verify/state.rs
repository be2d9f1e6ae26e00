//! State is linear: V09.
//!
//! A state value stands for the contents at one moment. Writes are done in place, so a value must have exactly one successor, and reading it
//! is safe only as long as that successor has not been made: reads use the newest value, or are something the write waits for.

use std::collections::BTreeSet;

use super::{Place, Report};
use crate::graph::{Op, OpId, Value};
use crate::op::OpKind;

pub(super) fn check(place: &Place<'_>, report: &mut Report) {
    let f = place.func;
    for id in &place.order {
        let op = f.graph.op(*id);
        for (i, t) in op.results.iter().enumerate() {
            if t.is_state() {
                value(place, Value { op: *id, result: i as u16 }, report);
            }
        }
    }
}

/// True if `op` replaces state `v` or takes it over, rather than reading it: it gives a state of that type back, or hands it to a function.
fn consumes(op: &Op, place: &Place<'_>, v: Value) -> bool {
    op.kind == OpKind::Call || op.results.contains(place.func.graph.ty(v))
}

fn value(place: &Place<'_>, v: Value, report: &mut Report) {
    let f = place.func;
    let name = place.names.value(v);
    let users: BTreeSet<OpId> = f.graph.users(v).into_iter().map(|(user, _)| user).collect();
    let mut users: Vec<OpId> = users.into_iter().collect();
    users.sort_by_key(|id| place.position.get(id));
    let mut successor: Option<OpId> = None;
    for user in &users {
        let op = f.graph.op(*user);
        if !consumes(op, place, v) {
            continue;
        }
        let times = op.operands.iter().filter(|o| **o == v).count();
        match successor {
            None if times == 1 => successor = Some(*user),
            None => {
                successor = Some(*user);
                report.op("V09", place, *user, format!("state `{name}` is passed twice; state values are linear"));
            }
            Some(first) => {
                let message = format!(
                    "state `{name}` was replaced already by `{}`; use the value that it returns",
                    place.line(first)
                );
                report.op("V09", place, *user, message);
            }
        }
    }
    let returned = f.results.iter().filter(|r| **r == v).count();
    match (returned, successor) {
        (0, None) => {
            let message = format!("state `{name}` is dropped; return it, or pass it to what replaces it");
            report.op("V09", place, v.op, message);
        }
        (0, Some(_)) | (1, None) => {}
        (1, Some(first)) => {
            let message = format!("state `{name}` is returned, but was replaced already by `{}`", place.line(first));
            report.results("V09", place, message);
        }
        (n, _) => report.results("V09", place, format!("state `{name}` is returned {n} times, expected once")),
    }
    if let Some(write) = successor {
        for user in users.iter().filter(|u| !consumes(f.graph.op(**u), place, v)) {
            if !depends(place, write, *user) {
                let message = format!(
                    "reads state `{name}`, which `{}` may have replaced; read the value that it returns",
                    place.line(write)
                );
                report.op("V09", place, *user, message);
            }
        }
    }
}

/// True if `op` needs a result of `on`, directly or not.
fn depends(place: &Place<'_>, op: OpId, on: OpId) -> bool {
    let mut seen = BTreeSet::new();
    let mut todo = vec![op];
    while let Some(id) = todo.pop() {
        if id == on {
            return true;
        }
        if seen.insert(id) {
            todo.extend(place.func.graph.op(id).operands.iter().map(|v| v.op));
        }
    }
    false
}
