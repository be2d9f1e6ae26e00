//! `sample`: filters and draws a token a row, without sorting it.
//!
//! The arithmetic is that of the interpreter (`gossamer_ir::interp::sample` lists the steps), so that both draw the same tokens: filters are
//! thresholds on logit / temperature, probabilities are summed as integers of 2^-40, noise is Gumbel from Philox-4x32-10.

use super::{Cx, operand, result, single};
use crate::emit::{Piece, Text};
use crate::lower::{Arg, LowerError, Lowered};

/// Lowers `sample`.
pub fn lower(cx: &Cx) -> Result<Lowered, LowerError> {
    let logits = cx.plain(0)?;
    let (&[rows, n], Some(columns)) = (cx.values(logits)?.as_slice(), logits.dims.get(1)) else {
        return Err(cx.malformed(format!("operand 0 is {logits}, expected 2 dims")));
    };
    if rows == 0 {
        return Ok(Lowered::default());
    }
    const MOST: i64 = 1 << 24;
    if !(1..=MOST).contains(&n) {
        return Err(cx.unsupported(format!("rows of {n} logits"), format!("1 to {MOST} logits a row")));
    }
    // Sums of n parts of this many bits fit 32.
    let bound = columns.as_const().unwrap_or(MOST);
    let part = 32 - (bound as u64).next_power_of_two().trailing_zeros();
    let ir = cx.ir(&["f32[R, V]".into()], &["i32[R]".into()]);
    let kernel = Text::new(format!("sample_b{part}"), ir, include_str!("cuda/sample.cu"))
        .with(Piece::Reduce)
        .with(Piece::Order)
        .with(Piece::Select)
        .with(Piece::Philox)
        .with(Piece::Infinity)
        .set("part", part)
        .set("n_text", format!("2^{}", 32 - part))
        .build();
    let mut args: Vec<Arg> = (0..7).map(operand).collect();
    args.extend([result(0), Arg::I64(n)]);
    Ok(single(cx.launch(kernel, rows, 1024, args)?))
}
