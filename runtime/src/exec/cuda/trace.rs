//! What each kernel adds to a step: its graph with time stamps in every kernel.
//!
//! Dependent launches overlap, so kernels timed one by one add up to more than the step. Here every kernel of the step's own graph leaves the time of its
//! first block's start and its last warp's end ([`stamped`]). Each launch is charged the time from the end of the one before to its own end: these parts add
//! up to the step, whatever overlaps. The stamps cost two reductions a block; [`Profile::step_us`] is measured without them.

use std::collections::BTreeMap;
use std::sync::Arc;

use gossamer_codegen_cuda::lower::KernelSource;
use gossamer_codegen_cuda::tools::{self, STAMP_BYTES, read_stamps, stamped};

use super::bind::kernel_error;
use super::{Call, CudaExecutor, Prepared, prepared};
use crate::cuda::{DeviceBuffer, Function, GraphExec, LaunchConfig};
use crate::exec::{ExecError, Inputs, PlanId, TRACED_STEPS};

/// Times of a traced step, in microseconds, over all rounds.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Trace {
    /// Of each launch: from the end of the one before to its own.
    pub parts: Vec<f64>,
    /// The same of the kernel that feeds the next step.
    pub end_us: f64,
    /// Between the end of a launch and the start of the next, where that is later.
    pub gaps_us: f64,
    /// Between the start of a launch and the end of the one before, where that is later.
    pub overlap_us: f64,
}

/// A step's kernels in their stamped form.
struct Stamped {
    /// By the plain kernel.
    functions: BTreeMap<Arc<KernelSource>, Function>,
    /// Marks the end of a library's kernels.
    mark: Function,
    /// The end of a step that feeds the next.
    advance: Option<Function>,
}

impl CudaExecutor {
    /// Traces steps of a prepared plan over `rounds` rounds: `fed`, runs of [`TRACED_STEPS`] of which the first only leads in; else single steps.
    pub(super) fn trace(&mut self, id: PlanId, inputs: &Inputs, rounds: usize, fed: bool) -> Result<Trace, ExecError> {
        let stamped = self.stamped(id, fed)?;
        let steps = if fed { TRACED_STEPS } else { 1 };
        let launches = prepared(&self.plans, id)?.calls.len() + usize::from(fed);
        let bytes = steps * launches * STAMP_BYTES;
        let stamps = DeviceBuffer::alloc(&self.device, bytes, "time stamps")?;
        let graph = self.capture_stamped(prepared(&self.plans, id)?, &stamped, &stamps, steps)?;
        let (mut host, mut sum) = (vec![0u8; bytes], Sum::new(launches));
        // One round that is not counted.
        for round in 0..=rounds.max(1) {
            stamps.all().zero(&self.stream)?;
            self.upload_inputs(id, inputs)?;
            // SAFETY: as for a step; the stamps live until the stream has been waited for below.
            unsafe { graph.launch(&self.stream)? };
            if let Some(ahead) = &mut self.plans[id.0].ahead.as_mut().filter(|_| fed) {
                ahead.steps = ahead.steps.wrapping_add(steps as u32);
            }
            stamps.all().download(&self.stream, &mut host)?;
            if round > 0 {
                sum.add(&host, launches, fed)?;
            }
        }
        self.stream.synchronize()?;
        Ok(sum.mean(fed))
    }

    fn stamped(&mut self, id: PlanId, fed: bool) -> Result<Stamped, ExecError> {
        let missing =
            |k: &KernelSource| kernel_error(format!("kernel {} cannot take time stamps; please report it", k.entry));
        let with = |k: &KernelSource| stamped(k).map(Arc::new).ok_or_else(|| missing(k));
        let p = prepared(&self.plans, id)?;
        let mut sources: BTreeMap<Arc<KernelSource>, Arc<KernelSource>> = BTreeMap::new();
        let mut needed: BTreeMap<Arc<KernelSource>, u32> = BTreeMap::new();
        for call in &p.calls {
            let Call::Kernel(launch) = call else { continue };
            let kernel = &launch.bound.kernel;
            let stamped = match sources.get(kernel) {
                Some(known) => known.clone(),
                None => with(kernel)?,
            };
            let shared = needed.entry(stamped.clone()).or_default();
            *shared = launch.bound.shared.max(*shared);
            sources.insert(kernel.clone(), stamped);
        }
        let mark = with(&tools::mark())?;
        let advance = p.ahead.as_ref().filter(|_| fed).map(|a| with(&a.kernel)).transpose()?;
        needed.extend([&Some(mark.clone()), &advance].into_iter().flatten().map(|k| (k.clone(), 0)));
        self.kernels.load(&self.device, &needed, &self.phases, &|_, _, _| {})?;
        let get = |k: &Arc<KernelSource>| self.kernels.get(k).cloned().ok_or_else(|| missing(k));
        let mut functions = BTreeMap::new();
        for (plain, stamped) in &sources {
            functions.insert(plain.clone(), get(stamped)?);
        }
        Ok(Stamped { functions, mark: get(&mark)?, advance: advance.as_ref().map(get).transpose()? })
    }

