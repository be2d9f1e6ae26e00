//! Kernels over experts as cases: decoded weights, bias, activation or the weighted sum.

use super::cases::Case;
use super::fused::kernel;

/// What the epilogue does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    Plain,
    /// Bias and gated activation of adjacent columns, rounded.
    Interleaved,
    /// The same of halves.
    Halves,
    /// Bias, weighted sum over choices and residual.
    Combine,
    /// Sums per choice and their weighted sum.
    Both,
}

/// Sizes of a problem.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub tokens: i64,
    pub choices: i64,
    pub experts: i64,
    pub n: i64,
    pub k: i64,
}

/// A kernel of template `t` with weights in layout `layout`.
pub fn experts(t: &str, kind: Kind, shape: Shape, layout: &str) -> Case {
    let Shape { tokens, choices: j, experts: e, n, k } = shape;
    let shared = matches!(kind, Kind::Plain | Kind::Interleaved | Kind::Halves);
    let x = if shared { format!("bf16[T, {k}]") } else { format!("bf16[T, {j}, {k}]") };
    let w = format!("mxfp4[{e}, {n}, {k}] #{layout}");
    let (more, code, results, ty) = epilogue(kind, j, e, n);
    let names: Vec<&str> = more.iter().map(|(name, _)| *name).collect();
    let list: Vec<String> = more.iter().map(|(name, ty)| format!("%{name}: {ty}")).collect();
    let params: Vec<String> = [format!("%x: {x}"), format!("%w: {w}"), "%ids: i32[T, ".to_string() + &format!("{j}]")]
        .into_iter()
        .chain(list.iter().filter(|l| !l.starts_with("%ids")).cloned())
        .collect();
    let operands: Vec<String> = ["w", "x", "ids"].iter().chain(&names).map(|n| format!("%{n}")).collect();
    let results_text: Vec<String> = (0..results.len()).map(|i| format!("%y{i}")).collect();
    let inner: Vec<String> = [format!("%a: f32[T, {j}, {n}]")].into_iter().chain(list.iter().cloned()).collect();
    let last = match kind {
        Kind::Plain => String::new(),
        _ => format!(
            "    epilogue({}) {{\n{code}      yield {}\n    }} ",
            inner.join(", "),
            results.iter().map(|r| format!("%{r}")).collect::<Vec<_>>().join(", ")
        ),
    };
    let after_main = if kind == Kind::Plain { " " } else { "\n" };
    let body = format!(
        "sym T in 0..=9000\nfunc @f({}) -> ({ty}) {{
  {} = kernel {} {{template = {t}}}
    prologue(%w: {w}) {{
      %d = dequant %w {{to = bf16}} : bf16[{e}, {n}, {k}]
      yield %d
    }}
    main(%d: bf16[{e}, {n}, {k}], %x: {x}, %ids: i32[T, {j}]) {{
      %a = moe_matmul %x, %d, %ids : f32[T, {j}, {n}]
      yield %a
    }}{after_main}{last}: {ty}
  return {}
}}\n",
        params.join(", "),
        results_text.join(", "),
        operands.join(", "),
        results_text.join(", "),
    );
    kernel(&format!("{t} {kind:?} {j} of {e} {n}x{k} {layout}"), &body, &format!("T={tokens}"))
}

