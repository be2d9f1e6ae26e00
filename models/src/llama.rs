//! Llama: a dense decoder without biases, sinks or windows. What the maths says, op by op; fusion is the compiler's business.
//!
//! Precision: the residual stream and every chain between two `cast`s are f32; operands of projections, keys, values and attention are bf16.

use gossamer_ir::DType::BF16;

use crate::config::LlamaConfig;
use crate::decoder::{self, Decoder, LayerInputs, LayerKind, LayerResults, norm};
use crate::dsl::{Built, FuncBuilder, T, dims};
use crate::names;
use crate::step::{Program, StepOptions};

/// Builds the module of a Llama model.
///
/// # Errors
/// An op that refuses its operands, with the line that made it; a parsed configuration gives none.
///
/// ```
/// use gossamer_models::{config::ModelConfig, step::{Head, StepOptions}};
/// let text = r#"{"model_type": "llama", "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 3, "num_attention_heads": 4,
///     "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 300, "max_position_embeddings": 256, "tie_word_embeddings": true}"#;
/// let config = ModelConfig::parse(text, "config.json").unwrap().config;
/// let options = StepOptions { head: Head::Greedy, max_tokens: 64, max_seqs: 8, context: 256, page: 64 };
/// let module = gossamer_models::build(&config, &options).unwrap().module;
/// let names: Vec<_> = module.funcs.iter().map(|f| f.name.to_string()).collect();
/// assert_eq!(names, ["layer", "step"]);
/// assert_eq!(module.weights.len(), 3 * 9 + 2);
/// ```
pub fn build(c: &LlamaConfig, o: &StepOptions) -> Built<Program> {
    let decoder = Decoder {
        vocab: c.vocab,
        hidden: c.hidden,
        head_dim: c.head_dim,
        kv_heads: c.kv_heads,
        rms_eps: c.rms_eps,
        rope: c.rope.clone(),
        tied: c.tied,
        kinds: vec![LayerKind { function: "layer", cache: "full", window: 0 }],
        layers: vec![0; c.layers],
    };
    decoder::build(&decoder, &names::llama::weights(c), o, |f, _, inputs| layer(f, c, inputs))
}

/// One decoder layer: `x = x + attention(norm(x))`, then `x = x + mlp(norm(x))`.
fn layer(f: &mut FuncBuilder, c: &LlamaConfig, inputs: &LayerInputs) -> Built<LayerResults> {
    let (h, i, q_width, kv_width) = (c.hidden, c.intermediate, c.q_width(), c.kv_width());
    let LayerInputs { x, pos, seq, pages, table, kv } = *inputs;

    let n = norm(f, x, "attn_norm.w", h, c.rms_eps)?;
    let q = projection(f, n, "attn.q.w", q_width, h)?;
    let k = projection(f, n, "attn.k.w", kv_width, h)?;
    let v = projection(f, n, "attn.v.w", kv_width, h)?;
    let q = f.rope(q, pos, table)?;
    let k = f.rope(k, pos, table)?;
    let (q, k, v) = (f.cast(q, BF16)?, f.cast(k, BF16)?, f.cast(v, BF16)?);
    let kv = f.kv_write(kv, k, v, pos, seq, pages)?;
    let a = f.attention(&[q, kv, pos, seq, pages], (c.head_dim as f64).powf(-0.5), 0)?;
    let o = projection(f, a, "attn.o.w", h, q_width)?;
    let x = f.add(x, o)?;

    let n = norm(f, x, "mlp_norm.w", h, c.rms_eps)?;
    let gate = projection(f, n, "mlp.gate.w", i, h)?;
    let up = projection(f, n, "mlp.up.w", i, h)?;
    let act = f.silu(gate)?;
    let act = f.mul(act, up)?;
    let act = f.cast(act, BF16)?;
    let y = projection(f, act, "mlp.down.w", h, i)?;
    let x = f.add(x, y)?;
    Ok(LayerResults { x, kv, routing: None })
}

/// `x w^T` with the weight `name` [N, K], in f32.
fn projection(f: &mut FuncBuilder, x: T, name: &str, n: usize, k: usize) -> Built {
    let w = f.weight(name, BF16, &dims![n, k]);
    f.matmul(x, w)
}
