//! `moe_stream`: experts for few rows. Each expert's packed weights are streamed once for all rows that chose it.
//!
//! Two texts with the same bits: this one, where groups of warps have fixed shares of the work, and [`super::moe_counter`], where several rows share an
//! expert.

use super::super::contraction::{PROCESSORS, pieces};
use super::super::region::Index;
use super::super::{Cx, Size, blocks, operand, single};
use super::moe::{Experts, Held, RECORD, ROOM, Strips, TILE, combines, epilogue, place, results_of};
use super::{Body, Params, moe_counter};
use crate::emit::{Piece, Text};
use crate::kernels::region::unsupported;
use crate::lower::{Arg, LowerError, Lowered};
use crate::resources::{SHARED_ALONE, SHARED_PER_BLOCK, SHARED_PER_SM, SHARED_RESERVED, THREADS_PER_BLOCK};

type Result<T> = std::result::Result<T, LowerError>;

/// Rows that a kernel's tables hold; the text depends on the class only.
const ROWS: [i64; 4] = [32, 64, 128, 256];

/// The class of a number of rows.
fn class(shape: &Experts) -> Result<i64> {
    ROWS.into_iter().find(|r| *r >= shape.rows()).ok_or_else(|| {
        unsupported(format!("{} rows of experts", shape.rows()), format!("at most {}; template `moe_tile`", ROWS[3]))
    })
}

/// Bytes of a block's tables of rows by expert, at most, and those in front of the rings, which begin at multiples of 128.
pub(super) fn table_bytes(rows: i64) -> i64 {
    17 * rows + 48 + 112
}

/// How the work is cut. Results do not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Variant {
    /// Tiles of 16 rows of w that a group of warps multiplies at a time.
    pub tiles: i64,
    /// Rows of x that share them at most.
    pub x_rows: i64,
    /// Tiles of 64 k in a slot of a warp's ring.
    pub chunk: i64,
    /// Slots of a ring.
    pub ahead: i64,
    /// Groups of warps in a block.
    pub groups: i64,
    /// Blocks on a multiprocessor.
    pub blocks: i64,
    /// Blocks hold all rows of x; else warps read what they need.
    pub held: bool,
    /// Registers for two blocks, though shared memory is taken for one: a block of the next kernel fits beside, and asks for its weights meanwhile.
    /// Where two blocks of this kernel fit, a dependent launch gives some multiprocessors two and others none.
    pub beside: bool,
    /// The next kernel starts when this one has its last weights, and few registers leave it room: it is in place when this one ends, and what it asks for
    /// until then delays nothing here.
    pub late: bool,
    /// The ids are complete before the kernel in front is, so weights can be asked for before it ends.
    pub early: bool,
}

/// Registers of a thread where the next kernel's block is to fit beside, which has 32.
const FEW_REGISTERS: i64 = 40;

/// The fastest measured on an H100 with GPT-OSS's sizes (2880 columns, 4 choices), by the number of tokens. `owner`: results need all choices of a token.
/// More bytes in flight than these are slower: multiprocessors are served less evenly.
pub(super) fn variant(tokens: i64, owner: bool) -> Variant {
    let of = |tiles, x_rows, chunk, ahead, groups| Variant {
        tiles,
        x_rows,
        chunk,
        ahead,
        groups,
        blocks: 1,
        held: false,
        beside: false,
        late: false,
        early: false,
    };
    let held = |x_rows| Variant { held: true, ..of(1, x_rows, 5, 1, 3) };
    match (tokens, owner) {
        (..=1, false) => Variant { late: true, ..held(1) },
        (2, false) => held(2),
        (3..=4, false) => held(4),
        (5..=16, false) => held(8),
        (17..=32, false) => of(4, 8, 1, 2, 3),
        (_, false) => of(4, 16, 1, 2, 2),
        (..=1, true) => Variant { beside: true, ..held(1) },
        (2, true) => of(1, 2, 5, 2, 2),
        (3..=4, true) => of(1, 4, 5, 2, 3),
        (5..=8, true) => of(1, 8, 5, 4, 2),
        (9..=32, true) => of(1, 8, 5, 2, 2),
        (_, true) => of(2, 8, 5, 1, 2),
    }
}

/// A variant with what follows from it.
struct Plan {
    v: Variant,
    rows: i64,
    pieces: i64,
    owner: bool,
    /// Rows of x that a block holds, and bytes of one; 0: it holds none.
    held: i64,
    x_pitch: i64,
}

