//! `row`: a norm or softmax of each row, with scalar code in front and behind. One block a row.

use gossamer_ir::{OpKind, Value};

use super::super::region::{Index, Region, Source, malformed, text, unsupported};
use super::super::{Cx, blocks, product, rows, single};
use super::{Body, Origin, Params};
use crate::emit::{Piece, Text, f32_literal};
use crate::lower::{LowerError, Lowered};

type Result<T> = std::result::Result<T, LowerError>;

/// Elements of a row that a thread may hold, and of all vectors of columns beside it.
const HELD: i64 = 32;

/// More rows than this keep several blocks on each multiprocessor busy.
const MANY: i64 = 512;

/// How a thread goes through its elements of the row: those THREADS apart, in this order wherever a sum is made.
struct Walk {
    /// Elements of a thread, if it holds them in registers: all are asked for at once and once.
    held: Option<i64>,
}

impl Walk {
    /// A loop over the elements: `k` is the column, `i` counts those held.
    fn over(&self, body: &[String]) -> Vec<String> {
        let mut out = Vec::new();
        let indent = match self.held {
            Some(steps) => {
                out.push("#pragma unroll".to_string());
                out.push(format!("for (int i = 0; i < {steps}; i++) {{"));
                out.push("  const int k = threadIdx.x + i * THREADS;".to_string());
                out.push("  if (k < N) {".to_string());
                "    "
            }
            None => {
                out.push("for (int k = threadIdx.x; k < N; k += THREADS) {".to_string());
                "  "
            }
        };
        out.extend(body.iter().map(|l| format!("{indent}{l}")));
        if self.held.is_some() {
            out.push("  }".to_string());
        }
        out.push("}".to_string());
        out
    }
}

