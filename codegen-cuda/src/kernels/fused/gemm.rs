//! `gemm` and `gemm_pieces`: matmul of many rows on warpgroup multiplies, with scalar code on the product.
//!
//! Rows of x are the rows of a tile, rows of w its columns: neighbouring columns of the product then lie in one thread, and so do a column and its
//! partner in a head. The sum of an element is made in the template's order, whatever the tile, so its bits depend neither on the other rows nor on how
//! the work was cut. In `gemm` it is one chain over K. In `gemm_pieces` it is what `stream` and `tile` make, pieces of K added up in order: a multiply
//! takes the same 16 elements of K there and here, and its bits do not depend on the order within them. A second set of sums holds the pieces so far.

use std::cell::Cell;

use gossamer_ir::template::{Order, template};
use gossamer_ir::{DType, OpKind};

use super::super::contraction::{MAX_K, PROCESSORS, pieces};
use super::super::region::{Columns, Index, Need, Region, Sink, Source, Target, malformed, text, unsupported};
use super::super::{Cx, Size, blocks, kv, scalar, single, wgmma};
use super::finish::{branch, product_sinks, range};
use super::{Body, Origin, Params, parameter};
use crate::emit::{Piece, Text, c_type};
use crate::lower::{LowerError, Lowered, Matrix};
use crate::resources::{SHARED_PER_BLOCK, SHARED_PER_SM, SHARED_RESERVED};

type Result<T> = std::result::Result<T, LowerError>;

/// Elements of K in a stage of the ring, and in a unit of pieces.
const UNIT: i64 = 64;
/// Elements of a strip of results, and its columns where they divide those of a tile.
const STRIP_ELEMENTS: i64 = 512;
const STRIP_COLUMNS: i64 = 64;
/// Stages at most.
const STAGES: i64 = 16;
/// Rows of tiles in a band: their share of x and the columns of w that go past it fit the L2 cache.
const BAND: i64 = 16;
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
}

