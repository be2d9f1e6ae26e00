//! `router`: a matmul with few columns whose rows are normed in front and ranked behind, without leaving the cluster of blocks that makes them.
//!
//! The sums are those of [`super::super::contraction`] and of the norm's own kernel, so the bits of a row depend neither on the template nor on the
//! other rows.

use gossamer_ir::{DType, Func, OpKind, Value};

use super::super::contraction::{PROCESSORS, UNIT, pieces};
use super::super::region::{malformed, unsupported};
use super::super::{Cx, Size, blocks, rows, scalar, single};
use super::{Body, Origin, Params, parameter};
use crate::emit::{Piece, Text, c_type, f32_literal};
use crate::lower::{Arg, LowerError, Lowered};
use crate::resources::{SHARED_PER_BLOCK, SHARED_PER_SM, SHARED_RESERVED};

type Result<T> = std::result::Result<T, LowerError>;

/// Elements of rows that a lane holds at most while several rows are normed.
const HELD: i64 = 64;
/// Blocks of a cluster at most.
const CLUSTER: i64 = 8;
/// Greatest k: a lane holds one of the chosen.
const TOP: i64 = 32;

/// The matmul.
struct Shape {
    rows: i64,
    n: i64,
    k: i64,
    dtype: DType,
    /// Bytes of the norm's weights.
    norm: i64,
}

/// Where the rows of x come from.
struct Input {
    /// Operand that holds them.
    x: usize,
    /// Operand with the norm's weight, and its epsilon.
    norm: Option<(usize, f64)>,
}

/// How the products are ranked.
#[derive(Default)]
struct Ranking {
    bias: Option<usize>,
    top: i64,
    softmax: bool,
}

/// What a result holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// The rows that are multiplied.
    Rows,
    /// Products, with bias.
    Logits,
    /// The greatest of them.
    Values,
    /// Where those are.
    Indices,
    /// Softmax over the greatest.
    Weights,
}

