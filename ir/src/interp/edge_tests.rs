//! No op panics, or gives a result of the wrong type, on awkward values of its declared types.

use crate::interp::testing::*;
use crate::module::StateDecl;

/// Floats that break things: every kind of special value among ordinary ones.
fn odd(shape: &[usize], seed: u32) -> Tensor {
    let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, f32::MAX, f32::MIN, 1e-45, 1.0, -7.5];
    let n = shape.iter().product();
    let pick = |(i, x): (usize, f32)| if x > 0.0 { special[(i + seed as usize) % special.len()] } else { x };
    f32s(shape, &noise(n, seed).into_iter().enumerate().map(pick).collect::<Vec<_>>())
}

/// Integers far outside any range, and a few inside.
fn wild(shape: &[usize], seed: u32) -> Tensor {
    let special = [0, 1, -1, 2, i32::MAX, i32::MIN, 3, 1 << 30, 5, 100];
    let n: usize = shape.iter().product();
    i32s(shape, &(0..n).map(|i| special[(i * 7 + seed as usize) % special.len()]).collect::<Vec<_>>())
}

fn packed(shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    let scales = [0, 127, 253, 254, 255].into_iter().cycle().take(n / 32).collect();
    Tensor::mxfp4(shape, (0..n / 2).map(|i| (i * 37) as u8).collect(), scales).unwrap()
}

