//! Every rule against the interpreter: random shapes of its own pattern, both sides run, equal bits expected.
//!
//! A rule is a claim that two functions are equal. [`cases`] writes functions that hold the rule's pattern; the e-graph is saturated, every kernel that the rule made is forced into
//! the plan in turn, and the plan must compute the same bits as the source, because regions run the same ops in the same order.

mod cases;

use std::collections::BTreeMap;
use std::sync::Arc;

use gossamer_ir::interp::{Datum, Rounding, StateStore, Tensor, run_func};
use gossamer_ir::{Bindings, DType, Func, Kernel, Module, OpKind, StateDecl, Type, text};

use super::rules::{How, RULES, Rule};
use super::*;
use cases::{STEP, Sizes, cases, func};

/// A small generator (splitmix64), so that a failure names its seed.
pub struct Rng(pub u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }
}

/// A function with arguments.
struct Run {
    module: Arc<Module>,
    args: Vec<Datum>,
    states: Vec<StateStore>,
    sizes: Bindings,
}

fn prepare(source: &str, t: usize, rng: &mut Rng) -> Run {
    let module = text::parse("case", source).unwrap_or_else(|e| panic!("{source}\n{}", e.render()));
    gossamer_ir::verify::verify(&module, gossamer_ir::verify::Stage::Tensor)
        .unwrap_or_else(|e| panic!("{source}\n{e}"));
    let sizes: Bindings =
        [("T", t), ("S", 2), ("P", 4), ("C", 32)].into_iter().map(|(k, v)| (k.into(), v as i64)).collect();
    let args = module.funcs[0].params.iter().map(|p| argument(&p.name, &p.ty, &sizes, t, rng)).collect();
    let states = module.states.iter().map(|s: &StateDecl| StateStore::for_decl(s, 8)).collect();
    Run { module: Arc::new(module), args, states, sizes }
}

fn argument(name: &str, ty: &Type, sizes: &Bindings, t: usize, rng: &mut Rng) -> Datum {
    let Type::Tensor(tensor) = ty else { return Datum::State(0) };
    let shape: Vec<usize> = tensor.shape(sizes).unwrap().iter().map(|d| *d as usize).collect();
    let n: usize = shape.iter().product();
    let made = match (tensor.dtype, name) {
        (DType::Mxfp4, _) => {
            let codes = (0..n / 2).map(|_| rng.next() as u8).collect();
            let scales = (0..n / 32).map(|_| 120 + rng.below(10) as u8).collect();
            Tensor::mxfp4(&shape, codes, scales)
        }
        (DType::I32, "pos") => Tensor::i32(&shape, (0..n as i32).collect()),
        (DType::I32, "seq") => Tensor::i32(&shape, (0..n).map(|i| i32::from(i * 2 >= t)).collect()),
        (DType::I32, "pages") => Tensor::i32(&shape, (0..n as i32).collect()),
        // One beyond the last expert or row now and then: rows of zeros.
        (DType::I32, _) => {
            Tensor::i32(&shape, (0..n).map(|_| rng.below(3) as i32 - i32::from(rng.below(9) == 0) * 5).collect())
        }
        (DType::Bool, _) => {
            Tensor::u8(&shape, (0..n).map(|_| rng.below(2) as u8).collect()).map(|t| Tensor { dtype: DType::Bool, ..t })
        }
        (dtype, _) => Tensor::f32(&shape, (0..n).map(|_| half::bf16::from_f32(rng.float()).to_f32()).collect())
            .map(|t| Tensor { dtype, ..t }),
    };
    Datum::Tensor(made.unwrap_or_else(|e| panic!("{name}: {e}")))
}

