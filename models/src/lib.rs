//! gossamer-models

pub mod config;
pub mod names;
pub mod presets;
