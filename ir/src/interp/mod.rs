//! The reference interpreter: the meaning of every op on the CPU, and how a function or plan is run with it.
//!
//! It is both the reference for every kernel and the fallback without a GPU. Results are the same for any number of threads.

pub mod attention;
pub mod contraction;
pub mod elementwise;
pub mod index;
pub mod leaf;
pub mod moe;
pub mod norm;
pub mod quant;
pub mod reduce;
pub mod sample;
pub mod state;
pub mod tensor;
pub mod view;

use crate::attr::Attrs;
use crate::dim::Bindings;
use crate::op::OpKind;
use crate::ty::Type;
pub use state::{CountsStore, KvStore, StateStore};
pub use tensor::{Data, Tensor};

/// What happens to results whose type is narrower than f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Rounding {
    /// Nothing is rounded: `cast` to bf16 is the identity. For comparison with float32 references.
    #[default]
    Exact,
    /// Every result is rounded to its type, as kernels do.
    Typed,
}

/// A run-time value: a tensor, or a state handle as the number of its store.
#[derive(Clone, Debug)]
pub enum Datum {
    /// A tensor.
    Tensor(Tensor),
    /// Number of the store in [`EvalCx::states`].
    State(usize),
}

/// What an op's evaluation sees.
pub struct EvalCx<'a> {
    /// Which op.
    pub kind: OpKind,
    /// Its operands.
    pub operands: &'a [Datum],
    /// Its complete attributes.
    pub attrs: &'a Attrs,
    /// Types of its results.
    pub results: &'a [Type],
    /// Values of the symbols.
    pub sizes: &'a Bindings,
    /// Whether results are rounded.
    pub rounding: Rounding,
    /// Every state store of the run.
    pub states: &'a mut [StateStore],
}

/// Reference semantics of an op.
pub type EvalFn = fn(&mut EvalCx) -> Result<Vec<Datum>, EvalError>;

/// Why an op could not be evaluated. A verified module with operands of the declared types gives none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// An operand does not have the type the op needs.
    #[error("{op}: operand {operand} is {found}, expected {expected}")]
    Operand {
        /// Name of the op.
        op: &'static str,
        /// Operand number.
        operand: usize,
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// A symbol has no value.
    #[error("{op}: symbol `{symbol}` has no value; bind it before running")]
    Unbound {
        /// Name of the op.
        op: &'static str,
        /// The symbol.
        symbol: String,
    },
    /// The op stands for something that is bound before evaluation.
    #[error("{op}: is bound by the caller and cannot be evaluated")]
    Leaf {
        /// Name of the op.
        op: &'static str,
    },
}