/// Results as bits, and the state afterwards.
fn evaluate(run: &Run, func: &Func) -> Vec<Vec<u32>> {
    let mut module = (*run.module).clone();
    module.funcs = vec![func.clone()];
    let mut states = run.states.clone();
    let none = |name: &str| -> Result<Tensor, gossamer_ir::interp::EvalError> { panic!("weight {name}") };
    let out = run_func(&module, &func.name, run.args.clone(), &none, &mut states, &run.sizes, Rounding::Typed)
        .unwrap_or_else(|e| panic!("{func}\n{e}"));
    let mut bits: Vec<Vec<u32>> = out
        .iter()
        .filter_map(Datum::as_tensor)
        .map(|t| match t.as_i32() {
            Some(v) => v.iter().map(|x| *x as u32).collect(),
            None if t.dtype == DType::Bool => t.to_f32().iter().map(|x| *x as u32).collect(),
            None => t.to_f32().iter().map(|x| if x.is_nan() { u32::MAX } else { x.to_bits() }).collect(),
        })
        .collect();
    for s in &states {
        if let StateStore::Kv(kv) = s {
            let pages = (0..8).flat_map(|p| (0..2).flat_map(move |h| [kv.keys(p, h), kv.values(p, h)]));
            bits.push(pages.flatten().flatten().map(|x| x.to_bits()).collect());
        }
    }
    bits
}

/// The choices with `forced` for nothing and every other kernel at 1 an op.
fn forcing(space: &Space, forced: &Term) -> Priced {
    let machine = crate::cost::Machine::default();
    let sizes = Bindings::new();
    let mut priced = price(space, &Point::new(&sizes, &machine));
    for (class, nodes) in priced.choices.classes.iter_mut().zip(&priced.nodes) {
        for (choice, node) in class.iter_mut().zip(nodes) {
            if let Term::Kernel(k, _) = node {
                let kernel: &Kernel = &space.bridged.graph.analysis.kernels[*k as usize];
                choice.cost = if node == forced { 0.0 } else { kernel.ops().count() as f64 };
            }
        }
    }
    priced
}

/// What is wrong on a source, or how many kernels of `rule` were run.
fn differ(rules: &[&'static Rule], rule: &Rule, source: &str, t: usize, rng: &mut Rng) -> Result<usize, String> {
    let run = prepare(source, t, rng);
    let want = evaluate(&run, &run.module.funcs[0]);
    let space = space_with(&run.module, &run.module.funcs[0], rules).map_err(|e| e.to_string())?;
    if matches!(rule.how, How::Before) {
        let got = evaluate(&run, &space.func);
        let fired = space.func.to_string() != run.module.funcs[0].to_string();
        return if got == want { Ok(usize::from(fired)) } else { Err(format!("{source}\nbecomes\n{}", space.func)) };
    }
    // Every kernel, not only the rule's: a wrong equality may give an old kernel other operands.
    let eg = &space.bridged.graph;
    let mut nodes: Vec<Term> =
        eg.classes().flat_map(|c| c.nodes.clone()).filter(|n| matches!(n, Term::Kernel(..))).collect();
    nodes.sort_unstable();
    let mut ran = 0;
    for node in nodes {
        let Term::Kernel(k, _) = node else { continue };
        let priced = forcing(&space, &node);
        let found = extract::extract(&priced.choices).map_err(|e| e.to_string())?;
        let (func, report) = build(&run.module, &space, &priced, &found, &run.sizes, &crate::cost::Machine::default())
            .map_err(|e| e.to_string())?;
        let kernel = &eg.analysis.kernels[k as usize];
        if !report.kernels.iter().any(|r| r.kernel == *kernel) {
            continue;
        }
        let got = evaluate(&run, &func);
        if got != want {
            return Err(format!("{source}\nbecomes\n{func}"));
        }
        ran += usize::from(eg.analysis.origins[k as usize].rule == rule.info.name);
    }
    Ok(ran)
}

fn all() -> Vec<&'static Rule> {
    RULES.iter().collect()
}

