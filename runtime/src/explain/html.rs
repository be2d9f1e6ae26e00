//! An explanation as one page: numbers, table, data flow, passes side by side, and a card a kernel. No script; nothing is loaded.

use std::collections::BTreeMap;
use std::fmt::Write;

use gossamer_ir::dump::{card as op_card, escape, page, svg_func};
use gossamer_ir::{Func, OpKind, text};

use super::build::sizes_text;
use super::sides::{Row as SideRow, rows as side_rows};
use super::text::{megabytes, rows, us};
use super::{Card, Explanation, groups};

pub(super) fn html(e: &Explanation) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail, here and below.
    let _ = writeln!(
        out,
        "<h1>{}</h1>\n<p class=\"soft\">bucket {} ({}){}</p>",
        escape(&e.name),
        escape(&e.bucket),
        escape(&sizes_text(&e.sizes)),
        if e.machine.is_empty() { String::new() } else { format!("; predicted for {}", escape(&e.machine)) }
    );
    out.push_str("<nav><a href=\"#step\">step</a><a href=\"#flow\">data flow</a><a href=\"#passes\">passes</a><a href=\"#kernels\">kernels</a></nav>\n");
    facts(&mut out, e);
    table(&mut out, e);
    flow(&mut out, e);
    passes(&mut out, e);
    out.push_str("<h2 id=\"kernels\">Kernels</h2>\n");
    e.cards.iter().enumerate().for_each(|(i, c)| card(&mut out, e, i, c));
    page(&format!("{} {}", e.name, e.bucket), &out)
}

fn facts(out: &mut String, e: &Explanation) {
    out.push_str("<div class=\"facts\">");
    let mut fact = |value: String, what: &str| {
        let _ = write!(out, "<div class=\"fact\"><b>{}</b><span>{what}</span></div>", escape(&value));
    };
    fact(e.launches.len().to_string(), "launches a step");
    fact(e.cards.len().to_string(), "distinct kernels");
    if let Some(x) = e.predicted_step_us() {
        fact(format!("{} \u{b5}s", us(Some(x))), "predicted");
    }
    if let Some(x) = e.total(|l| e.roofline_us(l)) {
        fact(format!("{} \u{b5}s", us(Some(x))), "roofline");
    }
    if let Some(m) = &e.measured {
        for (value, what) in [
            (m.step_us, "measured"),
            (m.traced_us, "with time stamps"),
            (m.gaps_us, "nothing ran"),
            (m.overlap_us, "next launch had begun"),
        ] {
            fact(format!("{} \u{b5}s", us(Some(value))), what);
        }
        if let Some(sum) = e.total(|l| l.alone_us) {
            fact(format!("{} \u{b5}s", us(Some(sum))), "launches one by one");
        }
    }
    fact(megabytes(Some(e.memory.arena as f64)), "arena");
    fact(megabytes(Some(e.memory.unshared as f64)), "without sharing");
    fact(megabytes(Some(e.memory.scratch as f64)), "scratch");
    out.push_str("</div>\n");
}

