//! Templates: what kernels there are and what each may hold, as data.
//!
//! The contract between fusion and code generation. Rewrite rules ask [`Template::check`] before they make a kernel, the verifier asks it about every kernel (V12),
//! and code generation takes whatever it accepts. A new template is a row in [`TEMPLATES`] and its text in the crate that makes kernels; the rules follow.
//! Sizes are checked by [`Template::fits`] once they are known.

use crate::dim::{Bindings, Dim};
use crate::dtype::DType;
use crate::graph::{Graph, Op, Value};
use crate::kernel::Kernel;
use crate::module::Func;
use crate::op::{Class, OpKind};
use crate::ty::{TensorType, Type};

/// A slot before the main op: what may be done to one of its operands as it is read.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// Operand of the main op.
    pub operand: usize,
    /// Ops that may stand here, each at most once, in this order from the outside in.
    pub ops: &'static [OpKind],
    /// True if what the slot computes may also be stored as a result.
    pub exports: bool,
}

/// In which order a template sums the products of a contraction: kernels of one order give a row the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// K in pieces that depend on K alone, each piece in order, then the pieces in order. Many warps share a row, so it suits few rows.
    Pieces,
    /// All of K in one chain. What tensor cores do fastest for many rows.
    Chain,
    /// No contraction, or an order of its own.
    Own,
}

/// A kind of kernel.
#[derive(Clone, Copy, Debug)]
pub struct Template {
    /// Name in IR text.
    pub name: &'static str,
    /// One line: what it is.
    pub summary: &'static str,
    /// Ops of which `main` holds exactly one; empty: `main` holds any number of the ops in `free`.
    pub main: &'static [OpKind],
    /// Ops of which `main` may hold any number instead.
    pub free: &'static [OpKind],
    /// Element types of the main op's first two operands (after the prologue); empty: any.
    pub dtypes: &'static [DType],
    /// What may be done to operands.
    pub prologue: &'static [Slot],
    /// What may be done to the main op's result.
    pub epilogue: &'static [OpKind],
    /// Least and greatest number of rows (all dims of the main op's first result but the last).
    pub rows: (i64, i64),
    /// Greatest size of the last dim of the main op's first result.
    pub width: i64,
    /// Greatest number of rows if something must see all choices of a token or the prologue keeps rows in shared memory.
    pub held_rows: i64,
    /// True if the second operand of the main op must be packed weights that the prologue decodes. A kernel may be built up to that, so
    /// [`Template::complete`] asks for it and not [`Template::check`].
    pub decodes: bool,
    /// Halves of a product that a `swiglu` in the epilogue puts together must be multiples of this: a tile of columns holds as many of both.
    pub halves: i64,
    /// Greatest number of operands.
    pub operands: usize,
    /// Greatest number of ops in the epilogue.
    pub ops: usize,
    /// True if what the epilogue combines the main result with must be vectors of columns or scalars: no residual.
    pub vectors: bool,
    /// Launches of one kernel at most.
    pub launches: u32,
    /// How it sums. A row must get the same bits whatever else is in a step, so fusion may choose by size only among templates of one order.
    pub order: Order,
}

const ANY: i64 = i64::MAX;

use OpKind as K;

/// Scalar ops on floats, and more.
macro_rules! scalar_and {
    ($($more:ident),*) => {
        &[
            K::Neg, K::Abs, K::Exp, K::Log, K::Sqrt, K::Rsqrt, K::Sigmoid, K::Tanh, K::Silu, K::Gelu, K::Cast, K::Clamp,
            K::Add, K::Sub, K::Mul, K::Div, K::Max, K::Min, $(K::$more),*
        ]
    };
}

/// Elementwise ops that any scalar region takes.
const SCALAR: &[OpKind] = scalar_and!(Cmp, Select, Const);

/// What a tile of a dense matmul may go through before it is stored.
const DENSE: &[OpKind] = scalar_and!(Const, Swiglu, Split, Rope, KvWrite);

/// The same with the reductions over a row that a head needs.
const HEAD: &[OpKind] = scalar_and!(Const, Swiglu, Split, Rope, KvWrite, TileMax);

