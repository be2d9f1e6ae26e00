//! `moe_stream`: experts for few rows. Each expert's packed weights are streamed once for all rows that chose it.

use super::super::contraction::{PROCESSORS, pieces};
use super::super::region::Index;
use super::super::{Cx, Size, blocks, operand};
use super::moe::{Experts, Held, RECORD, Strips, TILE, combines, epilogue, results_of};
use super::{Body, Params};
use crate::emit::{Piece, Text};
use crate::kernels::region::unsupported;
use crate::lower::{Arg, LowerError, Lowered, MAX_COUNTERS};
use crate::resources::{SHARED_PER_BLOCK, SHARED_PER_SM, SHARED_RESERVED, THREADS_PER_BLOCK};

type Result<T> = std::result::Result<T, LowerError>;

/// Rows that a kernel's tables hold; the text depends on the class only.
const ROWS: [i64; 4] = [32, 64, 128, 256];

/// How the work is cut. Results do not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Variant {
    /// Rows of x that share a unit's weights at most.
    pub x_rows: i64,
    /// Items whose rows of x a block holds: 1, or 2 to fetch one while the other is used; with 0, warps read what they need.
    pub held: i64,
    /// Warps that multiply.
    pub warps: i64,
    /// Warps that finish units, each in turn.
    pub finishers: i64,
    /// Tiles of 64 k in a slot of a warp's ring.
    pub chunk: i64,
    /// Slots of a ring.
    pub ahead: i64,
    /// Units whose partial sums are kept.
    pub kept: i64,
    /// Percent of the units that blocks make without asking.
    pub own: i64,
    /// Units that a block asks for at a time.
    pub run: i64,
    /// Registers are limited so that this many blocks fit: with 2, the kernel behind can begin beside this one.
    pub blocks: i64,
}

/// The fastest measured on an H100 with GPT-OSS's sizes (2880 columns, 4 choices of 32), by the number of tokens. `combine`: results need all choices
/// of a token.
pub(super) fn variant(tokens: i64, combine: bool) -> Variant {
    let of = |x_rows, held, warps, finishers, ahead, kept, own, run| Variant {
        x_rows,
        held,
        warps,
        finishers,
        chunk: 5,
        ahead,
        kept,
        own,
        run,
        blocks: 1,
    };
    let beside = |v: Variant| Variant { blocks: 2, ..v };
    match (tokens, combine) {
        (..=1, false) => beside(of(1, 2, 19, 1, 1, 6, 70, 1)),
        (2..=16, false) => of(8, 2, 16, 1, 2, 5, 75, 1),
        (17..=32, false) => of(8, 2, 16, 2, 2, 5, 75, 1),
        (_, false) => of(16, 1, 16, 3, 2, 4, 75, 4),
        (..=1, true) => beside(of(1, 2, 16, 2, 2, 8, 80, 1)),
        (2..=32, true) => of(8, 2, 16, 2, 2, 5, 75, 1),
        (_, true) => of(16, 1, 16, 4, 2, 4, 75, 4),
    }
}

/// A variant with what follows from it.
struct Plan {
    v: Variant,
    /// Tiles of 16 rows of w in a strip.
    tiles: i64,
    rows: i64,
    pieces: i64,
    /// Bytes of a row of x that is held.
    x_pitch: i64,
    /// Bytes of the list of strips that a block brings the last sums of.
    won: i64,
}

impl Plan {
    /// The variant for this problem, made smaller where it does not fit a multiprocessor.
    fn choose(shape: &Experts, combine: bool, strips: &Strips) -> Result<Plan> {
        let rows = ROWS.into_iter().find(|r| *r >= shape.rows()).ok_or_else(|| {
            unsupported(
                format!("{} rows of experts", shape.rows()),
                format!("at most {}; template `moe_tile`", ROWS[3]),
            )
        })?;
        let pieces = pieces(Size::known(shape.k));
        let mut v = variant(shape.tokens, combine);
        // Chunks of a piece as even as can be.
        let longest = blocks(shape.k_tiles(), pieces);
        v.chunk = blocks(longest, blocks(longest, v.chunk));
        loop {
            let won = if combine { 2 * strips.count + 16 } else { 0 };
            let plan = Plan { v, tiles: strips.tiles(), rows, pieces, x_pitch: 128 * shape.k_tiles() + 16, won };
            if plan.fits() {
                return Ok(plan);
            }
            match v {
                Variant { held: 2.., .. } => v.held = 1,
                Variant { ahead: 3.., .. } => v.ahead -= 1,
                Variant { x_rows: 9.., .. } => v.x_rows = 8,
                Variant { kept, .. } if kept > v.finishers.max(3) => v.kept -= 1,
                Variant { ahead: 2.., .. } => v.ahead -= 1,
                Variant { warps, .. } if warps > pieces.max(12) => v.warps -= 1,
                Variant { held: 1.., x_rows: 2.., .. } => v.x_rows /= 2,
                Variant { held: 1.., .. } => v.held = 0,
                Variant { warps, .. } if warps > pieces => v.warps -= 1,
                Variant { chunk: 2.., .. } => v.chunk -= 1,
                _ => return Err(unsupported(format!("experts of {} columns", shape.k), "rows that fit shared memory")),
            }
        }
    }