fn table(out: &mut String, e: &Explanation) {
    let measured = e.measured.is_some();
    out.push_str("<h2 id=\"step\">The step</h2>\n<table class=\"data\"><tr><th>#</th><th class=\"name\">template</th><th class=\"name\">ops</th><th>moves</th><th>\u{b5}s each</th><th>roofline</th>");
    if measured {
        out.push_str("<th>measured</th><th>alone</th>");
    }
    out.push_str("<th>\u{b5}s all</th><th>%</th><th></th></tr>\n");
    let columns = if measured { 11 } else { 9 };
    let all = groups(e);
    let greatest = all.iter().flat_map(|g| rows(e, g)).filter_map(|r| r.share).fold(0.0, f64::max);
    for group in &all {
        let _ = writeln!(out, "<tr class=\"group\"><td colspan=\"{columns}\">{}</td></tr>", escape(&group.title()));
        for r in rows(e, group) {
            let l = &e.launches[r.launch];
            let c = &e.cards[l.card];
            let ops = match l.part {
                0 => escape(&c.summary),
                n => format!("launch {} of the same kernel", n + 1),
            };
            let _ = write!(
                out,
                "<tr><td>{}</td><td class=\"name\"><a href=\"#k{}\">{}</a></td><td class=\"name\">{ops}</td><td>{}</td><td>{}</td><td>{}</td>",
                r.launch,
                l.card,
                escape(&c.template),
                megabytes(r.bytes),
                us(r.each),
                us(r.roofline)
            );
            if measured {
                let _ = write!(out, "<td>{}</td><td>{}</td>", us(r.measured), us(r.alone));
            }
            let share = r.share.unwrap_or(0.0);
            let _ = writeln!(
                out,
                "<td>{}</td><td>{}</td><td class=\"share\"><span class=\"meter\" style=\"width:{:.1}%\"></span></td></tr>",
                us(r.all),
                r.share.map_or("-".to_string(), |s| format!("{:.1}", s * 100.0)),
                if greatest > 0.0 { share / greatest * 100.0 } else { 0.0 }
            );
        }
    }
    let _ = write!(
        out,
        "<tr class=\"total\"><td></td><td class=\"name\" colspan=\"2\">the step</td><td></td><td></td><td>{}</td>",
        us(e.total(|l| e.roofline_us(l)))
    );
    if let Some(m) = &e.measured {
        let _ = write!(out, "<td>{}</td><td>{}</td>", us(Some(m.traced_us)), us(e.total(|l| l.alone_us)));
    }
    let _ = writeln!(
        out,
        "<td>{}</td><td>{}</td><td></td></tr></table>",
        us(e.predicted_step_us()),
        e.predicted_step_us().map_or("-", |_| "100")
    );
}

/// The data flow of each function that holds ops of its own.
fn flow(out: &mut String, e: &Explanation) {
    out.push_str("<h2 id=\"flow\">Data flow</h2>\n<p class=\"soft\">A box is a kernel, read from top to bottom; a line is a value. Click a box for its card.</p>\n");
    let by_key: BTreeMap<&str, usize> =
        e.cards.iter().enumerate().filter(|(_, c)| !c.key.is_empty()).map(|(i, c)| (&*c.key, i)).collect();
    let drawn = |f: &&Func| !f.graph.ids().iter().any(|id| f.graph.op(*id).kind == OpKind::Call);
    let (layers, callers): (Vec<&Func>, Vec<&Func>) = e.module.funcs.iter().partition(drawn);
    for (i, f) in layers.into_iter().chain(callers).enumerate() {
        let total: f64 = f
            .graph
            .ids()
            .iter()
            .filter_map(|id| by_key.get(&**f.graph.op(*id).attrs.kernel()?.key()))
            .filter_map(|c| Some(e.cards[*c].prediction.as_ref()?.total_us))
            .sum();
        let picture = svg_func(f, &|id| {
            let mut card = op_card(f, id);
            let found = f.graph.op(id).attrs.kernel().and_then(|k| by_key.get(&**k.key()));
            if let Some(c) = found {
                card.link = format!("#k{c}");
                if let Some(p) = &e.cards[*c].prediction {
                    card.aside = format!("{} \u{b5}s \u{b7} {}", us(Some(p.total_us)), megabytes(Some(p.bytes)));
                    card.share_permille = if total > 0.0 { (p.total_us / total * 1000.0) as i32 } else { -1 };
                }
            }
            card
        });
        let _ = writeln!(
            out,
            "<details{}><summary>@{}<span class=\"num\">{}</span></summary><div class=\"inner beside\"><div>{picture}</div><pre>{}</pre></div></details>",
            if i == 0 { " open" } else { "" },
            escape(&f.name),
            if total > 0.0 { format!("{} \u{b5}s", us(Some(total))) } else { String::new() },
            escape(&text::print_func(f))
        );
    }
}

