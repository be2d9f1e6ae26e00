//! What can be wrong with a configuration file.

use std::fmt;

use thiserror::Error;

/// Longest list of problems printed; the rest is counted.
const SHOWN: usize = 40;

/// A configuration that cannot be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigError {
    /// The text is not JSON.
    #[error("{file}: line {line}, column {column}: not valid JSON ({message}); fetch the file again")]
    Syntax {
        /// The file.
        file: String,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What the JSON parser says.
        message: String,
    },
    /// The text is JSON, but not an object.
    #[error("{file}: found {found}, expected a JSON object; fetch the file again")]
    NotAnObject {
        /// The file.
        file: String,
        /// The kind of JSON value found.
        found: &'static str,
    },
    /// Fields are missing or have values that cannot be used. One line each.
    #[error("{}", lines(file, problems))]
    Invalid {
        /// The file.
        file: String,
        /// Every problem, in the order of checking.
        problems: Vec<ConfigProblem>,
    },
}

/// One field that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigProblem {
    /// Dotted path of the field.
    pub field: String,
    /// The value as JSON (shortened), or `nothing`.
    pub found: String,
    /// What it should have been.
    pub expected: String,
    /// What to do.
    pub fix: String,
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: found {}, expected {}; {}", self.field, self.found, self.expected, self.fix)
    }
}

impl ConfigError {
    /// The problems of an [`ConfigError::Invalid`], none for the other errors.
    pub fn problems(&self) -> &[ConfigProblem] {
        match self {
            ConfigError::Invalid { problems, .. } => problems,
            _ => &[],
        }
    }

    pub(super) fn invalid(file: &str, problems: Vec<ConfigProblem>) -> Self {
        ConfigError::Invalid { file: file.to_owned(), problems }
    }

    pub(super) fn syntax(file: &str, error: &serde_json::Error) -> Self {
        // The parser ends its message with the position, which is printed in front here.
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or_default().to_owned();
        ConfigError::Syntax { file: file.to_owned(), line: error.line(), column: error.column(), message }
    }
}

fn lines(file: &str, problems: &[ConfigProblem]) -> String {
    let mut lines: Vec<String> = problems.iter().take(SHOWN).map(|p| format!("{file}: {p}")).collect();
    if problems.len() > SHOWN {
        lines.push(format!("{file}: and {} more problems", problems.len() - SHOWN));
    }
    lines.join("\n")
}
