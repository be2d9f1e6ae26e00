//! `generation_config.json`: stop ids and sampling defaults a checkpoint ships with.

use super::fields::Fields;
use super::{ConfigError, parse_object};

/// What `generation_config.json` says; all absent when there is no such file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Ids that end a generation.
    pub eos: Vec<u32>,
    /// First id of a text, where the model has one.
    pub bos: Option<u32>,
    /// Padding id.
    pub pad: Option<u32>,
    /// Softmax temperature, 0 to 100.
    pub temperature: Option<f64>,
    /// Nucleus mass, 0 to 1.
    pub top_p: Option<f64>,
    /// Number of most likely tokens kept.
    pub top_k: Option<usize>,
    /// Whether to sample at all (false: greedy).
    pub do_sample: Option<bool>,
}

impl GenerationDefaults {
    /// Parses the text of a `generation_config.json`. `file` names it in messages.
    ///
    /// # Errors
    /// [`ConfigError`] with every problem.
    pub fn parse(text: &str, file: &str) -> Result<Self, ConfigError> {
        let map = parse_object(text, file)?;
        let mut f = Fields::new(&map);
        let defaults = GenerationDefaults {
            eos: f.token_ids("eos_token_id"),
            bos: f.token_id("bos_token_id"),
            pad: f.token_id("pad_token_id"),
            temperature: f.has("temperature").then(|| f.number("temperature", 0.0..=100.0, None)),
            top_p: f.has("top_p").then(|| f.number("top_p", 0.0..=1.0, None)),
            top_k: top_k(&mut f),
            do_sample: f.has("do_sample").then(|| f.flag("do_sample", true)),
        };
        let problems = f.into_problems();
        if problems.is_empty() { Ok(defaults) } else { Err(ConfigError::invalid(file, problems)) }
    }
}

/// transformers writes 0 for "keep all".
fn top_k(f: &mut Fields<'_>) -> Option<usize> {
    if f.get("top_k").and_then(serde_json::Value::as_f64) == Some(0.0) {
        return None;
    }
    f.optional_size("top_k", u32::MAX as usize)
}
