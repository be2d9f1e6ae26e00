//! Structural difference of two modules: which ops were added, removed, or changed, whatever they are called and in whatever order they stand.
//!
//! Functions and declarations are paired by name. Ops of a pair of functions are matched by kind, attributes and matched operands, from parameters forward and
//! from results backward; what is left is paired where it clearly is the same op with other operands or attributes (see [`matching`]). Names of values and the
//! order of statements do not count. Bodies of kernels that differ are compared region by region. The same modules give the same bytes.
//!
//! ```
//! use gossamer_ir::{diff::diff, text::parse};
//!
//! let a = parse("a", "gir 1\nfunc @f(%x: f32[2]) -> f32[2] {\n  %a = neg %x : f32[2]\n  %b = silu %a : f32[2]\n  return %b\n}").unwrap();
//! let b = parse("b", "gir 1\nfunc @f(%x: f32[2]) -> f32[2] {\n  %y = silu %x : f32[2]\n  return %y\n}").unwrap();
//! let d = diff(&a, &b);
//! assert_eq!(
//!     d.text(),
//!     "func @f: 1 removed, 1 changed, 0 the same\n  - %a = neg %x : f32[2]\n  < %b = silu %a : f32[2]\n  > %y = silu %x : f32[2]  ; operands\n"
//! );
//! ```

mod matching;
mod render;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::attr::Attrs;
use crate::graph::{OpId, Value};
use crate::kernel::Kernel;
use crate::module::{Func, Module};
use crate::text::{Names, header_line, order, print_region, return_line, same_attr, statement};
use matching::Matching;

/// Everything in which two modules differ. Empty if they are the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModuleDiff {
    /// Declarations that differ: symbols, states, weights, buckets, each sorted by name.
    pub decls: Vec<DeclChange>,
    /// Functions that differ: those of the first module in its order, then those that only the second has.
    pub funcs: Vec<FuncDiff>,
    /// Functions and ops that are the same on both sides.
    pub same: (usize, usize),
}

/// A declaration that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclChange {
    /// `sym`, `state`, `weight` or `bucket`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// Its line in the first module.
    pub before: Option<String>,
    /// Its line in the second.
    pub after: Option<String>,
}

/// A function, or a region of a kernel, that differs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FuncDiff {
    /// Its name, without sigil.
    pub name: String,
    /// Statements in the first module; `None` if it is not there.
    pub before: Option<usize>,
    /// Statements in the second.
    pub after: Option<usize>,
    /// Statements that are the same.
    pub same: usize,
    /// First lines, if they differ in more than names.
    pub signature: Option<(String, String)>,
    /// Statements that differ, in the order of the first module; added ones behind the one they follow.
    pub changes: Vec<OpChange>,
    /// Last lines, if other values are returned.
    pub results: Option<(String, String)>,
}

/// A statement that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpChange {
    /// Its text in the first module; `None`: added.
    pub before: Option<String>,
    /// Its text in the second; `None`: removed.
    pub after: Option<String>,
    /// In what the two differ; empty for added and removed ones.
    pub what: Vec<What>,
    /// Regions of a kernel that differ.
    pub regions: Vec<FuncDiff>,
}

/// In what two statements that belong together differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// Operands come from elsewhere.
    Operands,
    /// Attributes.
    Attributes,
    /// Types of results.
    Types,
    /// The body of a kernel.
    Body,
}

impl What {
    /// The word in dumps: `operands`, `attributes`, `retyped`, `body`.
    pub fn name(self) -> &'static str {
        match self {
            What::Operands => "operands",
            What::Attributes => "attributes",
            What::Types => "retyped",
            What::Body => "body",
        }
    }
}

impl ModuleDiff {
    /// True if nothing differs.
    pub fn is_empty(&self) -> bool {
        self.decls.is_empty() && self.funcs.is_empty()
    }
}

