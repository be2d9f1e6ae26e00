//! Generation: requests in, tokens out, through an [`Engine`].
//!
//! Several requests share steps: each step decodes one token for every running request and spends the rest of its token budget on prompts that are
//! still being read; while all decode, steps follow each other on the device. What a request gets does not depend on the others, because rows of a step do not.

use std::time::{Duration, Instant};

use crate::engine::{Engine, EngineError, Sampled, SamplingParams, SeqId, Work};
use crate::text::StopSet;

/// Most tokens that are decoded without looking for other work, cancelled requests aside.
const RUN: usize = 256;

/// One request.
#[derive(Clone, Debug)]
pub struct Request {
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// How to choose tokens.
    pub params: SamplingParams,
    /// Most tokens to generate; fewer if the context ends first.
    pub max_tokens: usize,
    /// Tokens that end the answer. They are part of it.
    pub stop: StopSet,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A stop token was drawn.
    Stop,
    /// The limit of tokens or the context was reached.
    Length,
    /// The caller asked for it.
    Cancelled,
}

impl Finish {
    /// The word used in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::Cancelled => "cancelled",
        }
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Generation {
    /// What was drawn, in order.
    pub tokens: Vec<Sampled>,
    /// Why it ended.
    pub finish: Finish,
}

/// Where the time of a call went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timing {
    /// Tokens of all prompts.
    pub prompt_tokens: usize,
    /// Tokens drawn.
    pub generated: usize,
    /// From the start to the first token of any request.
    pub first_token: Duration,
    /// From then to the end.
    pub decode: Duration,
}

impl Timing {
    /// Generated tokens a second after the first.
    pub fn decode_rate(&self) -> f64 {
        let seconds = self.decode.as_secs_f64();
        if seconds > 0.0 { self.generated.saturating_sub(1) as f64 / seconds } else { 0.0 }
    }

    /// Prompt tokens a second until the first token.
    pub fn prompt_rate(&self) -> f64 {
        let seconds = self.first_token.as_secs_f64();
        if seconds > 0.0 { self.prompt_tokens as f64 / seconds } else { 0.0 }
    }
}

/// Whether to go on with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Go on.
    Continue,
    /// End it here.
    Stop,
}

/// A request under way.
struct Running {
    seq: SeqId,
    /// Prompt tokens already fed.
    fed: usize,
    out: Vec<Sampled>,
    finish: Option<Finish>,
}

/// Runs requests to their end. `on_token(request, token)` sees every token as it is drawn and may end its request.
///
/// # Errors
/// What the engine gives; all sequences are ended then.
pub fn generate(
    engine: &mut Engine,
    requests: &[Request],
    on_token: &mut dyn FnMut(usize, &Sampled) -> Flow,
) -> Result<(Vec<Generation>, Timing), EngineError> {
    generate_until(engine, requests, on_token, &|| false)
}

/// [`generate`] that asks `stop` before each step, so that it can be stopped while a prompt is being read, too.
///
/// # Errors
/// As [`generate`].
pub fn generate_until(
    engine: &mut Engine,
    requests: &[Request],
    on_token: &mut dyn FnMut(usize, &Sampled) -> Flow,
    stop: &dyn Fn() -> bool,
) -> Result<(Vec<Generation>, Timing), EngineError> {
    let mut running: Vec<Running> = Vec::new();
    let result = run(engine, requests, &mut running, on_token, stop);
    for r in &running {
        engine.end(r.seq);
    }
    let timing = result?;
    let generations =
        running.into_iter().map(|r| Generation { tokens: r.out, finish: r.finish.unwrap_or(Finish::Length) }).collect();
    Ok((generations, timing))
}

