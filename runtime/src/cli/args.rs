//! Arguments of every command.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use gossamer_ir::interp::Rounding;

use super::bench::args::BenchArgs;
use super::output::Failure;
use super::pipeline;
use crate::engine::SamplingParams;
use crate::session::{DeviceChoice, SessionOptions};

/// Compiles and runs GPT-OSS and Llama models.
#[derive(Debug, Parser)]
#[command(name = "gossamer", version, about, long_about = None, arg_required_else_help = true)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Answer one prompt, streaming
    Run(RunArgs),
    /// Talk to the model, turn by turn
    Chat(ChatArgs),
    /// List a checkpoint's tensors, sizes and what fits where
    Inspect(InspectArgs),
    /// Print a model's or a file's IR
    Ir(IrArgs),
    /// Run passes over IR text
    Opt(OptArgs),
    /// Compare two modules op by op
    Diff(DiffArgs),
    /// Show why each kernel of a step is what it is
    Explain(ExplainArgs),
    /// Check IR files
    Verify(VerifyArgs),
    /// Compile every kernel into the cache; needs no GPU
    Compile(CompileArgs),
    /// Show what this machine has and what is missing
    Doctor(DoctorArgs),
    /// Measure speed
    Bench(BenchArgs),
    /// Write logits (and hidden states, greedy tokens) of given tokens to a file
    Logits(LogitsArgs),
    /// Mean next-token loss over windows of given tokens
    Eval(EvalArgs),
    /// Compile the kernel on stdin into a cache folder
    #[command(name = crate::workers::COMMAND, hide = true)]
    CompileKernel {
        /// The folder
        folder: PathBuf,
    },
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// Where to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeviceArg {
    /// The GPU if it can be used, else the CPU
    Auto,
    /// The CPU
    Cpu,
    /// The GPU
    Cuda,
}

/// Numerics on the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NumericsArg {
    /// f32 everywhere
    F32,
    /// Rounded to bf16 where the IR says so, as on the GPU
    Bf16,
}

/// Model and device of every command that runs a model.
#[derive(Clone, Debug, Args)]
pub struct DeviceArgs {
    /// Where to run
    #[arg(long, value_enum, default_value = "auto", env = "GOSSAMER_DEVICE")]
    pub device: DeviceArg,
    /// Generate weights instead of reading them (for gpt-oss-20b, gpt-oss-120b, or a folder's configuration)
    #[arg(long)]
    pub random_weights: bool,
    /// Most tokens of a prompt fed in one step [default: what suits the device]
    #[arg(long, value_name = "N")]
    pub prefill_chunk: Option<usize>,
    /// Passes: none, default, or names separated by commas
    #[arg(long, default_value = "default", value_name = "LIST")]
    pub passes: String,
    /// Do without this rewrite rule; repeatable (names: opt --list-rules)
    #[arg(long = "disable-rule", value_name = "NAME")]
    pub disabled_rules: Vec<String>,
    /// Apply this rewrite rule although it is off; repeatable (names and reasons: opt --list-rules)
    #[arg(long = "enable-rule", value_name = "NAME")]
    pub enabled_rules: Vec<String>,
    /// Numerics on the CPU
    #[arg(long, value_enum, default_value = "f32")]
    pub numerics: NumericsArg,
}

impl DeviceArgs {
    /// Session options for `model`.
    pub fn session(&self, model: &str) -> Result<SessionOptions, Failure> {
        if self.prefill_chunk == Some(0) {
            return Err(Failure::Usage("--prefill-chunk is 0, expected at least 1".into()));
        }
        Ok(SessionOptions {
            random_weights: self.random_weights,
            device: match self.device {
                DeviceArg::Auto => DeviceChoice::Auto,
                DeviceArg::Cpu => DeviceChoice::Cpu,
                DeviceArg::Cuda => DeviceChoice::Cuda,
            },
            chunk: self.prefill_chunk,
            passes: pipeline::passes(&self.passes)?,
            disabled_rules: pipeline::rules(&self.disabled_rules)?,
            enabled_rules: pipeline::rules(&self.enabled_rules)?,
            rounding: match self.numerics {
                NumericsArg::F32 => Rounding::Exact,
                NumericsArg::Bf16 => Rounding::Typed,
            },
            ..SessionOptions::new(model)
        })
    }
}

