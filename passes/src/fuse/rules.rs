//! The rewrite rules: what may start a kernel, what a kernel may take in.
//!
//! A rule only proposes; the [template](gossamer_ir::template) of the kernel decides in one place ([`Body::close`]), so a new template brings its rules with it. Every
//! proposal is an equality that holds whatever is chosen later: the new kernel's results equal classes that are there already. There is no commutativity, no
//! associativity and no rule that makes a term larger without taking an op in.

use std::sync::Arc;

use egg::Id;
use gossamer_ir::template::template;
use gossamer_ir::{Class, OpKind, Type};

use super::body::{Arg, Body, Taken, open};
use super::facts::{Graph, is_value, parts, ty};
use super::saturate::Tried;
use super::term::{Head, Term};
use crate::rule::{Family, RuleInfo};

use OpKind as K;

/// A rule of the e-graph.
pub struct Rule {
    /// For people.
    pub info: RuleInfo,
    /// Ops that it looks for. Absorbing rules look at kernels and use this for what they take in.
    pub kinds: &'static [OpKind],
    /// How it proposes.
    pub how: How,
}

/// What a rule does with what it finds.
#[derive(Clone, Copy)]
pub enum How {
    /// The op alone becomes the main op of a template.
    Seed(&'static str),
    /// A kernel whose result the op reads takes it in; `keep` leaves what it read a result.
    Grow {
        /// What it reads stays a result.
        keep: bool,
        /// Further condition on the op's operands.
        when: fn(&Graph, &[Id], &[Arg]) -> bool,
    },
    /// A kernel takes in the op that makes one of its operands.
    Absorb {
        /// Region whose operands are looked at.
        region: usize,
        /// What is taken in also becomes a result.
        export: bool,
        /// Only an op of which one operand is made by an op of this kind.
        of: Option<OpKind>,
    },
    /// A kernel and the one whose result it reads, both complete kernels of template `parts`, become the stages of one.
    Chain {
        /// Template of both.
        parts: &'static str,
        /// Template of the new kernel.
        whole: &'static str,
    },
    /// Rewrites the function before the e-graph is made; see [`super::concat`] and [`super::tile_max`].
    Before,
    /// Anything else.
    Custom(fn(&Graph, Id, &Term) -> Vec<Proposal>),
}

/// Scalar ops but `add` and `cast`, which have rules of their own, and more.
macro_rules! activation_and {
    ($($more:ident),*) => {
        &[
            K::Neg, K::Abs, K::Exp, K::Log, K::Sqrt, K::Rsqrt, K::Sigmoid, K::Tanh, K::Silu, K::Gelu, K::Clamp, K::Sub, K::Mul, K::Div, K::Max, K::Min, K::Cmp, K::Select, $(K::$more),*
        ]
    };
}

/// Elementwise ops but `add` and `cast`, which have rules of their own.
const ACTIVATION: &[OpKind] = activation_and!();

const MAPPED: &[OpKind] = activation_and!(Cast, Add, GatherRows, Swiglu, MoeCombine, Rope);

/// The same without `cast`, which `absorb/cast` takes.
const ABSORBED: &[OpKind] = activation_and!(Add, GatherRows, Swiglu, MoeCombine, Rope);

const fn info(name: &'static str, family: Family, meaning: &'static str) -> RuleInfo {
    RuleInfo { name, family, meaning, off: None }
}

const fn seed(name: &'static str, kinds: &'static [OpKind], template: &'static str, meaning: &'static str) -> Rule {
    Rule { info: info(name, Family::Seed, meaning), kinds, how: How::Seed(template) }
}

const fn grow(
    name: &'static str,
    kinds: &'static [OpKind],
    when: fn(&Graph, &[Id], &[Arg]) -> bool,
    meaning: &'static str,
) -> Rule {
    Rule { info: info(name, Family::Grow, meaning), kinds, how: How::Grow { keep: false, when } }
}

const fn absorb(name: &'static str, kinds: &'static [OpKind], region: usize, meaning: &'static str) -> Rule {
    Rule { info: info(name, Family::Absorb, meaning), kinds, how: How::Absorb { region, export: false, of: None } }
}

/// Every rule, by family.
pub static RULES: &[Rule] = &[
    seed("seed/stream", &[K::MatMul], "stream", "matmul of few rows becomes a kernel that streams its weights"),
    seed("seed/tile", &[K::MatMul], "tile", "matmul of many rows becomes a tiled kernel"),
    seed("seed/gemm", &[K::MatMul], "gemm", "matmul of a prompt's rows becomes a kernel of warpgroup multiplies"),
    seed(
        "seed/gemm-pieces",
        &[K::MatMul],
        "gemm_pieces",
        "matmul of many decoded rows becomes a kernel of warpgroup multiplies",
    ),
    seed("seed/router", &[K::MatMul], "router", "matmul with few columns becomes a kernel that sees whole rows"),
    Rule {
        info: RuleInfo {
            off: Some(
                "the library sums in another order for another number of rows, so a row's bits depend on its neighbours",
            ),
            ..info("seed/cublaslt", Family::Seed, "matmul of many rows becomes a call of NVIDIA's cuBLASLt")
        },
        kinds: &[K::MatMul],
        how: How::Seed("cublaslt"),
    },
    seed(
        "seed/moe-stream",
        &[K::MoeMatMul],
        "moe_stream",
        "moe_matmul of few rows becomes a kernel that streams experts",
    ),
    seed(
        "seed/moe-tile",
        &[K::MoeMatMul],
        "moe_tile",
        "moe_matmul of many rows becomes a kernel over rows grouped by expert",
    ),
    seed(
        "seed/moe-wide",
        &[K::MoeMatMul],
        "moe_wide",
        "moe_matmul of many sequences' rows becomes a kernel of warpgroup multiplies that sums in pieces",
    ),
    seed(
        "seed/moe-gemm",
        &[K::MoeMatMul],
        "moe_gemm",
        "moe_matmul of a prompt's rows becomes a kernel of warpgroup multiplies over rows ordered by expert",
    ),
    seed("seed/attention", &[K::Attention], "attention", "attention becomes a kernel"),
    seed(
        "seed/row",
        &[K::RmsNorm, K::LayerNorm, K::Softmax],
        "row",
        "a reduction over rows becomes a kernel with a block a row",
    ),
    seed("seed/map", MAPPED, "map", "an op whose elements depend on few others becomes a scalar kernel"),
    seed("seed/single", K::ALL, "single", "any op may run by itself"),
    grow("grow/bias", &[K::Add], adds_vector, "add of a vector of columns joins the kernel that makes its rows"),
    grow(
        "grow/residual",
        &[K::Add],
        adds_equal,
        "add of a tensor of equal dims joins the kernel that makes one of them",
    ),
    grow("grow/activation", ACTIVATION, always, "a scalar op joins the kernel that makes its operand"),
    grow(
        "grow/cast",
        &[K::Cast],
        always,
        "cast joins the kernel that makes its operand: rounding where the value is made",
    ),
    grow("grow/swiglu", &[K::Swiglu], always, "swiglu joins the matmul that makes gate and up"),
    grow("grow/split", &[K::Split], always, "pieces of a row become results of the kernel that makes the row"),
    grow("grow/rope", &[K::Rope], always, "rope joins the projection that makes its rows"),
    grow("grow/kv-write", &[K::KvWrite], makes_both, "kv_write joins the kernel that makes both keys and values"),
    grow("grow/topk", &[K::TopK], always, "topk joins the matmul that makes its rows"),
    grow("grow/softmax", &[K::Softmax], always, "softmax joins the kernel that makes its rows"),
    grow("grow/combine", &[K::MoeCombine], always, "the weighted sum over experts joins the kernel that makes them"),
    Rule {
        info: info(
            "grow/tile-max",
            Family::Grow,
            "the greatest logit of each tile becomes a further result of the head",
        ),
        kinds: &[K::TileMax],
        how: How::Grow { keep: true, when: always },
    },
    absorb("absorb/cast", &[K::Cast], 1, "cast of an operand moves into the prologue"),
    absorb(
        "absorb/rms-norm",
        &[K::RmsNorm],
        0,
        "rms_norm of an operand moves into the prologue: recomputed by every block that reads it",
    ),
    absorb(
        "absorb/gather-rows",
        &[K::GatherRows],
        0,
        "gather_rows in front of a prologue becomes the address of its rows",
    ),
    absorb(
        "absorb/dequant",
        &[K::Dequant],
        1,
        "dequant of the weights moves into the main loop: no expanded copy is written",
    ),
    absorb("absorb/expert-bias", &[K::GatherRows], 2, "the gathered bias of each row's expert is read in the epilogue"),
    absorb("absorb/map", ABSORBED, 1, "the scalar op that makes an operand of a scalar kernel joins it"),
    Rule {
        info: info(
            "absorb/sum",
            Family::Absorb,
            "what is added to a weighted sum over experts is added where a reduction reads the rows, and also stored for others",
        ),
        kinds: &[K::Add],
        how: How::Absorb { region: 1, export: true, of: Some(K::MoeCombine) },
    },
    absorb(
        "absorb/combine",
        &[K::MoeCombine, K::Cast],
        0,
        "the weighted sum over experts, and the cast of what it sums, is made where a reduction reads its rows",
    ),
    Rule {
        info: info(
            "absorb/share",
            Family::Absorb,
            "a cast, and the norm behind it, moves into the prologue and is also stored for others",
        ),
        kinds: &[K::Cast],
        how: How::Absorb { region: 1, export: true, of: None },
    },
    Rule {
        info: RuleInfo {
            off: Some(
                "measured, it does not pay: the kernel behind it cannot ask for weights early, and two kernels, units from a counter, are faster",
            ),
            ..info(
                "chain/moe-pair",
                Family::Chain,
                "the two matmuls with a row's experts become one kernel: memory does not pause between them",
            )
        },
        kinds: &[K::MoeMatMul],
        how: How::Chain { parts: "moe_stream", whole: "moe_pair" },
    },
    Rule {
        info: info(
            super::concat::NAME,
            Family::Fold,
            "matmuls of one operand by several weights become one by their concatenation, made at load, and a split",
        ),
        kinds: &[K::MatMul],
        how: How::Before,
    },
    Rule {
        info: info(
            super::tile_max::NAME,
            Family::Fold,
            "what looks for the greatest logit reads the maxima of tiles, made where the logits are",
        ),
        kinds: &[K::Sample, K::ArgMax],
        how: How::Before,
    },
    Rule {
        info: info(
            "fold/no-maxima",
            Family::Fold,
            "what reads the maxima of tiles can do without: where no kernel makes them for nothing",
        ),
        kinds: &[K::Sample, K::ArgMax],
        how: How::Custom(super::tile_max::without),
    },
];

fn always(_: &Graph, _: &[Id], _: &[Arg]) -> bool {
    true
}

fn dims(eg: &Graph, id: Id) -> Option<&[gossamer_ir::Dim]> {
    ty(eg, id).and_then(Type::as_tensor).map(|t| t.dims.as_slice())
}

fn adds_vector(eg: &Graph, operands: &[Id], args: &[Arg]) -> bool {
    matches!(args, [Arg::Result(_), Arg::Value(_)]) && dims(eg, operands[0]) != dims(eg, operands[1])
}

fn adds_equal(eg: &Graph, operands: &[Id], _: &[Arg]) -> bool {
    dims(eg, operands[0]) == dims(eg, operands[1])
}

fn makes_both(_: &Graph, _: &[Id], args: &[Arg]) -> bool {
    matches!(args, [Arg::Value(_), Arg::Result(k), Arg::Result(v), ..] if k != v)
}

/// A kernel that a rule proposes.
pub struct Proposal {
    /// The kernel.
    pub body: Body,
    /// The kernels it comes from.
    pub from: Vec<u32>,
    /// The op it takes in.
    pub op: OpKind,
    /// What it equals.
    pub equal: Equal,
}

/// What a proposed kernel equals.
pub enum Equal {
    /// Another kernel with the same results.
    Tuple(Id),
    /// Its results, by number, equal these.
    Results(Vec<(u16, Target)>),
}

/// A value.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// A class.
    Class(Id),
    /// A result of a tuple class.
    Proj(u16, Id),
}

