//! Ops that choose tokens. Each row r of the logits has its own parameters, so that requests in one batch do not affect each other.

use crate::attr::AttrKind;
use crate::dim::Dim;
use crate::dtype::DType;
use crate::interp::sample as eval;
use crate::op::{Class, Default, InferCx, OpInfo, OperandInfo, attr, one, optional};
use crate::ty::Type;

const LOGITS: OperandInfo = one("logits", "f32 [R, V]");

/// The dims R and V of f32 logits at operand `i`.
fn logits(cx: &InferCx, i: usize) -> Result<(Dim, Dim), String> {
    let t = cx.tensor(i)?;
    match (t.dtype, t.dims.as_slice()) {
        (DType::F32, [r, v]) => Ok((r.clone(), v.clone())),
        _ => Err(format!("operand {i} is {t}, expected f32 [R, V]")),
    }
}

/// `count_tokens`: counts the tokens fed to a step.
pub static COUNT_TOKENS: OpInfo = OpInfo {
    name: "count_tokens",
    class: Class::State,
    summary: "Counts the tokens fed to a step",
    doc: "For each token t of sequence s = `seq[t]`: in row `slots[s]` its count is raised by one if `pos[t] >= prompt_len[s]` (it was generated), \
          else it is marked as part of the prompt. Padding and tokens outside the vocabulary are skipped.",
    operands: &[
        one("counts", "counts state, consumed"),
        one("tokens", "i32 [T]"),
        one("pos", "i32 [T]: position of each token in its sequence"),
        one("seq", "i32 [T]: sequence of each token, -1 for padding"),
        one("slots", "i32 [S]: row of the state for each sequence"),
        one("prompt_len", "i32 [S]: tokens of each prompt"),
    ],
    attrs: &[],
    results: &["counts"],
    infer: |cx| {
        let (_, ty) = cx.counts(0)?;
        let t = cx.index(1, 1)?.dims.clone();
        cx.exact(2, DType::I32, &t)?;
        cx.exact(3, DType::I32, &t)?;
        let s = cx.index(4, 1)?.dims.clone();
        cx.exact(5, DType::I32, &s)?;
        Ok(vec![ty.clone()])
    },
    eval: eval::count_tokens,
    tolerance: 0.0,
    decomposition: None,
};

/// `penalize`: repetition, presence and frequency penalties.
pub static PENALIZE: OpInfo = OpInfo {
    name: "penalize",
    class: Class::Sampling,
    summary: "Repetition, presence and frequency penalties",
    doc: "With c the count of generated occurrences of a token in row `slots[r]`: a token that occurred in prompt or output has its logit divided by \
          `repetition` if positive, else multiplied (Keskar et al. 2019, arXiv:1909.05858); then `frequency * c` is subtracted, and `presence` if c > 0.",
    operands: &[
        LOGITS,
        one("counts", "counts state"),
        one("slots", "i32 [R]: row of the state, -1: no penalty"),
        one("repetition", "f32 [R]: 1 is none"),
        one("presence", "f32 [R]: 0 is none"),
        one("frequency", "f32 [R]: 0 is none"),
    ],
    attrs: &[],
    results: &["logits"],
    infer: |cx| {
        let (r, v) = logits(cx, 0)?;
        let (vocab, ty) = cx.counts(1)?;
        if v != Dim::from(vocab) {
            return Err(format!("logits have {v} columns, but {ty} counts {vocab} tokens"));
        }
        cx.exact(2, DType::I32, std::slice::from_ref(&r))?;
        for i in 3..6 {
            cx.exact(i, DType::F32, std::slice::from_ref(&r))?;
        }
        Ok(vec![cx.operands[0].clone()])
    },
    eval: eval::penalize,
    tolerance: 1e-6,
    decomposition: None,
};

/// `logit_bias`: adds to a few logits.
pub static LOGIT_BIAS: OpInfo = OpInfo {
    name: "logit_bias",
    class: Class::Sampling,
    summary: "Adds to a few logits",
    doc: "`logits[r, ids[r, i]] += values[r, i]`; ids outside 0..V are skipped; ids of a row are distinct.",
    operands: &[LOGITS, one("ids", "i32 [R, B]"), one("values", "f32 [R, B]")],
    attrs: &[],
    results: &["logits"],
    infer: |cx| {
        let (r, _) = logits(cx, 0)?;
        let ids = cx.index(1, 2)?.dims.clone();
        crate::op::same(&ids[0], &r, "rows of logits and ids")?;
        cx.exact(2, DType::F32, &ids)?;
        Ok(vec![cx.operands[0].clone()])
    },
    eval: eval::logit_bias,
    tolerance: 1e-6,
    decomposition: None,
};

/// `sample`: draws one token a row.
pub static SAMPLE: OpInfo = OpInfo {
    name: "sample",
    class: Class::Sampling,
    summary: "Draws one token a row",
    doc: "`temperature` 0: the greatest logit, ties to the lower index. Otherwise logits are divided by it and tokens are kept in this order: the `top_k` greatest \
          (0: all; ties at the edge are kept), then those with probability of at least `min_p` times the greatest, then the least set of most probable \
          ones whose probabilities, renormalised, reach `top_p` (the token that crosses is kept, ties at the edge too). Among the kept ones the greatest of `logit + g` \
          wins, g being standard Gumbel noise from Philox-4x32-10 keyed by `seed[r]` and countered by (token, `pos[r]`): the draw \
          depends on nothing but the row's logits, seed and position. NaN counts as minus infinity. The documentation of `interp::sample` is the exact recipe, \
          step by step, for every kernel.",
    operands: &[
        LOGITS,
        one("temperature", "f32 [R]: 0 is greedy"),
        one("top_k", "i32 [R]: 0 is off"),
        one("top_p", "f32 [R]: 1 is off"),
        one("min_p", "f32 [R]: 0 is off"),
        one("seed", "i32 [R, 2]: low and high word"),
        one("pos", "i32 [R]: position of the token that is drawn"),
        optional("maxima", "f32 [R, tiles]: `tile_max` of the logits; changes nothing but the time it takes"),
    ],
    attrs: &[attr("tile", AttrKind::Int, Default::Int(0), "logits of each of the maxima; 0 without them")],
    results: &["tokens"],
    infer: |cx| {
        let (r, _) = logits(cx, 0)?;
        let row = std::slice::from_ref(&r);
        for (i, dtype) in [DType::F32, DType::I32, DType::F32, DType::F32].into_iter().enumerate() {
            cx.exact(i + 1, dtype, row)?;
        }
        cx.exact(5, DType::I32, &[r.clone(), 2i64.into()])?;
        cx.exact(6, DType::I32, row)?;
        super::reduce::maxima(cx, 7)?;
        Ok(vec![Type::tensor(DType::I32, [r])])
    },
    eval: eval::sample,
    tolerance: 0.0,
    decomposition: None,
};

/// `token_logprob`: log probability of a given token.
pub static TOKEN_LOGPROB: OpInfo = OpInfo {
    name: "token_logprob",
    class: Class::Sampling,
    summary: "Log probability of a given token",
    doc: "`logits[r, tokens[r]] - logsumexp(logits[r])`, in f32; minus infinity for a token outside 0..V.",
    operands: &[LOGITS, one("tokens", "i32 [R]")],
    attrs: &[],
    results: &["logprob"],
    infer: |cx| {
        let (r, _) = logits(cx, 0)?;
        cx.exact(1, DType::I32, std::slice::from_ref(&r))?;
        Ok(vec![Type::tensor(DType::F32, [r])])
    },
    eval: eval::token_logprob,
    tolerance: 1e-5,
    decomposition: None,
};
