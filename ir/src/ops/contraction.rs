//! Contractions. Weights are `[N, K]`, one row an output, as in checkpoints; accumulation is f32 whatever the operands are.

use crate::attr::AttrKind;
use crate::dtype::DType;
use crate::interp::contraction as eval;
use crate::op::{AttrInfo, Class, Default, InferCx, OpInfo, attr, one, same};
use crate::ty::Type;

const OUT: &[AttrInfo] =
    &[attr("out", AttrKind::DType, Default::DType(DType::F32), "element type of the result: f32, bf16 or f16")];

fn out(cx: &InferCx) -> Result<DType, String> {
    cx.attrs.dtype("out").filter(|d| d.is_float()).ok_or_else(|| "out must be f32, bf16 or f16".into())
}

/// `matmul`: rows times the transpose of a weight.
pub static MATMUL: OpInfo = OpInfo {
    name: "matmul",
    class: Class::Contraction,
    summary: "Multiplies each row of x by the transpose of w",
    doc: "`y[.., n] = sum_k x[.., k] * w[n, k]`, accumulated in f32, rounded once to `out`.",
    operands: &[one("x", "float [.., K]"), one("w", "float [N, K]")],
    attrs: OUT,
    results: &["y"],
    infer: |cx| {
        let (x, w) = (cx.float(0)?, cx.float_rank(1, 2)?);
        let Some((k, rest)) = x.dims.split_last() else {
            return Err(format!("operand 0 is {x}, expected at least 1 dim"));
        };
        same(k, &w.dims[1], "inner dims of x and w")?;
        Ok(vec![Type::tensor(out(cx)?, rest.iter().cloned().chain([w.dims[0].clone()]))])
    },
    eval: eval::matmul,
    tolerance: 1e-2,
    decomposition: None,
};

/// `bmm`: batched matmul.
pub static BMM: OpInfo = OpInfo {
    name: "bmm",
    class: Class::Contraction,
    summary: "Multiplies matrices of a batch, the second transposed",
    doc: "`z[b, m, n] = sum_k x[b, m, k] * y[b, n, k]`, accumulated in f32, rounded once to `out`.",
    operands: &[one("x", "float [B, M, K]"), one("y", "float [B, N, K]")],
    attrs: OUT,
    results: &["z"],
    infer: |cx| {
        let (x, y) = (cx.float_rank(0, 3)?, cx.float_rank(1, 3)?);
        same(&x.dims[0], &y.dims[0], "batch dims of x and y")?;
        same(&x.dims[2], &y.dims[2], "inner dims of x and y")?;
        Ok(vec![Type::tensor(out(cx)?, [x.dims[0].clone(), x.dims[1].clone(), y.dims[1].clone()])])
    },
    eval: eval::bmm,
    tolerance: 1e-2,
    decomposition: None,
};

/// `moe_matmul`: each row times the weights of the experts chosen for it.
pub static MOE_MATMUL: OpInfo = OpInfo {
    name: "moe_matmul",
    class: Class::Contraction,
    summary: "Multiplies each row by the weights of the experts chosen for it",
    doc: "`y[t, j, n] = sum_k x[t, j, k] * w[ids[t, j], n, k]` (x of 2 dims: `x[t, k]` for every j), accumulated in f32, rounded once. \
          A row whose id is outside 0..E is 0.",
    operands: &[
        one("x", "float [T, K] or [T, J, K]"),
        one("w", "float [E, N, K]"),
        one("ids", "i32 [T, J]: chosen experts"),
    ],
    attrs: OUT,
    results: &["y"],
    infer: |cx| {
        let (x, w, ids) = (cx.float(0)?, cx.float_rank(1, 3)?, cx.index(2, 2)?);
        let fits = match x.rank() {
            2 => x.dims[0] == ids.dims[0],
            3 => x.dims[..2] == ids.dims[..],
            _ => false,
        };
        if !fits {
            return Err(format!("operand 0 is {x}, expected [T, K] or [T, J, K] for ids {ids}"));
        }
        same(&x.dims[x.rank() - 1], &w.dims[2], "inner dims of x and w")?;
        Ok(vec![Type::tensor(out(cx)?, [ids.dims[0].clone(), ids.dims[1].clone(), w.dims[1].clone()])])
    },
    eval: eval::moe_matmul,
    tolerance: 1e-2,
    decomposition: None,
};
