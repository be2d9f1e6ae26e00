//! Scenarios of fused kernels: source text, fused by the rules at the sizes of each step, against the interpreter on the source.
//!
//! Each group of ops that fusion makes a kernel of, over a grid of rows and sizes: one row, ragged edges of every tile, columns that fill no tile, experts with no
//! rows, one row, and all rows. Where several templates can make a kernel, each is forced by disabling the rules that start the others. A row by itself must have
//! the bits that it has among others, whatever template that takes. MXFP4 is in weights, packed when they are loaded, as models have it.

use std::collections::BTreeMap;

use gossamer_ir::interp::Tensor;
use gossamer_ir::{Bindings, DType, text};
use gossamer_passes::Options;

use super::data::{Rng, int};
use super::scenario::{Fused, Scenario, Step, head};

/// Relative error of a result. A rounding of something in between may fall on the other side.
const TOLERANCE: f32 = 4e-3;

/// Source text with inputs.
struct Source {
    label: String,
    params: String,
    results: String,
    body: Vec<String>,
    /// Inputs by name; `true`: one row for each row of the step.
    inputs: Vec<(&'static str, Tensor, bool)>,
    /// MXFP4 weights by name, which the body reads as `@name`.
    weights: Vec<(&'static str, Tensor)>,
}

impl Source {
    /// Steps with the first `rows` rows of the inputs each; the templates that must be among the kernels; rules that are not applied.
    fn scenario(&self, rows: &[usize], expected: &'static [&'static str], fused: Fused) -> Scenario {
        let without = fused.options.disabled_rules.join(" ");
        let label = format!("{}, rows {rows:?}, as {expected:?}, without [{without}]", self.label);
        let lines: String = self.body.iter().map(|l| format!("  {l}\n")).collect();
        let weights: String = self
            .weights
            .iter()
            .map(|(name, t)| format!("weight @{name} : mxfp4{:?} = \"{name}\"\n", t.shape))
            .collect();
        let func = format!("func @f({}) -> ({}) {{\n{lines}}}\n", self.params, self.results);
        let source = format!("gir 1\n\nsym T in 1..=4096\n{weights}\n{func}");
        let module = match text::parse(&label, &source) {
            Ok(module) => module,
            Err(errors) => panic!("{label}: {}", errors.render()),
        };
        let step = |n: usize| Step {
            sizes: Bindings::from([("T".into(), n as i64)]),
            inputs: self
                .inputs
                .iter()
                .map(|(name, t, by_row)| (name.to_string(), if *by_row { head(t, n) } else { t.clone() }))
                .collect::<BTreeMap<_, _>>(),
        };
        let steps = rows.iter().map(|n| step(*n)).collect();
        let weights = self.weights.iter().map(|(name, t)| (name.to_string(), t.clone())).collect();
        let fused = Some(Fused { expected, ..fused });
        Scenario { label, module, states: vec![], weights, steps, alone: Some(step(1)), tolerance: TOLERANCE, fused }
    }
}

/// Fusion without some rules.
fn without(rules: &[&str]) -> Fused {
    let disabled_rules = rules.iter().map(ToString::to_string).collect();
    Fused { options: Options { disabled_rules, ..Options::default() }, ..Fused::default() }
}

/// The same where a template costs next to nothing, so that it is taken wherever it can be.
fn cheap(template: &str, mut fused: Fused) -> Fused {
    if let Some(price) = fused.options.machine.templates.get_mut(template) {
        (price.launch_us, price.ramp_us, price.hand_over_us, price.bandwidth_efficiency) = (0.0, 0.0, 0.0, 1.0);
    }
    fused
}

/// The same in steps that feed prompts, whose rows are summed in the order of prompts.
fn of_prompts(mut scenario: Scenario) -> Scenario {
    for step in scenario.steps.iter_mut().chain(&mut scenario.alone) {
        let rows = step.sizes.get("T").copied().unwrap_or(1);
        step.sizes.extend([("S".into(), 2 * rows), ("R".into(), 1)]);
    }
    scenario
}

/// Every scenario.
pub fn all() -> Vec<Scenario> {
    let mut out = dense();
    out.extend(heads());
    out.extend(routers());
    out.extend(experts());
    out.extend(pairs());
    out.extend(scalars());
    out
}

/// Projections: bias and residual behind, or a norm in front and swiglu behind.
fn dense() -> Vec<Scenario> {
    let mut out = Vec::new();
    // The last is wide and short, so that many rows take the largest tiles.
    for (n, k) in [(64, 64), (200, 96), (72, 1088), (208, 1000), (384, 2880), (3392, 64)] {
        let mut rng = Rng::new(&format!("dense {n} {k}"));
        let most = 520;
        let source = Source {
            label: format!("projection {n}x{k}"),
            params: format!("%x: bf16[T, {k}], %w: bf16[{n}, {k}], %b: bf16[{n}], %r: f32[T, {n}]"),
            results: format!("f32[T, {n}]"),
            body: vec![
                format!("%a = matmul %x, %w : f32[T, {n}]"),
                format!("%z = add %a, %b : f32[T, {n}]"),
                format!("%y = add %r, %z : f32[T, {n}]"),
                "return %y".into(),
            ],
            inputs: vec![
                ("x", rng.floats(DType::BF16, &[most, k], 1.0), true),
                ("w", rng.floats(DType::BF16, &[n, k], (k as f32).sqrt().recip()), false),
                ("b", rng.floats(DType::BF16, &[n], 1.0), false),
                ("r", rng.floats(DType::F32, &[most, n], 1.0), true),
            ],
            weights: vec![],
        };
        // Few columns are also a router's.
        let others = ["seed/tile", "seed/gemm-pieces", "seed/router", "seed/single"];
        out.push(source.scenario(&[1, 2, 3, 5, 8, 9, 16, 31, 32], &["stream"], without(&others)));
        let others = ["seed/stream", "seed/router", "seed/single", "seed/gemm-pieces"];
        out.push(source.scenario(&[9, 33, 63, 64, 65, 130], &["tile"], without(&others)));
        if n % 16 == 0 {
            let most = if n * k < 1 << 18 { 520 } else { 130 };
            let others = ["seed/stream", "seed/router", "seed/single", "seed/tile"];
            out.push(source.scenario(&[9, 33, 63, 64, 65, most], &["gemm_pieces"], without(&others)));
            out.push(of_prompts(source.scenario(&[1, 9, 63, 64, 65, most], &["gemm"], without(&[]))));
        }
    }
    for (n, k, layout) in [(128, 160, "interleaved"), (256, 512, "halves")] {
        let mut rng = Rng::new(&format!("gated {n} {k} {layout}"));
        let most = 70;
        let h = n / 2;
        let source = Source {
            label: format!("norm, gate and up {n}x{k} {layout}"),
            params: format!("%x: f32[T, {k}], %g: bf16[{k}], %w: bf16[{n}, {k}], %b: bf16[{n}]"),
            results: format!("bf16[T, {h}]"),
            body: vec![
                format!("%m = rms_norm %x, %g : f32[T, {k}]"),
                format!("%m.b = cast %m {{to = bf16}} : bf16[T, {k}]"),
                format!("%a = matmul %m.b, %w : f32[T, {n}]"),
                format!("%z = add %a, %b : f32[T, {n}]"),
                format!("%h = swiglu %z {{layout = {layout}}} : f32[T, {h}]"),
                format!("%y = cast %h {{to = bf16}} : bf16[T, {h}]"),
                "return %y".into(),
            ],
            inputs: vec![
                ("x", rng.floats(DType::F32, &[most, k], 1.0), true),
                ("g", rng.floats(DType::BF16, &[k], 1.0), false),
                ("w", rng.floats(DType::BF16, &[n, k], (k as f32).sqrt().recip()), false),
                ("b", rng.floats(DType::BF16, &[n], 1.0), false),
            ],
            weights: vec![],
        };
        out.push(source.scenario(&[1, 2, 7, 8, 17, 32], &["stream"], without(&["seed/tile", "seed/gemm-pieces"])));
        let others = ["seed/stream", "seed/router", "seed/single", "seed/gemm-pieces"];
        out.push(source.scenario(&[9, 64, 70], &["row", "tile"], without(&others)));
        let others = ["seed/stream", "seed/router", "seed/single", "seed/tile"];
        out.push(source.scenario(&[9, 64, 70], &["row", "gemm_pieces"], without(&others)));
        out.push(of_prompts(source.scenario(&[1, 64, 70], &["row", "gemm"], without(&[]))));
    }
    out
}

/// A head with the choice of a token behind it.
fn heads() -> Vec<Scenario> {
    let mut out = Vec::new();
    for (n, k) in [(4224, 64), (5001, 160)] {
        let mut rng = Rng::new(&format!("head {n} {k}"));
        let most = 130;
        let source = Source {
            label: format!("head {n}x{k}"),
            params: format!("%x: f32[T, {k}], %g: bf16[{k}], %w: bf16[{n}, {k}]"),
            results: "i32[T]".into(),
            body: vec![
                format!("%m = rms_norm %x, %g : f32[T, {k}]"),
                format!("%m.b = cast %m {{to = bf16}} : bf16[T, {k}]"),
                format!("%a = matmul %m.b, %w : f32[T, {n}]"),
                "%y = argmax %a : i32[T]".into(),
                "return %y".into(),
            ],
            inputs: vec![
                ("x", rng.floats(DType::F32, &[most, k], 1.0), true),
                ("g", rng.floats(DType::BF16, &[k], 1.0), false),
                ("w", rng.floats(DType::BF16, &[n, k], 1.0), false),
            ],
            weights: vec![],
        };
        out.push(source.scenario(&[1, 3, 8, 20], &["stream", "single"], without(&["seed/tile", "seed/gemm-pieces"])));
        out.push(source.scenario(&[64, 100], &["single"], without(&["seed/stream", "seed/gemm-pieces"])));
        if n % 16 == 0 {
            let fused = cheap("gemm_pieces", without(&["seed/stream", "seed/tile"]));
            out.push(source.scenario(&[9, 64, 100, 130], &["gemm_pieces", "single"], fused));
        }
    }
    out
}

/// Norm, scores, the greatest and their softmax.
fn routers() -> Vec<Scenario> {
    let mut out = Vec::new();
    for (n, k, top) in [(32, 320, 4), (128, 2880, 4), (5, 64, 2), (200, 96, 8)] {
        let mut rng = Rng::new(&format!("router {n} {k} {top}"));
        let most = 300;
        let source = Source {
            label: format!("router {n}x{k}, top {top}"),
            params: format!("%x: f32[T, {k}], %g: bf16[{k}], %w: bf16[{n}, {k}], %b: bf16[{n}]"),
            results: format!("f32[T, {top}], i32[T, {top}], bf16[T, {k}]"),
            body: vec![
                format!("%m = rms_norm %x, %g : f32[T, {k}]"),
                format!("%m.b = cast %m {{to = bf16}} : bf16[T, {k}]"),
                format!("%a = matmul %m.b, %w : f32[T, {n}]"),
                format!("%z = add %a, %b : f32[T, {n}]"),
                format!("%v, %i = topk %z {{k = {top}}} : f32[T, {top}], i32[T, {top}]"),
                format!("%p = softmax %v : f32[T, {top}]"),
                "return %p, %i, %m.b".into(),
            ],
            inputs: vec![
                ("x", rng.floats(DType::F32, &[most, k], 1.0), true),
                ("g", rng.floats(DType::BF16, &[k], 1.0), false),
                ("w", rng.floats(DType::BF16, &[n, k], 8.0 * (k as f32).sqrt().recip()), false),
                ("b", rng.floats(DType::BF16, &[n], 1.0), false),
            ],
            weights: vec![],
        };
        let others = ["seed/stream", "seed/tile", "seed/gemm-pieces"];
        out.push(source.scenario(&[1, 2, 3, 8, 17, 64, 255, 300], &["router"], without(&others)));
    }
    out
}

/// Who chose which experts.
fn choices(kind: &str, rows: usize, top: usize, experts: usize, rng: &mut Rng) -> Tensor {
    let mut ids = Vec::new();
    for _ in 0..rows {
        let mut left: Vec<i32> = (0..experts as i32).collect();
        match kind {
            // Few experts get most rows, some none.
            "skewed" => left.truncate((top + 1).min(experts)),
            "same" => left.truncate(top),
            _ => {}
        }
        for _ in 0..top {
            let at = if kind == "same" { 0 } else { rng.below(left.len()) };
            ids.push(left.remove(at));
        }
    }
    int(&[rows, top], ids)
}

/// Experts' gate and up, and down with the weighted sum and residual.
fn experts() -> Vec<Scenario> {
    let mut out = Vec::new();
    for (e, top, n, k, kind, packed, most) in [
        (4, 2, 64, 64, "any", "#mx64", 900),
        (5, 3, 72, 96, "any", "#mx64.fast", 150),
        (32, 4, 192, 320, "any", "#mx64.fast", 150),
        (32, 4, 320, 2880, "skewed", "#mx64.fast", 150),
        (6, 3, 320, 192, "same", "#mx64", 150),
        (128, 4, 64, 160, "any", "#mx64.fast", 150),
    ] {
        let mut rng = Rng::new(&format!("experts {e} {top} {n} {k} {kind}"));
        let h = n / 2;
        let ids = choices(kind, most, top, e, &mut rng);
        let weights = rng.mxfp4(&[e, n, k], 118, 122);
        let bias = rng.floats(DType::BF16, &[e, n], 1.0);
        let gate_up = Source {
            label: format!("gate and up of {e} experts {n}x{k}, top {top}, {kind}"),
            params: format!("%x: bf16[T, {k}], %ids: i32[T, {top}], %b: bf16[{e}, {n}]"),
            results: format!("bf16[T, {top}, {h}]"),
            body: vec![
                format!("%p = relayout @w {{layout = {packed}}} : mxfp4[{e}, {n}, {k}] {packed}"),
                format!("%d = dequant %p : bf16[{e}, {n}, {k}]"),
                format!("%a = moe_matmul %x, %d, %ids : f32[T, {top}, {n}]"),
                format!("%c = gather_rows %b, %ids : bf16[T, {top}, {n}]"),
                format!("%z = add %a, %c : f32[T, {top}, {n}]"),
                format!("%s = swiglu %z {{limit = 7.0, alpha = 1.702}} : f32[T, {top}, {h}]"),
                format!("%y = cast %s {{to = bf16}} : bf16[T, {top}, {h}]"),
                "return %y".into(),
            ],
            inputs: vec![
                ("x", rng.floats(DType::BF16, &[most, k], 1.0), true),
                ("ids", ids.clone(), true),
                ("b", bias.clone(), false),
            ],
            weights: vec![("w", weights.clone())],
        };
        let down = Source {
            label: format!("down of {e} experts {n}x{k}, top {top}, {kind}"),
            params: format!(
                "%x: bf16[T, {top}, {k}], %ids: i32[T, {top}], %b: bf16[{e}, {n}], %p: f32[T, {top}], %r: f32[T, {n}]"
            ),
            results: format!("f32[T, {n}]"),
            body: vec![
                format!("%q = relayout @w {{layout = {packed}}} : mxfp4[{e}, {n}, {k}] {packed}"),
                format!("%d = dequant %q : bf16[{e}, {n}, {k}]"),
                format!("%a = moe_matmul %x, %d, %ids : f32[T, {top}, {n}]"),
                format!("%c = gather_rows %b, %ids : bf16[T, {top}, {n}]"),
                format!("%z = add %a, %c : f32[T, {top}, {n}]"),
                // Rounded before they are added up, as GPT-OSS has it.
                format!("%m = cast %z {{to = bf16}} : bf16[T, {top}, {n}]"),
                format!("%l = cast %m {{to = f32}} : f32[T, {top}, {n}]"),
                format!("%s = moe_combine %l, %p : f32[T, {n}]"),
                format!("%y = add %r, %s : f32[T, {n}]"),
                "return %y".into(),
            ],
            inputs: vec![
                ("x", rng.floats(DType::BF16, &[most, top, k], 1.0), true),
                ("ids", ids, true),
                ("b", bias, false),
                ("p", rng.floats(DType::F32, &[most, top], 0.5), true),
                ("r", rng.floats(DType::F32, &[most, n], 1.0), true),
            ],
            weights: vec![("w", weights)],
        };
        for (source, few_rows) in [(gate_up, 64), (down, 4)] {
            let (few, tiled, wide) = ("seed/moe-stream", "seed/moe-tile", "seed/moe-wide");
            out.push(source.scenario(&[1, 2, 3, 4, 7, 9, 16, 31, 64], &["moe_stream"], without(&[tiled, wide])));
            // So many that units are taken from a counter.
            let shared: Vec<usize> =
                [2, 3, 5, 8, 12, 24, 31, 48, 64].into_iter().filter(|t| t * top > few_rows).collect();
            let counter = Fused { named: &["moe_stream", "_c"], ..without(&[tiled, wide]) };
            out.push(source.scenario(&shared, &["moe_stream"], counter));
            out.push(source.scenario(&[9, 33, 64, 65, 150], &["moe_tile"], without(&[few, wide])));
            out.push(source.scenario(&[9, 33, 64, 65, 150], &["moe_wide"], without(&[few, tiled])));
            let mut chain = without(&[]);
            chain.options.enabled_rules = vec!["seed/moe-gemm".into()];
            // Up to 450 rows an expert: every cut of the template.
            let sizes = [1, 9, 33, 63, 64, 65, 150, 300, 900].into_iter().filter(|t| *t <= most);
            out.push(of_prompts(source.scenario(&sizes.collect::<Vec<_>>(), &["moe_gemm"], chain)));
        }
    }
    out
}

/// Both products with experts as the stages of one kernel.
fn pairs() -> Vec<Scenario> {
    let mut out = Vec::new();
    for (e, top, k, h, kind, packed) in [
        (4, 2, 64, 32, "any", "#mx64"),
        (32, 4, 320, 96, "any", "#mx64.fast"),
        (32, 4, 2880, 160, "skewed", "#mx64.fast"),
        (6, 3, 192, 2880, "same", "#mx64"),
        (8, 4, 2880, 2880, "any", "#mx64.fast"),
        (128, 4, 128, 64, "any", "#mx64.fast"),
    ] {
        let mut rng = Rng::new(&format!("pairs {e} {top} {k} {h} {kind}"));
        let (most, n) = (8, 2 * h);
        let ids = choices(kind, most, top, e, &mut rng);
        let source = Source {
            label: format!("both products with {e} experts, {k} to {h} to {k}, top {top}, {kind}"),
            params: format!(
                "%x: bf16[T, {k}], %ids: i32[T, {top}], %b: bf16[{e}, {n}], %g: bf16[{e}, {k}], %p: f32[T, {top}], \
                 %r: f32[T, {k}]"
            ),
            results: format!("f32[T, {k}]"),
            body: vec![
                format!("%wp = relayout @w {{layout = {packed}}} : mxfp4[{e}, {n}, {k}] {packed}"),
                format!("%wd = dequant %wp : bf16[{e}, {n}, {k}]"),
                format!("%a = moe_matmul %x, %wd, %ids : f32[T, {top}, {n}]"),
                format!("%c = gather_rows %b, %ids : bf16[T, {top}, {n}]"),
                format!("%z = add %a, %c : f32[T, {top}, {n}]"),
                format!("%s = swiglu %z {{limit = 7.0, alpha = 1.702}} : f32[T, {top}, {h}]"),
                format!("%h = cast %s {{to = bf16}} : bf16[T, {top}, {h}]"),
                format!("%vp = relayout @v {{layout = {packed}}} : mxfp4[{e}, {k}, {h}] {packed}"),
                format!("%vd = dequant %vp : bf16[{e}, {k}, {h}]"),
                format!("%d = moe_matmul %h, %vd, %ids : f32[T, {top}, {k}]"),
                format!("%f = gather_rows %g, %ids : bf16[T, {top}, {k}]"),
                format!("%u = add %d, %f : f32[T, {top}, {k}]"),
                format!("%m = moe_combine %u, %p : f32[T, {k}]"),
                format!("%y = add %r, %m : f32[T, {k}]"),
                "return %y".into(),
            ],
            inputs: vec![
                ("x", rng.floats(DType::BF16, &[most, k], 1.0), true),
                ("ids", ids, true),
                ("b", rng.floats(DType::BF16, &[e, n], 1.0), false),
                ("g", rng.floats(DType::BF16, &[e, k], 1.0), false),
                ("p", rng.floats(DType::F32, &[most, top], 0.5), true),
                ("r", rng.floats(DType::F32, &[most, k], 1.0), true),
            ],
            weights: vec![("w", rng.mxfp4(&[e, n, k], 118, 122)), ("v", rng.mxfp4(&[e, k, h], 118, 122))],
        };
        // Its parts are those of two kernels, so only its price can be what decides.
        let mut chain = cheap("moe_pair", without(&["seed/moe-tile", "seed/moe-wide"]));
        chain.options.enabled_rules = vec!["chain/moe-pair".into()];
        out.push(source.scenario(&[1, 2, 3, 4, 7, 8], &["moe_pair"], chain));
        // The same rows as two kernels.
        out.push(source.scenario(&[1, 8], &["moe_stream"], without(&["seed/moe-tile", "seed/moe-wide"])));
    }
    out
}

/// Scalar kernels and rows.
fn scalars() -> Vec<Scenario> {
    let mut rng = Rng::new("scalars");
    let most = 200;
    let k = 2880;
    let ids = rng.ints(&[most], 0, 97);
    let source = Source {
        label: "embedding, norm".into(),
        params: format!("%e: bf16[97, {k}], %ids: i32[T], %g: bf16[{k}]"),
        results: format!("f32[T, {k}], bf16[T, {k}]"),
        body: vec![
            format!("%x = gather_rows %e, %ids : bf16[T, {k}]"),
            format!("%h = cast %x {{to = f32}} : f32[T, {k}]"),
            format!("%m = rms_norm %h, %g : f32[T, {k}]"),
            format!("%n = cast %m {{to = bf16}} : bf16[T, {k}]"),
            "return %h, %n".into(),
        ],
        inputs: vec![
            ("e", rng.floats(DType::BF16, &[97, k], 1.0), false),
            ("ids", ids, true),
            ("g", rng.floats(DType::BF16, &[k], 1.0), false),
        ],
        weights: vec![],
    };
    let mut out = vec![source.scenario(&[1, 2, 33, 200], &["row"], without(&[]))];
    out.push(source.scenario(&[1, 2, 33, 200], &["map", "row"], without(&["absorb/share"])));
    for (choices, k) in [(4, k), (3, 9000)] {
        let source = Source {
            label: format!("sum over {choices} choices, norm of {k}"),
            params: format!("%x: f32[T, {k}], %r: bf16[T, {choices}, {k}], %p: f32[T, {choices}], %g: bf16[{k}]"),
            results: format!("f32[T, {k}], bf16[T, {k}]"),
            body: vec![
                format!("%f = cast %r {{to = f32}} : f32[T, {choices}, {k}]"),
                format!("%c = moe_combine %f, %p : f32[T, {k}]"),
                format!("%z = add %x, %c : f32[T, {k}]"),
                format!("%m = rms_norm %z, %g : f32[T, {k}]"),
                format!("%n = cast %m {{to = bf16}} : bf16[T, {k}]"),
                "return %z, %n".into(),
            ],
            inputs: vec![
                ("x", rng.floats(DType::F32, &[most, k], 1.0), true),
                ("r", rng.floats(DType::BF16, &[most, choices, k], 1.0), true),
                ("p", rng.floats(DType::F32, &[most, choices], 1.0), true),
                ("g", rng.floats(DType::BF16, &[k], 1.0), false),
            ],
            weights: vec![],
        };
        out.push(source.scenario(&[1, 2, 33, 200], &["row"], without(&[])));
        out.push(source.scenario(&[33, 200], &["map", "row"], without(&["absorb/sum"])));
    }
    out
}
