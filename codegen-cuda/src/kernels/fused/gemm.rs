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
use super::super::region::{Columns, Target, malformed, unsupported};
use super::super::{Cx, Size, blocks, single, wgmma};
use super::finish::product_sinks;
use super::gemm_plan::{CHAIN, PIECES, Plan, UNIT};
use super::gemm_results::{results, run};
use super::gemm_text::{ALONE, FIRST, FIRST_EARLY, HALVES, PAIRED, STRIP_CODE, WHOLE, sums};
use super::{Body, Origin, Params};
use crate::emit::{Piece, Text, c_type, fill};
use crate::lower::{LowerError, Lowered, Matrix, Wanted};

type Result<T> = std::result::Result<T, LowerError>;

/// Rows of tiles in a band: their share of x and the columns of w that go past it fit the L2 cache.
const BAND: i64 = 16;
/// Bytes of each of 132 parts of weights that few rows are multiplied with which kernels in front ask memory for. On an H100 q/k/v of 64 sequences takes 12.7 us
/// without, 11.6 with 64 KiB, 11.4 with 128, which cost others more (performance.md 29).
const AHEAD: u64 = 64 << 10;

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
    let (order, count) = match folds {
        true => ("K in pieces, which are added up in order", pieces(Size::known(k))),
        false => ("one chain over K in order", 1),
    };
    let sum = sums(folds, plan.halves);
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
    .set("sum", tiled(&sum))
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
    let wanted = folds.then(|| Wanted::parts_of(w, (2 * n * k) as u64, PROCESSORS as u32, AHEAD));
    Ok(Lowered { wanted, ..single(launch) })
}
