//! The `gossamer` command again, so that cargo builds it for the tests of this crate.

fn main() -> std::process::ExitCode {
    std::process::ExitCode::from(gossamer_runtime::cli::main())
}
