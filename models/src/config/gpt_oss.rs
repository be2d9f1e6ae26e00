//! The GPT-OSS configuration and its checks.

use serde_json::{Value, json};

use super::RopeConfig;
use super::fields::{Fields, quote};
use super::limits::{MAX_CONTEXT, MAX_EXPERTS, MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH};
use super::rope::{self, RopeRules};
use super::shared;

/// Which keys a layer attends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AttentionKind {
    /// The last `sliding_window` positions, the query's own among them.
    Sliding,
    /// All earlier positions and its own.
    Full,
}

/// A GPT-OSS model. Sizes are counts of elements; a parsed value satisfies every rule checked in this file.
#[derive(Clone, Debug, PartialEq)]
pub struct GptOssConfig {
    /// Decoder layers.
    pub layers: usize,
    /// Experts per layer.
    pub experts: usize,
    /// Experts each token goes through.
    pub experts_per_token: usize,
    /// Residual width, a multiple of 32.
    pub hidden: usize,
    /// Width inside an expert, a multiple of 32.
    pub intermediate: usize,
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head, even. Not `hidden / heads`.
    pub head_dim: usize,
    /// Rows of the embedding and of the head.
    pub vocab: usize,
    /// Longest sequence, in tokens.
    pub context: usize,
    /// Keys seen by a sliding layer, the query's own among them. Meaningless when no layer slides.
    pub sliding_window: usize,
    /// The kind of each layer; `layers` entries.
    pub layer_types: Vec<AttentionKind>,
    /// Rotary position parameters.
    pub rope: RopeConfig,
    /// Slope inside the sigmoid of the gated activation.
    pub swiglu_alpha: f64,
    /// Clamp of the gated activation's inputs.
    pub swiglu_limit: f64,
    /// Added to the mean square before the root in RMSNorm.
    pub rms_eps: f64,
    /// Ids that end a text according to `config.json`; `generation_config.json` may add more.
    pub eos: Vec<u32>,
    /// Padding id.
    pub pad: Option<u32>,
}

/// Consecutive elements of a row that share one MXFP4 scale.
pub const MXFP4_BLOCK: usize = 32;

const DEFAULT_ALPHA: f64 = 1.702;
const DEFAULT_LIMIT: f64 = 7.0;
const DEFAULT_EPS: f64 = 1e-5;
const ROPE: RopeRules = RopeRules { types: &["yarn", "default"], theta: None, required: true };
const LIMIT: std::ops::RangeInclusive<f64> = 1e-3..=1e6;

impl GptOssConfig {
    /// Width of all query heads together.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// How many layers are of a kind.
    pub fn layers_of(&self, kind: AttentionKind) -> usize {
        self.layer_types.iter().filter(|&&k| k == kind).count()
    }

    /// Layers alternate, the first one slides: the default where a file does not say.
    pub fn alternating(layers: usize) -> Vec<AttentionKind> {
        (0..layers).map(|i| if i % 2 == 0 { AttentionKind::Sliding } else { AttentionKind::Full }).collect()
    }

    /// The configuration as a Hugging Face `config.json`.
    pub fn to_hf_json(&self) -> Value {
        let mut object = json!({
            "architectures": ["GptOssForCausalLM"],
            "model_type": "gpt_oss",
            "attention_bias": true,
            "attention_dropout": 0.0,
            "eos_token_id": self.eos,
            "experts_per_token": self.experts_per_token,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "initial_context_length": self.rope.original_context,
            "intermediate_size": self.intermediate,
            "layer_types": self.layer_types.iter().map(|k| k.hf_name()).collect::<Vec<_>>(),
            "max_position_embeddings": self.context,
            "num_attention_heads": self.heads,
            "num_experts_per_tok": self.experts_per_token,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "num_local_experts": self.experts,
            "quantization_config": { "quant_method": "mxfp4" },
            "rms_norm_eps": self.rms_eps,
            "rope_scaling": rope::to_hf_json(&self.rope),
            "rope_theta": self.rope.theta,
            "sliding_window": self.sliding_window,
            "swiglu_alpha": self.swiglu_alpha,
            "swiglu_limit": self.swiglu_limit,
            "tie_word_embeddings": false,
            "vocab_size": self.vocab,
        });
        if let Some(pad) = self.pad {
            object["pad_token_id"] = pad.into();
        }
        object
    }
}

