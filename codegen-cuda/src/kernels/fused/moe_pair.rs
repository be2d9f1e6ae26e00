//! `moe_pair`: two matmuls with a row's experts in one launch. What the first makes of a row (`h`), the second reads. For steps of few rows.
//!
//! Both epilogues are printed at several places, each cut in two: what can be loaded before the product is there (biases, residual, weights of choices), and the
//! rest. All blocks must be resident at once: they wait for each other's rows.

use gossamer_ir::{DType, Kernel, Type};

use super::super::contraction::{PROCESSORS, pieces};
use super::super::region::{Index, Split, unsupported};
use super::super::{Cx, Size, blocks, operand, single};
use super::moe::{Experts, Held, Place, RECORD, Strips, TILE, To, combines, results_of, split_epilogue};
use super::{Body, Params};
use crate::emit::{Piece, Text};
use crate::lower::{Arg, LowerError, Lowered};
use crate::resources::{SHARED_PER_BLOCK, THREADS_PER_BLOCK};

type Result<T> = std::result::Result<T, LowerError>;

/// Strips a block has at least, so that starting it pays.
const LEAST_STRIPS: i64 = 4;
/// Words between two counters.
const COUNTER_PITCH: i64 = 8;
/// Bytes from one row of partial sums to the next.
const PART_PITCH: i64 = 80;

/// How the work is cut. Results do not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Variant {
    /// Rows of x that share a strip at most.
    pub x_rows: i64,
    /// Groups of warps that multiply.
    pub groups: i64,
    /// Strips in the ring, a multiple of `groups`.
    pub slots: i64,
    /// Copies of a strip.
    pub split: i64,
    /// Rows that a block holds.
    pub held: i64,
    /// Items whose rows it holds.
    pub uses: i64,
    /// Warps that finish units.
    pub finishers: i64,
    /// Buffers of partial sums, a multiple of `groups` and `finishers`.
    pub buffers: i64,
    /// Items of the first product that a block goes ahead of the second.
    pub lag: i64,
}

/// The fastest measured on an H100 with GPT-OSS's sizes (docs/performance.md 5.3), by the number of tokens.
fn variant(tokens: i64) -> Variant {
    let of = |x_rows, finishers| Variant {
        x_rows,
        groups: 2,
        slots: 6,
        split: 1,
        held: 8,
        uses: 8,
        finishers,
        buffers: 4,
        lag: i64::from(i16::MAX),
    };
    match tokens {
        ..=1 => of(1, 4),
        2 => of(2, 4),
        3..=4 => of(4, 4),
        _ => of(4, 2),
    }
}

/// A variant with what follows from it.
#[derive(Debug)]
struct Plan {
    v: Variant,
    tokens: i64,
    rows: i64,
    pieces: [i64; 2],
    tiles: i64,
    strips: [i64; 2],
    blocks: i64,
}

impl Plan {
    /// The variant for these problems, made smaller where it does not fit a multiprocessor.
    fn choose(shapes: &[Experts; 2]) -> Result<Plan> {
        let [first, second] = shapes;
        // The text depends on a class of tokens only.
        let tokens = first.tokens.max(1).unsigned_abs().next_power_of_two() as i64;
        let strips = [blocks(first.n, TILE), blocks(second.n, TILE)];
        let mut plan = Plan {
            v: variant(first.tokens),
            tokens,
            rows: tokens * first.choices,
            pieces: [pieces(Size::known(first.k)), pieces(Size::known(second.k))],
            tiles: first.k_tiles().max(second.k_tiles()),
            strips,
            blocks: blocks(strips[0] + strips[1], LEAST_STRIPS).clamp(1, PROCESSORS),
        };
        while !plan.fits() {
            let v = &mut plan.v;
            match *v {
                Variant { slots, groups, .. } if slots > 2 * groups => v.slots -= groups,
                Variant { x_rows, held, .. } if held > x_rows => v.held = x_rows,
                Variant { groups: 2.., .. } => {
                    (v.groups, v.slots, v.finishers, v.buffers) = (v.groups - 1, v.slots.min(4), 1, 2);
                }
                Variant { buffers: 2.., .. } => (v.finishers, v.buffers) = (1, 1),
                Variant { x_rows: 2.., .. } => (v.x_rows, v.held) = (v.x_rows / 2, v.x_rows / 2),
                Variant { slots: 2.., .. } => v.slots -= 1,
                _ => {
                    let what = format!("experts of {} and {} columns", first.k, second.k);
                    return Err(unsupported(what, "strips that fit shared memory; template `moe_stream`"));
                }
            }
        }
        Ok(plan)
    }