    fn threads(&self) -> i64 {
        32 * (1 + self.v.finishers + self.v.warps)
    }

    /// Rings, rows of x, partial sums.
    fn dynamic(&self) -> i64 {
        let Variant { x_rows, held, warps, chunk, ahead, kept, .. } = self.v;
        let pitch = 4 * (TILE * self.tiles + 4);
        warps * ahead * self.tiles * chunk * RECORD + held * x_rows * self.x_pitch + kept * self.pieces * x_rows * pitch
    }

    /// Tables of rows, units and signals.
    fn fixed(&self) -> i64 {
        13 * self.rows + 16 + 16 * self.v.warps * self.v.ahead + 28 * self.v.kept + 64 + self.won
    }

    fn fits(&self) -> bool {
        let block = self.dynamic() + self.fixed();
        block <= i64::from(SHARED_PER_BLOCK)
            && block + i64::from(SHARED_RESERVED) <= i64::from(SHARED_PER_SM)
            && self.threads() <= i64::from(THREADS_PER_BLOCK)
    }
}

/// Lowers a kernel of template `moe_stream`.
pub fn lower(cx: &Cx, body: &Body) -> Result<Lowered> {
    let shape = Experts::of(cx, body)?;
    if shape.tokens == 0 {
        return Ok(Lowered::default());
    }
    let found = results_of(body, &shape)?;
    let combine = combines(body, &found);
    let strips = Strips::choose(&found, shape.n, 1)?;
    let plan = Plan::choose(&shape, combine, &strips)?;
    let counters = if combine { 1 + strips.count } else { 1 };
    if counters > i64::from(MAX_COUNTERS) {
        let most = (i64::from(MAX_COUNTERS) - 1) * TILE;
        return Err(unsupported(format!("a sum over choices of {} columns", shape.n), format!("at most {most}")));
    }
    let Variant { x_rows, held, warps, finishers, chunk, ahead, kept, own, run, blocks } = plan.v;

    let mut params = Params::default();
    let product = |t: &Index, j: &Index, local: &str| match combine {
        true => format!("__ldcg(sums + ((i64)({}) * STRIPS + strip) * HEIGHT + {local})", row(t, j)),
        false => format!("total(i / OUTPUTS, {local})"),
    };
    let expert = |t: &Index, j: &Index| format!("items.key[{}]", row(t, j));
    let given = Held { product: &product, expert: &expert };
    let code = epilogue(cx, body, &shape, &strips, &found, combine, &given, &mut params)?;
    let finish = if combine { Finish::of_tokens(&code.lines) } else { Finish::of_rows(&code.lines) };

    let [x, w, ids] = shape.operands;
    let (list, more) = params.finish();
    let mut list = if list.is_empty() { list } else { format!(", {list}") };
    let mut args = vec![operand(x), operand(w), operand(ids), Arg::I32(shape.tokens as i32), Arg::Counters];
    if combine {
        list.insert_str(0, ", f32* sums");
        args.push(Arg::Scratch(0));
    }
    args.extend(more);
    let tiles = strips.tiles();
    let name = format!("moe_stream_e{}_n{}_k{}_r{x_rows}x{}", shape.experts, shape.n, shape.k, TILE * tiles);
    let source = Text::new(name, shape.ir(body), include_str!("../cuda/moe_stream.cu"))
        .with(Piece::Mma)
        .with(Piece::Async)
        .with(Piece::Mxfp4)
        .with(Piece::Items)
        .set("constants", shape.constants(&strips))
        .set("pieces", plan.pieces)
        .set("warps", warps)
        .set("finishers", finishers)
        .set("tiles", tiles)
        .set("x_rows", x_rows)
        .set("rows", plan.rows)
        .set("held", held)
        .set("chunk", chunk)
        .set("ahead", ahead)
        .set("kept", kept)
        .set("blocks", blocks)
        .set("own", own)
        .set("run", run)
        .set("fast", shape.fast)
        .set("early", cx.early(ids))
        .set("tile", strips.tile())
        .set("x_row", shape.x_row())
        .set("unroll", chunk)
        .set("shared", finish.shared)
        .set("begin", finish.begin)
        .set("finish", finish.unit)
        .set("after", finish.after)
        .set("end", finish.end)
        .set("params", list)
        .build();
    // An item has at least a row.
    let units = strips.count.saturating_mul(shape.rows());
    let mut launch = cx.launch(source, units.min(PROCESSORS), plan.threads() as u32, args)?;
    launch.shared = plan.dynamic() as u32;
    launch.dependent = true;
    let sums = 4 * (shape.rows() * strips.count * TILE * tiles) as u64;
    let scratch = if combine { vec![sums] } else { vec![] };
    Ok(Lowered { launches: vec![launch], scratch, counters: counters as u32, ..Lowered::default() })
}

