//! Op instances for tests: built through the op table, so that their types are legal.

use std::collections::BTreeMap;

use gossamer_ir::{Attr, Attrs, Bindings, DType, Dim, Func, Module, Op, OpKind, Param, StateDecl, TensorType, Type};

use crate::lower::{LowerError, Lowered, OpInstance, lower};

pub use DType::{BF16, Bool, F16, F32, I32, Mxfp4, U8};

/// An op with its surroundings.
pub struct Case {
    /// What it is, for messages.
    pub name: String,
    pub module: Module,
    pub op: Op,
    pub operands: Vec<Type>,
    pub sizes: Bindings,
}

impl Case {
    pub fn lower(&self) -> Result<Lowered, LowerError> {
        // As in a step, whose positions and page tables are inputs.
        let early: Vec<bool> =
            self.operands.iter().map(|o| o.as_tensor().is_some_and(|t| t.dtype == DType::I32)).collect();
        let (operands, module, sizes) = (&self.operands, &self.module, &self.sizes);
        lower(&OpInstance { op: &self.op, operands, module, sizes, early: &early })
    }
}

/// A tensor type whose dims are `T`-like names or numbers: `t(BF16, "T 2880")`.
pub fn t(dtype: DType, dims: &str) -> Type {
    Type::Tensor(TensorType::new(dtype, dims_of(dims)))
}

pub fn dims_of(dims: &str) -> Vec<Dim> {
    dims.split_whitespace().map(|d| d.parse::<i64>().map_or_else(|_| Dim::sym(d), Dim::from)).collect()
}

pub fn kv(heads: i64, head_dim: i64, page: i64, window: Option<i64>, dtype: DType) -> StateDecl {
    StateDecl::Kv { name: "kv".into(), heads, head_dim, page, window, dtype }
}

pub fn counts(vocab: i64) -> StateDecl {
    StateDecl::Counts { name: "seen".into(), vocab }
}

pub fn state(decl: &StateDecl) -> Type {
    decl.ty()
}

/// Makes a case; `sizes` gives symbols values: `"T=5 S=2"`.
pub fn case(kind: OpKind, operands: Vec<Type>, attrs: Attrs, states: &[StateDecl], sizes: &str) -> Case {
    let module = Module { states: states.to_vec(), ..Module::default() };
    let params = operands.iter().map(|ty| Param { name: "p".into(), ty: ty.clone(), weight: false }).collect();
    let mut f = Func::new("f", params);
    let values = (0..operands.len()).map(|i| f.param(i).unwrap()).collect();
    let name = format!(
        "{} {} {{{}}} {sizes}",
        kind.name(),
        operands.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        attrs.iter().map(|(k, v)| format!("{k} = {v}")).collect::<Vec<_>>().join(", ")
    );
    let made = f.add(&module, kind, values, attrs, &["y"], None).unwrap_or_else(|e| panic!("{name}: {e}"));
    let op = f.graph.op(made[0].op).clone();
    let sizes: BTreeMap<_, _> = sizes
        .split_whitespace()
        .map(|s| s.split_once('=').map(|(k, v)| (k.into(), v.parse().unwrap())).unwrap())
        .collect();
    Case { name, module, op, operands, sizes }
}

