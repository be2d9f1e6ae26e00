//! The printer: a module as canonical text, the same bytes for the same module.

use std::fmt;
use std::fmt::Write;

use crate::attr::{Attr, AttrKind, Attrs};
use crate::graph::OpId;
use crate::module::{Bucket, Func, Module, StateDecl, SymDecl, WeightDecl};
use crate::op::OpKind;

use super::VERSION;
use super::names::Names;

/// The module as text. Any module prints, broken ones too: a value that does not exist is `%?`.
pub fn print(module: &Module) -> String {
    let mut out = format!("gir {VERSION}\n");
    let groups: [Vec<String>; 4] = [
        module.syms.iter().map(SymDecl::to_string).collect(),
        module.states.iter().map(StateDecl::to_string).collect(),
        module.weights.iter().map(WeightDecl::to_string).collect(),
        module.buckets.iter().map(Bucket::to_string).collect(),
    ];
    for group in groups.iter().filter(|g| !g.is_empty()) {
        out.push('\n');
        for line in group {
            out.push_str(line);
            out.push('\n');
        }
    }
    for func in &module.funcs {
        out.push('\n');
        out.push_str(&print_func(func));
    }
    out
}

/// One function as text, with a line break at the end.
pub fn print_func(func: &Func) -> String {
    let order = order(func);
    let names = Names::new(func, &order);
    let mut out = header(func, &names);
    for id in order {
        if !matches!(func.graph.op(id).kind, OpKind::Param | OpKind::Weight) {
            out.push_str("\n  ");
            out.push_str(&statement(func, &names, id, "  "));
        }
    }
    out.push_str("\n  ");
    out.push_str(&return_line(func, &names));
    out.push_str("\n}\n");
    out
}

/// A region of a kernel as text, each line after `indent`, with a line break at the end.
pub(crate) fn print_region(region: &Func, indent: &str) -> String {
    let order = order(region);
    let names = Names::new(region, &order);
    let params: Vec<String> =
        region.params.iter().enumerate().map(|(i, p)| format!("%{}: {}", names.param(i), p.ty)).collect();
    let mut out = format!("{indent}{}({}) {{\n", region.name, params.join(", "));
    for id in order.into_iter().filter(|id| region.graph.op(*id).kind != OpKind::Param) {
        out.push_str(&format!("{indent}  {}\n", statement(region, &names, id, &format!("{indent}  "))));
    }
    let yields: Vec<&str> = region.results.iter().map(|v| names.value(*v)).collect();
    out.push_str(&format!("{indent}  {}\n{indent}}}\n", format!("yield {}", yields.join(", ")).trim_end()));
    out
}

/// An op as a statement; a kernel takes several lines, those after the first behind `indent`.
pub(crate) fn statement(func: &Func, names: &Names, id: OpId, indent: &str) -> String {
    let (head, types) = op_parts(func, names, id);
    match func.graph.get(id).and_then(|op| op.attrs.kernel()) {
        Some(kernel) => format!("{head}\n{}{types}", kernel.text(&format!("{indent}  "))),
        None => head + &types,
    }
}

/// The first line of a function.
pub(crate) fn header_line(func: &Func) -> String {
    header(func, &Names::new(func, &order(func)))
}

fn header(func: &Func, names: &Names) -> String {
    let params: Vec<String> = func
        .params
        .iter()
        .enumerate()
        .map(|(i, p)| format!("%{}: {}{}", names.param(i), if p.weight { "weight " } else { "" }, p.ty))
        .collect();
    let ty = |v: &crate::Value| func.graph.get(v.op).and_then(|op| op.results.get(v.result as usize));
    let types: Vec<String> = func.results.iter().map(|v| ty(v).map_or("?".into(), |t| t.to_string())).collect();
    format!("func @{}({}) -> ({}) {{", func.name, params.join(", "), types.join(", "))
}

/// The last statement of a function.
pub(crate) fn return_line(func: &Func, names: &Names) -> String {
    let results: Vec<&str> = func.results.iter().map(|v| names.value(*v)).collect();
    format!("return {}", results.join(", ")).trim_end().to_string()
}

/// One op as a line of text, named as in the whole function. Takes as long as naming the function; use it for messages.
pub fn print_op(func: &Func, id: OpId) -> String {
    op_line(func, &Names::new(func, &order(func)), id)
}

/// Print order: topological, or order of creation in a graph with cycles.
pub(crate) fn order(func: &Func) -> Vec<OpId> {
    func.graph.order().unwrap_or_else(|_| func.graph.ids())
}

/// The line of op `id`; leaves that are never statements print as what they stand for.
pub(crate) fn op_line(func: &Func, names: &Names, id: OpId) -> String {
    let (head, types) = op_parts(func, names, id);
    head + &types
}

