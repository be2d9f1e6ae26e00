//! Running a fused kernel: its regions, op by op.

use std::collections::BTreeMap;

use super::{Datum, EvalCx, EvalError, eval_op};
use crate::graph::Value;
use crate::module::Func;
use crate::op::OpKind;

/// `kernel`.
pub(crate) fn kernel(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    let Some(body) = cx.attrs.kernel().cloned() else {
        return Err(EvalError::Func { name: "kernel".into(), message: "has no body; verify the module".into() });
    };
    let mut rest = cx.operands.iter().cloned();
    let mut carried: Vec<Datum> = Vec::new();
    for f in body.regions() {
        let more = f.params.len().saturating_sub(carried.len());
        carried.extend(rest.by_ref().take(more));
        carried = region(f, carried, cx)?;
    }
    Ok(carried)
}

fn region(f: &Func, args: Vec<Datum>, cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    let bad =
        |message: &str| EvalError::Func { name: f.name.to_string(), message: format!("{message}; verify the module") };
    let order = f.graph.order().map_err(|_| bad("has a cycle"))?;
    let mut values: BTreeMap<Value, Datum> = BTreeMap::new();
    let mut last: BTreeMap<Value, usize> = BTreeMap::new();
    for (i, id) in order.iter().enumerate() {
        last.extend(f.graph.op(*id).operands.iter().map(|v| (*v, i)));
    }
    for (i, id) in order.iter().enumerate() {
        let op = f.graph.op(*id);
        let results = match op.kind {
            OpKind::Param => {
                let arg = usize::try_from(op.attrs.int("index")).ok().and_then(|p| args.get(p)).cloned();
                vec![arg.ok_or_else(|| bad("has more parameters than values"))?]
            }
            _ => {
                let get = |v: &Value| values.get(v).cloned().ok_or_else(|| bad("reads a value that no op makes"));
                let operands = op.operands.iter().map(get).collect::<Result<Vec<_>, _>>()?;
                eval_op(op, &operands, cx.states, cx.sizes, cx.rounding)?
            }
        };
        for (r, datum) in results.into_iter().enumerate() {
            values.insert(Value { op: *id, result: r as u16 }, datum);
        }
        for v in &op.operands {
            if last[v] == i && !f.results.contains(v) {
                values.remove(v);
            }
        }
    }
    f.results.iter().map(|v| values.get(v).cloned().ok_or_else(|| bad("yields a value that no op makes"))).collect()
}
