//! Scalar code of a kernel's regions: "give me element `[t, n]` of this value", printed one statement an op.
//!
//! Owns the translation of a region's ops, at one index, into C++ statements. A template says where the parameters' elements come from
//! ([`Source`]) and asks for elements or stores at index expressions ([`Index`]); what it gets back are lines to put into its slots. Elementwise
//! code is that of [`super::scalar`], so a fused op computes what the op alone does. Must not know templates, launches or threads.
//!
//! An element is computed once per index and scope. Loads are ordinary ones, never `ld.global.nc`: with dependent launches a value may have
//! been written by the kernel before, and the read-only path is not ordered with `griddepcontrol.wait`. The text depends on the ops, their
//! order and constant dims, not on names; symbolic dims become arguments ([`Region::sizes`]).

mod coupling;
mod index;
mod ops;

pub(crate) use coupling::{Columns, Need, Sink, Target, sinks};
pub(crate) use index::Index;

use std::collections::{BTreeMap, BTreeSet};

use gossamer_ir::{Attr, DType, Dim, Func, Module, OpId, OpKind, TensorType, Type, Value};

use super::scalar::{self, Scalar};
use crate::lower::LowerError;

/// Gives the expression of an element for its index, one entry a dim.
pub(crate) type Give<'a> = Box<dyn Fn(&[Index]) -> String + 'a>;

/// Where the elements of a parameter come from.
pub(crate) enum Source<'a> {
    /// The template holds them, as scalars: accumulators, or rows it staged. The expression must be free of side effects.
    Given(Give<'a>),
    /// The same, known before the main loop: loads that it decides can be under way meanwhile (see [`split`]).
    Ready(Give<'a>),
    /// A row-major tensor at this pointer, whose C++ element type is that of its dtype.
    Memory(String),
    /// A paged cache: pointers to keys and values.
    Cache {
        /// Keys `[pages, heads, page, head_dim]`.
        keys: String,
        /// Values, alike.
        values: String,
    },
}

/// What the names of symbolic dims start with unless a region is tagged.
const DEFAULT_TAG: &str = "d";

/// Prints the code of one region.
pub(crate) struct Region<'a> {
    func: &'a Func,
    module: &'a Module,
    sources: Vec<Source<'a>>,
    /// Number of each op in the canonical order; names in the text come from it.
    numbers: BTreeMap<OpId, usize>,
    /// Variables that hold the statistics of row ops (the scale of a norm, ...), which the template computes.
    statistics: BTreeMap<OpId, Vec<String>>,
    elements: BTreeMap<(Value, Vec<Index>), String>,
    expressions: BTreeMap<String, String>,
    used: BTreeMap<String, usize>,
    /// Variables that depend on a [`Source::Given`].
    late: BTreeSet<String>,
    lines: Vec<Line>,
    tag: &'static str,
    sizes: Vec<Dim>,
    half: Option<Half>,
    straight: bool,
}

/// A variable that is known to be in the first half of a head.
struct Half {
    variable: String,
    dim: i64,
    run: i64,
}

/// A printed line.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    comment: Option<String>,
    text: String,
    /// Type, name and expression, if it declares a variable.
    variable: Option<(String, String, String)>,
    late: bool,
}

/// Lines in two parts: what can be computed before the template has its values, and the rest.
#[derive(Clone, Debug, Default)]
pub(crate) struct Split {
    /// Declarations of the variables that the early part sets, with a value of no meaning.
    pub declarations: Vec<String>,
    /// Assignments, in order.
    pub early: Vec<String>,
    /// Everything else, in order.
    pub late: Vec<String>,
}

/// Lines as text.
pub(crate) fn text(lines: &[Line]) -> Vec<String> {
    lines.iter().flat_map(|l| l.comment.iter().chain([&l.text]).cloned()).collect()
}

/// Cuts the lines of a scope in two, so that the loads of an epilogue can be under way while the main loop runs. The early part must run with
/// indices that are inside the tensors.
pub(crate) fn split(lines: &[Line]) -> Split {
    let mut out = Split::default();
    for line in lines {
        match &line.variable {
            Some((c_type, name, expression)) if !line.late => {
                let zero = if c_type == "bool" { "false" } else { "0" };
                out.declarations.push(format!("{c_type} {name} = {zero};"));
                out.early.extend(line.comment.clone());
                out.early.push(format!("{name} = {expression};"));
            }
            _ => out.late.extend(line.comment.iter().chain([&line.text]).cloned()),
        }
    }
    out
}

