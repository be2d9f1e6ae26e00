//! `moe_gemm`: experts for a prompt's rows, on warpgroup multiplies that sum K in one chain. Rows are grouped by expert and cut into tiles by a kernel
//! in front; blocks take (tile, strips of w) from a counter.

use super::super::contraction::PROCESSORS;
use super::super::region::unsupported;
use super::super::wgmma::{multiplies_held, multiply_held, narrowest};
use super::super::{Cx, blocks, operand};
use super::moe::{Experts, RECORD, Strips, TILE, combines, results_of, runs};
use super::{Body, Params};
use crate::emit::{Piece, Text};
use crate::lower::{Arg, Launch, LowerError, Lowered};
use crate::resources::SHARED_PER_BLOCK;

type Result<T> = std::result::Result<T, LowerError>;

/// Warps of a block that orders rows.
const ORDER_WARPS: i64 = 16;
/// Rows from which a cluster orders them.
const ORDER_ALONE: i64 = 2048;
/// Blocks of that cluster.
const ORDER_BLOCKS: i64 = 8;

/// How the work is cut. Results do not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Variant {
    /// Rows of x in a tile.
    pub slots: i64,
    /// Groups of 128 threads that multiply, each warp a strip.
    pub groups: i64,
    /// Tiles of 16 rows of w in a strip.
    pub parts: i64,
    /// Decoded tiles that a warp holds.
    pub held: i64,
    /// Tiles of 64 k in a stage.
    pub step: i64,
    /// Widths of a multiply below `slots`, for tiles with fewer rows.
    pub narrower: &'static [i64],
    /// Rows whose results are finished at a time.
    pub chunk: i64,
    /// Registers of a thread that copies, and of one that multiplies.
    pub registers: (i64, i64),
}

/// Tiles of 128 rows of x and 256 of w.
const WIDE: Variant = Variant {
    slots: 128,
    groups: 2,
    parts: 2,
    held: 2,
    step: 2,
    narrower: &[16, 32, 64, 96],
    chunk: 16,
    registers: (64, 216),
};
/// The same with more rows of x: decoding a tile of w pays for more of them, but the sums take nearly all registers.
const WIDER: Variant = Variant { slots: 144, narrower: &[16, 32, 64, 96, 128], registers: (56, 224), ..WIDE };
/// Tiles of 192 rows of x and as many of w. A third group hides what the others wait for, so each decodes only when its multiply is done.
const SQUARE: Variant = Variant {
    slots: 192,
    groups: 3,
    parts: 1,
    held: 1,
    narrower: &[16, 32, 64, 96, 128, 160],
    registers: (56, 152),
    ..WIDE
};

/// The same with fewer rows of x, so that a warp can decode a tile while another is multiplied: what decoding costs counts more where an expert's last tile is
/// half empty.
const NARROWER: Variant = Variant { slots: 160, held: 2, narrower: &[16, 32, 64, 96, 128], ..SQUARE };
const D128: Variant = Variant { slots: 128, held: 2, narrower: &[16, 32, 64, 96], ..SQUARE };

/// By the average number of rows an expert has. `even`: a strip must hold an even number of tiles.
pub(super) fn variant(rows: i64, experts: i64, even: bool) -> Variant {
    // Decoding takes longer than multiplying few rows, so more warps share it.
    let few = |slots, narrower| match even {
        false => Variant { slots, groups: 4, parts: 1, narrower, registers: (40, 104), ..WIDE },
        true => Variant { slots, narrower, ..WIDE },
    };
    match blocks(rows, experts) {
        ..=16 => few(32, &[16]),
        17..=48 => few(64, &[16, 32]),
        49..=159 if !even && std::env::var("GS_X").as_deref() == Ok("d") => NARROWER,
        49..=159 if !even && std::env::var("GS_X").as_deref() == Ok("e") => D128,
        49..=96 => WIDE,
        97..=159 => WIDER,
        _ if even => WIDER,
        160..=383 => NARROWER,
        _ => SQUARE,
    }
}

