//! The engine: sequences, their KV pages, and steps over them.
//!
//! Turns "these tokens for these sequences, sample here" into inputs of a compiled step, and results back into tokens. Programs are compiled per
//! [`Head`], plans per bucket, both when first needed. Must not know tokenizers, files or which device runs the plan.

mod ahead;
mod inputs;
pub mod kv;
mod program;
pub mod sampling;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gossamer_ir::{InferError, Module};
use gossamer_models::config::ModelConfig;
use gossamer_models::step::{Head, Output};
use gossamer_passes::bucket::{StepSize, choose, choose_prompt};
use gossamer_passes::manager::Pass;
use gossamer_passes::plan::PlanError;
use gossamer_passes::{Options, PassError, Plan};

use crate::exec::{ExecError, Executor, HostData, Inputs, PlanId, StateSpec};
use crate::phases::{Phase, Phases};
use ahead::Drawn;
pub use ahead::OnDecoded;
use kv::{Group, PageTable};
pub use program::{plan_step, program, state_specs};
pub use sampling::{SamplingError, SamplingParams};

/// Limits of an engine. Memory for state follows from them.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Longest sequence, in tokens.
    pub context: usize,
    /// Most tokens a step; longer prompts are fed in chunks of this size.
    pub chunk: usize,
    /// Most sequences at a time.
    pub max_seqs: usize,
    /// Tokens a KV page.
    pub page: usize,
    /// Tokens of KV that all sequences together may hold in full-attention layers; `None`: every sequence may be as long as `context`.
    pub kv_tokens: Option<usize>,
    /// Module passes to run.
    pub passes: Vec<Pass>,
    /// What the passes are told about the target; sizes are filled in per bucket if `fuse` is set.
    pub pass_options: Options,
    /// Compile every bucket for its own sizes, so that ops are fused into kernels. Otherwise one module serves all buckets, op by op.
    pub fuse: bool,
}

/// Names a sequence of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SeqId(usize);

/// A sequence: where its keys and values are, and how many tokens it has.
struct Sequence {
    len: usize,
    prompt_len: usize,
    tables: Vec<PageTable>,
}

/// One sequence's part of a step.
#[derive(Clone, Copy, Debug)]
pub struct Work<'a> {
    /// Which sequence.
    pub seq: SeqId,
    /// Its next tokens, at least one.
    pub tokens: &'a [u32],
    /// How the sequence's tokens are chosen; `None`: never. Given with every part of a prompt, because penalties count all of it.
    pub params: Option<&'a SamplingParams>,
    /// Whether to choose the token after the last of these; not while more of the prompt follows.
    pub sample: bool,
}

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// The token.
    pub token: u32,
    /// Its log probability and the best alternatives, if asked for.
    pub logprobs: Option<Logprobs>,
}

/// Log probabilities after penalties and bias, before temperature.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// Of the token.
    pub token: f32,
    /// The greatest ones, in descending order.
    pub top: Vec<(u32, f32)>,
}

/// Logits of consecutive tokens.
#[derive(Clone, Debug, Default)]
pub struct StepLogits {
    /// f32 [n, V].
    pub logits: Vec<f32>,
    /// Residual stream after the embedding and each layer, f32 [n, H] each; the last one normalised.
    pub hidden: Vec<Vec<f32>>,
    /// Experts that each layer chose, i32 [n, k] each, best first. With `hidden` only.
    pub routing: Vec<Vec<i32>>,
}

/// A program before passes.
struct Source {
    module: Module,
    outputs: Vec<Output>,
}

/// Sequences on one device.
pub struct Engine {
    config: ModelConfig,
    options: EngineOptions,
    executor: Box<dyn Executor>,
    sources: BTreeMap<Head, Arc<Source>>,
    plans: BTreeMap<(Head, StepSize), PlanId>,
    /// Plans made before they were needed.
    adopted: BTreeMap<(Head, StepSize), Plan>,
    groups: Vec<Group>,
    seqs: Vec<Option<Sequence>>,
    phases: Phases,
}