/// What the rows of experts may go through.
const EXPERTS: &[OpKind] = scalar_and!(Const, GatherRows, Swiglu);

/// The same where one block sees all choices of a token.
const CHOICES: &[OpKind] = scalar_and!(Const, GatherRows, Swiglu, MoeCombine);

const MAPPED: &[OpKind] = scalar_and!(Cmp, Select, Const, GatherRows, Swiglu, MoeCombine, Rope);

const HALF: &[DType] = &[DType::BF16, DType::F16];

/// Every template, by name.
pub const TEMPLATES: &[Template] = &[
    Template {
        name: "stream",
        summary: "matmul of few rows: weights stream through once, rows stay in shared memory",
        main: &[K::MatMul],
        free: &[],
        dtypes: HALF,
        prologue: &[Slot { operand: 0, ops: &[K::GatherRows, K::RmsNorm, K::Cast], exports: false }],
        epilogue: HEAD,
        rows: (1, 64),
        width: ANY,
        held_rows: 32,
        decodes: false,
        halves: 8,
        operands: 24,
        ops: 24,
        vectors: false,
        launches: 1,
        order: Order::Pieces,
    },
    Template {
        name: "tile",
        summary: "matmul of many rows: tiles of both operands pass through shared memory",
        main: &[K::MatMul],
        free: &[],
        dtypes: HALF,
        prologue: &[],
        epilogue: DENSE,
        rows: (9, ANY),
        width: ANY,
        held_rows: ANY,
        decodes: false,
        halves: 64,
        operands: 24,
        ops: 24,
        vectors: false,
        launches: 1,
        order: Order::Pieces,
    },
    Template {
        name: "gemm",
        summary: "matmul of a prompt's rows on warpgroup multiplies: one chain of sums over K",
        main: &[K::MatMul],
        free: &[],
        dtypes: HALF,
        order: Order::Chain,
        prologue: &[],
        epilogue: DENSE,
        rows: (1, ANY),
        width: ANY,
        held_rows: ANY,
        decodes: false,
        halves: 16,
        operands: 24,
        ops: 24,
        vectors: false,
        launches: 1,
    },
    Template {
        name: "gemm_pieces",
        summary: "matmul of many decoded rows on warpgroup multiplies, with the sums of `stream`",
        main: &[K::MatMul],
        free: &[],
        dtypes: HALF,
        prologue: &[],
        epilogue: HEAD,
        rows: (9, ANY),
        width: ANY,
        held_rows: ANY,
        decodes: false,
        halves: 16,
        operands: 24,
        ops: 24,
        vectors: false,
        launches: 1,
        order: Order::Pieces,
    },
    Template {
        name: "moe_stream",
        summary: "matmul with each row's experts, few rows: an expert's weights stream through once for all rows that chose it",
        main: &[K::MoeMatMul],
        free: &[],
        dtypes: &[DType::BF16],
        prologue: &[Slot { operand: 1, ops: &[K::Dequant], exports: false }],
        epilogue: CHOICES,
        rows: (1, 256),
        width: ANY,
        held_rows: 256,
        decodes: true,
        halves: 16,
        operands: 16,
        ops: 24,
        vectors: false,
        launches: 1,
        order: Order::Pieces,
    },
    Template {
        name: "moe_tile",
        summary: "matmul with each row's experts, many rows: rows are grouped by expert, then tiled",
        main: &[K::MoeMatMul],
        free: &[],
        dtypes: &[DType::BF16],
        prologue: &[Slot { operand: 1, ops: &[K::Dequant], exports: false }],
        epilogue: EXPERTS,
        rows: (9, ANY),
        width: ANY,
        held_rows: ANY,
        decodes: true,
        halves: 16,
        operands: 16,
        ops: 24,
        vectors: false,
        launches: 2,
        order: Order::Pieces,
    },
    Template {
        name: "moe_wide",
        summary: "matmul with each row's experts, rows of many sequences: warpgroup multiplies that sum K in pieces",
        main: &[K::MoeMatMul],
        free: &[],
        dtypes: &[DType::BF16],
        prologue: &[Slot { operand: 1, ops: &[K::Dequant], exports: false }],
        epilogue: EXPERTS,
        rows: (9, 4096),
        width: ANY,
        held_rows: ANY,
        decodes: true,
        halves: 16,
        operands: 16,
        ops: 24,
        vectors: false,
        launches: 1,
        order: Order::Pieces,
    },
    Template {
        name: "moe_gemm",
        summary: "matmul of a prompt's rows with each row's experts, on warpgroup multiplies: one chain of sums over K",
        main: &[K::MoeMatMul],
        free: &[],
        dtypes: &[DType::BF16],
        prologue: &[Slot { operand: 1, ops: &[K::Dequant], exports: false }],
        epilogue: EXPERTS,
        rows: (1, ANY),
        width: ANY,
        held_rows: ANY,
        decodes: true,
        halves: 16,
        operands: 16,
        ops: 24,
        vectors: false,
        launches: 2,
        order: Order::Chain,
    },
    Template {
        name: "router",
        summary: "matmul with few columns whose row fits one block: top-k and softmax without leaving it",
        main: &[K::MatMul],
        free: &[],
        dtypes: HALF,
        prologue: &[Slot { operand: 0, ops: &[K::RmsNorm, K::Cast], exports: true }],
        epilogue: &[K::Add, K::TopK, K::Softmax, K::Cast],
        rows: (1, ANY),
        width: 256,
        held_rows: ANY,
        decodes: false,
        halves: 1,
        operands: 8,
        ops: 8,
        vectors: true,
        launches: 1,
        order: Order::Own,
    },
    Template {
        name: "attention",
        summary: "paged attention with sinks and window",
        main: &[K::Attention],
        free: &[],
        dtypes: &[],
        prologue: &[],
        epilogue: &[],
        rows: (1, ANY),
        width: ANY,
        held_rows: ANY,
        decodes: false,
        halves: 1,
        operands: 6,
        ops: 0,
        vectors: false,
        launches: 2,
        order: Order::Own,
    },
    Template {
        name: "row",
        summary: "one block a row: a reduction over the row with scalar code around it",
        main: &[K::RmsNorm, K::LayerNorm, K::Softmax],
        free: &[],
        dtypes: &[],
        prologue: &[Slot { operand: 0, ops: &[K::GatherRows, K::Cast], exports: false }],
        epilogue: SCALAR,
        rows: (1, ANY),
        width: ANY,
        held_rows: ANY,
        decodes: false,
        halves: 1,
        operands: 12,
        ops: 16,
        vectors: false,
        launches: 1,
        order: Order::Own,
    },
    Template {
        name: "map",
        summary: "scalar code over the elements of the results",
        main: &[],
        free: MAPPED,
        dtypes: &[],
        prologue: &[],
        epilogue: &[],
        rows: (0, ANY),
        width: ANY,
        held_rows: ANY,
        decodes: false,
        halves: 1,
        operands: 16,
        ops: 24,
        vectors: false,
        launches: 1,
        order: Order::Own,
    },
    Template {
        name: "cublaslt",
        summary: "matmul by NVIDIA's cuBLASLt",
        main: &[K::MatMul],
        free: &[],
        dtypes: HALF,
        prologue: &[],
        epilogue: &[],
        rows: (64, ANY),
        width: ANY,
        held_rows: ANY,
        decodes: false,
        halves: 1,
        operands: 2,
        ops: 0,
        vectors: false,
        launches: 1,
        order: Order::Own,
    },
    Template {
        name: "single",
        summary: "one op by itself",
        main: OpKind::ALL,
        free: &[],
        dtypes: &[],
        prologue: &[],
        epilogue: &[],
        rows: (0, ANY),
        width: ANY,
        held_rows: ANY,
        decodes: false,
        halves: 1,
        operands: usize::MAX,
        ops: 0,
        vectors: false,
        launches: 8,
        order: Order::Own,
    },
];

