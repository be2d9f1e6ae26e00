//! Attention over the paged cache: tensor cores where queries and cache are both bf16 or both f16, else f32 arithmetic.
//!
//! Two kernels make the same bits: for few tokens each has keys of its own, which all blocks share out; for many a warp has several tokens, so
//! that they share keys in the cache of the processor. Keys are cut at fixed positions and folded in an order that depends on the position
//! alone, which keeps a row independent of the step it is in.

use gossamer_ir::DType;

use super::{Cx, blocks, kv, operand, result, rows_of, single};
use crate::emit::{Piece, Text, c_type, f32_literal};
use crate::lower::{Arg, LowerError, Lowered, Part};

/// Tokens of a step up to which each is on its own even where they are of one sequence.
const FEW: i64 = 64;
/// Tokens that the kernel for few lists in shared memory.
const MAX_FEW: i64 = 1024;
/// Parts of results that fit the scratch memory of the kernel for few tokens; two counters each.
const PARTS: i64 = 8192;
/// Keys of a part.
const PART_KEYS: i64 = 256;
/// Blocks of the kernel for few tokens: two on each multiprocessor.
const BLOCKS: i64 = 264;
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
    // Steps that decode have a sequence for each token; steps with prompts have few.
    if tokens <= FEW || tokens <= sequences.min(MAX_FEW) {
        return few(
            cx,
            fill,
            Few { name, ir, args, kv, group, tokens, keys: row_pages * kv.page, window, sinks: sinks.is_some() },
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
    launch.shared = (warps * 2 * state * 32 * 4) as u32;
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

fn few(cx: &Cx, fill: impl Fn(Text) -> Text, few: Few) -> Result<Lowered, LowerError> {
    let Few { name, ir, mut args, kv, group, tokens, keys, window, sinks } = few;
    let heads = group.min(8);
    let units = kv.heads * blocks(group, heads);
    // Keys that a token can see, from any position on.
    let seen = if window > 0 { keys.min(window + PART_KEYS - 1) } else { keys };
    let works = tokens.saturating_mul(units).saturating_mul(blocks(seen, PART_KEYS).max(1));
    let early = (2..5).all(|i| cx.early(i));
    let (sink_early, sink) = match sinks {
        true => (
            "f32 sink_held[PAIRS];\n\
             #pragma unroll\n\
             for (int i = 0; i < PAIRS; i++) {\n\
             \x20 const int head = (done.unit % SETS) * HEADS + ((int)threadIdx.x + 256 * i) / (DIM / 2);\n\
             \x20 sink_held[i] = head < GROUP ? to_f32(sinks[done.unit / SETS * GROUP + head]) * 1.44269504f : 0.0f;\n\
             }",
            "const f32 sink = sink_held[i];\n\
             const f32 top = fmaxf(most, sink);\n\
             const f32 base = top == -INF ? 0.0f : top;\n\
             factor = exp2_fast(most - base);\n\
             sum = fmaf(sum, factor, exp2_fast(sink - base));",
        ),
        false => ("", ""),
    };
    let text = Text::new(
        format!("{name}_few{}", if early { "_early" } else { "" }),
        ir,
        include_str!("cuda/attention_split.cu"),
    )
    .with(Piece::Mma)
    .with(Piece::Dependent)
    .with(Piece::Grid)
    .set("type", cx.plain(0).map(|q| c_type(q.dtype))?)
    .set("early", early)
    .set("limit", PARTS)
    .set("sink_early", sink_early)
    .set("sink", sink);
    let at = args.iter().position(|a| matches!(a, Arg::Result { .. })).map_or(args.len(), |i| i + 1);
    args.splice(at..at, [Arg::Scratch(0), Arg::Counters]);
    let mut launch = cx.launch(fill(text).build(), works.min(BLOCKS), 256, args)?;
    let part = blocks(heads * (kv.dim + 2), 4) * 16;
    launch.dependent = true;
    launch.shared = ((2 * 8 * heads * (kv.dim + 4) * 4).max(16 * part) + (MAX_FEW + 4) * 4) as u32;
    let scratch = vec![(works.min(PARTS) * part) as u64];
    Ok(Lowered { launches: vec![launch], scratch, counters: 2 * PARTS as u32, ..Lowered::default() })
}
