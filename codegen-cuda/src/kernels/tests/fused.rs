//! Fused kernels as cases: written as IR text, so that they are what a plan holds.

use gossamer_ir::{OpKind, text};

use super::cases::Case;

/// The kernel of `text`, a module without its first line, whose last function holds it; weights are parameters.
pub fn kernel(name: &str, body: &str, sizes: &str) -> Case {
    let module = text::parse(name, &format!("gir 1\n{body}")).unwrap_or_else(|e| panic!("{name}: {e}"));
    let f = module.funcs.last().unwrap();
    let id = f.graph.ids().into_iter().find(|id| f.graph.op(*id).kind == OpKind::Kernel).unwrap();
    let op = f.graph.op(id).clone();
    let kernel = op.attrs.kernel().unwrap();
    let template = gossamer_ir::template::template(kernel.template()).unwrap();
    let operands = kernel.operand_types();
    let sizes: gossamer_ir::Bindings = sizes
        .split_whitespace()
        .map(|s| s.split_once('=').map(|(k, v)| (k.into(), v.parse().unwrap())).unwrap())
        .collect();
    template.check(kernel).and_then(|()| template.fits(kernel, &sizes)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let name = format!("kernel {name} {sizes:?}");
    Case { name, module, op, operands, sizes }
}

/// Symbols that the texts use.
const SYMS: &str = "sym T in 0..=9000\nsym R in 0..=300\nsym S in 0..=300\nsym P in 0..=2000\nsym C in 1..=200000\n";

/// rms_norm, q/k/v projection, bias, rope and kv_write: `heads` query heads over `kv` of `dim`.
pub fn qkv(t: &str, hidden: i64, heads: i64, kv: i64, dim: i64, sizes: &str) -> Case {
    qkv_of(t, t == "stream", hidden, (heads, kv, dim), sizes)
}

/// The same with the norm in front or without.
pub fn qkv_of(t: &str, norm: bool, hidden: i64, (heads, kv, dim): (i64, i64, i64), sizes: &str) -> Case {
    let (q, k) = (heads * dim, kv * dim);
    let n = q + 2 * k;
    let (head, prologue, x) = match norm {
        true => (
            "%x, %norm, %w, %b, %pos, %table, %kv, %seq, %pages".to_string(),
            format!(
                "    prologue(%x: f32[T, {hidden}], %norm: bf16[{hidden}]) {{
      %y = rms_norm %x, %norm : f32[T, {hidden}]
      %z = cast %y {{to = bf16}} : bf16[T, {hidden}]
      yield %z
    }}\n"
            ),
            format!("%x: f32[T, {hidden}], %norm: bf16[{hidden}]"),
        ),
        false => {
            ("%x, %w, %b, %pos, %table, %kv, %seq, %pages".to_string(), String::new(), format!("%x: bf16[T, {hidden}]"))
        }
    };
    let body = format!(
        "{SYMS}kv full {{head_dim = {dim}, heads = {kv}, page = 16}}
func @f({x}, %w: bf16[{n}, {hidden}], %b: bf16[{n}], %pos: i32[T], %table: f32[C, {dim}], %kv: kv<full>, %seq: i32[T], %pages: i32[S, P]) -> (bf16[T, {q}], kv<full>) {{
  %q, %kv.1 = kernel {head} {{template = {t}}}
{prologue}    main(%z: bf16[T, {hidden}], %w: bf16[{n}, {hidden}]) {{
      %a = matmul %z, %w : f32[T, {n}]
      yield %a
    }}
    epilogue(%a: f32[T, {n}], %b: bf16[{n}], %pos: i32[T], %table: f32[C, {dim}], %kv: kv<full>, %seq: i32[T], %pages: i32[S, P]) {{
      %c = add %a, %b : f32[T, {n}]
      %q, %k, %v = split %c {{sizes = [{q}, {k}, {k}]}} : f32[T, {q}], f32[T, {k}], f32[T, {k}]
      %qr = rope %q, %pos, %table : f32[T, {q}]
      %kr = rope %k, %pos, %table : f32[T, {k}]
      %qb = cast %qr {{to = bf16}} : bf16[T, {q}]
      %kb = cast %kr {{to = bf16}} : bf16[T, {k}]
      %vb = cast %v {{to = bf16}} : bf16[T, {k}]
      %kv.1 = kv_write %kv, %kb, %vb, %pos, %seq, %pages : kv<full>
      yield %qb, %kv.1
    }} : bf16[T, {q}], kv<full>
  return %q, %kv.1
}}\n"
    );
    kernel(&format!("{t} qkv {hidden} {heads}/{kv}x{dim}"), &body, sizes)
}

