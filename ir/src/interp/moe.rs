//! Evaluation of the gated activation and of the weighted sum of experts.

use super::elementwise::logistic;
use super::*;

/// `swiglu`.
pub fn swiglu(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    let (x, shape) = cx.floats(0)?;
    let Some(width) = shape.last().copied().filter(|n| n % 2 == 0) else {
        return Err(cx.bad(0, "an even last dim"));
    };
    let half = width / 2;
    let (alpha, limit) = (cx.attrs.float("alpha") as f32, cx.attrs.float("limit") as f32);
    let interleaved = cx.attrs.word("layout") != "halves";
    let m = shape[..shape.len() - 1].iter().product();
    let y = par::rows(m, half, half * 16, |r, out| {
        let row = &x[r * width..(r + 1) * width];
        for (j, y) in out.iter_mut().enumerate() {
            let (gate, up) = if interleaved { (row[2 * j], row[2 * j + 1]) } else { (row[j], row[half + j]) };
            // Comparisons keep NaN, which f32::min would drop.
            let g = if gate > limit { limit } else { gate };
            let u = if up < -limit { -limit } else { up };
            let u = if u > limit { limit } else { u };
            *y = g * logistic(alpha * g) * (u + 1.0);
        }
    });
    let mut out = shape.to_vec();
    if let Some(last) = out.last_mut() {
        *last = half;
    }
    Ok(vec![cx.float_result(0, out, y)])
}

/// `moe_combine`.
pub fn moe_combine(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    let (x, shape) = cx.floats(0)?;
    let [t, j, n] = *shape else {
        return Err(cx.bad(0, "3 dims"));
    };
    let w = cx.floats_of(1, &[t, j])?;
    let y = par::rows(t, n, j * n, |r, out| {
        simd::weighted_sum(&w[r * j..(r + 1) * j], &x[r * j * n..(r + 1) * j * n], out);
    });
    Ok(vec![cx.float_result(0, vec![t, n], y)])
}

#[cfg(test)]
mod tests {
    use crate::interp::testing::*;

    #[test]
    #[expect(clippy::excessive_precision, reason = "as the specification prints them")]
    fn swiglu_check_values() {
        let x = [1.0, 0.0, 10.0, 10.0, -10.0, -10.0, -1.0, 2.0, 7.0, -7.5];
        let want = [0.84579577, 55.99962503, 2.4347768e-6, -0.46261270, -41.9997188];
        let y = Eval::new(OpKind::Swiglu).on([f32s(&[1, 10], &x)]).values();
        close(&y, &want, 1e-6);
        assert!((y[2] / want[2] - 1.0).abs() < 1e-5);
        let halves: Vec<f32> = x.iter().step_by(2).chain(x.iter().skip(1).step_by(2)).copied().collect();
        let y2 =
            Eval::new(OpKind::Swiglu).attrs([("layout", Attr::from("halves"))]).on([f32s(&[1, 10], &halves)]).values();
        assert_eq!(y2, y);
        let nan = Eval::new(OpKind::Swiglu).on([f32s(&[4], &[f32::NAN, 0.0, 0.0, f32::NAN])]).values();
        assert!(nan[0].is_nan() && nan[1].is_nan());
    }

    #[test]
    fn combine_is_a_weighted_sum() {
        let x = f32s(&[2, 2, 3], &[1.0, 2.0, 3.0, 10.0, 20.0, 30.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
        let y = Eval::new(OpKind::MoeCombine).on([x, f32s(&[2, 2], &[0.5, 0.25, 1.0, 7.0])]).values();
        assert_eq!(y, [3.0, 6.0, 9.0, 1.0, 1.0, 1.0]);
    }
}
