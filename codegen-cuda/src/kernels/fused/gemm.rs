//! `gemm` and `gemm_pieces`: matmul of many rows on warpgroup multiplies, with scalar code on the product.
//!
//! Rows of x are the rows of a tile, rows of w its columns: neighbouring columns of the product then lie in one thread, and so do a column and its
//! partner in a head. The sum of an element is made in the template's order, whatever the tile, so its bits depend neither on the other rows nor on how
//! the work was cut. In `gemm` it is one chain over K. In `gemm_pieces` it is what `stream` and `tile` make, pieces of K added up in order: a multiply
//! takes the same 16 elements of K there and here, and its bits do not depend on the order within them. A second set of sums holds the pieces so far.

use std::collections::BTreeMap;

use gossamer_ir::template::{Order, template};
use gossamer_ir::{DType, OpKind};

use super::super::contraction::{MAX_K, PROCESSORS, pieces};
use super::super::region::{Columns, Sink, Target, malformed, unsupported};
use super::super::view::gcd;
use super::super::{Cx, Size, blocks, single, wgmma};
use super::finish::product_sinks;
use super::gemm_results::{Pairs, STRIP_COLUMNS, results, run};
use super::gemm_text::{
    ALONE, FIRST, FIRST_EARLY, HALVES, PAIRED, STRIP_CODE, SUM_CHAIN, SUM_HALVES, SUM_PIECES, WHOLE,
};
use super::{Body, Origin, Params};
use crate::emit::{Piece, Text, c_type, fill};
use crate::lower::{LowerError, Lowered, Matrix};
use crate::resources::{SHARED_PER_BLOCK, SHARED_PER_SM, SHARED_RESERVED};

type Result<T> = std::result::Result<T, LowerError>;

/// Elements of K in a stage of the ring, and in a unit of pieces.
const UNIT: i64 = 64;
/// Elements of a strip of results.
const STRIP_ELEMENTS: i64 = 512;
/// Stages at most.
const STAGES: i64 = 16;
/// Rows of tiles in a band: their share of x and the columns of w that go past it fit the L2 cache.
const BAND: i64 = 16;
/// Rounds of tiles from which blocks copy for each other.
const SHARED_ROUNDS: i64 = 3;
/// As measured on an H100 (docs/performance.md): bytes that a multiprocessor copies in a clock, clocks before a block's first multiply, and clocks of a strip
/// of results.
const COPIED: i64 = 50;
const TILE: i64 = 4000;
const STRIP: i64 = 3000;

/// How the work is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    /// Warpgroups that multiply.
    groups: i64,
    /// Columns of a tile.
    width: i64,
    /// Blocks that share a multiprocessor.
    blocks: i64,
    /// Parts of a tile's columns whose sums lie in shared memory one after the other: 1, or 2, where the second waits in registers.
    halves: i64,
    /// Blocks of a cluster that copy columns of w for each other.
    share: i64,
}

/// Cuts of one chain, from the smallest tile.
const CHAIN: &[Plan] = &[
    Plan { groups: 1, width: 32, blocks: 1, halves: 1, share: 1 },
    Plan { groups: 1, width: 48, blocks: 1, halves: 1, share: 1 },
    Plan { groups: 1, width: 64, blocks: 1, halves: 1, share: 1 },
    Plan { groups: 1, width: 96, blocks: 1, halves: 1, share: 1 },
    Plan { groups: 2, width: 64, blocks: 1, halves: 1, share: 1 },
    Plan { groups: 2, width: 96, blocks: 1, halves: 1, share: 1 },
    Plan { groups: 2, width: 128, blocks: 1, halves: 1, share: 1 },
    Plan { groups: 2, width: 192, blocks: 1, halves: 2, share: 1 },
];
/// Cuts of pieces: registers hold two sets of sums, so tiles are narrower.
const PIECES: &[Plan] = &[
    Plan { groups: 1, width: 32, blocks: 1, halves: 1, share: 1 },
    Plan { groups: 1, width: 48, blocks: 1, halves: 1, share: 1 },
    Plan { groups: 1, width: 64, blocks: 1, halves: 1, share: 1 },
    Plan { groups: 1, width: 96, blocks: 1, halves: 1, share: 1 },
    Plan { groups: 1, width: 128, blocks: 1, halves: 1, share: 1 },
    Plan { groups: 2, width: 64, blocks: 1, halves: 1, share: 1 },
    Plan { groups: 2, width: 96, blocks: 1, halves: 1, share: 1 },
    Plan { groups: 2, width: 128, blocks: 1, halves: 1, share: 1 },
];