fn passes(out: &mut String, e: &Explanation) {
    out.push_str(
        "<h2 id=\"passes\">Passes</h2>\n<p class=\"soft\">Each pass that changed something, before and after. \
         <span class=\"key del\">removed</span> <span class=\"key add\">added</span> <span class=\"key moved\">under another name or inside a kernel</span></p>\n",
    );
    let mut before: BTreeMap<&str, &str> = BTreeMap::new();
    for (i, stage) in e.stages.iter().enumerate() {
        let tag = if stage.changed {
            "<span class=\"tag changed\">changed</span>"
        } else {
            "<span class=\"tag\">no change</span>"
        };
        let what = match i {
            0 => format!("{} ops", stage.ops.1),
            _ => format!("{} \u{2192} {} ops", stage.ops.0, stage.ops.1),
        };
        let _ = write!(
            out,
            "<details><summary><code>{}</code> {} {}<span class=\"num\">{what}</span></summary><div class=\"inner\">",
            escape(&stage.name),
            escape(&stage.summary),
            if i == 0 { "" } else { tag }
        );
        let after: BTreeMap<&str, &str> = stage.funcs.iter().map(|(n, t)| (&**n, &**t)).collect();
        for (name, text) in &stage.funcs {
            match before.get(&**name) {
                _ if i == 0 => {
                    let _ = write!(out, "<h3>@{}</h3><pre>{}</pre>", escape(name), escape(text));
                }
                Some(old) if old == text => {}
                old => {
                    let _ = write!(out, "<h3>@{}</h3>", escape(name));
                    sides(out, old.unwrap_or(&""), text, 3);
                }
            }
        }
        if stage.changed {
            for name in before.keys().filter(|n| !after.contains_key(**n)) {
                let _ = write!(out, "<p>@{} was removed.</p>", escape(name));
            }
            before = after;
        }
        out.push_str("</div></details>\n");
    }
}

/// Two texts beside each other; `context` equal lines around each change, all if it is `usize::MAX`.
fn sides(out: &mut String, left: &str, right: &str, context: usize) {
    let rows = side_rows(left, right);
    let near = |i: usize| {
        let from = i.saturating_sub(context);
        rows[from..rows.len().min(i.saturating_add(context).saturating_add(1))]
            .iter()
            .any(|r| !matches!(r, SideRow::Same(_)))
    };
    out.push_str("<table class=\"sides\">");
    let mut skipped = 0;
    for (i, row) in rows.iter().enumerate() {
        match row {
            SideRow::Same(_) if i > 0 && i + 1 < rows.len() && !near(i) => {
                skipped += 1;
                continue;
            }
            _ => flush_skipped(out, &mut skipped),
        }
        let _ = match row {
            SideRow::Same(line) => write!(out, "<tr><td>{0}</td><td>{0}</td></tr>", escape(line)),
            SideRow::Moved(l, r) => {
                write!(out, "<tr><td class=\"moved\">{}</td><td class=\"moved\">{}</td></tr>", escape(l), escape(r))
            }
            SideRow::Changed(l, r) => {
                let cell = |line: &Option<&str>, class: &str| match line {
                    Some(line) => format!("<td class=\"{class}\">{}</td>", escape(line)),
                    None => "<td></td>".to_string(),
                };
                writeln!(out, "<tr>{}{}</tr>", cell(l, "del"), cell(r, "add"))
            }
        };
    }
    flush_skipped(out, &mut skipped);
    out.push_str("</table>\n");
}

fn flush_skipped(out: &mut String, skipped: &mut usize) {
    if *skipped > 0 {
        let _ = write!(out, "<tr class=\"skip\"><td colspan=\"2\">{skipped} equal lines</td></tr>");
    }
    *skipped = 0;
}

