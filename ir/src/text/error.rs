//! Syntax errors: where, what was found, what was expected, what to do; and their rendering with the source line and a caret.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

/// Errors after which a text is given up.
pub(crate) const MAX_ERRORS: usize = 64;

/// One syntax error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// Bytes of the source it is about.
    pub span: Range<usize>,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// What was expected and what was found, in one line.
    pub message: String,
    /// What to do about it, or the list of known names; may be empty.
    pub help: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.message)?;
        match self.help.is_empty() {
            true => Ok(()),
            false => write!(f, "; {}", self.help),
        }
    }
}

/// Every syntax error of a text, in order. Displayed as one line about the first; [`ParseErrors::render`] shows all with their lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseErrors {
    /// Name of the text.
    pub file: Arc<str>,
    /// The text.
    pub source: Arc<str>,
    /// The errors; never empty.
    pub errors: Vec<ParseError>,
    /// True if reading stopped because there were too many.
    pub stopped: bool,
}

impl std::error::Error for ParseErrors {}

impl fmt::Display for ParseErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(first) = self.errors.first() {
            write!(f, "{}:{first}", self.file)?;
        }
        match self.errors.len().saturating_sub(1) {
            0 => Ok(()),
            1 => f.write_str(" (and 1 more error)"),
            n => write!(f, " (and {n} more errors)"),
        }
    }
}

impl ParseErrors {
    /// All errors with their source lines and carets, in plain text.
    pub fn render(&self) -> String {
        self.render_with(&Renderer::plain())
    }

    /// As [`ParseErrors::render`], with terminal colours.
    pub fn render_styled(&self) -> String {
        self.render_with(&Renderer::styled())
    }

    fn render_with(&self, renderer: &Renderer) -> String {
        let mut out = String::new();
        for e in &self.errors {
            out.push_str(&snippet(renderer, &self.file, &self.source, e.span.clone(), &e.message, &e.help));
            out.push_str("\n\n");
        }
        out.truncate(out.trim_end().len() + 1);
        if self.stopped {
            out.push_str(&format!("\nstopped after {} errors\n", self.errors.len()));
        }
        out
    }
}

/// One message over its source line.
pub(crate) fn snippet(
    renderer: &Renderer,
    file: &str,
    source: &str,
    span: Range<usize>,
    message: &str,
    help: &str,
) -> String {
    // Only the lines of the span are handed on: rendering then takes no longer in a large file.
    let start = source[..span.start].rfind('\n').map_or(0, |i| i + 1);
    let end = source[span.end..].find('\n').map_or(source.len(), |i| span.end + i);
    let line = source[..start].matches('\n').count() + 1;
    let cause = Snippet::source(&source[start..end])
        .line_start(line)
        .path(file)
        .annotation(AnnotationKind::Primary.span(span.start - start..span.end - start));
    let mut group: Group<'_> = Level::ERROR.primary_title(message).element(cause);
    if !help.is_empty() {
        group = group.element(Level::HELP.message(help));
    }
    renderer.render(&[group])
}
