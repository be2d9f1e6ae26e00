//! Dead code: removes ops whose results nothing reads, functions nothing calls, and weights nothing uses.
//!
//! The last function is the entry and stays, as do parameters. Precondition: a verified module. Postcondition: an equal module in which every op is
//! reachable from a result.

use std::collections::BTreeSet;
use std::sync::Arc;

use gossamer_ir::{Func, InferError, Module, OpId, OpKind};

use crate::Options;

/// Runs the pass; true if anything changed.
///
/// # Errors
/// None.
pub fn run(module: &mut Module, _: &Options) -> Result<bool, InferError> {
    let mut changed = false;
    for f in &mut module.funcs {
        changed |= dead_ops(f);
    }
    let mut called: BTreeSet<Arc<str>> = module.funcs.last().map(|f| f.name.clone()).into_iter().collect();
    for f in module.funcs.iter().rev() {
        if called.contains(&f.name) {
            called.extend(words(f, OpKind::Call, "callee"));
        }
    }
    let before = (module.funcs.len(), module.weights.len());
    module.funcs.retain(|f| called.contains(&f.name));
    let used: BTreeSet<Arc<str>> = module.funcs.iter().flat_map(|f| words(f, OpKind::Weight, "name")).collect();
    module.weights.retain(|w| used.contains(&w.name));
    Ok(changed || before != (module.funcs.len(), module.weights.len()))
}

/// Removes unreachable ops of one function; true if there were any.
pub fn dead_ops(f: &mut Func) -> bool {
    let mut live: BTreeSet<OpId> = BTreeSet::new();
    let mut work: Vec<OpId> = f.results.iter().map(|v| v.op).collect();
    while let Some(id) = work.pop() {
        if live.insert(id) {
            work.extend(f.graph.op(id).operands.iter().map(|v| v.op));
        }
    }
    let Ok(order) = f.graph.order() else { return false };
    let dead: Vec<OpId> =
        order.into_iter().rev().filter(|id| !live.contains(id) && f.graph.op(*id).kind != OpKind::Param).collect();
    for id in &dead {
        f.graph.remove(*id);
    }
    !dead.is_empty()
}

fn words(f: &Func, kind: OpKind, attr: &str) -> Vec<Arc<str>> {
    let ids = f.graph.ids();
    ids.iter().map(|id| f.graph.op(*id)).filter(|op| op.kind == kind).map(|op| op.attrs.word(attr).into()).collect()
}
