//! A module: declarations (symbols, state, weights, buckets) and functions. It holds no data.

use std::sync::Arc;

use crate::attr::{Attr, Attrs};
use crate::dim::{Bindings, Sym};
use crate::dtype::DType;
use crate::graph::{Graph, Loc, Op, OpId, Value};
use crate::op::{InferCx, OpKind};
use crate::ty::{StateFamily, TensorType, Type};

/// A bounded symbol: `sym T in 1..=8192`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SymDecl {
    /// Its name.
    pub name: Sym,
    /// Least value, inclusive, at least 0.
    pub min: i64,
    /// Greatest value, inclusive.
    pub max: i64,
}

/// State that lives across steps, declared once and referred to by [`Type::State`] values (one value chain an instance).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateDecl {
    /// `kv full {head_dim = 64, heads = 8, page = 64}`: a paged key/value cache. `window` bounds the keys that are ever read.
    Kv {
        /// Its name.
        name: Arc<str>,
        /// Key/value heads.
        heads: i64,
        /// Elements a head.
        head_dim: i64,
        /// Tokens a page.
        page: i64,
        /// Keys a query sees, itself included; `None`: all before it.
        window: Option<i64>,
        /// Element type in memory.
        dtype: DType,
    },
    /// `counts seen {vocab = 4096}`: per sequence slot, how often each token occurred.
    Counts {
        /// Its name.
        name: Arc<str>,
        /// Tokens counted.
        vocab: i64,
    },
}

impl StateDecl {
    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        match self {
            StateDecl::Kv { name, .. } | StateDecl::Counts { name, .. } => name,
        }
    }

    /// Its family.
    pub fn family(&self) -> StateFamily {
        match self {
            StateDecl::Kv { .. } => StateFamily::Kv,
            StateDecl::Counts { .. } => StateFamily::Counts,
        }
    }

    /// The type of its handles.
    pub fn ty(&self) -> Type {
        Type::State(self.family(), self.name().clone())
    }
}

/// A named weight of the checkpoint: `weight @l0.attn.q.w : bf16[4096, 2880] = "model.layers.0.self_attn.q_proj.weight"`.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightDecl {
    /// Name in the module.
    pub name: Arc<str>,
    /// Its type.
    pub ty: TensorType,
    /// Name in the checkpoint (MXFP4: the stem of `_blocks` and `_scales`).
    pub key: String,
}

/// A set of sizes for which a plan is made: `bucket decode.4 {R = 4, S = 4, T = 4}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Its name.
    pub name: Arc<str>,
    /// A value for every symbol it fixes.
    pub sizes: Bindings,
}

/// A parameter of a function.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// Name hint.
    pub name: Arc<str>,
    /// Its type.
    pub ty: Type,
    /// True if callers must pass a weight-only value, so that work on it may be done once at load.
    pub weight: bool,
}

/// A function: parameters, a graph, results. `Param` ops stand for the parameters.
#[derive(Clone, Debug)]
pub struct Func {
    /// Name, without `@`.
    pub name: Arc<str>,
    /// Parameters in order.
    pub params: Vec<Param>,
    /// The body.
    pub graph: Graph,
    /// What it returns.
    pub results: Vec<Value>,
}

impl Func {
    /// An empty function with these parameters.
    pub fn new(name: &str, params: Vec<Param>) -> Func {
        let mut graph = Graph::default();
        for (i, p) in params.iter().enumerate() {
            graph.add(Op {
                kind: OpKind::Param,
                attrs: Attrs::from([("index", Attr::Int(i as i64))]),
                operands: vec![],
                results: vec![p.ty.clone()],
                names: vec![p.name.clone()],
                seq: 0,
                loc: None,
            });
        }
        Func { name: name.into(), params, graph, results: vec![] }
    }

