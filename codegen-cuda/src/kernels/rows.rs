//! Ops on whole rows of the last axis: norms, softmax, log of the sum of exponentials, argmax. One block a row, in a fixed order.

use gossamer_ir::OpKind;

use super::{Cx, operand, product, result, rows_of, single};
use crate::emit::{Piece, Text, c_type, f32_literal};
use crate::lower::{Arg, LowerError, Lowered};

/// Threads that share a row of `n` elements. They decide the order of a sum: whatever reduces such a row elsewhere must have as many partial
/// sums. Short rows leave most of a large block idle; the choice must not depend on symbols.
pub(super) fn threads(n: Option<i64>) -> u32 {
    match n {
        Some(n) if n <= 1024 => 128,
        Some(n) if n > 16384 => 1024,
        _ => 256,
    }
}

/// Lowers `rms_norm`, `layer_norm`, `softmax`, `logsumexp`, `argmax` and `token_logprob`.
pub fn lower(cx: &Cx) -> Result<Lowered, LowerError> {
    let x = cx.plain(0)?;
    let y = cx.result(0)?;
    let shape = cx.values(x)?;
    let Some((&n, lead)) = shape.split_last() else {
        return Err(cx.malformed(format!("operand 0 is {x}, expected at least 1 dim")));
    };
    let rows = product(lead);
    if product(&cx.values(y)?) == 0 {
        return Ok(Lowered::default());
    }
    if n == 0 || n > i64::from(i32::MAX) {
        return Err(cx.unsupported(format!("rows of {n} elements"), "rows of 1 to 2^31 - 1 elements"));
    }
    let threads = threads(x.dims.last().and_then(|d| d.as_const()));
    let body = match cx.op.kind {
        OpKind::RmsNorm => include_str!("cuda/rms_norm.cu"),
        OpKind::LayerNorm => include_str!("cuda/layer_norm.cu"),
        OpKind::Softmax => include_str!("cuda/softmax.cu"),
        OpKind::ArgMax => include_str!("cuda/argmax.cu"),
        _ => include_str!("cuda/logsumexp.cu"),
    };
    let mut operands = vec![rows_of(x.dtype, "N")];
    let mut name = format!("{}_{}", cx.name(), x.dtype);
    for i in 1..cx.operand_count() {
        let t = cx.plain(i)?;
        operands.push(format!("{}[{}]", t.dtype, if cx.op.kind == OpKind::TokenLogprob { ".." } else { "N" }));
        name.push_str(&format!("_{}", t.dtype));
    }
    let kept = y.rank() == x.rank();
    let ir = cx.ir(&operands, &[if kept { rows_of(y.dtype, "N") } else { format!("{}[..]", y.dtype) }]);
    let mut text = Text::new(name, ir, body)
        .with(Piece::Reduce)
        .set("threads", threads)
        .set("warps", threads / 32)
        .set("x_type", c_type(x.dtype))
        .set("y_type", c_type(y.dtype))
        .set("tokens", "");
    if cx.op.kind == OpKind::ArgMax && cx.operand_count() > 1 {
        return argmax_by_tile(cx, rows, n);
    }
    let mut args: Vec<Arg> = (0..cx.operand_count()).map(operand).collect();
    args.extend([result(0), Arg::I64(n)]);
    match cx.op.kind {
        OpKind::RmsNorm | OpKind::LayerNorm => {
            text = text.set("eps", f32_literal(cx.op.attrs.float("eps"))).set("w_type", c_type(cx.plain(1)?.dtype));
            if cx.op.kind == OpKind::LayerNorm {
                text = text.set("b_type", c_type(cx.plain(2)?.dtype));
            }
        }
        OpKind::LogSumExp => {
            text = text.set("finish", format!("y[blockIdx.x] = from_f32<{}>(most + logf(sum));", c_type(y.dtype)));
        }
        OpKind::TokenLogprob => {
            let finish = "const i64 token = tokens[blockIdx.x];\n\
                          const bool known = token >= 0 && token < n;\n\
                          y[blockIdx.x] = known ? x[token] - (most + logf(sum)) : __uint_as_float(0xff800000u);";
            text = text.set("tokens", "const i32* __restrict__ tokens, ").set("finish", finish);
        }
        OpKind::ArgMax => text = text.with(Piece::Order),
        _ => {}
    }
    Ok(single(cx.launch(text.build(), rows, threads, args)?))
}

/// `argmax` with the maxima of tiles.
fn argmax_by_tile(cx: &Cx, rows: i64, n: i64) -> Result<Lowered, LowerError> {
    let (x, tile) = (cx.plain(0)?.dtype, cx.op.attrs.int("tile"));
    let ir = cx.ir(&[rows_of(x, "N"), rows_of(x, "tiles")], &["i32[..]".into()]);
    let text = Text::new(format!("argmax_{x}_t{tile}"), ir, include_str!("cuda/argmax_tiles.cu"))
        .with(Piece::Reduce)
        .with(Piece::Order)
        .with(Piece::Dependent)
        .with(Piece::Tiles)
        .set("tile", tile)
        .set("x_type", c_type(x));
    let args = vec![operand(0), operand(1), result(0), Arg::I64(n)];
    let mut launch = cx.launch(text.build(), rows, 256, args)?;
    launch.dependent = true;
    Ok(single(launch))
}
