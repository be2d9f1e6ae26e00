//! Normalisation over the last axis, in f32 with one rounding.

use crate::attr::AttrKind;
use crate::interp::norm as eval;
use crate::op::{AttrInfo, Class, Default, InferCx, OpInfo, attr, one, same};
use crate::ty::Type;

const EPS: &[AttrInfo] = &[attr("eps", AttrKind::Float, Default::Float(1e-5), "added to the mean square or variance")];

fn scaled(cx: &InferCx) -> Result<Vec<Type>, String> {
    let x = cx.float(0)?;
    let Some(h) = x.dims.last() else {
        return Err(format!("operand 0 is {x}, expected at least 1 dim"));
    };
    for i in 1..cx.operands.len() {
        same(&cx.float_rank(i, 1)?.dims[0], h, "last dim of x and size of the scale or bias")?;
    }
    Ok(vec![x.clone().into()])
}

/// `rms_norm`: root mean square normalisation.
pub static RMS_NORM: OpInfo = OpInfo {
    name: "rms_norm",
    class: Class::Composite,
    summary: "Root mean square normalisation",
    doc: "`x * rsqrt(mean(x^2) + eps) * w` in f32, rounded once to x's dtype (Zhang and Sennrich 2019, arXiv:1910.07467).",
    operands: &[one("x", "float [.., H]"), one("w", "float [H]")],
    attrs: EPS,
    results: &["y"],
    infer: scaled,
    eval: eval::rms_norm,
    tolerance: 1e-2,
    decomposition: Some(include_str!("../decomp/rms_norm.gir")),
};

/// `layer_norm`: mean and variance normalisation.
pub static LAYER_NORM: OpInfo = OpInfo {
    name: "layer_norm",
    class: Class::Composite,
    summary: "Mean and variance normalisation",
    doc: "`(x - mean(x)) * rsqrt(var(x) + eps) * w + b` in f32, rounded once to x's dtype (Ba et al. 2016, arXiv:1607.06450).",
    operands: &[one("x", "float [.., H]"), one("w", "float [H]"), one("b", "float [H]")],
    attrs: EPS,
    results: &["y"],
    infer: scaled,
    eval: eval::layer_norm,
    tolerance: 1e-2,
    decomposition: Some(include_str!("../decomp/layer_norm.gir")),
};
