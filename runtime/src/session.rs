//! A session: a model, its tokenizer, and an engine on a device.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use gossamer_ir::LayoutName;
use gossamer_ir::interp::Rounding;
use gossamer_passes::manager::Pass;
use gossamer_passes::{Options, manager};

use gossamer_codegen_cuda::nvrtc::Nvrtc;
use gossamer_models::config::ModelConfig;
use gossamer_models::step::Head;
use gossamer_passes::bucket::StepSize;

use crate::checkpoint::{CheckpointError, ModelRef, WeightSource, resolve};
use crate::cuda::{CublasLt, CublasLtInfo, CudaError, Device, Driver};
use crate::engine::{Engine, EngineError, EngineOptions};
use crate::exec::cpu::CpuExecutor;
use crate::exec::cuda::{CudaExecutor, CudaOptions, Observer};
use crate::exec::{ExecError, MXFP4_LAYOUT};
use crate::memory_plan::{self, MemoryPlan, TooLarge};
use crate::phases::Phase;
use crate::text::{Tokenizer, TokenizerError};

/// Which device to run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// A GPU if there is a usable one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU; an error if there is none.
    Cuda,
}

/// How to open a session.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// A checkpoint folder, `demo`, or a preset.
    pub model: String,
    /// Generate weights instead of reading them.
    pub random_weights: bool,
    /// Where to run.
    pub device: DeviceChoice,
    /// Longest sequence; `None`: what suits the device, at most the model's.
    pub context: Option<usize>,
    /// Most tokens a step; `None`: what suits the device.
    pub chunk: Option<usize>,
    /// Most sequences at a time.
    pub max_seqs: usize,
    /// Module passes.
    pub passes: Vec<Pass>,
    /// Fuse ops into kernels; `None`: on a GPU yes, on the CPU no (the interpreter runs op by op either way, and would compile each step size anew).
    pub fuse: Option<bool>,
    /// Rewrite rules to do without, by name.
    pub disabled_rules: Vec<String>,
    /// Rewrite rules to apply although they are off, by name.
    pub enabled_rules: Vec<String>,
    /// Head that the memory plan counts with.
    pub head: Head,
    /// Numerics of the CPU executor.
    pub rounding: Rounding,
    /// Tokens of keys and values that all sequences together may hold in layers that see everything; `None`: as many as they may have.
    pub kv_tokens: Option<usize>,
    /// Folder of compiled kernels; `None`: the user's.
    pub kernel_cache: Option<PathBuf>,
    /// Tokenizer to use instead of the model's own: a folder or a `tokenizer.json`.
    pub tokenizer: Option<PathBuf>,
}

impl SessionOptions {
    /// Defaults for `model`: its own weights and tokenizer, automatic device, one sequence, the default passes.
    pub fn new(model: &str) -> SessionOptions {
        SessionOptions {
            model: model.to_string(),
            random_weights: false,
            device: DeviceChoice::Auto,
            context: None,
            chunk: None,
            max_seqs: 1,
            passes: manager::default_pipeline(),
            fuse: None,
            disabled_rules: vec![],
            enabled_rules: vec![],
            head: Head::Sample,
            rounding: Rounding::Exact,
            kv_tokens: None,
            kernel_cache: None,
            tokenizer: None,
        }
    }
}

/// An open session.
pub struct Session {
    /// Name of the model for messages.
    pub name: String,
    /// What the checkpoint says about generation.
    pub generation: gossamer_models::config::GenerationDefaults,
    /// The tokenizer, if there is one.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// The engine.
    pub engine: Engine,
    /// One line each: things worth telling (a GPU that cannot be used, odd configuration).
    pub notes: Vec<String>,
}

/// Is shown the memory plan of a GPU.
pub type MemoryObserver = Arc<dyn Fn(&MemoryPlan) + Send + Sync>;

/// Told how opening goes.
#[derive(Clone, Default)]
pub struct Hooks {
    /// The memory plan of a GPU, before anything is loaded.
    pub memory: Option<MemoryObserver>,
    /// Weights read and kernels made ready.
    pub load: Option<Observer>,
}

