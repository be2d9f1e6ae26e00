//! Reductions over one axis.

use crate::attr::AttrKind;
use crate::dtype::DType;
use crate::interp::reduce as eval;
use crate::op::{Class, Default, InferCx, OpInfo, attr, one, optional};
use crate::ty::{TensorType, Type};

/// A float tensor with at least one dim, and its type without the last.
fn last_axis(cx: &InferCx) -> Result<(TensorType, TensorType), String> {
    let x = cx.float(0)?;
    match x.dims.split_last() {
        Some((_, rest)) => Ok((x.clone(), x.with_dims(rest.iter().cloned()))),
        None => Err(format!("operand 0 is {x}, expected at least 1 dim")),
    }
}

/// Checks that operand `i`, if there is one, holds the maxima of tiles of operand 0, as attribute `tile` says.
pub(super) fn maxima(cx: &InferCx, i: usize) -> Result<(), String> {
    let tile = cx.attrs.int("tile");
    let Some(Type::Tensor(found)) = cx.operands.get(i) else {
        return match tile {
            0 => Ok(()),
            _ => Err(format!("tile is {tile} without maxima, expected 0")),
        };
    };
    let (x, rest) = last_axis(cx)?;
    let n = x.dims[x.rank() - 1].as_const();
    let Some(n) = n.filter(|_| tile >= 1) else {
        return Err(format!("operand 0 is {x} and tile is {tile}, expected a constant last dim and a tile from 1"));
    };
    let tiles = n.div_euclid(tile) + i64::from(n % tile != 0);
    let expected = TensorType::new(x.dtype, rest.dims.iter().cloned().chain([tiles.into()]));
    match *found == expected {
        true => Ok(()),
        false => Err(format!("operand {i} is {found}, expected {expected}: the maxima of tiles of {tile}")),
    }
}

/// `reduce`: combines the elements of an axis.
pub static REDUCE: OpInfo = OpInfo {
    name: "reduce",
    class: Class::Reduction,
    summary: "Combines the elements of an axis",
    doc: "Accumulates in f32 in index order and rounds once. With `keep` the axis stays with size 1. `max` of NaN is NaN, `max` of nothing is minus infinity, \
          `mean` of nothing is NaN.",
    operands: &[one("x", "float, at least 1 dim")],
    attrs: &[
        attr("axis", AttrKind::Int, Default::Required, "which dim"),
        attr("keep", AttrKind::Bool, Default::Bool(false), "keep the axis with size 1"),
        attr("op", AttrKind::OneOf(&["sum", "max", "mean"]), Default::Required, "how"),
    ],
    results: &["y"],
    infer: |cx| {
        let x = cx.float(0)?;
        let axis = cx.attrs.int("axis");
        let Some(a) = usize::try_from(axis).ok().filter(|a| *a < x.rank()) else {
            return Err(format!("axis {axis} is not a dim of {x}"));
        };
        let mut dims = x.dims.clone();
        match cx.attrs.bool("keep") {
            true => dims[a] = 1i64.into(),
            false => drop(dims.remove(a)),
        }
        Ok(vec![x.with_dims(dims).into()])
    },
    eval: eval::reduce,
    tolerance: 1e-2,
    decomposition: None,
};

/// `softmax`: normalised exponentials along the last axis.
pub static SOFTMAX: OpInfo = OpInfo {
    name: "softmax",
    class: Class::Composite,
    summary: "Normalised exponentials along the last axis",
    doc: "`e^(x_i - m) / sum_j e^(x_j - m)` with `m = max x`, in f32, rounded once.",
    operands: &[one("x", "float [.., N]")],
    attrs: &[],
    results: &["y"],
    infer: |cx| Ok(vec![last_axis(cx)?.0.into()]),
    eval: eval::softmax,
    tolerance: 1e-2,
    decomposition: Some(include_str!("../decomp/softmax.gir")),
};