impl Variant {
    /// Bytes of shared memory with this many stages.
    fn dynamic(&self, stages: i64) -> i64 {
        let strips = 4 * self.groups;
        let stage = self.step * (self.slots * 128 + strips * self.parts * RECORD);
        let out = strips * self.chunk * (TILE * self.parts + 4) * 4;
        // Tables of units and signals, and what it may take to begin at a multiple of 1024 bytes.
        let align = 1024 - 16;
        stages * (stage + 16 + 16) + out + self.groups * self.slots * 4 + 16 + align
    }

    /// As many stages as fit, up to 8.
    fn stages(&self) -> i64 {
        (2..=8).rev().find(|s| self.dynamic(*s) <= i64::from(SHARED_PER_BLOCK)).unwrap_or(2)
    }

    fn threads(&self) -> i64 {
        128 * (self.groups + 1)
    }
}

/// Lowers a kernel of template `moe_gemm`.
pub fn lower(cx: &Cx, body: &Body) -> Result<Lowered> {
    let shape = Experts::of(cx, body)?;
    let rows = shape.rows();
    if rows == 0 {
        return Ok(Lowered::default());
    }
    let found = results_of(body, &shape)?;
    if combines(body, &found) {
        return Err(unsupported("a sum over choices where rows of a token are apart", "template `moe_stream`"));
    }
    // Places of rows are counted in 16 bytes, with 32 bits.
    if rows.saturating_mul(shape.k / 8) > i64::from(u32::MAX) {
        return Err(unsupported(format!("{rows} rows of {} columns", shape.k), "rows below 64 GiB in all"));
    }
    let even = Strips::choose(&found, shape.n, 1)?.tiles() == 2;
    let v = variant(rows, shape.experts, even);
    let strips = Strips::choose(&found, shape.n, v.parts)?;
    // Every expert's last tile may be partly empty.
    let most = rows / v.slots + rows.min(shape.experts + 1);

    let mut params = Params::default();
    let code = runs(cx, body, &shape, &strips, &found, &mut params)?;

    let [x, w, ids] = shape.operands()?;
    let (list, more) = params.finish();
    // Nothing else points to where results go, so that loads of other rows need not wait for stores.
    let list = list.replace("* y", "* __restrict__ y");
    let list = if list.is_empty() { list } else { format!(", {list}") };
    let mut args = vec![operand(x), operand(w), Arg::Kept(0), Arg::Kept(1), Arg::Counters];
    args.extend(more);
    let functions: Vec<String> =
        v.narrower.iter().chain([&v.slots]).map(|n| multiply_held(*n, gossamer_ir::DType::BF16)).collect();
    let height = TILE * 4 * v.parts * v.groups;
    let name = format!("moe_gemm_e{}_n{}_k{}_r{}x{height}", shape.experts, shape.n, shape.k, v.slots);
    let source = Text::new(name, shape.ir(body), include_str!("../cuda/moe_gemm.cu"))
        .with(Piece::Mma)
        .with(Piece::Dependent)
        .with(Piece::Async)
        .with(Piece::Wgmma)
        .with(Piece::Mxfp4)
        .set("constants", shape.constants(&strips))
        .set("slots", v.slots)
        .set("stages", v.stages())
        .set("groups", v.groups)
        .set("parts", v.parts)
        .set("held_tiles", v.held)
        .set("step", v.step)
        .set("chunk", v.chunk)
        .set("fast", shape.fast)
        .set("multiplies", functions.join("\n"))
        .set("tile", strips.tile())
        .set("widths", multiplies_held(v.narrower, v.slots, "u + s != 0"))
        .set("width", narrowest(v.narrower))
        .set("copy_registers", v.registers.0)
        .set("multiply_registers", v.registers.1)
        .set("x_row", shape.x_row())
        .set("lanes", strips.outputs() / code.columns)
        .set("once", code.once.join("\n"))
        .set("held", code.held)
        .set("finish", code.each.join("\n"))
        .set("params", list)
        .build();
    let units = most.saturating_mul(blocks(strips.count, 4 * v.groups));
    let mut multiply = cx.launch(source, units.min(PROCESSORS), v.threads() as u32, args)?;
    multiply.shared = v.dynamic(v.stages()) as u32;
    multiply.dependent = true;
    Ok(Lowered {
        launches: vec![order(cx, &shape, ids, v.slots)?, multiply],
        prepare: 1,
        kept: vec![4 * rows as u64, 16 * (most as u64 + 1)],
        counters: 2,
        ..Lowered::default()
    })
}

