//! Dumps for people and tools: DOT pictures, JSON, an HTML page with drawings of its own, and the op reference of the documentation.
//!
//! Text is [`crate::text::print`]. Every dump is deterministic: the same module gives the same bytes.

mod dot;
mod html;
mod json;
mod reference;
mod svg;

pub use dot::{dot, dot_func};
pub use html::{STYLE, escape, html, page};
pub use json::{JSON_VERSION, json};
pub use reference::reference;
pub use svg::{Card, card, svg_func};

#[cfg(test)]
mod tests;
