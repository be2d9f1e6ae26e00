//! Scenarios for every op that is a pure function of its operands. State is in [`super::stateful`].
//!
//! Shapes: 1, odd sizes, sizes around warps, tiles and vector widths, and those of GPT-OSS (2880, 201088). Values: random ones, ties, NaN and infinities, indices
//! out of range, padding. Shapes of one op are few, because constant dims make a kernel each.

mod contraction;
mod sampling;

use gossamer_ir::interp::Tensor;
use gossamer_ir::{Attr, Attrs, DType, Dim, OpKind};

use super::data::{Rng, float, int, made, special};
use super::scenario::{Operand, Scenario};
use contraction::{batch_matmuls, matmuls, moe_matmuls};
use sampling::{biases, logprobs, samples};

const FLOATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// Scenarios of an op; none for leaves that are bound by the caller, calls, fused kernels, and ops on state.
pub fn of(kind: OpKind) -> Vec<Scenario> {
    use OpKind as K;
    match kind {
        K::Param | K::Weight | K::Call | K::Kernel | K::KvWrite | K::Attention | K::CountTokens | K::Penalize => vec![],
        K::Const | K::Iota | K::RopeTable => leaves(kind),
        K::Reshape | K::Permute | K::Slice | K::Split | K::Broadcast | K::Concat => views(kind),
        K::Neg | K::Abs | K::Exp | K::Log | K::Sqrt | K::Rsqrt | K::Sigmoid | K::Tanh | K::Silu | K::Gelu => {
            unary(kind)
        }
        K::Cast => casts(),
        K::Clamp => clamps(),
        K::Add | K::Sub | K::Mul | K::Div | K::Max | K::Min => binary(kind),
        K::Cmp => comparisons(),
        K::Select => selects(),
        K::Reduce => reductions(),
        K::TileMax => tile_maxima(),
        K::Softmax | K::LogSumExp | K::ArgMax => rows(kind),
        K::TopK => topk(),
        K::MatMul => matmuls(),
        K::BatchMatMul => batch_matmuls(),
        K::MoeMatMul => moe_matmuls(),
        K::Dequant | K::Relayout => quant(kind),
        K::GatherRows => gathers(),
        K::RmsNorm | K::LayerNorm => norms(kind),
        K::Rope => ropes(),
        K::Swiglu => swiglus(),
        K::MoeCombine => combines(),
        K::LogitBias => biases(),
        K::Sample => samples(),
        K::TokenLogprob => logprobs(),
    }
}

