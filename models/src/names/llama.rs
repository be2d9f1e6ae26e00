//! Llama: names in Hugging Face checkpoints.

use super::WeightRole::{Embedding, Head, Norm, Projection, TiedEmbedding};
use super::{StoredDType, WeightFormat, WeightRole, WeightSpec, prefixed, stored};
use crate::config::LlamaConfig;

/// Every weight of the model: the embedding, the layers in order, the last norm, and the head unless it is the embedding.
pub fn weights(c: &LlamaConfig) -> Vec<WeightSpec> {
    let embedding = if c.tied { TiedEmbedding } else { Embedding };
    let (h, m, q, kv) = (c.hidden, c.intermediate, c.q_width(), c.kv_width());
    let layer: [(&str, WeightRole, &str, Vec<usize>); 9] = [
        ("attn_norm.w", Norm, "input_layernorm.weight", vec![h]),
        ("attn.q.w", Projection, "self_attn.q_proj.weight", vec![q, h]),
        ("attn.k.w", Projection, "self_attn.k_proj.weight", vec![kv, h]),
        ("attn.v.w", Projection, "self_attn.v_proj.weight", vec![kv, h]),
        ("attn.o.w", Projection, "self_attn.o_proj.weight", vec![h, q]),
        ("mlp_norm.w", Norm, "post_attention_layernorm.weight", vec![h]),
        ("mlp.gate.w", Projection, "mlp.gate_proj.weight", vec![m, h]),
        ("mlp.up.w", Projection, "mlp.up_proj.weight", vec![m, h]),
        ("mlp.down.w", Projection, "mlp.down_proj.weight", vec![h, m]),
    ];
    let mut weights = vec![weight("embed.w", embedding, "model.embed_tokens.weight", &[c.vocab, h], None)];
    for i in 0..c.layers {
        weights.extend(layer.iter().map(|(name, role, stored, shape)| weight(name, *role, stored, shape, Some(i))));
    }
    weights.push(weight("norm.w", Norm, "model.norm.weight", &[h], None));
    if !c.tied {
        weights.push(weight("head.w", Head, "lm_head.weight", &[c.vocab, h], None));
    }
    weights
}

fn weight(name: &str, role: WeightRole, tensor: &str, shape: &[usize], layer: Option<usize>) -> WeightSpec {
    let format = WeightFormat::Dense(StoredDType::BF16);
    let hugging_face = stored(shape, format, &prefixed("model.layers.", layer, tensor), '_', 0..shape[0], shape[0]);
    let name = prefixed("l", layer, name);
    WeightSpec { name, shape: shape.to_vec(), format, role, hugging_face, original: vec![] }
}

#[cfg(test)]
mod tests {
    use super::super::{Layout, active_parameters, checkpoint_tensors};
    use super::*;
    use crate::config::ModelConfig;

    /// Llama 3.2 1B, as published.
    fn config(tied: bool) -> LlamaConfig {
        let text = format!(
            r#"{{"model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
                "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "max_position_embeddings": 131072,
                "tie_word_embeddings": {tied}}}"#
        );
        match ModelConfig::parse(&text, "config.json").unwrap().config {
            ModelConfig::Llama(c) => c,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn totals_equal_the_published_checkpoint() {
        let weights = weights(&config(true));
        let tensors = checkpoint_tensors(&weights, Layout::HuggingFace);
        assert_eq!((weights.len(), tensors.len()), (146, 146));
        assert_eq!(weights.iter().map(WeightSpec::elements).sum::<u64>(), 1_235_814_400);
        assert_eq!(tensors.iter().map(|t| t.bytes()).sum::<u64>(), 2_471_628_800);
        // The table is read whole by the head.
        assert_eq!(active_parameters(&weights, 0), 1_235_814_400);
        assert_eq!(checkpoint_tensors(&weights, Layout::Original), []);
    }

    #[test]
    fn a_head_of_its_own_comes_last() {
        let (tied, own) = (weights(&config(true)), weights(&config(false)));
        assert_eq!(own.len(), tied.len() + 1);
        let head = own.last().unwrap();
        assert_eq!((head.name.as_str(), head.role), ("head.w", Head));
        assert_eq!(head.stored(Layout::HuggingFace)[0].tensor, "lm_head.weight");
        assert_eq!((tied[0].role, own[0].role), (TiedEmbedding, Embedding));
        assert_eq!(active_parameters(&own, 0), active_parameters(&tied, 0));
    }

    #[test]
    fn names_are_those_of_transformers() {
        let weights = weights(&config(true));
        let names: Vec<String> =
            weights[10..19].iter().map(|w| w.stored(Layout::HuggingFace)[0].tensor.clone()).collect();
        assert_eq!(
            names,
            [
                "input_layernorm",
                "self_attn.q_proj",
                "self_attn.k_proj",
                "self_attn.v_proj",
                "self_attn.o_proj",
                "post_attention_layernorm",
                "mlp.gate_proj",
                "mlp.up_proj",
                "mlp.down_proj"
            ]
            .map(|n| format!("model.layers.1.{n}.weight"))
        );
        assert_eq!(weights[17].name, "l1.mlp.up.w");
    }
}
