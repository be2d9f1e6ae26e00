//! Every rule against the interpreter: random shapes of its own pattern, both sides run, equal bits expected.
//!
//! A rule is a claim that two functions are equal. [`cases`] writes functions that hold the rule's pattern; the e-graph is saturated, every kernel that the rule made is forced into
//! the plan in turn, and the plan must compute the same bits as the source, because regions run the same ops in the same order.

use std::collections::BTreeMap;
use std::sync::Arc;

use gossamer_ir::interp::{Datum, Rounding, StateStore, Tensor, run_func};
use gossamer_ir::{Bindings, DType, Func, Kernel, Module, OpKind, StateDecl, Type, text};

use super::rules::{How, RULES, Rule};
use super::*;

/// A small generator (splitmix64), so that a failure names its seed.
pub struct Rng(pub u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }
}

/// Sizes of a case.
struct Sizes {
    t: usize,
    n: usize,
    k: usize,
    e: usize,
    j: usize,
}

impl Sizes {
    fn random(rng: &mut Rng) -> Sizes {
        Sizes {
            t: 1 + rng.below(5),
            n: 8 * (1 + rng.below(6)),
            k: 32 * (1 + rng.below(2)),
            e: 2 + rng.below(4),
            j: 1 + rng.below(3),
        }
    }
}

const HEAD: &str = "gir 1\nsym T in 1..=64\nsym S in 1..=4\nsym P in 1..=4\nsym C in 1..=64\nkv full {head_dim = 4, heads = 2, page = 4}\n";
const STEP: &str = "%pos: i32[T], %seq: i32[T], %pages: i32[S, P]";

/// A function with `params`, `body` and what it returns.
fn func(params: &str, types: &str, body: &[String], results: &str) -> String {
    let lines: String = body.iter().map(|l| format!("  {l}\n")).collect();
    format!("{HEAD}func @f({params}) -> ({types}) {{\n{lines}  return {results}\n}}\n")
}

/// A scalar op on `%a` of type `ty`: more parameters, the statement, the type it gives.
fn scalar(kind: OpKind, ty: &str, dims: &str) -> (String, String, String) {
    let name = kind.name();
    let other = format!(", %c: {ty}");
    match kind {
        OpKind::Cast => (String::new(), format!("%b = cast %a {{to = bf16}} : bf16{dims}"), format!("bf16{dims}")),
        OpKind::Clamp => (String::new(), format!("%b = clamp %a {{hi = 0.5, lo = -0.25}} : {ty}"), ty.into()),
        OpKind::Cmp => (other, format!("%b = cmp %a, %c {{op = lt}} : bool{dims}"), format!("bool{dims}")),
        OpKind::Select => (format!(", %m: bool{dims}, %c: {ty}"), format!("%b = select %m, %a, %c : {ty}"), ty.into()),
        OpKind::Add | OpKind::Sub | OpKind::Mul | OpKind::Div | OpKind::Max | OpKind::Min => {
            (other, format!("%b = {name} %a, %c : {ty}"), ty.into())
        }
        _ => (String::new(), format!("%b = {name} %a : {ty}"), ty.into()),
    }
}

