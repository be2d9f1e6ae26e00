//! Evaluation of dequantisation and relayout.

use super::*;

/// `dequant`. The result keeps its packed storage, which every consumer decodes exactly; nothing is rounded, since bf16 and f32 hold every value.
pub fn dequant(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    let x = cx.tensor(0)?;
    match x.data {
        Data::Mxfp4 { .. } => Ok(vec![Tensor { dtype: cx.dtype(0), ..x.clone() }.into()]),
        _ => Err(cx.bad(0, "mxfp4")),
    }
}

/// `relayout`. The interpreter keeps every tensor row-major.
pub fn relayout(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    Ok(vec![cx.tensor(0)?.clone().into()])
}

#[cfg(test)]
mod tests {
    use crate::interp::testing::*;

    #[test]
    fn dequant_is_lazy_and_exact() {
        let x = Tensor::mxfp4(&[1, 32], vec![0xF7; 16], vec![130]).unwrap();
        let y = Eval::new(OpKind::Dequant).rounding(Rounding::Typed).on([x.clone()]).tensor();
        assert!(matches!(y.data, Data::Mxfp4 { .. }) && y.dtype == DType::BF16);
        assert_eq!(y.to_f32()[..2], [48.0, -48.0]);
        let z =
            Eval::new(OpKind::Cast).attrs([("to", Attr::DType(DType::F32))]).rounding(Rounding::Typed).on([y]).tensor();
        assert_eq!((z.dtype, z.to_f32()[1]), (DType::F32, -48.0));
        let r = Eval::new(OpKind::Relayout).attrs([("layout", Attr::from("sm90.tile"))]).on([x.clone()]).tensor();
        assert_eq!(r.to_f32(), x.to_f32());
    }
}