/// The kernel that lists rows by expert in prepared buffer 0 and tiles of them in 1. What else multiplies rows of the same choices takes the same lists.
fn order(cx: &Cx, shape: &Experts, ids: usize, slots: i64) -> Result<Launch> {
    let rows = shape.rows();
    let blocks = if rows < ORDER_ALONE { 1 } else { ORDER_BLOCKS };
    let keys = shape.experts + 1;
    let bytes = 4 * ((ORDER_WARPS + blocks + 3) * keys + 2);
    if bytes > i64::from(SHARED_PER_BLOCK) {
        return Err(unsupported(format!("{} experts", shape.experts), "experts whose counts fit shared memory"));
    }
    let name = format!("moe_order_e{}_r{slots}_b{blocks}", shape.experts);
    let source = Text::new(name, "moe_matmul: rows by expert, and tiles of them", include_str!("../cuda/moe_order.cu"))
        .with(Piece::Dependent)
        .with(Piece::Cluster)
        .set("experts", shape.experts)
        .set("slots", slots)
        .set("blocks", blocks)
        .set("warps", ORDER_WARPS)
        .set("cluster", if blocks > 1 { format!("__cluster_dims__({blocks}, 1, 1) ") } else { String::new() })
        .build();
    let args = vec![operand(ids), Arg::Kept(0), Arg::Kept(1), Arg::I32(rows as i32)];
    let mut launch = cx.launch(source, blocks, 32 * ORDER_WARPS as u32, args)?;
    launch.shared = bytes as u32;
    launch.dependent = true;
    Ok(launch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_fits_a_block() {
        for rows in [1, 8, 64, 513, 2048, 4096, 32768, 1 << 20] {
            for (experts, even) in [(1, false), (3, true), (32, false), (32, true), (128, false), (1024, true)] {
                let v = variant(rows, experts, even);
                assert!(v.dynamic(v.stages()) <= i64::from(SHARED_PER_BLOCK) && v.stages() >= 3, "{v:?}");
                let registers = v.registers.1 * v.groups + v.registers.0;
                // What setmaxnreg hands out may not exceed what the launch got: 65,536 registers in units of 8 a thread.
                let launched = 65536 / v.threads() / 8 * 8;
                assert!(registers <= launched * (v.groups + 1), "{v:?}");
                assert!(v.parts % 2 == 0 || !even);
                // Two tiles that take turns by parts, or by steps of a stage; or one, and another group that multiplies meanwhile.
                assert!(v.held == 2 && v.parts * v.step >= 2 || v.held == 1 && v.groups >= 2, "{v:?}");
                assert!(v.slots % v.chunk == 0 && v.chunk % 8 == 0 && v.narrower.is_sorted(), "{v:?}");
            }
        }
    }

    #[test]
    fn widths_are_tried_from_the_widest() {
        let v = variant(64, 8, false);
        assert_eq!(narrowest(v.narrower), "count <= 16 ? 16 : SLOTS");
        let text = multiplies_held(v.narrower, v.slots, "u + s != 0");
        assert!(text.starts_with("if (width == 32) {\n  multiply_begin();\n"), "{text}");
        assert!(text.contains(
            "} else {\n  multiply_begin();\n  multiply_held((f32(&)[8])sum[p], a[i][0], operand_of(b), u + s != 0);"
        ));
    }
}
