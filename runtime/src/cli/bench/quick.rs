//! `gossamer bench MODEL`: decode and prefill speed in short, against the bytes that must be read.

use std::time::Instant;

use serde_json::json;

use super::args::BenchArgs;
use super::lists::MAX_BATCH;
use crate::bench::{self, Percentiles, decode_bytes, read_bandwidth, read_prompts};
use crate::cli::output::{self, Failure};
use crate::engine::{Engine, EngineError, SamplingParams, SeqId, Work};

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
    let mut session = crate::cli::system::open(&options)?;
    let engine = &mut session.engine;
    let vocab = engine.config().vocab();

    let token = |s: usize, i: usize| bench::token(args.seed, s, i, vocab);
    let prompts: Vec<Vec<u32>> = (0..args.batch).map(|s| (0..args.prompt).map(|i| token(s, i)).collect()).collect();
    let params: Vec<SamplingParams> = (0..args.batch).map(|s| bench::params(args.seed, s)).collect();
    // The first pass compiles and warms; the second, over the same prompts in new sequences, is timed.
    let mut next = vec![0; args.batch];
    let start = Instant::now();
    for seq in read_prompts(engine, &prompts, &params, &mut |_, _| {})? {
        engine.end(seq);
    }
    let cold = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let mut first_token = None;
    let seqs = read_prompts(engine, &prompts, &params, &mut |s, token| {
        first_token.get_or_insert_with(|| start.elapsed().as_secs_f64());
        next[s] = token;
    })?;
    let prefill_s = start.elapsed().as_secs_f64();
    // The first steps prepare the plan.
    decode(engine, &seqs, &params, &mut next, WARM_STEPS)?;
    let times = decode(engine, &seqs, &params, &mut next, args.steps)?;
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
        "first_token_s": first_token,
        "first_pass_s": cold,
    });
    if args.json {
        return output::json(&report);
    }
    output::text(&format!(
        "{} on {}\n\
         decode, batch {}, context {}..{}: {:.1} tok/s, {:.3} ms/step (p99 {:.3})\n\
         reads at least {:.3} GB/step: {:.1} % of the roofline at {:.1} GB/s\n\
         prefill, {} x {} tokens: {:.1} tok/s, first token after {:.1} ms (first pass, with loading and compiling: {:.2} s)\n",
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
        first_token.unwrap_or(prefill_s) * 1e3,
        cold,
    ))
}

/// Steps that are not timed: the first ones prepare the plan.
const WARM_STEPS: usize = 3;

/// Decodes `steps` steps, each fed what the one before drew; seconds from the end of one to the end of the next, as the host sees them.
fn decode(
    engine: &mut Engine,
    seqs: &[SeqId],
    params: &[SamplingParams],
    next: &mut Vec<u32>,
    steps: usize,
) -> Result<Vec<f64>, EngineError> {
    let mut times = Vec::with_capacity(steps);
    while times.len() < steps {
        let given = next.clone();
        let work: Vec<Work> = seqs
            .iter()
            .zip(params)
            .zip(&given)
            .map(|((seq, params), token)| Work {
                seq: *seq,
                tokens: std::slice::from_ref(token),
                params: Some(params),
                sample: true,
            })
            .collect();
        let mut last = Instant::now();
        engine.decode(&work, steps - times.len(), &mut |drawn, _| {
            times.push(last.elapsed().as_secs_f64());
            last = Instant::now();
            next.clear();
            next.extend(drawn.iter().map(|d| d.token));
            true
        })?;
    }
    Ok(times)
}
