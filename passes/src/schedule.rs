//! Scheduling: the order in which a flat function's ops run.
//!
//! Two orders are tried, the order of the source and a greedy one that frees memory early, and the one with the lower peak wins (the source on a tie).
//! Readers of a state run before the op that replaces it.

use std::collections::{BTreeMap, BTreeSet};

use gossamer_ir::{Bindings, Func, OpId, Value};

/// A legal order of all ops, or the ops on a cycle.
///
/// # Errors
/// The ops on and behind a cycle; none on a verified module.
pub fn schedule(f: &Func, sizes: &Bindings) -> Result<Vec<OpId>, Vec<OpId>> {
    let source = f.graph.order()?;
    let hazards = hazards(f, &source);
    let in_order = respects(&source, &hazards);
    let greedy = greedy(f, &source, &hazards, sizes);
    match in_order && peak(f, &source, sizes) <= peak(f, &greedy, sizes) {
        true => Ok(source),
        false => Ok(greedy),
    }
}

/// Greatest number of bytes of computed values that are alive at once.
pub fn peak(f: &Func, order: &[OpId], sizes: &Bindings) -> u64 {
    let last = last_uses(f, order);
    let (mut live, mut peak) = (0u64, 0u64);
    for (i, id) in order.iter().enumerate() {
        live += made(f, *id, sizes);
        peak = peak.max(live);
        let op = f.graph.op(*id);
        let unread =
            (0..op.results.len() as u16).map(|r| Value { op: *id, result: r }).filter(|v| !last.contains_key(v));
        let mut dead: Vec<Value> =
            op.operands.iter().copied().filter(|v| last.get(v) == Some(&i)).chain(unread).collect();
        dead.sort_unstable();
        dead.dedup();
        live -= dead.iter().map(|v| bytes(f, *v, sizes)).sum::<u64>();
    }
    peak
}

/// The position of each value's last reader; results of the function are read after the end.
pub fn last_uses(f: &Func, order: &[OpId]) -> BTreeMap<Value, usize> {
    let mut last = BTreeMap::new();
    for (i, id) in order.iter().enumerate() {
        for v in &f.graph.op(*id).operands {
            last.insert(*v, i);
        }
    }
    for v in &f.results {
        last.insert(*v, order.len());
    }
    last
}

/// Pairs (reader of a state, op that replaces it).
fn hazards(f: &Func, order: &[OpId]) -> Vec<(OpId, OpId)> {
    let mut out = Vec::new();
    for id in order {
        for (result, ty) in f.graph.op(*id).results.iter().enumerate() {
            if !ty.is_state() {
                continue;
            }
            let users = f.graph.users(Value { op: *id, result: result as u16 });
            let replaces = |u: OpId| f.graph.op(u).results.iter().any(|t| t.is_state());
            for (writer, _) in users.iter().filter(|(u, _)| replaces(*u)) {
                out.extend(users.iter().filter(|(u, _)| !replaces(*u)).map(|(reader, _)| (*reader, *writer)));
            }
        }
    }
    out
}

fn respects(order: &[OpId], hazards: &[(OpId, OpId)]) -> bool {
    let at: BTreeMap<OpId, usize> = order.iter().enumerate().map(|(i, id)| (*id, i)).collect();
    hazards.iter().all(|(a, b)| at[a] < at[b])
}

/// Always runs the ready op that leaves the fewest bytes alive, the earliest in source order among equals.
fn greedy(f: &Func, source: &[OpId], hazards: &[(OpId, OpId)], sizes: &Bindings) -> Vec<OpId> {
    let mut before: BTreeMap<OpId, BTreeSet<OpId>> =
        source.iter().map(|id| (*id, f.graph.op(*id).operands.iter().map(|v| v.op).collect::<BTreeSet<_>>())).collect();
    for (reader, writer) in hazards {
        before.entry(*writer).or_default().insert(*reader);
    }
    let mut after: BTreeMap<OpId, Vec<OpId>> = BTreeMap::new();
    for (id, deps) in &before {
        for d in deps {
            after.entry(*d).or_default().push(*id);
        }
    }
    let mut waiting: BTreeMap<OpId, usize> = before.iter().map(|(id, deps)| (*id, deps.len())).collect();
    let mut readers: BTreeMap<Value, usize> = BTreeMap::new();
    for id in source {
        let mut operands = f.graph.op(*id).operands.clone();
        operands.sort_unstable();
        operands.dedup();
        operands.into_iter().for_each(|v| *readers.entry(v).or_default() += 1);
    }
    for v in &f.results {
        *readers.entry(*v).or_default() += 1;
    }
    let position: BTreeMap<OpId, usize> = source.iter().enumerate().map(|(i, id)| (*id, i)).collect();
    let mut ready: BTreeSet<usize> = waiting.iter().filter(|(_, n)| **n == 0).map(|(id, _)| position[id]).collect();
    let mut order = Vec::with_capacity(source.len());
    while !ready.is_empty() {
        let growth = |at: usize| {
            let id = source[at];
            let mut operands = f.graph.op(id).operands.clone();
            operands.sort_unstable();
            operands.dedup();
            let freed: u64 = operands.iter().filter(|v| readers[*v] == 1).map(|v| bytes(f, *v, sizes)).sum();
            made(f, id, sizes) as i64 - freed as i64
        };
        // Leaves cost nothing and never block anything, so look at the earliest few only: keeps the search linear.
        let Some(at) = ready.iter().take(16).copied().min_by_key(|at| (growth(*at), *at)) else { break };
        ready.remove(&at);
        let id = source[at];
        order.push(id);
        let mut operands = f.graph.op(id).operands.clone();
        operands.sort_unstable();
        operands.dedup();
        for v in operands {
            if let Some(n) = readers.get_mut(&v) {
                *n -= 1;
            }
        }
        for next in after.get(&id).into_iter().flatten() {
            if let Some(n) = waiting.get_mut(next) {
                *n -= 1;
                if *n == 0 {
                    ready.insert(position[next]);
                }
            }
        }
    }
    order
}

fn made(f: &Func, id: OpId, sizes: &Bindings) -> u64 {
    (0..f.graph.op(id).results.len() as u16).map(|r| bytes(f, Value { op: id, result: r }, sizes)).sum()
}

/// Bytes of a computed tensor; leaves and states are not in the arena.
fn bytes(f: &Func, v: Value, sizes: &Bindings) -> u64 {
    let op = f.graph.op(v.op);
    match (op.kind, f.graph.ty(v).as_tensor()) {
        (gossamer_ir::OpKind::Param | gossamer_ir::OpKind::Weight, _) | (_, None) => 0,
        (_, Some(t)) => t.bytes(sizes).unwrap_or(0),
    }
}