impl Plan {
    /// Rows of a tile.
    fn height(self) -> i64 {
        self.groups * 64
    }

    /// Rows of a box of x, of so many in all.
    fn x_box(self, rows: i64) -> i64 {
        self.height().min(blocks(rows, 8) * 8)
    }

    /// Bytes of a stage.
    fn stage(self) -> i64 {
        (self.height() + self.width) * 2 * UNIT
    }

    /// Bytes of the sums in shared memory.
    fn sums(self) -> i64 {
        self.height() * (self.width / self.halves + 8) * 4
    }

    /// Stages that fit.
    fn stages(self) -> i64 {
        let sm = i64::from(SHARED_PER_SM) / self.blocks - i64::from(SHARED_RESERVED);
        let block = sm.min(i64::from(SHARED_PER_BLOCK)) - 16 * STAGES;
        ((block - 1024 - self.sums()) / self.stage()).min(STAGES)
    }

    /// Tiles down and across.
    fn tiles(self, rows: i64, n: i64) -> (i64, i64) {
        (blocks(rows, self.height()), blocks(n, self.width))
    }

    /// Columns of a tile between two strips of a row, where one warp makes them one after the other: see [`results`].
    fn period(self, pairs: Pairs) -> Option<i64> {
        let (held, apart) = (self.width / self.halves, pairs.apart / self.halves);
        let strip = [64, 32].into_iter().find(|c| held % c == 0).unwrap_or(16);
        let regular = pairs.columns == Columns::Adjacent && strip % (2 * apart) == 0;
        // Modulo a common divisor of that and a tile's columns, a lane's column is the same in all strips.
        (self.halves > 1).then(|| if regular { gcd(strip * self.halves, self.width) } else { 1 })
    }

    /// Blocks of a cluster: two where they read so much that the L2 cache delays them, which takes several rounds of tiles, and where no
    /// multiprocessor has more tiles for it.
    fn shared(self, pairs: Pairs, rows: i64, n: i64) -> i64 {
        let (down, across) = self.tiles(rows, n);
        let rounds = |share: i64| blocks(blocks(down, share) * across, PROCESSORS / share);
        let whole = self.halves > 1 && pairs.columns == Columns::Adjacent && self.blocks == 1;
        if whole && rounds(1) >= SHARED_ROUNDS && rounds(2) <= rounds(1) { 2 } else { 1 }
    }

    /// Clocks that the busiest multiprocessor takes: tiles one after the other, each as long as its multiplies, its copies or the results of the one
    /// before it, and the results of the last, in which all join.
    fn cost(self, rows: i64, n: i64, k: i64) -> i64 {
        let (down, across) = self.tiles(rows, n);
        let rounds = blocks(down * across, PROCESSORS);
        let units = blocks(k, UNIT);
        let multiplies = units * self.height() / 64 * 2 * self.width;
        let copied = units * (self.x_box(rows) + self.width) * 2 * UNIT;
        let main = multiplies.max(copied / COPIED);
        let strips = self.height() * self.width / STRIP_ELEMENTS;
        let results = blocks(strips, 4) * STRIP;
        (rounds - 1) * main.max(results) + main + TILE + blocks(strips, 4 + 4 * self.groups) * STRIP
    }

