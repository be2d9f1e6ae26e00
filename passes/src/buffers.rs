//! Buffer planning: where each value of a scheduled function lives.
//!
//! One arena a plan. A value takes bytes from the op that makes it to its last reader; values whose lives overlap never share bytes
//! ([`check`] proves it afterwards). Views share their operand's bytes, elementwise ops write over a first operand that dies with them, states are
//! replaced in place. Offsets: largest first, each at the lowest place that is free for its life ("greedy by size", Pisarchyk and Lee 2020,
//! arXiv:2001.03288).

use std::collections::BTreeMap;

use gossamer_ir::{Bindings, Class, Func, OpId, OpKind, Type, Value};

/// Offsets are multiples of this many bytes.
pub const ALIGN: u64 = 256;

/// Where a value lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Parameter number: an input tensor or a state, owned by the executor.
    Param(usize),
    /// A weight, or the result of work done at load.
    Resident(Value),
    /// Bytes of the arena.
    Arena {
        /// First byte.
        offset: u64,
        /// Length in bytes, not rounded.
        bytes: u64,
    },
}

/// Places of all values.
#[derive(Clone, Debug, Default)]
pub struct BufferPlan {
    /// By value.
    pub places: BTreeMap<Value, Place>,
    /// Size of the arena.
    pub arena_bytes: u64,
    /// Least possible: the most bytes ever alive at once, after sharing.
    pub live_bytes: u64,
    /// Sum of all computed tensors, as if nothing were shared.
    pub total_bytes: u64,
}

/// One stretch of arena bytes and the steps during which it is in use.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Block {
    first: usize,
    last: usize,
    bytes: u64,
    offset: u64,
}

/// Plans buffers for `steps`, which run in this order; `resident` holds the ops that ran at load.
pub fn plan(f: &Func, steps: &[OpId], resident: &[OpId], sizes: &Bindings) -> BufferPlan {
    let last = crate::schedule::last_uses(f, steps);
    let mut plan = BufferPlan::default();
    let mut blocks: Vec<Block> = Vec::new();
    let mut block_of: BTreeMap<Value, usize> = BTreeMap::new();
    for id in f.graph.ids() {
        let op = f.graph.op(id);
        let value = Value { op: id, result: 0 };
        if op.kind == OpKind::Param {
            plan.places.insert(value, Place::Param(op.attrs.int("index") as usize));
        } else if op.kind == OpKind::Weight || resident.contains(&id) {
            for result in 0..op.results.len() as u16 {
                plan.places.insert(Value { op: id, result }, Place::Resident(Value { op: id, result }));
            }
        }
    }
    for (i, id) in steps.iter().enumerate() {
        let op = f.graph.op(*id);
        for (r, ty) in op.results.iter().enumerate() {
            let value = Value { op: *id, result: r as u16 };
            let end = last.get(&value).copied().unwrap_or(i);
            let Type::Tensor(t) = ty else {
                // A state is replaced in place: the new handle lives where the consumed one does.
                if let Some(place) = op.operands.iter().find(|v| f.graph.ty(**v) == ty).and_then(|v| plan.places.get(v))
                {
                    plan.places.insert(value, *place);
                }
                continue;
            };
            let bytes = t.bytes(sizes).unwrap_or(0);
            plan.total_bytes += bytes;
            match shared(f, *id, i, bytes, &last, &plan, &block_of, &blocks, sizes) {
                Some(Shared::Place(place)) => {
                    plan.places.insert(value, place);
                }
                Some(Shared::Block(b)) => {
                    blocks[b].last = blocks[b].last.max(end);
                    block_of.insert(value, b);
                }
                None => {
                    block_of.insert(value, blocks.len());
                    blocks.push(Block { first: i, last: end, bytes, offset: 0 });
                }
            }
        }
    }
    plan.arena_bytes = place(&mut blocks);
    plan.live_bytes = most_alive(&blocks, steps.len());
    for (value, b) in block_of {
        let bytes = f.graph.ty(value).as_tensor().and_then(|t| t.bytes(sizes).ok()).unwrap_or(0);
        plan.places.insert(value, Place::Arena { offset: blocks[b].offset, bytes });
    }
    plan
}

enum Shared {
    Place(Place),
    Block(usize),
}

