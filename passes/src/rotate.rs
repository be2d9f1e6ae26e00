//! Rotation: the norm that a layer begins with moves behind the end of the layer in front.
//!
//! A layer ends with a sum over its experts and begins with a norm of what the layer in front returned. Both go over rows of one tensor, but fusion works inside a
//! function, so the boundary between two calls keeps them apart: rows are stored, loaded again, and there is a launch more. As a loop is rotated, the boundary moves: a layer
//! is given its input normed, and returns what it makes both as it is and normed with the next layer's weights. The first norm stays with the caller; what follows the last layer does too.
//!
//! Only for steps that feed prompts, where it saves a pass over the rows. With few rows matmuls norm their operand for themselves; with 64 and 256 decoded ones the kernel is 2 and 9 us a layer
//! shorter than the two it replaces, and the step is not: the next projection's weights come in meanwhile (performance.md 25).
//! Precondition: a verified module. Postcondition: an equal one, in which the same ops run in another function. Never changes a rounding.

use std::collections::BTreeMap;
use std::sync::Arc;

use gossamer_ir::{Attr, Attrs, Func, InferError, Module, OpId, OpKind, Param, Type, Value};

use crate::{Options, bucket, dce};

/// Runs the pass; true if anything changed.
///
/// # Errors
/// None: the ops it makes are valid by construction.
pub fn run(module: &mut Module, options: &Options) -> Result<bool, InferError> {
    if bucket::prompt_rows(&options.sizes).is_none() {
        return Ok(false);
    }
    let mut changed = false;
    let mut at = 0;
    while at < module.funcs.len() {
        let caller = module.funcs[at].clone();
        if let Some((made, caller)) = rotated(module, at, caller)? {
            module.funcs[at] = caller;
            // A function stands in front of what calls it.
            let count = made.len();
            module.funcs.splice(at..at, made);
            at += count;
            changed = true;
        }
        at += 1;
    }
    if changed {
        dce::run(module, options)?;
    }
    Ok(changed)
}

/// The norm that a function begins with: of one of its parameters, by a weight that nothing else reads.
#[derive(Clone)]
struct Lead {
    /// Number of the parameter that is normed, and of the weight.
    x: usize,
    weight: usize,
    norm: OpId,
    /// The cast that alone reads the norm, if there is one.
    cast: Option<OpId>,
}

impl Lead {
    fn of(f: &Func) -> Option<Lead> {
        let params: BTreeMap<OpId, usize> = (0..f.params.len()).filter_map(|i| Some((f.param(i)?.op, i))).collect();
        f.graph.ids().into_iter().find_map(|norm| {
            let op = f.graph.op(norm);
            if op.kind != OpKind::RmsNorm {
                return None;
            }
            let [x, weight] = [0, 1].map(|i| op.operands.get(i).and_then(|v| params.get(&v.op)).copied());
            let (x, weight) = (x?, weight?);
            let alone = f.graph.users(op.operands[1]).len() == 1 && !f.results.contains(&op.operands[1]);
            if f.params[x].weight || !f.params[weight].weight || !alone {
                return None;
            }
            let value = Value { op: norm, result: 0 };
            let cast = match f.graph.users(value)[..] {
                [(user, _)] if f.graph.op(user).kind == OpKind::Cast && !f.results.contains(&value) => Some(user),
                _ => None,
            };
            Some(Lead { x, weight, norm, cast })
        })
    }

    /// What the function reads of it.
    fn value(&self) -> Value {
        Value { op: self.cast.unwrap_or(self.norm), result: 0 }
    }

    /// Makes it in `to` of `x` and `weight`, as it is in `from`.
    fn copy(&self, module: &Module, from: &Func, to: &mut Func, x: Value, weight: Value) -> Result<Value, InferError> {
        let mut made = x;
        for id in [Some(self.norm), self.cast].into_iter().flatten() {
            let op = from.graph.op(id).clone();
            let operands = if id == self.norm { vec![x, weight] } else { vec![made] };
            made = to.add(module, op.kind, operands, op.attrs, &[&op.names[0]], op.loc)?[0];
        }
        Ok(made)
    }
}

/// A call in whose callee a norm leads, of something that another call returns or not.
struct Site {
    call: OpId,
    callee: Arc<str>,
    lead: Lead,
}

