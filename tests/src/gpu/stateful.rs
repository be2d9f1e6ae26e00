//! Scenarios with state: attention over a paged cache that steps have written, and token counts with penalties.

use std::collections::BTreeMap;

use gossamer_ir::interp::Tensor;
use gossamer_ir::{Attr, Attrs, Bindings, DType, Dim, Func, Module, OpKind, Param, StateDecl, SymDecl, Type, Value};
use gossamer_runtime::exec::StateSpec;

use super::data::{Rng, int};
use super::scenario::{ENTRY, Scenario, Step, head};

/// Shape of an attention layer.
#[derive(Clone, Copy, Debug)]
struct Layer {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    page: usize,
    window: Option<usize>,
    sinks: bool,
    /// As rows that get logits are.
    decoded: bool,
    dtype: DType,
}

/// A module under construction: one function, parameters first.
struct Build {
    module: Module,
    params: Vec<Param>,
}

impl Build {
    fn new(states: &[StateDecl]) -> Build {
        let sym = |name: &str| SymDecl { name: name.into(), min: 0, max: 1 << 20 };
        let syms = ["T", "S", "P", "R"].map(sym).into();
        Build { module: Module { syms, states: states.to_vec(), ..Module::default() }, params: vec![] }
    }

    fn param(&mut self, name: &str, ty: Type) {
        self.params.push(Param { name: name.into(), ty, weight: false });
    }

    fn tensor(&mut self, name: &str, dtype: DType, dims: &[Dim]) {
        self.param(name, Type::tensor(dtype, dims.iter().cloned()));
    }

    fn body(mut self, make: impl FnOnce(&Module, &mut Func) -> Vec<Value>) -> Module {
        let mut f = Func::new(ENTRY, self.params);
        let results = make(&self.module, &mut f);
        f.results = results;
        self.module.funcs.push(f);
        self.module
    }
}

/// The value of the parameter `name`.
fn param(f: &Func, name: &str) -> Value {
    let at = f.params.iter().position(|p| &*p.name == name).expect("a parameter of this name");
    f.param(at).expect("its op")
}

fn add(m: &Module, f: &mut Func, kind: OpKind, operands: &[&str], attrs: Attrs) -> Value {
    let operands = operands.iter().map(|n| param(f, n)).collect();
    add_values(m, f, kind, operands, attrs)
}

fn add_values(m: &Module, f: &mut Func, kind: OpKind, operands: Vec<Value>, attrs: Attrs) -> Value {
    match f.add(m, kind, operands, attrs, &["y"], None) {
        Ok(v) => v[0],
        Err(e) => panic!("{e}"),
    }
}

impl Layer {
    fn decl(&self) -> StateDecl {
        StateDecl::Kv {
            name: "cache".into(),
            heads: self.kv_heads as i64,
            head_dim: self.head_dim as i64,
            page: self.page as i64,
            window: self.window.map(|w| w as i64),
            dtype: DType::BF16,
        }
    }

    /// Writes keys and values, then attends.
    fn module(&self) -> Module {
        let (t, n) = (Dim::sym("T"), |n: usize| Dim::from(n));
        let decl = self.decl();
        let mut b = Build::new(std::slice::from_ref(&decl));
        b.param("kv", decl.ty());
        b.tensor("q", self.dtype, &[t.clone(), n(self.heads * self.head_dim)]);
        b.tensor("k", self.dtype, &[t.clone(), n(self.kv_heads * self.head_dim)]);
        b.tensor("v", self.dtype, &[t.clone(), n(self.kv_heads * self.head_dim)]);
        b.tensor("pos", DType::I32, std::slice::from_ref(&t));
        b.tensor("seq", DType::I32, std::slice::from_ref(&t));
        b.tensor("pages", DType::I32, &[Dim::sym("S"), Dim::sym("P")]);
        if self.sinks {
            b.tensor("sinks", DType::BF16, &[n(self.heads)]);
        }
        let scale = (self.head_dim as f64).powf(-0.5);
        b.body(|m, f| {
            let written = add(m, f, OpKind::KvWrite, &["kv", "k", "v", "pos", "seq", "pages"], Attrs::default());
            let mut operands = vec![param(f, "q"), written];
            operands.extend(["pos", "seq", "pages"].map(|name| param(f, name)));
            if self.sinks {
                operands.push(param(f, "sinks"));
            }
            let window = Attr::Int(self.window.unwrap_or(0) as i64);
            let decoded = Attr::Bool(self.decoded);
            let attrs = Attrs::from([("decoded", decoded), ("scale", Attr::Float(scale)), ("window", window)]);
            let y = add_values(m, f, OpKind::Attention, operands, attrs);
            vec![y, written]
        })
    }