/// Lowers a kernel of template `row`.
pub fn lower(cx: &Cx, body: &Body) -> Result<Lowered> {
    let main = body.kernel.main();
    let heavy = body.heavy()?;
    let op = main.graph.op(heavy.op);
    let ty = main.graph.ty(heavy).as_tensor().ok_or_else(|| malformed("a norm of a state"))?;
    let Some(n) = ty.dims.last().and_then(|d| d.as_const()).filter(|n| *n > 0 && *n < i64::from(i32::MAX)) else {
        return Err(unsupported(format!("rows of {ty}"), "rows of a constant number of elements"));
    };
    let lead = &ty.dims[..ty.rank() - 1];
    let mut sizes = Vec::new();
    for dim in lead {
        sizes.push(cx.size(dim)?.value);
    }
    let count = product(&sizes);
    if count == 0 {
        return Ok(Lowered::default());
    }
    let threads = rows::threads(Some(n));
    let mut params = Params::default();
    let mut index: Vec<Index> = (0..lead.len()).map(|i| Index::var(format!("i{i}"))).collect();
    index.push(Index::var("k"));

    // What goes into the op, in front of it.
    let empty = gossamer_ir::Func::new("prologue", vec![]);
    let sources = body.prologue_sources(cx, &mut params)?;
    let prologue = body.kernel.prologue();
    let mut before = Region::new(prologue.unwrap_or(&empty), cx.module(), sources).tagged("e");
    let input = op.operands[0];
    let first_of = |before: &mut Region, params: &mut Params| -> Result<(Vec<String>, String)> {
        match body.main_value(input) {
            Origin::Prologue(v) => {
                let (lines, element) = before.scope(|r| r.element(v, &index))?;
                Ok((text(&lines), element))
            }
            Origin::Operand(o) => {
                // A region of its own would print one load.
                let pointer = params.operand(cx, o)?;
                let t = cx.plain(o)?;
                let mut f = gossamer_ir::Func::new(
                    "input",
                    vec![gossamer_ir::Param { name: "x".into(), ty: t.clone().into(), weight: false }],
                );
                f.results = f.param(0).into_iter().collect();
                let value = f.results[0];
                let mut r = Region::new(&f, cx.module(), vec![Source::Memory(pointer)]).tagged("e");
                let element = r.element(value, &index)?;
                if !r.sizes().is_empty() {
                    return Err(unsupported(format!("rows of {t}"), "constant dims inside the first"));
                }
                Ok((r.take(), element))
            }
            Origin::Main(_) | Origin::Before(_) => Err(malformed("an op on its own result")),
        }
    };
    let (load, x) = first_of(&mut before, &mut params)?;
    let steps = blocks(n, i64::from(threads));
    let walk = Walk { held: (steps <= HELD).then_some(steps) };
    // What is asked for before the first sum; then the element, and how it is got where it is not held.
    let mut first = Vec::new();
    let (load, x) = match walk.held {
        Some(_) => {
            first.extend(load);
            first.push(format!("held[i] = {x};"));
            (Vec::new(), "held[i]".to_string())
        }
        None => (load, x),
    };

    // The op itself, and what follows it.
    let sources = (0..main.params.len())
        .map(|i| match main.param(i) {
            Some(v) if v == input => {
                let x = x.clone();
                Ok(Source::Given(Box::new(move |_: &[Index]| x.clone())))
            }
            _ => match body.main_param(i) {
                Origin::Operand(o) => params.source(cx, o),
                _ => Err(unsupported("two operands from the prologue", "one")),
            },
        })
        .collect::<Result<Vec<_>>>()?;
    let mut middle = Region::new(main, cx.module(), sources).tagged("m");
    let (statistics, names) = statistics(op.kind, threads, &walk, &load, &x, || f32_literal(op.attrs.float("eps")))?;
    middle.set_statistics(heavy.op, names);
    let mut arrays = Vec::new();
    let mut prefetch = Vec::new();
    if walk.held.is_some() {
        arrays.push(format!("f32 held[{steps}];"));
        // Few rows wait for every load, so vectors of columns are asked for with the row; of many rows others work meanwhile, and registers are worth more.
        let vectors = op.operands.iter().skip(1).filter(|v| **v != input);
        for (j, v) in vectors.enumerate() {
            let ty = main.graph.ty(*v).as_tensor().ok_or_else(|| malformed("a norm by a state"))?;
            if ty.rank() != 1 {
                continue;
            }
            if count <= MANY && steps * (j as i64 + 2) <= 2 * HELD {
                let (lines, element) = middle.scope(|r| r.element(*v, &index[lead.len()..]))?;
                arrays.push(format!("f32 vector{j}[{steps}];"));
                first.extend(text(&lines));
                first.push(format!("vector{j}[i] = {element};"));
                middle.assume(*v, &index[lead.len()..], &format!("vector{j}[i]"));
            }
            if let (Origin::Operand(o), Some(bytes)) = (body.main_value(*v), ty.dtype.bytes()) {
                let pointer = params.operand(cx, o)?;
                let lines = blocks(n * bytes as i64, 128);
                let each = match lines <= i64::from(threads) {
                    true => format!("if (threadIdx.x < {lines})"),
                    false => format!("for (int i = threadIdx.x; i < {lines}; i += THREADS)"),
                };
                let i = if lines <= i64::from(threads) { "threadIdx.x" } else { "i" };
                prefetch.push(format!("{each} prefetch_l2((const u8*){pointer} + {i} * 128);"));
            }
        }
    }
    let (body_lines, y) = middle.scope(|r| r.element(heavy, &index))?;
    // Beside the op's result, the row itself may be stored for others.
    let given = |v: Value| {
        let element = if v == heavy { y.clone() } else { x.clone() };
        let source: Source = Source::Given(Box::new(move |_: &[Index]| element.clone()));
        (v == heavy || v == input).then_some(source)
    };
    let sources = body.epilogue_sources(cx, &mut params, given)?;
    let mut after = Region::new(body.epilogue(), cx.module(), sources);
    let mut row = Vec::new();
    for i in (1..lead.len()).rev() {
        let size = after.size(&lead[i]);
        row.push(format!("const i32 i{i} = (i32)take_dim(row, {size});"));
    }
    if !lead.is_empty() {
        // What the kernel in front wrote last may still be in L2, so the last rows come first.
        row.insert(
            0,
            "i64 row = gridDim.x - 1 - blockIdx.x;  // the last ones first: they may still be in L2".to_string(),
        );
        row.push("const i32 i0 = (i32)row;".to_string());
    }
    for (r, value) in body.epilogue().results.iter().enumerate() {
        let pointer = params.result(cx, r)?;
        after.store(*value, &pointer, &index)?;
    }
    let store = walk.over(&[load, text(&body_lines), after.take()].concat());
    let load = if walk.held.is_some() { [arrays, walk.over(&first)].concat() } else { Vec::new() };
    let how = if walk.held.is_some() {
        " Its elements are held in registers, so each is asked for once, all at once."
    } else {
        ""
    };
    for region in [&before, &middle, &after] {
        params.sizes(cx, region)?;
    }
    let (params, args) = params.finish();
    // Nothing else points to where results go, so that loads need not wait for stores.
    let params = params.replace("* y", "* __restrict__ y");
    let source =
        Text::new(format!("row_{}_n{n}", op.kind.name()), body.kernel.summary(), include_str!("../cuda/row.cu"))
            .with(Piece::Reduce)
            .with(Piece::Dependent)
            .set("bounds", bounds(count, threads, prologue.is_some(), walk.held))
            .set("threads", threads)
            .set("params", params)
            .set("n", n)
            .set("row", row.join("\n"))
            .set("how", how)
            .set("prefetch", prefetch.join("\n"))
            .set("load", load.join("\n"))
            .set("statistics", statistics.join("\n"))
            .set("store", store.join("\n"))
            .build();
    let mut launch = cx.launch(source, count, threads, args)?;
    launch.dependent = true;
    Ok(single(launch))
}

