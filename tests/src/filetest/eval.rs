//! Mode `eval`: functions run with the reference interpreter.
//!
//! ```text
//! ; set: T = 2, rounding = typed, @w = [1, 2, 3]
//! ; eval: @f([1.5, -2], random(7)) = [[0.25, 1], [2, nan]], _ within 1e-4
//! ; eval: @f(random(1), new(4)) = @g
//! ```
//!
//! A value is a number, nested lists of numbers in row-major order, `all(x)`, `iota`, `random(seed)` (floats in -1..1, i32 in 0..4) or
//! `random(seed, low, high)`; state is `new(n)` with n pages or slots. As a result, `_` matches anything, and `@g` alone asks for the results of
//! another function on the same arguments. mxfp4 values are those of its codes, or random. Floats agree if they differ by no more than
//! `within` (default 1e-6) times the greater of 1 and the expected value; other types must be equal. `set:` holds for the evaluations
//! after it. A weight that is not set is random, seeded by its name.

use std::collections::BTreeMap;

use gossamer_ir::interp::{Datum, EvalError, Rounding, StateStore, Tensor, run_func, tensor};
use gossamer_ir::{Bindings, DType, Func, Module, Type};

use super::modes::{Stop, module};
use super::{Failure, Kind, Source};

/// How a value is given.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Spec {
    List(Vec<f64>),
    All(f64),
    Iota,
    Random(u64, Option<(f64, f64)>),
    New(usize),
    Any,
}

/// What an evaluation must give.
enum Want {
    Values(Vec<Spec>),
    SameAs(String),
}

pub(super) struct Settings {
    pub sizes: Bindings,
    rounding: Rounding,
    weights: BTreeMap<String, Spec>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { sizes: Bindings::new(), rounding: Rounding::Exact, weights: BTreeMap::new() }
    }
}

pub(super) fn run(source: &Source, args: &str) -> Result<(), Stop> {
    if !args.is_empty() {
        return Err(Failure::new(1, format!("mode `eval` takes no arguments, found `{args}`")).into());
    }
    let module = module(source)?;
    let mut settings = Settings::default();
    let mut failures = Vec::new();
    for d in source.of(&[Kind::Set, Kind::Eval]) {
        let done = match d.kind {
            Kind::Set => set(&mut settings, &d.text),
            _ => eval(&module, &settings, &d.text),
        };
        failures.extend(done.err().map(|message| Failure::new(d.line, message)));
    }
    if source.of(&[Kind::Eval]).is_empty() {
        failures.push(Failure::new(0, "has no `; eval:` line"));
    }
    if failures.is_empty() { Ok(()) } else { Err(Stop::Failed(failures)) }
}

pub(super) fn set(settings: &mut Settings, text: &str) -> Result<(), String> {
    let mut scan = Scan { rest: text };
    loop {
        if scan.eat("@") {
            let name = scan.word()?;
            scan.expect("=")?;
            settings.weights.insert(name.into(), scan.spec()?);
        } else {
            let name = scan.word()?;
            scan.expect("=")?;
            match name {
                "rounding" => {
                    settings.rounding = match scan.word()? {
                        "typed" => Rounding::Typed,
                        "exact" => Rounding::Exact,
                        other => return Err(format!("rounding is `{other}`, expected typed or exact")),
                    }
                }
                // For the modes that generate code.
                "layout" => drop(scan.word()?),
                _ => drop(settings.sizes.insert(name.into(), scan.number()? as i64)),
            }
        }
        if !scan.eat(",") {
            return scan.end();
        }
    }
}

fn eval(module: &Module, settings: &Settings, text: &str) -> Result<(), String> {
    let mut scan = Scan { rest: text };
    scan.expect("@")?;
    let name = scan.word()?;
    scan.expect("(")?;
    let args = scan.list(")")?;
    scan.expect("=")?;
    let want = match scan.eat("@") {
        true => Want::SameAs(scan.word()?.into()),
        false => {
            let mut values = vec![scan.spec()?];
            while scan.eat(",") {
                values.push(scan.spec()?);
            }
            Want::Values(values)
        }
    };
    let tolerance = if scan.eat("within") { scan.number()? } else { 1e-6 };
    scan.end()?;

    let (got, func) = call(module, settings, name, &args)?;
    let types = func.result_types();
    match want {
        Want::SameAs(other) => {
            let (expected, _) = call(module, settings, &other, &args)?;
            if expected.len() != got.len() {
                return Err(format!("@{name} has {} results, @{other} {}", got.len(), expected.len()));
            }
            got.iter().zip(&expected).enumerate().try_for_each(|(i, (a, b))| match (a, b) {
                (Datum::Tensor(a), Datum::Tensor(b)) => compare(i, a, b, tolerance),
                _ => Ok(()),
            })
        }
        Want::Values(specs) => {
            if specs.len() != got.len() {
                return Err(format!("@{name} has {} results, expected {}", got.len(), specs.len()));
            }
            for (i, ((spec, got), ty)) in specs.iter().zip(&got).zip(&types).enumerate() {
                let Datum::Tensor(got) = got else {
                    match spec {
                        Spec::Any => continue,
                        _ => return Err(format!("result {i} is state, expected `_`")),
                    }
                };
                if *spec != Spec::Any {
                    let want = tensor_of(spec, ty, &settings.sizes)
                        .map_err(|e| format!("result {i}: {e}; found {}", show(got)))?;
                    compare(i, got, &want, tolerance)?;
                }
            }
            Ok(())
        }
    }
}