    /// The cut for so many rows of a product of `n` columns, and how its tiles hold together what `sinks` need together.
    fn choose(
        plans: &[Plan],
        sinks: &[Sink],
        run: Option<i64>,
        (rows, n, k): (i64, i64, i64),
    ) -> Result<(Plan, Pairs)> {
        let mut best: Option<(i64, Plan, Pairs)> = None;
        let mut refused = None;
        for plan in plans.iter().filter(|p| run.is_none_or(|r| p.width % (r * STRIP_COLUMNS) == 0)) {
            match Pairs::choose(sinks, n, plan.width) {
                Ok(pairs) => {
                    // Halves hold eights of columns whole and what lies apart together, but not the columns of a maximum.
                    let plan = match pairs.apart % (8 * plan.halves) == 0 && run.is_none() {
                        true => *plan,
                        false => Plan { halves: 1, ..*plan },
                    };
                    let plan = Plan { share: plan.shared(pairs, rows, n), ..plan };
                    let cost = plan.cost(rows, n, k);
                    if best.as_ref().is_none_or(|b| cost < b.0) {
                        best = Some((cost, plan, pairs));
                    }
                }
                Err(e) => refused = Some(e),
            }
        }
        let wide =
            || unsupported(format!("tile_max over {} columns", run.unwrap_or(1) * STRIP_COLUMNS), "64 or 128 columns");
        best.map(|(_, plan, pairs)| (plan, pairs)).ok_or_else(|| refused.unwrap_or_else(wide))
    }
}