/// Threads, and blocks that must fit on a multiprocessor. Where elements are made of several loads the compiler, left to itself, keeps registers for as many blocks as it can and
/// asks for few elements at a time: a sum over choices with its norm of 64 rows of 2880 takes 13.6 us so and 6.7 with room for two blocks, of 8192 rows 220 us and 153 with room
/// for four (performance.md 25). A norm alone is as fast without: 2.1 us for 8 rows, 2.3 with.
fn bounds(rows: i64, threads: u32, made: bool, held: Option<i64>) -> String {
    let many = rows > MANY && held.is_none_or(|steps| steps <= HELD / 2);
    let blocks = (if many { 1024 } else { 512 } / threads).max(1);
    if made { format!("{threads}, {blocks}") } else { threads.to_string() }
}

/// Code that reduces a row, and the variables it leaves, as [`Region::set_statistics`] wants them.
fn statistics(
    kind: OpKind,
    threads: u32,
    walk: &Walk,
    load: &[String],
    x: &str,
    eps: impl Fn() -> String,
) -> Result<(Vec<String>, Vec<String>)> {
    let warps = threads / 32;
    let mut code = Vec::new();
    let mut over_row = |start: &str, step: &str, finish: String| {
        code.push(start.to_string());
        code.extend(walk.over(&[load, &[step.to_string()]].concat()));
        code.push(finish);
    };
    let scale =
        |eps: String| format!("const f32 scale = 1.0f / sqrtf(block_sum<{warps}>(squares) / (f32)(i64)N + {eps});");
    let names: &[&str] = match kind {
        OpKind::RmsNorm => {
            over_row("f32 squares = 0.0f;", &format!("squares += {x} * {x};"), scale(eps()));
            &["scale"]
        }
        OpKind::LayerNorm => {
            let mean = format!("const f32 mean = block_sum<{warps}>(total) / (f32)(i64)N;");
            over_row("f32 total = 0.0f;", &format!("total += {x};"), mean);
            let step = format!("squares += ({x} - mean) * ({x} - mean);");
            over_row("f32 squares = 0.0f;", &step, scale(eps()));
            &["mean", "scale"]
        }
        OpKind::Softmax => {
            let least = "f32 most = __uint_as_float(0xff800000u);";
            over_row(least, &format!("most = max_nan(most, {x});"), format!("most = block_max<{warps}>(most);"));
            let total = format!("total = block_sum<{warps}>(total);");
            over_row("f32 total = 0.0f;", &format!("total += expf({x} - most);"), total);
            &["most", "total"]
        }
        other => return Err(unsupported(format!("{} of rows", other.name()), "rms_norm, layer_norm, softmax")),
    };
    Ok((code, names.iter().map(ToString::to_string).collect()))
}
