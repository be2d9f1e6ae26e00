//! GPT-OSS: what the maths says, op by op. Fusion is the compiler's business.
//!
//! Precision: the residual stream and every chain between two `cast`s are f32; operands of projections, keys, values and attention are bf16.

use gossamer_ir::DType::{BF16, F32, Mxfp4};

use crate::config::{AttentionKind, GptOssConfig};
use crate::decoder::{self, Decoder, LayerInputs, LayerKind, LayerResults, norm};
use crate::dsl::{Built, FuncBuilder, T, dims};
use crate::names;
use crate::step::{Program, StepOptions};

/// Builds the module of a GPT-OSS model.
///
/// # Errors
/// An op that refuses its operands, with the line that made it; a parsed configuration gives none.
///
/// ```
/// use gossamer_models::{gpt_oss, presets, step::{Head, StepOptions}};
/// let options = StepOptions { head: Head::Greedy, max_tokens: 64, max_seqs: 8, context: 4096, page: 64 };
/// let program = gpt_oss::build(&presets::gpt_oss_20b(), &options).unwrap();
/// let names: Vec<_> = program.module.funcs.iter().map(|f| f.name.to_string()).collect();
/// assert_eq!(names, ["layer_window", "layer_full", "step"]);
/// ```
pub fn build(c: &GptOssConfig, o: &StepOptions) -> Built<Program> {
    let kinds: Vec<AttentionKind> =
        [AttentionKind::Sliding, AttentionKind::Full].into_iter().filter(|k| c.layers_of(*k) > 0).collect();
    let kind = |k: &AttentionKind| match k {
        AttentionKind::Sliding => LayerKind { function: "layer_window", cache: "window", window: c.sliding_window },
        AttentionKind::Full => LayerKind { function: "layer_full", cache: "full", window: 0 },
    };
    let decoder = Decoder {
        vocab: c.vocab,
        hidden: c.hidden,
        head_dim: c.head_dim,
        kv_heads: c.kv_heads,
        rms_eps: c.rms_eps,
        rope: c.rope.clone(),
        tied: false,
        kinds: kinds.iter().map(kind).collect(),
        layers: c.layer_types.iter().map(|k| kinds.iter().position(|other| other == k).unwrap_or(0)).collect(),
    };
    decoder::build(&decoder, &names::gpt_oss::weights(c), o, |f, kind, inputs| layer(f, c, kind, inputs))
}

/// One decoder layer: `x = x + attention(norm(x))`, then `x = x + experts(norm(x))`.
fn layer(f: &mut FuncBuilder, c: &GptOssConfig, kind: &LayerKind, inputs: &LayerInputs) -> Built<LayerResults> {
    let (h, i, e, q_width, kv_width) = (c.hidden, c.intermediate, c.experts, c.q_width(), c.kv_width());
    let LayerInputs { x, pos, seq, pages, table, kv } = *inputs;

    let n = norm(f, x, "attn_norm.w", h, c.rms_eps)?;
    let q = projection(f, n, "attn.q", q_width, h)?;
    let k = projection(f, n, "attn.k", kv_width, h)?;
    let v = projection(f, n, "attn.v", kv_width, h)?;
    let q = f.rope(q, pos, table)?;
    let k = f.rope(k, pos, table)?;
    let (q, k, v) = (f.cast(q, BF16)?, f.cast(k, BF16)?, f.cast(v, BF16)?);
    let kv = f.kv_write(kv, k, v, pos, seq, pages)?;
    let sinks = f.weight("attn.sinks", BF16, &dims![c.heads]);
    let a = f.attention(&[q, kv, pos, seq, pages, sinks], (c.head_dim as f64).powf(-0.5), kind.window)?;
    let o = projection(f, a, "attn.o", h, q_width)?;
    let x = f.add(x, o)?;

    let n = norm(f, x, "mlp_norm.w", h, c.rms_eps)?;
    let router = projection(f, n, "mlp.router", e, h)?;
    let (best, ids) = f.topk(router, c.experts_per_token)?;
    let weights = f.softmax(best)?;
    let gate_up = experts(f, n, ids, "mlp.gate_up", &[e, 2 * i, h])?;
    let act = f.swiglu(gate_up, c.swiglu_alpha, c.swiglu_limit)?;
    let act = f.cast(act, BF16)?;
    let down = experts(f, act, ids, "mlp.down", &[e, h, i])?;
    // A prompt's rows pass through memory before they are added: rounded, as the reference kernels do, they are half as many bytes. The sum is f32.
    let down = f.cast(down, BF16)?;
    let down = f.cast(down, F32)?;
    let y = f.moe_combine(down, weights)?;
    let x = f.add(x, y)?;
    Ok(LayerResults { x, kv, routing: Some(ids) })
}

/// `x w^T + b` with weights `{name}.w` and `{name}.b`, in f32.
fn projection(f: &mut FuncBuilder, x: T, name: &str, n: usize, k: usize) -> Built {
    let w = f.weight(&format!("{name}.w"), BF16, &dims![n, k]);
    let b = f.weight(&format!("{name}.b"), BF16, &dims![n]);
    f.linear(x, w, b)
}

/// The chosen experts' `x w^T + b`, f32 [T, k, N], from MXFP4 weights [E, N, K].
fn experts(f: &mut FuncBuilder, x: T, ids: T, name: &str, shape: &[usize; 3]) -> Built {
    let w = f.weight(&format!("{name}.w"), Mxfp4, &shape.map(Into::into));
    let b = f.weight(&format!("{name}.b"), BF16, &dims![shape[0], shape[1]]);
    let w = f.dequant(w)?;
    let y = f.moe_matmul(x, w, ids)?;
    let b = f.gather_rows(b, ids)?;
    f.add(y, b)
}
