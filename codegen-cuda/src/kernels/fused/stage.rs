//! How `stream` puts its rows of x into shared memory: copies, or what a prologue computes of them.
//!
//! A norm sums a row as its own kernel does. Where a row fits the registers of a block it is asked for once, all of it at the same time, since blocks
//! wait for this before they can multiply.

use gossamer_ir::{OpId, OpKind, Value};

use super::super::contraction::UNIT;
use super::super::region::{Index, Line, Region, Source, malformed, text};
use super::super::{Cx, blocks, rows, scalar};
use super::stream::{Plan, Shape};
use super::{Body, Origin, Params};
use crate::emit::f32_literal;
use crate::lower::LowerError;

type Result<T> = std::result::Result<T, LowerError>;

/// Rows of x that a norm keeps in registers at once, and the elements of them that a thread may hold.
const HELD: (i64, i64) = (4, 48);
/// Runs of 16 bytes of x up to which a thread asks for all before it stores any.
const COPIES: i64 = 4;

/// Code that puts rows of x into shared memory.
#[derive(Default)]
pub(super) struct Staging {
    /// Declarations of shared memory.
    pub shared: Vec<String>,
    /// Requests for what no step writes.
    pub prefetch: Vec<String>,
    /// Loads that other loads may follow before the rest.
    pub load: Vec<String>,
    /// The rest.
    pub code: Vec<String>,
}

/// Prints how rows of x get there: as they are, or computed by the prologue.
pub(super) fn stage_x(
    cx: &Cx,
    body: &Body,
    x: Value,
    shape: &Shape,
    plan: &Plan,
    params: &mut Params,
) -> Result<Staging> {
    let (prologue, value) = match body.main_value(x) {
        Origin::Operand(i) => return copy_x(cx, i, shape, plan, params),
        Origin::Prologue(v) => (body.kernel.prologue().ok_or_else(|| malformed("a value of no prologue"))?, v),
        Origin::Main(_) | Origin::Before(_) => return Err(malformed("a matmul of itself")),
    };
    let ops = || prologue.graph.ids().into_iter().map(|id| (id, prologue.graph.op(id)));
    let norm = ops().find(|(_, op)| op.kind == OpKind::RmsNorm);
    let sources = body.prologue_sources(cx, params)?;
    let mut out = Staging::default();
    for (i, p) in prologue.params.iter().enumerate() {
        let (Some(t), Source::Memory(pointer)) = (p.ty.as_tensor(), &sources[i]) else { continue };
        if let ([dim], Some(bytes)) = (t.dims.as_slice(), t.dtype.bytes())
            && let Some(n) = dim.as_const()
        {
            let lines = blocks(n * bytes as i64, 128);
            out.prefetch.push(format!(
                "for (int i = threadIdx.x; i < {lines}; i += THREADS) prefetch_l2((const u8*){pointer} + i * 128);"
            ));
        }
    }
    let mut region = Region::new(prologue, cx.module(), sources).tagged("e");
    let at = [Index::var("t"), Index::var("k")];
    // Row numbers once a row.
    let lookups: Vec<Value> =
        ops().filter(|(_, op)| op.kind == OpKind::GatherRows).map(|(_, op)| op.operands[1]).collect();
    let mut look_up =
        |r: &mut Region| -> Result<()> { lookups.iter().try_for_each(|ids| r.element(*ids, &at[..1]).map(drop)) };
    match norm {
        Some((id, op)) => {
            let norm = Norm { id, x: op.operands[0], eps: f32_literal(op.attrs.float("eps")), value };
            let lanes = i64::from(rows::threads(Some(shape.k))) / 32;
            out.shared.push(format!("constexpr int LANES = {lanes};"));
            out.shared.push("__shared__ f32 norm_sums[SLOTS][LANES];".to_string());
            let steps = blocks(shape.k, 32 * lanes);
            match plan.pieces >= lanes && steps <= HELD.1 / 2 {
                true => {
                    let weights = op.operands[1];
                    hold_norm(&mut region, &norm, weights, shape, plan, steps, &mut look_up, &mut out)?;
                }
                false => loop_norm(&mut region, &norm, shape, &mut look_up, &mut out)?,
            }
        }
        None => {
            let (outer, (inner, element)) = region.scope(|r| {
                look_up(r)?;
                r.scope(|r| r.element(value, &at))
            })?;
            out.code.push("for (int slot = 0; slot < count; slot++) {".to_string());
            out.code.push("  const i32 t = row0 + slot;".to_string());
            store_row(&outer, &inner, &element, shape, &mut out.code);
            out.code.push("}".to_string());
        }
    }
    if shape.k % UNIT != 0 {
        out.code.push("for (int i = threadIdx.x; i < SLOTS * (UNITS * 64 - K); i += THREADS) {".to_string());
        out.code.push("  x_rows[i / (UNITS * 64 - K) * X_ROW + K + i % (UNITS * 64 - K)] = In{0};".to_string());
        out.code.push("}".to_string());
    }
    params.sizes(cx, &region)?;
    Ok(out)
}