/// The functions that `caller`, which is number `at`, calls after rotation, and it. `None` if no call begins with a norm of what another returns.
fn rotated(module: &Module, at: usize, mut caller: Func) -> Result<Option<(Vec<Func>, Func)>, InferError> {
    let calls: Vec<OpId> =
        caller.graph.ids().into_iter().filter(|c| caller.graph.op(*c).kind == OpKind::Call).collect();
    let mut leads: BTreeMap<Arc<str>, Option<Lead>> = BTreeMap::new();
    let mut sites = Vec::new();
    for call in &calls {
        let callee: Arc<str> = caller.graph.op(*call).attrs.word("callee").into();
        let lead = leads.entry(callee.clone()).or_insert_with(|| module.func(&callee).and_then(Lead::of));
        sites.extend(lead.clone().map(|lead| Site { call: *call, callee, lead }));
    }
    // The first call that norms a result of a call; its weight must be there before that call is.
    let follows = |site: &Site| {
        let op = caller.graph.op(site.call);
        let (x, weight) = (op.operands[site.lead.x], op.operands[site.lead.weight]);
        let leaf = matches!(caller.graph.op(weight.op).kind, OpKind::Weight | OpKind::Param);
        (leaf && caller.graph.op(x.op).kind == OpKind::Call).then_some((x, site.call))
    };
    let mut next: BTreeMap<Value, OpId> = BTreeMap::new();
    for (x, call) in sites.iter().filter_map(follows) {
        next.entry(x).or_insert(call);
    }
    if next.is_empty() {
        return Ok(None);
    }
    let mut maker = Maker { module: module.clone(), at, made: vec![], names: BTreeMap::new() };
    let by_call: BTreeMap<OpId, usize> = sites.iter().enumerate().map(|(i, s)| (s.call, i)).collect();
    // Norms that calls in front return, by what is normed and who asked for it.
    let mut normed: BTreeMap<OpId, Value> = BTreeMap::new();
    for call in calls {
        let old = caller.graph.op(call).clone();
        let (mut operands, mut callee) = (old.operands.clone(), Arc::<str>::from(old.attrs.word("callee")));
        if let Some(site) = by_call.get(&call).map(|i| &sites[*i]) {
            let from = maker.func(&site.callee)?.clone();
            let h = match normed.get(&call) {
                Some(h) => *h,
                None => {
                    let (x, weight) = (operands[site.lead.x], operands[site.lead.weight]);
                    site.lead.copy(&maker.module, &from, &mut caller, x, weight)?
                }
            };
            operands[site.lead.weight] = h;
            callee = maker.given(&from, &site.lead)?;
        }
        let asks = (0..old.results.len() as u16)
            .find_map(|r| next.get(&Value { op: call, result: r }).map(|n| (r, *n)))
            .and_then(|(r, n)| by_call.get(&n).map(|i| (r, &sites[*i])));
        if let Some((result, site)) = asks {
            let weight = caller.graph.op(site.call).operands[site.lead.weight];
            let from = maker.func(&site.callee)?.clone();
            operands.push(weight);
            callee = maker.giving(&callee, result, &from, &site.lead)?;
        }
        if *callee == *old.attrs.word("callee") {
            continue;
        }
        let names: Vec<&str> = old.names.iter().map(|n| &**n).chain(asks.map(|_| "h")).collect();
        let attrs = Attrs::from([("callee", Attr::Word(callee))]);
        let new = caller.add(&maker.module, OpKind::Call, operands, attrs, &names, old.loc.clone())?;
        for (i, to) in new.iter().take(old.results.len()).enumerate() {
            let from = Value { op: call, result: i as u16 };
            caller.graph.replace_uses(from, *to);
            caller.results.iter_mut().filter(|r| **r == from).for_each(|r| *r = *to);
        }
        if let (Some((_, site)), Some(h)) = (asks, new.get(old.results.len())) {
            normed.insert(site.call, *h);
        }
        caller.graph.remove(call);
    }
    Ok(Some((maker.made, caller)))
}

/// Makes the functions that calls ask for, each once.
struct Maker {
    /// With the functions made so far, in front of the caller.
    module: Module,
    at: usize,
    made: Vec<Func>,
    names: BTreeMap<String, Arc<str>>,
}

impl Maker {
    fn func(&self, name: &str) -> Result<&Func, InferError> {
        self.module.func(name).ok_or_else(|| InferError {
            op: OpKind::Call.name(),
            message: format!("there is no function @{name}"),
            loc: None,
        })
    }

    fn keep(&mut self, key: String, mut func: Func, suffix: &str) -> Arc<str> {
        let base = format!("{}.{suffix}", func.name);
        let names = std::iter::once(base.clone()).chain((2..).map(|i| format!("{base}.{i}")));
        let free = names.into_iter().find(|n| self.module.func(n).is_none());
        func.name = free.unwrap_or(base).into();
        let name = func.name.clone();
        self.module.funcs.insert(self.at, func.clone());
        self.at += 1;
        self.made.push(func);
        self.names.insert(key, name.clone());
        name
    }

