//! Decoding: sequences of one length, each fed what it draws.

use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use super::{Percentiles, decode_bytes_with, params, read_prompts, table, token};
use crate::engine::{Engine, EngineError, SamplingParams, SeqId, Work};
use crate::exec::{Probe, Profile};

/// Steps before the timed ones.
pub const WARM_STEPS: usize = 8;
/// How long steps run before any is measured, where starting anew costs nothing.
const WARM_TIME: Duration = Duration::from_millis(1500);
/// Steps that are timed at least, in rounds from the same start where that costs nothing: of fewer than a hundred, "99 of 100 are not above it" is the slowest.
const SAMPLES: usize = 256;
/// Rounds at most.
const MOST_ROUNDS: usize = 32;
/// Room behind the timed steps: for measuring kernels, and for the step that shows the routing.
pub const ROOM: usize = 64;
/// Prompt of each sequence where a run is repeated.
pub const REPEAT_PROMPT: usize = 16;
/// Rounds over which kernels are measured.
const ROUNDS: usize = 20;

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// Sequences.
    pub batch: usize,
    /// Tokens of each at the first step.
    pub context: usize,
    /// Timed steps of a round.
    pub steps: usize,
    /// Seed of tokens, draws, keys and values.
    pub seed: u64,
}

/// What was measured; times in microseconds.
#[derive(Clone, Debug)]
pub struct Measured {
    /// What was asked for.
    pub case: Case,
    /// True if keys and values of the context were random numbers, false if a prompt was read.
    pub filled: bool,
    /// How often the steps were run.
    pub rounds: usize,
    /// Time between the ends of consecutive steps, on the device's clock.
    pub step_us: Percentiles,
    /// The same, of every step of every round in order: what percentiles hide (steps that crowd at the start, or one in many).
    pub steps_us: Vec<f64>,
    /// Wall time of a step, over all of them.
    pub wall_us: f64,
    /// Distinct experts that the tokens of a step choose, the mean over layers.
    pub experts: Option<f64>,
    /// Bytes that a step must read.
    pub bytes: u64,
    /// Kernels of a step, where the device has some.
    pub profile: Option<Profile>,
}

/// Measures one case. The engine needs a context of `context + WARM_STEPS + steps + ROOM`.
///
/// # Errors
/// What the engine gives; the sequences are ended then, too.
pub fn measure(engine: &mut Engine, case: &Case) -> Result<Measured, EngineError> {
    let filled = engine.fill_random(case.seed)?;
    let mut times = Times::default();
    if !filled {
        let vocab = engine.config().vocab();
        let prompt = |s| (0..case.context).map(|i| token(case.seed, s, i, vocab)).collect();
        let (seqs, mut next) = start_read(engine, case.seed, (0..case.batch).map(prompt).collect())?;
        let ran = times.round(engine, case, &seqs, &mut next);
        let measured = ran.and_then(|()| measured(engine, case, &seqs, &next, filled, times));
        seqs.iter().for_each(|s| engine.end(*s));
        return measured;
    }
    warm(engine, case)?;
    let rounds = rounds(case.steps);
    loop {
        let (seqs, mut next) = start_filled(engine, case)?;
        let ran = times.round(engine, case, &seqs, &mut next);
        let last = times.rounds == rounds;
        let done = match ran {
            Ok(()) if last => Some(measured(engine, case, &seqs, &next, filled, std::mem::take(&mut times))),
            Ok(()) => None,
            Err(e) => Some(Err(e)),
        };
        seqs.iter().for_each(|s| engine.end(*s));
        if let Some(done) = done {
            return done;
        }
    }
}

/// Rounds of so many steps that give [`SAMPLES`].
fn rounds(steps: usize) -> usize {
    SAMPLES.div_ceil(steps.max(1)).clamp(1, MOST_ROUNDS)
}

/// What steps took.
#[derive(Default)]
struct Times {
    rounds: usize,
    /// Microseconds from the end of one to the end of the next.
    steps_us: Vec<f64>,
    /// The host's time for all of them.
    wall: Duration,
}

impl Times {
    /// Runs the steps of a round, behind some that are not timed.
    fn round(
        &mut self,
        engine: &mut Engine,
        case: &Case,
        seqs: &[SeqId],
        next: &mut Vec<u32>,
    ) -> Result<(), EngineError> {
        let params: Vec<SamplingParams> = (0..case.batch).map(|s| params(case.seed, s)).collect();
        run(engine, seqs, &params, next, WARM_STEPS, &mut |_, _, _| {})?;
        let mut ends: Vec<(usize, u64)> = Vec::with_capacity(case.steps);
        let start = Instant::now();
        run(engine, seqs, &params, next, case.steps, &mut |_, number, end| ends.push((number, end)))?;
        self.wall += start.elapsed();
        self.rounds += 1;
        let within = ends.windows(2).filter(|w| w[0].0 == w[1].0);
        self.steps_us.extend(within.map(|w| w[1].1.saturating_sub(w[0].1) as f64 / 1000.0));
        Ok(())
    }
}

