//! `gossamer opt` and `gossamer diff`: passes over text, and the structural difference of two modules.

use gossamer_ir::diff::diff as difference;
use gossamer_ir::{Module, text};
use gossamer_passes::{manager, rule};

use super::args::{DiffArgs, DiffFormatArg, OptArgs, PipelineArgs};
use super::output::{self, Failure};
use super::pipeline;

pub fn opt(args: &OptArgs) -> Result<(), Failure> {
    if args.list_rules {
        return output::text(&rule::list());
    }
    if args.list_passes {
        return output::text(&manager::list());
    }
    let passes = pipeline::passes(&args.passes)?;
    let file = args.file.as_deref().unwrap_or("-");
    let module = pipeline::parse(file)?;
    let options = pipeline::options("-", &module, &args.pipeline)?;
    let (module, _) = pipeline::run(file, module, &passes, &options, &args.pipeline)?;
    output::text(&text::print(&module))
}

pub fn diff(args: &DiffArgs) -> Result<(), Failure> {
    for (option, given) in [("--passes", args.passes.len()), ("--bucket", args.bucket.len())] {
        if given > 2 {
            return Err(Failure::Usage(format!(
                "{option} is given {given} times, expected at most 2: for A and for B"
            )));
        }
    }
    let b = args.b.as_deref().unwrap_or(&args.a);
    let before = side(args, &args.a, 0)?;
    let after = side(args, b, 1)?;
    let d = difference(&before, &after);
    match args.format {
        DiffFormatArg::Text => output::text(&d.text())?,
        DiffFormatArg::Json => output::json(&d.json())?,
    }
    if d.is_empty() { Ok(()) } else { Err(Failure::Reported) }
}

/// Side 0 or 1 of a comparison. An option that is given once holds for both sides; rules are left out and added on the second only.
fn side(args: &DiffArgs, name: &str, index: usize) -> Result<Module, Failure> {
    let of = |given: &[String]| given.get(index).or(given.last()).cloned();
    // Text is compared as it is; a model as it would run.
    let list = of(&args.passes).unwrap_or_else(|| if pipeline::is_text(name) { "none" } else { "default" }.into());
    let passes = pipeline::passes(&list)?;
    let module = pipeline::load(name, args.head)?;
    let rules = |names: &[String]| if index == 1 { names.to_vec() } else { vec![] };
    let pipeline = PipelineArgs {
        bucket: of(&args.bucket),
        disabled_rules: rules(&args.disabled_rules),
        enabled_rules: rules(&args.enabled_rules),
        gpu_layouts: args.gpu_layouts,
        ..PipelineArgs::default()
    };
    let options = pipeline::options(name, &module, &pipeline)?;
    Ok(pipeline::run(name, module, &passes, &options, &pipeline)?.0)
}
