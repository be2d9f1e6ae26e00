//! Evaluation of the `quant` ops.
use super::*;
/// `dequant`.
pub fn dequant(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    Err(EvalError::Leaf { op: cx.kind.name() })
}
/// `relayout`.
pub fn relayout(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    Err(EvalError::Leaf { op: cx.kind.name() })
}
