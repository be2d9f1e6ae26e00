//! `sample`: filters and draws a token a row, without sorting it.
//!
//! The arithmetic is that of the interpreter (`gossamer_ir::interp::sample` lists the steps), so that both draw the same tokens: filters are
//! thresholds on logit / temperature, probabilities are summed as integers of 2^-40, noise is Gumbel from Philox-4x32-10.

use super::{Cx, blocks, operand, result, single};
use crate::emit::{Piece, Text};
use crate::lower::{Arg, LowerError, Lowered, MAX_COUNTERS};

/// Greatest row.
const MOST: i64 = 1 << 24;
/// Rows up to this long have one block.
const SHORT: i64 = 16384;
/// Blocks of a cluster for longer rows.
const CLUSTER: i64 = 8;
/// Logits that a block of a cluster can hold in shared memory.
const HELD: i64 = 48 * 1024;
/// Blocks that share a row without filters among few rows: more of them draw noise sooner, and take longer to agree.
const SPREAD: i64 = 128;
/// Tokens of a block in one go.
const STRIDE: i64 = 4096;

/// Lowers `sample`.
pub fn lower(cx: &Cx) -> Result<Lowered, LowerError> {
    let logits = cx.plain(0)?;
    let (&[rows, n], Some(columns)) = (cx.values(logits)?.as_slice(), logits.dims.get(1)) else {
        return Err(cx.malformed(format!("operand 0 is {logits}, expected 2 dims")));
    };
    if rows == 0 {
        return Ok(Lowered::default());
    }
    if !(1..=MOST).contains(&n) {
        return Err(cx.unsupported(format!("rows of {n} logits"), format!("1 to {MOST} logits a row")));
    }
    let tile = if cx.operand_count() > 7 { cx.op.attrs.int("tile") } else { 0 };
    // Sums of n parts of this many bits fit 32.
    let bound = columns.as_const().unwrap_or(MOST);
    let part = 32 - (bound as u64).next_power_of_two().trailing_zeros();
    let known = columns.as_const().is_some();
    let slice = blocks(n, 4 * CLUSTER) * 4;
    let cluster = if known && n > SHORT && rows <= i64::from(MAX_COUNTERS) { CLUSTER } else { 1 };
    let held = cluster > 1 && slice <= HELD;
    let share = blocks(n, STRIDE * cluster).min(SPREAD / cluster / rows).max(1);
    let early = (1..7).all(|i| cx.early(i));
    let wait = "wait_for_predecessors();";
    let by_tile = format!(
        "const u32 best = argmax_by_tile<TILE, 1024>(logits, maxima + (i64)r * ((n + {last}) / {tile}), n);\n\
         if (threadIdx.x == 0) tokens[r] = (i32)best;\n\
         return;",
        last = tile - 1,
    );
    let mut operands = vec!["f32[R, V]".to_string()];
    if tile > 0 {
        operands.push("f32[R, tiles]".into());
    }
    let ir = cx.ir(&operands, &["i32[R]".into()]);
    let name = format!(
        "sample_b{part}_c{cluster}{}{}{}",
        if held { "_held" } else { "" },
        if tile > 0 { format!("_t{tile}") } else { String::new() },
        if early { "_early" } else { "" }
    );
    let mut text = Text::new(name, ir, include_str!("cuda/sample.cu"))
        .with(Piece::Reduce)
        .with(Piece::Order)
        .with(Piece::Select)
        .with(Piece::Philox)
        .with(Piece::Infinity)
        .with(Piece::Dependent)
        .with(Piece::Grid)
        .with(Piece::Cluster)
        .set("part", part)
        .set("n_text", format!("2^{}", 32 - part))
        .set("blocks", cluster)
        .set("tile", tile)
        .set("cluster", if cluster > 1 { format!("__cluster_dims__({cluster}, 1, 1) ") } else { String::new() })
        .set("shared", if held { "extern __shared__ uint4 shared[];" } else { "" })
        .set("hold", if held { "((f32*)shared)[i - row.first] = logit;" } else { "" })
        .set("held", if held { "row.slice = (const f32*)shared;" } else { "" })
        .set("wait_first", if early { "" } else { wait })
        .set("wait_later", if early { wait } else { "" })
        .set("maxima", if tile > 0 { "const f32* maxima, " } else { "" })
        .set("by_tile", if tile > 0 { by_tile.as_str() } else { "" });
    if tile > 0 {
        text = text.with(Piece::Tiles);
    }
    let mut args: Vec<Arg> = (0..if tile > 0 { 8 } else { 7 }).map(operand).collect();
    args.extend([result(0), Arg::Scratch(0), Arg::Counters, Arg::I32(n as i32), Arg::I32(share as i32)]);
    let count = rows * share * cluster;
    let mut launch = cx.launch(text.build(), count, 1024, args)?;
    launch.shared = if held { slice as u32 * 4 } else { 0 };
    launch.dependent = true;
    let counters = rows.min(i64::from(MAX_COUNTERS)) as u32;
    Ok(Lowered { scratch: vec![count as u64 * 16], counters, ..single(launch) })
}