impl Rule {
    /// Heads of the nodes that the rule looks for.
    pub fn heads(&self) -> Vec<Head> {
        match self.how {
            How::Absorb { .. } | How::Chain { .. } => vec![Head::Kernel],
            How::Before => vec![],
            _ => self.kinds.iter().map(|k| Head::Op(*k)).collect(),
        }
    }

    /// What the rule proposes for a node of class `class`.
    pub fn propose(&self, eg: &Graph, class: Id, node: &Term, tried: &mut Tried) -> Vec<Proposal> {
        let mut first = |key: (Id, &Term, &Term)| tried.first((self.info.name, key));
        match (self.how, node) {
            (How::Seed(template), Term::Op(kind, children)) if first((class, node, node)) => {
                seeded(eg, class, *kind, children, template)
            }
            (How::Grow { keep, when }, Term::Op(kind, children)) => {
                grown(eg, class, *kind, children, keep, when, &mut |k| first((class, node, k)))
            }
            (How::Absorb { region, export, of }, Term::Kernel(k, operands)) => {
                absorbed(eg, class, (*k, operands), self.kinds, (region, export, of), &mut |op| {
                    first((class, node, op))
                })
            }
            (How::Chain { parts, whole }, Term::Kernel(k, operands)) => {
                chained(eg, class, (*k, operands), parts, whole, &mut |k| first((class, node, k)))
            }
            (How::Custom(propose), _) if first((class, node, node)) => propose(eg, class, node),
            _ => vec![],
        }
    }
}

