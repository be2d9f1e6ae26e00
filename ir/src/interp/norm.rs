//! Evaluation of the `norm` ops.
use super::*;
/// `layer_norm`.
pub fn layer_norm(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    Err(EvalError::Leaf { op: cx.kind.name() })
}
/// `rms_norm`.
pub fn rms_norm(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    Err(EvalError::Leaf { op: cx.kind.name() })
}
