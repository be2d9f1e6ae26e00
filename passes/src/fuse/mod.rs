//! Fusion: from a graph of ops to a graph of kernels.
//!
//! Owns the e-graph bridge, the rules and the extraction. Must never know devices (costs come in as numbers) or models. One function at a time: a layer's body is rewritten
//! once, however many layers call it. The steps: [`concat`] and
//! [`tile_max`] (rules that are applied once), [`bridge::enter`], saturation with the [`rules`], [`extract`] by cost,
//! [`bridge::leave`].
//!
//! Precondition: a verified module. Postcondition: an equal module in which every op of a step is in a kernel. Never changes a rounding.

pub mod body;
pub mod bridge;
pub mod concat;
pub mod error;
pub mod extract;
pub mod facts;
pub mod price;
pub mod reference;
pub mod report;
pub mod rules;
pub mod saturate;
pub mod term;
pub mod tile_max;

#[cfg(test)]
mod proofs;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use egg::Id;
use gossamer_ir::{Bindings, Func, Kernel, Module, OpKind, Type};

use bridge::Bridged;
pub use error::FuseError;
use extract::{ExtractError, Extraction};
pub use report::{FuncReport, KernelReport, Report};
use saturate::Saturation;
use term::Term;

pub use price::{Point, Priced, price};

use crate::cost::{self, Machine};
use crate::{Options, bucket, rule};

/// A function in a saturated e-graph, ready for extraction at any sizes.
pub struct Space {
    /// The e-graph.
    pub bridged: Bridged,
    /// How it grew.
    pub saturation: Saturation,
    /// The function it was made from, after [`concat`].
    pub func: Func,
}

/// Builds and saturates the e-graph of a function. Sizes do not matter here: one space serves every bucket.
///
/// # Errors
/// A contradiction between types, or a limit: both are bugs in rules, with the numbers to find them.
pub fn space(module: &Arc<Module>, func: &Func, disabled: &[String]) -> Result<Space, FuseError> {
    let enabled: Vec<&'static rules::Rule> =
        rules::RULES.iter().filter(|r| !disabled.iter().any(|d| d == r.info.name)).collect();
    space_with(module, func, &enabled)
}

/// [`space`] with any rules.
///
/// # Errors
/// As [`space`].
pub fn space_with(module: &Arc<Module>, func: &Func, rules: &[&'static rules::Rule]) -> Result<Space, FuseError> {
    let mut func = func.clone();
    if rules.iter().any(|r| r.info.name == concat::NAME) {
        concat::run(module, &mut func)?;
    }
    if rules.iter().any(|r| r.info.name == tile_max::NAME) {
        tile_max::run(module, &mut func)?;
    }
    let mut bridged = bridge::enter(module.clone(), &func);
    let saturation = saturate::run(&mut bridged, &func.name, rules)?;
    Ok(Space { bridged, saturation, func })
}

/// Says why a kernel cannot be made from operands of these types, if so.
#[derive(Clone)]
pub struct Refuse(pub Arc<RefuseFn>);

/// Of a kernel, its operands' types, the declarations and the sizes.
pub type RefuseFn = dyn Fn(&Kernel, &[Type], &Module, &Bindings) -> Option<String> + Send + Sync;

impl std::fmt::Debug for Refuse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Refuse")
    }
}

/// Fuses one function at `point`, without kernels that `refuses` refuses.
///
/// # Errors
/// No template takes an op: which op, and which rule would give it a kernel.
pub fn choose(
    module: &Module,
    space: &Space,
    point: &Point,
    refuses: Option<&Refuse>,
) -> Result<(Func, FuncReport), FuseError> {
    let (sizes, machine) = (point.sizes, point.machine);
    let mut priced = price(space, point);
    let mut refused: Vec<(Arc<Kernel>, String)> = Vec::new();
    loop {
        let found = extract::extract(&priced.choices).map_err(|e| unsatisfiable(space, &priced, e))?;
        let banned = refuses.map_or(vec![], |r| refused_kernels(module, space, &priced, &found, sizes, r));
        if banned.is_empty() {
            let (func, mut report) = build(module, space, &priced, &found, sizes, machine)?;
            report.refused = refused;
            return Ok((func, report));
        }
        // Each round bans at least one kernel, so this ends.
        for (nodes, choices) in priced.nodes.iter().zip(&mut priced.choices.classes) {
            for (node, choice) in nodes.iter().zip(choices) {
                if let Term::Kernel(k, _) = node
                    && banned.iter().any(|(b, _)| b == k)
                {
                    choice.cost = f64::INFINITY;
                }
            }
        }
        let kernels = &space.bridged.graph.analysis.kernels;
        refused.extend(banned.into_iter().map(|(k, why)| (kernels[k as usize].clone(), why)));
    }
}

/// Chosen kernels that cannot be made, and why.
fn refused_kernels(
    module: &Module,
    space: &Space,
    priced: &Priced,
    found: &Extraction,
    sizes: &Bindings,
    refuses: &Refuse,
) -> Vec<(u32, String)> {
    let eg = &space.bridged.graph;
    let mut out: Vec<(u32, String)> = Vec::new();
    for (class, choice) in &found.chosen {
        let Term::Kernel(k, operands) = &priced.nodes[*class][*choice] else { continue };
        let types: Vec<Type> = operands.iter().filter_map(|o| facts::ty(eg, *o).cloned()).collect();
        if !out.iter().any(|(b, _)| b == k)
            && let Some(why) = (refuses.0)(&eg.analysis.kernels[*k as usize], &types, module, sizes)
        {
            out.push((*k, why));
        }
    }
    out
}

