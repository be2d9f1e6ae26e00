//! Attention over the paged cache: tensor cores where queries and cache are both bf16 or both f16, else f32 arithmetic.
//!
//! Two shapes of one template make the same bits: for few tokens a block is one token and its warps split the keys; for many each warp has
//! rows of its own, so that the warps of a block share keys in the cache of the processor. Keys are cut into blocks at fixed positions and
//! folded in an order that depends on the position alone, which keeps a row independent of the step it is in.

use gossamer_ir::DType;

use super::{Cx, blocks, kv, operand, result, rows_of, single};
use crate::emit::{Piece, Text, c_type, f32_literal};
use crate::lower::{Arg, LowerError, Lowered, Part};

/// Tokens of a step up to which each has a block of its own.
const FEW: i64 = 64;
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
    let split = tokens <= FEW;
    // Registers bound the rows of a warp: 32 sums a row tile for every 64 elements of a head.
    let (warps, row_tiles) = match (split, kv.dim) {
        (true, _) => (8, 1),
        (false, ..=64) => (4, 2),
        (false, _) => (4, 1),
    };
    let capacity = if split { 16 } else { warps * row_tiles * 16 };
    let heads = group.min(capacity);
    let tile_tokens = if split { 1 } else { capacity / heads };
    let chunks = blocks(group, heads);
    let how = match split {
        true => "Warps split the classes.",
        false => "Each warp takes all classes of its own rows.",
    };
    let text =
        Text::new(format!("{name}_{}", if split { "few" } else { "many" }), ir, include_str!("cuda/attention_mma.cu"))
            .with(Piece::Mma)
            .set("type", c_type(q.dtype))
            .set("warp_rows", row_tiles * 16)
            .set("how", how)
            .set("heads", heads)
            .set("tokens", tile_tokens)
            .set("warps", warps)
            .set("row_tiles", row_tiles)
            .set("split", split)
            .set("sink", sink("head[r][h]"));
    // Values of large heads are shared by two blocks.
    let parts = if kv.dim > 128 { 2 } else { 1 };
    let count = blocks(tokens, tile_tokens) * kv.heads * chunks * parts;
    let mut launch = cx.launch(fill(text).build(), count, warps as u32 * 32, args)?;
    let state = row_tiles * blocks(kv.dim / parts, 64) * 32 + row_tiles * 4;
    launch.shared = (warps * state * 32 * 4) as u32;
    Ok(single(launch))
}
