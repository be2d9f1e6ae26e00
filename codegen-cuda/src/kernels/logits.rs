//! Token counts, penalties and biases. Counts are changed by integer atomics only, which commute.

use gossamer_ir::{OpKind, StateDecl};

use super::{Cx, blocks, operand, result, single};
use crate::emit::Text;
use crate::lower::{Arg, LowerError, Lowered, Part};

/// Logits a block of `logit_bias` copies.
const CHUNK: i64 = 1024;

/// Lowers `count_tokens`, `penalize` and `logit_bias`.
pub fn lower(cx: &Cx) -> Result<Lowered, LowerError> {
    match cx.op.kind {
        OpKind::CountTokens => count_tokens(cx),
        OpKind::Penalize => penalize(cx),
        _ => logit_bias(cx),
    }
}

fn vocab(cx: &Cx, i: usize) -> Result<i64, LowerError> {
    match cx.state(i)? {
        StateDecl::Counts { vocab, .. } => Ok(*vocab),
        StateDecl::Kv { name, .. } => Err(cx.malformed(format!("state `{name}` is a kv cache, expected counts"))),
    }
}

fn count_tokens(cx: &Cx) -> Result<Lowered, LowerError> {
    let vocab = vocab(cx, 0)?;
    let n = cx.values(cx.plain(1)?)?.iter().product();
    let sequences = cx.values(cx.plain(4)?)?.iter().product();
    if n == 0 {
        return Ok(Lowered::default());
    }
    let ir = cx.ir(&[format!("counts[{vocab}]"), "i32[T]".into()], &["counts".into()]);
    let kernel = Text::new(format!("count_tokens_v{vocab}"), ir, include_str!("cuda/count_tokens.cu"))
        .set("vocab", vocab)
        .build();
    let mut args = vec![Arg::Operand { index: 0, part: Part::Counts }];
    args.extend((1..6).map(operand));
    args.extend([Arg::I64(n), Arg::I64(sequences)]);
    Ok(single(cx.launch(kernel, blocks(n, 256), 256, args)?))
}

fn penalize(cx: &Cx) -> Result<Lowered, LowerError> {
    let vocab = vocab(cx, 1)?;
    let n: i64 = cx.values(cx.plain(0)?)?.iter().product();
    if n == 0 {
        return Ok(Lowered::default());
    }
    let ir = cx.ir(&[format!("f32[R, {vocab}]"), "counts".into()], &[format!("f32[R, {vocab}]")]);
    let kernel =
        Text::new(format!("penalize_v{vocab}"), ir, include_str!("cuda/penalize.cu")).set("vocab", vocab).build();
    let mut args = vec![operand(0), Arg::Operand { index: 1, part: Part::Counts }];
    args.extend((2..6).map(operand));
    args.extend([result(0), Arg::I64(n)]);
    Ok(single(cx.launch(kernel, blocks(n, 256), 256, args)?))
}

fn logit_bias(cx: &Cx) -> Result<Lowered, LowerError> {
    let (logits, ids) = (cx.values(cx.plain(0)?)?, cx.values(cx.plain(1)?)?);
    let (&[rows, vocab], &[_, biases]) = (logits.as_slice(), ids.as_slice()) else {
        return Err(cx.malformed("logits and ids must have 2 dims"));
    };
    if rows * vocab == 0 {
        return Ok(Lowered::default());
    }
    let ir = cx.ir(&["f32[R, V]".into(), "i32[R, B]".into(), "f32[R, B]".into()], &["f32[R, V]".into()]);
    let kernel = Text::new("logit_bias", ir, include_str!("cuda/logit_bias.cu")).build();
    let chunks = blocks(vocab, CHUNK);
    let args = vec![operand(0), operand(1), operand(2), result(0), Arg::I64(vocab), Arg::I64(chunks), Arg::I64(biases)];
    Ok(single(cx.launch(kernel, rows * chunks, 256, args)?))
}