/// Functions that hold the pattern of `rule` for an op of `kind`.
fn cases(rule: &Rule, kind: OpKind, s: &Sizes) -> Vec<String> {
    let Sizes { n, k, e, j, .. } = *s;
    let (ty, dims) = (format!("f32[T, {n}]"), format!("[T, {n}]"));
    let matmul = |n: usize| format!("%a = matmul %x, %w : f32[T, {n}]");
    let dense = |n: usize| format!("%x: bf16[T, {k}], %w: bf16[{n}, {k}]");
    let moe = format!("%x: bf16[T, {k}], %w: bf16[{e}, {n}, {k}], %ids: i32[T, {j}]");
    let experts = format!("%a = moe_matmul %x, %w, %ids : f32[T, {j}, {n}]");
    let one =
        |params: String, types: String, body: Vec<String>, results: &str| vec![func(&params, &types, &body, results)];
    let after = |params: String, first: String, (more, line, t): (String, String, String)| {
        func(&format!("{params}{more}"), &t, &[first, line], "%b")
    };
    match (rule.info.name, kind) {
        ("seed/stream" | "seed/tile" | "seed/gemm" | "seed/gemm-pieces" | "seed/router" | "seed/cublaslt", _) => {
            one(dense(n), ty, vec![matmul(n)], "%a")
        }
        ("seed/moe-stream" | "seed/moe-tile" | "seed/moe-wide" | "seed/moe-gemm", _) => {
            one(moe, format!("f32[T, {j}, {n}]"), vec![experts], "%a")
        }
        ("seed/attention", _) => {
            let line = "%a = attention %q, %kv, %pos, %seq, %pages {scale = 0.5} : bf16[T, 16]".to_string();
            one(
                format!("%q: bf16[T, 16], %kv: kv<full>, {STEP}"),
                "bf16[T, 16], kv<full>".into(),
                vec![line],
                "%a, %kv",
            )
        }
        ("seed/row", OpKind::RmsNorm) => {
            one(format!("%x: {ty}, %w: bf16[{n}]"), ty.clone(), vec![format!("%a = rms_norm %x, %w : {ty}")], "%a")
        }
        ("seed/row", OpKind::LayerNorm) => {
            let line = format!("%a = layer_norm %x, %w, %b : {ty}");
            one(format!("%x: {ty}, %w: bf16[{n}], %b: bf16[{n}]"), ty.clone(), vec![line], "%a")
        }
        ("seed/row", _) => one(format!("%x: {ty}"), ty.clone(), vec![format!("%a = softmax %x : {ty}")], "%a"),
        ("seed/single", OpKind::TopK) => {
            let line = "%a, %i = topk %x {k = 3} : f32[T, 3], i32[T, 3]".to_string();
            one(format!("%x: {ty}"), "f32[T, 3], i32[T, 3]".into(), vec![line], "%a, %i")
        }
        ("seed/single", OpKind::ArgMax) => {
            one(format!("%x: {ty}"), "i32[T]".into(), vec!["%a = argmax %x : i32[T]".into()], "%a")
        }
        ("seed/single", OpKind::MatMul) => {
            one(format!("%x: f32[T, {k}], %w: f32[{n}, {k}]"), ty, vec![matmul(n)], "%a")
        }
        ("seed/single", OpKind::Dequant) => {
            let w = format!("[{n}, {k}]");
            one(format!("%w: mxfp4{w}"), format!("bf16{w}"), vec![format!("%a = dequant %w : bf16{w}")], "%a")
        }
        ("seed/map" | "absorb/map", OpKind::GatherRows) => {
            let lines =
                vec![format!("%a = gather_rows %x, %ids : bf16[T, {n}]"), format!("%b = neg %a : bf16[T, {n}]")];
            one(format!("%x: bf16[9, {n}], %ids: i32[T]"), format!("bf16[T, {n}]"), lines, "%b")
        }
        ("seed/map" | "absorb/map", OpKind::Swiglu) => {
            let h = format!("f32[T, {}]", n / 2);
            one(
                format!("%x: {ty}"),
                h.clone(),
                vec![format!("%a = swiglu %x : {h}"), format!("%b = neg %a : {h}")],
                "%b",
            )
        }
        ("seed/map" | "absorb/map", OpKind::MoeCombine) => {
            let lines = vec![format!("%a = moe_combine %x, %p : {ty}"), format!("%b = neg %a : {ty}")];
            one(format!("%x: f32[T, {j}, {n}], %p: f32[T, {j}]"), ty, lines, "%b")
        }
        ("seed/map" | "absorb/map", OpKind::Rope) => {
            let lines = vec![format!("%a = rope %x, %pos, %rope : {ty}"), format!("%b = neg %a : {ty}")];
            one(format!("%x: {ty}, %pos: i32[T], %rope: f32[C, 8]"), ty, lines, "%b")
        }
        ("absorb/map", OpKind::Cmp) => {
            let (more, line, _) = scalar(kind, &ty, &dims);
            one(format!("%a: {ty}{more}"), ty.clone(), vec![line, format!("%d = select %b, %a, %c : {ty}")], "%d")
        }
        ("seed/map", OpKind::Cmp | OpKind::Cast) => {
            let (more, line, t) = scalar(kind, &ty, &dims);
            one(format!("%a: {ty}{more}"), t, vec![line], "%b")
        }
        ("seed/map" | "absorb/map", _) => {
            let (more, line, t) = scalar(kind, &ty, &dims);
            let last = format!("%d = abs %b : {t}");
            one(format!("%a: {ty}{more}"), t, vec![line, last], "%d")
        }
        ("grow/bias", _) => {
            let line = format!("%b = add %a, %c : {ty}");
            vec![after(dense(n), matmul(n), (format!(", %c: bf16[{n}]"), line, ty))]
        }
        ("grow/residual", _) => [("%a, %c", &ty), ("%c, %a", &ty)]
            .map(|(args, t)| {
                after(dense(n), matmul(n), (format!(", %c: {t}"), format!("%b = add {args} : {t}"), t.clone()))
            })
            .into(),
        ("grow/activation", OpKind::Cmp | OpKind::Select) => {
            vec![after(format!("%x: {ty}"), format!("%a = neg %x : {ty}"), scalar(kind, &ty, &dims))]
        }
        ("grow/activation" | "grow/cast", _) => vec![after(dense(n), matmul(n), scalar(kind, &ty, &dims))],
        ("grow/swiglu", _) => ["interleaved", "halves"]
            .map(|layout| {
                let h = format!("f32[T, {}]", n / 2);
                let attr = if layout == "halves" { " {layout = halves}" } else { "" };
                after(dense(n), matmul(n), (String::new(), format!("%b = swiglu %a{attr} : {h}"), h))
            })
            .into(),
        ("grow/split", _) => {
            let (p, q) = (format!("f32[T, {}]", n - 8 + 4), "f32[T, 4]".to_string());
            let line = format!("%b, %c = split %a {{sizes = [{}, 4]}} : {p}, {q}", n - 4);
            one(dense(n), format!("{p}, {q}"), vec![matmul(n), line], "%b, %c")
        }
        ("grow/rope", _) => {
            let line = format!("%b = rope %a, %pos, %rope : {ty}");
            vec![after(dense(n), matmul(n), (", %pos: i32[T], %rope: f32[C, 8]".into(), line, ty))]
        }
        ("grow/kv-write", _) => {
            let lines = vec![
                matmul(24),
                "%q, %k, %v = split %a {sizes = [8, 8, 8]} : f32[T, 8], f32[T, 8], f32[T, 8]".into(),
                "%kv.1 = kv_write %kv, %k, %v, %pos, %seq, %pages : kv<full>".into(),
                "%y = attention %q, %kv.1, %pos, %seq, %pages {scale = 0.5} : f32[T, 8]".into(),
            ];
            one(format!("{}, %kv: kv<full>, {STEP}", dense(24)), "f32[T, 8], kv<full>".into(), lines, "%y, %kv.1")
        }
        ("grow/topk", _) => {
            let t = "f32[T, 3], i32[T, 3]";
            one(dense(n), t.into(), vec![matmul(n), format!("%b, %i = topk %a {{k = 3}} : {t}")], "%b, %i")
        }
        ("grow/softmax", _) => {
            let t = "f32[T, 3], i32[T, 3]";
            let lines =
                vec![matmul(n), format!("%b, %i = topk %a {{k = 3}} : {t}"), "%c = softmax %b : f32[T, 3]".into()];
            one(dense(n), t.into(), lines, "%c, %i")
        }
        ("grow/combine", _) => {
            vec![after(moe, experts, (format!(", %p: f32[T, {j}]"), format!("%b = moe_combine %a, %p : {ty}"), ty))]
        }
        ("chain/moe-pair", _) => {
            let n = 64 * (1 + n / 32);
            let y = format!("f32[T, {n}]");
            let lines = |ids: &str| {
                vec![
                    format!("%w = dequant %g : bf16[{e}, {n}, {k}]"),
                    format!("%u = moe_matmul %x, %w, %ids : f32[T, {j}, {n}]"),
                    format!("%c = gather_rows %gb, %ids : bf16[T, {j}, {n}]"),
                    format!("%u.1 = add %u, %c : f32[T, {j}, {n}]"),
                    format!("%s = swiglu %u.1 : f32[T, {j}, {}]", n / 2),
                    format!("%h = cast %s {{to = bf16}} : bf16[T, {j}, {}]", n / 2),
                    format!("%v = dequant %d : bf16[{e}, {n}, {}]", n / 2),
                    format!("%a = moe_matmul %h, %v, {ids} : f32[T, {j}, {n}]"),
                    format!("%m = moe_combine %a, %p : {y}"),
                    format!("%b = add %r, %m : {y}"),
                ]
            };
            let params = format!(
                "%x: bf16[T, {k}], %g: mxfp4[{e}, {n}, {k}], %ids: i32[T, {j}], %gb: bf16[{e}, {n}], %d: mxfp4[{e}, {n}, {}], %p: f32[T, {j}], %r: {y}",
                n / 2
            );
            // What stands between the two may be wanted by others too.
            let both = format!("{y}, bf16[T, {j}, {}]", n / 2);
            vec![func(&params, &y, &lines("%ids"), "%b"), func(&params, &both, &lines("%ids"), "%b, %h")]
        }
        ("grow/tile-max", _) => {
            let t = format!("f32[T, {}]", n.div_ceil(16));
            one(
                dense(n),
                format!("{ty}, {t}"),
                vec![matmul(n), format!("%b = tile_max %a {{tile = 16}} : {t}")],
                "%a, %b",
            )
        }
        ("absorb/cast", _) => {
            let lines = vec![format!("%x = cast %z {{to = bf16}} : bf16[T, {k}]"), matmul(n)];
            one(format!("%z: f32[T, {k}], %w: bf16[{n}, {k}]"), ty, lines, "%a")
        }
        ("absorb/rms-norm", _) => {
            let lines = vec![
                format!("%y = rms_norm %z, %g : f32[T, {k}]"),
                format!("%x = cast %y {{to = bf16}} : bf16[T, {k}]"),
                matmul(n),
            ];
            one(format!("%z: f32[T, {k}], %g: bf16[{k}], %w: bf16[{n}, {k}]"), ty, lines, "%a")
        }
        ("absorb/gather-rows", _) => {
            let lines = vec![
                format!("%h = gather_rows %z, %ids : f32[T, {k}]"),
                format!("%y = rms_norm %h, %g : f32[T, {k}]"),
                format!("%x = cast %y {{to = bf16}} : bf16[T, {k}]"),
                matmul(n),
            ];
            let params = format!("%z: f32[9, {k}], %ids: i32[T], %g: bf16[{k}], %w: bf16[{n}, {k}]");
            one(params, ty, lines, "%a")
        }
        ("absorb/dequant", _) => {
            let line = format!("%w = dequant %p : bf16[{e}, {n}, {k}]");
            let params = format!("%x: bf16[T, {k}], %p: mxfp4[{e}, {n}, {k}], %ids: i32[T, {j}]");
            one(params, format!("f32[T, {j}, {n}]"), vec![line, experts], "%a")
        }
        ("absorb/expert-bias", _) => {
            let t = format!("f32[T, {j}, {n}]");
            let lines = vec![
                format!("%w = dequant %p : bf16[{e}, {n}, {k}]"),
                experts,
                format!("%g = gather_rows %c, %ids : bf16[T, {j}, {n}]"),
                format!("%b = add %a, %g : {t}"),
            ];
            let params = format!("%x: bf16[T, {k}], %p: mxfp4[{e}, {n}, {k}], %ids: i32[T, {j}], %c: bf16[{e}, {n}]");
            one(params, t, lines, "%b")
        }
        ("absorb/share", _) => {
            let x = format!("bf16[T, {k}]");
            let lines = vec![
                format!("%y = rms_norm %z, %g : f32[T, {k}]"),
                format!("%x = cast %y {{to = bf16}} : {x}"),
                matmul(n),
                format!("%b, %i = topk %a {{k = 2}} : f32[T, 2], i32[T, 2]"),
            ];
            let params = format!("%z: f32[T, {k}], %g: bf16[{k}], %w: bf16[{n}, {k}]");
            one(params, format!("f32[T, 2], i32[T, 2], {x}"), lines, "%b, %i, %x")
        }
        ("fold/tile-max" | "fold/no-maxima", _) => {
            // Wide enough for the rule, and ties: the first of equal logits wins either way.
            let wide = super::tile_max::LEAST as usize + n;
            let (more, args) = match kind {
                OpKind::Sample => (
                    ", %temp: f32[T], %k: i32[T], %p: f32[T], %m: f32[T], %seed: i32[T, 2], %at: i32[T]",
                    "%x, %temp, %k, %p, %m, %seed, %at",
                ),
                _ => ("", "%x"),
            };
            let line = format!("%a = {} {args} : i32[T]", kind.name());
            one(format!("%x: f32[T, {wide}]{more}"), "i32[T]".into(), vec![line], "%a")
        }
        ("fold/concat-weights", _) => {
            let lines = vec![
                format!("%p = matmul %x, %w : {ty}"),
                format!("%a = add %p, %b : {ty}"),
                format!("%q = matmul %x, %v : f32[T, 8]"),
                "%c = add %q, %d : f32[T, 8]".into(),
            ];
            let params = format!(
                "%x: bf16[T, {k}], %w: weight bf16[{n}, {k}], %b: weight bf16[{n}], %v: weight bf16[8, {k}], %d: weight bf16[8]"
            );
            one(params, format!("{ty}, f32[T, 8]"), lines, "%a, %c")
        }
        _ => vec![],
    }
}

