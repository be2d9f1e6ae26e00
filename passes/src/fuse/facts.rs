//! What is known of every class: its type, whether it depends on weights alone, and a name. Contradictions stop the run.

use std::collections::BTreeMap;
use std::sync::Arc;

use egg::{Analysis, DidMerge, EGraph, Id};
use gossamer_ir::op::{InferCx, infer};
use gossamer_ir::{Attrs, Class, Kernel, Module, Op, OpKind, Type, Value};

use super::saturate::Tried;
use super::term::Term;

/// The e-graph of one function.
pub type Graph = EGraph<Term, Facts>;

/// What a class stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sort {
    /// A value.
    Value(Type),
    /// Results of an op, call or kernel.
    Tuple(Vec<Type>),
    /// Attributes.
    Attrs,
    /// The root.
    Root,
    /// An op that its type rule refuses: always a conflict.
    Broken(String),
}

impl Sort {
    fn text(&self) -> String {
        match self {
            Sort::Value(t) => t.to_string(),
            Sort::Tuple(t) => format!("({})", t.iter().map(Type::to_string).collect::<Vec<_>>().join(", ")),
            Sort::Attrs => "attributes".into(),
            Sort::Root => "the results".into(),
            Sort::Broken(e) => format!("an op that cannot be ({e})"),
        }
    }
}

/// The facts of a class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Its type.
    pub sort: Sort,
    /// True if it depends on weights, constants and sizes alone.
    pub weight_only: bool,
    /// A name for the value, from the source.
    pub name: Option<Arc<str>>,
}

/// A parameter or weight of the function.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// Where it is in the source graph.
    pub value: Value,
    /// Its type.
    pub ty: Type,
    /// True for weights and `weight` parameters.
    pub weight: bool,
    /// Its name.
    pub name: Arc<str>,
}

/// How a kernel came about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The rule that made it.
    pub rule: &'static str,
    /// The kernels it was made from, by number: none, one, or the stages' in order.
    pub from: Vec<u32>,
    /// The op that it took in.
    pub op: OpKind,
}

/// Two classes of different types were found equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The rule that was being applied.
    pub rule: &'static str,
    /// One type.
    pub left: String,
    /// The other.
    pub right: String,
}

/// The analysis: interners, and facts by class.
pub struct Facts {
    /// Declarations, for type rules.
    pub module: Arc<Module>,
    /// Parameters and weights.
    pub leaves: Vec<Leaf>,
    /// Ops that no rule looks into.
    pub opaque: Vec<Op>,
    /// Interned attributes.
    attrs: Vec<Attrs>,
    attrs_of: BTreeMap<String, u32>,
    /// Interned kernels.
    pub kernels: Vec<Arc<Kernel>>,
    kernel_of: BTreeMap<Arc<str>, u32>,
    /// By kernel number.
    pub origins: Vec<Origin>,
    /// Contradictions, in the order found.
    pub conflicts: Vec<Conflict>,
    /// The rule that is being applied.
    pub rule: &'static str,
    /// What was proposed before.
    pub tried: Tried,
}

impl Facts {
    /// Facts of a function of `module`.
    pub fn new(module: Arc<Module>) -> Facts {
        Facts {
            module,
            leaves: vec![],
            opaque: vec![],
            attrs: vec![],
            attrs_of: BTreeMap::new(),
            kernels: vec![],
            kernel_of: BTreeMap::new(),
            origins: vec![],
            conflicts: vec![],
            rule: "",
            tried: Tried::default(),
        }
    }

    /// The number of these attributes.
    pub fn intern_attrs(&mut self, attrs: &Attrs) -> u32 {
        let bits = |v: &gossamer_ir::Attr| match v {
            gossamer_ir::Attr::Float(x) => format!("{:x}", x.to_bits()),
            other => other.to_string(),
        };
        let key: Vec<String> = attrs.iter().map(|(k, v)| format!("{k}={}", bits(v))).collect();
        let next = self.attrs.len() as u32;
        let id = *self.attrs_of.entry(key.join(";")).or_insert(next);
        if id == next {
            self.attrs.push(attrs.clone());
        }
        id
    }

    /// The attributes of a number.
    pub fn attrs(&self, id: u32) -> &Attrs {
        &self.attrs[id as usize]
    }

    /// The number of a kernel; `origin` counts if it is new.
    pub fn intern_kernel(&mut self, kernel: Kernel, origin: Origin) -> u32 {
        let next = self.kernels.len() as u32;
        let id = *self.kernel_of.entry(kernel.key().clone()).or_insert(next);
        if id == next {
            self.kernels.push(Arc::new(kernel));
            self.origins.push(origin);
        }
        id
    }

