//! `sample`: filters and draws a token a row, without sorting it.
//!
//! The arithmetic is that of the interpreter (`gossamer_ir::interp::sample` lists the steps), so that both draw the same tokens: filters are
//! thresholds on logit / temperature, probabilities are summed as integers of 2^-40, noise is Gumbel from Philox-4x32-10.
//!
//! Two launches: one for rows with filters, which most often finds none, and one for the others. Filters need a whole row in shared memory and
//! blocks that wait for each other; a row without filters needs neither, and many of its blocks fit a multiprocessor at once.

use std::sync::Arc;

use super::{Cx, blocks, operand, result};
use crate::emit::{KernelSource, Piece, Text};
use crate::lower::{Arg, Launch, LowerError, Lowered, MAX_COUNTERS};

/// Greatest row.
const MOST: i64 = 1 << 24;
/// Rows with filters up to this long have one block.
const SHORT: i64 = 16384;
/// Blocks of a cluster for longer rows.
const CLUSTER: i64 = 8;
/// Logits that a block of a cluster can hold in shared memory.
const HELD: i64 = 48 * 1024;
/// Blocks for rows with filters: most multiprocessors have one.
const FILTERING: i64 = 128;

/// Warps of a block for rows without filters.
const WARPS: i64 = 8;
/// Logits for which a warp draws noise at a time.
const UNIT: i64 = 128;
/// Warps for all rows together: these run at once. With more, fewer tiles of each are looked into for nothing.
const SPREAD: i64 = 2112;
/// Tiles of a warp: a lane keeps the bound of one, and blocks take longer to agree than two tiles to draw.
const TILES: [i64; 2] = [2, 32];
/// Logits that a block without maxima loads at once.
const STRIDE: i64 = 4096;
/// Blocks for all rows together, without maxima.
const STRIDING: i64 = 512;

/// What both kernels depend on.
struct Shape {
    rows: i64,
    n: i64,
    /// `n` if it is known when the kernel is compiled.
    known: Option<i64>,
    /// Logits of each of the maxima; 0: none.
    tile: i64,
    /// Parameters may be read before the launch in front has ended.
    early: bool,
}

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
    // Other tiles are not of whole warps.
    let tile = if tile > 0 && tile % UNIT == 0 { tile } else { 0 };
    let early = (1..7).all(|i| cx.early(i));
    let shape = Shape { rows, n, known: columns.as_const(), tile, early };
    let (plain, blocks) = plain(cx, &shape)?;
    let counters = rows.min(i64::from(MAX_COUNTERS)) as u32;
    Ok(Lowered {
        launches: vec![filtering(cx, &shape)?, plain],
        scratch: vec![blocks as u64 * 8],
        counters,
        ..Lowered::default()
    })
}

/// The launch for rows with filters.
fn filtering(cx: &Cx, shape: &Shape) -> Result<Launch, LowerError> {
    let &Shape { rows, n, known, early, .. } = shape;
    // Sums of n parts of this many bits fit 32.
    let part = 32 - (known.unwrap_or(MOST) as u64).next_power_of_two().trailing_zeros();
    let slice = blocks(n, 4 * CLUSTER) * 4;
    let cluster = if known.is_some() && n > SHORT { CLUSTER } else { 1 };
    let held = cluster > 1 && slice <= HELD;
    let name = format!("sample_filter_b{part}_c{cluster}{}{}", flag(held, "_held"), flag(early, "_early"));
    let text = text(cx, &name, include_str!("cuda/sample_filter.cu"), shape)
        .with(Piece::Select)
        .with(Piece::Cluster)
        .set("part", part)
        .set("n_text", format!("2^{}", 32 - part))
        .set("blocks", cluster)
        .set("cluster", if cluster > 1 { format!("__cluster_dims__({cluster}, 1, 1) ") } else { String::new() })
        .set("shared", flag(held, "extern __shared__ uint4 shared[];"))
        .set("hold", flag(held, "((f32*)shared)[i - row.first] = logit;"))
        .set("held", flag(held, "row.slice = (const f32*)shared;"));
    let mut args: Vec<Arg> = (0..7).map(operand).collect();
    args.extend([result(0), Arg::I32(n as i32), Arg::I32(rows as i32)]);
    let count = rows.min(FILTERING / cluster) * cluster;
    launch(cx, text.build(), count, 1024, if held { slice as u32 * 4 } else { 0 }, args)
}

/// The launch for the other rows, and its blocks.
fn plain(cx: &Cx, shape: &Shape) -> Result<(Launch, i64), LowerError> {
    let &Shape { rows, n, known, tile, early } = shape;
    let aligned = known.is_some_and(|n| n % 4 == 0);
    let name = format!(
        "sample{}{}{}",
        flag(tile > 0, &format!("_t{tile}")),
        flag(aligned, "_aligned"),
        flag(early, "_early")
    );
    let of_row = match tile {
        0 => "const f32* const of_tiles = nullptr;".to_string(),
        _ => format!("const f32* const of_tiles = maxima + (i64)r * ((n + {last}) / {tile});", last = tile - 1),
    };
    let text = text(cx, &name, include_str!("cuda/sample.cu"), shape)
        .with(Piece::Grid)
        .with(Piece::Tiles)
        .set("warps", WARPS)
        .set("tile", tile)
        .set("aligned", aligned)
        .set("maxima", flag(tile > 0, "const f32* maxima, "))
        .set("maxima_of_row", of_row);
    let share = share(shape);
    let mut args: Vec<Arg> = (0..if tile > 0 { 8 } else { 7 }).map(operand).collect();
    args.extend([result(0), Arg::Scratch(0), Arg::Counters, Arg::I32(n as i32), Arg::I32(share as i32)]);
    let count = rows * share;
    Ok((launch(cx, text.build(), count, 32 * WARPS as u32, 0, args)?, count))
}

/// Blocks of a row without filters.
fn share(shape: &Shape) -> i64 {
    let &Shape { rows, n, tile, .. } = shape;
    if rows > i64::from(MAX_COUNTERS) {
        return 1;
    }
    match tile {
        0 => blocks(n, STRIDE).min(STRIDING / rows).max(1),
        _ => {
            let tiles = blocks(n, tile);
            let per = blocks(tiles * rows, SPREAD).clamp(TILES[0], TILES[1]);
            blocks(tiles, per * WARPS)
        }
    }
}

/// What the texts of both kernels share.
fn text(cx: &Cx, name: &str, body: &'static str, shape: &Shape) -> Text {
    let mut operands = vec!["f32[R, V]".to_string()];
    if shape.tile > 0 {
        operands.push("f32[R, tiles]".into());
    }
    let wait = "wait_for_predecessors();";
    Text::new(name, cx.ir(&operands, &["i32[R]".into()]), body)
        .with(Piece::Reduce)
        .with(Piece::Order)
        .with(Piece::Philox)
        .with(Piece::Infinity)
        .with(Piece::Dependent)
        .with(Piece::Draw)
        .set("wait_first", flag(!shape.early, wait))
        .set("wait_later", flag(shape.early, wait))
}

fn launch(
    cx: &Cx,
    kernel: Arc<KernelSource>,
    blocks: i64,
    threads: u32,
    shared: u32,
    args: Vec<Arg>,
) -> Result<Launch, LowerError> {
    let mut launch = cx.launch(kernel, blocks, threads, args)?;
    launch.shared = shared;
    launch.dependent = true;
    Ok(launch)
}

fn flag(on: bool, text: &str) -> &str {
    if on { text } else { "" }
}
