//! The table of a step's kernels: equal launches together, in the order of the first, with what they move against what the device can read.

use std::fmt::Write as _;

use serde_json::{Value as Json, json};

use crate::exec::{Probe, Profile};

/// Launches of one kernel in a step, together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// Entry name: the symbol that is launched.
    pub name: String,
    /// The op of its first launch.
    pub op: String,
    /// Launches.
    pub count: usize,
    /// Part of the step, in microseconds.
    pub us: f64,
    /// By themselves.
    pub alone_us: f64,
    /// Bytes moved.
    pub bytes: f64,
}

/// The launches of a profile by kernel.
pub fn rows(profile: &Profile) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for l in &profile.launches {
        let at = rows.iter().position(|r| r.name == l.name).unwrap_or_else(|| {
            rows.push(Row { name: l.name.clone(), op: l.op.clone(), ..Row::default() });
            rows.len() - 1
        });
        let row = &mut rows[at];
        row.count += 1;
        row.us += l.part_us;
        row.alone_us += l.alone_us;
        row.bytes += l.bytes;
    }
    rows
}

/// Share of what the device can read in `us` microseconds.
fn fraction(bytes: f64, us: f64, probe: &Probe) -> Option<f64> {
    (us > 0.0 && probe.read > 0.0 && bytes > 0.0).then(|| bytes / (us * 1e-6) / probe.read)
}

fn percent(x: Option<f64>) -> String {
    x.map_or("-".into(), |x| format!("{:.1}", x * 100.0))
}

/// The table as text, with the step's total and what the launches do not show.
pub fn text(profile: &Profile, probe: &Probe) -> String {
    let rows = rows(profile);
    let total = profile.traced_us();
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "  {:>5} {:>9} {:>6} {:>9} {:>9} {:>6} {:>7}  kernel",
        "count", "us", "%", "us alone", "MB", "TB/s", "% roof"
    );
    let mut line = |count: String, us: f64, alone: Option<f64>, bytes: f64, name: &str| {
        let rate = (us > 0.0 && bytes > 0.0).then(|| bytes / us / 1e6);
        let _ = writeln!(
            out,
            "  {count:>5} {us:>9.1} {:>6.1} {:>9} {:>9.2} {:>6} {:>7}  {name}",
            us / total.max(1e-9) * 100.0,
            alone.map_or("-".into(), |a| format!("{a:.1}")),
            bytes / 1e6,
            rate.map_or("-".into(), |r| format!("{r:.2}")),
            percent(fraction(bytes, us, probe)),
        );
    };
    for r in &rows {
        line(r.count.to_string(), r.us, Some(r.alone_us), r.bytes, &r.name);
    }
    if profile.end_us > 0.0 {
        line("1".into(), profile.end_us, None, 0.0, "feeding the next step");
    }
    let (alone, bytes) = (rows.iter().map(|r| r.alone_us).sum(), rows.iter().map(|r| r.bytes).sum());
    line("".into(), total, Some(alone), bytes, "the step, with time stamps in every kernel");
    let _ = writeln!(
        out,
        "  without time stamps {:.1} us; nothing ran for {:.1} us, the next kernel had begun for {:.1} us",
        profile.step_us, profile.gaps_us, profile.overlap_us
    );
    out
}

/// The table for tools.
pub fn json(profile: &Profile, probe: &Probe) -> Json {
    let kernels: Vec<Json> = rows(profile)
        .iter()
        .map(|r| {
            json!({
                "name": r.name, "op": r.op, "count": r.count, "us": r.us, "alone_us": r.alone_us, "bytes": r.bytes,
                "tb_per_s": (r.us > 0.0 && r.bytes > 0.0).then(|| r.bytes / r.us / 1e6),
                "roofline_fraction": fraction(r.bytes, r.us, probe),
            })
        })
        .collect();
    json!({
        "kernels": kernels,
        "step_end_us": profile.end_us,
        "traced_step_us": profile.traced_us(),
        "step_us": profile.step_us,
        "gaps_us": profile.gaps_us,
        "overlap_us": profile.overlap_us,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::LaunchTime;

    fn profile() -> Profile {
        let launch = |name: &str, part_us, bytes| LaunchTime {
            name: name.into(),
            op: "kernel (%x)".into(),
            part_us,
            alone_us: part_us + 1.0,
            bytes,
        };
        let launches = vec![launch("a", 2.0, 4e6), launch("b", 1.0, 0.0), launch("a", 3.0, 4e6)];
        Profile { launches, end_us: 0.5, gaps_us: 0.1, overlap_us: 2.0, step_us: 6.4 }
    }

    #[test]
    fn equal_kernels_share_a_row() {
        let rows = rows(&profile());
        assert_eq!(rows.iter().map(|r| (&*r.name, r.count, r.us)).collect::<Vec<_>>(), [("a", 2, 5.0), ("b", 1, 1.0)]);
        assert_eq!((rows[0].alone_us, rows[0].bytes), (7.0, 8e6));
    }

    #[test]
    fn parts_are_all_of_the_step() {
        let probe = Probe { read: 3.2e12, ..Probe::default() };
        let value = json(&profile(), &probe);
        assert_eq!(value["traced_step_us"], 6.5);
        let near = |key: &str, expected: f64| (value["kernels"][0][key].as_f64().unwrap() - expected).abs() < 1e-9;
        assert!(near("tb_per_s", 1.6) && near("roofline_fraction", 0.5), "{value}");
        assert!(value["kernels"][1]["tb_per_s"].is_null());
        let text = text(&profile(), &probe);
        assert!(text.contains("feeding the next step") && text.contains("100.0"), "{text}");
    }
}
