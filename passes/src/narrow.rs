//! Narrowing: of the rows of a prompt only those that are read behind a layer go through what computes each row by itself.
//!
//! A step gathers the rows that get logits from what its last layer returns. Everything in that layer that makes a row from the same row of its operands (projections,
//! norms, experts, residuals) may gather first: of a prompt of 8192 tokens one row is left. The layer gets a copy of its own with the rows as one more parameter, in
//! which operands are gathered where the first such op reads them, or in front of the layer if they come from there; keys and values are still made of every row.
//! Attention makes a row from that row of its queries and from the cache, so it is made of the rows that are read, in the order of sums that decoded rows have
//! (`decoded`): what such a row is for decides that order, not how many there are. Queries are made of every row, as they come from one product with keys and values.
//!
//! Only in steps that feed prompts ([`bucket::prompt_rows`]), but in all of those, however many rows are read: the order in which a row is summed
//! then depends on nothing else in the step. Precondition: a verified module. Postcondition: an equal one for rows inside (of an index outside, a row of zeros
//! goes through the ops instead of being their result). Never changes a rounding.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gossamer_ir::{Attr, Attrs, Class, Dim, Func, InferError, Module, Op, OpId, OpKind, Param, Type, Value};

use crate::{Options, bucket, dce};

/// Runs the pass; true if anything changed.
///
/// # Errors
/// None: the ops it makes are valid by construction.
pub fn run(module: &mut Module, options: &Options) -> Result<bool, InferError> {
    let Some(symbol) = bucket::prompt_rows(&options.sizes) else { return Ok(false) };
    let mut changed = false;
    let mut at = 0;
    while at < module.funcs.len() {
        while let Some(found) = find(module, &module.funcs[at], symbol)? {
            let Found { call, gather, callee, read, picked } = found;
            let name = callee.name.clone();
            // A function stands in front of what calls it.
            module.funcs.insert(at, callee);
            at += 1;
            let mut caller = module.funcs[at].clone();
            replace_call(module, &mut caller, (call, gather), &name, &read, &picked)?;
            module.funcs[at] = caller;
            changed = true;
        }
        at += 1;
    }
    // A layer of which no call is left would be fused for nothing.
    if changed {
        dce::run(module, options)?;
    }
    Ok(changed)
}

/// A call with a result that only one gather reads.
struct Found {
    call: OpId,
    gather: OpId,
    /// The callee on the gathered rows.
    callee: Func,
    /// Results of the call that something reads, by number.
    read: Vec<u16>,
    /// Parameters of which the callee also takes the gathered rows, by number.
    picked: Vec<usize>,
}

fn find(module: &Module, f: &Func, symbol: &str) -> Result<Option<Found>, InferError> {
    for gather in f.graph.ids() {
        let op = f.graph.op(gather);
        if op.kind != OpKind::GatherRows {
            continue;
        }
        let (x, rows) = (op.operands[0], op.operands[1]);
        let call = f.graph.op(x.op);
        let alone = f.graph.users(x).len() == 1 && !f.results.contains(&x);
        let vector = f.graph.ty(rows).as_tensor().is_some_and(|t| t.rank() == 1);
        if call.kind != OpKind::Call || !alone || !vector || behind(f, [rows]).contains(&x.op) {
            continue;
        }
        let Some(callee) = module.func(call.attrs.word("callee")) else { continue };
        let is_read = |v: Value| f.results.contains(&v) || !f.graph.users(v).is_empty();
        let read: Vec<u16> =
            (0..call.results.len() as u16).filter(|i| is_read(Value { op: x.op, result: *i })).collect();
        if let Some((callee, picked)) = narrowed(module, callee, symbol, f.graph.ty(rows), x.result, &read)? {
            return Ok(Some(Found { call: x.op, gather, callee, read, picked }));
        }
    }
    Ok(None)
}

/// The ops that these values depend on.
fn behind(f: &Func, values: impl IntoIterator<Item = Value>) -> BTreeSet<OpId> {
    let mut seen = BTreeSet::new();
    let mut work: Vec<OpId> = values.into_iter().map(|v| v.op).collect();
    while let Some(id) = work.pop() {
        if seen.insert(id) {
            work.extend(f.graph.op(id).operands.iter().map(|v| v.op));
        }
    }
    seen
}

