//! The lexer. It never fails: what it does not know becomes a token that no rule of the grammar accepts.

use std::ops::Range;

use super::names::is_name_char;

/// What a token is; its text is the slice of the source under its span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `matmul`, `T`, `decode.4`.
    Word,
    /// `12`, `1e-5`, `0x1f`; not checked further.
    Number,
    /// `%x`.
    Value,
    /// `@f`.
    Global,
    /// `#tile64`.
    Layout,
    /// `$eps`: an attribute of the op that a decomposition is of.
    Dollar,
    /// `"..."` on one line.
    Str,
    /// A string whose end is missing.
    OpenStr,
    /// `(`, `->`, `..=` and the like.
    Punct,
    /// Anything else.
    Unknown,
    /// After the last token.
    End,
}

/// A token.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    pub(crate) span: Range<usize>,
    /// True if it is the first of its line.
    pub(crate) first: bool,
}

/// Splits `source` into tokens, the last of which is [`Kind::End`], placed behind the last real token. A byte order mark is skipped.
pub(crate) fn lex(source: &str) -> Vec<Token> {
    let mut tokens: Vec<Token> = Vec::new();
    let mut at = if source.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    let mut first = true;
    while let Some(c) = source[at..].chars().next() {
        if c == '\n' {
            first = true;
            at += 1;
        } else if c.is_whitespace() {
            at += c.len_utf8();
        } else if c == ';' {
            at += source[at..].find('\n').unwrap_or(source.len() - at);
        } else {
            let (kind, len) = token(&source[at..], c);
            tokens.push(Token { kind, span: at..at + len, first });
            first = false;
            at += len;
        }
    }
    let end = tokens.last().map_or(0, |t| t.span.end);
    tokens.push(Token { kind: Kind::End, span: end..end, first: true });
    tokens
}

/// Kind and length in bytes of the token at the start of `rest`, whose first character is `c`.
fn token(rest: &str, c: char) -> (Kind, usize) {
    for punct in ["..=", "->", "(", ")", "{", "}", "[", "]", "<", ">", ",", ":", "=", "+", "*", "/", "-"] {
        if rest.starts_with(punct) {
            return (Kind::Punct, punct.len());
        }
    }
    match c {
        '%' | '@' | '#' | '$' => {
            let len = word(&rest[1..]);
            let kind = match c {
                _ if len == 0 => Kind::Unknown,
                '%' => Kind::Value,
                '@' => Kind::Global,
                '#' => Kind::Layout,
                _ => Kind::Dollar,
            };
            (kind, 1 + len)
        }
        '"' => string(rest),
        c if c.is_ascii_digit() => (Kind::Number, number(rest)),
        c if is_name_char(c) => (Kind::Word, word(rest)),
        _ => {
            let odd =
                |c: char| !c.is_whitespace() && c != ';' && c != '"' && !is_name_char(c) && !c.is_ascii_punctuation();
            let len = rest.chars().skip(1).take_while(|c| odd(*c)).map(char::len_utf8).sum::<usize>();
            (Kind::Unknown, c.len_utf8() + if odd(c) { len } else { 0 })
        }
    }
}

/// Length of the longest run of name characters and of dots followed by one.
fn word(rest: &str) -> usize {
    let bytes = rest.as_bytes();
    let is_char = |i: usize| bytes.get(i).is_some_and(|b| is_name_char(*b as char));
    let mut len = 0;
    while is_char(len) || (len > 0 && bytes.get(len) == Some(&b'.') && is_char(len + 1)) {
        len += 1;
    }
    len
}

/// Length of what looks like a number: a word, a fraction, an exponent with sign. `1..=2` ends before the dots.
fn number(rest: &str) -> usize {
    let bytes = rest.as_bytes();
    let hex = rest.starts_with("0x");
    let mut len = 0;
    while let Some(b) = bytes.get(len) {
        let sign = (*b == b'-' || *b == b'+') && !hex && matches!(bytes[len - 1], b'e' | b'E');
        let dot = *b == b'.' && bytes.get(len + 1) != Some(&b'.');
        if !(is_name_char(*b as char) || sign || dot) {
            break;
        }
        len += 1;
    }
    len
}

fn string(rest: &str) -> (Kind, usize) {
    let mut escaped = false;
    for (i, c) in rest.char_indices().skip(1) {
        match c {
            '\n' => return (Kind::OpenStr, rest[..i].trim_end().len()),
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return (Kind::Str, i + 1),
            _ => {}
        }
    }
    (Kind::OpenStr, rest.trim_end().len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(source: &str) -> Vec<(Kind, &str)> {
        lex(source).into_iter().map(|t| (t.kind, &source[t.span])).collect()
    }

    #[test]
    fn splits_lines_into_tokens() {
        use Kind::*;
        assert_eq!(
            texts("sym T in 1..=8192 ; bound"),
            [(Word, "sym"), (Word, "T"), (Word, "in"), (Number, "1"), (Punct, "..="), (Number, "8192"), (End, "")]
        );
        assert_eq!(texts("%q.1=@l0.w {eps=1e-5}").len(), 9);
        assert_eq!(texts("-1.5e+3-2"), [(Punct, "-"), (Number, "1.5e+3"), (Punct, "-"), (Number, "2"), (End, "")]);
        assert_eq!(
            texts("\"a;\\\"b\" \"open ; x  \n%"),
            [(Str, "\"a;\\\"b\""), (OpenStr, "\"open ; x"), (Unknown, "%"), (End, "")]
        );
        assert_eq!(texts("a ´´? b"), [(Word, "a"), (Unknown, "´´"), (Unknown, "?"), (Word, "b"), (End, "")]);
        assert!(lex("a\n b c").iter().map(|t| t.first).eq([true, true, false, true]));
    }

    #[test]
    fn no_input_is_too_odd() {
        for source in [
            "",
            ";",
            "\u{feff}gir",
            ".",
            "..",
            "1.",
            "1..",
            "1e",
            "1e-",
            "\"",
            "\"\\",
            "%",
            "%%",
            "a.",
            "0x",
            "\u{85}é\u{2028}",
        ] {
            let tokens = lex(source);
            assert!(tokens.windows(2).all(|w| w[0].span.end <= w[1].span.start), "{source:?}");
        }
    }
}
