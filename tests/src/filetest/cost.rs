//! Mode `cost`: what a plan launches and moves.
//!
//! ```text
//! ; test: cost default
//! ; set: T = 1, S = 1, R = 1, layout = mx64
//! func @layer(...) -> (...) {
//!   ; cost: launches <= 6, bytes < 9.0 MB, us < 20
//!   ; cost: kernels = stream attention stream router
//! ```
//!
//! Under a function the figures are those of its own ops, calls left out; in front of all functions those of the whole step (the function `step`, else the last one),
//! with all calls. Where passes put others in the place of a function, those of the one that is called most often. Figures: `launches`; `bytes` moved, and of these `weights`, `state`, `activations` (B, KB, MB, GB; decimal); predicted time `us` and least possible `roofline`; of the whole
//! step also `arena`, `live` and `scratch`. Relations: `=`, `<`, `<=`, `>`, `>=`. `kernels =` lists templates in order, one each kernel. `set:` lines hold for the
//! `cost:` lines after them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gossamer_ir::{Func, Module, OpId, OpKind};
use gossamer_passes::cost::{self, Terms};
use gossamer_passes::plan::plan;
use gossamer_passes::{Options, Plan};
use gossamer_runtime::exec::cuda::bind::lower_steps;
use gossamer_runtime::exec::cuda::share::share_prepared;
use gossamer_runtime::exec::cuda::workspace::Needs;
use gossamer_runtime::explain;

use super::compiled::{Settings, compiled, lowered, steps};
use super::modes::Stop;
use super::{Directive, Failure, Kind, Source};

/// What a function or the whole step takes.
#[derive(Debug)]
struct Figures {
    /// Launches, or why an op has none.
    launches: Result<usize, String>,
    kernels: Vec<String>,
    /// One each kernel.
    terms: Vec<Terms>,
    /// Of the whole step.
    memory: Option<Memory>,
}

/// Memory of a step in bytes.
#[derive(Debug)]
struct Memory {
    arena: u64,
    live: u64,
    /// Scratch, or why an op has none.
    scratch: Result<u64, String>,
}

pub(super) fn run(source: &Source, args: &str) -> Result<(), Stop> {
    let mut settings = Settings::default();
    let mut made: Vec<(Settings, Module, Options)> = Vec::new();
    let mut failures = Vec::new();
    let mut found = false;
    for d in source.of(&[Kind::Set, Kind::Cost]) {
        if d.kind == Kind::Set {
            settings.set(&d.text).map_err(|e| Failure::new(d.line, e))?;
            continue;
        }
        found = true;
        let known = made.iter().position(|(s, ..)| *s == settings);
        let at = match known {
            Some(at) => at,
            None => {
                let (module, options) = compiled(source, "cost", args, &settings)?;
                made.push((settings.clone(), module, options));
                made.len() - 1
            }
        };
        let (_, module, options) = &made[at];
        failures.extend(check(d, module, options).err().map(|e| Failure::new(d.line, e)));
    }
    if !found {
        failures.push(Failure::new(0, "has no `; cost:` line"));
    }
    if failures.is_empty() { Ok(()) } else { Err(Stop::Failed(failures)) }
}

fn check(d: &Directive, module: &Module, options: &Options) -> Result<(), String> {
    let figures = match &d.func {
        Some(name) => {
            let f =
                after_passes(module, name).ok_or_else(|| format!("there is no function @{name} after the passes"))?;
            let (fixed, run) = steps(f);
            let made: Result<Vec<_>, String> =
                run.iter().map(|id| lowered(module, f, *id, &options.sizes).map(Arc::new)).collect();
            let counts = made.map(|mut made| {
                share_prepared(f, &run, &mut made);
                made.iter().map(|l| l.count()).collect()
            });
            of_ops(module, f, &run, &fixed, counts, options)?
        }
        None => {
            let entry = explain::entry(module).ok_or("the module has no function")?;
            let p = plan(module, entry, &options.sizes).map_err(|e| e.to_string())?;
            of_plan(&p, options)?
        }
    };
    d.text.split(',').try_for_each(|claim| holds(claim.trim(), &figures))
}

/// The function, or of those that passes made of it (`name.suffix`) the one that is called most often.
fn after_passes<'m>(module: &'m Module, name: &str) -> Option<&'m Func> {
    let calls = |callee: &str| -> usize {
        let ops = module.funcs.iter().flat_map(|f| f.graph.ids().into_iter().map(move |id| f.graph.op(id)));
        ops.filter(|op| op.kind == OpKind::Call && op.attrs.word("callee") == callee).count()
    };
    let made = module.funcs.iter().filter(|f| f.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')));
    // Of equals the first.
    module.func(name).or_else(|| made.rev().max_by_key(|f| calls(&f.name)))
}

/// Of some ops; `fixed` are weights and ops that are done at load, `counts` the launches of each op, or why one has none.
fn of_ops(
    module: &Module,
    f: &Func,
    ops: &[OpId],
    fixed: &[OpId],
    counts: Result<Vec<usize>, String>,
    options: &Options,
) -> Result<Figures, String> {
    let fixed: BTreeSet<OpId> = fixed.iter().copied().collect();
    let mut figures = Figures { launches: Ok(0), kernels: vec![], terms: vec![], memory: None };
    figures.launches = counts.clone().map(|counts| counts.iter().sum());
    for (i, id) in ops.iter().enumerate() {
        let op = f.graph.op(*id);
        // A view.
        if counts.as_ref().is_ok_and(|counts| counts[i] == 0) {
            continue;
        }
        let kernel = op.attrs.kernel();
        figures.kernels.push(kernel.map_or(op.kind.name().to_string(), |k| k.template().to_string()));
        let shape = cost::of_op(module, f, *id, &|v| fixed.contains(&v.op), &options.sizes);
        let terms = shape.and_then(|shape| cost::cost(&shape, &options.machine));
        figures.terms.push(terms.map_err(|e| e.to_string())?);
    }
    Ok(figures)
}