/// The template `name`.
pub fn template(name: &str) -> Option<&'static Template> {
    TEMPLATES.iter().find(|t| t.name == name)
}

impl Template {
    /// Checks that code generation can make this kernel, whatever the values of symbols.
    ///
    /// # Errors
    /// What it does not take, and what it would.
    pub fn check(&self, kernel: &Kernel) -> Result<(), String> {
        let operands = kernel.operands();
        if operands > self.operands {
            return Err(self.no(format!("{operands} operands"), format!("at most {}", self.operands)));
        }
        self.main_op(kernel.main())?;
        if let Some(f) = kernel.prologue() {
            self.check_prologue(f, kernel.main())?;
        }
        if let Some(f) = kernel.epilogue() {
            self.check_epilogue(f, kernel)?;
        }
        Ok(())
    }

    /// Checks what a kernel that [`Template::check`] accepts may lack while it is being put together.
    ///
    /// # Errors
    /// What is missing.
    pub fn complete(&self, kernel: &Kernel) -> Result<(), String> {
        let main = kernel.main();
        let Some(weights) = heavy(main).and_then(|h| main.graph.op(h.op).operands.get(1).copied()) else {
            return Ok(());
        };
        let decoded = kernel.prologue().is_some_and(|f| {
            let mut made = f.results.iter().enumerate().filter(|(i, _)| main.param(*i) == Some(weights));
            made.any(|(_, v)| f.graph.op(v.op).kind == OpKind::Dequant)
        });
        match self.decodes && !decoded {
            true => {
                Err(self.no("weights that are not packed".into(), "weights behind a `dequant` in the prologue".into()))
            }
            false => Ok(()),
        }
    }

