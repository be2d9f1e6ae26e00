//! `matmul`, `bmm`, `moe_matmul`: three templates by the number of rows, four ways to find a tile's rows and weights.
//!
//! bf16 and f16 run on tensor cores with weights as the left operand, rows of x as the right ("slots"). K is cut into [`pieces`] that depend on K
//! alone, in units of 64; a unit is four multiplies of 16 neighbours. Every template adds the multiplies of a piece in the same order and then the pieces in
//! order, so the bits of a row do not depend on how many rows there are. `mma.sync` and `wgmma` give equal bits for equal sets of 16. Other dtypes take an f32 kernel that sums in the order of k.

use gossamer_ir::{DType, OpKind};

use super::{Cx, Size, blocks, operand, product, result, rows_of, single};
use crate::emit::{Piece, Text, c_type};
use crate::lower::{Arg, Launch, LowerError, Lowered};

/// Columns that one step of a warp takes.
pub(super) const UNIT: i64 = 64;
/// Pieces of K whose size depends on symbols.
const PIECES: i64 = 8;
/// Columns beyond which an offset within a tile of rows would not fit 32 bits.
pub(super) const MAX_K: i64 = 1 << 24;
/// Multiprocessors that a launch should keep busy.
pub(super) const PROCESSORS: i64 = 132;
/// Rows of `moe_matmul` up to which each is a tile of its own: fewer launches, and few rows share an expert.
const UNGROUPED: i64 = 8;

/// A template and its tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    /// Fragments straight from memory; tiles of 8 slots and of 16 rows of w.
    Stream { slot_tiles: i64, row_tiles: i64 },
    /// Tiles of 64 slots through shared memory.
    Tile { height: i64 },
    /// f32 arithmetic.
    Ffma,
}

impl Family {
    fn slots(self) -> i64 {
        match self {
            Family::Stream { slot_tiles, .. } => 8 * slot_tiles,
            Family::Tile { .. } => 64,
            Family::Ffma => 16,
        }
    }

    fn height(self) -> i64 {
        match self {
            Family::Stream { row_tiles, .. } => 16 * row_tiles,
            Family::Tile { height } => height,
            Family::Ffma => 64,
        }
    }
}

/// The problem: `slots` rows of K times w of N rows of K.
struct Shape {
    n: Size,
    k: Size,
    x: DType,
    w: DType,
    out: DType,
}

/// How a tile finds its rows; fills the templates' slots.
struct Locate {
    /// Parameters after `tiles`.
    params: &'static str,
    /// Statements that set `count` and move `w`.
    code: &'static str,
    /// Row of x of `slot`.
    x_row: &'static str,
    /// Row of y of `slot`.
    y_row: &'static str,
    /// Part of the kernel's name.
    name: &'static str,
}

const ROWS: Locate = Locate {
    params: ", i64 rows",
    code: "const i64 row0 = (i64)tile * SLOTS;\n\
           const int count = rows - row0 < SLOTS ? (int)(rows - row0) : SLOTS;",
    x_row: "row0 + slot",
    y_row: "row0 + slot",
    name: "",
};

const BATCH: Locate = Locate {
    params: ", i64 rows, u32 batch_tiles",
    code: "const i64 batch = tile / batch_tiles;\n\
           const i64 row0 = (i64)(tile % batch_tiles) * SLOTS;\n\
           const int count = rows - row0 < SLOTS ? (int)(rows - row0) : SLOTS;\n\
           w += batch * N * K;",
    x_row: "batch * rows + row0 + slot",
    y_row: "batch * rows + row0 + slot",
    name: "",
};

const ONE_EXPERT: Locate = Locate {
    params: ", const i32* __restrict__ ids, i32 experts, u32 choices",
    code: "constexpr int count = 1;\n\
           const i32 expert = ids[tile];\n\
           if (expert < 0 || expert >= experts) {\n\
           \x20 for (int i = threadIdx.x; i < HEIGHT; i += blockDim.x) {\n\
           \x20   if (n0 + i < N) y[(i64)tile * N + n0 + i] = from_f32<Out>(0.0f);\n\
           \x20 }\n\
           \x20 return;\n\
           }\n\
           w += (i64)expert * N * K;",
    x_row: "tile / choices",
    y_row: "tile",
    name: "_row",
};