fn of_plan(p: &Plan, options: &Options) -> Result<Figures, String> {
    let weights = p.func.graph.ids().into_iter().filter(|id| p.func.graph.op(*id).kind == OpKind::Weight);
    let fixed: Vec<OpId> = weights.chain(p.load.iter().copied()).collect();
    let lowered = lower_steps(p, &BTreeMap::new()).map_err(|e| e.to_string());
    let counts = lowered.map(|l| l.iter().map(|l| l.count()).collect());
    let figures = of_ops(&p.decls, &p.func, &p.steps, &fixed, counts, options)?;
    let scratch = Needs::of(p).map(|n| n.scratch).map_err(|e| e.to_string());
    let memory = Memory { arena: p.buffers.arena_bytes, live: p.buffers.live_bytes, scratch };
    Ok(Figures { memory: Some(memory), ..figures })
}

/// Checks `launches <= 6`.
fn holds(claim: &str, figures: &Figures) -> Result<(), String> {
    let bad = || format!("`{claim}` is not a figure, a relation (= < <= > >=) and a value");
    let start = claim.find(['=', '<', '>']).ok_or_else(bad)?;
    let (name, rest) = (claim[..start].trim(), &claim[start..]);
    let relation = ["<=", ">=", "=", "<", ">"].into_iter().find(|r| rest.starts_with(r)).ok_or_else(bad)?;
    let wanted = rest[relation.len()..].trim();
    let list = || format!("; the kernels are: {}", figures.kernels.join(" "));
    if name == "kernels" {
        let want: Vec<&str> = wanted.split_whitespace().collect();
        return match relation == "=" && want == figures.kernels {
            true => Ok(()),
            false => Err(format!("`{claim}` does not hold{}", list())),
        };
    }
    let value = figure(name, figures)?;
    let limit = number(wanted).ok_or_else(bad)?;
    let true_ = match relation {
        "<=" => value <= limit,
        ">=" => value >= limit,
        "<" => value < limit,
        ">" => value > limit,
        _ => (value - limit).abs() <= 1e-9 * limit.abs(),
    };
    match true_ {
        true => Ok(()),
        false => Err(format!("{name} is {value}, expected {relation} {wanted}{}", list())),
    }
}

fn figure(name: &str, figures: &Figures) -> Result<f64, String> {
    let sum = |of: &dyn Fn(&Terms) -> f64| Ok(figures.terms.iter().map(of).sum());
    let memory = |of: &dyn Fn(&Memory) -> Result<u64, String>| {
        let all = figures.memory.as_ref();
        let all =
            all.ok_or_else(|| format!("`{name}` is known of a whole step; move the line in front of all functions"))?;
        of(all).map(|n| n as f64)
    };
    match name {
        "launches" => figures.launches.clone().map(|n| n as f64),
        "bytes" => sum(&|t| t.bytes.total()),
        "weights" => sum(&|t| t.bytes.weights),
        "state" => sum(&|t| t.bytes.state),
        "activations" => sum(&|t| t.bytes.read + t.bytes.written),
        "us" => sum(&|t| t.total_us),
        "roofline" => sum(&|t| t.roofline_us),
        "arena" => memory(&|m| Ok(m.arena)),
        "live" => memory(&|m| Ok(m.live)),
        "scratch" => memory(&|m| m.scratch.clone()),
        _ => Err(format!(
            "`{name}` is unknown; known: launches, kernels, bytes, weights, state, activations, us, roofline, arena, live, scratch"
        )),
    }
}

/// `9.0 MB`, `6`.
fn number(text: &str) -> Option<f64> {
    let units = [("GB", 1e9), ("MB", 1e6), ("KB", 1e3), ("us", 1.0), ("B", 1.0)];
    let (digits, scale) =
        units.into_iter().find_map(|(unit, scale)| Some((text.strip_suffix(unit)?, scale))).unwrap_or((text, 1.0));
    digits.trim().parse::<f64>().ok().filter(|x| x.is_finite()).map(|x| x * scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures() -> Figures {
        Figures { launches: Ok(2), kernels: vec!["stream".into(), "router".into()], terms: vec![], memory: None }
    }

    #[test]
    fn claims() {
        for good in ["launches = 2", "launches <= 2", "launches < 3", "launches>1", "kernels = stream  router"] {
            assert_eq!(holds(good, &figures()), Ok(()), "{good}");
        }
        let error = |claim| holds(claim, &figures()).unwrap_err();
        assert_eq!(error("launches > 2"), "launches is 2, expected > 2; the kernels are: stream router");
        assert_eq!(
            error("kernels = router stream"),
            "`kernels = router stream` does not hold; the kernels are: stream router"
        );
        assert!(error("launches").contains("is not a figure, a relation"));
        assert!(error("launches = many").contains("is not a figure, a relation"));
        assert!(error("speed = 2").contains("`speed` is unknown; known: launches"));
        assert!(error("arena < 1 MB").contains("of a whole step"));
        assert_eq!(
            (number("9.5 MB"), number("2KB"), number("7"), number("x")),
            (Some(9.5e6), Some(2e3), Some(7.0), None)
        );
    }
}
