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
    // The host packs weights as it reads them.
    let on_device = |id: &&OpId| p.func.graph.op(**id).kind != OpKind::Relayout;
    for id in p.steps.iter().chain(p.load.iter().filter(on_device)) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::MXFP4_LAYOUT;
    use gossamer_codegen_cuda::nvrtc::{Source, for_tests};
    use gossamer_codegen_cuda::tools::stamped;
    use gossamer_models::presets;
    use gossamer_passes::{Options, manager};

    /// Every kernel of a large model's steps, compiles in the form that leaves time stamps.
    #[test]
    fn every_kernel_of_a_step_takes_time_stamps() {
        let mut c = presets::gpt_oss_20b();
        c.layers = 2;
        c.layer_types.truncate(2);
        let config = ModelConfig::GptOss(c);
        let options = EngineOptions {
            context: 1024,
            chunk: 512,
            max_seqs: 64,
            page: 64,
            kv_tokens: None,
            passes: manager::default_pipeline(),
            pass_options: Options { mxfp4_layout: Some(MXFP4_LAYOUT.into()), ..Options::default() },
            fuse: true,
        };
        let program = program(&config, &options, Head::Sample).unwrap();
        let mut kernels = BTreeMap::new();
        for (tokens, seqs) in [(1, 1), (64, 64), (512, 1)] {
            let plan = plan_step(&program.module, &options, StepSize { tokens, seqs, rows: seqs }).unwrap();
            kernels.extend(of_plan(&plan).unwrap());
        }
        let nvrtc = for_tests();
        for kernel in kernels.values() {
            let with = stamped(kernel).unwrap_or_else(|| panic!("{}", kernel.text));
            let Some(nvrtc) = &nvrtc else { continue };
            let compiled = nvrtc.compile(&Source::new(&with.entry, &with.text)).unwrap_or_else(|e| panic!("{e}"));
            assert!(compiled.kernel(&kernel.entry).is_some(), "{}", kernel.entry);
        }
    }
}
