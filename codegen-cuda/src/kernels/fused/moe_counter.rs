//! `moe_stream` where several rows share an expert: units of work are taken from a counter, and the rows of an item are held once for all warps of a
//! block. [`super::moe_stream`] is the text for fewer rows; both give the same bits.

use super::super::contraction::{PROCESSORS, pieces};
use super::super::region::{Index, Sink};
use super::super::{Cx, Size, blocks, operand};
use super::moe::{Experts, Held, RECORD, ROOM, Strips, TILE, combines, epilogue, place};
use super::moe_stream::{row, table_bytes};
use super::{Body, Params};
use crate::emit::{Piece, Text};
use crate::lower::{Arg, LowerError, Lowered, MAX_COUNTERS};
use crate::resources::{SHARED_PER_BLOCK, SHARED_PER_SM, SHARED_RESERVED, THREADS_PER_BLOCK};

type Result<T> = std::result::Result<T, LowerError>;

/// How the work is cut. Results do not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Variant {
    /// Rows of x that share a unit's weights at most.
    x_rows: i64,
    /// Items whose rows of x a block holds: 1, or 2 to fetch one while the other is used.
    held: i64,
    /// Warps that multiply.
    warps: i64,
    /// Warps that finish units, each in turn.
    finishers: i64,
    /// Tiles of 64 k in a slot of a warp's ring.
    chunk: i64,
    /// Slots of a ring.
    ahead: i64,
    /// Units whose partial sums are kept.
    kept: i64,
    /// Percent of the units that blocks make without asking.
    own: i64,
    /// Units that a block asks for at a time.
    run: i64,
}

/// A variant and the problems it was measured fastest for.
struct Choice {
    /// True: results need all choices of a token.
    combine: bool,
    /// More rows than this in all.
    above: i64,
    /// Rows an expert has on average, at most.
    mean: i64,
    variant: Variant,
}

const fn of(
    [x_rows, held]: [i64; 2],
    [warps, finishers]: [i64; 2],
    [ahead, kept]: [i64; 2],
    [own, run]: [i64; 2],
) -> Variant {
    Variant { x_rows, held, warps, finishers, chunk: 5, ahead, kept, own, run }
}

const ANY: i64 = i64::MAX;

/// Bytes of shared memory that a kernel may declare with a size.
const STATIC_SHARED: i64 = 48 << 10;

/// The first that fits is taken; what none fits is left to the text for few rows. Measured on an H100 with GPT-OSS's sizes (2880 columns, 4 choices of 32
/// experts) at 2 to 64 tokens (performance.md 14): up to 8 rows an expert. Without a combine the text for few rows is as fast up to 16 tokens, as its
/// blocks can hold all rows then; with one, asking for units pays as soon as two tokens share the launch.
const CHOICES: [Choice; 6] = [
    Choice { combine: false, above: 64, mean: 2, variant: of([8, 2], [16, 1], [2, 5], [75, 1]) },
    Choice { combine: false, above: 64, mean: 5, variant: of([8, 2], [24, 4], [1, 6], [75, 2]) },
    Choice { combine: false, above: 64, mean: ANY, variant: of([16, 1], [24, 4], [1, 5], [85, 4]) },
    Choice { combine: true, above: 4, mean: 3, variant: of([8, 2], [16, 4], [2, 5], [90, 1]) },
    Choice { combine: true, above: 4, mean: 5, variant: of([8, 2], [16, 3], [2, 5], [75, 1]) },
    Choice { combine: true, above: 4, mean: ANY, variant: of([16, 1], [16, 4], [2, 4], [90, 4]) },
];

/// The variant for `rows` rows of `experts` experts, if this text is the faster one.
fn variant(rows: i64, experts: i64, combine: bool) -> Option<Variant> {
    let mean = blocks(rows, experts);
    CHOICES.iter().find(|c| c.combine == combine && rows > c.above && mean <= c.mean).map(|c| c.variant)
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
    /// Bytes of a slot behind its records: [`ROOM`], or 0.
    room: i64,
}

