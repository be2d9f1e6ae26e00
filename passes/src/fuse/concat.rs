//! `fold/concat-weights`: matmuls that read one value become one matmul.
//!
//! Runs before the e-graph: as a rule with several left sides it would grow without bound (TENSAT, Yang et al. 2021, arXiv:2101.01332, limits such rules to one round). The
//! weights are concatenated at load, the biases too if all have one, and a `split` gives the pieces. Precondition: a verified module. Postcondition: an equal one.

use gossamer_ir::verify::weight_only;
use gossamer_ir::{Attr, Attrs, Class, Func, InferError, Module, OpId, OpKind, Value};

/// The rule's name.
pub const NAME: &str = "fold/concat-weights";

/// A matmul by weights and the bias that alone reads it.
struct Member {
    matmul: OpId,
    w: Value,
    bias: Option<(OpId, Value)>,
    /// What the rest of the function reads.
    value: Value,
    width: i64,
}

/// Rewrites every group of at least two; true if there was one.
///
/// # Errors
/// None on a verified module.
pub fn run(module: &Module, f: &mut Func) -> Result<bool, InferError> {
    let known = weight_only(f);
    let mut changed = false;
    for x in sources(f) {
        let readers: Vec<OpId> = f.graph.users(x).into_iter().filter(|(_, n)| *n == 0).map(|(id, _)| id).collect();
        let mut members: Vec<Member> = readers.into_iter().filter_map(|id| member(f, id, &known)).collect();
        let Some(first) = members.first() else { continue };
        let kind = |m: &Member| {
            let t = f.graph.ty(m.w).as_tensor().cloned();
            let bias = m.bias.and_then(|(_, b)| f.graph.ty(b).as_tensor().map(|t| t.dtype));
            (
                t.map(|t| (t.dtype, t.layout, t.dims.get(1).cloned())),
                bias,
                f.graph.ty(m.value).as_tensor().map(|t| t.dtype),
            )
        };
        let first = kind(first);
        members.retain(|m| kind(m) == first);
        if members.len() < 2 {
            continue;
        }
        group(module, f, x, &members)?;
        changed = true;
    }
    Ok(changed)
}

/// Values that a matmul reads, in the order they are made.
fn sources(f: &Func) -> Vec<Value> {
    let mut out: Vec<Value> = Vec::new();
    for id in f.graph.order().unwrap_or_default() {
        let op = f.graph.op(id);
        if op.kind == OpKind::MatMul && !out.contains(&op.operands[0]) {
            out.push(op.operands[0]);
        }
    }
    out
}

fn member(f: &Func, id: OpId, known: &std::collections::BTreeSet<Value>) -> Option<Member> {
    let op = f.graph.op(id);
    let (w, value) = (*op.operands.get(1)?, Value { op: id, result: 0 });
    let t = f.graph.ty(w).as_tensor()?;
    let width = t.dims.first()?.as_const()?;
    if op.kind != OpKind::MatMul
        || !known.contains(&w)
        || t.rank() != 2
        || t.layout.is_some()
        || f.results.contains(&value)
    {
        return None;
    }
    let users = f.graph.users(value);
    let bias = match users[..] {
        [(add, 0)] if f.graph.op(add).kind == OpKind::Add => {
            let b = f.graph.op(add).operands[1];
            let vector = f.graph.ty(b).as_tensor().is_some_and(|t| t.rank() == 1);
            (vector && known.contains(&b) && f.graph.op(b.op).kind.class() != Class::State).then_some((add, b))
        }
        _ => None,
    };
    let value = bias.map_or(value, |(add, _)| Value { op: add, result: 0 });
    Some(Member { matmul: id, w, bias, value, width })
}

fn group(module: &Module, f: &mut Func, x: Value, members: &[Member]) -> Result<(), InferError> {
    let axis = || Attrs::from([("axis", Attr::Int(0))]);
    let name =
        |f: &Func, values: Vec<Value>| joined(values.iter().map(|v| &*f.graph.op(v.op).names[v.result as usize]));
    let ws: Vec<Value> = members.iter().map(|m| m.w).collect();
    let w_name = name(f, ws.clone());
    let w = f.add(module, OpKind::Concat, ws, axis(), &[&w_name], None)?[0];
    let attrs = f.graph.op(members[0].matmul).attrs.clone();
    let loc = f.graph.op(members[0].matmul).loc.clone();
    let mut y = f.add(module, OpKind::MatMul, vec![x, w], attrs, &["y"], loc.clone())?[0];
    let biases: Option<Vec<Value>> = members.iter().map(|m| m.bias.map(|(_, b)| b)).collect();
    if let Some(biases) = biases {
        let b_name = name(f, biases.clone());
        let b = f.add(module, OpKind::Concat, biases, axis(), &[&b_name], None)?[0];
        y = f.add(module, OpKind::Add, vec![y, b], Attrs::default(), &["z"], loc.clone())?[0];
    }
    let sizes = Attrs::from([("sizes", Attr::Ints(members.iter().map(|m| m.width).collect()))]);
    let pieces = f.add(module, OpKind::Split, vec![y], sizes, &["y"], loc)?;
    for (m, piece) in members.iter().zip(pieces) {
        f.graph.replace_uses(m.value, piece);
        f.results.iter_mut().filter(|r| **r == m.value).for_each(|r| *r = piece);
        if let Some((add, _)) = m.bias {
            f.graph.remove(add);
        }
        f.graph.remove(m.matmul);
    }
    Ok(())
}

/// `attn.q.w`, `attn.k.w`: `attn.q_k.w`, so that a name tells what is inside.
fn joined<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let split: Vec<Vec<&str>> = names.map(|n| n.split('.').collect()).collect();
    let Some(first) = split.first() else { return "w".into() };
    let differ: Vec<usize> = (0..first.len()).filter(|i| split.iter().any(|n| n.get(*i) != first.get(*i))).collect();
    match (differ[..].first(), differ.len(), split.iter().all(|n| n.len() == first.len())) {
        (Some(at), 1, true) => {
            let middle: Vec<&str> = split.iter().map(|n| n[*at]).collect();
            let mut out: Vec<String> = first.iter().map(ToString::to_string).collect();
            out[*at] = middle.join("_");
            out.join(".")
        }
        _ => split.iter().map(|n| n.join("_")).collect::<Vec<_>>().join("_"),
    }
}
