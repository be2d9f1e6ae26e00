//! Common subexpressions: merges ops with equal kind, attributes and operands.
//!
//! Precondition: a verified module. Postcondition: an equal module without two equal ops in a function. Leaves state alone: two writes are two writes.

use std::collections::BTreeMap;

use gossamer_ir::{Class, InferError, Module, OpId, Value};

use crate::Options;

/// Runs the pass; true if anything changed.
///
/// # Errors
/// None.
pub fn run(module: &mut Module, _: &Options) -> Result<bool, InferError> {
    let mut changed = false;
    for f in &mut module.funcs {
        let Ok(order) = f.graph.order() else { continue };
        let mut seen: BTreeMap<(&'static str, String, Vec<Value>), OpId> = BTreeMap::new();
        for id in order {
            let op = f.graph.op(id);
            if matches!(op.kind.class(), Class::State | Class::Call) || op.kind == gossamer_ir::OpKind::Param {
                continue;
            }
            let text = |v: &gossamer_ir::Attr| match v {
                gossamer_ir::Attr::Kernel(k) => k.key().to_string(),
                other => other.to_string(),
            };
            let attrs: Vec<String> = op.attrs.iter().map(|(k, v)| format!("{k}={}", text(v))).collect();
            let key = (op.kind.name(), attrs.join(","), op.operands.clone());
            let results = op.results.len() as u16;
            let Some(&first) = seen.get(&key) else {
                seen.insert(key, id);
                continue;
            };
            for result in 0..results {
                let (from, to) = (Value { op: id, result }, Value { op: first, result });
                f.graph.replace_uses(from, to);
                f.results.iter_mut().filter(|r| **r == from).for_each(|r| *r = to);
            }
            f.graph.remove(id);
            changed = true;
        }
    }
    Ok(changed)
}
