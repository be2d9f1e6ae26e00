//! How `gemm` and `gemm_pieces` make results of sums: which columns a lane has, the code of its strip, and where each element goes.

use std::cell::Cell;
use std::collections::BTreeMap;

use gossamer_ir::DType;

use super::super::region::{
    Hoisted, Index, Line, Need, Region, Sink, Source, Target, hoist, malformed, text, unsupported,
};
use super::super::{Cx, blocks, kv, scalar};
use super::finish::{branch, range};
use super::gemm_plan::{Pairs, STRIP_COLUMNS};
use super::{Body, Origin, Params, parameter};
use crate::emit::c_type;
use crate::lower::LowerError;

type Result<T> = std::result::Result<T, LowerError>;

/// A value that is stored, and the columns of it that a lane makes, relative to its first: runs of neighbours.
struct Job<'a> {
    sink: &'a Sink,
    /// Where it goes.
    name: String,
    dtype: DType,
    runs: Vec<Vec<i64>>,
    /// True if a run is stored at once.
    whole: bool,
}

/// Strips whose maximum goes together, if any is wanted: those of a tile of `tile_max`.
pub(super) fn run(found: &[Sink]) -> Result<Option<i64>> {
    let mut all = None;
    for sink in found {
        match (sink.target, sink.need) {
            (Target::TileMax { tile }, Need::Same { offset: 0 })
                if tile % STRIP_COLUMNS == 0 && all.is_none_or(|t| t == tile) =>
            {
                all = Some(tile);
            }
            (Target::TileMax { tile }, _) => {
                return Err(unsupported(
                    format!("tile_max over {tile} columns"),
                    format!("one multiple of {STRIP_COLUMNS} for all, on values with the product's columns"),
                ));
            }
            (Target::ArgMax, _) => return Err(unsupported("argmax over all columns", "tile_max")),
            _ => {}
        }
    }
    Ok(all.map(|tile| tile / STRIP_COLUMNS))
}

/// Code that makes results.
pub(super) struct Code {
    /// Computes what depends on a lane's rows and not on which strip of them it is, if that was asked for.
    pub(super) rows: Vec<String>,
    /// Computes and stores a lane's elements of a strip.
    pub(super) finish: Vec<String>,
    /// Declares running maxima of a run of strips.
    pub(super) maxima: Vec<String>,
    /// Stores them at the end of a run.
    pub(super) store_maxima: Vec<String>,
}

