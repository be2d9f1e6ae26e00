//! The body of a `kernel`: what one launch (or a few) computes, as ops in up to three regions.
//!
//! A body says *what*, its [template](crate::template) says *how*. Regions hold ordinary ops, so a fused kernel means what its ops mean; they are isolated: values come
//! in as parameters only. Operands are consumed from left to right: the prologue takes the first, `main` the prologue's yields and then the next operands, the
//! epilogue main's yields and then the rest. The results are the yields of the last region.
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

/// Names of the regions, in order.
pub const REGIONS: [&str; 3] = ["prologue", "main", "epilogue"];

/// A fused kernel. Two are equal if they compute the same in the same order of parameters; names do not count.
#[derive(Clone)]
pub struct Kernel {
    template: Arc<str>,
    prologue: Option<Func>,
    main: Func,
    epilogue: Option<Func>,
    key: Arc<str>,
}

impl Kernel {
    /// A body. Ops that no yield needs are dropped and the rest are put into one order, so that equal kernels are equal text.
    pub fn new(template: &str, prologue: Option<Func>, main: Func, epilogue: Option<Func>) -> Kernel {
        let canonical = |f: Func, name: &str| canonical(&f, name);
        let prologue = prologue.map(|f| canonical(f, REGIONS[0]));
        let main = canonical(main, REGIONS[1]);
        let epilogue = epilogue.map(|f| canonical(f, REGIONS[2]));
        let mut key = format!("{template}\n");
        for f in [prologue.as_ref(), Some(&main), epilogue.as_ref()].into_iter().flatten() {
            key.push_str(&crate::text::print_region(&anonymous(f), ""));
        }
        Kernel { template: template.into(), prologue, main, epilogue, key: key.into() }
    }

    /// Name of its template.
    pub fn template(&self) -> &Arc<str> {
        &self.template
    }

    /// What is done to operands as they are read.
    pub fn prologue(&self) -> Option<&Func> {
        self.prologue.as_ref()
    }

    /// The main loop.
    pub fn main(&self) -> &Func {
        &self.main
    }

    /// What is done to what `main` yields before it is stored.
    pub fn epilogue(&self) -> Option<&Func> {
        self.epilogue.as_ref()
    }

    /// The regions that are there, in order.
    pub fn regions(&self) -> impl Iterator<Item = &Func> {
        [self.prologue.as_ref(), Some(&self.main), self.epilogue.as_ref()].into_iter().flatten()
    }

    /// Canonical text without names: equal for equal bodies.
    pub fn key(&self) -> &Arc<str> {
        &self.key
    }

    /// The same body with canonical names: values are named after their ops, parameters `x`.
    pub fn anonymous(&self) -> Kernel {
        let same = |f: &Func| anonymous(f);
        Kernel {
            template: self.template.clone(),
            prologue: self.prologue.as_ref().map(same),
            main: anonymous(&self.main),
            epilogue: self.epilogue.as_ref().map(same),
            key: self.key.clone(),
        }
    }

    /// The regions as text, each line after `indent`; no line break at the end.
    pub fn text(&self, indent: &str) -> String {
        let regions: Vec<String> = self.regions().map(|f| crate::text::print_region(f, indent)).collect();
        regions.concat().trim_end().to_string()
    }

    /// Number of operands that `region` (0: prologue) takes, besides what the region before yields.
    pub fn operands_of(&self, region: usize) -> usize {
        let yields = |f: Option<&Func>| f.map_or(0, |f| f.results.len());
        match region {
            0 => self.prologue.as_ref().map_or(0, |f| f.params.len()),
            1 => self.main.params.len().saturating_sub(yields(self.prologue.as_ref())),
            _ => self.epilogue.as_ref().map_or(0, |f| f.params.len().saturating_sub(self.main.results.len())),
        }
    }

    /// Number of operands.
    pub fn operands(&self) -> usize {
        (0..3).map(|r| self.operands_of(r)).sum()
    }

    /// Types of the operands, in order.
    pub fn operand_types(&self) -> Vec<Type> {
        let tail = |f: &Func, n: usize| f.params[f.params.len() - n..].iter().map(|p| p.ty.clone()).collect::<Vec<_>>();
        let mut out = Vec::new();
        for (r, f) in [self.prologue.as_ref(), Some(&self.main), self.epilogue.as_ref()].into_iter().enumerate() {
            if let Some(f) = f {
                out.extend(tail(f, self.operands_of(r)));
            }
        }
        out
    }

    /// Types of the results.
    pub fn result_types(&self) -> Vec<Type> {
        self.epilogue.as_ref().unwrap_or(&self.main).result_types()
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

    /// `stream[rms_norm cast | matmul | add rope]`: what is inside, in one line.
    pub fn summary(&self) -> String {
        let parts: Vec<String> = self
            .regions()
            .map(|f| {
                let ops = f.graph.ids().into_iter().map(|id| f.graph.op(id));
                let names: Vec<&str> = ops.filter(|o| o.kind != OpKind::Param).map(|o| o.kind.name()).collect();
                names.join(" ")
            })
            .collect();
        format!("{}[{}]", self.template, parts.join(" | "))
    }

    /// Checks that operands of these types flow through the regions; the types of the results.
    ///
    /// # Errors
    /// Which parameter does not get what it declares.
    pub fn check_flow(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        let mut rest = operands.iter();
        let mut carried: Vec<Type> = Vec::new();
        for f in self.regions() {
            if f.params.len() < carried.len() {
                return Err(format!(
                    "`{}` takes {} values, but the region before yields {}",
                    f.name,
                    f.params.len(),
                    carried.len()
                ));
            }
            for (i, p) in f.params.iter().enumerate() {
                let (have, from) = match carried.get(i) {
                    Some(t) => (Some(t), "the region before yields"),
                    None => (rest.next(), "the operand is"),
                };
                match have {
                    Some(t) if *t == p.ty => {}
                    Some(t) => {
                        return Err(format!("`%{}` of `{}` is declared as {}, but {from} {t}", p.name, f.name, p.ty));
                    }
                    None => return Err(format!("`%{}` of `{}` has no operand", p.name, f.name)),
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
