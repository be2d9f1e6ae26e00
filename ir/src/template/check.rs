//! What a [`Template`] accepts: its regions' ops, their shapes, and sizes.

use std::collections::BTreeSet;

use super::{ANY, Earlier, Template, heavy};
use crate::dim::{Bindings, Dim};
use crate::dtype::DType;
use crate::graph::{Graph, Op, Value};
use crate::kernel::{Kernel, Source, Stage};
use crate::module::Func;
use crate::op::{Class, OpKind};
use crate::ty::{TensorType, Type};

impl Template {
    /// Checks that code generation can make this kernel, whatever the values of symbols.
    ///
    /// # Errors
    /// What it does not take, and what it would.
    pub fn check(&self, kernel: &Kernel) -> Result<(), String> {
        let operands = kernel.operands();
        if operands > self.operands {
            return Err(self.no(format!("{operands} operands"), format!("at most {}", self.operands)));
        }
        if kernel.depth() != 1 + self.earlier.len() {
            let stages = |n: usize| if n == 1 { "one stage".to_string() } else { format!("{n} stages") };
            return Err(self.no(stages(kernel.depth()), stages(1 + self.earlier.len())));
        }
        for (i, stage) in kernel.stages().enumerate() {
            self.main_op(&stage.main)?;
            if let Some(f) = &stage.prologue {
                self.check_prologue(f, &stage.main)?;
            }
            if let Some(f) = &stage.epilogue {
                self.check_epilogue(f, &stage.main, self.earlier.get(i).map_or(self.epilogue, |e| e.epilogue))?;
            }
        }
        for (i, earlier) in self.earlier.iter().enumerate() {
            self.check_hand_over(kernel, i, earlier)?;
        }
        Ok(())
    }

    /// Checks what stages must have in common, which a kernel alone does not say: `same` tells of two of its operands whether they are one value.
    ///
    /// # Errors
    /// What differs.
    pub fn check_shared(&self, kernel: &Kernel, same: &dyn Fn(usize, usize) -> bool) -> Result<(), String> {
        for (i, earlier) in self.earlier.iter().enumerate() {
            for operand in earlier.shares {
                let [a, b] = [i, i + 1].map(|s| main_operand(kernel, s, *operand));
                if let (Some(Source::Operand(a)), Some(Source::Operand(b))) = (a, b)
                    && (a == b || same(a, b))
                {
                    continue;
                }
                let kind = self.main.first().map(|k| k.info());
                let name = kind.and_then(|k| k.operands.get(*operand)).map_or("an operand", |o| o.name);
                return Err(self.no(format!("stages with different `{name}`"), "one value for all of them".into()));
            }
        }
        Ok(())
    }

