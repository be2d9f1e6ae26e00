//! Dumps for people and tools: DOT pictures, JSON, and the op reference of the documentation.
//!
//! Text is [`crate::text::print`]. Every dump is deterministic: the same module gives the same bytes.

mod dot;
mod json;
mod reference;

pub use dot::{dot, dot_func};
pub use json::{JSON_VERSION, json};
pub use reference::reference;

#[cfg(test)]
mod tests;
