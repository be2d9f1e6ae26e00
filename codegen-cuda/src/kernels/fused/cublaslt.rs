//! `cublaslt`: matmul of many rows by NVIDIA's library. No kernel of ours, and nothing fused.
//!
//! The library chooses another algorithm for another number of rows, so a row's bits depend on how many rows there are. That is why the rule that
//! makes these kernels has to be asked for.

use gossamer_ir::{DType, OpKind};

use super::super::region::{malformed, unsupported};
use super::super::{Cx, operand, result};
use super::{Body, Origin};
use crate::lower::{Arg, GEMM_WORKSPACE, Gemm, LowerError, Lowered};

/// Lowers a kernel of template `cublaslt`.
pub fn lower(cx: &Cx, body: &Body) -> Result<Lowered, LowerError> {
    let main = body.kernel.main();
    let product = body.heavy()?;
    let op = main.graph.op(product.op);
    let (OpKind::MatMul, [x, w]) = (op.kind, op.operands.as_slice()) else {
        return Err(malformed("template `cublaslt` holds a matmul"));
    };
    let (Origin::Operand(x), Origin::Operand(w)) = (body.main_value(*x), body.main_value(*w)) else {
        return Err(unsupported("computed operands", "operands in memory"));
    };
    if body.kernel.epilogue().is_some() || main.results != [product] {
        return Err(unsupported("anything after the matmul", "its product alone"));
    }
    let (xt, wt, yt) = (cx.plain(x)?, cx.plain(w)?, cx.result(0)?);
    let (input, output) = (xt.dtype, yt.dtype);
    if wt.dtype != input || !matches!(input, DType::BF16 | DType::F16) || ![DType::F32, input].contains(&output) {
        let what = format!("{xt} times {wt} to {output}");
        return Err(unsupported(what, "bf16 or f16 on both sides, and the same or f32 out"));
    }
    let (xs, ws) = (cx.values(xt)?, cx.values(wt)?);
    let (&[ref outer @ .., k], &[n, _]) = (xs.as_slice(), ws.as_slice()) else {
        return Err(unsupported(format!("{xt} times {wt}"), "[.., K] times [N, K]"));
    };
    let m = outer.iter().product::<i64>();
    if m == 0 || n == 0 {
        return Ok(Lowered::default());
    }
    // Leading dimensions of the library's matrices are positive.
    if k == 0 {
        return Err(unsupported(format!("{xt} times {wt}"), "sums of at least one term"));
    }
    let gemm = Gemm {
        m: m as u64,
        n: n as u64,
        k: k as u64,
        input,
        output,
        x: operand(x),
        w: operand(w),
        y: result(0),
        workspace: Arg::Scratch(0),
    };
    Ok(Lowered { library: Some(gemm), scratch: vec![GEMM_WORKSPACE], ..Lowered::default() })
}