    /// The one result of stage `stage` is operand `feeds` of the next main op and nothing else.
    fn check_hand_over(&self, kernel: &Kernel, stage: usize, earlier: &Earlier) -> Result<(), String> {
        let made_here = |s: Source| matches!(s, Source::Made { region, .. } if region / 3 == stage);
        let results = kernel.stages().nth(stage).map_or(0, |s| s.last().results.len());
        if results != 1 {
            return Err(self.no(format!("{results} results of stage {}", stage + 1), "one".into()));
        }
        if !main_operand(kernel, stage + 1, earlier.feeds).is_some_and(made_here) {
            return Err(self.no(
                format!("a stage whose operand {} is not the result of the one before", earlier.feeds),
                "stages that read each other's results".into(),
            ));
        }
        for (number, f) in kernel.numbered().filter(|(n, _)| n / 3 == stage + 1) {
            for v in (0..f.params.len()).filter_map(|i| f.param(i)) {
                if !made_here(kernel.source(number, v)) {
                    continue;
                }
                let in_main = number % 3 == 1;
                let as_rows = f.graph.users(v).iter().all(|(_, at)| in_main && usize::from(*at) == earlier.feeds);
                if !as_rows || in_main && f.results.contains(&v) {
                    return Err(self.no(
                        format!("other uses of the result of stage {} in {}", stage + 1, kernel.place(number)),
                        format!("operand {} of the next main op alone", earlier.feeds),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Checks what a kernel that [`Template::check`] accepts may lack while it is being put together.
    ///
    /// # Errors
    /// What is missing.
    pub fn complete(&self, kernel: &Kernel) -> Result<(), String> {
        for stage in kernel.stages() {
            let main = &stage.main;
            let Some(weights) = heavy(main).and_then(|h| main.graph.op(h.op).operands.get(1).copied()) else {
                continue;
            };
            let decoded = stage.prologue.as_ref().is_some_and(|f| {
                let mut made = f.results.iter().enumerate().filter(|(i, _)| main.param(*i) == Some(weights));
                made.any(|(_, v)| f.graph.op(v.op).kind == OpKind::Dequant)
            });
            if self.decodes && !decoded {
                return Err(
                    self.no("weights that are not packed".into(), "weights behind a `dequant` in the prologue".into())
                );
            }
        }
        Ok(())
    }

    /// Checks a kernel that [`Template::check`] accepts: that it is complete and its sizes.
    ///
    /// # Errors
    /// What is missing, or the limit that is not kept.
    pub fn fits(&self, kernel: &Kernel, sizes: &Bindings) -> Result<(), String> {
        self.complete(kernel)?;
        kernel.stages().try_for_each(|stage| self.stage_fits(stage, sizes))
    }

    fn stage_fits(&self, stage: &Stage, sizes: &Bindings) -> Result<(), String> {
        let Some(main) = heavy(&stage.main) else { return Ok(()) };
        let op = stage.main.graph.op(main.op);
        let Some(t) = op.results.first().and_then(|t| t.as_tensor()) else { return Ok(()) };
        let shape = t
            .shape(sizes)
            .map_err(|s| self.no(format!("symbol `{s}` without a value"), "a bucket that fixes it".into()))?;
        let (width, rows) = match shape.split_last() {
            Some((n, rest)) => (*n, rest.iter().product::<i64>()),
            None => (1, 1),
        };
        let (least, most) = self.rows;
        if rows < least || rows > most {
            let most = if most == ANY { "more".to_string() } else { most.to_string() };
            return Err(self.no(format!("{rows} rows"), format!("{least} to {most}")));
        }
        if width > self.width {
            return Err(self.no(format!("{width} columns"), format!("at most {}", self.width)));
        }
        let has = |f: &Func, kind: OpKind| f.graph.ids().iter().any(|id| f.graph.op(*id).kind == kind);
        let combines = stage.regions().into_iter().flatten().any(|f| has(f, OpKind::MoeCombine));
        let held = combines || stage.prologue.as_ref().is_some_and(|f| has(f, OpKind::RmsNorm));
        match held && rows > self.held_rows {
            true => Err(self.no(format!("{rows} rows that a block must hold"), format!("at most {}", self.held_rows))),
            false => Ok(()),
        }
    }

    /// True if it could make each main op of `kernel` at some sizes, whatever is around it.
    pub fn takes(&self, kernel: &Kernel) -> bool {
        kernel.stages().all(|s| self.main_op(&s.main).is_ok()) && self.complete(kernel).is_ok()
    }

    fn no(&self, what: String, instead: String) -> String {
        format!("template `{}` does not take {what}; it takes {instead}", self.name)
    }

    fn main_op(&self, main: &Func) -> Result<(), String> {
        let ops: Vec<_> = main.graph.ids().into_iter().filter(|id| main.graph.op(*id).kind != OpKind::Param).collect();
        if self.main.is_empty() {
            return match ops.iter().map(|id| main.graph.op(*id)).find(|op| !self.free.contains(&op.kind)) {
                Some(op) => Err(self.no(format!("`{}` in main", op.kind.name()), names(self.free))),
                None if ops.len() > self.ops => {
                    Err(self.no(format!("{} ops", ops.len()), format!("at most {}", self.ops)))
                }
                None => one_space(main).map_err(|e| self.no(e, "results with equal dims".into())),
            };
        }
        let [id] = ops[..] else {
            return Err(self.no(format!("{} ops in main", ops.len()), "one".into()));
        };
        let op = main.graph.op(id);
        if !self.main.contains(&op.kind) {
            return Err(self.no(format!("`{}` in main", op.kind.name()), names(self.main)));
        }
        if self.dtypes.is_empty() {
            return Ok(());
        }
        let dtype = |i: usize| op.operands.get(i).and_then(|v| main.graph.ty(*v).as_tensor()).map(|t| t.dtype);
        match (dtype(0), dtype(1)) {
            (Some(x), Some(w)) if x == w && self.dtypes.contains(&x) => Ok(()),
            (x, w) => {
                let text = |d: Option<DType>| d.map_or("nothing".to_string(), |d| d.to_string());
                let list: Vec<String> = self.dtypes.iter().map(DType::to_string).collect();
                Err(self
                    .no(format!("operands of {} and {}", text(x), text(w)), format!("two of {}", list.join(" or "))))
            }
        }
    }

    /// Each yield of the prologue is a parameter or a chain of the slot's ops on one; of a scalar slot anything made of its ops.
    fn check_prologue(&self, f: &Func, main: &Func) -> Result<(), String> {
        let heavy = heavy(main);
        for (i, root) in f.results.iter().enumerate() {
            let Some(param) = main.param(i) else { continue };
            let used: Vec<usize> = heavy.map_or(vec![], |h| {
                main.graph.op(h.op).operands.iter().enumerate().filter(|(_, v)| **v == param).map(|(n, _)| n).collect()
            });
            let slot = self.prologue.iter().find(|s| used == [s.operand]);
            let mut v = *root;
            let mut allowed = slot.map_or(&[][..], |s| s.ops);
            // From the main op outward: the ops of a slot in reverse.
            let scalar = slot.is_some_and(|s| s.scalar);
            if scalar {
                self.check_scalar(f, v, allowed)?;
            }
            while !scalar && f.graph.op(v.op).kind != OpKind::Param {
                let op = f.graph.op(v.op);
                let Some(at) = allowed.iter().rposition(|k| *k == op.kind) else {
                    let takes = slot.map_or("nothing there".to_string(), |s| names(s.ops));
                    return Err(self.no(format!("`{}` in the prologue of operand {used:?}", op.kind.name()), takes));
                };
                allowed = &allowed[..at];
                v = op.operands[0];
            }
            let exported = main.results.contains(&param);
            if exported && !slot.is_some_and(|s| s.exports) {
                return Err(self.no("a prologue value as a result".into(), "none".into()));
            }
        }
        Ok(())
    }

    /// `root` is made of no other ops than these, and not of too many.
    fn check_scalar(&self, f: &Func, root: Value, takes: &[OpKind]) -> Result<(), String> {
        let (mut seen, mut work) = (BTreeSet::new(), vec![root.op]);
        while let Some(id) = work.pop() {
            let op = f.graph.op(id);
            if op.kind == OpKind::Param || !seen.insert(id) {
                continue;
            }
            if !takes.contains(&op.kind) {
                return Err(self.no(format!("`{}` in the prologue", op.kind.name()), names(takes)));
            }
            work.extend(op.operands.iter().map(|v| v.op));
        }
        match seen.len() > self.ops {
            true => Err(self.no(format!("{} ops in the prologue", seen.len()), format!("at most {}", self.ops))),
            false => Ok(()),
        }
    }

    fn check_epilogue(&self, f: &Func, main: &Func, takes: &[OpKind]) -> Result<(), String> {
        let ops: Vec<_> = f.graph.ids().into_iter().filter(|id| f.graph.op(*id).kind != OpKind::Param).collect();
        if ops.len() > self.ops {
            return Err(self.no(format!("{} ops in the epilogue", ops.len()), format!("at most {}", self.ops)));
        }
        let Some(acc) = heavy(main).and_then(|h| main.results.iter().position(|r| *r == h)).and_then(|i| f.param(i))
        else {
            return Err(self.no(
                "an epilogue that cannot see the main result".into(),
                "one whose first parameters are main's yields".into(),
            ));
        };
        for id in &ops {
            let op = f.graph.op(*id);
            if !takes.contains(&op.kind) {
                return Err(self.no(format!("`{}` in the epilogue", op.kind.name()), names(takes)));
            }
            let loaded = |v: &&Value| f.graph.op(v.op).kind == OpKind::Param && **v != acc;
            let large = |v: &Value| f.graph.ty(*v).as_tensor().is_some_and(|t| t.rank() > 1);
            if self.vectors && op.kind.class() == Class::Elementwise && op.operands.iter().filter(loaded).any(large) {
                return Err(self.no(
                    format!("`{}` of a whole tensor in the epilogue", op.kind.name()),
                    "vectors of columns".into(),
                ));
            }
            self.check_halves(op)?;
        }
        for (i, root) in f.results.iter().enumerate() {
            let mut coupled = Vec::new();
            path(f, *root, acc, &mut coupled)
                .map_err(|e| self.no(format!("result {i}: {e}"), "scalar code on the main result".into()))?;
        }
        Ok(())
    }

    /// A `swiglu` of halves needs columns that are far apart, in tiles that begin at the same place in both.
    fn check_halves(&self, op: &Op) -> Result<(), String> {
        let width = op.results.first().and_then(Type::as_tensor).and_then(|t| t.dims.last()).and_then(Dim::as_const);
        match op.kind == OpKind::Swiglu && op.attrs.word("layout") == "halves" {
            true if width.is_none_or(|w| w % self.halves != 0) => {
                let width = width.map_or("an unknown number".to_string(), |w| w.to_string());
                Err(self.no(format!("`swiglu` of halves of {width} columns"), format!("multiples of {}", self.halves)))
            }
            _ => Ok(()),
        }
    }
}

/// Where operand `i` of the main op of stage `stage` comes from.
fn main_operand(kernel: &Kernel, stage: usize, i: usize) -> Option<Source> {
    let main = &kernel.stages().nth(stage)?.main;
    let v = *main.graph.op(heavy(main)?.op).operands.get(i)?;
    Some(kernel.source(3 * stage + 1, v))
}

/// Follows a result back to `acc`. Values that come from `acc` have its rows; what they are combined with may only be loaded. At most one op on the way may read other
/// columns than it makes (swiglu, rope), so that one tile holds what it needs.
fn path(f: &Func, v: Value, acc: Value, coupled: &mut Vec<OpKind>) -> Result<bool, String> {
    if v == acc {
        return Ok(true);
    }
    let op = f.graph.op(v.op);
    if op.kind == OpKind::Param || op.kind == OpKind::Const {
        return Ok(false);
    }
    let mut from_acc = Vec::new();
    for o in &op.operands {
        from_acc.push(path(f, *o, acc, coupled)?);
    }
    let first = from_acc.first().copied().unwrap_or(false);
    let any = from_acc.iter().any(|x| *x);
    match op.kind {
        OpKind::Swiglu | OpKind::Rope if first => {
            if coupled.contains(&OpKind::Swiglu) || coupled.contains(&op.kind) && op.kind == OpKind::Swiglu {
                return Err("two ops that pair columns".into());
            }
            coupled.push(op.kind);
            Ok(true)
        }
        OpKind::KvWrite => match from_acc[..] {
            [false, true, true, ..] => Ok(true),
            _ => Err("`kv_write` of other keys or values than the main result".into()),
        },
        OpKind::GatherRows if any => Err("`gather_rows` of the main result".into()),
        OpKind::MoeCombine | OpKind::Split | OpKind::TileMax | OpKind::TopK if !first => {
            Err(format!("`{}` of something else than the main result", op.kind.name()))
        }
        OpKind::Swiglu | OpKind::Rope => Err(format!("`{}` of something else than the main result", op.kind.name())),
        kind if kind.class() == Class::Elementwise && any && from_acc.len() > 1 && !first => {
            // The main result as a later operand: only with equal dims, or it would be repeated over rows.
            let t = |v: Value| f.graph.ty(v).as_tensor().map(|t| t.dims.clone());
            match t(op.operands[0]) == t(v)
                && op.operands[1..].iter().zip(&from_acc[1..]).all(|(o, a)| !a || t(*o) == t(v))
            {
                true => Ok(true),
                false => Err(format!("`{}` that repeats the main result", kind.name())),
            }
        }
        _ => Ok(any),
    }
}

/// True if all results have the same dims, so that one loop makes them.
fn one_space(main: &Func) -> Result<(), String> {
    let dims = |v: &Value| main.graph.ty(*v).as_tensor().map(|t: &TensorType| t.dims.clone());
    let first: Option<Vec<Dim>> = main.results.first().and_then(dims);
    match main.results.iter().all(|v| dims(v) == first && first.is_some()) {
        true => {
            // Rows that were computed cannot be gathered: an element depends on few others only.
            gathers_loads(&main.graph)
        }
        false => Err("results of different dims".into()),
    }
}

fn gathers_loads(g: &Graph) -> Result<(), String> {
    for id in g.ids() {
        let op = g.op(id);
        if op.kind == OpKind::GatherRows && op.operands.iter().any(|v| g.op(v.op).kind != OpKind::Param) {
            return Err("`gather_rows` of computed rows".into());
        }
    }
    Ok(())
}

fn names(kinds: &[OpKind]) -> String {
    match kinds.len() {
        0 => "nothing".into(),
        n if n > 30 => "any op".into(),
        _ => kinds.iter().map(|k| k.name()).collect::<Vec<_>>().join(", "),
    }
}
