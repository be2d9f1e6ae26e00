//! Layouts: lets every MXFP4 weight be repacked at load into the layout the target's kernels read.
//!
//! Inserts `relayout` between an MXFP4 weight (or weight parameter) and its `dequant`s. Weight-only, so it runs once at load. Precondition: a verified
//! module. Does nothing without [`Options::mxfp4_layout`], and nothing to weights that are read by anything but `dequant`.

use gossamer_ir::{Attr, Attrs, DType, InferError, Module, OpKind, Value};

use crate::Options;

/// Runs the pass; true if anything changed.
///
/// # Errors
/// None: the ops it makes are valid by construction.
pub fn run(module: &mut Module, options: &Options) -> Result<bool, InferError> {
    let Some(layout) = &options.mxfp4_layout else { return Ok(false) };
    let mut changed = false;
    let mut funcs = std::mem::take(&mut module.funcs);
    for f in &mut funcs {
        for id in f.graph.ids() {
            let op = f.graph.op(id);
            let leaf = match op.kind {
                OpKind::Weight => true,
                OpKind::Param => f.params.get(op.attrs.int("index") as usize).is_some_and(|p| p.weight),
                _ => false,
            };
            // A call may have no result.
            let tensor = op.results.first().and_then(|ty| ty.as_tensor());
            let packed = tensor.is_some_and(|t| t.dtype == DType::Mxfp4 && t.layout.is_none());
            let value = Value { op: id, result: 0 };
            let users = f.graph.users(value);
            if !leaf || !packed || users.is_empty() || users.iter().any(|(u, _)| f.graph.op(*u).kind != OpKind::Dequant)
            {
                continue;
            }
            let name = format!("{}.{layout}", op.names[0]);
            let attrs = Attrs::from([("layout", Attr::Word(layout.clone()))]);
            let new = f.add(module, OpKind::Relayout, vec![value], attrs, &[&name], None)?[0];
            for (user, operand) in users {
                f.graph.set_operand(user, operand, new);
            }
            changed = true;
        }
    }
    module.funcs = funcs;
    Ok(changed)
}