/// Calls the function `name`, which returns the results `read` of `call` and has what `gather` makes in place of what it reads.
fn replace_call(
    module: &Module,
    f: &mut Func,
    (call, gather): (OpId, OpId),
    name: &Arc<str>,
    read: &[u16],
    picked: &[usize],
) -> Result<(), InferError> {
    let (old, picks) = (f.graph.op(call).clone(), f.graph.op(gather).operands.clone());
    let mut operands = old.operands.clone();
    operands.push(picks[1]);
    for i in picked {
        let of = vec![old.operands[*i], picks[1]];
        operands.push(f.add(module, OpKind::GatherRows, of, Attrs::default(), &["picked"], old.loc.clone())?[0]);
    }
    let names: Vec<&str> = read.iter().map(|i| &*old.names[usize::from(*i)]).collect();
    let attrs = Attrs::from([("callee", Attr::Word(name.clone()))]);
    let new = f.add(module, OpKind::Call, operands, attrs, &names, old.loc.clone())?;
    for (i, to) in read.iter().zip(new) {
        let from = Value { op: call, result: *i };
        let from = if from == picks[0] { Value { op: gather, result: 0 } } else { from };
        f.graph.replace_uses(from, to);
        f.results.iter_mut().filter(|r| **r == from).for_each(|r| *r = to);
    }
    f.graph.remove(gather);
    f.graph.remove(call);
    Ok(())
}

/// `callee` with the results `read`, of which number `result` has the rows that one more parameter of type `rows` picks, and the parameters of which it takes these
/// rows behind that. `None` if nothing but the result itself could have fewer rows.
fn narrowed(
    module: &Module,
    callee: &Func,
    symbol: &str,
    rows: &Type,
    result: u16,
    read: &[u16],
) -> Result<Option<(Func, Vec<usize>)>, InferError> {
    let mut func = callee.clone();
    func.name = Arc::from(format!("{}.rows", callee.name));
    let rows = parameter(&mut func, "rows".into(), rows.clone());
    func.results = read.iter().map(|i| callee.results[usize::from(*i)]).collect();
    let whole = callee.results[usize::from(result)];
    // What other results need of every row is made of every row, once.
    let others = func.results.iter().zip(read).filter(|(_, i)| **i != result).map(|(v, _)| *v);
    let shared = behind(&func, others);
    let mut narrowing = Narrowing { module, func, rows, symbol, shared, made: BTreeMap::new(), picked: vec![], ops: 0 };
    let Some(value) = narrowing.value(whole)? else { return Ok(None) };
    if narrowing.ops == 0 {
        return Ok(None);
    }
    let (mut func, picked) = (narrowing.func, narrowing.picked);
    func.results.iter_mut().zip(read).filter(|(_, i)| **i == result).for_each(|(v, _)| *v = value);
    dce::dead_ops(&mut func);
    Ok(Some((func, picked)))
}

/// One more parameter of `func`.
fn parameter(func: &mut Func, name: Arc<str>, ty: Type) -> Value {
    let index = func.params.len();
    func.params.push(Param { name: name.clone(), ty: ty.clone(), weight: false });
    let op = func.graph.add(Op {
        kind: OpKind::Param,
        attrs: Attrs::from([("index", Attr::Int(index as i64))]),
        operands: vec![],
        results: vec![ty],
        names: vec![name],
        seq: 0,
        loc: None,
    });
    Value { op, result: 0 }
}

struct Narrowing<'a> {
    module: &'a Module,
    func: Func,
    /// The rows that are left.
    rows: Value,
    symbol: &'a str,
    /// Ops whose results other results of the function need.
    shared: BTreeSet<OpId>,
    made: BTreeMap<Value, Value>,
    /// Parameters whose rows that are left are parameters too, by number and in order.
    picked: Vec<usize>,
    /// Ops that have fewer rows now.
    ops: usize,
}

