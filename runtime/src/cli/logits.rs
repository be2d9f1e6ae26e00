//! `gossamer logits` and `gossamer eval`: for testing from outside.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use gossamer_models::step::Head;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;

use super::args::{EvalArgs, LogitsArgs, ModelArgs};
use super::output::{self, Failure};
use crate::engine::{SamplingParams, StepLogits, Work};
use crate::session::{Session, SessionOptions};

pub fn logits(args: &LogitsArgs) -> Result<(), Failure> {
    output::not_over("--out", &args.out, &args.tokens)?;
    let tokens = output::read_tokens(&args.tokens)?;
    let folder = |p: &Path| fs::canonicalize(if p.as_os_str().is_empty() { Path::new(".") } else { p }).ok();
    let beside = args.out.parent().and_then(folder);
    if args.out.exists() && beside.is_some() && beside == folder(Path::new(&args.model_name)) && is_shard(&args.out) {
        return Err(Failure::Usage(format!(
            "--out {} is a file of the model; choose another name",
            args.out.display()
        )));
    }
    let mut session = open(&args.model, &args.model_name, args.hidden)?;
    let all = feed(&mut session, &tokens, args.hidden, args.greedy)?;
    let (t, v, h) = (tokens.len(), session.engine.config().vocab(), session.engine.config().hidden());
    let logits = le_bytes(&all.logits.logits);
    let hidden: Vec<u8> = all.logits.hidden.iter().flat_map(|layer| le_bytes(layer)).collect();
    let ids = |v: &[i32]| v.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>();
    let routing: Vec<u8> = all.logits.routing.iter().flat_map(|layer| ids(layer)).collect();
    let greedy: Vec<u8> = all.greedy.iter().flat_map(|id| (*id as i32).to_le_bytes()).collect();
    let view = |dtype, shape: Vec<usize>, data| TensorView::new(dtype, shape, data).map_err(Failure::from_error);
    let mut tensors = BTreeMap::from([("logits", view(Dtype::F32, vec![t, v], &logits)?)]);
    if args.hidden {
        tensors.insert("hidden", view(Dtype::F32, vec![all.logits.hidden.len(), t, h], &hidden)?);
        // A dense model chooses no experts.
        if let Some(layer) = all.logits.routing.first() {
            let shape = vec![all.logits.routing.len(), t, layer.len() / t];
            tensors.insert("routing", view(Dtype::I32, shape, &routing)?);
        }
    }
    if args.greedy > 0 {
        tensors.insert("greedy", view(Dtype::I32, vec![all.greedy.len()], &greedy)?);
    }
    let bytes = safetensors::serialize(tensors, None).map_err(Failure::from_error)?;
    output::file(&args.out, &bytes)?;
    note!("{}: logits [{t}, {v}] on {}", args.out.display(), session.engine.describe());
    Ok(())
}

pub fn eval(args: &EvalArgs) -> Result<(), Failure> {
    if args.window == 0 {
        return Err(Failure::Usage("--window is 0, expected at least 1".into()));
    }
    let tokens = output::read_tokens(&args.tokens)?;
    if tokens.len() < 2 {
        return Err(Failure::Failed(format!("{}: has 1 token; a loss needs at least 2", args.tokens.display())));
    }
    let mut session = open(&args.model, &args.model_name, false)?;
    let vocab = session.engine.config().vocab();
    let (mut losses, mut sum, mut count) = (Vec::new(), 0.0f64, 0usize);
    let start = std::time::Instant::now();
    for first in (0..tokens.len() - 1).step_by(args.window) {
        let end = (first + args.window).min(tokens.len() - 1);
        let (inputs, targets) = (&tokens[first..end], &tokens[first + 1..end + 1]);
        if let Some((i, t)) = targets.iter().enumerate().find(|(_, t)| **t as usize >= vocab) {
            let position = first + 1 + i;
            return Err(crate::engine::EngineError::Token { token: *t, position, vocab }.into());
        }
        let mut loss = 0.0f64;
        feed_with(&mut session, inputs, false, &mut |at, out| {
            for (i, row) in out.logits.chunks_exact(vocab).enumerate() {
                loss += nll(row, targets[at + i] as usize);
            }
        })?;
        sum += loss;
        count += targets.len();
        losses.push(loss / targets.len() as f64);
    }
    output::json(&json!({
        "model": session.name,
        "device": session.engine.describe(),
        "window": args.window,
        "tokens": count,
        "nll_per_window": losses,
        "mean_nll": sum / count as f64,
        "perplexity": (sum / count as f64).exp(),
        "seconds": start.elapsed().as_secs_f64(),
    }))
}

