//! Kernel families: for each op the template it uses, and how sizes become geometry and arguments.
//!
//! Owns everything about how an op is computed on a GPU. A file is one family: its Rust half chooses a template, fills its slots and lays out
//! the launch; its CUDA half is in `cuda/`. Scalar code is printed by [`scalar`] only, so that fused kernels compute what single ones do.
//! Must not know buffers, devices or models.

pub mod attention;
pub mod contraction;
pub mod elementwise;
pub mod fill;
pub mod fused;
pub mod gather;
pub mod kv;
pub mod logits;
pub mod moe;
pub mod quant;
pub mod reduce;
pub(crate) mod region;
pub mod rope;
pub mod rows;
pub mod sample;
pub mod scalar;
pub mod topk;
pub mod view;
pub(crate) mod wgmma;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use gossamer_ir::{Attr, Bindings, DType, Dim, Op, StateDecl, TensorType, Type};

use crate::emit::KernelSource;
use crate::lower::{Arg, Launch, LowerError, Lowered, OpInstance, Part};

/// Blocks that a launch may have along x.
const MAX_GRID: i64 = i32::MAX as i64;

/// A dim at given sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    /// Its value.
    pub value: i64,
    /// A divisor known without the values of symbols: the value itself of a constant, else 1. What text may depend on.
    pub factor: i64,
    /// True if the value is known without symbols.
    pub constant: bool,
}

impl Size {
    /// A size that does not depend on symbols.
    pub const fn known(value: i64) -> Size {
        Size { value, factor: value, constant: true }
    }
}

/// An op being lowered, with checked access to its types.
pub struct Cx<'a> {
    pub(crate) op: &'a Op,
    operands: &'a [Type],
    module: &'a gossamer_ir::Module,
    sizes: &'a Bindings,
    early: &'a [bool],
}

impl<'a> Cx<'a> {
    pub(crate) fn new(instance: OpInstance<'a>) -> Cx<'a> {
        let OpInstance { op, operands, module, sizes, early } = instance;
        Cx { op, operands, module, sizes, early }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.op.kind.name()
    }

    pub(crate) fn module(&self) -> &'a gossamer_ir::Module {
        self.module
    }

