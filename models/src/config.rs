//! Model configuration: what a checkpoint's `config.json` says, checked once so that nothing after it has to doubt it.
//!
//! Three spellings are read: Hugging Face with `rope_scaling` and `rope_theta`, Hugging Face (transformers 5) with
//! `rope_parameters`, and the flat file of the original GPT-OSS release. Every problem of a file is reported, not only the
//! first. A value that parsed is within the limits below, so that sizes computed from it cannot overflow.

mod error;
mod fields;
mod generation;
mod gpt_oss;
mod limits;
mod llama;
mod rope;
mod shared;
#[cfg(test)]
mod tests;

pub use error::{ConfigError, ConfigProblem};
pub use generation::GenerationDefaults;
pub use gpt_oss::{AttentionKind, GptOssConfig, MXFP4_BLOCK};
pub use llama::LlamaConfig;
pub use rope::{RopeConfig, RopeRamp};

use serde_json::{Map, Value};

use crate::names::{self, Layout, TensorSpec, WeightSpec};
use fields::Fields;

/// The configuration of any supported architecture.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelConfig {
    /// GPT-OSS: mixture of experts in MXFP4, attention with sinks, alternating windows.
    GptOss(GptOssConfig),
    /// Llama: dense.
    Llama(LlamaConfig),
}

/// A parsed `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct ParsedConfig {
    /// The configuration.
    pub config: ModelConfig,
    /// Which release the file's field names belong to. The tensor names of the checkpoint decide in the end.
    pub layout: Layout,
    /// One line each: things that are legal but probably not meant.
    pub warnings: Vec<String>,
}

impl ModelConfig {
    /// Parses the text of a `config.json`. `file` names it in messages.
    ///
    /// # Errors
    /// [`ConfigError::Syntax`] when the text is not a JSON object, otherwise [`ConfigError::Invalid`] with every problem.
    ///
    /// ```
    /// use gossamer_models::{config::ModelConfig, presets};
    /// let text = presets::gpt_oss_20b().to_hf_json().to_string();
    /// let parsed = ModelConfig::parse(&text, "config.json").unwrap();
    /// assert_eq!(parsed.config, ModelConfig::GptOss(presets::gpt_oss_20b()));
    /// ```
    pub fn parse(text: &str, file: &str) -> Result<ParsedConfig, ConfigError> {
        let map = parse_object(text, file)?;
        let mut fields = Fields::new(&map);
        let layout = if is_original(&map) { Layout::Original } else { Layout::HuggingFace };
        let config = match (layout, fields.text("model_type")) {
            (Layout::Original, _) => ModelConfig::GptOss(gpt_oss::parse_original(&mut fields)),
            (_, Some("gpt_oss")) => ModelConfig::GptOss(gpt_oss::parse_hugging_face(&mut fields)),
            (_, Some("llama")) => ModelConfig::Llama(llama::parse(&mut fields)),
            (_, found) => {
                // A `model_type` that is not a string has been reported by `text`.
                if found.is_some() || !fields.has("model_type") {
                    fields.problem(
                        "model_type",
                        "\"gpt_oss\" or \"llama\"",
                        "use a GPT-OSS or Llama checkpoint; other architectures are not supported",
                    );
                }
                return Err(ConfigError::invalid(file, fields.into_problems()));
            }
        };
        let (problems, warnings) = fields.finish();
        if !problems.is_empty() {
            return Err(ConfigError::invalid(file, problems));
        }
        let warnings = warnings.into_iter().map(|w| format!("{file}: {w}")).collect();
        Ok(ParsedConfig { config, layout, warnings })
    }

    /// Size of the vocabulary: rows of the embedding.
    pub fn vocab(&self) -> usize {
        match self {
            ModelConfig::GptOss(c) => c.vocab,
            ModelConfig::Llama(c) => c.vocab,
        }
    }

    /// Longest sequence the model allows, in tokens.
    pub fn context(&self) -> usize {
        match self {
            ModelConfig::GptOss(c) => c.context,
            ModelConfig::Llama(c) => c.context,
        }
    }

