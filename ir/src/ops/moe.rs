//! The gated activation and the weighted sum of experts.

use crate::attr::AttrKind;
use crate::dim::Dim;
use crate::interp::moe as eval;
use crate::op::{Class, Default, OpInfo, attr, one};

/// `swiglu`: GPT-OSS's clamped gated activation.
pub static SWIGLU: OpInfo = OpInfo {
    name: "swiglu",
    class: Class::Composite,
    summary: "Clamped gated activation of GPT-OSS",
    doc: "`g = min(gate, limit)`, `u = clamp(up, -limit, limit)`, `y = g * sigmoid(alpha * g) * (u + 1)`, in f32, rounded once. \
          `interleaved`: gate and up are even and odd elements; `halves`: first and second half.",
    operands: &[one("x", "float [.., 2 * I]")],
    attrs: &[
        attr("alpha", AttrKind::Float, Default::Float(1.702), "steepness of the sigmoid"),
        attr(
            "layout",
            AttrKind::OneOf(&["interleaved", "halves"]),
            Default::Word("interleaved"),
            "where gate and up are",
        ),
        attr("limit", AttrKind::Float, Default::Float(7.0), "clamp; gate only from above"),
    ],
    results: &["y"],
    infer: |cx| {
        let x = cx.float(0)?;
        let half = x.dims.last().and_then(|d| d.as_const()).filter(|n| n % 2 == 0).map(|n| n / 2);
        let Some(half) = half else {
            return Err(format!("operand 0 is {x}, expected an even constant last dim"));
        };
        let mut dims = x.dims.clone();
        if let Some(last) = dims.last_mut() {
            *last = Dim::from(half);
        }
        Ok(vec![x.with_dims(dims).into()])
    },
    eval: eval::swiglu,
    tolerance: 1e-2,
    decomposition: Some(include_str!("../decomp/swiglu.gir")),
};

/// `moe_combine`: weighted sum over the chosen experts.
pub static MOE_COMBINE: OpInfo = OpInfo {
    name: "moe_combine",
    class: Class::Composite,
    summary: "Weighted sum over the chosen experts",
    doc: "`y[t, n] = sum_j w[t, j] * x[t, j, n]`, in f32 in the order of j, rounded once to x's dtype.",
    operands: &[one("x", "float [T, J, N]"), one("w", "float [T, J]")],
    attrs: &[],
    results: &["y"],
    infer: |cx| {
        let (x, w) = (cx.float_rank(0, 3)?, cx.float_rank(1, 2)?);
        match x.dims[..2] == w.dims[..] {
            true => Ok(vec![x.with_dims([x.dims[0].clone(), x.dims[2].clone()]).into()]),
            false => Err(format!("operands are {x} and {w}, expected equal first two dims")),
        }
    },
    eval: eval::moe_combine,
    tolerance: 1e-2,
    decomposition: Some(include_str!("../decomp/moe_combine.gir")),
};
