//! `tile`: matmul of many rows, with scalar code on the product. The main loop, and so the bits, are those of the op alone.

use gossamer_ir::{DType, OpKind};

use super::super::contraction::{MAX_K, pieces, tile_geometry, tile_height};
use super::super::region::{Columns, Index, Region, Source, Target, malformed, text, unsupported};
use super::super::{Cx, Size, blocks, single};
use super::finish::{branch, parts, product_sinks};
use super::{Body, Origin, Params};
use crate::emit::{Piece, Text, c_type};
use crate::lower::{LowerError, Lowered};

/// Rows of x in a tile.
const SLOTS: i64 = 64;

/// Lowers a kernel of template `tile`.
pub fn lower(cx: &Cx, body: &Body) -> Result<Lowered, LowerError> {
    let main = body.kernel.main();
    let product = body.heavy()?;
    let op = main.graph.op(product.op);
    let (OpKind::MatMul, [x, w]) = (op.kind, op.operands.as_slice()) else {
        return Err(malformed("template `tile` holds a matmul"));
    };
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
    if !(1..MAX_K).contains(&k) || n < 1 || n.saturating_mul(k) > i64::from(u32::MAX) {
        return Err(unsupported(format!("{n} x {k} weights"), "fewer than 2^32 elements"));
    }
    let rows = cx.size(&xt.dims[0])?.value;
    if rows == 0 {
        return Ok(Lowered::default());
    }
    if rows.saturating_mul(k) > i64::from(u32::MAX) {
        return Err(unsupported(format!("{rows} rows of {k}"), "fewer than 2^32 elements"));
    }
    let height = tile_height(n, rows);
    let found = product_sinks(body, product)?;
    if found.iter().any(|s| matches!(s.target, Target::TileMax { .. } | Target::ArgMax)) {
        return Err(unsupported("a reduction over columns of many rows", "template `stream`"));
    }
    let columns = Columns::choose(&found, n, height)?;
    let mut params = Params::default();
    let (x, w) = (params.operand(cx, x)?, params.operand(cx, w)?);
    let sources = body.epilogue_sources(cx, &mut params, |_| {
        let give = move |at: &[Index]| format!("out[slot * (HEIGHT + 4) + {}]", columns.local(&at[1], height));
        Some(Source::Given(Box::new(give)))
    })?;
    let pointers = (0..cx.op.results.len()).map(|r| params.result(cx, r)).collect::<Result<Vec<_>, _>>()?;
    let mut region = Region::new(body.epilogue(), cx.module(), sources);
    let mut finish = vec![
        "const int local = i % HEIGHT;".to_string(),
        format!("const i32 n = {};", columns.global("(i32)(blockIdx.x / tiles)", "local", height)),
        "if (n >= N) continue;".to_string(),
        // Not from row0: what lives through the main loop costs registers.
        "const i32 t = (i32)(blockIdx.x % tiles) * SLOTS + slot;".to_string(),
    ];
    for part in parts(&mut region, &found, &pointers)? {
        branch(&mut finish, part.range, n, text(&part.lines));
    }
    params.sizes(cx, &region)?;
    let tiles = blocks(rows, SLOTS);
    params.int("tiles", tiles);
    params.long("rows", rows);
    let (list, args) = params.finish();
    let (stages, warps_n, shared) = tile_geometry(height);
    let column = columns.global("(i32)(blockIdx.x / tiles)", "n", height);
    let start = format!(
        "let_successors_start();\nwait_for_predecessors();\nconst In* const x = {x};\nconst In* const w = {w};"
    );
    let constants = [
        format!("constexpr i64 N = {n};  // rows of w"),
        format!("constexpr i64 K = {k};  // columns"),
        format!("constexpr bool ALIGNED = {};  // rows are whole runs of 16 bytes", k % 8 == 0),
    ];
    let list = list.replace(", i32 tiles, i64 rows", "");
    let source = Text::new(
        format!("tile_{}_n{n}_k{k}_t64x{height}", xt.dtype),
        body.kernel.summary(),
        include_str!("../cuda/matmul_tile.cu"),
    )
    .with(Piece::Mma)
    .with(Piece::Async)
    .with(Piece::Dependent)
    .set("in_type", c_type(xt.dtype))
    .set("out", "")
    .set("constants", constants.join("\n"))
    .set("pointers", list)
    .set("params", ", i64 rows")
    .set("start", start)
    .set("locate", ROWS)
    .set("x_row", "row0 + slot")
    .set("w_base", "0")
    .set("w_row", format!("const int column = {column};\nw_row[i] = (u32)(column < N ? column : N - 1) * (u32)K;"))
    .set("finish", finish.join("\n"))
    .set("pieces", pieces(Size::known(k)))
    .set("slots", SLOTS)
    .set("height", height)
    .set("stages", stages)
    .set("warps_n", warps_n)
    // Two blocks a multiprocessor hide each other's waits; where N gives few blocks the registers are worth more to a long epilogue.
    .set("blocks", if n > 1024 { 2 } else { 1 })
    .build();
    let mut launch = cx.launch(source, tiles * blocks(n, height), 256, args)?;
    launch.shared = shared as u32;
    launch.dependent = true;
    Ok(single(launch))
}

/// Statements that find a tile's rows.
const ROWS: &str = "const i64 row0 = (i64)tile * SLOTS;\n\
                    const int count = rows - row0 < SLOTS ? (int)(rows - row0) : SLOTS;";
