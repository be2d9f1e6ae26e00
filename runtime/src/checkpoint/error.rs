//! What can go wrong with a checkpoint, one line each.

use std::fmt;
use std::io;
use std::path::Path;

use gossamer_models::config::ConfigError;
use thiserror::Error;

/// Longest list of problems printed; the rest is counted.
const SHOWN: usize = 20;
/// Longest name quoted from a file, in characters.
const NAME: usize = 160;

/// A checkpoint, or a model name, that cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// MODEL names nothing that exists.
    #[error("{0}")]
    Model(Problem),
    /// `config.json` or `generation_config.json` cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The folder's files are not a complete, consistent checkpoint. One line per problem.
    #[error("{}", lines(problems))]
    Invalid {
        /// Every problem found.
        problems: Vec<Problem>,
    },
    /// The operating system refused.
    #[error("{path}: cannot {action} ({source}); check that the file is readable and on a healthy disk")]
    Io {
        /// The file or folder.
        path: String,
        /// What was attempted.
        action: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// A file became shorter after it was opened.
    #[error(
        "{path}: tensor {tensor}: the file ended before byte {end}, which it had when opened; restore the file and run again"
    )]
    Shrunk {
        /// The file.
        path: String,
        /// The tensor being read.
        tensor: String,
        /// First byte after the read.
        end: u64,
    },
    /// A scale byte that is NaN by the MX standard.
    #[error(
        "tensor {tensor}: expert {expert}, row {row}, block {block}: found scale byte 255 (NaN), expected 0 to 254; fetch the checkpoint again"
    )]
    NanScale {
        /// Canonical name of the weight.
        tensor: String,
        /// Index on the first axis.
        expert: usize,
        /// Index on the second axis.
        row: usize,
        /// Index of the block of 32 within the row.
        block: usize,
    },
    /// A read of bytes that a weight does not have: an error of the caller.
    #[error(
        "weight {weight}: found a request for {part} bytes {start} to {end}, expected at most {len}; this is a bug in the loader, please report it"
    )]
    Range {
        /// Canonical name of the weight.
        weight: String,
        /// The part asked for.
        part: String,
        /// First byte.
        start: u64,
        /// First byte after the request.
        end: u64,
        /// Bytes the part has.
        len: u64,
    },
    /// The machine has no memory for a tensor.
    #[error(
        "weight {weight}: found no memory for {bytes} bytes, expected them to fit; close other programs or use a smaller model"
    )]
    Memory {
        /// Canonical name of the weight.
        weight: String,
        /// Bytes wanted.
        bytes: u64,
    },
}

/// One thing wrong with a file or tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file, tensor or argument.
    pub place: String,
    /// What is there.
    pub found: String,
    /// What should be there.
    pub expected: String,
    /// What to do.
    pub fix: String,
}

impl Problem {
    pub(super) fn new(
        place: impl Into<String>,
        found: impl Into<String>,
        expected: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Problem { place: place.into(), found: found.into(), expected: expected.into(), fix: fix.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: found {}, expected {}; {}", self.place, self.found, self.expected, self.fix)
    }
}

impl CheckpointError {
    /// The problems of an [`CheckpointError::Invalid`], none for the other errors.
    pub fn problems(&self) -> &[Problem] {
        match self {
            CheckpointError::Invalid { problems } => problems,
            _ => &[],
        }
    }

    pub(super) fn one(problem: Problem) -> Self {
        CheckpointError::Invalid { problems: vec![problem] }
    }

    pub(super) fn io(path: &Path, action: &'static str, source: io::Error) -> Self {
        CheckpointError::Io { path: path.display().to_string(), action, source }
    }
}

/// Text that comes out of a file, fit for one line of a terminal: control characters escaped, shortened.
pub(super) fn quoted(text: &str) -> String {
    let shown: String = text
        .chars()
        .take(NAME)
        .flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
        .collect();
    if text.chars().nth(NAME).is_some() { format!("{shown}...") } else { shown }
}

/// Keeps at most [`SHOWN`] lines and counts the rest.
fn lines(problems: &[Problem]) -> String {
    let mut lines: Vec<String> = problems.iter().take(SHOWN).map(Problem::to_string).collect();
    if problems.len() > SHOWN {
        lines.push(format!("and {} more", problems.len() - SHOWN));
    }
    lines.join("\n")
}
