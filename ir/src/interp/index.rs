//! Evaluation of the `index` ops.
use super::*;
/// `gather_rows`.
pub fn gather_rows(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    Err(EvalError::Leaf { op: cx.kind.name() })
}
