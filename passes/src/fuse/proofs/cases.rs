//! Functions that hold a rule's pattern, with random sizes.

use gossamer_ir::OpKind;

use super::Rng;
use crate::fuse::rules::Rule;

/// Sizes of a case.
pub struct Sizes {
    pub t: usize,
    n: usize,
    k: usize,
    e: usize,
    j: usize,
}

impl Sizes {
    pub fn random(rng: &mut Rng) -> Sizes {
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
pub const STEP: &str = "%pos: i32[T], %seq: i32[T], %pages: i32[S, P]";

/// A function with `params`, `body` and what it returns.
pub fn func(params: &str, types: &str, body: &[String], results: &str) -> String {
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
pub fn cases(rule: &Rule, kind: OpKind, s: &Sizes) -> Vec<String> {
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
        ("absorb/sum" | "absorb/combine", _) => {
            let lines = vec![
                format!("%r.1 = cast %r {{to = f32}} : f32[T, {j}, {k}]"),
                format!("%c = moe_combine %r.1, %p : f32[T, {k}]"),
                format!("%z = add %y, %c : f32[T, {k}]"),
                format!("%a = rms_norm %z, %g : f32[T, {k}]"),
                format!("%h = cast %a {{to = bf16}} : bf16[T, {k}]"),
            ];
            let params = format!("%y: f32[T, {k}], %r: bf16[T, {j}, {k}], %p: f32[T, {j}], %g: bf16[{k}]");
            one(params, format!("f32[T, {k}], bf16[T, {k}]"), lines, "%z, %h")
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
