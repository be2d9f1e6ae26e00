//! Ops that pick rows by index.

use crate::dtype::DType;
use crate::interp::index as eval;
use crate::op::{Class, OpInfo, one};
use crate::ty::Type;

/// `gather_rows`: rows by index.
pub static GATHER_ROWS: OpInfo = OpInfo {
    name: "gather_rows",
    class: Class::Indexing,
    summary: "Rows by index",
    doc: "`y[i.., ..] = x[ids[i..], ..]`. An index outside 0..N gives a row of zeros.",
    operands: &[one("x", "any dtype but mxfp4, [N, ..]"), one("ids", "i32, any dims")],
    attrs: &[],
    results: &["y"],
    infer: |cx| {
        let (x, ids) = (cx.tensor(0)?, cx.tensor(1)?);
        if ids.dtype != DType::I32 {
            return Err(format!("operand 1 is {ids}, expected i32"));
        }
        if x.rank() == 0 || x.dtype == DType::Mxfp4 || x.layout.is_some() {
            return Err(format!("operand 0 is {x}, expected a row-major tensor with rows"));
        }
        Ok(vec![Type::tensor(x.dtype, ids.dims.iter().chain(&x.dims[1..]).cloned())])
    },
    eval: eval::gather_rows,
    tolerance: 0.0,
    decomposition: None,
};