/// Code that makes results of a product of `n` columns. A warp that makes all strips of its rows one after the other asks for what they share by `period`:
/// the columns of a lane in two strips are equal modulo every divisor of it.
pub(super) fn results(
    cx: &Cx,
    body: &Body,
    found: &[Sink],
    (pairs, period): (Pairs, Option<i64>),
    n: i64,
    params: &mut Params,
) -> Result<Code> {
    let astray = Cell::new(false);
    let mut sources = body.epilogue_sources(cx, params, |_| {
        let astray = &astray;
        let give = move |at: &[Index]| {
            let known = at[1].without_offset().is_some_and(|v| v == "n" || v == "half_n * 2");
            let place = pairs.place(at[1].offset()).filter(|_| known);
            astray.set(astray.get() || place.is_none());
            format!("held[j][{}]", place.unwrap_or(0))
        };
        Some(Source::Given(Box::new(give)))
    })?;
    for source in &mut sources {
        if let Source::Cache { keys, values } = source {
            (*keys, *values) = (later(keys), later(values));
        }
    }
    let pointers = (0..cx.op.results.len()).map(|r| params.result(cx, r)).collect::<Result<Vec<_>>>()?;
    let mut region = Region::new(body.epilogue(), cx.module(), sources).straight();
    if let Some(dim) = pairs.dim {
        region.know_half("n", dim, 2);
    }
    let mut ranges: Vec<(i64, i64)> = found.iter().map(|s| (range(s).0, range(s).1)).collect();
    ranges.sort_unstable();
    ranges.dedup();
    let (mut finish, mut shared) = (Vec::new(), Shared::default());
    for (first, end) in ranges {
        let here = || found.iter().filter(|s| (range(s).0, range(s).1) == (first, end));
        let stored = here().filter(|s| !matches!(s.target, Target::TileMax { .. }));
        let jobs = stored.map(|s| job(cx, body, s, pairs, &pointers)).collect::<Result<Vec<_>>>()?;
        let (lines, maxima) = region.scope(|region| {
            for job in &jobs {
                for offset in job.runs.concat() {
                    let column = match job.sink.need {
                        Need::Interleaved { offset: start } => Index::var("half_n").plus((offset - start) / 2),
                        _ => job.sink.column(&Index::var("n").plus(offset)),
                    };
                    region.emit(job.sink, &later(&job.name), &[Index::var("t")], &column)?;
                }
            }
            let mut maxima = Vec::new();
            for sink in here().filter(|s| matches!(s.target, Target::TileMax { .. })) {
                for offset in pairs.runs(sink.need).concat() {
                    let column = sink.column(&Index::var("n").plus(offset));
                    let element = region.element(sink.value, &[Index::var("t"), column])?;
                    maxima.push(format!("most{0}[j] = fmaxf(most{0}[j], {element});", sink.result));
                }
            }
            Ok(maxima)
        })?;
        let lines = match period {
            Some(period) => shared.take(&lines, period),
            None => text(&lines),
        };
        branch(&mut finish, (first, end, false), n, part(lines, maxima, &jobs));
    }
    if astray.get() {
        return Err(unsupported("columns of a product at several distances", "one distance for all pairs"));
    }
    params.sizes(cx, &region)?;
    let (mut maxima, mut store_maxima) = (Vec::new(), Vec::new());
    for sink in found {
        if let Target::TileMax { tile } = sink.target {
            let ty = body.epilogue().graph.ty(sink.value).as_tensor().map_or(DType::F32, |t| t.dtype);
            maxima.push(format!("f32 most{}[STEPS];", sink.result));
            maxima.push("#pragma unroll".to_string());
            maxima.push(format!("for (int j = 0; j < STEPS; j++) most{}[j] = {LEAST};", sink.result));
            let columns = sink.range().1;
            store_maxima.extend(tile_max(sink, ty, &pointers[sink.result], tile, columns));
        }
    }
    Ok(Code { rows: shared.text(), finish, maxima, store_maxima })
}

/// What the strips of a row share: variables for each of a lane's rows.
#[derive(Default)]
struct Shared {
    variables: Vec<Hoisted>,
    /// What stands for a variable in a strip's code.
    names: BTreeMap<String, String>,
}

impl Shared {
    /// Takes what can be shared out of a strip's lines; gives the rest.
    fn take(&mut self, lines: &[Line], period: i64) -> Vec<String> {
        let (taken, rest) = hoist(lines, &["n", "half_n", "held"], |e| phased(e, period));
        for mut variable in taken {
            variable.expression = renamed(&variable.expression, &self.names);
            let same = |v: &&Hoisted| v.expression == variable.expression && v.c_type == variable.c_type;
            let name = self.variables.iter().find(same).map_or(&variable.name, |v| &v.name);
            self.names.insert(variable.name.clone(), format!("{name}[j]"));
            if *name == variable.name {
                self.variables.push(variable);
            }
        }
        rest.iter().map(|l| renamed(l, &self.names)).collect()
    }

    fn text(&self) -> Vec<String> {
        if self.variables.is_empty() {
            return Vec::new();
        }
        let mut out: Vec<String> = self.variables.iter().map(|v| format!("{} {}[STEPS];", v.c_type, v.name)).collect();
        out.push("#pragma unroll".to_string());
        out.push("for (int j = 0; j < STEPS; j++) {".to_string());
        out.push("  const i32 t = row_of(j) < rows ? row_of(j) : rows - 1;".to_string());
        for v in &self.variables {
            out.extend(v.comment.iter().map(|c| format!("  {c}")));
            out.push(format!("  {}[j] = {};", v.name, v.expression));
        }
        out.push("}".to_string());
        out
    }
}

