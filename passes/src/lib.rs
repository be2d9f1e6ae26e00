//! Passes: from a model's module to a plan that an executor can run.
//!
//! Owns the pass manager, module passes, inlining, weight-only marking, scheduling, buffer planning and buckets. Must never know devices:
//! what a device can do comes in as options.
//!
//! ```
//! use gossamer_models::{gpt_oss, presets, step};
//! use gossamer_passes::{Options, bucket, compile, manager, plan};
//!
//! let options = step::StepOptions { head: step::Head::Greedy, max_tokens: 64, max_seqs: 4, context: 1024, page: 64 };
//! let program = gpt_oss::build(&presets::gpt_oss_20b(), &options).unwrap();
//! let (module, trace) = compile(program.module, &manager::default_pipeline(), &Options::default()).unwrap();
//! let plan = plan::plan(&module, step::ENTRY, &bucket::sizes(4, 4, 4, 1024, 16)).unwrap();
//! assert!(trace.passes.len() >= 3 && plan.steps.len() > 24 * 20);
//! ```

pub mod bucket;
pub mod buffers;
pub mod canonicalise;
pub mod cost;
pub mod cse;
pub mod dce;
pub mod fuse;
pub mod inline;
pub mod layout;
pub mod manager;
pub mod narrow;
pub mod plan;
pub mod rotate;
pub mod rule;
pub mod schedule;
pub mod weight_only;

pub use manager::{Options, PassError, Trace, compile};
pub use plan::{Plan, PlanError};
