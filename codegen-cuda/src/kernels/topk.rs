//! `topk`: by rank for short rows, by radix selection for long ones.

use super::{Cx, operand, product, result, rows_of, single};
use crate::emit::{Piece, Text, c_type};
use crate::lower::{Arg, LowerError, Lowered};

/// Rows up to this long are ranked whole in shared memory.
const RANKED: i64 = 1024;
/// Greatest k: that many keys are sorted in shared memory.
const MAX_K: i64 = 2048;

/// Lowers `topk`.
pub fn lower(cx: &Cx) -> Result<Lowered, LowerError> {
    let x = cx.plain(0)?;
    let shape = cx.values(x)?;
    let Some((&n, lead)) = shape.split_last() else {
        return Err(cx.malformed(format!("operand 0 is {x}, expected at least 1 dim")));
    };
    let (rows, k) = (product(lead), cx.op.attrs.int("k"));
    if rows == 0 {
        return Ok(Lowered::default());
    }
    if k < 1 || k > n {
        return Err(cx.malformed(format!("k is {k}, expected 1 to {n}")));
    }
    if k > MAX_K || n > i64::from(i32::MAX) {
        return Err(cx.unsupported(format!("k = {k} of {n}"), format!("k up to {MAX_K} of rows below 2^31")));
    }
    let ir = cx.ir(&[rows_of(x.dtype, n)], &[rows_of(x.dtype, k), rows_of(gossamer_ir::DType::I32, k)]);
    let args = vec![operand(0), result(0), result(1), Arg::I64(n)];
    let (body, threads) = match n <= RANKED {
        true => (include_str!("cuda/topk_rank.cu"), (n as u32).next_multiple_of(32).min(256)),
        false => (include_str!("cuda/topk_radix.cu"), 1024),
    };
    let text = Text::new(format!("topk_{}_n{n}_k{k}", x.dtype), ir, body)
        .with(Piece::Order)
        .with(Piece::Select)
        .set("type", c_type(x.dtype))
        .set("k", k)
        .set("threads", threads)
        .set("capacity", n.min(RANKED));
    Ok(single(cx.launch(text.build(), rows, threads, args)?))
}
