//! `stream`: matmul of few rows, with the rows' gather, norm and cast in front and scalar code on the product behind.
//!
//! The sums are those of [`super::super::contraction`]: pieces of K depend on K alone, multiplies of a piece are added in the order of K and the pieces
//! in order, so the bits of a row do not depend on the template or on the other rows. The norm sums a row as its own kernel does.

use gossamer_ir::{DType, Func, OpKind, Value};

use super::super::contraction::{MAX_K, PROCESSORS, UNIT, pieces};
use super::super::region::{
    Columns, Index, Need, Region, Sink, Source, Split, Target, malformed, split, text, unsupported,
};
use super::super::{Cx, Size, blocks, rows, scalar, single};
use super::finish::{branch, parts, product_sinks};
use super::stage::stage_x;
use super::{Body, Origin, Params};
use crate::emit::{Piece, Text, c_type};
use crate::lower::{LowerError, Lowered};
use crate::resources::{SHARED_PER_BLOCK, SHARED_PER_SM, SHARED_RESERVED};

type Result<T> = std::result::Result<T, LowerError>;

/// Columns of the product in a tile: rows of w in one matrix multiply.
const HEIGHT: i64 = 16;
/// Bytes of a unit of a warp's ring: 16 rows of w, 64 columns, 2 bytes.
const UNIT_BYTES: i64 = 2 * HEIGHT * UNIT;
/// Tiles a multiprocessor beyond which a kernel is a long stream, to which single blocks with deep rings suit best.
const LONG: i64 = 8;
/// The problem.
pub(super) struct Shape {
    pub rows: i64,
    pub n: i64,
    pub k: i64,
    pub dtype: DType,
}

/// How it is cut.
pub(super) struct Plan {
    pub slots: i64,
    blocks: i64,
    stages: i64,
    sums: i64,
    pub pieces: i64,
}

impl Plan {
    /// As many slots as there are rows, if their activations fit beside a ring; else fewer, and several blocks read a tile of w.
    fn choose(shape: &Shape) -> Result<Plan> {
        let pieces = pieces(Size::known(shape.k));
        let wanted = [1, 8, 16, 32].into_iter().find(|s| *s >= shape.rows).unwrap_or(32);
        for slots in [32, 16, 8, 1].into_iter().filter(|s| *s <= wanted) {
            let sums = if slots <= 8 { 2 } else { 1 };
            for (blocks, stages) in rings(shape, pieces) {
                let plan = Plan { slots, blocks, stages, sums, pieces };
                let block = plan.dynamic(shape.k) + plan.fixed(shape.k);
                if block <= i64::from(SHARED_PER_BLOCK)
                    && blocks * (block + i64::from(SHARED_RESERVED)) <= i64::from(SHARED_PER_SM)
                {
                    return Ok(plan);
                }
            }
        }
        Err(unsupported(format!("a matmul over {} columns", shape.k), "rows that fit shared memory"))
    }

    /// Dynamic shared memory: rings and rows of x.
    fn dynamic(&self, k: i64) -> i64 {
        self.pieces * self.stages * UNIT_BYTES + self.slots * 2 * (blocks(k, UNIT) * UNIT + 8)
    }

    /// Static shared memory: sums of pieces, of the norm, and running maxima.
    fn fixed(&self, k: i64) -> i64 {
        if self.sums * self.pieces * self.slots * (HEIGHT + 4) * 4 > 40 << 10 {
            return i64::from(SHARED_PER_SM); // more than static memory may be
        }
        let norm = self.slots * i64::from(rows::threads(Some(k))) / 32;
        4 * (self.sums * self.pieces * self.slots * (HEIGHT + 4) + norm + 4 * self.slots.max(2) * HEIGHT)
    }
}

