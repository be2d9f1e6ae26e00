//! The graph of a function and its ops by themselves: V01 to V05, V10 where a type rule needs the callee.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Place, Report};
use crate::attr::Attr;
use crate::graph::{OpId, Use, Value};
use crate::module::{Func, Module};
use crate::op::{Arity, InferCx, OpKind};
use crate::text::is_word;
use crate::ty::Type;

/// True if every value of the function exists, so that later rules may follow operands and results.
pub(super) fn check(
    module: &Module,
    place: &Place<'_>,
    sound: &BTreeSet<usize>,
    bad_states: &BTreeSet<Arc<str>>,
    report: &mut Report,
) -> bool {
    let f = place.func;
    let before = report.errors.len();
    for id in &place.order {
        operands(place, *id, report);
    }
    for (i, v) in f.results.iter().enumerate() {
        if !exists(f, *v) {
            report.results("V01", place, format!("result {i} refers to a value that does not exist"));
        }
    }
    if let Err(cycle) = f.graph.order() {
        let first = cycle.iter().copied().min_by_key(|id| f.graph.op(*id).seq);
        if let Some(first) = first {
            let message =
                format!("the op is on or behind a cycle of {} ops; a value cannot depend on itself", cycle.len());
            report.op("V02", place, first, message);
        }
    }
    let whole = report.errors.len() == before;
    params(place, report);
    for id in &place.order {
        let known = f.graph.op(*id).operands.iter().all(|v| exists(f, *v));
        if table(place, *id, report) && known {
            types(module, place, *id, sound, bad_states, report);
        }
    }
    whole
}

fn exists(f: &Func, v: Value) -> bool {
    f.graph.get(v.op).is_some_and(|op| usize::from(v.result) < op.results.len())
}

/// V01 and V03.
fn operands(place: &Place<'_>, id: OpId, report: &mut Report) {
    let f = place.func;
    let op = f.graph.op(id);
    for (i, v) in op.operands.iter().enumerate() {
        if !exists(f, *v) {
            report.op("V01", place, id, format!("operand {i} refers to a value that does not exist"));
        }
    }
    let mut listed: Vec<(OpId, Use)> =
        op.operands.iter().enumerate().map(|(i, v)| (v.op, Use { result: v.result, operand: i as u16 })).collect();
    let mut edges = f.graph.edges_into(id);
    let key = |(from, u): &(OpId, Use)| (u.operand, u.result, *from);
    listed.sort_by_key(key);
    edges.sort_by_key(key);
    if listed != edges {
        let odd = listed.iter().find(|u| !edges.contains(u)).or_else(|| edges.iter().find(|u| !listed.contains(u)));
        let operand = odd.map_or(0, |(_, u)| u.operand);
        let message = format!(
            "use edges disagree with the operand list at operand {operand}; change operands with `Graph::set_operand`"
        );
        report.op("V03", place, id, message);
    }
}

/// One `param` op a parameter, of its type.
fn params(place: &Place<'_>, report: &mut Report) {
    let f = place.func;
    let mut seen = BTreeSet::new();
    for id in &place.order {
        let op = f.graph.op(*id);
        if op.kind != OpKind::Param {
            continue;
        }
        let index = op.attrs.int("index");
        let param = usize::try_from(index).ok().and_then(|i| f.params.get(i));
        match (param, op.results.as_slice()) {
            (None, _) => report.op("V04", place, *id, format!("index {index} is not a parameter of @{}", f.name)),
            _ if !seen.insert(index) => {
                report.op("V04", place, *id, format!("parameter {index} has another op already"))
            }
            (Some(p), [t]) if *t == p.ty => {}
            (Some(p), _) => report.op("V05", place, *id, format!("parameter {index} is declared as {}", p.ty)),
        }
    }
}

/// V04: true if the op has the operands and attributes that its type rule relies on.
fn table(place: &Place<'_>, id: OpId, report: &mut Report) -> bool {
    let op = place.func.graph.op(id);
    let info = op.kind.info();
    let mut ok = true;
    let mut fail = |message: String| {
        report.op("V04", place, id, message);
        ok = false;
    };
    let least = info.operands.iter().filter(|o| o.arity == Arity::One).count();
    let most = match info.operands.last().map(|o| o.arity) {
        Some(Arity::Many) => usize::MAX,
        _ => info.operands.len(),
    };
    let n = op.operands.len();
    if n < least || n > most {
        let names: Vec<&str> = info.operands.iter().map(|o| o.name).collect();
        let list = if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) };
        let wanted = match most {
            usize::MAX => format!("at least {least}"),
            _ if least == most => least.to_string(),
            _ => format!("{least} to {most}"),
        };
        fail(format!("`{}` has {n} operands, expected {wanted}{list}", info.name));
    }
    if !op.kind.any_results() && op.results.len() != info.results.len() {
        let list = info.results.join(", ");
        fail(format!("`{}` has {} results, expected {} ({list})", info.name, op.results.len(), info.results.len()));
    }
    if let Err(message) = op.kind.complete_attrs(op.attrs.clone()) {
        fail(message);
    }
    for (name, value) in op.attrs.iter() {
        if let Attr::Word(w) = value
            && !is_word(w)
        {
            fail(format!("attribute `{name}` is {w:?}, which cannot be written as a name"));
        }
    }
    for known in info.attrs {
        if op.attrs.get(known.name).is_none() && known.default.value().is_some() {
            fail(format!(
                "attribute `{}` has a default that was not filled in; use `OpKind::complete_attrs`",
                known.name
            ));
        }
    }
    ok
}

/// V05, for ops whose operands exist and whose attributes are right.
fn types(
    module: &Module,
    place: &Place<'_>,
    id: OpId,
    sound: &BTreeSet<usize>,
    bad_states: &BTreeSet<Arc<str>>,
    report: &mut Report,
) {
    let f = place.func;
    let op = f.graph.op(id);
    if matches!(op.kind, OpKind::Param | OpKind::Weight) {
        return;
    }
    // Flow through a kernel is V11.
    if op.kind == OpKind::Kernel {
        let expected = op.attrs.kernel().map(|k| k.result_types());
        if expected.is_some_and(|types| types != op.results) {
            report.op("V05", place, id, "the results are not what the last region yields".into());
        }
        return;
    }
    if op.kind == OpKind::Call {
        let callee = module.funcs.iter().position(|g| *g.name == *op.attrs.word("callee"));
        if callee.is_none_or(|i| i >= place.index || !sound.contains(&i)) {
            return;
        }
    }
    let operands: Vec<Type> = op.operands.iter().map(|v| f.graph.ty(*v).clone()).collect();
    let unsound = |t: &Type| matches!(t, Type::State(_, name) if bad_states.contains(name));
    if operands.iter().any(unsound) {
        return;
    }
    match crate::op::infer(op.kind, &InferCx { operands: &operands, attrs: &op.attrs, module }) {
        Err(message) => report.op("V05", place, id, format!("{}: {message}", op.kind.name())),
        Ok(types) if types == op.results => {}
        Ok(types) => {
            let list = |types: &[Type]| match types {
                [] => "nothing".to_string(),
                _ => types.iter().map(Type::to_string).collect::<Vec<_>>().join(", "),
            };
            let message = format!("the results are {}, expected {}", list(&op.results), list(&types));
            report.op("V05", place, id, message);
        }
    }
}
