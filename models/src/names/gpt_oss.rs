//! GPT-OSS: names and storage in both releases.

use super::WeightRole::{Bias, Embedding, Expert, ExpertBias, Head, Norm, Projection, Router, Sinks};
use super::{StoredDType, WeightFormat, WeightRole, WeightSpec, prefixed, stored};
use crate::config::GptOssConfig;

/// Every weight of the model: the embedding, the layers in order, the last norm, the head.
///
/// ```
/// use gossamer_models::{names, presets};
/// let weights = names::gpt_oss::weights(&presets::gpt_oss_20b());
/// assert_eq!(weights[1].name, "l0.attn_norm.w");
/// assert_eq!(weights.iter().map(|w| w.elements()).sum::<u64>(), 20_914_757_184);
/// ```
pub fn weights(config: &GptOssConfig) -> Vec<WeightSpec> {
    let mut weights = vec![weight(config, &EMBEDDING, None)];
    for layer in 0..config.layers {
        weights.extend(LAYER.iter().map(|row| weight(config, row, Some(layer))));
    }
    weights.extend([weight(config, &NORM, None), weight(config, &HEAD, None)]);
    weights
}

/// One line of the table. Names are without the prefix of the layer.
struct Row {
    name: &'static str,
    role: WeightRole,
    shape: fn(&GptOssConfig) -> Vec<usize>,
    hugging_face: &'static str,
    original: &'static str,
    /// Which rows of the original tensor; the whole tensor for most.
    slice: Slice,
}

#[derive(Clone, Copy)]
enum Slice {
    Whole,
    Query,
    Key,
    Value,
}

const fn row(
    name: &'static str,
    role: WeightRole,
    shape: fn(&GptOssConfig) -> Vec<usize>,
    hugging_face: &'static str,
    original: &'static str,
) -> Row {
    Row { name, role, shape, hugging_face, original, slice: Slice::Whole }
}

const fn sliced(mut row: Row, slice: Slice) -> Row {
    row.slice = slice;
    row
}

const EMBEDDING: Row =
    row("embed.w", Embedding, |c| vec![c.vocab, c.hidden], "model.embed_tokens.weight", "embedding.weight");
const NORM: Row = row("norm.w", Norm, |c| vec![c.hidden], "model.norm.weight", "norm.scale");
const HEAD: Row = row("head.w", Head, |c| vec![c.vocab, c.hidden], "lm_head.weight", "unembedding.weight");

#[rustfmt::skip]
const LAYER: [Row; 17] = [
    row("attn_norm.w", Norm, |c| vec![c.hidden], "input_layernorm.weight", "attn.norm.scale"),
    sliced(row("attn.q.w", Projection, |c| vec![c.q_width(), c.hidden], "self_attn.q_proj.weight", "attn.qkv.weight"), Slice::Query),
    sliced(row("attn.q.b", Bias, |c| vec![c.q_width()], "self_attn.q_proj.bias", "attn.qkv.bias"), Slice::Query),
    sliced(row("attn.k.w", Projection, |c| vec![c.kv_width(), c.hidden], "self_attn.k_proj.weight", "attn.qkv.weight"), Slice::Key),
    sliced(row("attn.k.b", Bias, |c| vec![c.kv_width()], "self_attn.k_proj.bias", "attn.qkv.bias"), Slice::Key),
    sliced(row("attn.v.w", Projection, |c| vec![c.kv_width(), c.hidden], "self_attn.v_proj.weight", "attn.qkv.weight"), Slice::Value),
    sliced(row("attn.v.b", Bias, |c| vec![c.kv_width()], "self_attn.v_proj.bias", "attn.qkv.bias"), Slice::Value),
    row("attn.sinks", Sinks, |c| vec![c.heads], "self_attn.sinks", "attn.sinks"),
    row("attn.o.w", Projection, |c| vec![c.hidden, c.q_width()], "self_attn.o_proj.weight", "attn.out.weight"),
    row("attn.o.b", Bias, |c| vec![c.hidden], "self_attn.o_proj.bias", "attn.out.bias"),
    row("mlp_norm.w", Norm, |c| vec![c.hidden], "post_attention_layernorm.weight", "mlp.norm.scale"),
    row("mlp.router.w", Router, |c| vec![c.experts, c.hidden], "mlp.router.weight", "mlp.gate.weight"),
    row("mlp.router.b", Bias, |c| vec![c.experts], "mlp.router.bias", "mlp.gate.bias"),
    // Rows alternate: 2j is gate channel j, 2j+1 is up channel j. The bias alternates the same way.
    row("mlp.gate_up.w", Expert, |c| vec![c.experts, 2 * c.intermediate, c.hidden], "mlp.experts.gate_up_proj", "mlp.mlp1_weight"),
    row("mlp.gate_up.b", ExpertBias, |c| vec![c.experts, 2 * c.intermediate], "mlp.experts.gate_up_proj_bias", "mlp.mlp1_bias"),
    row("mlp.down.w", Expert, |c| vec![c.experts, c.hidden, c.intermediate], "mlp.experts.down_proj", "mlp.mlp2_weight"),
    row("mlp.down.b", ExpertBias, |c| vec![c.experts, c.hidden], "mlp.experts.down_proj_bias", "mlp.mlp2_bias"),
];

fn weight(config: &GptOssConfig, row: &Row, layer: Option<usize>) -> WeightSpec {
    let shape = (row.shape)(config);
    let format = if row.role == Expert { WeightFormat::Mxfp4 } else { WeightFormat::Dense(StoredDType::BF16) };
    let hugging_face =
        stored(&shape, format, &prefixed("model.layers.", layer, row.hugging_face), '_', 0..shape[0], shape[0]);
    let (q, kv) = (config.q_width(), config.kv_width());
    let (rows, total) = match row.slice {
        Slice::Whole => (0..shape[0], shape[0]),
        Slice::Query => (0..q, q + 2 * kv),
        Slice::Key => (q..q + kv, q + 2 * kv),
        Slice::Value => (q + kv..q + 2 * kv, q + 2 * kv),
    };
    let original = stored(&shape, format, &prefixed("block.", layer, row.original), '.', rows, total);
    WeightSpec { name: prefixed("l", layer, row.name), shape, format, role: row.role, hugging_face, original }
}