/// True if the op runs once at load and needs no kernel of a step: weights in, nothing that grows out.
pub fn at_load(eg: &Graph, class: Id, node: &Term) -> bool {
    let Term::Op(kind, children) = node else { return false };
    if !eg[class].data.weight_only {
        return false;
    }
    let (operands, _) = parts(eg, *kind, children);
    if operands.is_empty() {
        return *kind == K::RopeTable;
    }
    if !operands.iter().all(|o| eg[*o].data.weight_only) {
        return false;
    }
    let none = gossamer_ir::Bindings::new();
    let bytes = |id: Id| ty(eg, id).and_then(Type::as_tensor).and_then(|t| t.bytes(&none).ok()).unwrap_or(u64::MAX);
    *kind == K::Relayout || bytes(class) <= operands.iter().fold(0u64, |sum, o| sum.saturating_add(bytes(*o)))
}

fn name_of(eg: &Graph, class: Id) -> Arc<str> {
    eg[class].data.name.clone().unwrap_or_else(|| "v".into())
}

/// The results of an op as classes: its own, or projections of its tuple.
fn op_results(kind: OpKind, class: Id, first: u16, count: usize) -> Vec<(u16, Target)> {
    match is_value(kind) {
        true => vec![(first, Target::Class(class))],
        false => (0..count as u16).map(|i| (first + i, Target::Proj(i, class))).collect(),
    }
}

