//! `sample`: filters and draws a token a row, without sorting it.
//!
//! The arithmetic is that of the interpreter (`gossamer_ir::interp::sample` lists the steps), so that both draw the same tokens: filters are
//! thresholds on logit / temperature, probabilities are summed as integers of 2^-40, noise is Gumbel from Philox-4x32-10.

use super::{Cx, blocks, operand, result, single};
use crate::emit::{Piece, Text};
use crate::lower::{Arg, LowerError, Lowered, MAX_COUNTERS};

/// Greatest row.
const MOST: i64 = 1 << 24;
/// Rows up to this long have one block a cluster.
const SHORT: i64 = 16384;
/// Blocks of a cluster for longer rows. A power of two.
const CLUSTER: i64 = 8;
/// Logits that a block of a cluster can hold in shared memory; with half as many two blocks fit a multiprocessor.
const HELD: i64 = 48 * 1024;
/// Warps of a block: two blocks of them have all the registers of a multiprocessor that they can use.
const WARPS: i64 = 12;
/// Blocks for all rows without filters. A multiprocessor runs two at a time, so that one's loads hide the other's arithmetic; twice as many make up
/// for clusters that do not fit all of them.
const SPREAD: i64 = 512;
/// Tokens of a block in one go.
const STRIDE: i64 = WARPS * 32 * 16;

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
    let known = columns.as_const();
    let aligned = known.is_some_and(|n| n % 4 == 0);
    let slice = blocks(n, 4 * CLUSTER) * 4;
    let cluster = if known.is_some() && n > SHORT { CLUSTER } else { 1 };
    let held = cluster > 1 && slice <= HELD;
    let share = share(rows, n, cluster);
    let early = (1..7).all(|i| cx.early(i));
    let wait = "wait_for_predecessors();";
    let of_tiles = match tile {
        0 => "const f32* const of_tiles = nullptr;".to_string(),
        _ => format!("const f32* const of_tiles = maxima + (i64)r * ((n + {last}) / {tile});", last = tile - 1),
    };
    let mut operands = vec!["f32[R, V]".to_string()];
    if tile > 0 {
        operands.push("f32[R, tiles]".into());
    }
    let ir = cx.ir(&operands, &["i32[R]".into()]);
    let name = format!(
        "sample_b{part}_c{cluster}{}{}{}{}",
        if held { "_held" } else { "" },
        if aligned { "_aligned" } else { "" },
        if tile > 0 { format!("_t{tile}") } else { String::new() },
        if early { "_early" } else { "" }
    );
    let text = Text::new(name, ir, include_str!("cuda/sample.cu"))
        .with(Piece::Reduce)
        .with(Piece::Order)
        .with(Piece::Select)
        .with(Piece::Philox)
        .with(Piece::Infinity)
        .with(Piece::Dependent)
        .with(Piece::Grid)
        .with(Piece::Cluster)
        .with(Piece::Draw)
        .with(Piece::Tiles)
        .set("part", part)
        .set("n_text", format!("2^{}", 32 - part))
        .set("warps", WARPS)
        .set("blocks", cluster)
        .set("tile", tile)
        .set("aligned", aligned)
        .set("cluster", if cluster > 1 { format!("__cluster_dims__({cluster}, 1, 1) ") } else { String::new() })
        .set("shared", if held { "extern __shared__ uint4 shared[];" } else { "" })
        .set("hold", if held { "((f32*)shared)[i - row.first] = logit;" } else { "" })
        .set("held", if held { "row.slice = (const f32*)shared;" } else { "" })
        .set("wait_first", if early { "" } else { wait })
        .set("wait_later", if early { wait } else { "" })
        .set("maxima", if tile > 0 { "const f32* maxima, " } else { "" })
        .set("maxima_of_row", of_tiles);
    let mut args: Vec<Arg> = (0..if tile > 0 { 8 } else { 7 }).map(operand).collect();
    let sizes = [n, rows, share].map(|x| Arg::I32(x as i32));
    args.extend([result(0), Arg::Scratch(0), Arg::Counters]);
    args.extend(sizes);
    let count = blocks(rows * share, cluster) * cluster;
    let mut launch = cx.launch(text.build(), count, 32 * WARPS as u32, args)?;
    launch.shared = if held { slice as u32 * 4 } else { 0 };
    launch.dependent = true;
    let counters = rows.min(i64::from(MAX_COUNTERS)) as u32;
    Ok(Lowered { scratch: vec![(rows * share) as u64 * 8], counters, ..single(launch) })
}

/// Blocks that share a row without filters: whole clusters, or a part of one that all rows of a cluster have.
fn share(rows: i64, n: i64, cluster: i64) -> i64 {
    if rows > i64::from(MAX_COUNTERS) {
        return 1;
    }
    let wanted = blocks(n, STRIDE).min(SPREAD / rows).max(1);
    match wanted >= cluster {
        true => wanted / cluster * cluster,
        false => 1 << wanted.ilog2(),
    }
}
