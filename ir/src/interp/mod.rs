//! The reference interpreter: the meaning of every op on the CPU, and how a function or plan is run with it.
//!
//! It is both the reference for every kernel and the fallback without a GPU. Results are the same for any number of threads, and a row's
//! result is the same bits whatever other rows are computed beside it: every sum has one order (see [`contraction`] and `simd`).
//!
//! [`run_func`] runs a function of a module, [`eval_op`] one op. Values are [`Datum`]s; state lives in [`StateStore`]s that ops change in place.

pub mod attention;
pub mod contraction;
pub mod elementwise;
pub mod index;
pub mod kernel;
pub mod leaf;
pub mod moe;
pub mod norm;
mod par;
pub mod quant;
pub mod reduce;
mod run;
pub mod sample;
mod simd;
pub mod state;
pub mod tensor;
pub mod view;

#[cfg(test)]
mod decomp_tests;
#[cfg(test)]
mod edge_tests;
#[cfg(test)]
mod testing;

use std::borrow::Cow;

use crate::attr::Attrs;
use crate::dim::{Bindings, Dim};
use crate::dtype::DType;
use crate::op::OpKind;
use crate::ty::Type;
pub use run::{eval_op, run_func};
pub use state::{CountsStore, KvStore, StateStore};
pub use tensor::{Data, Tensor, TensorError};

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

impl Datum {
    /// The tensor, if it is one.
    pub fn as_tensor(&self) -> Option<&Tensor> {
        match self {
            Datum::Tensor(t) => Some(t),
            Datum::State(_) => None,
        }
    }
}

impl From<Tensor> for Datum {
    fn from(t: Tensor) -> Datum {
        Datum::Tensor(t)
    }
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

/// Why an op could not be evaluated. A verified module with operands of the declared types, bound symbols and a complete set of weights
/// and states gives none.
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
    /// A result would have a negative dim or more elements than the interpreter allocates.
    #[error("{op}: result would have dims {dims}, expected 0 to 2^36 elements; check the values of the symbols")]
    Size {
        /// Name of the op.
        op: &'static str,
        /// The dims.
        dims: String,
    },
    /// The op stands for something that is bound before evaluation.
    #[error("{op}: is bound by the caller and cannot be evaluated")]
    Leaf {
        /// Name of the op.
        op: &'static str,
    },
    /// A weight could not be provided.
    #[error("weight `@{name}`: {message}")]
    Weight {
        /// Name in the module.
        name: String,
        /// Why, and what to do.
        message: String,
    },
    /// A function cannot be run as asked.
    #[error("function `@{name}`: {message}")]
    Func {
        /// Name of the function.
        name: String,
        /// What was found and what was expected.
        message: String,
    },
}

/// Elements that one result may have.
const MAX_ELEMENTS: usize = 1 << 36;

