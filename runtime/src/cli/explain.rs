//! `gossamer explain`: why each kernel of a step is what it is.

use gossamer_codegen_cuda::cache::{self, KernelCache};
use gossamer_codegen_cuda::nvrtc::Nvrtc;
use gossamer_models::config::ModelConfig;
use gossamer_passes::Options;
use gossamer_passes::bucket::{self, StepSize};
use gossamer_passes::cost::{self, Machine};

use super::args::{ExplainArgs, ExplainFormatArg};
use super::output::{self, Failure};
use super::pipeline::{self, MAX_SEQS, MAX_TOKENS};
use crate::engine::{self, EngineOptions};
use crate::exec::MXFP4_LAYOUT;
use crate::explain::{self, Explanation, Request};
use crate::session::PAGE;

pub fn explain(args: &ExplainArgs) -> Result<(), Failure> {
    if let Some(out) = &args.out {
        for read in [Some(args.model.as_ref()), args.machine.as_deref()].into_iter().flatten() {
            output::not_over("--out", out, read)?;
        }
    }
    let passes = pipeline::passes(&args.passes)?;
    let disabled_rules = pipeline::rules(&args.disabled_rules)?;
    let enabled_rules = pipeline::rules(&args.enabled_rules)?;
    let measured = args.measure.then(|| super::measure::step(args)).transpose()?;
    let (module, layout) = module(args)?;
    let (name, sizes) = match (&args.bucket, &args.sizes) {
        (Some(b), _) => (b.clone(), pipeline::sizes(&module, Some(b), None)?),
        (None, Some(s)) => (s.clone(), pipeline::sizes(&module, None, Some(s))?),
        (None, None) => {
            // What a file declares first, else one sequence.
            let name = module.buckets.first().map_or(pipeline::DEFAULT_BUCKET.to_string(), |b| b.name.to_string());
            let sizes = bucket::named(&module, &name).map_err(|e| Failure::Usage(e.to_string()))?;
            (name, sizes)
        }
    };
    let Some(entry) = explain::entry(&module).map(String::from) else {
        return Err(Failure::Failed(format!("{}: has no function to explain", args.model)));
    };
    let machine = match &args.machine {
        Some(path) => {
            Machine::parse(&path.display().to_string(), &output::read_text(path)?).map_err(Failure::from_error)?
        }
        None => Machine::default(),
    };
    let mxfp4_layout = layout.map(Into::into);
    // As the engine does: what code generation cannot make is not chosen.
    let refuses = Some(crate::kernels::refuse());
    let options =
        Options { mxfp4_layout, sizes, machine, refuses, disabled_rules, enabled_rules, ..Options::default() };
    let request = Request { name: &args.model, bucket: &name, entry: &entry, passes: &passes, options: &options };
    let mut e = match explain::explain(module, &request) {
        Err(engine::EngineError::Pass(e)) => return Err(pipeline::shown(&args.model, e)),
        other => other?,
    };
    if let Some(k) = args.kernel.filter(|k| *k >= e.launches.len()) {
        return Err(Failure::Usage(format!(
            "--kernel {k} is not a launch of this step; it has 0 to {}",
            e.launches.len().saturating_sub(1)
        )));
    }
    if let Some(profile) = &measured {
        e.measure(profile).map_err(Failure::from_error)?;
    }
    if !args.no_compile {
        compile(&mut e)?;
    }
    let text = match args.format {
        ExplainFormatArg::Text => e.text(args.kernel),
        ExplainFormatArg::Json => format!("{:#}\n", e.json(args.kernel)),
        ExplainFormatArg::Html => e.html(),
    };
    match &args.out {
        Some(path) => output::file(path, text.as_bytes()),
        None => output::text(&text),
    }
}

/// Tokens that sequences may have: as asked for, else those of an ordinary chat if the model has as many, or what the step gives each sequence if
/// that is more.
pub fn context(args: &ExplainArgs, config: &ModelConfig) -> usize {
    let step = args.bucket.as_deref().and_then(|b| StepSize::parse(b).ok());
    let each = step.map_or(0, |s| s.tokens.div_ceil(s.seqs));
    args.context.unwrap_or(each.max(config.context().min(cost::shape::CONTEXT as usize)))
}

/// The module, and the layout of packed weights: a model is built as an engine on a GPU builds it.
fn module(args: &ExplainArgs) -> Result<(gossamer_ir::Module, Option<&'static str>), Failure> {
    if pipeline::is_text(&args.model) {
        return Ok((pipeline::parse(&args.model)?, args.gpu_layouts.then_some(MXFP4_LAYOUT)));
    }
    let config = pipeline::config(&args.model)?;
    let context = context(args, &config);
    if context == 0 || context > config.context() {
        return Err(Failure::Usage(format!("--context {context} is outside 1 to {}", config.context())));
    }
    let options = EngineOptions {
        context,
        chunk: MAX_TOKENS.max(context),
        max_seqs: MAX_SEQS,
        page: PAGE,
        kv_tokens: None,
        passes: vec![],
        pass_options: Options::default(),
        fuse: true,
    };
    Ok((engine::program(&config, &options, args.head.head())?.module, Some(MXFP4_LAYOUT)))
}

/// Adds what kernels take, if NVRTC is there.
fn compile(e: &mut Explanation) -> Result<(), Failure> {
    let nvrtc = match Nvrtc::load() {
        Ok(n) => n,
        Err(why) => {
            note!("note: kernels are not compiled: {why}");
            return Ok(());
        }
    };
    let cache = cache::default_folder().map_or_else(KernelCache::disabled, KernelCache::at);
    let bar = super::bar::count("compiling", e.sources.len() as u64);
    let done = e.compile(&cache, &nvrtc, &|n| bar.set_position(n as u64)).map_err(Failure::from_error);
    bar.finish_and_clear();
    done
}
