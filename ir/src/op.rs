//! The op table: one row an op, and everything that is known about ops is read from it.
//!
//! Parser, printer, verifier, interpreter, tests and the generated reference (`docs/ir.md`) all use [`OpKind::info`]. To add an op, add a row
//! in `ops/`, its kind below, and its `eval` in `interp/`.

use crate::attr::{Attr, AttrKind, Attrs};
use crate::dim::Dim;
use crate::dtype::DType;
use crate::interp::EvalFn;
use crate::module::{Module, StateDecl};
use crate::ops;
use crate::ty::{StateFamily, TensorType, Type};

/// What passes ask of an op instead of listing ops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Parameters, weights, constants.
    Leaf,
    /// Changes how elements are addressed, not what they are.
    View,
    /// Each result element depends on one element of each operand (after suffix broadcast).
    Elementwise,
    /// Combines the elements of an axis.
    Reduction,
    /// A sum of products over a shared axis.
    Contraction,
    /// Conversion between packed and plain weights.
    Quant,
    /// Picks elements by index.
    Indexing,
    /// Has a written decomposition or a definition of its own; kept whole so that no pass has to recognise it again.
    Composite,
    /// Reads or replaces state.
    State,
    /// Chooses tokens.
    Sampling,
    /// Calls a function.
    Call,
    /// A fused kernel.
    Kernel,
}

impl Class {
    /// The word used in the reference.
    pub fn name(self) -> &'static str {
        match self {
            Class::Leaf => "leaf",
            Class::View => "view",
            Class::Elementwise => "elementwise",
            Class::Reduction => "reduction",
            Class::Contraction => "contraction",
            Class::Quant => "quant",
            Class::Indexing => "indexing",
            Class::Composite => "composite",
            Class::State => "state",
            Class::Sampling => "sampling",
            Class::Call => "call",
            Class::Kernel => "kernel",
        }
    }
}

/// How often an operand may occur.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arity {
    /// Exactly once.
    One,
    /// Once or not at all; only as the last operand.
    Optional,
    /// Any number of times; only as the last operand.
    Many,
}

/// An operand of an op.
#[derive(Clone, Copy, Debug)]
pub struct OperandInfo {
    /// Name in the reference and in error messages.
    pub name: &'static str,
    /// How often it occurs.
    pub arity: Arity,
    /// One line: dtype, shape, meaning.
    pub doc: &'static str,
}

/// Default of an attribute.
#[derive(Clone, Copy, Debug)]
pub enum Default {
    /// Must be written.
    Required,
    /// An integer.
    Int(i64),
    /// A float.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A word.
    Word(&'static str),
    /// An element type.
    DType(DType),
}

impl Default {
    /// The default as an attribute value; `None` if it must be written.
    pub fn value(self) -> Option<Attr> {
        match self {
            Default::Required => None,
            Default::Int(i) => Some(Attr::Int(i)),
            Default::Float(x) => Some(Attr::Float(x)),
            Default::Bool(b) => Some(Attr::Bool(b)),
            Default::Word(w) => Some(Attr::from(w)),
            Default::DType(d) => Some(Attr::DType(d)),
        }
    }
}

/// An attribute of an op.
#[derive(Clone, Copy, Debug)]
pub struct AttrInfo {
    /// Name in IR text.
    pub name: &'static str,
    /// What it may hold.
    pub kind: AttrKind,
    /// Value when it is left out.
    pub default: Default,
    /// One line: meaning and unit.
    pub doc: &'static str,
}

/// Everything known about an op.
pub struct OpInfo {
    /// Name in IR text.
    pub name: &'static str,
    /// What kind of op it is.
    pub class: Class,
    /// One line, capital first, no full stop.
    pub summary: &'static str,
    /// The exact meaning: formula, rounding, edge cases, source.
    pub doc: &'static str,
    /// Operands in order.
    pub operands: &'static [OperandInfo],
    /// Attributes.
    pub attrs: &'static [AttrInfo],
    /// Names of the results; see [`OpKind::any_results`] for ops that have as many as they are written with.
    pub results: &'static [&'static str],
    /// The type rule.
    pub infer: fn(&InferCx) -> Result<Vec<Type>, String>,
    /// Reference semantics.
    pub eval: EvalFn,
    /// Greatest relative error (Euclidean norm) that a compiled kernel may show against the interpreter on bf16 operands; 0: bit-exact.
    pub tolerance: f32,
    /// The op in terms of simpler ones, as IR text, for composite ops that have one.
    pub decomposition: Option<&'static str>,
}

/// An operand that occurs once.
pub(crate) const fn one(name: &'static str, doc: &'static str) -> OperandInfo {
    OperandInfo { name, arity: Arity::One, doc }
}

/// An optional last operand.
pub(crate) const fn optional(name: &'static str, doc: &'static str) -> OperandInfo {
    OperandInfo { name, arity: Arity::Optional, doc }
}

