//! The dataflow graph of one function, on petgraph.
//!
//! Nodes are ops, edges are uses. Operand order lives in the op ([`Op::operands`]) and edges mirror it, because petgraph iterates
//! edges in reverse insertion order; [`Graph::add`], [`Graph::set_operand`] and [`Graph::replace_uses`] keep the two equal and the verifier
//! checks it (V03). `remove_node` frees an index for reuse, so nothing visible may depend on [`OpId`] order: use [`Op::seq`].

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use petgraph::Direction;
use petgraph::stable_graph::{NodeIndex, StableDiGraph};
use petgraph::visit::EdgeRef;

use crate::attr::Attrs;
use crate::op::OpKind;
use crate::ty::Type;

/// Identifies an op within its graph. Never hold one across a pass boundary.
pub type OpId = NodeIndex<u32>;

/// One result of an op.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value {
    /// The op that makes it.
    pub op: OpId,
    /// Which of its results.
    pub result: u16,
}

/// Where an op was written: IR text or the Rust line of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loc {
    /// File name.
    pub file: Arc<str>,
    /// Line, from 1.
    pub line: u32,
    /// Column, from 1.
    pub column: u32,
}

/// An operation: a row of the op table with its operands and compile-time constants.
#[derive(Clone, Debug)]
pub struct Op {
    /// Which op.
    pub kind: OpKind,
    /// Complete attributes (defaults filled in).
    pub attrs: Attrs,
    /// Operands in the order of the op table.
    pub operands: Vec<Value>,
    /// One type a result.
    pub results: Vec<Type>,
    /// Name hints, one a result (`q` prints as `%q`, or `%q.3` where `q` is taken). Never meaningful.
    pub names: Vec<Arc<str>>,
    /// Creation number: the tie-break of every visible order.
    pub seq: u32,
    /// Where it was written, if known.
    pub loc: Option<Loc>,
}

/// Weight of an edge: which result of the source feeds which operand of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Use {
    /// Result number at the source.
    pub result: u16,
    /// Operand number at the target.
    pub operand: u16,
}

/// Ops and their uses. See the module documentation for the invariants.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    g: StableDiGraph<Op, Use, u32>,
    next_seq: u32,
}

impl Graph {
    /// Adds an op; operands must exist. `seq` is assigned.
    pub fn add(&mut self, mut op: Op) -> OpId {
        op.seq = self.next_seq;
        self.next_seq += 1;
        let operands = op.operands.clone();
        let id = self.g.add_node(op);
        for (i, v) in operands.into_iter().enumerate() {
            self.g.add_edge(v.op, id, Use { result: v.result, operand: i as u16 });
        }
        id
    }

    /// The op. Panics if it was removed, which is a bug of the caller.
    pub fn op(&self, id: OpId) -> &Op {
        &self.g[id]
    }

    /// The op, or `None` if it does not exist.
    pub fn get(&self, id: OpId) -> Option<&Op> {
        self.g.node_weight(id)
    }

    /// Attributes, types and names may be edited in place; operands only through [`Graph::set_operand`].
    pub fn op_mut(&mut self, id: OpId) -> &mut Op {
        &mut self.g[id]
    }

    /// The type of a value.
    pub fn ty(&self, v: Value) -> &Type {
        &self.g[v.op].results[v.result as usize]
    }

    /// Makes operand number `operand` of `user` read `value`.
    pub fn set_operand(&mut self, user: OpId, operand: u16, value: Value) {
        let old =
            self.g.edges_directed(user, Direction::Incoming).find(|e| e.weight().operand == operand).map(|e| e.id());
        if let Some(e) = old {
            self.g.remove_edge(e);
        }
        self.g[user].operands[operand as usize] = value;
        self.g.add_edge(value.op, user, Use { result: value.result, operand });
    }

    /// Makes every reader of `from` read `to` instead, except `to`'s own op.
    pub fn replace_uses(&mut self, from: Value, to: Value) {
        for (user, operand) in self.users(from) {
            if user != to.op {
                self.set_operand(user, operand, to);
            }
        }
    }

    /// Removes an op and the edges at it. Its results must be unused.
    pub fn remove(&mut self, id: OpId) {
        debug_assert_eq!(self.g.edges_directed(id, Direction::Outgoing).count(), 0);
        self.g.remove_node(id);
    }

    /// Readers of a value as (op, operand number), in order of `seq`.
    pub fn users(&self, v: Value) -> Vec<(OpId, u16)> {
        let mut users: Vec<_> = self
            .g
            .edges_directed(v.op, Direction::Outgoing)
            .filter(|e| e.weight().result == v.result)
            .map(|e| (e.target(), e.weight().operand))
            .collect();
        users.sort_by_key(|(op, operand)| (self.g[*op].seq, *operand));
        users
    }

    /// The use edges into an op, sorted by operand number: (source, use).
    pub fn edges_into(&self, id: OpId) -> Vec<(OpId, Use)> {
        let mut edges: Vec<_> =
            self.g.edges_directed(id, Direction::Incoming).map(|e| (e.source(), *e.weight())).collect();
        edges.sort_by_key(|(_, u)| *u);
        edges
    }

    /// Every op in order of creation.
    pub fn ids(&self) -> Vec<OpId> {
        let mut ids: Vec<_> = self.g.node_indices().collect();
        ids.sort_by_key(|id| self.g[*id].seq);
        ids
    }

    /// Number of ops.
    pub fn len(&self) -> usize {
        self.g.node_count()
    }

    /// True if there is no op.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Topological order, ties broken by `seq`, so that printing is stable. `Err` holds the ops on and behind cycles.
    pub fn order(&self) -> Result<Vec<OpId>, Vec<OpId>> {
        let mut waiting: BTreeMap<OpId, usize> =
            self.g.node_indices().map(|n| (n, self.g.edges_directed(n, Direction::Incoming).count())).collect();
        let mut ready: BinaryHeap<_> =
            waiting.iter().filter(|(_, d)| **d == 0).map(|(n, _)| Reverse((self.g[*n].seq, *n))).collect();
        let mut out = Vec::with_capacity(waiting.len());
        while let Some(Reverse((_, n))) = ready.pop() {
            waiting.remove(&n);
            out.push(n);
            for e in self.g.edges_directed(n, Direction::Outgoing) {
                if let Some(left) = waiting.get_mut(&e.target()) {
                    *left -= 1;
                    if *left == 0 {
                        ready.push(Reverse((self.g[e.target()].seq, e.target())));
                    }
                }
            }
        }
        if waiting.is_empty() { Ok(out) } else { Err(waiting.into_keys().collect()) }
    }

    /// Read access to the petgraph underneath, for algorithms and pictures.
    pub fn petgraph(&self) -> &StableDiGraph<Op, Use, u32> {
        &self.g
    }
}
