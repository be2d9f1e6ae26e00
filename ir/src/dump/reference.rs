//! The op reference, generated from the op table, so that the documentation cannot disagree with the code.

use std::fmt::Write;

use crate::op::{Arity, Class, OpInfo, OpKind};
use crate::text::float;

const CLASSES: [(Class, &str); 12] = [
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
    (Class::Kernel, "What fusion makes."),
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

#[cfg(test)]
mod tests {
    use super::reference;

    /// The rows of the table at the head of the verifier.
    fn rules() -> String {
        let source = include_str!("../verify/mod.rs");
        let rows = source.lines().filter_map(|l| l.strip_prefix("//! | ")).map(|l| format!("| {l}\n"));
        // `|------|` has no blank behind its first bar.
        let mut rows: Vec<String> = rows.collect();
        rows.insert(1, "|------|------------|\n".into());
        rows.concat().replace(" ([`roundtrip`], on request)", " (`verify::roundtrip`, on request)")
    }

    fn replace(text: &str, name: &str, body: &str) -> String {
        let open = format!("<!-- generated: {name} -->\n");
        let (head, rest) = text.split_once(&open).expect("docs/ir.md has the marker");
        let (_, tail) = rest.split_once("<!-- end -->").expect("docs/ir.md has the end marker");
        format!("{head}{open}\n{body}\n<!-- end -->{tail}")
    }

    #[test]
    fn the_documentation_holds_the_generated_reference() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/ir.md");
        let have = std::fs::read_to_string(&path).expect("docs/ir.md is there");
        let want = replace(&replace(&have, "rules", &rules()), "ops", &reference());
        if std::env::var("BLESS").is_ok_and(|v| v == "1") {
            // In one step: `the_example_is_right` may read it at the same time.
            let new = path.with_extension("md.new");
            std::fs::write(&new, want).and_then(|()| std::fs::rename(new, &path)).expect("docs/ir.md can be written");
            return;
        }
        assert!(have == want, "docs/ir.md is not up to date; run `BLESS=1 cargo test -p gossamer-ir reference`");
    }

    #[test]
    fn the_example_is_right() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/ir.md");
        let docs = std::fs::read_to_string(&path).expect("docs/ir.md is there");
        let example = docs.split("```text\n").find(|b| b.starts_with("gir 1")).expect("docs/ir.md has an example");
        let example = example.split("```").next().unwrap_or_default();
        let module = crate::text::parse("docs/ir.md", example).unwrap_or_else(|e| panic!("{}", e.render()));
        let verified = crate::verify::verify(&module, crate::verify::Stage::Tensor);
        assert_eq!(verified.unwrap_or_else(|e| panic!("{}", e.render(Some(("docs/ir.md", example))))).warnings, []);
        assert_eq!(module.to_string(), example);
    }

    #[test]
    fn every_op_has_an_entry_and_prose() {
        let text = reference();
        for kind in crate::OpKind::ALL {
            let info = kind.info();
            assert!(text.contains(&format!("#### `{}`\n", info.name)), "{}", info.name);
            assert!(info.summary.starts_with(char::is_uppercase) && !info.summary.ends_with('.'), "{}", info.name);
            assert!(info.doc.ends_with('.'), "{}", info.name);
        }
    }
}
