//! Weights: V08, and which values are computed from weights only.

use std::collections::BTreeSet;

use super::{Place, Report};
use crate::attr::Attr;
use crate::graph::Value;
use crate::module::{Func, Module};
use crate::op::{Class, OpKind};
use crate::text::{nearest, order};
use crate::ty::Type;

/// Values that depend on nothing but weights, constants and sizes, so that they could be computed once at load: weights, `weight` parameters,
/// constants and tables, and results of pure ops on such values.
pub fn weight_only(func: &Func) -> BTreeSet<Value> {
    let mut out = BTreeSet::new();
    for id in order(func) {
        let op = func.graph.op(id);
        let pure = !matches!(op.kind.class(), Class::State | Class::Sampling | Class::Call);
        let index = usize::try_from(op.attrs.int("index")).ok();
        let yes = match op.kind {
            OpKind::Param => index.and_then(|i| func.params.get(i)).is_some_and(|p| p.weight),
            _ => pure && op.operands.iter().all(|v| out.contains(v)),
        };
        if yes {
            out.extend((0..op.results.len()).map(|i| Value { op: id, result: i as u16 }));
        }
    }
    out
}

pub(super) fn check(module: &Module, place: &Place<'_>, sound: &BTreeSet<usize>, report: &mut Report) {
    let f = place.func;
    let mut seen = BTreeSet::new();
    let mut known = None;
    for id in &place.order {
        let op = f.graph.op(*id);
        match op.kind {
            OpKind::Weight => {
                let name = op.attrs.word("name");
                let message = match module.weight(name) {
                    None => {
                        let near = nearest(name, module.weights.iter().map(|w| &*w.name));
                        let hint = near.first().map(|n| format!("; did you mean `@{n}`?")).unwrap_or_default();
                        format!("weight `@{name}` is not declared{hint}")
                    }
                    Some(w) if op.results != [Type::Tensor(w.ty.clone())] => {
                        format!("weight `@{name}` is declared as {}", w.ty)
                    }
                    Some(_) if !seen.insert(name) => {
                        format!("weight `@{name}` has two leaf ops in @{}; use `Func::weight`", f.name)
                    }
                    Some(_) => continue,
                };
                report.op("V08", place, *id, message);
            }
            OpKind::Call => {
                let callee = module.funcs.iter().position(|g| *g.name == *op.attrs.word("callee"));
                let Some(callee) = callee.filter(|i| *i < place.index && sound.contains(i)) else {
                    continue;
                };
                let known = known.get_or_insert_with(|| weight_only(f));
                for (i, (param, v)) in module.funcs[callee].params.iter().zip(&op.operands).enumerate() {
                    if param.weight && !known.contains(v) {
                        let message = format!(
                            "argument {i} (`{}`) must be computed from weights only, since `%{}` of @{} is marked `weight`",
                            place.names.value(*v),
                            param.name,
                            module.funcs[callee].name
                        );
                        report.op("V08", place, *id, message);
                    }
                }
            }
            _ => {}
        }
    }
}

/// Warns of weights and symbols that nothing uses.
pub(super) fn unused(module: &Module, report: &mut Report) {
    let mut weights = BTreeSet::new();
    let mut syms = BTreeSet::new();
    for f in &module.funcs {
        for id in f.graph.ids() {
            let op = f.graph.op(id);
            if op.kind == OpKind::Weight {
                weights.insert(op.attrs.word("name").to_string());
            }
            let types = op.results.iter().filter_map(|t| t.as_tensor()).flat_map(|t| &t.dims);
            let attrs = op.attrs.iter().flat_map(|(_, a)| if let Attr::Dims(d) = a { d.as_slice() } else { &[] });
            syms.extend(types.chain(attrs).flat_map(|d| d.symbols()));
        }
    }
    for s in module.syms.iter().filter(|s| !syms.contains(&s.name)) {
        report.warn_declaration(s.to_string(), format!("symbol `{}` is not used", s.name));
    }
    for w in module.weights.iter().filter(|w| !weights.contains(&*w.name)) {
        report.warn_declaration(w.to_string(), format!("weight `@{}` is not used", w.name));
    }
}