/// Lowers a kernel of template `router`.
pub fn lower(cx: &Cx, body: &Body) -> Result<Lowered> {
    let main = body.kernel.main();
    let product = body.heavy()?;
    let op = main.graph.op(product.op);
    let (OpKind::MatMul, [x, w]) = (op.kind, op.operands.as_slice()) else {
        return Err(malformed("template `router` holds a matmul"));
    };
    let mut shape = shape(cx, main, *x, *w)?;
    if shape.rows == 0 {
        return Ok(Lowered::default());
    }
    let Origin::Operand(weights) = body.main_value(*w) else {
        return Err(unsupported("computed weights", "weights that are operands"));
    };
    let input = input(cx, body, *x, shape.dtype)?;
    let (ranking, roles) = ranking(body, product, *x)?;
    if ranking.top > TOP.min(shape.n) {
        return Err(unsupported(format!("the {} greatest of {}", ranking.top, shape.n), format!("at most {TOP}")));
    }

    let mut params = Params::default();
    let x = params.operand(cx, input.x)?;
    let norm = input
        .norm
        .map(|(i, eps)| Ok::<_, LowerError>((params.operand(cx, i)?, cx.plain(i)?.dtype, eps)))
        .transpose()?;
    shape.norm = norm.as_ref().map_or(0, |(_, dtype, _)| dtype.storage_bytes(shape.k as u64) as i64);
    let w = params.operand(cx, weights)?;
    let bias = ranking.bias.map(|i| Ok::<_, LowerError>((params.operand(cx, i)?, cx.plain(i)?.dtype))).transpose()?;
    let mut stores = Stores::default();
    for (r, role) in roles.iter().enumerate() {
        let pointer = params.result(cx, r)?;
        stores.add(*role, &pointer, cx.result(r)?.dtype, &shape);
    }
    let x_type = c_type(cx.plain(input.x)?.dtype);
    let same = cx.plain(input.x)?.dtype == shape.dtype;

    let pieces = pieces(Size::known(shape.k));
    let cut = Cut::choose(&shape, pieces)?;
    let (cluster, slots) = (cut.cluster, cut.slots());
    let resident = cut.resident(&shape, pieces);
    let lanes = i64::from(rows::threads(Some(shape.k))) / 32;
    let alone = cut.rows == 1 && lanes <= pieces && blocks(shape.k, 32 * lanes) <= 16;
    let (whole, aligned) = (shape.k % UNIT == 0, shape.k % 8 == 0);
    let name = format!("router_{}_n{}_k{}_r{}_c{cluster}", shape.dtype, shape.n, shape.k, cut.rows);
    let (params, args) = params.finish();
    // The first is the greatest, and the sum is warp_sum's, whose other lanes are zeros.
    let softmax = "const f32 most = __shfl_sync(0xffffffffu, value, 0);\n\
                   const f32 e = active ? expf(value - most) : 0.0f;\n\
                   f32 sum = e;\n\
                   #pragma unroll\n\
                   for (int m = 16; m > 0; m >>= 1) {\n\
                   \x20 if (m < TOP) sum += __shfl_xor_sync(0xffffffffu, sum, m);\n\
                   }\n\
                   const f32 weight = e / sum;";
    let text = Text::new(name, body.kernel.summary(), include_str!("../cuda/router.cu"))
        .with(Piece::Reduce)
        .with(Piece::Order)
        .with(Piece::Infinity)
        .with(Piece::Mma)
        .with(Piece::Dependent)
        .with(Piece::Grid)
        .with(Piece::Async)
        .with(Piece::Cluster)
        .set("in_type", c_type(shape.dtype))
        .set("x_type", x_type)
        .set("k", shape.k)
        .set("n", shape.n)
        .set("blocks", cluster)
        .set("height", cut.height)
        .set("pieces", pieces)
        .set("resident", resident)
        // Of many rows those that the kernel in front wrote last may still be in L2.
        .set("group", if resident > 1 { "gridDim.x - 1 - blockIdx.x" } else { "blockIdx.x / BLOCKS" })
        .set("slots", slots)
        .set("rows", cut.rows)
        .set("lanes", lanes)
        .set(
            "abreast",
            abreast(shape.k, pieces, lanes, if cut.resident(&shape, pieces) > 1 { cut.rows / 4 } else { cut.rows }),
        )
        .set("cluster", if cluster > 1 { format!("__cluster_dims__({cluster}, 1, 1) ") } else { String::new() })
        .set("params", params)
        .set("weights", w)
        .set(
            "load_w",
            if whole {
                "load16(row + k + 8 * second_first(c))".into()
            } else {
                format!("load_share<{aligned}>(row, k, c, K)")
            },
        )
        .set("share", if whole { "share_of_eight" } else { "" })
        .set(
            "norm_shared",
            if norm.is_some() {
                format!(
                    "__shared__ f32 norm_sums[SLOTS][LANES];\n{0}* const norm_weights = ({0}*)(logits{1});{2}",
                    norm.as_ref().map_or("f32", |(_, dtype, _)| c_type(*dtype)),
                    if cluster > 1 { " + SLOTS * N" } else { "" },
                    if cluster > 1 { "" } else { "  // done with before there are products" },
                )
            } else {
                String::new()
            },
        )
        .set("early", early(norm.as_ref(), bias.as_ref(), alone))
        .set("stage", stage(&x, norm.as_ref(), same, shape.dtype, &shape, alone))
        // Where blocks meet, stores in front are waited for there.
        .set("export_first", if cluster == 1 { stores.rows.join("\n") } else { String::new() })
        .set("export_last", if cluster > 1 { stores.rows.join("\n") } else { String::new() })
        .set(
            "bias",
            bias.as_ref().map_or(String::new(), |(_, dtype)| {
                format!("z = z + (tile == 0 ? {} : bias_of(n));", scalar::load(*dtype, "first_bias"))
            }),
        )
        .set("store_logits", stores.logits.join("\n"))
        .set("top", ranking.top)
        .set("softmax", if ranking.softmax { softmax } else { "" })
        .set("store", stores.ranked.join("\n"));
    let mut args = args;
    args.extend([Arg::I32(shape.rows as i32), Arg::Wanted]);
    let mut launch = cx.launch(text.build(), blocks(shape.rows, cut.rows) * cluster, 32 * pieces as u32, args)?;
    launch.shared = shared(&shape, pieces, cut) as u32;
    launch.dependent = true;
    Ok(single(launch))
}

