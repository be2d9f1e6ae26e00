//! Evaluation of reductions, softmax and selection. A row's result depends on that row only.

use std::cmp::Ordering;

use super::elementwise::greater;
use super::*;

/// Operand 0 as rows of its last axis: elements, dims without the last, rows, columns.
#[expect(clippy::type_complexity, reason = "local tuple")]
fn rows<'a>(cx: &EvalCx<'a>) -> Result<(Cow<'a, [f32]>, Vec<usize>, usize, usize), EvalError> {
    let (x, shape) = cx.floats(0)?;
    match shape.split_last() {
        Some((n, rest)) => Ok((x, rest.to_vec(), rest.iter().product(), *n)),
        None => Err(cx.bad(0, "at least 1 dim")),
    }
}

/// `reduce`.
pub fn reduce(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    let (x, shape) = cx.floats(0)?;
    let axis = usize::try_from(cx.attrs.int("axis")).ok().filter(|a| *a < shape.len());
    let Some(axis) = axis else {
        return Err(cx.bad(0, format!("a dim {}", cx.attrs.int("axis"))));
    };
    let n = shape[axis];
    let (outer, inner) = (shape[..axis].iter().product(), shape[axis + 1..].iter().product::<usize>());
    let op = cx.attrs.word("op");
    let y = par::rows(outer, inner, n * inner, |row, acc| {
        let from = row * n * inner;
        acc.fill(if op == "max" { f32::NEG_INFINITY } else { 0.0 });
        for i in 0..n {
            let src = &x[from + i * inner..from + (i + 1) * inner];
            match op {
                "max" => acc.iter_mut().zip(src).for_each(|(a, x)| *a = greater(*a, *x)),
                _ => acc.iter_mut().zip(src).for_each(|(a, x)| *a += x),
            }
        }
        if op == "mean" {
            acc.iter_mut().for_each(|a| *a /= n as f32);
        }
    });
    let mut out = shape.to_vec();
    match cx.attrs.bool("keep") {
        true => out[axis] = 1,
        false => drop(out.remove(axis)),
    }
    Ok(vec![cx.float_result(0, out, y)])
}

/// The greatest element; NaN if there is one, minus infinity if there is none.
fn peak(x: &[f32]) -> f32 {
    x.iter().copied().fold(f32::NEG_INFINITY, greater)
}

/// `tile_max`.
pub fn tile_max(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    let (x, mut shape, m, n) = rows(cx)?;
    let tile = usize::try_from(cx.attrs.int("tile")).ok().filter(|t| *t > 0);
    let Some(tile) = tile else {
        return Err(cx.bad(0, "a tile of at least one element"));
    };
    let tiles = n.div_ceil(tile);
    let y = par::rows(m, tiles, n, |r, row| {
        for (y, x) in row.iter_mut().zip(x[r * n..(r + 1) * n].chunks(tile)) {
            *y = x.iter().copied().filter(|x| !x.is_nan()).fold(f32::NEG_INFINITY, f32::max);
        }
    });
    shape.push(tiles);
    Ok(vec![cx.float_result(0, shape, y)])
}

/// `softmax`.
pub fn softmax(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    let (x, mut shape, m, n) = rows(cx)?;
    let y = par::rows(m, n, n * 16, |r, row| {
        let x = &x[r * n..(r + 1) * n];
        let top = peak(x);
        for (y, x) in row.iter_mut().zip(x) {
            *y = (x - top).exp();
        }
        let total = simd::sum(row);
        row.iter_mut().for_each(|y| *y /= total);
    });
    shape.push(n);
    Ok(vec![cx.float_result(0, shape, y)])
}

/// `m + ln sum e^(x - m)` of a row.
pub(crate) fn log_sum_exp(x: &[f32]) -> f32 {
    let top = peak(x);
    let terms: Vec<f32> = x.iter().map(|x| (x - top).exp()).collect();
    top + simd::sum(&terms).ln()
}

/// `logsumexp`.
pub fn logsumexp(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    let (x, shape, m, n) = rows(cx)?;
    let y = par::map(m, n * 16, |r| log_sum_exp(&x[r * n..(r + 1) * n]));
    Ok(vec![cx.float_result(0, shape, y)])
}

/// Index of the greatest element: ties to the lower index, NaN is least, 0 for an empty row.
pub(crate) fn greatest(x: &[f32]) -> usize {
    let mut best = 0;
    for (i, v) in x.iter().enumerate().skip(1) {
        if *v > x[best] || x[best].is_nan() && !v.is_nan() {
            best = i;
        }
    }
    best
}

/// `argmax`.
pub fn argmax(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    let (x, shape, m, n) = rows(cx)?;
    let y = par::map(m, n * 2, |r| greatest(&x[r * n..(r + 1) * n]) as i32);
    Ok(vec![Tensor::raw_i32(shape, y).into()])
}

/// Descending by value, NaN last, ties by index.
fn descending(x: &[f32], a: u32, b: u32) -> Ordering {
    let (va, vb) = (x[a as usize], x[b as usize]);
    let order = vb.partial_cmp(&va).unwrap_or_else(|| va.is_nan().cmp(&vb.is_nan()));
    order.then(a.cmp(&b))
}