impl Plan {
    /// The variant for this problem, made smaller where it does not fit a multiprocessor. `even`: a strip holds an even number of tiles.
    fn choose(shape: &Experts, owner: bool, even: bool) -> Result<Plan> {
        let rows = class(shape)?;
        let pieces = pieces(Size::known(shape.k));
        let least = if even { 2 } else { 1 };
        let mut v = variant(shape.tokens, owner);
        v.tiles = v.tiles.max(least);
        v.held &= shape.shared_x || owner;
        // Chunks of a piece as even as can be.
        let longest = blocks(shape.k_tiles(), pieces);
        v.chunk = blocks(longest, blocks(longest, v.chunk));
        loop {
            // The text depends on a class of rows only.
            let x_rows = if shape.shared_x { shape.tokens } else { shape.rows() };
            let held = if v.held { x_rows.max(1).unsigned_abs().next_power_of_two() as i64 } else { 0 };
            let plan = Plan { v, rows, pieces, owner, held, x_pitch: 128 * shape.k_tiles() + 16 };
            if plan.fits() {
                return Ok(plan);
            }
            match v {
                Variant { held: true, .. } => v.held = false,
                Variant { blocks: 2.., .. } => v.blocks -= 1,
                Variant { groups: 2.., .. } => v.groups -= 1,
                Variant { ahead: 2.., .. } => v.ahead -= 1,
                Variant { chunk: 2.., .. } => v.chunk -= 1,
                Variant { x_rows: 2.., .. } => v.x_rows /= 2,
                Variant { tiles, .. } if tiles > least => v.tiles = (tiles / 2).max(least),
                _ => return Err(unsupported(format!("experts of {} columns", shape.k), "rows that fit shared memory")),
            }
        }
    }

    fn threads(&self) -> i64 {
        32 * self.v.groups * self.pieces
    }

    /// Buffers of partial sums: with two, a group goes on while its sums are read.
    fn buffers(&self) -> i64 {
        if self.v.tiles * self.v.x_rows > 16 { 1 } else { 2 }
    }

    /// Dynamic shared memory of a block: what it uses, and more where two of them are not to fit a multiprocessor.
    fn dynamic(&self) -> i64 {
        if self.v.beside { self.used().max(i64::from(SHARED_ALONE)) } else { self.used() }
    }

    /// Rings, rows of x, partial sums, and the results of a strip by row where a group keeps them.
    fn used(&self) -> i64 {
        let Variant { tiles, x_rows, chunk, ahead, groups, .. } = self.v;
        let slot = match tiles {
            1 => place(chunk, ROOM),
            _ => tiles * chunk * RECORD,
        };
        let pitch = 4 * (TILE * tiles + 4);
        let kept = if self.owner { self.rows * pitch } else { 0 };
        self.held * self.x_pitch
            + groups * (self.pieces * ahead * slot + self.buffers() * self.pieces * x_rows * pitch + kept)
    }

    /// Tables of rows and signals.
    fn fixed(&self) -> i64 {
        table_bytes(self.rows) + 8 * self.v.groups * (self.pieces * self.v.ahead + 1)
    }

