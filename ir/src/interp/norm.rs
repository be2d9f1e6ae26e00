//! Evaluation of the norms. Sums over a row have the order of a dot product.

use super::*;

/// Applies `f(row, out)` to each row of operand 0, whose last dim is H.
fn per_row(cx: &EvalCx, h: usize, f: impl Fn(&[f32], &mut [f32]) + Sync) -> Result<Vec<Datum>, EvalError> {
    let (x, shape) = cx.floats(0)?;
    let m = x.len().checked_div(h).unwrap_or(0);
    let y = par::rows(m, h, 4 * h, |r, out| f(&x[r * h..(r + 1) * h], out));
    Ok(vec![cx.float_result(0, shape.to_vec(), y)])
}

fn last(cx: &EvalCx) -> Result<usize, EvalError> {
    cx.floats(0)?.1.last().copied().ok_or_else(|| cx.bad(0, "at least 1 dim"))
}

/// `rms_norm`.
pub fn rms_norm(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    let h = last(cx)?;
    let w = cx.floats_of(1, &[h])?;
    let eps = cx.attrs.float("eps") as f32;
    per_row(cx, h, |x, out| {
        let scale = 1.0 / (simd::dot(x, x) / h as f32 + eps).sqrt();
        for (y, (x, w)) in out.iter_mut().zip(x.iter().zip(&*w)) {
            *y = x * scale * w;
        }
    })
}

/// `layer_norm`.
pub fn layer_norm(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    let h = last(cx)?;
    let (w, b) = (cx.floats_of(1, &[h])?, cx.floats_of(2, &[h])?);
    let eps = cx.attrs.float("eps") as f32;
    per_row(cx, h, |x, out| {
        let mean = simd::sum(x) / h as f32;
        out.iter_mut().zip(x).for_each(|(y, x)| *y = x - mean);
        let scale = 1.0 / (simd::dot(out, out) / h as f32 + eps).sqrt();
        for (y, (w, b)) in out.iter_mut().zip(w.iter().zip(&*b)) {
            *y = *y * scale * w + b;
        }
    })
}

#[cfg(test)]
mod tests {
    use crate::interp::testing::*;

    #[test]
    fn rms_norm_by_hand() {
        let (x, w) = (f32s(&[2, 2], &[3.0, 4.0, 0.0, 0.0]), bf16s(&[2], &[1.0, 2.0]));
        let y = Eval::new(OpKind::RmsNorm).attrs([("eps", Attr::Float(0.0))]).on([x.clone(), w.clone()]).values();
        close(&y[..2], &[3.0 / 12.5f32.sqrt(), 8.0 / 12.5f32.sqrt()], 1e-6);
        assert!(y[2].is_nan(), "0 * rsqrt(0)");
        let y = Eval::new(OpKind::RmsNorm).on([x, w]).values();
        assert_eq!(y[2..], [0.0, 0.0]);
    }

    #[test]
    fn rms_norm_multiplies_by_the_weight_before_its_one_rounding() {
        let (x, w) = (bf16s(&[1, 2], &[1.0, 3.0]), bf16s(&[2], &[1.0, 1.5]));
        let exact = Eval::new(OpKind::RmsNorm).on([x.clone(), w.clone()]).values();
        let typed = Eval::new(OpKind::RmsNorm).rounding(Rounding::Typed).on([x, w]).values();
        let rounded: Vec<f32> = exact.iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect();
        assert_eq!(typed, rounded);
    }

    #[test]
    fn layer_norm_by_hand() {
        let args = [
            f32s(&[1, 4], &[1.0, 2.0, 3.0, 4.0]),
            f32s(&[4], &[1.0, 1.0, 2.0, 1.0]),
            f32s(&[4], &[0.0, 1.0, 0.0, 0.0]),
        ];
        let y = Eval::new(OpKind::LayerNorm).attrs([("eps", Attr::Float(0.0))]).on(args).values();
        let s = 1.25f32.sqrt();
        close(&y, &[-1.5 / s, -0.5 / s + 1.0, 1.0 / s, 1.5 / s], 1e-6);
    }

    #[test]
    fn rows_are_independent_of_batch_and_threads() {
        let (m, h) = (64, 2880);
        let (x, w) = (noise(m * h, 1), f32s(&[h], &noise(h, 2)));
        let all = same_on_any_pool(|| Eval::new(OpKind::RmsNorm).on([f32s(&[m, h], &x), w.clone()]).values());
        let alone = Eval::new(OpKind::RmsNorm).on([f32s(&[1, h], &x[5 * h..6 * h]), w]).values();
        assert_eq!(bits(&alone), bits(&all[5 * h..6 * h]));
    }

    #[test]
    fn no_rows() {
        assert!(Eval::new(OpKind::RmsNorm).on([f32s(&[0, 4], &[]), f32s(&[4], &[1.0; 4])]).values().is_empty());
    }
}
