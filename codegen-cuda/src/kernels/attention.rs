//! Attention over the paged cache: tensor cores where queries and cache are both bf16 or both f16, else f32 arithmetic.
//!
//! Steps that decode and steps that feed prompts are summed in different orders; within each a row is independent of the step it is in. Rows of prompts that are
//! `decoded` (those that get logits) go with the former. Prompts go through warpgroup multiplies where the shape allows (`attention_flash.cu`). For the rest three kernels make the same bits: in steps that
//! decode each token has keys of its own, which all blocks share out (`attention_decode.cu`, for many tokens that see all keys
//! `attention_ring.cu`, whose blocks have equal shares of any lengths); with more tokens than sequences (`attention_mma.cu`) a warp has several
//! tokens, so that they share keys in the cache of the processor. Keys are cut at fixed positions and folded in an order that depends on the position alone.

use gossamer_ir::DType;

use super::contraction::PROCESSORS;
use super::{Cx, blocks, kv, operand, result, rows_of, single, wgmma};
use crate::emit::{Piece, Text, c_type, f32_literal};
use crate::lower::{Arg, LowerError, Lowered, Part};
use crate::resources::SHARED_ALONE;

/// Tokens of a step up to which each is on its own even where they are of one sequence.
const FEW: i64 = 64;
/// Tokens that the kernel for few lists in shared memory.
const MAX_FEW: i64 = 1024;
/// Parts of results that fit the scratch memory of the kernel for few tokens; a counter each.
const PARTS: i64 = 8192;
/// Keys of the smallest part.
const PART_KEYS: i64 = 128;
/// Pieces of 32 keys that a window may touch for a block of the kernel for few tokens to hold them all, a warp each.
const NARROW: i64 = 8;
/// Blocks of the kernel for few tokens: two on each multiprocessor.
const BLOCKS: i64 = 264;
/// Tokens from which the kernel with rings is used where it can be: with fewer its ends take longer than it saves.
const RING_FROM: i64 = 16;
/// Warps of that kernel that fold: what the others leave last is folded behind them all, so it has to be quick.
const FOLDERS: i64 = 4;
/// Chunks that wait to be folded in that kernel, at most.
const RING_SLOTS: i64 = 16;
/// Shared memory that a block may have.
const SHARED: i64 = 232_448;
/// Head dims the templates hold in registers.
const MAX_DIM: i64 = 256;

