//! The command line. Results go to stdout, everything else to stderr; exit codes: 0 ok, 1 the request failed, 2 wrong usage.

#[macro_use]
mod output;
mod args;
mod bar;
mod bench;
mod chat;
mod compile;
mod converse;
mod explain;
mod ir;
mod logits;
mod measure;
mod opt;
mod pipeline;
mod run;
mod system;

use clap::{CommandFactory, Parser};

use args::{Cli, Command};
use output::Failure;

/// Runs the command line and returns the exit code. Every failure is one line on stderr.
pub fn main() -> u8 {
    crate::workers::enable();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // clap's own exit codes: 0 for help and version, 2 for wrong usage.
        Err(e) => {
            let _ = e.print();
            return if e.use_stderr() { 2 } else { 0 };
        }
    };
    match dispatch(&cli) {
        Ok(()) => 0,
        // Whoever read our output has seen enough; that is not a failure.
        Err(Failure::BrokenPipe) => 0,
        Err(Failure::Failed(message) | Failure::Output(message)) => {
            note!("error: {message}");
            1
        }
        Err(Failure::Usage(message)) => {
            note!("error: {message}");
            2
        }
        Err(Failure::Reported) => 1,
    }
}

fn dispatch(cli: &Cli) -> Result<(), Failure> {
    match &cli.command {
        Command::Run(a) => run::run(a),
        Command::Chat(a) => chat::chat(a),
        Command::Inspect(a) => system::inspect(a),
        Command::Ir(a) => ir::ir(a),
        Command::Opt(a) => opt::opt(a),
        Command::Diff(a) => opt::diff(a),
        Command::Explain(a) => explain::explain(a),
        Command::Verify(a) => ir::verify(a),
        Command::Compile(a) => compile::compile(a),
        Command::Doctor(a) => system::doctor(a),
        Command::Bench(a) => bench::bench(a),
        Command::Logits(a) => logits::logits(a),
        Command::Eval(a) => logits::eval(a),
        Command::CompileKernel { folder } => match crate::workers::work(folder) {
            true => Ok(()),
            false => Err(Failure::Reported),
        },
        Command::Completions { shell } => {
            let mut buffer = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "gossamer", &mut buffer);
            output::bytes(&buffer)
        }
    }
}
