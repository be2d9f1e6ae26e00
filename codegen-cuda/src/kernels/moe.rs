//! The gated activation and the weighted sum of experts.

use gossamer_ir::OpKind;

use super::{Cx, blocks, operand, product, result, rows_of, single};
use crate::emit::{Text, c_type, f32_literal};
use crate::lower::{Arg, LowerError, Lowered};

/// Lowers `swiglu` and `moe_combine`.
pub fn lower(cx: &Cx) -> Result<Lowered, LowerError> {
    let (x, y) = (cx.plain(0)?, cx.result(0)?);
    let n = product(&cx.values(y)?);
    if n == 0 {
        return Ok(Lowered::default());
    }
    if cx.op.kind == OpKind::MoeCombine {
        let &[_, experts, width] = cx.values(x)?.as_slice() else {
            return Err(cx.malformed(format!("operand 0 is {x}, expected 3 dims")));
        };
        let w = cx.plain(1)?.dtype;
        let ir = cx.ir(&[format!("{}[T, J, N]", x.dtype), format!("{w}[T, J]")], &[format!("{}[T, N]", x.dtype)]);
        let kernel = Text::new(format!("moe_combine_{}_{w}", x.dtype), ir, include_str!("cuda/moe_combine.cu"))
            .set("type", c_type(x.dtype))
            .set("w_type", c_type(w))
            .build();
        let args = vec![operand(0), operand(1), result(0), Arg::I64(n), Arg::I64(experts), Arg::I64(width)];
        return Ok(single(cx.launch(kernel, blocks(n, 256), 256, args)?));
    }
    let half = y.dims.last().and_then(|d| d.as_const()).ok_or_else(|| cx.malformed(format!("result is {y}")))?;
    let pair = match cx.op.attrs.word("layout") {
        "halves" => "const i64 row = i / I;\n\
             const f32 gate = to_f32(x[i + row * I]);\n\
             const f32 up = to_f32(x[i + row * I + I]);"
            .to_string(),
        _ => format!(
            "const auto both = ((const Pack<{}, 2>*)x)[i];\n\
             const f32 gate = to_f32(both.at[0]);\n\
             const f32 up = to_f32(both.at[1]);",
            c_type(x.dtype)
        ),
    };
    let ir = cx.ir(&[rows_of(x.dtype, 2 * half)], &[rows_of(y.dtype, half)]);
    let kernel = Text::new(format!("swiglu_{}_i{half}", x.dtype), ir, include_str!("cuda/swiglu.cu"))
        .set("type", c_type(x.dtype))
        .set("half", half)
        .set("pair", pair)
        .set("limit", f32_literal(cx.op.attrs.float("limit")))
        .set("alpha", f32_literal(cx.op.attrs.float("alpha")))
        .build();
    Ok(single(cx.launch(kernel, blocks(n, 256), 256, vec![operand(0), result(0), Arg::I64(n)])?))
}
