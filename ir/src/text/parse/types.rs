//! Types, dims, numbers and attribute values.

use std::sync::Arc;

use super::{Parsed, Parser, quoted};
use crate::attr::{Attr, AttrKind};
use crate::dim::Dim;
use crate::dtype::DType;
use crate::text::lex::Kind;
use crate::ty::{StateFamily, TensorType, Type};

/// Nested `ceil(...)` in a dim.
const MAX_DEPTH: usize = 8;
/// Factors of a dim in normal form, counted over all its products; bounds the work that hostile text can cause.
const MAX_DIM_SIZE: usize = 64;
/// Dims of a tensor, and entries of a list attribute.
const MAX_LIST: usize = 64;

impl<'a> Parser<'a> {
    /// `bf16[T, 8] #layout`, `kv<full>` or `counts<seen>`.
    pub(super) fn ty(&mut self) -> Parsed<Type> {
        for family in [StateFamily::Kv, StateFamily::Counts] {
            if self.is_word(family.name()) {
                self.bump();
                self.expect("<")?;
                let name = self.word("the name of a state declaration")?;
                self.expect(">")?;
                return Ok(Type::State(family, name.into()));
            }
        }
        self.tensor_type("a type").map(Type::Tensor)
    }

    /// A comma-separated list of at least one type.
    pub(super) fn types(&mut self) -> Parsed<Vec<Type>> {
        let mut types = vec![self.ty()?];
        while self.eat(",") {
            types.push(self.ty()?);
        }
        Ok(types)
    }

    pub(super) fn tensor_type(&mut self, what: &str) -> Parsed<TensorType> {
        let dtype = self.dtype(what)?;
        self.expect("[")?;
        let dims = self.items("dims", |p| p.dim(0))?;
        let layout = match self.kind() == Kind::Layout && !self.token().first {
            true => Some(Arc::from(&self.bump()[1..])),
            false => None,
        };
        Ok(TensorType { dtype, dims, layout })
    }

    fn dtype(&mut self, what: &str) -> Parsed<DType> {
        let (span, name) = (self.span(), self.word(what)?);
        match DType::parse(name) {
            Some(d) => Ok(d),
            None => {
                let known: Vec<&str> = DType::ALL.iter().map(|d| d.name()).chain(["kv", "counts"]).collect();
                Err(self.unknown(span, "element type", name, &known))
            }
        }
    }

    /// The rest of a bracketed list after `[`, of bounded length.
    fn items<T>(&mut self, what: &str, item: impl Fn(&mut Self) -> Parsed<T>) -> Parsed<Vec<T>> {
        let mut items = Vec::new();
        self.list("]", |p| {
            if items.len() == MAX_LIST {
                let message = format!("expected at most {MAX_LIST} {what}, found more");
                return Err(p.fail(p.span(), message, String::new()));
            }
            items.push(item(p)?);
            Ok(())
        })?;
        Ok(items)
    }

    /// A sum of products; `depth` counts the `ceil` around it.
    fn dim(&mut self, depth: usize) -> Parsed<Dim> {
        let mut sum = self.dim_product(depth)?;
        while self.is("+") {
            self.bump();
            let next = self.dim_product(depth)?;
            sum = self.bounded(&sum + &next)?;
        }
        Ok(sum)
    }

    fn dim_product(&mut self, depth: usize) -> Parsed<Dim> {
        let mut product = self.dim_factor(depth)?;
        while self.is("*") {
            self.bump();
            let next = self.dim_factor(depth)?;
            product = self.bounded(&product * &next)?;
        }
        Ok(product)
    }

