//! Which columns of the product one element of a result needs, and so which rows of the weight a tile must hold together.
//!
//! A template goes over the columns of the product tile by tile. For each stored value ([`Sink`]) this says which columns of the product
//! make one of its columns ([`Need`]); [`Columns`] chooses the columns of a tile so that everything needed together is in it.

use gossamer_ir::{Class, Func, Op, OpId, OpKind, Value};

use super::{Index, parameter, unsupported};
use crate::lower::LowerError;

type Result<T> = std::result::Result<T, LowerError>;

/// Columns of the product that column c of a value needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// None: the value does not depend on the product.
    Nothing,
    /// `c + offset`.
    Same {
        /// Where the value starts.
        offset: i64,
    },
    /// `2c + offset` and the one after it.
    Interleaved {
        /// Where the value starts, even.
        offset: i64,
    },
    /// `c + offset` and `c + offset + width`.
    Halves {
        /// Where the value starts.
        offset: i64,
        /// Distance of the two.
        width: i64,
    },
    /// `c + offset` and its partner, half a head of `dim` away.
    Rope {
        /// Where the value starts, a multiple of `dim`.
        offset: i64,
        /// Elements a head.
        dim: i64,
    },
}

/// What becomes of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// It is a result.
    Tensor,
    /// It goes into the cache as the keys of this `kv_write`.
    Keys(OpId),
    /// As its values.
    Values(OpId),
    /// The greatest of each `tile` columns is the result.
    TileMax {
        /// Columns.
        tile: i64,
    },
    /// The index of the greatest of each row is the result.
    ArgMax,
}

/// A value that a region leaves behind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sink {
    /// Which result of the region.
    pub result: usize,
    /// What becomes of the value.
    pub target: Target,
    /// The value.
    pub value: Value,
    /// Its columns.
    pub columns: i64,
    /// What one of them needs.
    pub need: Need,
}

impl Sink {
    /// The columns of the product at which the value's columns are computed: first and count.
    pub fn range(&self) -> (i64, i64) {
        match self.need {
            Need::Nothing => (0, self.columns),
            Need::Same { offset } | Need::Rope { offset, .. } | Need::Halves { offset, .. } => (offset, self.columns),
            Need::Interleaved { offset } => (offset, 2 * self.columns),
        }
    }

    /// The value's column that is computed at column `n` of the product (an even one, if pairs are interleaved).
    pub fn column(&self, n: &Index) -> Index {
        match self.need {
            Need::Nothing => n.clone(),
            Need::Same { offset } | Need::Rope { offset, .. } | Need::Halves { offset, .. } => n.plus(-offset),
            Need::Interleaved { offset } => match n.as_constant() {
                Some(c) => Index::constant((c - offset) / 2),
                None => Index::var(format!("({} / 2)", n.plus(-offset).operand())),
            },
        }
    }
}

/// What the results of `func` are made of, given the number of the parameter that is the product. In order of results.
///
/// # Errors
/// A result that needs columns in a way no tile can hold.
pub(crate) fn sinks(func: &Func, product: usize) -> Result<Vec<Sink>> {
    let mut out = Vec::new();
    for (result, value) in func.results.iter().enumerate() {
        let op = func.graph.op(value.op);
        let mut add = |target, value: Value| -> Result<()> {
            let columns = columns(func, value)?;
            out.push(Sink { result, target, value, columns, need: need(func, value, product)? });
            Ok(())
        };
        match op.kind {
            OpKind::KvWrite => {
                add(Target::Keys(value.op), op.operands[1])?;
                add(Target::Values(value.op), op.operands[2])?;
            }
            OpKind::ArgMax => add(Target::ArgMax, op.operands[0])?,
            OpKind::TileMax => add(Target::TileMax { tile: op.attrs.int("tile") }, op.operands[0])?,
            _ => add(Target::Tensor, *value)?,
        }
    }
    Ok(out)
}

fn columns(func: &Func, value: Value) -> Result<i64> {
    let ty = func.graph.ty(value);
    let last = ty.as_tensor().and_then(|t| t.dims.last()).and_then(|d| d.as_const());
    last.ok_or_else(|| unsupported(format!("a result of type {ty}"), "tensors with a constant last dim, and kv_write"))
}

