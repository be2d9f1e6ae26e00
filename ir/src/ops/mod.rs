//! The rows of the op table, grouped by class. A row is data plus two functions: its type rule here, its meaning in `interp`.

pub mod attention;
pub mod call;
pub mod contraction;
pub mod elementwise;
pub mod index;
pub mod kernel;
pub mod leaf;
pub mod moe;
pub mod norm;
pub mod quant;
pub mod reduce;
pub mod sample;
pub mod view;