/// Compares two modules. Both may be broken: nothing is asked of them but that their graphs hold the ops they refer to.
pub fn diff(a: &Module, b: &Module) -> ModuleDiff {
    let mut out = ModuleDiff { decls: declarations(a, b), ..ModuleDiff::default() };
    for f in &a.funcs {
        let d = match b.func(&f.name) {
            Some(g) => func_diff(f, g, Form::Func),
            None => one_sided(f, Side::Before),
        };
        match is_same(&d) {
            true => out.same = (out.same.0 + 1, out.same.1 + d.same),
            false => out.funcs.push(d),
        }
    }
    out.funcs.extend(b.funcs.iter().filter(|g| a.func(&g.name).is_none()).map(|g| one_sided(g, Side::After)));
    out
}

/// Compares two functions; `None` if they are the same.
pub fn diff_func(a: &Func, b: &Func) -> Option<FuncDiff> {
    Some(func_diff(a, b, Form::Func)).filter(|d| !is_same(d))
}

fn is_same(d: &FuncDiff) -> bool {
    d.before.is_some() && d.after.is_some() && d.signature.is_none() && d.changes.is_empty() && d.results.is_none()
}

fn declarations(a: &Module, b: &Module) -> Vec<DeclChange> {
    let lines = |m: &Module| -> [(&'static str, BTreeMap<String, String>); 4] {
        [
            ("sym", m.syms.iter().map(|s| (s.name.to_string(), s.to_string())).collect()),
            ("state", m.states.iter().map(|s| (s.name().to_string(), s.to_string())).collect()),
            ("weight", m.weights.iter().map(|w| (w.name.to_string(), w.to_string())).collect()),
            ("bucket", m.buckets.iter().map(|b| (b.name.to_string(), b.to_string())).collect()),
        ]
    };
    let mut out = Vec::new();
    for ((kind, before), (_, after)) in lines(a).into_iter().zip(lines(b)) {
        let names: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        for name in names.into_iter().filter(|n| before.get(*n) != after.get(*n)) {
            out.push(DeclChange {
                kind,
                name: name.clone(),
                before: before.get(name).cloned(),
                after: after.get(name).cloned(),
            });
        }
    }
    out
}

/// Which module something is in.
#[derive(Clone, Copy)]
enum Side {
    Before,
    After,
}

fn one_sided(f: &Func, side: Side) -> FuncDiff {
    let view = View::new(f);
    let changes: Vec<OpChange> = view
        .statements
        .iter()
        .map(|id| {
            let text = Some(view.line(*id));
            let (before, after) = match side {
                Side::Before => (text, None),
                Side::After => (None, text),
            };
            OpChange { before, after, what: vec![], regions: vec![] }
        })
        .collect();
    let n = changes.len();
    let (before, after) = match side {
        Side::Before => (Some(n), None),
        Side::After => (None, Some(n)),
    };
    FuncDiff { name: f.name.to_string(), before, after, changes, ..FuncDiff::default() }
}

/// How a function is written.
#[derive(Clone, Copy)]
enum Form {
    Func,
    Region,
}

fn func_diff(a: &Func, b: &Func, form: Form) -> FuncDiff {
    let m = Matching::of(a, b);
    let (before, after) = (View::new(a), View::new(b));
    // Places in the order of `a`: an added op stands behind the last op before it that `a` has too.
    let place_a: BTreeMap<OpId, usize> = before.statements.iter().enumerate().map(|(i, id)| (*id, i)).collect();
    let mut changes: Vec<((usize, u8, usize), OpChange)> = Vec::new();
    let mut same = 0;
    for (i, id) in before.statements.iter().enumerate() {
        let change = match m.partner_of_a(*id) {
            None => OpChange { before: Some(before.line(*id)), after: None, what: vec![], regions: vec![] },
            Some(partner) => {
                let (what, regions) = differences(&m, *id, partner);
                if what.is_empty() {
                    same += 1;
                    continue;
                }
                OpChange { before: Some(before.line(*id)), after: Some(after.line(partner)), what, regions }
            }
        };
        changes.push(((i + 1, 0, 0), change));
    }
    let mut last = 0;
    for (j, id) in after.statements.iter().enumerate() {
        match m.partner_of_b(*id) {
            Some(partner) => last = place_a.get(&partner).map_or(last, |i| i + 1),
            None => {
                let change = OpChange { before: None, after: Some(after.line(*id)), what: vec![], regions: vec![] };
                changes.push(((last, 1, j), change));
            }
        }
    }
    changes.sort_by_key(|(place, _)| *place);
    let returned = |v: &Value| m.value(*v);
    let equal_results =
        a.results.len() == b.results.len() && a.results.iter().zip(&b.results).all(|(v, w)| returned(v) == Some(*w));
    let types = |f: &Func| -> Vec<Option<crate::ty::Type>> {
        f.results.iter().map(|v| f.graph.get(v.op)?.results.get(v.result as usize).cloned()).collect()
    };
    let params = |f: &Func| f.params.iter().map(|p| (p.ty.clone(), p.weight)).collect::<Vec<_>>();
    let signature = params(a) != params(b) || types(a) != types(b) || !m.params_in_order();
    FuncDiff {
        name: a.name.to_string(),
        before: Some(before.statements.len()),
        after: Some(after.statements.len()),
        same,
        signature: signature.then(|| (before.header(form), after.header(form))),
        changes: changes.into_iter().map(|(_, c)| c).collect(),
        results: (!equal_results).then(|| (before.results(form), after.results(form))),
    }
}

/// In what two matched ops differ.
fn differences(m: &Matching, a: OpId, b: OpId) -> (Vec<What>, Vec<FuncDiff>) {
    let (p, q) = (m.a.graph.op(a), m.b.graph.op(b));
    let mut what = Vec::new();
    let operands = p.operands.len() == q.operands.len()
        && p.operands.iter().zip(&q.operands).all(|(v, w)| m.value(*v) == Some(*w));
    if !operands {
        what.push(What::Operands);
    }
    let regions = match (p.attrs.kernel(), q.attrs.kernel()) {
        (Some(k), Some(l)) => {
            if k.template() != l.template() {
                what.push(What::Attributes);
            }
            region_diffs(k, l)
        }
        _ => vec![],
    };
    if p.attrs.kernel().is_none() && !same_attrs(&p.attrs, &q.attrs) {
        what.push(What::Attributes);
    }
    if p.results != q.results {
        what.push(What::Types);
    }
    if !regions.is_empty() {
        what.push(What::Body);
    }
    (what, regions)
}

/// Regions of two kernels that differ, paired by stage and name.
fn region_diffs(a: &Kernel, b: &Kernel) -> Vec<FuncDiff> {
    if a.key() == b.key() {
        return vec![];
    }
    let of = |k: &'_ Kernel, number: usize| k.numbered().find(|(n, _)| *n == number).map(|(_, f)| f.clone());
    let diffs = (0..3 * a.depth().max(b.depth())).filter_map(|number| {
        let diff = match (of(a, number), of(b, number)) {
            (Some(f), Some(g)) => func_diff(&f, &g, Form::Region),
            (Some(f), None) => one_sided(&f, Side::Before),
            (None, Some(g)) => one_sided(&g, Side::After),
            (None, None) => return None,
        };
        // The name alone tells the regions of a kernel of one stage apart.
        let name = if number < 3 { diff.name } else { format!("{} of stage {}", diff.name, number / 3 + 1) };
        Some(FuncDiff { name, ..diff })
    });
    diffs.filter(|d| !is_same(d)).collect()
}

fn same_attrs(a: &Attrs, b: &Attrs) -> bool {
    a.iter().count() == b.iter().count() && a.iter().all(|(k, v)| b.get(k).is_some_and(|w| same_attr(v, w)))
}

/// A function with what is needed to print its statements.
struct View<'a> {
    func: &'a Func,
    names: Names,
    statements: Vec<OpId>,
}

impl View<'_> {
    fn new(func: &Func) -> View<'_> {
        let order = order(func);
        let names = Names::new(func, &order);
        let statements = order.into_iter().filter(|id| !matching::is_leaf(func, *id)).collect();
        View { func, names, statements }
    }

    /// The statement; a kernel takes several lines.
    fn line(&self, id: OpId) -> String {
        statement(self.func, &self.names, id, "")
    }

    fn header(&self, form: Form) -> String {
        match form {
            Form::Func => header_line(self.func),
            Form::Region => print_region(self.func, "").lines().next().unwrap_or_default().to_string(),
        }
    }

    fn results(&self, form: Form) -> String {
        let line = return_line(self.func, &self.names);
        match form {
            Form::Func => line,
            Form::Region => line.replacen("return", "yield", 1),
        }
    }
}