fn count(eg: &Graph, class: Id) -> usize {
    match &eg[class].data.sort {
        super::facts::Sort::Tuple(t) => t.len(),
        _ => 1,
    }
}

fn seeded(eg: &Graph, class: Id, kind: OpKind, children: &[Id], template: &str) -> Vec<Proposal> {
    let node = Term::Op(kind, children.to_vec());
    let never = matches!(kind, K::Const | K::Reshape | K::Param | K::Weight | K::Call | K::Kernel);
    if never || at_load(eg, class, &node) {
        return vec![];
    }
    let (operands, attrs) = parts(eg, kind, children);
    let Some(body) = Body::seed(eg, template, kind, attrs, operands, name_of(eg, class)) else { return vec![] };
    let equal = Equal::Results(op_results(kind, class, 0, count(eg, class)));
    vec![Proposal { body, from: vec![], op: kind, equal }]
}

/// Kernels whose results a class may be: (result, tuple).
pub(super) fn makers(eg: &Graph, id: Id) -> Vec<(u16, Id)> {
    let mut out: Vec<(u16, Id)> = eg[id]
        .nodes
        .iter()
        .filter_map(|n| if let Term::Proj(i, [t]) = n { Some((*i, eg.find(*t))) } else { None })
        .collect();
    out.sort_unstable();
    out.dedup();
    out
}

fn grown(
    eg: &Graph,
    class: Id,
    kind: OpKind,
    children: &[Id],
    keep: bool,
    when: fn(&Graph, &[Id], &[Arg]) -> bool,
    first: &mut dyn FnMut(&Term) -> bool,
) -> Vec<Proposal> {
    let (operands, attrs) = parts(eg, kind, children);
    let made: Vec<Vec<(u16, Id)>> = operands.iter().map(|o| makers(eg, *o)).collect();
    let mut tuples: Vec<Id> = made.iter().flatten().map(|(_, t)| *t).collect();
    tuples.sort_unstable();
    tuples.dedup();
    let mut out = Vec::new();
    for tuple in tuples {
        let arg = |i: usize| match made[i].iter().find(|(_, t)| *t == tuple) {
            Some((r, _)) => Arg::Result(*r as usize),
            None => Arg::Value(operands[i]),
        };
        let args: Vec<Arg> = (0..operands.len()).map(arg).collect();
        if !when(eg, operands, &args) {
            continue;
        }
        for node in &eg[tuple].nodes {
            let Term::Kernel(k, ids) = node else { continue };
            let kernel = &eg.analysis.kernels[*k as usize];
            let takes = template(kernel.template())
                .filter(|t| t.earlier.is_empty())
                .is_some_and(|t| t.epilogue.contains(&kind) || t.main.is_empty() && t.free.contains(&kind));
            if !takes || !first(node) {
                continue;
            }
            let mut body = open(eg, *k, ids);
            let Some(moved) = body.grow(eg, kind, attrs.clone(), &args, keep, name_of(eg, class)) else { continue };
            let mut equal: Vec<(u16, Target)> = moved
                .old
                .iter()
                .enumerate()
                .filter_map(|(i, new)| new.map(|n| (n, Target::Proj(i as u16, tuple))))
                .collect();
            equal.extend(op_results(kind, class, moved.first, count(eg, class)));
            out.push(Proposal { body, from: vec![*k], op: kind, equal: Equal::Results(equal) });
        }
    }
    out
}

