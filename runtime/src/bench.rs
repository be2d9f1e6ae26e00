//! Benchmarks: decoding ([`decode`]), reading prompts ([`prefill`], drawn by [`plot`]) and starting ([`startup`]), what they count, and how two reports compare ([`compare`]).
//!
//! Must not know the command line or devices.

pub mod compare;
pub mod decode;
pub mod plot;
pub mod prefill;
pub mod startup;
pub mod table;

use gossamer_models::config::ModelConfig;
use gossamer_models::names::WeightRole;

use crate::engine::{Engine, EngineError, SamplingParams, SeqId, Work};
use crate::exec::Executor;

/// Version of the JSON form of reports, in its field `version`. It grows when a key changes its meaning or goes away.
pub const VERSION: u32 = 1;

/// Median, 99th percentile and least of some times.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Percentiles {
    /// Middle value.
    pub median: f64,
    /// 99 of 100 are not above it.
    pub p99: f64,
    /// Least.
    pub min: f64,
}

impl Percentiles {
    /// Of at least one value; zeros for none.
    pub fn of(values: &[f64]) -> Percentiles {
        let mut v = values.to_vec();
        v.sort_by(f64::total_cmp);
        let at = |q: f64| v.get(((v.len() as f64 * q).ceil() as usize).saturating_sub(1)).copied().unwrap_or(0.0);
        Percentiles { median: at(0.5), p99: at(0.99), min: at(0.0) }
    }
}

/// Bytes that a decode step of `batch` sequences of `context` tokens must read: every weight it uses once, in the checkpoint's format, and the keys
/// and values. Experts are counted as expected under uniform routing: `E (1 - (1 - k/E)^batch)` of them.
pub fn decode_bytes(config: &ModelConfig, batch: usize, context: usize) -> u64 {
    decode_bytes_with(config, batch, context, None)
}

/// [`decode_bytes`] with so many distinct experts a layer, where that is known.
pub fn decode_bytes_with(config: &ModelConfig, batch: usize, context: usize, experts: Option<f64>) -> u64 {
    let mut bytes = 0.0;
    for w in config.weights() {
        bytes += match w.role {
            WeightRole::Embedding => w.bytes() as f64 / w.shape[0] as f64 * batch as f64,
            WeightRole::Expert | WeightRole::ExpertBias => {
                let e = w.shape[0] as f64;
                let uniform = || e * (1.0 - (1.0 - config.experts_per_token() as f64 / e).powi(batch as i32));
                w.bytes() as f64 / e * experts.unwrap_or_else(uniform)
            }
            _ => w.bytes() as f64,
        };
    }
    let rows: usize = config.windows().iter().map(|window| window.map_or(context, |w| context.min(w))).sum();
    bytes as u64 + (batch * rows * config.kv_width() * 2 * 2) as u64
}

/// Operations of reading prompts of `tokens` tokens in `batch` sequences, a multiply and an add counted as two: every projection of every token, the
/// chosen experts, the keys that each query sees, the head for the last token of each.
pub fn prefill_flops(config: &ModelConfig, tokens: usize, batch: usize) -> f64 {
    let (mut each, mut head, mut queries) = (0.0, 0.0, 0.0);
    for w in config.weights() {
        let elements: f64 = w.shape.iter().map(|d| *d as f64).product();
        match w.role {
            WeightRole::Projection | WeightRole::Router => each += elements,
            WeightRole::Expert => {
                each += elements / w.shape[0].max(1) as f64 * config.experts_per_token() as f64;
            }
            WeightRole::Head | WeightRole::TiedEmbedding => head += elements,
            _ => {}
        }
        if w.name == "l0.attn.q.w" {
            queries = w.shape[0] as f64;
        }
    }
    let visible = |window: Option<usize>| -> f64 {
        // Token i sees i + 1 keys, at most the window.
        let w = window.unwrap_or(tokens).min(tokens) as f64;
        w * (w + 1.0) / 2.0 + (tokens as f64 - w) * w
    };
    let attention: f64 = config.windows().into_iter().map(|w| 4.0 * queries * visible(w)).sum();
    batch as f64 * (2.0 * each * tokens as f64 + 2.0 * head + attention)
}

/// Token `i` of sequence `s`: any of the vocabulary, so that sequences differ and routing does.
pub fn token(seed: u64, s: usize, i: usize, vocab: usize) -> u32 {
    (mix(seed, (s * 1_000_003 + i) as u64) % vocab.max(1) as u64) as u32
}

