//! Evaluation of row gathering.

use std::sync::Arc;

use super::*;

/// Rows of `n` elements by index; zeros where there is no such row.
fn gather<T: Copy + Default>(x: &[T], rows: usize, n: usize, ids: &[i32]) -> Vec<T> {
    let mut out = vec![T::default(); ids.len() * n];
    for (row, id) in out.chunks_mut(n.max(1)).zip(ids) {
        if let Some(id) = usize::try_from(*id).ok().filter(|id| *id < rows) {
            row.copy_from_slice(&x[id * n..(id + 1) * n]);
        }
    }
    out
}

/// `gather_rows`.
pub fn gather_rows(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    let x = cx.tensor(0)?;
    let (ids, shape) = cx.ints(1)?;
    let Some((rows, rest)) = x.shape.split_first().filter(|_| x.dtype != DType::Mxfp4) else {
        return Err(cx.bad(0, "a tensor with rows"));
    };
    let (rows, n): (usize, usize) = (*rows, rest.iter().product());
    let dims: Vec<usize> = shape.iter().chain(rest).copied().collect();
    let data = match &x.data {
        Data::I32(v) => Data::I32(Arc::new(gather(v, rows, n, ids))),
        Data::U8(v) => Data::U8(Arc::new(gather(v, rows, n, ids))),
        Data::F32(v) => Data::F32(Arc::new(gather(v, rows, n, ids))),
        Data::BF16(v) => Data::BF16(Arc::new(gather(v, rows, n, ids))),
        Data::Mxfp4 { .. } => {
            let stored = x.weight_rows();
            let mut out = vec![0.0; ids.len() * n];
            if rest.is_empty() {
                // Rows of one element: the block they are in must be decoded whole.
                out = gather(&x.to_f32(), rows, 1, ids);
            } else {
                for (row, id) in out.chunks_mut(n.max(1)).zip(ids) {
                    if let Some(id) = usize::try_from(*id).ok().filter(|id| *id < rows) {
                        stored.decode(id, row);
                    }
                }
            }
            Data::F32(Arc::new(out))
        }
    };
    Ok(vec![Tensor { dtype: x.dtype, shape: dims, data }.into()])
}

#[cfg(test)]
mod tests {
    use crate::interp::testing::*;

    #[test]
    fn rows_by_index_and_zeros_outside() {
        let x = bf16s(&[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let y = Eval::new(OpKind::GatherRows).on([x, i32s(&[2, 2], &[2, -1, 3, 0])]).tensor();
        assert_eq!(y.shape, [2, 2, 2]);
        assert_eq!(y.to_f32().to_vec(), [5.0, 6.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0]);
        let y = Eval::new(OpKind::GatherRows).on([i32s(&[2], &[7, 8]), i32s(&[3], &[1, 5, i32::MIN])]).tensor();
        assert_eq!(y.as_i32().unwrap(), [8, 0, 0]);
        let y = Eval::new(OpKind::GatherRows).on([f32s(&[2, 0], &[]), i32s(&[1], &[1])]).values();
        assert!(y.is_empty());
    }

    #[test]
    fn dequantised_rows_are_decoded_alone() {
        let x = Tensor::mxfp4(&[2, 32], vec![0x21; 32], vec![127, 128]).unwrap();
        let lazy = Eval::new(OpKind::Dequant).on([x]).tensor();
        let y = Eval::new(OpKind::GatherRows).on([lazy.clone(), i32s(&[1], &[1])]).values();
        assert_eq!(y[..4], [1.0, 2.0, 1.0, 2.0]);
        let flat = Tensor { shape: vec![64], ..lazy };
        let y = Eval::new(OpKind::GatherRows).on([flat, i32s(&[3], &[33, 0, 64])]).values();
        assert_eq!(y, [2.0, 0.5, 0.0]);
    }
}