/// Lowers `attention`.
pub fn lower(cx: &Cx) -> Result<Lowered, LowerError> {
    let q = cx.plain(0)?;
    let kv = kv::declaration(cx, 1)?;
    let width = q.dims.last().and_then(|d| d.as_const()).unwrap_or(0);
    if width == 0 || width % (kv.heads * kv.dim) != 0 {
        return Err(cx.malformed(format!("operand 0 is {q}, expected rows of whole groups of heads")));
    }
    let group = width / (kv.heads * kv.dim);
    let tokens = cx.values(q)?[0];
    let &[sequences, row_pages] = cx.values(cx.plain(4)?)?.as_slice() else {
        return Err(cx.malformed("pages must have 2 dims"));
    };
    if tokens == 0 {
        return Ok(Lowered::default());
    }
    if kv.dim > MAX_DIM || kv.dim % 8 != 0 {
        return Err(cx.unsupported(format!("heads of {} elements", kv.dim), format!("multiples of 8 up to {MAX_DIM}")));
    }
    if tokens > i64::from(i32::MAX) || kv.page > i64::from(i32::MAX) {
        return Err(cx.unsupported(format!("{tokens} tokens, pages of {}", kv.page), "fewer than 2^31 of each"));
    }
    let sinks = (cx.operand_count() > 5).then(|| cx.plain(5)).transpose()?;
    let window = cx.op.attrs.int("window");
    // Logits are in base 2.
    let scale = f32_literal(cx.op.attrs.float("scale") * std::f64::consts::LOG2_E);
    let mut operands = vec![rows_of(q.dtype, width), format!("kv of {}", kv.dtype)];
    operands.extend(sinks.map(|s| s.to_string()));
    let ir = cx.ir(&operands, &[rows_of(q.dtype, width)]);
    let tensor = q.dtype == kv.dtype && matches!(q.dtype, DType::BF16 | DType::F16);

    let name = format!(
        "attention_{}_{}_h{}x{group}_d{}_p{}_w{window}{}",
        q.dtype,
        kv.dtype,
        kv.heads,
        kv.dim,
        kv.page,
        if sinks.is_some() { "_sinks" } else { "" }
    );
    let sink = |head: &str| match sinks {
        // Its logit joins the sum without a value.
        Some(_) => format!(
            "const f32 sink = to_f32(sinks[{head}]) * 1.44269504f;\n\
             const f32 top = fmaxf(most, sink);\n\
             const f32 base = top == -INF ? 0.0f : top;\n\
             factor = {exp}(most - base);\n\
             sum = fmaf(sum, factor, {exp}(sink - base));",
            exp = if tensor { "exp2_fast" } else { "exp2f" }
        ),
        None => String::new(),
    };
    let sinks_param = sinks.map_or(String::new(), |s| format!("const {}* __restrict__ sinks, ", c_type(s.dtype)));
    let mut args = vec![
        operand(0),
        Arg::Operand { index: 1, part: Part::Keys },
        Arg::Operand { index: 1, part: Part::Values },
        operand(2),
        operand(3),
        operand(4),
    ];
    args.extend(sinks.map(|_| operand(5)));
    args.extend([result(0), Arg::I32(tokens as i32), Arg::I32(sequences as i32), Arg::I64(row_pages)]);

    let fill = |text: Text| {
        text.with(Piece::Infinity)
            .set("dim", kv.dim)
            .set("kv_heads", kv.heads)
            .set("group", group)
            .set("page", kv.page)
            .set("window", window)
            .set("narrow", narrow_pieces(window).is_some())
            .set("scale", &scale)
            .set("sinks", &sinks_param)
    };
    if !tensor {
        let text = Text::new(format!("{name}_f"), ir, include_str!("cuda/attention_ffma.cu"))
            .with(Piece::Reduce)
            .set("q_type", c_type(q.dtype))
            .set("kv_type", c_type(kv.dtype))
            .set("sink", sink("head"));
        return Ok(single(cx.launch(fill(text).build(), tokens * kv.heads * group, 128, args)?));
    }
    if feeds_prompts(tokens, sequences)
        && !cx.op.attrs.bool("decoded")
        && let Some(shape) = Flash::of(&kv, group, window, cx.op.attrs.float("scale"))
    {
        return flash(
            cx,
            fill(Text::new(format!("{name}_flash"), ir, include_str!("cuda/attention_flash.cu"))),
            shape,
            Step { args, dtype: q.dtype, kv, group, tokens, scale: &scale, sinks: sinks.is_some() },
        );
    }
    // Steps that decode have a sequence for each token; steps with prompts have few.
    if tokens <= FEW || tokens <= sequences.min(MAX_FEW) {
        return few(
            cx,
            fill,
            Few {
                name,
                ir,
                args,
                kv,
                group,
                tokens,
                keys: row_pages.saturating_mul(kv.page),
                window,
                sinks: sinks.is_some(),
            },
        );
    }
    // Registers bound the rows of a warp: 32 sums a row tile for every 64 elements of a head.
    let (warps, row_tiles) = if kv.dim <= 64 { (4, 2) } else { (4, 1) };
    let capacity = warps * row_tiles * 16;
    let heads = group.min(capacity);
    let tile_tokens = capacity / heads;
    let chunks = blocks(group, heads);
    let text = Text::new(format!("{name}_many"), ir, include_str!("cuda/attention_mma.cu"))
        .with(Piece::Mma)
        .set("type", c_type(q.dtype))
        .set("warp_rows", row_tiles * 16)
        .set("heads", heads)
        .set("tokens", tile_tokens)
        .set("warps", warps)
        .set("row_tiles", row_tiles)
        .set("sink", sink("head[r][h]"));
    // Values of large heads are shared by two blocks.
    let parts = if kv.dim > 128 { 2 } else { 1 };
    let count = blocks(tokens, tile_tokens) * kv.heads * chunks * parts;
    let mut launch = cx.launch(fill(text).build(), count, warps as u32 * 32, args)?;
    let state = row_tiles * blocks(kv.dim / parts, 64) * 32 + row_tiles * 4;
    launch.shared = (warps * 3 * state * 32 * 4) as u32;
    Ok(single(launch))
}

/// True for steps that feed prompts. Steps that decode have a token for each sequence, and steps that feed prompts have more: which class of sums
/// a row gets must depend on what it is for and on nothing else.
fn feeds_prompts(tokens: i64, sequences: i64) -> bool {
    tokens > sequences
}