/// Blocks that an SM holds and units in a warp's ring, most wanted first. What a kernel asks for at once is what keeps memory busy while the one before
/// it ends and its rows are staged: a ring that holds a block's whole first tile is best, in two blocks an SM where there is work for them.
fn rings(shape: &Shape, pieces: i64) -> Vec<(i64, i64)> {
    let tiles = blocks(shape.n, HEIGHT);
    let first = match blocks(blocks(shape.k, UNIT), pieces).clamp(4, 8) {
        _ if tiles > LONG * PROCESSORS => (1, 10),
        whole if tiles > PROCESSORS => (2, whole),
        whole => (1, whole),
    };
    [first].into_iter().chain([8, 6, 4, 2, 1].map(|stages| (1, stages))).collect()
}

/// Lowers a kernel of template `stream`.
pub fn lower(cx: &Cx, body: &Body) -> Result<Lowered> {
    let main = body.kernel.main();
    let product = body.heavy()?;
    let op = main.graph.op(product.op);
    let (OpKind::MatMul, [x, w]) = (op.kind, op.operands.as_slice()) else {
        return Err(malformed("template `stream` holds a matmul"));
    };
    let shape = shape(cx, main, *x, *w)?;
    if shape.rows == 0 {
        return Ok(Lowered::default());
    }
    let plan = Plan::choose(&shape)?;
    let found = product_sinks(body, product)?;
    let columns = Columns::choose(&found, shape.n, HEIGHT)?;
    let group = group(&found)?;

    let mut params = Params::default();
    let Origin::Operand(weights) = body.main_value(*w) else {
        return Err(unsupported("computed weights", "weights that are operands"));
    };
    let weights = params.operand(cx, weights)?;
    let staging = stage_x(cx, body, *x, &shape, &plan, &mut params)?;
    let code = epilogue_code(cx, body, &found, columns, &shape, &plan, group, &mut params)?;
    params.int("rows", shape.rows);

    let whole = shape.k % UNIT == 0;
    let fetch = match (whole, shape.k % 8 == 0) {
        (true, _) => "stream16_async(to + (half * 2 + h) * 32, from[h] + fetch_k + half * 32, true);".to_string(),
        (_, true) => "{\n\
             \x20 const int k = fetch_k + half * 32;\n\
             \x20 stream16_async(to + (half * 2 + h) * 32, from[h] + (k < K ? k : 0), k < K);\n\
             }"
        .to_string(),
        _ => "to[(half * 2 + h) * 32] = load8<false>(from[h], fetch_k + half * 32, K);".to_string(),
    };
    let tiles = blocks(shape.n, HEIGHT);
    let name = format!("stream_{}_n{}_k{}_s{}", shape.dtype, shape.n, shape.k, plan.slots);
    let (params, args) = params.finish();
    let source = Text::new(name, ir(body), include_str!("../cuda/stream.cu"))
        .with(Piece::Mma)
        .with(Piece::Async)
        .with(Piece::Reduce)
        .with(Piece::Dependent)
        .set("in_type", c_type(shape.dtype))
        .set("k", shape.k)
        .set("n", shape.n)
        .set("height", HEIGHT)
        .set("tiles", tiles)
        .set("group", group)
        .set("pieces", plan.pieces)
        .set("stages", plan.stages)
        .set("slots", plan.slots)
        .set("sums", plan.sums)
        .set("blocks", plan.blocks)
        .set("constants", "")
        .set("params", params)
        .set("shared", [staging.shared, code.shared].concat().join("\n"))
        .set("column_of_fetch", columns.global("(int)fetch_tile", "local", HEIGHT))
        .set("weights", weights)
        .set("fetch", fetch)
        .set("prefetch", staging.prefetch.join("\n"))
        .set("look_up", code.look_up.join("\n"))
        .set("load_x", staging.load.join("\n"))
        .set("look_up_first", if code.look_up.is_empty() { "" } else { "look_up(first_tile);" })
        .set("stage_x", staging.code.join("\n"))
        .set("look_up_next", if code.look_up.is_empty() { "" } else { "if (tile != first_tile) look_up(tile);" })
        .set("epilogue", code.late.join("\n"))
        .build();
    let row_tiles = blocks(shape.rows, plan.slots);
    let items = blocks(tiles, group);
    let columns = items.min((PROCESSORS * plan.blocks / row_tiles).max(1));
    let mut launch = cx.launch(source, row_tiles * columns, 32 * plan.pieces as u32, args)?;
    launch.shared = plan.dynamic(shape.k) as u32;
    launch.dependent = true;
    Ok(single(launch))
}

