//! The published models' configurations, for use without a checkpoint: inspecting, and benchmarks on random weights.

use crate::config::{GptOssConfig, RopeConfig, RopeRamp};

/// Names that [`preset`] knows.
pub const PRESETS: [&str; 2] = ["gpt-oss-20b", "gpt-oss-120b"];

/// The configuration of a published model.
///
/// ```
/// let config = gossamer_models::presets::preset("gpt-oss-120b").unwrap();
/// assert_eq!((config.layers, config.experts), (36, 128));
/// assert!(gossamer_models::presets::preset("gpt-2").is_none());
/// ```
pub fn preset(name: &str) -> Option<GptOssConfig> {
    match name {
        "gpt-oss-20b" => Some(gpt_oss_20b()),
        "gpt-oss-120b" => Some(gpt_oss_120b()),
        _ => None,
    }
}

/// 24 layers of 32 experts: 20.9 billion parameters, 3.6 billion active.
pub fn gpt_oss_20b() -> GptOssConfig {
    published(24, 32)
}

/// 36 layers of 128 experts: 116.8 billion parameters, 5.1 billion active.
pub fn gpt_oss_120b() -> GptOssConfig {
    published(36, 128)
}

/// The published models differ in these two numbers only.
fn published(layers: usize, experts: usize) -> GptOssConfig {
    let factor = 32.0;
    GptOssConfig {
        layers,
        experts,
        experts_per_token: 4,
        hidden: 2880,
        intermediate: 2880,
        heads: 64,
        kv_heads: 8,
        head_dim: 64,
        vocab: 201_088,
        context: 131_072,
        sliding_window: 128,
        layer_types: GptOssConfig::alternating(layers),
        rope: RopeConfig {
            theta: 150_000.0,
            factor,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_context: 4096,
            ramp: RopeRamp::Pairs,
            truncate: false,
            attention_factor: RopeConfig::default_attention_factor(factor),
        },
        swiglu_alpha: 1.702,
        swiglu_limit: 7.0,
        rms_eps: 1e-5,
        // <|return|>, <|endoftext|>, <|call|>: the list of the published generation_config.json.
        eos: vec![200_002, 199_999, 200_012],
        pad: Some(199_999),
    }
}
