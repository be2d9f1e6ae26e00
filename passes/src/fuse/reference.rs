//! The rules as a page of documentation (`docs/rules.md`) and the dumps in `docs/passes.md`, both written from what the code does.

use std::fmt::Write as _;

use gossamer_ir::template::{TEMPLATES, Template};
use gossamer_ir::{Class, OpKind};

use super::rules::{How, RULES, Rule};
use crate::rule::Family;

/// `docs/rules.md`.
pub fn rules() -> String {
    let mut out = String::from(
        "# Rewrite rules and templates\n\n\
         Generated from `passes/src/fuse/rules.rs` and `ir/src/template.rs` by `BLESS=1 cargo test -p gossamer-passes reference`; do not edit.\n\
         What the pipeline does with them is in [passes.md](passes.md). `gossamer opt --list-rules` prints the rules, `--disable-rule NAME` switches one off,\n\
         `--enable-rule NAME` one on that is off.\n\n\
         ## Rules\n\n\
         A rule proposes, the template decides. Every proposal is an equality between the results of the new kernel and values that are there already; what is chosen is decided by cost\n\
         alone. There is no commutativity, no associativity, and no rule that splits a kernel.\n",
    );
    for family in [Family::Seed, Family::Grow, Family::Absorb, Family::Chain, Family::Fold] {
        let about = match family {
            Family::Seed => "An op becomes the main op of a kernel.",
            Family::Grow => {
                "A kernel takes in an op that reads its result. What the op reads is no longer a result, unless the table says so."
            }
            Family::Absorb => "A kernel takes in the op that makes one of its operands.",
            Family::Chain => "Two kernels, of which the second reads a result of the first, become the stages of one.",
            Family::Fold => "Work on weights and views that needs no kernel of a step.",
        };
        let _ = writeln!(out, "\n### {}\n\n{about}\n\n| rule | ops | what it does |\n|---|---|---|", family.name());
        for r in RULES.iter().filter(|r| r.info.family == family) {
            let off = r.info.off.map_or(String::new(), |why| format!("; off without `--enable-rule`: {why}"));
            let _ = writeln!(out, "| `{}` | {} | {}{off} |", r.info.name, ops(r), r.info.meaning);
        }
    }
    out.push_str(
        "\n## Templates\n\n\
         A template is a kind of kernel. Its row says what may stand in the regions of a kernel of that kind; the rules, the verifier (V12) and code generation read the same row.\n\n\
         | template | what it is | main op | prologue (operand: ops, from the outside in) | epilogue | rows | launches |\n|---|---|---|---|---|---|---|\n",
    );
    for t in TEMPLATES {
        let _ = writeln!(
            out,
            "| `{}` | {} | {} | {} | {} | {} | {} |",
            t.name,
            t.summary,
            if t.main.is_empty() { format!("none: {}", kinds(t.free)) } else { kinds(t.main) },
            prologue(t),
            epilogue(t),
            rows(t),
            t.launches
        );
    }
    out
}

fn ops(r: &Rule) -> String {
    match r.how {
        How::Seed("single") => "any".into(),
        _ => kinds(r.kinds),
    }
}

/// A list of ops; elementwise ones as one word where all are there.
fn kinds(list: &[OpKind]) -> String {
    if list.len() == OpKind::ALL.len() {
        return "any op".into();
    }
    let scalar: Vec<&OpKind> = list.iter().filter(|k| k.class() == Class::Elementwise).collect();
    let rest: Vec<String> = list
        .iter()
        .filter(|k| scalar.len() < 8 || k.class() != Class::Elementwise)
        .map(|k| format!("`{}`", k.name()))
        .collect();
    let mut parts = if scalar.len() >= 8 { vec!["scalar ops".to_string()] } else { vec![] };
    parts.extend(rest);
    parts.join(", ")
}

fn prologue(t: &Template) -> String {
    let slots: Vec<String> = t
        .prologue
        .iter()
        .map(|s| format!("{}: {}{}", s.operand, kinds(s.ops), if s.exports { " (may also be stored)" } else { "" }))
        .collect();
    slots.join("; ")
}