/// SplitMix64 (Steele et al. 2014): a well-mixed word for each input.
fn mix(seed: u64, n: u64) -> u64 {
    let mut z = seed.wrapping_add(n.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Sampling parameters of sequence `s`: plain sampling with a seed of its own.
pub fn params(seed: u64, s: usize) -> SamplingParams {
    SamplingParams { seed: seed.wrapping_add(s as u64), ..SamplingParams::default() }
}

/// Reads prompts into new sequences, as many tokens a step as the engine allows, sequence by sequence. `done(s, token)` hears of each sequence's first token.
/// A failure ends the sequences.
///
/// # Errors
/// What the engine gives.
pub fn read_prompts(
    engine: &mut Engine,
    prompts: &[Vec<u32>],
    params: &[SamplingParams],
    done: &mut dyn FnMut(usize, u32),
) -> Result<Vec<SeqId>, EngineError> {
    let mut seqs = Vec::with_capacity(prompts.len());
    let read = start_and_read(engine, prompts, params, done, &mut seqs);
    if read.is_err() {
        seqs.iter().for_each(|s| engine.end(*s));
    }
    read.map(|()| seqs)
}

fn start_and_read(
    engine: &mut Engine,
    prompts: &[Vec<u32>],
    params: &[SamplingParams],
    done: &mut dyn FnMut(usize, u32),
    seqs: &mut Vec<SeqId>,
) -> Result<(), EngineError> {
    for prompt in prompts {
        seqs.push(engine.start(prompt.len())?);
    }
    let lengths: Vec<usize> = prompts.iter().map(Vec::len).collect();
    for step in steps_of(&lengths, engine.options().chunk) {
        let work: Vec<Work> = step
            .iter()
            .map(|(s, range)| Work {
                seq: seqs[*s],
                tokens: &prompts[*s][range.clone()],
                params: Some(&params[*s]),
                sample: range.end == lengths[*s],
            })
            .collect();
        let drawn = engine.step(&work)?;
        for ((s, _), token) in step.iter().zip(drawn) {
            if let Some(t) = token {
                done(*s, t.token);
            }
        }
    }
    Ok(())
}

/// Parts of prompts of these lengths that go into each step of at most `chunk` tokens: (prompt, its tokens), one after the other.
pub fn steps_of(lengths: &[usize], chunk: usize) -> Vec<Vec<(usize, std::ops::Range<usize>)>> {
    let (mut steps, mut step, mut left) = (Vec::new(), Vec::new(), chunk.max(1));
    for (s, length) in lengths.iter().enumerate() {
        let mut at = 0;
        while at < *length {
            let end = (*length).min(at + left);
            step.push((s, at..end));
            left -= end - at;
            at = end;
            if left == 0 {
                steps.push(std::mem::take(&mut step));
                left = chunk.max(1);
            }
        }
    }
    if !step.is_empty() {
        steps.push(step);
    }
    steps
}

/// Bytes a second that the device can read: what the executor knows of it, else measured on the CPU.
pub fn read_bandwidth(executor: &dyn Executor) -> f64 {
    executor.read_bandwidth().unwrap_or_else(cpu_bandwidth)
}

/// Bytes a second that the CPU reads: the best of a few passes over more memory than caches hold, on all threads.
pub fn cpu_bandwidth() -> f64 {
    use rayon::prelude::*;
    let data: Vec<u64> = (0..(256 << 20) / 8).collect();
    let pass = || {
        let start = std::time::Instant::now();
        let sum = data.par_chunks(1 << 16).map(|c| c.iter().fold(0u64, |a, b| a ^ b)).reduce(|| 0, |a, b| a ^ b);
        std::hint::black_box(sum);
        (data.len() * 8) as f64 / start.elapsed().as_secs_f64()
    };
    (0..5).map(|_| pass()).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gossamer_models::presets;

    #[test]
    fn bytes_of_a_token_are_those_of_the_specification() {
        let c20 = ModelConfig::GptOss(presets::gpt_oss_20b());
        assert_eq!(decode_bytes(&c20, 1, 0), 3_708_089_088);
        let c120 = ModelConfig::GptOss(presets::gpt_oss_120b());
        assert_eq!(decode_bytes(&c120, 1, 0), 5_002_907_904);
    }

    #[test]
    fn operations_of_a_long_prompt_are_mostly_those_of_weights() {
        let c20 = ModelConfig::GptOss(presets::gpt_oss_20b());
        // 3.0 G active weights in projections and experts a token, and the head once.
        let one = prefill_flops(&c20, 1, 1);
        assert!((one / 2.0 - 3.6e9).abs() < 0.2e9, "{one}");
        let many = prefill_flops(&c20, 2048, 1) / 2048.0;
        assert!((many / 2.0 - 3.1e9).abs() < 0.3e9, "{many}");
        assert_eq!(prefill_flops(&c20, 100, 3), 3.0 * prefill_flops(&c20, 100, 1));
    }

    #[test]
    fn prompts_fill_steps_in_order() {
        assert_eq!(steps_of(&[5, 2, 4], 4), [vec![(0, 0..4)], vec![(0, 4..5), (1, 0..2), (2, 0..1)], vec![(2, 1..4)]]);
        assert!(steps_of(&[], 4).is_empty());
    }

    #[test]
    fn percentiles() {
        let v: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(Percentiles::of(&v), Percentiles { median: 50.0, p99: 99.0, min: 1.0 });
        assert_eq!(Percentiles::of(&[]), Percentiles::default());
    }
}
