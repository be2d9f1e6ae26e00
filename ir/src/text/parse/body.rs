//! Functions and statements.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::{Failed, Parsed, Parser};
use crate::attr::{Attr, Attrs};
use crate::graph::{Op, Value};
use crate::kernel::{Kernel, REGIONS, Stage, THEN};
use crate::module::{Func, Param};
use crate::op::OpKind;
use crate::text::lex::Kind;
use crate::text::names::base;
use crate::ty::Type;

/// Operands, results and parameters; far above what any op takes and below what a [`Value`] can number.
const MAX_VALUES: usize = 4096;

/// What a `%name` stands for.
#[derive(Clone, Copy)]
enum Slot {
    Known(Value),
    /// Made by a statement with an error, which has been told already.
    Broken,
}

/// A function while it is read.
struct Body<'a> {
    func: Func,
    values: BTreeMap<&'a str, Slot>,
    weights: BTreeMap<&'a str, Value>,
    /// Declared result types; `None` in a region, which does not declare them.
    types: Option<Vec<Type>>,
}

impl Body<'_> {
    /// The word before the results.
    fn last_word(&self) -> &'static str {
        if self.types.is_some() { "return" } else { "yield" }
    }
}

impl<'a> Parser<'a> {
    pub(super) fn func(&mut self) -> Parsed<()> {
        let name = self.sigil(Kind::Global, "the name of a function such as `@f`")?;
        self.func_rest(name)
    }

    /// A function after its name.
    pub(super) fn func_rest(&mut self, name: &'a str) -> Parsed<()> {
        let params = self.params(true)?;
        self.expect("->")?;
        let types = match self.eat("(") {
            false => vec![self.ty()?],
            true if self.eat(")") => vec![],
            true => {
                let types = self.types()?;
                if !self.eat(")") {
                    return Err(self.unexpected("`,` or `)`", ""));
                }
                types
            }
        };
        let func = self.body_of(name, params, Some(types))?;
        self.line_end()?;
        self.module.funcs.push(func);
        Ok(())
    }