/// `topk`.
pub fn topk(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    let (x, mut shape, m, n) = rows(cx)?;
    let k = cx.attrs.int("k").max(0) as usize;
    if k > n || u32::try_from(n).is_err() {
        return Err(cx.bad(0, format!("at least {k} columns")));
    }
    let picks = par::map(m, n * 8, |r| {
        let x = &x[r * n..(r + 1) * n];
        let mut order: Vec<u32> = (0..n as u32).collect();
        if k > 0 && k < n {
            order.select_nth_unstable_by(k - 1, |a, b| descending(x, *a, *b));
        }
        order.truncate(k);
        order.sort_unstable_by(|a, b| descending(x, *a, *b));
        order
    });
    let values = picks.iter().enumerate().flat_map(|(r, p)| p.iter().map(move |i| (r, *i)));
    let values = values.map(|(r, i)| x[r * n + i as usize]).collect();
    let indices = picks.iter().flatten().map(|i| *i as i32).collect();
    shape.push(k);
    Ok(vec![cx.float_result(0, shape.clone(), values), Tensor::raw_i32(shape, indices).into()])
}

#[cfg(test)]
mod tests {
    use crate::interp::testing::*;

    const INF: f32 = f32::INFINITY;
    const NAN: f32 = f32::NAN;

    #[test]
    fn reduce_over_any_axis() {
        let x = f32s(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 9.0]);
        let run = |op: &str, axis: i64, keep: bool| {
            let attrs = [("op", Attr::from(op)), ("axis", Attr::Int(axis)), ("keep", Attr::Bool(keep))];
            Eval::new(OpKind::Reduce).attrs(attrs).on([x.clone()]).tensor()
        };
        assert_eq!(run("sum", 0, false).to_f32().to_vec(), [5.0, 7.0, 12.0]);
        assert_eq!(run("sum", 1, false).to_f32().to_vec(), [6.0, 18.0]);
        assert_eq!(run("mean", 1, true).to_f32().to_vec(), [2.0, 6.0]);
        assert_eq!(run("mean", 1, true).shape, [2, 1]);
        assert_eq!(run("max", 0, false).to_f32().to_vec(), [4.0, 5.0, 9.0]);
        let attrs = [("op", Attr::from("max")), ("axis", Attr::Int(0))];
        let odd = Eval::new(OpKind::Reduce).attrs(attrs.clone()).on([f32s(&[3], &[1.0, NAN, 2.0])]).values();
        assert!(odd[0].is_nan());
        assert_eq!(Eval::new(OpKind::Reduce).attrs(attrs).on([f32s(&[0, 1], &[])]).values(), [-INF]);
    }

    #[test]
    fn softmax_of_the_router_example() {
        let y = Eval::new(OpKind::Softmax).on([f32s(&[1, 4], &[2.0, 1.0, 0.5, 0.25])]).values();
        close(&y, &[0.566642, 0.208456, 0.126435, 0.098468], 1e-6);
    }

    #[test]
    fn softmax_edges() {
        let x = f32s(&[4, 2], &[1e30, 1e30, -INF, 0.0, NAN, 0.0, -INF, -INF]);
        let y = Eval::new(OpKind::Softmax).on([x]).values();
        assert_eq!(y[..4], [0.5, 0.5, 0.0, 1.0]);
        assert!(y[4..].iter().all(|v| v.is_nan()));
        let y = Eval::new(OpKind::LogSumExp).on([f32s(&[2, 2], &[0.0, 0.0, 1000.0, -INF])]).values();
        close(&y, &[std::f32::consts::LN_2, 1000.0], 1e-7);
    }

    #[test]
    fn argmax_ties_and_nan() {
        let x = f32s(&[5, 3], &[1.0, 3.0, 3.0, NAN, 1.0, 0.0, NAN, NAN, NAN, -INF, NAN, -INF, NAN, -INF, NAN]);
        let y = Eval::new(OpKind::ArgMax).on([x]).tensor();
        assert_eq!(y.as_i32().unwrap(), [1, 1, 0, 0, 1]);
    }

    #[test]
    fn topk_is_sorted_distinct_and_stable() {
        let x = f32s(&[3, 5], &[1.0, 4.0, 2.0, 4.0, 0.0, NAN, NAN, NAN, NAN, NAN, -0.0, 0.0, NAN, -INF, -1.0]);
        let mut e = Eval::new(OpKind::TopK).attrs([("k", Attr::Int(3))]).on([x]);
        let out = e.all().unwrap();
        let (v, i) = (out[0].as_tensor().unwrap(), out[1].as_tensor().unwrap());
        assert_eq!(i.as_i32().unwrap(), [1, 3, 2, 0, 1, 2, 0, 1, 4]);
        assert_eq!(v.to_f32()[..3], [4.0, 4.0, 2.0]);
        assert!(v.to_f32()[3..6].iter().all(|v| v.is_nan()));
        let mut all = Eval::new(OpKind::TopK).attrs([("k", Attr::Int(4))]).on([f32s(&[4], &[0.0; 4])]);
        assert_eq!(all.all().unwrap()[1].as_tensor().unwrap().as_i32().unwrap(), [0, 1, 2, 3]);
    }

    #[test]
    fn rows_do_not_depend_on_their_neighbours_or_on_threads() {
        let (m, n) = (40, 333);
        let x = noise(m * n, 7);
        let all = same_on_any_pool(|| Eval::new(OpKind::Softmax).on([f32s(&[m, n], &x)]).values());
        for r in [0, 17, 39] {
            let alone = Eval::new(OpKind::Softmax).on([f32s(&[1, n], &x[r * n..(r + 1) * n])]).values();
            assert_eq!(bits(&alone), bits(&all[r * n..(r + 1) * n]));
        }
    }

    #[test]
    fn typed_results_round_once() {
        let x = bf16s(&[1, 3], &[1.0, 2.0, 3.0]);
        let y = Eval::new(OpKind::Softmax).rounding(Rounding::Typed).on([x]).values();
        close(&y, &[0.09003057, 0.24472847, 0.66524096], 4e-3);
        assert!(y.iter().all(|v| v.to_bits() & 0xffff == 0));
    }
}
