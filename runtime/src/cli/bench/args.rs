//! Arguments of the benchmarks.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::cli::args::{DeviceArgs, ModelArgs};

/// The detailed benchmarks.
#[derive(Debug, Subcommand)]
pub enum BenchKind {
    /// Decode speed by batch and context, with a table of the kernels of a step
    Decode(BenchDecodeArgs),
    /// Speed of reading prompts, with a table of the kernels of a step
    Prefill(BenchPrefillArgs),
    /// Time of a start with an empty and with a full kernel cache, and where it goes
    Startup(BenchStartupArgs),
}

/// What a detailed benchmark prints.
#[derive(Clone, Debug, Args)]
pub struct ReportArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Compare with an earlier --json; exit code 1 if a case is slower by more than --tolerance
    #[arg(long, value_name = "FILE")]
    pub compare: Option<PathBuf>,
    /// Per cent by which a case may be slower than in --compare
    #[arg(long, default_value_t = 3.0, value_name = "PERCENT", allow_negative_numbers = true)]
    pub tolerance: f64,
}

/// `bench decode`.
#[derive(Debug, Args)]
pub struct BenchDecodeArgs {
    /// Checkpoint folder, `demo` or a preset with --random-weights
    pub model_name: String,
    /// Sequences decoded together: a list
    #[arg(long, default_value = "1", value_name = "LIST", allow_hyphen_values = true)]
    pub batch: String,
    /// Tokens of each sequence before the first step: a list
    #[arg(long, default_value = "1024", value_name = "LIST", allow_hyphen_values = true)]
    pub context: String,
    /// Steps timed, in rounds until 256 are
    #[arg(long, default_value_t = 128, value_name = "N")]
    pub steps: usize,
    /// Seed of tokens and draws
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,
    /// Also decode N steps twice at the first batch and compare the tokens; exit code 1 if they differ
    #[arg(long, value_name = "N")]
    pub verify_repeat: Option<usize>,
    /// Report
    #[command(flatten)]
    pub report: ReportArgs,
    /// Model and device
    #[command(flatten)]
    pub model: DeviceArgs,
}

/// `bench prefill`.
#[derive(Debug, Args)]
pub struct BenchPrefillArgs {
    /// Checkpoint folder, `demo` or a preset with --random-weights
    pub model_name: String,
    /// Tokens of each prompt: a list
    #[arg(long, default_value = "2048", value_name = "LIST", allow_hyphen_values = true)]
    pub tokens: String,
    /// Prompts read together: a list
    #[arg(long, default_value = "1", value_name = "LIST", allow_hyphen_values = true)]
    pub batch: String,
    /// Draw tokens a second over tokens of a prompt into this SVG file
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
    /// Seed of tokens and draws
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,
    /// Report
    #[command(flatten)]
    pub report: ReportArgs,
    /// Model and device
    #[command(flatten)]
    pub model: DeviceArgs,
}

/// `bench startup`.
#[derive(Debug, Args)]
pub struct BenchStartupArgs {
    /// Checkpoint folder, `demo` or a preset with --random-weights
    pub model_name: String,
    /// Longest sequence in tokens
    #[arg(long, default_value_t = 4096, value_name = "N")]
    pub context: usize,
    /// Report
    #[command(flatten)]
    pub report: ReportArgs,
    /// Model and device
    #[command(flatten)]
    pub model: DeviceArgs,
}

/// `bench`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchArgs {
    /// Which one, in detail
    #[command(subcommand)]
    pub kind: Option<BenchKind>,
    /// Checkpoint folder, `demo` or a preset with --random-weights
    #[arg(default_value = "demo")]
    pub model_name: String,
    /// Sequences decoded together
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub batch: usize,
    /// Prompt tokens of each
    #[arg(long, default_value_t = 128, value_name = "N")]
    pub prompt: usize,
    /// Decode steps timed
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub steps: usize,
    /// Seed of prompts and draws
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Model and device
    #[command(flatten)]
    pub model: ModelArgs,
}
