//! Kernels of template `moe_pair` as cases.

use super::cases::Case;
use super::fused::kernel;

/// Experts that a token chooses.
pub const CHOICES: i64 = 3;
/// Columns of the middle rows.
pub const MIDDLE: i64 = 96;

/// Gate and up, activation, down, weighted sum and residual: rows of 64 columns to 40.
fn pair(tokens: i64, swiglu: &str, layouts: [&str; 2], sums: bool) -> Case {
    let (j, m, n) = (CHOICES, MIDDLE, 2 * MIDDLE);
    let [g, d] = [format!("mxfp4[5, {n}, 64] #{}", layouts[0]), format!("mxfp4[5, 40, {m}] #{}", layouts[1])];
    let (yields, types, results) = match sums {
        true => ("%y, %c", format!("f32[T, 40], f32[T, {j}, 40]"), "%y, %s"),
        false => ("%y", "f32[T, 40]".to_string(), "%y"),
    };
    let body = format!(
        "sym T in 0..=9000
func @f(%x: bf16[T, 64], %g: {g}, %ids: i32[T, {j}], %gb: bf16[5, {n}], %d: {d}, %r: f32[T, 40], %db: bf16[5, 40], %p: f32[T, {j}]) -> ({types}) {{
  {results} = kernel %g, %x, %ids, %gb, %ids, %d, %ids, %r, %db, %ids, %p {{template = moe_pair}}
    prologue(%g: {g}) {{
      %w = dequant %g {{to = bf16}} : bf16[5, {n}, 64]
      yield %w
    }}
    main(%w: bf16[5, {n}, 64], %x: bf16[T, 64], %ids: i32[T, {j}]) {{
      %a = moe_matmul %x, %w, %ids : f32[T, {j}, {n}]
      yield %a
    }}
    epilogue(%a: f32[T, {j}, {n}], %gb: bf16[5, {n}], %ids: i32[T, {j}]) {{
      %b = gather_rows %gb, %ids : bf16[T, {j}, {n}]
      %c = add %a, %b : f32[T, {j}, {n}]
      %s = swiglu %c {{layout = {swiglu}}} : f32[T, {j}, {m}]
      %h = cast %s {{to = bf16}} : bf16[T, {j}, {m}]
      yield %h
    }}
    then
    prologue(%h: bf16[T, {j}, {m}], %d: {d}) {{
      %w = dequant %d {{to = bf16}} : bf16[5, 40, {m}]
      yield %h, %w
    }}
    main(%h: bf16[T, {j}, {m}], %w: bf16[5, 40, {m}], %ids: i32[T, {j}]) {{
      %a = moe_matmul %h, %w, %ids : f32[T, {j}, 40]
      yield %a
    }}
    epilogue(%a: f32[T, {j}, 40], %r: f32[T, 40], %db: bf16[5, 40], %ids: i32[T, {j}], %p: f32[T, {j}]) {{
      %b = gather_rows %db, %ids : bf16[T, {j}, 40]
      %c = add %a, %b : f32[T, {j}, 40]
      %z = moe_combine %c, %p : f32[T, 40]
      %y = add %r, %z : f32[T, 40]
      yield {yields}
    }} : {types}
  return {results}
}}\n"
    );
    kernel(&format!("moe_pair {swiglu} {layouts:?} {sums}"), &body, &format!("T={tokens}"))
}

/// Every branch of what does not depend on the text.
pub fn cases() -> Vec<Case> {
    vec![
        pair(1, "interleaved", ["mx64.fast", "mx64.fast"], false),
        pair(8, "interleaved", ["mx64", "mx64.fast"], false),
        pair(5, "halves", ["mx64.fast", "mx64"], false),
        pair(3, "halves", ["mx64", "mx64"], true),
    ]
}
