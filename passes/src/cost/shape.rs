//! From a kernel op at given sizes to what the cost model asks of it.
//!
//! Bytes: every distinct operand once, as far as it is looked at. A table that rows are gathered from: the rows expected to be hit; weights of
//! experts: the experts expected to be chosen by the step's rows (routing taken as random); a KV cache: for each sequence the keys and values
//! that its last query sees, in a context of [`CONTEXT`] positions or what the page table holds if that is less. Results once each.
//!
//! Arithmetic: contractions exactly; other ops by rough counts of lane instructions an element, which matter only where a kernel does little
//! else. Ops before the first operand of a contraction are done again by every block that holds rows.

use std::collections::BTreeMap;

use gossamer_ir::kernel::Kernel;
use gossamer_ir::{Bindings, Class, DType, Func, Module, Op, OpId, OpKind, StateDecl, TensorType, Type, Value};

use super::{CostError, Grid, KernelShape, expected_distinct};

/// Positions of a sequence that a step is taken to see: an ordinary chat. Kernels are compared at this point; longer contexts change attention only.
pub const CONTEXT: i64 = 1024;

/// Lane instructions to unpack one MXFP4 weight: 19 for 8 weights, most of them at half rate.
const UNPACK_OPS: f64 = 3.5;

/// Tiles a row that are looked into once their maxima are known: the greatest logits are spread over a few.
const PICKED_TILES: i64 = 16;

/// What sampling looks at with the maxima of tiles, of what it looks at without: a gain worth a result of a kernel that is there anyway, not a kernel.
const MOSTLY: f64 = 0.97;

/// Templates whose blocks read all their rows before they start on the weights. In others rows and weights pass through together, and what that
/// costs is part of their efficiency.
const HOLDS_ROWS: [&str; 3] = ["stream", "moe_stream", "router"];

/// What a kernel's operand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operand {
    /// Operands with the same number are the same value; it is read once.
    pub value: usize,
    /// True if it is a weight, or made from weights at load.
    pub weight: bool,
}

/// The shape of a kernel op of `f`; an op outside a kernel counts as a kernel of template `single`. `is_weight` says which values are weights or
/// made from them at load.
///
/// # Errors
/// As [`shape`].
pub fn of_op(
    module: &Module,
    f: &Func,
    id: OpId,
    is_weight: &dyn Fn(Value) -> bool,
    sizes: &Bindings,
) -> Result<KernelShape, CostError> {
    let op = f.graph.op(id);
    let mut numbers: BTreeMap<Value, usize> = BTreeMap::new();
    let operands: Vec<Operand> = op
        .operands
        .iter()
        .map(|v| {
            let next = numbers.len();
            Operand { value: *numbers.entry(*v).or_insert(next), weight: is_weight(*v) }
        })
        .collect();
    match op.attrs.kernel() {
        Some(kernel) => shape(module, kernel, &operands, sizes),
        None => shape(module, &alone(f, op), &operands, sizes),
    }
}

/// The op as the only one of a kernel.
fn alone(f: &Func, op: &Op) -> Kernel {
    let param = |v: &Value| gossamer_ir::Param { name: "x".into(), ty: f.graph.ty(*v).clone(), weight: false };
    let mut main = Func::new("main", op.operands.iter().map(param).collect());
    let operands = (0..op.operands.len()).filter_map(|i| main.param(i)).collect();
    let new = main.graph.add(Op { operands, ..op.clone() });
    main.results = (0..op.results.len() as u16).map(|result| Value { op: new, result }).collect();
    Kernel::new("single", None, main, None)
}

