//! `moe_wide`: experts for the rows of many sequences, on warpgroup multiplies that sum K in pieces, so that rows have the bits of `moe_stream`. Every
//! block lists rows by expert for itself and makes a run of what there is to do.

use super::super::contraction::{PROCESSORS, pieces};
use super::super::region::{Index, unsupported};
use super::super::wgmma::{multiplies_held, multiply_held, narrowest};
use super::super::{Cx, Size, blocks, operand, single};
use super::moe::{Experts, Held, RECORD, ROOM, Strips, TILE, combines, epilogue, place, results_of};
use super::{Body, Params};
use crate::emit::{Piece, Text};
use crate::lower::{Arg, LowerError, Lowered, Wanted};
use crate::resources::SHARED_PER_BLOCK;

type Result<T> = std::result::Result<T, LowerError>;

/// Rows that a kernel's tables hold; the text depends on the class only.
const ROWS: [i64; 6] = [128, 256, 512, 1024, 2048, 4096];
/// Warps that copy rows of x; one more asks for w.
const COPIERS: i64 = 3;
/// Stages at most: more bytes under way than these make nothing faster.
const STAGES: i64 = 8;
/// Bytes of a block's weights that the kernel in front asks memory for. On an H100 with 64 sequences of GPT-OSS 20B a step takes 5814 us without, 5760 with
/// 64 KiB, 5748 with 128 (performance.md 26).
const AHEAD: u64 = 128 << 10;
/// Units that are known ahead.
const QUEUE: i64 = 4;
/// Bytes of shared memory that a kernel may declare.
const STATIC: i64 = 48 << 10;

/// How the work is cut. Results do not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Variant {
    /// Rows of x of an item at most.
    pub slots: i64,
    /// Groups of 128 threads that multiply, each warp a strip.
    pub groups: i64,
    /// Tiles of 16 rows of w in a strip.
    pub parts: i64,
    /// Widths of a multiply below `slots`, for items with fewer rows.
    pub narrower: &'static [i64],
    /// Tiles of 64 k in a stage at most.
    pub chunk: i64,
    /// Percent of the slabs that are divided beforehand; blocks ask for the rest.
    pub own: i64,
    /// Registers of a thread that copies, and of one that multiplies.
    pub registers: (i64, i64),
}

/// By the average number of rows an expert has; an expert with more rows than slots is read again. `even`: a strip must hold an even number of tiles.
/// Measured on an H100 with GPT-OSS's sizes, 64 to 512 tokens (performance.md 14): long stages always; dividing all beforehand is 6 % faster for up
/// to 16 rows of 32 experts, 1 to 3 % slower for 128 experts or more rows. 56 slots and three stages are 5 % faster for 32 rows an expert than 64 and two
/// (performance.md 21). Three groups of an item's slabs at a time leave fewer idle than four where a block has eleven slabs (performance.md 26).
pub(super) fn variant(rows: i64, experts: i64, even: bool) -> Variant {
    let of = |slots, narrower, own| match (slots, even) {
        (_, true) => Variant { slots, groups: 2, parts: 2, narrower, chunk: 5, own, registers: (56, 224) },
        (..=16, false) => Variant { slots, groups: 4, parts: 1, narrower, chunk: 5, own, registers: (32, 112) },
        (_, false) => Variant { slots, groups: 3, parts: 1, narrower, chunk: 5, own, registers: (56, 152) },
    };
    match blocks(rows, experts) {
        ..=4 => of(16, &[8], 90),
        5..=16 => of(32, &[16, 24], 100),
        // As many slots as leave room for a third stage.
        17..=40 => of(56, &[32, 40, 48], 90),
        _ => of(64, &[32, 40, 48], 90),
    }
}

/// A variant with what follows from it.
#[derive(Clone, Copy, Debug)]
struct Plan {
    v: Variant,
    rows: i64,
    experts: i64,
    stages: i64,
    /// Bytes behind the records of a tile in a stage: [`ROOM`], or 0.
    room: i64,
    /// Rows whose results are finished at a time.
    finished: i64,
}

