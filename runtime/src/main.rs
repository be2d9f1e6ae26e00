//! The `gossamer` command.
fn main() {}
