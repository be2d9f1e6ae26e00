//! The parser: recursive descent by hand, one rule of the grammar (`docs/ir.md`) a method.
//!
//! A rule that fails has recorded its error and returns [`Failed`]; whoever can goes on at the next line, so that one run shows many errors.
//! Results of a broken statement become *unknown*, and what uses them is skipped in silence: an error is told once.

mod body;
mod decl;
mod types;

use std::ops::Range;
use std::sync::Arc;

use super::VERSION;
use super::error::{MAX_ERRORS, ParseError, ParseErrors};
use super::lex::{Kind, Token, lex};
use super::names::nearest;
use crate::attr::Attrs;
use crate::graph::Loc;
use crate::module::Module;

/// Reads a module from text. `file` names it in messages and in the [`Loc`] of every op.
///
/// The result is what the text says, not yet [verified](crate::verify): types are taken as written.
pub fn parse(file: &str, source: &str) -> Result<Module, ParseErrors> {
    let mut p = Parser::new(file, source, None);
    if p.version(true).is_ok() {
        p.module();
    }
    p.finish()
}

/// Reads the decomposition of an op with attributes `attrs` (complete) from the text in its table row.
///
/// A text has one or more of `decomp name {a = 1}(%x: f32[M, N]) -> (f32[M, N]) { ... }`; the first whose guards in braces (if any) equal `attrs`
/// is taken. In its body `$eps` stands for attribute `eps`, also as `-$eps`. Symbols need no declaration: those that occur are declared with
/// bounds that allow anything. The module that comes back holds one function, named as the decomposition.
pub fn parse_decomp(file: &str, source: &str, attrs: &Attrs) -> Result<Module, ParseErrors> {
    let mut p = Parser::new(file, source, Some(attrs));
    if p.version(false).is_ok() {
        p.decomps(attrs);
    }
    p.finish()
}

/// An error was recorded.
#[derive(Clone, Copy, Debug)]
struct Failed;

type Parsed<T> = Result<T, Failed>;

struct Parser<'a> {
    file: Arc<str>,
    source: &'a str,
    tokens: Vec<Token>,
    /// Next token.
    at: usize,
    /// First token of the declaration or statement being read.
    start: usize,
    /// Byte at which each line starts.
    lines: Vec<usize>,
    ascii: bool,
    errors: Vec<ParseError>,
    stopped: bool,
    module: Module,
    /// Values of `$name` in decompositions.
    dollars: Option<&'a Attrs>,
}