    fn threads(&self) -> i64 {
        32 * (2 + self.v.finishers + self.v.groups * self.longest())
    }

    fn longest(&self) -> i64 {
        self.pieces[0].max(self.pieces[1])
    }

    /// Strips of the second product of a block at most.
    fn own(&self) -> i64 {
        blocks(self.strips[1], self.blocks)
    }

    /// Bytes of shared memory, as the text lays it out.
    fn shared(&self) -> i64 {
        let Variant { x_rows, slots, split, held, uses, buffers, .. } = self.v;
        let part = self.longest() * x_rows * PART_PITCH;
        let signals_at = slots * self.tiles * RECORD
            + held * (self.tiles * 128 + 16)
            + buffers * part
            + self.own() * self.rows * TILE * 4;
        let signals = slots * split + slots + 2 * buffers + 2 * uses;
        let items_at = blocks(signals_at + 8 * signals, 16) * 16;
        // Tables of items: one warp's votes, or those of whole warps.
        let table = if self.rows <= 32 { self.rows } else { blocks(self.rows, 32) * 32 };
        let items = blocks(blocks(6 + 12 * table, 16) * 16 + 4 * table + 8 * blocks(table, 32), 16) * 16;
        blocks(items_at + items, 16) * 16 + 4 * uses
    }

    fn fits(&self) -> bool {
        self.shared() <= i64::from(SHARED_PER_BLOCK) && self.threads() <= i64::from(THREADS_PER_BLOCK)
    }

    fn counters(&self) -> i64 {
        self.rows * COUNTER_PITCH + 1
    }
}

