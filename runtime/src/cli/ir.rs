//! `gossamer ir` and `gossamer verify`.

use std::path::Path;

use gossamer_ir::verify::{Stage, verify as verify_module};
use gossamer_ir::{Module, OpKind, Value, dump, text};
use gossamer_models::config::ModelConfig;
use gossamer_models::step::{ENTRY, Head, StepOptions};
use gossamer_passes::buffers::Place;
use gossamer_passes::manager::{self, Pass, Trace, compile_with};
use gossamer_passes::{Options, PassError, Plan, bucket, plan};

use super::args::{FormatArg, HeadArg, IrArgs, VerifyArgs};
use super::output::{self, Failure};
use crate::checkpoint::inspect;
use crate::session::PAGE;

pub fn ir(args: &IrArgs) -> Result<(), Failure> {
    let module = load(&args.model, args.head)?;
    let mut passes = manager::parse_pipeline(&args.passes).map_err(|e| Failure::Usage(e.to_string()))?;
    if let Some(after) = &args.after {
        let last = passes.iter().position(|p| p.name == after);
        let Some(last) = last else {
            let known: Vec<_> = passes.iter().map(|p| p.name).collect();
            return Err(Failure::Usage(format!("--after {after} is not in the pipeline ({})", known.join(", "))));
        };
        passes.truncate(last + 1);
    }
    let (module, trace) = run_passes(module, &passes, args)?;
    if args.trace {
        output::aside(format_args!("{}", trace.text()));
    }
    if let Some(sizes) = &args.plan {
        return output::text(&plan_text(&module, sizes)?);
    }
    match args.format {
        FormatArg::Text => output::text(&text::print(&module)),
        FormatArg::Dot => output::text(&dump::dot(&module)),
        FormatArg::Json => output::json(&dump::json(&module)),
    }
}

fn run_passes(module: Module, passes: &[Pass], args: &IrArgs) -> Result<(Module, Trace), Failure> {
    let mxfp4_layout = args.gpu_layouts.then(|| crate::exec::MXFP4_LAYOUT.into());
    let options = Options { mxfp4_layout, ..Options::default() };
    let mut dumped: Result<(), Failure> = Ok(());
    let mut dump = |number: usize, name: &str, module: &Module| {
        if let (Some(dir), true) = (&args.dump_dir, dumped.is_ok()) {
            dumped = write(dir, &format!("{number:02}-{name}.gir"), text::print(module).as_bytes());
        }
    };
    if let Some(dir) = &args.dump_dir {
        std::fs::create_dir_all(dir).map_err(|e| Failure::Failed(format!("{}: cannot be made: {e}", dir.display())))?;
    }
    let (module, trace) = compile_with(module, passes, &options, &mut dump).map_err(|e| match e {
        // Every error of the verifier, a line each.
        PassError::Verify { when, errors } => {
            let path = Path::new(&args.model);
            let text = (when == "input" && path.is_file()).then(|| source(path));
            output::aside(format_args!("{}", errors.render(text.as_deref().map(|t| (args.model.as_str(), t)))));
            Failure::Failed(format!("{when}: the module breaks the verifier's rules in {} places", errors.errors.len()))
        }
        e => e.into(),
    })?;
    dumped?;
    if let Some(dir) = &args.dump_dir {
        write(dir, "trace.json", format!("{:#}\n", trace.json()).as_bytes())?;
    }
    Ok((module, trace))
}

fn write(dir: &Path, name: &str, contents: &[u8]) -> Result<(), Failure> {
    output::file(&dir.join(name), contents)
}

/// The module that MODEL or FILE names.
fn load(model: &str, head: HeadArg) -> Result<Module, Failure> {
    let path = Path::new(model);
    if path.extension().is_some_and(|e| e == "gir") || path.is_file() {
        return parse(path);
    }
    let config = config(model)?;
    let head = match head {
        HeadArg::Greedy => Head::Greedy,
        HeadArg::Sample => Head::Sample,
        HeadArg::Full => Head::Full,
        HeadArg::Logits => Head::Logits { hidden: false },
    };
    let options = StepOptions { head, max_tokens: 8192, max_seqs: 256, context: config.context(), page: PAGE };
    Ok(gossamer_models::build(&config, &options)?.module)
}

/// The configuration that MODEL names: a folder's, `demo`'s or a preset's.
pub fn config(model: &str) -> Result<ModelConfig, Failure> {
    let found = inspect::inspect(model)?;
    let json = found.config.to_string();
    let parsed = ModelConfig::parse(&json, "config.json").map_err(Failure::from_error)?;
    Ok(parsed.config)
}

fn parse(path: &Path) -> Result<Module, Failure> {
    let source = output::read_text(path)?;
    text::parse(&path.display().to_string(), &source).map_err(|errors| {
        output::aside(format_args!("{}", errors.render()));
        Failure::Failed(errors.to_string())
    })
}

/// The text behind a module that was read from a file, for messages that show its lines.
fn source(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

pub fn verify(args: &VerifyArgs) -> Result<(), Failure> {
    let mut failed = 0;
    for path in &args.files {
        let module = match parse(path) {
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
                output::aside(format_args!("{}", errors.render(Some((&path.display().to_string(), &source(path))))));
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

/// The plan of a step as text: what is done at load, then each step with its place in memory.
fn plan_text(module: &Module, sizes: &str) -> Result<String, Failure> {
    let numbers: Option<Vec<usize>> =
        sizes.split(',').map(|n| n.trim().parse::<u32>().ok().map(|n| n as usize)).collect();
    let Some([t, s, r]) = numbers.as_deref().and_then(|n| <[usize; 3]>::try_from(n).ok()) else {
        return Err(Failure::Usage(format!("--plan is `{sizes}`, expected three numbers T,S,R")));
    };
    let bound = |name: &str| module.sym(name).map_or(1, |s| s.max as usize);
    let plan = plan::plan(module, ENTRY, &bucket::sizes(t, s, r, bound("C"), bound("P")))?;
    Ok(render_plan(&plan))
}

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