/// The text with other words for some of its words.
fn renamed(text: &str, names: &BTreeMap<String, String>) -> String {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let (mut out, mut rest) = (String::new(), text);
    while !rest.is_empty() {
        let length = rest.find(|c| !word(c)).unwrap_or(rest.len());
        let (name, behind) = rest.split_at(length);
        out += names.get(name).map_or(name, String::as_str);
        let gap = behind.find(word).unwrap_or(behind.len());
        out += &behind[..gap];
        rest = &behind[gap..];
    }
    out
}

/// The expression with `phase % d` for `n % d` and `(n - c) % d`, where d divides the period and c.
fn phased(expression: &str, period: i64) -> String {
    const OP: &str = " % ";
    let (mut out, mut rest) = (String::new(), expression);
    while let Some(at) = rest.find(OP) {
        let (left, right) = (&rest[..at], &rest[at + OP.len()..]);
        let digits = right.bytes().take_while(u8::is_ascii_digit).count();
        let divisor = right[..digits].parse().ok().filter(|d: &i64| *d > 0 && period % d == 0);
        let start = divisor.and_then(|d| {
            let alone =
                left.strip_suffix('n').filter(|l| !l.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_'));
            let moved = left.strip_suffix(')').and_then(|l| {
                let (before, by) = l.rsplit_once("(n - ")?;
                by.parse().ok().filter(|c: &i64| c % d == 0).map(|_| before)
            });
            alone.or(moved)
        });
        match start {
            Some(before) => out = out + before + "phase" + OP + &right[..digits],
            None => out = out + left + OP + &right[..digits],
        }
        rest = &right[digits..];
    }
    out + rest
}

/// Less than any element.
const LEAST: &str = "__uint_as_float(0xff800000u)";

/// The maximum of a run of strips, over the 16 lanes of each row, at the end of the run.
fn tile_max(sink: &Sink, dtype: DType, pointer: &str, tile: i64, columns: i64) -> Vec<String> {
    let r = sink.result;
    let stored = scalar::store(dtype, &format!("fmaxf(most{r}[j], {LEAST})"));
    let lines = format!(
        "if ((strip + 1) % RUN == 0) {{
  const i32 start = column0 + (strip % PARTS + 1 - RUN) * {STRIP_COLUMNS};
#pragma unroll
  for (int j = 0; j < STEPS; j++) {{
#pragma unroll
    for (int m = 8; m > 0; m >>= 1) most{r}[j] = fmaxf(most{r}[j], __shfl_xor_sync(0xffffffffu, most{r}[j], m));
    const i32 t = row_of(j);
    if ((lane & 15) == 0 && t < rows && start < {columns}) {pointer}[(i64)t * {} + start / {tile}] = {stored};
    most{r}[j] = {LEAST};
  }}
}}",
        blocks(columns, tile)
    );
    lines.lines().map(str::to_string).collect()
}

/// Where a store goes instead of to memory: `@` becomes the number of the element among the lane's.
fn later(pointer: &str) -> String {
    format!("later({pointer}, {pointer}_later[j][@])")
}