impl AttentionKind {
    /// The name in a Hugging Face `layer_types` list.
    pub fn hf_name(self) -> &'static str {
        match self {
            AttentionKind::Sliding => "sliding_attention",
            AttentionKind::Full => "full_attention",
        }
    }
}

pub(super) fn parse_hugging_face(f: &mut Fields<'_>) -> GptOssConfig {
    let layers = f.size("num_hidden_layers", MAX_LAYERS);
    let layer_types = layer_types(f, layers);
    let context = f.size("max_position_embeddings", MAX_CONTEXT);
    let config = GptOssConfig {
        layers,
        experts: f.size("num_local_experts", MAX_EXPERTS),
        experts_per_token: experts_per_token(f),
        hidden: f.size("hidden_size", MAX_WIDTH),
        intermediate: f.size("intermediate_size", MAX_WIDTH),
        heads: f.size("num_attention_heads", MAX_HEADS),
        kv_heads: f.size("num_key_value_heads", MAX_HEADS),
        head_dim: f.size("head_dim", MAX_HEAD_DIM),
        vocab: f.size("vocab_size", MAX_VOCAB),
        context,
        sliding_window: sliding_window(f, &layer_types, context),
        layer_types,
        rope: rope::parse_hugging_face(f, context, &ROPE),
        swiglu_alpha: f.number("swiglu_alpha", LIMIT, Some(DEFAULT_ALPHA)),
        swiglu_limit: f.number("swiglu_limit", LIMIT, Some(DEFAULT_LIMIT)),
        rms_eps: f.number("rms_norm_eps", 0.0..=1.0, Some(DEFAULT_EPS)),
        eos: f.token_ids("eos_token_id"),
        pad: f.token_id("pad_token_id"),
    };
    check_fixed_choices(f);
    check_relations(f, &config, &["num_local_experts", "num_experts_per_tok"]);
    config
}

pub(super) fn parse_original(f: &mut Fields<'_>) -> GptOssConfig {
    const KNOWN: [&str; 16] = [
        "num_hidden_layers",
        "num_experts",
        "experts_per_token",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "swiglu_limit",
        "head_dim",
        "num_attention_heads",
        "num_key_value_heads",
        "sliding_window",
        "initial_context_length",
        "rope_theta",
        "rope_scaling_factor",
        "rope_ntk_alpha",
        "rope_ntk_beta",
    ];
    for key in f.keys().filter(|key| !KNOWN.contains(key)) {
        f.warn(key, "not a field of the original release; ignored");
    }
    let layers = f.size("num_hidden_layers", MAX_LAYERS);
    let rope = rope::parse_original(f);
    let context = (rope.original_context as f64 * rope.factor).min(MAX_CONTEXT as f64) as usize;
    let layer_types = GptOssConfig::alternating(layers);
    let vocab = f.size("vocab_size", MAX_VOCAB);
    // The original file names no ids; they belong to the published vocabulary.
    let published = |id: u32| (id as usize) < vocab;
    let config = GptOssConfig {
        layers,
        experts: f.size("num_experts", MAX_EXPERTS),
        experts_per_token: f.size("experts_per_token", MAX_EXPERTS),
        hidden: f.size("hidden_size", MAX_WIDTH),
        intermediate: f.size("intermediate_size", MAX_WIDTH),
        heads: f.size("num_attention_heads", MAX_HEADS),
        kv_heads: f.size("num_key_value_heads", MAX_HEADS),
        head_dim: f.size("head_dim", MAX_HEAD_DIM),
        vocab,
        context,
        sliding_window: sliding_window(f, &layer_types, context),
        layer_types,
        rope,
        swiglu_alpha: DEFAULT_ALPHA,
        swiglu_limit: f.number("swiglu_limit", LIMIT, Some(DEFAULT_LIMIT)),
        rms_eps: DEFAULT_EPS,
        eos: [200_002, 199_999, 200_012].into_iter().filter(|&id| published(id)).collect(),
        pad: Some(199_999).filter(|&id| published(id)),
    };
    check_relations(f, &config, &["num_experts", "experts_per_token"]);
    config
}

