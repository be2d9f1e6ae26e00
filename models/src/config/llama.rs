//! The Llama configuration and its checks.

use serde_json::{Value, json};

use super::RopeConfig;
use super::fields::Fields;
use super::limits::{MAX_CONTEXT, MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH};
use super::rope::{self, RopeRules};
use super::shared;

/// A Llama model. Sizes are counts of elements; a parsed value satisfies every rule checked in this file.
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    /// Decoder layers.
    pub layers: usize,
    /// Residual width.
    pub hidden: usize,
    /// Width inside the MLP.
    pub intermediate: usize,
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head, even.
    pub head_dim: usize,
    /// Rows of the embedding and of the head.
    pub vocab: usize,
    /// Longest sequence, in tokens.
    pub context: usize,
    /// Rotary position parameters.
    pub rope: RopeConfig,
    /// Added to the mean square before the root in RMSNorm.
    pub rms_eps: f64,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Ids that end a text according to `config.json`; `generation_config.json` may add more.
    pub eos: Vec<u32>,
    /// Padding id.
    pub pad: Option<u32>,
}

// What transformers takes where a file says nothing.
const DEFAULT_EPS: f64 = 1e-6;
const ROPE: RopeRules = RopeRules { types: &["default", "llama3"], theta: Some(10_000.0), required: false };

impl LlamaConfig {
    /// Width of all query heads together.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// The configuration as a Hugging Face `config.json`.
    pub fn to_hf_json(&self) -> Value {
        let mut object = json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": false,
            "eos_token_id": self.eos,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": self.context,
            "mlp_bias": false,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": self.rms_eps,
            "rope_theta": self.rope.theta,
            "tie_word_embeddings": self.tied,
            "vocab_size": self.vocab,
        });
        if self.rope.ramp == rope::RopeRamp::Rotations {
            object["rope_scaling"] = rope::to_hf_json(&self.rope);
        }
        if let Some(pad) = self.pad {
            object["pad_token_id"] = pad.into();
        }
        object
    }
}

pub(super) fn parse(f: &mut Fields<'_>) -> LlamaConfig {
    let hidden = f.size("hidden_size", MAX_WIDTH);
    let heads = f.size("num_attention_heads", MAX_HEADS);
    let context = f.size("max_position_embeddings", MAX_CONTEXT);
    let config = LlamaConfig {
        layers: f.size("num_hidden_layers", MAX_LAYERS),
        hidden,
        intermediate: f.size("intermediate_size", MAX_WIDTH),
        heads,
        kv_heads: if f.has("num_key_value_heads") { f.size("num_key_value_heads", MAX_HEADS) } else { heads },
        head_dim: head_dim(f, hidden, heads),
        vocab: f.size("vocab_size", MAX_VOCAB),
        context,
        rope: rope::parse_hugging_face(f, context, &ROPE),
        rms_eps: f.number("rms_norm_eps", 0.0..=1.0, Some(DEFAULT_EPS)),
        tied: f.flag("tie_word_embeddings", false),
        eos: f.token_ids("eos_token_id"),
        pad: pad(f),
    };
    check_fixed_choices(f);
    shared::check_heads(f, config.heads, config.kv_heads, config.head_dim);
    shared::check_ids(f, config.eos.iter().chain(&config.pad), config.vocab);
    config
}

/// The residual width is shared among the heads unless the file says otherwise.
fn head_dim(f: &mut Fields<'_>, hidden: usize, heads: usize) -> usize {
    if f.has("head_dim") || heads == 0 || hidden == 0 {
        return f.optional_size("head_dim", MAX_HEAD_DIM).unwrap_or(0);
    }
    let dim = hidden / heads;
    if !hidden.is_multiple_of(heads) || dim > MAX_HEAD_DIM {
        let expected = format!("a size from 1 to {MAX_HEAD_DIM}, because hidden_size / num_attention_heads is not one");
        f.problem("head_dim", &expected, "take the value from the published config.json");
        return 0;
    }
    dim
}

/// Some published files say -1 for no padding.
fn pad(f: &mut Fields<'_>) -> Option<u32> {
    match f.get("pad_token_id").and_then(Value::as_i64) {
        Some(-1) => None,
        _ => f.token_id("pad_token_id"),
    }
}

/// Fields that have one value in every Llama model. Another value means another model.
fn check_fixed_choices(f: &mut Fields<'_>) {
    const CLASS: &str = "LlamaForCausalLM";
    if let Some(found) = f.get("architectures")
        && !found.as_array().is_some_and(|list| list.iter().any(|name| name == CLASS))
    {
        f.problem("architectures", &format!("a list with \"{CLASS}\""), "use a checkpoint of a language model");
    }
    for key in ["attention_bias", "mlp_bias"] {
        if f.flag(key, false) {
            f.problem(key, "false", "use a Llama checkpoint: its projections have no biases");
        }
    }
    if let Some(act) = f.text("hidden_act")
        && act != "silu"
    {
        f.problem("hidden_act", "\"silu\"", "use a Llama checkpoint; other activations are not supported");
    }
    if f.has("partial_rotary_factor") && f.number("partial_rotary_factor", 0.0..=1.0, None) != 1.0 {
        f.problem("partial_rotary_factor", "1", "use a Llama checkpoint; partial rotation is not supported");
    }
    if f.has("quantization_config") {
        f.problem(
            "quantization_config",
            "nothing",
            "use the bf16 checkpoint; quantised Llama models are not supported",
        );
    }
}