fn shape(cx: &Cx, main: &Func, x: Value, w: Value) -> Result<Shape> {
    let tensor = |v: Value| main.graph.ty(v).as_tensor().ok_or_else(|| malformed("a matmul of states"));
    let (x, w) = (tensor(x)?, tensor(w)?);
    let known = |i: usize| w.dims.get(i).and_then(|d| d.as_const());
    let (Some(n), Some(k), 2) = (known(0), known(1), x.rank()) else {
        return Err(unsupported(format!("{x} times {w}"), "[T, K] times [N, K] with constant N and K"));
    };
    if x.dtype != w.dtype || !matches!(x.dtype, DType::BF16 | DType::F16) {
        return Err(unsupported(format!("{x} times {w}"), "bf16 or f16 on both sides"));
    }
    if !(1..=256).contains(&n) || k < 1 {
        return Err(unsupported(format!("{n} columns"), "1 to 256"));
    }
    let rows = cx.size(&x.dims[0])?.value;
    if rows > i64::from(i32::MAX) {
        return Err(unsupported(format!("{rows} rows"), "fewer than 2^31"));
    }
    Ok(Shape { rows, n, k, dtype: x.dtype, norm: 0 })
}

/// Dynamic shared memory: rows of x, sums of pieces, products, weights of the norm.
fn shared(shape: &Shape, pieces: i64, cut: Cut) -> i64 {
    let slots = cut.slots();
    let (products, norm) = (4 * slots * shape.n, blocks(shape.norm, 4) * 4);
    let last = if cut.cluster > 1 { products + norm } else { products.max(norm) };
    2 * slots * (blocks(shape.k, UNIT) * UNIT + 16) + 4 * slots * 20 * pieces + last
}

/// How the work is cut.
#[derive(Clone, Copy)]
struct Cut {
    /// Blocks of a cluster.
    cluster: i64,
    /// Rows that it makes.
    rows: i64,
    /// Columns of a tile: 16, or 8 where more blocks share out what has to come from memory.
    height: i64,
}

impl Cut {
    /// Places for rows in a block: what a matrix multiply takes at once.
    fn slots(self) -> i64 {
        blocks(self.rows, 8) * 8
    }

    /// Blocks of a multiprocessor: two where there are more rows than multiprocessors can hold at once and shared memory has room, so that one loads rows while the
    /// other multiplies.
    fn resident(self, shape: &Shape, pieces: i64) -> i64 {
        let each = shared(shape, pieces, self) + 4 * self.slots() * 32 + i64::from(SHARED_RESERVED);
        let many = shape.rows > self.rows * PROCESSORS;
        1 + i64::from(self.cluster == 1 && self.rows >= 8 && many && 2 * each <= i64::from(SHARED_PER_SM))
    }

    /// Tenths of a microsecond, as measured on an H100 at 2880 columns: what every block starts and ends with, rows, tiles of columns, ranking. As many
    /// blocks run at a time as clusters find room in parts of the device that are not multiples of them.
    fn time(self, shape: &Shape, pieces: i64) -> i64 {
        let room = match self.cluster {
            ..=2 => PROCESSORS,
            3..=4 => 120,
            _ => 96,
        };
        let resident = self.resident(shape, pieces);
        let rounds = blocks(blocks(shape.rows, self.rows) * self.cluster, room * resident);
        let rows = match (self.rows, resident) {
            (1, _) => 0,
            (2, _) => 10,
            // In the step, 8192 rows: 112 us with 32 rows a block, 94 with two blocks of 16, 111 with two of 8.
            (n, 1) => 20 * blocks(n, 4),
            (n, _) => 35 * blocks(n, 4),
        };
        let ranked = blocks(blocks(self.rows, self.cluster), pieces);
        let tile = if self.height == 8 { 10 } else { 15 };
        rounds * (22 + rows + tile * blocks(blocks(shape.n, self.height), self.cluster) + 4 * ranked)
    }