/// A norm in front of the product.
struct Norm {
    id: OpId,
    x: Value,
    eps: String,
    /// What of it is staged.
    value: Value,
}

/// Prints the loop that computes a row's elements and puts them in place.
fn store_row(outer: &[Line], inner: &[Line], element: &str, shape: &Shape, code: &mut Vec<String>) {
    code.extend(text(outer).iter().map(|l| format!("  {l}")));
    code.push("#pragma unroll 6".to_string());
    code.push("  for (int k = threadIdx.x; k < K; k += THREADS) {".to_string());
    code.extend(text(inner).iter().map(|l| format!("    {l}")));
    code.push(format!("    x_rows[slot * X_ROW + k] = {};", scalar::store(shape.dtype, element)));
    code.push("  }".to_string());
}

/// The norm with its rows in registers between the sum and the product: each element is asked for once, all of them at once.
#[expect(clippy::too_many_arguments, reason = "one use; they are the whole of what the code is made from")]
fn hold_norm(
    region: &mut Region,
    norm: &Norm,
    weights: Value,
    shape: &Shape,
    plan: &Plan,
    steps: i64,
    look_up: &mut dyn FnMut(&mut Region) -> Result<()>,
    out: &mut Staging,
) -> Result<()> {
    let at = [Index::var("t"), Index::var("k")];
    let (outer, (load, x)) = region.scope(|r| {
        look_up(r)?;
        r.scope(|r| r.element(norm.x, &at))
    })?;
    let (load_weight, weight) = region.scope(|r| r.element(weights, &at[1..]))?;
    region.set_statistics(norm.id, ["scale".to_string()]);
    region.assume(norm.x, &at, "held[b][i]");
    region.assume(weights, &at[1..], "norm_weights[i]");
    let (outer_2, (finish, element)) = region.scope(|r| {
        look_up(r)?;
        r.scope(|r| r.element(norm.value, &at))
    })?;
    let batch = (HELD.1 / steps).clamp(1, HELD.0.min(plan.slots).min(shape.rows));
    let push = |lines: &mut Vec<String>, indent: usize, more: &[String]| {
        lines.extend(more.iter().map(|l| format!("{}{l}", " ".repeat(indent))));
    };
    let lines = |s: &str| s.lines().map(str::to_string).collect::<Vec<_>>();
    let load_lines = &mut out.load;
    push(
        load_lines,
        0,
        &lines(&format!(
            "// The norm: LANES warps make the partial sums that its own kernel makes, of rows that stay in registers.
constexpr int BATCH = {batch};  // rows at once
constexpr int STEPS = {steps};
f32 held[BATCH][STEPS];
auto load_rows = [&](int first) {{
#pragma unroll
  for (int b = 0; b < BATCH; b++) {{
    const i32 t = row0 + (first + b < count ? first + b : count - 1);"
        )),
    );
    push(load_lines, 4, &text(&outer));
    push(
        load_lines,
        0,
        &lines(
            "#pragma unroll\n    for (int i = 0; i < STEPS; i++) {\n      const bool inside = (int)threadIdx.x + i * LANES * 32 < K;\n      const int k = inside ? (int)threadIdx.x + i * LANES * 32 : 0;",
        ),
    );
    push(load_lines, 6, &text(&load));
    push(load_lines, 0, &lines(&format!("      held[b][i] = inside ? {x} : 0.0f;\n    }}\n  }}\n}};")));
    push(
        load_lines,
        0,
        &lines(
            "f32 norm_weights[STEPS];
if (piece < LANES) {
  load_rows(0);
#pragma unroll
  for (int i = 0; i < STEPS; i++) {
    const int k = (int)threadIdx.x + i * LANES * 32 < K ? (int)threadIdx.x + i * LANES * 32 : 0;",
        ),
    );
    push(load_lines, 4, &text(&load_weight));
    push(load_lines, 0, &lines(&format!("    norm_weights[i] = {weight};\n  }}\n}}")));
    push(
        &mut out.code,
        0,
        &lines(&format!(
            "for (int first = 0; first < count; first += BATCH) {{
  if (piece < LANES) {{
    if (first > 0) load_rows(first);
#pragma unroll
    for (int b = 0; b < BATCH; b++) {{
      f32 squares = 0.0f;
#pragma unroll
      for (int i = 0; i < STEPS; i++) squares += held[b][i] * held[b][i];
      squares = warp_sum(squares);
      if (lane == 0 && first + b < SLOTS) norm_sums[first + b][piece] = squares;
    }}
  }}
  __syncthreads();
  if (piece < LANES) {{
#pragma unroll
    for (int b = 0; b < BATCH; b++) {{
      const int slot = first + b < count ? first + b : count - 1;
      const i32 t = row0 + slot;
      const f32 squares = warp_sum(lane < LANES ? norm_sums[slot][lane] : 0.0f);
      const f32 scale = 1.0f / sqrtf(squares / (f32)K + {});",
            norm.eps
        )),
    );
    push(&mut out.code, 6, &text(&outer_2));
    push(
        &mut out.code,
        0,
        &lines(
            "#pragma unroll\n      for (int i = 0; i < STEPS; i++) {\n        const int k = (int)threadIdx.x + i * LANES * 32;\n        if (first + b < count && k < K) {",
        ),
    );
    push(&mut out.code, 10, &text(&finish));
    push(
        &mut out.code,
        0,
        &lines(&format!(
            "          x_rows[slot * X_ROW + k] = {};\n        }}\n      }}\n    }}\n  }}\n}}",
            scalar::store(shape.dtype, &element)
        )),
    );
    Ok(())
}

/// The norm in two passes over rows of any length.
fn loop_norm(
    region: &mut Region,
    norm: &Norm,
    shape: &Shape,
    look_up: &mut dyn FnMut(&mut Region) -> Result<()>,
    out: &mut Staging,
) -> Result<()> {
    let at = [Index::var("t"), Index::var("k")];
    let (outer, (load, x)) = region.scope(|r| {
        look_up(r)?;
        r.scope(|r| r.element(norm.x, &at))
    })?;
    let mut push = |indent: usize, lines: &[String]| {
        out.code.extend(lines.iter().map(|l| format!("{}{l}", " ".repeat(indent))));
    };
    let line = |s: &str| [s.to_string()];
    push(0, &line("// The norm's sum as its own kernel makes it, a warp for each of its partial sums."));
    push(0, &line("for (int job = piece; job < count * LANES; job += PIECES) {"));
    push(2, &line("const i32 t = row0 + job / LANES;"));
    push(2, &text(&outer));
    push(2, &line("f32 squares = 0.0f;"));
    push(0, &line("#pragma unroll 6"));
    push(2, &line("for (int k = job % LANES * 32 + lane; k < K; k += LANES * 32) {"));
    push(4, &text(&load));
    push(4, &[format!("squares += {x} * {x};")]);
    push(2, &line("}"));
    push(2, &line("squares = warp_sum(squares);"));
    push(2, &line("if (lane == 0) norm_sums[job / LANES][job % LANES] = squares;"));
    push(0, &line("}"));
    push(0, &line("__syncthreads();"));
    push(0, &line("for (int slot = 0; slot < count; slot++) {"));
    push(2, &line("const i32 t = row0 + slot;"));
    push(2, &line("const f32 squares = warp_sum(lane < LANES ? norm_sums[slot][lane] : 0.0f);"));
    push(2, &[format!("const f32 scale = 1.0f / sqrtf(squares / (f32)K + {});", norm.eps)]);
    region.set_statistics(norm.id, ["scale".to_string()]);
    let (outer, (inner, element)) = region.scope(|r| {
        look_up(r)?;
        r.scope(|r| r.element(norm.value, &at))
    })?;
    store_row(&outer, &inner, &element, shape, &mut out.code);
    out.code.push("}".to_string());
    Ok(())
}

fn copy_x(cx: &Cx, operand: usize, shape: &Shape, plan: &Plan, params: &mut Params) -> Result<Staging> {
    let x = params.operand(cx, operand)?;
    let aligned = shape.k % 8 == 0;
    let copies = blocks(plan.slots * blocks(shape.k, UNIT) * 8, 32 * plan.pieces);
    let lines = |s: String| s.lines().map(str::to_string).collect::<Vec<_>>();
    if copies > COPIES {
        let code = lines(format!(
            "for (int i = threadIdx.x; i < count * UNITS * 8; i += THREADS) {{
  const int slot = i / (UNITS * 8);
  const int k = i % (UNITS * 8) * 8;
  *(uint4*)(x_rows + slot * X_ROW + k) = load8<{aligned}>({x} + (i64)(row0 + slot) * K, k, K);
}}"
        ));
        return Ok(Staging { code, ..Staging::default() });
    }
    let load = lines(format!(
        "uint4 held[{copies}];
#pragma unroll
for (int j = 0; j < {copies}; j++) {{
  const int i = j * THREADS + (int)threadIdx.x;
  const int at = i < count * UNITS * 8 ? i : 0;
  held[j] = load8<{aligned}>({x} + (i64)(row0 + at / (UNITS * 8)) * K, at % (UNITS * 8) * 8, K);
}}"
    ));
    let code = lines(format!(
        "#pragma unroll
for (int j = 0; j < {copies}; j++) {{
  const int i = j * THREADS + (int)threadIdx.x;
  if (i < count * UNITS * 8) *(uint4*)(x_rows + i / (UNITS * 8) * X_ROW + i % (UNITS * 8) * 8) = held[j];
}}"
    ));
    Ok(Staging { load, code, ..Staging::default() })
}
