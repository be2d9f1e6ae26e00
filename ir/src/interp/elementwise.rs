//! Evaluation of the `elementwise` ops.
use super::*;
/// `abs`.
pub fn abs(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    Err(EvalError::Leaf { op: cx.kind.name() })
}
/// `add`.
pub fn add(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    Err(EvalError::Leaf { op: cx.kind.name() })
}
/// `cast`.
pub fn cast(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    Err(EvalError::Leaf { op: cx.kind.name() })
}
/// `clamp`.
pub fn clamp(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    Err(EvalError::Leaf { op: cx.kind.name() })
}
/// `cmp`.
pub fn cmp(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    Err(EvalError::Leaf { op: cx.kind.name() })
}
/// `div`.
pub fn div(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    Err(EvalError::Leaf { op: cx.kind.name() })
}
/// `exp`.
pub fn exp(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    Err(EvalError::Leaf { op: cx.kind.name() })
}
/// `gelu`.
pub fn gelu(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    Err(EvalError::Leaf { op: cx.kind.name() })
}
/// `log`.
pub fn log(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    Err(EvalError::Leaf { op: cx.kind.name() })
}
/// `max`.
pub fn max(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    Err(EvalError::Leaf { op: cx.kind.name() })
}
/// `min`.
pub fn min(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    Err(EvalError::Leaf { op: cx.kind.name() })
}
/// `mul`.
pub fn mul(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    Err(EvalError::Leaf { op: cx.kind.name() })
}
/// `neg`.
pub fn neg(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    Err(EvalError::Leaf { op: cx.kind.name() })
}
/// `rsqrt`.
pub fn rsqrt(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    Err(EvalError::Leaf { op: cx.kind.name() })
}
/// `select`.
pub fn select(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    Err(EvalError::Leaf { op: cx.kind.name() })
}
/// `sigmoid`.
pub fn sigmoid(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    Err(EvalError::Leaf { op: cx.kind.name() })
}
/// `silu`.
pub fn silu(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    Err(EvalError::Leaf { op: cx.kind.name() })
}
/// `sqrt`.
pub fn sqrt(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    Err(EvalError::Leaf { op: cx.kind.name() })
}
/// `sub`.
pub fn sub(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    Err(EvalError::Leaf { op: cx.kind.name() })
}
/// `tanh`.
pub fn tanh(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    Err(EvalError::Leaf { op: cx.kind.name() })
}
