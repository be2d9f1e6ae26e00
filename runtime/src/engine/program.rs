//! What an engine runs before it has a device: the program of a head, the plan of a step, and the state they need.

use gossamer_ir::{InferError, Module, StateDecl, Type};
use gossamer_models::config::ModelConfig;
use gossamer_models::step::{ENTRY, Head, Program, StepOptions};
use gossamer_passes::bucket::StepSize;
use gossamer_passes::plan::plan;
use gossamer_passes::{Plan, compile};

use super::kv::Group;
use super::{EngineError, EngineOptions};
use crate::exec::StateSpec;

/// The plan of a step of `size`: `program` through the passes and then laid out.
///
/// # Errors
/// A program that does not compile or plan.
pub fn plan_step(program: &Module, options: &EngineOptions, size: StepSize) -> Result<Plan, EngineError> {
    let sizes = size.bindings(options.context, options.context.div_ceil(options.page));
    let mut pass_options = options.pass_options.clone();
    if options.fuse {
        pass_options.sizes = sizes.clone();
        if pass_options.mxfp4_layout.is_some() {
            pass_options.refuses = Some(crate::kernels::refuse());
        }
    }
    let (module, _) = compile(program.clone(), &options.passes, &pass_options)?;
    Ok(plan(&module, ENTRY, &sizes)?)
}

/// The program of a model for one head under an engine's limits.
///
/// # Errors
/// An op that refuses its operands; a parsed configuration gives none.
pub fn program(config: &ModelConfig, options: &EngineOptions, head: Head) -> Result<Program, InferError> {
    let step = StepOptions {
        head,
        max_tokens: options.chunk,
        max_seqs: options.max_seqs,
        context: options.context,
        page: options.page,
    };
    gossamer_models::build(config, &step)
}

/// The state that an engine with these limits needs, by parameter of `@step`.
///
/// # Errors
/// As [`program`].
pub fn state_specs(config: &ModelConfig, options: &EngineOptions) -> Result<Vec<StateSpec>, InferError> {
    let program = program(config, options, Head::Full)?;
    let Some(f) = program.module.func(ENTRY) else { return Ok(vec![]) };
    let mut out = Vec::new();
    for p in &f.params {
        let Type::State(_, name) = &p.ty else { continue };
        if let Some(decl) = program.module.state(name) {
            let units = match decl {
                StateDecl::Kv { .. } => pages(decl, options),
                StateDecl::Counts { .. } => options.max_seqs,
            };
            out.push(StateSpec { name: p.name.to_string(), decl: decl.clone(), units });
        }
    }
    Ok(out)
}

/// Pages of a KV declaration.
fn pages(decl: &StateDecl, options: &EngineOptions) -> usize {
    let all = Group::pages_for(decl, options.max_seqs, options.context, options.chunk);
    match (decl, options.kv_tokens) {
        // At least one page a sequence, or none could start.
        (StateDecl::Kv { window: None, page, .. }, Some(tokens)) => {
            all.min(tokens.div_ceil(*page as usize).max(options.max_seqs))
        }
        _ => all,
    }
}