impl Plan {
    /// The variant for this problem, made smaller where it does not fit a multiprocessor. `None`: this text is not the one for it.
    fn choose(shape: &Experts, rows: i64, combine: bool, strips: &Strips) -> Option<Plan> {
        let pieces = pieces(Size::known(shape.k));
        let mut v = variant(shape.rows(), shape.experts, combine)?;
        // Chunks of a piece as even as can be.
        let longest = blocks(shape.k_tiles(), pieces);
        v.chunk = blocks(longest, blocks(longest, v.chunk));
        let won = if combine { 2 * strips.count + 16 } else { 0 };
        loop {
            let tiles = strips.tiles();
            let plan = |room| Plan { v, tiles, rows, pieces, x_pitch: 128 * shape.k_tiles() + 16, won, room };
            let roomy = plan(if tiles == 1 { ROOM } else { 0 });
            // Whatever would be made smaller is worth more than faster copies.
            if let Some(plan) = [roomy, plan(0)].into_iter().find(Plan::fits) {
                return Some(plan);
            }
            match v {
                Variant { held: 2.., .. } => v.held = 1,
                Variant { ahead: 3.., .. } => v.ahead -= 1,
                Variant { x_rows: 9.., .. } => v.x_rows = 8,
                Variant { kept, .. } if kept > v.finishers.max(3) => v.kept -= 1,
                Variant { ahead: 2.., .. } => v.ahead -= 1,
                Variant { warps, .. } if warps > pieces.max(12) => v.warps -= 1,
                Variant { x_rows: 3.., .. } => v.x_rows /= 2,
                // So long that hardly a row fits.
                _ => return None,
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
        let slot = if self.room == 0 { self.tiles * chunk * RECORD } else { place(chunk, self.room) };
        warps * ahead * slot + held * x_rows * self.x_pitch + kept * self.pieces * x_rows * pitch
    }

    /// Tables of rows, units and signals.
    fn fixed(&self) -> i64 {
        table_bytes(self.rows) + 16 * self.v.warps * self.v.ahead + 32 * self.v.kept + 64 + self.won
    }

    fn fits(&self) -> bool {
        let block = self.dynamic() + self.fixed();
        self.fixed() <= STATIC_SHARED
            && block <= i64::from(SHARED_PER_BLOCK)
            && block + i64::from(SHARED_RESERVED) <= i64::from(SHARED_PER_SM)
            && self.threads() <= i64::from(THREADS_PER_BLOCK)
    }
}

/// Lowers a kernel of template `moe_stream` with tables of `rows` rows. `None`: the other text is faster, or this one does not take the problem.
///
/// # Errors
/// An epilogue that scalar code cannot make.
pub(super) fn lower(cx: &Cx, body: &Body, shape: &Experts, found: &[Sink], rows: i64) -> Result<Option<Lowered>> {
    let combine = combines(body, found);
    let strips = Strips::choose(found, shape.n, 1)?;
    let counters = if combine { 1 + strips.count } else { 1 };
    let units = strips.count.saturating_mul(shape.rows());
    // Blocks count up to a few runs beyond the last unit.
    if counters > i64::from(MAX_COUNTERS) || units > i64::from(i32::MAX) / 2 {
        return Ok(None);
    }
    let Some(plan) = Plan::choose(shape, rows, combine, &strips) else { return Ok(None) };
    let Variant { x_rows, held, warps, finishers, chunk, ahead, kept, own, run } = plan.v;

    let mut params = Params::default();
    let product = |t: &Index, j: &Index, local: &str| match combine {
        true => format!("__ldcg(sums + ((i64)({}) * STRIPS + strip) * HEIGHT + {local})", row(t, j)),
        false => format!("total(i / OUTPUTS, {local})"),
    };
    let expert = |t: &Index, j: &Index| format!("items.key[{}]", row(t, j));
    let given = Held { product: &product, expert: &expert };
    let code = epilogue(cx, body, shape, &strips, found, combine, &given, &mut params)?;
    let finish = if combine { Finish::of_tokens(&code.lines) } else { Finish::of_rows(&code.lines) };

    let [x, w, ids] = shape.operands()?;
    let (list, more) = params.finish();
    let mut list = if list.is_empty() { list } else { format!(", {list}") };
    let mut args = vec![operand(x), operand(w), operand(ids), Arg::I32(shape.tokens as i32), Arg::Counters];
    if combine {
        list.insert_str(0, ", f32* sums");
        args.push(Arg::Scratch(0));
    }
    args.extend(more);
    let tiles = strips.tiles();
    let name = format!("moe_stream_e{}_n{}_k{}_c{x_rows}x{}", shape.experts, shape.n, shape.k, TILE * tiles);
    let source = Text::new(name, shape.ir(body), include_str!("../cuda/moe_counter.cu"))
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
        .set("room", plan.room)
        .set("ahead", ahead)
        .set("kept", kept)
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
    let mut launch = cx.launch(source, units.min(PROCESSORS), plan.threads() as u32, args)?;
    launch.shared = plan.dynamic() as u32;
    launch.dependent = true;
    let sums = 4 * (shape.rows() * strips.count * TILE * tiles) as u64;
    let scratch = if combine { vec![sums] } else { vec![] };
    Ok(Some(Lowered { launches: vec![launch], scratch, counters: counters as u32, ..Lowered::default() }))
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

    fn shape(tokens: i64, experts: i64, k: i64) -> Experts {
        let ty = gossamer_ir::Type::tensor(gossamer_ir::DType::F32, []);
        let param = gossamer_ir::Param { name: "p".into(), ty, weight: false };
        let product = gossamer_ir::Func::new("f", vec![param]).param(0).unwrap();
        let (choices, n) = (4, 64);
        Experts { tokens, choices, experts, n, k, shared_x: true, fast: true, x: Some(0), w: 1, ids: 2, product }
    }

    #[test]
    fn every_plan_fits() {
        for tokens in 1..=64 {
            for experts in [1, 3, 32, 128, 1000] {
                for k in [32, 64, 96, 640, 2880, 4096, 16384, 65536, 1 << 23] {
                    for (combine, tiles) in [(false, 1), (false, 2), (true, 1), (true, 2)] {
                        let s = shape(tokens, experts, k);
                        let Some(p) = Plan::choose(&s, 256, combine, &Strips::of(tiles, 4)) else {
                            assert!(tokens <= if combine { 8 } else { 16 } || k > 16384, "{tokens} {k}");
                            continue;
                        };
                        let Variant { x_rows, held, warps, finishers, chunk, ahead, kept, own, run } = p.v;
                        assert!(p.threads() <= 1024 && p.fits(), "{tokens} {k}");
                        // What the text relies on.
                        assert!(warps >= p.pieces && warps <= 32 && tiles * p.pieces <= 32 && x_rows <= 32);
                        assert!(kept >= finishers && held >= 1 && ahead >= 1 && own <= 100 && run >= 1);
                        let longest = blocks(s.k_tiles(), p.pieces);
                        assert_eq!(blocks(longest, chunk), blocks(s.k_tiles(), p.pieces * chunk));
                    }
                }
            }
        }
    }

    #[test]
    fn variants_follow_the_rows_an_expert_has() {
        let x_rows = |tokens: i64, experts, combine| variant(4 * tokens, experts, combine).map(|v| v.x_rows);
        assert_eq!([1, 2, 32, 64].map(|t| x_rows(t, 32, true)), [None, Some(8), Some(8), Some(16)]);
        assert_eq!([16, 17, 32, 64].map(|t| x_rows(t, 32, false)), [None, Some(8), Some(8), Some(16)]);
        assert_eq!([1, 2, 64].map(|t| x_rows(t, 128, true)), [None, Some(8), Some(8)]);
    }
}
