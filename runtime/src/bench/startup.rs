//! Starting: from nothing to the first answer, with an empty cache of kernels and with a full one, and where the time goes.

use std::time::Instant;

use gossamer_models::step::Head;
use serde_json::{Value as Json, json};

use super::{params, read_prompts, token};
use crate::engine::EngineError;
use crate::phases::Phase;
use crate::session::{Hooks, Session, SessionError, SessionOptions, open_with};

/// Tokens of the prompt.
const PROMPT: usize = 64;
/// Tokens decoded after the first.
const DECODED: usize = 8;

/// One start; times in seconds.
#[derive(Clone, Debug)]
pub struct Start {
    /// What it is called: `cold` or `warm`.
    pub name: &'static str,
    /// Until the model was open.
    pub open_s: f64,
    /// Until the first token of a short prompt.
    pub first_token_s: f64,
    /// Until a few more were decoded.
    pub total_s: f64,
    /// By phase; what no phase covers is not in it.
    pub phases: Vec<(Phase, f64)>,
}

/// Why a start could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Opening.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// Running.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Starts once, and answers a short prompt.
///
/// # Errors
/// What opening or running gives.
pub fn start(name: &'static str, options: &SessionOptions, hooks: &Hooks) -> Result<(Start, Session), StartError> {
    let begun = Instant::now();
    let seconds = || begun.elapsed().as_secs_f64();
    let mut session = open_with(options, hooks)?;
    let open_s = seconds();
    let engine = &mut session.engine;
    let vocab = engine.config().vocab();
    let room = engine.options().context;
    let prompt: Vec<u32> = (0..PROMPT.min(room)).map(|i| token(1, 0, i, vocab)).collect();
    let params = params(1, 0);
    debug_assert_eq!(params.head(), Head::Sample);
    let mut next = 0;
    let seqs = read_prompts(engine, &[prompt], std::slice::from_ref(&params), &mut |_, token| next = token)?;
    let first_token_s = seconds();
    let mut left = DECODED.min(room.saturating_sub(PROMPT));
    while left > 0 {
        let given = next;
        let tokens = std::slice::from_ref(&given);
        let work = [crate::engine::Work { seq: seqs[0], tokens, params: Some(&params), sample: true }];
        left -= engine.decode(&work, left, &mut |drawn, _| {
            next = drawn[0].token;
            true
        })?;
    }
    let total_s = seconds();
    engine.end(seqs[0]);
    let phases = engine.phases();
    Ok((Start { name, open_s, first_token_s, total_s, phases }, session))
}

impl Start {
    /// Seconds that weights took: reading, packing, waiting for copies.
    pub fn weights_s(&self) -> f64 {
        let of_weights = |p: &&(Phase, f64)| matches!(p.0, Phase::Weights | Phase::Upload);
        self.phases.iter().filter(of_weights).map(|p| p.1).sum()
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out = format!(
            "{} start: {:.2} s, without weights {:.2} s; model open after {:.2} s, first token of a short prompt after {:.2} s\n",
            self.name,
            self.total_s,
            self.total_s - self.weights_s(),
            self.open_s,
            self.first_token_s
        );
        let mut rest = self.total_s;
        for (phase, s) in &self.phases {
            rest -= s;
            out.push_str(&format!("  {s:>8.3} s  {}\n", phase.about()));
        }
        out.push_str(&format!("  {:>8.3} s  everything else: device, configuration, running\n", rest.max(0.0)));
        out
    }

    /// For tools. Numbers under `metrics` are what [`super::compare`] looks at.
    pub fn json(&self) -> Json {
        let mut metrics = json!({
            "without_weights_s": self.total_s - self.weights_s(),
            "total_s": self.total_s,
            "open_s": self.open_s,
            "first_token_s": self.first_token_s,
        });
        for (phase, s) in &self.phases {
            metrics[phase.key()] = json!(s);
        }
        json!({ "name": self.name, "metrics": metrics })
    }
}