    /// Width of the residual stream.
    pub fn hidden(&self) -> usize {
        match self {
            ModelConfig::GptOss(c) => c.hidden,
            ModelConfig::Llama(c) => c.hidden,
        }
    }

    /// Width of all key (or value) heads of a layer together.
    pub fn kv_width(&self) -> usize {
        match self {
            ModelConfig::GptOss(c) => c.kv_width(),
            ModelConfig::Llama(c) => c.kv_width(),
        }
    }

    /// How many keys a query of each layer sees, its own among them: `None` for all.
    pub fn windows(&self) -> Vec<Option<usize>> {
        match self {
            ModelConfig::GptOss(c) => {
                c.layer_types.iter().map(|k| (*k == AttentionKind::Sliding).then_some(c.sliding_window)).collect()
            }
            ModelConfig::Llama(c) => vec![None; c.layers],
        }
    }

    /// Experts of a layer that each token goes through; 0 for a dense model.
    pub fn experts_per_token(&self) -> usize {
        match self {
            ModelConfig::GptOss(c) => c.experts_per_token,
            ModelConfig::Llama(_) => 0,
        }
    }

    /// Ids that end a text according to `config.json`.
    pub fn eos(&self) -> &[u32] {
        match self {
            ModelConfig::GptOss(c) => &c.eos,
            ModelConfig::Llama(c) => &c.eos,
        }
    }

    /// Padding id.
    pub fn pad(&self) -> Option<u32> {
        match self {
            ModelConfig::GptOss(c) => c.pad,
            ModelConfig::Llama(c) => c.pad,
        }
    }

    /// Whether the model was trained on conversations in harmony format; any other completes text.
    pub fn speaks_harmony(&self) -> bool {
        match self {
            ModelConfig::GptOss(_) => true,
            ModelConfig::Llama(_) => false,
        }
    }

    /// The `model_type` of Hugging Face configurations.
    pub fn model_type(&self) -> &'static str {
        match self {
            ModelConfig::GptOss(_) => "gpt_oss",
            ModelConfig::Llama(_) => "llama",
        }
    }

    /// The layouts that checkpoints of the model have.
    pub fn layouts(&self) -> &'static [Layout] {
        match self {
            ModelConfig::GptOss(_) => &[Layout::HuggingFace, Layout::Original],
            ModelConfig::Llama(_) => &[Layout::HuggingFace],
        }
    }

    /// Every weight of the model under its canonical name; see [`crate::names`].
    pub fn weights(&self) -> Vec<WeightSpec> {
        match self {
            ModelConfig::GptOss(c) => names::gpt_oss::weights(c),
            ModelConfig::Llama(c) => names::llama::weights(c),
        }
    }

    /// Every tensor that a checkpoint in this layout stores; none if it is not one of [`ModelConfig::layouts`]. See [`crate::names`].
    pub fn checkpoint_tensors(&self, layout: Layout) -> Vec<TensorSpec> {
        names::checkpoint_tensors(&self.weights(), layout)
    }

    /// The configuration as a Hugging Face `config.json`, which [`ModelConfig::parse`] reads back to the same value.
    pub fn to_hf_json(&self) -> Value {
        match self {
            ModelConfig::GptOss(c) => c.to_hf_json(),
            ModelConfig::Llama(c) => c.to_hf_json(),
        }
    }
}

/// Parses a JSON object, or says where the text stops being one.
fn parse_object(text: &str, file: &str) -> Result<Map<String, Value>, ConfigError> {
    let value: Value = serde_json::from_str(text).map_err(|e| ConfigError::syntax(file, &e))?;
    match value {
        Value::Object(map) => Ok(map),
        other => Err(ConfigError::NotAnObject { file: file.to_owned(), found: fields::kind(&other) }),
    }
}

/// The original release writes a flat file without `model_type`, with its own names for rope and experts.
fn is_original(map: &Map<String, Value>) -> bool {
    !map.contains_key("model_type")
        && (map.contains_key("rope_scaling_factor")
            || map.contains_key("rope_ntk_alpha")
            || map.contains_key("num_experts"))
}
