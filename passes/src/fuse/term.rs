//! Terms: one function's ops as the language of the e-graph.
//!
//! Operands are children in order; an op with attributes has one more child, the interned attributes, so that equal ops are equal nodes. An op with several
//! results, a call and a kernel are tuples whose results `proj` picks. Types and names are facts of the class ([`super::facts`]), not of the term.

use egg::{Id, Language};
use gossamer_ir::OpKind;

/// A node of the e-graph. The order of the variants and fields is the order in which equal choices are preferred.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Term {
    /// A parameter or weight: an index into [`super::facts::Facts::leaves`].
    Leaf(u32),
    /// Interned attributes.
    Attrs(u32),
    /// Result of a tuple.
    Proj(u16, [Id; 1]),
    /// A fused kernel: an index into [`super::facts::Facts::kernels`], and its operands.
    Kernel(u32, Vec<Id>),
    /// An op: operands, then attributes if the op has any.
    Op(OpKind, Vec<Id>),
    /// An op that no rule looks into: an index into [`super::facts::Facts::opaque`], and its operands.
    Opaque(u32, Vec<Id>),
    /// What the function returns; the root.
    Outputs(Vec<Id>),
}

/// What two nodes must share to be searched together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Head {
    /// Leaves, attributes, opaque ops by number.
    Exact(u8, u32),
    /// Projections by number.
    Proj(u16),
    /// Any kernel.
    Kernel,
    /// Ops by kind.
    Op(OpKind),
    /// The root.
    Outputs,
}

impl Language for Term {
    type Discriminant = Head;

    fn discriminant(&self) -> Head {
        match self {
            Term::Leaf(i) => Head::Exact(0, *i),
            Term::Attrs(i) => Head::Exact(1, *i),
            Term::Opaque(i, _) => Head::Exact(2, *i),
            Term::Proj(i, _) => Head::Proj(*i),
            Term::Kernel(..) => Head::Kernel,
            Term::Op(kind, _) => Head::Op(*kind),
            Term::Outputs(_) => Head::Outputs,
        }
    }

    fn matches(&self, other: &Term) -> bool {
        let number = |t: &Term| if let Term::Kernel(k, _) = t { Some(*k) } else { None };
        self.discriminant() == other.discriminant()
            && number(self) == number(other)
            && self.children().len() == other.children().len()
    }

    fn children(&self) -> &[Id] {
        match self {
            Term::Leaf(_) | Term::Attrs(_) => &[],
            Term::Proj(_, c) => c,
            Term::Kernel(_, c) | Term::Op(_, c) | Term::Opaque(_, c) | Term::Outputs(c) => c,
        }
    }

    fn children_mut(&mut self) -> &mut [Id] {
        match self {
            Term::Leaf(_) | Term::Attrs(_) => &mut [],
            Term::Proj(_, c) => c,
            Term::Kernel(_, c) | Term::Op(_, c) | Term::Opaque(_, c) | Term::Outputs(c) => c,
        }
    }
}
