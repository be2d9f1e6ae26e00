//! Two reports of one benchmark, figure by figure.

use std::fmt::Write as _;

use serde_json::Value as Json;

/// What a comparison found.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// A line each figure.
    pub text: String,
    /// Cases that got worse by more than the tolerance, with by how much (0.05: 5 %).
    pub worse: Vec<(String, f64)>,
}

/// A report that cannot be compared, as one line's end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotComparable {
    /// Not a report.
    #[error("is no report of `gossamer bench` (no list `results`); write one with --json")]
    NoReport,
    /// Another benchmark or version.
    #[error("has {key} {found}, this report has {expected}; compare reports of the same benchmark")]
    Other {
        /// The key that differs.
        key: &'static str,
        /// Its value there.
        found: String,
        /// Its value here.
        expected: String,
    },
    /// Nothing in common.
    #[error("has no case in common with this report; ask for the same lists")]
    Nothing,
}

/// Compares `new` with `old`: every number under `metrics` of the cases that both have. A case is worse if its first figure fell by more than `tolerance`
/// (a rate), or rose (a time, whose name ends in `_s`, `_us` or `_ms` without `per`).
///
/// # Errors
/// See [`NotComparable`].
pub fn compare(old: &Json, new: &Json, tolerance: f64) -> Result<Comparison, NotComparable> {
    let results = |report: &Json| report["results"].as_array().cloned();
    let (Some(before), Some(after)) = (results(old), results(new)) else { return Err(NotComparable::NoReport) };
    for key in ["version", "bench"] {
        if old[key] != new[key] {
            return Err(NotComparable::Other { key, found: old[key].to_string(), expected: new[key].to_string() });
        }
    }
    let (mut text, mut worse, mut common) = (String::new(), Vec::new(), 0);
    // Writing to a string cannot fail.
    for key in ["model", "device"] {
        if old[key] != new[key] {
            let _ = writeln!(text, "note: {key} was {}, is {}", old[key], new[key]);
        }
    }
    for case in &after {
        let name = case["name"].as_str().unwrap_or("");
        let Some(was) = before.iter().find(|b| b["name"] == case["name"]) else {
            let _ = writeln!(text, "{name}: new");
            continue;
        };
        common += 1;
        let _ = writeln!(text, "{name}");
        let metrics = case["metrics"].as_object().into_iter().flatten();
        for (i, (metric, now)) in metrics.enumerate() {
            let (Some(now), Some(then)) = (now.as_f64(), was["metrics"][metric].as_f64()) else { continue };
            let change = if then != 0.0 { now / then - 1.0 } else { 0.0 };
            let _ = writeln!(text, "  {metric:<24} {then:>14.3} {now:>14.3} {:>+8.2} %", change * 100.0);
            let loss = if is_time(metric) { change } else { -change };
            if i == 0 && loss > tolerance {
                worse.push((name.to_string(), loss));
            }
        }
    }
    match common {
        0 => Err(NotComparable::Nothing),
        _ => Ok(Comparison { text, worse }),
    }
}

/// True if less is better.
fn is_time(metric: &str) -> bool {
    !metric.contains("per_") && ["_s", "_us", "_ms"].iter().any(|unit| metric.ends_with(unit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn report(rate: f64) -> Json {
        json!({"version": 1, "bench": "decode", "results": [
            {"name": "batch 1", "metrics": {"tokens_per_s": rate, "step_us": 1e6 / rate, "experts": null}},
        ]})
    }

    #[test]
    fn a_slower_case_is_named() {
        let same = compare(&report(100.0), &report(99.0), 0.03).unwrap();
        assert!(same.worse.is_empty() && same.text.contains("-1.00 %"), "{}", same.text);
        let slower = compare(&report(100.0), &report(90.0), 0.03).unwrap();
        assert_eq!(slower.worse.len(), 1);
        assert!((slower.worse[0].1 - 0.1).abs() < 1e-9);
        assert!(compare(&report(90.0), &report(100.0), 0.03).unwrap().worse.is_empty());
        let start = |s: f64| json!({"version": 1, "bench": "startup", "results": [{"name": "cold", "metrics": {"total_s": s}}]});
        assert_eq!(compare(&start(1.0), &start(2.0), 0.03).unwrap().worse, [("cold".to_string(), 1.0)]);
    }

    #[test]
    fn other_files_are_refused_in_one_line() {
        let refused = |old: Json| compare(&old, &report(1.0), 0.03).unwrap_err().to_string();
        assert!(refused(json!([1])).starts_with("is no report"));
        assert!(refused(json!({"version": 1, "bench": "prefill", "results": []})).contains("bench \"prefill\""));
        assert!(refused(json!({"version": 1, "bench": "decode", "results": []})).starts_with("has no case in common"));
    }
}
