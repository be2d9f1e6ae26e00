//! Steps that decode: runs of them that feed each other, and what benchmarks need of them.

use gossamer_models::step::Output;
use gossamer_passes::bucket::StepSize;

use super::{Engine, EngineError, Logprobs, Sampled, SamplingParams, SeqId, Sequence, Work, head};
use crate::exec::{Executor, Feedback, HostData, Inputs, Measure, PlanId, Probe, Profile, TRACED_STEPS};

/// Is given what a step of a run drew, a token for each sequence in order, and when the step ended, in nanoseconds of the device's clock; false: no further
/// step is to start.
pub type OnDecoded<'a> = &'a mut dyn FnMut(&[Sampled], u64) -> bool;

/// Steps that follow one another when a decode step is measured, where there is room.
const MEASURED_STEPS: usize = 48;

/// True if every sequence of the work decodes: one token, and draws the next.
fn decodes(work: &[Work]) -> bool {
    work.iter().all(|w| w.tokens.len() == 1 && w.sample && w.params.is_some())
}

/// How steps that decode feed each other: the token drawn is the next one, at the next position.
fn feedback(outputs: &[Output]) -> Feedback {
    let token = outputs.iter().position(|o| *o == Output::Token);
    Feedback {
        replaced: token.map(|i| ("tokens".to_string(), i)).into_iter().collect(),
        counted: vec!["pos".into(), "sample_pos".into()],
        live: "seq".into(),
    }
}

/// What the rows of a step drew.
pub(super) struct Drawn<'a> {
    tokens: &'a [i32],
    logprob: &'a [f32],
    top: &'a [f32],
    top_ids: &'a [i32],
    /// Alternatives of a row.
    k: usize,
}

impl<'a> Drawn<'a> {
    pub(super) fn of(outputs: &[Output], results: &'a [HostData], bucket: StepSize) -> Drawn<'a> {
        let find = |want: Output| outputs.iter().position(|o| *o == want).and_then(|i| results.get(i));
        let top = find(Output::TopLogprobs).map(HostData::f32).unwrap_or_default();
        Drawn {
            tokens: find(Output::Token).map(HostData::i32).unwrap_or_default(),
            logprob: find(Output::Logprob).map(HostData::f32).unwrap_or_default(),
            top,
            top_ids: find(Output::TopTokens).map(HostData::i32).unwrap_or_default(),
            k: top.len() / bucket.rows.max(1),
        }
    }

    pub(super) fn row(&self, r: usize, params: &SamplingParams) -> Sampled {
        let logprobs = params.logprobs.then(|| Logprobs {
            token: self.logprob[r],
            top: (r * self.k..(r + 1) * self.k).map(|i| (self.top_ids[i] as u32, self.top[i])).collect(),
        });
        Sampled { token: self.tokens[r] as u32, logprobs }
    }
}

impl Engine {
    /// Runs up to `steps` steps of sequences that decode: `work` gives each one's next token, and what a step draws is fed to the next, on the device where it
    /// can. `on_step` sees every step that was started, in order, also those behind the one at which it said stop. Returns how many ran: fewer than asked
    /// for also where the context or the pages end; at least one.
    ///
    /// # Errors
    /// As [`Engine::step`]; work of more than one token a sequence, or that does not sample.
    pub fn decode(&mut self, work: &[Work], steps: usize, on_step: OnDecoded<'_>) -> Result<usize, EngineError> {
        let size = self.check(work)?;
        if !decodes(work) {
            return Err(EngineError::Step { chunk: self.options.chunk });
        }
        // The last token of a prompt goes with prompts; what it draws decodes.
        let steps = if work.iter().any(|w| self.feeds_prompt(w)) { 1 } else { self.room(work, steps) };
        let head = head(work);
        let bucket = self.bucket(work, size);
        self.plan(head, bucket)?;
        let source = self.sources[&head].clone();
        let feedback = feedback(&source.outputs);
        let mut on_results = |results: &[HostData], end: u64| {
            let drawn = Drawn::of(&source.outputs, results, bucket);
            let tokens: Vec<Sampled> =
                work.iter().filter_map(|w| w.params).enumerate().map(|(r, params)| drawn.row(r, params)).collect();
            on_step(&tokens, end)
        };
        let mut go = |e: &mut dyn Executor, id: PlanId, inputs: &Inputs| {
            e.run_ahead(id, inputs, &feedback, steps, &mut on_results)
        };
        let (ran, _) = self.run_with(work, head, size, steps, &mut |ran, _| *ran, &mut go)?;
        Ok(ran)
    }