impl Plan {
    /// The variant for this problem, with as many stages as fit.
    fn choose(shape: &Experts, even: bool) -> Result<Plan> {
        let rows = ROWS.into_iter().find(|r| *r >= shape.rows()).ok_or_else(|| {
            let most = ROWS[ROWS.len() - 1];
            unsupported(format!("{} rows of experts", shape.rows()), format!("at most {most}; template `moe_tile`"))
        })?;
        let mut v = variant(shape.rows(), shape.experts, even);
        let longest = blocks(shape.k_tiles(), pieces(Size::known(shape.k)));
        loop {
            // Stages of a piece as even as can be.
            v.chunk = blocks(longest, blocks(longest, v.chunk));
            let plan = |stages, finished, room| Plan { v, rows, experts: shape.experts, stages, room, finished };
            // With as many stages as fit, two at least: one is fetched while another is multiplied.
            let with =
                |finished, room| (2..=STAGES).rev().map(|stages| plan(stages, finished, room)).find(|plan| plan.fits());
            let room = if v.parts == 1 { ROOM } else { 0 };
            let finished = if v.slots % 16 == 0 { 16 } else { 8 };
            if let Some(tight) = with(finished, 0) {
                // A stage more is worth more than faster copies, and these more than many rows finished at a time.
                let roomy = [with(finished, room), with(8, room)].into_iter().flatten();
                return Ok(roomy.into_iter().find(|plan| plan.stages >= tight.stages).unwrap_or(tight));
            }
            if v.chunk == 1 {
                return Err(unsupported(
                    format!("{} experts", shape.experts),
                    "experts whose counts fit shared memory",
                ));
            }
            v.chunk -= 1;
        }
    }

    fn strips(&self) -> i64 {
        4 * self.v.groups
    }

    fn threads(&self) -> i64 {
        128 * (self.v.groups + 1)
    }

    /// Bytes of dynamic shared memory: stages, then counts of rows and later results under way.
    fn dynamic(&self) -> i64 {
        let v = &self.v;
        let stage = v.chunk * v.slots * 128 + self.strips() * v.parts * place(v.chunk, self.room);
        let out = self.strips() * self.finished * (TILE * v.parts + 4) * 4;
        let counts = 2 * (self.strips() + COPIERS) * (self.experts + 1);
        // What it may take to begin at a multiple of 1024 bytes.
        let align = 1024 - 16;
        self.stages * stage + out.max(blocks(counts, 16) * 16) + align
    }

    /// Items there may be at most.
    fn items(&self) -> i64 {
        self.rows / self.v.slots + self.rows.min(self.experts + 1)
    }

    /// Tables of rows, units and signals.
    fn fixed(&self) -> i64 {
        let lists = 4 + 8 * self.items() + 4 * (self.experts + 1) + 2 * self.rows;
        lists + (20 + 16) * QUEUE + 16 * self.stages + 32
    }

    fn fits(&self) -> bool {
        self.fixed() <= STATIC && self.dynamic() + self.fixed() <= i64::from(SHARED_PER_BLOCK)
    }
}

