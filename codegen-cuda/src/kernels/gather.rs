//! Rows by index.

use super::{Cx, blocks, operand, product, result, single, view::unit_type};
use crate::emit::Text;
use crate::lower::{Arg, LowerError, Lowered};

/// Lowers `gather_rows`.
pub fn lower(cx: &Cx) -> Result<Lowered, LowerError> {
    let (x, ids) = (cx.plain(0)?, cx.plain(1)?);
    let shape = cx.shape(x)?;
    let Some((rows, row)) = shape.split_first() else {
        return Err(cx.malformed(format!("operand 0 is {x}, expected at least 1 dim")));
    };
    let bytes = x.dtype.bytes().unwrap_or(1) as i64;
    let mut unit = 16;
    while unit > bytes && row.iter().map(|s| s.factor).product::<i64>() * bytes % unit != 0 {
        unit /= 2;
    }
    let units = row.iter().map(|s| s.value).product::<i64>() * bytes / unit;
    let n = product(&cx.values(ids)?) * units;
    if n == 0 {
        return Ok(Lowered::default());
    }
    let ir = cx.ir(&["x[N, ..]".into(), "i32[..]".into()], &["y[.., ..]".into()]);
    let kernel = Text::new(format!("gather_rows_b{unit}"), ir, include_str!("cuda/gather.cu"))
        .set("bytes", unit)
        .set("unit", unit_type(unit))
        .build();
    let args = vec![operand(0), operand(1), result(0), Arg::I64(n), Arg::I64(units), Arg::I64(rows.value)];
    Ok(single(cx.launch(kernel, blocks(n, 256), 256, args)?))
}