/// `logsumexp`: logarithm of the sum of exponentials of the last axis.
pub static LOGSUMEXP: OpInfo = OpInfo {
    name: "logsumexp",
    class: Class::Composite,
    summary: "Logarithm of the sum of exponentials of the last axis",
    doc: "`m + ln sum_j e^(x_j - m)` with `m = max x`, in f32, rounded once. Drops the axis.",
    operands: &[one("x", "float [.., N]")],
    attrs: &[],
    results: &["y"],
    infer: |cx| Ok(vec![last_axis(cx)?.1.into()]),
    eval: eval::logsumexp,
    tolerance: 1e-2,
    decomposition: Some(include_str!("../decomp/logsumexp.gir")),
};

/// `argmax`: index of the greatest element of the last axis.
pub static ARGMAX: OpInfo = OpInfo {
    name: "argmax",
    class: Class::Reduction,
    summary: "Index of the greatest element of the last axis",
    doc: "Ties go to the lower index; NaN counts as the least value (all NaN gives 0). Drops the axis.",
    operands: &[
        one("x", "float [.., N]"),
        optional("maxima", "of x's dtype [.., tiles]: `tile_max` of x; changes nothing but the time it takes"),
    ],
    attrs: &[attr("tile", AttrKind::Int, Default::Int(0), "elements of each of the maxima; 0 without them")],
    results: &["index"],
    infer: |cx| {
        maxima(cx, 1)?;
        Ok(vec![last_axis(cx)?.1.with_dtype(DType::I32).into()])
    },
    eval: eval::argmax,
    tolerance: 0.0,
    decomposition: None,
};

/// `tile_max`: the greatest element of each tile of the last axis.
pub static TILE_MAX: OpInfo = OpInfo {
    name: "tile_max",
    class: Class::Reduction,
    summary: "The greatest element of each tile of the last axis",
    doc: "Tile i holds elements `i * tile .. (i + 1) * tile`; the last may be shorter. NaN counts as the least value: a tile without numbers gives minus infinity. \
          The first step of choosing a token: what looks for the greatest logits may skip tiles.",
    operands: &[one("x", "float [.., N]")],
    attrs: &[attr("tile", AttrKind::Int, Default::Required, "elements of a tile")],
    results: &["y"],
    infer: |cx| {
        let (x, rest) = last_axis(cx)?;
        let tile = cx.attrs.int("tile");
        let n = x.dims[x.rank() - 1].as_const();
        let Some(n) = n.filter(|_| tile >= 1) else {
            return Err(format!("operand 0 is {x} and tile is {tile}, expected a constant last dim and a tile from 1"));
        };
        let tiles = n.div_euclid(tile) + i64::from(n % tile != 0);
        Ok(vec![Type::tensor(x.dtype, rest.dims.iter().cloned().chain([tiles.into()]))])
    },
    eval: eval::tile_max,
    tolerance: 0.0,
    decomposition: None,
};

/// `topk`: the greatest elements of the last axis.
pub static TOPK: OpInfo = OpInfo {
    name: "topk",
    class: Class::Indexing,
    summary: "The greatest elements of the last axis, sorted",
    doc: "Values in descending order and their indices, always distinct; ties go to the lower index; NaN counts as the least value.",
    operands: &[one("x", "float [.., N]")],
    attrs: &[attr("k", AttrKind::Int, Default::Required, "how many, at most N")],
    results: &["values", "indices"],
    infer: |cx| {
        let (x, rest) = last_axis(cx)?;
        let k = cx.attrs.int("k");
        let n = &x.dims[x.rank() - 1];
        if k < 1 || n.as_const().is_none_or(|n| k > n) {
            return Err(format!("k is {k}, expected 1 to {n} (a constant)"));
        }
        let dims = || rest.dims.iter().cloned().chain([k.into()]);
        Ok(vec![Type::tensor(x.dtype, dims()), Type::tensor(DType::I32, dims())])
    },
    eval: eval::topk,
    tolerance: 0.0,
    decomposition: None,
};