    /// The fastest whose shared memory fits.
    fn choose(shape: &Shape, pieces: i64) -> Result<Cut> {
        // The norm's sums, statically.
        let most = i64::from(SHARED_PER_BLOCK) - 4 * 32 * 32;
        let rows = [1, 2, 4, 8, 16, 24, 32];
        // Narrow tiles only where clusters of four make all of them at once: larger ones start later.
        let narrow = Some((8, blocks(shape.n, 8))).filter(|(_, cluster)| *cluster <= 4);
        let wide = (1..=blocks(shape.n, 16).min(CLUSTER)).rev().map(|cluster| (16, cluster));
        let cuts: Vec<(i64, i64)> = narrow.into_iter().chain(wide).collect();
        let cuts =
            rows.into_iter().flat_map(|rows| cuts.iter().map(move |&(height, cluster)| Cut { cluster, rows, height }));
        cuts.filter(|c| shared(shape, pieces, *c) <= most).min_by_key(|c| c.time(shape, pieces)).ok_or_else(|| {
            unsupported(format!("a matmul over {} columns", shape.k), "rows of which 8 fit shared memory")
        })
    }
}

/// Rows that are normed at a time.
fn abreast(k: i64, pieces: i64, lanes: i64, most: i64) -> i64 {
    let held = |rows: i64| blocks(rows * lanes, pieces) * blocks(k, 32 * lanes);
    [8, 4, 2].into_iter().find(|rows| *rows <= most && held(*rows) <= HELD).unwrap_or(1)
}

/// What stands in front of the matmul.
fn input(cx: &Cx, body: &Body, x: Value, dtype: DType) -> Result<Input> {
    let value = match body.main_value(x) {
        Origin::Operand(x) => return Ok(Input { x, norm: None }),
        Origin::Prologue(v) => v,
        Origin::Main(_) | Origin::Before(_) => return Err(malformed("a matmul of itself")),
    };
    let prologue = body.kernel.prologue().ok_or_else(|| malformed("a value of no prologue"))?;
    let other = || unsupported("this prologue", "a norm, a cast, or a cast of a norm");
    let ty = |v: Value| prologue.graph.ty(v).as_tensor().map(|t| t.dtype);
    let mut op = prologue.graph.op(value.op);
    if op.kind == OpKind::Cast {
        if let Some(x) = parameter(prologue, op.operands[0]) {
            return Ok(Input { x, norm: None });
        }
        op = prologue.graph.op(op.operands[0].op);
    }
    let (OpKind::RmsNorm, [from, weight]) = (op.kind, op.operands.as_slice()) else { return Err(other()) };
    let (Some(x), Some(weight)) = (parameter(prologue, *from), parameter(prologue, *weight)) else {
        return Err(other());
    };
    // A norm in another narrow type would round twice.
    match ty(*from) {
        Some(d) if d == DType::F32 || d == dtype => {}
        _ => return Err(unsupported(format!("a norm of {}", cx.plain(x)?), format!("f32 or {dtype}"))),
    }
    Ok(Input { x, norm: Some((weight, op.attrs.float("eps"))) })
}

/// What stands behind the matmul, and what each result is of it.
fn ranking(body: &Body, product: Value, x: Value) -> Result<(Ranking, Vec<Role>)> {
    let f = body.epilogue();
    let mut ranking = Ranking::default();
    let mut roles = Vec::new();
    for v in &f.results {
        roles.push(role(body, f, *v, product, x, &mut ranking)?);
    }
    Ok((ranking, roles))
}