/// A function with arguments.
struct Run {
    module: Arc<Module>,
    args: Vec<Datum>,
    states: Vec<StateStore>,
    sizes: Bindings,
}

fn prepare(source: &str, t: usize, rng: &mut Rng) -> Run {
    let module = text::parse("case", source).unwrap_or_else(|e| panic!("{source}\n{}", e.render()));
    gossamer_ir::verify::verify(&module, gossamer_ir::verify::Stage::Tensor)
        .unwrap_or_else(|e| panic!("{source}\n{e}"));
    let sizes: Bindings =
        [("T", t), ("S", 2), ("P", 4), ("C", 32)].into_iter().map(|(k, v)| (k.into(), v as i64)).collect();
    let args = module.funcs[0].params.iter().map(|p| argument(&p.name, &p.ty, &sizes, t, rng)).collect();
    let states = module.states.iter().map(|s: &StateDecl| StateStore::for_decl(s, 8)).collect();
    Run { module: Arc::new(module), args, states, sizes }
}

fn argument(name: &str, ty: &Type, sizes: &Bindings, t: usize, rng: &mut Rng) -> Datum {
    let Type::Tensor(tensor) = ty else { return Datum::State(0) };
    let shape: Vec<usize> = tensor.shape(sizes).unwrap().iter().map(|d| *d as usize).collect();
    let n: usize = shape.iter().product();
    let made = match (tensor.dtype, name) {
        (DType::Mxfp4, _) => {
            let codes = (0..n / 2).map(|_| rng.next() as u8).collect();
            let scales = (0..n / 32).map(|_| 120 + rng.below(10) as u8).collect();
            Tensor::mxfp4(&shape, codes, scales)
        }
        (DType::I32, "pos") => Tensor::i32(&shape, (0..n as i32).collect()),
        (DType::I32, "seq") => Tensor::i32(&shape, (0..n).map(|i| i32::from(i * 2 >= t)).collect()),
        (DType::I32, "pages") => Tensor::i32(&shape, (0..n as i32).collect()),
        // One beyond the last expert or row now and then: rows of zeros.
        (DType::I32, _) => {
            Tensor::i32(&shape, (0..n).map(|_| rng.below(3) as i32 - i32::from(rng.below(9) == 0) * 5).collect())
        }
        (DType::Bool, _) => {
            Tensor::u8(&shape, (0..n).map(|_| rng.below(2) as u8).collect()).map(|t| Tensor { dtype: DType::Bool, ..t })
        }
        (dtype, _) => Tensor::f32(&shape, (0..n).map(|_| half::bf16::from_f32(rng.float()).to_f32()).collect())
            .map(|t| Tensor { dtype, ..t }),
    };
    Datum::Tensor(made.unwrap_or_else(|e| panic!("{name}: {e}")))
}