/// Lowers a kernel of template `moe_wide`.
pub fn lower(cx: &Cx, body: &Body) -> Result<Lowered> {
    let shape = Experts::of(cx, body)?;
    if shape.rows() == 0 {
        return Ok(Lowered::default());
    }
    let found = results_of(body, &shape)?;
    if combines(body, &found) {
        return Err(unsupported("a sum over choices where rows of a token are apart", "template `moe_stream`"));
    }
    let even = Strips::choose(&found, shape.n, 1)?.tiles() == 2;
    let plan = Plan::choose(&shape, even)?;
    let v = &plan.v;
    let strips = Strips::choose(&found, shape.n, v.parts)?;
    let slabs = blocks(strips.count, 4);
    // Prices of all slabs fit 32 bits.
    if slabs.saturating_mul(plan.items()) > i64::from(i32::MAX / 64) {
        return Err(unsupported(format!("{} experts of {} rows", shape.experts, shape.n), "template `moe_tile`"));
    }

    let mut params = Params::default();
    let product = |_: &Index, _: &Index, local: &str| format!("out[slot * PITCH + {local}]");
    let expert = |_: &Index, _: &Index| "expert".to_string();
    let held = Held { product: &product, expert: &expert };
    let code = epilogue(cx, body, &shape, &strips, &found, false, &held, &mut params)?;

    let [x, w, ids] = shape.operands()?;
    let (list, more) = params.finish();
    // Nothing else points to where results go, so that loads of other rows need not wait for stores.
    let list = list.replace("* y", "* __restrict__ y");
    let list = if list.is_empty() { list } else { format!(", {list}") };
    let mut args = vec![operand(x), operand(w), operand(ids), Arg::I32(shape.tokens as i32), Arg::Counters];
    args.extend(more);
    args.push(Arg::Wanted);
    let functions: Vec<String> =
        v.narrower.iter().chain([&v.slots]).map(|n| multiply_held(*n, gossamer_ir::DType::BF16)).collect();
    let name =
        format!("moe_wide_e{}_n{}_k{}_r{}x{}", shape.experts, shape.n, shape.k, v.slots, TILE * v.parts * 4 * v.groups);
    let source = Text::new(name, shape.ir(body), include_str!("../cuda/moe_wide.cu"))
        .with(Piece::Async)
        .with(Piece::Wgmma)
        .with(Piece::Mxfp4)
        .with(Piece::Rows)
        .set("constants", shape.constants(&strips))
        .set("pieces", pieces(Size::known(shape.k)))
        .set("rows", plan.rows)
        .set("slots", v.slots)
        .set("stages", plan.stages)
        .set("groups", v.groups)
        .set("parts", v.parts)
        .set("chunk", v.chunk)
        .set("room", plan.room)
        .set("finished", plan.finished)
        .set("fast", shape.fast)
        .set("early", cx.early(ids))
        .set("own", v.own)
        .set("multiplies", functions.join("\n"))
        .set("tile", strips.tile())
        .set("unrolled", unrolled(v.narrower, v.slots))
        .set("widths", multiplies_held(v.narrower, v.slots, "keep"))
        .set("width", narrowest(v.narrower))
        .set("copy_registers", v.registers.0)
        .set("multiply_registers", v.registers.1)
        .set("x_row", shape.x_row())
        .set("finish", code.lines.join("\n"))
        .set("params", list)
        .build();
    // An item has at least a row.
    let units = slabs.saturating_mul(plan.items().min(shape.rows()));
    let mut launch = cx.launch(source, units.min(PROCESSORS), plan.threads() as u32, args)?;
    launch.shared = plan.dynamic() as u32;
    launch.dependent = true;
    Ok(Lowered { counters: 1, wanted: wanted(&shape, w), ..single(launch) })
}

/// What blocks read first of the weights `w` of each layer, if nearly all experts are chosen: then the slabs begin near equal parts of all weights.
fn wanted(shape: &Experts, w: usize) -> Option<Wanted> {
    let all = shape.rows() >= 4 * shape.experts;
    let bytes = shape.experts.checked_mul(blocks(shape.n, TILE))?.checked_mul(shape.k_tiles() * RECORD)? as u64;
    all.then(|| Wanted::parts_of(w, bytes, PROCESSORS as u32, AHEAD))
}

/// Multiplies as wide as an item has rows, where the text is unrolled.
fn unrolled(narrower: &[i64], slots: i64) -> String {
    let mut out: Vec<String> =
        narrower.iter().map(|w| format!("if (count <= {w}) multiply(Width<{w}>());\nelse ")).collect();
    out.push(format!("multiply(Width<{slots}>());"));
    out.concat()
}