/// Options of every command that runs a model for its answers.
#[derive(Clone, Debug, Args)]
pub struct ModelArgs {
    /// Model and device
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Longest sequence in tokens [default: what suits the device]
    #[arg(long, value_name = "N")]
    pub context: Option<usize>,
    /// Tokenizer to use instead of the model's own: a folder or a tokenizer.json
    #[arg(long, value_name = "PATH")]
    pub tokenizer: Option<PathBuf>,
}

impl ModelArgs {
    /// Session options for `model`.
    pub fn session(&self, model: &str) -> Result<SessionOptions, Failure> {
        Ok(SessionOptions { context: self.context, tokenizer: self.tokenizer.clone(), ..self.device.session(model)? })
    }
}

/// How tokens are chosen.
#[derive(Clone, Debug, Args)]
pub struct SamplingArgs {
    /// Softmax temperature; 0 is greedy [default: the checkpoint's, else 1]
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub temperature: Option<f32>,
    /// Keep the K most probable tokens; 0: all
    #[arg(long, value_name = "K")]
    pub top_k: Option<u32>,
    /// Keep the most probable tokens up to this mass
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Keep tokens with at least this fraction of the greatest probability
    #[arg(long, default_value_t = 0.0, value_name = "P", allow_negative_numbers = true)]
    pub min_p: f32,
    /// Divide the logits of tokens that occurred; 1 is off
    #[arg(long, default_value_t = 1.0, value_name = "X", allow_negative_numbers = true)]
    pub repetition_penalty: f32,
    /// Subtract from the logits of tokens that were generated
    #[arg(long, default_value_t = 0.0, value_name = "X", allow_negative_numbers = true)]
    pub presence_penalty: f32,
    /// Subtract once per generated occurrence
    #[arg(long, default_value_t = 0.0, value_name = "X", allow_negative_numbers = true)]
    pub frequency_penalty: f32,
    /// Add to a token's logit, as TOKEN=BIAS; repeatable
    #[arg(long, value_name = "TOKEN=BIAS", value_parser = parse_bias, allow_hyphen_values = true)]
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the draws [default: a random one, shown at the end]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

fn parse_bias(s: &str) -> Result<(u32, f32), String> {
    let parsed = s.split_once('=').and_then(|(t, b)| Some((t.trim().parse().ok()?, b.trim().parse().ok()?)));
    parsed.ok_or_else(|| "expected TOKEN=BIAS, for example 42=-1.5".to_string())
}

impl SamplingArgs {
    /// Parameters, with the checkpoint's defaults and a seed of the system's if none was given.
    pub fn params(&self, defaults: &gossamer_models::config::GenerationDefaults) -> SamplingParams {
        let greedy = defaults.do_sample == Some(false);
        let temperature = if greedy { 0.0 } else { defaults.temperature.map_or(1.0, |t| t as f32) };
        SamplingParams {
            temperature: self.temperature.unwrap_or(temperature),
            top_k: self.top_k.unwrap_or(defaults.top_k.unwrap_or(0) as u32),
            top_p: self.top_p.unwrap_or(defaults.top_p.map_or(1.0, |p| p as f32)),
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.clone(),
            seed: self.seed.unwrap_or_else(random_seed),
            logprobs: false,
        }
    }
}

/// A seed from the system's randomness, kept short enough to type again.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // The standard library's hasher is seeded by the operating system.
    std::hash::RandomState::new().build_hasher().finish() >> 32
}

