//! Evaluation of the `moe` ops.
use super::*;
/// `moe_combine`.
pub fn moe_combine(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    Err(EvalError::Leaf { op: cx.kind.name() })
}
/// `swiglu`.
pub fn swiglu(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    Err(EvalError::Leaf { op: cx.kind.name() })
}
