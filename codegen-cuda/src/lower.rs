//! From one op at given sizes to kernels, launch geometry and arguments.
//!
//! Owns the interface between a plan and its kernels. Knows types and sizes; must not know buffers, devices or what runs before or
//! after. One op becomes one kernel, or a few that run in order on one stream. The text of a kernel depends on the op, its dtypes and
//! its constant dims only; symbolic sizes (tokens, sequences, rows) are arguments, so one compiled kernel serves every bucket.
//!
//! Contract with the caller:
//! - buffers start at multiples of 16 bytes; scratch buffers live at least until the last launch of the op has run, and none of them is
//!   among the prepared buffers that are kept then;
//! - a result may share the bytes of the first operand only for elementwise ops (equal dims, equal element size), and must be the
//!   operand's buffer for states;
//! - a symbol of value 0 gives no launches.

use std::sync::Arc;

use gossamer_ir::{Bindings, DType, Module, Op, OpKind, TensorType, Type};

pub use crate::emit::KernelSource;
use crate::kernels;

/// An op with everything its kernels depend on.
#[derive(Clone, Copy)]
pub struct OpInstance<'a> {
    /// The op.
    pub op: &'a Op,
    /// Types of its operands, in order.
    pub operands: &'a [Type],
    /// Declarations of state.
    pub module: &'a Module,
    /// Values of all symbols in the types.
    pub sizes: &'a Bindings,
    /// Operands that are whole before a kernel of this op can start, though the kernel in front of it may still run: inputs of the step, values kept
    /// from loading, and what was written before the op in front if that op [`settles`]; not state. Kernels may read them before they wait. Missing
    /// entries count as false.
    pub early: &'a [bool],
}

/// What runs an op.
#[derive(Clone, Debug, Default)]
pub struct Lowered {
    /// Kernels in the order they run; each may read what the ones before it wrote. Empty if the results have no element, and for library calls.
    pub launches: Vec<Launch>,
    /// Bytes of each scratch buffer; contents need not be kept or cleared.
    pub scratch: Vec<u64>,
    /// How many of the first launches only prepare: all that they write are the buffers of `kept`, and these depend on nothing but the launches'
    /// arguments. They may be left out where the same launches, with the same values as operands, were the last of any op that prepared.
    pub prepare: usize,
    /// Bytes of each buffer that the first launches prepare and the others only read. They are kept until another op prepares.
    pub kept: Vec<u64>,
    /// Words of [`Arg::Counters`] that are used, at most [`MAX_COUNTERS`].
    pub counters: u32,
    /// A call of a library instead of kernels; then `launches` is empty.
    pub library: Option<Gemm>,
    /// What its kernels would find in the L2 cache.
    pub wanted: Option<Wanted>,
}

/// What a kernel reads first of an operand that is the same in every step, cut into equal parts of which different blocks read one each: the first bytes of
/// each part. The kernel in front may ask memory for them ([`Arg::Wanted`]); nothing depends on that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Operand number.
    pub index: usize,
    /// Which of its buffers.
    pub part: Part,
    /// Bytes from one part to the next, a multiple of 128.
    pub apart: u64,
    /// Parts.
    pub parts: u32,
    /// Bytes of each that are wanted, a multiple of 16.
    pub bytes: u32,
}

impl Wanted {
    /// At most `each` bytes of each of some equal parts of operand `index`, which has so many bytes.
    pub(crate) fn parts_of(index: usize, bytes: u64, parts: u32, each: u64) -> Wanted {
        let apart = bytes / u64::from(parts.max(1)) / 128 * 128;
        Wanted { index, part: Part::Data, apart, parts, bytes: apart.min(each) as u32 }
    }
}

impl Lowered {
    /// The same without the launches that prepare.
    pub fn prepared(&self) -> Lowered {
        let launches = self.launches[self.prepare.min(self.launches.len())..].to_vec();
        Lowered { launches, prepare: 0, ..self.clone() }
    }

    /// Whether a kernel of it asks memory for what a later one wants ([`Arg::Wanted`]).
    pub fn asks(&self) -> bool {
        self.launches.iter().any(|l| l.args.contains(&Arg::Wanted))
    }

    /// How many things are launched: kernels, or one library call.
    pub fn count(&self) -> usize {
        self.launches.len() + usize::from(self.library.is_some())
    }
}

