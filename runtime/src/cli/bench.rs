//! `gossamer bench`: decode and prefill speed against the bytes that must be read.

use std::time::Instant;

use serde_json::json;

use super::args::BenchArgs;
use super::output::{self, Failure};
use crate::bench::{Percentiles, decode_bytes, read_bandwidth};
use crate::engine::{Engine, SamplingParams, SeqId, Work};

pub fn bench(args: &BenchArgs) -> Result<(), Failure> {
    if args.batch == 0 || args.prompt == 0 || args.steps == 0 || args.batch > MAX_BATCH {
        return Err(Failure::Usage(format!(
            "--batch is {}, --prompt {}, --steps {}; expected at least 1, and a batch of at most {MAX_BATCH}",
            args.batch, args.prompt, args.steps
        )));
    }
    let mut options = args.model.session(&args.model_name)?;
    options.max_seqs = args.batch;
    options.tokenizer = None;
    let tokens = args.prompt.saturating_add(args.steps).saturating_add(WARM_STEPS);
    let context = *options.context.get_or_insert(tokens);
    if tokens > context {
        return Err(Failure::Usage(format!("--prompt and --steps need a context of {tokens}, --context is {context}")));
    }
    let mut session = super::system::open(&options)?;
    let engine = &mut session.engine;
    let vocab = engine.config().vocab();

    // Prompts that differ, so that routing does.
    let token = |s: usize, i: usize| (mix(args.seed, (s * 1_000_003 + i) as u64) % vocab as u64) as u32;
    let prompts: Vec<Vec<u32>> = (0..args.batch).map(|s| (0..args.prompt).map(|i| token(s, i)).collect()).collect();
    let params: Vec<SamplingParams> = (0..args.batch)
        .map(|s| SamplingParams { seed: args.seed.wrapping_add(s as u64), ..SamplingParams::default() })
        .collect();
    // The first pass compiles and warms; the second, over the same prompts in new sequences, is timed.
    let start = Instant::now();
    for (seq, _) in prefill(engine, &prompts, &params)? {
        engine.end(seq);
    }
    let cold = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let (seqs, mut next): (Vec<SeqId>, Vec<u32>) = prefill(engine, &prompts, &params)?.into_iter().unzip();
    let prefill_s = start.elapsed().as_secs_f64();

    let mut times = Vec::new();
    for step in 0..args.steps + WARM_STEPS {
        let start = Instant::now();
        let work: Vec<Work> = seqs
            .iter()
            .enumerate()
            .map(|(s, seq)| Work {
                seq: *seq,
                tokens: std::slice::from_ref(&next[s]),
                params: Some(&params[s]),
                sample: true,
            })
            .collect();
        let out = engine.step(&work)?;
        let tokens: Vec<u32> = out.iter().filter_map(|t| t.as_ref().map(|t| t.token)).collect();
        // The first steps prepare the plan.
        if step >= WARM_STEPS {
            times.push(start.elapsed().as_secs_f64());
        }
        next = tokens;
    }
    let t = Percentiles::of(&times);
    let bytes = decode_bytes(engine.config(), args.batch, args.prompt + args.steps / 2);
    let bandwidth = read_bandwidth(engine.executor());
    let roofline = bytes as f64 / bandwidth;
    let prompt_tokens = args.batch * args.prompt;
    let report = json!({
        "model": session.name,
        "device": session.engine.describe(),
        "batch": args.batch,
        "prompt": args.prompt,
        "steps": args.steps,
        "ms_per_step": { "median": t.median * 1e3, "p99": t.p99 * 1e3, "min": t.min * 1e3 },
        "tokens_per_s": args.batch as f64 / t.median,
        "bytes_per_step": bytes,
        "read_bandwidth": bandwidth,
        "roofline_fraction": roofline / t.median,
        "prefill_tokens_per_s": prompt_tokens as f64 / prefill_s,
        "first_pass_s": cold,
    });
    if args.json {
        return output::json(&report);
    }
    output::text(&format!(
        "{} on {}\n\
         decode, batch {}, context {}..{}: {:.1} tok/s, {:.3} ms/step (p99 {:.3})\n\
         reads at least {:.3} GB/step: {:.1} % of the roofline at {:.1} GB/s\n\
         prefill, {} x {} tokens: {:.1} tok/s (first pass, with loading and compiling: {:.2} s)\n",
        session.name,
        session.engine.describe(),
        args.batch,
        args.prompt,
        args.prompt + args.steps,
        args.batch as f64 / t.median,
        t.median * 1e3,
        t.p99 * 1e3,
        bytes as f64 / 1e9,
        100.0 * roofline / t.median,
        bandwidth / 1e9,
        args.batch,
        args.prompt,
        prompt_tokens as f64 / prefill_s,
        cold,
    ))
}

/// Sequences at a time, at most.
const MAX_BATCH: usize = 4096;

/// Steps that are not timed: the first ones prepare the plan.
const WARM_STEPS: usize = 3;

/// Reads each prompt into a new sequence; the sequences and their first tokens.
fn prefill(engine: &mut Engine, prompts: &[Vec<u32>], params: &[SamplingParams]) -> Result<Vec<(SeqId, u32)>, Failure> {
    let chunk = engine.options().chunk;
    let mut out = Vec::new();
    for (prompt, params) in prompts.iter().zip(params) {
        let seq = engine.start(prompt.len())?;
        let parts: Vec<&[u32]> = prompt.chunks(chunk).collect();
        for (i, part) in parts.iter().enumerate() {
            let sample = i + 1 == parts.len();
            let sampled = engine.step(&[Work { seq, tokens: part, params: Some(params), sample }])?;
            out.extend(sampled[0].as_ref().map(|t| (seq, t.token)));
        }
    }
    Ok(out)
}

/// SplitMix64 (Steele et al. 2014): a well-mixed word for each input.
fn mix(seed: u64, n: u64) -> u64 {
    let mut z = seed.wrapping_add(n.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