fn shape(cx: &Cx, main: &Func, x: Value, w: Value) -> Result<Shape> {
    let tensor = |v: Value| main.graph.ty(v).as_tensor().ok_or_else(|| malformed("a matmul of states"));
    let (x, w) = (tensor(x)?, tensor(w)?);
    let known = |i: usize| w.dims.get(i).and_then(|d| d.as_const());
    let (Some(n), Some(k), 2) = (known(0), known(1), x.rank()) else {
        return Err(unsupported(format!("{x} times {w}"), "[T, K] times [N, K] with constant N and K"));
    };
    if x.dtype != w.dtype || !matches!(x.dtype, DType::BF16 | DType::F16) {
        return Err(unsupported(format!("{x} times {w}"), "bf16 or f16 on both sides"));
    }
    if !(1..MAX_K).contains(&k) || n < 1 || n > i64::from(i32::MAX) - HEIGHT {
        return Err(unsupported(format!("{n} x {k} weights"), "N below 2^31 and K below 2^24"));
    }
    let rows = cx.size(&x.dims[0])?.value;
    Ok(Shape { rows, n, k, dtype: x.dtype })
}

/// Tiles that a block takes in a row: those that share a maximum.
fn group(sinks: &[Sink]) -> Result<i64> {
    let mut group = 1;
    for sink in sinks {
        match (sink.target, sink.need) {
            (Target::TileMax { tile }, Need::Same { offset: 0 })
                if tile % HEIGHT == 0 && (group == 1 || group == tile / HEIGHT) =>
            {
                group = tile / HEIGHT;
            }
            (Target::TileMax { tile }, _) => {
                return Err(unsupported(
                    format!("tile_max over {tile} columns"),
                    format!("one multiple of {HEIGHT} for all, on values with the product's columns"),
                ));
            }
            (Target::ArgMax, _) => return Err(unsupported("argmax over all columns", "tile_max")),
            _ => {}
        }
    }
    Ok(group)
}

/// Code that makes results from the product.
#[derive(Default)]
struct Code {
    shared: Vec<String>,
    /// Which element a thread makes and, as a lambda of the tile, what it needs for it besides the product. Empty: found out when it is made.
    look_up: Vec<String>,
    late: Vec<String>,
}