/// Projection, bias and residual, the result also rounded.
pub fn out(t: &str, n: i64, k: i64, sizes: &str) -> Case {
    let body = format!(
        "{SYMS}func @f(%x: bf16[T, {k}], %w: bf16[{n}, {k}], %b: bf16[{n}], %r: f32[T, {n}]) -> (f32[T, {n}], bf16[T, {n}]) {{
  %y, %z = kernel %x, %w, %b, %r {{template = {t}}}
    main(%x: bf16[T, {k}], %w: bf16[{n}, {k}]) {{
      %a = matmul %x, %w : f32[T, {n}]
      yield %a
    }}
    epilogue(%a: f32[T, {n}], %b: bf16[{n}], %r: f32[T, {n}]) {{
      %c = add %a, %b : f32[T, {n}]
      %y = add %r, %c : f32[T, {n}]
      %z = cast %y {{to = bf16}} : bf16[T, {n}]
      yield %y, %z
    }} : f32[T, {n}], bf16[T, {n}]
  return %y, %z
}}\n"
    );
    kernel(&format!("{t} out {n}x{k}"), &body, sizes)
}

/// Rows picked, normed and multiplied by a head; logits and the maxima of tiles.
pub fn head(n: i64, k: i64, tile: i64, sizes: &str) -> Case {
    head_of("stream", true, (n, k), tile, sizes)
}

/// The same of rows that are picked and normed in front or elsewhere.
pub fn head_of(t: &str, norm: bool, (n, k): (i64, i64), tile: i64, sizes: &str) -> Case {
    let tiles = n.div_euclid(tile) + i64::from(n % tile != 0);
    let (operands, params, prologue) = match norm {
        true => (
            "%x, %rows, %norm, %w",
            format!("%x: f32[T, {k}], %rows: i32[R], %norm: bf16[{k}]"),
            format!(
                "    prologue(%x: f32[T, {k}], %rows: i32[R], %norm: bf16[{k}]) {{
      %g = gather_rows %x, %rows : f32[R, {k}]
      %y = rms_norm %g, %norm : f32[R, {k}]
      %z = cast %y {{to = bf16}} : bf16[R, {k}]
      yield %z
    }}\n"
            ),
        ),
        false => ("%x, %w", format!("%x: bf16[R, {k}]"), String::new()),
    };
    let body = format!(
        "{SYMS}func @f({params}, %w: bf16[{n}, {k}]) -> (f32[R, {n}], f32[R, {tiles}]) {{
  %y, %m = kernel {operands} {{template = {t}}}
{prologue}    main(%z: bf16[R, {k}], %w: bf16[{n}, {k}]) {{
      %a = matmul %z, %w : f32[R, {n}]
      yield %a
    }}
    epilogue(%a: f32[R, {n}]) {{
      %m = tile_max %a {{tile = {tile}}} : f32[R, {tiles}]
      yield %a, %m
    }} : f32[R, {n}], f32[R, {tiles}]
  return %y, %m
}}\n"
    );
    kernel(&format!("{t} head {n}x{k} tile {tile}"), &body, sizes)
}

/// Norm, scores of experts with bias, the greatest of them and their softmax; the normed rows too.
pub fn router(n: i64, k: i64, top: i64, norm: bool, sizes: &str) -> Case {
    let (operands, params, prologue) = match norm {
        true => (
            "%x, %norm, %w, %b",
            format!("%x: f32[T, {k}], %norm: bf16[{k}]"),
            format!(
                "    prologue(%x: f32[T, {k}], %norm: bf16[{k}]) {{
      %y = rms_norm %x, %norm : f32[T, {k}]
      %z = cast %y {{to = bf16}} : bf16[T, {k}]
      yield %z
    }}\n"
            ),
        ),
        false => ("%x, %w, %b", format!("%x: bf16[T, {k}]"), String::new()),
    };
    let (export, param, yields, ty) = match norm {
        true => (", %z", format!(", %z: bf16[T, {k}]"), ", %z", format!(", bf16[T, {k}]")),
        false => ("", String::new(), "", String::new()),
    };
    let result = if norm { ", %n" } else { "" };
    let body = format!(
        "{SYMS}func @f({params}, %w: bf16[{n}, {k}], %b: bf16[{n}]) -> (f32[T, {top}], i32[T, {top}]{ty}) {{
  %p, %i{result} = kernel {operands} {{template = router}}
{prologue}    main(%z: bf16[T, {k}], %w: bf16[{n}, {k}]) {{
      %a = matmul %z, %w : f32[T, {n}]
      yield %a{export}
    }}
    epilogue(%a: f32[T, {n}]{param}, %b: bf16[{n}]) {{
      %c = add %a, %b : f32[T, {n}]
      %v, %i = topk %c {{k = {top}}} : f32[T, {top}], i32[T, {top}]
      %p = softmax %v : f32[T, {top}]
      yield %p, %i{yields}
    }} : f32[T, {top}], i32[T, {top}]{ty}
  return %p, %i{result}
}}\n"
    );
    kernel(&format!("router {n}x{k} top {top} norm {norm}"), &body, sizes)
}

