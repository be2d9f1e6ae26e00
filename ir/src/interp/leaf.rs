//! Evaluation of constants; parameters, weights and calls are bound by [`run_func`](super::run_func).

use super::tensor::round_all;
use super::*;

/// `const`.
pub fn constant(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    let shape = cx.sizes_of(cx.attrs.dims("dims"))?;
    let n = shape.iter().product();
    let (value, dtype) = (cx.attrs.float("value"), cx.dtype(0));
    let tensor = match dtype {
        DType::I32 => Tensor::raw_i32(shape, vec![value as i32; n]),
        DType::U8 => Tensor::raw_u8(dtype, shape, vec![value as u8; n]),
        DType::Bool => Tensor::raw_u8(dtype, shape, vec![u8::from(value != 0.0); n]),
        _ => {
            let mut one = [value as f32];
            if cx.rounding == Rounding::Typed {
                round_all(dtype, &mut one);
            }
            Tensor::raw(dtype, shape, vec![one[0]; n])
        }
    };
    Ok(vec![tensor.into()])
}

/// `iota`.
pub fn iota(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    let shape = cx.sizes_of(cx.attrs.dims("dims"))?;
    let n = shape.iter().product::<usize>();
    let top = i32::try_from(n).map_err(|_| EvalError::Size { op: cx.op(), dims: dims_text(&shape) })?;
    Ok(vec![Tensor::raw_i32(vec![n], (0..top).collect()).into()])
}

/// `param`, `weight` and `call`.
pub fn unreachable_leaf(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    Err(EvalError::Leaf { op: cx.op() })
}

#[cfg(test)]
mod tests {
    use crate::interp::testing::*;

    #[test]
    fn constants_have_one_value_of_their_type() {
        let one = |dtype, rounding| {
            let attrs = [("dims", dims(&[2])), ("dtype", Attr::DType(dtype)), ("value", Attr::Float(-1.7))];
            Eval::new(OpKind::Const).attrs(attrs).rounding(rounding).tensor().to_f32().to_vec()
        };
        assert_eq!(one(DType::F32, Rounding::Typed), [-1.7, -1.7]);
        assert_eq!(one(DType::BF16, Rounding::Exact), [-1.7, -1.7]);
        assert_eq!(one(DType::BF16, Rounding::Typed), [-1.703125; 2]);
        assert_eq!(one(DType::I32, Rounding::Typed), [-1.0; 2]);
        assert_eq!(one(DType::Bool, Rounding::Typed), [1.0; 2]);
        assert_eq!(one(DType::U8, Rounding::Typed), [0.0; 2]);
    }

    #[test]
    fn scalars_and_counting() {
        let attrs = [("dims", dims(&[])), ("value", Attr::Float(3.0))];
        let t = Eval::new(OpKind::Const).attrs(attrs).tensor();
        assert_eq!((t.shape.len(), t.to_f32()[0]), (0, 3.0));
        let t = Eval::new(OpKind::Iota).attrs([("dims", dims(&[3]))]).tensor();
        assert_eq!(t.as_i32().unwrap(), [0, 1, 2]);
        let symbolic = [("dims", Attr::Dims(vec![Dim::sym("T")]))];
        let e = Eval::new(OpKind::Iota).attrs(symbolic).error();
        assert_eq!(e.to_string(), "iota: symbol `T` has no value; bind it before running");
    }
}