/// What the result of step `i` may share with its first operand.
#[expect(clippy::too_many_arguments, reason = "a helper of `plan`, which owns all of this state")]
fn shared(
    f: &Func,
    id: OpId,
    i: usize,
    bytes: u64,
    last: &BTreeMap<Value, usize>,
    plan: &BufferPlan,
    block_of: &BTreeMap<Value, usize>,
    blocks: &[Block],
    sizes: &Bindings,
) -> Option<Shared> {
    let op = f.graph.op(id);
    let &x = op.operands.first()?;
    if op.kind == OpKind::Reshape {
        return match block_of.get(&x) {
            Some(b) => Some(Shared::Block(*b)),
            None => plan.places.get(&x).map(|p| Shared::Place(*p)),
        };
    }
    let b = *block_of.get(&x)?;
    let t = f.graph.ty(x).as_tensor()?;
    let same_elements =
        op.results[0].as_tensor().is_some_and(|r| r.dtype.bytes() == t.dtype.bytes() && r.dims == t.dims);
    let dies = last.get(&x) == Some(&i) && blocks[b].last == i;
    // The second operand must not be the same bytes under a suffix shape.
    let alone = op.operands[1..].iter().all(|y| block_of.get(y) != Some(&b) || f.graph.ty(*y) == f.graph.ty(x));
    let fits = t.bytes(sizes).is_ok_and(|n| n == bytes) && blocks[b].bytes >= bytes;
    (op.kind.class() == Class::Elementwise && same_elements && dies && alone && fits).then_some(Shared::Block(b))
}

/// Gives every block an offset; the arena's size.
fn place(blocks: &mut [Block]) -> u64 {
    let mut order: Vec<usize> = (0..blocks.len()).collect();
    order.sort_by_key(|b| (std::cmp::Reverse(blocks[*b].bytes), blocks[*b].first, *b));
    let mut placed: Vec<usize> = Vec::new();
    let mut end = 0;
    for b in order {
        let mut taken: Vec<(u64, u64)> = placed
            .iter()
            .map(|p| &blocks[*p])
            .filter(|p| p.first <= blocks[b].last && blocks[b].first <= p.last)
            .map(|p| (p.offset, p.offset + p.bytes.max(1).next_multiple_of(ALIGN)))
            .collect();
        taken.sort_unstable();
        let size = blocks[b].bytes.max(1).next_multiple_of(ALIGN);
        let mut offset = 0;
        for (from, to) in taken {
            if offset + size <= from {
                break;
            }
            offset = offset.max(to);
        }
        blocks[b].offset = offset;
        end = end.max(offset + size);
        placed.push(b);
    }
    end
}

fn most_alive(blocks: &[Block], steps: usize) -> u64 {
    let mut change = vec![0i64; steps + 2];
    for b in blocks {
        let size = b.bytes.max(1).next_multiple_of(ALIGN) as i64;
        change[b.first] += size;
        change[b.last + 1] -= size;
    }
    let mut live = 0i64;
    change
        .iter()
        .map(|c| {
            live += c;
            live
        })
        .max()
        .unwrap_or(0) as u64
}

/// Proves that no two values that are alive at once share bytes unless one is a view of the other or written over it by design. Returns what is wrong.
pub fn check(f: &Func, steps: &[OpId], plan: &BufferPlan) -> Vec<String> {
    let last = crate::schedule::last_uses(f, steps);
    let made: BTreeMap<OpId, usize> = steps.iter().enumerate().map(|(i, id)| (*id, i)).collect();
    let mut values: Vec<(usize, usize, u64, u64, Value)> = Vec::new();
    let mut problems = Vec::new();
    for (value, place) in &plan.places {
        if let (Place::Arena { offset, bytes }, Some(first)) = (place, made.get(&value.op)) {
            if offset + bytes > plan.arena_bytes {
                problems.push(format!("{} ends outside the arena", name(f, *value)));
            }
            values.push((*first, last.get(value).copied().unwrap_or(*first), *offset, offset + bytes, *value));
        }
    }
    values.sort_unstable();
    for (i, a) in values.iter().enumerate() {
        for b in values[i + 1..].iter().take_while(|b| b.0 <= a.1) {
            let overlap = a.2 < b.3 && b.2 < a.3;
            let first = f.graph.op(b.4.op).operands.first();
            let in_place = b.0 == a.1 && first.is_some_and(|x| *x == a.4 || is_view_of(f, *x, a.4));
            if overlap && !in_place && !is_view_of(f, b.4, a.4) {
                problems.push(format!("{} and {} share bytes while both are alive", name(f, a.4), name(f, b.4)));
            }
        }
    }
    problems
}

/// True if `b` is reached from `a`, or both from one value, through views alone.
fn is_view_of(f: &Func, b: Value, a: Value) -> bool {
    let root = |mut v: Value| {
        while f.graph.op(v.op).kind == OpKind::Reshape {
            v = f.graph.op(v.op).operands[0];
        }
        v
    };
    root(a) == root(b)
}

fn name(f: &Func, v: Value) -> String {
    format!("%{}", f.graph.op(v.op).names[v.result as usize])
}