fn card(out: &mut String, e: &Explanation, index: usize, c: &Card) {
    let times = e.launches.iter().filter(|l| l.card == index && l.part == 0).count();
    let predicted = c.prediction.as_ref().map_or(String::new(), |p| format!(", {} \u{b5}s each", us(Some(p.total_us))));
    let _ = write!(
        out,
        "<details id=\"k{index}\"><summary><b>{}</b> {}<span class=\"num\">{times} \u{d7}{predicted}</span></summary><div class=\"inner\">\n\
         <p class=\"soft\">{}: {}. First launch: {}.</p>\n",
        escape(&c.template),
        escape(&c.summary),
        escape(&c.template),
        escape(&c.about),
        c.launches.first().map_or("-".to_string(), usize::to_string)
    );
    out.push_str("<div class=\"two\"><div><h3>Rules, in order</h3>\n");
    match c.rules.is_empty() {
        true => out.push_str("<p>None: one op, one kernel.</p>"),
        false => {
            out.push_str("<ol class=\"chain\">");
            for r in &c.rules {
                let _ = write!(
                    out,
                    "<li><code>{}</code> <span class=\"soft\">takes in {}</span></li>",
                    escape(&r.rule),
                    escape(&r.op)
                );
            }
            out.push_str("</ol>");
        }
    }
    out.push_str("</div><div><h3>Cost</h3>\n");
    match &c.prediction {
        Some(p) => {
            out.push_str("<dl class=\"terms\">");
            for (name, value) in &p.terms {
                let _ = write!(out, "<dt>{}</dt><dd>{}</dd>", escape(name), escape(value));
            }
            let first = c.launches.first().and_then(|l| e.launches[*l].measured_us);
            if let Some(x) = first {
                let _ = write!(out, "<dt>measured</dt><dd>{} \u{b5}s</dd>", us(Some(x)));
            }
            out.push_str("</dl>");
        }
        None => out.push_str("<p>Unknown to the cost model.</p>"),
    }
    out.push_str("</div></div>\n<h3>Before and after</h3>\n");
    sides(out, &c.before, &c.after, usize::MAX);
    for launch in &c.launches {
        let l = &e.launches[*launch];
        let source = e.sources.get(&l.entry);
        let [x, y, z] = l.grid;
        let _ = write!(out, "<h3>Launch</h3><dl class=\"terms\"><dt>entry</dt><dd>{}</dd>", escape(&l.entry));
        if l.is_library_call() {
            let _ = write!(out, "<dt>scratch</dt><dd>{} bytes</dd></dl>", l.scratch);
            out.push_str("<p>A call of NVIDIA's cuBLASLt, which launches kernels of its own.</p>");
            continue;
        }
        let _ = write!(out, "<dt>grid</dt><dd>{x} \u{d7} {y} \u{d7} {z} blocks of {} threads</dd>", l.block);
        let _ = write!(out, "<dt>shared memory</dt><dd>{} bytes dynamic", l.shared);
        match source.and_then(|s| s.resources) {
            Some(r) => {
                let warn = if r.spills > 0 { " class=\"warn\"" } else { "" };
                let _ = write!(
                    out,
                    ", {} static</dd><dt>registers</dt><dd>{} a thread</dd><dt>spills</dt><dd{warn}>{} bytes</dd><dt>cubin</dt><dd>{} bytes</dd>",
                    r.static_shared, r.registers, r.spills, r.cubin_bytes
                );
            }
            None => out.push_str("</dd><dt>registers</dt><dd>not compiled</dd>"),
        }
        let _ = write!(out, "<dt>scratch</dt><dd>{} bytes</dd></dl>", l.scratch);
        let text = source.map_or("", |s| &s.text);
        let _ = writeln!(
            out,
            "<details><summary>CUDA<span class=\"num\">{} lines</span></summary><div class=\"inner\"><pre>{}</pre></div></details>",
            text.lines().count(),
            escape(text)
        );
    }
    out.push_str("</div></details>\n");
}