/// Runs a function on arguments of its parameter types.
fn call<'m>(
    module: &'m Module,
    settings: &Settings,
    name: &str,
    args: &[Spec],
) -> Result<(Vec<Datum>, &'m Func), String> {
    let func = module.func(name).ok_or_else(|| format!("there is no function @{name}"))?;
    if func.params.len() != args.len() {
        return Err(format!("@{name} has {} parameters, found {} arguments", func.params.len(), args.len()));
    }
    let mut states = Vec::new();
    let mut data = Vec::new();
    for (spec, param) in args.iter().zip(&func.params) {
        let datum = match (spec, &param.ty) {
            (Spec::New(n), Type::State(_, decl)) => {
                let decl = module.state(decl).ok_or("state is not declared")?;
                states.push(StateStore::for_decl(decl, *n));
                Datum::State(states.len() - 1)
            }
            _ => Datum::Tensor(
                tensor_of(spec, &param.ty, &settings.sizes).map_err(|e| format!("argument `%{}`: {e}", param.name))?,
            ),
        };
        data.push(datum);
    }
    let weights = |name: &str| {
        let fail = |message| EvalError::Weight { name: name.into(), message };
        let decl = module.weight(name).ok_or_else(|| fail("is not declared".into()))?;
        let seed = name.bytes().fold(7u64, |h, b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
        let spec = settings.weights.get(name).cloned().unwrap_or(Spec::Random(seed, None));
        tensor_of(&spec, &Type::Tensor(decl.ty.clone()), &settings.sizes).map_err(fail)
    };
    let out = run_func(module, name, data, &weights, &mut states, &settings.sizes, settings.rounding);
    Ok((out.map_err(|e| e.to_string())?, func))
}

pub(super) fn tensor_of(spec: &Spec, ty: &Type, sizes: &Bindings) -> Result<Tensor, String> {
    let t = ty.as_tensor().ok_or_else(|| format!("{ty} is given as `new(n)`"))?;
    let shape = t.shape(sizes).map_err(|s| format!("symbol `{s}` has no value; add `; set: {s} = ...`"))?;
    let shape: Vec<usize> = shape.iter().map(|n| usize::try_from(*n).unwrap_or(0)).collect();
    let n: usize = shape.iter().product();
    let default = if t.dtype == DType::I32 { (0.0, 4.0) } else { (-1.0, 1.0) };
    let values: Vec<f64> = match spec {
        Spec::List(v) if v.len() == n => v.clone(),
        Spec::List(v) => return Err(format!("{t} has {n} elements, found {}", v.len())),
        Spec::All(x) => vec![*x; n],
        Spec::Iota => (0..n).map(|i| i as f64).collect(),
        Spec::Random(seed, _) if t.dtype == DType::Mxfp4 => {
            let codes = (0..n / 2).map(|i| noise(*seed, i as u64) as u8).collect();
            let scales = (0..n / 32).map(|i| 120 + (noise(!*seed, i as u64) % 8) as u8).collect();
            return Tensor::mxfp4(&shape, codes, scales).map_err(|e| e.to_string());
        }
        Spec::Random(seed, range) => {
            let (low, high) = range.unwrap_or(default);
            let unit = |i| (noise(*seed, i as u64) >> 11) as f64 / (1u64 << 53) as f64;
            (0..n).map(|i| low + (high - low) * unit(i)).collect()
        }
        Spec::New(_) | Spec::Any => return Err(format!("{t} cannot be given as `new` or `_`")),
    };
    let made = match t.dtype {
        DType::F32 | DType::BF16 | DType::F16 => {
            Tensor::float(t.dtype, &shape, values.iter().map(|x| *x as f32).collect())
        }
        DType::I32 => Tensor::i32(&shape, values.iter().map(|x| x.floor() as i32).collect()),
        DType::U8 => Tensor::u8(&shape, values.iter().map(|x| *x as u8).collect()),
        DType::Bool => Tensor::bool(&shape, &values.iter().map(|x| *x > 0.0).collect::<Vec<_>>()),
        DType::Mxfp4 => {
            let code = |x: &f64| tensor::E2M1.iter().position(|c| f64::from(*c) == *x);
            let codes: Option<Vec<usize>> = values.iter().map(code).collect();
            let codes = codes.ok_or("mxfp4 values are 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives")?;
            let bytes = codes.chunks(2).map(|c| (c[0] | c.get(1).unwrap_or(&0) << 4) as u8).collect();
            Tensor::mxfp4(&shape, bytes, vec![127; n / 32])
        }
    };
    made.map_err(|e| e.to_string())
}

/// SplitMix64, so that a seed means the same numbers forever.
fn noise(seed: u64, i: u64) -> u64 {
    let mut z =
        seed.wrapping_mul(0x2545_f491_4f6c_dd1d).wrapping_add(i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn compare(result: usize, got: &Tensor, want: &Tensor, tolerance: f64) -> Result<(), String> {
    if got.dtype != want.dtype || got.shape != want.shape {
        return Err(format!("result {result} is {got}, expected {want}"));
    }
    let same = |a: f64, b: f64| match got.dtype.is_float() {
        true => a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= tolerance * b.abs().max(1.0),
        false => a == b,
    };
    let (a, b) = (elements(got), elements(want));
    match a.iter().zip(&b).position(|(a, b)| !same(*a, *b)) {
        None => Ok(()),
        Some(i) => Err(format!(
            "result {result} differs at element {i}: found {}, expected {}; all of it: {}",
            a[i],
            b[i],
            show(got)
        )),
    }
}

fn elements(t: &Tensor) -> Vec<f64> {
    match (t.as_i32(), t.as_u8()) {
        (Some(v), _) => v.iter().map(|x| f64::from(*x)).collect(),
        (_, Some(v)) => v.iter().map(|x| f64::from(*x)).collect(),
        _ => t.to_f32().iter().map(|x| f64::from(*x)).collect(),
    }
}

fn show(t: &Tensor) -> String {
    let all = elements(t);
    let shown: Vec<String> =
        all.iter().take(64).map(|x| if t.dtype.is_float() { (*x as f32).to_string() } else { x.to_string() }).collect();
    format!("[{}{}]", shown.join(", "), if all.len() > 64 { ", ..." } else { "" })
}

/// Reads the little language of `eval:` and `set:`.
pub(super) struct Scan<'a> {
    pub rest: &'a str,
}

impl<'a> Scan<'a> {
    fn eat(&mut self, what: &str) -> bool {
        self.rest = self.rest.trim_start();
        let found = self.rest.strip_prefix(what);
        self.rest = found.unwrap_or(self.rest);
        found.is_some()
    }

    pub(super) fn expect(&mut self, what: &str) -> Result<(), String> {
        match self.eat(what) {
            true => Ok(()),
            false => Err(format!("expected `{what}` at `{}`", self.rest)),
        }
    }

    fn end(&mut self) -> Result<(), String> {
        match self.rest.trim() {
            "" => Ok(()),
            rest => Err(format!("expected the end of the line at `{rest}`")),
        }
    }

    fn take(&mut self, what: &str, is: impl Fn(char) -> bool) -> Result<&'a str, String> {
        self.rest = self.rest.trim_start();
        let end = self.rest.find(|c| !is(c)).unwrap_or(self.rest.len());
        match end {
            0 => Err(format!("expected {what} at `{}`", self.rest)),
            _ => {
                let (word, rest) = self.rest.split_at(end);
                self.rest = rest;
                Ok(word)
            }
        }
    }

    pub(super) fn word(&mut self) -> Result<&'a str, String> {
        self.take("a name", |c| c.is_ascii_alphanumeric() || c == '_' || c == '.')
    }

    fn number(&mut self) -> Result<f64, String> {
        let text = self.take("a number", |c| c.is_ascii_alphanumeric() || "+-._".contains(c))?;
        text.parse().map_err(|_| format!("`{text}` is not a number"))
    }

    /// Specs up to `close`.
    pub(super) fn list(&mut self, close: &str) -> Result<Vec<Spec>, String> {
        let mut out = Vec::new();
        if self.eat(close) {
            return Ok(out);
        }
        loop {
            out.push(self.spec()?);
            if self.eat(close) {
                return Ok(out);
            }
            self.expect(",")?;
        }
    }

    fn spec(&mut self) -> Result<Spec, String> {
        if self.eat("random(") {
            let seed = self.number()? as u64;
            let range = match self.eat(",") {
                false => None,
                true => {
                    let low = self.number()?;
                    self.expect(",")?;
                    Some((low, self.number()?))
                }
            };
            self.expect(")")?;
            return Ok(Spec::Random(seed, range));
        }
        for (head, make) in [("all(", Spec::All as fn(f64) -> Spec), ("new(", |n| Spec::New(n as usize))] {
            if self.eat(head) {
                let n = self.number()?;
                self.expect(")")?;
                return Ok(make(n));
            }
        }
        if self.eat("iota") {
            return Ok(Spec::Iota);
        }
        if self.eat("_") {
            return Ok(Spec::Any);
        }
        let mut values = Vec::new();
        self.numbers(&mut values)?;
        Ok(Spec::List(values))
    }

    /// A number or nested lists of them.
    fn numbers(&mut self, out: &mut Vec<f64>) -> Result<(), String> {
        if !self.eat("[") {
            out.push(self.number()?);
            return Ok(());
        }
        if self.eat("]") {
            return Ok(());
        }
        loop {
            self.numbers(out)?;
            if self.eat("]") {
                return Ok(());
            }
            self.expect(",")?;
        }
    }
}