/// A repeated last operand.
pub(crate) const fn many(name: &'static str, doc: &'static str) -> OperandInfo {
    OperandInfo { name, arity: Arity::Many, doc }
}

/// An attribute.
pub(crate) const fn attr(name: &'static str, kind: AttrKind, default: Default, doc: &'static str) -> AttrInfo {
    AttrInfo { name, kind, default, doc }
}

macro_rules! op_kinds {
    ($($kind:ident => $info:path),* $(,)?) => {
        /// Names an op; [`OpKind::info`] is its row in the table. The order is that of the reference.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[expect(missing_docs, reason = "the table documents each op")]
        pub enum OpKind { $($kind),* }

        impl OpKind {
            /// Every op, in the order of the reference.
            pub const ALL: &'static [OpKind] = &[$(OpKind::$kind),*];

            /// The row of the op table.
            pub fn info(self) -> &'static OpInfo {
                match self { $(OpKind::$kind => &$info),* }
            }
        }
    };
}

op_kinds! {
    Param => ops::leaf::PARAM, Weight => ops::leaf::WEIGHT, Const => ops::leaf::CONST, Iota => ops::leaf::IOTA,
    Reshape => ops::view::RESHAPE, Permute => ops::view::PERMUTE, Slice => ops::view::SLICE, Split => ops::view::SPLIT,
    Broadcast => ops::view::BROADCAST, Concat => ops::view::CONCAT,
    Neg => ops::elementwise::NEG, Abs => ops::elementwise::ABS, Exp => ops::elementwise::EXP, Log => ops::elementwise::LOG,
    Sqrt => ops::elementwise::SQRT, Rsqrt => ops::elementwise::RSQRT, Sigmoid => ops::elementwise::SIGMOID,
    Tanh => ops::elementwise::TANH, Silu => ops::elementwise::SILU, Gelu => ops::elementwise::GELU,
    Cast => ops::elementwise::CAST, Clamp => ops::elementwise::CLAMP,
    Add => ops::elementwise::ADD, Sub => ops::elementwise::SUB, Mul => ops::elementwise::MUL, Div => ops::elementwise::DIV,
    Max => ops::elementwise::MAX, Min => ops::elementwise::MIN, Cmp => ops::elementwise::CMP, Select => ops::elementwise::SELECT,
    Reduce => ops::reduce::REDUCE, Softmax => ops::reduce::SOFTMAX, LogSumExp => ops::reduce::LOGSUMEXP,
    ArgMax => ops::reduce::ARGMAX, TileMax => ops::reduce::TILE_MAX, TopK => ops::reduce::TOPK,
    MatMul => ops::contraction::MATMUL, BatchMatMul => ops::contraction::BMM, MoeMatMul => ops::contraction::MOE_MATMUL,
    Dequant => ops::quant::DEQUANT, Relayout => ops::quant::RELAYOUT,
    GatherRows => ops::index::GATHER_ROWS,
    RmsNorm => ops::norm::RMS_NORM, LayerNorm => ops::norm::LAYER_NORM,
    RopeTable => ops::attention::ROPE_TABLE, Rope => ops::attention::ROPE,
    KvWrite => ops::attention::KV_WRITE, Attention => ops::attention::ATTENTION,
    Swiglu => ops::moe::SWIGLU, MoeCombine => ops::moe::MOE_COMBINE,
    CountTokens => ops::sample::COUNT_TOKENS, Penalize => ops::sample::PENALIZE, LogitBias => ops::sample::LOGIT_BIAS,
    Sample => ops::sample::SAMPLE, TokenLogprob => ops::sample::TOKEN_LOGPROB,
    Call => ops::call::CALL, Kernel => ops::kernel::KERNEL,
}

impl OpKind {
    /// Its name in IR text.
    pub fn name(self) -> &'static str {
        self.info().name
    }

    /// The op named `name` in IR text.
    pub fn parse(name: &str) -> Option<OpKind> {
        OpKind::ALL.iter().copied().find(|k| k.name() == name)
    }

    /// What passes ask about it.
    pub fn class(self) -> Class {
        self.info().class
    }

    /// True if the number of results depends on attributes.
    pub fn any_results(self) -> bool {
        matches!(self, OpKind::Call | OpKind::Kernel | OpKind::Split)
    }

    /// `attrs` checked against the table and completed with defaults.
    pub fn complete_attrs(self, mut attrs: Attrs) -> Result<Attrs, String> {
        let info = self.info();
        for (name, value) in attrs.iter() {
            let Some(known) = info.attrs.iter().find(|a| a.name == name) else {
                let names: Vec<_> = info.attrs.iter().map(|a| a.name).collect();
                let list = if names.is_empty() { "none".to_string() } else { names.join(", ") };
                return Err(format!("unknown attribute `{name}`; it has {list}"));
            };
            if !known.kind.accepts(value) {
                return Err(format!("attribute `{name}` is `{value}`, expected {}", known.kind));
            }
        }
        for known in info.attrs {
            if attrs.get(known.name).is_none() {
                match known.default.value() {
                    Some(v) => attrs.set(known.name, v),
                    None => return Err(format!("attribute `{}` is missing ({})", known.name, known.kind)),
                }
            }
        }
        Ok(attrs)
    }
}

