//! The op reference, generated from the op table, so that the documentation cannot disagree with the code.

use std::fmt::Write;

use crate::op::{Arity, Class, OpInfo, OpKind};
use crate::text::float;

const CLASSES: [(Class, &str); 11] = [
    (Class::Leaf, "Leaves: parameters, weights and constants."),
    (Class::View, "They change how elements are addressed, not what they are."),
    (Class::Elementwise, "Each result element depends on one element of each operand (after suffix broadcast)."),
    (Class::Reduction, "They combine the elements of an axis."),
    (Class::Contraction, "Sums of products over a shared axis. Weights are `[N, K]`, one row an output."),
    (Class::Quant, "Conversion between packed and plain weights."),
    (Class::Indexing, "They pick elements by index."),
    (
        Class::Composite,
        "Kept whole so that no pass has to recognise them again; those with a decomposition have it in `ir/src/decomp/`.",
    ),
    (Class::State, "They replace state."),
    (Class::Sampling, "They choose tokens."),
    (Class::Call, "Calls of functions."),
];

/// Markdown with one section a class and one entry an op, in the order of the table.
pub fn reference() -> String {
    let mut out = String::new();
    for (class, about) in CLASSES {
        let ops: Vec<OpKind> = OpKind::ALL.iter().copied().filter(|k| k.class() == class).collect();
        if !ops.is_empty() {
            let names: Vec<String> = ops.iter().map(|k| format!("`{}`", k.name())).collect();
            put(&mut out, format_args!("### {}\n\n{about} Ops: {}.\n", class.name(), names.join(", ")));
            for kind in ops {
                entry(&mut out, kind.info());
            }
        }
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = out.write_fmt(text);
    out.push('\n');
}

fn entry(out: &mut String, info: &OpInfo) {
    put(out, format_args!("#### `{}`\n\n{}. {}\n", info.name, info.summary, info.doc));
    let named = |arity, name: &str| match arity {
        Arity::One => format!("`{name}`"),
        Arity::Optional => format!("`{name}` (optional)"),
        Arity::Many => format!("`{name}` (any number)"),
    };
    for o in info.operands {
        put(out, format_args!("- operand {}: {}", named(o.arity, o.name), o.doc));
    }
    for a in info.attrs {
        let default = match a.default.value() {
            None => "required".to_string(),
            Some(crate::Attr::Float(x)) => format!("default {}", float(x)),
            Some(v) => format!("default {v}"),
        };
        put(out, format_args!("- attribute `{}`: {}; {}; {default}", a.name, a.doc, a.kind));
    }
    let results: Vec<String> = info.results.iter().map(|r| format!("`{r}`")).collect();
    if !results.is_empty() {
        put(out, format_args!("- result{}: {}", if results.len() > 1 { "s" } else { "" }, results.join(", ")));
    }
    match info.tolerance {
        0.0 => put(out, format_args!("- tolerance: bit-exact")),
        t => put(out, format_args!("- tolerance: relative error {t:?}")),
    }
    if let Some(text) = info.decomposition.map(str::trim).filter(|t| !t.is_empty()) {
        put(out, format_args!("- decomposition:\n\n```text\n{text}\n```"));
    }
    out.push('\n');
}