/// Pieces that a narrow window touches at most: they are folded one after the other, without chunks. It depends on the op alone, as bits do.
fn narrow_pieces(window: i64) -> Option<i64> {
    let pieces = (window > 0).then(|| (window.saturating_add(30)) / 32 + 1);
    pieces.filter(|pieces| *pieces <= NARROW)
}

/// Shape of the kernel for prompts. It depends on the op and never on the step: the tile of keys decides bits, and the kernel is one for all buckets.
#[derive(Clone, Copy, Debug)]
struct Flash {
    /// Keys of a tile.
    keys: i64,
    /// Warpgroups that multiply.
    groups: i64,
    /// Tiles of keys held.
    stages: i64,
    /// Tiles of queries held.
    slots: i64,
    /// Registers of a thread that multiplies and of one that copies: what the block starts with, shared out.
    registers: (i64, i64),
}

impl Flash {
    /// Where the kernel runs: heads of 64 or 128, groups of query heads that fill 64 rows, pages of whole runs of 16 keys, a positive scale (the greatest
    /// product is the greatest logit).
    fn of(kv: &kv::Kv, group: i64, window: i64, scale: f64) -> Option<Flash> {
        let narrow = window > 0 && window <= 512;
        let fits = 64 % group.min(64) == 0 && kv.page % 16 == 0 && scale > 0.0 && scale.is_finite();
        match (kv.dim, narrow) {
            _ if !fits => None,
            (64, false) => Some(Flash { keys: 128, groups: 3, stages: 4, slots: 2, registers: (160, 32) }),
            (64, true) => Some(Flash { keys: 64, groups: 3, stages: 6, slots: 2, registers: (160, 32) }),
            (128, false) => Some(Flash { keys: 128, groups: 2, stages: 3, slots: 1, registers: (232, 40) }),
            (128, true) => Some(Flash { keys: 64, groups: 2, stages: 4, slots: 2, registers: (232, 40) }),
            _ => None,
        }
    }

    /// Bytes of dynamic shared memory, with room to align it.
    fn dynamic(&self, dim: i64) -> i64 {
        2 * self.stages * self.keys * dim * 2 + self.slots * self.groups * 64 * dim * 2 + 1024
    }

    /// The same with fewer tiles held where the lists of many tokens leave no room for all. How many are held decides no bits.
    fn fit(mut self, kv: &kv::Kv, group: i64) -> Flash {
        let tokens = self.groups * (64 / group.min(64));
        let list = 8 + 4 * blocks(tokens, 32) + 8 * tokens + 4 * tokens * (1 + 2 * self.groups);
        let lists = |f: &Flash| f.slots * (list + 48) + f.stages * (16 + f.keys / 8) + 128;
        while self.stages > 2 && self.dynamic(kv.dim) + lists(&self) > SHARED {
            self.stages -= 1;
        }
        self
    }
}

/// What the kernel for prompts is launched for.
struct Step<'a> {
    args: Vec<Arg>,
    dtype: DType,
    kv: kv::Kv,
    group: i64,
    tokens: i64,
    scale: &'a str,
    sinks: bool,
}

fn flash(cx: &Cx, text: Text, shape: Flash, step: Step) -> Result<Lowered, LowerError> {
    let Step { args, dtype, kv, group, tokens, scale, sinks } = step;
    let shape = shape.fit(&kv, group);
    let Flash { keys, groups, stages, slots, registers } = shape;
    let heads = group.min(64);
    // The longest run of keys that starts at a multiple of its length and never leaves a page.
    let span = [64, 32].into_iter().find(|s| kv.page % s == 0).unwrap_or(16);
    let sink = match sinks {
        true => format!(
            "if (head0 + r % HEADS < GROUP) {{\n\
             \x20 const f32 sink = to_f32(sinks[kv_head * GROUP + head0 + r % HEADS]) * 1.44269504f;\n\
             \x20 const f32 scaled = __fmul_rn(most[h], {scale});\n\
             \x20 const f32 top = fmaxf(scaled, sink);\n\
             \x20 const f32 base = top == -INF ? 0.0f : top;\n\
             \x20 factor[h] = exp2_fast(scaled - base);\n\
             \x20 sum[h] = fmaf(sum[h], factor[h], exp2_fast(sink - base));\n\
             }}"
        ),
        false => String::new(),
    };
    let text = text
        .with(Piece::Mma)
        .with(Piece::Dependent)
        .with(Piece::Async)
        .with(Piece::Wgmma)
        .set("type", c_type(dtype))
        .set("keys", keys)
        .set("groups", groups)
        .set("stages", stages)
        .set("slots", slots)
        .set("span", span)
        .set("many", registers.0)
        .set("few", registers.1)
        .set("multiply", wgmma::multiply(keys, dtype))
        .set("multiply_across", wgmma::multiply_across(kv.dim, dtype))
        .set("sink", sink);
    let tiles = blocks(tokens, groups * 64 / heads).saturating_mul(kv.heads * blocks(group, heads));
    // Counts are 32 bits wide in the kernel.
    if tiles > i64::from(i32::MAX) - BLOCKS {
        return Err(cx.unsupported(format!("{tiles} tiles of queries"), "fewer than 2^31"));
    }
    let threads = groups as u32 * 128 + 128;
    let mut launch = cx.launch(text.build(), tiles.min(BLOCKS / 2), threads, args)?;
    launch.dependent = true;
    launch.shared = shape.dynamic(kv.dim) as u32;
    Ok(single(launch))
}

