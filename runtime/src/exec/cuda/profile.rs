//! Measuring: each kernel by itself, a whole step, and what kernels need.

use super::bind::{kernel_error, op_label};
use super::{Call, CudaExecutor, prepared, traffic, write_host};
use crate::cuda::{DeviceBuffer, Event, EventKind};
use crate::exec::{ExecError, Inputs, LaunchTime, Measure, PlanId, Profile, TRACED_STEPS};

/// One launch of a step and what its kernel needs; zeros for library calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct KernelInfo {
    /// Entry name of the kernel.
    pub name: String,
    /// The op it belongs to: name and value.
    pub op: String,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Bytes of shared memory of a block, static and dynamic.
    pub shared: u32,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of local memory of a thread; above 0 it spills or indexes arrays.
    pub local: u32,
}

/// Filled before the first timed launch, so that the CPU is ahead of the GPU and gaps between launches are not its own.
const HEAD_START: usize = 256 << 20;
/// How often, each about 0.1 ms.
const HEAD_START_FILLS: usize = 100;

impl CudaExecutor {
    /// Measures a step: each launch alone and as a part of the step, and the step. Ops that change counts are run that often.
    ///
    /// # Errors
    /// As for a step; an executor without graphs cannot replay them.
    pub fn profile(&mut self, id: PlanId, inputs: &Inputs, how: &Measure) -> Result<Profile, ExecError> {
        let rounds = how.rounds.max(1);
        let alone = self.time_launches(id, inputs, rounds)?;
        let ahead = match how.ahead {
            Some((feedback, steps)) if self.can_run_ahead(id, feedback)? && steps >= TRACED_STEPS => how.ahead,
            _ => None,
        };
        let step_us = match ahead {
            Some((feedback, steps)) => {
                let mut ends = Vec::new();
                self.run_on_device(id, inputs, feedback, steps, &mut |_, end| {
                    ends.push(end);
                    true
                })?;
                median(ends.windows(2).map(|w| w[1].saturating_sub(w[0]) as f64 / 1000.0).collect())
            }
            None => median(self.time_graph(id, inputs, rounds)?),
        };
        let trace = self.trace(id, inputs, rounds, ahead.is_some())?;
        let p = prepared(&self.plans, id)?;
        let mut launches: Vec<LaunchTime> = Vec::with_capacity(alone.len());
        for ((call, alone_us), part_us) in p.calls.iter().zip(alone).zip(trace.parts) {
            let (name, op) = (call.name(), op_label(&p.plan, call.op()));
            launches.push(LaunchTime { name, op, part_us, alone_us, bytes: 0.0 });
        }
        // An op's bytes are moved by the longest of its launches: those beside it sort and combine.
        let mut at = 0;
        for of_op in p.calls.chunk_by(|a, b| a.op() == b.op()) {
            let launches = &mut launches[at..at + of_op.len()];
            at += of_op.len();
            if let Some(longest) = launches.iter_mut().max_by(|a, b| a.alone_us.total_cmp(&b.alone_us)) {
                longest.bytes = traffic::bytes(&p.plan, of_op[0].op(), inputs, how.experts);
            }
        }
        let (end_us, gaps_us, overlap_us) = (trace.end_us, trace.gaps_us, trace.overlap_us);
        Ok(Profile { launches, end_us, gaps_us, overlap_us, step_us })
    }

    /// Times every launch of a step by itself, without the graph: medians over `rounds` rounds, in microseconds.
    fn time_launches(&mut self, id: PlanId, inputs: &Inputs, rounds: usize) -> Result<Vec<f64>, ExecError> {
        self.feed(id, inputs)?;
        let filler = DeviceBuffer::alloc(&self.device, HEAD_START, "profiling").ok();
        let p = prepared(&self.plans, id)?;
        let mut events = Vec::with_capacity(p.calls.len() + 1);
        for _ in 0..=p.calls.len() {
            events.push(Event::new(&self.device, EventKind::Timing)?);
        }
        let mut times = vec![Vec::new(); p.calls.len()];
        for _ in 0..rounds {
            for _ in 0..HEAD_START_FILLS {
                if let Some(buffer) = &filler {
                    buffer.all().zero(&self.stream)?;
                }
            }
            self.enqueue_inputs(p)?;
            events[0].record(&self.stream)?;
            let mut next = 0;
            self.enqueue_kernels(p, &mut |_| {
                next += 1;
                Ok(events[next].record(&self.stream)?)
            })?;
            self.stream.synchronize()?;
            for (i, times) in times.iter_mut().enumerate() {
                times.push(events[i].elapsed_us(&events[i + 1])?);
            }
        }
        Ok(times.into_iter().map(median).collect())
    }

    /// Times `n` replays of the graph of a step on the same inputs, in microseconds each, copies of inputs and results included.
    ///
    /// # Errors
    /// As for a step; an executor without graphs cannot replay them.
    pub fn time_graph(&mut self, id: PlanId, inputs: &Inputs, n: usize) -> Result<Vec<f64>, ExecError> {
        self.feed(id, inputs)?;
        let p = prepared(&self.plans, id)?;
        let Some((_, graph)) = &p.graph else {
            return Err(kernel_error("timing graphs needs graphs; unset GOSSAMER_EAGER"));
        };
        let mut events = Vec::with_capacity(n + 1);
        for _ in 0..=n {
            events.push(Event::new(&self.device, EventKind::Timing)?);
        }
        events[0].record(&self.stream)?;
        for event in &events[1..] {
            // SAFETY: as for a step.
            unsafe { graph.launch(&self.stream)? };
            event.record(&self.stream)?;
        }
        self.stream.synchronize()?;
        events.windows(2).map(|pair| Ok(pair[0].elapsed_us(&pair[1])?)).collect()
    }

    /// The launches of a step, in order.
    ///
    /// # Errors
    /// A plan that was not prepared.
    pub fn kernels(&self, id: PlanId) -> Result<Vec<KernelInfo>, ExecError> {
        let p = prepared(&self.plans, id)?;
        let info = |call: &Call| {
            let unknown = KernelInfo { name: call.name(), op: op_label(&p.plan, call.op()), ..KernelInfo::default() };
            match call {
                // What the library launches is its own.
                Call::Library(..) => unknown,
                Call::Kernel(l) => KernelInfo {
                    grid: l.bound.grid,
                    block: l.bound.block,
                    shared: l.bound.shared + l.function.info().static_shared,
                    registers: l.function.info().registers,
                    local: l.function.info().local_bytes,
                    ..unknown
                },
            }
        };
        Ok(p.calls.iter().map(info).collect())
    }

    /// Runs a step once, so that the inputs are in place and everything is warm.
    fn feed(&mut self, id: PlanId, inputs: &Inputs) -> Result<(), ExecError> {
        self.run_with(id, &|slot, out| write_host(slot, inputs, out))
    }
}

/// The middle one, or the mean of the middle two; 0 of none.
pub(super) fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    let n = times.len();
    match n {
        0 => 0.0,
        _ => (times[(n - 1) / 2] + times[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), 0.0);
        assert_eq!(median(vec![3.0]), 3.0);
        assert_eq!(median(vec![9.0, 1.0]), 5.0);
        assert_eq!(median(vec![9.0, 1.0, 2.0]), 2.0);
    }
}
