//! The `gossamer` command.

fn main() -> std::process::ExitCode {
    std::process::ExitCode::from(gossamer_runtime::cli::main())
}