/// Tokens a step unless asked otherwise: every one of them gets a row of logits, so steps are kept short.
const CHUNK: usize = 512;

fn open(args: &ModelArgs, model: &str, hidden: bool) -> Result<Session, Failure> {
    let options = args.session(model)?;
    let chunk = options.chunk.or(Some(CHUNK));
    super::system::open(&SessionOptions { chunk, head: Head::Logits { hidden }, ..options })
}

/// `-ln softmax(row)[target]`.
fn nll(row: &[f32], target: usize) -> f64 {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|x| f64::from(x - max).exp()).sum();
    sum.ln() - f64::from(row[target] - max)
}

/// True for names that checkpoints use.
fn is_shard(path: &Path) -> bool {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    name.starts_with("model") || name.ends_with(".json")
}

struct Fed {
    logits: StepLogits,
    greedy: Vec<u32>,
}

/// Feeds all tokens in chunks to a new sequence, keeping logits, then decodes `greedy` more tokens one by one.
fn feed(session: &mut Session, tokens: &[u32], hidden: bool, greedy: usize) -> Result<Fed, Failure> {
    let mut all = StepLogits::default();
    feed_with(session, tokens, hidden, &mut |_, out| {
        all.logits.extend_from_slice(&out.logits);
        all.hidden.resize(out.hidden.len(), Vec::new());
        all.hidden.iter_mut().zip(&out.hidden).for_each(|(a, b)| a.extend_from_slice(b));
        all.routing.resize(out.routing.len(), Vec::new());
        all.routing.iter_mut().zip(&out.routing).for_each(|(a, b)| a.extend_from_slice(b));
    })?;
    let mut out = Vec::new();
    if greedy > 0 {
        // The sequence was ended by `feed_with`; decoding goes through the cache from the start, as a server would.
        let engine = &mut session.engine;
        let params = SamplingParams::greedy();
        let seq = engine.start(tokens.len())?;
        let chunk = engine.options().chunk;
        let mut next = None;
        for (i, part) in tokens.chunks(chunk).enumerate() {
            let last = (i + 1) * chunk >= tokens.len();
            let sampled = engine.step(&[Work { seq, tokens: part, params: Some(&params), sample: last }])?;
            next = sampled[0].as_ref().map(|s| s.token);
        }
        while let Some(token) = next {
            out.push(token);
            if out.len() == greedy {
                break;
            }
            let sampled = engine.step(&[Work { seq, tokens: &[token], params: Some(&params), sample: true }])?;
            next = sampled[0].as_ref().map(|s| s.token);
        }
        engine.end(seq);
    }
    Ok(Fed { logits: all, greedy: out })
}

/// Feeds all tokens in chunks to a new sequence; `visit(index of the chunk's first token, its results)`. The sequence is ended.
fn feed_with(
    session: &mut Session,
    tokens: &[u32],
    hidden: bool,
    visit: &mut dyn FnMut(usize, &StepLogits),
) -> Result<(), Failure> {
    let engine = &mut session.engine;
    let seq = engine.start(tokens.len())?;
    let chunk = engine.options().chunk;
    let mut at = 0;
    for part in tokens.chunks(chunk) {
        let out = engine.logits(seq, part, hidden);
        let out = match out {
            Ok(out) => out,
            Err(e) => {
                engine.end(seq);
                return Err(e.into());
            }
        };
        visit(at, &out);
        at += part.len();
    }
    engine.end(seq);
    Ok(())
}

fn le_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}