/// The function that an extraction stands for.
///
/// # Errors
/// None for a valid extraction.
pub fn build(
    module: &Module,
    space: &Space,
    priced: &Priced,
    found: &Extraction,
    sizes: &Bindings,
    machine: &Machine,
) -> Result<(Func, FuncReport), FuseError> {
    let eg = &space.bridged.graph;
    let index: BTreeMap<Id, usize> = priced.classes.iter().enumerate().map(|(i, id)| (*id, i)).collect();
    let chosen = |id: Id| {
        let class = index.get(&eg.find(id))?;
        found.chosen.get(class).map(|n| priced.nodes[*class][*n].clone())
    };
    let (func, kernels) = bridge::leave(module, &space.func, &space.bridged, &chosen)?;
    let weights = gossamer_ir::verify::weight_only(&func);
    let ops = func.graph.ids().into_iter().filter(|id| func.graph.op(*id).kind == OpKind::Kernel);
    let kernels = kernels
        .into_iter()
        .zip(ops)
        .map(|(k, op)| KernelReport {
            kernel: eg.analysis.kernels[k as usize].clone(),
            history: eg.analysis.history(k),
            terms: cost::of_op(module, &func, op, &|v| weights.contains(&v), sizes)
                .and_then(|shape| cost::cost(&shape, machine))
                .ok(),
        })
        .collect();
    let report = FuncReport {
        name: func.name.clone(),
        saturation: space.saturation.clone(),
        predicted_us: found.total,
        exact: found.exact,
        refused: vec![],
        kernels,
    };
    Ok((func, report))
}

fn unsatisfiable(space: &Space, priced: &Priced, error: ExtractError) -> FuseError {
    let ExtractError::Unsatisfiable { classes, .. } = &error else {
        return FuseError::Extract { func: space.func.name.to_string(), source: error };
    };
    let eg = &space.bridged.graph;
    let op = classes.iter().find_map(|c| {
        priced.nodes[*c]
            .iter()
            .find_map(|n| if let Term::Op(kind, _) = n { Some((*kind, priced.classes[*c])) } else { None })
    });
    match op {
        Some((kind, class)) => {
            let rules: Vec<&str> = rules::RULES
                .iter()
                .filter(|r| matches!(r.how, rules::How::Seed(_)) && r.kinds.contains(&kind))
                .map(|r| r.info.name)
                .collect();
            FuseError::NoKernel {
                func: space.func.name.to_string(),
                op: kind.name(),
                value: eg[class].data.name.as_deref().unwrap_or("v").to_string(),
                rules: rules.join(", "),
            }
        }
        None => FuseError::Extract { func: space.func.name.to_string(), source: error },
    }
}

/// Runs the pass: every function of the module at the sizes of the options; without sizes it does nothing.
///
/// # Errors
/// See [`FuseError`].
pub fn run(module: &mut Module, options: &Options) -> Result<Option<Report>, FuseError> {
    if options.sizes.is_empty() {
        return Ok(None);
    }
    let decls = Arc::new(module.clone());
    let excluded = rule::excluded(&options.disabled_rules, &options.enabled_rules);
    let mut report = Report::default();
    let point = Point {
        sizes: &options.sizes,
        machine: &options.machine,
        prompt_rows: bucket::prompt_rows(&options.sizes),
        excluded: &excluded,
    };
    let fuse = |f: &Func| -> Result<(Func, FuncReport), FuseError> {
        let space = options.spaces.space(&decls, f, &excluded)?;
        match choose(&decls, &space, &point, options.refuses.as_ref()) {
            // What no template of prompts can make is made by the others, whatever the size: code generation refuses shapes of weights, not numbers of rows.
            Err(FuseError::NoKernel { .. } | FuseError::Extract { source: ExtractError::Unsatisfiable { .. }, .. })
                if point.prompt_rows.is_some() =>
            {
                choose(&decls, &space, &Point { prompt_rows: None, ..point }, options.refuses.as_ref())
            }
            chosen => chosen,
        }
    };
    // Functions do not depend on each other. Their order is kept, and with it the first error.
    let fuse = &fuse;
    let done: Vec<_> = std::thread::scope(|threads| {
        let running: Vec<_> = module.funcs.iter().map(|f| threads.spawn(move || fuse(f))).collect();
        running.into_iter().map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    for (f, done) in module.funcs.iter_mut().zip(done) {
        let (fused, part) = done?;
        *f = fused;
        report.funcs.push(part);
    }
    Ok(Some(report))
}

/// Spaces made before, shared between the buckets of a model: equal functions are saturated once. Clones share what they hold.
#[derive(Clone, Default)]
pub struct Spaces {
    made: Arc<Mutex<BTreeMap<String, Arc<Space>>>>,
}

impl Spaces {
    /// True if nothing was worked out yet.
    pub fn is_empty(&self) -> bool {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// The space of `func`, made at its first use.
    ///
    /// # Errors
    /// As [`space`].
    pub fn space(&self, module: &Arc<Module>, func: &Func, disabled: &[String]) -> Result<Arc<Space>, FuseError> {
        let states: Vec<String> = module.states.iter().map(ToString::to_string).collect();
        let key = format!("{}\n{}\n{func}", disabled.join(","), states.join("\n"));
        // A poisoned lock holds a map that is whole: entries are added in one step.
        if let Some(space) = self.made.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(space.clone());
        }
        let made = Arc::new(space(module, func, disabled)?);
        self.made.lock().unwrap_or_else(PoisonError::into_inner).insert(key, made.clone());
        Ok(made)
    }
}

impl std::fmt::Debug for Spaces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} spaces", self.made.lock().unwrap_or_else(PoisonError::into_inner).len())
    }
}
