//! Inlining: one flat function out of the entry and everything it calls.
//!
//! Names keep the scope of the weights they work on, so that a dump of the flat function still reads by layer. Precondition: a verified module.

use std::collections::BTreeMap;
use std::sync::Arc;

use gossamer_ir::{Func, InferError, Module, Op, OpKind, Value};

/// The function `entry` with every call replaced by the callee's body, recursively. `None` if there is no such function.
///
/// # Errors
/// None on a verified module.
pub fn inline(module: &Module, entry: &str) -> Result<Option<Func>, InferError> {
    let Some(source) = module.func(entry) else { return Ok(None) };
    let mut flat = Func::new(entry, source.params.clone());
    let args: Vec<Value> = (0..source.params.len()).filter_map(|i| flat.param(i)).collect();
    flat.results = copy(module, source, &args, &mut flat, &mut BTreeMap::new(), "")?;
    Ok(Some(flat))
}

/// Ops of `entry` with every call replaced, calls counted: each level of calls may double them. Callees stand before their callers, see rule V10.
pub fn size(module: &Module, entry: &str) -> usize {
    let mut sizes: BTreeMap<&str, usize> = BTreeMap::new();
    for f in &module.funcs {
        let of = |op: &Op| match op.kind {
            OpKind::Call => 1usize.saturating_add(sizes.get(op.attrs.word("callee")).copied().unwrap_or(0)),
            _ => 1,
        };
        let ops = f.graph.ids().into_iter().map(|id| of(f.graph.op(id))).fold(0, usize::saturating_add);
        sizes.insert(&f.name, ops);
    }
    sizes.get(entry).copied().unwrap_or(0)
}

type Weights = BTreeMap<Arc<str>, Value>;

/// Copies the body of `from` into `into`, with `args` for its parameters; the copies of its results.
fn copy(
    module: &Module,
    from: &Func,
    args: &[Value],
    into: &mut Func,
    weights: &mut Weights,
    scope: &str,
) -> Result<Vec<Value>, InferError> {
    let mut map: BTreeMap<Value, Value> = BTreeMap::new();
    for id in from.graph.order().unwrap_or_default() {
        let op = from.graph.op(id);
        let operands: Vec<Value> = op.operands.iter().map(|v| map[v]).collect();
        let results = match op.kind {
            OpKind::Param => vec![args[op.attrs.int("index") as usize]],
            OpKind::Weight => {
                let name: Arc<str> = op.attrs.word("name").into();
                match weights.get(&name) {
                    Some(v) => vec![*v],
                    None => {
                        let v = into.add(module, op.kind, vec![], op.attrs.clone(), &[&name], op.loc.clone())?;
                        weights.insert(name, v[0]);
                        v
                    }
                }
            }
            OpKind::Call => match module.func(op.attrs.word("callee")) {
                Some(callee) => {
                    let scope = call_scope(into, &operands);
                    copy(module, callee, &operands, into, weights, &scope)?
                }
                None => vec![],
            },
            _ => {
                let names: Vec<String> = op.names.iter().map(|n| format!("{scope}{n}")).collect();
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                into.add(module, op.kind, operands, op.attrs.clone(), &names, op.loc.clone())?
            }
        };
        for (i, v) in results.into_iter().enumerate() {
            map.insert(Value { op: id, result: i as u16 }, v);
        }
    }
    Ok(from.results.iter().map(|v| map[v]).collect())
}

/// `l3.` for a call whose weights are named `l3.*`, else nothing.
fn call_scope(f: &Func, operands: &[Value]) -> String {
    let weight = operands.iter().map(|v| f.graph.op(v.op)).find(|op| op.kind == OpKind::Weight);
    weight.and_then(|op| op.attrs.word("name").split_once('.')).map(|(s, _)| format!("{s}.")).unwrap_or_default()
}