    fn label(&self) -> String {
        let Layer { heads, kv_heads, head_dim, page, dtype, .. } = self;
        let window = self.window.map_or("all keys".into(), |w| format!("window {w}"));
        let sinks = if self.sinks { ", sinks" } else { "" };
        let decoded = if self.decoded { ", decoded" } else { "" };
        format!("attention {heads}/{kv_heads} heads of {head_dim}, page {page}, {window}{sinks}, {dtype}{decoded}")
    }

    /// A step of these tokens, each its sequence and position, with random q, k and v. `pages`: `[sequences, columns]`.
    fn step(&self, tokens: &[(i32, i32)], rng: &mut Rng, sinks: &Tensor, pages: &Tensor) -> Step {
        let rows = tokens.len();
        let mut wide = |heads: usize, scale| rng.floats(self.dtype, &[rows, heads * self.head_dim], scale);
        let mut inputs = BTreeMap::from([
            ("q".to_string(), wide(self.heads, 1.5)),
            ("k".to_string(), wide(self.kv_heads, 1.5)),
            ("v".to_string(), wide(self.kv_heads, 1.0)),
            ("pos".to_string(), int(&[rows], tokens.iter().map(|t| t.1).collect())),
            ("seq".to_string(), int(&[rows], tokens.iter().map(|t| t.0).collect())),
            ("pages".to_string(), pages.clone()),
        ]);
        if self.sinks {
            inputs.insert("sinks".into(), sinks.clone());
        }
        let [sequences, columns] = [pages.shape[0], pages.shape[1]];
        Step { sizes: sizes(rows, sequences, columns, 1), inputs }
    }

    /// The scenario of steps over a cache of `units` pages.
    fn over(&self, label: String, steps: Vec<Step>, alone: Step, units: usize) -> Scenario {
        Scenario {
            label,
            module: self.module(),
            states: vec![StateSpec { name: "kv".into(), decl: self.decl(), units }],
            weights: BTreeMap::new(),
            steps,
            alone: Some(alone),
            tolerance: OpKind::Attention.info().tolerance,
            fused: None,
        }
    }

    /// Prompts of the given lengths, two more tokens for each, then one token each with a padding row between.
    fn scenario(&self, lengths: &[usize]) -> Scenario {
        let label = format!("{}, prompts {lengths:?}", self.label());
        let mut rng = Rng::new(&label);
        let longest = lengths.iter().max().copied().unwrap_or(0) + 3;
        let columns = longest.div_ceil(self.page) + 1;
        // Pages in no order, some never used; the last column is not mapped.
        let mut free: Vec<i32> = (0..(lengths.len() * columns + 3) as i32).collect();
        let units = free.len();
        (1..free.len()).rev().for_each(|i| free.swap(i, rng.below(i + 1)));
        let mut pages = vec![-1; lengths.len() * columns];
        for row in pages.chunks_mut(columns) {
            row[..columns - 1].iter_mut().zip(free.drain(..columns - 1)).for_each(|(p, f)| *p = f);
        }
        // Rows that nobody uses, so that no more tokens decode than there are sequences.
        pages.resize((lengths.len() + 2) * columns, -1);
        let sequences = lengths.len() + 2;
        let pages = int(&[sequences, columns], pages);
        let sinks = rng.floats(DType::BF16, &[self.heads], 2.0);
        let mut step = |tokens: &[(i32, i32)]| self.step(tokens, &mut rng, &sinks, &pages);
        let each = |from: usize, to: usize| -> Vec<(i32, i32)> {
            let of =
                |(s, len): (usize, &usize)| (len + from..len + to).map(|p| (s as i32, p as i32)).collect::<Vec<_>>();
            lengths.iter().enumerate().flat_map(of).collect()
        };
        let prompts: Vec<(i32, i32)> =
            lengths.iter().enumerate().flat_map(|(s, len)| (0..*len).map(move |p| (s as i32, p as i32))).collect();
        let mut decode = each(2, 3);
        // Padding, a position that no page holds, and an unknown sequence write nothing.
        decode.insert(1, (-1, 0));
        decode.push((-1, 7));
        let steps = vec![step(&prompts), step(&each(0, 2)), step(&decode)];
        let alone = first_rows(&steps[2], &["q", "k", "v", "pos", "seq"], "T", 1);
        self.over(label, steps, alone, units)
    }

