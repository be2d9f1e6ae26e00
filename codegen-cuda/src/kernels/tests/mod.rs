//! Every op at a grid of shapes and dtypes is lowered, compiled and checked without a GPU.

pub(super) mod cases;
mod compile;
pub(super) mod emulate;
mod fused;
mod inputs;
mod library;
mod moe;
pub(super) mod pair;
mod text;