pub fn attrs<const N: usize>(pairs: [(&'static str, Attr); N]) -> Attrs {
    Attrs::from(pairs)
}

/// An op without state.
pub fn plain<const N: usize>(kind: OpKind, operands: Vec<Type>, a: [(&'static str, Attr); N], sizes: &str) -> Case {
    case(kind, operands, attrs(a), &[], sizes)
}

/// Every op at small sizes that reach every branch of its templates: few and many rows, whole and ragged vectors, all dtypes.
pub fn all() -> Vec<Case> {
    use OpKind as K;
    let mut out = Vec::new();
    let floats = [F32, BF16, F16];
    let unary = [K::Neg, K::Abs, K::Exp, K::Log, K::Sqrt, K::Rsqrt, K::Sigmoid, K::Tanh, K::Silu, K::Gelu];
    for (i, kind) in unary.into_iter().enumerate() {
        out.push(plain(kind, vec![t(floats[i % 3], "T 24")], [], "T=3"));
        out.push(plain(kind, vec![t(floats[(i + 1) % 3], "T 7")], [], "T=3"));
    }
    for (i, kind) in [K::Add, K::Sub, K::Mul, K::Div, K::Max, K::Min].into_iter().enumerate() {
        let (a, b) = (floats[i % 3], floats[(i + 1) % 3]);
        out.push(plain(kind, vec![t(a, "T 24"), t(b, "T 24")], [], "T=5"));
        out.push(plain(kind, vec![t(b, "T 3 24"), t(a, "24")], [], "T=5"));
        out.push(plain(kind, vec![t(a, "3 T 5"), t(a, "T 5")], [], "T=4"));
        out.push(plain(kind, vec![t(a, "T 8"), t(F32, "")], [], "T=4"));
        out.push(plain(kind, vec![t(I32, "T 5"), t(I32, "T 5")], [], "T=9"));
    }
    for (i, op) in ["eq", "ne", "lt", "le", "gt", "ge"].into_iter().enumerate() {
        let d = [F32, I32, BF16][i % 3];
        out.push(plain(K::Cmp, vec![t(d, "T 6"), t(d, "6")], [("op", op.into())], "T=5"));
    }
    out.push(plain(K::Split, vec![t(BF16, "T 24")], [("sizes", Attr::Ints(vec![16, 8]))], "T=5"));
    out.push(plain(K::Split, vec![t(F32, "T 7")], [("sizes", Attr::Ints(vec![2, 1, 4]))], "T=5"));
    out.push(plain(K::TileMax, vec![t(F32, "T 33")], [("tile", Attr::Int(8))], "T=5"));
    out.push(plain(K::TileMax, vec![t(BF16, "T 7")], [("tile", Attr::Int(64))], "T=3"));
    for d in [F32, BF16, F16, I32, U8, Bool] {
        out.push(plain(K::Select, vec![t(Bool, "T 6"), t(d, "T 6"), t(d, "T 6")], [], "T=5"));
        for to in [F32, BF16, F16, I32, U8, Bool] {
            out.push(plain(K::Cast, vec![t(d, "T 8")], [("to", to.into())], "T=5"));
        }
    }
    out.push(plain(K::Clamp, vec![t(BF16, "T 8")], [("lo", Attr::Float(-0.5)), ("hi", Attr::Float(0.25))], "T=5"));
    out.push(plain(K::Clamp, vec![t(F32, "T 5")], [("lo", Attr::Float(-0.5))], "T=5"));
    for d in [F32, BF16, F16, I32, U8, Bool] {
        let dims: Attr = dims_of("T 3").into();
        out.push(plain(K::Const, vec![], [("dims", dims), ("dtype", d.into()), ("value", Attr::Float(-2.5))], "T=5"));
    }
    out.push(plain(K::Iota, vec![], [("dims", dims_of("T").into())], "T=300"));
    out.extend(views());
    out.extend(rows());
    out.extend(contractions());
    out.extend(quant());
    out.extend(positions());
    out.extend(sampling());
    out.extend(super::fused::cases());
    out
}

fn views() -> Vec<Case> {
    use OpKind as K;
    let ints = |v: &[i64]| Attr::from(v.to_vec());
    let mut out = vec![
        plain(K::Reshape, vec![t(BF16, "T 24")], [("dims", dims_of("T 3 8").into())], "T=5"),
        plain(K::Reshape, vec![t(Mxfp4, "2 3 64")], [("dims", dims_of("6 64").into())], ""),
        plain(K::Permute, vec![t(BF16, "T 4 16")], [("perm", ints(&[1, 0, 2]))], "T=5"),
        plain(K::Permute, vec![t(F32, "T 4 3")], [("perm", ints(&[2, 0, 1]))], "T=5"),
        plain(K::Permute, vec![t(U8, "2 T 3 5")], [("perm", ints(&[3, 1, 0, 2]))], "T=4"),
        plain(K::Permute, vec![t(Mxfp4, "3 2 64")], [("perm", ints(&[1, 0, 2]))], ""),
        plain(K::Broadcast, vec![t(F32, "T 1 6")], [("dims", dims_of("2 T 4 6").into())], "T=3"),
        plain(K::Broadcast, vec![t(BF16, "")], [("dims", dims_of("T 3").into())], "T=3"),
        plain(K::Concat, vec![t(BF16, "T 8"), t(BF16, "T 16"), t(BF16, "T 4")], [("axis", Attr::Int(1))], "T=5"),
        plain(K::Concat, vec![t(F32, "T 5"), t(F32, "S 5")], [("axis", Attr::Int(0))], "T=3 S=4"),
        plain(K::Concat, vec![t(Mxfp4, "2 32"), t(Mxfp4, "3 32")], [("axis", Attr::Int(0))], ""),
    ];
    for (axis, start, len) in [(1, 8, 16), (1, 3, 5), (0, 1, 2)] {
        let a = [("axis", Attr::Int(axis)), ("start", Attr::Int(start)), ("len", Attr::Int(len))];
        let dims = if axis == 0 { "4 T" } else { "T 32" };
        out.push(plain(K::Slice, vec![t(BF16, dims)], a, "T=5"));
    }
    for (d, dims) in [(BF16, "50 24"), (F32, "9 3"), (U8, "9 2 3"), (F16, "12")] {
        out.push(plain(K::GatherRows, vec![t(d, dims), t(I32, "T 2")], [], "T=6"));
    }
    out
}

fn rows() -> Vec<Case> {
    use OpKind as K;
    let mut out = Vec::new();
    for (d, n) in [(F32, 5), (BF16, 96), (F16, 1500)] {
        for op in ["sum", "max", "mean"] {
            for axis in 0..3 {
                let a = [("axis", Attr::Int(axis)), ("op", op.into()), ("keep", Attr::Bool(axis == 1))];
                out.push(plain(K::Reduce, vec![t(d, &format!("2 T {n}"))], a, "T=3"));
            }
        }
        for kind in [K::Softmax, K::LogSumExp, K::ArgMax] {
            out.push(plain(kind, vec![t(d, &format!("T {n}"))], [], "T=3"));
        }
        let w = t(BF16, &n.to_string());
        out.push(plain(K::RmsNorm, vec![t(d, &format!("T {n}")), w.clone()], [("eps", Attr::Float(1e-6))], "T=3"));
        let b = t(F32, &n.to_string());
        out.push(plain(K::LayerNorm, vec![t(d, &format!("2 T {n}")), w, b], [], "T=3"));
        out.push(plain(K::TopK, vec![t(d, &format!("T {n}"))], [("k", Attr::Int(4))], "T=3"));
    }
    out.push(plain(K::Softmax, vec![t(F32, "S T")], [], "S=2 T=17"));
    out.push(plain(K::TopK, vec![t(F32, "T 5000")], [("k", Attr::Int(64))], "T=2"));
    out.push(plain(K::ArgMax, vec![t(F32, "T 20000")], [], "T=2"));
    out.push(plain(K::ArgMax, vec![t(F32, "T 1000"), t(F32, "T 32")], [("tile", Attr::Int(32))], "T=5"));
    for (layout, d) in [("interleaved", BF16), ("halves", BF16), ("interleaved", F32)] {
        out.push(plain(K::Swiglu, vec![t(d, "T 2 36")], [("layout", layout.into())], "T=3"));
    }
    out.push(plain(K::MoeCombine, vec![t(F32, "T 4 30"), t(F32, "T 4")], [], "T=3"));
    out.push(plain(K::MoeCombine, vec![t(BF16, "T 2 30"), t(F32, "T 2")], [], "T=3"));
    out
}

fn contractions() -> Vec<Case> {
    use OpKind as K;
    let mut out = Vec::new();
    for tokens in [1, 3, 11, 30, 70] {
        for (k, n) in [(128, 48), (320, 33), (100, 17), (33, 5), (96, 160)] {
            if tokens == 70 || k != 96 {
                let operands = vec![t(BF16, &format!("T {k}")), t(BF16, &format!("{n} {k}"))];
                out.push(plain(K::MatMul, operands, [("out", F32.into())], &format!("T={tokens}")));
            }
        }
    }
    let sizes = "T=9";
    out.push(plain(K::MatMul, vec![t(F16, "T 64"), t(F16, "24 64")], [("out", F16.into())], sizes));
    out.push(plain(K::MatMul, vec![t(F32, "2 T 40"), t(BF16, "70 40")], [("out", BF16.into())], sizes));
    out.push(plain(K::MatMul, vec![t(F32, "T 33"), t(F32, "7 33")], [], sizes));
    out.push(plain(K::MatMul, vec![t(BF16, "T S"), t(BF16, "20 S")], [], "T=3 S=200"));
    out.push(plain(K::MatMul, vec![t(BF16, "T S"), t(BF16, "T S")], [], "T=40 S=200"));
    for (m, d) in [(3, BF16), (40, BF16), (5, F32)] {
        out.push(plain(K::BatchMatMul, vec![t(d, "3 T 64"), t(d, "3 20 64")], [], &format!("T={m}")));
    }
    for (tokens, d) in [(1, BF16), (5, BF16), (20, BF16), (70, BF16), (6, F32)] {
        let sizes = format!("T={tokens}");
        let w = t(d, "6 48 64");
        out.push(plain(K::MoeMatMul, vec![t(d, "T 64"), w.clone(), t(I32, "T 2")], [], &sizes));
        out.push(plain(K::MoeMatMul, vec![t(d, "T 2 64"), w, t(I32, "T 2")], [("out", BF16.into())], &sizes));
    }
    out.push(plain(K::MoeMatMul, vec![t(BF16, "T 72"), t(BF16, "40 20 72"), t(I32, "T 4")], [], "T=200"));
    out
}

fn quant() -> Vec<Case> {
    use OpKind as K;
    let mut out = Vec::new();
    for (to, dims) in [(BF16, "2 70 96"), (F32, "64 64"), (BF16, "32"), (F32, "3 5 32")] {
        out.push(plain(K::Dequant, vec![t(Mxfp4, dims)], [("to", to.into())], ""));
        for name in [crate::kernels::quant::PACKED, crate::kernels::quant::PACKED_FAST] {
            let packed = TensorType { dtype: Mxfp4, dims: dims_of(dims), layout: Some(name.into()) };
            out.push(plain(K::Dequant, vec![Type::Tensor(packed)], [("to", to.into())], ""));
        }
    }
    for dims in ["2 70 96", "64 64"] {
        out.push(plain(K::Relayout, vec![t(Mxfp4, dims)], [("layout", crate::kernels::quant::PACKED.into())], ""));
    }
    out
}

fn positions() -> Vec<Case> {
    use OpKind as K;
    let mut out = Vec::new();
    let dims: Attr = dims_of("C").into();
    out.push(plain(K::RopeTable, vec![], [("dim", Attr::Int(64)), ("dims", dims.clone())], "C=300"));
    let yarn = [
        ("dim", Attr::Int(64)),
        ("dims", dims),
        ("factor", Attr::Float(32.0)),
        ("theta", Attr::Float(150000.0)),
        ("scale", Attr::Float(1.3465735902799727)),
    ];
    out.push(plain(K::RopeTable, vec![], yarn.clone(), "C=3000"));
    let [dim, dims, factor, ..] = yarn;
    out.push(plain(K::RopeTable, vec![], [dim, dims, factor, ("ramp", "rotations".into())], "C=70"));
    for d in [BF16, F32] {
        let operands = vec![t(d, "T 192"), t(I32, "T"), t(F32, "C 64")];
        out.push(plain(K::Rope, operands, [], "T=5 C=40"));
    }
    for (x, cache, dim, page) in [(BF16, BF16, 64, 16), (F32, BF16, 24, 7), (F16, F32, 8, 32)] {
        let decl = kv(3, dim, page, None, cache);
        let row = format!("T {}", 3 * dim);
        let operands = vec![state(&decl), t(x, &row), t(x, &row), t(I32, "T"), t(I32, "T"), t(I32, "S P")];
        out.push(case(K::KvWrite, operands, attrs([]), &[decl], "T=9 S=3 P=5"));
    }
    let few = "T=7 S=9 P=8";
    let many = "T=90 S=3 P=8";
    let mut attention = |d, cache, shape, page, window, sinks, sizes: &str| {
        out.push(attention_of(d, cache, shape, page, window, sinks, sizes));
    };
    attention(BF16, BF16, (2, 8, 64), 32, 0, true, few);
    attention(BF16, BF16, (2, 8, 64), 32, 40, true, few);
    for sizes in [few, many] {
        attention(BF16, BF16, (2, 6, 64), 32, 0, true, sizes);
        attention(BF16, BF16, (2, 6, 64), 32, 40, true, sizes);
        attention(BF16, BF16, (1, 1, 8), 48, 0, false, sizes);
        attention(BF16, BF16, (1, 20, 128), 32, 0, true, sizes);
        attention(BF16, BF16, (1, 3, 256), 64, 33, false, sizes);
        attention(F16, F16, (2, 4, 40), 32, 0, true, sizes);
        attention(BF16, BF16, (1, 2, 80), 20, 0, true, sizes);
    }
    // Several chunks, several runs, windows of more than a round.
    for sizes in ["T=5 S=3 P=300", "T=90 S=3 P=150"] {
        attention(BF16, BF16, (1, 2, 8), 32, 0, true, sizes);
        attention(BF16, BF16, (1, 9, 16), 20, 700, false, sizes);
    }
    // Stretches of the kernel with rings that end within tokens; more than one token of a sequence.
    for sizes in ["T=20 S=20 P=9", "T=37 S=64 P=70", "T=70 S=80 P=9", "T=17 S=3 P=150"] {
        attention(BF16, BF16, (2, 6, 64), 32, 0, true, sizes);
        attention(F16, F16, (1, 10, 24), 64, 0, false, sizes);
    }
    attention(F32, BF16, (2, 2, 64), 32, 0, true, few);
    attention(F32, F32, (1, 3, 200), 5, 30, false, few);
    // Rows of prompts that get logits.
    for sizes in ["T=9 S=3 P=8", "T=90 S=3 P=8", "T=17 S=3 P=150"] {
        for window in [0, 40] {
            let mut case = attention_of(BF16, BF16, (2, 8, 64), 32, window, true, sizes);
            case.op.attrs.set("decoded", Attr::Bool(true));
            case.name += " decoded";
            out.push(case);
        }
    }
    out
}

/// Attention of (key heads, query heads of each, elements) over pages of `page` keys.
fn attention_of(
    d: DType,
    cache: DType,
    (heads, group, dim): (i64, i64, i64),
    page: i64,
    window: i64,
    sinks: bool,
    sizes: &str,
) -> Case {
    let decl = kv(heads, dim, page, (window > 0).then_some(window), cache);
    let mut operands =
        vec![t(d, &format!("T {}", heads * group * dim)), state(&decl), t(I32, "T"), t(I32, "T"), t(I32, "S P")];
    if sinks {
        operands.push(t(BF16, &(heads * group).to_string()));
    }
    let a = attrs([("scale", Attr::Float((dim as f64).powf(-0.5))), ("window", Attr::Int(window))]);
    case(OpKind::Attention, operands, a, &[decl], sizes)
}

/// Kernels on warpgroup multiplies at sizes that can be run on a CPU.
pub fn wide() -> Vec<Case> {
    let mut all = vec![];
    for sizes in ["T=9 S=3 P=8", "T=90 S=3 P=8"] {
        for window in [0, 1, 128] {
            all.push(attention_of(BF16, BF16, (2, 4, 64), 32, window, true, sizes));
        }
        all.push(attention_of(F16, F16, (1, 16, 64), 48, 0, false, sizes));
        all.push(attention_of(BF16, BF16, (1, 8, 128), 16, 0, true, sizes));
        all.push(attention_of(BF16, BF16, (2, 1, 128), 64, 128, false, sizes));
    }
    // So many keys that tiles of them are used again.
    all.push(attention_of(BF16, BF16, (1, 8, 64), 32, 0, true, "T=40 S=2 P=40"));
    all.push(attention_of(BF16, BF16, (1, 16, 128), 64, 0, true, "T=40 S=2 P=20"));
    // So many logits that clusters draw from them: all rows in one launch, and rows with filters in one of their own.
    all.extend([(17_000, 128, 1), (17_000, 0, 13)].map(|(v, tile, rows)| sample(v, tile, rows)));
    all.extend(super::fused::wide());
    all.extend(super::moe::wide());
    all
}

/// Attention of steps that feed prompts, by warpgroup multiplies.
pub fn prompts() -> Vec<Case> {
    let mut all = vec![];
    for sizes in ["T=9 S=3 P=8", "T=2048 S=1 P=2048"] {
        for window in [0, 1, 128, 700] {
            all.push(attention_of(BF16, BF16, (8, 8, 64), 64, window, true, sizes));
        }
        for page in [16, 32, 48, 128, 256] {
            all.push(attention_of(BF16, BF16, (2, 4, 64), page, 0, false, sizes));
        }
        for group in [1, 2, 16, 64, 128] {
            all.push(attention_of(F16, F16, (2, group, 64), 64, 0, true, sizes));
        }
        for window in [0, 128] {
            all.push(attention_of(BF16, BF16, (2, 4, 128), 64, window, false, sizes));
            all.push(attention_of(F16, F16, (1, 1, 128), 16, window, true, sizes));
            all.push(attention_of(BF16, BF16, (8, 16, 128), 128, window, true, sizes));
        }
    }
    all
}

fn sampling() -> Vec<Case> {
    use OpKind as K;
    let seen = counts(600);
    let step = || vec![t(I32, "T"), t(I32, "T"), t(I32, "T"), t(I32, "S"), t(I32, "S")];
    let mut operands = vec![state(&seen)];
    operands.extend(step());
    let mut out = vec![case(K::CountTokens, operands, attrs([]), std::slice::from_ref(&seen), "T=300 S=3")];
    let operands = vec![t(F32, "R 600"), state(&seen), t(I32, "R"), t(F32, "R"), t(F32, "R"), t(F32, "R")];
    out.push(case(K::Penalize, operands, attrs([]), &[seen], "R=4"));
    out.push(plain(K::LogitBias, vec![t(F32, "R 2500"), t(I32, "R B"), t(F32, "R B")], [], "R=3 B=10"));
    for (v, tile) in [(7, 0), (3000, 0), (3000, 64), (3000, 128), (9000, 0), (9001, 256)] {
        out.push(sample(v, tile, 12));
        out.push(plain(K::TokenLogprob, vec![t(F32, &format!("R {v}")), t(I32, "R")], [], "R=5"));
    }
    // More rows than one launch draws.
    out.extend([(7, 0), (3000, 0), (3000, 128)].map(|(v, tile)| sample(v, tile, 100)));
    out
}

/// Drawing from rows of `v` logits, with their maxima if `tile` is not 0.
fn sample(v: i64, tile: i64, rows: i64) -> Case {
    let row = |dtype| t(dtype, "R");
    let mut operands = vec![t(F32, &format!("R {v}")), row(F32), row(I32), row(F32), row(F32), t(I32, "R 2"), row(I32)];
    let mut with = attrs([]);
    if tile > 0 {
        operands.push(t(F32, &format!("R {}", (v + tile - 1) / tile)));
        with = attrs([("tile", Attr::Int(tile))]);
    }
    case(OpKind::Sample, operands, with, &[], &format!("R={rows}"))
}

/// The ops of GPT-OSS 20B at full size, in a decode step of one token and a prefill step of 512.
pub fn full_size() -> Vec<Case> {
    use OpKind as K;
    let mut out = Vec::new();
    for tokens in [1, 512] {
        let sizes = format!("T={tokens} R=1 S=1 P=64");
        let row = |d, n: i64| t(d, &format!("T {n}"));
        for (n, k) in [(4096, 2880), (512, 2880), (2880, 4096), (32, 2880)] {
            let operands = vec![row(BF16, k), t(BF16, &format!("{n} {k}"))];
            out.push(plain(K::MatMul, operands, [("out", F32.into())], &sizes));
        }
        let head = vec![t(BF16, "R 2880"), t(BF16, "201088 2880")];
        out.push(plain(K::MatMul, head, [("out", F32.into())], &sizes));
        let (ids, up, down) = (t(I32, "T 4"), t(BF16, "32 5760 2880"), t(BF16, "32 2880 2880"));
        out.push(plain(K::MoeMatMul, vec![row(BF16, 2880), up, ids.clone()], [("out", F32.into())], &sizes));
        out.push(plain(K::MoeMatMul, vec![t(BF16, "T 4 2880"), down, ids], [("out", F32.into())], &sizes));
        for window in [0, 128] {
            let decl = kv(8, 64, 64, (window > 0).then_some(window), BF16);
            let operands = vec![row(BF16, 4096), state(&decl), t(I32, "T"), t(I32, "T"), t(I32, "S P"), t(BF16, "64")];
            let a = attrs([("scale", Attr::Float(0.125)), ("window", Attr::Int(window))]);
            out.push(case(K::Attention, operands, a, &[decl], &sizes));
        }
        out.push(plain(K::RmsNorm, vec![row(F32, 2880), t(BF16, "2880")], [], &sizes));
        out.push(plain(K::Add, vec![t(F32, "T 5760"), t(BF16, "5760")], [], &sizes));
        out.push(plain(K::TopK, vec![row(F32, 32)], [("k", Attr::Int(4))], &sizes));
        out.push(plain(K::TopK, vec![t(F32, "R 201088")], [("k", Attr::Int(20))], &sizes));
    }
    // Clusters: all rows in one launch, and rows with filters in one of their own.
    for rows in [1, 64] {
        out.extend([(201_088, 128), (201_088, 0), (50_257, 0)].map(|(v, tile)| sample(v, tile, rows)));
    }
    out.extend(super::fused::full_size());
    out
}