/// Results as bits, and the state afterwards.
fn evaluate(run: &Run, func: &Func) -> Vec<Vec<u32>> {
    let mut module = (*run.module).clone();
    module.funcs = vec![func.clone()];
    let mut states = run.states.clone();
    let none = |name: &str| -> Result<Tensor, gossamer_ir::interp::EvalError> { panic!("weight {name}") };
    let out = run_func(&module, &func.name, run.args.clone(), &none, &mut states, &run.sizes, Rounding::Typed)
        .unwrap_or_else(|e| panic!("{func}\n{e}"));
    let mut bits: Vec<Vec<u32>> = out
        .iter()
        .filter_map(Datum::as_tensor)
        .map(|t| match t.as_i32() {
            Some(v) => v.iter().map(|x| *x as u32).collect(),
            None if t.dtype == DType::Bool => t.to_f32().iter().map(|x| *x as u32).collect(),
            None => t.to_f32().iter().map(|x| if x.is_nan() { u32::MAX } else { x.to_bits() }).collect(),
        })
        .collect();
    for s in &states {
        if let StateStore::Kv(kv) = s {
            let pages = (0..8).flat_map(|p| (0..2).flat_map(move |h| [kv.keys(p, h), kv.values(p, h)]));
            bits.push(pages.flatten().flatten().map(|x| x.to_bits()).collect());
        }
    }
    bits
}