    /// `from` with its input normed in place of the weight that norms it.
    fn given(&mut self, from: &Func, lead: &Lead) -> Result<Arc<str>, InferError> {
        let key = format!("given {}", from.name);
        if let Some(name) = self.names.get(&key) {
            return Ok(name.clone());
        }
        let mut func = from.clone();
        let (old, weight) = (lead.value(), func.graph.op(lead.norm).operands[1]);
        let ty = func.graph.ty(old).clone();
        for op in [lead.cast, Some(lead.norm)].into_iter().flatten() {
            let value = Value { op, result: 0 };
            if value == old {
                // The parameter of the weight becomes that of the normed input, where the weight has no reader left but the norm.
                func.graph.replace_uses(value, weight);
                func.results.iter_mut().filter(|r| **r == value).for_each(|r| *r = weight);
            }
        }
        // The norm itself read the weight; it goes, so that nothing reads the parameter as what it was.
        for op in [lead.cast, Some(lead.norm)].into_iter().flatten() {
            func.graph.remove(op);
        }
        let name: Arc<str> = format!("{}.normed", func.params[lead.x].name).into();
        func.params[lead.weight] = Param { name: name.clone(), ty: ty.clone(), weight: false };
        let param = func.graph.op_mut(weight.op);
        param.results = vec![ty];
        param.names = vec![name];
        Ok(self.keep(key, func, "given"))
    }

    /// The function `name` with one more result: its result number `result` normed as `lead` of `from` does it, with one more parameter for the weight.
    fn giving(&mut self, name: &str, result: u16, from: &Func, lead: &Lead) -> Result<Arc<str>, InferError> {
        let of = &from.params[lead.weight];
        let attrs = |id: &OpId| format!("{:?}", from.graph.op(*id).attrs);
        let how: Vec<String> = [Some(lead.norm), lead.cast].iter().flatten().map(attrs).collect();
        let key = format!("giving {name} {result} {} {how:?}", of.ty);
        if let Some(name) = self.names.get(&key) {
            return Ok(name.clone());
        }
        let mut func = self.func(name)?.clone();
        let index = func.params.len();
        let param: Arc<str> = format!("next.{}", of.name).into();
        func.params.push(Param { name: param.clone(), ty: of.ty.clone(), weight: true });
        let weight = func.graph.add(gossamer_ir::Op {
            kind: OpKind::Param,
            attrs: Attrs::from([("index", Attr::Int(index as i64))]),
            operands: vec![],
            results: vec![Type::clone(&of.ty)],
            names: vec![param],
            seq: 0,
            loc: None,
        });
        let x = func.results[usize::from(result)];
        let h = lead.copy(&self.module, from, &mut func, x, Value { op: weight, result: 0 })?;
        func.results.push(h);
        Ok(self.keep(key, func, "giving"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gossamer_ir::interp::{Datum, Rounding, StateStore, Tensor, run_func};
    use gossamer_ir::{text, verify};
    use gossamer_models::{gpt_oss, presets, step};

    fn prompt(tokens: usize) -> Options {
        Options { sizes: bucket::sizes(tokens, 1, 1, 64, 2), ..Options::default() }
    }

    /// Layers in text, and the step that calls them.
    fn module(norm: &str, calls: &str) -> Module {
        let source = format!(
            "gir 1\nsym T in 1..=64\nsym S in 1..=64\nsym R in 1..=64\n\
             weight @a : f32[8] = \"a\"\nweight @b : f32[8] = \"b\"\nweight @c : f32[8] = \"c\"\n\
             func @plain(%x: f32[T, 8], %w: weight f32[8]) -> (f32[T, 8], f32[T, 8]) {{\n{norm}  %s = silu %h : f32[T, 8]\n\
             \x20 %z = add %x, %s : f32[T, 8]\n  return %s, %z\n}}\n\
             func @other(%x: f32[T, 8], %w: weight f32[8]) -> (f32[T, 8]) {{\n  %y = rms_norm %x, %w {{eps = 0.5}} : f32[T, 8]\n\
             \x20 %h = cast %y {{to = bf16}} : bf16[T, 8]\n  %f = cast %h {{to = f32}} : f32[T, 8]\n  %z = mul %x, %f : f32[T, 8]\n  return %z\n}}\n\
             func @step(%x: f32[T, 8]) -> {calls}"
        );
        text::parse("m.gir", &source).unwrap_or_else(|e| panic!("{e}\n{source}"))
    }

    const NORM: &str = "  %h = rms_norm %x, %w : f32[T, 8]\n";
    const CALLS: &str = "(f32[T, 8], f32[T, 8]) {\n  %s, %z = call @plain %x, @a : f32[T, 8], f32[T, 8]\n  %y = call @other %z, @b : f32[T, 8]\n\
                         \x20 %u, %v = call @plain %y, @c : f32[T, 8], f32[T, 8]\n  %n = rms_norm %z, @a : f32[T, 8]\n  %o = mul %n, %v : f32[T, 8]\n  return %o, %s\n}";

    fn bits(module: &Module, options: &Options) -> Vec<u32> {
        let tokens = options.sizes["T"] as usize;
        let noise = |seed: u32, n: usize| -> Vec<f32> {
            (0..n as u32)
                .map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed * 97) >> 8) as f32 / 8_388_608.0 - 1.0)
                .collect()
        };
        let args = vec![Datum::Tensor(Tensor::f32(&[tokens, 8], noise(1, tokens * 8)).unwrap())];
        let weights =
            |name: &str| Ok(Tensor::f32(&[8], noise(name.len() as u32 + u32::from(name.as_bytes()[0]), 8)).unwrap());
        let mut states: Vec<StateStore> = vec![];
        let out = run_func(module, "step", args, &weights, &mut states, &options.sizes, Rounding::Typed);
        let out = out.unwrap_or_else(|e| panic!("{e}\n{module}"));
        out.iter().flat_map(|d| d.as_tensor().unwrap().to_f32().into_owned()).map(f32::to_bits).collect()
    }