fn cases(kind: OpKind, s: u32) -> Vec<Eval> {
    use OpKind::*;
    let op = || Eval::new(kind);
    let int = |name: &'static str, i: i64| (name, Attr::Int(i));
    let word = |name: &'static str, w: &str| (name, Attr::from(w));
    let t = 6;
    match kind {
        Param | Weight | Call | Kernel => vec![],
        Const => [f64::NAN, f64::INFINITY, -1e300]
            .into_iter()
            .flat_map(|v| DType::ALL.into_iter().filter(|d| *d != DType::Mxfp4).map(move |d| (v, d)))
            .map(|(v, d)| {
                op().attrs([("dims", dims(&[2, 0, 3])), ("value", Attr::Float(v)), ("dtype", Attr::DType(d))])
            })
            .collect(),
        Iota => vec![op().attrs([("dims", dims(&[0]))]), op().attrs([("dims", dims(&[5]))])],
        Reshape => vec![op().attrs([("dims", dims(&[3, 2]))]).on([odd(&[2, 3], s)])],
        Permute => vec![op().attrs([("perm", Attr::Ints(vec![1, 0]))]).on([odd(&[2, 3], s)])],
        Slice => vec![op().attrs([int("axis", 1), int("len", 1), int("start", 2)]).on([odd(&[2, 3], s)])],
        Split => vec![op().attrs([("sizes", Attr::Ints(vec![1, 2]))]).on([odd(&[4, 3], s)])],
        TileMax => vec![op().attrs([int("tile", 3)]).on([odd(&[9, 7], s)])],
        Broadcast => vec![op().attrs([("dims", dims(&[2, 2, 3]))]).on([odd(&[2, 1], s)])],
        Concat => vec![op().attrs([int("axis", 0)]).on([odd(&[0, 3], s), odd(&[2, 3], s)])],
        Neg | Abs | Exp | Log | Sqrt | Rsqrt | Sigmoid | Tanh | Silu | Gelu => vec![op().on([odd(&[4, 9], s)])],
        Clamp => vec![op().attrs([("lo", Attr::Float(3.0)), ("hi", Attr::Float(-3.0))]).on([odd(&[9], s)])],
        Cast => DType::ALL
            .into_iter()
            .filter(|d| *d != DType::Mxfp4)
            .flat_map(|d| [odd(&[20], s), wild(&[20], s)].map(|x| op().attrs([("to", Attr::DType(d))]).on([x])))
            .collect(),
        Add | Sub | Mul | Div | Max | Min => {
            vec![op().on([odd(&[7, 9], s), odd(&[9], s + 1)]), op().on([wild(&[7, 9], s), wild(&[9], s + 3)])]
        }
        Cmp => ["eq", "ne", "lt", "le", "gt", "ge"]
            .map(|w| op().attrs([word("op", w)]).on([odd(&[7, 9], s), odd(&[], s)]))
            .into(),
        Select => {
            let c = Tensor::u8(&[4], vec![0, 1, 2, 255]).map(|t| Tensor { dtype: DType::Bool, ..t }).unwrap();
            vec![op().on([c, odd(&[4], s), odd(&[4], s + 1)])]
        }
        Reduce => ["sum", "max", "mean"]
            .into_iter()
            .flat_map(|w| [0, 1, 2].map(|a| (w, a)))
            .map(|(w, a)| op().attrs([word("op", w), int("axis", a)]).on([odd(&[3, 0, 5], s)]))
            .collect(),
        Softmax | LogSumExp | ArgMax => vec![op().on([odd(&[9, 7], s)]), op().on([odd(&[3, 0], s)])],
        TopK => vec![op().attrs([int("k", 4)]).on([odd(&[9, 7], s)]), op().attrs([int("k", 7)]).on([odd(&[9, 7], s)])],
        MatMul => vec![
            op().on([odd(&[3, 64], s), Tensor { dtype: DType::BF16, ..packed(&[5, 64]) }]),
            op().on([odd(&[2, 3, 5], s), odd(&[0, 5], s)]),
        ],
        BatchMatMul => {
            vec![op().on([odd(&[3, 2, 5], s), odd(&[3, 4, 5], s)]), op().on([odd(&[0, 2, 5], s), odd(&[0, 4, 5], s)])]
        }
        MoeMatMul => vec![
            op().on([odd(&[t, 32], s), Tensor { dtype: DType::BF16, ..packed(&[3, 5, 32]) }, wild(&[t, 2], s)]),
            op().on([odd(&[t, 0, 4], s), odd(&[3, 5, 4], s), wild(&[t, 0], s)]),
        ],
        Dequant => vec![op().on([packed(&[5, 64])])],
        Relayout => vec![op().attrs([word("layout", "a.b")]).on([packed(&[5, 64])])],
        GatherRows => vec![op().on([odd(&[4, 3], s), wild(&[10], s)]), op().on([odd(&[0, 3], s), wild(&[10], s)])],
        RmsNorm => vec![op().on([odd(&[4, 9], s), odd(&[9], s)])],
        LayerNorm => vec![op().on([odd(&[4, 9], s), odd(&[9], s), odd(&[9], s)])],
        RopeTable => [0.0, 1.0, -5.0, f64::NAN, 1e300]
            .into_iter()
            .flat_map(|theta| ["pairs", "rotations"].map(|ramp| (theta, ramp)))
            .map(|(theta, ramp)| {
                let (theta, factor) = (("theta", Attr::Float(theta)), ("factor", Attr::Float(2.0)));
                op().attrs([("dims", dims(&[3])), int("dim", 8), theta, factor, word("ramp", ramp)])
            })
            .collect(),
        Rope => vec![op().on([odd(&[t, 16], s), wild(&[t], s), odd(&[3, 8], s)])],
        KvWrite | Attention => {
            let decl =
                StateDecl::Kv { name: "kv".into(), heads: 2, head_dim: 8, page: 4, window: None, dtype: DType::BF16 };
            let store = StateStore::for_decl(&decl, 3);
            let step = [wild(&[t], s), wild(&[t], s + 1), wild(&[3, 4], s + 2)];
            match kind {
                KvWrite => {
                    vec![op().state(decl, store).on([odd(&[t, 16], s), odd(&[t, 16], s + 1)]).on(step)]
                }
                _ => {
                    let attrs = [("scale", Attr::Float(f64::INFINITY)), int("window", i64::from(s % 3) * (1 << 40))];
                    vec![op().attrs(attrs).on([odd(&[t, 32], s)]).state(decl, store).on(step).on([odd(&[4], s)])]
                }
            }
        }
        Swiglu => vec![op().on([odd(&[3, 10], s)]), op().attrs([word("layout", "halves")]).on([odd(&[3, 0], s)])],
        MoeCombine => {
            vec![op().on([odd(&[3, 4, 5], s), odd(&[3, 4], s)]), op().on([odd(&[3, 0, 5], s), odd(&[3, 0], s)])]
        }
        CountTokens | Penalize => {
            let decl = StateDecl::Counts { name: "seen".into(), vocab: 4 };
            let store = StateStore::for_decl(&decl, 2);
            match kind {
                CountTokens => {
                    let step = [wild(&[t], s), wild(&[t], s + 1), wild(&[t], s + 2), wild(&[3], s), wild(&[3], s + 1)];
                    vec![op().state(decl, store).on(step)]
                }
                _ => {
                    let rest = [wild(&[t], s), odd(&[t], s), odd(&[t], s + 1), odd(&[t], s + 2)];
                    vec![op().on([odd(&[t, 4], s)]).state(decl, store).on(rest)]
                }
            }
        }
        LogitBias => vec![op().on([odd(&[t, 5], s), wild(&[t, 3], s), odd(&[t, 3], s)])],
        Sample => [9, 1, 0]
            .map(|v| {
                let how = [odd(&[t], s + 3), wild(&[t], s), odd(&[t], s + 1), odd(&[t], s + 2)];
                op().on([odd(&[t, v], s)]).on(how).on([wild(&[t, 2], s), wild(&[t], s)])
            })
            .into(),
        TokenLogprob => vec![op().on([odd(&[t, 5], s), wild(&[t], s)]), op().on([odd(&[t, 0], s), wild(&[t], s)])],
    }
}

#[test]
fn no_op_panics_on_awkward_values() {
    for kind in OpKind::ALL {
        for seed in 0..10 {
            for rounding in [Rounding::Exact, Rounding::Typed] {
                for case in cases(*kind, seed) {
                    case.rounding(rounding).all().unwrap_or_else(|e| panic!("{}: {e}", kind.name()));
                }
            }
        }
    }
}
