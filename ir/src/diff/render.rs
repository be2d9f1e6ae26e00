//! A difference as text and as JSON.

use std::fmt::Write;

use serde_json::{Value as Json, json};

use super::{FuncDiff, ModuleDiff, OpChange};

/// Version of the JSON form, in its field `version`.
const VERSION: u32 = 1;

impl ModuleDiff {
    /// For people: `-` removed, `+` added, `<` and `>` the two forms of what changed, with what changed behind the second.
    pub fn text(&self) -> String {
        let mut out = String::new();
        if self.is_empty() {
            // Writing to a string cannot fail, here and below.
            let _ = writeln!(out, "the same: {} functions, {} ops", self.same.0, self.same.1);
            return out;
        }
        for d in &self.decls {
            match (&d.before, &d.after) {
                (Some(before), Some(after)) => {
                    let _ = writeln!(out, "< {before}\n> {after}");
                }
                (before, after) => {
                    for (mark, line) in before.iter().map(|l| ('-', l)).chain(after.iter().map(|l| ('+', l))) {
                        let _ = writeln!(out, "{mark} {line}");
                    }
                }
            }
        }
        for f in &self.funcs {
            func_text(&mut out, f, "func @", "");
        }
        out
    }

    /// For tools: `{"version": 1, "equal": .., "decls": [..], "funcs": [..]}`.
    pub fn json(&self) -> Json {
        json!({
            "version": VERSION,
            "equal": self.is_empty(),
            "decls": self.decls.iter().map(|d| json!({
                "kind": d.kind, "name": d.name, "change": change(&d.before, &d.after), "before": d.before, "after": d.after,
            })).collect::<Vec<_>>(),
            "funcs": self.funcs.iter().map(func_json).collect::<Vec<_>>(),
            "same": json!({"funcs": self.same.0, "ops": self.same.1}),
        })
    }
}

fn change(before: &Option<String>, after: &Option<String>) -> &'static str {
    match (before, after) {
        (Some(_), None) => "removed",
        (None, Some(_)) => "added",
        _ => "changed",
    }
}

fn func_text(out: &mut String, f: &FuncDiff, label: &str, indent: &str) {
    let count = |wanted: &str| f.changes.iter().filter(|c| change(&c.before, &c.after) == wanted).count();
    let mut parts = Vec::new();
    match (f.before, f.after) {
        (Some(n), None) => parts.push(format!("removed, {n} ops")),
        (None, Some(n)) => parts.push(format!("added, {n} ops")),
        _ => {
            for kind in ["removed", "added", "changed"] {
                let n = count(kind);
                if n > 0 {
                    parts.push(format!("{n} {kind}"));
                }
            }
            parts.push(format!("{} the same", f.same));
        }
    }
    let _ = writeln!(out, "{indent}{label}{}: {}", f.name, parts.join(", "));
    let deeper = format!("{indent}  ");
    if let Some((before, after)) = &f.signature {
        let _ = writeln!(out, "{deeper}< {before}\n{deeper}> {after}");
    }
    for c in &f.changes {
        op_text(out, c, &deeper);
    }
    if let Some((before, after)) = &f.results {
        let _ = writeln!(out, "{deeper}< {before}\n{deeper}> {after}  ; other values");
    }
}

fn op_text(out: &mut String, c: &OpChange, indent: &str) {
    let mut put = |mark: char, text: &str, note: &str| {
        for (i, line) in text.lines().enumerate() {
            let _ = match i {
                0 => writeln!(out, "{indent}{mark} {line}{note}"),
                _ => writeln!(out, "{indent}{mark} {line}"),
            };
        }
    };
    match (&c.before, &c.after) {
        (Some(before), None) => put('-', before, ""),
        (None, Some(after)) => put('+', after, ""),
        (Some(before), Some(after)) => {
            // Bodies of kernels are the same, or the regions below say how they differ.
            let head = |text: &str| text.lines().next().unwrap_or_default().to_string();
            let what: Vec<&str> = c.what.iter().map(|w| w.name()).collect();
            put('<', &head(before), "");
            put('>', &head(after), &format!("  ; {}", what.join(", ")));
        }
        (None, None) => {}
    }
    for r in &c.regions {
        func_text(out, r, "", &format!("{indent}  "));
    }
}

fn func_json(f: &FuncDiff) -> Json {
    let pair = |p: &Option<(String, String)>| p.as_ref().map(|(a, b)| json!({"before": a, "after": b}));
    json!({
        "name": f.name,
        "ops_before": f.before,
        "ops_after": f.after,
        "same": f.same,
        "signature": pair(&f.signature),
        "changes": f.changes.iter().map(|c| json!({
            "change": change(&c.before, &c.after),
            "before": c.before,
            "after": c.after,
            "what": c.what.iter().map(|w| w.name()).collect::<Vec<_>>(),
            "regions": c.regions.iter().map(func_json).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "results": pair(&f.results),
    })
}
