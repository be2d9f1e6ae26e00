//! Attributes: the compile-time constants of an op. Operands are run-time values; everything else is an attribute.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::dim::Dim;
use crate::dtype::DType;
use crate::kernel::Kernel;

/// Value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Attr {
    /// An integer.
    Int(i64),
    /// A float; printed with enough digits to read back the same bits.
    Float(f64),
    /// `true` or `false`.
    Bool(bool),
    /// One of a fixed set of words, a layout name or a function name.
    Word(Arc<str>),
    /// An element type.
    DType(DType),
    /// A list of integers.
    Ints(Vec<i64>),
    /// A list of dims.
    Dims(Vec<Dim>),
    /// The body of a fused kernel; written as regions, not between braces.
    Kernel(Arc<Kernel>),
}

/// What an attribute may hold; drives parser, verifier and reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttrKind {
    /// [`Attr::Int`].
    Int,
    /// [`Attr::Float`]; integers in text are read as floats.
    Float,
    /// [`Attr::Bool`].
    Bool,
    /// [`Attr::Word`], one of these.
    OneOf(&'static [&'static str]),
    /// [`Attr::Word`], any identifier.
    Word,
    /// [`Attr::Word`] naming a function, printed as `@name`.
    Func,
    /// [`Attr::Word`] naming a layout, printed as `#name`.
    Layout,
    /// [`Attr::DType`].
    DType,
    /// [`Attr::Ints`].
    Ints,
    /// [`Attr::Dims`].
    Dims,
    /// [`Attr::Kernel`].
    Kernel,
}

impl AttrKind {
    /// True if `value` is of this kind.
    pub fn accepts(self, value: &Attr) -> bool {
        match (self, value) {
            (AttrKind::OneOf(words), Attr::Word(w)) => words.contains(&&**w),
            (AttrKind::Int, Attr::Int(_))
            | (AttrKind::Float, Attr::Float(_))
            | (AttrKind::Bool, Attr::Bool(_))
            | (AttrKind::Word | AttrKind::Func | AttrKind::Layout, Attr::Word(_))
            | (AttrKind::DType, Attr::DType(_))
            | (AttrKind::Ints, Attr::Ints(_))
            | (AttrKind::Dims, Attr::Dims(_))
            | (AttrKind::Kernel, Attr::Kernel(_)) => true,
            _ => false,
        }
    }
}

impl fmt::Display for AttrKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AttrKind::Int => f.write_str("an integer"),
            AttrKind::Float => f.write_str("a float"),
            AttrKind::Bool => f.write_str("true or false"),
            AttrKind::OneOf(words) => write!(f, "one of {}", words.join(", ")),
            AttrKind::Word => f.write_str("a word"),
            AttrKind::Func => f.write_str("a function name"),
            AttrKind::Layout => f.write_str("a layout name"),
            AttrKind::DType => f.write_str("an element type"),
            AttrKind::Ints => f.write_str("a list of integers"),
            AttrKind::Dims => f.write_str("a list of dims"),
            AttrKind::Kernel => f.write_str("the regions of a kernel"),
        }
    }
}

/// Attributes of one op by name. Always complete: defaults are filled in when an op is made, and left out when it is printed.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Attrs(BTreeMap<&'static str, Attr>);

impl Attrs {
    /// The value of `name`.
    pub fn get(&self, name: &str) -> Option<&Attr> {
        self.0.get(name)
    }

    /// Sets `name`, replacing what it held.
    pub fn set(&mut self, name: &'static str, value: Attr) {
        self.0.insert(name, value);
    }

    /// Name and value, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Attr)> {
        self.0.iter().map(|(k, v)| (*k, v))
    }

    /// The integer `name`, or 0 where the op table does not have it (the verifier reports that).
    pub fn int(&self, name: &str) -> i64 {
        match self.get(name) {
            Some(Attr::Int(i)) => *i,
            _ => 0,
        }
    }

    /// The float `name`, or 0.
    pub fn float(&self, name: &str) -> f64 {
        match self.get(name) {
            Some(Attr::Float(x)) => *x,
            _ => 0.0,
        }
    }

    /// The truth value `name`, or false.
    pub fn bool(&self, name: &str) -> bool {
        matches!(self.get(name), Some(Attr::Bool(true)))
    }

    /// The word `name`, or "".
    pub fn word(&self, name: &str) -> &str {
        match self.get(name) {
            Some(Attr::Word(w)) => w,
            _ => "",
        }
    }

    /// The element type `name`.
    pub fn dtype(&self, name: &str) -> Option<DType> {
        match self.get(name) {
            Some(Attr::DType(d)) => Some(*d),
            _ => None,
        }
    }

    /// The integers `name`, or none.
    pub fn ints(&self, name: &str) -> &[i64] {
        match self.get(name) {
            Some(Attr::Ints(v)) => v,
            _ => &[],
        }
    }

    /// The body of a `kernel`.
    pub fn kernel(&self) -> Option<&Arc<Kernel>> {
        match self.get("body") {
            Some(Attr::Kernel(k)) => Some(k),
            _ => None,
        }
    }

    /// The dims `name`, or none.
    pub fn dims(&self, name: &str) -> &[Dim] {
        match self.get(name) {
            Some(Attr::Dims(v)) => v,
            _ => &[],
        }
    }
}

impl<const N: usize> From<[(&'static str, Attr); N]> for Attrs {
    fn from(pairs: [(&'static str, Attr); N]) -> Attrs {
        Attrs(BTreeMap::from(pairs))
    }
}

macro_rules! from_attr {
    ($($ty:ty => |$v:ident| $e:expr),* $(,)?) => {$(
        impl From<$ty> for Attr {
            fn from($v: $ty) -> Attr { $e }
        }
    )*};
}
from_attr! {
    i64 => |v| Attr::Int(v),
    f64 => |v| Attr::Float(v),
    bool => |v| Attr::Bool(v),
    DType => |v| Attr::DType(v),
    &str => |v| Attr::Word(v.into()),
    Vec<i64> => |v| Attr::Ints(v),
    Vec<Dim> => |v| Attr::Dims(v),
    Arc<Kernel> => |v| Attr::Kernel(v),
}

impl fmt::Display for Attr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn list<T: fmt::Display>(f: &mut fmt::Formatter<'_>, items: &[T]) -> fmt::Result {
            f.write_str("[")?;
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    f.write_str(", ")?;
                }
                write!(f, "{item}")?;
            }
            f.write_str("]")
        }
        match self {
            Attr::Int(i) => write!(f, "{i}"),
            Attr::Float(x) => write!(f, "{x:?}"),
            Attr::Bool(b) => write!(f, "{b}"),
            Attr::Word(w) => f.write_str(w),
            Attr::DType(d) => write!(f, "{d}"),
            Attr::Ints(v) => list(f, v),
            Attr::Dims(v) => list(f, v),
            Attr::Kernel(k) => write!(f, "{k}"),
        }
    }
}