/// Cuts the lines of a scope in two: declarations that neither name one of `inner` nor depend on one that does, and the rest. The first may stand in
/// front of a loop that declares those names.
pub(crate) fn lift(lines: &[Line], inner: &[&str]) -> (Vec<String>, Vec<String>) {
    let mut inside: BTreeSet<&str> = inner.iter().copied().collect();
    let (mut before, mut rest) = (Vec::new(), Vec::new());
    for line in lines {
        let word = |c: char| !c.is_ascii_alphanumeric() && c != '_';
        let free = match &line.variable {
            Some((_, _, expression)) => !expression.split(word).any(|w| inside.contains(w)),
            None => false,
        };
        if let (Some((_, name, _)), false) = (&line.variable, free) {
            inside.insert(name);
        }
        let to = if free { &mut before } else { &mut rest };
        to.extend(line.comment.iter().chain([&line.text]).cloned());
    }
    (before, rest)
}

/// A variable that [`hoist`] took out.
pub(crate) struct Hoisted {
    pub comment: Option<String>,
    pub c_type: String,
    pub name: String,
    pub expression: String,
}

/// Takes the variables out of the lines of a scope that, with `rewrite` done to their expressions, neither name one of `inner` nor depend on one that
/// does. Gives them and the rest.
pub(crate) fn hoist(lines: &[Line], inner: &[&str], rewrite: impl Fn(&str) -> String) -> (Vec<Hoisted>, Vec<String>) {
    let mut inside: BTreeSet<&str> = inner.iter().copied().collect();
    let (mut out, mut rest) = (Vec::new(), Vec::new());
    let word = |c: char| !c.is_ascii_alphanumeric() && c != '_';
    for line in lines {
        if let Some((c_type, name, expression)) = &line.variable {
            let expression = rewrite(expression);
            if !expression.split(word).any(|w| inside.contains(w)) {
                let (c_type, name, comment) = (c_type.clone(), name.clone(), line.comment.clone());
                out.push(Hoisted { comment, c_type, name, expression });
                continue;
            }
            inside.insert(name);
        }
        rest.extend(line.comment.iter().chain([&line.text]).cloned());
    }
    (out, rest)
}

impl<'a> Region<'a> {
    /// A printer of `func`, whose parameters come from `sources`, in order. `module` declares the states.
    pub fn new(func: &'a Func, module: &'a Module, sources: Vec<Source<'a>>) -> Region<'a> {
        let order = func.graph.order().unwrap_or_default();
        let numbers = order.into_iter().enumerate().map(|(i, id)| (id, i)).collect();
        Region {
            func,
            module,
            sources,
            numbers,
            statistics: BTreeMap::new(),
            elements: BTreeMap::new(),
            expressions: BTreeMap::new(),
            used: BTreeMap::new(),
            late: BTreeSet::new(),
            lines: Vec::new(),
            tag: DEFAULT_TAG,
            sizes: Vec::new(),
            half: None,
            straight: false,
        }
    }

    /// Names symbolic dims `{tag}0`, ... and puts the tag in front of variables, for kernels with the text of several regions.
    pub fn tagged(mut self, tag: &'static str) -> Region<'a> {
        self.tag = tag;
        self
    }

    /// What the names of symbolic dims start with.
    pub fn tag(&self) -> &'static str {
        self.tag
    }

    /// The columns `variable` to `variable + run - 1` are in the first half of `dim` columns, wherever they are: pairs need no test.
    pub fn know_half(&mut self, variable: &str, dim: i64, run: i64) {
        self.half = Some(Half { variable: variable.to_string(), dim, run });
    }

    /// Whether a cache has a place for a token decides where a store goes (`only_if`), not what is computed: without a branch, the loads of several
    /// tokens are under way together.
    pub fn straight(mut self) -> Region<'a> {
        self.straight = true;
        self
    }

    /// Names the variables that hold what a row op needs of its whole row: `rms_norm`: 1 / rms; `layer_norm`: mean, 1 / deviation;
    /// `softmax`: maximum, sum of exponentials; `logsumexp`, `argmax`: the result.
    pub fn set_statistics(&mut self, op: OpId, variables: impl IntoIterator<Item = String>) {
        self.statistics.insert(op, variables.into_iter().collect());
    }

    /// Element `index` of `value` is in `variable`, an expression without side effects that the template holds.
    pub fn assume(&mut self, value: Value, index: &[Index], variable: &str) {
        self.elements.insert((value, index.to_vec()), variable.to_string());
    }

    /// The statements so far; the printer goes on with none, and with nothing computed.
    pub fn take(&mut self) -> Vec<String> {
        self.elements.clear();
        self.expressions.clear();
        text(&std::mem::take(&mut self.lines))
    }