    /// The value of parameter `index`, if its op is still there.
    pub fn param(&self, index: usize) -> Option<Value> {
        self.graph
            .ids()
            .into_iter()
            .find(|id| {
                let op = self.graph.op(*id);
                op.kind == OpKind::Param && op.attrs.int("index") == index as i64
            })
            .map(|op| Value { op, result: 0 })
    }

    /// Types of the results.
    pub fn result_types(&self) -> Vec<Type> {
        self.results.iter().map(|v| self.graph.ty(*v).clone()).collect()
    }

    /// The leaf op that reads weight `name` of `module`, made at its first use.
    pub fn weight(&mut self, module: &Module, name: &str) -> Result<Value, InferError> {
        let found = self.graph.ids().into_iter().find(|id| {
            let op = self.graph.op(*id);
            op.kind == OpKind::Weight && op.attrs.word("name") == name
        });
        match found {
            Some(op) => Ok(Value { op, result: 0 }),
            None => {
                let attrs = Attrs::from([("name", Attr::from(name))]);
                self.add(module, OpKind::Weight, vec![], attrs, &[name], None).map(|v| v[0])
            }
        }
    }

    /// Adds an op, filling in default attributes and inferring result types; the error is what the op table's type rule says.
    pub fn add(
        &mut self,
        module: &Module,
        kind: OpKind,
        operands: Vec<Value>,
        attrs: Attrs,
        names: &[&str],
        loc: Option<Loc>,
    ) -> Result<Vec<Value>, InferError> {
        let fail = |message| InferError { op: kind.name(), message, loc: loc.clone() };
        let attrs = kind.complete_attrs(attrs).map_err(fail)?;
        let types: Vec<Type> = operands.iter().map(|v| self.graph.ty(*v).clone()).collect();
        let results = crate::op::infer(kind, &InferCx { operands: &types, attrs: &attrs, module }).map_err(fail)?;
        let hint = |i: usize| names.get(i).or(names.first()).copied().unwrap_or("v");
        let names = (0..results.len()).map(|i| Arc::from(hint(i))).collect();
        let count = results.len();
        let op: OpId = self.graph.add(Op { kind, attrs, operands, results, names, seq: 0, loc });
        Ok((0..count).map(|i| Value { op, result: i as u16 }).collect())
    }
}

/// An op refused by its own type rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{op}: {message}{}", .loc.as_ref().map(|l| format!(" (at {}:{})", l.file, l.line)).unwrap_or_default())]
pub struct InferError {
    /// Name of the op.
    pub op: &'static str,
    /// What was found and what was expected.
    pub message: String,
    /// Where it was written.
    pub loc: Option<Loc>,
}

/// Declarations and functions.
#[derive(Clone, Debug, Default)]
pub struct Module {
    /// Symbols, in order of declaration.
    pub syms: Vec<SymDecl>,
    /// State, in order of declaration.
    pub states: Vec<StateDecl>,
    /// Weights, in order of declaration.
    pub weights: Vec<WeightDecl>,
    /// Buckets, in order of declaration.
    pub buckets: Vec<Bucket>,
    /// Functions; a function may call only those before it.
    pub funcs: Vec<Func>,
}

impl Module {
    /// The function `name`.
    pub fn func(&self, name: &str) -> Option<&Func> {
        self.funcs.iter().find(|f| &*f.name == name)
    }

    /// The symbol `name`.
    pub fn sym(&self, name: &str) -> Option<&SymDecl> {
        self.syms.iter().find(|s| &*s.name == name)
    }

    /// The state `name`.
    pub fn state(&self, name: &str) -> Option<&StateDecl> {
        self.states.iter().find(|s| &**s.name() == name)
    }

    /// The weight `name`.
    pub fn weight(&self, name: &str) -> Option<&WeightDecl> {
        self.weights.iter().find(|w| &*w.name == name)
    }

    /// The bucket `name`.
    pub fn bucket(&self, name: &str) -> Option<&Bucket> {
        self.buckets.iter().find(|b| &*b.name == name)
    }
}
