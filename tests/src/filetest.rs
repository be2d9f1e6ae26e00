//! Filetests: IR text with expectations in its comments.
//!
//! A file is IR text that any other tool reads too. `; test: MODE ARGS` lines say what is done with it, by the table [`MODES`]; directives say
//! what must come out. A directive is a comment behind code or on a line of its own.
//!
//! | directive | meaning |
//! |-----------|---------|
//! | `check: text` | a line of the output, after the one matched before, contains the text |
//! | `next: text` | the line after the one matched before contains the text |
//! | `not: text` | no line between the neighbouring matches contains the text |
//! | `error: V05 text` | the line with this comment (on its own line: the code above) has an error that contains the text; `error: syntax text` for syntax errors |
//! | `eval: @f(...) = ...` | see [`eval`] |
//! | `set: T = 4` | a setting for the evaluations and costs after it; for [`cuda`] of the whole file |
//! | `cost: launches <= 6, bytes < 9 MB` | see [`cost`] |
//! | `exact:` | the comment lines from here to the end of the file are the whole output; `BLESS=1` rewrites them |
//!
//! `{{name}}` in a text matches an identifier; the same name matches the same identifier from then on. Blanks of any length match each other.
//! `check`, `next` and `not` look only at the function of the same name as the one above them in the file; in front of all functions they look
//! at everything.

mod compiled;
pub mod cost;
pub mod cuda;
pub mod eval;
mod matcher;
mod modes;
pub mod run;
mod source;

use std::path::{Path, PathBuf};

pub use modes::{MODES, Mode};
pub use source::{Directive, Kind, Source};

/// What went wrong in a file, each with its line.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Failure {
    /// Line, from 1; 0 for the file as a whole.
    pub line: usize,
    /// What was expected and what was found.
    pub message: String,
}

impl Failure {
    fn new(line: usize, message: impl Into<String>) -> Failure {
        Failure { line, message: message.into() }
    }
}

/// Runs every `test:` line of a file. With `bless`, the result may be a new text for the file instead of failures.
pub fn run(path: &str, text: &str, bless: bool) -> Result<Option<String>, Vec<Failure>> {
    let source = Source::read(path, text).map_err(|f| vec![f])?;
    let mut failures = Vec::new();
    let mut blessed = None;
    for command in &source.commands {
        let Some(mode) = MODES.iter().find(|m| m.name == command.mode) else {
            let known: Vec<&str> = MODES.iter().map(|m| m.name).collect();
            let message = format!("unknown mode `{}`; known: {}", command.mode, known.join(", "));
            failures.push(Failure::new(command.line, message));
            continue;
        };
        for d in source.directives.iter().filter(|d| !modes_take(&source, d.kind)) {
            failures.push(Failure::new(d.line, format!("no mode of this file reads `{}:`", d.kind.name())));
        }
        match (mode.run)(&source, &command.args) {
            Ok(()) => {}
            Err(modes::Stop::Failed(more)) => failures.extend(more),
            Err(modes::Stop::Differs { expected_text, failure }) => match bless {
                true => blessed = Some(expected_text),
                false => failures.push(failure),
            },
        }
    }
    failures.sort_by_key(|f| f.line);
    failures.dedup();
    if failures.is_empty() { Ok(blessed) } else { Err(failures) }
}

/// True if some mode of the file reads directives of this kind, so that none is silently without effect.
fn modes_take(source: &Source, kind: Kind) -> bool {
    let modes = source.commands.iter().filter_map(|c| MODES.iter().find(|m| m.name == c.mode));
    modes.clone().count() < source.commands.len() || modes.into_iter().any(|m| m.directives.contains(&kind))
}

/// Every `.gir` file under `folder`, sorted.
pub fn files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut todo = vec![folder.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|e| e == "gir") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests;
