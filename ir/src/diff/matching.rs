//! Which op of one function is which op of another.
//!
//! Leaves are paired by name. Then, until nothing more is found: forward, an op whose operands are all paired goes with an op of the same kind and attributes
//! that reads their partners; backward, ops of the same kind and attributes that feed the same operand of paired ops (or the same result) go together. What
//! is left goes with an op of the same kind near it if all operands agree, or one operand or one reader and the types do. Ties go to the earlier op.

use std::collections::BTreeMap;

use crate::attr::Attr;
use crate::graph::{Op, OpId, Value};
use crate::module::Func;
use crate::op::OpKind;
use crate::text::{Names, float, order};

/// True for ops that are not statements.
pub(super) fn is_leaf(f: &Func, id: OpId) -> bool {
    matches!(f.graph.op(id).kind, OpKind::Param | OpKind::Weight)
}

/// Pairs of ops of two functions.
pub(super) struct Matching<'a> {
    pub(super) a: &'a Func,
    pub(super) b: &'a Func,
    to_b: BTreeMap<OpId, OpId>,
    to_a: BTreeMap<OpId, OpId>,
    order_a: Vec<OpId>,
    order_b: Vec<OpId>,
    /// A number for the kind and attributes of every statement: the same number for the same ones.
    key_a: BTreeMap<OpId, usize>,
    key_b: BTreeMap<OpId, usize>,
}