/// The line of an op up to its attributes, and the types with the colon before them. Regions of a kernel stand between the two.
fn op_parts(func: &Func, names: &Names, id: OpId) -> (String, String) {
    let Some(op) = func.graph.get(id) else {
        return ("a removed op".into(), String::new());
    };
    let list = |items: Vec<String>| items.join(", ");
    let results =
        list((0..op.results.len()).map(|i| names.value(crate::Value { op: id, result: i as u16 }).into()).collect());
    let types = list(op.results.iter().map(|t| t.to_string()).collect());
    match op.kind {
        OpKind::Param => return (results, format!(": {types}")),
        OpKind::Weight => return (results, format!(" : {types}")),
        _ => {}
    }
    let mut line = match results.is_empty() {
        true => op.kind.name().to_string(),
        false => format!("{results} = {}", op.kind.name()),
    };
    let mut operands: Vec<&str> = op.operands.iter().map(|v| names.value(*v)).collect();
    let callee = format!("@{}", op.attrs.word("callee"));
    if op.kind == OpKind::Call {
        line.push(' ');
        line.push_str(&callee);
    }
    if !operands.is_empty() {
        line.push(' ');
        line.push_str(&list(operands.drain(..).map(str::to_string).collect()));
    }
    line.push_str(&attributes(op.kind, &op.attrs));
    let types = if types.is_empty() { types } else { format!(" : {types}") };
    (line, types)
}

/// ` {a = 1, b = 2}`, sorted, without defaults; empty if nothing is left.
fn attributes(kind: OpKind, attrs: &Attrs) -> String {
    let mut items = Vec::new();
    for (name, value) in attrs.iter() {
        let info = kind.info().attrs.iter().find(|a| a.name == name);
        let is_default = info.and_then(|i| i.default.value()).is_some_and(|d| same_attr(&d, value));
        if let Attr::Kernel(kernel) = value {
            items.push(format!("template = {}", kernel.template()));
        } else if !is_default && (kind, name) != (OpKind::Call, "callee") {
            items.push(format!("{name} = {}", attribute(info.map(|i| i.kind), value)));
        }
    }
    match items.is_empty() {
        true => String::new(),
        false => format!(" {{{}}}", items.join(", ")),
    }
}

fn attribute(kind: Option<AttrKind>, value: &Attr) -> String {
    match (kind, value) {
        (_, Attr::Float(x)) => float(*x),
        (Some(AttrKind::Func), Attr::Word(w)) => format!("@{w}"),
        (Some(AttrKind::Layout), Attr::Word(w)) => format!("#{w}"),
        _ => value.to_string(),
    }
}

/// Equality of attributes with floats compared by their bits, so that NaN equals itself and the two zeros differ.
pub(crate) fn same_attr(a: &Attr, b: &Attr) -> bool {
    match (a, b) {
        (Attr::Float(x), Attr::Float(y)) => x.to_bits() == y.to_bits(),
        _ => a == b,
    }
}

/// A float that reads back with the same bits.
pub(crate) fn float(x: f64) -> String {
    match x.is_nan() {
        true if x.to_bits() == f64::NAN.to_bits() => "nan".into(),
        true => format!("nan(0x{:x})", x.to_bits()),
        false => format!("{x:?}"),
    }
}

/// A string in double quotes.
pub(crate) fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() => {
                // Writing to a string cannot fail.
                let _ = write!(out, "\\u{{{:x}}}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&print(self))
    }
}

impl fmt::Display for Func {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&print_func(self))
    }
}

impl fmt::Display for SymDecl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sym {} in {}..={}", self.name, self.min, self.max)
    }
}

impl fmt::Display for StateDecl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StateDecl::Kv { name, heads, head_dim, page, window, dtype } => {
                write!(f, "kv {name} {{")?;
                if *dtype != super::KV_DTYPE {
                    write!(f, "dtype = {dtype}, ")?;
                }
                write!(f, "head_dim = {head_dim}, heads = {heads}, page = {page}")?;
                match window {
                    Some(w) => write!(f, ", window = {w}}}"),
                    None => f.write_str("}"),
                }
            }
            StateDecl::Counts { name, vocab } => write!(f, "counts {name} {{vocab = {vocab}}}"),
        }
    }
}

impl fmt::Display for WeightDecl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "weight @{} : {} = {}", self.name, self.ty, quote(&self.key))
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes: Vec<String> = self.sizes.iter().map(|(k, v)| format!("{k} = {v}")).collect();
        write!(f, "bucket {} {{{}}}", self.name, sizes.join(", "))
    }
}