/// Runs the case, unmeasured and from its start each time, until the device's clocks have settled: what draws much power makes the power limit act about
/// half a second after it begins, once and harder than later on.
fn warm(engine: &mut Engine, case: &Case) -> Result<(), EngineError> {
    let params: Vec<SamplingParams> = (0..case.batch).map(|s| params(case.seed, s)).collect();
    let since = Instant::now();
    while since.elapsed() < WARM_TIME {
        let (seqs, mut next) = start_filled(engine, case)?;
        let ran = run(engine, &seqs, &params, &mut next, WARM_STEPS + case.steps, &mut |_, _, _| {});
        seqs.iter().for_each(|s| engine.end(*s));
        ran?;
    }
    Ok(())
}

fn start_filled(engine: &mut Engine, case: &Case) -> Result<(Vec<SeqId>, Vec<u32>), EngineError> {
    let mut seqs = Vec::with_capacity(case.batch);
    for _ in 0..case.batch {
        match engine.start_as_read(case.context) {
            Ok(seq) => seqs.push(seq),
            Err(e) => {
                seqs.iter().for_each(|s| engine.end(*s));
                return Err(e);
            }
        }
    }
    let vocab = engine.config().vocab();
    let next = (0..case.batch).map(|s| token(case.seed, s, case.context, vocab)).collect();
    Ok((seqs, next))
}

/// New sequences that have read these prompts, and their first tokens.
fn start_read(engine: &mut Engine, seed: u64, prompts: Vec<Vec<u32>>) -> Result<(Vec<SeqId>, Vec<u32>), EngineError> {
    let params: Vec<SamplingParams> = (0..prompts.len()).map(|s| params(seed, s)).collect();
    let mut next = vec![0; prompts.len()];
    let seqs = read_prompts(engine, &prompts, &params, &mut |s, token| next[s] = token)?;
    Ok((seqs, next))
}

/// Runs `steps` steps; what each drew, and the device's time at its end with the number of its run.
fn run(
    engine: &mut Engine,
    seqs: &[SeqId],
    params: &[SamplingParams],
    next: &mut Vec<u32>,
    steps: usize,
    on_step: &mut dyn FnMut(&[u32], usize, u64),
) -> Result<(), EngineError> {
    let (mut done, mut number) = (0, 0);
    while done < steps {
        let given = next.clone();
        let work = work(seqs, params, &given);
        done += engine.decode(&work, steps - done, &mut |drawn, end| {
            next.clear();
            next.extend(drawn.iter().map(|d| d.token));
            on_step(next, number, end);
            true
        })?;
        number += 1;
    }
    Ok(())
}

fn work<'a>(seqs: &[SeqId], params: &'a [SamplingParams], next: &'a [u32]) -> Vec<Work<'a>> {
    let of = |((seq, params), token): ((&SeqId, &'a SamplingParams), &'a u32)| Work {
        seq: *seq,
        tokens: std::slice::from_ref(token),
        params: Some(params),
        sample: true,
    };
    seqs.iter().zip(params).zip(next).map(of).collect()
}

/// What the times say, and the routing and kernels of a step behind them.
fn measured(
    engine: &mut Engine,
    case: &Case,
    seqs: &[SeqId],
    next: &[u32],
    filled: bool,
    times: Times,
) -> Result<Measured, EngineError> {
    let Times { rounds, mut steps_us, wall } = times;
    let wall_us = wall.as_secs_f64() * 1e6 / (rounds.max(1) * case.steps.max(1)) as f64;
    if steps_us.is_empty() {
        steps_us.push(wall_us);
    }
    let params: Vec<SamplingParams> = (0..case.batch).map(|s| params(case.seed, s)).collect();
    let per_token = engine.config().experts_per_token();
    let experts = match (per_token, case.batch) {
        (0, _) => None,
        (k, 1) => Some(k as f64),
        _ => {
            let routing = engine.step_logits(&work(seqs, &params, next), true)?.routing;
            Some(distinct(&routing))
        }
    };
    let (_, profile) = engine.measure(&work(seqs, &params, next), ROUNDS, experts)?;
    let middle = case.context + WARM_STEPS + case.steps / 2;
    Ok(Measured {
        case: *case,
        filled,
        rounds,
        step_us: Percentiles::of(&steps_us),
        steps_us,
        wall_us,
        experts,
        bytes: decode_bytes_with(engine.config(), case.batch, middle, experts),
        profile,
    })
}

/// Mean over layers of how many experts were chosen at all.
fn distinct(routing: &[Vec<i32>]) -> f64 {
    let of = |layer: &Vec<i32>| {
        let mut chosen: Vec<i32> = layer.iter().copied().filter(|e| *e >= 0).collect();
        chosen.sort_unstable();
        chosen.dedup();
        chosen.len() as f64
    };
    routing.iter().map(of).sum::<f64>() / routing.len().max(1) as f64
}

/// Two runs of the same steps that drew the same, or where they parted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repeat {
    /// Sequences.
    pub batch: usize,
    /// Steps of each run.
    pub steps: usize,
    /// Step (from 0) and sequence of the first token that differed.
    pub differs: Option<(usize, usize)>,
}