#[expect(clippy::too_many_arguments, reason = "one use; they are the whole of what a kernel is made from")]
fn epilogue_code(
    cx: &Cx,
    body: &Body,
    found: &[Sink],
    columns: Columns,
    shape: &Shape,
    plan: &Plan,
    group: i64,
    params: &mut Params,
) -> Result<Code> {
    let sources = body.epilogue_sources(cx, params, |_| {
        let give = move |at: &[Index]| format!("product(slot, {})", columns.local(&at[1], HEIGHT));
        Some(Source::Given(Box::new(give)))
    })?;
    let pointers = (0..cx.op.results.len()).map(|r| params.result(cx, r)).collect::<Result<Vec<_>>>()?;
    let mut region = Region::new(body.epilogue(), cx.module(), sources);
    // One element a thread: its loads can be under way during the main loop.
    let hoist = (plan.slots * HEIGHT).max(32) <= 32 * plan.pieces;
    let mut out = Code::default();
    let (mut declarations, mut early, mut late) = (Vec::new(), Vec::new(), Vec::new());
    for part in parts(&mut region, found, &pointers)? {
        let halves = match hoist {
            true => split(&part.lines),
            false => Split { late: text(&part.lines), ..Split::default() },
        };
        declarations.extend(halves.declarations);
        branch(&mut early, part.range, shape.n, halves.early);
        branch(&mut late, part.range, shape.n, [halves.late, part.maxima].concat());
    }
    params.sizes(cx, &region)?;
    let mut element = Vec::new();
    for sink in found.iter().filter(|s| matches!(s.target, Target::TileMax { .. })) {
        element.push(format!("f32 most{} = __uint_as_float(0xff800000u);", sink.result));
    }
    element.push("if (active) {".to_string());
    element.extend(late.into_iter().map(|l| format!("  {l}")));
    element.push("}".to_string());
    for sink in found.iter().filter(|s| matches!(s.target, Target::TileMax { .. })) {
        let ty = body.epilogue().graph.ty(sink.value).as_tensor().map_or(DType::F32, |t| t.dtype);
        out.shared.push(format!("__shared__ f32 running{}[OUTPUTS];", sink.result));
        element.extend(tile_max(sink, ty, &pointers[sink.result], blocks(shape.n, group * HEIGHT)));
    }
    let column = columns.global("(int)tile", "local", HEIGHT);
    let lines = |s: &str| s.lines().map(str::to_string).collect::<Vec<_>>();
    let indent = |n: usize, lines: Vec<String>| lines.into_iter().map(move |l| format!("{}{l}", " ".repeat(n)));
    if hoist {
        // The last warps have least to do when rows are staged.
        out.look_up = lines(
            "const int made = (int)threadIdx.x - (THREADS - OUTPUTS);  // the element of a tile that this thread makes, if any
const int slot = made >= 0 ? made / HEIGHT : SLOTS;
const int local = made & (HEIGHT - 1);
const i32 t = row0 + (slot < count ? slot : 0);
bool active = false;
i32 n = 0;",
        );
        out.look_up.extend(declarations);
        out.look_up.extend(lines(&format!(
            "auto look_up = [&](u32 tile) {{
  const int column = {column};
  active = slot < count && column < N;
  n = column < N ? column : N - 1;
  if (made < 0) return;"
        )));
        out.look_up.extend(indent(2, early));
        out.look_up.push("};".to_string());
        out.late.push("if (made >= 0) {".to_string());
    } else {
        out.late = lines(&format!(
            "for (int made = threadIdx.x; made < OUTPUTS; made += THREADS) {{
  const int slot = made / HEIGHT;
  const int local = made % HEIGHT;
  const int column = {column};
  const bool active = slot < count && column < N;
  const i32 n = column < N ? column : N - 1;
  const i32 t = row0 + (slot < count ? slot : 0);"
        ));
    }
    out.late.extend(indent(2, element));
    out.late.push("}".to_string());
    Ok(out)
}

/// The maximum of a group of tiles: kept an element apart from tile to tile, then over the 16 lanes of a slot.
fn tile_max(sink: &Sink, dtype: DType, pointer: &str, tiles: i64) -> Vec<String> {
    let r = sink.result;
    vec![
        format!("if (tile % GROUP != 0) most{r} = fmaxf(most{r}, running{r}[made]);"),
        "if (tile % GROUP != GROUP - 1 && tile + 1 < TILES) {".to_string(),
        format!("  running{r}[made] = most{r};"),
        "} else {".to_string(),
        "#pragma unroll".to_string(),
        format!(
            "  for (int m = 8; m > 0; m >>= 1) most{r} = fmaxf(most{r}, __shfl_xor_sync(0xffffffffu, most{r}, m));"
        ),
        format!(
            "  if (local == 0 && slot < count) {pointer}[(i64)t * {tiles} + tile / GROUP] = {};",
            scalar::store(dtype, &format!("fmaxf(most{r}, __uint_as_float(0xff800000u))"))
        ),
        "}".to_string(),
    ]
}

/// What the kernel holds, as a comment: the ops of its regions.
fn ir(body: &Body) -> String {
    body.kernel.summary()
}
