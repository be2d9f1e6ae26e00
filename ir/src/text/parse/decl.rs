//! Declarations: symbols, state, weights, buckets; and what may stand at the top of a text.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{Parsed, Parser};
use crate::attr::{Attr, AttrKind, Attrs};
use crate::dim::Bindings;
use crate::module::{Bucket, StateDecl, SymDecl, WeightDecl};
use crate::op::OpKind;
use crate::text::KV_DTYPE;
use crate::text::lex::Kind;

const ITEMS: [&str; 6] = ["sym", "kv", "counts", "weight", "bucket", "func"];

/// A field of `{name = value}`: its name, what it holds, whether it must be there.
type Field = (&'static str, AttrKind, bool);

impl<'a> Parser<'a> {
    /// Declarations and functions up to the end of the text.
    pub(super) fn module(&mut self) {
        while !self.is_end() {
            self.start = self.at;
            if self.item().is_err() {
                self.recover(|p, at| p.is_item(at) || (p.tokens[at].kind == Kind::Word && p.is_flush(at)));
            }
        }
    }

    /// True if a declaration or function starts at token `at`.
    pub(super) fn is_item(&self, at: usize) -> bool {
        self.tokens[at].kind == Kind::Word && (ITEMS.contains(&self.text_of(at)) || self.text_of(at) == "decomp")
    }

    fn item(&mut self) -> Parsed<()> {
        let (span, word) = (self.span(), self.word("a declaration or a function")?);
        match word {
            "sym" => self.sym(),
            "kv" => self.kv(),
            "counts" => self.counts(),
            "weight" => self.weight(),
            "bucket" => self.bucket(),
            "func" => self.func(),
            "decomp" => {
                let message = "expected a declaration or a function, found `decomp`".into();
                Err(self.fail(span, message, "decompositions belong to the op table, in ir/src/decomp".into()))
            }
            _ => Err(self.unknown(span, "declaration", word, &ITEMS)),
        }
    }

    fn sym(&mut self) -> Parsed<()> {
        let name = self.word("the name of a symbol")?;
        if !self.is_word("in") {
            return Err(self.unexpected("`in`", "a symbol is declared as `sym T in 1..=8192`"));
        }
        self.bump();
        let min = self.integer("the least value")?;
        self.expect("..=")?;
        let max = self.integer("the greatest value")?;
        self.line_end()?;
        self.module.syms.push(SymDecl { name: name.into(), min, max });
        Ok(())
    }

    fn kv(&mut self) -> Parsed<()> {
        let name = self.word("the name of a kv state")?;
        let fields = self.fields(&[
            ("dtype", AttrKind::DType, false),
            ("head_dim", AttrKind::Int, true),
            ("heads", AttrKind::Int, true),
            ("page", AttrKind::Int, true),
            ("window", AttrKind::Int, false),
        ])?;
        self.line_end()?;
        self.module.states.push(StateDecl::Kv {
            name: name.into(),
            heads: fields.int("heads"),
            head_dim: fields.int("head_dim"),
            page: fields.int("page"),
            window: fields.get("window").map(|_| fields.int("window")),
            dtype: fields.dtype("dtype").unwrap_or(KV_DTYPE),
        });
        Ok(())
    }

    fn counts(&mut self) -> Parsed<()> {
        let name = self.word("the name of a counts state")?;
        let fields = self.fields(&[("vocab", AttrKind::Int, true)])?;
        self.line_end()?;
        self.module.states.push(StateDecl::Counts { name: name.into(), vocab: fields.int("vocab") });
        Ok(())
    }

    fn weight(&mut self) -> Parsed<()> {
        let name = self.sigil(Kind::Global, "the name of a weight such as `@w`")?;
        self.expect(":")?;
        let ty = self.tensor_type("the type of the weight")?;
        self.expect("=")?;
        let key = self.string("its name in the checkpoint as a string")?;
        self.line_end()?;
        self.module.weights.push(WeightDecl { name: name.into(), ty, key });
        Ok(())
    }

    fn bucket(&mut self) -> Parsed<()> {
        let name = self.word("the name of a bucket")?;
        let mut sizes = Bindings::new();
        self.expect("{")?;
        self.list("}", |p| {
            let (span, sym) = (p.span(), p.word("the name of a symbol")?);
            p.expect("=")?;
            let value = p.integer("the size of the symbol")?;
            match sizes.insert(sym.into(), value) {
                None => Ok(()),
                Some(_) => Err(p.twice(span, "symbol", sym)),
            }
        })?;
        self.line_end()?;
        self.module.buckets.push(Bucket { name: name.into(), sizes });
        Ok(())
    }

    fn twice(&mut self, span: Range<usize>, what: &str, name: &str) -> super::Failed {
        self.fail(span, format!("{what} `{name}` is given twice"), "remove one of them".into())
    }

    /// `{a = 1, b = 2}` with exactly these fields.
    fn fields(&mut self, known: &[Field]) -> Parsed<Attrs> {
        let names: Vec<&str> = known.iter().map(|f| f.0).collect();
        let open = self.span();
        self.expect("{")?;
        let mut out = Attrs::default();
        self.list("}", |p| {
            let (span, name) = (p.span(), p.word("the name of a field")?);
            let Some((key, kind, _)) = known.iter().find(|f| f.0 == name) else {
                return Err(p.unknown(span, "field", name, &names));
            };
            p.expect("=")?;
            let value = p.attr_value(*kind)?;
            if out.get(key).is_some() {
                return Err(p.twice(span, "field", name));
            }
            out.set(key, value);
            Ok(())
        })?;
        match known.iter().find(|f| f.2 && out.get(f.0).is_none()) {
            None => Ok(out),
            Some((name, kind, _)) => {
                let help = format!("add `{name} = ...` ({kind})");
                Err(self.fail(open, format!("field `{name}` is missing"), help))
            }
        }
    }

    /// Attributes of an op in braces, defaults not yet filled in.
    pub(super) fn attrs(&mut self, kind: OpKind) -> Parsed<Attrs> {
        let mut out = Attrs::default();
        let info = kind.info();
        // `callee` is written as an operand.
        let known: Vec<&str> =
            info.attrs.iter().map(|a| a.name).filter(|n| kind != OpKind::Call || *n != "callee").collect();
        if self.token().first || !self.eat("{") {
            return Ok(out);
        }
        self.list("}", |p| {
            let (span, name) = (p.span(), p.word("the name of an attribute")?);
            let Some(attr) = info.attrs.iter().find(|a| a.name == name && known.contains(&name)) else {
                return Err(p.unknown(span, &format!("attribute of `{}`", info.name), name, &known));
            };
            p.expect("=")?;
            let value = p.attr_value(attr.kind)?;
            if out.get(attr.name).is_some() {
                return Err(p.twice(span, "attribute", name));
            }
            out.set(attr.name, value);
            Ok(())
        })?;
        Ok(out)
    }

    /// Decompositions up to the end of the text; the one whose guards match becomes the module's function.
    pub(super) fn decomps(&mut self, attrs: &Attrs) {
        while !self.is_end() {
            self.start = self.at;
            if self.decomp(attrs).is_err() {
                self.recover(|p, at| p.is_item(at));
            }
        }
        if self.module.funcs.is_empty() && self.errors.is_empty() {
            let message = "expected a decomposition for these attributes, found none".into();
            self.fail(self.span(), message, "write `decomp name(%x: f32[M, N]) -> (f32[M, N]) { ... }`".into());
        }
        let mut bounds = BTreeMap::new();
        for func in &self.module.funcs {
            let ops = func.graph.ids().into_iter().map(|id| func.graph.op(id));
            for op in ops {
                let types = op.results.iter().filter_map(|t| t.as_tensor()).flat_map(|t| &t.dims);
                let attrs = op.attrs.iter().flat_map(|(_, a)| if let Attr::Dims(d) = a { d.as_slice() } else { &[] });
                for sym in types.chain(attrs).flat_map(|d| d.symbols()) {
                    bounds.insert(sym.clone(), SymDecl { name: sym, min: 0, max: i64::from(i32::MAX) });
                }
            }
        }
        self.module.syms = bounds.into_values().collect();
    }

    fn decomp(&mut self, attrs: &Attrs) -> Parsed<()> {
        if !self.is_word("decomp") {
            return Err(self.unexpected("`decomp`", ""));
        }
        self.bump();
        let name = self.word("the name of the op")?;
        let mut matches = true;
        if self.eat("{") {
            self.list("}", |p| {
                let (span, guard) = (p.span(), p.word("the name of an attribute")?);
                p.expect("=")?;
                let Some(have) = attrs.get(guard) else {
                    let known: Vec<&str> = attrs.iter().map(|(k, _)| k).collect();
                    return Err(p.unknown(span, "attribute", guard, &known));
                };
                let want = p.attr_value(match have {
                    Attr::Kernel(_) => crate::attr::AttrKind::Kernel,
                    Attr::Int(_) => AttrKind::Int,
                    Attr::Float(_) => AttrKind::Float,
                    Attr::Bool(_) => AttrKind::Bool,
                    Attr::Word(_) => AttrKind::Word,
                    Attr::DType(_) => AttrKind::DType,
                    Attr::Ints(_) => AttrKind::Ints,
                    Attr::Dims(_) => AttrKind::Dims,
                })?;
                matches &= want == *have;
                Ok(())
            })?;
        }
        let keep = matches && self.module.funcs.is_empty();
        self.func_rest(name)?;
        if !keep {
            self.module.funcs.pop();
        }
        Ok(())
    }
}