const GROUPED: Locate = Locate {
    params: ", const i32* __restrict__ start, const i32* __restrict__ list, i32 experts, u32 choices",
    code: "__shared__ Group group;\n\
           if (threadIdx.x < 32) find_group(&group, start, experts, SLOTS, (i32)tile);\n\
           __syncthreads();\n\
           const int count = group.count;\n\
           if (count == 0) return;\n\
           list += group.first;\n\
           if (group.expert == experts) {  // rows whose id is no expert\n\
           \x20 for (int i = threadIdx.x; i < count * HEIGHT; i += blockDim.x) {\n\
           \x20   const i64 n = n0 + i % HEIGHT;\n\
           \x20   if (n < N) y[(i64)list[i / HEIGHT] * N + n] = from_f32<Out>(0.0f);\n\
           \x20 }\n\
           \x20 return;\n\
           }\n\
           w += (i64)group.expert * N * K;",
    x_row: "(u32)list[slot] / choices",
    y_row: "list[slot]",
    name: "_group",
};

/// Lowers a contraction.
pub fn lower(cx: &Cx) -> Result<Lowered, LowerError> {
    let (x, w, y) = (cx.plain(0)?, cx.plain(1)?, cx.result(0)?);
    let (ws, ys) = (cx.shape(w)?, cx.values(y)?);
    let &[.., n, k] = ws.as_slice() else {
        return Err(cx.malformed(format!("operand 1 is {w}, expected at least 2 dims")));
    };
    if product(&ys) == 0 {
        return Ok(Lowered::default());
    }
    if k.value >= MAX_K || n.value > i64::from(i32::MAX) {
        return Err(cx.unsupported(format!("{} x {} weights", n.value, k.value), "N below 2^31 and K below 2^24"));
    }
    let shape = Shape { n, k, x: x.dtype, w: w.dtype, out: y.dtype };
    let rows = product(&ys) / n.value;
    match cx.op.kind {
        OpKind::MatMul => {
            let family = family(&shape, rows, rows);
            let tiles = blocks(rows, family.slots());
            let args = vec![Arg::I64(rows)];
            Ok(single(launch(cx, &shape, family, &ROWS, tiles, args)?))
        }
        OpKind::BatchMatMul => {
            let batch = ys[0];
            let family = family(&shape, rows / batch, rows / batch);
            let tiles = blocks(rows / batch, family.slots());
            let args = vec![Arg::I64(rows / batch), Arg::I32(tiles as i32)];
            Ok(single(launch(cx, &shape, family, &BATCH, tiles * batch, args)?))
        }
        _ => moe(cx, &shape, rows, ws[0].value),
    }
}

/// The template for `rows` rows, of which about `shared` have the same weights.
fn family(shape: &Shape, rows: i64, shared: i64) -> Family {
    if shape.x != shape.w || !matches!(shape.x, DType::BF16 | DType::F16) {
        return Family::Ffma;
    }
    let slot_tiles = match shared {
        ..=8 => 1,
        9..=16 => 2,
        17..=32 => 4,
        _ => {
            return Family::Tile { height: tile_height(shape.n.value, rows) };
        }
    };
    // Two tiles of w share the fragments of x where there are blocks enough.
    let row_tiles = if shape.n.value >= 16384 { 2 } else { 1 };
    Family::Stream { slot_tiles, row_tiles }
}

/// Stages, warps along w and bytes of dynamic shared memory of the tile template.
pub(super) fn tile_geometry(height: i64) -> (i64, i64, i64) {
    let (stages, warps_n) = if height == 128 { (3, 4) } else { (4, 2) };
    (stages, warps_n, stages * 2 * (height * 64 + 64 + 64 * 64 + 64))
}

/// Rows of w in a tile of the tile template: as many as leave blocks enough.
pub(super) fn tile_height(n: i64, rows: i64) -> i64 {
    let wide = blocks(n, 128) * blocks(rows, 64) >= PROCESSORS;
    if wide { 128 } else { 64 }
}

/// How many pieces K is cut into, each summed on its own: what divides its units most evenly among at most 9 warps.
pub(super) fn pieces(k: Size) -> i64 {
    if !k.constant {
        return PIECES;
    }
    let units = blocks(k.value, UNIT).max(1);
    let longest = |p: i64| blocks(units, p);
    // Compare units / (p * longest) as fractions; later, larger counts win ties.
    (4..=9.min(units)).fold(units.min(4), |best, p| if best * longest(best) >= p * longest(p) { p } else { best })
}

