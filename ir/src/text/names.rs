//! Names in text: which strings are names, unique names for values, and guesses at misspelt ones.

use std::collections::{BTreeMap, BTreeSet};

use crate::graph::{OpId, Value};
use crate::module::Func;
use crate::op::OpKind;

/// True if `c` may occur in a name.
pub(crate) fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// True if `text` can be written as a name: letters, digits and `_` in parts joined by single dots, not starting with a digit.
pub fn is_name(text: &str) -> bool {
    !text.starts_with(|c: char| c.is_ascii_digit()) && is_word(text)
}

/// As [`is_name`], but may start with a digit; enough after a sigil.
pub(crate) fn is_word(text: &str) -> bool {
    text.split('.').all(|part| !part.is_empty() && part.chars().all(is_name_char))
}

/// A name hint as it is printed before it is made unique: foreign characters become `_`, a trailing number is dropped (`q.3` is `q`), since
/// the printer adds its own.
pub(crate) fn base(hint: &str) -> String {
    let clean: String = hint.chars().map(|c| if is_name_char(c) || c == '.' { c } else { '_' }).collect();
    let mut parts: Vec<&str> = clean.split('.').filter(|p| !p.is_empty()).collect();
    while parts.len() > 1 && parts.last().is_some_and(|p| p.bytes().all(|b| b.is_ascii_digit())) {
        parts.pop();
    }
    match parts.is_empty() {
        true => "v".into(),
        false => parts.join("."),
    }
}

/// Printed names of the values of one function.
pub(crate) struct Names {
    params: Vec<String>,
    values: BTreeMap<Value, String>,
}

impl Names {
    /// Names for the parameters and the results of `order`, each unique: the first of a hint keeps it, later ones get `.1`, `.2`.
    pub(crate) fn new(func: &Func, order: &[OpId]) -> Names {
        let mut taken = Taken::default();
        let params: Vec<String> = func.params.iter().map(|p| taken.unique(&p.name)).collect();
        let mut values = BTreeMap::new();
        for id in order {
            let op = func.graph.op(*id);
            for i in 0..op.results.len() {
                let value = Value { op: *id, result: i as u16 };
                let index = usize::try_from(op.attrs.int("index")).ok();
                let param = index.and_then(|n| params.get(n)).filter(|_| op.kind == OpKind::Param);
                let name = match (param, op.kind) {
                    (Some(name), _) => format!("%{name}"),
                    (None, OpKind::Weight) => format!("@{}", op.attrs.word("name")),
                    _ => format!("%{}", taken.unique(op.names.get(i).map_or("v", |n| n))),
                };
                values.insert(value, name);
            }
        }
        Names { params, values }
    }

    /// Name of parameter `index`, without sigil.
    pub(crate) fn param(&self, index: usize) -> &str {
        self.params.get(index).map_or("?", |n| n)
    }

    /// Name of a value with its sigil; `%?` if there is no such value.
    pub(crate) fn value(&self, value: Value) -> &str {
        self.values.get(&value).map_or("%?", |n| n)
    }
}

#[derive(Default)]
struct Taken {
    names: BTreeSet<String>,
    next: BTreeMap<String, u32>,
}

impl Taken {
    fn unique(&mut self, hint: &str) -> String {
        let base = base(hint);
        let next = self.next.entry(base.clone()).or_insert(0);
        loop {
            let name = match *next {
                0 => base.clone(),
                n => format!("{base}.{n}"),
            };
            *next += 1;
            if self.names.insert(name.clone()) {
                return name;
            }
        }
    }
}

/// Up to three of `known` that are a plausible misspelling away from `name`, nearest first.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let length = name.chars().count();
    let limit = (length / 3).clamp(1, 4).min(length.saturating_sub(1));
    let mut near: Vec<(usize, &str)> = known
        .into_iter()
        .filter(|k| k.len().abs_diff(name.len()) <= 8 && name.len() <= 200)
        .map(|k| (distance(name, k), k))
        .filter(|(d, k)| {
            *d <= limit || (name.len() >= 3 && (k.starts_with(name) || name.starts_with(k) && k.len() >= 3))
        })
        .collect();
    near.sort();
    near.dedup();
    near.into_iter().take(3).map(|(_, k)| k).collect()
}

/// Edits (insert, delete, replace, swap neighbours) between two words.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0usize; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = match (i, j) {
                (0, _) => j,
                (_, 0) => i,
                _ => {
                    let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                    let best = replace.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                    match i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                        true => best.min(rows[i - 2][j - 2] + 1),
                        false => best,
                    }
                }
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_become_names() {
        assert_eq!(base("q.3"), "q");
        assert_eq!(base("l0.attn.q"), "l0.attn.q");
        assert_eq!(base("a b..c."), "a_b.c");
        assert_eq!(base("3.4"), "3");
        assert_eq!(base(""), "v");
        let mut taken = Taken::default();
        assert_eq!([taken.unique("q"), taken.unique("q.7"), taken.unique("q")], ["q", "q.1", "q.2"]);
    }

    #[test]
    fn guesses_are_near() {
        assert_eq!(nearest("matmull", ["matmul", "bmm", "moe_matmul"]), ["matmul"]);
        assert_eq!(nearest("sofmtax", ["softmax"]), ["softmax"]);
        assert!(nearest("zzz", ["add", "sub"]).is_empty());
    }

    #[test]
    fn names_have_no_odd_characters() {
        assert!(is_name("l0.attn.q_proj") && is_name("_x"));
        assert!(!is_name("0a") && !is_name("a..b") && !is_name("a.") && !is_name("") && !is_name("a-b"));
        assert!(is_word("0") && !is_word("."));
    }
}