fn role(body: &Body, f: &Func, v: Value, product: Value, x: Value, found: &mut Ranking) -> Result<Role> {
    let other = |what: &str| unsupported(what.to_string(), "add of a bias, topk, softmax over it, cast of a result");
    if let Some(p) = parameter(f, v) {
        return match body.epilogue_param(p) {
            Origin::Main(m) if m == product => Ok(Role::Logits),
            origin if origin == body.main_value(x) => Ok(Role::Rows),
            _ => Err(other("a result that is not computed here")),
        };
    }
    let op = f.graph.op(v.op);
    let of = |i: usize, found: &mut Ranking| role(body, f, op.operands[i], product, x, found);
    match op.kind {
        // Results are rounded where they are stored.
        OpKind::Cast => match of(0, found)? {
            r @ (Role::Values | Role::Weights) => Ok(r),
            _ => Err(other("this cast")),
        },
        OpKind::Add => {
            let bias = op.operands.iter().find_map(|o| {
                let p = parameter(f, *o)?;
                let vector = f.graph.ty(*o).as_tensor().is_some_and(|t| t.rank() == 1);
                match body.epilogue_param(p) {
                    Origin::Operand(i) if vector => Some((i, *o)),
                    _ => None,
                }
            });
            let Some((bias, at)) = bias else { return Err(other("this add")) };
            let rest = op.operands.iter().position(|o| *o != at).ok_or_else(|| other("this add"))?;
            let raw = parameter(f, op.operands[rest]).map(|p| body.epilogue_param(p));
            if raw != Some(Origin::Main(product)) || found.bias.is_some_and(|b| b != bias) {
                return Err(other("this add"));
            }
            found.bias = Some(bias);
            Ok(Role::Logits)
        }
        OpKind::TopK => {
            let k = op.attrs.int("k");
            if of(0, found)? != Role::Logits || (found.top != 0 && found.top != k) {
                return Err(other("this topk"));
            }
            found.top = k;
            Ok(if v.result == 0 { Role::Values } else { Role::Indices })
        }
        OpKind::Softmax => {
            if of(0, found)? != Role::Values {
                return Err(other("this softmax"));
            }
            found.softmax = true;
            Ok(Role::Weights)
        }
        kind => Err(other(kind.name())),
    }
}

/// Statements that store results.
#[derive(Default)]
struct Stores {
    rows: Vec<String>,
    logits: Vec<String>,
    ranked: Vec<String>,
}

impl Stores {
    fn add(&mut self, role: Role, y: &str, dtype: DType, shape: &Shape) {
        let mut ranked = |value: &str| {
            self.ranked.push(format!("{y}[t * TOP + lane] = {};", scalar::store(dtype, value)));
        };
        match role {
            Role::Values => ranked("value"),
            Role::Indices => ranked("index"),
            Role::Weights => ranked("weight"),
            Role::Logits => {
                self.logits.push(format!("{y}[(i64)(row0 + slot) * N + n] = {};", scalar::store(dtype, "z")));
            }
            Role::Rows => {
                let (step, pack) = if shape.k % 8 == 0 { (8, "uint4") } else { (1, "In") };
                self.rows.push(format!(
                    "for (int i = (int)rank * THREADS + (int)threadIdx.x; i < count * (K / {step}); i += BLOCKS * THREADS) {{\n\
                     \x20 const int slot = i / (K / {step});\n\
                     \x20 const int k = i % (K / {step}) * {step};\n\
                     \x20 *({pack}*)({y} + (i64)(row0 + slot) * K + k) = *(const {pack}*)(x_rows + slot * X_ROW + k);\n\
                     }}"
                ));
            }
        }
    }
}

