//! Rotary position parameters in the three spellings.

use serde_json::Value;

use super::fields::Fields;
use super::limits::MAX_CONTEXT;

/// Rotary embedding with scaled frequencies. Plain RoPE is `factor` 1.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// By how much the context was extended, at least 1.
    pub factor: f64,
    /// Rotations within the original context above which a pair keeps its frequency (original: `rope_ntk_beta`; Llama 3:
    /// `high_freq_factor`).
    pub beta_fast: f64,
    /// Rotations below which a pair is divided by `factor` (original: `rope_ntk_alpha`; Llama 3: `low_freq_factor`).
    pub beta_slow: f64,
    /// Context length before extension, in tokens.
    pub original_context: usize,
    /// Over what the ramp between the two runs.
    pub ramp: RopeRamp,
    /// Whether the ends of a ramp over pairs are rounded outwards to whole pairs. The published models do not.
    pub truncate: bool,
    /// Multiplies cos and sin (the "concentration"): `0.1 ln(factor) + 1` unless the file gives it.
    pub attention_factor: f64,
}

/// What the share of a kept frequency is linear in, between `beta_slow` and `beta_fast` rotations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeRamp {
    /// The number of the pair, as YaRN has it.
    Pairs,
    /// The rotations within the original context, as Llama 3 has it.
    Rotations,
}

impl RopeRamp {
    /// The word in the IR.
    pub fn name(self) -> &'static str {
        match self {
            RopeRamp::Pairs => "pairs",
            RopeRamp::Rotations => "rotations",
        }
    }
}

impl RopeConfig {
    /// The factor on cos and sin that YaRN prescribes: `0.1 ln(factor) + 1`, and 1 without extension.
    pub fn default_attention_factor(factor: f64) -> f64 {
        mscale(factor, 1.0)
    }
}

/// What an architecture's files may say about rotation.
pub(super) struct RopeRules {
    /// The values of `rope_type` that are read: of `default`, `yarn`, `llama3`.
    pub(super) types: &'static [&'static str],
    /// The base of the frequencies where the file names none; `None`: it must.
    pub(super) theta: Option<f64>,
    /// Whether there must be an object with parameters; without one rotation is plain.
    pub(super) required: bool,
}

/// Reads `rope_parameters` (transformers 5) or `rope_scaling` with `rope_theta`. When both are there, they must agree:
/// readers that look at only one have lost YaRN without noticing.
pub(super) fn parse_hugging_face(fields: &mut Fields<'_>, context: usize, rules: &RopeRules) -> RopeConfig {
    let outer_theta = fields.has("rope_theta").then(|| fields.number("rope_theta", THETA, None));
    let new = fields.nested("rope_parameters", |f| nested_rope(f, outer_theta, context, rules));
    let old = fields.nested("rope_scaling", |f| nested_rope(f, outer_theta, context, rules));
    match (new, old) {
        (Some(new), Some(old)) => {
            if new != old {
                fields.problem("rope_scaling", "the same values as in rope_parameters", "delete the one that is wrong");
            }
            new
        }
        (Some(rope), None) | (None, Some(rope)) => rope,
        (None, None) => {
            // Not an object: `nested` has reported it.
            let absent = !fields.has("rope_parameters") && !fields.has("rope_scaling");
            if absent && !rules.required {
                let theta = outer_theta.or(rules.theta).unwrap_or_else(|| fields.number("rope_theta", THETA, None));
                return plain(theta, context);
            }
            if absent {
                fields.problem(
                    "rope_scaling",
                    "rope_scaling with rope_theta, or rope_parameters",
                    "take them from the published config.json; without YaRN the model answers wrongly",
                );
            }
            placeholder()
        }
    }
}

/// Reads the flat fields of the original release.
pub(super) fn parse_original(fields: &mut Fields<'_>) -> RopeConfig {
    let factor = fields.number("rope_scaling_factor", FACTOR, None);
    let beta_fast = fields.number("rope_ntk_beta", BETA, None);
    let beta_slow = fields.number("rope_ntk_alpha", BETA, None);
    check_betas(fields, "rope_ntk_beta", beta_fast, beta_slow);
    RopeConfig {
        theta: fields.number("rope_theta", THETA, None),
        factor,
        beta_fast,
        beta_slow,
        original_context: fields.size("initial_context_length", MAX_CONTEXT),
        ramp: RopeRamp::Pairs,
        truncate: false, // the reference never rounds
        attention_factor: RopeConfig::default_attention_factor(factor),
    }
}

/// The value as Hugging Face's `rope_scaling` object.
pub(super) fn to_hf_json(rope: &RopeConfig) -> Value {
    let mut object = match rope.ramp {
        RopeRamp::Pairs => serde_json::json!({
            "rope_type": "yarn",
            "factor": rope.factor,
            "beta_fast": rope.beta_fast,
            "beta_slow": rope.beta_slow,
            "original_max_position_embeddings": rope.original_context,
            "truncate": rope.truncate,
        }),
        RopeRamp::Rotations => serde_json::json!({
            "rope_type": "llama3",
            "factor": rope.factor,
            "high_freq_factor": rope.beta_fast,
            "low_freq_factor": rope.beta_slow,
            "original_max_position_embeddings": rope.original_context,
        }),
    };
    if rope.ramp == RopeRamp::Pairs && rope.attention_factor != RopeConfig::default_attention_factor(rope.factor) {
        object["attention_factor"] = rope.attention_factor.into();
    }
    object
}