impl<'a> Parser<'a> {
    fn new(file: &str, source: &'a str, dollars: Option<&'a Attrs>) -> Parser<'a> {
        let lines = std::iter::once(0).chain(source.match_indices('\n').map(|(i, _)| i + 1)).collect();
        Parser {
            file: file.into(),
            source,
            tokens: lex(source),
            at: 0,
            start: 0,
            lines,
            ascii: source.is_ascii(),
            errors: Vec::new(),
            stopped: false,
            module: Module::default(),
            dollars,
        }
    }

    fn finish(mut self) -> Result<Module, ParseErrors> {
        if self.errors.is_empty() {
            return Ok(self.module);
        }
        self.errors.sort_by_key(|e| e.span.start);
        Err(ParseErrors { file: self.file, source: self.source.into(), errors: self.errors, stopped: self.stopped })
    }

    /// The line `gir 1`.
    fn version(&mut self, required: bool) -> Parsed<()> {
        let first = format!("write `gir {VERSION}` as the first line");
        if !self.is_word("gir") {
            return if required { Err(self.unexpected(&format!("`gir {VERSION}`"), &first)) } else { Ok(()) };
        }
        self.bump();
        let span = self.span();
        let version = self.unsigned("the version of the format")?;
        if version != i64::from(VERSION) {
            let message = format!("expected version {VERSION}, found version {version}");
            return Err(self.fail(span, message, "this program reads that version only".into()));
        }
        self.line_end()
    }

    // Tokens.

    fn token(&self) -> &Token {
        &self.tokens[self.at]
    }

    fn kind(&self) -> Kind {
        self.token().kind
    }

    fn span(&self) -> Range<usize> {
        self.token().span.clone()
    }

    fn text_of(&self, index: usize) -> &'a str {
        &self.source[self.tokens[index].span.clone()]
    }

    fn text(&self) -> &'a str {
        self.text_of(self.at)
    }

    /// Steps over the next token and returns its text. At the end of the text it stays.
    fn bump(&mut self) -> &'a str {
        let text = self.text();
        if self.at + 1 < self.tokens.len() {
            self.at += 1;
        }
        text
    }

    fn is_end(&self) -> bool {
        self.kind() == Kind::End
    }

    fn is_word(&self, word: &str) -> bool {
        self.kind() == Kind::Word && self.text() == word
    }

    fn is(&self, punct: &str) -> bool {
        self.kind() == Kind::Punct && self.text() == punct
    }

    fn eat(&mut self, punct: &str) -> bool {
        let found = self.is(punct);
        if found {
            self.bump();
        }
        found
    }

    fn expect(&mut self, punct: &str) -> Parsed<()> {
        match self.eat(punct) {
            true => Ok(()),
            false => Err(self.unexpected(&format!("`{punct}`"), "")),
        }
    }

    /// A bare name.
    fn word(&mut self, what: &str) -> Parsed<&'a str> {
        match self.kind() {
            Kind::Word => Ok(self.bump()),
            _ => Err(self.unexpected(what, "")),
        }
    }

    /// A name after a sigil, without it.
    fn sigil(&mut self, kind: Kind, what: &str) -> Parsed<&'a str> {
        match self.kind() == kind {
            true => Ok(&self.bump()[1..]),
            false => Err(self.unexpected(what, "")),
        }
    }

    /// Items between brackets, separated by commas, up to `close`, which is consumed.
    fn list(&mut self, close: &str, mut item: impl FnMut(&mut Self) -> Parsed<()>) -> Parsed<()> {
        if self.eat(close) {
            return Ok(());
        }
        loop {
            item(self)?;
            if self.eat(close) {
                return Ok(());
            }
            if !self.eat(",") {
                return Err(self.unexpected(&format!("`,` or `{close}`"), ""));
            }
        }
    }

    /// Checks that nothing follows on the line.
    fn line_end(&mut self) -> Parsed<()> {
        match self.token().first {
            true => Ok(()),
            false => Err(self.unexpected("the end of the line", "")),
        }
    }

    // Errors.

    /// Records an error. After the last one that is kept, the rest of the text is skipped.
    fn fail(&mut self, span: Range<usize>, message: String, help: String) -> Failed {
        if !self.stopped {
            let (line, column) = self.position(span.start);
            self.errors.push(ParseError { span, line, column, message, help });
            self.stopped = self.errors.len() == MAX_ERRORS;
        }
        if self.stopped {
            self.at = self.tokens.len() - 1;
        }
        Failed
    }

    /// Records that something else was expected here. What is missing at the end of a line is reported there, not on the next.
    fn unexpected(&mut self, expected: &str, help: &str) -> Failed {
        let token = self.token().clone();
        let (span, found) = match token.kind {
            Kind::End => (token.span, "the end of the text".to_string()),
            _ if token.first && self.at > self.start => {
                let end = self.tokens[self.at - 1].span.end;
                (end..end, "the end of the line".to_string())
            }
            Kind::OpenStr => (token.span.clone(), "a string without closing `\"`".to_string()),
            _ => (token.span.clone(), format!("`{}`", shorten(&self.source[token.span]))),
        };
        self.fail(span, format!("expected {expected}, found {found}"), help.to_string())
    }

    /// Records a name that is not one of `known`.
    fn unknown(&mut self, span: Range<usize>, what: &str, name: &str, known: &[&str]) -> Failed {
        let message = format!("unknown {what} `{}`", shorten(name));
        let plain = name.trim_start_matches(['%', '@', '$']);
        let sigil = &name[..name.len() - plain.len()];
        let near = nearest(plain, known.iter().copied());
        let with_sigil = |words: &[&str]| words.iter().map(|w| format!("{sigil}{w}")).collect::<Vec<_>>();
        let help = match (near.is_empty(), known.is_empty()) {
            (false, _) => format!("did you mean {}?", quoted(&with_sigil(&near), "or")),
            (true, true) => format!("there is no {what} here"),
            (true, false) if known.len() <= 80 => format!("known: {}", with_sigil(known).join(", ")),
            (true, false) => {
                format!("{} names are known, for example {}", known.len(), with_sigil(&known[..8]).join(", "))
            }
        };
        self.fail(span, message, help)
    }

    /// True if token `at` is the first character of its line, as declarations are and statements are not.
    fn is_flush(&self, at: usize) -> bool {
        let start = self.tokens[at].span.start;
        start == 0 || self.source.as_bytes()[start - 1] == b'\n'
    }

    /// Goes on at the next line that `starts` something, at least one token on.
    fn recover(&mut self, starts: impl Fn(&Self, usize) -> bool) {
        self.at = self.at.max(self.start);
        if self.at == self.start {
            self.bump();
        }
        while !(self.is_end() || self.token().first && starts(self, self.at)) {
            self.bump();
        }
    }

    // Places.

    fn position(&self, at: usize) -> (u32, u32) {
        let line = self.lines.partition_point(|start| *start <= at).max(1);
        let before = &self.source[self.lines[line - 1]..at];
        let column = if self.ascii { before.len() } else { before.chars().count() };
        (line as u32, column as u32 + 1)
    }

    fn loc(&self, at: usize) -> Loc {
        let (line, column) = self.position(at);
        Loc { file: self.file.clone(), line, column }
    }
}

/// At most 40 characters on one line, for messages.
fn shorten(text: &str) -> String {
    let mut out: String = text.chars().take(40).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().count() > 40 {
        out.push_str("...");
    }
    out
}

/// `a`, `b` or `c`.
fn quoted<S: AsRef<str>>(words: &[S], last: &str) -> String {
    let quoted: Vec<String> = words.iter().map(|w| format!("`{}`", w.as_ref())).collect();
    match quoted.split_last() {
        Some((end, rest)) if !rest.is_empty() => format!("{} {last} {end}", rest.join(", ")),
        _ => quoted.concat(),
    }
}
