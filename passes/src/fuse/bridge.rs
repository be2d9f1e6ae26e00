//! From a function to an e-graph and back.

use std::collections::BTreeMap;
use std::sync::Arc;

use egg::Id;
use gossamer_ir::{Attr, Attrs, Func, InferError, Kernel, Module, Op, OpKind, Param, Type, Value};

use super::facts::{Facts, Graph, Leaf, is_value, parts};
use super::term::Term;

/// A function in an e-graph.
pub struct Bridged {
    /// The e-graph.
    pub graph: Graph,
    /// Its one root.
    pub root: Id,
}

/// Puts the ops of `func` into an e-graph. Names of values become facts of their classes.
pub fn enter(module: Arc<Module>, func: &Func) -> Bridged {
    let mut eg = Graph::new(Facts::new(module));
    let mut ids: BTreeMap<Value, Id> = BTreeMap::new();
    for op_id in func.graph.order().unwrap_or_default() {
        let op = func.graph.op(op_id);
        let value = Value { op: op_id, result: 0 };
        let operands: Vec<Id> = op.operands.iter().map(|v| ids[v]).collect();
        match op.kind {
            OpKind::Param | OpKind::Weight => {
                let param = func.params.get(op.attrs.int("index") as usize).filter(|_| op.kind == OpKind::Param);
                let leaf = Leaf {
                    value,
                    ty: op.results[0].clone(),
                    weight: param.is_none_or(|p| p.weight),
                    name: op.names.first().cloned().unwrap_or_else(|| "v".into()),
                };
                eg.analysis.leaves.push(leaf);
                let id = eg.add(Term::Leaf(eg.analysis.leaves.len() as u32 - 1));
                ids.insert(value, id);
            }
            OpKind::Call => {
                eg.analysis.opaque.push(op.clone());
                let tuple = eg.add(Term::Opaque(eg.analysis.opaque.len() as u32 - 1, operands));
                project(&mut eg, tuple, op, op_id, &mut ids);
            }
            OpKind::Kernel => {
                let Some(kernel) = op.attrs.kernel() else { continue };
                let origin = super::facts::Origin { rule: "source", from: vec![], op: OpKind::Kernel };
                let k = eg.analysis.intern_kernel(Kernel::clone(kernel), origin);
                let tuple = eg.add(Term::Kernel(k, operands));
                project(&mut eg, tuple, op, op_id, &mut ids);
            }
            kind => {
                let mut children = operands;
                if !kind.info().attrs.is_empty() {
                    let attrs = eg.analysis.intern_attrs(&op.attrs);
                    children.push(eg.add(Term::Attrs(attrs)));
                }
                let id = eg.add(Term::Op(kind, children));
                if is_value(kind) {
                    name(&mut eg, id, op.names.first());
                    ids.insert(value, id);
                } else {
                    project(&mut eg, id, op, op_id, &mut ids);
                }
            }
        }
    }
    let outputs = func.results.iter().map(|v| ids[v]).collect();
    let root = eg.add(Term::Outputs(outputs));
    eg.rebuild();
    Bridged { graph: eg, root }
}

fn project(eg: &mut Graph, tuple: Id, op: &Op, op_id: gossamer_ir::OpId, ids: &mut BTreeMap<Value, Id>) {
    for result in 0..op.results.len() as u16 {
        let id = eg.add(Term::Proj(result, [tuple]));
        name(eg, id, op.names.get(result as usize));
        ids.insert(Value { op: op_id, result }, id);
    }
}

fn name(eg: &mut Graph, id: Id, name: Option<&Arc<str>>) {
    if eg[id].data.name.is_none() {
        let mut data = eg[id].data.clone();
        data.name = name.cloned();
        eg.set_analysis_data(id, data);
    }
}

/// The function that chosen nodes stand for. `chosen` gives a node for every class that the root reaches.
///
/// # Errors
/// None for a valid choice: types were checked when the nodes were made.
pub fn leave(
    module: &Module,
    func: &Func,
    bridged: &Bridged,
    chosen: &dyn Fn(Id) -> Option<Term>,
) -> Result<(Func, Vec<u32>), InferError> {
    let mut cx = Leave {
        module,
        source: func,
        eg: &bridged.graph,
        chosen,
        out: empty(func),
        values: BTreeMap::new(),
        kernels: vec![],
    };
    let root = bridged.graph.find(bridged.root);
    let outputs = match chosen(root) {
        Some(Term::Outputs(ids)) => ids,
        _ => vec![],
    };
    for id in &outputs {
        cx.class(*id)?;
    }
    cx.out.results = outputs.iter().filter_map(|id| cx.value(*id)).collect();
    Ok((cx.out, cx.kernels))
}

fn empty(func: &Func) -> Func {
    let params: Vec<Param> = func.params.clone();
    let mut out = Func::new(&func.name, params);
    for i in 0..func.params.len() {
        if let (Some(a), Some(b)) = (func.param(i), out.param(i)) {
            let loc = func.graph.op(a.op).loc.clone();
            out.graph.op_mut(b.op).loc = loc;
        }
    }
    out
}