/// Why a step could not run. Sequences are as before it, but after a failure of the device ([`EngineError::Exec`]) they can only be ended.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A token outside the vocabulary.
    #[error("token {token} at position {position} is outside the vocabulary (0 to {}); check that the tokens are of this model", .vocab - 1)]
    Token {
        /// The token.
        token: u32,
        /// Its position in the sequence.
        position: usize,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// More tokens than the context.
    #[error(
        "{tokens} tokens do not fit the context of {context}; shorten the prompt or raise --context (the model allows {model})"
    )]
    Context {
        /// Tokens the sequence would have.
        tokens: usize,
        /// The engine's limit.
        context: usize,
        /// The model's limit.
        model: usize,
    },
    /// No free KV page.
    #[error(
        "no KV page is free for {tokens} more tokens (cache `{group}` has {pages} pages of {page} tokens); end a sequence or raise the KV budget"
    )]
    Pages {
        /// The KV declaration.
        group: String,
        /// Tokens wanted.
        tokens: usize,
        /// Its pages.
        pages: usize,
        /// Tokens a page.
        page: usize,
    },
    /// No free sequence slot.
    #[error("{max} sequences are running, which is the limit; end one first")]
    Sequences {
        /// The limit.
        max: usize,
    },
    /// A step without tokens, an unknown sequence, or one named twice: a bug of the caller.
    #[error("a step must give each of its sequences once, with 1 to {chunk} tokens in all")]
    Step {
        /// Most tokens a step.
        chunk: usize,
    },
    /// A sampling parameter outside its range.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// The model did not build.
    #[error(transparent)]
    Infer(#[from] InferError),
    /// A pass failed.
    #[error(transparent)]
    Pass(#[from] PassError),
    /// No plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The device.
    #[error(transparent)]
    Exec(#[from] ExecError),
}

/// What is done with a plan and its inputs.
type Go<'a, R> = &'a mut dyn FnMut(&mut dyn Executor, PlanId, &Inputs) -> Result<R, ExecError>;

/// The size of a step of this work.
fn size_of(work: &[Work]) -> StepSize {
    let rows = work.iter().filter(|w| w.sample && w.params.is_some()).count().max(1);
    StepSize { tokens: work.iter().map(|w| w.tokens.len()).sum(), seqs: work.len(), rows }
}

/// What a step must return: as much as the most demanding of its sequences asks for.
fn head(work: &[Work]) -> Head {
    work.iter().filter_map(|w| w.params.map(SamplingParams::head)).max().unwrap_or(Head::Greedy)
}

impl Engine {
    /// An engine whose plans run on what `executor` makes for the given state.
    ///
    /// # Errors
    /// A model that does not build, or what making the executor gives.
    pub fn new(
        config: ModelConfig,
        options: EngineOptions,
        executor: impl FnOnce(&[StateSpec]) -> Result<Box<dyn Executor>, ExecError>,
    ) -> Result<Engine, EngineError> {
        // Every running sequence must be able to take part in a step.
        let options = EngineOptions { chunk: options.chunk.max(options.max_seqs), ..options };
        let specs = state_specs(&config, &options)?;
        let mut groups: Vec<Group> = Vec::new();
        for spec in &specs {
            if let Some(group) = Group::new(&spec.decl, spec.units)
                && groups.iter().all(|g| g.name != group.name)
            {
                groups.push(group);
            }
        }
        let mut executor = executor(&specs)?;
        let phases = Phases::default();
        executor.count_phases(phases.clone());
        let seqs = (0..options.max_seqs).map(|_| None).collect();
        Ok(Engine {
            config,
            options,
            executor,
            sources: BTreeMap::new(),
            plans: BTreeMap::new(),
            adopted: BTreeMap::new(),
            groups,
            seqs,
            phases,
        })
    }

    /// The model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The limits.
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// One line: the device.
    pub fn describe(&self) -> String {
        self.executor.describe()
    }

    /// The executor underneath.
    pub fn executor(&self) -> &dyn Executor {
        &*self.executor
    }

    /// Takes plans that were made with this engine's options, so that they are not made again.
    pub fn adopt(&mut self, plans: Vec<(Head, StepSize, Plan)>) {
        self.adopted.extend(plans.into_iter().map(|(head, size, plan)| ((head, size), plan)));
    }

    /// Seconds that making plans ready took so far, by phase.
    pub fn phases(&self) -> Vec<(Phase, f64)> {
        self.phases.list()
    }

    /// Counts time of a phase that was over before the engine was there.
    pub fn add_phase(&self, phase: Phase, time: Duration) {
        self.phases.add(phase, time);
    }

    /// Starts a sequence whose first `prompt_len` tokens are its prompt (penalties treat later ones as generated).
    ///
    /// # Errors
    /// No free slot, a prompt longer than the context, or the device.
    pub fn start(&mut self, prompt_len: usize) -> Result<SeqId, EngineError> {
        self.check_context(prompt_len)?;
        let Some(slot) = self.seqs.iter().position(Option::is_none) else {
            return Err(EngineError::Sequences { max: self.options.max_seqs });
        };
        self.executor.clear_counts("seen", slot)?;
        let tables = vec![PageTable::default(); self.groups.len()];
        self.seqs[slot] = Some(Sequence { len: 0, prompt_len, tables });
        Ok(SeqId(slot))
    }

    /// Ends a sequence and frees its pages.
    pub fn end(&mut self, seq: SeqId) {
        if let Some(mut s) = self.seqs.get_mut(seq.0).and_then(Option::take) {
            s.tables.iter_mut().zip(&mut self.groups).for_each(|(t, g)| t.clear(g));
        }
    }

    /// Tokens of a sequence so far.
    pub fn len(&self, seq: SeqId) -> usize {
        self.seqs.get(seq.0).and_then(Option::as_ref).map_or(0, |s| s.len)
    }

    /// True if no sequence is running.
    pub fn is_empty(&self) -> bool {
        self.seqs.iter().all(Option::is_none)
    }

    /// Runs one step. The results are in the order of `work`. Where some of it feeds prompts and some decodes, prompts go first, as a step of their own: they are
    /// summed in another order than decoded tokens ([`gossamer_passes::bucket::prompt_rows`]), and what a sequence gets must not depend on the others.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub fn step(&mut self, work: &[Work]) -> Result<Vec<Option<Sampled>>, EngineError> {
        let size = self.check(work)?;
        // Before the first part runs: it may be the end of a prompt.
        let (prompts, decodes): (Vec<usize>, Vec<usize>) = (0..work.len()).partition(|i| self.feeds_prompt(&work[*i]));
        if prompts.is_empty() || decodes.is_empty() || self.executor.exact_sizes() {
            return self.step_of(work, size);
        }
        let mut out = vec![None; work.len()];
        for at in [prompts, decodes] {
            let part: Vec<Work> = at.iter().map(|i| work[*i]).collect();
            let drawn = self.step_of(&part, size_of(&part))?;
            at.into_iter().zip(drawn).for_each(|(i, d)| out[i] = d);
        }
        Ok(out)
    }

    /// Makes ready what one sequence with this prompt needs: weights, kernels and plans of its steps, and with `decodes` those of the tokens behind it. Steps make them
    /// ready, too; this is for whoever wants the time apart.
    ///
    /// # Errors
    /// As [`Engine::step`] for the prompt.
    pub fn prepare(&mut self, prompt: &[u32], params: &SamplingParams, decodes: bool) -> Result<(), EngineError> {
        let (o, vocab) = (&self.options, self.config.vocab());
        self.check_context(prompt.len())?;
        params.check(vocab)?;
        if let Some(position) = prompt.iter().position(|t| *t as usize >= vocab) {
            return Err(EngineError::Token { token: prompt[position], position, vocab });
        }
        let max = StepSize { tokens: o.chunk, seqs: o.max_seqs, rows: o.chunk.max(o.max_seqs) };
        let exact = self.executor.exact_sizes();
        let one = |tokens| StepSize { tokens, seqs: 1, rows: 1 };
        let parts = [prompt.len().min(o.chunk), prompt.len() % o.chunk].into_iter().filter(|n| *n > 0);
        let mut sizes: Vec<StepSize> = parts.map(|n| if exact { one(n) } else { choose_prompt(one(n), max) }).collect();
        if decodes {
            sizes.push(if exact { one(1) } else { choose(one(1), max) });
        }
        sizes.into_iter().try_for_each(|size| self.plan(params.head(), size).map(drop))
    }

    /// True if some token of the work is of its sequence's prompt.
    fn feeds_prompt(&self, work: &Work) -> bool {
        self.seqs.get(work.seq.0).and_then(Option::as_ref).is_some_and(|s| s.len < s.prompt_len)
    }

    /// [`Engine::step`] of checked work that all feeds prompts or all decodes.
    fn step_of(&mut self, work: &[Work], size: StepSize) -> Result<Vec<Option<Sampled>>, EngineError> {
        let head = head(work);
        let (results, bucket) = self.run(work, head, size)?;
        let drawn = Drawn::of(&self.sources[&head].outputs, &results, bucket);
        let mut row = 0usize..;
        Ok(work
            .iter()
            .map(|w| w.params.filter(|_| w.sample).map(|params| drawn.row(row.next().unwrap_or(0), params)))
            .collect())
    }

    /// Feeds `tokens` (at most a chunk) to `seq` and returns the logits of each of them, and the residual stream if asked for.
    ///
    /// # Errors
    /// As [`Engine::step`].
    pub fn logits(&mut self, seq: SeqId, tokens: &[u32], hidden: bool) -> Result<StepLogits, EngineError> {
        self.step_logits(&[Work { seq, tokens, params: None, sample: false }], hidden)
    }

    /// [`Engine::logits`] of several sequences in one step; rows in the order of `work`.
    ///
    /// # Errors
    /// As [`Engine::step`].
    pub fn step_logits(&mut self, work: &[Work], hidden: bool) -> Result<StepLogits, EngineError> {
        let size = self.check(work)?;
        let (tokens, head) = (size.tokens, Head::Logits { hidden });
        let (results, bucket) = self.run(work, head, StepSize { rows: tokens, ..size })?;
        let mut out = StepLogits::default();
        // Rows behind the tokens are padding.
        for (output, data) in self.sources[&head].outputs.iter().zip(results) {
            match (output, data) {
                (Output::Logits, HostData::F32(mut v)) => {
                    v.truncate(v.len() / bucket.rows * tokens);
                    out.logits = v;
                }
                (Output::Hidden(_), HostData::F32(mut v)) => {
                    v.truncate(v.len() / bucket.tokens * tokens);
                    out.hidden.push(v);
                }
                (Output::Routing(_), HostData::I32(mut v)) => {
                    v.truncate(v.len() / bucket.tokens * tokens);
                    out.routing.push(v);
                }
                _ => {}
            }
        }
        Ok(out)
    }

    /// Makes the plans for decoding `seqs` sequences and for a full chunk ready, so that the first request does not wait for them.
    ///
    /// # Errors
    /// As [`Engine::step`].
    pub fn warm(&mut self, head: Head, sizes: &[StepSize]) -> Result<(), EngineError> {
        let o = &self.options;
        let max = StepSize { tokens: o.chunk, seqs: o.max_seqs, rows: o.chunk.max(o.max_seqs) };
        let exact = self.executor.exact_sizes();
        sizes.iter().try_for_each(|s| self.plan(head, if exact { *s } else { choose(*s, max) }).map(drop))
    }

    fn check_context(&self, tokens: usize) -> Result<(), EngineError> {
        match tokens <= self.options.context {
            true => Ok(()),
            false => {
                let model = self.config.context();
                Err(EngineError::Context { tokens, context: self.options.context, model })
            }
        }
    }

    /// Runs a checked step: makes its plan, takes the pages it needs, runs, counts its tokens. Gives the pages back if the device fails.
    fn run(&mut self, work: &[Work], head: Head, size: StepSize) -> Result<(Vec<HostData>, StepSize), EngineError> {
        self.run_with(work, head, size, 1, &mut |_, w| w.tokens.len(), &mut |e, id, inputs| e.run(id, inputs))
    }

    /// [`Engine::run`] with another way to run the plan: takes pages for the work's tokens and `steps - 1` more, and counts as many tokens of each sequence
    /// as `used` says.
    fn run_with<R>(
        &mut self,
        work: &[Work],
        head: Head,
        size: StepSize,
        steps: usize,
        used: &mut dyn FnMut(&R, &Work) -> usize,
        go: Go<'_, R>,
    ) -> Result<(R, StepSize), EngineError> {
        let bucket = self.bucket(work, size);
        let id = self.plan(head, bucket)?;
        for w in work {
            if let Some(s) = &mut self.seqs[w.seq.0] {
                let tokens = s.len + w.tokens.len() + (steps - 1);
                for (table, group) in s.tables.iter_mut().zip(&mut self.groups) {
                    let grown = table.grow(group, tokens);
                    debug_assert!(grown, "counted by `check` or `room`");
                }
            }
        }
        let inputs = inputs::step(self, work, head, bucket);
        let results = go(&mut *self.executor, id, &inputs);
        for w in work {
            if let Some(s) = &mut self.seqs[w.seq.0] {
                s.len += results.as_ref().map_or(0, |r| used(r, w));
                for (table, group) in s.tables.iter_mut().zip(&mut self.groups) {
                    table.shrink(group, s.len);
                    if results.is_ok() {
                        table.release_behind(group, s.len);
                    }
                }
            }
        }
        Ok((results?, bucket))
    }

    /// Checks a step; its size.
    fn check(&self, work: &[Work]) -> Result<StepSize, EngineError> {
        let total: usize = work.iter().map(|w| w.tokens.len()).sum();
        let mut slots: Vec<usize> = work.iter().map(|w| w.seq.0).collect();
        slots.sort_unstable();
        let twice = slots.windows(2).any(|w| w[0] == w[1]);
        let unknown = slots.iter().any(|s| self.seqs.get(*s).is_none_or(Option::is_none));
        if twice || unknown || total == 0 || total > self.options.chunk || work.iter().any(|w| w.tokens.is_empty()) {
            return Err(EngineError::Step { chunk: self.options.chunk });
        }
        let vocab = self.config.vocab();
        let mut needed = vec![0usize; self.groups.len()];
        for w in work {
            let Some(s) = &self.seqs[w.seq.0] else { continue };
            self.check_context(s.len + w.tokens.len())?;
            if let Some(i) = w.tokens.iter().position(|t| *t as usize >= vocab) {
                return Err(EngineError::Token { token: w.tokens[i], position: s.len + i, vocab });
            }
            if let Some(params) = w.params {
                params.check(vocab)?;
            }
            for ((n, table), group) in needed.iter_mut().zip(&s.tables).zip(&self.groups) {
                *n += table.needed(group, s.len + w.tokens.len());
            }
        }
        for (n, group) in needed.iter().zip(&self.groups) {
            if *n > group.free() {
                let (pages, page) = (group.pages, group.page);
                return Err(EngineError::Pages { group: group.name.clone(), tokens: total, pages, page });
            }
        }
        Ok(size_of(work))
    }

    /// The bucket for a step of `size` with this work.
    fn bucket(&self, work: &[Work], size: StepSize) -> StepSize {
        let o = &self.options;
        let max = StepSize { tokens: o.chunk, seqs: o.max_seqs, rows: o.chunk.max(o.max_seqs) };
        match work.iter().any(|w| self.feeds_prompt(w)) {
            _ if self.executor.exact_sizes() => size,
            true => choose_prompt(size, max),
            false => choose(size, max),
        }
    }

    /// The plan for a step of a bucket, made if this is its first.
    fn plan(&mut self, head: Head, bucket: StepSize) -> Result<PlanId, EngineError> {
        let o = &self.options;
        if let Some(id) = self.plans.get(&(head, bucket)) {
            return Ok(*id);
        }
        let begun = Instant::now();
        let source = match self.sources.get(&head) {
            Some(s) => s.clone(),
            None => {
                let program = program(&self.config, o, head)?;
                let s = Arc::new(Source { module: program.module, outputs: program.outputs });
                self.sources.insert(head, s.clone());
                s
            }
        };
        let plan = match self.adopted.remove(&(head, bucket)) {
            Some(plan) => plan,
            None => plan_step(&source.module, o, bucket)?,
        };
        self.phases.add(Phase::Plan, begun.elapsed());
        let id = self.executor.prepare(Arc::new(plan))?;
        self.plans.insert((head, bucket), id);
        Ok(id)
    }
}