    fn fits(&self) -> bool {
        let block = self.dynamic() + self.fixed();
        block <= i64::from(SHARED_PER_BLOCK)
            && self.v.blocks * (block + i64::from(SHARED_RESERVED)) <= i64::from(SHARED_PER_SM)
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
    if let Some(lowered) = moe_counter::lower(cx, body, &shape, &found, class(&shape)?)? {
        return Ok(lowered);
    }
    let owner = combines(body, &found);
    let even = Strips::choose(&found, shape.n, 1)?.tiles() == 2;
    let mut plan = Plan::choose(&shape, owner, even)?;
    plan.v.early = cx.early(shape.ids);
    let Variant { tiles, x_rows, chunk, ahead, groups, blocks: resident, late, early, .. } = plan.v;
    let strips = Strips::choose(&found, shape.n, tiles)?;

    let mut params = Params::default();
    let product = |t: &Index, j: &Index, local: &str| match owner {
        true => format!("sums[{} * PITCH + {local}]", row(t, j)),
        false => format!("total(i / OUTPUTS, {local})"),
    };
    let expert = |t: &Index, j: &Index| format!("items.key[{}]", row(t, j));
    let held = Held { product: &product, expert: &expert };
    let code = epilogue(cx, body, &shape, &strips, &found, owner, &held, &mut params)?;
    let finish = if owner { keep(&code.lines) } else { store(&code.lines) };

    let [x, w, ids] = shape.operands()?;
    let (list, more) = params.finish();
    let list = if list.is_empty() { list } else { format!(", {list}") };
    let mut args = vec![operand(x), operand(w), operand(ids), Arg::I32(shape.tokens as i32)];
    args.extend(more);
    let name = format!("moe_stream_e{}_n{}_k{}_r{x_rows}x{}", shape.experts, shape.n, shape.k, TILE * tiles);
    let sums = match owner {
        true => "f32* const sums = (f32*)((u8*)shared + RING + PARTS) + group * (ROWS * PITCH);  // of a strip by row",
        false => "",
    };
    let source = Text::new(name, shape.ir(body), include_str!("../cuda/moe_stream.cu"))
        .with(Piece::Mma)
        .with(Piece::Async)
        .with(Piece::Mxfp4)
        .with(Piece::Items)
        .set("constants", shape.constants(&strips))
        .set("pieces", plan.pieces)
        .set("groups", groups)
        .set("tiles", tiles)
        .set("x_rows", x_rows)
        .set("rows", plan.rows)
        .set("chunk", chunk)
        .set("ahead", ahead)
        .set("buffers", plan.buffers())
        .set("late", late)
        .set("limits", limits(&plan.v))
        .set("held", plan.held)
        .set("x_all", if shape.shared_x { "tokens" } else { "tokens * CHOICES" })
        .set("unroll", if tiles == 1 || plan.held == 0 { chunk } else { 1 })
        .set("fast", shape.fast)
        .set("early", early)
        .set("owner", owner)
        .set("sums", sums)
        .set("tile", strips.tile())
        .set("x_row", shape.x_row())
        .set("finish", finish)
        .set("params", list)
        .build();
    // An item has at least a row.
    let units = if owner { strips.count } else { strips.count.saturating_mul(shape.rows()) };
    // Units go to blocks in turn, so that few units are spread over all multiprocessors.
    let grid = units.min(PROCESSORS * resident);
    let mut launch = cx.launch(source, grid, plan.threads() as u32, args)?;
    launch.shared = plan.dynamic() as u32;
    launch.dependent = true;
    Ok(single(launch))
}

/// Registers of a thread: what compilers before 12.4 cannot be told only takes the next kernel its room.
fn limits(v: &Variant) -> String {
    let bounds = |blocks| format!("#define LIMITS __launch_bounds__(THREADS, {blocks})");
    match (v.beside, v.late) {
        (true, _) => bounds(v.blocks.max(2)),
        (false, false) => bounds(v.blocks),
        (false, true) => [
            "#if __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1204",
            &format!("#define LIMITS __maxnreg__({FEW_REGISTERS})"),
            "#else",
            &bounds(v.blocks),
            "#endif",
        ]
        .join("\n"),
    }
}

/// Number of row `[t, j]`, as text.
pub(super) fn row(t: &Index, j: &Index) -> String {
    match j.as_constant() {
        Some(0) => format!("{} * CHOICES", t.operand()),
        _ => format!("({} * CHOICES + {})", t.operand(), j.text()),
    }
}

/// Results of a row as soon as it is multiplied.
fn store(lines: &[String]) -> String {
    let mut out = vec![
        "for (int i = turn; i < count * OUTPUTS; i += GROUP) {",
        "  const int row = items.row[first + i / OUTPUTS];",
        "  const int n = strip * OUTPUTS + i % OUTPUTS;",
        "  if (n >= WIDTH) continue;",
        "  const int t = row / CHOICES;",
        "  const int j = row % CHOICES;",
    ];
    let lines: Vec<String> = lines.iter().map(|l| format!("  {l}")).collect();
    out.extend(lines.iter().map(String::as_str));
    out.extend(["}", "const u32 next = (u32)(strip + groups);", "item += next / STRIPS;", "strip = next % STRIPS;"]);
    out.join("\n")
}

/// Sums of a strip are kept by row until all rows have it; then each token has all its choices.
fn keep(lines: &[String]) -> String {
    let mut out = vec![
        "for (int i = turn; i < count * HEIGHT; i += GROUP) {",
        "  sums[items.row[first + i / HEIGHT] * PITCH + i % HEIGHT] = total(i / HEIGHT, i % HEIGHT);",
        "}",
        "if (++item == item_count) {",
        "  barrier<GROUP>(group + 1);",
        "  for (int i = turn; i < (int)tokens * OUTPUTS; i += GROUP) {",
        "    const int t = i / OUTPUTS;",
        "    const int n = strip * OUTPUTS + i % OUTPUTS;",
        "    if (n >= WIDTH) continue;",
    ];
    let lines: Vec<String> = lines.iter().map(|l| format!("    {l}")).collect();
    out.extend(lines.iter().map(String::as_str));
    out.extend(["  }", "  item = 0;", "  strip += groups;", "}"]);
    out.join("\n")
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
            x: Some(0),
            w: 1,
            ids: 2,
            product: product(),
        };
        for tokens in [1, 2, 3, 5, 8, 9, 16, 32, 64] {
            for k in [32, 64, 96, 640, 2880, 4096, 65536, 1 << 23] {
                for (owner, even) in [(false, false), (false, true), (true, false), (true, true)] {
                    let p = Plan::choose(&shape(tokens, k), owner, even).unwrap();
                    assert!(p.rows >= 4 * tokens && p.v.tiles <= 32 && (!even || p.v.tiles % 2 == 0));
                    assert!(p.threads() <= 1024 && p.fits(), "{tokens} {k}");
                    let chunks = blocks(blocks(k, 64), p.pieces * p.v.chunk);
                    assert!(chunks * p.v.chunk * p.pieces >= blocks(k, 64));
                }
            }
        }
        let refused = Plan::choose(&shape(65, 64), false, false).err().unwrap().to_string();
        assert!(refused.contains("260 rows of experts") && refused.contains("moe_tile"), "{refused}");
    }
}