fn row(t: &Index, j: &Index) -> String {
    match j.as_constant() {
        Some(0) => format!("{} * CHOICES", t.operand()),
        _ => format!("({} * CHOICES + {})", t.operand(), j.text()),
    }
}

/// What becomes of sums, as text.
#[derive(Default)]
struct Finish {
    /// Variables of the block, and their first values.
    shared: &'static str,
    begin: &'static str,
    /// What a warp does with the sums of a unit, and what it does then.
    unit: String,
    after: &'static str,
    /// What all warps that do not fetch do at the end.
    end: String,
}

impl Finish {
    /// Results of a row as soon as it is multiplied.
    fn of_rows(lines: &[String]) -> Finish {
        let head = [
            "for (int i = lane; i < count * OUTPUTS; i += 32) {",
            "  const int row = items.row[first + i / OUTPUTS];",
            "  const int n = strip * OUTPUTS + i % OUTPUTS;",
            "  if (n >= WIDTH) continue;",
            "  const int t = row / CHOICES;",
            "  const int j = row % CHOICES;",
        ];
        Finish { unit: nested(&head, lines), ..Finish::default() }
    }

    /// Sums of a strip go to memory by row; the block that brings the last of them has all choices of every token, and makes the results when it
    /// has no more units, with all its warps.
    fn of_tokens(lines: &[String]) -> Finish {
        let unit = [
            "for (int i = lane; i < count * HEIGHT; i += 32) {",
            "  sums[((i64)items.row[first + i / HEIGHT] * STRIPS + strip) * HEIGHT + i % HEIGHT] = total(i / HEIGHT, i % HEIGHT);",
            "}",
        ];
        let end = [
            "barrier<THREADS - 32>(1);",
            "const int each = (int)tokens * OUTPUTS;",
            "for (int i = threadIdx.x - 32; i < (int)won_count * each; i += THREADS - 32) {",
            "  const int strip = won[i / each];",
            "  const int t = i % each / OUTPUTS;",
            "  const int n = strip * OUTPUTS + i % OUTPUTS;",
            "  if (n >= WIDTH) continue;",
        ];
        Finish {
            shared: "__shared__ u16 won[STRIPS];  // strips whose last sums this block brought\n__shared__ u32 won_count;",
            begin: "won_count = 0;",
            unit: unit.join("\n"),
            after: "if (warp_is_last(counters + 1 + strip, items.count) && lane == 0) won[atomicAdd(&won_count, 1)] = (u16)strip;",
            end: nested(&end, lines),
        }
    }
}

/// A loop: its head, whose last lines are in its body, and the rest of the body.
fn nested(head: &[&str], body: &[String]) -> String {
    let body = body.iter().map(|l| format!("  {l}"));
    head.iter().map(ToString::to_string).chain(body).chain(["}".to_string()]).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Some value.
    fn product() -> gossamer_ir::Value {
        let ty = gossamer_ir::Type::tensor(gossamer_ir::DType::F32, []);
        gossamer_ir::Func::new("f", vec![gossamer_ir::Param { name: "p".into(), ty, weight: false }]).param(0).unwrap()
    }

    #[test]
    fn every_problem_has_a_plan_that_fits() {
        let shape = |tokens, k| Experts {
            tokens,
            choices: 4,
            experts: 32,
            n: 64,
            k,
            shared_x: true,
            fast: true,
            operands: [0, 1, 2],
            product: product(),
        };
        for tokens in [1, 2, 3, 5, 8, 9, 16, 32, 64] {
            for k in [32, 64, 96, 640, 2880, 4096, 65536, 1 << 23] {
                for (combine, tiles) in [(false, 1), (false, 2), (true, 1), (true, 2)] {
                    let p = Plan::choose(&shape(tokens, k), combine, &Strips::of(tiles, 4)).unwrap();
                    assert!(p.rows >= 4 * tokens && p.v.warps >= p.pieces && p.v.kept >= p.v.finishers);
                    assert!(p.threads() <= 1024 && p.fits(), "{tokens} {k}");
                    let chunks = blocks(blocks(k, 64), p.pieces * p.v.chunk);
                    assert!(chunks * p.v.chunk * p.pieces >= blocks(k, 64));
                }
            }
        }
        let refused = Plan::choose(&shape(65, 64), false, &Strips::of(1, 4)).err().unwrap().to_string();
        assert!(refused.contains("260 rows of experts") && refused.contains("moe_tile"), "{refused}");
    }
}
