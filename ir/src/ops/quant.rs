//! Packed weights.

use crate::attr::{Attr, AttrKind};
use crate::dtype::DType;
use crate::interp::quant as eval;
use crate::op::{Class, Default, OpInfo, attr, one};
use crate::ty::{TensorType, Type};

/// `dequant`: expands MXFP4 to floats, exactly.
pub static DEQUANT: OpInfo = OpInfo {
    name: "dequant",
    class: Class::Quant,
    summary: "Expands MXFP4 to floats",
    doc: "`E2M1(code) * 2^(scale - 127)`; exact in bf16 and in f32 for scale bytes 0 (the subnormal 2^-127) to 252; under 253 and 254 the greatest codes \
          overflow to infinity. Scale byte 255 is NaN for every code.",
    operands: &[one("w", "mxfp4 [.., K], in any layout")],
    attrs: &[attr("to", AttrKind::DType, Default::DType(DType::BF16), "f32 or bf16")],
    results: &["y"],
    infer: |cx| {
        let w = cx.tensor(0)?;
        match (w.dtype, cx.attrs.dtype("to")) {
            (DType::Mxfp4, Some(to @ (DType::F32 | DType::BF16))) => Ok(vec![w.with_dtype(to).into()]),
            (_, to) => Err(format!("{w} to {} is not a dequantisation", to.map_or("?", DType::name))),
        }
    },
    eval: eval::dequant,
    tolerance: 0.0,
    decomposition: None,
};

/// `relayout`: the same tensor in another memory layout.
pub static RELAYOUT: OpInfo = OpInfo {
    name: "relayout",
    class: Class::Quant,
    summary: "The same tensor in another memory layout",
    doc: "Logically the identity. On a weight it runs once at load. Layouts are defined by the code generator.",
    operands: &[one("x", "any row-major tensor")],
    attrs: &[attr("layout", AttrKind::Layout, Default::Required, "the new layout")],
    results: &["y"],
    infer: |cx| {
        let x = cx.tensor(0)?;
        let Some(Attr::Word(layout)) = cx.attrs.get("layout") else {
            return Err("layout is missing".into());
        };
        match x.layout {
            None => Ok(vec![Type::Tensor(TensorType { layout: Some(layout.clone()), ..x.clone() })]),
            Some(_) => Err(format!("operand 0 is {x}, expected row-major")),
        }
    },
    eval: eval::relayout,
    tolerance: 0.0,
    decomposition: None,
};