/// Cuts of one chain, from the smallest tile.
const CHAIN: &[Plan] = &[
    Plan { groups: 1, width: 32, blocks: 1 },
    Plan { groups: 1, width: 48, blocks: 1 },
    Plan { groups: 1, width: 64, blocks: 1 },
    Plan { groups: 1, width: 96, blocks: 1 },
    Plan { groups: 2, width: 64, blocks: 1 },
    Plan { groups: 2, width: 96, blocks: 1 },
    Plan { groups: 2, width: 128, blocks: 1 },
    Plan { groups: 2, width: 192, blocks: 1 },
];
/// Cuts of pieces: registers hold two sets of sums, so tiles are narrower.
const PIECES: &[Plan] = &[
    Plan { groups: 1, width: 32, blocks: 1 },
    Plan { groups: 1, width: 48, blocks: 1 },
    Plan { groups: 1, width: 64, blocks: 1 },
    Plan { groups: 1, width: 96, blocks: 1 },
    Plan { groups: 1, width: 128, blocks: 1 },
    Plan { groups: 2, width: 64, blocks: 1 },
    Plan { groups: 2, width: 96, blocks: 1 },
    Plan { groups: 2, width: 128, blocks: 1 },
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

    /// Bytes of a tile of sums.
    fn sums(self) -> i64 {
        self.height() * (self.width + 8) * 4
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
                    let cost = plan.cost(rows, n, k);
                    if best.as_ref().is_none_or(|b| cost < b.0) {
                        best = Some((cost, *plan, pairs));
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

/// The columns that a lane makes results of at a time: two in a row, and two more that are `apart` further on in the tile and `far` in the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pairs {
    columns: Columns,
    apart: i64,
    far: i64,
    /// Size of the heads whose halves these are.
    dim: Option<i64>,
}

impl Pairs {
    fn choose(found: &[Sink], n: i64, width: i64) -> Result<Pairs> {
        let columns = Columns::choose(found, n, width)?;
        let heads = found.iter().find_map(|s| if let Need::Rope { dim, .. } = s.need { Some(dim) } else { None });
        match (columns, heads) {
            (Columns::Paired { dim }, _) => Ok(Pairs { columns, apart: width / 2, far: dim / 2, dim: Some(dim) }),
            (_, Some(dim)) if dim % 4 == 0 => Ok(Pairs { columns, apart: dim / 2, far: dim / 2, dim: heads }),
            (_, Some(dim)) => Err(unsupported(format!("rope of heads of {dim}"), "heads of a multiple of 4")),
            // As far apart as fits the columns: neighbouring lanes then store what lies side by side.
            _ => {
                let apart = [32, 16].into_iter().find(|a| n % 64 == 0 && width % (2 * a) == 0).unwrap_or(8);
                Ok(Pairs { columns, apart, far: apart, dim: None })
            }
        }
    }

    /// Where the lane's column is, relative to its first, among the four.
    fn place(self, offset: i64) -> Option<usize> {
        [0, 1, self.far, self.far + 1].iter().position(|o| *o == offset)
    }

    /// Runs of the columns that a lane makes of a value.
    fn runs(self, need: Need) -> Vec<Vec<i64>> {
        match need {
            Need::Halves { .. } => vec![vec![0, 1]],
            Need::Interleaved { .. } => vec![vec![0], vec![self.far]],
            _ => vec![vec![0, 1], vec![self.far, self.far + 1]],
        }
    }

    /// What values' columns must start and end at a multiple of, so that a lane makes all of its columns of one or none.
    fn step(self, need: Need) -> i64 {
        match need {
            Need::Halves { .. } => 2,
            _ => 2 * self.far,
        }
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
        Columns::Adjacent => (plan.width, "column0 + local".to_string()),
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
    let code = results(cx, body, &found, pairs, n, &mut params)?;
    let (down, across) = plan.tiles(rows, n);
    params.int("row_tiles", down);
    params.int("rows", rows);
    let (list, args) = params.finish();

    // A whole multiprocessor's registers: the copying group gives most of its share to those that multiply.
    let (fewer, more) = match plan.blocks == 1 && plan.groups == 2 {
        true => ("fewer_registers<40>();", "more_registers<152>();"),
        false => ("", ""),
    };
    let (order, count, sum) = match folds {
        true => ("K in pieces, which are added up in order", pieces(Size::known(k)), SUM_PIECES),
        false => ("one chain over K in order", 1, SUM_CHAIN),
    };
    let pieces = if folds { format!("constexpr int PIECES = {count};") } else { String::new() };
    let total = if folds { "f32 total[WIDTH / 2];  // of the pieces so far" } else { "" };
    let (strips, first_strip, next_strip) = match run {
        None => ("strip", "worker", "workers"),
        Some(_) => ("run of strips", "worker * RUN", "(strip + 1) % RUN > 0 ? 1 : workers * RUN - RUN + 1"),
    };
    let run = match run {
        None => String::new(),
        Some(run) => format!("constexpr int RUN = {run};  // strips side by side that one warp makes"),
    };
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
    .set("strips", strips)
    .set("first_strip", first_strip)
    .set("next_strip", next_strip)
    .set("groups", plan.groups)
    .set("width", plan.width)
    .set("stages", plan.stages())
    .set("w_box", w_box)
    .set("band", BAND)
    .set("apart", pairs.apart)
    .set("blocks", plan.blocks)
    .set("multiply", wgmma::multiply(plan.width, xt.dtype))
    .set("params", list)
    .set("fewer", fewer)
    .set("more", more)
    .set("total", total)
    .set("sum", sum)
    .set("result", if folds { "total" } else { "sums" })
    .set("first", if cx.early(w) { FIRST_EARLY } else { FIRST })
    .set("w_row", &column)
    .set("column", &column)
    .set("finish", code.finish.join("\n"))
    .set("maxima", code.maxima.join("\n"))
    .set("store_maxima", code.store_maxima.join("\n"))
    .build();
    let launched = (down * across).min(PROCESSORS * plan.blocks);
    let mut launch = cx.launch(source, launched, 128 * (plan.groups as u32 + 2), args)?;
    launch.shared = (plan.stages() * plan.stage() + plan.sums() + 1024) as u32;
    launch.dependent = true;
    Ok(single(launch))
}

/// Fills the ring for the first time: with weights before the kernels in front of this one have ended.
const FIRST_EARLY: &str = "\
#pragma unroll 1
for (int i = 0; i < FIRST; i++) {
  expect(i);
  fetch_w(i, i, column);
}
wait_for_predecessors();
#pragma unroll 1
for (int i = 0; i < FIRST; i++) fetch_x(i, i, row0);";

/// The same where another kernel makes what stands in the place of weights.
const FIRST: &str = "\
wait_for_predecessors();
#pragma unroll 1
for (int i = 0; i < FIRST; i++) {
  expect(i);
  fetch_w(i, i, column);
  fetch_x(i, i, row0);
}";

/// Sums a tile in one chain.
const SUM_CHAIN: &str = "\
int last = 0;
#pragma unroll 1
for (int unit = 0; unit < UNITS; unit++) {
  signal_wait(full + 8 * s, parity);
  const u64 x = operand_at(ring + s * STAGE + group * 64 * 128);
  const u64 w = operand_at(ring + s * STAGE + X_BYTES);
  multiply_begin();
#pragma unroll
  for (int k = 0; k < 4; k++) multiply(sums, x + k * 2, w + k * 2, unit + k > 0);
  multiply_commit();
  // One batch stays under way; the stage of the one before it is free.
  if (unit > 0) {
    multiply_wait<1>();
    release(last);
  }
  last = s;
  if (++s == STAGES) {
    s = 0;
    parity ^= 1;
  }
}
multiply_wait<0>();
release(last);";

/// Sums it in pieces.
const SUM_PIECES: &str = "\
#pragma unroll
for (int i = 0; i < WIDTH / 2; i++) total[i] = 0.0f;
int unit = 0;
#pragma unroll 1
for (int piece = 0; piece < PIECES; piece++) {
  const int first = unit;
  const int end = UNITS * (piece + 1) / PIECES;
  int last = 0;
#pragma unroll 1
  for (; unit < end; unit++) {
    signal_wait(full + 8 * s, parity);
    const u64 x = operand_at(ring + s * STAGE + group * 64 * 128);
    const u64 w = operand_at(ring + s * STAGE + X_BYTES);
    multiply_begin();
#pragma unroll
    for (int k = 0; k < 4; k++) multiply(sums, x + k * 2, w + k * 2, unit - first + k > 0);
    multiply_commit();
    // One batch stays under way; the stage of the one before it is free.
    if (unit > first) {
      multiply_wait<1>();
      release(last);
    }
    last = s;
    if (++s == STAGES) {
      s = 0;
      parity ^= 1;
    }
  }
  multiply_wait<0>();
  release(last);
  hold(sums);
#pragma unroll
  for (int i = 0; i < WIDTH / 2; i++) total[i] += sums[i];
}";

/// A value that is stored, and the columns of it that a lane makes, relative to its first: runs of neighbours.
struct Job<'a> {
    sink: &'a Sink,
    /// Where it goes.
    name: String,
    dtype: DType,
    runs: Vec<Vec<i64>>,
    /// True if a run is stored at once.
    whole: bool,
}

/// Strips whose maximum goes together, if any is wanted: those of a tile of `tile_max`.
fn run(found: &[Sink]) -> Result<Option<i64>> {
    let mut all = None;
    for sink in found {
        match (sink.target, sink.need) {
            (Target::TileMax { tile }, Need::Same { offset: 0 })
                if tile % STRIP_COLUMNS == 0 && all.is_none_or(|t| t == tile) =>
            {
                all = Some(tile);
            }
            (Target::TileMax { tile }, _) => {
                return Err(unsupported(
                    format!("tile_max over {tile} columns"),
                    format!("one multiple of {STRIP_COLUMNS} for all, on values with the product's columns"),
                ));
            }
            (Target::ArgMax, _) => return Err(unsupported("argmax over all columns", "tile_max")),
            _ => {}
        }
    }
    Ok(all.map(|tile| tile / STRIP_COLUMNS))
}

/// Code that makes results.
struct Code {
    /// Computes and stores a lane's elements of a strip.
    finish: Vec<String>,
    /// Declares running maxima of a run of strips.
    maxima: Vec<String>,
    /// Stores them at the end of a run.
    store_maxima: Vec<String>,
}

/// Code that makes results of a product of `n` columns.
fn results(cx: &Cx, body: &Body, found: &[Sink], pairs: Pairs, n: i64, params: &mut Params) -> Result<Code> {
    let astray = Cell::new(false);
    let mut sources = body.epilogue_sources(cx, params, |_| {
        let astray = &astray;
        let give = move |at: &[Index]| {
            let known = at[1].without_offset().is_some_and(|v| v == "n" || v == "half_n * 2");
            let place = pairs.place(at[1].offset()).filter(|_| known);
            astray.set(astray.get() || place.is_none());
            format!("held[j][{}]", place.unwrap_or(0))
        };
        Some(Source::Given(Box::new(give)))
    })?;
    for source in &mut sources {
        if let Source::Cache { keys, values } = source {
            (*keys, *values) = (later(keys), later(values));
        }
    }
    let pointers = (0..cx.op.results.len()).map(|r| params.result(cx, r)).collect::<Result<Vec<_>>>()?;
    let mut region = Region::new(body.epilogue(), cx.module(), sources).straight();
    if let Some(dim) = pairs.dim {
        region.know_half("n", dim, 2);
    }
    let mut ranges: Vec<(i64, i64)> = found.iter().map(|s| (range(s).0, range(s).1)).collect();
    ranges.sort_unstable();
    ranges.dedup();
    let mut finish = Vec::new();
    for (first, end) in ranges {
        let here = || found.iter().filter(|s| (range(s).0, range(s).1) == (first, end));
        let stored = here().filter(|s| !matches!(s.target, Target::TileMax { .. }));
        let jobs = stored.map(|s| job(cx, body, s, pairs, &pointers)).collect::<Result<Vec<_>>>()?;
        let (lines, maxima) = region.scope(|region| {
            for job in &jobs {
                for offset in job.runs.concat() {
                    let column = match job.sink.need {
                        Need::Interleaved { offset: start } => Index::var("half_n").plus((offset - start) / 2),
                        _ => job.sink.column(&Index::var("n").plus(offset)),
                    };
                    region.emit(job.sink, &later(&job.name), &[Index::var("t")], &column)?;
                }
            }
            let mut maxima = Vec::new();
            for sink in here().filter(|s| matches!(s.target, Target::TileMax { .. })) {
                for offset in pairs.runs(sink.need).concat() {
                    let column = sink.column(&Index::var("n").plus(offset));
                    let element = region.element(sink.value, &[Index::var("t"), column])?;
                    maxima.push(format!("most{0}[j] = fmaxf(most{0}[j], {element});", sink.result));
                }
            }
            Ok(maxima)
        })?;
        branch(&mut finish, (first, end, false), n, part(text(&lines), maxima, &jobs));
    }
    if astray.get() {
        return Err(unsupported("columns of a product at several distances", "one distance for all pairs"));
    }
    params.sizes(cx, &region)?;
    let (mut maxima, mut store_maxima) = (Vec::new(), Vec::new());
    for sink in found {
        if let Target::TileMax { tile } = sink.target {
            let ty = body.epilogue().graph.ty(sink.value).as_tensor().map_or(DType::F32, |t| t.dtype);
            maxima.push(format!("f32 most{}[STEPS];", sink.result));
            maxima.push("#pragma unroll".to_string());
            maxima.push(format!("for (int j = 0; j < STEPS; j++) most{}[j] = {LEAST};", sink.result));
            let columns = sink.range().1;
            store_maxima.extend(tile_max(sink, ty, &pointers[sink.result], tile, columns));
        }
    }
    Ok(Code { finish, maxima, store_maxima })
}

/// Less than any element.
const LEAST: &str = "__uint_as_float(0xff800000u)";

/// The maximum of a run of strips, over the 16 lanes of each row, at the end of the run.
fn tile_max(sink: &Sink, dtype: DType, pointer: &str, tile: i64, columns: i64) -> Vec<String> {
    let r = sink.result;
    let stored = scalar::store(dtype, &format!("fmaxf(most{r}[j], {LEAST})"));
    let lines = format!(
        "if ((strip + 1) % RUN == 0) {{
  const i32 start = column0 + (strip % PARTS + 1 - RUN) * {STRIP_COLUMNS};
#pragma unroll
  for (int j = 0; j < STEPS; j++) {{
#pragma unroll
    for (int m = 8; m > 0; m >>= 1) most{r}[j] = fmaxf(most{r}[j], __shfl_xor_sync(0xffffffffu, most{r}[j], m));
    const i32 t = row_of(j);
    if ((lane & 15) == 0 && t < rows && start < {columns}) {pointer}[(i64)t * {} + start / {tile}] = {stored};
    most{r}[j] = {LEAST};
  }}
}}",
        blocks(columns, tile)
    );
    lines.lines().map(str::to_string).collect()
}

