//! Symbolic dimensions: non-negative integers over named, bounded symbols.
//!
//! A [`Dim`] is always in normal form (a sorted sum of products), so equality is structural; two dims whose normal forms
//! differ count as different, never as "maybe equal". There is no subtraction, and division only as [`Dim::ceil_div`].

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// A symbol's name, cheap to clone.
pub type Sym = Arc<str>;

/// Values of symbols, by name.
pub type Bindings = BTreeMap<Sym, i64>;

/// One factor of a product: a symbol, or a rounded-up quotient that could not be simplified.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Factor {
    /// A named symbol.
    Sym(Sym),
    /// `ceil(dim / n)`.
    CeilDiv(Box<Dim>, i64),
}

/// A dimension in normal form: products (sorted factors) with positive coefficients, sorted; the empty product is the constant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Dim {
    /// Shared: dims are cloned far more often than they are made.
    terms: Arc<BTreeMap<Vec<Factor>, i64>>,
}

impl Dim {
    /// The symbol `name`.
    pub fn sym(name: &str) -> Dim {
        Dim { terms: Arc::new(BTreeMap::from([(vec![Factor::Sym(name.into())], 1)])) }
    }

    /// The value, if no symbol occurs.
    pub fn as_const(&self) -> Option<i64> {
        match self.terms.len() {
            0 => Some(0),
            1 => self.terms.get(&Vec::new()).copied(),
            _ => None,
        }
    }

    /// `ceil(self / n)`; `n` must be positive. Exact quotients simplify.
    pub fn ceil_div(&self, n: i64) -> Dim {
        debug_assert!(n > 0);
        if let Some(d) = self.div_exact(n) {
            return d;
        }
        match self.as_const() {
            Some(c) => Dim::from(c.saturating_add(n - 1) / n),
            None => Dim { terms: Arc::new(BTreeMap::from([(vec![Factor::CeilDiv(Box::new(self.clone()), n)], 1)])) },
        }
    }

    /// `self / n` if every coefficient is a multiple of `n`.
    pub fn div_exact(&self, n: i64) -> Option<Dim> {
        let terms: Option<BTreeMap<_, _>> =
            self.terms.iter().map(|(k, c)| (c % n == 0).then(|| (k.clone(), c / n))).collect();
        Some(Dim { terms: Arc::new(terms?) })
    }

    /// The value under `bindings`; the error names the unbound symbol.
    pub fn eval(&self, bindings: &Bindings) -> Result<i64, Sym> {
        let mut sum = 0i64;
        for (product, coefficient) in &*self.terms {
            let mut value = *coefficient;
            for factor in product {
                let f = match factor {
                    Factor::Sym(s) => *bindings.get(s).ok_or_else(|| s.clone())?,
                    Factor::CeilDiv(d, n) => d.eval(bindings)?.saturating_add(n - 1) / n,
                };
                value = value.saturating_mul(f);
            }
            sum = sum.saturating_add(value);
        }
        Ok(sum)
    }

    /// The dim with every bound symbol replaced by its value.
    pub fn substitute(&self, bindings: &Bindings) -> Dim {
        let mut sum = Dim::default();
        for (product, coefficient) in &*self.terms {
            let mut value = Dim::from(*coefficient);
            for factor in product {
                let f = match factor {
                    Factor::Sym(s) => bindings.get(s).map_or_else(|| Dim::sym(s), |v| Dim::from(*v)),
                    Factor::CeilDiv(d, n) => d.substitute(bindings).ceil_div(*n),
                };
                value = &value * &f;
            }
            sum = &sum + &value;
        }
        sum
    }

    /// Names of the symbols that occur, sorted.
    pub fn symbols(&self) -> Vec<Sym> {
        let mut out = Vec::new();
        for factor in self.terms.keys().flatten() {
            match factor {
                Factor::Sym(s) => out.push(s.clone()),
                Factor::CeilDiv(d, _) => out.extend(d.symbols()),
            }
        }
        out.sort();
        out.dedup();
        out
    }

    /// Number of products and of factors in them, those inside `ceil` included: what it costs to work with.
    pub fn size(&self) -> usize {
        let factor = |f: &Factor| match f {
            Factor::Sym(_) => 1,
            Factor::CeilDiv(d, _) => 1 + d.size(),
        };
        self.terms.keys().map(|p| 1 + p.iter().map(factor).sum::<usize>()).sum()
    }