    fn dim_factor(&mut self, depth: usize) -> Parsed<Dim> {
        const WHAT: &str = "a dim (a number, a symbol or `ceil(dim / n)`)";
        match self.kind() {
            Kind::Number => Ok(Dim::from(self.unsigned(WHAT)?)),
            Kind::Dollar => {
                let (span, name) = (self.span(), self.text());
                match self.dollar()? {
                    Attr::Int(n) if n >= 0 => Ok(Dim::from(n)),
                    other => Err(self.fail(span, format!("`{name}` is {other}, expected a size"), String::new())),
                }
            }
            Kind::Word => {
                let word = self.bump();
                if word != "ceil" || !self.is("(") {
                    return Ok(Dim::sym(word));
                }
                if depth == MAX_DEPTH {
                    let message = format!("expected at most {MAX_DEPTH} nested `ceil`, found more");
                    return Err(self.fail(self.span(), message, String::new()));
                }
                self.bump();
                let inner = self.dim(depth + 1)?;
                self.expect("/")?;
                let (span, n) = (self.span(), self.unsigned("the divisor")?);
                self.expect(")")?;
                match n {
                    0 => Err(self.fail(span, "expected a divisor of at least 1, found `0`".into(), String::new())),
                    n => self.bounded(inner.ceil_div(n)),
                }
            }
            _ => {
                let help = if self.is("-") { "dims are never negative and have no subtraction" } else { "" };
                Err(self.unexpected(WHAT, help))
            }
        }
    }

    fn bounded(&mut self, dim: Dim) -> Parsed<Dim> {
        match dim.size() <= MAX_DIM_SIZE {
            true => Ok(dim),
            false => {
                let message = format!("expected a dim of at most {MAX_DIM_SIZE} factors, found {}", dim.size());
                Err(self.fail(self.span(), message, "name the size with a symbol".into()))
            }
        }
    }

    /// A number without sign.
    pub(super) fn unsigned(&mut self, what: &str) -> Parsed<i64> {
        let value = (self.kind() == Kind::Number).then(|| self.text().parse().ok()).flatten();
        match value {
            Some(n) => {
                self.bump();
                Ok(n)
            }
            None => Err(self.unexpected(what, "")),
        }
    }

    /// An integer with an optional `-`.
    pub(super) fn integer(&mut self, what: &str) -> Parsed<i64> {
        if !self.eat("-") {
            return self.unsigned(what);
        }
        match format!("-{}", self.text()).parse() {
            Ok(n) if self.kind() == Kind::Number => {
                self.bump();
                Ok(n)
            }
            _ => Err(self.unexpected(what, "")),
        }
    }

    /// `1.5`, `1e-5`, `3`, `inf`, `nan`, `nan(0x7ff8000000000001)`, each with an optional `-`.
    fn float(&mut self) -> Parsed<f64> {
        let negative = self.eat("-");
        let value: Option<f64> = match self.kind() {
            Kind::Word if self.text() == "inf" => Some(f64::INFINITY),
            Kind::Word if self.text() == "nan" => Some(f64::NAN),
            // Rust would also read `infinity`; the lexer never gives a number that starts with a letter.
            Kind::Number => self.text().parse().ok(),
            _ => None,
        };
        let Some(mut value) = value else {
            return Err(self.unexpected(&AttrKind::Float.to_string(), ""));
        };
        self.bump();
        if value.is_nan() && self.eat("(") {
            let (span, text) = (self.span(), self.text());
            let bits = text.strip_prefix("0x").and_then(|t| u64::from_str_radix(t, 16).ok()).map(f64::from_bits);
            let Some(bits) = bits.filter(|b| b.is_nan()) else {
                return Err(self.fail(
                    span,
                    "expected the bits of a NaN as 0x..., found other text".into(),
                    String::new(),
                ));
            };
            self.bump();
            self.expect(")")?;
            value = bits;
        }
        Ok(if negative { -value } else { value })
    }

    /// `$name`: an attribute of the op that a decomposition is of.
    fn dollar(&mut self) -> Parsed<Attr> {
        let (span, text) = (self.span(), self.bump());
        let Some(attrs) = self.dollars else {
            let help = "`$name` stands for an attribute and is for decompositions only";
            return Err(self.fail(span, format!("expected a value, found `{text}`"), help.into()));
        };
        match attrs.get(&text[1..]) {
            Some(value) => Ok(value.clone()),
            None => {
                let known: Vec<&str> = attrs.iter().map(|(k, _)| k).collect();
                Err(self.unknown(span, "attribute", text, &known))
            }
        }
    }

