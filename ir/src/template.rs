//! Templates: what kernels there are and what each may hold, as data.
//!
//! The contract between fusion and code generation. Rewrite rules ask [`Template::check`] before they make a kernel, the verifier asks it about every kernel (V12),
//! and code generation takes whatever it accepts. A new template is a row in [`TEMPLATES`] and its text in the crate that makes kernels; the rules follow.
//! Sizes are checked by [`Template::fits`] once they are known.

mod check;

use crate::dtype::DType;
use crate::graph::Value;
use crate::module::Func;
use crate::op::OpKind;

/// A slot before the main op: what may be done to one of its operands as it is read.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// Operand of the main op.
    pub operand: usize,
    /// Ops that may stand here, each at most once, in this order from the outside in.
    pub ops: &'static [OpKind],
    /// True if what the slot computes may also be stored as a result.
    pub exports: bool,
    /// True if scalar code makes each element where it is read: then the ops may be any number in any order.
    pub scalar: bool,
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

/// A stage before the last one of a kernel of several stages. Its main op, element types and prologue are as the template's.
#[derive(Clone, Copy, Debug)]
pub struct Earlier {
    /// What may be done to its main op's result before the next stage reads it.
    pub epilogue: &'static [OpKind],
    /// Operand of the next stage's main op that its one result is. Nothing else reads it.
    pub feeds: usize,
    /// Operands that its main op and the next stage's have in common: one value.
    pub shares: &'static [usize],
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
    /// Stages before the last one, in order; a kernel has all of them. Empty: kernels of one stage.
    pub earlier: &'static [Earlier],
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

/// What the elements of a row may be made of in front of a reduction over it.
const ROW: &[OpKind] = &[K::GatherRows, K::Cast, K::Add, K::MoeCombine];

const HALF: &[DType] = &[DType::BF16, DType::F16];

/// Every template, by name.
pub const TEMPLATES: &[Template] = &[
    Template {
        name: "stream",
        summary: "matmul of few rows: weights stream through once, rows stay in shared memory",
        main: &[K::MatMul],
        free: &[],
        dtypes: HALF,
        prologue: &[Slot { operand: 0, ops: &[K::GatherRows, K::RmsNorm, K::Cast], exports: false, scalar: false }],
        epilogue: HEAD,
        rows: (1, 64),
        width: ANY,
        held_rows: 32,
        decodes: false,
        halves: 8,
        operands: 24,
        ops: 24,
        vectors: false,
        earlier: &[],
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
        earlier: &[],
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
        earlier: &[],
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
        earlier: &[],
        order: Order::Pieces,
    },
    Template {
        name: "moe_stream",
        summary: "matmul with each row's experts, few rows: an expert's weights stream through once for all rows that chose it",
        main: &[K::MoeMatMul],
        free: &[],
        dtypes: &[DType::BF16],
        prologue: &[Slot { operand: 1, ops: &[K::Dequant], exports: false, scalar: false }],
        epilogue: CHOICES,
        rows: (1, 256),
        width: ANY,
        held_rows: 256,
        decodes: true,
        halves: 16,
        operands: 16,
        ops: 24,
        vectors: false,
        earlier: &[],
        launches: 1,
        order: Order::Pieces,
    },
    Template {
        name: "moe_pair",
        summary: "two matmuls with the same experts, few rows: what the first makes of a row the second reads, in one launch",
        main: &[K::MoeMatMul],
        free: &[],
        dtypes: &[DType::BF16],
        prologue: &[Slot { operand: 1, ops: &[K::Dequant], exports: false, scalar: false }],
        epilogue: CHOICES,
        rows: (1, 32),
        width: ANY,
        held_rows: 32,
        decodes: true,
        halves: 16,
        operands: 24,
        ops: 24,
        vectors: false,
        earlier: &[Earlier { epilogue: EXPERTS, feeds: 0, shares: &[2] }],
        launches: 1,
        order: Order::Pieces,
    },
    Template {
        name: "moe_tile",
        summary: "matmul with each row's experts, many rows: rows are grouped by expert, then tiled",
        main: &[K::MoeMatMul],
        free: &[],
        dtypes: &[DType::BF16],
        prologue: &[Slot { operand: 1, ops: &[K::Dequant], exports: false, scalar: false }],
        epilogue: EXPERTS,
        rows: (9, ANY),
        width: ANY,
        held_rows: ANY,
        decodes: true,
        halves: 16,
        operands: 16,
        ops: 24,
        vectors: false,
        earlier: &[],
        launches: 2,
        order: Order::Pieces,
    },
    Template {
        name: "moe_wide",
        summary: "matmul with each row's experts, rows of many sequences: warpgroup multiplies that sum K in pieces",
        main: &[K::MoeMatMul],
        free: &[],
        dtypes: &[DType::BF16],
        prologue: &[Slot { operand: 1, ops: &[K::Dequant], exports: false, scalar: false }],
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
        earlier: &[],
        order: Order::Pieces,
    },
    Template {
        name: "moe_gemm",
        summary: "matmul of a prompt's rows with each row's experts, on warpgroup multiplies: one chain of sums over K",
        main: &[K::MoeMatMul],
        free: &[],
        dtypes: &[DType::BF16],
        prologue: &[Slot { operand: 1, ops: &[K::Dequant], exports: false, scalar: false }],
        epilogue: EXPERTS,
        rows: (1, ANY),
        width: ANY,
        held_rows: ANY,
        decodes: true,
        halves: 16,
        operands: 16,
        ops: 24,
        vectors: false,
        earlier: &[],
        launches: 2,
        order: Order::Chain,
    },
    Template {
        name: "router",
        summary: "matmul with few columns whose row fits one block: top-k and softmax without leaving it",
        main: &[K::MatMul],
        free: &[],
        dtypes: HALF,
        prologue: &[Slot { operand: 0, ops: &[K::RmsNorm, K::Cast], exports: true, scalar: false }],
        epilogue: &[K::Add, K::TopK, K::Softmax, K::Cast],
        rows: (1, ANY),
        width: 256,
        held_rows: ANY,
        decodes: false,
        halves: 1,
        operands: 8,
        ops: 8,
        vectors: true,
        earlier: &[],
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
        earlier: &[],
        launches: 2,
        order: Order::Own,
    },
    Template {
        name: "row",
        summary: "one block a row: a reduction over the row with scalar code around it",
        main: &[K::RmsNorm, K::LayerNorm, K::Softmax],
        free: &[],
        dtypes: &[],
        prologue: &[Slot { operand: 0, ops: ROW, exports: true, scalar: true }],
        epilogue: SCALAR,
        rows: (1, ANY),
        width: ANY,
        held_rows: ANY,
        decodes: false,
        halves: 1,
        operands: 12,
        ops: 16,
        vectors: false,
        earlier: &[],
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
        earlier: &[],
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
        earlier: &[],
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
        earlier: &[],
        launches: 8,
        order: Order::Own,
    },
];

/// The template `name`.
pub fn template(name: &str) -> Option<&'static Template> {
    TEMPLATES.iter().find(|t| t.name == name)
}

/// The one op of a main region that is not a parameter, by its first result.
pub fn heavy(main: &Func) -> Option<Value> {
    main.graph.ids().into_iter().find(|id| main.graph.op(*id).kind != OpKind::Param).map(|op| Value { op, result: 0 })
}
