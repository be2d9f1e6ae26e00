//! The runtime: checkpoints, devices, sequences, tokens and text, and the `gossamer` command.
//!
//! Owns checkpoint loading, device memory, CUDA graphs, the KV cache, sampling parameters, the tokenizer and harmony, and the command line. Runs plans;
//! must never know rewrite rules, and has no loop over layers: what a step does is in its plan.
//!
//! ```no_run
//! use gossamer_runtime::engine::SamplingParams;
//! use gossamer_runtime::generate::{Flow, Request, generate};
//! use gossamer_runtime::session::{SessionOptions, open};
//! use gossamer_runtime::text::StopSet;
//!
//! let mut session = open(&SessionOptions::new("demo"))?;
//! let tokenizer = session.tokenizer.clone().unwrap();
//! let request = Request {
//!     prompt: tokenizer.encode("Once upon a time"),
//!     params: SamplingParams::greedy(),
//!     max_tokens: 32,
//!     stop: StopSet::for_tokenizer(&tokenizer),
//! };
//! let (answers, _) = generate(&mut session.engine, &[request], &mut |_, _| Flow::Continue)?;
//! println!("{} tokens", answers[0].tokens.len());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod bench;
pub mod checkpoint;
pub mod cli;
pub mod cuda;
pub mod doctor;
pub mod engine;
pub mod exec;
pub mod explain;
pub mod generate;
pub mod kernels;
pub mod memory_plan;
pub mod paths;
pub mod phases;
pub mod session;
pub mod text;
pub mod workers;