/// Lowers a kernel of template `moe_pair`.
pub fn lower(cx: &Cx, kernel: &Kernel) -> Result<Lowered> {
    let Ok([a, b]) = <[Body; 2]>::try_from(Body::stages(kernel)) else {
        return Err(unsupported(format!("{} stages", kernel.depth()), "two"));
    };
    let shapes = [Experts::of(cx, &a)?, Experts::of(cx, &b)?];
    let [first, second] = &shapes;
    if first.tokens == 0 {
        return Ok(Lowered::default());
    }
    let (Some(x), None) = (first.x, second.x) else {
        return Err(unsupported("stages that do not read each other's rows", "a second stage of the first one's rows"));
    };
    if cx.op.operands.get(first.ids) != cx.op.operands.get(second.ids) {
        return Err(unsupported("stages with choices of their own", "the same ids in both"));
    }
    let found = [results_of(&a, first)?, results_of(&b, second)?];
    let middle = match a.epilogue().result_types().as_slice() {
        [Type::Tensor(t)] if t.dtype == DType::BF16 && t.rank() == 3 && !combines(&a, &found[0]) => t.clone(),
        types => {
            let types: Vec<String> = types.iter().map(Type::to_string).collect();
            return Err(unsupported(format!("{} between stages", types.join(", ")), "one bf16[T, J, K]"));
        }
    };
    let strips = [Strips::choose(&found[0], first.n, 1)?, Strips::choose(&found[1], second.n, 1)?];
    if strips.iter().any(|s| s.tiles() != 1) {
        return Err(unsupported("swiglu of halves of experts' columns", "pairs of columns; template `moe_stream`"));
    }
    let plan = Plan::choose(&shapes)?;
    let v = plan.v;

    let mut params = Params::default();
    let rounds = [
        blocks(v.x_rows * strips[0].outputs(), 32),
        blocks(plan.own() * plan.tokens * strips[1].outputs(), 32 * v.finishers),
    ];
    let places: Vec<usize> = (0..(rounds[0] + rounds[1]) as usize).collect();
    let (near, far) = places.split_at(rounds[0] as usize);
    let place = |p: &usize, apart: bool| Place {
        t: Index::var(format!("t{p}")),
        j: apart.then(|| Index::var(format!("j{p}"))),
        n: Index::var(format!("n{p}")),
    };
    let product = |t: &Index, _: &Index, local: &str| format!("total({}, {local}, PIECES1)", of_place("i", t));
    let held = Held { product: &product, expert: &|_, _| "expert".to_string() };
    let to = To { pointers: &["h".to_string()], tag: Some("h") };
    let at: Vec<Place> = near.iter().map(|p| place(p, true)).collect();
    let code_first = split_epilogue(cx, &a, first, &strips[0], &found[0], &held, &to, &mut params, &at)?;
    let row = |t: &Index, j: &Index| format!("{} * CHOICES + {}", t.operand(), j.text());
    let product = |t: &Index, j: &Index, local: &str| {
        let local = local.replace("strip", &of_place("strip", t));
        format!("sums[({} * ROWS + {}) * HEIGHT + {local}]", of_place("k", t), row(t, j))
    };
    let expert = |t: &Index, j: &Index| format!("items.key[{}]", row(t, j));
    let held = Held { product: &product, expert: &expert };
    let results = (0..cx.op.results.len()).map(|r| params.result(cx, r)).collect::<Result<Vec<_>>>()?;
    let to = To { pointers: &results, tag: None };
    let at: Vec<Place> = far.iter().map(|p| place(p, false)).collect();
    let code_second = split_epilogue(cx, &b, second, &strips[1], &found[1], &held, &to, &mut params, &at)?;

    let at_far = |p: usize| place_second(p, p - near.len());
    // What several results of a thread read would take registers through the whole kernel.
    let (early_second, late_second) = match far.len() {
        1 => (early(far, &code_second, at_far), late(far, &code_second)),
        _ => (String::new(), at_once(far, &code_second, at_far)),
    };

    let (list, more) = params.finish();
    let list = if list.is_empty() { list } else { format!(", {list}") };
    let mut args = vec![
        operand(x),
        operand(first.w),
        operand(second.w),
        operand(first.ids),
        Arg::I32(first.tokens as i32),
        Arg::Scratch(0),
        Arg::Counters,
    ];
    args.extend(more);
    let name =
        format!("moe_pair_e{}_n{}_k{}_n{}_k{}_t{}", first.experts, first.n, first.k, second.n, second.k, plan.tokens);
    let source = Text::new(name, kernel.summary(), include_str!("../cuda/moe_pair.cu"))
        .with(Piece::Mma)
        .with(Piece::Async)
        .with(Piece::Mxfp4)
        .with(Piece::Items)
        .set("experts", first.experts)
        .set("choices", first.choices)
        .set("tokens", plan.tokens)
        .set("x_rows", v.x_rows)
        .set("n1", first.n)
        .set("k1", first.k)
        .set("outputs1", strips[0].outputs())
        .set("n2", second.n)
        .set("k2", second.k)
        .set("outputs2", strips[1].outputs())
        .set("width2", strips[1].width(second.n))
        .set("pieces1", plan.pieces[0])
        .set("pieces2", plan.pieces[1])
        .set("blocks", plan.blocks)
        .set("groups", v.groups)
        .set("slots", v.slots)
        .set("split", v.split)
        .set("held", v.held)
        .set("uses", v.uses)
        .set("finishers", v.finishers)
        .set("buffers", v.buffers)
        .set("lag", v.lag.min(plan.rows))
        .set("fast1", first.fast)
        .set("fast2", second.fast)
        .set("shared", plan.shared())
        .set("x_row", if first.shared_x { "row / CHOICES" } else { "row" })
        .set("early_first", early(near, &code_first, place_first))
        .set("late_first", late(near, &code_first))
        .set("early_second", early_second)
        .set("late_second", late_second)
        .set("params", list)
        .build();
    let mut launch = cx.launch(source, plan.blocks, plan.threads() as u32, args)?;
    launch.shared = plan.shared() as u32;
    launch.dependent = true;
    let bytes = 2 * cx.values(&middle)?.iter().product::<i64>().max(0) as u64;
    Ok(Lowered { scratch: vec![bytes], counters: plan.counters() as u32, ..single(launch) })
}

/// The variable `name` of the place whose token is `t`: variables of a place end in its number.
fn of_place(name: &str, t: &Index) -> String {
    t.text().replacen('t', name, 1)
}

/// Where in its unit a lane is: row `i` of the item and column `n` of h.
fn place_first(p: usize) -> Vec<String> {
    let at = if p == 0 { "lane".to_string() } else { format!("(lane + {})", 32 * p) };
    vec![
        format!("const int i{p} = {at} / OUTPUTS1;"),
        format!("const int n{p} = strip * OUTPUTS1 + {at} % OUTPUTS1;"),
        format!("const bool there{p} = i{p} < w.held && n{p} < K2;"),
        format!("const int row{p} = items.row[first + (there{p} ? i{p} : 0)];"),
        format!("const int t{p} = row{p} / CHOICES;"),
        format!("const int j{p} = row{p} % CHOICES;"),
    ]
}