/// How prompts become tokens.
#[derive(Clone, Debug, Args)]
pub struct PromptArgs {
    /// Reasoning effort: low, medium or high
    #[arg(long, value_enum, default_value = "medium")]
    pub reasoning: EffortArg,
    /// Developer instructions
    #[arg(long, value_name = "TEXT")]
    pub instructions: Option<String>,
    /// Date for the system message, YYYY-MM-DD or none [default: today]
    #[arg(long, value_name = "DATE")]
    pub date: Option<String>,
    /// Leave out the system message
    #[arg(long)]
    pub no_system: bool,
}

/// Reasoning effort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EffortArg {
    /// Think little
    Low,
    /// Think some
    Medium,
    /// Think long
    High,
}

/// `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// [MODEL] PROMPT: a checkpoint folder or `demo` (the default), and the prompt (read from stdin if left out)
    #[arg(value_names = ["MODEL", "PROMPT"], num_args = 0..=2)]
    pub words: Vec<String>,
    /// Most tokens to generate [default: as many as fit the context]
    #[arg(long, short = 'n', value_name = "N")]
    pub max_tokens: Option<usize>,
    /// Use the prompt as it is, without chat format
    #[arg(long)]
    pub raw: bool,
    /// Read the prompt as a JSON list of token ids, and print ids if there is no tokenizer
    #[arg(long, value_name = "FILE")]
    pub tokens: Option<PathBuf>,
    /// Print one JSON object at the end instead of streaming text
    #[arg(long)]
    pub json: bool,
    /// With --json: log probabilities of each token and its best alternatives
    #[arg(long, requires = "json")]
    pub logprobs: bool,
    /// Sampling
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Prompt format
    #[command(flatten)]
    pub prompt: PromptArgs,
    /// Model and device
    #[command(flatten)]
    pub model: ModelArgs,
}

/// `chat`.
#[derive(Debug, Args)]
pub struct ChatArgs {
    /// Checkpoint folder or `demo`
    #[arg(default_value = "demo")]
    pub model_name: String,
    /// Most tokens an answer [default: as many as fit the context]
    #[arg(long, short = 'n', value_name = "N")]
    pub max_tokens: Option<usize>,
    /// Sampling
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Prompt format
    #[command(flatten)]
    pub prompt: PromptArgs,
    /// Model and device
    #[command(flatten)]
    pub model: ModelArgs,
}

/// `inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Checkpoint folder, `demo`, `gpt-oss-20b` or `gpt-oss-120b`
    #[arg(default_value = "demo")]
    pub model: String,
    /// Read all data and report NaN weights and the histogram of scales
    #[arg(long)]
    pub check: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Formats of an IR dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FormatArg {
    /// IR text
    Text,
    /// Graphviz
    Dot,
    /// JSON
    Json,
    /// One page with drawings
    Html,
}

/// What a step returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum HeadArg {
    /// The greatest logit's token
    Greedy,
    /// A drawn token
    Sample,
    /// A drawn token after penalties, with log probabilities
    Full,
    /// Logits
    Logits,
}

/// What passes are told, and what is shown of them.
#[derive(Clone, Debug, Default, Args)]
pub struct PipelineArgs {
    /// Sizes that passes choose for: decode.N, step.tN.sN.rN (tokens, sequences, rows), or a bucket that the file declares [default: decode.1 for a model]
    #[arg(long, value_name = "B", conflicts_with = "sizes")]
    pub bucket: Option<String>,
    /// The same symbol by symbol; one that is left out has its greatest value
    #[arg(long, value_name = "T=1,S=1,..")]
    pub sizes: Option<String>,
    /// Do without this rewrite rule; repeatable (names: opt --list-rules)
    #[arg(long = "disable-rule", value_name = "NAME")]
    pub disabled_rules: Vec<String>,
    /// Apply this rewrite rule although it is off; repeatable (names and reasons: opt --list-rules)
    #[arg(long = "enable-rule", value_name = "NAME")]
    pub enabled_rules: Vec<String>,
    /// Write one file a pass and trace.json into this folder
    #[arg(long, value_name = "DIR")]
    pub dump_dir: Option<PathBuf>,
    /// Show what each pass did and how long it took, on stderr
    #[arg(long)]
    pub trace: bool,
    /// For a file: let passes use the GPU's weight layouts, as they always do for a model
    #[arg(long)]
    pub gpu_layouts: bool,
}