#[test]
fn every_rule_fires_and_is_sound() {
    let mut problems = Vec::new();
    for rule in RULES {
        // What a scalar kernel absorbs could also have been grown; the first to make a kernel gets the credit.
        let grows = |r: &&Rule| rule.info.name != "absorb/map" || r.info.family != crate::rule::Family::Grow;
        let rules: Vec<&'static Rule> = all().into_iter().filter(grows).collect();
        let mut ran = 0;
        for kind in rule.kinds {
            let mut fired = 0;
            let mut written = 0;
            for seed in 0..3u64 {
                let mut rng = Rng(seed * 7919 + *kind as u64);
                let s = Sizes::random(&mut rng);
                for source in cases(rule, *kind, &s) {
                    written += 1;
                    match differ(&rules, rule, &source, s.t, &mut rng) {
                        Ok(n) => fired += n,
                        Err(e) => problems.push(format!("{} ({}), seed {seed}: {e}", rule.info.name, kind.name())),
                    }
                }
            }
            if written > 0 && fired == 0 {
                problems.push(format!("{} never fires on `{}`", rule.info.name, kind.name()));
            }
            ran += fired;
        }
        if ran == 0 {
            problems.push(format!("{} never fires", rule.info.name));
        }
    }
    assert!(problems.is_empty(), "{} problems\n{}", problems.len(), problems.join("\n"));
}

/// The body of a layer and the head in one function: norm, q/k/v, rope, cache, attention, router, experts.
fn layer() -> String {
    let lines: Vec<String> = "%n = rms_norm %h, %g : f32[T, 32]
%n.b = cast %n {to = bf16} : bf16[T, 32]
%q = matmul %n.b, %wq : f32[T, 16]
%k = matmul %n.b, %wk : f32[T, 8]
%v = matmul %n.b, %wv : f32[T, 8]
%q.1 = rope %q, %pos, %rope : f32[T, 16]
%k.1 = rope %k, %pos, %rope : f32[T, 8]
%kv.1 = kv_write %kv, %k.1, %v, %pos, %seq, %pages : kv<full>
%y = attention %q.1, %kv.1, %pos, %seq, %pages {scale = 0.5} : f32[T, 16]
%y.b = cast %y {to = bf16} : bf16[T, 16]
%o = matmul %y.b, %wo : f32[T, 32]
%r = add %h, %o : f32[T, 32]
%m = rms_norm %r, %g : f32[T, 32]
%m.b = cast %m {to = bf16} : bf16[T, 32]
%l = matmul %m.b, %wr : f32[T, 4]
%top, %ids = topk %l {k = 2} : f32[T, 2], i32[T, 2]
%p = softmax %top : f32[T, 2]
%w1 = dequant %we : bf16[4, 64, 32]
%u = moe_matmul %m.b, %w1, %ids : f32[T, 2, 64]
%c = gather_rows %be, %ids : bf16[T, 2, 64]
%u.1 = add %u, %c : f32[T, 2, 64]
%s = swiglu %u.1 : f32[T, 2, 32]
%s.b = cast %s {to = bf16} : bf16[T, 2, 32]
%w2 = dequant %wd : bf16[4, 32, 32]
%d = moe_matmul %s.b, %w2, %ids : f32[T, 2, 32]
%z = moe_combine %d, %p : f32[T, 32]
%out = add %r, %z : f32[T, 32]"
        .lines()
        .map(str::to_string)
        .collect();
    let params = format!(
        "%h: f32[T, 32], %g: bf16[32], %wq: weight bf16[16, 32], %wk: weight bf16[8, 32], %wv: weight bf16[8, 32], %wo: bf16[32, 16], \
         %wr: bf16[4, 32], %we: mxfp4[4, 64, 32], %be: bf16[4, 64], %wd: mxfp4[4, 32, 32], %rope: f32[C, 4], %kv: kv<full>, {STEP}"
    );
    func(&params, "f32[T, 32], kv<full>, i32[T, 2]", &lines, "%out, %kv.1, %ids")
}

