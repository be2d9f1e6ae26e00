//! One op at one index: which elements of its operands it needs, and the expression that combines them.

use gossamer_ir::{DType, Dim, Op, OpKind, StateDecl, Type, Value};

use super::{Index, Region, Sink, Source, Target, malformed, parameter, rounded, unsupported};
use crate::emit::f32_literal;
use crate::kernels::fill::constant;
use crate::kernels::scalar::{self, Scalar};
use crate::lower::LowerError;

type Result<T> = std::result::Result<T, LowerError>;

/// Most experts whose results a row's sum is written out for.
const MAX_CHOICES: i64 = 256;

impl Region<'_> {
    /// Prints element `index` of `value` and gives its variable.
    pub(super) fn compute(&mut self, value: Value, index: &[Index]) -> Result<String> {
        let func = self.func;
        let op = func.graph.op(value.op);
        let ty = self.tensor(value)?;
        if index.len() != ty.rank() {
            return Err(malformed(format!("{} indices for {ty}", index.len())));
        }
        if let Some(i) = parameter(func, value) {
            return self.parameter(value, i, ty.dtype, index);
        }
        // A view is its operand's element; nothing is printed.
        if let Some((from, at)) = self.view(op, value, index)? {
            return self.element(from, &at);
        }
        let expression = match op.kind {
            OpKind::Const => constant_scalar(ty.dtype, op.attrs.float("value")),
            OpKind::Iota => format!("(i32)({})", index[0].text()),
            OpKind::GatherRows => return self.gather(value, op, index),
            OpKind::Swiglu => self.swiglu(op, index)?,
            OpKind::Rope => self.rope(op, index)?,
            OpKind::MoeCombine => self.combine(op, index)?,
            OpKind::RmsNorm | OpKind::LayerNorm | OpKind::Softmax | OpKind::LogSumExp | OpKind::ArgMax => {
                self.row_op(value, op, index)?
            }
            _ => self.elementwise(op, index)?,
        };
        // `cast` rounds by itself.
        let expression = if op.kind == OpKind::Cast { expression } else { rounded(ty.dtype, expression) };
        self.declare(value, &expression, false)
    }

    fn parameter(&mut self, value: Value, i: usize, dtype: DType, index: &[Index]) -> Result<String> {
        let func = self.func;
        let pointer = match self.sources.get(i) {
            Some(Source::Given(give)) => {
                let expression = rounded(dtype, give(index));
                return self.declare(value, &expression, true);
            }
            Some(Source::Ready(give)) => {
                let expression = rounded(dtype, give(index));
                return self.declare(value, &expression, false);
            }
            Some(Source::Memory(pointer)) => pointer.clone(),
            _ => {
                let ty = func.graph.ty(value);
                return Err(unsupported(
                    format!("elements of parameter {i} ({ty}) in this region"),
                    "row-major tensors",
                ));
            }
        };
        let dims = &self.tensor(value)?.dims;
        let at = self.offset(dims, index);
        self.declare(value, &scalar::load(dtype, &format!("{pointer}[{at}]")), false)
    }

    /// The element that a view refers to: whose, and at which index.
    fn view(&mut self, op: &Op, value: Value, index: &[Index]) -> Result<Option<(Value, Vec<Index>)>> {
        let from = *op.operands.first().unwrap_or(&value);
        let mut at = index.to_vec();
        match op.kind {
            OpKind::Slice => {
                let axis = op.attrs.int("axis") as usize;
                at[axis] = at[axis].plus(op.attrs.int("start"));
            }
            OpKind::Split => {
                let sizes = op.attrs.ints("sizes");
                if let Some(last) = at.last_mut() {
                    *last = last.plus(sizes.iter().take(value.result as usize).sum());
                }
            }
            OpKind::Permute => {
                for (i, p) in op.attrs.ints("perm").iter().enumerate() {
                    at[*p as usize] = index[i].clone();
                }
            }
            OpKind::Broadcast => {
                let x = self.tensor(from)?;
                at = index[index.len() - x.rank()..].to_vec();
                for (i, (have, want)) in x.dims.iter().rev().zip(op.attrs.dims("dims").iter().rev()).enumerate() {
                    if have != want {
                        let last = at.len() - 1;
                        at[last - i] = Index::constant(0);
                    }
                }
            }
            OpKind::Reshape => {
                let to = self.tensor(value)?.dims.clone();
                at = self.reshape(&self.tensor(from)?.dims.clone(), &to, index)?;
            }
            _ => return Ok(None),
        }
        Ok(Some((from, at)))
    }

    /// The index in `from` of element `index` in `to`, dims of equal size.
    fn reshape(&mut self, from: &[Dim], to: &[Dim], index: &[Index]) -> Result<Vec<Index>> {
        let head = from.iter().zip(to).take_while(|(a, b)| a == b).count();
        let most = from.len().min(to.len()) - head;
        let tail = from.iter().rev().zip(to.iter().rev()).take_while(|(a, b)| a == b).count().min(most);
        let (inner_from, inner_to) = (&from[head..from.len() - tail], &to[head..to.len() - tail]);
        let mut at = index[..head].to_vec();
        // The middle as one number, then cut again. Only the outermost of its dims may be symbolic.
        let constant = |dims: &[Dim]| -> Result<Vec<i64>> {
            let found: Option<Vec<i64>> = dims.iter().skip(1).map(|d| d.as_const()).collect();
            found.ok_or_else(|| unsupported("a reshape of symbolic dims", "constant dims inside the outermost one"))
        };
        let (cut, joined) = (constant(inner_from)?, constant(inner_to)?);
        let mut position: Option<Index> = None;
        for (i, coordinate) in index[head..index.len() - tail].iter().enumerate() {
            position = Some(match position {
                None => coordinate.clone(),
                Some(p) => self.sum(&p.times(joined[i - 1]), coordinate),
            });
        }
        let mut rest = position.unwrap_or(Index::constant(0));
        let mut coordinates = Vec::new();
        for size in cut.iter().rev() {
            coordinates.push(self.remainder(&rest, *size));
            rest = self.quotient(&rest, *size);
        }
        if !inner_from.is_empty() {
            coordinates.push(rest);
        }
        at.extend(coordinates.into_iter().rev());
        at.extend_from_slice(&index[index.len() - tail..]);
        Ok(at)
    }

    fn sum(&mut self, a: &Index, b: &Index) -> Index {
        match (a.as_constant(), b.as_constant()) {
            (Some(c), _) => b.plus(c),
            (_, Some(c)) => a.plus(c),
            _ => Index::var(self.bind("i64", "at", format!("(i64){} + {}", a.operand(), b.text()))),
        }
    }

    fn remainder(&mut self, a: &Index, n: i64) -> Index {
        match a.as_constant() {
            Some(c) => Index::constant(c % n),
            None => Index::var(self.bind("i32", "at", format!("(i32)({} % {n})", a.operand()))),
        }
    }

    fn quotient(&mut self, a: &Index, n: i64) -> Index {
        match a.as_constant() {
            Some(c) => Index::constant(c / n),
            None => Index::var(self.bind("i64", "at", format!("{} / {n}", a.operand()))),
        }
    }

    /// Elementwise ops, whose operands have the result's dims or a suffix of them.
    fn elementwise(&mut self, op: &Op, index: &[Index]) -> Result<String> {
        let mut arguments = Vec::new();
        for v in &op.operands {
            let rank = self.tensor(*v)?.rank();
            let from =
                index.len().checked_sub(rank).ok_or_else(|| malformed("an operand has more dims than the result"))?;
            arguments.push((self.element(*v, &index[from..])?, self.scalar(*v)?));
        }
        let arguments: Vec<(&str, Scalar)> = arguments.iter().map(|(name, s)| (name.as_str(), *s)).collect();
        let (_, expression) = scalar::expression(op.kind, &op.attrs, &arguments).ok_or_else(|| {
            unsupported(
                format!("{} inside a kernel's region", op.kind.name()),
                "elementwise ops, views, gather_rows, swiglu, rope, moe_combine and norms",
            )
        })?;
        Ok(expression)
    }

    fn gather(&mut self, value: Value, op: &Op, index: &[Index]) -> Result<String> {
        let func = self.func;
        let (x, ids) = (op.operands[0], op.operands[1]);
        let (xt, rank) = (self.tensor(x)?, self.tensor(ids)?.rank());
        let id = self.element(ids, &index[..rank])?;
        let rows = self.size(&xt.dims[0]);
        let known = self.bind("bool", "known", format!("{id} >= 0 && {id} < {rows}"));
        let zero = match self.scalar(value)? {
            Scalar::F32 => "0.0f",
            Scalar::Bool => "false",
            _ => "0",
        };
        let mut at = vec![Index::var(id.clone())];
        at.extend_from_slice(&index[rank..]);
        if let Some(i) = parameter(func, x)
            && let Some(Source::Memory(pointer)) = self.sources.get(i)
        {
            let pointer = pointer.clone();
            let offset = self.offset(&xt.dims, &at);
            let load = scalar::load(xt.dtype, &format!("{pointer}[{offset}]"));
            return self.declare(value, &format!("{known} ? {load} : {zero}"), false);
        }
        at[0] = Index::var(self.bind("i32", "row", format!("{known} ? {id} : 0")));
        let element = self.element(x, &at)?;
        self.declare(value, &format!("{known} ? {element} : {zero}"), false)
    }

    fn swiglu(&mut self, op: &Op, index: &[Index]) -> Result<String> {
        let (lead, j) = index.split_at(index.len() - 1);
        let x = op.operands[0];
        let width = self.tensor(x)?.dims.last().and_then(|d| d.as_const()).unwrap_or(0);
        let (gate, up) = match op.attrs.word("layout") {
            "halves" => (j[0].clone(), j[0].plus(width / 2)),
            _ => (j[0].times(2), j[0].times(2).plus(1)),
        };
        let gate = self.element(x, &[lead, &[gate]].concat())?;
        let up = self.element(x, &[lead, &[up]].concat())?;
        let (alpha, limit) = (f32_literal(op.attrs.float("alpha")), f32_literal(op.attrs.float("limit")));
        let g = self.bind("f32", "gate", format!("min_nan({gate}, {limit})"));
        let u = self.bind("f32", "up", format!("min_nan(max_nan({up}, -({limit})), {limit})"));
        Ok(format!("{g} * logistic({alpha} * {g}) * ({u} + 1.0f)"))
    }

    /// Each element from itself and its partner. The operations are explicit, as in the op's own kernel: every template gives the same bits.
    fn rope(&mut self, op: &Op, index: &[Index]) -> Result<String> {
        let [x, pos, table] = op.operands[..] else { return Err(malformed("rope must have 3 operands")) };
        let (t, c) = (&index[0], &index[1]);
        let positions = self.tensor(table)?.dims[0].clone();
        let dim = self.tensor(table)?.dims[1].as_const().unwrap_or(2);
        let half = dim / 2;
        let p = self.element(pos, std::slice::from_ref(t))?;
        let positions = self.size(&positions);
        let row = self.bind("i32", "row", format!("{p} < 0 ? 0 : {p} < {positions} ? {p} : (i32){positions} - 1"));
        if let Some((low, at)) = self.known_half(c, dim) {
            let other = self.element(x, &[t.clone(), c.plus(if low { half } else { -half })])?;
            let own = self.element(x, index)?;
            let within = Index::var(self.bind("i32", "within", format!("{} % {dim}", c.plus(-at).operand())));
            let angle = within.plus(if low { at } else { at - half });
            let cosine = self.element(table, &[Index::var(row.clone()), angle.clone()])?;
            let sine = self.element(table, &[Index::var(row), angle.plus(half)])?;
            let sign = if low { "-" } else { "" };
            return Ok(format!("__fadd_rn(__fmul_rn({own}, {cosine}), {sign}__fmul_rn({other}, {sine}))"));
        }
        let within = self.bind("i32", "within", format!("{} % {dim}", c.operand()));
        let low = self.bind("bool", "low", format!("{within} < {half}"));
        let other = self.bind("i32", "other", format!("{low} ? {} : {}", c.plus(half).text(), c.plus(-half).text()));
        let angle = self.bind("i32", "angle", format!("{low} ? {within} : {within} - {half}"));
        let own = self.element(x, index)?;
        let other = self.element(x, &[t.clone(), Index::var(other)])?;
        let cosine = self.element(table, &[Index::var(row.clone()), Index::var(angle.clone())])?;
        let sine = self.element(table, &[Index::var(row), Index::var(angle).plus(half)])?;
        let turned = self.bind("f32", "turned", format!("__fmul_rn({other}, {sine})"));
        Ok(format!("__fadd_rn(__fmul_rn({own}, {cosine}), {low} ? -{turned} : {turned})"))
    }

    /// Whether column `c` is known to be in the first half of its head of `dim`, and its distance from the column of the half that it is known by.
    fn known_half(&self, c: &Index, dim: i64) -> Option<(bool, i64)> {
        let known = self.half.as_ref().filter(|h| h.dim == dim && c.variable() == Some(&h.variable))?;
        let at = c.offset().rem_euclid(dim);
        match at {
            a if a < known.run => Some((true, at)),
            a if (dim / 2..dim / 2 + known.run).contains(&a) => Some((false, at)),
            _ => None,
        }
    }

    fn combine(&mut self, op: &Op, index: &[Index]) -> Result<String> {
        let (x, w) = (op.operands[0], op.operands[1]);
        let choices = self.tensor(x)?.dims[1].as_const();
        let choices = choices.ok_or_else(|| unsupported("moe_combine of a symbolic number of experts", "constants"))?;
        if choices > MAX_CHOICES {
            return Err(unsupported(format!("moe_combine of {choices} experts"), format!("up to {MAX_CHOICES}")));
        }
        let mut sum = "0.0f".to_string();
        for j in 0..choices {
            let weight = self.element(w, &[index[0].clone(), Index::constant(j)])?;
            let element = self.element(x, &[index[0].clone(), Index::constant(j), index[1].clone()])?;
            let next = format!("fmaf({weight}, {element}, {sum})");
            sum = if j + 1 < choices { self.bind("f32", "sum", next) } else { next };
        }
        Ok(sum)
    }

    /// Ops on a row, given what the template computed of the row.
    fn row_op(&mut self, value: Value, op: &Op, index: &[Index]) -> Result<String> {
        let Some(known) = self.statistics.get(&value.op).cloned() else {
            return Err(unsupported(format!("{} where rows are not reduced", op.kind.name()), "elementwise ops"));
        };
        let column = index.last().map(std::slice::from_ref).unwrap_or_default();
        Ok(match (op.kind, known.as_slice()) {
            (OpKind::RmsNorm, [scale]) => {
                let (x, w) = (self.element(op.operands[0], index)?, self.element(op.operands[1], column)?);
                format!("{x} * {scale} * {w}")
            }
            (OpKind::LayerNorm, [mean, scale]) => {
                let x = self.element(op.operands[0], index)?;
                let (w, b) = (self.element(op.operands[1], column)?, self.element(op.operands[2], column)?);
                format!("({x} - {mean}) * {scale} * {w} + {b}")
            }
            (OpKind::Softmax, [most, sum]) => {
                let x = self.element(op.operands[0], index)?;
                format!("expf({x} - {most}) / {sum}")
            }
            (OpKind::LogSumExp | OpKind::ArgMax, [result]) => result.clone(),
            _ => return Err(malformed(format!("{} statistics of {}", known.len(), op.kind.name()))),
        })
    }

    /// Prints what becomes of column `column` of a sink's value: the store of a result at `pointer`, or of a cache entry. `lead` are the indices
    /// of the dims before the last. Reductions are the template's: use [`Region::element`].
    ///
    /// # Errors
    /// As [`Region::element`].
    pub fn emit(&mut self, sink: &Sink, pointer: &str, lead: &[Index], column: &Index) -> Result<()> {
        let func = self.func;
        match sink.target {
            Target::Keys(write) | Target::Values(write) => {
                let keys = matches!(sink.target, Target::Keys(_));
                self.store_cache(func.graph.op(write), keys, &lead[0], column)
            }
            Target::Tensor => self.store(sink.value, pointer, &[lead, std::slice::from_ref(column)].concat()),
            Target::TileMax { .. } | Target::ArgMax => Err(malformed("a reduction is not stored by the region")),
        }
    }

    /// Prints the store of column `column` of a token's keys (or values) into the cache, as the `kv_write` `write` asks.
    fn store_cache(&mut self, write: &Op, keys: bool, token: &Index, column: &Index) -> Result<()> {
        let func = self.func;
        let [kv, k, v, pos, seq, pages] = write.operands[..] else {
            return Err(malformed("kv_write must have 6 operands"));
        };
        let decl = match func.graph.ty(kv) {
            Type::State(_, name) => self.module.state(name),
            Type::Tensor(_) => None,
        };
        let Some(StateDecl::Kv { heads, head_dim, page, dtype, .. }) = decl else {
            return Err(malformed("kv_write to something that is not a declared cache"));
        };
        let pointer = match parameter(func, kv).and_then(|i| self.sources.get(i)) {
            Some(Source::Cache { keys: pointer, .. }) if keys => pointer.clone(),
            Some(Source::Cache { values: pointer, .. }) => pointer.clone(),
            _ => return Err(unsupported("a cache written twice", "one kv_write of each cache parameter")),
        };
        let dims = self.tensor(pages)?.dims.clone();
        let (sequences, per_sequence) = (self.size(&dims[0]), self.size(&dims[1]));
        let s = self.element(seq, std::slice::from_ref(token))?;
        let p = self.element(pos, std::slice::from_ref(token))?;
        let tests = [
            format!("{s} >= 0"),
            format!("{s} < {sequences}"),
            format!("{p} >= 0"),
            format!("{p} / {page} < {per_sequence}"),
        ];
        let there = match self.straight {
            true => tests.map(|t| format!("({t})")).join(" & "),
            false => tests.join(" && "),
        };
        let there = self.bind("bool", "there", there);
        // Which entry is read depends on whether there is one, so it is a statement of its own and not an element.
        let table = match parameter(func, pages).and_then(|i| self.sources.get(i)) {
            Some(Source::Memory(pointer)) => pointer.clone(),
            _ => return Err(unsupported("a computed page table", "a page table in memory")),
        };
        let at = self.offset(&dims, &[Index::var(s), Index::var(format!("({p} / {page})"))]);
        // Its first entry is there in any case: a load without a test does not wait for one.
        let entry = match self.straight {
            true => format!("{table}[({at}) & -(i64){there}]"),
            false => format!("{table}[{there} ? {at} : 0]"),
        };
        let entry = self.bind("i32", "entry", entry);
        let id = self.bind("i32", "page", format!("{there} ? {entry} : -1"));
        let element = self.element(if keys { k } else { v }, &[token.clone(), column.clone()])?;
        let (head, d) = (self.quotient(column, *head_dim), self.remainder(column, *head_dim));
        let row = format!("((i64){id} * {heads} + {}) * {page} + {p} % {page}", head.operand());
        let stored = scalar::store(*dtype, &element);
        let place = format!("[({row}) * {head_dim} + {}]", d.text());
        self.statement(match self.straight {
            true => format!("only_if({id} >= 0, {pointer}){place} = {stored};"),
            false => format!("if ({id} >= 0) {pointer}{place} = {stored};"),
        });
        Ok(())
    }
}

/// A literal of the scalar that holds `value` rounded to `dtype`.
fn constant_scalar(dtype: DType, value: f64) -> String {
    match dtype {
        DType::F32 | DType::BF16 | DType::F16 => f32_literal(value),
        DType::Bool => (value != 0.0).to_string(),
        _ => constant(dtype, value),
    }
}
