//! A session: a model, its tokenizer, and an engine on a device.

use std::path::PathBuf;
use std::sync::Arc;

use gossamer_ir::interp::Rounding;
use gossamer_passes::manager::Pass;
use gossamer_passes::{Options, manager};

use crate::checkpoint::{CheckpointError, ModelRef, WeightSource, resolve};
use crate::engine::{Engine, EngineError, EngineOptions};
use crate::exec::ExecError;
use crate::exec::cpu::CpuExecutor;
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
    /// Numerics of the CPU executor.
    pub rounding: Rounding,
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
            rounding: Rounding::Exact,
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
    let _ = &mut notes;
    let limits = EngineOptions {
        context: options.context.unwrap_or(full.min(CPU_CONTEXT)),
        chunk: options.chunk.unwrap_or(CPU_CHUNK).max(options.max_seqs),
        max_seqs: options.max_seqs,
        page: PAGE,
        kv_tokens: None,
        passes: options.passes.clone(),
        pass_options: Options::default(),
    };
    let rounding = options.rounding;
    let engine =
        Engine::new(config, limits, |states| Ok(Box::new(CpuExecutor::new(source, states, rounding)) as Box<_>))?;
    Ok(Session { name, generation, tokenizer, engine, notes })
}

fn tokenizer(options: &SessionOptions, model: &ModelRef) -> Result<Option<Arc<Tokenizer>>, TokenizerError> {
    let own = model.folder.as_ref().map(|f| f.join("tokenizer.json")).filter(|p| p.is_file());
    match options.tokenizer.clone().or(own) {
        Some(path) => Ok(Some(Arc::new(Tokenizer::load(path)?))),
        None => Ok(None),
    }
}