/// The choices with `forced` for nothing and every other kernel at 1 an op.
fn forcing(space: &Space, forced: &Term) -> Priced {
    let machine = crate::cost::Machine::default();
    let sizes = Bindings::new();
    let mut priced = price(space, &Point::new(&sizes, &machine));
    for (class, nodes) in priced.choices.classes.iter_mut().zip(&priced.nodes) {
        for (choice, node) in class.iter_mut().zip(nodes) {
            if let Term::Kernel(k, _) = node {
                let kernel: &Kernel = &space.bridged.graph.analysis.kernels[*k as usize];
                choice.cost = if node == forced { 0.0 } else { kernel.ops().count() as f64 };
            }
        }
    }
    priced
}

/// What is wrong on a source, or how many kernels of `rule` were run.
fn differ(rules: &[&'static Rule], rule: &Rule, source: &str, t: usize, rng: &mut Rng) -> Result<usize, String> {
    let run = prepare(source, t, rng);
    let want = evaluate(&run, &run.module.funcs[0]);
    let space = space_with(&run.module, &run.module.funcs[0], rules).map_err(|e| e.to_string())?;
    if matches!(rule.how, How::Before) {
        let got = evaluate(&run, &space.func);
        let fired = space.func.to_string() != run.module.funcs[0].to_string();
        return if got == want { Ok(usize::from(fired)) } else { Err(format!("{source}\nbecomes\n{}", space.func)) };
    }
    // Every kernel, not only the rule's: a wrong equality may give an old kernel other operands.
    let eg = &space.bridged.graph;
    let mut nodes: Vec<Term> =
        eg.classes().flat_map(|c| c.nodes.clone()).filter(|n| matches!(n, Term::Kernel(..))).collect();
    nodes.sort_unstable();
    let mut ran = 0;
    for node in nodes {
        let Term::Kernel(k, _) = node else { continue };
        let priced = forcing(&space, &node);
        let found = extract::extract(&priced.choices).map_err(|e| e.to_string())?;
        let (func, report) = build(&run.module, &space, &priced, &found, &run.sizes, &crate::cost::Machine::default())
            .map_err(|e| e.to_string())?;
        let kernel = &eg.analysis.kernels[k as usize];
        if !report.kernels.iter().any(|r| r.kernel == *kernel) {
            continue;
        }
        let got = evaluate(&run, &func);
        if got != want {
            return Err(format!("{source}\nbecomes\n{func}"));
        }
        ran += usize::from(eg.analysis.origins[k as usize].rule == rule.info.name);
    }
    Ok(ran)
}

fn all() -> Vec<&'static Rule> {
    RULES.iter().collect()
}

