//! Views: they change how elements are addressed, not what they are.

use crate::attr::AttrKind;
use crate::dim::{Dim, product};
use crate::dtype::DType;
use crate::interp::view as eval;
use crate::op::{Class, Default, InferCx, OpInfo, attr, many, one};
use crate::ty::Type;

const X: &[crate::op::OperandInfo] = &[one("x", "any tensor")];

fn plain(cx: &InferCx, i: usize) -> Result<crate::ty::TensorType, String> {
    let t = cx.tensor(i)?;
    match t.layout {
        None => Ok(t.clone()),
        Some(_) => Err(format!("operand {i} is {t}; only row-major tensors have views")),
    }
}

/// `reshape`: the same elements in the same order under other dims.
pub static RESHAPE: OpInfo = OpInfo {
    name: "reshape",
    class: Class::View,
    summary: "The same elements in the same order under other dims",
    doc: "The number of elements must be provably equal. An mxfp4 tensor keeps its last dim.",
    operands: X,
    attrs: &[attr("dims", AttrKind::Dims, Default::Required, "dims of the result")],
    results: &["y"],
    infer: |cx| {
        let x = plain(cx, 0)?;
        let dims = cx.attrs.dims("dims");
        if product(&x.dims) != product(dims) {
            return Err(format!("{} elements cannot become {}", product(&x.dims), product(dims)));
        }
        if x.dtype == DType::Mxfp4 && x.dims.last() != dims.last() {
            return Err("an mxfp4 tensor keeps its last dim".into());
        }
        Ok(vec![x.with_dims(dims.iter().cloned()).into()])
    },
    eval: eval::reshape,
    tolerance: 0.0,
    decomposition: None,
};

/// `permute`: reorders dims.
pub static PERMUTE: OpInfo = OpInfo {
    name: "permute",
    class: Class::View,
    summary: "Reorders dims",
    doc: "`y.dims[i] = x.dims[perm[i]]`.",
    operands: X,
    attrs: &[attr("perm", AttrKind::Ints, Default::Required, "a permutation of 0..rank")],
    results: &["y"],
    infer: |cx| {
        let x = plain(cx, 0)?;
        let perm = cx.attrs.ints("perm");
        let mut sorted = perm.to_vec();
        sorted.sort_unstable();
        if sorted != (0..x.rank() as i64).collect::<Vec<_>>() {
            return Err(format!("perm {perm:?} is not a permutation of 0..{}", x.rank()));
        }
        if x.dtype == DType::Mxfp4 && perm.last() != Some(&(x.rank() as i64 - 1)) {
            return Err("an mxfp4 tensor keeps its last dim".into());
        }
        Ok(vec![x.with_dims(perm.iter().map(|p| x.dims[*p as usize].clone())).into()])
    },
    eval: eval::permute,
    tolerance: 0.0,
    decomposition: None,
};

/// `slice`: a contiguous range of one axis.
pub static SLICE: OpInfo = OpInfo {
    name: "slice",
    class: Class::View,
    summary: "A contiguous range of one axis",
    doc: "Elements `start .. start + len` of `axis`, whose size must be a constant. Not on the last axis of an mxfp4 tensor.",
    operands: X,
    attrs: &[
        attr("axis", AttrKind::Int, Default::Required, "which dim"),
        attr("len", AttrKind::Int, Default::Required, "how many"),
        attr("start", AttrKind::Int, Default::Int(0), "the first"),
    ],
    results: &["y"],
    infer: |cx| {
        let x = plain(cx, 0)?;
        let (axis, start, len) = (cx.attrs.int("axis"), cx.attrs.int("start"), cx.attrs.int("len"));
        let Some(dim) = usize::try_from(axis).ok().and_then(|a| x.dims.get(a)) else {
            return Err(format!("axis {axis} is not a dim of {x}"));
        };
        let Some(size) = dim.as_const() else {
            return Err(format!("axis {axis} of {x} has no constant size"));
        };
        if start < 0 || len < 1 || start.saturating_add(len) > size {
            return Err(format!("range {start}..{} is outside 0..{size}", start.saturating_add(len)));
        }
        if x.dtype == DType::Mxfp4 && axis as usize + 1 == x.rank() {
            return Err("an mxfp4 tensor keeps its last dim".into());
        }
        let mut dims = x.dims.clone();
        dims[axis as usize] = Dim::from(len);
        Ok(vec![x.with_dims(dims).into()])
    },
    eval: eval::slice,
    tolerance: 0.0,
    decomposition: None,
};