/// Which result a thread makes: token `t`, column `n`, of strip `strip`, the block's own number `k`.
fn place_second(p: usize, round: usize) -> Vec<String> {
    let at = if round == 0 { "member".to_string() } else { format!("(member + {round} * FINISHERS * 32)") };
    vec![
        format!("const int k{p} = {at} / OUTPUTS2 / (int)tokens;"),
        format!("const int t{p} = {at} / OUTPUTS2 % (int)tokens;"),
        format!("const int strip{p} = (int)blockIdx.x + k{p} * BLOCKS;"),
        format!("const int n{p} = strip{p} * OUTPUTS2 + {at} % OUTPUTS2;"),
        format!("const bool there{p} = k{p} < own && n{p} < WIDTH2;"),
    ]
}

/// The places and what can be computed before the product is there.
fn early(places: &[usize], code: &[Split], place: impl Fn(usize) -> Vec<String>) -> String {
    let mut out = Vec::new();
    for (p, split) in places.iter().zip(code) {
        out.extend(place(*p));
        out.extend(split.declarations.iter().cloned());
        block(&mut out, *p, &[&split.early]);
    }
    out.join("\n")
}

/// The rest of it.
fn late(places: &[usize], code: &[Split]) -> String {
    let mut out = Vec::new();
    for (p, split) in places.iter().zip(code) {
        block(&mut out, *p, &[&split.late]);
    }
    out.join("\n")
}

/// All of it, place after place.
fn at_once(places: &[usize], code: &[Split], place: impl Fn(usize) -> Vec<String>) -> String {
    let mut out = Vec::new();
    for (p, split) in places.iter().zip(code) {
        out.extend(place(*p));
        block(&mut out, *p, &[&split.declarations, &split.early, &split.late]);
    }
    out.join("\n")
}

/// Lines that run where there is something at place `p`.
fn block(out: &mut Vec<String>, p: usize, lines: &[&[String]]) {
    if lines.iter().all(|l| l.is_empty()) {
        return;
    }
    out.push(format!("if (there{p}) {{"));
    out.extend(lines.iter().flat_map(|l| l.iter()).map(|l| format!("  {l}")));
    out.push("}".to_string());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::tests::pair;

    #[test]
    fn operands_are_bound_once_and_counters_fit() {
        for case in pair::cases().into_iter().chain(pair::full_size()) {
            let lowered = case.lower().unwrap_or_else(|e| panic!("{}: {e}", case.name));
            let [launch] = lowered.launches.as_slice() else { panic!("{}", case.name) };
            assert!(lowered.counters > 0 && lowered.counters <= crate::lower::MAX_COUNTERS);
            assert!(launch.dependent && launch.grid[0] as i64 <= PROCESSORS);
            let text = &launch.kernel.text;
            assert!(!text.contains("${"), "{text}");
            for (i, arg) in launch.args.iter().enumerate() {
                assert!(!launch.args[..i].contains(arg) || matches!(arg, Arg::I32(_) | Arg::I64(_)), "{arg:?} twice");
            }
            // Loads of biases do not wait for the product: they stand in front of the wait for it.
            let (before, after) = text.split_once("signal_wait(done, seq / BUFFERS & 1);").unwrap();
            let bias = launch.kernel.text.matches("const bf16* x3").count();
            assert!(bias == 1 && before.contains("x3[") && !after.contains("x3["), "{text}");
        }
    }

    #[test]
    fn every_problem_has_a_plan_that_fits_or_is_refused() {
        let all = pair::full_size();
        assert!(all.iter().all(|c| c.lower().unwrap().launches[0].grid[0] as i64 == PROCESSORS));
        for case in pair::refused() {
            let error = case.lower().unwrap_err().to_string();
            assert_eq!(error.lines().count(), 1);
            assert!(error.contains("moe_stream"), "{error}");
        }
    }

    #[test]
    fn choices_of_their_own_are_refused() {
        let mut case = pair::cases().remove(0);
        let ids: Vec<usize> = (0..case.operands.len())
            .filter(|i| case.operands[*i].as_tensor().is_some_and(|t| t.dtype == DType::I32))
            .collect();
        // The second stage's main op is the third that reads them.
        case.op.operands[ids[2]] = case.op.operands[0];
        let error = case.lower().unwrap_err().to_string();
        assert!(error.contains("choices of their own"), "{error}");
    }
}