#[test]
fn every_rule_fires_and_is_sound() {
    let mut problems = Vec::new();
    for rule in RULES {
        // What a scalar kernel absorbs could also have been grown; the first to make a kernel gets the credit.
        let grows = |r: &&Rule| rule.info.name != "absorb/map" || r.info.family != crate::rule::Family::Grow;
        let rules: Vec<&'static Rule> = all().into_iter().filter(grows).collect();
        let mut ran = 0;
        for kind in rule.kinds {
            let mut fired = 0;
            let mut written = 0;
            for seed in 0..3u64 {
                let mut rng = Rng(seed * 7919 + *kind as u64);
                let s = Sizes::random(&mut rng);
                for source in cases(rule, *kind, &s) {
                    written += 1;
                    match differ(&rules, rule, &source, s.t, &mut rng) {
                        Ok(n) => fired += n,
                        Err(e) => problems.push(format!("{} ({}), seed {seed}: {e}", rule.info.name, kind.name())),
                    }
                }
            }
            if written > 0 && fired == 0 {
                problems.push(format!("{} never fires on `{}`", rule.info.name, kind.name()));
            }
            ran += fired;
        }
        if ran == 0 {
            problems.push(format!("{} never fires", rule.info.name));
        }
    }
    assert!(problems.is_empty(), "{} problems\n{}", problems.len(), problems.join("\n"));
}

/// The body of a layer and the head in one function: norm, q/k/v, rope, cache, attention, router, experts.
fn layer() -> String {
    let lines: Vec<String> = "%n = rms_norm %h, %g : f32[T, 32]
%n.b = cast %n {to = bf16} : bf16[T, 32]
%q = matmul %n.b, %wq : f32[T, 16]
%k = matmul %n.b, %wk : f32[T, 8]
%v = matmul %n.b, %wv : f32[T, 8]
%q.1 = rope %q, %pos, %rope : f32[T, 16]
%k.1 = rope %k, %pos, %rope : f32[T, 8]
%kv.1 = kv_write %kv, %k.1, %v, %pos, %seq, %pages : kv<full>
%y = attention %q.1, %kv.1, %pos, %seq, %pages {scale = 0.5} : f32[T, 16]
%y.b = cast %y {to = bf16} : bf16[T, 16]
%o = matmul %y.b, %wo : f32[T, 32]
%r = add %h, %o : f32[T, 32]
%m = rms_norm %r, %g : f32[T, 32]
%m.b = cast %m {to = bf16} : bf16[T, 32]
%l = matmul %m.b, %wr : f32[T, 4]
%top, %ids = topk %l {k = 2} : f32[T, 2], i32[T, 2]
%p = softmax %top : f32[T, 2]
%w1 = dequant %we : bf16[4, 64, 32]
%u = moe_matmul %m.b, %w1, %ids : f32[T, 2, 64]
%c = gather_rows %be, %ids : bf16[T, 2, 64]
%u.1 = add %u, %c : f32[T, 2, 64]
%s = swiglu %u.1 : f32[T, 2, 32]
%s.b = cast %s {to = bf16} : bf16[T, 2, 32]
%w2 = dequant %wd : bf16[4, 32, 32]
%d = moe_matmul %s.b, %w2, %ids : f32[T, 2, 32]
%z = moe_combine %d, %p : f32[T, 32]
%out = add %r, %z : f32[T, 32]"
        .lines()
        .map(str::to_string)
        .collect();
    let params = format!(
        "%h: f32[T, 32], %g: bf16[32], %wq: weight bf16[16, 32], %wk: weight bf16[8, 32], %wv: weight bf16[8, 32], %wo: bf16[32, 16], \
         %wr: bf16[4, 32], %we: mxfp4[4, 64, 32], %be: bf16[4, 64], %wd: mxfp4[4, 32, 32], %rope: f32[C, 4], %kv: kv<full>, {STEP}"
    );
    func(&params, "f32[T, 32], kv<full>, i32[T, 2]", &lines, "%out, %kv.1, %ids")
}