const THETA: std::ops::RangeInclusive<f64> = 2.0..=1e12;
const FACTOR: std::ops::RangeInclusive<f64> = 1.0..=1e6;
const BETA: std::ops::RangeInclusive<f64> = 1e-6..=1e6;
const MSCALE: std::ops::RangeInclusive<f64> = 1e-6..=1e3;

fn nested_rope(f: &mut Fields<'_>, outer_theta: Option<f64>, context: usize, rules: &RopeRules) -> RopeConfig {
    if f.has("full_attention") || f.has("sliding_attention") {
        f.problem_found(
            "full_attention",
            "parameters per layer type".to_owned(),
            "one set for all layers",
            "use a published checkpoint; per-layer rope is not supported",
        );
        return placeholder();
    }
    let inner_theta = f.has("rope_theta").then(|| f.number("rope_theta", THETA, None));
    let theta = match (inner_theta, outer_theta) {
        (Some(inner), Some(outer)) if inner != outer => {
            f.problem("rope_theta", &format!("{outer}, the top-level rope_theta"), "delete the one that is wrong");
            inner
        }
        (Some(theta), _) | (None, Some(theta)) => theta,
        (None, None) => f.number("rope_theta", THETA, rules.theta),
    };
    if f.has("partial_rotary_factor") && f.number("partial_rotary_factor", 0.0..=1.0, None) != 1.0 {
        f.problem("partial_rotary_factor", "1", "use a published checkpoint; partial rotation is not supported");
    }
    // `type` is what transformers called the field before version 4.43.
    let key = if f.has("rope_type") { "rope_type" } else { "type" };
    let found = f.text(key);
    match found.filter(|t| rules.types.contains(t)) {
        Some("yarn") => yarn(f, theta, context),
        Some("llama3") => llama3(f, theta),
        Some(_) => plain(theta, context),
        None => {
            if found.is_some() || !f.has(key) {
                let types: Vec<String> = rules.types.iter().map(|t| format!("\"{t}\"")).collect();
                f.problem(
                    key,
                    &types.join(" or "),
                    "use a published checkpoint; other rope types are not supported for this model",
                );
            }
            placeholder()
        }
    }
}

fn plain(theta: f64, context: usize) -> RopeConfig {
    RopeConfig { theta, original_context: context, ..placeholder() }
}

fn llama3(f: &mut Fields<'_>, theta: f64) -> RopeConfig {
    let beta_fast = f.number("high_freq_factor", BETA, None);
    let beta_slow = f.number("low_freq_factor", BETA, None);
    if beta_fast <= beta_slow {
        let expected = format!("more than low_freq_factor, {beta_slow}");
        f.problem("high_freq_factor", &expected, "take the value from the published config.json");
    }
    RopeConfig {
        theta,
        factor: f.number("factor", FACTOR, None),
        beta_fast,
        beta_slow,
        original_context: f.size("original_max_position_embeddings", MAX_CONTEXT),
        ramp: RopeRamp::Rotations,
        ..placeholder()
    }
}

fn yarn(f: &mut Fields<'_>, theta: f64, context: usize) -> RopeConfig {
    let factor = f.number("factor", FACTOR, None);
    let beta_fast = f.number("beta_fast", BETA, Some(32.0));
    let beta_slow = f.number("beta_slow", BETA, Some(1.0));
    check_betas(f, "beta_fast", beta_fast, beta_slow);
    let original_context = f.size("original_max_position_embeddings", MAX_CONTEXT);
    if original_context != 0 && context as f64 > original_context as f64 * factor {
        let message = format!(
            "{original_context} x factor {factor} is below max_position_embeddings {context}; late positions are untrained"
        );
        f.warn("original_max_position_embeddings", &message);
    }
    let truncate = f.flag("truncate", true);
    if !f.has("truncate") {
        f.warn("truncate", "absent, read as true like transformers does; the published models have false");
    }
    let attention_factor = if f.has("attention_factor") {
        f.number("attention_factor", MSCALE, None)
    } else if f.has("mscale") && f.has("mscale_all_dim") {
        mscale(factor, f.number("mscale", MSCALE, None)) / mscale(factor, f.number("mscale_all_dim", MSCALE, None))
    } else {
        RopeConfig::default_attention_factor(factor)
    };
    let ramp = RopeRamp::Pairs;
    RopeConfig { theta, factor, beta_fast, beta_slow, original_context, ramp, truncate, attention_factor }
}

fn check_betas(f: &mut Fields<'_>, key: &str, fast: f64, slow: f64) {
    if fast <= slow {
        f.problem(
            key,
            &format!("more than beta_slow (rope_ntk_alpha), {slow}"),
            "take the value from the published config.json",
        );
    }
}

fn mscale(factor: f64, m: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 }
}

fn placeholder() -> RopeConfig {
    RopeConfig {
        theta: 10_000.0,
        factor: 1.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        original_context: 0,
        ramp: RopeRamp::Pairs,
        truncate: false,
        attention_factor: 1.0,
    }
}
