//! Reading the commands and directives of a file.

use super::Failure;

/// Kinds of directives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `check:`
    Check,
    /// `next:`
    Next,
    /// `not:`
    Not,
    /// `error:`
    Error,
    /// `eval:`
    Eval,
    /// `set:`
    Set,
    /// `cost:`
    Cost,
    /// `exact:`
    Exact,
}

const KINDS: [(Kind, &str); 8] = [
    (Kind::Check, "check"),
    (Kind::Next, "next"),
    (Kind::Not, "not"),
    (Kind::Error, "error"),
    (Kind::Eval, "eval"),
    (Kind::Set, "set"),
    (Kind::Cost, "cost"),
    (Kind::Exact, "exact"),
];

impl Kind {
    /// The word in front of the colon.
    pub fn name(self) -> &'static str {
        KINDS.iter().find(|(k, _)| *k == self).map_or("?", |(_, n)| n)
    }
}

/// An expectation or setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directive {
    /// Its kind.
    pub kind: Kind,
    /// What follows the colon, trimmed.
    pub text: String,
    /// The line it is on, from 1.
    pub line: usize,
    /// The line of code it is about: its own, or the last one above.
    pub code: usize,
    /// The function above it, without `@`.
    pub func: Option<String>,
}

/// A `test:` line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// First word.
    pub mode: String,
    /// The rest.
    pub args: String,
    /// Its line, from 1.
    pub line: usize,
}

/// A file.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its name in messages.
    pub path: String,
    /// All of it.
    pub text: String,
    /// Its `test:` lines; at least one.
    pub commands: Vec<Command>,
    /// Its directives, in order.
    pub directives: Vec<Directive>,
    /// The lines after `exact:`, and the byte at which that line starts.
    pub exact: Option<(String, usize)>,
}

impl Source {
    /// Finds commands and directives. The text is not parsed as IR here: it may be meant to be broken.
    pub fn read(path: &str, text: &str) -> Result<Source, Failure> {
        let (mut commands, mut directives) = (Vec::new(), Vec::new());
        let (mut code, mut func, mut exact) = (0, None, None);
        let mut at = 0;
        for (i, line) in text.split_inclusive('\n').enumerate() {
            let (before, comment) = split(line.trim_end_matches(['\n', '\r']));
            if !before.trim().is_empty() {
                code = i + 1;
            }
            if let Some(name) = before.strip_prefix("func @") {
                let end =
                    name.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.')).unwrap_or(name.len());
                func = Some(name[..end].to_string());
            }
            if let Some((word, rest)) = comment.trim_start_matches(';').split_once(':') {
                let (word, rest) = (word.trim(), rest.trim());
                if word == "test" {
                    let (mode, args) = rest.split_once(' ').unwrap_or((rest, ""));
                    commands.push(Command { mode: mode.into(), args: args.trim().into(), line: i + 1 });
                } else if let Some((kind, _)) = KINDS.iter().find(|(_, name)| *name == word) {
                    if *kind == Kind::Exact {
                        let tail: Vec<&str> = text[at..]
                            .lines()
                            .skip(1)
                            .map(|l| l.strip_prefix("; ").unwrap_or(l.trim_start_matches(';')))
                            .collect();
                        exact = Some((tail.join("\n"), at));
                    }
                    directives.push(Directive {
                        kind: *kind,
                        text: rest.into(),
                        line: i + 1,
                        code,
                        func: func.clone(),
                    });
                    if *kind == Kind::Exact {
                        break;
                    }
                }
            }
            at += line.len();
        }
        match commands.is_empty() {
            true => Err(Failure::new(0, "has no `; test: MODE` line")),
            false => Ok(Source { path: path.into(), text: text.into(), commands, directives, exact }),
        }
    }

    /// Directives of some kinds, in order.
    pub fn of(&self, kinds: &[Kind]) -> Vec<&Directive> {
        self.directives.iter().filter(|d| kinds.contains(&d.kind)).collect()
    }

    /// The text without comments, empty lines and blanks at the ends of lines.
    pub fn code(&self) -> String {
        let lines = self.text.lines().map(|l| split(l).0.trim_end()).filter(|l| !l.trim().is_empty());
        lines.map(|l| format!("{l}\n")).collect()
    }
}

/// Code and comment of a line. A `;` in a string is not a comment.
fn split(line: &str) -> (&str, &str) {
    let (mut quoted, mut escaped) = (false, false);
    for (i, c) in line.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ';' if !quoted => return line.split_at(i),
            _ => {}
        }
    }
    (line, "")
}
