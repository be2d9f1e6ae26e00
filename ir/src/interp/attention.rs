//! Evaluation of the `attention` ops.
use super::*;
/// `attention`.
pub fn attention(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    Err(EvalError::Leaf { op: cx.kind.name() })
}
/// `kv_write`.
pub fn kv_write(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    Err(EvalError::Leaf { op: cx.kind.name() })
}
/// `rope`.
pub fn rope(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    Err(EvalError::Leaf { op: cx.kind.name() })
}
/// `rope_table`.
pub fn rope_table(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    Err(EvalError::Leaf { op: cx.kind.name() })
}
