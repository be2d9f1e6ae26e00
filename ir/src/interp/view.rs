//! Evaluation of the `view` ops.
use super::*;
/// `broadcast`.
pub fn broadcast(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    Err(EvalError::Leaf { op: cx.kind.name() })
}
/// `concat`.
pub fn concat(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    Err(EvalError::Leaf { op: cx.kind.name() })
}
/// `permute`.
pub fn permute(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    Err(EvalError::Leaf { op: cx.kind.name() })
}
/// `reshape`.
pub fn reshape(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    Err(EvalError::Leaf { op: cx.kind.name() })
}
/// `slice`.
pub fn slice(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    Err(EvalError::Leaf { op: cx.kind.name() })
}