    /// What `f` prints, kept apart: what it computes is not visible afterwards, what was computed before is visible to it. For the bodies
    /// of branches and loops.
    pub fn scope<R>(
        &mut self,
        f: impl FnOnce(&mut Self) -> Result<R, LowerError>,
    ) -> Result<(Vec<Line>, R), LowerError> {
        let (elements, expressions) = (self.elements.clone(), self.expressions.clone());
        let outer = std::mem::take(&mut self.lines);
        let result = f(self);
        let inner = std::mem::replace(&mut self.lines, outer);
        (self.elements, self.expressions) = (elements, expressions);
        result.map(|r| (inner, r))
    }

    /// Adds a statement.
    fn statement(&mut self, text: String) {
        self.lines.push(Line { comment: None, text, variable: None, late: true });
    }

    /// Adds the declaration of a variable.
    fn variable(&mut self, c_type: &str, name: &str, expression: &str, given: bool, comment: Option<String>) {
        let word = |c: char| !c.is_ascii_alphanumeric() && c != '_';
        let late = given || expression.split(word).any(|w| self.late.contains(w));
        if late {
            self.late.insert(name.to_string());
        }
        let text = format!("const {c_type} {name} = {expression};");
        let variable = Some((c_type.to_string(), name.to_string(), expression.to_string()));
        self.lines.push(Line { comment, text, variable, late });
    }

    /// The symbolic dims that the text refers to as `d0`, `d1`, ... (see [`Region::tagged`]): 64-bit integer parameters of the kernel.
    pub fn sizes(&self) -> &[Dim] {
        &self.sizes
    }

    /// A dim as text: its value, or the parameter that holds it.
    pub fn size(&mut self, dim: &Dim) -> String {
        if let Some(n) = dim.as_const() {
            return n.to_string();
        }
        let at = self.sizes.iter().position(|d| d == dim).unwrap_or_else(|| {
            self.sizes.push(dim.clone());
            self.sizes.len() - 1
        });
        format!("{}{at}", self.tag)
    }

    /// A variable that holds element `index` of `value` (or a literal). Floats of any dtype are f32 and already rounded to it.
    ///
    /// # Errors
    /// An op that cannot be computed at one index.
    pub fn element(&mut self, value: Value, index: &[Index]) -> Result<String, LowerError> {
        let key = (value, index.to_vec());
        if let Some(known) = self.elements.get(&key) {
            return Ok(known.clone());
        }
        let name = self.compute(value, index)?;
        self.elements.insert(key, name.clone());
        Ok(name)
    }

    /// Prints the store of element `index` of `value` to a row-major tensor of its type.
    ///
    /// # Errors
    /// As [`Region::element`].
    pub fn store(&mut self, value: Value, pointer: &str, index: &[Index]) -> Result<(), LowerError> {
        let ty = self.tensor(value)?;
        let element = self.unrounded(value, index)?;
        let at = self.offset(&ty.dims, index);
        self.statement(format!("{pointer}[{at}] = {};", scalar::store(ty.dtype, &element)));
        Ok(())
    }

    /// Prints one store of four float elements of `value` that are neighbours; `index` is the first, and its place a multiple of four.
    ///
    /// # Errors
    /// As [`Region::element`].
    pub fn store_four(&mut self, value: Value, pointer: &str, index: &[Index]) -> Result<(), LowerError> {
        let ty = self.tensor(value)?;
        let mut elements = Vec::new();
        for i in 0..4 {
            let mut at = index.to_vec();
            at.iter_mut().last().into_iter().for_each(|column| *column = column.plus(i));
            elements.push(self.unrounded(value, &at)?);
        }
        let at = self.offset(&ty.dims, index);
        self.statement(format!("store_four({pointer} + ({at}), {});", elements.join(", ")));
        Ok(())
    }

    /// Element `index` of `value` before the rounding that a store does too.
    fn unrounded(&mut self, value: Value, index: &[Index]) -> Result<String, LowerError> {
        let op = self.func.graph.op(value.op);
        match (op.kind, op.operands.as_slice()) {
            (OpKind::Cast, [x]) if self.tensor(*x)?.dtype == DType::F32 && self.scalar(value)? == Scalar::F32 => {
                self.element(*x, index)
            }
            _ => self.element(value, index),
        }
    }

