//! What every model's `@step` has in common: its inputs, and the head that turns the last hidden state into what was asked for.

use gossamer_ir::{Attrs, DType, Module, OpKind, StateDecl};

use crate::dsl::{Built, FuncBuilder, ModelBuilder, T, dims};

/// What a step gives back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Head {
    /// Logits of the selected rows, and with `hidden` the residual stream after the embedding and each layer (the last one normalised) and the
    /// experts that each layer chose.
    Logits {
        /// Whether to return the residual stream and the routing.
        hidden: bool,
    },
    /// The greatest logit's token.
    Greedy,
    /// A token drawn by temperature, top-k, top-p, min-p and seed.
    Sample,
    /// As `Sample`, after penalties and logit bias, with log probabilities of the token and of the [`TOP_LOGPROBS`] best.
    Full,
}

/// Entries a row of the logit bias input has.
pub const LOGIT_BIAS: usize = 512;

/// Alternatives whose log probabilities [`Head::Full`] returns (fewer for a smaller vocabulary).
pub const TOP_LOGPROBS: usize = 20;

/// Limits and choices of a compiled step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepOptions {
    /// What it returns.
    pub head: Head,
    /// Most tokens a step, the bound of T.
    pub max_tokens: usize,
    /// Most sequences a step, the bound of S.
    pub max_seqs: usize,
    /// Longest sequence in tokens, the bound of C; not above the model's own context.
    pub context: usize,
    /// Tokens a KV page.
    pub page: usize,
}

/// One result of `@step`, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// i32 [R]: the chosen tokens.
    Token,
    /// f32 [R, V].
    Logits,
    /// Residual stream number i, [T, H].
    Hidden(usize),
    /// i32 [T, k]: experts chosen by layer i, best first.
    Routing(usize),
    /// f32 [R]: log probability of the token before temperature, after penalties and bias.
    Logprob,
    /// f32 [R, k]: the greatest log probabilities.
    TopLogprobs,
    /// i32 [R, k]: their tokens.
    TopTokens,
    /// The state parameter of this number (among the states) after the step.
    State(usize),
}

/// A model's module with the meaning of `@step`'s results. Parameters are known by name: see [`StepInputs`].
#[derive(Clone, Debug)]
pub struct Program {
    /// The module; its entry is `@step`.
    pub module: Module,
    /// Meaning of the results of `@step`.
    pub outputs: Vec<Output>,
    /// What it was built for.
    pub options: StepOptions,
}

/// Name of the entry function.
pub const ENTRY: &str = "step";

/// Declares the symbols of a step: T tokens, S sequences, R rows that get logits, P pages a sequence, C positions.
pub fn declare_symbols(m: &mut ModelBuilder, o: &StepOptions) {
    m.symbol("T", 1, o.max_tokens as i64);
    m.symbol("S", 1, o.max_seqs as i64);
    m.symbol("R", 1, o.max_tokens.max(o.max_seqs) as i64);
    m.symbol("P", 1, o.context.div_ceil(o.page).max(1) as i64);
    m.symbol("C", 1, o.context as i64);
}

/// The tensor inputs of `@step`: `tokens`, `pos`, `seq` (i32 [T]), `rows` (i32 [R]: rows of the step that get logits), and one page table
/// `pages.{state}` (i32 [S, P]) per KV declaration.
pub struct StepInputs {
    /// i32 [T]: token ids.
    pub tokens: T,
    /// i32 [T]: position of each token in its sequence.
    pub pos: T,
    /// i32 [T]: sequence of each token, -1 for padding.
    pub seq: T,
    /// i32 [R]: rows of T.
    pub rows: T,
    /// Page tables, in the order of `kv`.
    pub pages: Vec<T>,
}

impl StepInputs {
    /// Adds the inputs to `@step`.
    pub fn declare(f: &mut FuncBuilder, kv: &[StateDecl]) -> StepInputs {
        let t = dims!["T"];
        StepInputs {
            tokens: f.input("tokens", DType::I32, &t),
            pos: f.input("pos", DType::I32, &t),
            seq: f.input("seq", DType::I32, &t),
            rows: f.input("rows", DType::I32, &dims!["R"]),
            pages: kv.iter().map(|d| f.input(&format!("pages.{}", d.name()), DType::I32, &dims!["S", "P"])).collect(),
        }
    }
}

