//! Equality of modules up to what text does not hold: creation order, places, unused leaves, and the number behind a name hint.

use std::collections::BTreeMap;

use super::names::base;
use super::print::{order, same_attr};
use crate::graph::{OpId, Value};
use crate::module::{Func, Module};
use crate::op::OpKind;

/// Checks that two modules mean and print the same; the error names the first difference.
pub fn same(a: &Module, b: &Module) -> Result<(), String> {
    let differ = |what: &str| Err(format!("{what} differ"));
    if a.syms != b.syms {
        return differ("symbols");
    }
    if a.states != b.states {
        return differ("states");
    }
    if a.weights != b.weights {
        return differ("weights");
    }
    if a.buckets != b.buckets {
        return differ("buckets");
    }
    if a.funcs.len() != b.funcs.len() {
        return Err(format!("{} functions, but {}", a.funcs.len(), b.funcs.len()));
    }
    a.funcs.iter().zip(&b.funcs).try_for_each(|(f, g)| same_func(f, g).map_err(|e| format!("in @{}: {e}", f.name)))
}

/// What an operand stands for, in terms that do not depend on op ids.
#[derive(PartialEq, Debug)]
enum Source {
    Param(i64),
    Weight(String),
    Statement(usize, u16),
    Nothing,
}

fn same_func(a: &Func, b: &Func) -> Result<(), String> {
    if a.name != b.name {
        return Err(format!("the other is @{}", b.name));
    }
    let params = |f: &Func| f.params.iter().map(|p| (base(&p.name), p.ty.clone(), p.weight)).collect::<Vec<_>>();
    if params(a) != params(b) {
        return Err("parameters differ".into());
    }
    let (x, y) = (Statements::of(a), Statements::of(b));
    if x.order.len() != y.order.len() {
        return Err(format!("{} statements, but {}", x.order.len(), y.order.len()));
    }
    for (i, (p, q)) in x.order.iter().zip(&y.order).enumerate() {
        let (p, q) = (a.graph.op(*p), b.graph.op(*q));
        let attrs = p.attrs.iter().count() == q.attrs.iter().count()
            && p.attrs.iter().all(|(k, v)| q.attrs.get(k).is_some_and(|w| same_attr(v, w)));
        let operands = |f: &Statements, op: &crate::Op| op.operands.iter().map(|v| f.source(*v)).collect::<Vec<_>>();
        let hint = |op: &crate::Op, i: usize| op.names.get(i).map_or_else(|| base(""), |n| base(n));
        let names = |op: &crate::Op| (0..op.results.len()).map(|i| hint(op, i)).collect::<Vec<_>>();
        let what = match () {
            () if p.kind != q.kind => "op",
            () if !attrs => "attributes",
            () if operands(&x, p) != operands(&y, q) => "operands",
            () if p.results != q.results => "result types",
            () if names(p) != names(q) => "name hints",
            () => continue,
        };
        return Err(format!("statement {i} ({}) has another {what}", p.kind.name()));
    }
    let results = |f: &Statements, func: &Func| func.results.iter().map(|v| f.source(*v)).collect::<Vec<_>>();
    match results(&x, a) == results(&y, b) {
        true => Ok(()),
        false => Err("results differ".into()),
    }
}

struct Statements<'a> {
    func: &'a Func,
    order: Vec<OpId>,
    index: BTreeMap<OpId, usize>,
}

impl Statements<'_> {
    fn of(func: &Func) -> Statements<'_> {
        let leaf = |id: &OpId| matches!(func.graph.op(*id).kind, OpKind::Param | OpKind::Weight);
        let order: Vec<OpId> = order(func).into_iter().filter(|id| !leaf(id)).collect();
        let index = order.iter().enumerate().map(|(i, id)| (*id, i)).collect();
        Statements { func, order, index }
    }

    fn source(&self, v: Value) -> Source {
        match self.func.graph.get(v.op) {
            Some(op) if op.kind == OpKind::Param => Source::Param(op.attrs.int("index")),
            Some(op) if op.kind == OpKind::Weight => Source::Weight(op.attrs.word("name").into()),
            Some(_) => self.index.get(&v.op).map_or(Source::Nothing, |i| Source::Statement(*i, v.result)),
            None => Source::Nothing,
        }
    }
}