fn moe(cx: &Cx, shape: &Shape, rows: i64, experts: i64) -> Result<Lowered, LowerError> {
    let ids = cx.values(cx.plain(2)?)?;
    // Rows of x per row of ids: x[t, k] serves every choice j of t.
    let choices = if cx.plain(0)?.rank() == 2 { ids[1] } else { 1 };
    if rows > i64::from(i32::MAX) || experts >= i64::from(i32::MAX) {
        return Err(cx.unsupported(format!("{rows} rows for {experts} experts"), "fewer than 2^31 of each"));
    }
    let average = blocks(rows, experts.max(1));
    if rows <= UNGROUPED {
        let args = vec![operand(2), Arg::I32(experts as i32), Arg::I32(choices as i32)];
        return Ok(single(launch(cx, shape, family(shape, rows, 1), &ONE_EXPERT, rows, args)?));
    }
    let group = Text::new("moe_group", "moe_matmul: rows by expert", include_str!("cuda/moe_group.cu"))
        .with(Piece::Reduce)
        .set("start", "")
        .build();
    let args = vec![operand(2), Arg::Kept(0), Arg::Kept(1), Arg::I32(rows as i32), Arg::I32(experts as i32)];
    let group = cx.launch(group, experts + 1, 256, args)?;
    // A list is at most this many rows; groups of a few rows do not fill a tile, so tiles are sized by the average.
    let family = match family(shape, rows, rows.min(2 * average)) {
        Family::Tile { .. } => Family::Tile { height: 128 },
        other => other,
    };
    let tiles = rows / family.slots() + rows.min(experts + 1);
    let args = vec![Arg::Kept(0), Arg::Kept(1), Arg::I32(experts as i32), Arg::I32(choices as i32)];
    let multiply = launch(cx, shape, family, &GROUPED, tiles, args)?;
    let kept = vec![4 * (experts as u64 + 2), 4 * rows as u64];
    Ok(Lowered { launches: vec![group, multiply], prepare: 1, kept, ..Lowered::default() })
}