/// The state that [`Head::Full`] needs, to be declared with the model's own.
pub fn counts(vocab: usize) -> StateDecl {
    StateDecl::Counts { name: "seen".into(), vocab: vocab as i64 }
}

/// What [`sampling_head`] returns: results with their meaning, and the new counts state if there is one.
pub type HeadResults = (Vec<(T, Output)>, Option<T>);

/// Turns logits `f32 [R, V]` into what `head` asks for; returns the results, their meaning, and the new counts state if there is one.
///
/// Inputs it adds for `Sample` and `Full`, all [R]: `temperature`, `top_p`, `min_p` (f32), `top_k`, `sample_pos` (i32), `seed` (i32 [R, 2]); for `Full` also `row_slots` (i32),
/// `repetition`, `presence`, `frequency` (f32), `bias_ids` (i32 [R, 512]), `bias_values` (f32 [R, 512]), and `slots`, `prompt_len` (i32 [S]).
pub fn sampling_head(
    f: &mut FuncBuilder,
    head: Head,
    logits: T,
    vocab: usize,
    step: &StepInputs,
    counts: Option<T>,
) -> Built<HeadResults> {
    let r = dims!["R"];
    if let Head::Logits { .. } = head {
        return Ok((vec![(logits, Output::Logits)], None));
    }
    if head == Head::Greedy {
        let token = f.argmax(logits)?;
        return Ok((vec![(token, Output::Token)], None));
    }
    let pos = f.input("sample_pos", DType::I32, &r);
    let (mut logits, mut state, mut outputs) = (logits, None, Vec::new());
    if let (Head::Full, Some(seen)) = (head, counts) {
        let slots = f.input("slots", DType::I32, &dims!["S"]);
        let prompt_len = f.input("prompt_len", DType::I32, &dims!["S"]);
        let operands = [seen, step.tokens, step.pos, step.seq, slots, prompt_len];
        let seen = f.op(OpKind::CountTokens, &operands, Attrs::default())?[0];
        let row_slots = f.input("row_slots", DType::I32, &r);
        let [repetition, presence, frequency] =
            ["repetition", "presence", "frequency"].map(|name| f.input(name, DType::F32, &r));
        let operands = [logits, seen, row_slots, repetition, presence, frequency];
        logits = f.op(OpKind::Penalize, &operands, Attrs::default())?[0];
        let ids = f.input("bias_ids", DType::I32, &dims!["R", LOGIT_BIAS]);
        let values = f.input("bias_values", DType::F32, &dims!["R", LOGIT_BIAS]);
        logits = f.op(OpKind::LogitBias, &[logits, ids, values], Attrs::default())?[0];
        state = Some(seen);
    }
    let [temperature, top_p, min_p] = ["temperature", "top_p", "min_p"].map(|name| f.input(name, DType::F32, &r));
    let top_k = f.input("top_k", DType::I32, &r);
    let seed = f.input("seed", DType::I32, &dims!["R", 2]);
    let operands = [logits, temperature, top_k, top_p, min_p, seed, pos];
    let token = f.op(OpKind::Sample, &operands, Attrs::default())?[0];
    outputs.push((token, Output::Token));
    if head == Head::Full {
        let k = TOP_LOGPROBS.min(vocab);
        let logprob = f.token_logprob(logits, token)?;
        let (best, ids) = f.topk(logits, k)?;
        let lse = f.logsumexp(logits)?;
        let lse = f.reshape(lse, &dims!["R", 1])?;
        let lse = f.broadcast(lse, &dims!["R", k])?;
        let best = f.sub(best, lse)?;
        outputs.extend([(logprob, Output::Logprob), (best, Output::TopLogprobs), (ids, Output::TopTokens)]);
    }
    Ok((outputs, state))
}