    /// Checks a kernel that [`Template::check`] accepts: that it is complete and its sizes.
    ///
    /// # Errors
    /// What is missing, or the limit that is not kept.
    pub fn fits(&self, kernel: &Kernel, sizes: &Bindings) -> Result<(), String> {
        self.complete(kernel)?;
        let Some(main) = heavy(kernel.main()) else { return Ok(()) };
        let op = kernel.main().graph.op(main.op);
        let Some(t) = op.results.first().and_then(|t| t.as_tensor()) else { return Ok(()) };
        let shape = t
            .shape(sizes)
            .map_err(|s| self.no(format!("symbol `{s}` without a value"), "a bucket that fixes it".into()))?;
        let (width, rows) = match shape.split_last() {
            Some((n, rest)) => (*n, rest.iter().product::<i64>()),
            None => (1, 1),
        };
        let (least, most) = self.rows;
        if rows < least || rows > most {
            let most = if most == ANY { "more".to_string() } else { most.to_string() };
            return Err(self.no(format!("{rows} rows"), format!("{least} to {most}")));
        }
        if width > self.width {
            return Err(self.no(format!("{width} columns"), format!("at most {}", self.width)));
        }
        let held = kernel.has(OpKind::MoeCombine)
            || kernel
                .prologue()
                .is_some_and(|f| f.graph.ids().iter().any(|id| f.graph.op(*id).kind == OpKind::RmsNorm));
        match held && rows > self.held_rows {
            true => Err(self.no(format!("{rows} rows that a block must hold"), format!("at most {}", self.held_rows))),
            false => Ok(()),
        }
    }

    /// True if it could make the main op of `kernel` at some sizes, whatever is around it.
    pub fn takes(&self, kernel: &Kernel) -> bool {
        self.main_op(kernel.main()).is_ok() && self.complete(kernel).is_ok()
    }

    fn no(&self, what: String, instead: String) -> String {
        format!("template `{}` does not take {what}; it takes {instead}", self.name)
    }

    fn main_op(&self, main: &Func) -> Result<(), String> {
        let ops: Vec<_> = main.graph.ids().into_iter().filter(|id| main.graph.op(*id).kind != OpKind::Param).collect();
        if self.main.is_empty() {
            return match ops.iter().map(|id| main.graph.op(*id)).find(|op| !self.free.contains(&op.kind)) {
                Some(op) => Err(self.no(format!("`{}` in main", op.kind.name()), names(self.free))),
                None if ops.len() > self.ops => {
                    Err(self.no(format!("{} ops", ops.len()), format!("at most {}", self.ops)))
                }
                None => one_space(main).map_err(|e| self.no(e, "results with equal dims".into())),
            };
        }
        let [id] = ops[..] else {
            return Err(self.no(format!("{} ops in main", ops.len()), "one".into()));
        };
        let op = main.graph.op(id);
        if !self.main.contains(&op.kind) {
            return Err(self.no(format!("`{}` in main", op.kind.name()), names(self.main)));
        }
        if self.dtypes.is_empty() {
            return Ok(());
        }
        let dtype = |i: usize| op.operands.get(i).and_then(|v| main.graph.ty(*v).as_tensor()).map(|t| t.dtype);
        match (dtype(0), dtype(1)) {
            (Some(x), Some(w)) if x == w && self.dtypes.contains(&x) => Ok(()),
            (x, w) => {
                let text = |d: Option<DType>| d.map_or("nothing".to_string(), |d| d.to_string());
                let list: Vec<String> = self.dtypes.iter().map(DType::to_string).collect();
                Err(self
                    .no(format!("operands of {} and {}", text(x), text(w)), format!("two of {}", list.join(" or "))))
            }
        }
    }

