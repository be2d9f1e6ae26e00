//! What the verifier reports, as one line or over the source line with a caret.

use std::fmt;
use std::sync::Arc;

use annotate_snippets::Renderer;

use crate::graph::Loc;
use crate::text;

/// A broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyError {
    /// Number of the rule, `V05`.
    pub rule: &'static str,
    /// Function in which it is broken, without `@`; none for declarations.
    pub func: Option<Arc<str>>,
    /// The printed statement or declaration.
    pub line: String,
    /// Where it was written, if known.
    pub loc: Option<Loc>,
    /// What was found, what was expected, what to do.
    pub message: String,
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.message)?;
        place(f, &self.func, &self.line, &self.loc)
    }
}

/// Every broken rule of a module, in order. Displayed as one line about the first; [`VerifyErrors::render`] shows all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyErrors {
    /// The errors; never empty.
    pub errors: Vec<VerifyError>,
}

impl std::error::Error for VerifyErrors {}

impl fmt::Display for VerifyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(first) = self.errors.first() {
            write!(f, "{first}")?;
        }
        match self.errors.len() {
            0 | 1 => Ok(()),
            2 => f.write_str(" (and 1 more error)"),
            n => write!(f, " (and {} more errors)", n - 1),
        }
    }
}

/// Most errors that are shown: each is looked up in the text, which may be large and wrong in every line.
const SHOWN: usize = 64;

impl VerifyErrors {
    /// The errors in plain text (the first 64 of them), each over its line of `source`, the text that was read from `file`; without a source, one line each.
    pub fn render(&self, source: Option<(&str, &str)>) -> String {
        self.render_with(&Renderer::plain(), source)
    }

    /// As [`VerifyErrors::render`], with terminal colours.
    pub fn render_styled(&self, source: Option<(&str, &str)>) -> String {
        self.render_with(&Renderer::styled(), source)
    }

    fn render_with(&self, renderer: &Renderer, source: Option<(&str, &str)>) -> String {
        let mut out = String::new();
        for e in self.errors.iter().take(SHOWN) {
            let span = source.and_then(|(file, text)| Some((file, text, e.span(file, text)?)));
            match span {
                Some((file, text, span)) => {
                    let title = format!("{}: {}", e.rule, e.message);
                    out.push_str(&text::snippet(renderer, file, text, span, &title, ""));
                    out.push_str("\n\n");
                }
                None => out.push_str(&format!("error: {e}\n")),
            }
        }
        if let Some(more) = self.errors.len().checked_sub(SHOWN).filter(|n| *n > 0) {
            out.push_str(&format!("and {more} more\n"));
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
        out
    }
}

impl VerifyError {
    /// The bytes of `source`, read from `file`, that the error is about: the statement at its place, or the declaration that prints like it.
    pub fn span(&self, file: &str, source: &str) -> Option<std::ops::Range<usize>> {
        match &self.loc {
            Some(loc) if *loc.file == *file => text::statement_at(source, loc.line as usize, loc.column as usize),
            Some(_) => None,
            None => text::find_line(source, self.func.as_deref(), &self.line),
        }
    }
}

/// Something suspicious but legal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Function it is in, without `@`; none for declarations.
    pub func: Option<Arc<str>>,
    /// The printed statement or declaration.
    pub line: String,
    /// Where it was written, if known.
    pub loc: Option<Loc>,
    /// What is suspicious.
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        place(f, &self.func, &self.line, &self.loc)
    }
}

fn place(f: &mut fmt::Formatter<'_>, func: &Option<Arc<str>>, line: &str, loc: &Option<Loc>) -> fmt::Result {
    if let Some(func) = func {
        write!(f, ", in @{func}")?;
    }
    if !line.is_empty() {
        write!(f, ", at `{line}`")?;
    }
    match loc {
        Some(l) => write!(f, " ({}:{}:{})", l.file, l.line, l.column),
        None => Ok(()),
    }
}
