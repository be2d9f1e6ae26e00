//! GPT-OSS: what the maths says, op by op. Fusion is the compiler's business.
//!
//! Precision: the residual stream and every chain between two `cast`s are f32; operands of projections, keys, values and attention are bf16.

use gossamer_ir::DType::{BF16, F32, Mxfp4};
use gossamer_ir::{Attr, Attrs, OpKind, StateDecl};

use crate::config::{AttentionKind, GptOssConfig};
use crate::dsl::{Built, FuncBuilder, ModelBuilder, T, dims};
use crate::names::{self, Layout, Part};
use crate::step::{ENTRY, Head, Output, Program, StepInputs, StepOptions, counts, declare_symbols, sampling_head};

/// Builds the module of a GPT-OSS model.
///
/// # Errors
/// An op that refuses its operands, with the line of this file; a parsed configuration gives none.
///
/// ```
/// use gossamer_models::{gpt_oss, presets, step::{Head, StepOptions}};
/// let options = StepOptions { head: Head::Greedy, max_tokens: 64, max_seqs: 8, context: 4096, page: 64 };
/// let program = gpt_oss::build(&presets::gpt_oss_20b(), &options).unwrap();
/// let names: Vec<_> = program.module.funcs.iter().map(|f| f.name.to_string()).collect();
/// assert_eq!(names, ["layer_window", "layer_full", "step"]);
/// ```
pub fn build(c: &GptOssConfig, o: &StepOptions) -> Built<Program> {
    let mut m = ModelBuilder::new(checkpoint_keys(c));
    declare_symbols(&mut m, o);
    let kinds: Vec<AttentionKind> =
        [AttentionKind::Sliding, AttentionKind::Full].into_iter().filter(|k| c.layers_of(*k) > 0).collect();
    let kv: Vec<StateDecl> = kinds.iter().map(|k| kv_state(c, *k, o.page)).collect();
    kv.iter().cloned().for_each(|d| m.state(d));
    if o.head == Head::Full {
        m.state(counts(c.vocab));
    }
    for (kind, kv) in kinds.iter().zip(&kv) {
        layer(&mut m, c, *kind, kv)?;
    }

    let mut f = m.func(ENTRY);
    let step = StepInputs::declare(&mut f, &kv);
    let mut states = Vec::new();
    for (i, kind) in c.layer_types.iter().enumerate() {
        let group = kinds.iter().position(|k| k == kind).unwrap_or(0);
        states.push((f.state_input(&format!("kv.{i}"), &kv[group]), group));
    }
    let seen = (o.head == Head::Full).then(|| f.state_input("seen", &counts(c.vocab)));

    let table = rope_table(&mut f, c)?;
    let embed = f.module_weight("embed.w", BF16, &dims![c.vocab, c.hidden])?;
    let x = f.gather_rows(embed, step.tokens)?;
    let mut x = f.cast(x, F32)?;
    let mut outputs = Vec::new();
    let (mut hidden, mut routing) = (vec![(x, Output::Hidden(0))], Vec::new());
    for (i, kind) in c.layer_types.iter().enumerate() {
        let (kv, group) = states[i];
        let args = [x, step.pos, step.seq, step.pages[group], table, kv];
        let results = f.layer(layer_name(*kind), &args, &format!("l{i}"))?;
        x = results[0];
        hidden.push((x, Output::Hidden(i + 1)));
        routing.push((results[2], Output::Routing(i)));
        outputs.push((results[1], Output::State(i)));
    }
    let norm = f.module_weight("norm.w", BF16, &dims![c.hidden])?;
    let head = f.module_weight("head.w", BF16, &dims![c.vocab, c.hidden])?;
    if o.head == (Head::Logits { hidden: true }) {
        let last = hidden.len() - 1;
        hidden[last].0 = f.rms_norm(x, norm, c.rms_eps)?;
        hidden.extend(routing);
    } else {
        hidden.clear();
    }
    let rows = f.gather_rows(x, step.rows)?;
    let y = f.rms_norm(rows, norm, c.rms_eps)?;
    let y = f.cast(y, BF16)?;
    let logits = f.matmul(y, head)?;
    f.name(logits, "logits");
    let (mut results, seen) = sampling_head(&mut f, o.head, logits, c.vocab, &step, seen)?;
    results.extend(hidden);
    results.extend(outputs);
    results.extend(seen.map(|s| (s, Output::State(c.layers))));
    let (values, outputs): (Vec<T>, Vec<Output>) = results.into_iter().unzip();
    f.finish(&values);
    Ok(Program { module: m.finish(), outputs, options: *o })
}