type Epilogue = (Vec<(&'static str, String)>, String, Vec<&'static str>, String);

/// Operands, ops, yields and types of an epilogue.
fn epilogue(kind: Kind, j: i64, e: i64, n: i64) -> Epilogue {
    let bias = vec![("b", format!("bf16[{e}, {n}]")), ("ids", format!("i32[T, {j}]"))];
    let biased =
        format!("      %g = gather_rows %b, %ids : bf16[T, {j}, {n}]\n      %c = add %a, %g : f32[T, {j}, {n}]\n");
    let combined = format!("      %m = moe_combine %c, %p : f32[T, {n}]\n      %y = add %r, %m : f32[T, {n}]\n");
    let with = |more: &[(&'static str, String)]| [bias.as_slice(), more].concat();
    let weights = [("p", format!("f32[T, {j}]")), ("r", format!("f32[T, {n}]"))];
    match kind {
        Kind::Plain => (vec![], String::new(), vec!["a"], format!("f32[T, {j}, {n}]")),
        Kind::Interleaved | Kind::Halves => {
            let layout = if kind == Kind::Halves { "halves" } else { "interleaved" };
            let half = n / 2;
            let code = format!(
                "{biased}      %s = swiglu %c {{layout = {layout}}} : f32[T, {j}, {half}]\n      %y = cast %s {{to = bf16}} : bf16[T, {j}, {half}]\n"
            );
            (with(&[]), code, vec!["y"], format!("bf16[T, {j}, {half}]"))
        }
        Kind::Combine => (with(&weights), format!("{biased}{combined}"), vec!["y"], format!("f32[T, {n}]")),
        Kind::Both => {
            let types = format!("f32[T, {j}, {n}], f32[T, {n}]");
            (with(&weights), format!("{biased}{combined}"), vec!["c", "y"], types)
        }
    }
}

fn shape(tokens: i64, choices: i64, experts: i64, n: i64, k: i64) -> Shape {
    Shape { tokens, choices, experts, n, k }
}

/// Every branch of both templates at small sizes.
pub fn cases() -> Vec<Case> {
    use Kind::{Both, Combine, Halves, Interleaved, Plain};
    let mut out = Vec::new();
    for (i, (kind, s)) in [
        (Plain, shape(1, 4, 5, 48, 192)),
        (Plain, shape(3, 1, 1, 17, 32)),
        (Plain, shape(1, 4, 130, 40, 96)),
        (Interleaved, shape(1, 4, 5, 80, 320)),
        (Interleaved, shape(6, 2, 4, 72, 608)),
        (Interleaved, shape(20, 4, 6, 144, 352)),
        (Halves, shape(1, 4, 5, 96, 320)),
        (Halves, shape(3, 2, 6, 224, 160)),
        (Halves, shape(12, 8, 6, 160, 64)),
        (Combine, shape(1, 4, 5, 40, 320)),
        (Combine, shape(3, 4, 6, 57, 352)),
        (Combine, shape(9, 3, 4, 72, 160)),
        (Combine, shape(32, 4, 7, 33, 32)),
        (Combine, shape(3, 1, 5, 80, 640)),
        (Both, shape(6, 2, 5, 40, 96)),
        // Enough rows for units from a counter.
        (Plain, shape(64, 4, 130, 40, 96)),
        (Interleaved, shape(20, 4, 30, 72, 608)),
        (Halves, shape(24, 4, 32, 160, 2880)),
        (Halves, shape(64, 4, 7, 96, 352)),
        // Pieces of more chunks than a ring has slots.
        (Plain, shape(64, 4, 7, 32, 4096)),
        (Combine, shape(9, 4, 128, 40, 320)),
        (Combine, shape(16, 8, 32, 57, 2880)),
        (Combine, shape(33, 7, 200, 72, 64)),
        (Combine, shape(64, 4, 9, 40, 704)),
        (Both, shape(63, 3, 40, 40, 96)),
    ]
    .into_iter()
    .enumerate()
    {
        out.push(experts("moe_stream", kind, s, ["mx64.fast", "mx64"][i % 2]));
    }
    for (i, (kind, s)) in [
        (Plain, shape(9, 1, 5, 33, 96)),
        (Plain, shape(70, 4, 5, 150, 320)),
        (Interleaved, shape(11, 2, 6, 300, 352)),
        (Interleaved, shape(70, 2, 6, 80, 608)),
        (Halves, shape(20, 4, 6, 160, 64)),
        (Halves, shape(33, 8, 6, 288, 32)),
        (Both, shape(33, 3, 6, 80, 160)),
    ]
    .into_iter()
    .enumerate()
    {
        let kind = if kind == Both { Plain } else { kind };
        out.push(experts("moe_tile", kind, s, ["mx64.fast", "mx64"][i % 2]));
    }
    out
}

/// Kernels on warpgroup multiplies at sizes that can be run on a CPU and reach every cut.
pub fn wide() -> Vec<Case> {
    use Kind::{Halves, Interleaved, Plain};
    let mut out = Vec::new();
    for (i, (kind, s)) in [
        (Plain, shape(9, 1, 5, 33, 96)),
        (Plain, shape(70, 4, 5, 150, 320)),
        (Interleaved, shape(70, 2, 6, 80, 608)),
        (Interleaved, shape(150, 2, 6, 300, 160)),
        (Interleaved, shape(200, 3, 5, 64, 32)),
        (Halves, shape(20, 4, 6, 160, 64)),
        (Halves, shape(100, 3, 4, 96, 192)),
        // So many k that stages are used again.
        (Plain, shape(60, 2, 3, 64, 2880)),
        // 200 rows an expert, and 400.
        (Plain, shape(300, 2, 3, 208, 160)),
        (Interleaved, shape(400, 2, 2, 112, 416)),
        // So many rows that a cluster orders them.
        (Plain, shape(520, 4, 5, 33, 96)),
    ]
    .into_iter()
    .enumerate()
    {
        out.push(experts("moe_gemm", kind, s, ["mx64.fast", "mx64"][i % 2]));
    }
    for (i, (kind, s)) in [
        (Plain, shape(9, 1, 5, 33, 96)),
        (Plain, shape(70, 4, 5, 150, 320)),
        (Interleaved, shape(70, 2, 60, 80, 608)),
        (Interleaved, shape(160, 2, 6, 300, 352)),
        (Halves, shape(20, 4, 6, 160, 64)),
        (Halves, shape(120, 8, 6, 96, 32)),
        (Plain, shape(40, 2, 3, 64, 2880)),
        (Halves, shape(50, 2, 2, 64, 2144)),
    ]
    .into_iter()
    .enumerate()
    {
        out.push(experts("moe_wide", kind, s, ["mx64", "mx64.fast"][i % 2]));
    }
    out
}

/// Kernels on warpgroup multiplies, at sizes that reach every cut.
pub fn prompts() -> Vec<Case> {
    use Kind::{Halves, Interleaved, Plain};
    let mut out = Vec::new();
    for tokens in [1, 100, 512, 1024, 8192] {
        out.push(experts("moe_gemm", Interleaved, shape(tokens, 4, 32, 5760, 2880), "mx64.fast"));
        out.push(experts("moe_gemm", Plain, shape(tokens, 4, 32, 2880, 2880), "mx64.fast"));
    }
    for (kind, s) in [
        (Plain, shape(9, 1, 5, 33, 96)),
        (Plain, shape(70, 4, 5, 150, 320)),
        (Interleaved, shape(600, 2, 6, 300, 352)),
        (Interleaved, shape(70, 2, 6, 80, 608)),
        (Halves, shape(20, 4, 6, 160, 64)),
        (Halves, shape(2000, 8, 6, 288, 32)),
    ] {
        out.push(experts("moe_gemm", kind, s, "mx64"));
    }
    for (tokens, e) in [(32, 32), (64, 32), (256, 32), (64, 128), (512, 128)] {
        out.push(experts("moe_wide", Interleaved, shape(tokens, 4, e, 5760, 2880), "mx64.fast"));
        out.push(experts("moe_wide", Plain, shape(tokens, 4, e, 2880, 2880), "mx64.fast"));
    }
    for (kind, s) in [
        (Plain, shape(9, 1, 5, 33, 96)),
        (Plain, shape(70, 4, 5, 150, 320)),
        (Interleaved, shape(600, 2, 6, 300, 352)),
        (Interleaved, shape(70, 2, 600, 80, 608)),
        (Halves, shape(20, 4, 6, 160, 64)),
        (Halves, shape(500, 8, 6, 288, 32)),
    ] {
        out.push(experts("moe_wide", kind, s, "mx64"));
    }
    out
}

/// GPT-OSS 20B and 120B at full size.
pub fn full_size() -> Vec<Case> {
    let mut out = Vec::new();
    for e in [32, 128] {
        for tokens in [1, 2, 4, 8, 16, 32, 64] {
            for (kind, n) in [(Kind::Interleaved, 5760), (Kind::Halves, 5760), (Kind::Combine, 2880)] {
                if e == 32 || [1, 16, 64].contains(&tokens) {
                    out.push(experts("moe_stream", kind, shape(tokens, 4, e, n, 2880), "mx64.fast"));
                }
            }
        }
    }
    for tokens in [16, 64, 2048] {
        out.push(experts("moe_tile", Kind::Interleaved, shape(tokens, 4, 32, 5760, 2880), "mx64.fast"));
        out.push(experts("moe_tile", Kind::Plain, shape(tokens, 4, 32, 2880, 2880), "mx64.fast"));
    }
    out.push(experts("moe_stream", Kind::Interleaved, shape(8, 4, 32, 5760, 2880), "mx64"));
    out.push(experts("moe_tile", Kind::Interleaved, shape(2048, 4, 32, 5760, 2880), "mx64"));
    out
}

#[test]
fn what_the_templates_do_not_take_is_refused_in_one_line() {
    let base = || experts("moe_stream", Kind::Combine, shape(2, 4, 5, 48, 64), "mx64");
    let refused = |case: &Case, words: &[&str]| {
        let error = case.lower().unwrap_err().to_string();
        assert_eq!(error.lines().count(), 1);
        assert!(words.iter().all(|w| error.contains(w)), "{error}");
    };
    // The layout that is bound may be another one than planned.
    let mut case = base();
    let packed = case.operands[0].as_tensor().unwrap().clone();
    let with = |layout: Option<&str>| {
        let layout = layout.map(Into::into);
        gossamer_ir::Type::Tensor(gossamer_ir::TensorType { layout, ..packed.clone() })
    };
    case.operands[0] = with(Some("mx64.fast"));
    assert!(case.lower().unwrap().launches[0].kernel.text.contains("FAST = true"));
    case.operands[0] = with(None);
    refused(&case, &["mxfp4[5, 48, 64]", "#mx64"]);
    case.operands[0] = with(Some("other"));
    refused(&case, &["#other", "#mx64"]);
    let mut many = base();
    many.sizes.insert("T".into(), 65);
    refused(&many, &["260 rows", "moe_tile"]);
}

/// The entry says which text it is: `_r8x16` groups with fixed shares, `_c8x16` units from a counter, by rows of an item and of w.
#[test]
fn rows_choose_the_text() {
    let entry = |kind, tokens, experts, n| {
        let lowered = experts_of(kind, tokens, experts, n).lower().unwrap();
        let [launch] = lowered.launches.as_slice() else { panic!("one launch") };
        (launch.kernel.entry.rsplit('_').nth(1).unwrap().to_string(), lowered.counters, lowered.scratch.len())
    };
    let few = |text: &str| (text.to_string(), 0, 0);
    assert_eq!(entry(Kind::Interleaved, 8, 32, 5760), few("r8x16"));
    assert_eq!(entry(Kind::Interleaved, 16, 32, 5760), few("r8x16"));
    assert_eq!(entry(Kind::Interleaved, 17, 32, 5760), ("c8x16".into(), 1, 0));
    // Two tiles of w leave room for fewer rows.
    assert_eq!(entry(Kind::Halves, 64, 32, 5760), ("c8x32".into(), 1, 0));
    assert_eq!(entry(Kind::Interleaved, 64, 128, 5760), ("c8x16".into(), 1, 0));
    assert_eq!(entry(Kind::Combine, 1, 32, 2880), few("r1x16"));
    assert_eq!(entry(Kind::Combine, 2, 32, 2880), ("c8x16".into(), 181, 1));
    assert_eq!(entry(Kind::Combine, 64, 32, 2880), ("c16x16".into(), 181, 1));
    // More strips than a block's list may have, or than there are counters.
    assert_eq!(entry(Kind::Combine, 9, 2, 16 * 30_000), few("r8x16"));
    assert_eq!(entry(Kind::Combine, 9, 2, 16 * 40_000), few("r8x16"));
}

fn experts_of(kind: Kind, tokens: i64, e: i64, n: i64) -> Case {
    experts("moe_stream", kind, shape(tokens, 4, e, n, 2880), "mx64.fast")
}

#[test]
fn ids_are_read_once_if_the_same() {
    let case = experts("moe_stream", Kind::Interleaved, shape(2, 4, 5, 48, 64), "mx64");
    let text = &case.lower().unwrap().launches[0].kernel.text;
    assert!(text.contains("items.key["), "{text}");
    assert_eq!(text.matches("const i32* ").count(), 4, "ids alone, besides helpers: {text}");
}
