//! Runs of steps that feed each other on the device.
//!
//! One more kernel ends each step ([`Advance`]): it copies the results into a slot of a ring in page-locked memory, makes them the next step's inputs, and then
//! writes the step's number there. The host keeps [`AHEAD`] steps enqueued, reads slots as their numbers appear, and so is never waited for. A graph is
//! the kernels and that one: no copies.
//!
//! Kernels may read inputs before they wait for their predecessors, which is right while inputs come from the host before the step. Here the step before writes
//! them, so the first kernel of a step waits for it to end, and those behind start only once the first has.

use std::collections::BTreeMap;
use std::hint::spin_loop;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use gossamer_codegen_cuda::tools::{Advance, KernelSource, SLOT_HEADER};

use super::bind::{Address, Region, kernel_error};
use super::block::Slot;
use super::{CudaExecutor, Prepared, convert, prepared, write_host, write_inputs};
use crate::cuda::{ArgList, DeviceBuffer, Function, GraphExec, LaunchConfig, PinnedBuffer, PinnedKind, Stream};
use crate::exec::{ExecError, Feedback, HostData, Inputs, OnStep, PlanId};

/// Steps enqueued before the first of them is read: enough to hide the host, few enough to waste little when an answer ends.
const AHEAD: usize = 4;

/// Slots of the ring, more than are ever unread.
const SLOTS: usize = 16;

/// What runs of one plan need.
pub(super) struct Ahead {
    feedback: Feedback,
    pub(super) kernel: Arc<KernelSource>,
    advance: Function,
    slot_bytes: usize,
    ring: PinnedBuffer,
    /// u32: steps so far, as the device counts them.
    counter: DeviceBuffer,
    /// Steps so far, as the host counts them.
    pub(super) steps: u32,
    /// The graph of a step, and the workspace's generation when it was captured.
    graph: Option<(u64, GraphExec)>,
}

/// Entries of the inputs that `feedback` changes, and where they are; `None` if the plan cannot feed itself.
fn fed_slots<'a>(p: &'a Prepared, feedback: &Feedback) -> Option<(usize, Vec<&'a Slot>, Vec<&'a Slot>, &'a Slot)> {
    let find = |name: &String| p.inputs.slots.iter().find(|s| s.name == *name);
    let live = find(&feedback.live)?;
    let replaced: Option<Vec<&Slot>> = feedback.replaced.iter().map(|(name, _)| find(name)).collect();
    let replaced = replaced?;
    // What no kernel reads need not be counted.
    let counted: Vec<&Slot> = feedback.counted.iter().filter_map(find).collect();
    let fits = |elements: usize, dtype| elements == live.elements && dtype == gossamer_ir::DType::I32;
    let inputs_fit = replaced.iter().chain(&counted).all(|s| fits(s.elements, s.dtype));
    let results_fit = feedback
        .replaced
        .iter()
        .all(|(_, r)| p.outputs.slots.get(*r).is_some_and(|slot| fits(slot.elements, slot.dtype)));
    let words = p.outputs.slots.iter().all(|slot| slot.bytes.is_multiple_of(4));
    (inputs_fit && results_fit && words).then_some((live.elements, replaced, counted, live))
}

impl CudaExecutor {
    /// True if a run of this plan can stay on the device.
    pub(super) fn can_run_ahead(&self, id: PlanId, feedback: &Feedback) -> Result<bool, ExecError> {
        let debugging = self.options.eager || self.options.poison;
        Ok(!debugging && fed_slots(prepared(&self.plans, id)?, feedback).is_some())
    }