    /// Each yield of the prologue is a parameter or a chain of the slot's ops on one.
    fn check_prologue(&self, f: &Func, main: &Func) -> Result<(), String> {
        let heavy = heavy(main);
        for (i, root) in f.results.iter().enumerate() {
            let Some(param) = main.param(i) else { continue };
            let used: Vec<usize> = heavy.map_or(vec![], |h| {
                main.graph.op(h.op).operands.iter().enumerate().filter(|(_, v)| **v == param).map(|(n, _)| n).collect()
            });
            let slot = self.prologue.iter().find(|s| used == [s.operand]);
            let mut v = *root;
            let mut allowed = slot.map_or(&[][..], |s| s.ops);
            // From the main op outward: the ops of a slot in reverse.
            while f.graph.op(v.op).kind != OpKind::Param {
                let op = f.graph.op(v.op);
                let Some(at) = allowed.iter().rposition(|k| *k == op.kind) else {
                    let takes = slot.map_or("nothing there".to_string(), |s| names(s.ops));
                    return Err(self.no(format!("`{}` in the prologue of operand {used:?}", op.kind.name()), takes));
                };
                allowed = &allowed[..at];
                v = op.operands[0];
            }
            let exported = main.results.contains(&param);
            if exported && !slot.is_some_and(|s| s.exports) {
                return Err(self.no("a prologue value as a result".into(), "none".into()));
            }
        }
        Ok(())
    }

    fn check_epilogue(&self, f: &Func, kernel: &Kernel) -> Result<(), String> {
        let ops: Vec<_> = f.graph.ids().into_iter().filter(|id| f.graph.op(*id).kind != OpKind::Param).collect();
        if ops.len() > self.ops {
            return Err(self.no(format!("{} ops in the epilogue", ops.len()), format!("at most {}", self.ops)));
        }
        let Some(acc) = heavy(kernel.main())
            .and_then(|h| kernel.main().results.iter().position(|r| *r == h))
            .and_then(|i| f.param(i))
        else {
            return Err(self.no(
                "an epilogue that cannot see the main result".into(),
                "one whose first parameters are main's yields".into(),
            ));
        };
        for id in &ops {
            let op = f.graph.op(*id);
            if !self.epilogue.contains(&op.kind) {
                return Err(self.no(format!("`{}` in the epilogue", op.kind.name()), names(self.epilogue)));
            }
            let loaded = |v: &&Value| f.graph.op(v.op).kind == OpKind::Param && **v != acc;
            let large = |v: &Value| f.graph.ty(*v).as_tensor().is_some_and(|t| t.rank() > 1);
            if self.vectors && op.kind.class() == Class::Elementwise && op.operands.iter().filter(loaded).any(large) {
                return Err(self.no(
                    format!("`{}` of a whole tensor in the epilogue", op.kind.name()),
                    "vectors of columns".into(),
                ));
            }
            self.check_halves(op)?;
        }
        for (i, root) in f.results.iter().enumerate() {
            let mut coupled = Vec::new();
            path(f, *root, acc, &mut coupled)
                .map_err(|e| self.no(format!("result {i}: {e}"), "scalar code on the main result".into()))?;
        }
        Ok(())
    }

