//! From what a user names to a module after passes: shared by `ir`, `opt`, `diff` and `explain`.

use std::path::Path;

use gossamer_ir::{Bindings, Module, text};
use gossamer_models::config::ModelConfig;
use gossamer_models::step::{Head, StepOptions};
use gossamer_passes::manager::{self, Pass, Trace, compile_with};
use gossamer_passes::{Options, PassError, bucket, rule};

use super::args::{HeadArg, PipelineArgs};
use super::output::{self, Failure};
use crate::checkpoint::inspect;
use crate::session::PAGE;

/// Most tokens a step of a module that is built for inspection.
pub const MAX_TOKENS: usize = 8192;
/// Most sequences.
pub const MAX_SEQS: usize = 256;

/// True if MODEL names IR text: a `.gir` file, any other file, or `-` for stdin.
pub fn is_text(model: &str) -> bool {
    let path = Path::new(model);
    model == "-" || path.extension().is_some_and(|e| e == "gir") || path.is_file()
}

/// The module that MODEL or FILE names.
pub fn load(model: &str, head: HeadArg) -> Result<Module, Failure> {
    if is_text(model) {
        return parse(model);
    }
    let config = config(model)?;
    let options = StepOptions {
        head: head.head(),
        max_tokens: MAX_TOKENS,
        max_seqs: MAX_SEQS,
        context: config.context(),
        page: PAGE,
    };
    Ok(gossamer_models::build(&config, &options)?.module)
}

/// The configuration that MODEL names: a folder's, `demo`'s or a preset's.
pub fn config(model: &str) -> Result<ModelConfig, Failure> {
    let found = inspect::inspect(model)?;
    let json = found.config.to_string();
    let parsed = ModelConfig::parse(&json, "config.json").map_err(Failure::from_error)?;
    Ok(parsed.config)
}

/// The module in a file, or on stdin for `-`.
pub fn parse(name: &str) -> Result<Module, Failure> {
    let source = match name {
        "-" => output::read_all(std::io::stdin().lock(), "stdin")?,
        _ => output::read_text(Path::new(name))?,
    };
    text::parse(name, &source).map_err(|errors| {
        output::aside(format_args!("{}", errors.render()));
        Failure::Failed(errors.to_string())
    })
}

/// The text behind a module that was read from a file, for messages that show its lines. A pipe has been read to its end: opening it again would wait.
pub fn source(path: &Path) -> String {
    path.is_file().then(|| std::fs::read_to_string(path).ok()).flatten().unwrap_or_default()
}

/// A pipeline by its text on the command line.
pub fn passes(text: &str) -> Result<Vec<Pass>, Failure> {
    manager::parse_pipeline(text).map_err(usage)
}

/// Rules by name; unknown ones are wrong usage.
pub fn rules(names: &[String]) -> Result<Vec<String>, Failure> {
    rule::check_names(names).map_err(usage)?;
    Ok(names.to_vec())
}

fn usage(e: impl std::fmt::Display) -> Failure {
    Failure::Usage(e.to_string())
}

/// The bucket of a model for which none is given: decoding one sequence.
pub const DEFAULT_BUCKET: &str = "decode.1";

/// The sizes that `--bucket` or `--sizes` name; none if neither is given.
pub fn sizes(module: &Module, bucket: Option<&str>, sizes: Option<&str>) -> Result<Bindings, Failure> {
    match (bucket, sizes) {
        (Some(name), _) => bucket::named(module, name).map_err(usage),
        (None, Some(list)) => bucket::given(module, list).map_err(usage),
        (None, None) => Ok(Bindings::new()),
    }
}

/// What the passes are told: sizes, rules left out, layouts. Of what `name` names: a model is compiled as for a GPU, with a default bucket and packed layouts; text has
/// neither unless asked for.
pub fn options(name: &str, module: &Module, args: &PipelineArgs) -> Result<Options, Failure> {
    let bucket = match (&args.bucket, &args.sizes) {
        (None, None) if !is_text(name) => Some(DEFAULT_BUCKET),
        (bucket, _) => bucket.as_deref(),
    };
    Ok(Options {
        mxfp4_layout: (args.gpu_layouts || !is_text(name)).then(|| crate::exec::MXFP4_LAYOUT.into()),
        sizes: sizes(module, bucket, args.sizes.as_deref())?,
        // As the engine does for a model; text may name what no kernel is needed for.
        refuses: (!is_text(name)).then(crate::kernels::refuse),
        disabled_rules: rules(&args.disabled_rules)?,
        enabled_rules: rules(&args.enabled_rules)?,
        ..Options::default()
    })
}

/// Runs passes over the module that `name` names, with dumps and trace as asked for.
pub fn run(
    name: &str,
    module: Module,
    passes: &[Pass],
    options: &Options,
    args: &PipelineArgs,
) -> Result<(Module, Trace), Failure> {
    let mut dumped: Result<(), Failure> = Ok(());
    let mut dump = |number: usize, pass: &str, module: &Module| {
        if let (Some(dir), true) = (&args.dump_dir, dumped.is_ok()) {
            dumped = output::file(&dir.join(format!("{number:02}-{pass}.gir")), text::print(module).as_bytes());
        }
    };
    if let Some(dir) = &args.dump_dir {
        output::folder(dir)?;
    }
    let (module, trace) = compile_with(module, passes, options, &mut dump).map_err(|e| shown(name, e))?;
    dumped?;
    if let Some(dir) = &args.dump_dir {
        output::file(&dir.join("trace.json"), format!("{:#}\n", trace.json()).as_bytes())?;
    }
    if args.trace {
        output::aside(format_args!("{}", trace.text()));
    }
    Ok((module, trace))
}

/// A failure of passes over the module that `name` names; every error of the verifier is shown, with its line if there is one.
pub fn shown(name: &str, e: PassError) -> Failure {
    match e {
        PassError::Verify { when, errors } => {
            let path = Path::new(name);
            let text = (when == "input" && path.is_file()).then(|| source(path));
            output::aside(format_args!("{}", errors.render(text.as_deref().map(|t| (name, t)))));
            Failure::Failed(format!("{when}: the module breaks the verifier's rules in {} places", errors.errors.len()))
        }
        e => e.into(),
    }
}

impl HeadArg {
    /// What a step returns.
    pub fn head(self) -> Head {
        match self {
            HeadArg::Greedy => Head::Greedy,
            HeadArg::Sample => Head::Sample,
            HeadArg::Full => Head::Full,
            HeadArg::Logits => Head::Logits { hidden: false },
        }
    }
}