    /// The rules that made a kernel, first to last, with the op each took in; of a kernel made from several those of each in turn.
    pub fn history(&self, kernel: u32) -> Vec<Origin> {
        let mut out = vec![];
        let mut todo = vec![kernel];
        while let Some(k) = todo.pop() {
            let origin = &self.origins[k as usize];
            out.push(origin.clone());
            // A kernel is made from ones that were there before, so this ends.
            todo.extend(origin.from.iter().filter(|f| **f < k));
        }
        out.reverse();
        out
    }
}

/// The type of a value class.
pub fn ty(eg: &Graph, id: Id) -> Option<&Type> {
    match &eg[id].data.sort {
        Sort::Value(t) => Some(t),
        _ => None,
    }
}

/// Operands and attributes of an op node.
pub fn parts<'a>(eg: &'a Graph, kind: OpKind, children: &'a [Id]) -> (&'a [Id], Attrs) {
    match children.split_last() {
        Some((last, operands)) if !kind.info().attrs.is_empty() => (operands, attrs_of(eg, *last).unwrap_or_default()),
        _ => (children, Attrs::default()),
    }
}

/// The attributes a class stands for.
pub fn attrs_of(eg: &Graph, id: Id) -> Option<Attrs> {
    eg[id].nodes.iter().find_map(|n| if let Term::Attrs(a) = n { Some(eg.analysis.attrs(*a).clone()) } else { None })
}

impl Analysis<Term> for Facts {
    type Data = Fact;

    fn make(eg: &mut Graph, node: &Term, _: Id) -> Fact {
        let plain = |sort| Fact { sort, weight_only: false, name: None };
        match node {
            Term::Leaf(i) => {
                let leaf = &eg.analysis.leaves[*i as usize];
                Fact { sort: Sort::Value(leaf.ty.clone()), weight_only: leaf.weight, name: Some(leaf.name.clone()) }
            }
            Term::Attrs(_) => Fact { weight_only: true, ..plain(Sort::Attrs) },
            Term::Outputs(_) => plain(Sort::Root),
            Term::Opaque(i, _) => plain(Sort::Tuple(eg.analysis.opaque[*i as usize].results.clone())),
            Term::Kernel(k, children) => {
                let types: Option<Vec<Type>> = children.iter().map(|c| ty(eg, *c).cloned()).collect();
                let kernel = &eg.analysis.kernels[*k as usize];
                match types.ok_or_else(|| "an operand is no value".to_string()).and_then(|t| kernel.check_flow(&t)) {
                    Ok(results) => plain(Sort::Tuple(results)),
                    Err(e) => broken(eg, e),
                }
            }
            Term::Proj(i, [t]) => match &eg[*t].data.sort {
                Sort::Tuple(types) if (*i as usize) < types.len() => {
                    Fact { weight_only: eg[*t].data.weight_only, ..plain(Sort::Value(types[*i as usize].clone())) }
                }
                other => {
                    let e = format!("result {i} of {}", other.text());
                    broken(eg, e)
                }
            },
            Term::Op(kind, children) => {
                let (operands, attrs) = parts(eg, *kind, children);
                let types: Option<Vec<Type>> = operands.iter().map(|c| ty(eg, *c).cloned()).collect();
                let pure = !matches!(kind.class(), Class::State | Class::Sampling | Class::Call);
                let weight_only = pure && operands.iter().all(|c| eg[*c].data.weight_only);
                let module = eg.analysis.module.clone();
                let results = types.ok_or_else(|| "an operand is no value".to_string()).and_then(|operands| {
                    infer(*kind, &InferCx { operands: &operands, attrs: &attrs, module: &module })
                });
                match results {
                    Ok(mut results) if is_value(*kind) && results.len() == 1 => {
                        Fact { weight_only, ..plain(Sort::Value(results.remove(0))) }
                    }
                    Ok(results) => Fact { weight_only, ..plain(Sort::Tuple(results)) },
                    Err(e) => broken(eg, format!("{}: {e}", kind.name())),
                }
            }
        }
    }

    fn merge(&mut self, a: &mut Fact, b: Fact) -> DidMerge {
        if a.sort != b.sort {
            self.conflicts.push(Conflict { rule: self.rule, left: a.sort.text(), right: b.sort.text() });
        }
        let before = a.clone();
        // A value that is computed from weights in one way is, whatever other ways there are.
        a.weight_only |= b.weight_only;
        a.name = match (a.name.take(), b.name.clone()) {
            (Some(x), Some(y)) => Some(x.min(y)),
            (x, y) => x.or(y),
        };
        DidMerge(*a != before, *a != b)
    }
}

/// True if the op's class is its one result rather than a tuple.
pub fn is_value(kind: OpKind) -> bool {
    !kind.any_results() && kind.info().results.len() == 1
}

fn broken(eg: &mut Graph, message: String) -> Fact {
    let sort = Sort::Broken(message);
    let conflict = Conflict { rule: eg.analysis.rule, left: sort.text(), right: "a sound op".into() };
    eg.analysis.conflicts.push(conflict);
    Fact { sort, weight_only: false, name: None }
}
