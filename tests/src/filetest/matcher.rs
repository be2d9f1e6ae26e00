//! Matching output lines against `check`, `next` and `not`.

use std::collections::BTreeMap;

use super::{Directive, Failure, Kind};

/// What `{{name}}` stands for.
pub(super) type Captures = BTreeMap<String, String>;

/// Checks the directives of a file against an output in IR text, function by function.
pub(super) fn check(directives: &[&Directive], output: &str) -> Vec<Failure> {
    check_with(directives, &|func| match func {
        None => Some(output.lines().collect()),
        Some(name) => function(output, name),
    })
}

/// [`check`] against lines that `lines` gives for each function, or for everything.
pub(super) fn check_with<'a>(
    directives: &[&Directive],
    lines: &dyn Fn(Option<&str>) -> Option<Vec<&'a str>>,
) -> Vec<Failure> {
    let mut failures = Vec::new();
    let mut rest = directives;
    while let Some(first) = rest.first() {
        let count = rest.iter().take_while(|d| d.func == first.func).count();
        let (group, tail) = rest.split_at(count);
        rest = tail;
        match lines(first.func.as_deref()) {
            Some(lines) => group_check(group, &lines, &mut failures),
            None => {
                let func = first.func.as_deref().unwrap_or_default();
                let all = lines(None).unwrap_or_default().join("\n");
                failures.push(Failure::new(first.line, format!("there is no function @{func} in the output:\n{all}")));
            }
        }
    }
    failures
}

/// The lines of function `name`.
fn function<'a>(output: &'a str, name: &str) -> Option<Vec<&'a str>> {
    let head = format!("func @{name}(");
    let mut lines = output.lines().skip_while(|l| !l.starts_with(&head)).peekable();
    lines.peek()?;
    let mut out = Vec::new();
    for line in lines {
        out.push(line);
        if line == "}" {
            break;
        }
    }
    Some(out)
}

fn group_check(group: &[&Directive], lines: &[&str], failures: &mut Vec<Failure>) {
    let mut captures = Captures::new();
    let mut at = 0;
    let mut nots: Vec<&Directive> = Vec::new();
    let shown = || format!("in the output:\n{}", lines.join("\n"));
    for d in group {
        let hit = match d.kind {
            Kind::Not => {
                nots.push(d);
                continue;
            }
            Kind::Next => lines.get(at).filter(|_| at > 0).and_then(|l| find(&d.text, l, &captures)).map(|c| (at, c)),
            _ => (at..lines.len()).find_map(|i| find(&d.text, lines[i], &captures).map(|c| (i, c))),
        };
        let Some((index, found)) = hit else {
            let where_ = if d.kind == Kind::Next { "the next line is not" } else { "found no line with" };
            failures.push(Failure::new(d.line, format!("{where_} `{}` {}", d.text, shown())));
            return;
        };
        forbid(&nots, &lines[at..index], &captures, failures);
        nots.clear();
        captures = found;
        at = index + 1;
    }
    forbid(&nots, &lines[at..], &captures, failures);
}

fn forbid(nots: &[&Directive], lines: &[&str], captures: &Captures, failures: &mut Vec<Failure>) {
    for d in nots {
        if let Some(line) = lines.iter().find(|l| find(&d.text, l, captures).is_some()) {
            failures.push(Failure::new(d.line, format!("found `{}` in `{}`", d.text, line.trim())));
        }
    }
}

/// The captures after matching `pattern` somewhere in `line`.
pub(super) fn find(pattern: &str, line: &str, captures: &Captures) -> Option<Captures> {
    let (pattern, line) = (blanks(pattern), blanks(line));
    line.char_indices().map(|(i, _)| i).chain([line.len()]).find_map(|i| starts(&pattern, &line[i..], captures.clone()))
}

/// Every run of blanks as one.
fn blanks(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn starts(mut pattern: &str, mut line: &str, mut captures: Captures) -> Option<Captures> {
    loop {
        let Some((literal, after)) = pattern.split_once("{{") else {
            return line.starts_with(pattern).then_some(captures);
        };
        let (name, tail) = after.split_once("}}")?;
        line = line.strip_prefix(literal)?;
        let word = word(line);
        if word.is_empty() {
            return None;
        }
        match captures.get(name) {
            Some(known) if known != word => return None,
            _ => drop(captures.insert(name.into(), word.into())),
        }
        line = &line[word.len()..];
        pattern = tail;
    }
}

/// The identifier at the start of `text`: letters, digits, `_`, and dots between them.
fn word(text: &str) -> &str {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.')).unwrap_or(text.len());
    text[..end].trim_end_matches('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captures_hold_on() {
        let c = find("%{{x}} = neg", "  %y.1 = neg %a", &Captures::new()).unwrap();
        assert_eq!(c["x"], "y.1");
        assert!(find("add %{{x}}, %{{y}}", "%z = add %y.1, %b", &c).is_some());
        assert!(find("add %{{x}},", "%z = add %y.2, %b", &c).is_none());
        assert!(find("a   b", "a b", &c).is_some());
        assert!(find("{{x", "anything", &c).is_none());
    }

    fn run(directives: &[(Kind, &str)], output: &str) -> Vec<String> {
        let all: Vec<Directive> = directives
            .iter()
            .map(|(kind, text)| Directive {
                kind: *kind,
                text: text.to_string(),
                line: 1,
                code: 1,
                func: Some("f".into()),
            })
            .collect();
        check(&all.iter().collect::<Vec<_>>(), output).into_iter().map(|f| f.message).collect()
    }

    #[test]
    fn order_next_and_not() {
        let output = "gir 1\n\nfunc @g() {\n  x\n}\n\nfunc @f() {\n  a\n  b\n  c\n}\n";
        assert_eq!(
            run(&[(Kind::Check, "a"), (Kind::Next, "b"), (Kind::Not, "x"), (Kind::Check, "}")], output),
            [""; 0]
        );
        assert!(run(&[(Kind::Check, "b"), (Kind::Check, "a")], output)[0].starts_with("found no line with `a`"));
        assert!(run(&[(Kind::Check, "a"), (Kind::Next, "c")], output)[0].starts_with("the next line is not `c`"));
        assert_eq!(run(&[(Kind::Check, "a"), (Kind::Not, "b"), (Kind::Check, "c")], output), ["found `b` in `b`"]);
        assert_eq!(run(&[(Kind::Check, "b"), (Kind::Not, "c")], output), ["found `c` in `c`"]);
        assert!(run(&[(Kind::Check, "a")], "gir 1\n")[0].starts_with("there is no function @f"));
    }
}