/// Gate and up in one projection, gated activation.
pub fn gated(t: &str, half: i64, k: i64, layout: &str, sizes: &str) -> Case {
    let n = 2 * half;
    let body = format!(
        "{SYMS}func @f(%x: bf16[T, {k}], %w: bf16[{n}, {k}], %b: bf16[{n}]) -> (bf16[T, {half}]) {{
  %y = kernel %x, %w, %b {{template = {t}}}
    main(%x: bf16[T, {k}], %w: bf16[{n}, {k}]) {{
      %a = matmul %x, %w : f32[T, {n}]
      yield %a
    }}
    epilogue(%a: f32[T, {n}], %b: bf16[{n}]) {{
      %c = add %a, %b : f32[T, {n}]
      %s = swiglu %c {{layout = {layout}}} : f32[T, {half}]
      %y = cast %s {{to = bf16}} : bf16[T, {half}]
      yield %y
    }} : bf16[T, {half}]
  return %y
}}\n"
    );
    kernel(&format!("{t} gated {half}x{k} {layout}"), &body, sizes)
}

/// Every template at small sizes that reach its branches.
pub fn cases() -> Vec<Case> {
    let mut out_cases = Vec::new();
    for rows in [1, 5, 8, 12, 20] {
        let sizes = format!("T={rows} S=3 P=8 C=40");
        out_cases.push(qkv("stream", 192, 4, 1, 64, &sizes));
        out_cases.push(qkv("stream", 1088, 2, 2, 32, &sizes));
        out_cases.push(out("stream", 72, 256, &sizes));
    }
    out_cases.push(qkv("stream", 64, 4, 2, 16, "T=3 S=3 P=8 C=40"));
    out_cases.push(qkv("stream", 64, 4, 2, 8, "T=3 S=3 P=8 C=40"));
    // K that is not a multiple of 64, of 8, N that is no multiple of 16.
    out_cases.push(out("stream", 40, 104, "T=4"));
    out_cases.push(out("stream", 33, 37, "T=2"));
    out_cases.push(out("stream", 33, 640, "T=32"));
    out_cases.push(head(100, 128, 32, "T=3 R=2"));
    out_cases.push(head(320, 72, 16, "T=3 R=9"));
    out_cases.push(head(80, 320, 48, "T=20 R=17"));
    out_cases.push(head(80, 1088, 48, "T=20 R=17"));
    out_cases.push(head(48, 1088, 48, "T=20 R=6"));
    for layout in ["interleaved", "halves"] {
        out_cases.push(gated("stream", 48, 128, layout, "T=3"));
        out_cases.push(gated("tile", 128, 72, layout, "T=70"));
    }
    out_cases.push(qkv("tile", 192, 4, 1, 64, "T=70 S=3 P=8 C=40"));
    out_cases.push(qkv("tile", 104, 2, 1, 32, "T=20 S=3 P=8 C=40"));
    out_cases.push(out("tile", 72, 256, "T=90"));
    out_cases.push(out("tile", 33, 37, "T=20"));
    for (n, k, top, norm, sizes) in [
        (8, 1088, 4, true, "T=1"),
        (7, 1088, 4, true, "T=5"),
        (5, 72, 2, false, "T=3"),
        (8, 104, 8, true, "T=12"),
        (12, 1088, 4, true, "T=3000"),
        (40, 64, 4, true, "T=3000"),
    ] {
        out_cases.push(router(n, k, top, norm, sizes));
    }
    out_cases.extend(rows());
    out_cases.extend(maps());
    out_cases.extend(super::moe::cases());
    out_cases
}