fn run(
    engine: &mut Engine,
    requests: &[Request],
    running: &mut Vec<Running>,
    on_token: &mut dyn FnMut(usize, &Sampled) -> Flow,
    stop: &dyn Fn() -> bool,
) -> Result<Timing, EngineError> {
    let start = Instant::now();
    let mut first = None;
    let mut timing = Timing { prompt_tokens: requests.iter().map(|r| r.prompt.len()).sum(), ..Timing::default() };
    for r in requests {
        let seq = engine.start(r.prompt.len())?;
        let finish = (r.max_tokens == 0).then_some(Finish::Length);
        running.push(Running { seq, fed: 0, out: Vec::new(), finish });
    }
    let chunk = engine.options().chunk;
    let context = engine.options().context;
    while running.iter().any(|r| r.finish.is_none()) {
        if stop() {
            running.iter_mut().for_each(|r| r.finish = r.finish.or(Some(Finish::Cancelled)));
            break;
        }
        let mut budget = chunk;
        // (request, its tokens of this step, whether its prompt is then complete)
        let mut parts: Vec<(usize, Vec<u32>, bool)> = Vec::new();
        let open = |r: &Running| r.finish.is_none();
        for (i, r) in running.iter().enumerate().filter(|(i, r)| open(r) && r.fed == requests[*i].prompt.len()) {
            if let (Some(last), true) = (r.out.last(), budget > 0) {
                parts.push((i, vec![last.token], true));
                budget -= 1;
            }
        }
        for (i, r) in running.iter().enumerate().filter(|(i, r)| open(r) && r.fed < requests[*i].prompt.len()) {
            let end = requests[i].prompt.len().min(r.fed + budget);
            if end > r.fed {
                parts.push((i, requests[i].prompt[r.fed..end].to_vec(), end == requests[i].prompt.len()));
                budget -= end - r.fed;
            }
        }
        let work: Vec<Work> = parts
            .iter()
            .map(|(i, tokens, complete)| Work {
                seq: running[*i].seq,
                tokens,
                params: Some(&requests[*i].params),
                sample: *complete,
            })
            .collect();
        // What a token means for its request; true if the request goes on.
        let mut take = |running: &mut [Running], i: usize, sampled: Sampled| -> bool {
            let (r, request) = (&mut running[i], &requests[i]);
            if r.finish.is_some() {
                return false; // drawn behind the end
            }
            first.get_or_insert_with(|| start.elapsed());
            timing.generated += 1;
            let flow = on_token(i, &sampled);
            let token = sampled.token;
            r.out.push(sampled);
            r.finish = if request.stop.contains(token) {
                Some(Finish::Stop)
            } else if flow == Flow::Stop {
                Some(Finish::Cancelled)
            } else if r.out.len() >= request.max_tokens {
                Some(Finish::Length)
            } else {
                None
            };
            r.finish.is_none()
        };
        if running.iter().zip(requests).all(|(r, q)| r.finish.is_some() || r.fed == q.prompt.len()) {
            // Everyone decodes: as many steps as all of them have tokens left.
            let left = parts.iter().map(|(i, ..)| requests[*i].max_tokens - running[*i].out.len()).min();
            engine.decode(&work, left.unwrap_or(1).clamp(1, RUN), &mut |drawn, _| {
                let mut all = !stop();
                for ((i, ..), sampled) in parts.iter().zip(drawn) {
                    all &= take(running, *i, sampled.clone());
                }
                all
            })?;
        } else {
            let results = engine.step(&work)?;
            for ((i, tokens, _), sampled) in parts.iter().zip(results) {
                running[*i].fed = (running[*i].fed + tokens.len()).min(requests[*i].prompt.len());
                if let Some(sampled) = sampled {
                    take(running, *i, sampled);
                }
            }
        }
        for (i, ..) in &parts {
            let r = &mut running[*i];
            if r.finish.is_none() && !r.out.is_empty() && engine.len(r.seq) >= context {
                r.finish = Some(Finish::Length);
            }
            if r.finish.is_some() {
                engine.end(r.seq);
            }
        }
    }
    timing.first_token = first.unwrap_or_default();
    timing.decode = start.elapsed().saturating_sub(timing.first_token);
    Ok(timing)
}