/// One decoder layer: `x = x + attention(norm(x))`, then `x = x + experts(norm(x))`. Returns x, the KV state and the chosen experts.
fn layer(m: &mut ModelBuilder, c: &GptOssConfig, kind: AttentionKind, kv: &StateDecl) -> Built<()> {
    let (h, i, e, q_width, kv_width) = (c.hidden, c.intermediate, c.experts, c.q_width(), c.kv_width());
    let mut f = m.func(layer_name(kind));
    let x = f.input("x", F32, &dims!["T", h]);
    let pos = f.input("pos", gossamer_ir::DType::I32, &dims!["T"]);
    let seq = f.input("seq", gossamer_ir::DType::I32, &dims!["T"]);
    let pages = f.input("pages", gossamer_ir::DType::I32, &dims!["S", "P"]);
    let table = f.table_input("rope", F32, &dims!["C", c.head_dim]);
    let kv = f.state_input("kv", kv);

    let w = f.weight("attn_norm.w", BF16, &dims![h]);
    let n = f.rms_norm(x, w, c.rms_eps)?;
    let n = f.cast(n, BF16)?;
    let q = projection(&mut f, n, "attn.q", q_width, h)?;
    let k = projection(&mut f, n, "attn.k", kv_width, h)?;
    let v = projection(&mut f, n, "attn.v", kv_width, h)?;
    let q = f.rope(q, pos, table)?;
    let k = f.rope(k, pos, table)?;
    let (q, k, v) = (f.cast(q, BF16)?, f.cast(k, BF16)?, f.cast(v, BF16)?);
    let kv = f.kv_write(kv, k, v, pos, seq, pages)?;
    let sinks = f.weight("attn.sinks", BF16, &dims![c.heads]);
    let window = if kind == AttentionKind::Sliding { c.sliding_window } else { 0 };
    let a = f.attention(&[q, kv, pos, seq, pages, sinks], (c.head_dim as f64).powf(-0.5), window)?;
    let o = projection(&mut f, a, "attn.o", h, q_width)?;
    let x = f.add(x, o)?;

    let w = f.weight("mlp_norm.w", BF16, &dims![h]);
    let n = f.rms_norm(x, w, c.rms_eps)?;
    let n = f.cast(n, BF16)?;
    let router = projection(&mut f, n, "mlp.router", e, h)?;
    let (best, ids) = f.topk(router, c.experts_per_token)?;
    let weights = f.softmax(best)?;
    let gate_up = experts(&mut f, n, ids, "mlp.gate_up", &[e, 2 * i, h])?;
    let act = f.swiglu(gate_up, c.swiglu_alpha, c.swiglu_limit)?;
    let act = f.cast(act, BF16)?;
    let down = experts(&mut f, act, ids, "mlp.down", &[e, h, i])?;
    let y = f.moe_combine(down, weights)?;
    let x = f.add(x, y)?;
    f.finish(&[x, kv, ids]);
    Ok(())
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

fn rope_table(f: &mut FuncBuilder, c: &GptOssConfig) -> Built {
    let r = &c.rope;
    let attrs = Attrs::from([
        ("beta_fast", Attr::Float(r.beta_fast)),
        ("beta_slow", Attr::Float(r.beta_slow)),
        ("dim", Attr::Int(c.head_dim as i64)),
        ("dims", Attr::Dims(dims!["C"].to_vec())),
        ("factor", Attr::Float(r.factor)),
        ("original", Attr::Int(r.original_context as i64)),
        ("scale", Attr::Float(r.attention_factor)),
        ("theta", Attr::Float(r.theta)),
        ("truncate", Attr::Bool(r.truncate)),
    ]);
    Ok(f.op(OpKind::RopeTable, &[], attrs)?[0])
}

fn layer_name(kind: AttentionKind) -> &'static str {
    match kind {
        AttentionKind::Sliding => "layer_window",
        AttentionKind::Full => "layer_full",
    }
}

fn kv_state(c: &GptOssConfig, kind: AttentionKind, page: usize) -> StateDecl {
    let (name, window) = match kind {
        AttentionKind::Sliding => ("window", Some(c.sliding_window as i64)),
        AttentionKind::Full => ("full", None),
    };
    let (heads, head_dim, page) = (c.kv_heads as i64, c.head_dim as i64, page as i64);
    StateDecl::Kv { name: name.into(), heads, head_dim, page, window, dtype: BF16 }
}

/// Names in Hugging Face checkpoints; an MXFP4 weight's is the stem of its two tensors.
fn checkpoint_keys(c: &GptOssConfig) -> impl Fn(&str) -> String + 'static {
    let keys: std::collections::BTreeMap<String, String> = names::weights(c)
        .iter()
        .map(|w| {
            let part = w.stored(Layout::HuggingFace).iter().find(|p| p.part != Part::Scales);
            let key = part.map(|p| p.tensor.trim_end_matches("_blocks").to_string()).unwrap_or_default();
            (w.name.clone(), key)
        })
        .collect();
    move |name| keys.get(name).cloned().unwrap_or_else(|| name.to_string())
}
