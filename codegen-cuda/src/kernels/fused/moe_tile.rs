//! `moe_tile`: experts for many rows. Rows are grouped by expert, then tiled; packed weights are decoded in registers on their way to the multiply.

use super::super::contraction::pieces;
use super::super::region::{Index, unsupported};
use super::super::{Cx, Size, blocks, operand};
use super::moe::{Experts, Held, RECORD, Strips, TILE, combines, epilogue, results_of};
use super::{Body, Params};
use crate::emit::{Piece, Text};
use crate::lower::{Arg, LowerError, Lowered};

/// Warps of a block.
const WARPS: i64 = 8;

/// How the work is cut. Results do not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Variant {
    /// Rows of x in a tile.
    pub slots: i64,
    /// Tiles of 16 rows of w that a warp multiplies.
    pub row_tiles: i64,
    /// Units of 64 k under way.
    pub stages: i64,
    /// Blocks on a multiprocessor.
    pub blocks: i64,
}

/// By the average number of rows an expert has: groups of a few rows do not fill a tile.
pub(super) fn variant(rows: i64, experts: i64) -> Variant {
    let slots = match 2 * blocks(rows, experts) {
        ..=16 => 16,
        17..=32 => 32,
        _ => 64,
    };
    Variant { slots, row_tiles: 1, stages: 4, blocks: 2 }
}

impl Variant {
    /// Bytes of dynamic shared memory: stages, then the sums of a tile.
    fn dynamic(&self) -> i64 {
        let tiles = WARPS * self.row_tiles;
        let stage = tiles * RECORD + self.slots * 144;
        (self.stages * stage).max(4 * self.slots * (TILE * tiles + 4))
    }
}

/// Lowers a kernel of template `moe_tile`.
pub fn lower(cx: &Cx, body: &Body) -> Result<Lowered, LowerError> {
    let shape = Experts::of(cx, body)?;
    let rows = shape.rows();
    if rows == 0 {
        return Ok(Lowered::default());
    }
    let found = results_of(body, &shape)?;
    if combines(body, &found) {
        return Err(unsupported("a sum over choices where rows of a token are apart", "template `moe_stream`"));
    }
    let v = variant(rows, shape.experts);
    let strips = Strips::choose(&found, shape.n, WARPS * v.row_tiles)?;

    let mut params = Params::default();
    let product = |_: &Index, _: &Index, local: &str| format!("out[slot * PITCH + {local}]");
    let expert = |_: &Index, _: &Index| "group.expert".to_string();
    let held = Held { product: &product, expert: &expert };
    let code = epilogue(cx, body, &shape, &strips, &found, false, &held, &mut params)?;

    let [x, w, ids] = shape.operands()?;
    // Every expert's last tile may be partly empty.
    let tiles = rows / v.slots + rows.min(shape.experts + 1);
    let (list, more) = params.finish();
    let list = if list.is_empty() { list } else { format!(", {list}") };
    let mut args = vec![operand(x), operand(w), Arg::Kept(0), Arg::Kept(1), Arg::I32(tiles as i32)];
    args.extend(more);
    let name = format!("moe_tile_e{}_n{}_k{}_r{}x{}", shape.experts, shape.n, shape.k, v.slots, TILE * strips.tiles());
    let source = Text::new(name, shape.ir(body), include_str!("../cuda/moe_tile.cu"))
        .with(Piece::Group)
        .with(Piece::Mma)
        .with(Piece::Dependent)
        .with(Piece::Async)
        .with(Piece::Mxfp4)
        .set("constants", shape.constants(&strips))
        .set("pieces", pieces(Size::known(shape.k)))
        .set("slots", v.slots)
        .set("row_tiles", v.row_tiles)
        .set("stages", v.stages)
        .set("blocks", v.blocks)
        .set("fast", shape.fast)
        .set("tile", strips.tile())
        .set("x_row", shape.x_row())
        .set("finish", code.lines.join("\n"))
        .set("params", list)
        .build();

    let group = Text::new("moe_group_dependent", "moe_matmul: rows by expert", include_str!("../cuda/moe_group.cu"))
        .with(Piece::Reduce)
        .with(Piece::Dependent)
        .set("start", "let_successors_start();\nwait_for_predecessors();")
        .build();
    let group_args =
        vec![operand(ids), Arg::Kept(0), Arg::Kept(1), Arg::I32(rows as i32), Arg::I32(shape.experts as i32)];
    let mut group = cx.launch(group, shape.experts + 1, 256, group_args)?;
    group.dependent = true;
    let mut multiply = cx.launch(source, tiles * strips.count, 256, args)?;
    multiply.shared = v.dynamic() as u32;
    multiply.dependent = true;
    Ok(Lowered {
        launches: vec![group, multiply],
        prepare: 1,
        kept: vec![4 * (shape.experts as u64 + 2), 4 * rows as u64],
        ..Lowered::default()
    })
}