/// What the kernel for few tokens depends on.
struct Few {
    name: String,
    ir: String,
    args: Vec<Arg>,
    kv: kv::Kv,
    group: i64,
    tokens: i64,
    /// Keys that the page table of a sequence holds.
    keys: i64,
    window: i64,
    sinks: bool,
}

impl Few {
    /// Query heads that are multiplied together.
    fn heads(&self) -> i64 {
        self.group.min(8)
    }

    /// The kernel from template `body`, with what its siblings have as well. `unit` and `head` say in its words which key head and set of query heads a
    /// lane folds, and which head of them in turn `i`.
    fn text(&self, cx: &Cx, kind: &str, body: &'static str, unit: &str, head: &str) -> Result<Text, LowerError> {
        // Positions and pages are inputs of the step.
        let early = (2..5).all(|i| cx.early(i));
        let (sink_early, sink) = if self.sinks { sink_of(unit, head) } else { Default::default() };
        Ok(Text::new(format!("{}_{kind}{}", self.name, if early { "_early" } else { "" }), &self.ir, body)
            .with(Piece::Mma)
            .with(Piece::Fold)
            .with(Piece::Dependent)
            .with(Piece::Grid)
            .set("type", cx.plain(0).map(|q| c_type(q.dtype))?)
            .set("early", early)
            .set("sink_early", sink_early)
            .set("sink", sink))
    }

    /// Bytes of the sums of a slot of shared memory, with their statistics.
    fn slot(&self) -> i64 {
        self.heads() * (self.kv.dim + 6) * 4
    }

    /// Bytes of a part of a result in scratch memory, with its statistics.
    fn part(&self) -> i64 {
        blocks(self.heads() * (self.kv.dim + 2), 4) * 16
    }

    /// The arguments, with scratch memory and counters behind the result.
    fn args(&self) -> Vec<Arg> {
        let mut args = self.args.clone();
        let at = args.iter().position(|a| matches!(a, Arg::Result { .. })).map_or(args.len(), |i| i + 1);
        args.splice(at..at, [Arg::Scratch(0), Arg::Counters]);
        args
    }
}

/// Two texts with which the kernels for steps that decode count in the sinks: what holds those of a lane's heads, `head` in terms of `i`, and what adds one.
fn sink_of(unit: &str, head: &str) -> (String, &'static str) {
    let early = format!(
        "f32 sink_held[TURNS];\n\
         #pragma unroll\n\
         for (int i = 0; i < TURNS; i++) {{\n\
         \x20 const int head = {unit} % SETS * HEADS + {head};\n\
         \x20 sink_held[i] = head < GROUP ? to_f32(sinks[{unit} / SETS * GROUP + head]) * 1.44269504f : 0.0f;\n\
         }}"
    );
    let add = "const f32 sink = sink_held[i];\n\
               const f32 top = fmaxf(most, sink);\n\
               const f32 base = top == -INF ? 0.0f : top;\n\
               factor = exp2_fast(most - base);\n\
               sum = fmaf(sum, factor, exp2_fast(sink - base));";
    (early, add)
}

