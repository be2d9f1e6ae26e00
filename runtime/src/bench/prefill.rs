//! Reading prompts: tokens a second, operations against a measured matrix multiply, and the time to the first token.

use std::time::Instant;

use serde_json::{Value as Json, json};

use super::{params, prefill_flops, read_prompts, steps_of, table, token};
use crate::engine::{Engine, EngineError, SamplingParams, Work};
use crate::exec::{Probe, Profile};

/// Timed passes; the median counts.
const PASSES: usize = 3;
/// Rounds over which kernels are measured.
const ROUNDS: usize = 5;

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// Tokens of each prompt.
    pub tokens: usize,
    /// Prompts.
    pub batch: usize,
    /// Seed of tokens and draws.
    pub seed: u64,
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct Measured {
    /// What was asked for.
    pub case: Case,
    /// Steps that all prompts together take.
    pub steps: usize,
    /// Seconds until every prompt has its first token: the median.
    pub total_s: f64,
    /// Seconds until the first prompt has its first token: the median.
    pub first_s: f64,
    /// Operations of all prompts.
    pub flops: f64,
    /// Tokens of the step that was profiled, the first.
    pub profiled: usize,
    /// Its kernels, where the device has some.
    pub profile: Option<Profile>,
}

/// Measures one case. The engine needs a context of `tokens` and room for `batch` sequences.
///
/// # Errors
/// What the engine gives; the sequences are ended then, too.
pub fn measure(engine: &mut Engine, case: &Case) -> Result<Measured, EngineError> {
    let vocab = engine.config().vocab();
    let prompts: Vec<Vec<u32>> =
        (0..case.batch).map(|s| (0..case.tokens).map(|i| token(case.seed, s, i, vocab)).collect()).collect();
    let params: Vec<SamplingParams> = (0..case.batch).map(|s| params(case.seed, s)).collect();
    let (mut total, mut first) = (Vec::new(), Vec::new());
    // The first pass compiles and warms.
    for pass in 0..=PASSES {
        let start = Instant::now();
        let mut at = None;
        let seqs = read_prompts(engine, &prompts, &params, &mut |_, _| {
            at.get_or_insert_with(|| start.elapsed().as_secs_f64());
        })?;
        let all = start.elapsed().as_secs_f64();
        seqs.iter().for_each(|s| engine.end(*s));
        if pass > 0 {
            total.push(all);
            first.push(at.unwrap_or(all));
        }
    }
    let lengths = vec![case.tokens; case.batch];
    let steps = steps_of(&lengths, engine.options().chunk);
    let profile = profile(engine, &prompts, &params, &steps[0])?;
    Ok(Measured {
        case: *case,
        steps: steps.len(),
        total_s: median(total),
        first_s: median(first),
        flops: prefill_flops(engine.config(), case.tokens, case.batch),
        profiled: steps[0].iter().map(|(_, range)| range.len()).sum(),
        profile,
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Measures the kernels of a first step.
fn profile(
    engine: &mut Engine,
    prompts: &[Vec<u32>],
    params: &[SamplingParams],
    step: &[(usize, std::ops::Range<usize>)],
) -> Result<Option<Profile>, EngineError> {
    let mut seqs = Vec::with_capacity(step.len());
    let mut result = Ok(None);
    for (s, _) in step {
        match engine.start(prompts[*s].len()) {
            Ok(seq) => seqs.push(seq),
            Err(e) => result = Err(e),
        }
    }
    if result.is_ok() {
        let work: Vec<Work> = step
            .iter()
            .zip(&seqs)
            .map(|((s, range), seq)| Work {
                seq: *seq,
                tokens: &prompts[*s][range.clone()],
                params: Some(&params[*s]),
                sample: range.end == prompts[*s].len(),
            })
            .collect();
        result = engine.measure(&work, ROUNDS, None).map(|(_, profile)| profile);
    }
    seqs.iter().for_each(|s| engine.end(*s));
    result
}

impl Measured {
    /// Tokens a second.
    pub fn tokens_per_s(&self) -> f64 {
        (self.case.tokens * self.case.batch) as f64 / self.total_s.max(1e-9)
    }

    /// Operations a second.
    pub fn flops_per_s(&self) -> f64 {
        self.flops / self.total_s.max(1e-9)
    }

    /// Name of the case in reports.
    pub fn name(&self) -> String {
        format!("{} x {} tokens", self.case.batch, self.case.tokens)
    }

    /// For people.
    pub fn text(&self, probe: &Probe) -> String {
        let share =
            probe.bf16.map(|peak| format!(", {:.1} % of the measured multiply", self.flops_per_s() / peak * 100.0));
        let mut out = format!(
            "{} ({} steps)\n\
             \x20 {:.1} tok/s, {:.1} TFLOP/s{}; first token after {:.2} ms, all after {:.2} ms\n",
            self.name(),
            self.steps,
            self.tokens_per_s(),
            self.flops_per_s() / 1e12,
            share.unwrap_or_default(),
            self.first_s * 1e3,
            self.total_s * 1e3
        );
        if let Some(profile) = &self.profile {
            out.push_str(&format!("  kernels of the first step, {} tokens\n", self.profiled));
            out.push_str(&table::text(profile, probe));
        }
        out
    }

    /// For tools. Numbers under `metrics` are what [`super::compare`] looks at.
    pub fn json(&self, probe: &Probe) -> Json {
        json!({
            "name": self.name(),
            "tokens": self.case.tokens,
            "batch": self.case.batch,
            "steps": self.steps,
            "metrics": {
                "tokens_per_s": self.tokens_per_s(),
                "flops_per_s": self.flops_per_s(),
                "bf16_fraction": probe.bf16.map(|peak| self.flops_per_s() / peak),
                "first_token_s": self.first_s,
                "total_s": self.total_s,
            },
            "profiled_tokens": self.profiled,
            "profile": self.profile.as_ref().map(|p| table::json(p, probe)),
        })
    }
}
