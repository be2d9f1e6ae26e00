//! The verifier: numbered rules that every module keeps, checked after parsing and after every pass.
//!
//! Owns the rules below, and must not know how any op computes. Errors are collected, sorted by place, and the same for the same module.
//! It holds on modules that were built wrongly by hand: nothing here panics.
//!
//! | rule | what holds |
//! |------|------------|
//! | V01 | every operand and every returned value refers to an op and result that exist |
//! | V02 | the graph of a function has no cycle |
//! | V03 | use edges and operand lists agree (source, result number, operand number) |
//! | V04 | numbers of operands and results, and names and kinds of attributes, are those of the op table; one `param` op a parameter |
//! | V05 | the type rule of the op accepts its operands, and gives the result types that are written |
//! | V06 | symbols are declared, with bounds that are not empty or negative; dims are never negative; no tensor can have more than 2^50 elements; buckets fix declared symbols within bounds |
//! | V07 | the last dim of an mxfp4 tensor is a constant multiple of 32 |
//! | V08 | weights are declared with constant dims, have one leaf op a function, and `weight` parameters receive weight-only values |
//! | V09 | state is declared with sound sizes and is linear: each state value is replaced, passed on or returned exactly once, and nothing reads what may be replaced already |
//! | V10 | a function calls only functions before it |
//! | V11 | regions of kernels are isolated, well formed and well typed, and values flow through them with the types they declare |
//! | V12 | the template of a kernel exists and takes what is in it |
//! | V13 | stage rules: in a fused module every op of a step is in a kernel; a planned module has no `call` and no op without effect on a result |
//! | V14 | print then parse gives an equal module ([`roundtrip`], on request) |
//! | V15 | declared names are unique and can be written |
//!
//! Unused weights, unused symbols and ops without effect are [warnings](Facts::warnings). Not checked: that state results come back in the order of
//! the state parameters, that bucket sizes are consistent with each other, values of indices at run time, and that checkpoint keys exist.
//!
//! ```
//! use gossamer_ir::{text, verify::{verify, Stage}};
//!
//! let module = text::parse("f.gir", "gir 1\nfunc @f(%x: f32[T]) -> (f32[T]) {\n  return %x\n}\n").unwrap();
//! let errors = verify(&module, Stage::Tensor).unwrap_err();
//! assert_eq!(errors.errors[0].rule, "V06");
//! ```

mod calls;
mod decl;
mod error;
mod graph;
mod kernels;
mod state;
#[cfg(test)]
mod tests;
mod weights;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use error::{VerifyError, VerifyErrors, Warning};
pub use weights::weight_only;

use crate::graph::{Loc, OpId};
use crate::module::{Func, Module};
use crate::text::{Names, op_line, order};

/// How far a module has come, which decides what it may contain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// As written by a model: ops and calls.
    Tensor,
    /// After fusion: what is left outside kernels runs at load, calls or only renames.
    Fused,
    /// Ready to be executed op by op: calls are inlined, nothing is dead.
    Planned,
}

/// What the verifier found out about a correct module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Suspicious but legal.
    pub warnings: Vec<Warning>,
}

/// Checks every rule but V14; the errors are all that were found.
pub fn verify(module: &Module, stage: Stage) -> Result<Facts, VerifyErrors> {
    let mut report = Report::default();
    let bad_states = decl::check(module, &mut report);
    let mut sound = BTreeSet::new();
    for (index, func) in module.funcs.iter().enumerate() {
        let place = Place::new(index, func);
        decl::func(module, &place, &mut report);
        if graph::check(module, &place, &sound, &bad_states, &mut report) {
            sound.insert(index);
            kernels::check(module, &place, stage, &bad_states, &mut report);
            calls::check(module, &place, stage, &mut report);
            weights::check(module, &place, &sound, &mut report);
            state::check(&place, &mut report);
        }
    }
    weights::unused(module, &mut report);
    report.finish()
}

