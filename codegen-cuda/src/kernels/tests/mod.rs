//! Every op at a grid of shapes and dtypes is lowered, compiled and checked without a GPU.

mod cases;
mod compile;
mod dump;
mod emulate;
mod fused;
mod inputs;
mod library;
mod moe;
pub(super) mod pair;
mod text;
