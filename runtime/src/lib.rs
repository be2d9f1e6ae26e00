//! gossamer-runtime

pub mod cuda;
pub mod doctor;
