//! Two texts of IR side by side, line by line, with what changed marked.
//!
//! Lines face each other if they are the same but for names of values and indentation, so that an op that moved into a kernel still faces the op it was.

/// A row: the line on the left and the line on the right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row<'a> {
    /// Equal lines.
    Same(&'a str),
    /// The same statement under other names, or further in.
    Moved(&'a str, &'a str),
    /// A line on one side only, or another line on each.
    Changed(Option<&'a str>, Option<&'a str>),
}

/// Aligns two texts by a longest common subsequence of lines.
pub fn rows<'a>(left: &'a str, right: &'a str) -> Vec<Row<'a>> {
    let (a, b): (Vec<&str>, Vec<&str>) = (left.lines().collect(), right.lines().collect());
    let keys = |lines: &[&str]| lines.iter().map(|l| key(l)).collect::<Vec<String>>();
    let (p, q) = (keys(&a), keys(&b));
    // Length of the common subsequence of the tails; equal lines count a little more than moved ones.
    let weight = |i: usize, j: usize| if a[i] == b[j] { 5u32 } else { 4 };
    let mut table = vec![vec![0u32; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            let skip = table[i + 1][j].max(table[i][j + 1]);
            table[i][j] = if p[i] == q[j] { skip.max(table[i + 1][j + 1] + weight(i, j)) } else { skip };
        }
    }
    let mut out = Vec::new();
    let (mut i, mut j) = (0, 0);
    let (mut removed, mut added) = (Vec::new(), Vec::new());
    while i < a.len() || j < b.len() {
        let both = i < a.len() && j < b.len();
        if both && p[i] == q[j] && table[i][j] == table[i + 1][j + 1] + weight(i, j) {
            flush(&mut removed, &mut added, &mut out);
            out.push(if a[i] == b[j] { Row::Same(a[i]) } else { Row::Moved(a[i], b[j]) });
            (i, j) = (i + 1, j + 1);
        } else if j == b.len() || (i < a.len() && table[i + 1][j] >= table[i][j + 1]) {
            removed.push(a[i]);
            i += 1;
        } else {
            added.push(b[j]);
            j += 1;
        }
    }
    flush(&mut removed, &mut added, &mut out);
    out
}

/// The line without names of values and indentation.
fn key(line: &str) -> String {
    let mut out = String::new();
    let mut in_name = false;
    for c in line.trim().chars() {
        in_name = in_name && (c.is_ascii_alphanumeric() || c == '_' || c == '.');
        if !in_name {
            out.push(c);
        }
        in_name |= c == '%' || c == '@';
    }
    out
}

/// Puts changed lines beside each other.
fn flush<'a>(removed: &mut Vec<&'a str>, added: &mut Vec<&'a str>, out: &mut Vec<Row<'a>>) {
    for i in 0..removed.len().max(added.len()) {
        out.push(Row::Changed(removed.get(i).copied(), added.get(i).copied()));
    }
    removed.clear();
    added.clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_lines_face_each_other() {
        use Row::{Changed, Same};
        assert_eq!(rows("a\nb\nc", "a\nc"), [Same("a"), Changed(Some("b"), None), Same("c")]);
        assert_eq!(rows("a\nx", "a\ny\nz"), [Same("a"), Changed(Some("x"), Some("y")), Changed(None, Some("z"))]);
        assert_eq!(rows("", "q"), [Changed(None, Some("q"))]);
        assert!(rows("", "").is_empty());
    }

    #[test]
    fn a_statement_under_another_name_has_moved() {
        let (l, r) = ("  %a = neg %x : f32[2]", "    %b.1 = neg %y : f32[2]");
        assert_eq!(rows(l, r), [Row::Moved(l, r)]);
        assert_eq!(key(l), "% = neg % : f32[2]");
        // Of two that would do, the equal one is taken.
        let both = format!("{r}\n{l}");
        assert_eq!(rows(l, &both), [Row::Changed(None, Some(r)), Row::Same(l)]);
    }
}
