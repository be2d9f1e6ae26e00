//! `fold/tile-max`: what looks for the greatest logits reads the maxima of tiles, which the matmul that makes the logits can leave behind.
//!
//! Two halves. Before the e-graph every `sample` and `argmax` of wide rows gets a `tile_max` of what it reads, so that `grow/tile-max` may put it behind the
//! head. In the e-graph [`without`] says that the op equals itself without them: where no kernel makes the maxima for nothing, cost drops them.
//! Precondition: a verified module. Postcondition: an equal one; `maxima` change no result (see the ops' documentation).

use egg::Id;
use gossamer_ir::{Attr, Attrs, Func, InferError, Module, OpKind, Value};

use super::body::Body;
use super::facts::{Graph, parts};
use super::rules::{Equal, Proposal, Target};
use super::term::Term;

/// The rule's name.
pub const NAME: &str = "fold/tile-max";

/// Elements of a tile: 1/128 of the logits is read instead of all, and a tile is a few strips of the kernels that stream a head.
const TILE: i64 = 128;

/// Rows of fewer elements are read faster than their maxima are made.
pub(crate) const LEAST: i64 = 32 * TILE;

/// Ops that take maxima, and as which operand.
pub const READERS: [(OpKind, usize); 2] = [(OpKind::ArgMax, 1), (OpKind::Sample, 7)];

/// Gives the maxima to every op that can use them; true if there was one.
///
/// # Errors
/// None on a verified module.
pub fn run(module: &Module, f: &mut Func) -> Result<bool, InferError> {
    let mut changed = false;
    for id in f.graph.order().unwrap_or_default() {
        let op = f.graph.op(id);
        if !READERS.iter().any(|(kind, at)| *kind == op.kind && op.operands.len() == *at) {
            continue;
        }
        let x = op.operands[0];
        let width = f.graph.ty(x).as_tensor().and_then(|t| t.dims.last()?.as_const());
        if width.is_none_or(|n| n < LEAST) {
            continue;
        }
        let (kind, mut attrs, loc) = (op.kind, op.attrs.clone(), op.loc.clone());
        let (mut operands, names) = (op.operands.clone(), op.names.clone());
        let tile = Attrs::from([("tile", Attr::Int(TILE))]);
        operands.push(f.add(module, OpKind::TileMax, vec![x], tile, &["maxima"], loc.clone())?[0]);
        attrs.set("tile", Attr::Int(TILE));
        let names: Vec<&str> = names.iter().map(|n| &**n).collect();
        let new = f.add(module, kind, operands, attrs, &names, loc)?[0];
        let old = Value { op: id, result: 0 };
        f.graph.replace_uses(old, new);
        f.results.iter_mut().filter(|r| **r == old).for_each(|r| *r = new);
        f.graph.remove(id);
        changed = true;
    }
    Ok(changed)
}

/// The op by itself without its maxima.
pub fn without(eg: &Graph, class: Id, node: &Term) -> Vec<Proposal> {
    let Term::Op(kind, children) = node else { return vec![] };
    let (operands, attrs) = parts(eg, *kind, children);
    let Some((_, at)) = READERS.into_iter().find(|(k, at)| k == kind && operands.len() > *at) else { return vec![] };
    let mut attrs = attrs.clone();
    attrs.set("tile", Attr::Int(0));
    let name = eg[class].data.name.clone().unwrap_or_else(|| "v".into());
    let Some(body) = Body::seed(eg, "single", *kind, attrs, &operands[..at], name) else { return vec![] };
    vec![Proposal { body, from: vec![], op: *kind, equal: Equal::Results(vec![(0, Target::Class(class))]) }]
}