    #[test]
    fn layers_are_given_and_give_norms_of_the_same_bits() {
        let before = module(NORM, CALLS);
        for options in [prompt(33), prompt(64), prompt(3)] {
            let mut after = before.clone();
            assert!(run(&mut after, &options).unwrap());
            verify::verify(&after, verify::Stage::Tensor).unwrap_or_else(|e| panic!("{e:?}\n{after}"));
            assert_eq!(bits(&before, &options), bits(&after, &options), "{after}");
            let names: Vec<&str> = after.funcs.iter().map(|f| &*f.name).collect();
            // The last call gives nothing, and what it is given the one in front of it makes.
            assert_eq!(names, ["plain.given", "plain.given.giving", "other.given.giving", "step"]);
            for f in after.funcs.iter().filter(|f| f.name.ends_with("giving")) {
                assert_eq!(f.to_string().matches("= rms_norm ").count(), 1, "{f}");
            }
            let step = after.funcs.last().unwrap().to_string();
            assert_eq!(step.matches("= rms_norm ").count(), 2, "the first layer's and the step's own: {step}");
            assert!(!run(&mut after, &options).unwrap(), "nothing is left to do");
        }
    }

    #[test]
    fn what_cannot_move_stays() {
        let read_twice = format!("{NORM}  %t = mul %x, %w : f32[T, 8]\n").replace("%h = ", "%h.1 = ")
            + "  %h = add %h.1, %t : f32[T, 8]\n";
        let one = "(f32[T, 8]) {\n  %s, %z = call @plain %x, @a : f32[T, 8], f32[T, 8]\n  return %z\n}";
        let made = "(f32[T, 8]) {\n  %s, %z = call @plain %x, @a : f32[T, 8], f32[T, 8]\n  %k = silu @b : f32[8]\n  %t, %u = call @plain %z, %k : f32[T, 8], f32[T, 8]\n  return %u\n}";
        for (norm, calls) in [(NORM, one), (read_twice.as_str(), CALLS), (NORM, made)] {
            let before = module(norm, calls);
            let mut after = before.clone();
            let changed = run(&mut after, &prompt(64)).unwrap();
            // A norm by a weight that is read elsewhere too stays with its layer; that of the other layer moves.
            assert_eq!(changed, norm != NORM, "{after}");
            assert_eq!(bits(&before, &prompt(64)), bits(&after, &prompt(64)));
            assert!(after.func("plain.given").is_none() && changed == after.func("plain.giving").is_some());
        }
        let decode = Options { sizes: bucket::sizes(64, 64, 64, 64, 2), ..Options::default() };
        for options in [decode, Options::default()] {
            let mut few = module(NORM, CALLS);
            assert!(!run(&mut few, &options).unwrap());
        }
    }

    /// Every layer of a model but the first is given its input normed by the layer in front.
    #[test]
    fn the_layers_of_a_model() {
        let options =
            step::StepOptions { head: step::Head::Greedy, max_tokens: 64, max_seqs: 64, context: 1024, page: 64 };
        let mut module = gpt_oss::build(&presets::gpt_oss_20b(), &options).unwrap().module;
        assert!(run(&mut module, &prompt(64)).unwrap());
        verify::verify(&module, verify::Stage::Tensor).unwrap_or_else(|e| panic!("{e:?}"));
        let names: Vec<&str> = module.funcs.iter().map(|f| &*f.name).collect();
        assert_eq!(names, ["layer_window.given.giving", "layer_full.given", "layer_full.given.giving", step::ENTRY]);
        let entry = module.funcs.last().unwrap();
        let norms = entry.graph.ids().into_iter().filter(|id| entry.graph.op(*id).kind == OpKind::RmsNorm);
        assert_eq!(norms.count(), 2, "the first layer's and the final one");
    }
}