/// The result types of an op, after checking the number of operands.
pub fn infer(kind: OpKind, cx: &InferCx) -> Result<Vec<Type>, String> {
    let info = kind.info();
    let required = info.operands.iter().filter(|o| o.arity == Arity::One).count();
    let most = match info.operands.last().map(|o| o.arity) {
        Some(Arity::Many) => usize::MAX,
        _ => info.operands.len(),
    };
    let n = cx.operands.len();
    if n < required || n > most {
        let names: Vec<_> = info.operands.iter().map(|o| o.name).collect();
        return Err(format!("has {n} operands, expected {} ({})", count_text(required, most), names.join(", ")));
    }
    (info.infer)(cx)
}

fn count_text(least: usize, most: usize) -> String {
    match most {
        usize::MAX => format!("{least} or more"),
        _ if most == least => least.to_string(),
        _ => format!("{least} to {most}"),
    }
}

/// What a type rule sees.
pub struct InferCx<'a> {
    /// Types of the operands.
    pub operands: &'a [Type],
    /// Complete attributes.
    pub attrs: &'a Attrs,
    /// Declarations and functions.
    pub module: &'a Module,
}

/// Helpers for type rules. Messages start with the operand's position; the caller adds the op and the line.
impl InferCx<'_> {
    /// Operand `i` as a tensor.
    pub fn tensor(&self, i: usize) -> Result<&TensorType, String> {
        match self.operands.get(i) {
            Some(Type::Tensor(t)) => Ok(t),
            Some(other) => Err(format!("operand {i} is {other}, expected a tensor")),
            None => Err(format!("operand {i} is missing")),
        }
    }

    /// Operand `i` as a row-major float tensor.
    pub fn float(&self, i: usize) -> Result<&TensorType, String> {
        let t = self.tensor(i)?;
        match t.dtype.is_float() && t.layout.is_none() {
            true => Ok(t),
            false => Err(format!("operand {i} is {t}, expected f32, bf16 or f16")),
        }
    }

    /// Operand `i` as a float tensor of `rank` dims.
    pub fn float_rank(&self, i: usize, rank: usize) -> Result<&TensorType, String> {
        let t = self.float(i)?;
        match t.rank() == rank {
            true => Ok(t),
            false => Err(format!("operand {i} is {t}, expected {rank} dims")),
        }
    }

    /// Operand `i` as exactly this tensor.
    pub fn exact(&self, i: usize, dtype: DType, dims: &[Dim]) -> Result<(), String> {
        let t = self.tensor(i)?;
        let want = TensorType::new(dtype, dims.iter().cloned());
        match *t == want {
            true => Ok(()),
            false => Err(format!("operand {i} is {t}, expected {want}")),
        }
    }

    /// Operand `i` as an i32 tensor of `rank` dims.
    pub fn index(&self, i: usize, rank: usize) -> Result<&TensorType, String> {
        let t = self.tensor(i)?;
        match t.dtype == DType::I32 && t.rank() == rank {
            true => Ok(t),
            false => Err(format!("operand {i} is {t}, expected i32 with {rank} dims")),
        }
    }

    /// Operand `i` as a handle to paged KV state: (declaration's heads, head_dim, window), and its type.
    pub fn kv(&self, i: usize) -> Result<(i64, i64, Option<i64>, &Type), String> {
        let ty = self.operands.get(i).ok_or_else(|| format!("operand {i} is missing"))?;
        let Type::State(StateFamily::Kv, name) = ty else {
            return Err(format!("operand {i} is {ty}, expected a kv state"));
        };
        match self.module.state(name) {
            Some(StateDecl::Kv { heads, head_dim, window, .. }) => Ok((*heads, *head_dim, *window, ty)),
            _ => Err(format!("operand {i} is {ty}, but no `kv {name}` is declared")),
        }
    }

    /// Operand `i` as a handle to token counts: (vocabulary, its type).
    pub fn counts(&self, i: usize) -> Result<(i64, &Type), String> {
        let ty = self.operands.get(i).ok_or_else(|| format!("operand {i} is missing"))?;
        let Type::State(StateFamily::Counts, name) = ty else {
            return Err(format!("operand {i} is {ty}, expected a counts state"));
        };
        match self.module.state(name) {
            Some(StateDecl::Counts { vocab, .. }) => Ok((*vocab, ty)),
            _ => Err(format!("operand {i} is {ty}, but no `counts {name}` is declared")),
        }
    }
}

/// Checks that two dims are equal; `what` names them in the message.
pub(crate) fn same(a: &Dim, b: &Dim, what: &str) -> Result<(), String> {
    if a == b { Ok(()) } else { Err(format!("{what} differ: {a} and {b}")) }
}
