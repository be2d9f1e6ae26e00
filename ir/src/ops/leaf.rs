//! Leaves: parameters, weights and constants.

use crate::attr::AttrKind;
use crate::dim::product;
use crate::dtype::DType;
use crate::interp::leaf as eval;
use crate::op::{Class, Default, InferCx, OpInfo, attr};
use crate::ty::Type;

/// `param`: stands for a parameter of the function; written as `%name` in text, never as a statement.
pub static PARAM: OpInfo = OpInfo {
    name: "param",
    class: Class::Leaf,
    summary: "A parameter of the function",
    doc: "Made with the function, one per parameter, and never written as a statement.",
    operands: &[],
    attrs: &[attr("index", AttrKind::Int, Default::Required, "position among the parameters")],
    results: &["value"],
    infer: |_| Err("stands for a function's parameter and cannot be written".into()),
    eval: eval::unreachable_leaf,
    tolerance: 0.0,
    decomposition: None,
};

/// `weight`: a declared weight; written as `@name` where it is used.
pub static WEIGHT: OpInfo = OpInfo {
    name: "weight",
    class: Class::Leaf,
    summary: "A declared weight",
    doc: "Written as `@name` in operand position; one op per weight and function.",
    operands: &[],
    attrs: &[attr("name", AttrKind::Word, Default::Required, "name of the declaration")],
    results: &["value"],
    infer: |cx: &InferCx| {
        let name = cx.attrs.word("name");
        match cx.module.weight(name) {
            Some(w) => Ok(vec![Type::Tensor(w.ty.clone())]),
            None => Err(format!("weight `@{name}` is not declared")),
        }
    },
    eval: eval::unreachable_leaf,
    tolerance: 0.0,
    decomposition: None,
};

/// `const`: every element has one value.
pub static CONST: OpInfo = OpInfo {
    name: "const",
    class: Class::Leaf,
    summary: "A tensor whose elements all have one value",
    doc: "`value` is rounded to `dtype`. Rank 0 (`dims = []`) makes a scalar, which broadcasts to anything.",
    operands: &[],
    attrs: &[
        attr("dims", AttrKind::Dims, Default::Required, "dims of the result"),
        attr("dtype", AttrKind::DType, Default::DType(DType::F32), "element type"),
        attr("value", AttrKind::Float, Default::Required, "the value"),
    ],
    results: &["y"],
    infer: |cx: &InferCx| match cx.attrs.dtype("dtype") {
        Some(DType::Mxfp4) | None => Err("dtype mxfp4 has no constants".into()),
        Some(d) => Ok(vec![Type::tensor(d, cx.attrs.dims("dims").to_vec())]),
    },
    eval: eval::constant,
    tolerance: 0.0,
    decomposition: None,
};

/// `iota`: 0, 1, 2, ...
pub static IOTA: OpInfo = OpInfo {
    name: "iota",
    class: Class::Leaf,
    summary: "Counts up from 0",
    doc: "`y[i] = i`, i32, one dim.",
    operands: &[],
    attrs: &[attr("dims", AttrKind::Dims, Default::Required, "one dim: how many")],
    results: &["y"],
    infer: |cx: &InferCx| match cx.attrs.dims("dims") {
        [n] => Ok(vec![Type::tensor(DType::I32, [n.clone()])]),
        dims => Err(format!("dims has {} entries, expected 1 ({} elements)", dims.len(), product(dims))),
    },
    eval: eval::iota,
    tolerance: 0.0,
    decomposition: None,
};
