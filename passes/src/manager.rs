//! The pass manager: runs named passes in order, verifies after each, and keeps a trace.

use std::fmt::Write as _;
use std::time::Instant;

use gossamer_ir::verify::{Stage, VerifyErrors, verify};
use gossamer_ir::{Bindings, InferError, LayoutName, Module};

use crate::cost::Machine;
use crate::fuse::{self, FuseError};
use crate::{canonicalise, cse, dce, layout, narrow, rotate, rule};

/// What passes may ask about the target, and how the manager behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Layout that MXFP4 weights get at load; `None` leaves them as in the checkpoint.
    pub mxfp4_layout: Option<LayoutName>,
    /// Sizes for which passes choose between forms that are equal in meaning: a value for every symbol, as in a [bucket](crate::bucket). Empty: passes that
    /// choose do nothing.
    pub sizes: Bindings,
    /// Asked about every kernel that fusion chooses: why code generation cannot make it, or `None`. A kernel that is refused is not chosen again. The templates should
    /// say so before; this is for shapes that their descriptions do not foresee.
    pub refuses: Option<fuse::Refuse>,
    /// What fusion has worked out before: clones of these options share it.
    pub spaces: fuse::Spaces,
    /// The machine that costs are for.
    pub machine: Machine,
    /// Names of rewrite rules that are not applied, see [`rule::RULES`].
    pub disabled_rules: Vec<String>,
    /// Names of rewrite rules that are applied although they are off, see [`rule::RuleInfo::off`].
    pub enabled_rules: Vec<String>,
    /// Verify the module before the first pass and after each. In release builds the latter only for the first bucket of options that share [`Options::spaces`]: the others
    /// are other choices among kernels that were checked when they were made.
    pub verify: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            mxfp4_layout: None,
            sizes: Bindings::new(),
            refuses: None,
            spaces: fuse::Spaces::default(),
            machine: Machine::default(),
            disabled_rules: vec![],
            enabled_rules: vec![],
            verify: true,
        }
    }
}

/// A module pass.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// Name on the command line and in dumps.
    pub name: &'static str,
    /// One line: what it does.
    pub summary: &'static str,
    /// Rewrites the module.
    pub run: fn(&mut Module, &Options) -> Result<Done, Failure>,
}

/// What a pass did.
#[derive(Clone, Debug, Default)]
pub struct Done {
    /// True if anything changed.
    pub changed: bool,
    /// What fusion did.
    pub fusion: Option<fuse::Report>,
}

impl From<bool> for Done {
    fn from(changed: bool) -> Done {
        Done { changed, fusion: None }
    }
}

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// An op that its type rule refuses.
    #[error(transparent)]
    Infer(#[from] InferError),
    /// Fusion.
    #[error(transparent)]
    Fuse(#[from] FuseError),
}

/// Every pass, by name.
pub const PASSES: &[Pass] = &[
    Pass {
        name: "canonicalise",
        summary: "removes ops that do nothing and merges chains of views",
        run: |m, o| Ok(canonicalise::run(m, o)?.into()),
    },
    Pass { name: "cse", summary: "merges ops that compute the same value", run: |m, o| Ok(cse::run(m, o)?.into()) },
    Pass {
        name: "rotate",
        summary: "of a prompt moves the norm that a layer begins with behind the layer in front; needs sizes",
        run: |m, o| Ok(rotate::run(m, o)?.into()),
    },
    Pass {
        name: "narrow",
        summary: "of a prompt computes only the rows that are read where rows are independent; needs sizes",
        run: |m, o| Ok(narrow::run(m, o)?.into()),
    },
    Pass {
        name: "layout",
        summary: "gives packed weights the layout the target wants",
        run: |m, o| Ok(layout::run(m, o)?.into()),
    },
    Pass {
        name: "fuse",
        summary: "gives every op a kernel and fuses kernels by rewrite rules and cost; needs sizes",
        run: |m, o| {
            let fusion = fuse::run(m, o)?;
            Ok(Done { changed: fusion.is_some(), fusion })
        },
    },
    Pass {
        name: "dce",
        summary: "removes ops, functions and weights that nothing uses",
        run: |m, o| Ok(dce::run(m, o)?.into()),
    },
];

/// The passes that `--passes default` runs, in order.
pub fn default_pipeline() -> Vec<Pass> {
    ["canonicalise", "cse", "rotate", "narrow", "layout", "fuse", "dce"].iter().filter_map(|n| pass(n)).collect()
}

/// The passes as a table: name and what each does.
pub fn list() -> String {
    let mut out = String::new();
    for p in PASSES {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{:<14} {}", p.name, p.summary);
    }
    let default: Vec<&str> = default_pipeline().iter().map(|p| p.name).collect();
    let _ = writeln!(out, "\ndefault: {}", default.join(","));
    out
}

/// The pass `name`.
pub fn pass(name: &str) -> Option<Pass> {
    PASSES.iter().copied().find(|p| p.name == name)
}

/// Reads a pipeline: `none`, `default`, or names separated by commas.
///
/// # Errors
/// [`PassError::Unknown`], listing the known names.
pub fn parse_pipeline(text: &str) -> Result<Vec<Pass>, PassError> {
    match text {
        "none" | "" => Ok(vec![]),
        "default" => Ok(default_pipeline()),
        _ => text
            .split(',')
            .map(|name| pass(name.trim()).ok_or_else(|| PassError::Unknown { name: name.trim().to_string() }))
            .collect(),
    }
}

/// What one pass did.
#[derive(Clone, Debug)]
pub struct PassTrace {
    /// Its name.
    pub name: &'static str,
    /// Time it took, without verification.
    pub microseconds: u64,
    /// Time that verification after it took.
    pub verify_microseconds: u64,
    /// Ops in the module before.
    pub ops_before: usize,
    /// Ops after.
    pub ops_after: usize,
    /// True if it changed anything.
    pub changed: bool,
    /// What fusion did, if this was the pass that fuses.
    pub fusion: Option<fuse::Report>,
}

/// What a pipeline did.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// One entry a pass.
    pub passes: Vec<PassTrace>,
}