/// Decodes `steps` steps twice, from the same short prompts, and compares every token.
///
/// # Errors
/// As [`measure`].
pub fn repeat(engine: &mut Engine, batch: usize, steps: usize, seed: u64) -> Result<Repeat, EngineError> {
    let mut runs: [Vec<u32>; 2] = Default::default();
    for tokens in &mut runs {
        let vocab = engine.config().vocab();
        let prompt = |s| (0..REPEAT_PROMPT).map(|i| token(seed, s, i, vocab)).collect();
        let (seqs, mut next) = start_read(engine, seed, (0..batch).map(prompt).collect())?;
        tokens.extend(&next);
        let params: Vec<SamplingParams> = (0..batch).map(|s| params(seed, s)).collect();
        let ran = run(engine, &seqs, &params, &mut next, steps, &mut |drawn, _, _| tokens.extend(drawn));
        seqs.iter().for_each(|s| engine.end(*s));
        ran?;
    }
    let [a, b] = &runs;
    let differs = a.iter().zip(b).position(|(a, b)| a != b).map(|i| (i / batch, i % batch));
    Ok(Repeat { batch, steps, differs })
}

impl Measured {
    /// Tokens a second.
    pub fn tokens_per_s(&self) -> f64 {
        self.case.batch as f64 / (self.step_us.median * 1e-6)
    }

    /// What a step must read as a share of what the device reads in the same time.
    pub fn roofline_fraction(&self, probe: &Probe) -> f64 {
        self.bytes as f64 / (self.step_us.median * 1e-6) / probe.read.max(1.0)
    }

    /// Name of the case in reports.
    pub fn name(&self) -> String {
        format!("batch {}, context {}", self.case.batch, self.case.context)
    }

    /// For people.
    pub fn text(&self, probe: &Probe) -> String {
        let (c, t) = (&self.case, &self.step_us);
        let first = c.context + WARM_STEPS;
        let mut out = format!(
            "batch {}, context {first}..{} ({})\n\
             \x20 {:.1} tok/s; a step {:.1} us median, {:.1} p99, {:.1} least on the device's clock over {} of {} steps, {:.1} wall\n\
             \x20 must read {:.3} GB a step: {:.1} % of the measured read bandwidth\n",
            c.batch,
            first + c.steps,
            if self.filled { "keys and values random" } else { "a prompt was read" },
            self.tokens_per_s(),
            t.median,
            t.p99,
            t.min,
            match self.rounds {
                1 => "a round".into(),
                n => format!("{n} rounds"),
            },
            c.steps,
            self.wall_us,
            self.bytes as f64 / 1e9,
            self.roofline_fraction(probe) * 100.0
        );
        if let Some(experts) = self.experts.filter(|_| c.batch > 1) {
            out.push_str(&format!("  {experts:.1} distinct experts a layer (mean, one step)\n"));
        }
        if let Some(profile) = &self.profile {
            out.push_str(&table::text(profile, probe));
        }
        out
    }

    /// For tools. Numbers under `metrics` are what [`super::compare`] looks at.
    pub fn json(&self, probe: &Probe) -> Json {
        json!({
            "name": self.name(),
            "batch": self.case.batch,
            "context": self.case.context,
            "steps": self.case.steps,
            "rounds": self.rounds,
            "context_filled": if self.filled { "random" } else { "prompt" },
            "steps_us": self.steps_us,
            "metrics": {
                "tokens_per_s": self.tokens_per_s(),
                "step_us": self.step_us.median,
                "step_us_p99": self.step_us.p99,
                "step_us_min": self.step_us.min,
                "wall_us": self.wall_us,
                "distinct_experts": self.experts,
                "bytes": self.bytes,
                "roofline_fraction": self.roofline_fraction(probe),
            },
            "profile": self.profile.as_ref().map(|p| table::json(p, probe)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_more_than_a_hundred_steps() {
        assert_eq!([1, 8, 64, 200, 256, 1000].map(rounds), [MOST_ROUNDS, 32, 4, 2, 1, 1]);
    }

    #[test]
    fn experts_are_counted_once_a_layer() {
        assert_eq!(distinct(&[vec![1, 2, 2, 1], vec![0, 1, 2, 3]]), 3.0);
        assert_eq!(distinct(&[]), 0.0);
    }
}
