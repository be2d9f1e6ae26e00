//! Index expressions: a C++ variable times a factor plus a constant, so that offsets fold and the text stays readable.

/// One coordinate of an element: `scale * base + offset`, or a constant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Index {
    base: Option<String>,
    scale: i64,
    offset: i64,
}

impl Index {
    /// A variable (or an expression in parentheses) of the surrounding code.
    pub fn var(name: impl Into<String>) -> Index {
        Index { base: Some(name.into()), scale: 1, offset: 0 }
    }

    /// A constant.
    pub fn constant(value: i64) -> Index {
        Index { base: None, scale: 0, offset: value }
    }

    /// The index, moved.
    pub fn plus(&self, n: i64) -> Index {
        Index { offset: self.offset + n, ..self.clone() }
    }

    /// The index, multiplied.
    pub fn times(&self, n: i64) -> Index {
        match n {
            0 => Index::constant(0),
            _ => Index { base: self.base.clone(), scale: self.scale * n, offset: self.offset * n },
        }
    }

    /// The constant part.
    pub fn offset(&self) -> i64 {
        self.offset
    }

    /// The variable, if the index is one plus a constant.
    pub fn variable(&self) -> Option<&str> {
        self.base.as_deref().filter(|_| self.scale == 1)
    }

    /// The value, if it is a constant.
    pub fn as_constant(&self) -> Option<i64> {
        self.base.is_none().then_some(self.offset)
    }

    /// The part that is not constant: `n`, `n * 2`.
    pub fn without_offset(&self) -> Option<String> {
        let base = self.base.as_ref()?;
        Some(match self.scale {
            1 => base.clone(),
            s => format!("{base} * {s}"),
        })
    }

    /// The whole as an expression: `n * 2 + 1`.
    pub fn text(&self) -> String {
        match (self.without_offset(), self.offset) {
            (None, c) => c.to_string(),
            (Some(t), 0) => t,
            (Some(t), c) if c < 0 => format!("{t} - {}", -c),
            (Some(t), c) => format!("{t} + {c}"),
        }
    }

    /// The whole as an operand of another operator: in parentheses where it needs them.
    pub fn operand(&self) -> String {
        match self.base.is_none() || (self.scale == 1 && self.offset == 0) {
            true => self.text(),
            false => format!("({})", self.text()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Index;

    #[test]
    fn constants_fold() {
        let n = Index::var("n");
        assert_eq!(n.text(), "n");
        assert_eq!(n.plus(32).text(), "n + 32");
        assert_eq!(n.plus(32).plus(-32), n);
        assert_eq!(n.times(2).plus(1).text(), "n * 2 + 1");
        assert_eq!(n.plus(3).times(2).text(), "n * 2 + 6");
        assert_eq!(n.plus(-4096).operand(), "(n - 4096)");
        assert_eq!(Index::constant(3).times(5).plus(1).text(), "16");
        assert_eq!(n.times(0).as_constant(), Some(0));
    }
}
