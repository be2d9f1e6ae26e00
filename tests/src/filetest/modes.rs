//! The modes: a row each in [`MODES`].

use gossamer_ir::verify::{self, Stage, VerifyErrors};
use gossamer_ir::{Module, text};
use gossamer_passes::manager;

use super::compiled::Settings;
use super::matcher::{Captures, check, find};
use super::{Failure, Kind, Source, cost, cuda, eval, run as on_gpu};

/// Why a mode did not end well.
pub enum Stop {
    /// Expectations that do not hold.
    Failed(Vec<Failure>),
    /// An `exact` output that differs; the text is what the file would be if it were right.
    Differs {
        /// The whole file with the new output.
        expected_text: String,
        /// The failure if that is not wanted.
        failure: Failure,
    },
}

impl From<Failure> for Stop {
    fn from(f: Failure) -> Stop {
        Stop::Failed(vec![f])
    }
}

/// What can be done with a file.
pub struct Mode {
    /// First word after `test:`.
    pub name: &'static str,
    /// One line.
    pub summary: &'static str,
    /// Directives that it reads.
    pub directives: &'static [Kind],
    /// Runs it on a file, with the words after its name.
    pub run: fn(&Source, &str) -> Result<(), Stop>,
}

/// Every mode.
pub const MODES: &[Mode] = &[
    Mode {
        name: "roundtrip",
        summary: "the file is canonical: printing what was read gives the same text; it verifies and reads back equal",
        directives: &[],
        run: roundtrip,
    },
    Mode {
        name: "verify",
        summary: "syntax and verifier errors are exactly those of the `error:` lines; `verify planned` for that stage",
        directives: &[Kind::Error],
        run: verify_mode,
    },
    Mode {
        name: "opt",
        summary: "runs passes (`none`, `default` or names with commas) and checks the output; passes that need sizes have those of `set:`",
        directives: &[Kind::Check, Kind::Next, Kind::Not, Kind::Set],
        run: opt,
    },
    Mode {
        name: "exact",
        summary: "as `opt`, but the whole output is given after `exact:`",
        directives: &[Kind::Exact, Kind::Set],
        run: exact,
    },
    Mode {
        name: "eval",
        summary: "runs functions with the reference interpreter and compares results",
        directives: &[Kind::Eval, Kind::Set],
        run: eval::run,
    },
    Mode {
        name: "cost",
        summary: "runs passes at the sizes of `set:` and checks launches, bytes and predicted times",
        directives: &[Kind::Cost, Kind::Set],
        run: cost::run,
    },
    Mode {
        name: "cuda",
        summary: "runs passes at the sizes of `set:` and checks the generated CUDA text; compiles it where NVRTC is",
        directives: &[Kind::Check, Kind::Next, Kind::Not, Kind::Set],
        run: cuda::run,
    },
    Mode {
        name: "run",
        summary: "runs passes at the sizes of `set:`, then the functions of `eval:` lines on the GPU, against the interpreter",
        directives: &[Kind::Eval, Kind::Set],
        run: on_gpu::run,
    },
];

fn no_args(source: &Source, mode: &str, args: &str) -> Result<(), Failure> {
    match args {
        "" => Ok(()),
        _ => Err(Failure::new(line_of(source, mode), format!("mode `{mode}` takes no arguments, found `{args}`"))),
    }
}

fn line_of(source: &Source, mode: &str) -> usize {
    source.commands.iter().find(|c| c.mode == mode).map_or(0, |c| c.line)
}

/// The module of a file that must be right.
pub(super) fn module(source: &Source) -> Result<Module, Failure> {
    let module = text::parse(&source.path, &source.text).map_err(|e| {
        let line = e.errors.first().map_or(0, |e| e.line as usize);
        Failure::new(line, format!("cannot be read\n{}", e.render()))
    })?;
    verify::verify(&module, Stage::Tensor).map_err(|e| unverified(source, &e))?;
    Ok(module)
}

fn unverified(source: &Source, e: &VerifyErrors) -> Failure {
    Failure::new(0, format!("does not verify\n{}", e.render(Some((&source.path, &source.text)))))
}