/// Why a session could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The device.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// The GPU.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// NVRTC.
    #[error(transparent)]
    Nvrtc(#[from] gossamer_codegen_cuda::nvrtc::NvrtcError),
    /// The model does not fit the GPU.
    #[error(transparent)]
    Memory(#[from] TooLarge),
    /// A context that the model does not have.
    #[error("--context {asked} is outside 1 to {model}, the context of {name}")]
    Context {
        /// What was asked for.
        asked: usize,
        /// What the model has.
        model: usize,
        /// The model.
        name: String,
    },
}

/// Longest sequence on the CPU unless asked otherwise, in tokens.
const CPU_CONTEXT: usize = 8192;
/// Most tokens a step on the CPU.
const CPU_CHUNK: usize = 512;
/// Most tokens a step on a GPU.
pub const GPU_CHUNK: usize = 2048;
/// Tokens a KV page.
pub const PAGE: usize = 64;

/// Opens a session.
///
/// # Errors
/// See [`SessionError`].
pub fn open(options: &SessionOptions) -> Result<Session, SessionError> {
    open_with(options, &Hooks::default())
}

/// [`open`], telling `hooks` how it goes.
///
/// # Errors
/// See [`SessionError`].
pub fn open_with(options: &SessionOptions, hooks: &Hooks) -> Result<Session, SessionError> {
    let begun = Instant::now();
    let model = resolve(&options.model, options.random_weights)?;
    let tokenizer = tokenizer(options, &model)?;
    let mut notes = model.warnings.clone();
    let ModelRef { name, weights, generation, .. } = model;
    let config = weights.config().clone();
    let full = config.context();
    if let Some(asked) = options.context.filter(|c| *c == 0 || *c > full) {
        return Err(SessionError::Context { asked, model: full, name });
    }
    let source: Arc<dyn WeightSource> = Arc::new(weights);
    let device = gpu(options.device, &mut notes)?;
    let opened = begun.elapsed();
    let engine = match device {
        Some(device) => {
            let mut passes = pass_options(options, Some(MXFP4_LAYOUT.into()));
            leave_out_library(&mut passes, CublasLt::find, &mut notes);
            cuda_engine(options, hooks, config, source, device, passes)?
        }
        None => {
            let passes = pass_options(options, None);
            let limits = limits(options, &config, CPU_CONTEXT, CPU_CHUNK, passes, options.fuse.unwrap_or(false));
            let (rounding, observer) = (options.rounding, hooks.load.clone());
            Engine::new(config, limits, |states| {
                Ok(Box::new(CpuExecutor::new(source, states, rounding, observer)) as Box<_>)
            })?
        }
    };
    engine.add_phase(Phase::Open, opened);
    Ok(Session { name, generation, tokenizer, engine, notes })
}

/// The GPU to run on, or `None` for the CPU.
fn gpu(choice: DeviceChoice, notes: &mut Vec<String>) -> Result<Option<Device>, SessionError> {
    if choice == DeviceChoice::Cpu {
        return Ok(None);
    }
    let usable = || -> Result<Device, SessionError> {
        let device = Driver::load()?.open(0)?;
        Nvrtc::load()?;
        Ok(device)
    };
    match (usable(), choice) {
        (Ok(device), _) => Ok(Some(device)),
        (Err(e), DeviceChoice::Cuda) => Err(e),
        // A machine without an NVIDIA driver has simply no GPU; anything else is worth a line.
        (Err(SessionError::Cuda(CudaError::NoDriver { .. })), _) => Ok(None),
        (Err(e), _) => {
            notes.push(format!("using the CPU: {e}"));
            Ok(None)
        }
    }
}

fn limits(
    o: &SessionOptions,
    config: &ModelConfig,
    context: usize,
    chunk: usize,
    passes: Options,
    fuse: bool,
) -> EngineOptions {
    EngineOptions {
        context: o.context.unwrap_or(config.context().min(context)),
        chunk: o.chunk.unwrap_or(chunk).min(config.context()).max(o.max_seqs),
        max_seqs: o.max_seqs,
        page: PAGE,
        kv_tokens: o.kv_tokens,
        passes: o.passes.clone(),
        pass_options: passes,
        fuse,
    }
}

/// What the passes are told by the user.
fn pass_options(o: &SessionOptions, mxfp4_layout: Option<LayoutName>) -> Options {
    let (disabled_rules, enabled_rules) = (o.disabled_rules.clone(), o.enabled_rules.clone());
    Options { mxfp4_layout, disabled_rules, enabled_rules, ..Options::default() }
}

/// Leaves the rule out whose kernels need cuBLASLt, where there is none.
fn leave_out_library(
    passes: &mut Options,
    find: impl Fn() -> Result<CublasLtInfo, CudaError>,
    notes: &mut Vec<String>,
) {
    const RULE: &str = "seed/cublaslt";
    if passes.enabled_rules.iter().any(|r| r == RULE)
        && let Err(e) = find()
    {
        passes.enabled_rules.retain(|r| r != RULE);
        notes.push(format!("rule {RULE} stays off: {e}"));
    }
}

/// An engine on a GPU, with the context cut to what fits unless one was asked for.
fn cuda_engine(
    options: &SessionOptions,
    hooks: &Hooks,
    config: ModelConfig,
    source: Arc<dyn WeightSource>,
    device: Device,
    passes: Options,
) -> Result<Engine, SessionError> {
    let begun = Instant::now();
    let mut limits = limits(options, &config, usize::MAX, GPU_CHUNK, passes, options.fuse.unwrap_or(true));
    let (plan, plans) = memory_plan(&config, &limits, options.head, &device)?;
    let (plan, plans) = match (plan.missing > 0, options.context, plan.fits_context) {
        (true, None, Some(context)) => {
            limits.context = context;
            memory_plan(&config, &limits, options.head, &device)?
        }
        _ => (plan, plans),
    };
    if let Some(show) = &hooks.memory {
        show(&plan);
    }
    plan.check()?;
    let planned = begun.elapsed();
    let mut cuda = CudaOptions { observer: hooks.load.clone(), ..CudaOptions::from_env() };
    if let Some(folder) = &options.kernel_cache {
        cuda.cache = Some(folder.clone());
    }
    let mut engine =
        Engine::new(config, limits, |states| Ok(Box::new(CudaExecutor::new(device, source, states, cuda)?) as Box<_>))?;
    engine.add_phase(Phase::Plan, planned);
    engine.adopt(plans);
    Ok(engine)
}

/// Plans that the memory was worked out from.
type Plans = Vec<(Head, StepSize, gossamer_passes::Plan)>;

/// What fits, and the plans that say so. The first is that of decoding, the bucket of which is the same as when it runs.
fn memory_plan(
    config: &ModelConfig,
    limits: &EngineOptions,
    head: Head,
    device: &Device,
) -> Result<(MemoryPlan, Plans), SessionError> {
    let decode = StepSize { tokens: limits.max_seqs, seqs: limits.max_seqs, rows: limits.max_seqs };
    let rows = if matches!(head, Head::Logits { .. }) { limits.chunk } else { limits.max_seqs };
    let prompt = StepSize { tokens: limits.chunk, seqs: limits.max_seqs, rows };
    let request = memory_plan::request(config, limits, &[(head, decode), (head, prompt)])?;
    Ok((MemoryPlan::new(&request, device.memory()?), request.plans))
}

fn tokenizer(options: &SessionOptions, model: &ModelRef) -> Result<Option<Arc<Tokenizer>>, TokenizerError> {
    let own = model.folder.as_ref().map(|f| f.join("tokenizer.json")).filter(|p| p.is_file());
    match options.tokenizer.clone().or(own) {
        Some(path) => Ok(Some(Arc::new(Tokenizer::load(path)?))),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_stays_off_where_its_library_is_missing() {
        let asked = SessionOptions { enabled_rules: vec!["seed/cublaslt".into()], ..SessionOptions::new("demo") };
        let missing = || Err(CudaError::NoCublasLt { detail: "version 12 or newer not found".into() });
        let found = || Ok(CublasLtInfo { version: "13.0.0".into(), path: "libcublasLt.so.13".into() });
        let mut notes = vec![];
        let mut passes = pass_options(&asked, None);
        leave_out_library(&mut passes, found, &mut notes);
        assert_eq!((passes.enabled_rules.len(), notes.len()), (1, 0));
        leave_out_library(&mut passes, missing, &mut notes);
        assert!(passes.enabled_rules.is_empty());
        assert!(notes[0].starts_with("rule seed/cublaslt stays off: no cuBLASLt: version 12"), "{notes:?}");
        // Who does not ask is not told.
        leave_out_library(&mut passes, missing, &mut notes);
        assert_eq!(notes.len(), 1);
    }
}
