//! Checkpoints: opening a folder, validating all of it before a byte of weights is allocated, reading, inspecting.
//!
//! Reads the Hugging Face and the original layout, sharded or in one file. Data is read with positioned reads, never
//! mapped: a file that shrinks under a running process gives an error, not a signal. Loaders see a [`WeightSource`],
//! which a folder ([`Checkpoint`]) and a generator ([`RandomWeights`]) both are.
//!
//! Must not know: devices, kernel layouts, plans. Names, shapes and stored types come from [`gossamer_models::names`].
//!
//! What is an error and what is a warning in a folder:
//! - errors: a shard missing, cut short, too long, or unlisted by the index; a shard name that leaves the folder; a
//!   tensor absent, stored twice, or of another shape or type than `config.json` implies; an unknown tensor inside a
//!   layer, which would mean that the model computes something else;
//! - warnings: other unknown tensors, and a `total_size` in the index that differs from the tensors' sum.

mod error;
mod files;
pub mod fuzz;
mod header;
pub mod inspect;
mod open;
mod random;
mod read;
mod resolve;
mod scales;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod validate;

pub use error::{CheckpointError, Problem};
pub use open::{Checkpoint, Shard, StoredTensor};
pub use random::RandomWeights;
pub use read::{Progress, WeightSource, fill_parallel, read_part};
pub use resolve::{ModelRef, Weights, resolve};
pub use scales::{FOLDED_SCALE_MAX, ScaleRange, check_scales, scale_ranges};