/// Access to operands for the evaluation functions. Nothing here panics on operands of a wrong type.
impl<'a> EvalCx<'a> {
    /// Name of the op, for messages.
    pub(crate) fn op(&self) -> &'static str {
        self.kind.name()
    }

    /// Operand `i` is not what it should be.
    pub(crate) fn bad(&self, i: usize, expected: impl Into<String>) -> EvalError {
        let found = match self.operands.get(i) {
            Some(Datum::Tensor(t)) => t.to_string(),
            Some(Datum::State(s)) => match self.states.get(*s) {
                Some(StateStore::Kv(_)) => "a kv state".into(),
                Some(StateStore::Counts(_)) => "a counts state".into(),
                None => format!("state {s}, which does not exist"),
            },
            None => "missing".into(),
        };
        EvalError::Operand { op: self.op(), operand: i, found, expected: expected.into() }
    }

    /// Operand `i` as a tensor.
    pub(crate) fn tensor(&self, i: usize) -> Result<&'a Tensor, EvalError> {
        match self.operands.get(i) {
            Some(Datum::Tensor(t)) if t.data.len() == t.elements() => Ok(t),
            _ => Err(self.bad(i, "a tensor with as many elements as its shape says")),
        }
    }

    /// Operand `i` as f32 elements and shape.
    pub(crate) fn floats(&self, i: usize) -> Result<(Cow<'a, [f32]>, &'a [usize]), EvalError> {
        let t = self.tensor(i)?;
        match t.dtype.is_float() {
            true => Ok((t.to_f32(), &t.shape)),
            false => Err(self.bad(i, "f32, bf16 or f16")),
        }
    }

    /// Operand `i` as f32 elements of exactly this shape.
    pub(crate) fn floats_of(&self, i: usize, shape: &[usize]) -> Result<Cow<'a, [f32]>, EvalError> {
        let (x, found) = self.floats(i)?;
        match found == shape {
            true => Ok(x),
            false => Err(self.bad(i, format!("floats of shape {}", dims_text(shape)))),
        }
    }

    /// Operand `i` as i32 elements and shape.
    pub(crate) fn ints(&self, i: usize) -> Result<(&'a [i32], &'a [usize]), EvalError> {
        let t = self.tensor(i)?;
        t.as_i32().map(|v| (v, t.shape.as_slice())).ok_or_else(|| self.bad(i, "i32"))
    }

    /// Operand `i` as i32 elements of exactly this shape.
    pub(crate) fn ints_of(&self, i: usize, shape: &[usize]) -> Result<&'a [i32], EvalError> {
        let (x, found) = self.ints(i)?;
        match found == shape {
            true => Ok(x),
            false => Err(self.bad(i, format!("i32 of shape {}", dims_text(shape)))),
        }
    }

    /// Operand `i` as the number of a kv store, and the store.
    pub(crate) fn kv(&mut self, i: usize) -> Result<(usize, &mut KvStore), EvalError> {
        let error = self.bad(i, "a kv state");
        match self.operands.get(i) {
            Some(Datum::State(s)) => match self.states.get_mut(*s) {
                Some(StateStore::Kv(kv)) => Ok((*s, kv)),
                _ => Err(error),
            },
            _ => Err(error),
        }
    }

    /// Operand `i` as the number of a counts store, and the store.
    pub(crate) fn counts(&mut self, i: usize) -> Result<(usize, &mut CountsStore), EvalError> {
        let error = self.bad(i, "a counts state");
        match self.operands.get(i) {
            Some(Datum::State(s)) => match self.states.get_mut(*s) {
                Some(StateStore::Counts(c)) => Ok((*s, c)),
                _ => Err(error),
            },
            _ => Err(error),
        }
    }

    /// Element type of result `i`.
    pub(crate) fn dtype(&self, i: usize) -> DType {
        self.results.get(i).and_then(Type::as_tensor).map_or(DType::F32, |t| t.dtype)
    }

    /// `dims` as sizes.
    pub(crate) fn sizes_of(&self, dims: &[Dim]) -> Result<Vec<usize>, EvalError> {
        let mut out = Vec::with_capacity(dims.len());
        for dim in dims {
            let n = dim.eval(self.sizes).map_err(|s| EvalError::Unbound { op: self.op(), symbol: s.to_string() })?;
            out.push(n);
        }
        let sizes: Option<Vec<usize>> = out.iter().map(|n| usize::try_from(*n).ok()).collect();
        let fits =
            |v: &Vec<usize>| v.iter().try_fold(1usize, |a, b| a.checked_mul(*b)).is_some_and(|n| n <= MAX_ELEMENTS);
        sizes.filter(fits).ok_or_else(|| EvalError::Size { op: self.op(), dims: dims_text(&out) })
    }

    /// Float result `i`, rounded to its type if rounding is on.
    pub(crate) fn float_result(&self, i: usize, shape: Vec<usize>, mut data: Vec<f32>) -> Datum {
        let dtype = self.dtype(i);
        if self.rounding == Rounding::Typed {
            tensor::round_all(dtype, &mut data);
        }
        Datum::Tensor(Tensor::raw(dtype, shape, data))
    }
}

/// A shape as text: `[2, 3]`.
pub(crate) fn dims_text<T: std::fmt::Display>(dims: &[T]) -> String {
    let list: Vec<_> = dims.iter().map(T::to_string).collect();
    format!("[{}]", list.join(", "))
}
