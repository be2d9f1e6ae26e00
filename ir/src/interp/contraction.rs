//! Evaluation of contractions: one threaded kernel for dense, batched and expert matmuls, for one row as for many.
//!
//! Weights are decoded to f32 a panel of rows at a time and each panel is multiplied with all rows of x that need it, so a packed weight is
//! decoded once a step, and an expert's weight only if the expert was chosen. Each element is one dot product in the order of `simd`, whatever
//! the number of rows: prefill, chunks of it and decoding give the same bits.

use rayon::prelude::*;

use super::tensor::WeightRows;
use super::*;

/// Rows of x that are multiplied by the same `n` rows of w.
struct Group {
    /// Row numbers in x.
    x_rows: Vec<u32>,
    /// Row numbers in y, one per row of x.
    y_rows: Vec<u32>,
    /// First row of w.
    w_row: usize,
}

/// f32 elements of a decoded weight panel: with its rows of x it stays in the second-level cache.
const PANEL: usize = 1 << 14;
/// Weight rows decoded at a time for few rows of x, so that they are still in the first-level cache when they are used.
const STRIP: usize = 4;

/// `y[y_rows[i], c] = x[x_rows[i]] . w[w_row + c]` for each group; rows of y that no group names are 0.
fn grouped(x: &[f32], k: usize, w: WeightRows, n: usize, y_len: usize, groups: &[Group]) -> Vec<f32> {
    let mut y = vec![0.0; y_len * n];
    let pairs: usize = groups.iter().map(|g| g.x_rows.len()).sum();
    if pairs == 0 || n == 0 || k == 0 {
        return y;
    }
    // Results of a group are made transposed, [n, rows], so that a panel of w owns one contiguous part.
    let mut made = vec![0.0; pairs * n];
    let height = (PANEL / k / 4 * 4).clamp(4, 64);
    let mut parts = Vec::with_capacity(groups.len() * n.div_ceil(height));
    let mut left = made.as_mut_slice();
    for group in groups.iter().filter(|g| !g.x_rows.is_empty()) {
        let m = group.x_rows.len();
        let (mine, rest) = left.split_at_mut(m * n);
        left = rest;
        parts.extend(mine.chunks_mut(m * height).enumerate().map(|(i, out)| (group, group.w_row + i * height, out)));
    }
    let multiply = |panel: &mut Vec<f32>, (group, row, out): (&Group, usize, &mut [f32])| {
        let m = group.x_rows.len();
        if let WeightRows::F32(v) = w {
            return simd::dot_panel(x, &group.x_rows, &v[row * k..row * k + out.len() / m * k], k, out);
        }
        let strip = if m <= STRIP { STRIP } else { height };
        for (i, out) in out.chunks_mut(m * strip).enumerate() {
            panel.resize(out.len() / m * k, 0.0);
            w.decode_many(row + i * strip, k, panel);
            simd::dot_panel(x, &group.x_rows, panel, k, out);
        }
    };
    if pairs * n * k <= par::SERIAL {
        let mut panel = Vec::new();
        parts.into_iter().for_each(|p| multiply(&mut panel, p));
    } else {
        parts.into_par_iter().for_each_init(Vec::new, multiply);
    }
    if let [Group { y_rows, .. }] = groups
        && y_rows.len() == 1
        && y_len == 1
    {
        return made;
    }
    scatter(&made, n, groups, &mut y);
    y
}

/// Copies the transposed results of each group to their rows of y.
fn scatter(made: &[f32], n: usize, groups: &[Group], y: &mut [f32]) {
    // For each row of y: where its group's results start, the group's rows, and which of them it is.
    let mut source = vec![None; y.len() / n];
    let mut start = 0;
    for group in groups {
        let m = group.y_rows.len();
        for (i, row) in group.y_rows.iter().enumerate() {
            source[*row as usize] = Some((start + i, m));
        }
        start += m * n;
    }
    // A few rows at a time, so that the elements of a column are read together.
    const ROWS: usize = 16;
    y.par_chunks_mut(ROWS * n).zip(source.par_chunks(ROWS)).with_min_len(4).for_each(|(rows, source)| {
        for c in 0..n {
            for (row, from) in rows.chunks_mut(n).zip(source) {
                if let Some((at, m)) = from {
                    row[c] = made[at + c * m];
                }
            }
        }
    });
}

/// Rows as u32, or an error for a tensor no step has.
fn numbers(cx: &EvalCx, range: std::ops::Range<usize>) -> Result<Vec<u32>, EvalError> {
    match (u32::try_from(range.start), u32::try_from(range.end)) {
        (Ok(a), Ok(b)) => Ok((a..b).collect()),
        _ => Err(cx.bad(0, "at most 2^32 rows")),
    }
}

