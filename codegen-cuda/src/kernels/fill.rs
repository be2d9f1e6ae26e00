//! Constants and counting.

use gossamer_ir::{DType, OpKind};

use super::{Cx, blocks, product, result, single};
use crate::emit::{Text, c_type, f32_literal};
use crate::lower::{Arg, LowerError, Lowered};

/// Lowers `const` and `iota`.
pub fn lower(cx: &Cx) -> Result<Lowered, LowerError> {
    let y = cx.result(0)?;
    let n = product(&cx.values(y)?);
    if n == 0 {
        return Ok(Lowered::default());
    }
    let value = match cx.op.kind {
        OpKind::Iota => "(i32)i".to_string(),
        _ => constant(y.dtype, cx.op.attrs.float("value")),
    };
    let name = format!("{}_{}", cx.name(), y.dtype);
    let kernel = Text::new(name, cx.ir(&[], &[format!("{}[..]", y.dtype)]), include_str!("cuda/fill.cu"))
        .set("y_type", c_type(y.dtype))
        .set("value", value)
        .build();
    Ok(single(cx.launch(kernel, blocks(n, 256), 256, vec![result(0), Arg::I64(n)])?))
}

/// `value` as an element of `dtype`.
pub(super) fn constant(dtype: DType, value: f64) -> String {
    match dtype {
        DType::F32 => f32_literal(value),
        DType::BF16 => format!("bf16{{0x{:04x}}}", half::bf16::from_f64(value).to_bits()),
        DType::F16 => format!("f16{{0x{:04x}}}", half::f16::from_f64(value).to_bits()),
        // The literal of the least integer would be a negated long.
        DType::I32 => format!("(i32)0x{:08x}u", value as i32),
        DType::U8 | DType::Mxfp4 => format!("(u8){}", value as u8),
        DType::Bool => format!("b8{{{}}}", u8::from(value != 0.0)),
    }
}
