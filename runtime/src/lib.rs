//! gossamer-runtime

pub mod checkpoint;
pub mod cuda;
pub mod doctor;
pub mod text;
