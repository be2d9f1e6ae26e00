//! Measuring one step on the GPU, for `explain --measure`.

use gossamer_passes::bucket::StepSize;

use super::args::{ExplainArgs, HeadArg};
use super::output::Failure;
use super::pipeline;
use crate::engine::{Engine, SamplingParams, SeqId, Work};
use crate::exec::Profile;
use crate::session::{DeviceChoice, SessionOptions};

/// Rounds over which times are taken.
const ROUNDS: usize = 20;

/// Positions that are left free for steps that follow one another.
const ROOM: usize = 64;

/// Runs the step that the arguments name, after a prompt that leaves room for it alone, and times it.
pub fn step(args: &ExplainArgs) -> Result<Profile, Failure> {
    let params = match args.head {
        HeadArg::Greedy => SamplingParams::greedy(),
        HeadArg::Sample => SamplingParams { seed: 1, ..SamplingParams::default() },
        HeadArg::Full | HeadArg::Logits => {
            return Err(Failure::Usage("--measure takes --head greedy or sample".into()));
        }
    };
    if pipeline::is_text(&args.model) || args.sizes.is_some() {
        return Err(Failure::Usage("--measure needs a model with weights and --bucket, not a file or --sizes".into()));
    }
    let name = args.bucket.as_deref().unwrap_or(pipeline::DEFAULT_BUCKET);
    let size = StepSize::parse(name).map_err(|e| Failure::Usage(e.to_string()))?;
    let StepSize { tokens, seqs, rows } = size;
    let context = super::explain::context(args, &pipeline::config(&args.model)?);
    if tokens % seqs != 0 || rows > seqs || tokens / seqs > context {
        return Err(Failure::Usage(format!(
            "--measure cannot run {name}: expected as many tokens of each sequence, at most one row each, and at most {context} tokens (--context)"
        )));
    }
    let options = SessionOptions {
        random_weights: args.random_weights,
        device: DeviceChoice::Cuda,
        context: Some(context),
        chunk: Some(tokens.max(crate::session::GPU_CHUNK).min(context * seqs)),
        max_seqs: seqs,
        passes: pipeline::passes(&args.passes)?,
        disabled_rules: pipeline::rules(&args.disabled_rules)?,
        enabled_rules: pipeline::rules(&args.enabled_rules)?,
        ..SessionOptions::new(&args.model)
    };
    let mut session = super::system::open(&options)?;
    let engine = &mut session.engine;
    let each = tokens / seqs;
    let vocab = engine.config().vocab() as u64;
    // Tokens that differ, so that routing does.
    let token = |s: usize, i: usize| ((s as u64 * 7919 + i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33) % vocab;
    // Steps that decode are measured following one another, which takes room behind the prompt.
    let prompt = (context - each).saturating_sub(if each == 1 { ROOM } else { 0 }).max((context - each).min(ROOM));
    let mut sequences = Vec::with_capacity(seqs);
    for s in 0..seqs {
        let text: Vec<u32> = (0..prompt + each).map(|i| token(s, i) as u32).collect();
        sequences.push((feed(engine, &text[..prompt], &params)?, text));
    }
    let work: Vec<Work> = sequences
        .iter()
        .enumerate()
        .map(|(s, (seq, text))| Work { seq: *seq, tokens: &text[prompt..], params: Some(&params), sample: s < rows })
        .collect();
    let (ran, profile) = engine.measure(&work, ROUNDS, None)?;
    if ran != size {
        return Err(Failure::Usage(format!("{name} runs in bucket {}; explain that one", ran.name())));
    }
    profile.ok_or_else(|| Failure::Failed("this device has no kernels to time; use a GPU".into()))
}

/// A sequence that holds `tokens`.
fn feed(engine: &mut Engine, tokens: &[u32], params: &SamplingParams) -> Result<SeqId, Failure> {
    let seq = engine.start(tokens.len())?;
    let chunk = engine.options().chunk;
    for part in tokens.chunks(chunk) {
        engine.step(&[Work { seq, tokens: part, params: Some(params), sample: false }])?;
    }
    Ok(seq)
}
