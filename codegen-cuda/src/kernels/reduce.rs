//! `reduce` over any axis: a warp or block a row for the last axis, a thread a result for the others.

use super::{Cx, blocks, operand, product, result, single};
use crate::emit::{Piece, Text, c_type};
use crate::lower::{Arg, LowerError, Lowered};

/// Rows up to this long are reduced by one warp.
const WARP_ROW: i64 = 1024;

/// Lowers `tile_max`.
pub fn tile_max(cx: &Cx) -> Result<Lowered, LowerError> {
    let (x, y) = (cx.plain(0)?, cx.result(0)?);
    let shape = cx.values(x)?;
    let Some((&n, lead)) = shape.split_last() else {
        return Err(cx.malformed(format!("operand 0 is {x}, expected at least 1 dim")));
    };
    let (rows, results) = (product(lead), product(&cx.values(y)?));
    if results == 0 {
        return Ok(Lowered::default());
    }
    let tile = cx.op.attrs.int("tile");
    if tile > 1 << 20 {
        return Err(cx.unsupported(format!("tiles of {tile}"), "tiles of at most 2^20 elements"));
    }
    let ir = cx.ir(&[format!("{}[.., N]", x.dtype)], &[format!("{}[.., N / {tile}]", x.dtype)]);
    let kernel = Text::new(format!("tile_max_{}_{tile}", x.dtype), ir, include_str!("cuda/tile_max.cu"))
        .with(Piece::Reduce)
        .set("type", c_type(x.dtype))
        .set("tile", tile)
        .build();
    let args = vec![operand(0), result(0), Arg::I64(rows), Arg::I64(n), Arg::I64(results / rows)];
    Ok(single(cx.launch(kernel, blocks(results, 8), 256, args)?))
}

/// Lowers `reduce`.
pub fn lower(cx: &Cx) -> Result<Lowered, LowerError> {
    let x = cx.plain(0)?;
    let shape = cx.values(x)?;
    let at = cx.op.attrs.int("axis") as usize;
    let Some(&axis) = shape.get(at) else {
        return Err(cx.malformed(format!("axis {at} is not a dim of {x}")));
    };
    let inner = product(&shape[at + 1..]);
    let n = product(&shape[..at]) * inner;
    if n == 0 {
        return Ok(Lowered::default());
    }
    let (start, combine, finish) = match cx.op.attrs.word("op") {
        "max" => ("__uint_as_float(0xff800000u)", "max_nan(acc, v)", "acc"),
        "mean" => ("0.0f", "acc + v", "acc / (f32)axis"),
        _ => ("0.0f", "acc + v", "acc"),
    };
    let max = cx.op.attrs.word("op") == "max";
    // Sizes of inner axes are constants or not independently of what they are at the moment.
    let last = x.dims[at + 1..].iter().all(|d| d.as_const() == Some(1));
    let ir = cx.ir(&[format!("{}[..]", x.dtype)], &[format!("{}[..]", x.dtype)]);
    let args = |more: &[i64]| {
        let mut args = vec![operand(0), result(0), Arg::I64(n)];
        args.extend(more.iter().map(|i| Arg::I64(*i)));
        args
    };
    let name = |how: &str| format!("reduce_{}_{}_{how}", cx.op.attrs.word("op"), x.dtype);
    let text = |how, body| {
        Text::new(name(how), ir.clone(), body)
            .set("type", c_type(x.dtype))
            .set("start", start)
            .set("combine", combine)
            .set("finish", finish)
    };
    if !last {
        let kernel = text("axis", include_str!("cuda/reduce_axis.cu")).build();
        return Ok(single(cx.launch(kernel, blocks(n, 256), 256, args(&[axis, inner]))?));
    }
    let warp = x.dims[at].as_const().is_some_and(|a| a <= WARP_ROW);
    let (lanes, tree) = match (warp, max) {
        (true, true) => (32, "warp_max(acc)"),
        (true, false) => (32, "warp_sum(acc)"),
        (false, true) => (256, "block_max<8>(acc)"),
        (false, false) => (256, "block_sum<8>(acc)"),
    };
    let kernel = text(if warp { "warp" } else { "block" }, include_str!("cuda/reduce_row.cu"))
        .with(Piece::Reduce)
        .set("lanes", lanes)
        .set("tree", tree)
        .build();
    Ok(single(cx.launch(kernel, blocks(n, 256 / lanes), 256, args(&[axis]))?))
}