/// Plans from `seeds` random extractions of one e-graph; the first that computes something else than the source.
fn random_plans(rules: &[&'static Rule], source: &str, seeds: u64) -> Result<usize, String> {
    let mut rng = Rng(5);
    let run = prepare(source, 3, &mut rng);
    let want = evaluate(&run, &run.module.funcs[0]);
    let space = space_with(&run.module, &run.module.funcs[0], rules).map_err(|e| e.to_string())?;
    let machine = crate::cost::Machine::default();
    let priced = price(&space, &Point::new(&run.sizes, &machine));
    let mut texts = std::collections::BTreeSet::new();
    for seed in 0..seeds {
        let found = extract::random(&priced.choices, seed).ok_or("no extraction")?;
        let (func, _) = build(&run.module, &space, &priced, &found, &run.sizes, &machine).map_err(|e| e.to_string())?;
        if evaluate(&run, &func) != want {
            return Err(format!("seed {seed}:\n{func}"));
        }
        texts.insert(func.to_string());
    }
    Ok(texts.len())
}

#[test]
fn random_extractions_agree() {
    let different = random_plans(&all(), &layer(), 32).unwrap_or_else(|e| panic!("{e}"));
    assert!(different > 16, "only {different} of 32 plans differ");
}

/// A rule that is wrong on purpose: it claims that `sub` may read its operands the other way round.
static SWAPPED: Rule = Rule {
    info: crate::rule::RuleInfo {
        name: "test/swapped",
        family: crate::rule::Family::Seed,
        meaning: "wrong on purpose",
        off: None,
    },
    kinds: &[OpKind::Sub],
    how: How::Custom(|eg, class, node| {
        let Term::Op(OpKind::Sub, operands) = node else { return vec![] };
        let swapped = [operands[1], operands[0]];
        let body = body::Body::seed(eg, "map", OpKind::Sub, Default::default(), &swapped, "wrong".into());
        let equal = || rules::Equal::Results(vec![(0, rules::Target::Class(class))]);
        body.into_iter().map(|body| rules::Proposal { body, from: vec![], op: OpKind::Sub, equal: equal() }).collect()
    }),
};

/// Another: it claims that a cast equals what it casts.
static LOSSLESS: Rule = Rule {
    info: crate::rule::RuleInfo {
        name: "test/lossless",
        family: crate::rule::Family::Seed,
        meaning: "wrong on purpose",
        off: None,
    },
    kinds: &[OpKind::Cast],
    how: How::Custom(|eg, _, node| {
        let Term::Op(OpKind::Cast, children) = node else { return vec![] };
        let (operands, attrs) = facts::parts(eg, OpKind::Cast, children);
        let body = body::Body::seed(eg, "map", OpKind::Cast, attrs, operands, "wrong".into());
        let source = operands[0];
        let equal = || rules::Equal::Results(vec![(0, rules::Target::Class(source))]);
        body.into_iter().map(|body| rules::Proposal { body, from: vec![], op: OpKind::Cast, equal: equal() }).collect()
    }),
};

/// Two pairs of matmuls with experts that share choices and weights.
fn two_pairs(other: &str) -> String {
    let lines = "%w = dequant %g : bf16[4, 32, 32]
%u = moe_matmul %x, %w, %ids : f32[T, 2, 32]
%h = cast %u {to = bf16} : bf16[T, 2, 32]
%u.1 = moe_matmul %z, %w, %ids : f32[T, 2, 32]
%h.1 = cast %u.1 {to = bf16} : bf16[T, 2, 32]
%a = moe_matmul %h, %w, OTHER : f32[T, 2, 32]"
        .replace("OTHER", other);
    let lines: Vec<String> = lines.lines().map(str::to_string).collect();
    let params = "%x: bf16[T, 32], %z: bf16[T, 32], %g: mxfp4[4, 32, 32], %ids: i32[T, 2], %more: i32[T, 2]";
    func(params, "f32[T, 2, 32], bf16[T, 2, 32]", &lines, "%a, %h.1")
}

/// A third: it takes any rows of the right type for those that a matmul with experts reads.
static OTHER_ROWS: Rule = Rule {
    info: crate::rule::RuleInfo {
        name: "test/other-rows",
        family: crate::rule::Family::Chain,
        meaning: "wrong on purpose",
        off: None,
    },
    kinds: &[OpKind::MoeMatMul],
    how: How::Custom(|eg, class, _| {
        let mut out = vec![];
        let makers = |id| {
            let tuples = rules::makers(eg, id).into_iter();
            let nodes = tuples.flat_map(|(r, t)| eg[t].nodes.iter().map(move |n| (r, n.clone())));
            nodes.filter_map(|(r, n)| if let Term::Kernel(k, ids) = n { Some((r, k, ids)) } else { None })
        };
        for (_, k, ids) in makers(class) {
            let next = body::open(eg, k, &ids);
            for operand in next.operands(1) {
                for other in eg.classes().map(|c| c.id).filter(|c| facts::ty(eg, *c) == facts::ty(eg, operand)) {
                    for (r, k, ids) in makers(other).filter(|_| other != operand) {
                        // The wrong rows' kernel, as if it made the right ones.
                        let chained = body::open(eg, k, &ids).chain(r as usize, next.clone(), operand, "moe_pair");
                        let equal = || rules::Equal::Results(vec![(0, rules::Target::Class(class))]);
                        let op = OpKind::Kernel;
                        out.extend(chained.map(|body| rules::Proposal { body, from: vec![], op, equal: equal() }));
                    }
                }
            }
        }
        out
    }),
};

#[test]
fn stages_read_the_rows_and_choices_of_one_another() {
    let chain = RULES.iter().find(|r| r.info.name == "chain/moe-pair").unwrap();
    let fired = |source: &str, rules: &[&'static Rule], rule: &Rule| differ(rules, rule, source, 3, &mut Rng(4));
    assert!(fired(&two_pairs("%ids"), &all(), chain).unwrap() > 0);
    // Other choices: no rows to hand on.
    assert_eq!(fired(&two_pairs("%more"), &all(), chain), Ok(0));
    // The wrong rule is caught.
    let mut rules = all();
    rules.push(&OTHER_ROWS);
    let e = fired(&two_pairs("%ids"), &rules, &OTHER_ROWS).unwrap_err();
    assert!(e.contains("moe_pair") && e.contains("then"), "{e}");
}

#[test]
fn wrong_rules_are_caught() {
    let source = func("%a: f32[T, 8], %c: f32[T, 8]", "f32[T, 8]", &["%b = sub %a, %c : f32[T, 8]".into()], "%b");
    let mut rules = all();
    rules.insert(0, &SWAPPED);
    // By the differential test, and by random extractions.
    let e = differ(&rules, &SWAPPED, &source, 3, &mut Rng(1)).unwrap_err();
    assert!(e.contains("becomes"), "{e}");
    assert!(random_plans(&rules, &source, 16).is_err());
    // A contradiction of types stops the run and names the rule and both types.
    let source = func("%a: f32[T, 8]", "bf16[T, 8]", &["%b = cast %a {to = bf16} : bf16[T, 8]".into()], "%b");
    let mut rules = all();
    rules.push(&LOSSLESS);
    let e = random_plans(&rules, &source, 1).unwrap_err();
    assert!(e.contains("test/lossless") && e.contains("f32[T, 8]") && e.contains("bf16[T, 8]"), "{e}");
    // A rule that cannot fire is told apart from one that is sound.
    let silent = func("%a: f32[T, 8]", "f32[T, 8]", &["%b = neg %a : f32[T, 8]".into()], "%b");
    assert_eq!(differ(&all(), &SWAPPED, &silent, 2, &mut Rng(2)), Ok(0));
}

#[test]
fn fused_text_reads_back() {
    let run = prepare(&layer(), 3, &mut Rng(9));
    let space = space(&run.module, &run.module.funcs[0], &[]).unwrap();
    let (func, report) = {
        let machine = crate::cost::Machine::default();
        choose(&run.module, &space, &Point::new(&run.sizes, &machine), None).unwrap()
    };
    let mut module = (*run.module).clone();
    module.funcs = vec![func];
    gossamer_ir::verify::verify(&module, gossamer_ir::verify::Stage::Fused).unwrap_or_else(|e| panic!("{module}\n{e}"));
    gossamer_ir::verify::roundtrip(&module).unwrap_or_else(|e| panic!("{module}\n{e}"));
    assert!(report.kernels.iter().all(|k| !k.history.is_empty()));
    let again = BTreeMap::from([("x", module.to_string())]);
    assert_eq!(text::parse("again", &again["x"]).unwrap().to_string(), again["x"]);
}
