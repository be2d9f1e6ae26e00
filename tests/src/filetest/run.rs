//! Mode `run`: the functions of a file on the GPU against the interpreter.
//!
//! Every `eval:` line is run on its arguments; what it says about results is left to mode `eval`. Arguments and settings are those of mode `eval`; a function that
//! is run must not read weights (`@w`) of the module, but may have them as parameters. Results agree if they are within the tolerance of the op table; memory is
//! poisoned before, and a second run must give the same bits.

use std::collections::BTreeMap;

use gossamer_ir::interp::Tensor;
use gossamer_ir::{Func, Module, OpKind, Type};
use gossamer_runtime::exec::StateSpec;

use super::compiled::{Settings as Sizes, compiled};
use super::eval::{Scan, Settings, Spec, set, tensor_of};
use super::modes::Stop;
use super::{Failure, Kind, Source};
use crate::gpu::{Bench, ENTRY, Scenario, Step};

pub(super) fn run(source: &Source, args: &str) -> Result<(), Stop> {
    let mut settings = Settings::default();
    let mut sizes = Sizes::default();
    let mut scenarios = Vec::new();
    for d in source.of(&[Kind::Set, Kind::Eval]) {
        let fail = |e: String| Failure::new(d.line, e);
        if d.kind == Kind::Set {
            set(&mut settings, &d.text).map_err(fail)?;
            sizes.set(&d.text).map_err(fail)?;
            continue;
        }
        let (module, _) = compiled(source, "run", args, &sizes)?;
        scenarios.push((
            d.line,
            scenario(&module, &settings, &d.text, &format!("{}:{}", source.path, d.line)).map_err(fail)?,
        ));
    }
    if scenarios.is_empty() {
        return Err(Failure::new(0, "has no `; eval:` line").into());
    }
    // Built in any case, so that a mistake shows on every machine; `open` says why there is no GPU, or fails if there must be one.
    let Some(mut bench) = Bench::open() else { return Ok(()) };
    let failures: Vec<Failure> =
        scenarios.iter().filter_map(|(line, s)| Some(Failure::new(*line, bench.run(s).err()?))).collect();
    if failures.is_empty() { Ok(()) } else { Err(Stop::Failed(failures)) }
}

fn scenario(module: &Module, settings: &Settings, text: &str, label: &str) -> Result<Scenario, String> {
    let mut scan = Scan { rest: text };
    scan.expect("@")?;
    let name = scan.word()?;
    scan.expect("(")?;
    let args = scan.list(")")?;
    let func = module.func(name).ok_or_else(|| format!("there is no function @{name}"))?;
    if func.params.len() != args.len() {
        return Err(format!("@{name} has {} parameters, found {} arguments", func.params.len(), args.len()));
    }
    let mut step = Step { sizes: settings.sizes.clone(), inputs: Default::default() };
    let mut states = Vec::new();
    for (spec, param) in args.iter().zip(&func.params) {
        match (spec, &param.ty) {
            (Spec::New(n), Type::State(_, decl)) => {
                let decl = module.state(decl).ok_or("state is not declared")?.clone();
                states.push(StateSpec { name: param.name.to_string(), decl, units: *n });
            }
            _ => {
                let tensor = tensor_of(spec, &param.ty, &settings.sizes);
                let tensor: Tensor = tensor.map_err(|e| format!("argument `%{}`: {e}", param.name))?;
                step.inputs.insert(param.name.to_string(), tensor);
            }
        }
    }
    let module = alone(module, func)?;
    let tolerance = tolerance(&module);
    Ok(Scenario {
        label: label.to_string(),
        module,
        states,
        weights: BTreeMap::new(),
        steps: vec![step],
        alone: None,
        tolerance,
        fused: None,
    })
}

/// The module with `func` as the function that scenarios run.
fn alone(module: &Module, func: &Func) -> Result<Module, String> {
    let flat = gossamer_passes::inline::inline(module, &func.name).map_err(|e| e.to_string())?;
    let mut flat = flat.ok_or_else(|| format!("there is no function @{}", func.name))?;
    if let Some(id) = flat.graph.ids().into_iter().find(|id| flat.graph.op(*id).kind == OpKind::Weight) {
        let name = flat.graph.op(id).attrs.word("name");
        return Err(format!("@{} reads the weight @{name}; make it a parameter to run the function", func.name));
    }
    flat.name = ENTRY.into();
    Ok(Module { funcs: vec![flat], ..module.clone() })
}

/// The greatest tolerance of the ops of the module, those inside kernels included.
fn tolerance(module: &Module) -> f32 {
    let ops = module.funcs.iter().flat_map(|f| f.graph.ids().into_iter().map(move |id| f.graph.op(id)));
    let kinds = ops.flat_map(|op| match op.attrs.kernel() {
        Some(k) => k.ops().map(|(_, _, op)| op.kind).collect(),
        None => vec![op.kind],
    });
    kinds.map(|k| k.info().tolerance).fold(0.0, f32::max)
}
