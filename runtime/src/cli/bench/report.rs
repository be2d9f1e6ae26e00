//! What a benchmark prints: text as it goes, or JSON at the end, and how it compares with an earlier run.

use serde_json::Value as Json;

use super::args::ReportArgs;
use crate::bench::compare::compare;
use crate::cli::output::{self, Failure};

/// Where a benchmark's results go.
pub struct Report<'a> {
    args: &'a ReportArgs,
    /// The earlier report, read before anything is measured.
    before: Option<Json>,
}

impl<'a> Report<'a> {
    /// Reads the report to compare with, so that a bad one is known at once.
    pub fn new(args: &'a ReportArgs) -> Result<Report<'a>, Failure> {
        if !(0.0..=100.0).contains(&args.tolerance) {
            return Err(Failure::Usage(format!("--tolerance is {}, expected 0 to 100 (per cent)", args.tolerance)));
        }
        let before = match &args.compare {
            None => None,
            Some(path) => {
                let text = output::read_text(path)?;
                let parsed = serde_json::from_str::<Json>(&text);
                let value = parsed.map_err(|e| Failure::Failed(format!("{}: is not JSON: {e}", path.display())))?;
                if !value["results"].is_array() {
                    return Err(Failure::Failed(format!(
                        "{}: is no report of `gossamer bench` (no list `results`); write one with --json",
                        path.display()
                    )));
                }
                Some(value)
            }
        };
        Ok(Report { args, before })
    }

    /// Shows text, unless JSON is asked for.
    pub fn text(&self, text: &str) -> Result<(), Failure> {
        if self.args.json { Ok(()) } else { output::text(text) }
    }

    /// Shows the JSON, if it is asked for, and the comparison: on stdout as text, on stderr beside JSON.
    pub fn finish(&self, value: &Json) -> Result<(), Failure> {
        if self.args.json {
            output::json(value)?;
        }
        let (Some(before), Some(path)) = (&self.before, &self.args.compare) else { return Ok(()) };
        let found = compare(before, value, self.args.tolerance / 100.0)
            .map_err(|e| Failure::Failed(format!("{}: {e}", path.display())))?;
        let text = format!("\ncompared with {} (before, now, change)\n{}", path.display(), found.text);
        match self.args.json {
            true => output::aside(format_args!("{text}")),
            false => output::text(&text)?,
        }
        match found.worse.first() {
            None => Ok(()),
            Some((case, by)) => Err(Failure::Failed(format!(
                "{case}: worse than in {} by {:.1} %, more than --tolerance {} ({} of the cases)",
                path.display(),
                by * 100.0,
                self.args.tolerance,
                found.worse.len()
            ))),
        }
    }
}