    /// A value of an attribute of this kind.
    pub(super) fn attr_value(&mut self, kind: AttrKind) -> Parsed<Attr> {
        let span = self.span();
        let negated = self.is("-") && self.tokens.get(self.at + 1).is_some_and(|t| t.kind == Kind::Dollar);
        if negated {
            self.bump();
        }
        if self.kind() == Kind::Dollar {
            let value = match (self.dollar()?, negated, kind) {
                (Attr::Int(i), _, AttrKind::Float) => Attr::Float(if negated { -(i as f64) } else { i as f64 }),
                (Attr::Int(i), true, _) => Attr::Int(i.saturating_neg()),
                (Attr::Float(x), true, _) => Attr::Float(-x),
                (value, false, _) => value,
                (value, true, _) => {
                    return Err(self.fail(span, format!("expected {kind}, found `-{value}`"), String::new()));
                }
            };
            return match kind.accepts(&value) {
                true => Ok(value),
                false => Err(self.fail(span, format!("expected {kind}, found `{value}`"), String::new())),
            };
        }
        let what = kind.to_string();
        match kind {
            AttrKind::Int => self.integer(&what).map(Attr::Int),
            AttrKind::Float => self.float().map(Attr::Float),
            AttrKind::Bool if self.is_word("true") || self.is_word("false") => Ok(Attr::Bool(self.bump() == "true")),
            AttrKind::Bool => Err(self.unexpected(&what, "")),
            AttrKind::OneOf(words) => match self.kind() == Kind::Word && words.contains(&self.text()) {
                true => Ok(Attr::from(self.bump())),
                false => Err(self.unexpected(&quoted(words, "or"), "")),
            },
            AttrKind::Word => self.word(&what).map(Attr::from),
            AttrKind::Func => self.sigil(Kind::Global, "a function name such as `@f`").map(Attr::from),
            AttrKind::Layout => self.sigil(Kind::Layout, "a layout name such as `#tile64`").map(Attr::from),
            AttrKind::DType => self.dtype(&what).map(Attr::DType),
            AttrKind::Ints => {
                self.expect("[")?;
                self.items("integers", |p| p.integer("an integer")).map(Attr::Ints)
            }
            AttrKind::Dims => {
                self.expect("[")?;
                self.items("dims", |p| p.dim(0)).map(Attr::Dims)
            }
            // Written as regions; see `kernel` in `body.rs`.
            AttrKind::Kernel => Err(self.unexpected("an attribute other than the body of a kernel", "")),
        }
    }

    /// A string in double quotes, without escapes.
    pub(super) fn string(&mut self, what: &str) -> Parsed<String> {
        if self.kind() != Kind::Str {
            let help = if self.kind() == Kind::OpenStr { "a string ends on the line where it starts" } else { "" };
            return Err(self.unexpected(what, help));
        }
        let span = self.span();
        let text = self.bump();
        let mut out = String::new();
        let mut rest = text[1..text.len() - 1].chars();
        while let Some(c) = rest.next() {
            if c != '\\' {
                out.push(c);
                continue;
            }
            match rest.next() {
                Some('n') => out.push('\n'),
                Some('t') => out.push('\t'),
                Some('r') => out.push('\r'),
                Some(c @ ('"' | '\\')) => out.push(c),
                Some('u') => {
                    let code: String = rest.by_ref().take_while(|c| *c != '}').collect();
                    let code = code.strip_prefix('{').and_then(|c| u32::from_str_radix(c, 16).ok());
                    match code.and_then(char::from_u32) {
                        Some(c) => out.push(c),
                        None => return Err(self.bad_escape(span, "u")),
                    }
                }
                Some(c) => return Err(self.bad_escape(span, &c.to_string())),
                None => return Err(self.bad_escape(span, "")),
            }
        }
        Ok(out)
    }

    fn bad_escape(&mut self, span: std::ops::Range<usize>, found: &str) -> super::Failed {
        let message = format!("unknown escape `\\{found}` in a string");
        self.fail(span, message, "known: \\\" \\\\ \\n \\t \\r \\u{hex}".into())
    }
}
