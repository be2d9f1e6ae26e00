//! The body of a `kernel`: what one launch (or a few) computes, as ops in up to three regions, or in several stages of three.
//!
//! A body says *what*, its [template](crate::template) says *how*. Regions hold ordinary ops, so a fused kernel means what its ops mean; they are isolated: values come
//! in as parameters only. Operands are consumed from left to right: the prologue takes the first, `main` the prologue's yields and then the next operands, the
//! epilogue main's yields and then the rest. The results are the yields of the last region.
//!
//! A kernel of several stages does one main loop after the other. Each stage has regions of its own, behind the word `then`; its first region takes the yields of the
//! stage before, all of them and in front of its operands, as every region does. So a stage sees what the one before hands on, and operands, and nothing else.
//!
//! ```
//! let text = "gir 1\nsym T in 1..=8\nfunc @f(%x: f32[T, 4], %w: f32[3, 4], %b: f32[3]) -> f32[T, 3] {
//!   %y = kernel %x, %w, %b {template = stream}
//!     main(%x: f32[T, 4], %w: f32[3, 4]) {
//!       %a = matmul %x, %w : f32[T, 3]
//!       yield %a
//!     }
//!     epilogue(%a: f32[T, 3], %b: f32[3]) {
//!       %z = add %a, %b : f32[T, 3]
//!       yield %z
//!     } : f32[T, 3]
//!   return %y
//! }\n";
//! let module = gossamer_ir::text::parse("f.gir", text).unwrap();
//! assert_eq!(module.to_string(), text.replace(") -> f32[T, 3] {", ") -> (f32[T, 3]) {").replace("8\nfunc", "8\n\nfunc").replace("1\nsym", "1\n\nsym"));
//! ```

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::graph::{Op, OpId, Value};
use crate::module::Func;
use crate::op::OpKind;
use crate::ty::Type;

/// Names of the regions of a stage, in order.
pub const REGIONS: [&str; 3] = ["prologue", "main", "epilogue"];

/// Stands between the stages in text.
pub const THEN: &str = "then";

/// One main loop and what is around it.
#[derive(Clone)]
pub struct Stage {
    /// What is done to operands as they are read.
    pub prologue: Option<Func>,
    /// The main loop.
    pub main: Func,
    /// What is done to what `main` yields before it is stored, or handed to the next stage.
    pub epilogue: Option<Func>,
}

impl Stage {
    /// The three regions, in order.
    pub fn regions(&self) -> [Option<&Func>; 3] {
        [self.prologue.as_ref(), Some(&self.main), self.epilogue.as_ref()]
    }

    /// The last region: what it yields the stage yields.
    pub fn last(&self) -> &Func {
        self.epilogue.as_ref().unwrap_or(&self.main)
    }

    fn map(self, f: impl Fn(&Func, &str) -> Func) -> Stage {
        Stage {
            prologue: self.prologue.map(|r| f(&r, REGIONS[0])),
            main: f(&self.main, REGIONS[1]),
            epilogue: self.epilogue.map(|r| f(&r, REGIONS[2])),
        }
    }
}

/// A fused kernel. Two are equal if they compute the same in the same order of parameters; names do not count.
#[derive(Clone)]
pub struct Kernel {
    template: Arc<str>,
    first: Stage,
    then: Vec<Stage>,
    key: Arc<str>,
}

/// Where a value inside a kernel comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// An operand of the kernel.
    Operand(usize),
    /// An op of a region makes it.
    Made {
        /// Number of the region: three to a stage.
        region: usize,
        /// The value there.
        value: Value,
    },
}

impl Kernel {
    /// A body of one stage. Ops that no yield needs are dropped and the rest are put into one order, so that equal kernels are equal text.
    pub fn new(template: &str, prologue: Option<Func>, main: Func, epilogue: Option<Func>) -> Kernel {
        Kernel::of(template, Stage { prologue, main, epilogue }, vec![])
    }

    /// A body of several stages, as [`Kernel::new`].
    pub fn of(template: &str, first: Stage, then: Vec<Stage>) -> Kernel {
        let first = first.map(canonical);
        let then: Vec<Stage> = then.into_iter().map(|s| s.map(canonical)).collect();
        let mut kernel = Kernel { template: template.into(), first, then, key: "".into() };
        kernel.key = format!("{template}\n{}", kernel.printed("", &anonymous)).into();
        kernel
    }

    /// Name of its template.
    pub fn template(&self) -> &Arc<str> {
        &self.template
    }

    /// The prologue of the first stage.
    pub fn prologue(&self) -> Option<&Func> {
        self.first.prologue.as_ref()
    }

    /// The main loop of the first stage.
    pub fn main(&self) -> &Func {
        &self.first.main
    }

    /// The epilogue of the first stage.
    pub fn epilogue(&self) -> Option<&Func> {
        self.first.epilogue.as_ref()
    }

    /// The stages, in order; at least one.
    pub fn stages(&self) -> impl DoubleEndedIterator<Item = &Stage> {
        std::iter::once(&self.first).chain(&self.then)
    }

