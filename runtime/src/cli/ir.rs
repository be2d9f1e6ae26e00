//! `gossamer ir` and `gossamer verify`.

use gossamer_ir::verify::{Stage, verify as verify_module};
use gossamer_ir::{Bindings, Module, OpKind, Value, dump, text};
use gossamer_models::step::ENTRY;
use gossamer_passes::buffers::Place;
use gossamer_passes::manager::Pass;
use gossamer_passes::{Options, Plan, bucket, plan};

use super::args::{FormatArg, IrArgs, VerifyArgs};
use super::output::{self, Failure};
use super::pipeline;
use crate::explain::memory;

pub fn ir(args: &IrArgs) -> Result<(), Failure> {
    let module = pipeline::load(&args.model, args.head)?;
    let mut passes = pipeline::passes(&args.passes)?;
    if let Some(after) = &args.after {
        let last = passes.iter().position(|p| p.name == after);
        let Some(last) = last else {
            let known: Vec<_> = passes.iter().map(|p| p.name).collect();
            return Err(Failure::Usage(format!("--after {after} is not in the pipeline ({})", known.join(", "))));
        };
        passes.truncate(last + 1);
    }
    let mut options = pipeline::options(&args.model, &module, &args.pipeline)?;
    if args.memory {
        return memory_table(&module, &passes, &options, args);
    }
    let planned = args.plan.as_deref().map(|sizes| plan_sizes(&module, sizes)).transpose()?;
    if let Some(sizes) = &planned {
        options.sizes = sizes.clone();
    }
    let (module, _) = pipeline::run(&args.model, module, &passes, &options, &args.pipeline)?;
    if let Some(sizes) = &planned {
        return output::text(&render_plan(&plan::plan(&module, ENTRY, sizes)?));
    }
    match args.format {
        FormatArg::Text => output::text(&text::print(&module)),
        FormatArg::Dot => output::text(&dump::dot(&module)),
        FormatArg::Json => output::json(&dump::json(&module)),
        FormatArg::Html => output::text(&dump::html(&module)),
    }
}

/// Memory of one bucket, or of all.
fn memory_table(module: &Module, passes: &[Pass], options: &Options, args: &IrArgs) -> Result<(), Failure> {
    if matches!(args.format, FormatArg::Dot | FormatArg::Html) {
        return Err(Failure::Usage("--memory has no picture; use --format text or json".into()));
    }
    let buckets = match args.pipeline.bucket.as_ref().or(args.pipeline.sizes.as_ref()) {
        Some(name) => vec![(name.clone(), options.sizes.clone())],
        None => memory::buckets(module),
    };
    let (rows, times) = memory::table(module, ENTRY, passes, options, &buckets)?;
    if args.pipeline.trace {
        output::aside(format_args!("{}", times.text(rows.len())));
    }
    match args.format {
        FormatArg::Json => output::json(&memory::json(&rows)),
        _ => output::text(&memory::text(&rows)),
    }
}

pub fn verify(args: &VerifyArgs) -> Result<(), Failure> {
    let mut failed = 0;
    for path in &args.files {
        let module = match pipeline::parse(&path.display().to_string()) {
            Ok(m) => m,
            Err(Failure::Failed(message)) => {
                note!("error: {message}");
                failed += 1;
                continue;
            }
            Err(e) => return Err(e),
        };
        match verify_module(&module, Stage::Tensor) {
            Ok(facts) => {
                for w in &facts.warnings {
                    note!("{}: warning: {w}", path.display());
                }
                output::text(&format!("{}: ok\n", path.display()))?;
            }
            Err(errors) => {
                output::aside(format_args!(
                    "{}",
                    errors.render(Some((&path.display().to_string(), &pipeline::source(path))))
                ));
                failed += 1;
            }
        }
    }
    match failed {
        0 => Ok(()),
        n => {
            note!("{n} of {} files do not verify", args.files.len());
            Err(Failure::Reported)
        }
    }
}

/// The sizes in `--plan T,S,R`.
fn plan_sizes(module: &Module, sizes: &str) -> Result<Bindings, Failure> {
    let numbers: Option<Vec<usize>> =
        sizes.split(',').map(|n| n.trim().parse::<u32>().ok().map(|n| n as usize)).collect();
    let Some([t, s, r]) = numbers.as_deref().and_then(|n| <[usize; 3]>::try_from(n).ok()) else {
        return Err(Failure::Usage(format!("--plan is `{sizes}`, expected three numbers T,S,R")));
    };
    let bound = |name: &str| module.sym(name).map_or(1, |s| s.max as usize);
    Ok(bucket::sizes(t, s, r, bound("C"), bound("P")))
}

/// The plan of a step as text: what is done at load, then each step with its place in memory.
fn render_plan(plan: &Plan) -> String {
    use std::fmt::Write;
    let name = |v: Value| {
        let op = plan.func.graph.op(v.op);
        let sigil = if op.kind == OpKind::Weight { "@" } else { "%" };
        format!("{sigil}{}", op.names[v.result as usize])
    };
    let mut out = String::new();
    let sizes: Vec<String> = plan.sizes.iter().map(|(k, v)| format!("{k} = {v}")).collect();
    let _ = writeln!(out, "; plan for {}", sizes.join(", "));
    let b = &plan.buffers;
    let _ = writeln!(
        out,
        "; {} ops at load, {} a step; arena {} bytes (most alive {}, without sharing {})",
        plan.load.len(),
        plan.steps.len(),
        b.arena_bytes,
        b.live_bytes,
        b.total_bytes
    );
    for (when, ops) in [("load", &plan.load), ("step", &plan.steps)] {
        for id in ops {
            let op = plan.func.graph.op(*id);
            let operands: Vec<String> = op.operands.iter().map(|v| name(*v)).collect();
            for (r, ty) in op.results.iter().enumerate() {
                let v = Value { op: *id, result: r as u16 };
                let place = match b.places.get(&v) {
                    Some(Place::Arena { offset, bytes }) => format!("arena {offset}..{}", offset + bytes),
                    Some(Place::Param(i)) => format!("state of parameter {i}"),
                    Some(Place::Resident(_)) => "resident".to_string(),
                    None => "nowhere".to_string(),
                };
                let _ =
                    writeln!(out, "{when} {} = {} {} : {ty} ; {place}", name(v), op.kind.name(), operands.join(", "));
            }
        }
    }
    out
}
