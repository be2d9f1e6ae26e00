//! Kernels of template `moe_pair` as cases: two products with experts.

use super::cases::Case;
use super::fused::kernel;

/// Sizes: tokens, choices, experts, columns of x, of the middle rows, of the results.
type Sizes = [i64; 6];

/// Gate and up, activation, down, weighted sum and residual.
fn pair(sizes: Sizes, swiglu: &str, layouts: [&str; 2], sums: bool) -> Case {
    let [tokens, j, e, k, m, y] = sizes;
    let n = 2 * m;
    let [g, d] = [format!("mxfp4[{e}, {n}, {k}] #{}", layouts[0]), format!("mxfp4[{e}, {y}, {m}] #{}", layouts[1])];
    let (yields, types, results) = match sums {
        true => ("%y, %c", format!("f32[T, {y}], f32[T, {j}, {y}]"), "%y, %s"),
        false => ("%y", format!("f32[T, {y}]"), "%y"),
    };
    let body = format!(
        "sym T in 0..=9000
func @f(%x: bf16[T, {k}], %g: {g}, %ids: i32[T, {j}], %gb: bf16[{e}, {n}], %d: {d}, %r: f32[T, {y}], %db: bf16[{e}, {y}], %p: f32[T, {j}]) -> ({types}) {{
  {results} = kernel %g, %x, %ids, %gb, %ids, %d, %ids, %r, %db, %ids, %p {{template = moe_pair}}
    prologue(%g: {g}) {{
      %w = dequant %g {{to = bf16}} : bf16[{e}, {n}, {k}]
      yield %w
    }}
    main(%w: bf16[{e}, {n}, {k}], %x: bf16[T, {k}], %ids: i32[T, {j}]) {{
      %a = moe_matmul %x, %w, %ids : f32[T, {j}, {n}]
      yield %a
    }}
    epilogue(%a: f32[T, {j}, {n}], %gb: bf16[{e}, {n}], %ids: i32[T, {j}]) {{
      %b = gather_rows %gb, %ids : bf16[T, {j}, {n}]
      %c = add %a, %b : f32[T, {j}, {n}]
      %s = swiglu %c {{layout = {swiglu}}} : f32[T, {j}, {m}]
      %h = cast %s {{to = bf16}} : bf16[T, {j}, {m}]
      yield %h
    }}
    then
    prologue(%h: bf16[T, {j}, {m}], %d: {d}) {{
      %w = dequant %d {{to = bf16}} : bf16[{e}, {y}, {m}]
      yield %h, %w
    }}
    main(%h: bf16[T, {j}, {m}], %w: bf16[{e}, {y}, {m}], %ids: i32[T, {j}]) {{
      %a = moe_matmul %h, %w, %ids : f32[T, {j}, {y}]
      yield %a
    }}
    epilogue(%a: f32[T, {j}, {y}], %r: f32[T, {y}], %db: bf16[{e}, {y}], %ids: i32[T, {j}], %p: f32[T, {j}]) {{
      %b = gather_rows %db, %ids : bf16[T, {j}, {y}]
      %c = add %a, %b : f32[T, {j}, {y}]
      %z = moe_combine %c, %p : f32[T, {y}]
      %y = add %r, %z : f32[T, {y}]
      yield {yields}
    }} : {types}
  return {results}
}}\n"
    );
    kernel(&format!("moe_pair {swiglu} {layouts:?} {sums} {sizes:?}"), &body, &format!("T={tokens}"))
}

const FAST: [&str; 2] = ["mx64.fast", "mx64.fast"];

/// Every branch of the text at small sizes. They need the GPU: its roles wait for each other in ways that nothing here stands in for quickly.
pub fn cases() -> Vec<Case> {
    vec![
        pair([1, 4, 5, 64, 32, 40], "interleaved", FAST, false),
        pair([8, 3, 5, 192, 32, 33], "interleaved", ["mx64", "mx64.fast"], false),
        pair([5, 2, 6, 320, 32, 48], "interleaved", ["mx64.fast", "mx64"], true),
        pair([3, 4, 4, 32, 32, 16], "interleaved", ["mx64", "mx64"], false),
        pair([2, 4, 7, 640, 32, 40], "interleaved", FAST, true),
        // More than 32 rows: the whole block finds the items.
        pair([9, 3, 6, 96, 32, 40], "interleaved", FAST, false),
    ]
}

/// GPT-OSS 20B and 120B at full size.
pub fn full_size() -> Vec<Case> {
    let sizes = |tokens, experts| [tokens, 4, experts, 2880, 2880, 2880];
    let small = [1, 2, 4, 8].map(|tokens| pair(sizes(tokens, 32), "interleaved", FAST, false));
    let large = [1, 8].map(|tokens| pair(sizes(tokens, 128), "interleaved", FAST, false));
    small.into_iter().chain(large).collect()
}

/// What the text does not do.
pub fn refused() -> Vec<Case> {
    vec![
        pair([2, 4, 5, 64, 32, 40], "halves", FAST, false),
        // A strip does not fit shared memory.
        pair([2, 4, 5, 1 << 16, 32, 40], "interleaved", FAST, false),
    ]
}