fn attrs<const N: usize>(pairs: [(&'static str, Attr); N]) -> Attrs {
    Attrs::from(pairs)
}

fn dims(d: &[i64]) -> Attr {
    Attr::Dims(d.iter().map(|d| Dim::from(*d)).collect())
}

/// Dims that begin with T.
fn t_dims(d: &[i64]) -> Attr {
    Attr::Dims(std::iter::once(Dim::sym("T")).chain(d.iter().map(|d| Dim::from(*d))).collect())
}

fn label(shape: &[usize], dtype: DType) -> String {
    let shape: Vec<String> = shape.iter().map(ToString::to_string).collect();
    format!("{dtype}[{}]", shape.join(","))
}

/// One op on one operand with rows.
fn one(kind: OpKind, name: &str, a: Attrs, x: Tensor) -> Scenario {
    Scenario::op(format!("{} {name}", label(&x.shape, x.dtype)), kind, a, vec![Operand::rows(x)])
}

fn leaves(kind: OpKind) -> Vec<Scenario> {
    let make = |name: &str, a: Attrs| Scenario::op(name, kind, a, vec![]);
    match kind {
        OpKind::Const => {
            [(DType::F32, 0.1), (DType::BF16, 0.1), (DType::F16, -2.5), (DType::I32, -7.0), (DType::Bool, 1.0)]
                .into_iter()
                .flat_map(|(dtype, value)| {
                    [vec![], vec![1], vec![3, 33]].map(|shape| {
                        let a = [("dims", dims(&shape)), ("dtype", Attr::DType(dtype)), ("value", Attr::Float(value))];
                        make(&format!("{dtype}{shape:?}"), attrs(a))
                    })
                })
                .collect()
        }
        OpKind::Iota => [1, 33, 5000].map(|n| make(&n.to_string(), attrs([("dims", dims(&[n]))]))).into(),
        _ => [(64, 100, "pairs"), (32, 1, "pairs"), (32, 90, "rotations")]
            .map(|(dim, rows, ramp)| {
                let factor = ("factor", Attr::Float(32.0));
                let a = [("dim", Attr::Int(dim)), ("dims", dims(&[rows])), factor, ("ramp", ramp.into())];
                make(&format!("{rows} rows of {dim}, {ramp}"), attrs(a))
            })
            .into(),
    }
}

fn views(kind: OpKind) -> Vec<Scenario> {
    let mut rng = Rng::new(kind.name());
    let mut out = Vec::new();
    for dtype in [DType::F32, DType::BF16] {
        let mut x = |shape: &[usize]| rng.floats(dtype, shape, 1.0);
        match kind {
            OpKind::Reshape => {
                out.push(one(kind, "split", attrs([("dims", t_dims(&[2, 3]))]), x(&[7, 6])));
                out.push(one(kind, "to one row", attrs([("dims", t_dims(&[1, 64]))]), x(&[33, 64])));
            }
            OpKind::Permute => {
                let perm = |p: &[i64]| attrs([("perm", Attr::Ints(p.to_vec()))]);
                out.push(one(kind, "transpose", perm(&[1, 0]), x(&[33, 65])).mixing_rows());
                out.push(one(kind, "heads", perm(&[1, 0, 2]), x(&[5, 4, 64])).mixing_rows());
                out.push(one(kind, "inner", perm(&[0, 2, 1]), x(&[3, 7, 9])));
                out.push(one(kind, "reverse", perm(&[3, 2, 1, 0]), x(&[2, 3, 4, 5])).mixing_rows());
            }
            OpKind::Slice => {
                let cut = |axis: i64, start: i64, len: i64| {
                    attrs([("axis", Attr::Int(axis)), ("start", Attr::Int(start)), ("len", Attr::Int(len))])
                };
                out.push(one(kind, "last", cut(1, 3, 10), x(&[5, 33])));
                out.push(one(kind, "middle", cut(1, 1, 2), x(&[5, 4, 64])));
                out.push(one(kind, "all", cut(1, 0, 8), x(&[5, 8])));
            }
            OpKind::Split => {
                let cut = |sizes: &[i64]| attrs([("sizes", Attr::Ints(sizes.to_vec()))]);
                out.push(one(kind, "even", cut(&[64, 8, 8]), x(&[5, 80])));
                out.push(one(kind, "odd", cut(&[3, 1, 29]), x(&[5, 33])));
                out.push(one(kind, "inner", cut(&[2, 4]), x(&[3, 4, 6])));
            }
            OpKind::Broadcast => {
                out.push(one(kind, "column", attrs([("dims", t_dims(&[20]))]), x(&[7, 1])));
                out.push(one(kind, "middle", attrs([("dims", t_dims(&[3, 5]))]), x(&[7, 1, 5])));
                let lead = Scenario::op(
                    format!("lead {dtype}"),
                    kind,
                    attrs([("dims", dims(&[2, 3, 33]))]),
                    vec![Operand::whole(x(&[33]))],
                );
                out.push(lead);
            }
            _ => {
                let join = |axis: i64, name: &str, parts: Vec<Operand>| {
                    Scenario::op(format!("{name} {dtype}"), kind, attrs([("axis", Attr::Int(axis))]), parts)
                };
                let parts = [5, 1, 64].map(|n| Operand::rows(x(&[9, n])));
                out.push(join(1, "columns", parts.into()));
                let parts = [2, 1, 7].map(|n| Operand::whole(x(&[n, 33])));
                out.push(join(0, "rows", parts.into()));
                out.push(join(1, "single", vec![Operand::rows(x(&[3, 8]))]));
            }
        }
    }
    let mut packed = || rng.mxfp4(&[3, 5, 64], 100, 140);
    match kind {
        OpKind::Reshape => out.push(one(kind, "mxfp4", attrs([("dims", t_dims(&[1, 5, 64]))]), packed())),
        OpKind::Permute => {
            out.push(one(kind, "mxfp4", attrs([("perm", Attr::Ints(vec![1, 0, 2]))]), packed()).mixing_rows());
        }
        OpKind::Slice => {
            let a = attrs([("axis", Attr::Int(1)), ("start", Attr::Int(2)), ("len", Attr::Int(3))]);
            out.push(one(kind, "mxfp4", a, packed()));
        }
        OpKind::Concat => {
            let parts = vec![Operand::whole(packed()), Operand::whole(packed())];
            out.push(Scenario::op("mxfp4", kind, attrs([("axis", Attr::Int(0))]), parts));
        }
        _ => {}
    }
    if matches!(kind, OpKind::Permute) {
        let x = rng.ints(&[4, 9], -5, 5);
        out.push(one(kind, "i32", attrs([("perm", Attr::Ints(vec![1, 0]))]), x).mixing_rows());
    }
    out
}

fn unary(kind: OpKind) -> Vec<Scenario> {
    let mut rng = Rng::new(kind.name());
    let mut out = Vec::new();
    for dtype in FLOATS {
        out.push(one(kind, "", Attrs::default(), rng.floats(dtype, &[37, 33], 3.0)));
        out.push(one(kind, "odd values", Attrs::default(), special(dtype, &[9, 64], &mut rng)));
    }
    out.push(one(kind, "", Attrs::default(), rng.floats(DType::BF16, &[3, 2880], 1.0)));
    out.push(one(kind, "", Attrs::default(), rng.floats(DType::F32, &[1], 1.0)));
    out
}

fn casts() -> Vec<Scenario> {
    let mut rng = Rng::new("cast");
    let to = |d: DType| attrs([("to", Attr::DType(d))]);
    let mut out = Vec::new();
    for from in FLOATS {
        for target in [DType::F32, DType::BF16, DType::F16, DType::I32] {
            let name = format!("to {target}");
            out.push(one(OpKind::Cast, &name, to(target), rng.floats(from, &[9, 33], 100.0)));
            out.push(one(OpKind::Cast, &format!("{name}, odd values"), to(target), special(from, &[9, 64], &mut rng)));
        }
    }
    for target in FLOATS {
        let name = format!("to {target}");
        let ints = int(&[4, 3], vec![0, 1, -1, 255, 256, 257, i32::MAX, i32::MIN, 16_777_217, -99_999, 3, 7]);
        out.push(one(OpKind::Cast, &name, to(target), ints));
        let bools: Vec<bool> = (0..40).map(|i| i % 3 == 0).collect();
        out.push(one(OpKind::Cast, &name, to(target), made(Tensor::bool(&[5, 8], &bools))));
    }
    out
}

fn clamps() -> Vec<Scenario> {
    let mut rng = Rng::new("clamp");
    let range = |lo: f64, hi: f64| attrs([("lo", Attr::Float(lo)), ("hi", Attr::Float(hi))]);
    FLOATS
        .into_iter()
        .flat_map(|d| {
            [
                one(OpKind::Clamp, "both", range(-1.0, 0.5), rng.floats(d, &[5, 33], 2.0)),
                one(OpKind::Clamp, "above", range(f64::NEG_INFINITY, 7.0), special(d, &[5, 64], &mut rng)),
            ]
        })
        .collect()
}

fn pair(kind: OpKind, name: &str, x: Tensor, y: Operand) -> Scenario {
    let name = format!("{} {} {name}", label(&x.shape, x.dtype), label(&y.tensor.shape, y.tensor.dtype));
    Scenario::op(name, kind, Attrs::default(), vec![Operand::rows(x), y])
}

fn binary(kind: OpKind) -> Vec<Scenario> {
    let mut rng = Rng::new(kind.name());
    let mut out = Vec::new();
    for (a, b) in [
        (DType::F32, DType::F32),
        (DType::BF16, DType::BF16),
        (DType::F32, DType::BF16),
        (DType::BF16, DType::F32),
        (DType::F16, DType::F16),
    ] {
        let y = Operand::rows(rng.floats(b, &[13, 33], 1.0));
        out.push(pair(kind, "", rng.floats(a, &[13, 33], 1.0), y));
        let y = Operand::whole(rng.floats(b, &[33], 1.0));
        out.push(pair(kind, "", rng.floats(a, &[13, 33], 1.0), y));
    }
    let y = Operand::whole(rng.floats(DType::F32, &[], 1.0));
    out.push(pair(kind, "", rng.floats(DType::F32, &[5, 2880], 1.0), y));
    let y = Operand::whole(rng.floats(DType::BF16, &[4, 8], 1.0));
    out.push(pair(kind, "", rng.floats(DType::F32, &[3, 4, 8], 1.0), y));
    for dtype in [DType::F32, DType::BF16] {
        let y = Operand::rows(special(dtype, &[9, 64], &mut rng));
        out.push(pair(kind, "odd values", special(dtype, &[9, 64], &mut rng), y));
    }
    let y = Operand::rows(rng.ints(&[13, 33], -9, 9));
    out.push(pair(kind, "", rng.ints(&[13, 33], -1000, 1000), y));
    out
}

fn comparisons() -> Vec<Scenario> {
    let mut rng = Rng::new("cmp");
    let mut out = Vec::new();
    for op in ["eq", "ne", "lt", "le", "gt", "ge"] {
        let mut push = |name: &str, x: Tensor, y: Operand| {
            let name = format!("{op} {name}");
            out.push(Scenario::op(name, OpKind::Cmp, attrs([("op", op.into())]), vec![Operand::rows(x), y]));
        };
        push("f32", special(DType::F32, &[9, 64], &mut rng), Operand::rows(special(DType::F32, &[9, 64], &mut rng)));
        push("bf16", rng.floats(DType::BF16, &[9, 33], 0.1), Operand::whole(rng.floats(DType::BF16, &[33], 0.1)));
        push("i32", rng.ints(&[9, 33], -2, 2), Operand::whole(rng.ints(&[], 0, 1)));
    }
    out
}

fn selects() -> Vec<Scenario> {
    let mut rng = Rng::new("select");
    let mut make = |x: Tensor, y: Tensor| {
        let n: usize = x.shape.iter().product();
        let cond: Vec<bool> = (0..n).map(|_| rng.below(2) == 1).collect();
        let cond = Operand::rows(made(Tensor::bool(&x.shape, &cond)));
        let name = label(&x.shape, x.dtype);
        Scenario::op(name, OpKind::Select, Attrs::default(), vec![cond, Operand::rows(x), Operand::rows(y)])
    };
    let mut data = Rng::new("select data");
    let mut out: Vec<Scenario> =
        FLOATS.into_iter().map(|d| make(special(d, &[9, 33], &mut data), special(d, &[9, 33], &mut data))).collect();
    out.push(make(data.ints(&[5, 7], -9, 9), data.ints(&[5, 7], -9, 9)));
    out
}

fn reductions() -> Vec<Scenario> {
    let mut rng = Rng::new("reduce");
    let mut out = Vec::new();
    for op in ["sum", "max", "mean"] {
        let a = |axis: i64, keep: bool| attrs([("op", op.into()), ("axis", Attr::Int(axis)), ("keep", keep.into())]);
        for dtype in [DType::F32, DType::BF16] {
            for width in [1, 33, 2880] {
                out.push(one(OpKind::Reduce, op, a(1, false), rng.floats(dtype, &[5, width], 1.0)));
            }
            out.push(one(OpKind::Reduce, &format!("{op} keep"), a(1, true), rng.floats(dtype, &[3, 7, 65], 1.0)));
            out.push(
                one(OpKind::Reduce, &format!("{op} rows"), a(0, false), rng.floats(dtype, &[37, 33], 1.0))
                    .mixing_rows(),
            );
        }
        let mut x = vec![1.0f32; 2 * 40];
        x[7] = f32::NAN;
        out.push(one(OpKind::Reduce, &format!("{op} of NaN"), a(1, false), float(DType::F32, &[2, 40], x)));
    }
    out
}

fn tile_maxima() -> Vec<Scenario> {
    let mut rng = Rng::new("tile_max");
    let mut out = Vec::new();
    for dtype in [DType::F32, DType::BF16] {
        for (tile, width) in [(1, 5), (4, 33), (64, 64), (128, 1000)] {
            let a = || attrs([("tile", Attr::Int(tile))]);
            out.push(one(OpKind::TileMax, &format!("tile {tile}"), a(), rng.floats(dtype, &[5, width], 1.0)));
            out.push(one(OpKind::TileMax, &format!("odd, tile {tile}"), a(), odd_rows(dtype, width)));
        }
    }
    out
}

/// Rows of ties, of NaN among numbers, of nothing but NaN, and of minus infinity.
fn odd_rows(dtype: DType, width: usize) -> Tensor {
    let mut x = vec![0.5f32; 4 * width];
    x[width] = f32::NAN;
    x[2 * width - 1] = 1.5;
    x[2 * width..3 * width].fill(f32::NAN);
    x[3 * width..].fill(f32::NEG_INFINITY);
    float(dtype, &[4, width], x)
}

fn rows(kind: OpKind) -> Vec<Scenario> {
    let mut rng = Rng::new(kind.name());
    let mut out = Vec::new();
    for dtype in [DType::F32, DType::BF16] {
        for (n, width) in [(5, 1), (7, 4), (3, 33), (9, 128), (3, 2880)] {
            out.push(one(kind, "", Attrs::default(), rng.floats(dtype, &[n, width], 4.0)));
        }
    }
    out.push(one(kind, "", Attrs::default(), rng.floats(DType::F32, &[2, 201_088], 3.0)));
    out.push(one(kind, "", Attrs::default(), rng.floats(DType::F16, &[2, 100], 3.0)));
    out.push(one(kind, "", Attrs::default(), rng.floats(DType::F32, &[3, 4, 50], 3.0)));
    out.push(one(
        kind,
        "far from 0",
        Attrs::default(),
        float(DType::F32, &[2, 3], vec![1e4, 1e4 + 1.0, 9e3, -1e30, -1e30, -1e30]),
    ));
    if kind == OpKind::ArgMax {
        for dtype in [DType::F32, DType::BF16] {
            out.push(one(kind, "ties and NaN", Attrs::default(), odd_rows(dtype, 100)));
            // Few distinct values: many ties.
            out.push(one(kind, "ties", Attrs::default(), rng.floats(dtype, &[9, 4096], 0.0)));
        }
    }
    out
}

fn topk() -> Vec<Scenario> {
    let mut rng = Rng::new("topk");
    let k = |k: i64| attrs([("k", Attr::Int(k))]);
    let mut out = Vec::new();
    for dtype in [DType::F32, DType::BF16] {
        for (n, width, count) in [(3, 1, 1), (9, 8, 4), (33, 32, 4), (5, 128, 4), (3, 128, 128), (3, 4096, 20)] {
            let x = rng.floats(dtype, &[n, width], 1.0);
            out.push(one(OpKind::TopK, &format!("k={count}"), k(count), x));
        }
        out.push(one(OpKind::TopK, "ties and NaN", k(5), odd_rows(dtype, 33)));
        let coarse: Vec<f32> = (0..3 * 500).map(|_| rng.below(4) as f32).collect();
        out.push(one(OpKind::TopK, "many ties", k(20), float(dtype, &[3, 500], coarse)));
    }
    let zeros = float(DType::F32, &[1, 6], vec![0.0, -0.0, 0.0, -0.0, -1.0, 1.0]);
    out.push(one(OpKind::TopK, "zeros of both signs", k(4), zeros));
    out.push(one(OpKind::TopK, "k=20", k(20), rng.floats(DType::F32, &[2, 201_088], 1.0)));
    out
}

fn quant(kind: OpKind) -> Vec<Scenario> {
    let mut rng = Rng::new(kind.name());
    let packed = |t: Tensor| Operand { tensor: t, rows: false, layout: Some("mx64") };
    let mut out = Vec::new();
    if kind == OpKind::Relayout {
        for shape in [vec![64, 64], vec![3, 128, 192]] {
            let x = rng.mxfp4(&shape, 0, 254);
            let name = label(&shape, DType::Mxfp4);
            out.push(Scenario::op(name, kind, attrs([("layout", "mx64".into())]), vec![Operand::whole(x)]));
        }
        return out;
    }
    for to in [DType::BF16, DType::F32] {
        for (from, upto) in [(100, 140), (0, 252)] {
            let a = || attrs([("to", Attr::DType(to))]);
            for shape in [vec![32], vec![5, 96], vec![3, 7, 64], vec![2, 64, 2880]] {
                let x = rng.mxfp4(&shape, from, upto);
                let name = format!("{} scales {from}..{upto} to {to}", label(&shape, DType::Mxfp4));
                out.push(Scenario::op(name, kind, a(), vec![Operand::whole(x)]));
            }
            for shape in [vec![64, 64], vec![3, 128, 192]] {
                let x = rng.mxfp4(&shape, from, upto);
                let name = format!("{} packed, scales {from}..{upto} to {to}", label(&shape, DType::Mxfp4));
                out.push(Scenario::op(name, kind, a(), vec![packed(x)]));
            }
        }
    }
    out
}

fn gathers() -> Vec<Scenario> {
    let mut rng = Rng::new("gather_rows");
    let mut out = Vec::new();
    let mut push = |x: Tensor, ids: Tensor| {
        let name = format!("{} by {}", label(&x.shape, x.dtype), label(&ids.shape, ids.dtype));
        out.push(Scenario::op(name, OpKind::GatherRows, Attrs::default(), vec![Operand::whole(x), Operand::rows(ids)]));
    };
    let odd = |rows: usize, n: i32| {
        let ids = (0..rows as i32).map(|i| [0, n - 1, -1, n, i32::MIN, i32::MAX, 1][i as usize % 7]).collect();
        int(&[rows], ids)
    };
    for dtype in FLOATS {
        push(rng.floats(dtype, &[20, 33], 1.0), odd(9, 20));
        push(rng.floats(dtype, &[20, 2880], 1.0), odd(3, 20));
        push(rng.floats(dtype, &[20], 1.0), odd(9, 20));
    }
    push(rng.ints(&[20, 3, 5], -99, 99), odd(9, 20));
    push(made(Tensor::u8(&[20, 7], (0..140).map(|_| rng.below(256) as u8).collect())), odd(9, 20));
    let bias = rng.floats(DType::BF16, &[8, 192], 1.0);
    push(bias, rng.ints(&[5, 4], -1, 9));
    push(rng.floats(DType::F32, &[1, 1], 1.0), odd(1, 1));
    out
}

fn norms(kind: OpKind) -> Vec<Scenario> {
    let mut rng = Rng::new(kind.name());
    let mut out = Vec::new();
    for (x, w) in
        [(DType::BF16, DType::BF16), (DType::F32, DType::F32), (DType::F32, DType::BF16), (DType::F16, DType::F16)]
    {
        for (rows, width) in [(5, 1), (3, 33), (7, 384), (3, 2880)] {
            let mut operands = vec![Operand::rows(rng.floats(x, &[rows, width], 2.0))];
            operands.push(Operand::whole(rng.floats(w, &[width], 1.0)));
            if kind == OpKind::LayerNorm {
                operands.push(Operand::whole(rng.floats(w, &[width], 1.0)));
            }
            let name = format!("[{rows},{width}] {x} with {w}");
            out.push(Scenario::op(name, kind, attrs([("eps", Attr::Float(1e-5))]), operands));
        }
    }
    let mut operands = vec![Operand::rows(float(DType::BF16, &[2, 64], vec![0.0; 128]))];
    operands.extend(
        (1..if kind == OpKind::LayerNorm { 3 } else { 2 }).map(|_| Operand::whole(rng.floats(DType::BF16, &[64], 1.0))),
    );
    out.push(Scenario::op("zeros", kind, Attrs::default(), operands));
    out
}

fn ropes() -> Vec<Scenario> {
    let mut rng = Rng::new("rope");
    let mut out = Vec::new();
    for (dtype, rows, heads, d) in [
        (DType::F32, 5, 64, 64),
        (DType::F32, 1, 1, 2),
        (DType::BF16, 33, 8, 64),
        (DType::F16, 7, 3, 32),
        (DType::F32, 3, 2, 128),
    ] {
        let pos = (0..rows as i32).map(|i| [0, 99, 17, -1, 100, i32::MAX][i as usize % 6]).collect();
        let operands = vec![
            Operand::rows(rng.floats(dtype, &[rows, heads * d], 1.0)),
            Operand::rows(int(&[rows], pos)),
            Operand::whole(rng.floats(DType::F32, &[100, d], 1.0)),
        ];
        out.push(Scenario::op(
            format!("{rows} of {heads} heads of {d} {dtype}"),
            OpKind::Rope,
            Attrs::default(),
            operands,
        ));
    }
    out
}

fn swiglus() -> Vec<Scenario> {
    let mut rng = Rng::new("swiglu");
    let mut out = Vec::new();
    for layout in ["interleaved", "halves"] {
        for dtype in FLOATS {
            for shape in [vec![5, 2], vec![3, 66], vec![3, 4, 192], vec![2, 5760]] {
                // Beyond the clamp on both sides.
                let x = rng.floats(dtype, &shape, 6.0);
                out.push(one(OpKind::Swiglu, layout, attrs([("layout", layout.into())]), x));
            }
        }
        let a = attrs([("layout", layout.into())]);
        out.push(one(OpKind::Swiglu, &format!("{layout}, odd values"), a, special(DType::F32, &[4, 64], &mut rng)));
    }
    out
}

fn combines() -> Vec<Scenario> {
    let mut rng = Rng::new("moe_combine");
    let mut out = Vec::new();
    for (x, w) in [(DType::F32, DType::F32), (DType::BF16, DType::BF16), (DType::BF16, DType::F32)] {
        for (t, j, n) in [(1, 1, 1), (5, 4, 33), (3, 4, 2880), (2, 8, 128)] {
            let operands =
                vec![Operand::rows(rng.floats(x, &[t, j, n], 1.0)), Operand::rows(rng.floats(w, &[t, j], 0.5))];
            out.push(Scenario::op(format!("[{t},{j},{n}] {x} by {w}"), OpKind::MoeCombine, Attrs::default(), operands));
        }
    }
    out
}
