//! Rotary tables and rotation.

use gossamer_ir::OpKind;
use gossamer_ir::rope::frequencies;

use super::{Cx, blocks, operand, product, result, rows_of, single};
use crate::emit::{Text, c_type, f32_literal};
use crate::lower::{Arg, LowerError, Lowered};

/// Lowers `rope_table` and `rope`.
pub fn lower(cx: &Cx) -> Result<Lowered, LowerError> {
    let y = cx.result(0)?;
    let n = product(&cx.values(y)?) / 2;
    if n == 0 {
        return Ok(Lowered::default());
    }
    if cx.op.kind == OpKind::RopeTable {
        let frequencies: Vec<_> = frequencies(&cx.op.attrs).into_iter().map(|f| f32_literal(f.into())).collect();
        let lines: Vec<_> = frequencies.chunks(8).map(|c| format!("{},", c.join(", "))).collect();
        let dim = cx.op.attrs.int("dim");
        let ir = cx.ir(&[], &[format!("f32[C, {dim}]")]);
        let kernel = Text::new(format!("rope_table_d{dim}"), ir, include_str!("cuda/rope_table.cu"))
            .set("half", dim / 2)
            .set("frequencies", lines.join("\n"))
            .set("scale", f32_literal(cx.op.attrs.float("scale")))
            .build();
        return Ok(single(cx.launch(kernel, blocks(n, 256), 256, vec![result(0), Arg::I64(n)])?));
    }
    let (x, table) = (cx.plain(0)?, cx.plain(2)?);
    let (Some(width), Some(dim)) =
        (x.dims.last().and_then(|d| d.as_const()), table.dims.last().and_then(|d| d.as_const()))
    else {
        return Err(cx.malformed(format!("operands 0 and 2 are {x} and {table}, expected constant last dims")));
    };
    let positions = cx.values(table)?[0];
    let ir = cx.ir(&[rows_of(x.dtype, width), "i32[T]".into(), format!("f32[C, {dim}]")], &[rows_of(y.dtype, width)]);
    let kernel = Text::new(format!("rope_{}_w{width}_d{dim}", x.dtype), ir, include_str!("cuda/rope.cu"))
        .set("type", c_type(x.dtype))
        .set("half", dim / 2)
        .set("pairs", width / 2)
        .build();
    let args = vec![operand(0), operand(1), operand(2), result(0), Arg::I64(n), Arg::I64(positions)];
    Ok(single(cx.launch(kernel, blocks(n, 256), 256, args)?))
}