/// `ir`.
#[derive(Debug, Args)]
pub struct IrArgs {
    /// Checkpoint folder, `demo`, a preset, or a .gir file (- for stdin)
    #[arg(default_value = "demo")]
    pub model: String,
    /// Passes: none, default, or names separated by commas
    #[arg(long, default_value = "default", value_name = "LIST")]
    pub passes: String,
    /// Print the module as it is after this pass
    #[arg(long, value_name = "PASS")]
    pub after: Option<String>,
    /// Format
    #[arg(long, value_enum, default_value = "text")]
    pub format: FormatArg,
    /// What the step returns
    #[arg(long, value_enum, default_value = "sample")]
    pub head: HeadArg,
    /// Print the plan of a step of T tokens, S sequences and R rows instead: order, buffers, memory
    #[arg(long, value_name = "T,S,R", conflicts_with_all = ["bucket", "sizes"])]
    pub plan: Option<String>,
    /// Print a table of the memory of a step instead, for the given bucket or for all
    #[arg(long, conflicts_with = "plan")]
    pub memory: bool,
    /// Passes
    #[command(flatten)]
    pub pipeline: PipelineArgs,
}

/// `opt`.
#[derive(Debug, Args)]
pub struct OptArgs {
    /// IR text (- for stdin)
    #[arg(required_unless_present_any = ["list_rules", "list_passes"])]
    pub file: Option<String>,
    /// Passes: none, default, or names separated by commas
    #[arg(long, default_value = "default", value_name = "LIST")]
    pub passes: String,
    /// Print the rewrite rules: name, family, meaning
    #[arg(long)]
    pub list_rules: bool,
    /// Print the passes
    #[arg(long, conflicts_with = "list_rules")]
    pub list_passes: bool,
    /// Passes
    #[command(flatten)]
    pub pipeline: PipelineArgs,
}

/// Formats of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DiffFormatArg {
    /// One line an op
    Text,
    /// JSON
    Json,
}

/// `diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// Checkpoint folder, `demo`, a preset, or a .gir file (- for stdin)
    pub a: String,
    /// What to compare it with [default: A, for other passes or buckets]
    pub b: Option<String>,
    /// Passes of both, or given twice: of A, then of B [default: default for a model, none for a file]
    #[arg(long, value_name = "LIST")]
    pub passes: Vec<String>,
    /// Sizes that passes choose for: decode.N or step.tN.sN.rN; of both, or given twice: of A, then of B
    #[arg(long, value_name = "B")]
    pub bucket: Vec<String>,
    /// Do without this rewrite rule in B; repeatable
    #[arg(long = "disable-rule", value_name = "NAME")]
    pub disabled_rules: Vec<String>,
    /// Apply this rewrite rule in B although it is off; repeatable
    #[arg(long = "enable-rule", value_name = "NAME")]
    pub enabled_rules: Vec<String>,
    /// Format
    #[arg(long, value_enum, default_value = "text")]
    pub format: DiffFormatArg,
    /// What the step returns
    #[arg(long, value_enum, default_value = "sample")]
    pub head: HeadArg,
    /// For a file: let passes use the GPU's weight layouts, as they always do for a model
    #[arg(long)]
    pub gpu_layouts: bool,
}

/// Formats of an explanation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExplainFormatArg {
    /// A table, or with --kernel everything about one
    Text,
    /// JSON, an entry each launch
    Json,
    /// One page
    Html,
}

