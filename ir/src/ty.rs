//! Types of values: tensors with symbolic dims, and handles to state that lives across steps.

use std::fmt;
use std::sync::Arc;

use crate::dim::{Bindings, Dim, Sym, product};
use crate::dtype::DType;

/// Name of a memory layout (`#ckpt`, `#sm90.tile64`); what it means is known to the crate that makes kernels.
pub type LayoutName = Arc<str>;

/// A dense row-major tensor, or a packed one if it has a layout.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// Logical dims, outermost first.
    pub dims: Vec<Dim>,
    /// `None`: row-major (MXFP4: as in checkpoints, codes then scales).
    pub layout: Option<LayoutName>,
}

impl TensorType {
    /// A row-major tensor type.
    pub fn new(dtype: DType, dims: impl IntoIterator<Item = Dim>) -> TensorType {
        TensorType { dtype, dims: dims.into_iter().collect(), layout: None }
    }

    /// Number of dims.
    pub fn rank(&self) -> usize {
        self.dims.len()
    }

    /// Number of elements.
    pub fn elements(&self) -> Dim {
        product(&self.dims)
    }

    /// The same type with other dims.
    pub fn with_dims(&self, dims: impl IntoIterator<Item = Dim>) -> TensorType {
        TensorType::new(self.dtype, dims)
    }

    /// The same dims with another element type, row-major.
    pub fn with_dtype(&self, dtype: DType) -> TensorType {
        TensorType::new(dtype, self.dims.iter().cloned())
    }

    /// Dims as numbers under `bindings`; the error names the unbound symbol.
    pub fn shape(&self, bindings: &Bindings) -> Result<Vec<i64>, Sym> {
        self.dims.iter().map(|d| d.eval(bindings)).collect()
    }

    /// Bytes in memory under `bindings`.
    pub fn bytes(&self, bindings: &Bindings) -> Result<u64, Sym> {
        Ok(self.dtype.storage_bytes(self.count(bindings)? as u64))
    }

    /// Elements under `bindings`: [`TensorType::elements`] in numbers, without forming the product of symbols.
    pub fn count(&self, bindings: &Bindings) -> Result<i64, Sym> {
        self.dims.iter().try_fold(1i64, |count, d| Ok(count.saturating_mul(d.eval(bindings)?)))
    }
}

/// What a state handle refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StateFamily {
    /// Paged key/value cache of one layer.
    Kv,
    /// Token counts per sequence slot, for penalties.
    Counts,
}

impl StateFamily {
    /// The name used in IR text.
    pub fn name(self) -> &'static str {
        match self {
            StateFamily::Kv => "kv",
            StateFamily::Counts => "counts",
        }
    }
}

/// Type of a value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Type {
    /// A tensor.
    Tensor(TensorType),
    /// A handle to state of the named [declaration](crate::module::StateDecl); linear, see verifier rule V09.
    State(StateFamily, Arc<str>),
}

impl Type {
    /// A row-major tensor type.
    pub fn tensor(dtype: DType, dims: impl IntoIterator<Item = Dim>) -> Type {
        Type::Tensor(TensorType::new(dtype, dims))
    }

    /// The tensor type, if it is one.
    pub fn as_tensor(&self) -> Option<&TensorType> {
        match self {
            Type::Tensor(t) => Some(t),
            Type::State(..) => None,
        }
    }

    /// True for state handles.
    pub fn is_state(&self) -> bool {
        matches!(self, Type::State(..))
    }
}

impl From<TensorType> for Type {
    fn from(t: TensorType) -> Type {
        Type::Tensor(t)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.dtype)?;
        for (i, d) in self.dims.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{d}")?;
        }
        f.write_str("]")?;
        match &self.layout {
            Some(l) => write!(f, " #{l}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Tensor(t) => write!(f, "{t}"),
            Type::State(family, name) => write!(f, "{}<{name}>", family.name()),
        }
    }
}