impl Narrowing<'_> {
    /// True for tensors with a row for each of all.
    fn has_rows(&self, v: Value) -> bool {
        let dims = self.func.graph.ty(v).as_tensor().map(|t| &t.dims[..]);
        dims.and_then(|d| d.first()).is_some_and(|d| *d == Dim::sym(self.symbol))
    }

    /// The rows of `v` that are left; `None` if it is nothing that has them.
    fn value(&mut self, v: Value) -> Result<Option<Value>, InferError> {
        if !self.has_rows(v) {
            return Ok(None);
        }
        if let Some(made) = self.made.get(&v) {
            return Ok(Some(*made));
        }
        let by_rows = if self.shared.contains(&v.op) { None } else { operands_by_row(&self.func, v.op) };
        let made = match by_rows {
            Some(by_rows) if self.op(v.op, &by_rows)? => self.made[&v],
            _ => self.picked(v)?,
        };
        self.made.insert(v, made);
        Ok(Some(made))
    }

    /// The rows of `v` that are left, gathered: of a parameter by the caller.
    fn picked(&mut self, v: Value) -> Result<Value, InferError> {
        let op = self.func.graph.op(v.op);
        let name = op.names[usize::from(v.result)].clone();
        if op.kind == OpKind::Param
            && let (Some(t), Some(rows)) =
                (self.func.graph.ty(v).as_tensor(), self.func.graph.ty(self.rows).as_tensor())
        {
            let dims = rows.dims.iter().chain(&t.dims[1..]).cloned();
            let (index, ty) = (op.attrs.int("index") as usize, Type::tensor(t.dtype, dims));
            self.picked.push(index);
            return Ok(parameter(&mut self.func, format!("{name}.rows").into(), ty));
        }
        let operands = vec![v, self.rows];
        Ok(self.func.add(self.module, OpKind::GatherRows, operands, Attrs::default(), &[&name], None)?[0])
    }

    /// Makes op `id` again on the rows that are left of its operands `by_rows`; false if one of them has no rows.
    fn op(&mut self, id: OpId, by_rows: &[usize]) -> Result<bool, InferError> {
        let op = self.func.graph.op(id).clone();
        let mut operands = op.operands.clone();
        if by_rows.is_empty() || !by_rows.iter().all(|i| self.has_rows(operands[*i])) {
            return Ok(false);
        }
        for i in by_rows {
            // Queries are there with the rest of what their product makes.
            if op.kind == OpKind::Attention && *i == 0 {
                operands[0] = self.picked(operands[0])?;
            } else if let Some(narrow) = self.value(operands[*i])? {
                operands[*i] = narrow;
            }
        }
        let names: Vec<&str> = op.names.iter().map(|n| &**n).collect();
        let mut attrs = op.attrs.clone();
        if op.kind == OpKind::Attention {
            attrs.set("decoded", Attr::Bool(true));
        }
        let results = self.func.add(self.module, op.kind, operands, attrs, &names, op.loc.clone())?;
        for (i, v) in results.into_iter().enumerate() {
            self.made.insert(Value { op: id, result: i as u16 }, v);
        }
        self.ops += 1;
        Ok(true)
    }
}