/// Rule V14: text is a complete form of the module.
pub fn roundtrip(module: &Module) -> Result<(), VerifyErrors> {
    let fail = |message: String| {
        let error = VerifyError { rule: "V14", func: None, line: String::new(), loc: None, message };
        VerifyErrors { errors: vec![error] }
    };
    let printed = crate::text::print(module);
    let again =
        crate::text::parse("printed", &printed).map_err(|e| fail(format!("the printed module cannot be read: {e}")))?;
    crate::text::same(module, &again).map_err(|e| fail(format!("the printed module reads back as another: {e}")))
}

/// A function and the names and order in which it prints.
struct Place<'a> {
    index: usize,
    func: &'a Func,
    order: Vec<OpId>,
    position: BTreeMap<OpId, usize>,
    names: Names,
}

impl<'a> Place<'a> {
    fn new(index: usize, func: &'a Func) -> Place<'a> {
        let order = order(func);
        let names = Names::new(func, &order);
        let position = order.iter().enumerate().map(|(i, id)| (*id, i)).collect();
        Place { index, func, order, position, names }
    }

    fn line(&self, id: OpId) -> String {
        op_line(self.func, &self.names, id)
    }
}

/// Errors and warnings with what they are sorted by: function (0: declarations), then position.
#[derive(Default)]
struct Report {
    errors: Vec<(usize, usize, VerifyError)>,
    warnings: Vec<(usize, usize, Warning)>,
}

impl Report {
    fn declaration(&mut self, rule: &'static str, line: String, message: String) {
        self.errors.push((0, 0, VerifyError { rule, func: None, line, loc: None, message }));
    }

    fn header(&mut self, rule: &'static str, place: &Place<'_>, message: String) {
        let line = crate::text::header_line(place.func);
        self.push(rule, place, 0, line, None, message);
    }

    fn op(&mut self, rule: &'static str, place: &Place<'_>, id: OpId, message: String) {
        let position = place.position.get(&id).copied().unwrap_or(0);
        let loc = place.func.graph.get(id).and_then(|op| op.loc.clone());
        self.push(rule, place, position + 1, place.line(id), loc, message);
    }

    fn results(&mut self, rule: &'static str, place: &Place<'_>, message: String) {
        let line = crate::text::return_line(place.func, &place.names);
        self.push(rule, place, place.order.len() + 1, line, None, message);
    }

    fn push(
        &mut self,
        rule: &'static str,
        place: &Place<'_>,
        position: usize,
        line: String,
        loc: Option<Loc>,
        message: String,
    ) {
        let func = Some(Arc::clone(&place.func.name));
        self.errors.push((place.index + 1, position, VerifyError { rule, func, line, loc, message }));
    }

    fn warn(&mut self, place: &Place<'_>, id: OpId, message: String) {
        let position = place.position.get(&id).copied().unwrap_or(0);
        let loc = place.func.graph.get(id).and_then(|op| op.loc.clone());
        let func = Some(Arc::clone(&place.func.name));
        self.warnings.push((place.index + 1, position + 1, Warning { func, line: place.line(id), loc, message }));
    }

    fn warn_declaration(&mut self, line: String, message: String) {
        self.warnings.push((0, 0, Warning { func: None, line, loc: None, message }));
    }

    fn finish(mut self) -> Result<Facts, VerifyErrors> {
        // Stable: what was found at one place keeps the order of the declarations and rules.
        self.errors.sort_by_key(|(func, position, e)| (*func, *position, e.rule));
        self.warnings.sort_by_key(|(func, position, _)| (*func, *position));
        match self.errors.is_empty() {
            true => Ok(Facts { warnings: self.warnings.into_iter().map(|(_, _, w)| w).collect() }),
            false => Err(VerifyErrors { errors: self.errors.into_iter().map(|(_, _, e)| e).collect() }),
        }
    }
}
