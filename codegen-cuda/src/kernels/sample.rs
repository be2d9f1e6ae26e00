//! `sample`: filters and draws a token a row, without sorting it.
//!
//! The arithmetic is that of the interpreter (`gossamer_ir::interp::sample` lists the steps), so that both draw the same tokens: filters are
//! thresholds on logit / temperature, probabilities are summed as integers of 2^-40, noise is Gumbel from Philox-4x32-10.
//!
//! Filters need a whole row in shared memory and blocks that wait for each other; a row without filters needs neither, and many of its blocks
//! fit a multiprocessor at once. So many rows take two launches: one for those with filters, which most often finds none, and one for the others.
//! As few rows as there are clusters at once are drawn in one launch: there all blocks are of clusters, and those of a row without filters share it out.

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
/// Threads of a block for rows with filters.
const THREADS: i64 = 1024;
/// Blocks for rows with filters. Each has a multiprocessor, and where some are switched off not all clusters that would fit their number fit:
/// one that has to wait doubles the time.
const FILTERING: i64 = 96;
/// Blocks of clusters that share out rows without filters, where there are fewer rows: more start late behind a kernel that fills the GPU.
const SHARING: i64 = 64;

/// Warps of a block for rows without filters.
const WARPS: i64 = 8;
/// Loads of four logits that a thread has under way.
const AT_ONCE: i64 = 4;
/// The same of few rows, where a thread has no more than one or two.
const FEW_AT_ONCE: i64 = 2;
/// Logits that a block loads at once.
const STRIDE: i64 = WARPS * 32 * AT_ONCE * 4;
/// Blocks for all rows without filters, of one stride if these are enough: the four of each multiprocessor that run at once.
const SPREAD: i64 = 528;
/// Strides of a block at most: the first, which finds a bound, is a small part of so many, and the last blocks of a launch are not alone for long.
const STRIDES: i64 = 13;

/// What all kernels depend on.
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
    let early = (1..7).all(|i| cx.early(i));
    let shape = Shape { rows, n, known: columns.as_const(), tile, early };
    let (launches, blocks) = if rows <= FILTERING / shape.cluster() {
        let (launch, blocks) = once(cx, &shape)?;
        (vec![launch], blocks)
    } else {
        let (plain, blocks) = plain(cx, &shape)?;
        (vec![filtering(cx, &shape)?, plain], blocks)
    };
    let counters = rows.min(i64::from(MAX_COUNTERS)) as u32;
    Ok(Lowered { launches, scratch: vec![blocks as u64 * 8], counters, ..Lowered::default() })
}

impl Shape {
    /// Blocks that draw a row with filters.
    fn cluster(&self) -> i64 {
        if self.known.is_some() && self.n > SHORT { CLUSTER } else { 1 }
    }

    /// Logits that each of them has.
    fn slice(&self) -> i64 {
        blocks(self.n, 4 * self.cluster()) * 4
    }

    /// They are in shared memory.
    fn held(&self) -> bool {
        self.cluster() > 1 && self.slice() <= HELD
    }

    /// Bytes of shared memory for that.
    fn shared(&self) -> u32 {
        if self.held() { self.slice() as u32 * 4 } else { 0 }
    }

    fn aligned(&self) -> bool {
        self.known.is_some_and(|n| n % 4 == 0)
    }

    /// Bits that sums of `n` of them leave within 32.
    fn part(&self) -> u32 {
        32 - (self.known.unwrap_or(MOST) as u64).next_power_of_two().trailing_zeros()
    }
}

/// The one launch for a few rows, and its blocks.
fn once(cx: &Cx, shape: &Shape) -> Result<(Launch, i64), LowerError> {
    let &Shape { rows, n, tile, early, .. } = shape;
    let cluster = shape.cluster();
    let name = format!(
        "sample_once_b{}_c{cluster}{}{}{}{}",
        shape.part(),
        flag(shape.held(), "_held"),
        flag(tile > 0, &format!("_t{tile}")),
        flag(shape.aligned(), "_aligned"),
        flag(early, "_early")
    );
    let body = concat!(
        include_str!("cuda/sample_plain.cu"),
        include_str!("cuda/sample_filters.cu"),
        include_str!("cuda/sample.cu")
    );
    let text = keeps_all(has_filters(text(cx, &name, body, shape), shape), shape, THREADS / 32)
        .set("few", true)
        .set("at_once", FEW_AT_ONCE)
        .set("which", ONCE)
        .set("launched", format!("{}__launch_bounds__(THREADS, 1)", dims(cluster)))
        .set("filtered", DRAWN);
    // A thread has four logits at least.
    let share = (SHARING / (rows * cluster)).clamp(1, blocks(n, 4 * THREADS * cluster)) * cluster;
    let count = rows * share;
    let launch = launch(cx, text.build(), count, THREADS as u32, shape.shared(), plain_args(shape, share))?;
    Ok((launch, count))
}