fn roundtrip(source: &Source, args: &str) -> Result<(), Stop> {
    no_args(source, "roundtrip", args)?;
    let module = module(source)?;
    verify::roundtrip(&module).map_err(|e| unverified(source, &e))?;
    let printed: String = text::print(&module).lines().filter(|l| !l.is_empty()).map(|l| format!("{l}\n")).collect();
    let code = source.code();
    let differs = printed.lines().zip(code.lines()).find(|(a, b)| a != b);
    match differs {
        Some((want, have)) => {
            let message = format!("is not canonical\n  found    `{have}`\n  expected `{want}`");
            let line = source.text.lines().position(|l| l.starts_with(have)).map_or(0, |i| i + 1);
            Err(Failure::new(line, message).into())
        }
        None if printed != code => {
            let message = format!("is not canonical; expected\n{printed}");
            Err(Failure::new(0, message).into())
        }
        None => Ok(()),
    }
}

fn verify_mode(source: &Source, args: &str) -> Result<(), Stop> {
    let stage = match args {
        "" | "tensor" => Stage::Tensor,
        "planned" => Stage::Planned,
        _ => {
            let message = format!("unknown stage `{args}`; known: tensor, planned");
            return Err(Failure::new(line_of(source, "verify"), message).into());
        }
    };
    let mut found: Vec<(usize, String)> = match text::parse(&source.path, &source.text) {
        Err(e) => e.errors.iter().map(|e| (e.line as usize, format!("syntax {}; {}", e.message, e.help))).collect(),
        Ok(module) => match verify::verify(&module, stage) {
            Ok(_) => vec![],
            Err(e) => e.errors.iter().map(|e| (line(source, e), format!("{} {}", e.rule, e.message))).collect(),
        },
    };
    let mut failures = Vec::new();
    for d in source.of(&[Kind::Error]) {
        let hit = found.iter().position(|(line, text)| {
            *line == d.code
                && text.split(' ').next() == d.text.split(' ').next()
                && find(&d.text, text, &Captures::new()).is_some()
        });
        match hit {
            Some(i) => drop(found.remove(i)),
            None => failures.push(Failure::new(d.line, format!("there is no error `{}` on line {}", d.text, d.code))),
        }
    }
    failures.extend(found.into_iter().map(|(line, text)| Failure::new(line, format!("unexpected error: {text}"))));
    if failures.is_empty() { Ok(()) } else { Err(Stop::Failed(failures)) }
}

fn line(source: &Source, e: &verify::VerifyError) -> usize {
    let span = e.span(&source.path, &source.text);
    span.map_or(0, |s| source.text[..s.start].matches('\n').count() + 1)
}

fn optimised(source: &Source, mode: &str, args: &str) -> Result<String, Failure> {
    let at = line_of(source, mode);
    let passes = manager::parse_pipeline(args).map_err(|e| Failure::new(at, e.to_string()))?;
    let settings = Settings::of(source)?;
    let options = gossamer_passes::Options {
        mxfp4_layout: settings.layout.as_deref().map(Into::into),
        sizes: settings.sizes,
        enabled_rules: settings.enabled,
        disabled_rules: settings.disabled,
        ..Default::default()
    };
    let (module, _) =
        gossamer_passes::compile(module(source)?, &passes, &options).map_err(|e| Failure::new(at, e.to_string()))?;
    verify::roundtrip(&module).map_err(|e| unverified(source, &e))?;
    Ok(text::print(&module))
}

fn opt(source: &Source, args: &str) -> Result<(), Stop> {
    let output = optimised(source, "opt", args)?;
    let failures = check(&source.of(&[Kind::Check, Kind::Next, Kind::Not]), &output);
    if failures.is_empty() { Ok(()) } else { Err(Stop::Failed(failures)) }
}

fn exact(source: &Source, args: &str) -> Result<(), Stop> {
    let output = optimised(source, "exact", args)?;
    let (have, at) = match &source.exact {
        Some((text, at)) => (text.as_str(), *at),
        None => ("", source.text.len()),
    };
    if have.trim_end() == output.trim_end() {
        return Ok(());
    }
    let mut expected_text = source.text[..at].trim_end().to_string();
    expected_text.push_str("\n\n; exact:\n");
    for line in output.trim_end().lines() {
        expected_text.push_str(format!("; {line}").trim_end());
        expected_text.push('\n');
    }
    let line = source.text[..at].matches('\n').count() + 1;
    let message = format!("the output is another; BLESS=1 accepts it\n{output}");
    Err(Stop::Differs { expected_text, failure: Failure::new(line, message) })
}
