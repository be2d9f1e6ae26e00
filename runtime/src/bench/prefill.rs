//! Reading prompts: tokens a second, operations against a measured matrix multiply, and the time to the first token.

use std::ops::Range;
use std::time::Instant;

use serde_json::{Value as Json, json};

use super::{params, prefill_flops, read_prompts, steps_of, table, token};
use crate::engine::{Engine, EngineError, SamplingParams, SeqId, Work};
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
    /// Steps whose kernels were measured, where the device has some: the first and, if there are several, the last.
    pub profiles: Vec<Profiled>,
}

/// The kernels of a step.
#[derive(Clone, Debug)]
pub struct Profiled {
    /// Its number, from 0.
    pub step: usize,
    /// Its tokens.
    pub tokens: usize,
    /// Times.
    pub profile: Profile,
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
    let last = steps.len().saturating_sub(1);
    let mut profiles = Vec::new();
    for step in if last > 0 { vec![0, last] } else { vec![0] } {
        profiles.extend(profile(engine, &prompts, &params, &steps, step)?);
    }
    Ok(Measured {
        case: *case,
        steps: steps.len(),
        total_s: median(total),
        first_s: median(first),
        flops: prefill_flops(engine.config(), case.tokens, case.batch),
        profiles,
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Parts of prompts that go into a step: (prompt, its tokens).
type Step = [(usize, Range<usize>)];

/// Measures the kernels of step `at`, after those in front of it.
fn profile(
    engine: &mut Engine,
    prompts: &[Vec<u32>],
    params: &[SamplingParams],
    steps: &[Vec<(usize, Range<usize>)>],
    at: usize,
) -> Result<Option<Profiled>, EngineError> {
    let most = steps[at].iter().map(|(s, _)| *s).max().unwrap_or(0);
    let mut seqs = Vec::with_capacity(most + 1);
    let result = profile_with(engine, prompts, params, &steps[..=at], &mut seqs);
    seqs.iter().for_each(|s| engine.end(*s));
    let tokens = steps[at].iter().map(|(_, range)| range.len()).sum();
    Ok(result?.map(|profile| Profiled { step: at, tokens, profile }))
}

/// Starts what `steps` need into `seqs`, runs all but the last of them and measures that one.
fn profile_with(
    engine: &mut Engine,
    prompts: &[Vec<u32>],
    params: &[SamplingParams],
    steps: &[Vec<(usize, Range<usize>)>],
    seqs: &mut Vec<SeqId>,
) -> Result<Option<Profile>, EngineError> {
    let Some((last, before)) = steps.split_last() else { return Ok(None) };
    let most = steps.iter().flatten().map(|(s, _)| *s + 1).max().unwrap_or(0);
    for prompt in &prompts[..most] {
        seqs.push(engine.start(prompt.len())?);
    }
    let work = |step: &Step| -> Vec<Work> {
        let part = |(s, range): &(usize, Range<usize>)| Work {
            seq: seqs[*s],
            tokens: &prompts[*s][range.clone()],
            params: Some(&params[*s]),
            sample: range.end == prompts[*s].len(),
        };
        step.iter().map(part).collect()
    };
    for step in before {
        engine.step(&work(step))?;
    }
    engine.measure(&work(last), ROUNDS, None).map(|(_, profile)| profile)
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
        for p in &self.profiles {
            out.push_str(&format!("  kernels of step {} of {}, {} tokens\n", p.step + 1, self.steps, p.tokens));
            out.push_str(&table::text(&p.profile, probe));
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
            "profiled_tokens": self.profiles.first().map(|p| p.tokens),
            "profile": self.profiles.first().map(|p| table::json(&p.profile, probe)),
            "last_profile": self.profiles.get(1).map(|p| {
                json!({ "step": p.step + 1, "tokens": p.tokens, "profile": table::json(&p.profile, probe) })
            }),
        })
    }
}