fn rows() -> Vec<Case> {
    let norm = |n: i64, sizes: &str| {
        let body = format!(
            "{SYMS}func @f(%x: f32[T, {n}], %ids: i32[R], %w: bf16[{n}], %b: f32[{n}]) -> (bf16[R, {n}], f32[R, {n}]) {{
  %y, %z = kernel %x, %ids, %w, %b {{template = row}}
    prologue(%x: f32[T, {n}], %ids: i32[R]) {{
      %g = gather_rows %x, %ids : f32[R, {n}]
      yield %g
    }}
    main(%g: f32[R, {n}], %w: bf16[{n}]) {{
      %y = rms_norm %g, %w : f32[R, {n}]
      yield %y
    }}
    epilogue(%y: f32[R, {n}], %b: f32[{n}]) {{
      %c = cast %y {{to = bf16}} : bf16[R, {n}]
      %s = add %y, %b : f32[R, {n}]
      yield %c, %s
    }} : bf16[R, {n}], f32[R, {n}]
  return %y, %z
}}\n"
        );
        kernel(&format!("row norm {n}"), &body, sizes)
    };
    let soft = "func @f(%x: bf16[T, 3, 40]) -> (bf16[T, 3, 40]) {
  %y = kernel %x {template = row}
    main(%x: bf16[T, 3, 40]) {
      %y = softmax %x : bf16[T, 3, 40]
      yield %y
    } : bf16[T, 3, 40]
  return %y
}\n";
    let layer = "func @f(%x: f32[T, 96], %w: f32[96], %b: bf16[96]) -> (f32[T, 96]) {
  %y = kernel %x, %w, %b {template = row}
    main(%x: f32[T, 96], %w: f32[96], %b: bf16[96]) {
      %y = layer_norm %x, %w, %b : f32[T, 96]
      yield %y
    } : f32[T, 96]
  return %y
}\n";
    vec![
        norm(64, "T=3 R=5"),
        norm(2880, "T=50 R=7"),
        kernel("row softmax", &format!("{SYMS}{soft}"), "T=4"),
        kernel("row layer_norm", &format!("{SYMS}{layer}"), "T=4"),
    ]
}

fn maps() -> Vec<Case> {
    let combine = "func @f(%x: f32[T, 4, 72], %w: f32[T, 4], %r: f32[T, 72]) -> (f32[T, 72], bf16[T, 72]) {
  %y, %z = kernel %x, %w, %r {template = map}
    main(%x: f32[T, 4, 72], %w: f32[T, 4], %r: f32[T, 72]) {
      %c = moe_combine %x, %w : f32[T, 72]
      %y = add %r, %c : f32[T, 72]
      %z = cast %y {to = bf16} : bf16[T, 72]
      yield %y, %z
    } : f32[T, 72], bf16[T, 72]
  return %y, %z
}\n";
    let embed = "func @f(%x: bf16[50, 64], %ids: i32[T]) -> (f32[T, 64]) {
  %y = kernel %x, %ids {template = map}
    main(%x: bf16[50, 64], %ids: i32[T]) {
      %g = gather_rows %x, %ids : bf16[T, 64]
      %y = cast %g {to = f32} : f32[T, 64]
      yield %y
    } : f32[T, 64]
  return %y
}\n";
    let scalar = "func @f(%x: i32[R], %y: i32[R]) -> (i32[R], bool[R]) {
  %a, %b = kernel %x, %y {template = map}
    main(%x: i32[R], %y: i32[R]) {
      %one = const {dims = [], dtype = i32, value = 1.0} : i32[]
      %a = add %x, %one : i32[R]
      %b = cmp %a, %y {op = lt} : bool[R]
      yield %a, %b
    } : i32[R], bool[R]
  return %a, %b
}\n";
    let experts = "func @f(%x: bf16[T, 4, 32], %b: bf16[6, 32], %ids: i32[T, 4]) -> (bf16[T, 4, 16]) {
  %y = kernel %x, %b, %ids {template = map}
    main(%x: bf16[T, 4, 32], %b: bf16[6, 32], %ids: i32[T, 4]) {
      %g = gather_rows %b, %ids : bf16[T, 4, 32]
      %a = add %x, %g : bf16[T, 4, 32]
      %s = swiglu %a {layout = halves} : bf16[T, 4, 16]
      yield %s
    } : bf16[T, 4, 16]
  return %y
}\n";
    let single = "func @f(%x: bf16[T, 24], %w: bf16[24]) -> (bf16[T, 24]) {
  %y = kernel %x, %w {template = single}
    main(%x: bf16[T, 24], %w: bf16[24]) {
      %y = rms_norm %x, %w : bf16[T, 24]
      yield %y
    } : bf16[T, 24]
  return %y
}\n";
    [("combine", combine), ("embed", embed), ("scalar", scalar), ("experts", experts), ("single", single)]
        .into_iter()
        .map(|(name, text)| kernel(&format!("map {name}"), &format!("{SYMS}{text}"), "T=5 R=300"))
        .collect()
}