/// What one launch for all rows says and does beside one for rows without filters.
const ONCE: &str = "\
// All rows. `share` blocks, some clusters of them, have a row: all where it keeps all tokens, and the first cluster where it has filters.
static_assert(THREADS == 1024, \"as rows with filters need\");";
const DRAWN: &str = "\
if (b >= BLOCKS) return;
const i32 token = draw_row(logits + (i64)r * n, n, by, at, key0, key1);
if (b == 0 && threadIdx.x == 0) tokens[r] = token;";

/// The launch for rows with filters.
fn filtering(cx: &Cx, shape: &Shape) -> Result<Launch, LowerError> {
    let &Shape { rows, n, early, .. } = shape;
    let cluster = shape.cluster();
    let name =
        format!("sample_filter_b{}_c{cluster}{}{}", shape.part(), flag(shape.held(), "_held"), flag(early, "_early"));
    let body = concat!(include_str!("cuda/sample_filters.cu"), include_str!("cuda/sample_filter.cu"));
    let text = has_filters(text(cx, &name, body, shape), shape);
    let mut args: Vec<Arg> = (0..7).map(operand).collect();
    args.extend([result(0), Arg::I32(n as i32), Arg::I32(rows as i32)]);
    let count = rows.min(FILTERING / cluster) * cluster;
    launch(cx, text.build(), count, THREADS as u32, shape.shared(), args)
}

/// The launch for the other rows, and its blocks.
fn plain(cx: &Cx, shape: &Shape) -> Result<(Launch, i64), LowerError> {
    let &Shape { rows, tile, early, .. } = shape;
    let name = format!(
        "sample{}{}{}",
        flag(tile > 0, &format!("_t{tile}")),
        flag(shape.aligned(), "_aligned"),
        flag(early, "_early")
    );
    let body = concat!(include_str!("cuda/sample_plain.cu"), include_str!("cuda/sample.cu"));
    let text = keeps_all(text(cx, &name, body, shape), shape, WARPS)
        .set("few", false)
        .set("at_once", AT_ONCE)
        .set("which", "// The rows without filters. The others are left to the launch in front.")
        .set("launched", "__launch_bounds__(THREADS)")
        .set("filtered", "");
    let share = share(shape);
    let count = rows * share;
    Ok((launch(cx, text.build(), count, 32 * WARPS as u32, 0, plain_args(shape, share))?, count))
}

/// Arguments of a launch for rows without filters, `share` blocks for each.
fn plain_args(shape: &Shape, share: i64) -> Vec<Arg> {
    let mut args: Vec<Arg> = (0..if shape.tile > 0 { 8 } else { 7 }).map(operand).collect();
    args.extend([result(0), Arg::Scratch(0), Arg::Counters, Arg::I32(shape.n as i32), Arg::I32(share as i32)]);
    args
}

/// The attribute of a kernel whose clusters have so many blocks.
fn dims(cluster: i64) -> String {
    if cluster > 1 { format!("__cluster_dims__({cluster}, 1, 1) ") } else { String::new() }
}

/// Fills what `cuda/sample_filters.cu` needs.
fn has_filters(text: Text, shape: &Shape) -> Text {
    let (cluster, held) = (shape.cluster(), shape.held());
    text.with(Piece::Select)
        .with(Piece::Cluster)
        .set("part", shape.part())
        .set("n_text", format!("2^{}", 32 - shape.part()))
        .set("blocks", cluster)
        .set("cluster", dims(cluster))
        .set("shared", flag(held, "extern __shared__ uint4 shared[];"))
        .set("hold", flag(held, "((f32*)shared)[i - row.first] = logit;"))
        .set("held", flag(held, "row.slice = (const f32*)shared;"))
}

/// Fills what `cuda/sample_plain.cu` needs; blocks have `warps` warps.
fn keeps_all(text: Text, shape: &Shape, warps: i64) -> Text {
    let tile = shape.tile;
    let of_row = match tile {
        0 => "const f32* const of_tiles = nullptr;".to_string(),
        _ => format!("const f32* const of_tiles = maxima + (i64)r * ((n + {last}) / {tile});", last = tile - 1),
    };
    text.with(Piece::Grid)
        .with(Piece::Tiles)
        .set("warps", warps)
        .set("tile", tile)
        .set("aligned", shape.aligned())
        .set("maxima", flag(tile > 0, "const f32* maxima, "))
        .set("maxima_of_row", of_row)
}

/// Blocks of a row without filters.
fn share(shape: &Shape) -> i64 {
    let &Shape { rows, n, .. } = shape;
    if rows > i64::from(MAX_COUNTERS) {
        return 1;
    }
    let strides = blocks(n, STRIDE);
    blocks(strides, blocks(strides * rows, SPREAD).min(STRIDES))
}

/// What all texts share.
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