    pub(crate) fn sizes(&self) -> &'a Bindings {
        self.sizes
    }

    /// The type of operand `i`.
    pub(crate) fn operand_type(&self, i: usize) -> Result<Type, LowerError> {
        self.operands.get(i).cloned().ok_or_else(|| self.malformed(format!("operand {i} is missing")))
    }

    /// True if operand `i` is a state.
    pub(crate) fn is_state(&self, i: usize) -> bool {
        self.operands.get(i).is_some_and(Type::is_state)
    }

    pub(crate) fn operand_count(&self) -> usize {
        self.operands.len()
    }

    pub(crate) fn unsupported(&self, what: impl Into<String>, supported: impl Into<String>) -> LowerError {
        LowerError::Unsupported { op: self.name(), what: what.into(), supported: supported.into() }
    }

    pub(crate) fn malformed(&self, what: impl Into<String>) -> LowerError {
        LowerError::Malformed { op: self.name(), what: what.into() }
    }

    /// True if operand `i` is whole before the step starts.
    pub(crate) fn early(&self, i: usize) -> bool {
        self.early.get(i).copied().unwrap_or(false)
    }

    /// Operand `i` as a tensor.
    pub(crate) fn operand(&self, i: usize) -> Result<&'a TensorType, LowerError> {
        match self.operands.get(i) {
            Some(Type::Tensor(t)) => Ok(t),
            Some(other) => Err(self.malformed(format!("operand {i} is {other}, expected a tensor"))),
            None => Err(self.malformed(format!("operand {i} is missing"))),
        }
    }

    /// Operand `i` as a row-major tensor with an element type of its own.
    pub(crate) fn plain(&self, i: usize) -> Result<&'a TensorType, LowerError> {
        let t = self.operand(i)?;
        match t.layout.is_none() && t.dtype != DType::Mxfp4 {
            true => Ok(t),
            false => Err(self.malformed(format!("operand {i} is {t}, expected a row-major tensor"))),
        }
    }

    /// Result `i` as a tensor.
    pub(crate) fn result(&self, i: usize) -> Result<&'a TensorType, LowerError> {
        match self.op.results.get(i) {
            Some(Type::Tensor(t)) => Ok(t),
            Some(other) => Err(self.malformed(format!("result {i} is {other}, expected a tensor"))),
            None => Err(self.malformed(format!("result {i} is missing"))),
        }
    }

    /// The declaration behind state operand `i`.
    pub(crate) fn state(&self, i: usize) -> Result<&'a StateDecl, LowerError> {
        match self.operands.get(i) {
            Some(Type::State(_, name)) => {
                self.module.state(name).ok_or_else(|| self.malformed(format!("state `{name}` is not declared")))
            }
            _ => Err(self.malformed(format!("operand {i} is not a state"))),
        }
    }

    /// A dim's value.
    pub(crate) fn size(&self, dim: &Dim) -> Result<Size, LowerError> {
        let value = dim.eval(self.sizes).map_err(|s| LowerError::Unbound { op: self.name(), symbol: s.to_string() })?;
        Ok(Size { value, factor: dim.as_const().unwrap_or(1), constant: dim.as_const().is_some() })
    }

    /// All dims of a type.
    pub(crate) fn shape(&self, t: &TensorType) -> Result<Vec<Size>, LowerError> {
        t.dims.iter().map(|d| self.size(d)).collect()
    }

    /// Dims of a type as plain numbers.
    pub(crate) fn values(&self, t: &TensorType) -> Result<Vec<i64>, LowerError> {
        Ok(self.shape(t)?.into_iter().map(|s| s.value).collect())
    }

    /// The op as a line of IR, with the operand and result types a text may depend on: `rms_norm bf16[.., H], bf16[H] {eps = 1e-05}`.
    /// Lists of dims are left out, as they may hold symbols.
    pub(crate) fn ir(&self, operands: &[String], results: &[String]) -> String {
        let attrs: Vec<_> = self
            .op
            .attrs
            .iter()
            .filter(|(_, a)| !matches!(a, Attr::Dims(_)))
            .map(|(name, a)| format!("{name} = {a}"))
            .collect();
        let attrs = if attrs.is_empty() { String::new() } else { format!(" {{{}}}", attrs.join(", ")) };
        let operands = if operands.is_empty() { String::new() } else { format!(" {}", operands.join(", ")) };
        format!("{}{operands}{attrs} -> {}", self.name(), results.join(", "))
    }

    /// A one-dimensional launch.
    pub(crate) fn launch(
        &self,
        kernel: Arc<KernelSource>,
        blocks: i64,
        block: u32,
        args: Vec<Arg>,
    ) -> Result<Launch, LowerError> {
        if blocks > MAX_GRID {
            return Err(
                self.unsupported(format!("{blocks} blocks"), format!("tensors that need at most {MAX_GRID} blocks"))
            );
        }
        Ok(Launch { kernel, grid: [blocks as u32, 1, 1], block, shared: 0, dependent: false, args })
    }
}

/// The only buffer of operand `index`.
pub(crate) fn operand(index: usize) -> Arg {
    Arg::Operand { index, part: Part::Data }
}

/// The only buffer of result `index`.
pub(crate) fn result(index: usize) -> Arg {
    Arg::Result { index, part: Part::Data }
}

/// One launch and no scratch.
pub(crate) fn single(launch: Launch) -> Lowered {
    Lowered { launches: vec![launch], ..Lowered::default() }
}

/// Number of elements of a shape.
pub(crate) fn product(shape: &[i64]) -> i64 {
    shape.iter().product()
}

/// Blocks of `per` needed for `n`.
pub(crate) fn blocks(n: i64, per: i64) -> i64 {
    n.div_euclid(per) + i64::from(n.rem_euclid(per) != 0)
}

/// `bf16[.., 2880]`: a type whose leading dims do not matter.
pub(crate) fn rows_of(dtype: DType, tail: impl std::fmt::Display) -> String {
    format!("{dtype}[.., {tail}]")
}
