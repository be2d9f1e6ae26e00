//! Two texts side by side, line by line, with what changed marked.

/// A row: the line on the left and the line on the right. Equal lines stand in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row<'a> {
    /// In both.
    Same(&'a str),
    /// Left, right, or another line in each.
    Changed(Option<&'a str>, Option<&'a str>),
}

/// Aligns two texts by a longest common subsequence of lines.
pub fn rows<'a>(left: &'a str, right: &'a str) -> Vec<Row<'a>> {
    let (a, b): (Vec<&str>, Vec<&str>) = (left.lines().collect(), right.lines().collect());
    // Length of the common subsequence of the tails.
    let mut table = vec![vec![0u32; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            table[i][j] = match a[i] == b[j] {
                true => table[i + 1][j + 1] + 1,
                false => table[i + 1][j].max(table[i][j + 1]),
            };
        }
    }
    let mut out = Vec::new();
    let (mut i, mut j) = (0, 0);
    let (mut removed, mut added) = (Vec::new(), Vec::new());
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            flush(&mut removed, &mut added, &mut out);
            out.push(Row::Same(a[i]));
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
}