/// Where a store goes instead of to memory: `@` becomes the number of the element among the lane's.
fn later(pointer: &str) -> String {
    format!("later({pointer}, {pointer}_later[j][@])")
}

fn job<'a>(cx: &Cx, body: &Body, sink: &'a Sink, pairs: Pairs, pointers: &[String]) -> Result<Job<'a>> {
    let (first, end, even) = range(sink);
    let (runs, step) = (pairs.runs(sink.need), pairs.step(sink.need));
    if first % step != 0 || end % step != 0 {
        return Err(unsupported(
            format!("a result from columns {first} to {end} of a product"),
            format!("results that start and end at multiples of {step} columns"),
        ));
    }
    let operand = |write| match parameter(body.epilogue(), body.epilogue().graph.op(write).operands[0]) {
        Some(i) => match body.epilogue_param(i) {
            Origin::Operand(o) => Ok(o),
            _ => Err(malformed("kv_write to something that is not a cache")),
        },
        None => Err(unsupported("a cache written twice", "one kv_write of each cache parameter")),
    };
    let last = body.epilogue().graph.ty(sink.value).as_tensor().and_then(|t| t.dims.last()?.as_const());
    let (name, dtype, row) = match sink.target {
        Target::Keys(write) | Target::Values(write) => {
            let (o, keys) = (operand(write)?, matches!(sink.target, Target::Keys(_)));
            let cache = kv::declaration(cx, o)?;
            (format!("{}{o}", if keys { "keys" } else { "values" }), cache.dtype, cache.dim)
        }
        _ => {
            let t = body.epilogue().graph.ty(sink.value).as_tensor();
            let dtype = t.map(|t| t.dtype).ok_or_else(|| malformed("a state among tensors"))?;
            (pointers[sink.result].clone(), dtype, last.unwrap_or(1))
        }
    };
    // A row starts at a multiple of a run, and so does the lane's first column in it.
    let run = runs[0].len() as i64;
    let start = if even { first / 2 } else { first };
    Ok(Job { sink, name, dtype, whole: row % run == 0 && start % run == 0, runs })
}