/// Lowers a kernel of template `gemm` or `gemm_pieces`.
pub fn lower(cx: &Cx, body: &Body) -> Result<Lowered> {
    let main = body.kernel.main();
    let product = body.heavy()?;
    let op = main.graph.op(product.op);
    let (OpKind::MatMul, [x, w]) = (op.kind, op.operands.as_slice()) else {
        return Err(malformed("this template holds a matmul"));
    };
    let folds = template(body.kernel.template()).is_some_and(|t| t.order == Order::Pieces);
    let (Origin::Operand(x), Origin::Operand(w)) = (body.main_value(*x), body.main_value(*w)) else {
        return Err(unsupported("computed operands", "operands in memory"));
    };
    let (xt, wt) = (cx.plain(x)?, cx.plain(w)?);
    let known = |i: usize| wt.dims.get(i).and_then(|d| d.as_const());
    let (Some(n), Some(k), 2) = (known(0), known(1), xt.rank()) else {
        return Err(unsupported(format!("{xt} times {wt}"), "[T, K] times [N, K] with constant N and K"));
    };
    if xt.dtype != wt.dtype || !matches!(xt.dtype, DType::BF16 | DType::F16) {
        return Err(unsupported(format!("{xt} times {wt}"), "bf16 or f16 on both sides"));
    }
    let most = i64::from(i32::MAX) / 2;
    if folds && k >= MAX_K {
        return Err(unsupported(format!("{n} x {k} weights"), "K below 2^24"));
    }
    if !(8..most).contains(&k) || k % 8 != 0 || !(16..most).contains(&n) || n % 16 != 0 {
        return Err(unsupported(format!("{n} x {k} weights"), "N a multiple of 16 and K of 8, both below 2^30"));
    }
    let rows = cx.size(&xt.dims[0])?.value;
    if rows == 0 {
        return Ok(Lowered::default());
    }
    if rows >= most {
        return Err(unsupported(format!("{rows} rows"), "fewer than 2^30"));
    }
    let found = product_sinks(body, product)?;
    let run = run(&found)?;
    let (plan, pairs) = Plan::choose(if folds { PIECES } else { CHAIN }, &found, run, (rows, n, k))?;
    if found.iter().any(|s| matches!(s.target, Target::TileMax { .. })) && pairs.columns != Columns::Adjacent {
        return Err(unsupported("tile_max beside columns that are far apart", "one or the other"));
    }
    // A tile's columns are neighbours in the product, or its halves are; boxes are the runs of neighbours.
    let tile = format!("(column0 / {})", plan.width);
    let (w_box, column) = match pairs.columns {
        Columns::Adjacent => (plan.width / plan.share, "column0 + local".to_string()),
        Columns::Paired { .. } => (plan.width / 2, pairs.columns.global(&tile, "local", plan.width)),
    };
    let mut params = Params::default();
    let matrix = |rows: i64, box_rows: i64| Matrix {
        dtype: xt.dtype,
        rows: rows as u64,
        columns: k as u64,
        box_rows: box_rows as u32,
    };
    params.tensor_map("x_map", x, matrix(rows, plan.x_box(rows)));
    params.tensor_map("w_map", w, matrix(n, w_box));
    let code = results(cx, body, &found, (pairs, plan.period(pairs)), n, &mut params)?;
    let (down, across) = plan.tiles(rows, n);
    params.int("row_tiles", blocks(down, plan.share));
    params.int("rows", rows);
    let (list, args) = params.finish();

    // A whole multiprocessor's registers: the copying group gives most of its share to those that multiply.
    let (fewer, finisher, more) = match (plan.blocks, plan.groups, plan.halves) {
        (1, 2, 1) => ("fewer_registers<40>();", "more_registers<152>();", "more_registers<152>();"),
        (1, 2, _) => ("fewer_registers<32>();", "more_registers<136>();", "more_registers<168>();"),
        _ => ("", "", ""),
    };
    let (order, count, sum) = match (folds, plan.halves) {
        (true, _) => ("K in pieces, which are added up in order", pieces(Size::known(k)), SUM_PIECES),
        (false, 1) => ("one chain over K in order", 1, SUM_CHAIN),
        (false, _) => ("one chain over K in order", 1, SUM_HALVES),
    };
    let handing = if plan.halves == 1 { WHOLE } else { HALVES };
    let sharing = if plan.share == 1 { ALONE } else { PAIRED };
    let summed = if folds { "total" } else { "sums" };
    let pieces = if folds { format!("constexpr int PIECES = {count};") } else { String::new() };
    let total = if folds { "f32 total[WIDTH / 2];  // of the pieces so far" } else { "" };
    let (strips, first_strip, next_strip) = match run {
        None => ("strip", "worker", "workers"),
        Some(_) => ("run of strips", "worker * RUN", "(strip + 1) % RUN > 0 ? 1 : workers * RUN - RUN + 1"),
    };
    let mut strips = BTreeMap::from([
        ("strips", strips.to_string()),
        ("first_strip", first_strip.to_string()),
        ("next_strip", next_strip.to_string()),
        ("column", column.clone()),
        ("rows", code.rows.join("\n")),
    ]);
    let results = [("finish", code.finish.join("\n")), ("store_maxima", code.store_maxima.join("\n"))];
    strips.insert("strip", fill(STRIP_CODE, &BTreeMap::from(results)));
    let run = match run {
        None => String::new(),
        Some(run) => format!("constexpr int RUN = {run};  // strips side by side that one warp makes"),
    };
    let (start, stride) = sharing.workers;
    let band = (BAND / plan.share).to_string();
    let workers = BTreeMap::from([("start", start.into()), ("stride", stride.into()), ("band", band.clone())]);
    let tiled = |text: &str| fill(text, &workers);
    let source = Text::new(
        format!("{}_{}_n{n}_k{k}_t{}x{}", body.kernel.template(), xt.dtype, plan.height(), plan.width),
        body.kernel.summary(),
        include_str!("../cuda/gemm.cu"),
    )
    .with(Piece::Dependent)
    .with(Piece::Async)
    .with(Piece::Wgmma)
    .set("in_type", c_type(xt.dtype))
    .set("n", n)
    .set("k", k)
    .set("units", blocks(k, UNIT))
    .set("order", order)
    .set("pieces", pieces)
    .set("run", run)
    .set("groups", plan.groups)
    .set("width", plan.width)
    .set("stages", plan.stages())
    .set("w_box", w_box)
    .set("band", band)
    .set("apart", pairs.apart / plan.halves)
    .set("blocks", plan.blocks)
    .set("multiply", wgmma::multiply(plan.width, xt.dtype))
    .set("params", list)
    .set("fewer", fewer)
    .set("more", more)
    .set("total", total)
    .set("sum", tiled(sum))
    .set("halves", handing.halves)
    .set("which", fill(handing.which, &strips).trim_end())
    .set("half", handing.half)
    .set("strips", fill(handing.strips, &strips))
    .set("finisher", tiled(handing.finisher))
    .set("finisher_registers", finisher)
    .set("kept", handing.kept)
    .set("turn", handing.turn)
    .set("give", tiled(handing.give).replace('$', summed))
    .set("finish_last", handing.finish_last.replace('$', summed))
    .set("start", start)
    .set("stride", stride)
    .set("cluster", sharing.cluster)
    .set("rank", sharing.rank)
    .set("row", tiled(sharing.row).trim_end())
    .set("readers", sharing.readers)
    .set("meet", sharing.meet)
    .set("fetch_w", sharing.fetch_w)
    .set("box", sharing.w_box)
    .set("release", sharing.release)
    .set("leave", sharing.leave)
    .set("first", if cx.early(w) { FIRST_EARLY } else { FIRST })
    .set("w_row", &column)
    .set("maxima", code.maxima.join("\n"))
    .build();
    let launched = (blocks(down, plan.share) * across).min(PROCESSORS * plan.blocks / plan.share) * plan.share;
    let mut launch = cx.launch(source, launched, 128 * (plan.groups as u32 + 2), args)?;
    launch.shared = (plan.stages() * plan.stage() + plan.sums() + 1024) as u32;
    launch.dependent = true;
    Ok(single(launch))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pairs of columns within heads of 64.
    const HEADS: Pairs = Pairs { columns: Columns::Adjacent, apart: 32, far: 32, dim: Some(64) };

    #[test]
    fn halves_leave_room_for_a_stage_and_the_ring_for_a_half() {
        for plan in CHAIN.iter().chain(PIECES) {
            assert!(plan.stages() >= 3, "{plan:?}");
            let whole = Plan { halves: 1, ..*plan };
            assert!(plan.halves == 1 || plan.stages() > whole.stages(), "{plan:?}");
            // The second half of the last tile goes where the ring was.
            assert!(plan.halves == 1 || plan.sums() <= plan.stages() * plan.stage(), "{plan:?}");
        }
    }

    #[test]
    fn blocks_share_what_takes_several_rounds_and_costs_none() {
        let plan = CHAIN[CHAIN.len() - 1];
        let share = |rows, n| plan.shared(HEADS, rows, n);
        assert_eq!([share(512, 5120), share(2048, 5120), share(8192, 5120), share(8192, 2880)], [1, 2, 2, 2]);
        // An odd number of rows of tiles: the block without a row must not cost a round.
        let rounds = |down: i64, share: i64| blocks(blocks(down, share) * 11, PROCESSORS / share);
        for down in 1..200 {
            assert_eq!(
                share(128 * down, 11 * 192) == 2,
                rounds(down, 1) >= SHARED_ROUNDS && rounds(down, 2) <= rounds(down, 1)
            );
        }
        assert_eq!(Plan { halves: 1, ..plan }.shared(HEADS, 8192, 5120), 1);
        assert_eq!(plan.shared(Pairs { columns: Columns::Paired { dim: 2880 }, ..HEADS }, 8192, 5760), 1);
    }

    #[test]
    fn strips_of_a_row_are_whole_heads_apart() {
        let plan = CHAIN[CHAIN.len() - 1];
        assert_eq!(plan.period(HEADS), Some(64));
        assert_eq!(plan.period(Pairs { apart: 16, far: 16, dim: Some(32), ..HEADS }), Some(64));
        assert_eq!(plan.period(Pairs { apart: 64, far: 64, dim: Some(128), ..HEADS }), Some(1));
        assert_eq!(Plan { halves: 1, ..plan }.period(HEADS), None);
    }
}
