//! Declarations and everything that names them: V06, V07, V08 (declarations), V09 (declarations), V15.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Place, Report};
use crate::attr::Attr;
use crate::dim::{Bindings, Dim};
use crate::dtype::{DType, MX_BLOCK};
use crate::module::{Module, StateDecl};
use crate::op::OpKind;
use crate::text::{is_name, is_word, nearest};
use crate::ty::{TensorType, Type};

/// Greatest size in a state declaration: products of two such sizes stay far from overflow.
const MAX_STATE_SIZE: i64 = 1 << 24;

/// Most elements of a tensor, with every symbol at its greatest value. No model comes near; bytes, offsets and sums over all tensors of a module stay
/// within 64 bits.
const MAX_ELEMENTS: i64 = 1 << 50;

/// Checks the declarations. Returns the names of states whose sizes are unsound, so that no type rule computes with them.
pub(super) fn check(module: &Module, report: &mut Report) -> BTreeSet<Arc<str>> {
    names(module, report);
    for s in &module.syms {
        if s.min < 0 || s.min > s.max {
            let message =
                format!("bounds {}..={} hold nothing or are negative; expected 0 <= least <= greatest", s.min, s.max);
            report.declaration("V06", s.to_string(), message);
        }
    }
    for b in &module.buckets {
        for (name, size) in &b.sizes {
            let message = match module.sym(name) {
                None => undeclared(module, name),
                Some(s) if *size < s.min || *size > s.max => {
                    format!("{name} = {size} is outside its bounds {}..={}", s.min, s.max)
                }
                Some(_) => continue,
            };
            report.declaration("V06", b.to_string(), message);
        }
    }
    let most = greatest(module);
    for w in &module.weights {
        let line = || w.to_string();
        for (rule, message) in tensor(module, &most, &w.ty) {
            report.declaration(rule, line(), message);
        }
        if w.ty.dims.iter().any(|d| d.as_const().is_none()) {
            report.declaration("V08", line(), format!("a weight has constant dims, found {}", w.ty));
        }
    }
    let mut bad = BTreeSet::new();
    for s in &module.states {
        for message in state(s) {
            report.declaration("V09", s.to_string(), message);
            bad.insert(Arc::clone(s.name()));
        }
    }
    bad
}