fn job<'a>(cx: &Cx, body: &Body, sink: &'a Sink, pairs: Pairs, pointers: &[String]) -> Result<Job<'a>> {
    let (first, end, even) = range(sink);
    let (runs, step) = (pairs.runs(sink.need), pairs.step(sink.need));
    if first % step != 0 || end % step != 0 {
        return Err(unsupported(
            format!("a result from columns {first} to {end} of a product"),
            format!("results that start and end at multiples of {step} columns"),
        ));
    }
    let operand = |write| match parameter(body.epilogue(), body.epilogue().graph.op(write).operands[0]) {
        Some(i) => match body.epilogue_param(i) {
            Origin::Operand(o) => Ok(o),
            _ => Err(malformed("kv_write to something that is not a cache")),
        },
        None => Err(unsupported("a cache written twice", "one kv_write of each cache parameter")),
    };
    let last = body.epilogue().graph.ty(sink.value).as_tensor().and_then(|t| t.dims.last()?.as_const());
    let (name, dtype, row) = match sink.target {
        Target::Keys(write) | Target::Values(write) => {
            let (o, keys) = (operand(write)?, matches!(sink.target, Target::Keys(_)));
            let cache = kv::declaration(cx, o)?;
            (format!("{}{o}", if keys { "keys" } else { "values" }), cache.dtype, cache.dim)
        }
        _ => {
            let t = body.epilogue().graph.ty(sink.value).as_tensor();
            let dtype = t.map(|t| t.dtype).ok_or_else(|| malformed("a state among tensors"))?;
            (pointers[sink.result].clone(), dtype, last.unwrap_or(1))
        }
    };
    // A row starts at a multiple of a run, and so does the lane's first column in it.
    let run = runs[0].len() as i64;
    let start = if even { first / 2 } else { first };
    Ok(Job { sink, name, dtype, whole: row % run == 0 && start % run == 0, runs })
}

/// Computes the lane's elements of a strip, then stores them.
fn part(lines: Vec<String>, maxima: Vec<String>, jobs: &[Job]) -> Vec<String> {
    let mut out = Vec::new();
    let mut count = vec![0; jobs.len()];
    for job in jobs {
        let elements = job.runs.concat().len();
        out.push(format!("Later<{}> {}_later[STEPS][{elements}];", c_type(job.dtype), job.name));
    }
    if jobs.iter().any(|j| matches!(j.sink.need, Need::Interleaved { .. })) {
        out.push("const i32 half_n = n / 2;".to_string());
    }
    out.push("#pragma unroll".to_string());
    out.push("for (int j = 0; j < STEPS; j++) {".to_string());
    out.push("  const i32 t = row_of(j) < rows ? row_of(j) : rows - 1;".to_string());
    for mut line in lines {
        for (job, at) in jobs.iter().zip(&mut count) {
            let open = format!("{}_later[j][@]", job.name);
            if line.contains(&open) {
                line = line.replace(&open, &format!("{}_later[j][{at}]", job.name));
                *at += 1;
            }
        }
        out.push(format!("  {line}"));
    }
    if !maxima.is_empty() {
        out.push("  if (column < N) {".to_string());
        out.extend(maxima.into_iter().map(|l| format!("    {l}")));
        out.push("  }".to_string());
    }
    out.push("}".to_string());
    out.push("#pragma unroll".to_string());
    out.push("for (int j = 0; j < STEPS; j++) {".to_string());
    out.push("  if (row_of(j) >= rows || column >= N) continue;".to_string());
    for job in jobs {
        let mut at = 0;
        for run in &job.runs {
            let (count, name) = (run.len(), &job.name);
            out.push(format!("  store_now<{count}, {}>(&{name}_later[j][{at}]);", job.whole));
            at += count;
        }
    }
    out.push("}".to_string());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_renamed_whole() {
        let names =
            BTreeMap::from([("v3".to_string(), "v3[j]".to_string()), ("row".to_string(), "row_1[j]".to_string())]);
        assert_eq!(renamed("v3_1 + v3 * x4[(i64)row * 64]", &names), "v3_1 + v3[j] * x4[(i64)row_1[j] * 64]");
        assert_eq!(renamed("", &names), "");
    }

    #[test]
    fn columns_are_known_modulo_the_period() {
        assert_eq!(phased("n % 64", 64), "phase % 64");
        assert_eq!(phased("(i32)((n - 4096) % 32)", 64), "(i32)(phase % 32)");
        // Moved by less than the divisor, a divisor that is none of the period, another variable.
        for other in ["(n - 4095) % 64", "n % 96", "half_n % 64", "t % 64", "n + 32"] {
            assert_eq!(phased(other, 64), other);
        }
    }
}
