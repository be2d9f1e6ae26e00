//! Every kernel that a model's plans need, without a GPU: what `gossamer compile` puts into the cache.

use std::collections::BTreeMap;
use std::sync::Arc;

use gossamer_codegen_cuda::lower::{KernelSource, LowerError, OpInstance, lower};
use gossamer_ir::{Attr, Attrs, Op, OpId, OpKind, Type};
use gossamer_models::config::ModelConfig;
use gossamer_models::step::Head;
use gossamer_passes::Plan;
use gossamer_passes::bucket::StepSize;
use gossamer_passes::fuse::Refuse;

use crate::engine::{EngineError, EngineOptions, plan_step, program};

/// What fusion asks about its kernels: whether there is code for them.
pub fn refuse() -> Refuse {
    Refuse(Arc::new(|kernel, operands, module, sizes| {
        let op = Op {
            kind: OpKind::Kernel,
            attrs: Attrs::from([("body", Attr::Kernel(Arc::new(kernel.clone())))]),
            operands: vec![],
            results: kernel.result_types(),
            names: vec![],
            seq: 0,
            loc: None,
        };
        lower(&OpInstance { op: &op, operands, module, sizes, early: &[] }).err().map(|e| e.to_string())
    }))
}

/// The kernels of a plan by entry name: those of its steps, and of the load ops that run on the device.
///
/// # Errors
/// An op for which there is no kernel.
pub fn of_plan(p: &Plan) -> Result<BTreeMap<String, Arc<KernelSource>>, LowerError> {
    let mut out = BTreeMap::new();
    for id in p.steps.iter().chain(&p.load) {
        for launch in launches(p, *id)? {
            out.insert(launch.entry.clone(), launch);
        }
    }
    Ok(out)
}

fn launches(p: &Plan, id: OpId) -> Result<Vec<Arc<KernelSource>>, LowerError> {
    let op = p.func.graph.op(id);
    let operands: Vec<Type> = op.operands.iter().map(|v| p.func.graph.ty(*v).clone()).collect();
    // As the executor does, or what is compiled ahead would not be what runs.
    let early = crate::exec::cuda::bind::early_operands(p, id);
    let instance = OpInstance { op, operands: &operands, module: &p.decls, sizes: &p.sizes, early: &early };
    Ok(lower(&instance)?.launches.into_iter().map(|l| l.kernel).collect())
}

/// The kernels of a model for every head, at the least and the greatest step. Sizes are arguments of kernels, so these are (nearly) all kernels of all
/// buckets; a family chosen by size in between is compiled when it is first needed.
///
/// # Errors
/// A model that does not build or compile, or an op for which there is no kernel.
pub fn of_model(
    config: &ModelConfig,
    options: &EngineOptions,
) -> Result<Result<BTreeMap<String, Arc<KernelSource>>, LowerError>, EngineError> {
    let mut all = BTreeMap::new();
    for head in [Head::Greedy, Head::Sample, Head::Full, Head::Logits { hidden: false }] {
        let program = program(config, options, head)?;
        for size in sizes(options) {
            let p = plan_step(&program.module, options, size)?;
            match of_plan(&p) {
                Ok(kernels) => all.extend(kernels),
                Err(e) => return Ok(Err(e)),
            }
        }
    }
    Ok(Ok(all))
}

/// Steps at which kernel families may differ: decode of one and of all sequences, and prompts from short to a whole chunk.
fn sizes(o: &EngineOptions) -> Vec<StepSize> {
    let decode = [1, 8, 16, 64, 256].into_iter().filter(|n| *n <= o.max_seqs).chain([o.max_seqs]);
    let prompt = [16, 64, 256, 1024].into_iter().filter(|n| *n <= o.chunk).chain([o.chunk]);
    let step = |tokens, seqs| StepSize { tokens, seqs, rows: seqs };
    let mut sizes: Vec<StepSize> = decode.map(|n| step(n, n)).chain(prompt.map(|n| step(n, 1))).collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}
