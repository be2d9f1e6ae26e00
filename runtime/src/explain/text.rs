//! An explanation for people, in a terminal.

use std::fmt::Write;

use super::build::sizes_text;
use super::{Explanation, Group, LaunchEntry, MeasuredStep, groups};

pub(super) fn text(e: &Explanation, kernel: Option<usize>) -> String {
    match kernel {
        Some(k) => card(e, k),
        None => overview(e),
    }
}

/// A number of microseconds, or nothing.
pub(super) fn us(x: Option<f64>) -> String {
    match x {
        Some(x) if x >= 1000.0 => format!("{x:.0}"),
        Some(x) if x >= 100.0 => format!("{x:.1}"),
        Some(x) => format!("{x:.2}"),
        None => "-".to_string(),
    }
}

/// What one row of a table says of a launch and its repetitions.
pub(super) struct Row {
    /// Number of the first launch.
    pub launch: usize,
    /// Microseconds of one.
    pub each: Option<f64>,
    /// Of all repetitions.
    pub all: Option<f64>,
    /// The least possible of one.
    pub roofline: Option<f64>,
    /// Share of the step, 0 to 1.
    pub share: Option<f64>,
    /// Measured mean of one, as a part of the step.
    pub measured: Option<f64>,
    /// The same by itself.
    pub alone: Option<f64>,
    /// Bytes of one.
    pub bytes: Option<f64>,
}

/// The rows of a group, in order.
pub(super) fn rows(e: &Explanation, group: &Group) -> Vec<Row> {
    let step = e.predicted_step_us();
    let n = group.count() as f64;
    group.launches[0]
        .iter()
        .enumerate()
        .map(|(at, launch)| {
            let l = &e.launches[*launch];
            let each = e.predicted_us(l);
            let all = each.map(|us| us * n);
            let mean = |of: fn(&LaunchEntry) -> Option<f64>| {
                let sum: Option<f64> = group.launches.iter().map(|s| of(&e.launches[s[at]])).sum();
                sum.map(|us| us / n)
            };
            let prediction = e.cards[l.card].prediction.as_ref().filter(|_| l.part == 0);
            Row {
                launch: *launch,
                each,
                all,
                roofline: e.roofline_us(l),
                share: all.zip(step).filter(|(_, step)| *step > 0.0).map(|(us, step)| us / step),
                measured: mean(|l| l.measured_us),
                alone: mean(|l| l.alone_us),
                bytes: prediction.map(|p| p.bytes),
            }
        })
        .collect()
}

/// `3.2 MB`.
pub(super) fn megabytes(bytes: Option<f64>) -> String {
    bytes.map_or("-".to_string(), |b| match b {
        b if b >= 100e6 => format!("{:.0} MB", b / 1e6),
        b if b >= 1e6 => format!("{:.1} MB", b / 1e6),
        b => format!("{:.3} MB", b / 1e6),
    })
}

fn overview(e: &Explanation) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail, here and below.
    let _ = writeln!(out, "{}, bucket {} ({})", e.name, e.bucket, sizes_text(&e.sizes));
    if !e.machine.is_empty() {
        let _ = writeln!(out, "predicted for {}", e.machine);
    }
    let passes: Vec<String> =
        e.stages[1..].iter().map(|s| if s.changed { s.name.clone() } else { format!("({})", s.name) }).collect();
    let _ = writeln!(out, "passes: {} (those in brackets changed nothing)\n", passes.join(", "));
    let measured = e.measured.is_some();
    let _ = write!(
        out,
        "{:>5}  {:<11} {:<52} {:>9} {:>8} {:>9} {:>6} {:>9}",
        "#", "template", "ops", "us each", "roofline", "us all", "%", "moves"
    );
    let _ = writeln!(out, "{}", if measured { format!(" {:>9} {:>9}", "measured", "alone") } else { String::new() });
    for group in groups(e) {
        let _ = writeln!(out, "{}", group.title());
        for r in rows(e, &group) {
            let card = &e.cards[e.launches[r.launch].card];
            let mut ops: String = card.summary.chars().take(52).collect();
            if e.launches[r.launch].part > 0 {
                ops = format!("  launch {} of the same", e.launches[r.launch].part + 1);
            }
            let share = r.share.map_or("-".to_string(), |s| format!("{:.1}", s * 100.0));
            let _ = write!(
                out,
                "{:>5}  {:<11} {ops:<52} {:>9} {:>8} {:>9} {share:>6} {:>9}",
                r.launch,
                card.template,
                us(r.each),
                us(r.roofline),
                us(r.all),
                megabytes(r.bytes)
            );
            let _ = writeln!(
                out,
                "{}",
                if measured { format!(" {:>9} {:>9}", us(r.measured), us(r.alone)) } else { String::new() }
            );
        }
    }
    let _ = writeln!(
        out,
        "\n{} launches of {} kernels; predicted {} us a step (100 %), roofline {} us",
        e.launches.len(),
        e.cards.len(),
        us(e.predicted_step_us()),
        us(e.total(|l| e.roofline_us(l)))
    );
    if let Some(m) = &e.measured {
        out.push_str(&measured_lines(m, e.total(|l| l.alone_us)));
    }
    let m = &e.memory;
    let _ = writeln!(
        out,
        "memory: arena {} bytes (most alive {}, without sharing {}), scratch {}",
        m.arena, m.live, m.unshared, m.scratch
    );
    out
}