    /// A `swiglu` of halves needs columns that are far apart, in tiles that begin at the same place in both.
    fn check_halves(&self, op: &Op) -> Result<(), String> {
        let width = op.results.first().and_then(Type::as_tensor).and_then(|t| t.dims.last()).and_then(Dim::as_const);
        match op.kind == OpKind::Swiglu && op.attrs.word("layout") == "halves" {
            true if width.is_none_or(|w| w % self.halves != 0) => {
                let width = width.map_or("an unknown number".to_string(), |w| w.to_string());
                Err(self.no(format!("`swiglu` of halves of {width} columns"), format!("multiples of {}", self.halves)))
            }
            _ => Ok(()),
        }
    }
}

/// The one op of a main region that is not a parameter, by its first result.
pub fn heavy(main: &Func) -> Option<Value> {
    main.graph.ids().into_iter().find(|id| main.graph.op(*id).kind != OpKind::Param).map(|op| Value { op, result: 0 })
}

/// Follows a result back to `acc`. Values that come from `acc` have its rows; what they are combined with may only be loaded. At most one op on the way may read other
/// columns than it makes (swiglu, rope), so that one tile holds what it needs.
fn path(f: &Func, v: Value, acc: Value, coupled: &mut Vec<OpKind>) -> Result<bool, String> {
    if v == acc {
        return Ok(true);
    }
    let op = f.graph.op(v.op);
    if op.kind == OpKind::Param || op.kind == OpKind::Const {
        return Ok(false);
    }
    let mut from_acc = Vec::new();
    for o in &op.operands {
        from_acc.push(path(f, *o, acc, coupled)?);
    }
    let first = from_acc.first().copied().unwrap_or(false);
    let any = from_acc.iter().any(|x| *x);
    match op.kind {
        OpKind::Swiglu | OpKind::Rope if first => {
            if coupled.contains(&OpKind::Swiglu) || coupled.contains(&op.kind) && op.kind == OpKind::Swiglu {
                return Err("two ops that pair columns".into());
            }
            coupled.push(op.kind);
            Ok(true)
        }
        OpKind::KvWrite => match from_acc[..] {
            [false, true, true, ..] => Ok(true),
            _ => Err("`kv_write` of other keys or values than the main result".into()),
        },
        OpKind::GatherRows if any => Err("`gather_rows` of the main result".into()),
        OpKind::MoeCombine | OpKind::Split | OpKind::TileMax | OpKind::TopK if !first => {
            Err(format!("`{}` of something else than the main result", op.kind.name()))
        }
        OpKind::Swiglu | OpKind::Rope => Err(format!("`{}` of something else than the main result", op.kind.name())),
        kind if kind.class() == Class::Elementwise && any && from_acc.len() > 1 && !first => {
            // The main result as a later operand: only with equal dims, or it would be repeated over rows.
            let t = |v: Value| f.graph.ty(v).as_tensor().map(|t| t.dims.clone());
            match t(op.operands[0]) == t(v)
                && op.operands[1..].iter().zip(&from_acc[1..]).all(|(o, a)| !a || t(*o) == t(v))
            {
                true => Ok(true),
                false => Err(format!("`{}` that repeats the main result", kind.name())),
            }
        }
        _ => Ok(any),
    }
}

/// True if all results have the same dims, so that one loop makes them.
fn one_space(main: &Func) -> Result<(), String> {
    let dims = |v: &Value| main.graph.ty(*v).as_tensor().map(|t: &TensorType| t.dims.clone());
    let first: Option<Vec<Dim>> = main.results.first().and_then(dims);
    match main.results.iter().all(|v| dims(v) == first && first.is_some()) {
        true => {
            // Rows that were computed cannot be gathered: an element depends on few others only.
            gathers_loads(&main.graph)
        }
        false => Err("results of different dims".into()),
    }
}

fn gathers_loads(g: &Graph) -> Result<(), String> {
    for id in g.ids() {
        let op = g.op(id);
        if op.kind == OpKind::GatherRows && op.operands.iter().any(|v| g.op(v.op).kind != OpKind::Param) {
            return Err("`gather_rows` of computed rows".into());
        }
    }
    Ok(())
}

fn names(kinds: &[OpKind]) -> String {
    match kinds.len() {
        0 => "nothing".into(),
        n if n > 30 => "any op".into(),
        _ => kinds.iter().map(|k| k.name()).collect::<Vec<_>>().join(", "),
    }
}