    /// Runs a step as [`Engine::step`], then measures it over some rounds; the bucket it ran in, and the times where the device has launches to time. The
    /// sequences are as after a step. `experts`: distinct experts that a layer's tokens choose, where known.
    ///
    /// # Errors
    /// As [`Engine::step`].
    pub fn measure(
        &mut self,
        work: &[Work],
        rounds: usize,
        experts: Option<f64>,
    ) -> Result<(StepSize, Option<Profile>), EngineError> {
        let size = self.check(work)?;
        let head = head(work);
        self.plan(head, self.bucket(work, size))?;
        let feedback = feedback(&self.sources[&head].outputs);
        let decodes = decodes(work) && !work.iter().any(|w| self.feeds_prompt(w));
        let room = if decodes { self.room(work, MEASURED_STEPS) } else { 1 };
        let ahead = (room >= TRACED_STEPS).then_some((&feedback, room));
        let how = Measure { rounds, ahead, experts };
        let reserved = if ahead.is_some() { room } else { 1 };
        let (profile, bucket) =
            self.run_with(work, head, size, reserved, &mut |_, w| w.tokens.len(), &mut |e, id, inputs| {
                e.measure(id, inputs, &how)
            })?;
        Ok((bucket, profile))
    }

    /// How many of `steps` more steps these sequences have room for, one token each; at least 1.
    fn room(&self, work: &[Work], steps: usize) -> usize {
        let seqs: Vec<&Sequence> = work.iter().filter_map(|w| self.seqs.get(w.seq.0)?.as_ref()).collect();
        let context = seqs.iter().map(|s| self.options.context.saturating_sub(s.len)).min().unwrap_or(0);
        // Pages behind a window are given back only after a run, for which there are pages for as many tokens as a step may have.
        let mut steps = steps.min(context).min(self.options.chunk).max(1);
        let needed = |group: usize, steps: usize| -> usize {
            seqs.iter().map(|s| s.tables[group].needed(&self.groups[group], s.len + steps)).sum()
        };
        while steps > 1 && (0..self.groups.len()).any(|g| needed(g, steps) > self.groups[g].free()) {
            steps /= 2;
        }
        steps
    }

    /// Starts a sequence whose first `len` tokens count as read: its keys and values are what its pages happen to hold. For benchmarks, after
    /// [`Engine::fill_random`].
    ///
    /// # Errors
    /// As [`Engine::start`], or too few pages.
    pub fn start_as_read(&mut self, len: usize) -> Result<SeqId, EngineError> {
        let seq = self.start(len)?;
        let mut read = 0;
        while read < len {
            let next = len.min(read + self.options.chunk);
            let Some(s) = &mut self.seqs[seq.0] else { break };
            for (table, group) in s.tables.iter_mut().zip(&mut self.groups) {
                if !table.grow(group, next) {
                    let (name, pages, page) = (group.name.clone(), group.pages, group.page);
                    self.end(seq);
                    return Err(EngineError::Pages { group: name, tokens: next - read, pages, page });
                }
                table.release_behind(group, next);
            }
            s.len = next;
            read = next;
        }
        Ok(seq)
    }

    /// Fills the caches of all sequences with random keys and values; false if the device cannot.
    ///
    /// # Errors
    /// What the device gives.
    pub fn fill_random(&mut self, seed: u64) -> Result<bool, EngineError> {
        Ok(self.executor.fill_random(seed)?)
    }

    /// Measures what the device reaches at best; `None` where it has no figures of its own.
    ///
    /// # Errors
    /// What the device gives.
    pub fn probe(&mut self) -> Result<Option<Probe>, EngineError> {
        Ok(self.executor.probe()?)
    }
}