/// The shape of `kernel` with these operands (one for each of its own, in order).
///
/// # Errors
/// [`CostError::Unbound`] for a symbol without a value, [`CostError::Malformed`] for a number of operands that is not the kernel's or a state
/// that is not declared.
pub fn shape(
    module: &Module,
    kernel: &Kernel,
    operands: &[Operand],
    sizes: &Bindings,
) -> Result<KernelShape, CostError> {
    let cx = Cx { module, kernel, sizes };
    if operands.len() != kernel.operands() {
        let what = format!("{} operands, its regions take {}", operands.len(), kernel.operands());
        return Err(cx.malformed(what));
    }
    let flow = cx.flow(operands.len())?;
    let (main_op, main_at) = cx.main()?;
    let contraction = main_op.kind.class() == Class::Contraction;
    let grid = Grid { shared_weights: contraction, ..cx.grid(main_op, main_at)? };
    let mut out = KernelShape {
        template: kernel.template().to_string(),
        launches: launches(kernel, main_op),
        grid,
        ..KernelShape::default()
    };

    // Each value once: as much of it as its hungriest use.
    let mut read: BTreeMap<usize, (f64, bool, bool)> = BTreeMap::new();
    for ((operand, bytes), ty) in operands.iter().zip(&flow.bytes).zip(kernel.operand_types()) {
        let slot = read.entry(operand.value).or_insert((0.0, operand.weight, ty.is_state()));
        slot.0 = slot.0.max(*bytes);
    }
    for (bytes, weight, state) in read.into_values() {
        *match (weight, state) {
            (true, _) => &mut out.bytes.weights,
            (_, true) => &mut out.bytes.state,
            _ => &mut out.bytes.read,
        } += bytes;
    }
    out.bytes.written = cx.written()?;
    let holds = contraction && HOLDS_ROWS.contains(&out.template.as_str());
    for (region, f) in kernel.regions().enumerate() {
        let before_main = region == 0 && kernel.prologue().is_some();
        for id in f.graph.ids() {
            let op = f.graph.op(id);
            if op.kind == OpKind::Dequant {
                let ops = UNPACK_OPS * flow.part(region, id) * cx.elements(cx.result(op)?)?;
                *if contraction { &mut out.weight_ops } else { &mut out.scalar_ops } += ops;
            } else if before_main && holds {
                out.held.ops += cx.scalar_ops(f, op)?;
                out.held.reduces |= matches!(op.kind, OpKind::RmsNorm | OpKind::LayerNorm);
            } else {
                out.scalar_ops += cx.scalar_ops(f, op)?;
            }
        }
    }
    if holds {
        out.held.bytes = flow.rows.iter().map(|i| flow.bytes[*i]).sum();
    }
    cx.contraction(main_op, main_at, &mut out)?;
    Ok(out)
}

/// Launches of a kernel: templates that first sort rows by expert take one more.
fn launches(kernel: &Kernel, main: &Op) -> u32 {
    match kernel.template().as_ref() {
        "moe_tile" | "moe_gemm" => 2,
        "single" if main.kind == OpKind::MoeMatMul => 2,
        _ => 1,
    }
}

struct Cx<'a> {
    module: &'a Module,
    kernel: &'a Kernel,
    sizes: &'a Bindings,
}

/// What is looked at, from the results back to the operands.
struct Flow {
    /// Bytes of each operand of the kernel that are read.
    bytes: Vec<f64>,
    /// Operands that lead to the rows (first operand) of a contraction.
    rows: Vec<usize>,
    /// Fraction of each op's first result that is looked at, by region.
    parts: Vec<BTreeMap<Value, f64>>,
}

impl Flow {
    fn part(&self, region: usize, op: OpId) -> f64 {
        self.parts[region].get(&Value { op, result: 0 }).copied().unwrap_or(0.0)
    }
}