/// Operand `i` as a float weight tensor of `rank` dims.
fn weight<'a>(cx: &EvalCx<'a>, i: usize, rank: usize) -> Result<&'a Tensor, EvalError> {
    let w = cx.tensor(i)?;
    match w.dtype.is_float() && w.shape.len() == rank {
        true => Ok(w),
        false => Err(cx.bad(i, format!("floats of {rank} dims"))),
    }
}

/// `matmul`.
pub fn matmul(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    let (x, shape) = cx.floats(0)?;
    let w = weight(cx, 1, 2)?;
    let Some((k, rest)) = shape.split_last().filter(|(k, _)| **k == w.shape[1]) else {
        return Err(cx.bad(0, format!("rows of {}", w.shape[1])));
    };
    let (m, n) = (rest.iter().product(), w.shape[0]);
    let group = Group { x_rows: numbers(cx, 0..m)?, y_rows: numbers(cx, 0..m)?, w_row: 0 };
    let y = grouped(&x, *k, w.weight_rows(), n, m, &[group]);
    let dims = rest.iter().copied().chain([n]).collect();
    Ok(vec![cx.float_result(0, dims, y)])
}

/// `bmm`.
pub fn bmm(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    let (x, shape) = cx.floats(0)?;
    let w = weight(cx, 1, 3)?;
    let ([b, m, k], [b2, n, k2]) = (shape, w.shape.as_slice()) else {
        return Err(cx.bad(0, "3 dims"));
    };
    if b != b2 || k != k2 {
        return Err(cx.bad(0, format!("batch {b2} and rows of {k2}")));
    }
    let mut groups = Vec::with_capacity(*b);
    for i in 0..*b {
        let rows = numbers(cx, i * m..(i + 1) * m)?;
        groups.push(Group { x_rows: rows.clone(), y_rows: rows, w_row: i * n });
    }
    let y = grouped(&x, *k, w.weight_rows(), *n, b * m, &groups);
    Ok(vec![cx.float_result(0, vec![*b, *m, *n], y)])
}

/// `moe_matmul`.
pub fn moe_matmul(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    let (x, shape) = cx.floats(0)?;
    let w = weight(cx, 1, 3)?;
    let (ids, ids_shape) = cx.ints(2)?;
    let ([experts, n, k], [t, j]) = (w.shape.as_slice(), ids_shape) else {
        return Err(cx.bad(2, "ids [T, J] for weights [E, N, K]"));
    };
    let shared = shape.len() == 2;
    if shape != [*t, *k] && shape != [*t, *j, *k] {
        return Err(cx.bad(0, format!("[{t}, {k}] or [{t}, {j}, {k}]")));
    }
    numbers(cx, 0..t * j)?;
    let mut groups: Vec<Group> =
        (0..*experts).map(|e| Group { x_rows: vec![], y_rows: vec![], w_row: e * n }).collect();
    for (row, id) in ids.iter().enumerate() {
        if let Some(group) = usize::try_from(*id).ok().and_then(|id| groups.get_mut(id)) {
            group.x_rows.push(if shared { row / j } else { row } as u32);
            group.y_rows.push(row as u32);
        }
    }
    let y = grouped(&x, *k, w.weight_rows(), *n, t * j, &groups);
    Ok(vec![cx.float_result(0, vec![*t, *j, *n], y)])
}

#[cfg(test)]
mod tests {
    use crate::interp::testing::*;

    fn naive(x: &[f32], w: &[f32], k: usize) -> Vec<f32> {
        let dot =
            |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32;
        x.chunks(k).flat_map(|x| w.chunks(k).map(move |w| dot(x, w))).collect()
    }

    fn matmul(x: &[f32], w: Tensor, k: usize) -> Vec<f32> {
        Eval::new(OpKind::MatMul).on([f32s(&[x.len() / k, k], x), w]).values()
    }

    #[test]
    fn matmul_by_hand() {
        let y = matmul(&[1.0, 2.0, 3.0, 4.0], f32s(&[3, 2], &[1.0, 0.0, 0.0, 1.0, 1.0, 1.0]), 2);
        assert_eq!(y, [1.0, 2.0, 3.0, 3.0, 4.0, 7.0]);
        let vector = Eval::new(OpKind::MatMul).on([f32s(&[2], &[1.0, 2.0]), f32s(&[1, 2], &[3.0, 4.0])]).tensor();
        assert_eq!((vector.shape.as_slice(), vector.to_f32()[0]), ([1].as_slice(), 11.0));
        assert_eq!(matmul(&[], f32s(&[3, 2], &[0.0; 6]), 2).len(), 0);
        let none = Eval::new(OpKind::MatMul).on([f32s(&[2, 0], &[]), f32s(&[3, 0], &[])]).values();
        assert_eq!(none, [0.0; 6]);
    }