#[cfg(test)]
mod tests {
    use super::super::moe::RECORD;
    use super::*;
    use crate::lower::Part;

    /// Some value.
    fn product() -> gossamer_ir::Value {
        let ty = gossamer_ir::Type::tensor(gossamer_ir::DType::F32, []);
        gossamer_ir::Func::new("f", vec![gossamer_ir::Param { name: "p".into(), ty, weight: false }]).param(0).unwrap()
    }

    fn shape(tokens: i64, experts: i64, k: i64) -> Experts {
        Experts {
            tokens,
            choices: 4,
            experts,
            n: 64,
            k,
            shared_x: true,
            fast: true,
            x: Some(0),
            w: 1,
            ids: 2,
            product: product(),
        }
    }

    #[test]
    fn every_problem_has_a_plan_that_fits() {
        for tokens in [1, 8, 32, 64, 128, 256, 512, 1024] {
            for experts in [1, 3, 32, 128, 1024] {
                for k in [32, 96, 640, 2880, 4096, 65536, 1 << 23] {
                    for even in [false, true] {
                        let p = Plan::choose(&shape(tokens, experts, k), even).unwrap();
                        let v = p.v;
                        assert!(p.rows >= 4 * tokens && p.fits() && p.stages >= 2, "{p:?}");
                        assert!(v.slots % p.finished == 0 && v.slots % 8 == 0 && v.narrower.is_sorted(), "{p:?}");
                        assert!(p.room == 0 || v.parts == 1, "{p:?}");
                        assert!(v.parts * p.strips() <= 32 && (v.parts % 2 == 0 || !even), "{p:?}");
                        // What setmaxnreg hands out may not exceed what the launch got: 65,536 registers in units of 8 a thread.
                        let launched = 65536 / p.threads() / 8 * 8;
                        assert!(v.registers.1 * v.groups + v.registers.0 <= launched * (v.groups + 1), "{p:?}");
                    }
                }
            }
        }
        let refused = Plan::choose(&shape(1025, 32, 2880), false).err().unwrap().to_string();
        assert!(refused.contains("4100 rows of experts") && refused.contains("moe_tile"), "{refused}");
        let refused = Plan::choose(&shape(64, 1 << 20, 2880), false).err().unwrap().to_string();
        assert!(refused.contains("1048576 experts"), "{refused}");
    }

    #[test]
    fn weights_are_wanted_ahead_where_nearly_all_experts_are_chosen() {
        let found = wanted(&Experts { n: 5760, ..shape(64, 32, 2880) }, 1).unwrap();
        // 32 experts of 360 tiles across and 45 along.
        let apart = 32 * 360 * 45 * 544 / 132 / 128 * 128;
        assert_eq!(found, Wanted { index: 1, part: Part::Data, apart, parts: 132, bytes: 128 << 10 });
        // Parts that are shorter are wanted whole.
        let small = wanted(&shape(64, 4, 64), 1).unwrap();
        assert_eq!(u64::from(small.bytes), small.apart);
        assert_eq!(wanted(&shape(64, 128, 2880), 1), None, "of 128 experts 100 are chosen");
    }

    #[test]
    fn memory_stays_busy_while_a_stage_is_multiplied() {
        for (tokens, experts) in [(32, 32), (64, 32), (128, 32), (256, 32), (64, 128), (256, 128)] {
            let p = Plan::choose(&shape(tokens, experts, 2880), false).unwrap();
            let bytes = p.v.chunk * p.strips() * p.v.parts * RECORD;
            assert_eq!(p.room, ROOM, "{tokens} of {experts}: {p:?}");
            // Little's law for 132 SMs asks for 32 KB; what more rows than 16 an expert need is tensor cores first.
            assert!(
                (p.stages - 1) * bytes >= if p.v.slots > 32 { 28 << 10 } else { 48 << 10 },
                "{tokens} of {experts}: {p:?}"
            );
        }
    }
}