impl Trace {
    /// Adds what the same pipeline did for other sizes: times sum up pass by pass, counts of ops become those of `other`.
    pub fn add(&mut self, other: Trace) {
        if self.passes.is_empty() {
            self.passes = other.passes;
            return;
        }
        for (sum, p) in self.passes.iter_mut().zip(other.passes) {
            let (us, verify) = (sum.microseconds + p.microseconds, sum.verify_microseconds + p.verify_microseconds);
            *sum = PassTrace { microseconds: us, verify_microseconds: verify, changed: sum.changed || p.changed, ..p };
        }
    }

    /// Time of all passes and of verification after them, in microseconds.
    pub fn microseconds(&self) -> u64 {
        self.passes.iter().map(|p| p.microseconds + p.verify_microseconds).sum()
    }

    /// A table for people.
    pub fn text(&self) -> String {
        let mut out = String::from("pass            time us  verify us  ops before  after  changed\n");
        for p in &self.passes {
            let changed = if p.changed { "yes" } else { "no" };
            let _ = writeln!(
                out,
                "{:<14} {:>8} {:>10} {:>11} {:>6}  {changed}",
                p.name, p.microseconds, p.verify_microseconds, p.ops_before, p.ops_after
            );
        }
        out
    }

    /// The same for tools: `{"version": 1, "passes": [..]}`.
    pub fn json(&self) -> serde_json::Value {
        let passes: Vec<_> = self
            .passes
            .iter()
            .map(|p| {
                serde_json::json!({
                    "name": p.name, "us": p.microseconds, "verify_us": p.verify_microseconds,
                    "ops_before": p.ops_before, "ops_after": p.ops_after, "changed": p.changed,
                })
            })
            .collect();
        serde_json::json!({ "version": 1, "passes": passes })
    }
}

/// Why a pipeline stopped.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// No pass of that name.
    #[error("unknown pass `{name}`; known: none, default, {}", PASSES.iter().map(|p| p.name).collect::<Vec<_>>().join(", "))]
    Unknown {
        /// The name.
        name: String,
    },
    /// No rule of that name.
    #[error("unknown rule `{name}`; known: {}", rule::known())]
    UnknownRule {
        /// The name.
        name: String,
    },
    /// A pass made an op that its type rule refuses.
    #[error("pass {pass}: {source}")]
    Infer {
        /// The pass.
        pass: &'static str,
        /// What the type rule says.
        source: InferError,
    },
    /// Fusion stopped.
    #[error("pass fuse: {source}")]
    Fuse {
        /// Why.
        source: FuseError,
    },
    /// The module does not verify.
    #[error("{when}: {errors}")]
    Verify {
        /// `input`, or `after pass NAME`.
        when: String,
        /// Every error.
        errors: VerifyErrors,
    },
}

/// Runs `passes` over `module`.
///
/// # Errors
/// A pass that fails, or a module that does not verify before or after one.
pub fn compile(module: Module, passes: &[Pass], options: &Options) -> Result<(Module, Trace), PassError> {
    compile_with(module, passes, options, &mut |_, _, _| {})
}

/// [`compile`] that shows each module: `observe(number, name, module)` with number 0 and name `input` first, then after each pass that changed something.
///
/// # Errors
/// As [`compile`].
pub fn compile_with(
    mut module: Module,
    passes: &[Pass],
    options: &Options,
    observe: &mut dyn FnMut(usize, &str, &Module),
) -> Result<(Module, Trace), PassError> {
    // What comes in may be anyone's text, so it is checked whatever was compiled before.
    let after_passes = cfg!(debug_assertions) || options.spaces.is_empty();
    let check = |module: &Module, stage: Stage, when: &dyn Fn() -> String| match options.verify {
        true => verify(module, stage).map(drop).map_err(|errors| PassError::Verify { when: when(), errors }),
        false => Ok(()),
    };
    rule::check_names(&options.disabled_rules)?;
    rule::check_names(&options.enabled_rules)?;
    let mut stage = Stage::Tensor;
    check(&module, stage, &|| "input".to_string())?;
    observe(0, "input", &module);
    let mut trace = Trace::default();
    for (i, pass) in passes.iter().enumerate() {
        let ops_before = count(&module);
        let start = Instant::now();
        let Done { changed, fusion } = (pass.run)(&mut module, options).map_err(|failure| match failure {
            Failure::Infer(source) => PassError::Infer { pass: pass.name, source },
            Failure::Fuse(source) => PassError::Fuse { source },
        })?;
        if fusion.is_some() {
            stage = Stage::Fused;
        }
        let microseconds = start.elapsed().as_micros() as u64;
        let start = Instant::now();
        if after_passes {
            check(&module, stage, &|| format!("after pass {}", pass.name))?;
        }
        let verify_microseconds = start.elapsed().as_micros() as u64;
        if changed {
            observe(i + 1, pass.name, &module);
        }
        let ops_after = count(&module);
        trace.passes.push(PassTrace {
            name: pass.name,
            microseconds,
            verify_microseconds,
            ops_before,
            ops_after,
            changed,
            fusion,
        });
    }
    Ok((module, trace))
}

fn count(module: &Module) -> usize {
    module.funcs.iter().map(|f| f.graph.len()).sum()
}