    #[test]
    fn storage_does_not_change_results() {
        let (m, n, k) = (5, 37, 96);
        let codes: Vec<u8> = (0..n * k / 2).map(|i| (i * 37 % 251) as u8).collect();
        let scales = (0..n * k / 32).map(|i| 120 + (i % 9) as u8).collect();
        let packed = Tensor::mxfp4(&[n, k], codes, scales).unwrap();
        let lazy = Tensor { dtype: DType::BF16, ..packed.clone() };
        let plain = f32s(&[n, k], &packed.to_f32());
        let x = noise(m * k, 5);
        let y = matmul(&x, lazy, k);
        assert_eq!(bits(&y), bits(&matmul(&x, plain.clone(), k)));
        assert_eq!(bits(&y), bits(&matmul(&x, bf16s(&[n, k], &plain.to_f32()), k)));
        close(&y, &naive(&x, &plain.to_f32(), k), 1e-4);
    }

    #[test]
    fn a_row_has_the_same_bits_in_any_batch_and_on_any_pool() {
        for (m, n, k) in [(9, 130, 384), (6, 257, 100), (70, 33, 2880)] {
            let (x, w) = (noise(m * k, 1), bf16s(&[n, k], &noise(n * k, 2)));
            let all = same_on_any_pool(|| matmul(&x, w.clone(), k));
            for r in 0..m {
                assert_eq!(bits(&matmul(&x[r * k..(r + 1) * k], w.clone(), k)), bits(&all[r * n..(r + 1) * n]));
            }
            let chunked: Vec<f32> = x.chunks(7 * k).flat_map(|x| matmul(x, w.clone(), k)).collect();
            assert_eq!(bits(&chunked), bits(&all));
        }
    }

    #[test]
    fn bmm_multiplies_each_pair() {
        let (b, m, n, k) = (3, 4, 5, 19);
        let (x, y) = (noise(b * m * k, 1), noise(b * n * k, 2));
        let z = Eval::new(OpKind::BatchMatMul).on([f32s(&[b, m, k], &x), f32s(&[b, n, k], &y)]).values();
        let want: Vec<f32> =
            (0..b).flat_map(|i| naive(&x[i * m * k..][..m * k], &y[i * n * k..][..n * k], k)).collect();
        close(&z, &want, 1e-5);
    }

    #[test]
    fn experts_see_their_own_rows() {
        let (t, j, e, n, k) = (6, 2, 4, 40, 64);
        let w = bf16s(&[e, n, k], &noise(e * n * k, 3));
        let plain = w.to_f32().into_owned();
        let ids = [0, 3, 3, 1, -1, 4, 2, 2, 1, 0, i32::MAX, 3];
        let (flat, deep) = (noise(t * k, 4), noise(t * j * k, 5));
        let run = |x: Tensor, ids: &[i32]| {
            Eval::new(OpKind::MoeMatMul).on([x, w.clone(), i32s(&[ids.len() / j, j], ids)]).values()
        };
        let (a, b) = (run(f32s(&[t, k], &flat), &ids), run(f32s(&[t, j, k], &deep), &ids));
        for (row, id) in ids.iter().enumerate() {
            let (got_a, got_b) = (&a[row * n..(row + 1) * n], &b[row * n..(row + 1) * n]);
            if !(0..e as i32).contains(id) {
                assert!(got_a.iter().chain(got_b).all(|v| *v == 0.0));
                continue;
            }
            let w = &plain[*id as usize * n * k..][..n * k];
            close(got_a, &naive(&flat[row / j * k..][..k], w, k), 1e-5);
            close(got_b, &naive(&deep[row * k..][..k], w, k), 1e-5);
        }
        for token in 0..t {
            let alone = run(f32s(&[1, k], &flat[token * k..][..k]), &ids[token * j..][..j]);
            assert_eq!(bits(&alone), bits(&a[token * j * n..][..j * n]));
        }
        let all = same_on_any_pool(|| run(f32s(&[t, k], &flat), &ids));
        assert_eq!(bits(&all), bits(&a));
    }

    #[test]
    fn out_is_rounded_once() {
        let attrs = [("out", Attr::DType(DType::BF16))];
        let x = f32s(&[1, 2], &[256.0, 1.0]);
        let e = Eval::new(OpKind::MatMul).attrs(attrs).rounding(Rounding::Typed);
        assert_eq!(e.on([x, f32s(&[1, 2], &[1.0, 1.0])]).values(), [256.0]);
    }
}