/// Whether the kernel with rings can do it: pieces lie in one page, and its lists and counts fit.
fn rings(few: &Few) -> bool {
    let chunks =
        few.tokens.saturating_mul(few.kv.heads * blocks(few.group, 8)).saturating_mul(few.keys / PART_KEYS + 1);
    few.window == 0
        && few.kv.dim <= 64
        && few.kv.page % 32 == 0
        && (RING_FROM..=MAX_FEW).contains(&few.tokens)
        && chunks < i64::from(i32::MAX)
}

fn ring(cx: &Cx, fill: impl Fn(Text) -> Text, few: Few) -> Result<Lowered, LowerError> {
    let Few { tokens, keys, .. } = few;
    // Warps that multiply, and pieces of 32 keys that the ring of each holds besides the one in registers. More bytes under way only make all wait longer;
    // with few tokens stretches are short, and fewer warps leave less to be folded at the end.
    let (warps, stages) = if tokens < 64 { (4, 2) } else { (8, 1) };
    // The rings, aligned like what they are filled from; slots of sums and statistics; three lists of tokens; and signals, which are not dynamic.
    let rings = warps * stages * 2 * 32 * few.kv.dim * 2 + 128;
    let listed = (tokens as u64).next_power_of_two().max(64) as i64;
    let lists = blocks(3 * listed + 1, 4) * 16;
    let slots = ((SHARED - 2048 - rings - lists) / few.slot()).min(RING_SLOTS);
    let text = few
        .text(cx, "ring", include_str!("cuda/attention_ring.cu"), "unit", "four_of(i) / (DIM / 4)")?
        .with(Piece::Async)
        .set("warps", warps)
        .set("stages", stages)
        .set("folders", FOLDERS)
        .set("slots", slots)
        .set("listed", listed)
        .set("read", 4);
    let mut launch = cx.launch(fill(text).build(), PROCESSORS, (warps + FOLDERS) as u32 * 32, few.args())?;
    launch.dependent = true;
    launch.shared = (rings + slots * few.slot() + lists) as u32;
    // Two parts of a token and key head for each block, of runs and what is left before and behind them.
    let nodes = keys / (16 * PART_KEYS) + 13;
    let scratch = vec![(PROCESSORS * 2 * nodes * few.part()) as u64];
    Ok(Lowered { launches: vec![launch], scratch, counters: (PROCESSORS * FOLDERS) as u32, ..Lowered::default() })
}

fn few(cx: &Cx, fill: impl Fn(Text) -> Text, few: Few) -> Result<Lowered, LowerError> {
    if rings(&few) {
        return ring(cx, fill, few);
    }
    let &Few { kv: kv::Kv { heads, dim, .. }, group, tokens, keys, window, .. } = &few;
    let units = heads * blocks(group, few.heads());
    let narrow = narrow_pieces(window);
    let warps = narrow.unwrap_or(4);
    let threads = warps * 32;
    // Parts of the keys that a token can see, from any position on.
    let parts = match (narrow, window) {
        (Some(_), _) => 1,
        (None, 0) => blocks(keys, PART_KEYS).max(1),
        (None, _) => blocks(keys.min(window.saturating_add(PART_KEYS - 1)), PART_KEYS).max(1),
    };
    let works = tokens.saturating_mul(units).saturating_mul(parts);
    let head = "((int)threadIdx.x + THREADS * i) / (DIM / 4)";
    let text = few
        .text(cx, "few", include_str!("cuda/attention_decode.cu"), "w.unit", head)?
        .set("limit", PARTS)
        .set("warps", warps)
        .set("held", dim <= 64)
        .set("resident", if warps <= 5 { 2 } else { 1 });
    let mut launch = cx.launch(fill(text).build(), works.min(BLOCKS), threads as u32, few.args())?;
    launch.dependent = true;
    // Sums of pieces or chunks with their statistics; for works of several parts also runs so far and the list of parts.
    let slots = narrow.unwrap_or(16) * few.slot();
    let rest = match narrow {
        Some(_) => 0,
        None => blocks(few.heads() * dim / 4, threads) * threads * 32 + (MAX_FEW + 4) * 4,
    };
    // The blocks of a single token have multiprocessors of their own where there are enough: beside a block that fills a ring their reads wait for the
    // ring's.
    let alone = tokens == 1 && works <= PROCESSORS;
    launch.shared = (slots + rest).max(if alone { i64::from(SHARED_ALONE) } else { 0 }) as u32;
    let scratch = vec![(works.min(PARTS) * few.part()) as u64];
    Ok(Lowered { launches: vec![launch], scratch, counters: PARTS as u32, ..Lowered::default() })
}