/// `explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// Checkpoint folder, `demo`, a preset, or a .gir file (- for stdin)
    #[arg(default_value = "demo")]
    pub model: String,
    /// Only this launch of the step, counted from 0
    #[arg(long, value_name = "N")]
    pub kernel: Option<usize>,
    /// The step: decode.N, step.tN.sN.rN (tokens, sequences, rows), or a bucket that the file declares [default: its first, or decode.1]
    #[arg(long, value_name = "B", conflicts_with = "sizes")]
    pub bucket: Option<String>,
    /// The same symbol by symbol; one that is left out has its greatest value
    #[arg(long, value_name = "T=1,S=1,..")]
    pub sizes: Option<String>,
    /// Tokens that sequences may have [default: 1024, or as many as the step gives each]
    #[arg(long, value_name = "N")]
    pub context: Option<usize>,
    /// Format
    #[arg(long, value_enum, default_value = "text")]
    pub format: ExplainFormatArg,
    /// Write into this file
    #[arg(long, short = 'o', value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Passes: none, default, or names separated by commas
    #[arg(long, default_value = "default", value_name = "LIST")]
    pub passes: String,
    /// Do without this rewrite rule; repeatable (names: opt --list-rules)
    #[arg(long = "disable-rule", value_name = "NAME")]
    pub disabled_rules: Vec<String>,
    /// Apply this rewrite rule although it is off; repeatable (names and reasons: opt --list-rules)
    #[arg(long = "enable-rule", value_name = "NAME")]
    pub enabled_rules: Vec<String>,
    /// What the step returns
    #[arg(long, value_enum, default_value = "sample")]
    pub head: HeadArg,
    /// For a file: let passes use the GPU's weight layouts, as they always do for a model
    #[arg(long)]
    pub gpu_layouts: bool,
    /// Description of the machine that costs are for, as in codegen-cuda/machines [default: an H100]
    #[arg(long, value_name = "FILE")]
    pub machine: Option<PathBuf>,
    /// Do not compile kernels for their registers, shared memory and size
    #[arg(long)]
    pub no_compile: bool,
    /// Run the step on the GPU and show measured times beside predicted ones
    #[arg(long)]
    pub measure: bool,
    /// With --measure: generate weights instead of reading them
    #[arg(long, requires = "measure")]
    pub random_weights: bool,
}

/// `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// IR files
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
}

/// `compile`.
#[derive(Debug, Args)]
pub struct CompileArgs {
    /// Checkpoint folder, `demo` or a preset
    #[arg(default_value = "demo")]
    pub model: String,
    /// Passes: none, default, or names separated by commas
    #[arg(long, default_value = "default", value_name = "LIST")]
    pub passes: String,
    /// Most sequences at a time
    #[arg(long, default_value_t = 256, value_name = "N")]
    pub max_seqs: usize,
    /// Write the generated CUDA into this folder
    #[arg(long, value_name = "DIR")]
    pub emit: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Run a self test on the GPU
    #[arg(long)]
    pub selftest: bool,
}

/// `logits`.
#[derive(Debug, Args)]
pub struct LogitsArgs {
    /// Checkpoint folder, `demo` or a preset with --random-weights
    pub model_name: String,
    /// JSON list of token ids
    #[arg(long, value_name = "FILE")]
    pub tokens: PathBuf,
    /// Safetensors file to write: `logits` f32 [T, V]; with --hidden `hidden` f32 [L+1, T, H] and `routing` i32 [L, T, k]; with --greedy `greedy` i32 [N]
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Also write the residual stream after the embedding and each layer, the last one normalised, and the experts each layer chose
    #[arg(long)]
    pub hidden: bool,
    /// Also decode this many tokens greedily through the KV cache
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub greedy: usize,
    /// Model and device
    #[command(flatten)]
    pub model: ModelArgs,
}

/// `eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// Checkpoint folder, `demo` or a preset with --random-weights
    pub model_name: String,
    /// JSON list of token ids, or an object with one under `tokens`
    #[arg(long, value_name = "FILE")]
    pub tokens: PathBuf,
    /// Tokens predicted per window; a window starts at the token the one before it ended with
    #[arg(long, default_value_t = 512, value_name = "N")]
    pub window: usize,
    /// Model and device
    #[command(flatten)]
    pub model: ModelArgs,
}