/// The list must name a known kind for every layer; an absent list means alternating layers.
fn layer_types(f: &mut Fields<'_>, layers: usize) -> Vec<AttentionKind> {
    const FIX: &str = "take the list from the published config.json, or delete it for alternating layers";
    let Some(value) = f.get("layer_types") else {
        return GptOssConfig::alternating(layers);
    };
    let Value::Array(list) = value else {
        f.problem("layer_types", "a list with one name per layer", FIX);
        return GptOssConfig::alternating(layers);
    };
    if layers != 0 && list.len() != layers {
        let expected = format!("{layers} entries, as num_hidden_layers says");
        f.problem_found("layer_types", format!("{} entries", list.len()), &expected, FIX);
    }
    let mut kinds = Vec::new();
    for (i, name) in list.iter().enumerate() {
        match name.as_str() {
            Some("sliding_attention") => kinds.push(AttentionKind::Sliding),
            Some("full_attention") => kinds.push(AttentionKind::Full),
            _ => f.problem_found(
                &format!("layer_types[{i}]"),
                quote(name),
                "\"sliding_attention\" or \"full_attention\"",
                FIX,
            ),
        }
    }
    kinds
}

/// Two names for one number are in use, often both in one file.
fn experts_per_token(f: &mut Fields<'_>) -> usize {
    let long = f.optional_size("num_experts_per_tok", MAX_EXPERTS);
    let short = f.optional_size("experts_per_token", MAX_EXPERTS);
    match (long, short) {
        (Some(a), Some(b)) if a != b => {
            f.problem(
                "experts_per_token",
                &format!("{a}, the value of num_experts_per_tok"),
                "delete the one that is wrong",
            );
            a
        }
        (Some(n), _) | (None, Some(n)) => n,
        (None, None) if f.has("experts_per_token") || f.has("num_experts_per_tok") => 0, // reported above
        (None, None) => f.size("num_experts_per_tok", MAX_EXPERTS),
    }
}

/// Required where a layer slides. Without such layers the value is not used.
fn sliding_window(f: &mut Fields<'_>, kinds: &[AttentionKind], context: usize) -> usize {
    if kinds.contains(&AttentionKind::Sliding) {
        f.size("sliding_window", MAX_CONTEXT)
    } else {
        f.optional_size("sliding_window", MAX_CONTEXT).unwrap_or(context)
    }
}

/// Fields that have one value in every GPT-OSS model. Another value means another model.
fn check_fixed_choices(f: &mut Fields<'_>) {
    if !f.flag("attention_bias", true) {
        f.problem("attention_bias", "true", "use a GPT-OSS checkpoint: its projections have biases");
    }
    if f.flag("tie_word_embeddings", false) {
        f.problem("tie_word_embeddings", "false", "use a checkpoint that stores its own head");
    }
    if let Some(act) = f.text("hidden_act")
        && act != "silu"
    {
        f.problem("hidden_act", "\"silu\"", "use a GPT-OSS checkpoint; other activations are not supported");
    }
    let method = f.nested("quantization_config", |q| {
        let method = q.text("quant_method");
        if method != Some("mxfp4") && (method.is_some() || !q.has("quant_method")) {
            q.problem(
                "quant_method",
                "\"mxfp4\"",
                "use the published MXFP4 checkpoint; other quantisations are not supported",
            );
        }
    });
    if method.is_none() && !f.has("quantization_config") {
        f.problem(
            "quantization_config",
            "an object with quant_method \"mxfp4\"",
            "use the published MXFP4 checkpoint; dequantised exports are not supported",
        );
    }
}

/// Rules between fields. Zeros are placeholders of fields reported already.
fn check_relations(f: &mut Fields<'_>, c: &GptOssConfig, keys: &[&str; 2]) {
    const FIX: &str = "take the values from the published config.json";
    let [experts, per_token] = *keys;
    for (key, k) in [("hidden_size", c.hidden), ("intermediate_size", c.intermediate)] {
        if !k.is_multiple_of(MXFP4_BLOCK) {
            f.problem(key, &format!("a multiple of {MXFP4_BLOCK}, the MXFP4 block"), FIX);
        }
    }
    shared::check_heads(f, c.heads, c.kv_heads, c.head_dim);
    if c.experts != 0 && c.experts_per_token > c.experts {
        let key = if f.has(per_token) { per_token } else { "experts_per_token" };
        f.problem(key, &format!("at most {}, the value of {experts}", c.experts), FIX);
    }
    shared::check_ids(f, c.eos.iter().chain(&c.pad), c.vocab);
}
