//! Tests that cross crates.
//!
//! Owns the filetest runner (IR text with expectations in comments, under `filetests/`), tests on the GPU ([`gpu`]), fixtures and end-to-end tests. Nothing
//! depends on it.

pub mod filetest;
pub mod gpu;
