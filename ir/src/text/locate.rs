//! Finding in a source text what was printed from the module: declarations carry no place of their own.

use std::ops::Range;

use super::lex::{Kind, Token, lex};

/// Bytes of the code that starts at a line and column (in characters), both from 1, up to the end of its line.
pub(crate) fn statement_at(source: &str, line: usize, column: usize) -> Option<Range<usize>> {
    let start = source.split_inclusive('\n').take(line.checked_sub(1)?).map(str::len).sum::<usize>();
    let text = source.get(start..)?.lines().next()?;
    let at = start + text.char_indices().nth(column.checked_sub(1)?)?.0;
    let tokens = lex(&source[at..start + text.len()]);
    let end = tokens.last().map_or(0, |t| t.span.end);
    (end > 0).then_some(at..at + end)
}

/// Bytes of the declaration, `func` line or `return` that `printed` was printed from: in function `func` if given, the last of those whose
/// tokens are equal, else the last of those with the same first two.
pub(crate) fn find_line(source: &str, func: Option<&str>, printed: &str) -> Option<Range<usize>> {
    let tokens = lex(source);
    let text = |t: &Token| &source[t.span.clone()];
    let wanted_tokens = lex(printed);
    let wanted: Vec<&str> =
        wanted_tokens.iter().filter(|t| t.kind != Kind::End).map(|t| &printed[t.span.clone()]).collect();
    let mut here = func.is_none();
    let (mut exact, mut close) = (None, None);
    for (i, t) in tokens.iter().enumerate().filter(|(_, t)| t.first && t.kind != Kind::End) {
        if text(t) == "func"
            && let Some(name) = func
        {
            here = tokens.get(i + 1).is_some_and(|t| text(t).strip_prefix('@') == Some(name));
        }
        let line: Vec<&Token> =
            tokens[i..].iter().enumerate().take_while(|(n, t)| *n == 0 || !t.first).map(|(_, t)| t).collect();
        let have: Vec<&str> = line.iter().map(|t| text(t)).collect();
        let span = t.span.start..line.last().map_or(t.span.end, |t| t.span.end);
        if here && have == wanted {
            exact = Some(span);
        } else if here && have.iter().take(2).eq(wanted.iter().take(2)) {
            close = Some(span);
        }
    }
    exact.or(close)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_printed() {
        let source = "gir 1\nsym T  in 1..=8 ; bound\nsym T in 2..=8\nfunc @f() -> () {\n return\n}\nfunc @g() -> () {\n  return ; here\n}";
        let at = |func, printed| find_line(source, func, printed).map(|r| &source[r]);
        assert_eq!(at(None, "sym T in 1..=8"), Some("sym T  in 1..=8"));
        assert_eq!(at(None, "sym T in 9..=8"), Some("sym T in 2..=8"));
        assert_eq!(at(None, "sym U in 1..=8"), None);
        assert_eq!(find_line(source, Some("g"), "return").map(|r| r.start), source.rfind("return"));
        assert_eq!(statement_at(source, 2, 1), Some(6..21));
        assert_eq!(statement_at(source, 200, 1), None);
        assert_eq!(statement_at(source, 2, 900), None);
        assert_eq!(statement_at(source, 0, 0), None);
    }
}