/// What is loaded before the rows are there. `alone`: there is one row, which the registers hold.
fn early(norm: Option<&(String, DType, f64)>, bias: Option<&(String, DType)>, alone: bool) -> String {
    let mut out = Vec::new();
    if let Some((w, dtype, _)) = norm {
        let held = c_type(*dtype);
        out.push(match alone {
            // As they are: arithmetic would wait for them here.
            true => format!(
                "{held} norm[STEPS];\n\
                 if (piece < LANES) {{\n\
                 #pragma unroll\n\
                 \x20 for (int i = 0; i < STEPS; i++) {{\n\
                 \x20   const int k = (i * LANES + piece) * 32 + lane;\n\
                 \x20   norm[i] = {w}[k < K ? k : K - 1];\n\
                 \x20 }}\n\
                 }}"
            ),
            false => format!("for (int k = threadIdx.x; k < K; k += THREADS) norm_weights[k] = {w}[k];"),
        });
    }
    if let Some((b, dtype)) = bias {
        // A thread's column within a tile is always the same; tiles beyond the first are loaded when needed.
        out.push(format!(
            "auto bias_of = [&](int n) -> f32 {{ return {}; }};\n\
             const int first_n = (int)rank * HEIGHT + (int)threadIdx.x % HEIGHT;\n\
             const {} first_bias = {b}[first_n < N ? first_n : N - 1];",
            scalar::load(*dtype, &format!("{b}[n]")),
            c_type(*dtype)
        ));
    }
    out.join("\n")
}