/// Checks the types of parameters and results of a function, and the dims in attributes. One message is told once a function: a missing
/// symbol is in the type of almost every op.
pub(super) fn func(module: &Module, place: &Place<'_>, report: &mut Report) {
    let f = place.func;
    let most = greatest(module);
    let mut told = BTreeSet::new();
    for (i, p) in f.params.iter().enumerate() {
        for (rule, message) in ty(module, &most, &p.ty) {
            if told.insert(message.clone()) {
                report.header(rule, place, format!("parameter `%{}`: {message}", place.names.param(i)));
            }
        }
        if p.weight && p.ty.is_state() {
            let message = format!("parameter `%{}` is state and cannot be a weight", place.names.param(i));
            report.header("V08", place, message);
        }
    }
    for id in &place.order {
        let op = f.graph.op(*id);
        if matches!(op.kind, OpKind::Param | OpKind::Weight) {
            continue;
        }
        let mut found: Vec<(&'static str, String)> = op.results.iter().flat_map(|t| ty(module, &most, t)).collect();
        for (_, value) in op.attrs.iter() {
            if let Attr::Dims(dims) = value {
                found.extend(dims.iter().flat_map(|d| dim(module, d)).map(|m| ("V06", m)));
            }
        }
        for (rule, message) in found {
            if told.insert(message.clone()) {
                report.op(rule, place, *id, message);
            }
        }
    }
}

fn undeclared(module: &Module, name: &str) -> String {
    let near = nearest(name, module.syms.iter().map(|s| &*s.name));
    match near.first() {
        Some(n) => format!("symbol `{name}` is not declared; did you mean `{n}`?"),
        None => format!("symbol `{name}` is not declared; add `sym {name} in 1..=N`"),
    }
}

fn dim(module: &Module, d: &Dim) -> Vec<String> {
    let mut out: Vec<String> =
        d.symbols().iter().filter(|s| module.sym(s).is_none()).map(|s| undeclared(module, s)).collect();
    if !d.is_legal() {
        out.push(format!("dim {d} is negative or not in normal form"));
    }
    out
}

/// Every symbol at its greatest value.
fn greatest(module: &Module) -> Bindings {
    module.syms.iter().map(|s| (s.name.clone(), s.max)).collect()
}

/// Whether a tensor is too large to compute with. An empty dim hides no other: products are formed of some of the dims, too.
fn too_large(most: &Bindings, t: &TensorType) -> bool {
    let sizes = t.dims.iter().filter_map(|d| d.eval(most).ok());
    sizes.fold(1i64, |n, size| n.saturating_mul(size.max(1))) > MAX_ELEMENTS
}

fn tensor(module: &Module, most: &Bindings, t: &TensorType) -> Vec<(&'static str, String)> {
    let mut out: Vec<_> = t.dims.iter().flat_map(|d| dim(module, d)).map(|m| ("V06", m)).collect();
    if out.is_empty() && too_large(most, t) {
        out.push(("V06", format!("{t} can have more than 2^50 elements; give it, or the symbols in it, less")));
    }
    let blocks = t.dims.last().and_then(|d| d.as_const()).is_some_and(|n| n % MX_BLOCK == 0);
    if t.dtype == DType::Mxfp4 && !blocks {
        out.push(("V07", format!("the last dim of {t} must be a constant multiple of {MX_BLOCK}")));
    }
    if let Some(layout) = t.layout.as_ref().filter(|l| !is_word(l)) {
        out.push((
            "V15",
            format!("layout name {layout:?} cannot be written; use letters, digits and `_`, joined by dots"),
        ));
    }
    out
}

fn ty(module: &Module, most: &Bindings, t: &Type) -> Vec<(&'static str, String)> {
    match t {
        Type::Tensor(t) => tensor(module, most, t),
        Type::State(family, name) => match module.state(name) {
            Some(s) if s.family() == *family => vec![],
            Some(s) => vec![("V09", format!("{t} names a {} state", s.family().name()))],
            None => vec![("V09", format!("no `{} {name}` is declared", family.name()))],
        },
    }
}

fn state(s: &StateDecl) -> Vec<String> {
    let sized = |sizes: &[(&str, i64)]| {
        let odd = |n: &i64| !(1..=MAX_STATE_SIZE).contains(n);
        let message = |(name, n): &(&str, i64)| format!("{name} is {n}, expected 1 to {MAX_STATE_SIZE}");
        sizes.iter().filter(|(_, n)| odd(n)).map(message).collect::<Vec<_>>()
    };
    match s {
        StateDecl::Kv { heads, head_dim, page, window, dtype, .. } => {
            let mut out =
                sized(&[("head_dim", *head_dim), ("heads", *heads), ("page", *page), ("window", window.unwrap_or(1))]);
            if !dtype.is_float() {
                out.push(format!("dtype is {dtype}, expected f32, bf16 or f16"));
            }
            out
        }
        StateDecl::Counts { vocab, .. } => sized(&[("vocab", *vocab)]),
    }
}

/// A declared name and the line that declares it.
type Named = (Arc<str>, String);

fn names(module: &Module, report: &mut Report) {
    // Functions and weights share the sigil `@`.
    let mut spaces: [(&str, Vec<Named>); 4] = [
        ("symbol", module.syms.iter().map(|s| (s.name.clone(), s.to_string())).collect()),
        ("state", module.states.iter().map(|s| (s.name().clone(), s.to_string())).collect()),
        ("bucket", module.buckets.iter().map(|b| (b.name.clone(), b.to_string())).collect()),
        ("global", module.weights.iter().map(|w| (w.name.clone(), w.to_string())).collect()),
    ];
    spaces[3].1.extend(module.funcs.iter().map(|f| (f.name.clone(), crate::text::header_line(f))));
    for (what, items) in spaces {
        let legal = |n: &str| if what == "global" { is_word(n) } else { is_name(n) };
        let mut seen: BTreeMap<Arc<str>, ()> = BTreeMap::new();
        for (name, line) in items {
            if !legal(&name) {
                let message = format!("name {name:?} cannot be written; use letters, digits and `_`, joined by dots");
                report.declaration("V15", line.clone(), message);
            }
            if seen.insert(name.clone(), ()).is_some() {
                let message = match what {
                    "global" => format!("a weight or function `@{name}` exists already; rename one"),
                    _ => format!("{what} `{name}` is declared twice; rename one"),
                };
                report.declaration("V15", line, message);
            }
        }
    }
}