    /// The type of a tensor value.
    fn tensor(&self, value: Value) -> Result<&'a TensorType, LowerError> {
        match self.func.graph.ty(value) {
            Type::Tensor(t) => Ok(t),
            Type::State(..) => Err(malformed("a state has no elements")),
        }
    }

    /// How an element of a value is held.
    fn scalar(&self, value: Value) -> Result<Scalar, LowerError> {
        let t = self.tensor(value)?;
        Scalar::of(t.dtype).ok_or_else(|| unsupported(format!("elements of {t}"), "dtypes with elements of their own"))
    }

    /// The variable of `value`: `v3`, further ones `v3_1`, ...; the op's line stands above the first.
    fn declare(&mut self, value: Value, expression: &str, given: bool) -> Result<String, LowerError> {
        let kind = self.scalar(value)?;
        let number = self.numbers.get(&value.op).copied().unwrap_or(0);
        let base = match value.result {
            0 => format!("v{number}"),
            r => format!("v{number}r{r}"),
        };
        let name = self.fresh(&base);
        let first = self.used.get(&base) == Some(&1);
        let comment = first.then(|| format!("// {}", self.ir(value.op)));
        self.variable(kind.c_type(), &name, expression, given, comment);
        Ok(name)
    }

    /// A variable for an intermediate expression, shared by all that ask for the same one in this scope.
    fn bind(&mut self, c_type: &str, base: &str, expression: String) -> String {
        if let Some(name) = self.expressions.get(&expression) {
            return name.clone();
        }
        let name = self.fresh(base);
        self.variable(c_type, &name, &expression, false, None);
        self.expressions.insert(expression, name.clone());
        name
    }

    /// A name that no statement of this printer has.
    fn fresh(&mut self, base: &str) -> String {
        let count = self.used.entry(base.to_string()).or_insert(0);
        *count += 1;
        let tag = if self.tag == DEFAULT_TAG { "" } else { self.tag };
        match *count {
            1 => format!("{tag}{base}"),
            n => format!("{tag}{base}_{}", n - 1),
        }
    }

    /// The op as a line with canonical names: `%3 = add %1, %2`.
    fn ir(&self, id: OpId) -> String {
        let op = self.func.graph.op(id);
        let number = |id: &OpId| self.numbers.get(id).copied().unwrap_or(0);
        let operands: Vec<_> = op
            .operands
            .iter()
            .map(|v| match v.result {
                0 => format!("%{}", number(&v.op)),
                r => format!("%{}#{r}", number(&v.op)),
            })
            .collect();
        let attrs: Vec<_> = op
            .attrs
            .iter()
            .filter(|(_, a)| !matches!(a, Attr::Dims(_)))
            .map(|(name, a)| format!("{name} = {a}"))
            .collect();
        let operands = if operands.is_empty() { String::new() } else { format!(" {}", operands.join(", ")) };
        let attrs = if attrs.is_empty() { String::new() } else { format!(" {{{}}}", attrs.join(", ")) };
        format!("%{} = {}{operands}{attrs}", number(&id), op.kind.name())
    }

    /// Position of an element in a row-major tensor: 64 bits unless the tensor is known to be small.
    fn offset(&mut self, dims: &[Dim], index: &[Index]) -> String {
        let total = dims.iter().try_fold(1i64, |n, d| d.as_const().and_then(|c| n.checked_mul(c)));
        let wide = dims.len() > 1 && total.is_none_or(|n| n > i64::from(i32::MAX));
        let (mut terms, mut constant) = (Vec::new(), 0i64);
        for (i, at) in index.iter().enumerate() {
            let rest: Vec<String> = dims[i + 1..].iter().map(|d| self.size(d)).collect();
            let numbers: Option<Vec<i64>> = rest.iter().map(|r| r.parse().ok()).collect();
            match numbers {
                Some(n) => {
                    let at = at.times(n.iter().product());
                    constant += at.offset();
                    // Strides are what makes an offset large; the last dim has none.
                    terms.extend(at.without_offset().map(|t| match wide && i + 1 < index.len() {
                        true => format!("(i64){t}"),
                        false => t,
                    }));
                }
                None => terms.push(format!("(i64){} * {}", at.operand(), rest.join(" * "))),
            }
        }
        match (terms.is_empty(), constant) {
            (true, c) => c.to_string(),
            (false, 0) => terms.join(" + "),
            (false, c) if c < 0 => format!("{} - {}", terms.join(" + "), -c),
            (false, c) => format!("{} + {c}", terms.join(" + ")),
        }
    }
}

/// The value of a parameter of `func`, or `None` if it is computed.
fn parameter(func: &Func, value: Value) -> Option<usize> {
    let op = func.graph.op(value.op);
    (op.kind == OpKind::Param).then(|| op.attrs.int("index") as usize)
}

/// An expression of `x`, an f32, rounded to what a tensor of `dtype` holds.
fn rounded(dtype: DType, x: String) -> String {
    match dtype {
        DType::BF16 | DType::F16 => format!("to_f32({})", scalar::store(dtype, &x)),
        _ => x,
    }
}

/// A region that no code can be printed for.
pub(crate) fn unsupported(what: impl Into<String>, supported: impl Into<String>) -> LowerError {
    LowerError::Unsupported { op: "kernel", what: what.into(), supported: supported.into() }
}

/// A region that breaks its ops' type rules.
pub(crate) fn malformed(what: impl Into<String>) -> LowerError {
    LowerError::Malformed { op: "kernel", what: what.into() }
}

#[cfg(test)]
mod tests;
