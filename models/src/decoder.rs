//! The frame of a decoder-only model: everything of `@step` around the layers, and what every layer function receives.
//!
//! A model describes itself with a [`Decoder`] and writes one layer; [`build`] makes a function of each kind of layer and `@step`, which calls
//! them in order. Must not know what is inside a layer.

use std::collections::BTreeMap;

use gossamer_ir::DType::{BF16, F32, I32};
use gossamer_ir::{Attr, Attrs, OpKind, StateDecl};

use crate::config::RopeConfig;
use crate::dsl::{Built, FuncBuilder, ModelBuilder, T, dims};
use crate::names::{Layout, Part, WeightSpec};
use crate::step::{ENTRY, Head, Output, Program, StepInputs, StepOptions, counts, declare_symbols, sampling_head};

/// A decoder-only model but for the inside of its layers. Sizes are counts of elements.
#[derive(Clone, Debug)]
pub struct Decoder {
    /// Rows of the embedding and of the head.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Added to the mean square before the root in the last norm.
    pub rms_eps: f64,
    /// Rotary positions.
    pub rope: RopeConfig,
    /// Whether the head is the embedding instead of a weight of its own.
    pub tied: bool,
    /// The kinds of layer there are.
    pub kinds: Vec<LayerKind>,
    /// The kind of each layer, as an index into `kinds`.
    pub layers: Vec<usize>,
}

/// A kind of layer: it has a function and a KV cache declaration of its own.
#[derive(Clone, Debug)]
pub struct LayerKind {
    /// Name of the function.
    pub function: &'static str,
    /// Name of the KV declaration.
    pub cache: &'static str,
    /// Keys that a query sees, its own among them; 0: all.
    pub window: usize,
}

/// What a layer function receives besides its weights.
#[derive(Clone, Copy, Debug)]
pub struct LayerInputs {
    /// f32 [T, hidden]: the residual stream.
    pub x: T,
    /// i32 [T]: position of each token in its sequence.
    pub pos: T,
    /// i32 [T]: sequence of each token, -1 for padding.
    pub seq: T,
    /// i32 [S, P]: page table.
    pub pages: T,
    /// f32 [C, head_dim]: rotary angles.
    pub table: T,
    /// The KV state.
    pub kv: T,
}

/// What a layer gives back.
#[derive(Clone, Copy, Debug)]
pub struct LayerResults {
    /// f32 [T, hidden]: the residual stream.
    pub x: T,
    /// The KV state.
    pub kv: T,
    /// i32 [T, k]: the experts chosen, best first, where there are experts.
    pub routing: Option<T>,
}

/// Builds the module of a model: a function for each kind of layer, written by `layer`, and `@step`. `weights` gives the names in checkpoints.
///
/// # Errors
/// An op that refuses its operands, with the line that made it.
pub fn build(
    d: &Decoder,
    weights: &[WeightSpec],
    o: &StepOptions,
    layer: impl Fn(&mut FuncBuilder, &LayerKind, &LayerInputs) -> Built<LayerResults>,
) -> Built<Program> {
    let mut m = ModelBuilder::new(checkpoint_keys(weights));
    declare_symbols(&mut m, o);
    let kv: Vec<StateDecl> = d.kinds.iter().map(|k| kv_state(d, k, o.page)).collect();
    kv.iter().cloned().for_each(|decl| m.state(decl));
    if o.head == Head::Full {
        m.state(counts(d.vocab));
    }
    for (kind, kv) in d.kinds.iter().zip(&kv) {
        let mut f = m.func(kind.function);
        let inputs = LayerInputs::declare(&mut f, d, kv);
        let results = layer(&mut f, kind, &inputs)?;
        let values: Vec<T> = [results.x, results.kv].into_iter().chain(results.routing).collect();
        f.finish(&values);
    }
    step(m, d, &kv, o)
}

/// A norm's result as the operand of projections: bf16 rows of x scaled to a root mean square of 1 and multiplied by the weight `name`.
#[track_caller]
pub fn norm(f: &mut FuncBuilder, x: T, name: &str, width: usize, eps: f64) -> Built {
    let w = f.weight(name, BF16, &dims![width]);
    let y = f.rms_norm(x, w, eps)?;
    f.cast(y, BF16)
}

impl LayerInputs {
    fn declare(f: &mut FuncBuilder, d: &Decoder, kv: &StateDecl) -> LayerInputs {
        LayerInputs {
            x: f.input("x", F32, &dims!["T", d.hidden]),
            pos: f.input("pos", I32, &dims!["T"]),
            seq: f.input("seq", I32, &dims!["T"]),
            pages: f.input("pages", I32, &dims!["S", "P"]),
            table: f.table_input("rope", F32, &dims!["C", d.head_dim]),
            kv: f.state_input("kv", kv),
        }
    }
}

