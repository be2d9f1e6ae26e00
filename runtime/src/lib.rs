//! gossamer-runtime

pub mod cuda;