/// A matmul by NVIDIA's cuBLASLt: `y[m, n] = sum over k of x[m, k] * w[n, k]`, all three row-major without gaps, summed in f32 and rounded once.
#[derive(Clone, Debug, PartialEq)]
pub struct Gemm {
    /// Rows of x and y, at least 1.
    pub m: u64,
    /// Rows of w, columns of y, at least 1.
    pub n: u64,
    /// Columns of x and w, at least 1.
    pub k: u64,
    /// Element type of x and w: bf16 or f16.
    pub input: DType,
    /// Element type of y: f32 or that of x.
    pub output: DType,
    /// Address of x.
    pub x: Arg,
    /// Address of w.
    pub w: Arg,
    /// Address of y.
    pub y: Arg,
    /// Address of memory the library may use, [`GEMM_WORKSPACE`] bytes.
    pub workspace: Arg,
}

impl Gemm {
    /// What it is called where kernels have their entry names: `cublaslt_64x128x256` of m, n and k.
    pub fn name(&self) -> String {
        format!("cublaslt_{}x{}x{}", self.m, self.n, self.k)
    }
}

/// Bytes of [`Gemm::workspace`]: what NVIDIA advises for Hopper. Fixed, because the algorithm that is chosen depends on it.
pub const GEMM_WORKSPACE: u64 = 32 << 20;

/// Most words of [`Arg::Counters`].
pub const MAX_COUNTERS: u32 = 1 << 15;

/// One kernel launch.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The kernel.
    pub kernel: Arc<KernelSource>,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Bytes of dynamic shared memory of a block; above 48 KiB the launcher must raise the kernel's limit.
    pub shared: u32,
    /// True if it may start before the launch before it has ended (programmatic dependent launch): until it waits for that by itself it
    /// reads nothing but weights and operands that are [`OpInstance::early`]. Launching it after the end is correct too.
    pub dependent: bool,
    /// Arguments in the order of the kernel's parameters.
    pub args: Vec<Arg>,
}

/// A kernel argument.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    /// Address of (a part of) an operand.
    Operand {
        /// Operand number.
        index: usize,
        /// Which of its buffers.
        part: Part,
    },
    /// Address of (a part of) a result.
    Result {
        /// Result number.
        index: usize,
        /// Which of its buffers.
        part: Part,
    },
    /// Address of a scratch buffer, by its number in [`Lowered::scratch`].
    Scratch(usize),
    /// Address of a prepared buffer, by its number in [`Lowered::kept`].
    Kept(usize),
    /// Address of u32 words that are 0 when the launch starts. Every launch leaves them so, which lets all kernels of a device share them.
    Counters,
    /// A tensor map of (a part of) an operand, 128 bytes by value: how hardware copies boxes of it.
    TensorMap {
        /// Operand number.
        index: usize,
        /// Which of its buffers.
        part: Part,
        /// What the buffer holds.
        matrix: Matrix,
    },
    /// What the op behind this one would find in the L2 cache, by value: `struct Wanted` of `cuda/async.cuh`, all zeros if nothing.
    Wanted,
    /// A 4-byte integer.
    I32(i32),
    /// An 8-byte integer.
    I64(i64),
    /// A 4-byte float.
    F32(f32),
}

/// A row-major matrix without gaps, and the boxes of it that a kernel copies to shared memory. Boxes are 64 columns wide and lie there as rows of 128
/// bytes with the swizzle of `wgmma` operands; what is outside the matrix reads as 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// Element type: bf16 or f16.
    pub dtype: DType,
    /// Rows, 1 to 2^32.
    pub rows: u64,
    /// Columns, a multiple of 8.
    pub columns: u64,
    /// Rows of a box, 1 to 256.
    pub box_rows: u32,
}

/// One buffer of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The only buffer: plain tensors, and packed ones with a layout.
    Data,
    /// Row-major MXFP4: code bytes `[.., K/2]`.
    Codes,
    /// Row-major MXFP4: scale bytes `[.., K/32]`.
    Scales,
    /// KV state: keys `[pages, kv_heads, page, head_dim]`.
    Keys,
    /// KV state: values, as keys.
    Values,
    /// Counts state: u32 `[slots, vocab]`; bit 31: occurred in the prompt, the rest: times generated.
    Counts,
}

/// An op has no kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LowerError {
    /// No kernel family takes this.
    #[error("{op}: no kernel for {what}; supported: {supported}")]
    Unsupported {
        /// Name of the op.
        op: &'static str,
        /// What was asked for.
        what: String,
        /// What would be.
        supported: String,
    },
    /// A symbol of a type has no value.
    #[error("{op}: symbol `{symbol}` has no value; add it to the sizes of the bucket")]
    Unbound {
        /// Name of the op.
        op: &'static str,
        /// The symbol.
        symbol: String,
    },
    /// The op's types are not those its type rule gives.
    #[error("{op}: {what}; run the verifier on the module")]
    Malformed {
        /// Name of the op.
        op: &'static str,
        /// What is wrong.
        what: String,
    },
}