impl<'a> Matching<'a> {
    pub(super) fn of(a: &'a Func, b: &'a Func) -> Matching<'a> {
        let (all_a, all_b) = (order(a), order(b));
        let statements = |f: &Func, all: &[OpId]| all.iter().copied().filter(|id| !is_leaf(f, *id)).collect::<Vec<_>>();
        let (order_a, order_b) = (statements(a, &all_a), statements(b, &all_b));
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        let mut keys = |f: &Func, ids: &[OpId]| -> BTreeMap<OpId, usize> {
            let mut number = |id: &OpId| {
                let next = seen.len();
                *seen.entry(key(f.graph.op(*id))).or_insert(next)
            };
            ids.iter().map(|id| (*id, number(id))).collect()
        };
        let (key_a, key_b) = (keys(a, &order_a), keys(b, &order_b));
        let mut m = Matching { a, b, to_b: BTreeMap::new(), to_a: BTreeMap::new(), key_a, key_b, order_a, order_b };
        m.leaves(&all_a, &all_b);
        while m.forward() || m.backward() || m.near(true) || m.near(false) {}
        m
    }

    pub(super) fn partner_of_a(&self, id: OpId) -> Option<OpId> {
        self.to_b.get(&id).copied()
    }

    pub(super) fn partner_of_b(&self, id: OpId) -> Option<OpId> {
        self.to_a.get(&id).copied()
    }

    /// The value of the second function that stands for `v` of the first.
    pub(super) fn value(&self, v: Value) -> Option<Value> {
        self.to_b.get(&v.op).map(|op| Value { op: *op, result: v.result })
    }

    /// True if every parameter goes with the one of the same number.
    pub(super) fn params_in_order(&self) -> bool {
        let index = |f: &Func, id: OpId| f.graph.op(id).attrs.int("index");
        self.to_b
            .iter()
            .all(|(p, q)| self.a.graph.op(*p).kind != OpKind::Param || index(self.a, *p) == index(self.b, *q))
    }

    fn pair(&mut self, p: OpId, q: OpId) {
        self.to_b.insert(p, q);
        self.to_a.insert(q, p);
    }

    /// Parameters by name, the rest of them in order; weights by name.
    fn leaves(&mut self, all_a: &[OpId], all_b: &[OpId]) {
        let (names_a, names_b) = (Names::new(self.a, all_a), Names::new(self.b, all_b));
        let leaves = |f: &Func, names: &Names, all: &[OpId]| -> BTreeMap<String, OpId> {
            let found = all.iter().filter(|id| is_leaf(f, **id));
            found.map(|id| (names.value(Value { op: *id, result: 0 }).to_string(), *id)).collect()
        };
        let before = leaves(self.a, &names_a, all_a);
        let after = leaves(self.b, &names_b, all_b);
        for (name, p) in &before {
            if let Some(q) = after.get(name) {
                self.pair(*p, *q);
            }
        }
        let rest = |f: &Func, all: &[OpId], taken: &BTreeMap<OpId, OpId>| -> Vec<OpId> {
            let mut ids: Vec<OpId> = all
                .iter()
                .copied()
                .filter(|id| f.graph.op(*id).kind == OpKind::Param && !taken.contains_key(id))
                .collect();
            ids.sort_by_key(|id| f.graph.op(*id).attrs.int("index"));
            ids
        };
        let (left_a, left_b) = (rest(self.a, all_a, &self.to_b), rest(self.b, all_b, &self.to_a));
        for (p, q) in left_a.into_iter().zip(left_b) {
            self.pair(p, q);
        }
    }

    /// One sweep in the order of the first function; true if it paired anything.
    fn forward(&mut self) -> bool {
        let mut free: BTreeMap<(usize, Vec<Value>), Vec<OpId>> = BTreeMap::new();
        for id in self.order_b.iter().rev().filter(|id| !self.to_a.contains_key(id)) {
            free.entry((self.key_b[id], self.b.graph.op(*id).operands.clone())).or_default().push(*id);
        }
        let before = self.to_b.len();
        for i in 0..self.order_a.len() {
            let id = self.order_a[i];
            if self.to_b.contains_key(&id) {
                continue;
            }
            let operands: Option<Vec<Value>> = self.a.graph.op(id).operands.iter().map(|v| self.value(*v)).collect();
            let hit = operands.and_then(|o| free.get_mut(&(self.key_a[&id], o))?.pop());
            if let Some(partner) = hit {
                self.pair(id, partner);
            }
        }
        self.to_b.len() > before
    }

    /// One sweep from the results; true if it paired anything.
    fn backward(&mut self) -> bool {
        let before = self.to_b.len();
        let (a, b) = (self.a, self.b);
        for (v, w) in a.results.iter().zip(&b.results) {
            self.same_source(*v, *w);
        }
        for i in (0..self.order_a.len()).rev() {
            let p = self.order_a[i];
            let Some(q) = self.partner_of_a(p) else { continue };
            let (p, q) = (a.graph.op(p), b.graph.op(q));
            if p.operands.len() == q.operands.len() {
                for (v, w) in p.operands.iter().zip(&q.operands) {
                    self.same_source(*v, *w);
                }
            }
        }
        self.to_b.len() > before
    }

    fn same_source(&mut self, v: Value, w: Value) {
        let free = !self.to_b.contains_key(&v.op) && !self.to_a.contains_key(&w.op);
        let keys = (self.key_a.get(&v.op), self.key_b.get(&w.op));
        if free && v.result == w.result && keys.0.is_some() && keys.0 == keys.1 {
            self.pair(v.op, w.op);
        }
    }

    /// Pairs what is left by its neighbours, with the same attributes or with any; true if it paired anything.
    fn near(&mut self, same_attributes: bool) -> bool {
        let before = self.to_b.len();
        let place: BTreeMap<OpId, usize> = self.order_b.iter().enumerate().map(|(i, id)| (*id, i)).collect();
        for i in 0..self.order_a.len() {
            let id = self.order_a[i];
            if self.to_b.contains_key(&id) {
                continue;
            }
            let op = self.a.graph.op(id);
            let best = self
                .neighbours(id)
                .into_iter()
                .filter(|(q, _)| {
                    let other = self.b.graph.op(*q);
                    op.kind == other.kind && (!same_attributes || self.key_a[&id] == self.key_b[q])
                })
                .filter_map(|(q, readers)| {
                    let other = self.b.graph.op(q);
                    let pairs = op.operands.iter().zip(&other.operands);
                    let operands = pairs.filter(|(v, w)| self.value(**v) == Some(**w)).count();
                    let types = op.results == other.results;
                    let all = op.operands.len() == other.operands.len() && operands == op.operands.len();
                    let template = |o: &Op| o.attrs.kernel().map(|k| k.template().clone());
                    let agree = operands + readers + usize::from(template(op) == template(other));
                    (all || types).then_some((agree, std::cmp::Reverse(place[&q]), q))
                })
                .max();
            if let Some((_, _, q)) = best {
                self.pair(id, q);
            }
        }
        self.to_b.len() > before
    }

    /// Free ops of the second function that share a paired operand or reader with op `id`, with the number of such readers.
    fn neighbours(&self, id: OpId) -> BTreeMap<OpId, usize> {
        let mut out: BTreeMap<OpId, usize> = BTreeMap::new();
        let free = |q: &OpId| !self.to_a.contains_key(q) && self.key_b.contains_key(q);
        let op = self.a.graph.op(id);
        for (i, v) in op.operands.iter().enumerate() {
            if let Some(w) = self.value(*v).filter(|w| self.b.graph.get(w.op).is_some()) {
                for (q, operand) in self.b.graph.users(w) {
                    if operand as usize == i && free(&q) {
                        out.entry(q).or_default();
                    }
                }
            }
        }
        for result in 0..op.results.len() as u16 {
            let v = Value { op: id, result };
            let readers = self.a.graph.users(v);
            let feeds = readers.into_iter().filter_map(|(user, operand)| {
                let partner = self.b.graph.op(self.partner_of_a(user)?);
                partner.operands.get(operand as usize).copied()
            });
            let places = self.a.results.iter().zip(&self.b.results).filter(|(x, _)| **x == v).map(|(_, w)| *w);
            for w in feeds.chain(places).filter(|w| w.result == result && free(&w.op)).collect::<Vec<_>>() {
                *out.entry(w.op).or_default() += 1;
            }
        }
        out
    }
}

/// Kind and attributes as text: equal for ops that differ in operands alone.
fn key(op: &Op) -> String {
    let mut out = op.kind.name().to_string();
    for (name, value) in op.attrs.iter() {
        let value = match value {
            Attr::Float(x) => float(*x),
            Attr::Kernel(k) => k.key().to_string(),
            other => other.to_string(),
        };
        out.push_str(&format!(" {name}={value}"));
    }
    out
}
