//! Calls.

use crate::attr::AttrKind;
use crate::interp::leaf as eval;
use crate::op::{Class, Default, OpInfo, attr, many};

/// `call`: runs another function of the module.
pub static CALL: OpInfo = OpInfo {
    name: "call",
    class: Class::Call,
    summary: "Runs another function of the module",
    doc: "Written `call @f %a, %b`. Operands match the function's parameters; a parameter marked `weight` takes a weight-only value.",
    operands: &[many("args", "one per parameter")],
    attrs: &[attr("callee", AttrKind::Func, Default::Required, "the function")],
    results: &[],
    infer: |cx| {
        let name = cx.attrs.word("callee");
        let Some(f) = cx.module.func(name) else {
            return Err(format!("function `@{name}` is not defined before this line"));
        };
        if f.params.len() != cx.operands.len() {
            return Err(format!("`@{name}` takes {} arguments, found {}", f.params.len(), cx.operands.len()));
        }
        for (i, (param, have)) in f.params.iter().zip(cx.operands).enumerate() {
            if param.ty != *have {
                return Err(format!("argument {i} (`%{}`) is {have}, expected {}", param.name, param.ty));
            }
        }
        Ok(f.result_types())
    },
    eval: eval::unreachable_leaf,
    tolerance: 0.0,
    decomposition: None,
};