/// Computes the lane's elements of a strip, then stores them.
fn part(lines: Vec<String>, maxima: Vec<String>, jobs: &[Job]) -> Vec<String> {
    let mut out = Vec::new();
    let mut count = vec![0; jobs.len()];
    for job in jobs {
        let elements = job.runs.concat().len();
        out.push(format!("Later<{}> {}_later[STEPS][{elements}];", c_type(job.dtype), job.name));
    }
    if jobs.iter().any(|j| matches!(j.sink.need, Need::Interleaved { .. })) {
        out.push("const i32 half_n = n / 2;".to_string());
    }
    out.push("#pragma unroll".to_string());
    out.push("for (int j = 0; j < STEPS; j++) {".to_string());
    out.push("  const i32 t = row_of(j) < rows ? row_of(j) : rows - 1;".to_string());
    for mut line in lines {
        for (job, at) in jobs.iter().zip(&mut count) {
            let open = format!("{}_later[j][@]", job.name);
            if line.contains(&open) {
                line = line.replace(&open, &format!("{}_later[j][{at}]", job.name));
                *at += 1;
            }
        }
        out.push(format!("  {line}"));
    }
    if !maxima.is_empty() {
        out.push("  if (column < N) {".to_string());
        out.extend(maxima.into_iter().map(|l| format!("    {l}")));
        out.push("  }".to_string());
    }
    out.push("}".to_string());
    out.push("#pragma unroll".to_string());
    out.push("for (int j = 0; j < STEPS; j++) {".to_string());
    out.push("  if (row_of(j) >= rows || column >= N) continue;".to_string());
    for job in jobs {
        let mut at = 0;
        for run in &job.runs {
            let (count, name) = (run.len(), &job.name);
            out.push(format!("  store_now<{count}, {}>(&{name}_later[j][{at}]);", job.whole));
            at += count;
        }
    }
    out.push("}".to_string());
    out
}