fn need(func: &Func, value: Value, product: usize) -> Result<Need> {
    if let Some(i) = parameter(func, value) {
        return Ok(if i == product { Need::Same { offset: 0 } } else { Need::Nothing });
    }
    let op = func.graph.op(value.op);
    let operands: Vec<Need> = op.operands.iter().map(|v| need(func, *v, product)).collect::<Result<_>>()?;
    if operands.iter().all(|n| *n == Need::Nothing) {
        return Ok(Need::Nothing);
    }
    let others = || operands[1..].iter().all(|n| *n == Need::Nothing);
    let bad = || Err(refused(op));
    match op.kind {
        OpKind::Swiglu => match (operands[0], op.attrs.word("layout")) {
            (Need::Same { offset }, "halves") => Ok(Need::Halves { offset, width: columns(func, value)? }),
            (Need::Same { offset }, _) if offset % 2 == 0 => Ok(Need::Interleaved { offset }),
            _ => bad(),
        },
        OpKind::Rope if others() => {
            let dim = columns(func, op.operands[2])?;
            match operands[0] {
                Need::Same { offset } if offset % dim == 0 => Ok(Need::Rope { offset, dim }),
                Need::Rope { offset, dim: inner } if dim == inner => Ok(Need::Rope { offset, dim }),
                _ => bad(),
            }
        }
        OpKind::Split => {
            let before = op.attrs.ints("sizes").iter().take(value.result as usize).sum();
            moved(op, operands[0], before)
        }
        OpKind::Slice => {
            let rank = func.graph.ty(value).as_tensor().map_or(0, |t| t.rank());
            match op.attrs.int("axis") as usize + 1 == rank {
                true => moved(op, operands[0], op.attrs.int("start")),
                false => bad(),
            }
        }
        OpKind::Reshape | OpKind::Broadcast | OpKind::Permute => {
            let last = |v: Value| func.graph.ty(v).as_tensor().and_then(|t| t.dims.last().cloned());
            match last(value) == last(op.operands[0]) && op.kind != OpKind::Permute {
                true => Ok(operands[0]),
                false => bad(),
            }
        }
        OpKind::MoeCombine if others() => match operands[0] {
            Need::Same { .. } => Ok(operands[0]),
            _ => bad(),
        },
        kind if kind.class() == Class::Elementwise => {
            let rank = |v: Value| func.graph.ty(v).as_tensor().map(|t| t.rank());
            let mut joined = Need::Nothing;
            for (v, n) in op.operands.iter().zip(&operands) {
                if *n != Need::Nothing && rank(*v) != rank(value) {
                    return bad();
                }
                joined = join(joined, *n).ok_or_else(|| refused(op))?;
            }
            Ok(joined)
        }
        _ => bad(),
    }
}

/// `need` of a value that starts `by` columns further on.
fn moved(op: &Op, need: Need, by: i64) -> Result<Need> {
    match need {
        Need::Same { offset } => Ok(Need::Same { offset: offset + by }),
        Need::Rope { offset, dim } if by % dim == 0 => Ok(Need::Rope { offset: offset + by, dim }),
        Need::Nothing => Ok(Need::Nothing),
        _ => Err(refused(op)),
    }
}

fn join(a: Need, b: Need) -> Option<Need> {
    match (a, b) {
        (Need::Nothing, x) | (x, Need::Nothing) => Some(x),
        (x, y) if x == y => Some(x),
        // Two pieces of one product, as in `silu(gate) * up`.
        (Need::Same { offset: a }, Need::Same { offset: b }) => {
            Some(Need::Halves { offset: a.min(b), width: (a - b).abs() })
        }
        (Need::Same { offset: o }, Need::Rope { offset, dim })
        | (Need::Rope { offset, dim }, Need::Same { offset: o })
            if o == offset =>
        {
            Some(Need::Rope { offset, dim })
        }
        _ => None,
    }
}

fn refused(op: &Op) -> LowerError {
    unsupported(
        format!("{} of a product in its epilogue", op.kind.name()),
        "elementwise ops, split, swiglu, rope and moe_combine, whose columns need at most two of the product's",
    )
}

/// The columns of the product that a tile holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Columns {
    /// `height` columns in a row.
    Adjacent,
    /// Half of them, and their partners half of `dim` further on.
    Paired {
        /// Columns among which pairs are made; a multiple of the tile's height.
        dim: i64,
    },
}

impl Columns {
    /// The columns of tiles of `height` that hold together what `sinks` need of a product of `n` columns.
    ///
    /// # Errors
    /// Needs that no tile of this height meets.
    pub fn choose(sinks: &[Sink], n: i64, height: i64) -> Result<Columns> {
        let mut chosen = Columns::Adjacent;
        for sink in sinks {
            let dim = match sink.need {
                Need::Rope { dim, .. } if height % dim != 0 => dim,
                Need::Halves { offset: 0, width } if n == 2 * width && height < n => 2 * width,
                Need::Halves { .. } if height < n => {
                    return Err(unsupported("swiglu of a part of a product", "swiglu of all columns"));
                }
                _ => continue,
            };
            let other = matches!(chosen, Columns::Paired { dim: d } if d != dim);
            if other || dim % height != 0 || n % dim != 0 || height % 4 != 0 {
                return Err(unsupported(
                    format!("pairs of columns among {dim} of {n}"),
                    format!("one width for all pairs that divides or is divided by {height}"),
                ));
            }
            chosen = Columns::Paired { dim };
        }
        let apart = |s: &Sink| matches!(s.need, Need::Rope { dim, .. } if height % dim == 0 && height / 2 % dim != 0);
        if chosen != Columns::Adjacent && sinks.iter().any(apart) {
            return Err(unsupported("pairs of columns at several distances", "one width for all pairs"));
        }
        Ok(chosen)
    }

    /// The column of the product at row `local` of tile `tile`.
    pub fn global(self, tile: &str, local: &str, height: i64) -> String {
        let half = height / 2;
        match self {
            Columns::Adjacent => format!("{tile} * {height} + {local}"),
            Columns::Paired { dim } if dim == height => format!("{tile} * {height} + {local}"),
            Columns::Paired { dim } => {
                let per = dim / height;
                let start = format!("{tile} / {per} * {dim} + {tile} % {per} * {half}");
                format!("{start} + {local} % {half} + {local} / {half} * {}", dim / 2)
            }
        }
    }

    /// Where column `n` of the product is in its tile.
    pub fn local(self, n: &Index, height: i64) -> String {
        let half = height / 2;
        match self {
            Columns::Adjacent => format!("{} % {height}", n.operand()),
            Columns::Paired { dim } if dim == height => format!("{} % {height}", n.operand()),
            Columns::Paired { dim } => {
                format!("({0} % {half} + {0} % {dim} / {1} * {half})", n.operand(), dim / 2)
            }
        }
    }
}