    /// Makes what a run of this plan needs, but for the graph.
    pub(super) fn prepare_ahead(&mut self, id: PlanId, feedback: &Feedback) -> Result<(), ExecError> {
        let p = prepared(&self.plans, id)?;
        if p.ahead.as_ref().is_some_and(|a| a.feedback == *feedback) {
            return Ok(());
        }
        let Some((entries, _, counted, _)) = fed_slots(p, feedback) else {
            return Err(kernel_error("this plan cannot feed itself; please report it"));
        };
        let slot_bytes = SLOT_HEADER + p.outputs.bytes;
        let kernel = Advance {
            entries,
            slots: SLOTS,
            slot_bytes,
            results: p.outputs.slots.iter().map(|s| (s.bytes / 4, SLOT_HEADER + s.offset)).collect(),
            fed: feedback.replaced.iter().map(|(_, result)| *result).collect(),
            counted: counted.len(),
        }
        .kernel();
        self.kernels.load(&self.device, &BTreeMap::from([(kernel.clone(), 0)]), &self.phases, &|_, _, _| {})?;
        let advance = self.kernels.get(&kernel).cloned();
        let advance = advance.ok_or_else(|| kernel_error("kernel advance was not loaded; please report it"))?;
        let ring = PinnedBuffer::new(&self.device, SLOTS * slot_bytes, PinnedKind::Cached, "results of steps")?;
        let counter = DeviceBuffer::alloc(&self.device, 4, "the counter of steps")?;
        counter.all().zero(&self.stream)?;
        self.plans[id.0].ahead = Some(Ahead {
            feedback: feedback.clone(),
            kernel,
            advance,
            slot_bytes,
            ring,
            counter,
            steps: 0,
            graph: None,
        });
        Ok(())
    }

    /// Makes the graph of a step that feeds the next, where there is none or the workspace has moved.
    fn capture_ahead(&mut self, id: PlanId) -> Result<(), ExecError> {
        let generation = self.workspace.generation();
        let p = prepared(&self.plans, id)?;
        let Some(ahead) = &p.ahead else { return Ok(()) };
        if ahead.graph.as_ref().is_some_and(|g| g.0 == generation) {
            return Ok(());
        }
        let (graph, ()) = self.stream.capture(|| {
            p.calls.iter().enumerate().try_for_each(|(i, call)| self.enqueue_call(call, i == 0))?;
            self.enqueue_advance(p, &ahead.advance, None)
        })?;
        let exec = graph.instantiate()?;
        exec.upload(&self.stream)?;
        self.stream.synchronize()?;
        if let Some(ahead) = &mut self.plans[id.0].ahead {
            ahead.graph = Some((generation, exec));
        }
        Ok(())
    }

    /// Enqueues the kernel that ends a step, in this form; with stamps it leaves them there.
    pub(super) fn enqueue_advance(
        &self,
        p: &Prepared,
        function: &Function,
        stamps: Option<u64>,
    ) -> Result<(), ExecError> {
        let Some(ahead) = &p.ahead else { return Ok(()) };
        let Some((_, replaced, counted, live)) = fed_slots(p, &ahead.feedback) else { return Ok(()) };
        let mut args = ArgList::new();
        for (slot, source) in p.outputs.slots.iter().zip(&p.results) {
            args.ptr(self.source(source, slot.bytes)?.ptr());
        }
        for slot in replaced.into_iter().chain(counted).chain([live]) {
            args.ptr(self.workspace.resolve(Address::Workspace(Region::Inputs, slot.offset as u64)));
        }
        args.ptr(ahead.counter.ptr()).ptr(ahead.ring.ptr());
        if let Some(at) = stamps {
            args.ptr(at);
        }
        let config = LaunchConfig { pdl: true, ..LaunchConfig::linear(1, 256) };
        // SAFETY: the pointers are to the workspace of this generation, the counter and the ring, which live as long as the graph is used; sizes are those
        // of the slots that the kernel was made for.
        unsafe { function.launch(&self.stream, &config, &args)? };
        Ok(())
    }

    /// Writes the inputs of a first step and enqueues their copy.
    pub(super) fn upload_inputs(&mut self, id: PlanId, inputs: &Inputs) -> Result<(), ExecError> {
        let p = prepared(&self.plans, id)?;
        write_inputs(&p.inputs, self.workspace.inputs.as_mut_slice(), &|slot, out| write_host(slot, inputs, out))?;
        self.enqueue_inputs(prepared(&self.plans, id)?)
    }

