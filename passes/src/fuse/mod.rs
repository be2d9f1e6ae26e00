//! Fusion: from a graph of ops to a graph of kernels.
//!
//! Owns the e-graph bridge, the rules and the extraction. Must never know devices (costs come in as numbers) or models.

pub mod extract;