fn absorbed(
    eg: &Graph,
    class: Id,
    kernel: (u32, &[Id]),
    kinds: &[OpKind],
    (region, export, of): (usize, bool, Option<OpKind>),
    first: &mut dyn FnMut(&Term) -> bool,
) -> Vec<Proposal> {
    let (k, ids) = kernel;
    let Some(t) = template(eg.analysis.kernels[k as usize].template()).filter(|t| t.earlier.is_empty()) else {
        return vec![];
    };
    let free = t.main.is_empty();
    let takes = |kind: OpKind| match region {
        2 => t.epilogue.contains(&kind),
        1 if free => t.free.contains(&kind) && !export,
        _ => t.prologue.iter().any(|s| s.ops.contains(&kind) && (!export || s.exports)),
    };
    let kinds: Vec<OpKind> = kinds.iter().copied().filter(|k| takes(*k)).collect();
    if kinds.is_empty() {
        return vec![];
    }
    let body = open(eg, k, ids);
    let mut out = Vec::new();
    for operand in body.operands(region) {
        for node in &eg[operand].nodes {
            let Term::Op(kind, children) = node else { continue };
            if !kinds.contains(kind) || at_load(eg, operand, node) || !first(node) {
                continue;
            }
            // Another cast behind the one that is there would be a second rounding of what is kept once.
            let scalar = t.prologue.iter().any(|s| s.scalar && s.ops.contains(kind));
            if kind.class() == Class::Elementwise && region == 0 && !scalar {
                continue;
            }
            let (operands, attrs) = parts(eg, *kind, children);
            let made_by = |of: OpKind| {
                operands.iter().any(|v| eg[*v].nodes.iter().any(|n| matches!(n, Term::Op(k, _) if *k == of)))
            };
            if of.is_some_and(|of| !made_by(of)) {
                continue;
            }
            let mut grown = body.clone();
            let op = Taken { kind: *kind, attrs, operands, name: name_of(eg, operand) };
            if grown.absorb(eg, region, operand, op, export).is_none() {
                continue;
            }
            let equal = match export {
                false => Equal::Tuple(class),
                true => {
                    let n = count(eg, class) as u16;
                    let old = (0..n).map(|i| (i, Target::Proj(i, class)));
                    Equal::Results(old.chain([(n, Target::Class(operand))]).collect())
                }
            };
            out.push(Proposal { body: grown, from: vec![k], op: *kind, equal });
        }
    }
    out
}

/// Kernels that make an operand of this one, in front of it. Every way in which the two can grow is there as kernels, so only complete ones are put together.
fn chained(
    eg: &Graph,
    class: Id,
    kernel: (u32, &[Id]),
    parts: &str,
    whole: &str,
    first: &mut dyn FnMut(&Term) -> bool,
) -> Vec<Proposal> {
    let complete = |k: u32| {
        let kernel = &eg.analysis.kernels[k as usize];
        &**kernel.template() == parts && template(parts).is_some_and(|t| t.complete(kernel).is_ok())
    };
    let (k, ids) = kernel;
    if !complete(k) {
        return vec![];
    }
    let next = open(eg, k, ids);
    let mut out = Vec::new();
    for operand in next.operands(1) {
        for (result, tuple) in makers(eg, operand) {
            for node in &eg[tuple].nodes {
                let Term::Kernel(before, ids) = node else { continue };
                if !complete(*before) || !first(node) {
                    continue;
                }
                let body = open(eg, *before, ids).chain(result as usize, next.clone(), operand, whole);
                let from = vec![*before, k];
                out.extend(body.map(|body| Proposal { body, from, op: K::Kernel, equal: Equal::Tuple(class) }));
            }
        }
    }
    out
}