/// What was measured of the whole step; `alone`: the sum of launches one by one.
pub(super) fn measured_lines(m: &MeasuredStep, alone: Option<f64>) -> String {
    let mut out = format!("measured {} us a step", us(Some(m.step_us)));
    let _ = write!(
        out,
        "; with time stamps {} us ({:+.1} %), which the launches above{} make up",
        us(Some(m.traced_us)),
        (m.traced_us / m.step_us.max(1e-9) - 1.0) * 100.0,
        if m.end_us > 0.0 {
            format!(" and {} us for feeding the next step", us(Some(m.end_us)))
        } else {
            String::new()
        }
    );
    let _ = writeln!(
        out,
        "\nnothing ran for {} us, the next launch had begun for {} us; launches one by one {} us",
        us(Some(m.gaps_us)),
        us(Some(m.overlap_us)),
        us(alone)
    );
    out
}

fn card(e: &Explanation, launch: usize) -> String {
    let Some(l) = e.launches.get(launch) else { return String::new() };
    let c = &e.cards[l.card];
    let mut out = format!("kernel {launch} of {}: {} [{}]\n", e.launches.len(), c.template, c.summary);
    let _ = writeln!(out, "value: %{}; template: {}", l.value, c.about);
    let equal = e.launches.iter().filter(|o| o.card == l.card && o.part == l.part).count();
    let _ = writeln!(out, "the same kernel runs {equal} times a step");
    out.push_str("\nrules, in order\n");
    match c.rules.is_empty() {
        true => out.push_str("  none: one op, one kernel\n"),
        false => c.rules.iter().enumerate().for_each(|(i, r)| {
            let _ = writeln!(out, "  {}. {}  takes in {}", i + 1, r.rule, r.op);
        }),
    }
    let _ = writeln!(out, "\nbefore\n{}\nafter\n{}", indent(&c.before), indent(&c.after));
    out.push_str("cost\n");
    match &c.prediction {
        Some(p) if l.part == 0 => {
            p.terms.iter().for_each(|(name, value)| {
                let _ = writeln!(out, "  {name:<22} {value}");
            });
        }
        Some(_) => out.push_str("  counted with the first launch of this kernel\n"),
        None => out.push_str("  unknown to the cost model\n"),
    }
    if let Some(measured) = l.measured_us {
        let _ = writeln!(out, "  {:<22} {} us of a step, {} us alone", "measured", us(Some(measured)), us(l.alone_us));
    }
    out.push_str("\nlaunch\n");
    let _ = writeln!(out, "  {:<22} {}", "entry", l.entry);
    if l.is_library_call() {
        let _ = writeln!(out, "  {:<22} {} bytes", "scratch", l.scratch);
        out.push_str("  a call of NVIDIA's cuBLASLt, which launches kernels of its own\n");
        return out;
    }
    let [x, y, z] = l.grid;
    let _ = writeln!(out, "  {:<22} {x} x {y} x {z} blocks of {} threads", "grid", l.block);
    let _ = writeln!(out, "  {:<22} {} bytes", "dynamic shared memory", l.shared);
    let _ = writeln!(out, "  {:<22} {} bytes", "scratch", l.scratch);
    let source = e.sources.get(&l.entry);
    match source.and_then(|s| s.resources) {
        Some(r) => {
            let _ = writeln!(out, "  {:<22} {} a thread", "registers", r.registers);
            let _ = writeln!(out, "  {:<22} {} bytes", "static shared memory", r.static_shared);
            let _ = writeln!(out, "  {:<22} {} bytes", "spills", r.spills);
            let _ = writeln!(out, "  {:<22} {} bytes", "cubin", r.cubin_bytes);
        }
        None => out.push_str("  not compiled\n"),
    }
    let _ = writeln!(out, "\nCUDA\n{}", source.map_or("", |s| &s.text));
    out
}

fn indent(text: &str) -> String {
    text.lines().map(|l| format!("  {l}\n")).collect()
}