/// The buffers of a tensor and their sizes in bytes.
///
/// # Errors
/// A symbol without a value, or a layout this crate does not define or that does not fit the tensor.
pub fn buffers(ty: &TensorType, sizes: &Bindings) -> Result<Vec<(Part, u64)>, LowerError> {
    let op = "buffer";
    let shape = ty.shape(sizes).map_err(|s| LowerError::Unbound { op, symbol: s.to_string() })?;
    let elements = shape.iter().product::<i64>().max(0) as u64;
    let unsupported = |what: String| LowerError::Unsupported {
        op,
        what,
        supported: format!("row-major tensors, and mxfp4 in #{} with K a multiple of 32", kernels::quant::PACKED),
    };
    match (ty.layout.as_deref(), ty.dtype) {
        (None, DType::Mxfp4) => Ok(vec![(Part::Codes, elements / 2), (Part::Scales, elements / 32)]),
        (None, dtype) => Ok(vec![(Part::Data, dtype.storage_bytes(elements))]),
        (Some(kernels::quant::PACKED | kernels::quant::PACKED_FAST), DType::Mxfp4) => {
            match kernels::quant::packed(&shape) {
                None => Ok(vec![(Part::Data, 0)]),
                Some(Ok(layout)) => Ok(vec![(Part::Data, layout.bytes() as u64)]),
                Some(Err(e)) => Err(unsupported(format!("{ty} ({e})"))),
            }
        }
        (Some(_), _) => Err(unsupported(ty.to_string())),
    }
}

/// True if every kernel of this op lets the next one start only after its own wait for the kernel in front of it. When a kernel behind it starts, all
/// that was launched before this op has ended, so of what the step writes only this op's results may be incomplete.
pub fn settles(op: &Op) -> bool {
    op.attrs.kernel().is_some_and(|k| kernels::fused::settles(k.template()))
}

/// Kernels, launch geometry and arguments of one op.
///
/// # Errors
/// See [`LowerError`]: an op without a kernel of its own (`param`, `weight`, `call`), dtypes or sizes outside what the templates take, or
/// a symbol without a value.
pub fn lower(instance: &OpInstance) -> Result<Lowered, LowerError> {
    use OpKind as K;
    let cx = kernels::Cx::new(*instance);
    match instance.op.kind {
        K::Param | K::Weight | K::Call => {
            Err(cx.unsupported("an op that has no value of its own", "ops of a flat plan other than leaves"))
        }
        K::Const | K::Iota => kernels::fill::lower(&cx),
        K::Reshape | K::Permute | K::Slice | K::Split | K::Broadcast | K::Concat => kernels::view::lower(&cx),
        K::Neg
        | K::Abs
        | K::Exp
        | K::Log
        | K::Sqrt
        | K::Rsqrt
        | K::Sigmoid
        | K::Tanh
        | K::Silu
        | K::Gelu
        | K::Cast
        | K::Clamp
        | K::Add
        | K::Sub
        | K::Mul
        | K::Div
        | K::Max
        | K::Min
        | K::Cmp
        | K::Select => kernels::elementwise::lower(&cx),
        K::Kernel => kernels::fused::lower(&cx),
        K::Reduce => kernels::reduce::lower(&cx),
        K::TileMax => kernels::reduce::tile_max(&cx),
        K::Softmax | K::LogSumExp | K::RmsNorm | K::LayerNorm | K::ArgMax | K::TokenLogprob => {
            kernels::rows::lower(&cx)
        }
        K::TopK => kernels::topk::lower(&cx),
        K::MatMul | K::BatchMatMul | K::MoeMatMul => kernels::contraction::lower(&cx),
        K::Dequant | K::Relayout => kernels::quant::lower(&cx),
        K::GatherRows => kernels::gather::lower(&cx),
        K::RopeTable | K::Rope => kernels::rope::lower(&cx),
        K::KvWrite => kernels::kv::lower(&cx),
        K::Attention => kernels::attention::lower(&cx),
        K::Swiglu | K::MoeCombine => kernels::moe::lower(&cx),
        K::CountTokens | K::Penalize | K::LogitBias => kernels::logits::lower(&cx),
        K::Sample => kernels::sample::lower(&cx),
    }
}