    /// [`crate::exec::Executor::run_ahead`]; `None` if the host must stand between the steps.
    pub(super) fn run_on_device(
        &mut self,
        id: PlanId,
        inputs: &Inputs,
        feedback: &Feedback,
        steps: usize,
        on_step: OnStep<'_>,
    ) -> Result<Option<usize>, ExecError> {
        if !self.can_run_ahead(id, feedback)? {
            return Ok(None);
        }
        self.ready(id)?;
        self.prepare_ahead(id, feedback)?;
        self.capture_ahead(id)?;
        let ran = self.run_fed(id, inputs, steps, on_step);
        // Copies and kernels of a run that failed must be over before anything they use changes, and its counts cannot be trusted.
        let waited = self.stream.synchronize();
        if ran.is_err() || waited.is_err() {
            self.plans[id.0].ahead = None;
        }
        waited?;
        ran.map(Some)
    }

    fn run_fed(&mut self, id: PlanId, inputs: &Inputs, steps: usize, on_step: OnStep<'_>) -> Result<usize, ExecError> {
        self.upload_inputs(id, inputs)?;
        let (mut sent, mut seen, mut more) = (0, 0, true);
        while seen < sent || (more && sent < steps) {
            while more && sent < steps && sent - seen < AHEAD {
                let Some(Prepared { ahead: Some(ahead), .. }) = self.plans.get_mut(id.0) else { return Ok(seen) };
                let Some((_, graph)) = &ahead.graph else { return Ok(seen) };
                // SAFETY: the graph is of this generation of the workspace, and everything it uses lives as long as `self`; nothing else runs on the
                // stream until the run has been waited for.
                unsafe { graph.launch(&self.stream)? };
                ahead.steps = ahead.steps.wrapping_add(1);
                sent += 1;
            }
            let p = prepared(&self.plans, id)?;
            let Some(ahead) = &p.ahead else { return Ok(seen) };
            let number = ahead.steps.wrapping_sub((sent - seen) as u32).wrapping_add(1);
            let (results, end) = ahead.wait(p, number, &self.stream)?;
            seen += 1;
            more &= on_step(&results, end);
        }
        Ok(seen)
    }
}

impl Ahead {
    /// Waits for step `number`, counted from 1 over all runs; its results, and when it ended.
    fn wait(&self, p: &Prepared, number: u32, stream: &Stream) -> Result<(Vec<HostData>, u64), ExecError> {
        let at = (number.wrapping_sub(1) as usize % SLOTS) * self.slot_bytes;
        let lost = || kernel_error("a step ended without its results; please report it");
        let word = self.ring.word(at).ok_or_else(lost)?;
        let mut turns = 0u32;
        while word.load(Ordering::Acquire) != number {
            turns = turns.wrapping_add(1);
            match turns % 4096 {
                // A step that failed never writes its number; asking the stream says so.
                0 if stream.is_idle()? && word.load(Ordering::Acquire) != number => return Err(lost()),
                n if n % 64 == 0 => std::thread::yield_now(),
                _ => spin_loop(),
            }
        }
        let mut slot = vec![0u8; self.slot_bytes];
        let (mut end, rest) = ([0u8; 8], SLOT_HEADER);
        if !self.ring.read(at, &mut slot) {
            return Err(lost());
        }
        end.copy_from_slice(&slot[8..16]);
        let mut results = Vec::with_capacity(p.outputs.slots.len());
        for s in &p.outputs.slots {
            let data = convert::decode(&slot[rest + s.offset..][..s.bytes], s.dtype);
            results.push(
                data.ok_or_else(|| {
                    kernel_error(format!("result `{}` is {}, expected plain elements", s.name, s.dtype))
                })?,
            );
        }
        Ok((results, u64::from_le_bytes(end)))
    }
}