impl Cx<'_> {
    fn malformed(&self, what: String) -> CostError {
        CostError::Malformed { op: self.kernel.summary(), what }
    }

    fn shape_of(&self, t: &TensorType) -> Result<Vec<i64>, CostError> {
        t.shape(self.sizes).map_err(|s| CostError::Unbound { op: self.kernel.summary(), symbol: s.to_string() })
    }

    fn dims(&self, ty: &Type) -> Result<Vec<i64>, CostError> {
        ty.as_tensor().map_or(Ok(Vec::new()), |t| self.shape_of(t))
    }

    /// Type of an op's operand.
    fn operand<'f>(&self, f: &'f Func, op: &Op, i: usize) -> Result<&'f Type, CostError> {
        let missing = || self.malformed(format!("`{}` has no operand {i}", op.kind.name()));
        op.operands.get(i).map(|v| f.graph.ty(*v)).ok_or_else(missing)
    }

    /// Size of dim `d` of an op's operand.
    fn dim(&self, f: &Func, op: &Op, i: usize, d: usize) -> Result<f64, CostError> {
        let ty = self.operand(f, op, i)?;
        let missing = || self.malformed(format!("operand {i} of `{}` is {ty}, with no dim {d}", op.kind.name()));
        self.dims(ty)?.get(d).map(|n| *n as f64).ok_or_else(missing)
    }

    /// The main kind of result of an op.
    fn result<'o>(&self, op: &'o Op) -> Result<&'o Type, CostError> {
        op.results.first().ok_or_else(|| self.malformed(format!("`{}` has no result", op.kind.name())))
    }

    /// Elements of a tensor; 0 for state.
    fn elements(&self, ty: &Type) -> Result<f64, CostError> {
        Ok(if ty.is_state() { 0.0 } else { self.dims(ty)?.iter().map(|d| *d as f64).product() })
    }

    /// Bytes of a tensor; 0 for state.
    fn bytes(&self, ty: &Type) -> Result<f64, CostError> {
        let Some(t) = ty.as_tensor() else { return Ok(0.0) };
        let bits = t.dtype.bits_per_block() as f64 / gossamer_ir::dtype::MX_BLOCK as f64;
        Ok(self.elements(ty)? * bits / 8.0)
    }

    fn kv(&self, ty: &Type) -> Result<Kv, CostError> {
        let Type::State(_, name) = ty else { return Err(self.malformed(format!("{ty} where a kv state belongs"))) };
        match self.module.state(name) {
            Some(StateDecl::Kv { heads, head_dim, page, dtype, .. }) => {
                Ok(Kv { heads: *heads as f64, head_dim: *head_dim as f64, page: *page, dtype: *dtype })
            }
            _ => Err(self.malformed(format!("no `kv {name}` is declared"))),
        }
    }

    /// The op that gives the kernel its grid, with its region: the heavy one, else the first result's.
    fn main(&self) -> Result<(&Op, &Func), CostError> {
        let f = self.kernel.main();
        let ids = f.graph.ids().into_iter().filter(|id| f.graph.op(*id).kind != OpKind::Param);
        let weight = |id: &OpId| match f.graph.op(*id).kind.class() {
            Class::Contraction => 3,
            Class::Composite | Class::Reduction | Class::State | Class::Sampling => 2,
            _ => 1,
        };
        // Of equals the first.
        let best = ids.rev().max_by_key(weight);
        best.map(|id| (f.graph.op(id), f)).ok_or_else(|| self.malformed("`main` computes nothing".into()))
    }

    /// Keys that a query of an attention op sees, and sequences.
    fn context(&self, f: &Func, op: &Op) -> Result<(f64, f64), CostError> {
        let kv = self.kv(self.operand(f, op, 1)?)?;
        let held = self.dim(f, op, 4, 1)? * kv.page as f64;
        let window = op.attrs.int("window");
        let seen = if window > 0 { window.min(CONTEXT) } else { CONTEXT };
        Ok(((seen as f64).min(held), self.dim(f, op, 4, 0)?))
    }

    fn grid(&self, op: &Op, f: &Func) -> Result<Grid, CostError> {
        let result = self.dims(self.result(op)?)?;
        let (columns, rows) = match result.split_last() {
            Some((n, rest)) => (*n as f64, rest.iter().map(|d| *d as f64).product()),
            None => (1.0, 1.0),
        };
        let kind = op.kind;
        Ok(match kind {
            OpKind::MoeMatMul => {
                let groups = self.experts(f, op)?.0;
                Grid { groups, rows: if groups > 0.0 { rows / groups } else { 0.0 }, columns, ..Grid::default() }
            }
            OpKind::Attention => {
                let kv = self.kv(self.operand(f, op, 1)?)?;
                let (keys, sequences) = self.context(f, op)?;
                let queries = columns / (kv.heads * kv.head_dim).max(1.0) * rows / sequences.max(1.0);
                Grid { groups: kv.heads * sequences, rows: queries, columns: keys, ..Grid::default() }
            }
            // A kv_write is as large as its keys.
            OpKind::KvWrite => {
                Grid { rows: self.dim(f, op, 1, 0)?, columns: self.dim(f, op, 1, 1)?, ..Grid::default() }
            }
            _ => {
                let whole_rows = match kind.class() {
                    Class::Reduction | Class::Sampling => kind != OpKind::TileMax,
                    _ => matches!(kind, OpKind::RmsNorm | OpKind::LayerNorm),
                };
                // Rows of a reduction are those of its operand, or of the maxima that it reads instead.
                let tiles = matches!(kind, OpKind::Sample | OpKind::ArgMax) && op.attrs.int("tile") > 0;
                let rows_of = if tiles { op.operands.last() } else { op.operands.first() };
                let read = match (whole_rows, rows_of) {
                    (true, Some(v)) => self.dims(f.graph.ty(*v))?,
                    _ => Vec::new(),
                };
                match read.split_last() {
                    Some((n, rest)) => Grid {
                        rows: rest.iter().map(|d| *d as f64).product(),
                        columns: *n as f64,
                        whole_rows,
                        ..Grid::default()
                    },
                    None => Grid { rows, columns, ..Grid::default() },
                }
            }
        })
    }

    /// Expected distinct experts of a `moe_matmul`, and how many there are.
    fn experts(&self, f: &Func, op: &Op) -> Result<(f64, f64), CostError> {
        let experts = self.dim(f, op, 1, 0)?;
        let (rows, each) = (self.dim(f, op, 2, 0)?, self.dim(f, op, 2, 1)?);
        Ok((expected_distinct(experts, each, rows), experts))
    }

    /// Follows demand from results to operands.
    fn flow(&self, operands: usize) -> Result<Flow, CostError> {
        let regions: Vec<&Func> = self.kernel.regions().collect();
        let first = usize::from(self.kernel.prologue().is_none());
        let mut flow =
            Flow { bytes: vec![0.0; operands], rows: Vec::new(), parts: vec![BTreeMap::new(); regions.len()] };
        let mut demanded: Option<Vec<f64>> = None;
        let mut leads: Vec<bool> = Vec::new();
        let mut next = operands;
        for (r, f) in regions.iter().enumerate().rev() {
            let mut part: BTreeMap<Value, f64> = BTreeMap::new();
            let mut rows: BTreeMap<Value, bool> = BTreeMap::new();
            let mut exact: BTreeMap<Value, f64> = BTreeMap::new();
            for (i, v) in f.results.iter().enumerate() {
                let d = demanded.as_ref().map_or(1.0, |d| d.get(i).copied().unwrap_or(0.0));
                let slot = part.entry(*v).or_insert(0.0);
                *slot = slot.max(d);
                *rows.entry(*v).or_insert(false) |= leads.get(i).copied().unwrap_or(false);
            }
            let order = f.graph.order().map_err(|_| self.malformed(format!("`{}` has a cycle", f.name)))?;
            for id in order.iter().rev() {
                let op = f.graph.op(*id);
                let wanted = (0..op.results.len() as u16)
                    .filter_map(|result| part.get(&Value { op: *id, result }))
                    .fold(0.0f64, |a, b| a.max(*b));
                let on_rows =
                    (0..op.results.len() as u16).any(|result| rows.get(&Value { op: *id, result }) == Some(&true));
                for (i, v) in op.operands.iter().enumerate() {
                    let d = self.demand(f, op, i, wanted)?;
                    let slot = part.entry(*v).or_insert(0.0);
                    *slot = slot.max(d);
                    if f.graph.ty(*v).is_state() && op.kind == OpKind::Attention {
                        let (keys, sequences) = self.context(f, op)?;
                        let kv = self.kv(f.graph.ty(*v))?;
                        let bytes = kv.dtype.bytes().unwrap_or(2) as f64;
                        exact.insert(*v, 2.0 * keys * sequences * kv.heads * kv.head_dim * bytes);
                    }
                    let starts = i == 0 && op.kind.class() == Class::Contraction;
                    *rows.entry(*v).or_insert(false) |= starts || on_rows;
                }
            }
            // Parameters: the last ones are the kernel's operands, the first the yields of the region before.
            let own = self.kernel.operands_of(first + r);
            let carried = f.params.len().saturating_sub(own);
            next -= own;
            let at = |i: usize, map: &BTreeMap<Value, f64>| f.param(i).and_then(|v| map.get(&v).copied());
            let lead = |i: usize| f.param(i).is_some_and(|v| rows.get(&v) == Some(&true));
            for i in 0..own {
                let bytes = at(carried + i, &exact);
                let d = at(carried + i, &part).unwrap_or(0.0);
                flow.bytes[next + i] = match bytes {
                    Some(bytes) => bytes,
                    None => d * self.bytes(&f.params[carried + i].ty)?,
                };
                // An epilogue's operands come after the contraction.
                if lead(carried + i) {
                    flow.rows.push(next + i);
                }
            }
            demanded = Some((0..carried).map(|i| at(i, &part).unwrap_or(0.0)).collect());
            leads = (0..carried).map(lead).collect();
            flow.parts[r] = part;
        }
        Ok(flow)
    }

    /// Fraction of operand `i` that an op looks at if `wanted` of its results is.
    fn demand(&self, f: &Func, op: &Op, i: usize, wanted: f64) -> Result<f64, CostError> {
        let fraction = |some: f64, all: f64| if all > 0.0 { (some / all).min(1.0) } else { 0.0 };
        Ok(match (op.kind, i) {
            (_, _) if wanted == 0.0 => 0.0,
            (OpKind::GatherRows, 0) => {
                let (rows, ids) = (self.dim(f, op, 0, 0)?, self.elements(self.operand(f, op, 1)?)?);
                fraction(expected_distinct(rows, 1.0, ids), rows)
            }
            (OpKind::MoeMatMul, 1) => {
                let (hit, all) = self.experts(f, op)?;
                fraction(hit, all)
            }
            (OpKind::Rope, 2) => fraction(self.dim(f, op, 0, 0)?, self.dim(f, op, 2, 0)?),
            (OpKind::Attention, 4) => {
                let (keys, _) = self.context(f, op)?;
                let kv = self.kv(self.operand(f, op, 1)?)?;
                fraction((keys / kv.page as f64).ceil(), self.dim(f, op, 4, 1)?)
            }
            (OpKind::KvWrite, 5) => fraction(1.0, self.dim(f, op, 5, 1)?),
            (OpKind::Dequant, _) => wanted,
            (OpKind::Sample | OpKind::ArgMax, 0) if op.attrs.int("tile") > 0 => {
                fraction(self.picked(f, op)?, self.elements(self.operand(f, op, 0)?)?)
            }
            (kind, _) if kind.class() == Class::Elementwise => wanted,
            _ => 1.0,
        })
    }

    /// Elements that an op looks at after it has seen the maxima of tiles: those of a few tiles a row.
    fn picked(&self, f: &Func, op: &Op) -> Result<f64, CostError> {
        let shape = self.dims(self.operand(f, op, 0)?)?;
        let (columns, rows) = shape.split_last().map_or((1, &[][..]), |(n, rest)| (*n, rest));
        let columns = match op.kind {
            // A drawn token needs every logit, the greatest one a few tiles; which it will be is not known.
            OpKind::Sample => MOSTLY * columns as f64,
            _ => columns.min(PICKED_TILES.saturating_mul(op.attrs.int("tile"))) as f64,
        };
        Ok(columns * rows.iter().map(|d| *d as f64).product::<f64>())
    }

    /// Bytes of distinct results; of state what is stored.
    fn written(&self) -> Result<f64, CostError> {
        let mut bytes = 0.0;
        for (f, _, op) in self.kernel.ops() {
            if op.kind == OpKind::KvWrite {
                let kv = self.kv(self.operand(f, op, 0)?)?;
                let tokens = self.dim(f, op, 1, 0)?;
                bytes += 2.0 * tokens * kv.heads * kv.head_dim * kv.dtype.bytes().unwrap_or(2) as f64;
            }
        }
        let last = self.kernel.epilogue().unwrap_or(self.kernel.main());
        let mut seen: Vec<Value> = Vec::new();
        for v in &last.results {
            if !seen.contains(v) {
                seen.push(*v);
                bytes += self.bytes(last.graph.ty(*v))?;
            }
        }
        Ok(bytes)
    }

    /// Flops of the main op.
    fn contraction(&self, op: &Op, f: &Func, out: &mut KernelShape) -> Result<(), CostError> {
        let multiplies = match op.kind {
            OpKind::MatMul | OpKind::BatchMatMul | OpKind::MoeMatMul => {
                let inner = self.dims(self.operand(f, op, 1)?)?.last().copied().unwrap_or(0) as f64;
                self.elements(self.result(op)?)? * inner
            }
            OpKind::Attention => {
                let (keys, _) = self.context(f, op)?;
                // q k and p v: two multiplies for each element of q and each key.
                let scores = self.elements(self.result(op)?)? * keys;
                out.scalar_ops += 8.0 * scores / self.kv(self.operand(f, op, 1)?)?.head_dim.max(1.0);
                2.0 * scores
            }
            _ => return Ok(()),
        };
        let dtype = self.operand(f, op, 0)?.as_tensor().map(|t| t.dtype);
        match dtype {
            Some(DType::BF16 | DType::F16) => out.tensor_flops += 2.0 * multiplies,
            // One fused multiply-add each.
            _ => out.scalar_ops += multiplies,
        }
        Ok(())
    }

    /// Lane instructions of an op that is not a contraction; rough.
    fn scalar_ops(&self, f: &Func, op: &Op) -> Result<f64, CostError> {
        let result = op.results.first().map_or(Ok(0.0), |t| self.elements(t))?;
        let operand = op.operands.first().map_or(Ok(0.0), |v| self.elements(f.graph.ty(*v)))?;
        Ok(match op.kind {
            OpKind::Exp | OpKind::Log | OpKind::Sqrt | OpKind::Rsqrt | OpKind::Div => 8.0 * result,
            OpKind::Sigmoid | OpKind::Tanh | OpKind::Silu | OpKind::Gelu => 12.0 * result,
            OpKind::Softmax | OpKind::LogSumExp => 12.0 * operand,
            OpKind::RmsNorm | OpKind::LayerNorm => 4.0 * operand,
            OpKind::Sample | OpKind::ArgMax if op.attrs.int("tile") > 0 => {
                let maxima = op.operands.last().map_or(Ok(0.0), |v| self.elements(f.graph.ty(*v)))?;
                16.0 * (maxima + self.picked(f, op)?)
            }
            OpKind::TopK | OpKind::Sample => 16.0 * operand,
            OpKind::Rope => 4.0 * result,
            OpKind::RopeTable => 40.0 * result,
            OpKind::Swiglu => 16.0 * result,
            OpKind::MoeCombine => 2.0 * operand,
            OpKind::KvWrite => 2.0 * op.operands.get(1).map_or(Ok(0.0), |v| self.elements(f.graph.ty(*v)))?,
            kind => match kind.class() {
                Class::Leaf | Class::View | Class::Contraction | Class::Quant | Class::Call | Class::Kernel => 0.0,
                Class::Reduction | Class::Sampling => 2.0 * operand.max(result),
                _ if kind == OpKind::Attention => 0.0,
                _ => result,
            },
        })
    }
}

/// A KV cache's declaration.
struct Kv {
    heads: f64,
    head_dim: f64,
    page: i64,
    dtype: DType,
}
