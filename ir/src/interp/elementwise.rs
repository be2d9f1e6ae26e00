//! Evaluation of elementwise ops, in f32 (i32 wraps), rounded once.

use std::f32::consts::PI;

use super::tensor::round_all;
use super::*;

fn unary(cx: &EvalCx, cost: usize, f: impl Fn(f32) -> f32 + Sync) -> Result<Vec<Datum>, EvalError> {
    let (x, shape) = cx.floats(0)?;
    let y = par::fill(x.len(), cost, |at, out| {
        for (y, x) in out.iter_mut().zip(&x[at..]) {
            *y = f(*x);
        }
    });
    Ok(vec![cx.float_result(0, shape.to_vec(), y)])
}

/// Cost of an op that calls a library function.
const CALL: usize = 16;

macro_rules! unaries {
    ($($(#[$doc:meta])* $name:ident $cost:expr, $f:expr;)*) => {$(
        $(#[$doc])*
        pub fn $name(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
            unary(cx, $cost, $f)
        }
    )*};
}

unaries! {
    /// `neg`.
    neg 1, |x| -x;
    /// `abs`.
    abs 1, |x| x.abs();
    /// `exp`.
    exp CALL, |x| x.exp();
    /// `log`.
    log CALL, |x| x.ln();
    /// `sqrt`.
    sqrt 4, |x| x.sqrt();
    /// `rsqrt`.
    rsqrt 4, |x| 1.0 / x.sqrt();
    /// `sigmoid`.
    sigmoid CALL, logistic;
    /// `tanh`.
    tanh CALL, |x| x.tanh();
    /// `silu`.
    silu CALL, |x| x * logistic(x);
    /// `gelu`.
    gelu CALL, |x| 0.5 * x * (1.0 + ((2.0 / PI).sqrt() * (x + 0.044715 * x * x * x)).tanh());
}

/// `1 / (1 + e^-x)`.
pub(crate) fn logistic(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// `clamp`.
pub fn clamp(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    let (lo, hi) = (cx.attrs.float("lo") as f32, cx.attrs.float("hi") as f32);
    // Comparisons rather than f32::min, which would drop a NaN.
    let limit = move |x: f32| {
        let y = if x < lo { lo } else { x };
        if y > hi { hi } else { y }
    };
    unary(cx, 1, limit)
}

/// Combines x with y, which is repeated along x's leading dims.
fn zip<A: Copy + Sync, R>(x: &[A], y: &[A], at: usize, out: &mut [R], f: impl Fn(A, A) -> R) {
    match y {
        [] => {}
        [y] => out.iter_mut().zip(&x[at..]).for_each(|(o, x)| *o = f(*x, *y)),
        _ => {
            let mut done = 0;
            while done < out.len() {
                let from = (at + done) % y.len();
                let n = (y.len() - from).min(out.len() - done);
                let xs = &x[at + done..at + done + n];
                for ((o, x), y) in out[done..done + n].iter_mut().zip(xs).zip(&y[from..from + n]) {
                    *o = f(*x, *y);
                }
                done += n;
            }
        }
    }
}

/// Both operands of a binary op; y's shape is a suffix of x's.
fn pair<'a>(cx: &EvalCx<'a>) -> Result<(&'a Tensor, &'a Tensor), EvalError> {
    let (x, y) = (cx.tensor(0)?, cx.tensor(1)?);
    let kinds = x.dtype.is_float() && y.dtype.is_float() || x.dtype == DType::I32 && y.dtype == DType::I32;
    match kinds && x.shape.ends_with(&y.shape) {
        true => Ok((x, y)),
        false => Err(cx.bad(1, format!("the kind of {x} and a suffix of its dims"))),
    }
}

fn binary(
    cx: &EvalCx,
    f: impl Fn(f32, f32) -> f32 + Sync,
    g: impl Fn(i32, i32) -> i32,
) -> Result<Vec<Datum>, EvalError> {
    let (x, y) = pair(cx)?;
    if let (Some(x_), Some(y_)) = (x.as_i32(), y.as_i32()) {
        let mut out = vec![0; x_.len()];
        zip(x_, y_, 0, &mut out, g);
        return Ok(vec![Tensor::raw_i32(x.shape.clone(), out).into()]);
    }
    let (a, b) = (x.to_f32(), y.to_f32());
    let z = par::fill(a.len(), 1, |at, out| zip(&a, &b, at, out, &f));
    Ok(vec![cx.float_result(0, x.shape.clone(), z)])
}

/// `add`.
pub fn add(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    binary(cx, |x, y| x + y, i32::wrapping_add)
}

/// `sub`.
pub fn sub(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    binary(cx, |x, y| x - y, i32::wrapping_sub)
}

/// `mul`.
pub fn mul(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    binary(cx, |x, y| x * y, i32::wrapping_mul)
}

/// `div`.
pub fn div(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    binary(cx, |x, y| x / y, |x, y| if y == 0 { 0 } else { x.wrapping_div(y) })
}

/// The greater of two, NaN if either is.
pub(crate) fn greater(x: f32, y: f32) -> f32 {
    if x.is_nan() || x > y { x } else { y }
}

/// `max`.
pub fn max(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    binary(cx, greater, i32::max)
}

/// `min`.
pub fn min(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    binary(cx, |x, y| if x.is_nan() || x < y { x } else { y }, i32::min)
}

/// `cmp`.
pub fn cmp(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    fn relation<T: PartialOrd + Copy + Sync>(op: &str, x: &[T], y: &[T]) -> Vec<u8> {
        let mut out = vec![0; x.len()];
        match op {
            "eq" => zip(x, y, 0, &mut out, |x, y| u8::from(x == y)),
            "ne" => zip(x, y, 0, &mut out, |x, y| u8::from(x != y)),
            "lt" => zip(x, y, 0, &mut out, |x, y| u8::from(x < y)),
            "le" => zip(x, y, 0, &mut out, |x, y| u8::from(x <= y)),
            "gt" => zip(x, y, 0, &mut out, |x, y| u8::from(x > y)),
            _ => zip(x, y, 0, &mut out, |x, y| u8::from(x >= y)),
        }
        out
    }
    let (x, y) = pair(cx)?;
    let op = cx.attrs.word("op");
    let z = match (x.as_i32(), y.as_i32()) {
        (Some(x), Some(y)) => relation(op, x, y),
        _ => relation(op, &x.to_f32(), &y.to_f32()),
    };
    Ok(vec![Tensor::raw_u8(DType::Bool, x.shape.clone(), z).into()])
}

/// `select`.
pub fn select(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    fn pick<T: Copy>(c: &[u8], x: &[T], y: &[T]) -> Vec<T> {
        c.iter().zip(x.iter().zip(y)).map(|(c, (x, y))| if *c != 0 { *x } else { *y }).collect()
    }
    let (c, x, y) = (cx.tensor(0)?, cx.tensor(1)?, cx.tensor(2)?);
    let cond = c.as_u8().filter(|_| c.shape == x.shape).ok_or_else(|| cx.bad(0, format!("bool like {x}")))?;
    if x.dtype != y.dtype || x.shape != y.shape || x.dtype == DType::Mxfp4 {
        return Err(cx.bad(2, format!("{x}")));
    }
    let shape = x.shape.clone();
    Ok(vec![match (&x.data, &y.data) {
        (Data::I32(x), Data::I32(y)) => Tensor::raw_i32(shape, pick(cond, x, y)).into(),
        (Data::U8(a), Data::U8(b)) => Tensor::raw_u8(x.dtype, shape, pick(cond, a, b)).into(),
        _ => cx.float_result(0, shape, pick(cond, &x.to_f32(), &y.to_f32())),
    }])
}

/// `cast`.
pub fn cast(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    let (x, to) = (cx.tensor(0)?, cx.dtype(0));
    if x.dtype == DType::Mxfp4 || to == DType::Mxfp4 {
        return Err(cx.bad(0, "any dtype but mxfp4"));
    }
    let shape = x.shape.clone();
    let tensor = match to {
        _ if to.is_float() => {
            if x.dtype.is_float() && (x.dtype == to || to == DType::F32 || cx.rounding == Rounding::Exact) {
                // Nothing to round: the storage is shared, which also keeps weights packed.
                let x = if to == DType::F16 { x.plain() } else { x.clone() };
                Tensor { dtype: to, ..x }
            } else {
                let mut y = x.to_f32().into_owned();
                if cx.rounding == Rounding::Typed {
                    round_all(to, &mut y);
                }
                Tensor::raw(to, shape, y)
            }
        }
        DType::I32 => match x.as_i32() {
            Some(_) => x.clone(),
            None => Tensor::raw_i32(shape, x.to_f32().iter().map(|v| *v as i32).collect()),
        },
        DType::Bool => {
            let y = match x.as_i32() {
                Some(v) => v.iter().map(|v| u8::from(*v != 0)).collect(),
                None => x.to_f32().iter().map(|v| u8::from(*v != 0.0)).collect(),
            };
            Tensor::raw_u8(to, shape, y)
        }
        _ => {
            let y = match (x.as_i32(), x.as_u8()) {
                (Some(v), _) => v.iter().map(|v| (*v).clamp(0, 255) as u8).collect(),
                (_, Some(v)) => v.to_vec(),
                _ => x.to_f32().iter().map(|v| *v as u8).collect(),
            };
            Tensor::raw_u8(to, shape, y)
        }
    };
    Ok(vec![tensor.into()])
}

#[cfg(test)]
mod tests {
    use crate::interp::testing::*;

    const INF: f32 = f32::INFINITY;
    const NAN: f32 = f32::NAN;

    fn one(kind: OpKind, x: f32) -> f32 {
        Eval::new(kind).on([f32s(&[1], &[x])]).values()[0]
    }

    #[test]
    fn unary_values() {
        use OpKind::*;
        for (kind, x, want) in [
            (Neg, 2.0, -2.0),
            (Abs, -2.5, 2.5),
            (Exp, 1.0, std::f32::consts::E),
            (Log, 10.0, std::f32::consts::LN_10),
            (Log, 0.0, -INF),
            (Sqrt, 9.0, 3.0),
            (Rsqrt, 4.0, 0.5),
            (Rsqrt, 0.0, INF),
            (Sigmoid, 0.0, 0.5),
            (Sigmoid, -200.0, 0.0),
            (Tanh, 0.5, 0.46211716),
            (Silu, 1.0, 0.7310586),
            (Silu, -1.0, -0.26894143),
            (Gelu, 1.0, 0.841192),
            (Gelu, -3.0, -0.0036373734),
        ] {
            let got = one(kind, x);
            assert!(got == want || (got - want).abs() < 1e-6, "{kind:?} {x}: {got}, expected {want}");
        }
        assert!(one(Log, -1.0).is_nan() && one(Sqrt, -1.0).is_nan() && one(Exp, NAN).is_nan());
    }

    #[test]
    fn binary_values_and_suffix_broadcast() {
        let x = f32s(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let run = |kind, y: Tensor| Eval::new(kind).on([x.clone(), y]).values();
        assert_eq!(run(OpKind::Add, f32s(&[3], &[10.0, 20.0, 30.0])), [11.0, 22.0, 33.0, 14.0, 25.0, 36.0]);
        assert_eq!(run(OpKind::Sub, f32s(&[], &[1.0])), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(run(OpKind::Mul, bf16s(&[3], &[1.0, 0.0, -1.0])), [1.0, 0.0, -3.0, 4.0, 0.0, -6.0]);
        assert_eq!(run(OpKind::Div, f32s(&[3], &[2.0, 0.0, -INF])), [0.5, INF, -0.0, 2.0, INF, -0.0]);
        let odd = Eval::new(OpKind::Max).on([f32s(&[3], &[NAN, 1.0, 2.0]), f32s(&[3], &[0.0, NAN, 1.0])]).values();
        assert!(odd[0].is_nan() && odd[1].is_nan() && odd[2] == 2.0);
        let odd = Eval::new(OpKind::Min).on([f32s(&[3], &[NAN, 1.0, 2.0]), f32s(&[3], &[0.0, NAN, 1.0])]).values();
        assert!(odd[0].is_nan() && odd[1].is_nan() && odd[2] == 1.0);
    }

    #[test]
    fn integers_wrap_and_divide_toward_zero() {
        let run = |kind, x: &[i32], y: &[i32]| {
            let t = Eval::new(kind).on([i32s(&[x.len()], x), i32s(&[y.len()], y)]).tensor();
            t.as_i32().unwrap().to_vec()
        };
        assert_eq!(run(OpKind::Add, &[i32::MAX], &[1]), [i32::MIN]);
        assert_eq!(run(OpKind::Div, &[-7, 7, i32::MIN], &[2, 0, -1]), [-3, 0, i32::MIN]);
        assert_eq!(run(OpKind::Max, &[1, 5], &[3, 3]), [3, 5]);
    }

    #[test]
    fn large_operands_split_over_threads_alike() {
        let n = 100_000;
        let (x, y) = (f32s(&[n / 10, 10], &noise(n, 1)), f32s(&[10], &noise(10, 2)));
        let got = same_on_any_pool(|| Eval::new(OpKind::Add).on([x.clone(), y.clone()]).values());
        let want: Vec<f32> = x.to_f32().iter().enumerate().map(|(i, x)| x + y.to_f32()[i % 10]).collect();
        assert_eq!(got, want);
    }

    #[test]
    fn empty_tensors_are_fine() {
        assert!(Eval::new(OpKind::Add).on([f32s(&[0, 3], &[]), f32s(&[3], &[1.0; 3])]).values().is_empty());
        assert!(Eval::new(OpKind::Add).on([f32s(&[2, 0], &[]), f32s(&[0], &[])]).values().is_empty());
        assert!(Eval::new(OpKind::Exp).on([f32s(&[0], &[])]).values().is_empty());
    }

    #[test]
    fn clamp_keeps_nan() {
        let attrs = [("hi", Attr::Float(7.0)), ("lo", Attr::Float(-7.0))];
        let y = Eval::new(OpKind::Clamp).attrs(attrs).on([f32s(&[4], &[-8.0, 8.0, 1.0, NAN])]).values();
        assert_eq!(y[..3], [-7.0, 7.0, 1.0]);
        assert!(y[3].is_nan());
    }

    #[test]
    fn comparisons_and_select() {
        let cmp = |op: &str| {
            let t = Eval::new(OpKind::Cmp).attrs([("op", Attr::from(op))]);
            t.on([f32s(&[4], &[1.0, 2.0, 3.0, NAN]), f32s(&[], &[2.0])]).tensor().as_u8().unwrap().to_vec()
        };
        for (op, want) in [
            ("eq", [0, 1, 0, 0]),
            ("ne", [1, 0, 1, 1]),
            ("lt", [1, 0, 0, 0]),
            ("le", [1, 1, 0, 0]),
            ("gt", [0, 0, 1, 0]),
            ("ge", [0, 1, 1, 0]),
        ] {
            assert_eq!(cmp(op), want, "{op}");
        }
        let c = Tensor::bool(&[2], &[true, false]).unwrap();
        let y = Eval::new(OpKind::Select).on([c, i32s(&[2], &[1, 2]), i32s(&[2], &[3, 4])]).tensor();
        assert_eq!(y.as_i32().unwrap(), [1, 4]);
    }

    #[test]
    fn cast_rounds_only_when_asked() {
        let run = |x: Tensor, to, rounding| {
            Eval::new(OpKind::Cast).attrs([("to", Attr::DType(to))]).rounding(rounding).on([x])
        };
        let x = f32s(&[3], &[1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, 70000.0]);
        assert_eq!(run(x.clone(), DType::BF16, Rounding::Exact).values(), x.to_f32().to_vec());
        assert_eq!(run(x.clone(), DType::BF16, Rounding::Typed).values(), [1.0, 1.015625, 70144.0]);
        assert_eq!(run(x.clone(), DType::F16, Rounding::Typed).values(), [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, INF]);
        let odd = f32s(&[5], &[-1.9, 3e9, NAN, -INF, 0.5]);
        let ints = run(odd, DType::I32, Rounding::Typed).tensor();
        assert_eq!(ints.as_i32().unwrap(), [-1, i32::MAX, 0, i32::MIN, 0]);
        let back = run(i32s(&[2], &[257, -3]), DType::BF16, Rounding::Typed).values();
        assert_eq!(back, [256.0, -3.0]);
        let flags = Tensor::bool(&[2], &[true, false]).unwrap();
        assert_eq!(run(flags, DType::F32, Rounding::Exact).values(), [1.0, 0.0]);
        let bytes = run(i32s(&[3], &[-1, 7, 300]), DType::U8, Rounding::Exact).tensor();
        assert_eq!(bytes.as_u8().unwrap(), [0, 7, 255]);
        let half = run(bf16s(&[1], &[3.0]), DType::F16, Rounding::Exact).tensor();
        assert_eq!((half.dtype, half.to_f32()[0]), (DType::F16, 3.0));
    }

    #[test]
    fn results_round_to_x() {
        let (x, y) = (bf16s(&[1], &[256.0]), f32s(&[1], &[1.0]));
        let run = |r| Eval::new(OpKind::Add).rounding(r).on([x.clone(), y.clone()]).values();
        assert_eq!((run(Rounding::Exact), run(Rounding::Typed)), (vec![257.0], vec![256.0]));
    }

    #[test]
    fn a_wrong_operand_is_an_error() {
        let operands = [Datum::State(3)];
        let (attrs, sizes) = (Attrs::default(), Bindings::new());
        let mut cx = EvalCx {
            kind: OpKind::Neg,
            operands: &operands,
            attrs: &attrs,
            results: &[],
            sizes: &sizes,
            rounding: Rounding::Exact,
            states: &mut [],
        };
        let e = super::neg(&mut cx).unwrap_err();
        assert_eq!(
            e.to_string(),
            "neg: operand 0 is state 3, which does not exist, expected a tensor with as many elements as its shape says"
        );
    }
}