/// Kernels on warpgroup multiplies at sizes that can be run on a CPU.
pub fn wide() -> Vec<Case> {
    let mut all = vec![];
    for t in ["gemm", "gemm_pieces"] {
        for sizes in ["T=33 R=33 S=3 P=64 C=400", "T=150 R=150 S=3 P=64 C=400"] {
            all.push(qkv_of(t, false, 192, (4, 1, 64), sizes));
            all.push(qkv_of(t, false, 104, (2, 1, 32), sizes));
            all.push(qkv_of(t, false, 64, (4, 2, 16), sizes));
            all.push(out(t, 80, 264, sizes));
            all.push(gated(t, 64, 72, "halves", sizes));
            all.push(gated(t, 96, 136, "interleaved", sizes));
        }
    }
    // So many k that stages are used again.
    for t in ["gemm", "gemm_pieces"] {
        all.push(out(t, 48, 2880, "T=70"));
    }
    // Many columns of few k: the largest tiles.
    all.push(out("gemm", 3392, 64, "T=390"));
    all.push(qkv_of("gemm", false, 64, (40, 5, 64), "T=390 S=3 P=64 C=400"));
    all.push(head_of("gemm_pieces", false, (320, 136), 64, "T=33 R=33"));
    all.push(head_of("gemm_pieces", false, (656, 72), 128, "T=150 R=150"));
    // Clusters that share the experts of a row.
    all.push(router(32, 2880, 4, true, "T=3"));
    all.push(router(128, 2880, 4, true, "T=2"));
    all
}

/// Kernels for prompts, at sizes that reach every cut.
pub fn prompts() -> Vec<Case> {
    let mut all = vec![];
    for rows in [17, 64, 100, 128, 200, 256, 512, 1024, 2048, 8192] {
        let sizes = format!("T={rows} S=3 P=64 C=131072");
        all.push(qkv("gemm", 2880, 64, 8, 64, &sizes));
        all.push(out("gemm", 2880, 4096, &sizes));
    }
    for sizes in ["T=33 S=3 P=64 C=4096", "T=300 S=3 P=64 C=4096"] {
        all.push(qkv("gemm", 192, 4, 1, 64, sizes));
        all.push(qkv("gemm", 104, 2, 1, 32, sizes));
        all.push(qkv("gemm", 64, 4, 2, 128, sizes));
        all.push(qkv("gemm", 64, 4, 2, 16, sizes));
        all.push(out("gemm", 80, 264, sizes));
        for layout in ["interleaved", "halves"] {
            all.push(gated("gemm", 128, 72, layout, sizes));
            all.push(gated("gemm", 2048, 1024, layout, sizes));
        }
    }
    for rows in [17, 64, 100, 128, 256, 512] {
        let sizes = format!("T={rows} R={rows} S=3 P=64 C=131072");
        all.push(qkv("gemm_pieces", 2880, 64, 8, 64, &sizes));
        all.push(out("gemm_pieces", 2880, 4096, &sizes));
        all.push(head_of("gemm_pieces", false, (201088, 2880), 128, &sizes));
    }
    for sizes in ["T=33 R=33 S=3 P=64 C=4096", "T=300 R=300 S=3 P=64 C=4096"] {
        all.push(qkv("gemm_pieces", 192, 4, 1, 64, sizes));
        all.push(qkv("gemm_pieces", 104, 2, 1, 32, sizes));
        all.push(out("gemm_pieces", 80, 264, sizes));
        all.push(out("gemm_pieces", 2048, 64, sizes));
        all.push(head_of("gemm_pieces", false, (320, 136), 64, sizes));
        all.push(head_of("gemm_pieces", false, (4176, 320), 128, sizes));
        for layout in ["interleaved", "halves"] {
            all.push(gated("gemm_pieces", 2048, 1024, layout, sizes));
        }
    }
    all
}

/// The kernels of GPT-OSS 20B at full size.
pub fn full_size() -> Vec<Case> {
    let mut all = vec![];
    for rows in [1, 8, 16, 32] {
        let sizes = format!("T={rows} R={rows} S={rows} P=64 C=131072");
        all.push(qkv("stream", 2880, 64, 8, 64, &sizes));
        all.push(out("stream", 2880, 4096, &sizes));
        all.push(head(201088, 2880, 128, &sizes));
    }
    for experts in [32, 128] {
        for rows in [1, 64, 2048] {
            all.push(router(experts, 2880, 4, true, &format!("T={rows}")));
        }
    }
    let sizes = "T=512 S=1 P=64 C=131072";
    all.push(qkv("tile", 2880, 64, 8, 64, sizes));
    all.push(out("tile", 2880, 4096, sizes));
    all.extend(super::moe::full_size());
    all
}