    /// Parameters in parentheses.
    fn params(&mut self, weights: bool) -> Parsed<Vec<(Range<usize>, &'a str, Param)>> {
        let mut params: Vec<(Range<usize>, &'a str, Param)> = Vec::new();
        self.expect("(")?;
        self.list(")", |p| {
            let span = p.span();
            let name = p.sigil(Kind::Value, "a parameter such as `%x: f32[T, 8]`")?;
            if params.len() == MAX_VALUES {
                return Err(p.fail(
                    span,
                    format!("expected at most {MAX_VALUES} parameters, found more"),
                    String::new(),
                ));
            }
            if params.iter().any(|(_, n, _)| *n == name) {
                return Err(p.defined_twice(span, name));
            }
            p.expect(":")?;
            let weight = weights && p.is_word("weight");
            if weight {
                p.bump();
            }
            let ty = p.ty()?;
            params.push((span, name, Param { name: base(name).into(), ty, weight }));
            Ok(())
        })?;
        Ok(params)
    }

    /// `{`, statements, results and `}`.
    fn body_of(
        &mut self,
        name: &str,
        params: Vec<(Range<usize>, &'a str, Param)>,
        types: Option<Vec<Type>>,
    ) -> Parsed<Func> {
        self.expect("{")?;
        self.line_end()?;
        let func = Func::new(name, params.iter().map(|(_, _, p)| p.clone()).collect());
        let mut body = Body { func, values: BTreeMap::new(), weights: BTreeMap::new(), types };
        for ((span, name, _), op) in params.iter().zip(body.func.graph.ids()) {
            body.func.graph.op_mut(op).loc = Some(self.loc(span.start));
            body.values.insert(name, Slot::Known(Value { op, result: 0 }));
        }
        self.body(&mut body)?;
        Ok(body.func)
    }

    /// The regions of a kernel, stage by stage: `prologue(%x: f32[T, 8]) { .. } main(..) { .. } then main(..) { .. }`.
    fn kernel(&mut self, template: &str) -> Parsed<Kernel> {
        let first = self.kernel_stage()?;
        let mut then = Vec::new();
        while self.is_word(THEN) {
            self.bump();
            then.push(self.kernel_stage()?);
        }
        Ok(Kernel::of(template, first, then))
    }

    /// The regions of a stage in order, of which `main` must be there.
    fn kernel_stage(&mut self) -> Parsed<Stage> {
        let mut regions: [Option<Func>; 3] = [None, None, None];
        for (slot, name) in regions.iter_mut().zip(REGIONS) {
            if self.is_word(name) {
                self.bump();
                let params = self.params(false)?;
                *slot = Some(self.body_of(name, params, None)?);
            }
        }
        let [prologue, main, epilogue] = regions;
        match main {
            Some(main) => Ok(Stage { prologue, main, epilogue }),
            None => Err(self.unexpected("`main(`", "a kernel has `prologue(..) {..}`, `main(..) {..}` and `epilogue(..) {..}`, in this order; only `main` is required; after `then` the same again")),
        }
    }

    /// Goes behind the regions that start at token `from`: errors inside have been told.
    fn skip_regions(&mut self, from: usize) -> Failed {
        self.at = self.at.max(from);
        let mut at = from;
        let mut depth = 0usize;
        let inside =
            |p: &Self, at: usize, depth: usize| depth > 0 || opens_region(p.text_of(at)) || p.text_of(at) != "}";
        while at + 1 < self.tokens.len() && !(self.tokens[at].first && self.is_item(at)) && inside(self, at, depth) {
            match self.text_of(at) {
                "{" => depth += 1,
                "}" => depth = depth.saturating_sub(1),
                _ => {}
            }
            at += 1;
            if depth == 0 && at > self.at && !opens_region(self.text_of(at)) {
                break;
            }
        }
        // The types of the results.
        while at + 1 < self.tokens.len() && !self.tokens[at].first {
            at += 1;
        }
        self.at = self.at.max(at);
        Failed
    }

    /// `{template = stream}`.
    fn template(&mut self) -> Parsed<&'a str> {
        let help = "a kernel reads `%y = kernel %x, %w {template = stream} main(%x: .., %w: ..) {..} : type`";
        if self.token().first || !self.eat("{") || !self.is_word("template") {
            return Err(self.unexpected("`{template = ..}`", help));
        }
        self.bump();
        self.expect("=")?;
        let name = self.word("the name of a template")?;
        self.expect("}")?;
        Ok(name)
    }

    fn defined_twice(&mut self, span: Range<usize>, name: &str) -> Failed {
        self.fail(span, format!("`%{name}` is defined twice"), "every value has its own name".into())
    }

    /// Statements, `return` and `}`.
    fn body(&mut self, body: &mut Body<'a>) -> Parsed<()> {
        let errors = self.errors.len();
        loop {
            self.start = self.at;
            if self.is("}") || self.is_end() || self.is_item(self.at) {
                let last = body.last_word();
                let help = match last {
                    "return" => "a function ends with `return %x` and `}`",
                    _ => "a region ends with `yield %x` and `}`",
                };
                let failed = self.unexpected(&format!("a statement or `{last}`"), help);
                self.eat("}");
                return Err(failed);
            }
            if self.is_word(body.last_word()) {
                self.results(body).map_err(|Failed| self.skip_body())?;
                break;
            }
            // What failed at the end of a line goes on at the next; the rest of a broken line may go on over several.
            let failed = self.statement(body).is_err();
            if failed && !(self.at > self.start && self.token().first) {
                self.recover(|p, at| p.is_statement(at) || p.is_item(at));
            }
        }
        self.start = self.at;
        if !self.is("}") {
            self.unexpected(&format!("`}}` after `{}`", body.last_word()), "");
            return Err(self.skip_body());
        }
        self.bump();
        match self.errors.len() == errors {
            true => Ok(()),
            false => Err(Failed),
        }
    }

    /// Goes to the end of the function; one error about its end is enough.
    fn skip_body(&mut self) -> Failed {
        while !(self.is_end() || self.is("}") || self.token().first && self.is_item(self.at)) {
            self.bump();
        }
        self.eat("}");
        Failed
    }

    /// True if token `at` can start a statement: not the operands of a statement that goes on over several lines.
    fn is_statement(&self, at: usize) -> bool {
        match self.tokens[at].kind {
            Kind::Word => true,
            Kind::Punct => self.text_of(at) == "}",
            Kind::Value => {
                let mut next = at + 1;
                while self.text_of(next) == "," && self.tokens[next + 1].kind == Kind::Value {
                    next += 2;
                }
                self.text_of(next) == "="
            }
            _ => false,
        }
    }

    fn results(&mut self, body: &mut Body<'a>) -> Parsed<()> {
        let keyword = self.span();
        self.bump();
        let mut known = true;
        let mut found = Vec::new();
        if !self.token().first {
            loop {
                let span = self.span();
                match self.operand(body)? {
                    Slot::Known(v) => found.push((span, v)),
                    Slot::Broken => known = false,
                }
                if !self.eat(",") {
                    break;
                }
            }
        }
        self.line_end()?;
        if !known {
            return Err(Failed);
        }
        let Some(types) = body.types.clone() else {
            body.func.results.extend(found.iter().map(|(_, v)| *v));
            return Ok(());
        };
        if found.len() != types.len() {
            let message = format!("expected {} results as declared, found {}", types.len(), found.len());
            return Err(self.fail(keyword, message, String::new()));
        }
        for ((span, value), want) in found.iter().zip(types) {
            let have = body.func.graph.ty(*value).clone();
            if have != want {
                let message = format!("expected a result of type {want} as declared, found {have}");
                return Err(self.fail(span.clone(), message, String::new()));
            }
            body.func.results.push(*value);
        }
        Ok(())
    }

    /// `%a, %b = op %x, @w {k = 1} : type, type`, or `call @f` without results.
    fn statement(&mut self, body: &mut Body<'a>) -> Parsed<()> {
        let mut names: Vec<(Range<usize>, &'a str)> = Vec::new();
        let first = self.span();
        if self.kind() == Kind::Value {
            loop {
                let span = self.span();
                names.push((span, self.sigil(Kind::Value, "a result such as `%x`")?));
                if !self.eat(",") {
                    break;
                }
            }
        }
        let done = match names.is_empty() {
            true => self.op(body, first, &names),
            false => match self.eat("=") {
                true => self.op(body, first, &names),
                false => Err(self.unexpected("`=`", "a statement reads `%x = op %a, %b : type`")),
            },
        };
        let mut failed = done.is_err();
        for (i, (span, name)) in names.into_iter().enumerate() {
            let slot = match done {
                Ok(op) => Slot::Known(Value { op, result: i as u16 }),
                Err(Failed) => Slot::Broken,
            };
            // After an error the name may be a repetition only because the line was meant as another.
            if body.values.insert(name, slot).is_some() && done.is_ok() {
                self.defined_twice(span, name);
                failed = true;
            }
        }
        if failed { Err(Failed) } else { Ok(()) }
    }

    /// A statement after its `=`. `first` is where it starts.
    fn op(
        &mut self,
        body: &mut Body<'a>,
        first: Range<usize>,
        names: &[(Range<usize>, &'a str)],
    ) -> Parsed<crate::OpId> {
        let span = self.span();
        let name = match names.is_empty() {
            true if !self.is_word("call") => {
                return Err(self.unexpected("a statement such as `%x = op %a : type`", ""));
            }
            _ => self.word("the name of an op")?,
        };
        let written = |k: &&OpKind| !matches!(k, OpKind::Param | OpKind::Weight);
        let Some(kind) = OpKind::ALL.iter().filter(written).copied().find(|k| k.name() == name) else {
            let known: Vec<&str> = OpKind::ALL.iter().filter(written).map(|k| k.name()).collect();
            return Err(self.unknown(span, "op", name, &known));
        };
        let mut callee = None;
        if kind == OpKind::Call {
            callee = Some(self.sigil(Kind::Global, "the function to call such as `@f`")?);
        }
        let mut operands = Vec::new();
        let mut broken = false;
        if matches!(self.kind(), Kind::Value | Kind::Global) && !self.token().first {
            loop {
                match self.operand(body) {
                    Ok(Slot::Known(v)) => operands.push(v),
                    Ok(Slot::Broken) | Err(Failed) => broken = true,
                }
                if operands.len() > MAX_VALUES {
                    let message = format!("expected at most {MAX_VALUES} operands, found more");
                    return Err(self.fail(self.span(), message, String::new()));
                }
                if self.token().first || !self.eat(",") {
                    break;
                }
            }
        }
        let mut attrs = match kind {
            OpKind::Kernel => {
                if body.types.is_none() {
                    return Err(self.fail(span, "expected an op, found `kernel`".into(), "kernels do not nest".into()));
                }
                let template = self.template()?;
                let (start, regions) = (self.start, self.at);
                let kernel = self.kernel(template).map_err(|Failed| self.skip_regions(regions))?;
                self.start = start;
                Attrs::from([("body", Attr::Kernel(Arc::new(kernel)))])
            }
            _ => self.attrs(kind)?,
        };
        if let Some(callee) = callee {
            attrs.set("callee", Attr::from(callee));
        }
        fill(kind, &mut attrs);
        let results = match names.is_empty() {
            true => vec![],
            false => {
                if self.token().first || !self.eat(":") {
                    let expected = if operands.is_empty() { "operands, `{` or `:`" } else { "`,`, `{` or `:`" };
                    return Err(self.unexpected(expected, "the types of the results follow after `:`"));
                }
                self.types()?
            }
        };
        self.line_end()?;
        if results.len() != names.len() {
            let message = format!("expected {} result types, found {}", names.len(), results.len());
            return Err(self.fail(first, message, "one type a result name".into()));
        }
        if broken || names.len() > MAX_VALUES {
            return Err(Failed);
        }
        let hints: Vec<Arc<str>> = names.iter().map(|(_, n)| base(n).into()).collect();
        let loc = Some(self.loc(first.start));
        Ok(body.func.graph.add(Op { kind, attrs, operands, results, names: hints, seq: 0, loc }))
    }

    /// `%x` or `@w`.
    fn operand(&mut self, body: &mut Body<'a>) -> Parsed<Slot> {
        let span = self.span();
        match self.kind() {
            Kind::Value => {
                let name = &self.bump()[1..];
                if let Some(slot) = body.values.get(name) {
                    return Ok(*slot);
                }
                let known: Vec<&str> = body.values.keys().copied().collect();
                Err(self.unknown(span, "value", &format!("%{name}"), &known))
            }
            Kind::Global => {
                let name = &self.bump()[1..];
                if body.types.is_none() {
                    let help = "a region is isolated: pass the weight as an operand of the kernel";
                    return Err(self.fail(
                        span,
                        format!("expected a value of the region, found `@{name}`"),
                        help.into(),
                    ));
                }
                if let Some(value) = body.weights.get(name) {
                    return Ok(Slot::Known(*value));
                }
                let Some(decl) = self.module.weights.iter().find(|w| &*w.name == name) else {
                    let names: Vec<Arc<str>> = self.module.weights.iter().map(|w| w.name.clone()).collect();
                    let known: Vec<&str> = names.iter().map(|n| &**n).collect();
                    return Err(self.unknown(span, "weight", &format!("@{name}"), &known));
                };
                let op = body.func.graph.add(Op {
                    kind: OpKind::Weight,
                    attrs: Attrs::from([("name", Attr::from(name))]),
                    operands: vec![],
                    results: vec![Type::Tensor(decl.ty.clone())],
                    names: vec![name.into()],
                    seq: 0,
                    loc: None,
                });
                let value = Value { op, result: 0 };
                body.weights.insert(name, value);
                Ok(Slot::Known(value))
            }
            _ => Err(self.unexpected("an operand such as `%x` or `@w`", "")),
        }
    }
}

/// Adds the defaults that were not written. What is required and missing is left to the verifier (V04).
fn fill(kind: OpKind, attrs: &mut Attrs) {
    for info in kind.info().attrs {
        if let (None, Some(default)) = (attrs.get(info.name), info.default.value()) {
            attrs.set(info.name, default);
        }
    }
}

/// True if the word starts a region of a kernel, or a stage of it.
fn opens_region(word: &str) -> bool {
    word == THEN || REGIONS.contains(&word)
}
