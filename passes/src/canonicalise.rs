//! Canonicalisation: removes ops that do nothing and merges chains of views.
//!
//! Precondition: a verified module. Postcondition: an equal module in which no op below is left. Never changes a rounding: a cast is removed only
//! where it converts to the type it already has, or where it widens what is narrowed again to the same type.
//!
//! - `reshape`, `broadcast`, `permute`, `slice`, `cast` to the type the operand has: removed
//! - `reshape (reshape x)`: one reshape; `permute (permute x)`: one permute
//! - `clamp` without limits: removed
//! - `cast (cast x)` where the inner cast widens and the outer returns to x's type: removed
//! - `add x, 0`, `sub x, 0`, `mul x, 1`, `div x, 1` with a constant scalar: removed (for `add` with -0 only: `x + 0` turns -0 into 0)

use gossamer_ir::{Attr, Attrs, DType, Graph, InferError, Module, Op, OpId, OpKind, Value};

use crate::Options;

/// Runs the pass; true if anything changed.
///
/// # Errors
/// None: the ops it makes are valid by construction.
pub fn run(module: &mut Module, _: &Options) -> Result<bool, InferError> {
    let mut changed = false;
    for f in &mut module.funcs {
        let Ok(order) = f.graph.order() else { continue };
        for id in order {
            merge_views(&mut f.graph, id, &mut changed);
            let Some(same) = identity(&f.graph, id) else { continue };
            let value = Value { op: id, result: 0 };
            if f.graph.users(value).is_empty() && !f.results.contains(&value) {
                continue;
            }
            f.graph.replace_uses(value, same);
            f.results.iter_mut().filter(|r| **r == value).for_each(|r| *r = same);
            changed = true;
        }
    }
    Ok(changed)
}

/// The value that op `id` merely repeats.
fn identity(g: &Graph, id: OpId) -> Option<Value> {
    let op = g.op(id);
    let x = *op.operands.first()?;
    let unchanged = g.ty(x) == &op.results[0];
    let same = match op.kind {
        OpKind::Reshape | OpKind::Broadcast | OpKind::Slice => unchanged,
        OpKind::Permute => op.attrs.ints("perm").is_sorted(),
        OpKind::Clamp => op.attrs.float("lo") == f64::NEG_INFINITY && op.attrs.float("hi") == f64::INFINITY,
        OpKind::Cast => {
            let inner = g.op(x.op);
            if !unchanged && inner.kind == OpKind::Cast && widens(g, inner) {
                let source = inner.operands[0];
                return (g.ty(source) == &op.results[0]).then_some(source);
            }
            unchanged
        }
        OpKind::Add => scalar(g, op.operands[1]).is_some_and(|c| c == 0.0 && c.is_sign_negative()),
        OpKind::Sub => scalar(g, op.operands[1]).is_some_and(|c| c == 0.0 && c.is_sign_positive()),
        OpKind::Mul | OpKind::Div => scalar(g, op.operands[1]) == Some(1.0),
        _ => false,
    };
    same.then_some(x)
}

/// True if `cast` loses nothing.
fn widens(g: &Graph, cast: &Op) -> bool {
    let from = g.ty(cast.operands[0]).as_tensor().map(|t| t.dtype);
    matches!((from, cast.attrs.dtype("to")), (Some(DType::BF16 | DType::F16), Some(DType::F32)))
}

/// The value of a rank-0 constant.
fn scalar(g: &Graph, v: Value) -> Option<f64> {
    let op = g.op(v.op);
    (op.kind == OpKind::Const && op.attrs.dims("dims").is_empty()).then(|| op.attrs.float("value"))
}

/// Lets a view of a view read the first one's operand.
fn merge_views(g: &mut Graph, id: OpId, changed: &mut bool) {
    let op = g.op(id);
    let Some(&x) = op.operands.first() else { return };
    let inner = g.op(x.op);
    if inner.kind != op.kind {
        return;
    }
    let source = match op.kind {
        OpKind::Reshape => inner.operands[0],
        OpKind::Permute => {
            let first = inner.attrs.ints("perm");
            let perm: Vec<i64> = op.attrs.ints("perm").iter().map(|p| first[*p as usize]).collect();
            let source = inner.operands[0];
            g.op_mut(id).attrs = Attrs::from([("perm", Attr::Ints(perm))]);
            source
        }
        _ => return,
    };
    g.set_operand(id, 0, source);
    *changed = true;
}