/// `split`: cuts the last dim into pieces.
pub static SPLIT: OpInfo = OpInfo {
    name: "split",
    class: Class::View,
    summary: "Cuts the last dim into pieces",
    doc: "As many results as `sizes`; the sizes add up to the last dim, which must be a constant.",
    operands: X,
    attrs: &[attr("sizes", AttrKind::Ints, Default::Required, "elements of each piece")],
    results: &[],
    infer: |cx| {
        let x = plain(cx, 0)?;
        let sizes = cx.attrs.ints("sizes");
        let total = sizes.iter().try_fold(0i64, |sum, n| sum.checked_add(*n).filter(|_| *n > 0));
        let width = x.dims.last().and_then(|d| d.as_const());
        if width.is_none() || width != total || x.dtype == DType::Mxfp4 {
            return Err(format!("{x} cannot be cut into {sizes:?}"));
        }
        let piece = |n: &i64| {
            let mut dims = x.dims.clone();
            if let Some(last) = dims.last_mut() {
                *last = Dim::from(*n);
            }
            x.with_dims(dims).into()
        };
        Ok(sizes.iter().map(piece).collect())
    },
    eval: eval::split,
    tolerance: 0.0,
    decomposition: None,
};

/// `broadcast`: repeats axes of size 1 and new leading axes.
pub static BROADCAST: OpInfo = OpInfo {
    name: "broadcast",
    class: Class::View,
    summary: "Repeats axes of size 1 and new leading axes",
    doc: "Dims are aligned at the right; each dim of `x` equals the result's or is 1.",
    operands: X,
    attrs: &[attr("dims", AttrKind::Dims, Default::Required, "dims of the result")],
    results: &["y"],
    infer: |cx| {
        let x = plain(cx, 0)?;
        let dims = cx.attrs.dims("dims");
        let one = Dim::from(1i64);
        let fits = dims.len() >= x.rank()
            && x.dims.iter().rev().zip(dims.iter().rev()).all(|(have, want)| have == want || *have == one);
        match fits && x.dtype != DType::Mxfp4 {
            true => Ok(vec![x.with_dims(dims.iter().cloned()).into()]),
            false => Err(format!("{x} cannot become {}", x.with_dims(dims.iter().cloned()))),
        }
    },
    eval: eval::broadcast,
    tolerance: 0.0,
    decomposition: None,
};

/// `concat`: joins tensors along an axis.
pub static CONCAT: OpInfo = OpInfo {
    name: "concat",
    class: Class::Indexing,
    summary: "Joins tensors along an axis",
    doc: "All dims but `axis` are equal, and so are the element types. Copies, so it is not a view.",
    operands: &[many("xs", "tensors of one dtype")],
    attrs: &[attr("axis", AttrKind::Int, Default::Required, "which dim")],
    results: &["y"],
    infer: |cx| {
        let first = plain(cx, 0)?;
        let axis = cx.attrs.int("axis");
        let Some(a) = usize::try_from(axis).ok().filter(|a| *a < first.rank()) else {
            return Err(format!("axis {axis} is not a dim of {first}"));
        };
        if first.dtype == DType::Mxfp4 && a + 1 == first.rank() {
            return Err("an mxfp4 tensor keeps its last dim".into());
        }
        let mut total = first.dims[a].clone();
        for i in 1..cx.operands.len() {
            let t = plain(cx, i)?;
            let mut rest = t.clone();
            if let Some(d) = rest.dims.get_mut(a) {
                *d = first.dims[a].clone();
            }
            if rest != first {
                return Err(format!("operand {i} is {t}, expected {first} except along axis {axis}"));
            }
            total = &total + &t.dims[a];
        }
        let mut dims = first.dims.clone();
        dims[a] = total;
        Ok(vec![Type::from(first.with_dims(dims))])
    },
    eval: eval::concat,
    tolerance: 0.0,
    decomposition: None,
};