/// Plans from `seeds` random extractions of one e-graph; the first that computes something else than the source.
fn random_plans(rules: &[&'static Rule], source: &str, seeds: u64) -> Result<usize, String> {
    let mut rng = Rng(5);
    let run = prepare(source, 3, &mut rng);
    let want = evaluate(&run, &run.module.funcs[0]);
    let space = space_with(&run.module, &run.module.funcs[0], rules).map_err(|e| e.to_string())?;
    let machine = crate::cost::Machine::default();
    let priced = price(&space, &Point::new(&run.sizes, &machine));
    let mut texts = std::collections::BTreeSet::new();
    for seed in 0..seeds {
        let found = extract::random(&priced.choices, seed).ok_or("no extraction")?;
        let (func, _) = build(&run.module, &space, &priced, &found, &run.sizes, &machine).map_err(|e| e.to_string())?;
        if evaluate(&run, &func) != want {
            return Err(format!("seed {seed}:\n{func}"));
        }
        texts.insert(func.to_string());
    }
    Ok(texts.len())
}

#[test]
fn random_extractions_agree() {
    let different = random_plans(&all(), &layer(), 32).unwrap_or_else(|e| panic!("{e}"));
    assert!(different > 16, "only {different} of 32 plans differ");
}

/// A rule that is wrong on purpose: it claims that `sub` may read its operands the other way round.
static SWAPPED: Rule = Rule {
    info: crate::rule::RuleInfo {
        name: "test/swapped",
        family: crate::rule::Family::Seed,
        meaning: "wrong on purpose",
        off: None,
    },
    kinds: &[OpKind::Sub],
    how: How::Custom(|eg, class, node| {
        let Term::Op(OpKind::Sub, operands) = node else { return vec![] };
        let swapped = [operands[1], operands[0]];
        let body = body::Body::seed(eg, "map", OpKind::Sub, Default::default(), &swapped, "wrong".into());
        let equal = || rules::Equal::Results(vec![(0, rules::Target::Class(class))]);
        body.into_iter().map(|body| rules::Proposal { body, from: vec![], op: OpKind::Sub, equal: equal() }).collect()
    }),
};

/// Another: it claims that a cast equals what it casts.
static LOSSLESS: Rule = Rule {
    info: crate::rule::RuleInfo {
        name: "test/lossless",
        family: crate::rule::Family::Seed,
        meaning: "wrong on purpose",
        off: None,
    },
    kinds: &[OpKind::Cast],
    how: How::Custom(|eg, _, node| {
        let Term::Op(OpKind::Cast, children) = node else { return vec![] };
        let (operands, attrs) = facts::parts(eg, OpKind::Cast, children);
        let body = body::Body::seed(eg, "map", OpKind::Cast, attrs, operands, "wrong".into());
        let source = operands[0];
        let equal = || rules::Equal::Results(vec![(0, rules::Target::Class(source))]);
        body.into_iter().map(|body| rules::Proposal { body, from: vec![], op: OpKind::Cast, equal: equal() }).collect()
    }),
};

/// Two pairs of matmuls with experts that share choices and weights.
fn two_pairs(other: &str) -> String {
    let lines = "%w = dequant %g : bf16[4, 32, 32]
%u = moe_matmul %x, %w, %ids : f32[T, 2, 32]
%h = cast %u {to = bf16} : bf16[T, 2, 32]
%u.1 = moe_matmul %z, %w, %ids : f32[T, 2, 32]
%h.1 = cast %u.1 {to = bf16} : bf16[T, 2, 32]
%a = moe_matmul %h, %w, OTHER : f32[T, 2, 32]"
        .replace("OTHER", other);
    let lines: Vec<String> = lines.lines().map(str::to_string).collect();
    let params = "%x: bf16[T, 32], %z: bf16[T, 32], %g: mxfp4[4, 32, 32], %ids: i32[T, 2], %more: i32[T, 2]";
    func(params, "f32[T, 2, 32], bf16[T, 2, 32]", &lines, "%a, %h.1")
}

/// A third: it takes any rows of the right type for those that a matmul with experts reads.
static OTHER_ROWS: Rule = Rule {
    info: crate::rule::RuleInfo {
        name: "test/other-rows",
        family: crate::rule::Family::Chain,
        meaning: "wrong on purpose",
        off: None,
    },
    kinds: &[OpKind::MoeMatMul],
    how: How::Custom(|eg, class, _| {
        let mut out = vec![];
        let makers = |id| {
            let tuples = rules::makers(eg, id).into_iter();
            let nodes = tuples.flat_map(|(r, t)| eg[t].nodes.iter().map(move |n| (r, n.clone())));
            nodes.filter_map(|(r, n)| if let Term::Kernel(k, ids) = n { Some((r, k, ids)) } else { None })
        };
        for (_, k, ids) in makers(class) {
            let next = body::open(eg, k, &ids);
            for operand in next.operands(1) {
                for other in eg.classes().map(|c| c.id).filter(|c| facts::ty(eg, *c) == facts::ty(eg, operand)) {
                    for (r, k, ids) in makers(other).filter(|_| other != operand) {
                        // The wrong rows' kernel, as if it made the right ones.
                        let chained = body::open(eg, k, &ids).chain(r as usize, next.clone(), operand, "moe_pair");
                        let equal = || rules::Equal::Results(vec![(0, rules::Target::Class(class))]);
                        let op = OpKind::Kernel;
                        out.extend(chained.map(|body| rules::Proposal { body, from: vec![], op, equal: equal() }));
                    }
                }
            }
        }
        out
    }),
};

#[test]
fn stages_read_the_rows_and_choices_of_one_another() {
    let chain = RULES.iter().find(|r| r.info.name == "chain/moe-pair").unwrap();
    let fired = |source: &str, rules: &[&'static Rule], rule: &Rule| differ(rules, rule, source, 3, &mut Rng(4));
    assert!(fired(&two_pairs("%ids"), &all(), chain).unwrap() > 0);
    // Other choices: no rows to hand on.
    assert_eq!(fired(&two_pairs("%more"), &all(), chain), Ok(0));
    // The wrong rule is caught.
    let mut rules = all();
    rules.push(&OTHER_ROWS);
    let e = fired(&two_pairs("%ids"), &rules, &OTHER_ROWS).unwrap_err();
    assert!(e.contains("moe_pair") && e.contains("then"), "{e}");
}

#[test]
fn wrong_rules_are_caught() {
    let source = func("%a: f32[T, 8], %c: f32[T, 8]", "f32[T, 8]", &["%b = sub %a, %c : f32[T, 8]".into()], "%b");
    let mut rules = all();
    rules.insert(0, &SWAPPED);
    // By the differential test, and by random extractions.
    let e = differ(&rules, &SWAPPED, &source, 3, &mut Rng(1)).unwrap_err();
    assert!(e.contains("becomes"), "{e}");
    assert!(random_plans(&rules, &source, 16).is_err());
    // A contradiction of types stops the run and names the rule and both types.
    let source = func("%a: f32[T, 8]", "bf16[T, 8]", &["%b = cast %a {to = bf16} : bf16[T, 8]".into()], "%b");
    let mut rules = all();
    rules.push(&LOSSLESS);
    let e = random_plans(&rules, &source, 1).unwrap_err();
    assert!(e.contains("test/lossless") && e.contains("f32[T, 8]") && e.contains("bf16[T, 8]"), "{e}");
    // A rule that cannot fire is told apart from one that is sound.
    let silent = func("%a: f32[T, 8]", "f32[T, 8]", &["%b = neg %a : f32[T, 8]".into()], "%b");
    assert_eq!(differ(&all(), &SWAPPED, &silent, 2, &mut Rng(2)), Ok(0));
}

#[test]
fn fused_text_reads_back() {
    let run = prepare(&layer(), 3, &mut Rng(9));
    let space = space(&run.module, &run.module.funcs[0], &[]).unwrap();
    let (func, report) = {
        let machine = crate::cost::Machine::default();
        choose(&run.module, &space, &Point::new(&run.sizes, &machine), None).unwrap()
    };
    let mut module = (*run.module).clone();
    module.funcs = vec![func];
    gossamer_ir::verify::verify(&module, gossamer_ir::verify::Stage::Fused).unwrap_or_else(|e| panic!("{module}\n{e}"));
    gossamer_ir::verify::roundtrip(&module).unwrap_or_else(|e| panic!("{module}\n{e}"));
    assert!(report.kernels.iter().all(|k| !k.history.is_empty()));
    let again = BTreeMap::from([("x", module.to_string())]);
    assert_eq!(text::parse("again", &again["x"]).unwrap().to_string(), again["x"]);
}