    /// How many stages there are.
    pub fn depth(&self) -> usize {
        1 + self.then.len()
    }

    /// The regions that are there, in order.
    pub fn regions(&self) -> impl Iterator<Item = &Func> {
        self.stages().flat_map(|s| s.regions().into_iter().flatten())
    }

    /// The same with their numbers: three to a stage, whether they are there or not.
    pub fn numbered(&self) -> impl DoubleEndedIterator<Item = (usize, &Func)> {
        let all: Vec<Option<&Func>> = self.stages().flat_map(Stage::regions).collect();
        all.into_iter().enumerate().filter_map(|(i, f)| Some((i, f?)))
    }

    /// The region before region `region` that is there.
    fn before(&self, region: usize) -> Option<&Func> {
        self.numbered().rfind(|(i, _)| *i < region).map(|(_, f)| f)
    }

    /// Region `region` for messages: `` `main` ``, or `` `main` of stage 2 ``.
    pub fn place(&self, region: usize) -> String {
        let name = REGIONS[region % 3];
        match self.depth() {
            1 => format!("`{name}`"),
            _ => format!("`{name}` of stage {}", region / 3 + 1),
        }
    }

    /// Canonical text without names: equal for equal bodies.
    pub fn key(&self) -> &Arc<str> {
        &self.key
    }

    /// The same body with canonical names: values are named after their ops, parameters `x`.
    pub fn anonymous(&self) -> Kernel {
        let same = |s: &Stage| s.clone().map(|f, _| anonymous(f));
        Kernel {
            template: self.template.clone(),
            first: same(&self.first),
            then: self.then.iter().map(same).collect(),
            key: self.key.clone(),
        }
    }

    /// The regions as text, each line after `indent`; no line break at the end.
    pub fn text(&self, indent: &str) -> String {
        self.printed(indent, &Func::clone).trim_end().to_string()
    }

    fn printed(&self, indent: &str, as_: &dyn Fn(&Func) -> Func) -> String {
        let region = |f: &Func| crate::text::print_region(&as_(f), indent);
        let stage = |s: &Stage| s.regions().into_iter().flatten().map(region).collect::<String>();
        let stages: Vec<String> = self.stages().map(stage).collect();
        stages.join(&format!("{indent}{THEN}\n"))
    }

    /// Number of operands that region `region` takes, besides what the region before yields. Three regions to a stage, 0 the first prologue.
    pub fn operands_of(&self, region: usize) -> usize {
        let carried = self.before(region).map_or(0, |f| f.results.len());
        let here = self.numbered().find(|(i, _)| *i == region);
        here.map_or(0, |(_, f)| f.params.len().saturating_sub(carried))
    }

    /// Number of operands.
    pub fn operands(&self) -> usize {
        (0..3 * self.depth()).map(|r| self.operands_of(r)).sum()
    }

    /// The operand that parameter `i` of region `region` is, if it is one.
    pub fn operand_of(&self, region: usize, i: usize) -> Option<usize> {
        let carried = self.before(region).map_or(0, |f| f.results.len());
        let first: usize = (0..region).map(|r| self.operands_of(r)).sum();
        i.checked_sub(carried).map(|own| first + own)
    }

    /// Follows value `v` of region `region` through regions that pass it on, back to where it comes from.
    pub fn source(&self, region: usize, v: Value) -> Source {
        let (mut region, mut v) = (region, v);
        loop {
            let Some((_, f)) = self.numbered().find(|(i, _)| *i == region) else {
                return Source::Made { region, value: v };
            };
            let op = f.graph.op(v.op);
            if op.kind != OpKind::Param {
                return Source::Made { region, value: v };
            }
            let i = op.attrs.int("index") as usize;
            if let Some(operand) = self.operand_of(region, i) {
                return Source::Operand(operand);
            }
            let before = self.numbered().rfind(|(r, _)| *r < region);
            match before.and_then(|(r, f)| Some((r, *f.results.get(i)?))) {
                Some(from) => (region, v) = from,
                None => return Source::Made { region, value: v },
            }
        }
    }

    /// Types of the operands, in order.
    pub fn operand_types(&self) -> Vec<Type> {
        let own = |(r, f): (usize, &Func)| {
            let n = self.operands_of(r);
            f.params[f.params.len() - n..].iter().map(|p| p.ty.clone()).collect::<Vec<_>>()
        };
        self.numbered().flat_map(own).collect()
    }

    /// The last region, whose yields are the results.
    pub fn last(&self) -> &Func {
        self.then.last().unwrap_or(&self.first).last()
    }

    /// Types of the results.
    pub fn result_types(&self) -> Vec<Type> {
        self.last().result_types()
    }

    /// Every op but parameters, with the region it is in, in order.
    pub fn ops(&self) -> impl Iterator<Item = (&Func, OpId, &Op)> {
        self.regions().flat_map(|f| {
            let ids = f.graph.ids().into_iter().filter(|id| f.graph.op(*id).kind != OpKind::Param);
            ids.map(move |id| (f, id, f.graph.op(id)))
        })
    }

