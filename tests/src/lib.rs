//! Tests that cross crates.
//!
//! Owns the filetest runner (IR text with expectations in comments, under `filetests/`), fixtures and end-to-end tests. Nothing depends on it.

pub mod filetest;