/// `@step`: embedding, layers, the last norm and the head.
fn step(mut m: ModelBuilder, d: &Decoder, kv: &[StateDecl], o: &StepOptions) -> Built<Program> {
    let mut f = m.func(ENTRY);
    let step = StepInputs::declare(&mut f, kv);
    let states: Vec<T> =
        d.layers.iter().enumerate().map(|(i, kind)| f.state_input(&format!("kv.{i}"), &kv[*kind])).collect();
    let seen = (o.head == Head::Full).then(|| f.state_input("seen", &counts(d.vocab)));

    let table = rope_table(&mut f, d)?;
    let embed = f.module_weight("embed.w", BF16, &dims![d.vocab, d.hidden])?;
    let x = f.gather_rows(embed, step.tokens)?;
    let mut x = f.cast(x, F32)?;
    let mut outputs = Vec::new();
    let (mut hidden, mut routing) = (vec![(x, Output::Hidden(0))], Vec::new());
    for (i, kind) in d.layers.iter().enumerate() {
        let args = [x, step.pos, step.seq, step.pages[*kind], table, states[i]];
        let results = f.layer(d.kinds[*kind].function, &args, &format!("l{i}"))?;
        x = results[0];
        hidden.push((x, Output::Hidden(i + 1)));
        routing.extend(results.get(2).map(|ids| (*ids, Output::Routing(i))));
        outputs.push((results[1], Output::State(i)));
    }
    let norm = f.module_weight("norm.w", BF16, &dims![d.hidden])?;
    let head = match d.tied {
        true => embed,
        false => f.module_weight("head.w", BF16, &dims![d.vocab, d.hidden])?,
    };
    if o.head == (Head::Logits { hidden: true }) {
        let last = hidden.len() - 1;
        hidden[last].0 = f.rms_norm(x, norm, d.rms_eps)?;
        hidden.extend(routing);
    } else {
        hidden.clear();
    }
    let rows = f.gather_rows(x, step.rows)?;
    let y = f.rms_norm(rows, norm, d.rms_eps)?;
    let y = f.cast(y, BF16)?;
    let logits = f.matmul(y, head)?;
    f.name(logits, "logits");
    let (mut results, seen) = sampling_head(&mut f, o.head, logits, d.vocab, &step, seen)?;
    results.extend(hidden);
    results.extend(outputs);
    results.extend(seen.map(|s| (s, Output::State(d.layers.len()))));
    let (values, outputs): (Vec<T>, Vec<Output>) = results.into_iter().unzip();
    f.finish(&values);
    Ok(Program { module: m.finish(), outputs, options: *o })
}

fn rope_table(f: &mut FuncBuilder, d: &Decoder) -> Built {
    let r = &d.rope;
    let attrs = Attrs::from([
        ("beta_fast", Attr::Float(r.beta_fast)),
        ("beta_slow", Attr::Float(r.beta_slow)),
        ("dim", Attr::Int(d.head_dim as i64)),
        ("dims", Attr::Dims(dims!["C"].to_vec())),
        ("factor", Attr::Float(r.factor)),
        ("original", Attr::Int(r.original_context as i64)),
        ("ramp", Attr::from(r.ramp.name())),
        ("scale", Attr::Float(r.attention_factor)),
        ("theta", Attr::Float(r.theta)),
        ("truncate", Attr::Bool(r.truncate)),
    ]);
    Ok(f.op(OpKind::RopeTable, &[], attrs)?[0])
}

fn kv_state(d: &Decoder, kind: &LayerKind, page: usize) -> StateDecl {
    let window = (kind.window > 0).then_some(kind.window as i64);
    let (heads, head_dim, page) = (d.kv_heads as i64, d.head_dim as i64, page as i64);
    StateDecl::Kv { name: kind.cache.into(), heads, head_dim, page, window, dtype: BF16 }
}

/// Names in Hugging Face checkpoints; an MXFP4 weight's is the stem of its two tensors.
fn checkpoint_keys(weights: &[WeightSpec]) -> impl Fn(&str) -> String + 'static {
    let keys: BTreeMap<String, String> = weights
        .iter()
        .map(|w| {
            let part = w.stored(Layout::HuggingFace).iter().find(|p| p.part != Part::Scales);
            let key = part.map(|p| p.tensor.trim_end_matches("_blocks").to_string()).unwrap_or_default();
            (w.name.clone(), key)
        })
        .collect();
    move |name| keys.get(name).cloned().unwrap_or_else(|| name.to_string())
}