/// What may follow the main op, stage by stage.
fn epilogue(t: &Template) -> String {
    let earlier = t.earlier.iter().map(|e| format!("{}; then ", kinds(e.epilogue)));
    format!("{}{}", earlier.collect::<String>(), kinds(t.epilogue))
}

fn rows(t: &Template) -> String {
    match t.rows {
        (a, b) if b == i64::MAX => format!("{a} or more"),
        (a, b) => format!("{a} to {b}"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use gossamer_ir::text::print_func;
    use gossamer_models::{gpt_oss, presets, step};

    use super::*;
    use crate::{Options, bucket, compile, manager};

    fn docs(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name)
    }

    fn check(name: &str, want: &str) {
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(docs(name), want).unwrap();
        }
        let have = std::fs::read_to_string(docs(name)).unwrap_or_default();
        assert!(have == want, "docs/{name} is out of date; run BLESS=1 cargo test -p gossamer-passes reference");
    }

    #[test]
    fn the_rules_page_is_up_to_date() {
        check("rules.md", &rules());
    }

    /// The layer of the 20B model with a sliding window, after the named passes; `None`: before any.
    fn layer(passes: Option<&str>, tokens: usize) -> (String, Option<super::super::FuncReport>) {
        let o =
            step::StepOptions { head: step::Head::Greedy, max_tokens: 8192, max_seqs: 256, context: 1024, page: 64 };
        let module = gpt_oss::build(&presets::gpt_oss_20b(), &o).unwrap().module;
        let sizes = bucket::sizes(tokens, 1, 1, 1024, 16);
        let options = Options { mxfp4_layout: Some("mx64.fast".into()), sizes, ..Options::default() };
        let passes = manager::parse_pipeline(passes.unwrap_or("none")).unwrap();
        let (module, trace) = compile(module, &passes, &options).unwrap();
        let report = trace.passes.into_iter().find_map(|p| p.fusion);
        let layer = module.funcs.iter().find(|f| f.name.starts_with("layer_window")).unwrap();
        let report = report.and_then(|r| r.funcs.into_iter().find(|f| f.name == layer.name));
        (print_func(layer), report)
    }

    /// Kernel by kernel: what is inside, and the rules in the order in which they were applied.
    fn table(report: &super::super::FuncReport) -> String {
        let mut out = String::from("| kernel | rules in order |\n|---|---|\n");
        for k in &report.kernels {
            let rules: Vec<String> = k.history.iter().map(|o| format!("`{}`", o.rule)).collect();
            let _ = writeln!(out, "| `{}` | {} |", k.kernel.summary().replace('|', "/"), rules.join(" "));
        }
        out
    }

    #[test]
    fn the_dumps_in_the_passes_page_are_real() {
        let page = std::fs::read_to_string(docs("passes.md")).unwrap();
        let (source, _) = layer(None, 1);
        let (decode, decode_report) = layer(Some("default"), 1);
        let (_, prefill_report) = layer(Some("default"), 2048);
        let text = |s: &str| format!("```text\n{}```\n", body(s));
        let mut want = page.clone();
        for (name, block) in [
            ("source", text(&source)),
            ("decode", text(&decode)),
            ("decode-kernels", table(&decode_report.unwrap())),
            ("prefill-kernels", table(&prefill_report.unwrap())),
        ] {
            want = splice(&want, name, &block);
        }
        check("passes.md", &want);
    }

    /// The statements: the long header says nothing new.
    fn body(func: &str) -> String {
        func.lines().skip(1).filter(|l| *l != "}").map(|l| format!("{}\n", l.strip_prefix("  ").unwrap_or(l))).collect()
    }

    /// `page` with what stands between the markers of `name` replaced.
    fn splice(page: &str, name: &str, block: &str) -> String {
        let (open, close) = (format!("<!-- {name} -->\n"), format!("<!-- end {name} -->"));
        let (before, rest) = page.split_once(&open).unwrap_or_else(|| panic!("docs/passes.md has no `{open}`"));
        let (_, after) = rest.split_once(&close).unwrap_or_else(|| panic!("docs/passes.md has no `{close}`"));
        format!("{before}{open}{block}{close}{after}")
    }
}