    /// A prompt of one sequence after the other in chunks, several to a step, one of them split by another; then the first few tokens of a step by
    /// themselves, which is one more way of cutting the first prompt.
    fn chunks(&self, first: usize, others: &[usize]) -> Scenario {
        let label = format!("{}, chunks of {first}, {others:?}", self.label());
        let mut rng = Rng::new(&label);
        let sequences = 1 + others.len();
        let longest = first.max(others.iter().copied().max().unwrap_or(0));
        let columns = longest.div_ceil(self.page) + 1;
        let units = sequences * columns + 3;
        let mut free: Vec<i32> = (0..units as i32).collect();
        (1..free.len()).rev().for_each(|i| free.swap(i, rng.below(i + 1)));
        let pages = int(&[sequences, columns], free[..sequences * columns].to_vec());
        let sinks = rng.floats(DType::BF16, &[self.heads], 2.0);
        let mut step = |tokens: &[(i32, i32)]| self.step(tokens, &mut rng, &sinks, &pages);
        let run = |s: usize, from: usize, to: usize| (from..to).map(move |p| (s as i32, p as i32));
        let cut = first / 3;
        let mut early: Vec<(i32, i32)> = run(0, 0, cut).collect();
        for (i, n) in others.iter().enumerate() {
            early.extend(run(i + 1, 0, n / 2));
            early.push((-1, 0));
        }
        // Padding in front of the rows that come alone would leave nothing of the step's start.
        let mut late: Vec<(i32, i32)> = run(0, cut, first).collect();
        for (i, n) in others.iter().enumerate() {
            late.extend(run(i + 1, n / 2, *n));
        }
        let steps = vec![step(&early), step(&late)];
        let alone = first_rows(&steps[1], &["q", "k", "v", "pos", "seq"], "T", sequences + 4);
        self.over(label, steps, alone, units)
    }
}

/// Values of the symbols.
fn sizes(t: usize, s: usize, p: usize, r: usize) -> Bindings {
    [("T", t), ("S", s), ("P", p), ("R", r)].map(|(k, v)| (k.into(), v as i64)).into()
}

/// A step with the first rows of some inputs only.
fn first_rows(step: &Step, names: &[&str], symbol: &str, rows: usize) -> Step {
    let mut some = step.clone();
    some.sizes.insert(symbol.into(), rows as i64);
    for name in names {
        if let Some(t) = some.inputs.get_mut(*name) {
            *t = head(t, rows);
        }
    }
    some
}

/// `kv_write` and `attention`.
pub fn attention() -> Vec<Scenario> {
    let dtype = DType::BF16;
    let gpt =
        Layer { heads: 64, kv_heads: 8, head_dim: 64, page: 64, window: None, sinks: true, decoded: false, dtype };
    let small = Layer { heads: 4, kv_heads: 2, page: 16, ..gpt };
    let window = Some(128);
    vec![
        gpt.scenario(&[5]),
        gpt.scenario(&[130, 1, 64, 63, 65]),
        Layer { window, ..gpt }.scenario(&[300, 1, 127, 128, 129]),
        small.scenario(&[1]),
        small.scenario(&[15, 16, 17, 40]),
        Layer { window: Some(16), ..small }.scenario(&[50, 3, 15, 16, 17]),
        Layer { window: Some(1), ..small }.scenario(&[20, 1]),
        Layer { window: Some(5), page: 3, ..small }.scenario(&[20, 4]),
        Layer { sinks: false, ..small }.scenario(&[33, 2]),
        Layer { heads: 2, kv_heads: 2, head_dim: 32, ..small }.scenario(&[33, 2]),
        Layer { heads: 6, kv_heads: 2, head_dim: 128, ..small }.scenario(&[33, 2]),
        Layer { heads: 3, kv_heads: 1, head_dim: 80, sinks: false, ..small }.scenario(&[33, 2]),
        Layer { dtype: DType::F32, ..small }.scenario(&[33, 2]),
        gpt.chunks(500, &[200, 30, 3]),
        gpt.chunks(2100, &[]),
        Layer { window, ..gpt }.chunks(700, &[290, 64, 1]),
        // Rows of prompts that get logits: few or many, each as if it were decoded.
        Layer { decoded: true, ..gpt }.chunks(500, &[200, 30, 3]),
        Layer { decoded: true, window, ..gpt }.chunks(300, &[140, 9]),
        Layer { decoded: true, ..small }.scenario(&[15, 16, 17, 40]),
        Layer { window, ..small }.chunks(400, &[290, 64, 1]),
        Layer { heads: 2, ..small }.chunks(300, &[70]),
        Layer { heads: 64, kv_heads: 1, page: 32, sinks: false, ..small }.chunks(150, &[70]),
        Layer { heads: 8, head_dim: 128, page: 128, ..small }.chunks(500, &[140, 9]),
        Layer { heads: 8, head_dim: 128, window, ..small }.chunks(500, &[140, 9]),
        Layer { heads: 6, ..small }.chunks(120, &[70]),
        // Long enough for every way of splitting the keys.
        Layer { heads: 8, kv_heads: 1, ..gpt }.scenario(&[2050, 700]),
    ]
}