fn launch(
    cx: &Cx,
    shape: &Shape,
    family: Family,
    locate: &Locate,
    tiles: i64,
    more: Vec<Arg>,
) -> Result<Launch, LowerError> {
    let Shape { n, k, .. } = *shape;
    let pieces = pieces(k);
    let mut params = locate.params.to_string();
    let mut args = vec![operand(0), operand(1), result(0), Arg::I32(tiles as i32)];
    args.extend(more);
    let mut constants = Vec::new();
    for (name, size, what) in [("N", n, "rows of w"), ("K", k, "columns")] {
        if size.constant {
            constants.push(format!("constexpr i64 {name} = {};  // {what}", size.value));
        } else {
            params.push_str(&format!(", i64 {name}"));
            args.push(Arg::I64(size.value));
        }
    }
    let aligned = k.constant && k.value % 8 == 0;
    if family != Family::Ffma {
        constants.push(format!("constexpr bool ALIGNED = {aligned};  // rows are whole runs of 16 bytes"));
    }
    let text = |s: Size, name: &str| if s.constant { s.value.to_string() } else { name.to_string() };
    let (n_text, k_text) = (text(n, "N"), text(k, "K"));
    let mut operands = vec![rows_of(shape.x, &k_text), rows_of(shape.w, format!("{n_text}, {k_text}"))];
    if cx.op.kind == OpKind::MoeMatMul {
        operands.push("i32[T, J]".into());
    }
    let ir = cx.ir(&operands, &[rows_of(shape.out, &n_text)]);
    let (body, how) = match family {
        Family::Stream { slot_tiles, row_tiles } => {
            (include_str!("cuda/matmul_stream.cu"), format!("s{}x{}", 8 * slot_tiles, 16 * row_tiles))
        }
        Family::Tile { height } => (include_str!("cuda/matmul_tile.cu"), format!("t64x{height}")),
        Family::Ffma => (include_str!("cuda/matmul_ffma.cu"), "f".to_string()),
    };
    let name = format!("{}_{}_{}_{}_n{n_text}_k{k_text}{}_{how}", cx.name(), shape.x, shape.w, shape.out, locate.name);
    let mut source = Text::new(name, ir, body)
        .set("in_type", c_type(shape.x))
        .set("x_type", c_type(shape.x))
        .set("w_type", c_type(shape.w))
        .set("out_type", c_type(shape.out))
        .set("constants", constants.join("\n"))
        .set("params", params)
        .set("locate", locate.code)
        .set("x_row", locate.x_row)
        .set("epilogue", format!("y[(i64)({}) * N + n] = from_f32<Out>(sum);", locate.y_row))
        .set("pieces", pieces)
        .set("slots", family.slots())
        .set("height", family.height())
        .set("out", format!("typedef {} Out;", c_type(shape.out)))
        .set("pointers", "const In* __restrict__ x, const In* __restrict__ w, Out* __restrict__ y")
        .set("start", "")
        .set("w_base", "n0 * K")
        .set("w_row", "w_row[i] = (u32)(n0 + n < N ? n : N - 1 - n0) * (u32)K;")
        .set(
            "finish",
            format!(
                "const i64 n = n0 + i % HEIGHT;\n\
                 if (n >= N) continue;\n\
                 const f32 sum = out[slot * (HEIGHT + 4) + i % HEIGHT];\n\
                 y[(i64)({}) * N + n] = from_f32<Out>(sum);",
                locate.y_row
            ),
        );
    if locate.name == GROUPED.name {
        source = source.with(Piece::Group);
    }
    let (threads, shared) = match family {
        Family::Stream { slot_tiles, row_tiles } => {
            let whole = k.constant && k.value % UNIT == 0;
            let even = k.constant && blocks(k.value, UNIT) % pieces == 0;
            let trips = blocks(k.value, UNIT) / pieces;
            let count = match even {
                true => trips.to_string(),
                false => "(int)((i64)units * (piece + 1) / PIECES) - first_unit".to_string(),
            };
            let unroll = match slot_tiles * row_tiles {
                1 if even && trips <= 6 => trips.max(1),
                1 => 4,
                _ => 2,
            };
            source = source
                .with(Piece::Mma)
                .set("slot_tiles", slot_tiles)
                .set("row_tiles", row_tiles)
                .set("unit_count", count)
                .set("unroll", unroll)
                .set(
                    "load_w",
                    if whole { "stream_share(w_row[r][h], k, c)" } else { "load_share<ALIGNED>(w_row[r][h], k, c, K)" },
                )
                .set("load_x", format!("load_share<{}>(x_row[s], k, c, K)", if whole { "true" } else { "ALIGNED" }));
            (pieces * 32, 0)
        }
        Family::Tile { height } => {
            let elements = product(&cx.values(cx.plain(0)?)?);
            if elements > i64::from(u32::MAX) {
                return Err(cx.unsupported(format!("{elements} elements of x"), "fewer than 2^32"));
            }
            let (stages, warps_n, shared) = tile_geometry(height);
            source = source
                .with(Piece::Mma)
                .with(Piece::Async)
                .set("stages", stages)
                .set("warps_n", warps_n)
                .set("blocks", 2);
            (256, shared)
        }
        Family::Ffma => (256, 0),
    };
    let columns = blocks(n.value, family.height());
    let mut launch = cx.launch(source.build(), tiles * columns, threads as u32, args)?;
    launch.shared = shared as u32;
    Ok(launch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_depend_on_k_alone_and_divide_it_evenly() {
        let of = |k| pieces(Size::known(k));
        assert_eq!((of(2880), of(4096), of(64), of(1), of(128), of(320)), (9, 8, 1, 1, 2, 5));
        assert_eq!(pieces(Size { value: 2880, factor: 1, constant: false }), PIECES);
        for k in 1..6000 {
            let p = of(k);
            assert!((1..=blocks(k, UNIT).clamp(1, 9)).contains(&p), "{k}: {p}");
        }
    }

    #[test]
    fn pieces_cover_every_unit_once() {
        for k in (1..9000).step_by(37) {
            let (units, p) = (blocks(k, UNIT), pieces(Size::known(k)));
            let ends: Vec<_> = (0..=p).map(|i| units * i / p).collect();
            assert_eq!((ends[0], ends[p as usize]), (0, units));
            assert!(ends.windows(2).all(|e| e[0] < e[1]), "{k}");
        }
    }

    #[test]
    fn tile_bound_covers_every_grouping() {
        // As many tiles as any spread of rows over experts can need.
        for (rows, experts, slots) in [(9, 4, 8), (32, 32, 8), (8192, 32, 64), (100, 3, 32), (64, 1, 64)] {
            let bound = rows / slots + std::cmp::min(rows, experts + 1);
            // The worst spread: as many lists as possible with one row beyond whole tiles.
            let lists = std::cmp::min(rows, experts + 1);
            let worst = (1..=lists).map(|l| (rows - l) / slots + l).max().unwrap_or(0);
            assert!(worst <= bound, "{rows} {experts} {slots}");
        }
    }
}
