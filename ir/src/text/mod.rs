//! The text format of the IR (`gir 1`): printer and parser, inverse to each other.
//!
//! Owns the grammar (written out in `docs/ir.md`), names of values, syntax errors and their rendering. Must not know what ops mean: it reads the
//! op table for names and attribute kinds only, and leaves every other check to the [verifier](crate::verify).

mod equal;
mod error;
pub mod fuzz;
mod lex;
mod locate;
mod names;
mod parse;
mod print;

pub use equal::same;
pub use error::{ParseError, ParseErrors};
pub use names::{is_name, nearest};
pub use parse::{parse, parse_decomp};
pub use print::{print, print_func, print_op};

pub(crate) use error::snippet;
pub(crate) use locate::{find_line, statement_at};
pub(crate) use names::{Names, is_word};
pub(crate) use print::{float, header_line, op_line, order, print_region, return_line, same_attr, statement};

/// Version of the text format, written on its first line as `gir 1`.
pub const VERSION: u32 = 1;

/// Element type of a `kv` declaration that does not give one.
pub(crate) const KV_DTYPE: crate::DType = crate::DType::BF16;

#[cfg(test)]
mod tests;