struct Leave<'a> {
    module: &'a Module,
    source: &'a Func,
    eg: &'a Graph,
    chosen: &'a dyn Fn(Id) -> Option<Term>,
    out: Func,
    /// Results by class: one for a value, several for a tuple.
    values: BTreeMap<Id, Vec<Value>>,
    /// Numbers of the kernels in the order of their ops.
    kernels: Vec<u32>,
}

impl Leave<'_> {
    fn value(&self, id: Id) -> Option<Value> {
        self.values.get(&self.eg.find(id)).and_then(|v| v.first()).copied()
    }

    /// Makes a class and what it needs. Explicit stack: a function may be long.
    fn class(&mut self, root: Id) -> Result<(), InferError> {
        let mut stack = vec![(self.eg.find(root), false)];
        while let Some((id, ready)) = stack.pop() {
            if self.values.contains_key(&id) {
                continue;
            }
            let Some(node) = (self.chosen)(id) else { continue };
            if !ready {
                stack.push((id, true));
                let children: Vec<Id> = egg::Language::children(&node).iter().rev().map(|c| self.eg.find(*c)).collect();
                stack.extend(
                    children
                        .into_iter()
                        .filter(|c| !matches!((self.chosen)(*c), Some(Term::Attrs(_)) | None))
                        .map(|c| (c, false)),
                );
                continue;
            }
            let made = self.node(id, &node)?;
            self.values.insert(id, made);
        }
        Ok(())
    }

    fn node(&mut self, id: Id, node: &Term) -> Result<Vec<Value>, InferError> {
        let operands = |ids: &[Id]| ids.iter().filter_map(|i| self.value(*i)).collect::<Vec<_>>();
        match node {
            Term::Leaf(i) => {
                let leaf = &self.eg.analysis.leaves[*i as usize];
                let op = self.source.graph.op(leaf.value.op);
                match op.kind {
                    OpKind::Param => Ok(self.out.param(op.attrs.int("index") as usize).into_iter().collect()),
                    _ => self.out.weight(self.module, op.attrs.word("name")).map(|v| vec![v]),
                }
            }
            Term::Proj(i, [tuple]) => {
                let tuple = self.values.get(&self.eg.find(*tuple));
                Ok(tuple.and_then(|v| v.get(*i as usize)).copied().into_iter().collect())
            }
            Term::Kernel(k, ids) => {
                let kernel = self.eg.analysis.kernels[*k as usize].clone();
                let attrs = Attrs::from([("body", Attr::Kernel(kernel))]);
                let args = operands(ids);
                let names = self.names(id);
                let names: Vec<&str> = names.iter().map(|n| &**n).collect();
                self.kernels.push(*k);
                self.out.add(self.module, OpKind::Kernel, args, attrs, &names, None)
            }
            Term::Op(kind, children) => {
                let (ids, attrs) = parts(self.eg, *kind, children);
                let args = operands(ids);
                let names = self.names(id);
                let names: Vec<&str> = names.iter().map(|n| &**n).collect();
                self.out.add(self.module, *kind, args, attrs, &names, None)
            }
            Term::Opaque(i, ids) => {
                let op = self.eg.analysis.opaque[*i as usize].clone();
                let args = operands(ids);
                let new = self.out.graph.add(Op { operands: args, ..op.clone() });
                Ok((0..op.results.len() as u16).map(|result| Value { op: new, result }).collect())
            }
            Term::Attrs(_) | Term::Outputs(_) => Ok(vec![]),
        }
    }

    /// Names of a class's results: its own, or those of the projections that are chosen from it.
    fn names(&self, id: Id) -> Vec<Arc<str>> {
        let class = &self.eg[id];
        match &class.data.sort {
            super::facts::Sort::Tuple(types) => {
                let mut names: Vec<Option<Arc<str>>> = vec![None; types.len()];
                for (parent, _) in parents(self.eg, id) {
                    for node in &self.eg[parent].nodes {
                        if let Term::Proj(i, [t]) = node
                            && self.eg.find(*t) == id
                            && let Some(slot) = names.get_mut(*i as usize)
                        {
                            let name = self.eg[parent].data.name.clone();
                            *slot = match (slot.take(), name) {
                                (Some(a), Some(b)) => Some(a.min(b)),
                                (a, b) => a.or(b),
                            };
                        }
                    }
                }
                names.into_iter().map(|n| n.unwrap_or_else(|| "v".into())).collect()
            }
            _ => vec![class.data.name.clone().unwrap_or_else(|| "v".into())],
        }
    }
}

fn parents(eg: &Graph, id: Id) -> Vec<(Id, ())> {
    let mut out: Vec<(Id, ())> = eg[id].parents().map(|p| (eg.find(p), ())).collect();
    out.sort_unstable();
    out.dedup();
    out
}

/// Types of the results of a function, for checks.
pub fn result_types(f: &Func) -> Vec<Type> {
    f.result_types()
}
