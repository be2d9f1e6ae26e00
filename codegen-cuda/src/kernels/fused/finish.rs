//! What templates that multiply do with the product: one branch for each range of its columns that results are made of.

use gossamer_ir::Value;

use super::super::region::{Index, Line, Need, Region, Sink, Target, malformed, sinks, unsupported};
use super::{Body, Origin};
use crate::lower::LowerError;

/// Code for a range of columns.
pub(super) struct Part {
    /// See [`range`].
    pub range: (i64, i64, bool),
    /// Statements, at row `t` and column `n`.
    pub lines: Vec<Line>,
    /// Assignments of elements whose maximum is wanted: `most0 = v3;`.
    pub maxima: Vec<String>,
}

/// What becomes of the product `product` of the main region.
pub(super) fn product_sinks(body: &Body, product: Value) -> Result<Vec<Sink>, LowerError> {
    let epilogue = body.epilogue();
    let at = (0..epilogue.params.len()).find(|i| body.epilogue_param(*i) == Origin::Main(product));
    let found = sinks(epilogue, at.ok_or_else(|| malformed("an epilogue without the product"))?)?;
    match found.iter().any(|s| s.need == Need::Nothing) {
        true => Err(unsupported("a result that the product is not part of", "results computed from the product")),
        false => Ok(found),
    }
}

/// Prints the sinks, range by range.
pub(super) fn parts(region: &mut Region, found: &[Sink], pointers: &[String]) -> Result<Vec<Part>, LowerError> {
    let mut ranges: Vec<_> = found.iter().map(range).collect();
    ranges.sort_unstable();
    ranges.dedup();
    let mut out = Vec::new();
    for r in ranges {
        let (lines, maxima) = region.scope(|region| {
            let mut maxima = Vec::new();
            for sink in found.iter().filter(|s| range(s) == r) {
                let column = sink.column(&Index::var("n"));
                match sink.target {
                    Target::TileMax { .. } => {
                        let element = region.element(sink.value, &[Index::var("t"), column])?;
                        maxima.push(format!("most{} = {element};", sink.result));
                    }
                    _ => region.emit(sink, &pointers[sink.result], &[Index::var("t")], &column)?,
                }
            }
            Ok(maxima)
        })?;
        out.push(Part { range: r, lines, maxima });
    }
    Ok(out)
}

/// Where a sink's columns are computed: first, end, and whether at even ones only.
pub(super) fn range(sink: &Sink) -> (i64, i64, bool) {
    let (first, count) = sink.range();
    (first, first + count, matches!(sink.need, Need::Interleaved { .. }))
}

/// Lines that run where column n is in the range.
pub(super) fn branch(out: &mut Vec<String>, (first, end, even): (i64, i64, bool), n: i64, lines: Vec<String>) {
    if lines.is_empty() {
        return;
    }
    let mut conditions = Vec::new();
    conditions.extend((first > 0).then(|| format!("n >= {first}")));
    conditions.extend((end < n).then(|| format!("n < {end}")));
    conditions.extend(even.then(|| "n % 2 == 0".to_string()));
    // Braces without a condition keep names apart as well.
    out.push(match conditions.is_empty() {
        true => "{".to_string(),
        false => format!("if ({}) {{", conditions.join(" && ")),
    });
    out.extend(lines.into_iter().map(|l| format!("  {l}")));
    out.push("}".to_string());
}
