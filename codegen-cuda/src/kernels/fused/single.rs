//! `single`: one op, as it is lowered outside of kernels.

use gossamer_ir::{Op, Type, Value};

use super::super::{Cx, region::malformed};
use super::{Body, Origin};
use crate::lower::{Arg, LowerError, Lowered, OpInstance, lower as lower_op};

/// Lowers the op of the main region, its operands and results renumbered to the kernel's.
pub fn lower(cx: &Cx, body: &Body) -> Result<Lowered, LowerError> {
    let main = body.kernel.main();
    let heavy = body.heavy()?;
    let op: &Op = main.graph.op(heavy.op);
    let operands: Vec<usize> = op
        .operands
        .iter()
        .map(|v| match body.main_value(*v) {
            Origin::Operand(i) => Ok(i),
            _ => Err(malformed("template `single` holds one op")),
        })
        .collect::<Result<_, _>>()?;
    // Results are those of the op, each at most once, in any order.
    let results: Vec<Option<usize>> = (0..op.results.len())
        .map(|r| body.epilogue().results.iter().position(|v| result_of(body, *v) == Some((heavy, r))))
        .collect();
    let types: Vec<Type> = operands.iter().map(|i| cx.operand_type(*i)).collect::<Result<_, _>>()?;
    let early: Vec<bool> = operands.iter().map(|i| cx.early(*i)).collect();
    let instance = OpInstance { op, operands: &types, module: cx.module(), sizes: cx.sizes(), early: &early };
    let mut lowered = lower_op(&instance)?;
    for launch in &mut lowered.launches {
        for arg in &mut launch.args {
            match arg {
                Arg::Operand { index, .. } => *index = operands[*index],
                Arg::Result { index, .. } => match results[*index] {
                    Some(r) => *index = r,
                    // Nobody reads it; it needs a place all the same.
                    None => *arg = Arg::Scratch(unread(&mut lowered.scratch, cx, &op.results[*index])?),
                },
                _ => {}
            }
        }
    }
    Ok(lowered)
}

/// A scratch buffer for a result that is not one of the kernel's.
fn unread(scratch: &mut Vec<u64>, cx: &Cx, ty: &Type) -> Result<usize, LowerError> {
    let Type::Tensor(t) = ty else { return Err(malformed("a state that is dropped")) };
    let sizes = crate::lower::buffers(t, cx.sizes())?;
    scratch.push(sizes.iter().map(|(_, bytes)| bytes).sum());
    Ok(scratch.len() - 1)
}

/// Which result of the main op a value of the epilogue is.
fn result_of(body: &Body, v: Value) -> Option<(Value, usize)> {
    let Origin::Main(main) = super::parameter(body.epilogue(), v).map(|p| body.epilogue_param(p))? else { return None };
    Some((Value { op: main.op, result: 0 }, main.result as usize))
}