    /// True if an op of this kind is inside.
    pub fn has(&self, kind: OpKind) -> bool {
        self.ops().any(|(_, _, op)| op.kind == kind)
    }

    /// `stream[rms_norm cast | matmul | add rope]`: what is inside, in one line. Stages are apart by `then`.
    pub fn summary(&self) -> String {
        format!("{}[{}]", self.template, self.outline(&|_| true))
    }

    /// The ops inside that `shown` is true of: `|` between regions, `then` between stages.
    pub fn outline(&self, shown: &dyn Fn(OpKind) -> bool) -> String {
        let region = |f: &Func| {
            let ops = f.graph.ids().into_iter().map(|id| f.graph.op(id).kind);
            let names: Vec<&str> = ops.filter(|k| *k != OpKind::Param && shown(*k)).map(OpKind::name).collect();
            names.join(" ")
        };
        let stage = |s: &Stage| s.regions().into_iter().flatten().map(region).collect::<Vec<_>>().join(" | ");
        self.stages().map(stage).collect::<Vec<_>>().join(&format!(" {THEN} "))
    }

    /// Checks that operands of these types flow through the regions; the types of the results.
    ///
    /// # Errors
    /// Which parameter does not get what it declares.
    pub fn check_flow(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        let mut rest = operands.iter();
        let mut carried: Vec<Type> = Vec::new();
        for (r, f) in self.numbered() {
            let name = || self.place(r);
            if f.params.len() < carried.len() {
                let (takes, yields) = (f.params.len(), carried.len());
                return Err(format!("{} takes {takes} values, but the region before yields {yields}", name()));
            }
            for (i, p) in f.params.iter().enumerate() {
                let (have, from) = match carried.get(i) {
                    Some(t) => (Some(t), "the region before yields"),
                    None => (rest.next(), "the operand is"),
                };
                match have {
                    Some(t) if *t == p.ty => {}
                    Some(t) => {
                        return Err(format!("`%{}` of {} is declared as {}, but {from} {t}", p.name, name(), p.ty));
                    }
                    None => return Err(format!("`%{}` of {} has no operand", p.name, name())),
                }
            }
            carried = f.result_types();
        }
        match rest.count() {
            0 => Ok(carried),
            n => Err(format!("{n} operands are left over; its regions take {}", self.operands())),
        }
    }
}

/// The same function with ops in depth-first order from the results, and without ops that no result needs.
fn canonical(f: &Func, name: &str) -> Func {
    let mut out = Func::new(name, f.params.clone());
    let mut map: BTreeMap<Value, Value> = BTreeMap::new();
    for i in 0..f.params.len() {
        if let (Some(old), Some(new)) = (f.param(i), out.param(i)) {
            map.insert(old, new);
            let loc = f.graph.op(old.op).loc.clone();
            out.graph.op_mut(new.op).loc = loc;
        }
    }
    // An explicit stack: (op, operands visited).
    let whole = f.graph.order().is_ok() && f.results.iter().all(|v| f.graph.get(v.op).is_some());
    if !whole {
        // A broken graph is kept as it is, for the verifier to name what is wrong.
        let mut same = f.clone();
        same.name = name.into();
        return same;
    }
    for root in &f.results {
        let mut stack = vec![(root.op, 0usize)];
        while let Some((id, next)) = stack.pop() {
            let op = f.graph.op(id);
            if map.contains_key(&Value { op: id, result: 0 }) {
                continue;
            }
            match op.operands.get(next) {
                Some(v) => {
                    stack.push((id, next + 1));
                    if !map.contains_key(&Value { op: v.op, result: 0 }) {
                        stack.push((v.op, 0));
                    }
                }
                None => {
                    let operands = op.operands.iter().filter_map(|v| map.get(v).copied()).collect();
                    let new = out.graph.add(Op { operands, ..op.clone() });
                    for r in 0..op.results.len() as u16 {
                        map.insert(Value { op: id, result: r }, Value { op: new, result: r });
                    }
                }
            }
        }
    }
    out.results = f.results.iter().filter_map(|v| map.get(v).copied()).collect();
    out
}

/// The function with names that follow from its structure.
fn anonymous(f: &Func) -> Func {
    let mut out = f.clone();
    out.params.iter_mut().for_each(|p| p.name = "x".into());
    for id in out.graph.ids() {
        let op = out.graph.op_mut(id);
        let name: Arc<str> = if op.kind == OpKind::Param { "x".into() } else { op.kind.name().into() };
        op.names.iter_mut().for_each(|n| *n = name.clone());
        op.loc = None;
    }
    out
}

impl PartialEq for Kernel {
    fn eq(&self, other: &Kernel) -> bool {
        self.key == other.key
    }
}

impl Eq for Kernel {}

impl PartialOrd for Kernel {
    fn partial_cmp(&self, other: &Kernel) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Kernel {
    fn cmp(&self, other: &Kernel) -> Ordering {
        self.key.cmp(&other.key)
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.summary())
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.summary())
    }
}

#[cfg(test)]
mod tests;