/// `count_tokens` and `penalize`.
pub fn counts() -> Vec<Scenario> {
    [7, 1000, 201_088].into_iter().map(counted).collect()
}

fn counted(vocab: usize) -> Scenario {
    let label = format!("penalties over {vocab} tokens");
    let mut rng = Rng::new(&label);
    let decl = StateDecl::Counts { name: "seen".into(), vocab: vocab as i64 };
    let (t, s, r) = (Dim::sym("T"), Dim::sym("S"), Dim::sym("R"));
    let mut b = Build::new(std::slice::from_ref(&decl));
    b.param("seen", decl.ty());
    for name in ["tokens", "pos", "seq"] {
        b.tensor(name, DType::I32, std::slice::from_ref(&t));
    }
    for name in ["slots", "prompt_len"] {
        b.tensor(name, DType::I32, std::slice::from_ref(&s));
    }
    b.tensor("logits", DType::F32, &[r.clone(), Dim::from(vocab)]);
    b.tensor("row_slots", DType::I32, std::slice::from_ref(&r));
    for name in ["repetition", "presence", "frequency"] {
        b.tensor(name, DType::F32, std::slice::from_ref(&r));
    }
    let module = b.body(|m, f| {
        let operands = ["seen", "tokens", "pos", "seq", "slots", "prompt_len"];
        let seen = add(m, f, OpKind::CountTokens, &operands, Attrs::default());
        let mut operands = vec![param(f, "logits"), seen];
        operands.extend(["row_slots", "repetition", "presence", "frequency"].map(|name| param(f, name)));
        let y = add_values(m, f, OpKind::Penalize, operands, Attrs::default());
        vec![y, seen]
    });
    // Three sequences in slots 2, 0 and 3 of 4; prompts of 4, 0 and 9 tokens; tokens repeat, some are outside the vocabulary.
    let (slots, prompts) = ([2, 0, 3], [4, 0, 9]);
    let mut step = |first: usize, count: usize| {
        let rows = 3 * count + 1;
        let (mut tokens, mut pos, mut seq) = (vec![], vec![], vec![]);
        for i in 0..rows {
            let common = [0, vocab as i32 - 1, 3, 3, vocab as i32, -1][rng.below(6)];
            tokens.push(if rng.below(3) == 0 { rng.below(vocab) as i32 } else { common });
            pos.push((first + i / 3) as i32);
            seq.push(if i == rows - 1 { -1 } else { i as i32 % 3 });
        }
        let column = |v: [f32; 4]| super::data::float(DType::F32, &[4], v.to_vec());
        let ints = |v: Vec<i32>| -> Tensor { int(&[v.len()], v) };
        let inputs = BTreeMap::from([
            ("tokens".to_string(), ints(tokens)),
            ("pos".to_string(), ints(pos)),
            ("seq".to_string(), ints(seq)),
            ("slots".to_string(), ints(slots.to_vec())),
            ("prompt_len".to_string(), ints(prompts.to_vec())),
            ("logits".to_string(), rng.floats(DType::F32, &[4, vocab], 3.0)),
            ("row_slots".to_string(), ints(vec![2, 0, 3, -1])),
            ("repetition".to_string(), column([1.3, 1.0, 0.5, 2.0])),
            ("presence".to_string(), column([0.0, 0.7, -0.3, 1.0])),
            ("frequency".to_string(), column([0.1, 0.0, 0.2, 1.0])),
        ]);
        Step { sizes: sizes(rows, 3, 1, 4), inputs }
    };
    let steps = vec![step(0, 9), step(9, 1), step(10, 40)];
    let states = vec![StateSpec { name: "seen".into(), decl, units: 4 }];
    Scenario {
        label,
        module,
        states,
        weights: BTreeMap::new(),
        steps,
        alone: None,
        tolerance: OpKind::Penalize.info().tolerance,
        fused: None,
    }
}