    fn capture_stamped(
        &self,
        p: &Prepared,
        stamped: &Stamped,
        stamps: &DeviceBuffer,
        steps: usize,
    ) -> Result<GraphExec, ExecError> {
        let mut at = (0u64..).map(|i| stamps.ptr() + i * STAMP_BYTES as u64);
        let mut next = || at.next().unwrap_or(0);
        let (graph, ()) = self.stream.capture(|| {
            for _ in 0..steps {
                for (i, call) in p.calls.iter().enumerate() {
                    self.enqueue_stamped(call, stamped, i == 0, next())?;
                }
                if let Some(advance) = &stamped.advance {
                    self.enqueue_advance(p, advance, Some(next()))?;
                }
            }
            Ok::<(), ExecError>(())
        })?;
        let exec = graph.instantiate()?;
        exec.upload(&self.stream)?;
        self.stream.synchronize()?;
        Ok(exec)
    }

    fn enqueue_stamped(&self, call: &Call, stamped: &Stamped, whole: bool, stamps: u64) -> Result<(), ExecError> {
        let Call::Kernel(launch) = call else {
            self.enqueue_call(call, whole)?;
            let mut args = crate::cuda::ArgList::new();
            args.ptr(stamps);
            // SAFETY: the kernel writes its stamps only.
            unsafe { stamped.mark.launch(&self.stream, &LaunchConfig::linear(1, 32), &args)? };
            return Ok(());
        };
        let Some(function) = stamped.functions.get(&launch.bound.kernel) else { return Ok(()) };
        let mut args = self.arguments(&launch.bound.args)?;
        args.ptr(stamps);
        let config = LaunchConfig { pdl: launch.config.pdl && !whole, ..launch.config };
        // SAFETY: as for a step, and the stamps have room for every launch.
        unsafe { function.launch(&self.stream, &config, &args)? };
        Ok(())
    }
}

/// Sums of nanoseconds over steps.
struct Sum {
    steps: usize,
    parts: Vec<u64>,
    gaps: u64,
    overlap: u64,
}

impl Sum {
    fn new(launches: usize) -> Sum {
        Sum { steps: 0, parts: vec![0; launches], gaps: 0, overlap: 0 }
    }

    /// Adds the steps of one round: fed ones but for the first, whose end the second is counted from.
    fn add(&mut self, stamps: &[u8], launches: usize, fed: bool) -> Result<(), ExecError> {
        let lost = || kernel_error("a kernel left no time stamps; please report it");
        let times: Option<Vec<(u64, u64)>> = stamps.chunks_exact(STAMP_BYTES).map(read_stamps).collect();
        let times = times.ok_or_else(lost)?;
        let first = if fed { launches } else { 0 };
        // A single step is counted from its first block on.
        let mut end = match fed {
            true => times[..first].iter().map(|t| t.1).max(),
            false => times.first().map(|t| t.0),
        }
        .ok_or_else(lost)?;
        for step in times[first..].chunks_exact(launches) {
            for (part, (began, ended)) in self.parts.iter_mut().zip(step) {
                self.gaps += began.saturating_sub(end);
                self.overlap += end.saturating_sub(*began);
                *part += ended.saturating_sub(end);
                end = end.max(*ended);
            }
            self.steps += 1;
        }
        Ok(())
    }

    fn mean(&self, fed: bool) -> Trace {
        let us = |ns: u64| ns as f64 / 1000.0 / self.steps.max(1) as f64;
        let mut parts: Vec<f64> = self.parts.iter().map(|ns| us(*ns)).collect();
        let end_us = if fed { parts.pop().unwrap_or(0.0) } else { 0.0 };
        Trace { parts, end_us, gaps_us: us(self.gaps), overlap_us: us(self.overlap) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamps(times: &[(u64, u64)]) -> Vec<u8> {
        let one = |(start, end): &(u64, u64)| {
            let mut out = vec![0u8; STAMP_BYTES];
            out[..8].copy_from_slice(&(!start).to_le_bytes());
            out[8..16].copy_from_slice(&end.to_le_bytes());
            out
        };
        times.iter().flat_map(one).collect()
    }

    #[test]
    fn parts_of_a_step_add_up_to_it() {
        // Two launches and the end of the step, three steps; the first leads in.
        let times =
            [(0, 50), (40, 90), (85, 100), (104, 200), (150, 260), (262, 300), (304, 410), (350, 480), (478, 500)];
        let mut sum = Sum::new(3);
        sum.add(&stamps(&times), 3, true).unwrap();
        let trace = sum.mean(true);
        assert_eq!((trace.parts.clone(), trace.end_us), (vec![0.105, 0.065], 0.030));
        assert!((trace.parts.iter().sum::<f64>() + trace.end_us - 0.2).abs() < 1e-12);
        assert_eq!((trace.gaps_us, trace.overlap_us), ((4 + 2 + 4) as f64 / 2000.0, (50 + 60 + 2) as f64 / 2000.0));
    }

    #[test]
    fn a_single_step_counts_from_its_first_block() {
        let mut sum = Sum::new(2);
        sum.add(&stamps(&[(1000, 3000), (2500, 4000)]), 2, false).unwrap();
        assert_eq!(sum.mean(false), Trace { parts: vec![2.0, 1.0], end_us: 0.0, gaps_us: 0.0, overlap_us: 0.5 });
        assert!(sum.add(&vec![0; 2 * STAMP_BYTES], 2, false).is_err());
    }
}