/// Operands of which each row makes that row of every result, for ops that make rows one by one.
fn operands_by_row(f: &Func, id: OpId) -> Option<Vec<usize>> {
    use OpKind as K;
    let op = f.graph.op(id);
    let rank = |v: &Value| f.graph.ty(*v).as_tensor().map_or(0, |t| t.rank());
    let whole = op.results.first().and_then(Type::as_tensor).map_or(0, |t| t.rank());
    Some(match op.kind {
        // Operands of fewer dims lie along the last ones.
        _ if op.kind.info().class == Class::Elementwise => {
            (0..op.operands.len()).filter(|i| rank(&op.operands[*i]) == whole).collect()
        }
        K::MatMul | K::RmsNorm | K::LayerNorm => vec![0],
        K::Softmax | K::TopK | K::Swiglu if rank(&op.operands[0]) > 1 => vec![0],
        K::MoeMatMul => vec![0, 2],
        K::MoeCombine => vec![0, 1],
        K::GatherRows => vec![1],
        K::Attention => vec![0, 2, 3],
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use gossamer_ir::interp::{Datum, Rounding, StateStore, Tensor, run_func};
    use gossamer_ir::{DType, text, verify};
    use gossamer_models::{gpt_oss, presets, step};

    fn prompt(tokens: usize, rows: usize) -> Options {
        Options { sizes: bucket::sizes(tokens, 1, rows, 64, 2), ..Options::default() }
    }

    /// A layer of experts in text: `ret` is what it returns behind its result, `read` what the step does with that.
    fn module(ret: &str, returned: &str, read: &str) -> Module {
        let source = format!(
            "gir 1\nsym T in 1..=64\nsym S in 1..=4\nsym R in 1..=64\n\
             weight @norm : f32[32] = \"n\"\nweight @w : f32[8, 32] = \"w\"\nweight @b : f32[8] = \"b\"\nweight @experts : mxfp4[8, 32, 32] = \"e\"\n\
             func @mixed(%x: f32[T, 32], %y: f32[T, 32]) -> (f32[T, 32]{returned}) {{\n\
             \x20 %sum = add %x, %y : f32[T, 32]\n  %n = rms_norm %sum, @norm : f32[T, 32]\n  %s = matmul %n, @w : f32[T, 8]\n\
             \x20 %s.1 = add %s, @b : f32[T, 8]\n  %v, %ids = topk %s.1 {{k = 2}} : f32[T, 2], i32[T, 2]\n  %p = softmax %v : f32[T, 2]\n\
             \x20 %e = dequant @experts : bf16[8, 32, 32]\n  %n.1 = cast %n {{to = bf16}} : bf16[T, 32]\n\
             \x20 %m = moe_matmul %n.1, %e, %ids : f32[T, 2, 32]\n  %c = moe_combine %m, %p : f32[T, 32]\n  %z = add %sum, %c : f32[T, 32]\n\
             \x20 return %z{ret}\n}}\n\
             func @step(%x: f32[T, 32], %y: f32[T, 32], %pick: i32[R]) -> {read}"
        );
        text::parse("m.gir", &source).unwrap_or_else(|e| panic!("{e}\n{source}"))
    }

    const READ: &str = "(f32[R, 32]) {\n  %a = call @mixed %x, %y : f32[T, 32]\n  %g = gather_rows %a, %pick : f32[R, 32]\n  return %g\n}";

    fn run_with(module: &Module, sizes: &gossamer_ir::Bindings, picks: &[i32]) -> Vec<Datum> {
        let noise = |seed: u32, n: usize| -> Vec<f32> {
            (0..n as u32)
                .map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed * 97) >> 8) as f32 / 8_388_608.0 - 1.0)
                .collect()
        };
        let tokens = sizes["T"] as usize;
        let rows = |seed| Datum::Tensor(Tensor::f32(&[tokens, 32], noise(seed, tokens * 32)).unwrap());
        let args = vec![rows(1), rows(2), Datum::Tensor(Tensor::i32(&[picks.len()], picks.to_vec()).unwrap())];
        let weights = |name: &str| {
            let ty = &module.weight(name).unwrap().ty;
            let shape: Vec<usize> = ty.shape(sizes).unwrap().iter().map(|n| *n as usize).collect();
            let n: usize = shape.iter().product();
            Ok(match ty.dtype {
                DType::Mxfp4 => {
                    let codes = (0..n / 2).map(|i| (i * 7 % 251) as u8).collect();
                    Tensor::mxfp4(&shape, codes, vec![125; n / 32]).unwrap()
                }
                _ => Tensor::f32(&shape, noise(3, n)).unwrap(),
            })
        };
        let mut states: Vec<StateStore> = vec![];
        run_func(module, "step", args, &weights, &mut states, sizes, Rounding::Typed).unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn rows_that_are_read_have_the_same_bits() {
        let before = module("", "", READ);
        for (tokens, picks) in [(9, vec![8]), (9, vec![3, 3, 0]), (5, vec![4, 3, 2, 1, 0]), (64, vec![63, 1])] {
            let options = prompt(tokens, picks.len());
            let mut after = before.clone();
            assert!(run(&mut after, &options).unwrap());
            verify::verify(&after, verify::Stage::Tensor).unwrap_or_else(|e| panic!("{e:?}\n{after}"));
            let [old, new] = [&before, &after].map(|m| run_with(m, &options.sizes, &picks));
            let bits = |d: &[Datum]| d[0].as_tensor().unwrap().to_f32().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&old), bits(&new), "{tokens} {picks:?}");
            let func = after.func("mixed.rows").unwrap();
            let whole = func
                .graph
                .ids()
                .into_iter()
                .map(|id| func.graph.op(id))
                .filter(|op| op.kind != OpKind::Param && op.results.iter().any(|t| t.to_string().contains("[T")));
            assert_eq!(whole.count(), 0, "{func}");
            assert!(!run(&mut after, &options).unwrap(), "nothing is left to do");
        }
    }

    #[test]
    fn what_others_need_of_every_row_is_made_once() {
        let read = "(f32[R, 32], i32[T, 2]) {\n  %a, %i = call @mixed %x, %y : f32[T, 32], i32[T, 2]\n  %g = gather_rows %a, %pick : f32[R, 32]\n  return %g, %i\n}";
        let before = module(", %ids", ", i32[T, 2]", read);
        let options = prompt(9, 2);
        let mut after = before.clone();
        assert!(run(&mut after, &options).unwrap());
        let printed = after.func("mixed.rows").unwrap().to_string();
        assert_eq!(printed.matches("= matmul ").count(), 1, "{printed}");
        assert!(printed.contains("moe_matmul") && printed.contains("f32[R, 2, 32]"), "{printed}");
        let [old, new] = [&before, &after].map(|m| run_with(m, &options.sizes, &[8, 2]));
        assert_eq!(old[0].as_tensor().unwrap().to_f32(), new[0].as_tensor().unwrap().to_f32());
        assert_eq!(old[1].as_tensor().unwrap().as_i32(), new[1].as_tensor().unwrap().as_i32());
    }

    #[test]
    fn what_more_than_one_gather_reads_stays() {
        for read in [
            "(f32[R, 32], f32[T, 32]) {\n  %a = call @mixed %x, %y : f32[T, 32]\n  %g = gather_rows %a, %pick : f32[R, 32]\n  return %g, %a\n}",
            "(f32[R, 32], f32[T, 32]) {\n  %a = call @mixed %x, %y : f32[T, 32]\n  %g = gather_rows %a, %pick : f32[R, 32]\n  %h = neg %a : f32[T, 32]\n  return %g, %h\n}",
            "(f32[T, 32]) {\n  %a = call @mixed %x, %y : f32[T, 32]\n  return %a\n}",
        ] {
            let before = module("", "", read);
            let mut after = before.clone();
            assert!(!run(&mut after, &prompt(9, 1)).unwrap());
            assert_eq!(after.to_string(), before.to_string());
        }
        let mut decode = module("", "", READ);
        let sizes = bucket::sizes(4, 4, 4, 64, 2);
        assert!(!run(&mut decode, &Options { sizes, ..Options::default() }).unwrap());
        assert!(!run(&mut decode, &Options::default()).unwrap());
    }

    /// Of a model's last layer attention and what is behind it have rows for the logits alone; keys and values are still made of every row.
    #[test]
    fn the_last_layer_of_a_model() {
        let options =
            step::StepOptions { head: step::Head::Greedy, max_tokens: 64, max_seqs: 4, context: 1024, page: 64 };
        let mut module = gpt_oss::build(&presets::gpt_oss_20b(), &options).unwrap().module;
        assert!(run(&mut module, &prompt(64, 1)).unwrap());
        verify::verify(&module, verify::Stage::Tensor).unwrap_or_else(|e| panic!("{e:?}"));
        let names: Vec<&str> = module.funcs.iter().map(|f| &*f.name).collect();
        assert_eq!(names, ["layer_window", "layer_full", "layer_full.rows", step::ENTRY]);
        let last = &module.funcs[2];
        let rows = |kind: OpKind| -> Vec<String> {
            let ops = last.graph.ids().into_iter().map(|id| last.graph.op(id)).filter(|op| op.kind == kind);
            ops.map(|op| op.results[0].as_tensor().unwrap().dims[0].to_string()).collect()
        };
        assert_eq!(rows(OpKind::MatMul), ["T", "T", "T", "R", "R"]);
        assert_eq!(rows(OpKind::GatherRows), ["R", "R", "R"], "of queries, and biases of experts");
        let given: Vec<&str> = last.params.iter().rev().take(4).map(|p| &*p.name).collect();
        assert_eq!(given, ["seq.rows", "pos.rows", "x.rows", "rows"]);
        assert_eq!(rows(OpKind::MoeMatMul), ["R", "R"]);
        assert_eq!(rows(OpKind::Attention), ["R"]);
        assert!(last.to_string().contains("{decoded = true, scale = 0.125}"), "{last}");
        assert!(!module.funcs[1].to_string().contains("decoded"));
    }
}