/// Puts the rows into shared memory.
fn stage(x: &str, norm: Option<&(String, DType, f64)>, same: bool, dtype: DType, shape: &Shape, alone: bool) -> String {
    let zeros = match shape.k % UNIT {
        0 => "",
        _ => {
            "for (int i = threadIdx.x; i < count * (UNITS * 64 - K); i += THREADS) {\n\
             \x20 x_rows[i / (UNITS * 64 - K) * X_ROW + K + i % (UNITS * 64 - K)] = In{0};\n\
             }\n"
        }
    };
    let Some((_, weights, eps)) = norm else {
        if same && shape.k % 8 == 0 {
            return format!(
                "{zeros}for (int i = threadIdx.x; i < count * (K / 8); i += THREADS) {{\n\
                 \x20 const int slot = i / (K / 8);\n\
                 \x20 const int k = i % (K / 8) * 8;\n\
                 \x20 *(uint4*)(x_rows + slot * X_ROW + k) = *(const uint4*)({x} + (i64)(row0 + slot) * K + k);\n\
                 }}"
            );
        }
        let element = scalar::store(dtype, &format!("to_f32({x}[(i64)(row0 + slot) * K + k])"));
        return format!(
            "{zeros}for (int i = threadIdx.x; i < count * K; i += THREADS) {{\n\
             \x20 const int slot = i / K;\n\
             \x20 const int k = i % K;\n\
             \x20 x_rows[slot * X_ROW + k] = {element};\n\
             }}"
        );
    };
    let scale = format!("const f32 scale = 1.0f / sqrtf(squares / (f32)K + {});", f32_literal(*eps));
    if alone {
        let element = scalar::store(dtype, &format!("row[i] * scale * {}", scalar::load(*weights, "norm[i]")));
        return format!(
            "{zeros}// The row's squares are summed as its own kernel does: a warp for each of that kernel's warps.\n\
             f32 row[STEPS];\n\
             if (piece < LANES) {{\n\
             \x20 f32 squares = 0.0f;\n\
             #pragma unroll\n\
             \x20 for (int i = 0; i < STEPS; i++) {{\n\
             \x20   const int k = (i * LANES + piece) * 32 + lane;\n\
             \x20   row[i] = k < K ? to_f32({x}[(i64)row0 * K + k]) : 0.0f;\n\
             \x20 }}\n\
             #pragma unroll\n\
             \x20 for (int i = 0; i < STEPS; i++) {{\n\
             \x20   if ((i * LANES + piece) * 32 + lane < K) squares += row[i] * row[i];\n\
             \x20 }}\n\
             \x20 squares = warp_sum(squares);\n\
             \x20 if (lane == 0) norm_sums[0][piece] = squares;\n\
             }}\n\
             __syncthreads();\n\
             const f32 squares = warp_sum(lane < LANES ? norm_sums[0][lane] : 0.0f);\n\
             {scale}\n\
             if (piece < LANES) {{\n\
             #pragma unroll\n\
             \x20 for (int i = 0; i < STEPS; i++) {{\n\
             \x20   const int k = (i * LANES + piece) * 32 + lane;\n\
             \x20   if (k < K) x_rows[k] = {element};\n\
             \x20 }}\n\
             }}"
        );
    }
    let element = scalar::store(dtype, &format!("rows[j][i] * scale * {}", scalar::load(*weights, "norm_weights[k]")));
    format!(
        "{zeros}// Squares are summed as the norm's own kernel does: a warp a job, which is one of that kernel's warps. Some rows at a time, all of which\n\
         // the lanes hold: they are read once, and all at once.\n\
         #pragma unroll 1\n\
         for (int done = 0; done < count; done += ABREAST) {{\n\
         \x20 f32 rows[JOBS][STEPS];\n\
         #pragma unroll\n\
         \x20 for (int j = 0; j < JOBS; j++) {{\n\
         \x20   // Jobs beyond the last are done too, on some row, and left out when something is stored: loads must not wait for tests.\n\
         \x20   const int job = piece + j * PIECES;\n\
         \x20   const int slot = done + job / LANES < count ? done + job / LANES : count - 1;\n\
         \x20   const X* const from = {x} + (i64)(row0 + slot) * K;\n\
         #pragma unroll\n\
         \x20   for (int i = 0; i < STEPS; i++) {{\n\
         \x20     const int k = (i * LANES + job % LANES) * 32 + lane;\n\
         \x20     rows[j][i] = to_f32(from[k < K ? k : K - 1]);\n\
         \x20   }}\n\
         \x20 }}\n\
         #pragma unroll\n\
         \x20 for (int j = 0; j < JOBS; j++) {{\n\
         \x20   const int job = piece + j * PIECES;\n\
         \x20   const int slot = done + job / LANES;\n\
         \x20   f32 squares = 0.0f;\n\
         #pragma unroll\n\
         \x20   for (int i = 0; i < STEPS; i++) {{\n\
         \x20     if ((i * LANES + job % LANES) * 32 + lane < K) squares += rows[j][i] * rows[j][i];\n\
         \x20   }}\n\
         \x20   squares = warp_sum(squares);\n\
         \x20   if (lane == 0 && job < ABREAST * LANES && slot < count) norm_sums[slot][job % LANES] = squares;\n\
         \x20 }}\n\
         \x20 __syncthreads();\n\
         #pragma unroll\n\
         \x20 for (int j = 0; j < JOBS; j++) {{\n\
         \x20   const int job = piece + j * PIECES;\n\
         \x20   const int slot = done + job / LANES < count ? done + job / LANES : count - 1;\n\
         \x20   const bool own = job < ABREAST * LANES && done + job / LANES < count;\n\
         \x20   const f32 squares = warp_sum(lane < LANES ? norm_sums[slot][lane] : 0.0f);\n\
         \x20   {scale}\n\
         #pragma unroll\n\
         \x20   for (int i = 0; i < STEPS; i++) {{\n\
         \x20     const int k = (i * LANES + job % LANES) * 32 + lane;\n\
         \x20     if (own && k < K) x_rows[slot * X_ROW + k] = {element};\n\
         \x20   }}\n\
         \x20 }}\n\
         }}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_are_those_that_were_fastest() {
        let shape = |rows| Shape { rows, n: 32, k: 2880, dtype: DType::BF16, norm: 5760 };
        let cut = |rows| Cut::choose(&shape(rows), pieces(Size::known(2880))).map(|c| (c.rows, c.cluster)).ok();
        for (rows, best) in [(1, (1, 4)), (512, (4, 1)), (2048, (8, 1)), (8192, (16, 1)), (16384, (16, 1))] {
            assert_eq!(cut(rows), Some(best), "{rows} rows");
        }
    }
}
