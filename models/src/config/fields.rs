//! Reading fields of a JSON object while collecting every problem.
//!
//! A getter that meets a problem records it and returns a placeholder (0, or the default). Placeholders never leave the
//! module: a configuration with problems is not returned.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::ConfigProblem;

/// Longest quotation of a found value, in characters.
const QUOTED: usize = 60;
/// What to do about a value that nobody can guess for the user.
const TAKE_PUBLISHED: &str = "take the value from the published config.json";

/// A JSON object being read, the path to it, and what was wrong so far.
pub(super) struct Fields<'a> {
    path: String,
    map: &'a Map<String, Value>,
    problems: Vec<ConfigProblem>,
    warnings: Vec<String>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(map: &'a Map<String, Value>) -> Self {
        Fields { path: String::new(), map, problems: Vec::new(), warnings: Vec::new() }
    }

    /// The field unless it is absent or `null`.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.map.keys().map(String::as_str)
    }

    /// Reads a nested object with the same collection of problems; `None` when it is absent or not an object.
    pub(super) fn nested<T>(&mut self, key: &str, read: impl FnOnce(&mut Fields<'a>) -> T) -> Option<T> {
        let map = match self.get(key)? {
            Value::Object(map) => map,
            _ => {
                self.problem(key, "an object", TAKE_PUBLISHED);
                return None;
            }
        };
        let mut inner = Fields::new(map);
        inner.path = format!("{}{key}.", self.path);
        let value = read(&mut inner);
        self.problems.append(&mut inner.problems);
        self.warnings.append(&mut inner.warnings);
        Some(value)
    }

    /// A required size from 1 to `max`; 0 after a problem.
    pub(super) fn size(&mut self, key: &str, max: usize) -> usize {
        if !self.has(key) {
            self.problem(key, &format!("an integer from 1 to {max}"), TAKE_PUBLISHED);
            return 0;
        }
        self.optional_size(key, max).unwrap_or(0)
    }

    /// An optional size from 1 to `max`; `None` also after a problem.
    pub(super) fn optional_size(&mut self, key: &str, max: usize) -> Option<usize> {
        let found = integer(self.get(key)?).filter(|&n| n >= 1 && n <= max as u64);
        if found.is_none() {
            self.problem(key, &format!("an integer from 1 to {max}"), TAKE_PUBLISHED);
        }
        found.map(|n| n as usize)
    }

    /// A number within a range, integer or not; the default when absent, and after a problem. Without a default the
    /// field is required, and the placeholder is the start of the range.
    pub(super) fn number(&mut self, key: &str, range: RangeInclusive<f64>, default: Option<f64>) -> f64 {
        let expected = || format!("a number from {} to {}", range.start(), range.end());
        let fallback = default.unwrap_or(*range.start());
        match self.get(key) {
            None => {
                if default.is_none() {
                    self.problem(key, &expected(), TAKE_PUBLISHED);
                }
                fallback
            }
            Some(value) => match value.as_f64().filter(|x| range.contains(x)) {
                Some(x) => x,
                None => {
                    self.problem(key, &expected(), TAKE_PUBLISHED);
                    fallback
                }
            },
        }
    }

    /// A flag; the default when absent, and after a problem.
    pub(super) fn flag(&mut self, key: &str, default: bool) -> bool {
        match self.get(key) {
            None => default,
            Some(Value::Bool(b)) => *b,
            Some(_) => {
                self.problem(key, "true or false", TAKE_PUBLISHED);
                default
            }
        }
    }

    /// A string; `None` when absent, and after a problem.
    pub(super) fn text(&mut self, key: &str) -> Option<&'a str> {
        match self.get(key)? {
            Value::String(s) => Some(s),
            _ => {
                self.problem(key, "a string", TAKE_PUBLISHED);
                None
            }
        }
    }

    /// One token id, or a list of them. Empty when absent.
    pub(super) fn token_ids(&mut self, key: &str) -> Vec<u32> {
        let Some(value) = self.get(key) else {
            return Vec::new();
        };
        let one = |v: &Value| integer(v).and_then(|n| u32::try_from(n).ok());
        let ids: Option<Vec<u32>> = match value {
            Value::Array(list) => list.iter().map(one).collect(),
            other => one(other).map(|id| vec![id]),
        };
        match ids {
            Some(mut ids) => {
                // Order carries no meaning; keep the first of equal ids.
                let mut seen = std::collections::BTreeSet::new();
                ids.retain(|&id| seen.insert(id));
                ids
            }
            None => {
                self.problem(key, "a token id or a list of token ids", TAKE_PUBLISHED);
                Vec::new()
            }
        }
    }

    /// One token id; `None` when absent, and after a problem.
    pub(super) fn token_id(&mut self, key: &str) -> Option<u32> {
        let found = integer(self.get(key)?).and_then(|n| u32::try_from(n).ok());
        if found.is_none() {
            self.problem(key, "a token id", TAKE_PUBLISHED);
        }
        found
    }

    /// Records a problem with what stands in the field now.
    pub(super) fn problem(&mut self, key: &str, expected: &str, fix: &str) {
        let found = self.map.get(key).map_or_else(|| "nothing".to_owned(), quote);
        self.problem_found(key, found, expected, fix);
    }

    /// Records a problem with its own words for what was found.
    pub(super) fn problem_found(&mut self, key: &str, found: String, expected: &str, fix: &str) {
        self.problems.push(ConfigProblem {
            field: format!("{}{key}", self.path),
            found,
            expected: expected.to_owned(),
            fix: fix.to_owned(),
        });
    }

    pub(super) fn warn(&mut self, key: &str, message: &str) {
        self.warnings.push(format!("{}{}: {message}", self.path, clean(key)));
    }

    pub(super) fn finish(self) -> (Vec<ConfigProblem>, Vec<String>) {
        (self.problems, self.warnings)
    }

    pub(super) fn into_problems(self) -> Vec<ConfigProblem> {
        self.problems
    }
}

/// The kind of a JSON value, for messages.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A value as JSON on one line, shortened.
pub(super) fn quote(value: &Value) -> String {
    let text = clean(&value.to_string());
    match text.char_indices().nth(QUOTED) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// Text from the file without control characters, which would break the line or reach the terminal.
fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// A non-negative integer, also when written as a float without fraction (`24.0`).
fn integer(value: &Value) -> Option<u64> {
    const EXACT: f64 = 9_007_199_254_740_992.0; // 2^53, above which floats skip integers
    value.as_u64().or_else(|| {
        let x = value.as_f64()?;
        (x.fract() == 0.0 && (0.0..=EXACT).contains(&x)).then_some(x as u64)
    })
}
