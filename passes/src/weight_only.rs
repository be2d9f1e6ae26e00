//! Weight-only marking: which ops of a flat function depend on weights and constants alone, and which of them are worth doing once at load.
//!
//! Everything weight-only could be done at load, but what grows there stays in memory for good: expanding MXFP4 would take four times the
//! checkpoint. So a value is made at load only if it is not larger than what it is made from, or is made from nothing (a table).

use std::collections::BTreeSet;

use gossamer_ir::{Bindings, Class, Func, OpId, OpKind, Value};

/// Ops to run once at load, in order. Constants of rank 0 are not among them: kernels read them as literals or make them in place.
pub fn at_load(f: &Func, order: &[OpId], sizes: &Bindings) -> Vec<OpId> {
    let mut weight_only: BTreeSet<OpId> = BTreeSet::new();
    let mut load = Vec::new();
    for &id in order {
        let op = f.graph.op(id);
        let from_weights = op.operands.iter().all(|v| weight_only.contains(&v.op));
        let pure = !matches!(op.kind.class(), Class::State | Class::Sampling | Class::Call);
        if op.kind == OpKind::Weight {
            weight_only.insert(id);
        } else if op.kind != OpKind::Param && pure && from_weights && resident(f, id, sizes) {
            weight_only.insert(id);
            load.push(id);
        }
    }
    load
}

/// True if the results may stay in memory: no larger than the operands, or made from none.
fn resident(f: &Func, id: OpId, sizes: &Bindings) -> bool {
    let op = f.graph.op(id);
    if op.operands.is_empty() {
        return op.kind == OpKind::RopeTable;
    }
    let bytes = |v: Value| f.graph.ty(v).as_tensor().and_then(|t| t.bytes(sizes).ok()).unwrap_or(u64::MAX);
    let inputs: u64 = op.operands.iter().fold(0u64, |sum, v| sum.saturating_add(bytes(*v)));
    let outputs: u64 =
        (0..op.results.len() as u16).fold(0u64, |sum, r| sum.saturating_add(bytes(Value { op: id, result: r })));
    // A packed layout may pad its tiles; that is not growth worth avoiding.
    op.kind == OpKind::Relayout || outputs <= inputs
}