    /// True if the dim cannot be negative and is in normal form: every coefficient and divisor is positive.
    pub fn is_legal(&self) -> bool {
        let factor = |f: &Factor| match f {
            Factor::Sym(_) => true,
            Factor::CeilDiv(d, n) => *n > 0 && d.is_legal(),
        };
        self.terms.iter().all(|(p, c)| *c > 0 && p.iter().all(factor))
    }

    fn insert(&mut self, product: Vec<Factor>, coefficient: i64) {
        if coefficient != 0 {
            let slot = Arc::make_mut(&mut self.terms).entry(product).or_insert(0);
            *slot = slot.saturating_add(coefficient);
        }
    }
}

impl From<i64> for Dim {
    fn from(value: i64) -> Dim {
        let mut dim = Dim::default();
        dim.insert(Vec::new(), value);
        dim
    }
}

impl From<usize> for Dim {
    fn from(value: usize) -> Dim {
        Dim::from(value as i64)
    }
}

impl std::ops::Add for &Dim {
    type Output = Dim;
    fn add(self, rhs: &Dim) -> Dim {
        let mut out = self.clone();
        for (product, coefficient) in &*rhs.terms {
            out.insert(product.clone(), *coefficient);
        }
        out
    }
}

impl std::ops::Mul for &Dim {
    type Output = Dim;
    fn mul(self, rhs: &Dim) -> Dim {
        let mut out = Dim::default();
        for (a, ca) in &*self.terms {
            for (b, cb) in &*rhs.terms {
                let mut product: Vec<Factor> = a.iter().chain(b).cloned().collect();
                product.sort();
                out.insert(product, ca.saturating_mul(*cb));
            }
        }
        out
    }
}

/// The product of `dims`: the number of elements of a shape.
pub fn product<'a>(dims: impl IntoIterator<Item = &'a Dim>) -> Dim {
    dims.into_iter().fold(Dim::from(1i64), |acc, d| &acc * d)
}

impl fmt::Display for Dim {
    /// `2880`, `T`, `T*4`, `T + 3`, `ceil(T/64)*2`; the form the parser reads back.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.terms.is_empty() {
            return f.write_str("0");
        }
        // Symbols before the constant: `T + 3` reads better than `3 + T`.
        let symbolic = self.terms.iter().filter(|(p, _)| !p.is_empty());
        let constant = self.terms.iter().filter(|(p, _)| p.is_empty());
        for (i, (product, coefficient)) in symbolic.chain(constant).enumerate() {
            if i > 0 {
                f.write_str(" + ")?;
            }
            if product.is_empty() {
                write!(f, "{coefficient}")?;
                continue;
            }
            for (j, factor) in product.iter().enumerate() {
                if j > 0 {
                    f.write_str("*")?;
                }
                match factor {
                    Factor::Sym(s) => f.write_str(s)?,
                    Factor::CeilDiv(d, n) => write!(f, "ceil({d} / {n})")?,
                }
            }
            if *coefficient != 1 {
                write!(f, "*{coefficient}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_form_decides_equality() {
        let t = Dim::sym("T");
        assert_eq!(&t * &Dim::from(4i64), &(&t + &t) + &(&t + &t));
        assert_eq!(product(&[Dim::from(2i64), t.clone(), Dim::from(3i64)]), &t * &Dim::from(6i64));
        assert_ne!(t, Dim::sym("S"));
        assert_eq!((&t * &Dim::from(64i64)).ceil_div(64), t);
        assert_eq!(Dim::from(65i64).ceil_div(64), Dim::from(2i64));
    }

    #[test]
    fn prints_and_evaluates() {
        let t = Dim::sym("T");
        let d = &(&t.ceil_div(64) * &Dim::from(2i64)) + &Dim::from(3i64);
        assert_eq!(d.to_string(), "ceil(T / 64)*2 + 3");
        assert_eq!(d.eval(&Bindings::from([("T".into(), 65)])), Ok(7));
        assert_eq!(d.eval(&Bindings::new()), Err("T".into()));
        assert_eq!(d.substitute(&Bindings::from([("T".into(), 65)])), Dim::from(7i64));
    }
}
