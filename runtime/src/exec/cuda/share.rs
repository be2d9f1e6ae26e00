//! Preparing once for several ops: lists of rows by expert serve all matmuls of the same choices.
//!
//! An op may begin with launches that fill buffers which depend on some operands alone ([`Lowered::prepare`]). All ops of a plan have these buffers in one
//! place, which keeps what was prepared last; an op that would prepare the same there leaves its launches out. Plain arithmetic on launches.

use std::sync::Arc;

use gossamer_codegen_cuda::lower::{Arg, KernelSource, Launch, Lowered};
use gossamer_ir::{Func, OpId, Value};

/// Leaves out launches whose results are still there: `lowered` are the steps of `f`, in the order they run.
pub fn share_prepared(f: &Func, steps: &[OpId], lowered: &mut [Arc<Lowered>]) {
    let mut last: Option<Vec<Preparation>> = None;
    // Equal layers stay one.
    let mut known: Vec<(Arc<Lowered>, Arc<Lowered>)> = Vec::new();
    for (id, l) in steps.iter().zip(lowered) {
        if l.prepare == 0 {
            continue;
        }
        let operands = &f.graph.op(*id).operands;
        let here: Option<Vec<Preparation>> =
            l.launches.iter().take(l.prepare).map(|launch| Preparation::of(launch, operands, &l.kept)).collect();
        if here.is_none() || here != last {
            last = here;
            continue;
        }
        let shared = match known.iter().find(|(whole, _)| Arc::ptr_eq(whole, l)) {
            Some((_, shared)) => shared.clone(),
            None => {
                known.push((l.clone(), Arc::new(l.prepared())));
                known[known.len() - 1].1.clone()
            }
        };
        *l = shared;
    }
}

/// What the results of a launch that prepares depend on. Values of a plan never change, so equal ones make equal results.
#[derive(Debug, PartialEq)]
struct Preparation {
    kernel: Arc<KernelSource>,
    grid: [u32; 3],
    block: u32,
    shared: u32,
    args: Vec<(Arg, Option<Value>)>,
    kept: Vec<u64>,
}

impl Preparation {
    /// Of a launch with these operands; `None` if it reads or writes anything but operands and prepared buffers.
    fn of(launch: &Launch, operands: &[Value], kept: &[u64]) -> Option<Preparation> {
        let arg = |arg: &Arg| match *arg {
            // Which operand it is does not matter.
            Arg::Operand { index, part } => Some((Arg::Operand { index: 0, part }, Some(*operands.get(index)?))),
            Arg::TensorMap { index, part, matrix } => {
                Some((Arg::TensorMap { index: 0, part, matrix }, Some(*operands.get(index)?)))
            }
            Arg::Kept(_) | Arg::I32(_) | Arg::I64(_) | Arg::F32(_) => Some((*arg, None)),
            Arg::Result { .. } | Arg::Scratch(_) | Arg::Counters | Arg::Wanted => None,
        };
        Some(Preparation {
            kernel: launch.kernel.clone(),
            grid: launch.grid,
            block: launch.block,
            shared: launch.shared,
            args: launch.args.iter().map(arg).collect::<Option<_>>()?,
            kept: kept.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::bind::lower_steps;
    use super::super::resident;
    use super::super::testing::{ops, plan_with, prompt_plan};
    use super::*;
    use gossamer_ir::OpKind;
    use gossamer_models::step::Head;
    use gossamer_passes::Options;

    fn names(lowered: &[Arc<Lowered>]) -> Vec<String> {
        let name = |l: &Launch| l.kernel.entry.split("_e").next().unwrap().trim_start_matches("gs_").to_string();
        lowered.iter().flat_map(|l| l.launches.iter().map(name)).filter(|n| n.starts_with("moe_")).collect()
    }

    #[test]
    fn rows_are_listed_once_a_layer() {
        let sizes = gossamer_passes::bucket::sizes(64, 1, 1, 512, 8);
        let options = Options { mxfp4_layout: Some(resident::PACKED.into()), sizes, ..Options::default() };
        let plan = prompt_plan(64, Head::Greedy, &options);
        let lowered = lower_steps(&plan, &Default::default()).unwrap();
        let layer = ["moe_order", "moe_gemm", "moe_gemm"];
        let last = ["moe_stream", "moe_stream"];
        assert_eq!(names(&lowered), [&layer[..], &layer, &last].concat());
        // Both whole layers are alike, so they are one.
        let kernels: Vec<_> = lowered.iter().filter(|l| !l.kept.is_empty()).collect();
        assert_eq!(kernels.len(), 4);
        assert!(Arc::ptr_eq(kernels[0], kernels[2]) && Arc::ptr_eq(kernels[1], kernels[3]));
        assert_eq!((kernels[0].prepare, kernels[1].prepare), (1, 0));
        assert_eq!(kernels[0].kept, kernels[1].kept);
    }

    #[test]
    fn other_values_arguments_and_preparations_between_are_seen() {
        let plan = plan_with(2, Head::Greedy, &Options::default());
        let write = ops(&plan, OpKind::KvWrite);
        let kernel = |entry: &str| Arc::new(KernelSource { entry: entry.into(), text: "text".into() });
        let op = |entry: &str, index: usize, number: i32, kept: u64| {
            let launch = |entry: &str, args| Launch {
                kernel: kernel(entry),
                grid: [1; 3],
                block: 32,
                shared: 0,
                dependent: true,
                args,
            };
            let operand = Arg::Operand { index, part: gossamer_codegen_cuda::lower::Part::Data };
            let first = launch(entry, vec![operand, Arg::Kept(0), Arg::I32(number)]);
            let launches = vec![first, launch("work", vec![Arg::Kept(0)])];
            Arc::new(Lowered { launches, prepare: 1, kept: vec![kept], ..Lowered::default() })
        };
        let left = |steps: &[OpId], mut lowered: Vec<Arc<Lowered>>| {
            share_prepared(&plan.func, steps, &mut lowered);
            lowered.iter().map(|l| l.launches.len()).collect::<Vec<_>>()
        };
        let same = [write[0], write[0], write[0]];
        let a = || op("a", 1, 7, 64);
        assert_eq!(left(&same, vec![a(), a(), a()]), [2, 1, 1]);
        assert_eq!(left(&same, vec![a(), Arc::new(Lowered::default()), a()]), [2, 0, 1]);
        // Another kernel, operand, number or size takes the place, so the first must be prepared anew.
        for other in [op("b", 1, 7, 64), op("a", 2, 7, 64), op("a", 1, 8, 64), op("a", 1, 7, 65)] {
            assert_eq!(left(&same, vec![a(), other, a()]), [2, 2, 2]);
        }
        // The same operand number of another op is another value.
        assert_eq!(left(&write[..2], vec![a(), a()]), [2, 2]);
        // What also reads something else is never left out.
        let mut odd = (*a()).clone();
        odd.launches[0].args.push(Arg::Counters);
        let odd = Arc::new(odd);
        assert_eq!(left(&same, vec![odd.clone(), odd.clone(), odd]), [2, 2, 2]);
    }
}
