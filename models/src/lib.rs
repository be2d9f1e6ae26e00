//! Models: the DSL they are written in, GPT-OSS, Llama, configuration files and the names of weights in checkpoints.
//!
//! Must never know passes or devices: a model says what is computed, unfused.
//!
//! ```
//! use gossamer_models::{gpt_oss, presets, step::{Head, StepOptions}};
//!
//! let options = StepOptions { head: Head::Sample, max_tokens: 512, max_seqs: 16, context: 8192, page: 64 };
//! let program = gpt_oss::build(&presets::gpt_oss_20b(), &options).unwrap();
//! assert_eq!(program.module.weights.len(), 24 * 17 + 3);
//! ```

pub mod config;
pub mod decoder;
pub mod dsl;
pub mod gpt_oss;
pub mod llama;
pub mod names;
pub mod presets;
pub mod step;

use gossamer_ir::InferError;

/// Builds the module of any supported model.
///
/// # Errors
/// An op that refuses its operands, with the line of the model that made it.
pub fn build(config: &config::ModelConfig, options: &step::StepOptions) -> Result<step::Program, InferError> {
    match config {
        config::ModelConfig::GptOss(c) => gpt_oss::build(c, options),
        config::ModelConfig::Llama(c) => llama::build(c, options),
    }
}
