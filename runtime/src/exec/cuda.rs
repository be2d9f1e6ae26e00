//! The CUDA executor: weights and state on one GPU, each plan a CUDA graph that is replayed every step.
//!
//! - Weights are loaded when the first plan needs them and shared by all plans ([`resident`]).
//! - Every op of a plan becomes one kernel or a few ([`bind`]), or a call of a library ([`library`]); the text of kernels is compiled once and cached
//!   on disk ([`kernels`]).
//! - A step is one graph: one copy of all inputs to the GPU, the kernels in plan order, the copies of the results back. Nothing else is launched.
//! - Steps that feed each other run without the host between them ([`ahead`]).
//! - All plans share one workspace ([`workspace`]); when a larger plan makes it move, graphs are captured again before they next run.
//!
//! For debugging ([`CudaOptions`]): `GOSSAMER_EAGER=1` runs kernels one by one, waits after each, and names the op of a failing one;
//! `GOSSAMER_POISON=1` fills arena, scratch and result buffers with NaN before each step, so that reading what nobody wrote shows.
//!
//! Must not know: models, sequences, sampling, what a kernel computes.

mod ahead;
pub mod bind;
pub mod block;
pub mod convert;
pub mod kernels;
pub mod library;
mod loader;
mod prepare;
mod probe;
pub mod profile;
pub mod resident;
pub mod share;
pub mod state;
#[cfg(test)]
pub(crate) mod testing;
mod trace;
pub mod traffic;
pub mod workspace;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use gossamer_codegen_cuda::cache::CacheStats;
use gossamer_codegen_cuda::lower::MAX_COUNTERS;
use gossamer_ir::OpId;
use gossamer_passes::Plan;

use self::bind::{Address, BoundArg, BoundLaunch, Region, kernel_error};
use self::block::Block;
use self::kernels::Kernels;
use self::library::{BoundGemm, Gemms};
use self::resident::Residents;
use self::state::States;
use self::workspace::{Needs, Workspace};
use super::{
    ExecError, Executor, Feedback, HostData, Inputs, Measure, OnStep, PlanId, Probe, Profile, StateSpec, run_by_step,
};
use crate::checkpoint::WeightSource;
use crate::cuda::{
    ArgList, Device, DeviceBuffer, DeviceSlice, Function, Gemm, GraphExec, LaunchConfig, POISON_BYTE, Stream, TensorMap,
};
use crate::phases::{Phase, Phases};

/// Something that takes time while a plan is prepared; for a progress bar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadEvent<'a> {
    /// Checkpoint bytes of weights read, of those that this plan was missing. May come from any thread, and out of order.
    Weights {
        /// Bytes read so far.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// Kernels made ready, of those that this plan was missing.
    Kernels {
        /// Kernels ready.
        done: usize,
        /// Kernels in all.
        total: usize,
        /// Entry name of the next one; empty at the end.
        next: &'a str,
    },
}

/// Is told how loading goes.
pub type Observer = Arc<dyn Fn(LoadEvent<'_>) + Send + Sync>;

/// How a [`CudaExecutor`] behaves.
#[derive(Clone, Default)]
pub struct CudaOptions {
    /// Folder of compiled kernels; `None`: compile in every process.
    pub cache: Option<PathBuf>,
    /// Fill arena, scratch and results with NaN before each step.
    pub poison: bool,
    /// No graph: launch kernels one by one, and wait for each.
    pub eager: bool,
    /// Told how loading goes.
    pub observer: Option<Observer>,
}

impl CudaOptions {
    /// The user's cache folder, and debugging as `GOSSAMER_POISON` and `GOSSAMER_EAGER` say.
    pub fn from_env() -> CudaOptions {
        let on = |name| std::env::var_os(name).is_some_and(|v| v == "1");
        CudaOptions {
            cache: crate::paths::kernel_cache(),
            poison: on("GOSSAMER_POISON"),
            eager: on("GOSSAMER_EAGER"),
            observer: None,
        }
    }

    fn tell(&self, event: LoadEvent<'_>) {
        if let Some(observer) = &self.observer {
            observer(event);
        }
    }
}

/// Runs plans on one GPU.
pub struct CudaExecutor {
    // In this order for dropping: graphs before the kernels and memory they use. `Drop` waits for the stream first.
    plans: Vec<Prepared>,
    kernels: Kernels,
    gemms: Gemms,
    workspace: Workspace,
    residents: Residents<Arc<DeviceBuffer>>,
    states: States,
    /// Zeros that kernels count in and leave as zeros.
    counters: DeviceBuffer,
    stream: Stream,
    device: Device,
    source: Arc<dyn WeightSource>,
    options: CudaOptions,
    phases: Phases,
}

/// A plan that is ready to run.
struct Prepared {
    plan: Arc<Plan>,
    needs: Needs,
    inputs: Block,
    outputs: Block,
    /// Where each result is, in the order of `outputs`.
    results: Vec<Source>,
    calls: Vec<Call>,
    /// The graph, and the workspace's generation when it was captured.
    graph: Option<(u64, GraphExec)>,
    /// What runs of steps that feed each other need, once there was one.
    ahead: Option<ahead::Ahead>,
}

/// Memory that a result is copied from.
enum Source {
    Workspace(Address),
    Resident(Arc<DeviceBuffer>),
}

/// What a step enqueues between the copies of inputs and results.
enum Call {
    Kernel(Launch),
    Library(BoundGemm, Arc<Gemm>),
}

impl Call {
    /// The op it belongs to.
    fn op(&self) -> OpId {
        match self {
            Call::Kernel(launch) => launch.bound.op,
            Call::Library(bound, _) => bound.op,
        }
    }

    /// Entry name of the kernel, or what stands for it.
    fn name(&self) -> String {
        match self {
            Call::Kernel(launch) => launch.bound.kernel.entry.clone(),
            Call::Library(bound, _) => bound.name.clone(),
        }
    }
}

/// A launch with its loaded kernel.
struct Launch {
    bound: BoundLaunch,
    function: Function,
    config: LaunchConfig,
}

impl CudaExecutor {
    /// An executor with its own state, zeroed. Weights are loaded when a plan first needs them.
    ///
    /// # Errors
    /// No usable NVRTC, too little memory for the state, or what the device gives.
    pub fn new(
        device: Device,
        source: Arc<dyn WeightSource>,
        states: &[StateSpec],
        options: CudaOptions,
    ) -> Result<CudaExecutor, ExecError> {
        let phases = Phases::default();
        let kernels = phases.time(Phase::Compile, || Kernels::new(options.cache.clone()))?;
        let stream = Stream::new(&device)?;
        let states = phases.time(Phase::Memory, || States::new(&device, &stream, states))?;
        let workspace = Workspace::new(&device)?;
        let counters = DeviceBuffer::alloc(&device, 4 * MAX_COUNTERS as usize, "counters")?;
        counters.all().zero(&stream)?;
        let residents = Residents::default();
        Ok(CudaExecutor {
            plans: Vec::new(),
            kernels,
            gemms: Gemms::default(),
            workspace,
            residents,
            states,
            counters,
            stream,
            device,
            source,
            options,
            phases,
        })
    }

    /// The GPU.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What the workspace is large enough for.
    pub fn workspace(&self) -> Needs {
        self.workspace.needs()
    }

    /// Kernels from the cache and compiled so far.
    pub fn cache_stats(&self) -> CacheStats {
        self.kernels.cache_stats()
    }

    /// Trouble that did not stop anything, as lines for the user.
    pub fn warnings(&self) -> Vec<String> {
        self.kernels.warning().into_iter().collect()
    }

    /// Runs a plan on inputs in device form, and returns results in device form: little-endian elements, MXFP4 as codes followed by scales.
    ///
    /// # Errors
    /// As [`Executor::run`].
    pub fn run_raw(&mut self, id: PlanId, inputs: &BTreeMap<String, Vec<u8>>) -> Result<Vec<Vec<u8>>, ExecError> {
        self.run_with(id, &|slot, out| match inputs.get(&slot.name) {
            Some(bytes) if bytes.len() == slot.bytes => {
                out.copy_from_slice(bytes);
                Ok(())
            }
            found => Err(ExecError::Input {
                name: slot.name.clone(),
                found: found.map_or(0, Vec::len) * slot.elements / slot.bytes.max(1),
                expected: slot.elements,
            }),
        })?;
        let Some(p) = self.plans.get(id.0) else { return Ok(vec![]) };
        let bytes = self.workspace.outputs.as_slice();
        Ok(p.outputs.slots.iter().map(|s| bytes[s.offset..s.offset + s.bytes].to_vec()).collect())
    }

    /// Writes the inputs with `fill`, runs a step and waits for it. The results are in the workspace then.
    fn run_with(&mut self, id: PlanId, fill: Fill<'_>) -> Result<(), ExecError> {
        self.ready(id)?;
        let p = prepared(&self.plans, id)?;
        write_inputs(&p.inputs, self.workspace.inputs.as_mut_slice(), fill)?;
        if self.options.poison {
            self.poison(id)?;
        }
        let p = prepared(&self.plans, id)?;
        match &p.graph {
            // SAFETY: the graph is of this generation of the workspace; weights, state and workspace live as long as `self`, and nothing
            // else runs on the stream until it has been waited for below.
            Some((_, graph)) => unsafe { graph.launch(&self.stream)? },
            None => self.enqueue(p, &mut |call| self.checked(p, call))?,
        }
        Ok(self.stream.synchronize()?)
    }

    /// Makes the workspace fit and captures the graph, where that has not happened or has become stale.
    fn ready(&mut self, id: PlanId) -> Result<(), ExecError> {
        let needs = prepared(&self.plans, id)?.needs;
        self.phases.time(Phase::Memory, || self.workspace.fit(&self.device, &self.stream, needs))?;
        let begun = Instant::now();
        let generation = self.workspace.generation();
        let p = prepared(&self.plans, id)?;
        if self.options.eager || p.graph.as_ref().is_some_and(|g| g.0 == generation) {
            return Ok(());
        }
        // A library loads its kernels at their first launch, which a capture refuses. This one writes what the step writes anyway.
        for call in &p.calls {
            if let Call::Library(..) = call {
                self.enqueue_call(call, false)?;
            }
        }
        let (graph, ()) = self.stream.capture(|| self.enqueue(p, &mut |_| Ok(())))?;
        let exec = graph.instantiate()?;
        exec.upload(&self.stream)?;
        self.stream.synchronize()?;
        self.plans[id.0].graph = Some((generation, exec));
        self.phases.add(Phase::Graphs, begun.elapsed());
        Ok(())
    }

    /// Enqueues a step. `after` sees each call when it is enqueued.
    fn enqueue(&self, p: &Prepared, after: &mut dyn FnMut(&Call) -> Result<(), ExecError>) -> Result<(), ExecError> {
        self.enqueue_inputs(p)?;
        self.enqueue_kernels(p, after)?;
        self.enqueue_results(p)
    }

    fn enqueue_inputs(&self, p: &Prepared) -> Result<(), ExecError> {
        let bytes = p.inputs.bytes;
        let target = self.workspace.device.slice(self.workspace.needs().start(Region::Inputs) as usize, bytes)?;
        // SAFETY: the pinned buffer lives until the workspace moves, which makes the graph stale; it is written only between steps.
        unsafe { target.upload_async(&self.stream, &self.workspace.inputs, 0..bytes)? };
        Ok(())
    }

    fn enqueue_kernels(
        &self,
        p: &Prepared,
        after: &mut dyn FnMut(&Call) -> Result<(), ExecError>,
    ) -> Result<(), ExecError> {
        p.calls.iter().try_for_each(|call| {
            self.enqueue_call(call, false)?;
            after(call)
        })
    }

    /// Enqueues a call; `whole`: not before everything in front of it has ended.
    fn enqueue_call(&self, call: &Call, whole: bool) -> Result<(), ExecError> {
        // SAFETY: every pointer is to this executor's weights, state or workspace of this generation, which outlive the step; the buffer plan keeps
        // values that are alive apart and at multiples of 256 bytes, and kernels and library stay within their operands by the contract of `lower`.
        match call {
            Call::Kernel(launch) => unsafe {
                let config = LaunchConfig { pdl: launch.config.pdl && !whole, ..launch.config };
                launch.function.launch(&self.stream, &config, &self.arguments(&launch.bound.args)?)?;
            },
            Call::Library(bound, gemm) => unsafe {
                gemm.launch(&self.stream, bound.places.map(|a| self.workspace.resolve(a)))?;
            },
        }
        Ok(())
    }

    fn enqueue_results(&self, p: &Prepared) -> Result<(), ExecError> {
        p.outputs.slots.iter().zip(&p.results).try_for_each(|(slot, source)| {
            let range = slot.offset..slot.offset + slot.bytes;
            let from = self.source(source, slot.bytes)?;
            // SAFETY: the pinned buffer lives until the workspace moves, which makes the graph stale; it is read only after the stream has been waited for.
            unsafe { from.download_async(&self.stream, &self.workspace.outputs, range)? };
            Ok(())
        })
    }

    fn arguments(&self, args: &[BoundArg]) -> Result<ArgList, ExecError> {
        let mut list = ArgList::new();
        for arg in args {
            match *arg {
                BoundArg::Address(a) => list.ptr(self.workspace.resolve(a)),
                BoundArg::TensorMap(a, m) => list.value(&TensorMap::new(&bind::boxes(self.workspace.resolve(a), m)?)?),
                BoundArg::Wanted(wanted) => list.value(&wanted),
                BoundArg::I32(x) => list.i32(x),
                BoundArg::I64(x) => list.i64(x),
                BoundArg::F32(x) => list.f32(x),
            };
        }
        Ok(list)
    }

    fn source<'a>(&'a self, source: &'a Source, bytes: usize) -> Result<DeviceSlice<'a>, ExecError> {
        Ok(match source {
            Source::Resident(buffer) => buffer.slice(0, bytes)?,
            Source::Workspace(address) => {
                let offset = self.workspace.resolve(*address) - self.workspace.device.ptr();
                self.workspace.device.slice(offset as usize, bytes)?
            }
        })
    }

    /// Waits for a call and, if it failed, says which op it was.
    fn checked(&self, p: &Prepared, call: &Call) -> Result<(), ExecError> {
        self.stream.synchronize().map_err(|e| {
            let op = bind::op_label(&p.plan, call.op());
            kernel_error(format!("{op}, kernel {}: {e}", call.name()))
        })
    }

    /// Fills what the plan writes with NaN: its arena and scratch, and the host's copy of the results.
    fn poison(&mut self, id: PlanId) -> Result<(), ExecError> {
        let needs = self.workspace.needs();
        let start = needs.start(Region::Arena) as usize;
        self.workspace.device.slice(start, needs.device_bytes() as usize - start)?.poison(&self.stream)?;
        let outputs = prepared(&self.plans, id)?.outputs.bytes;
        self.workspace.outputs.as_mut_slice()[..outputs].fill(POISON_BYTE);
        Ok(())
    }
}

impl Executor for CudaExecutor {
    fn describe(&self) -> String {
        let p = self.device.props();
        format!("GPU {} ({}, {})", p.ordinal, p.name, crate::cuda::bytes(p.memory_bytes))
    }

    fn read_bandwidth(&self) -> Option<f64> {
        Some(self.device.props().peak_bandwidth()).filter(|b| *b > 0).map(|b| b as f64)
    }

    fn prepare(&mut self, plan: Arc<Plan>) -> Result<PlanId, ExecError> {
        self.prepare_plan(plan)
    }

    fn run(&mut self, id: PlanId, inputs: &Inputs) -> Result<Vec<HostData>, ExecError> {
        self.run_with(id, &|slot, out| write_host(slot, inputs, out))?;
        let p = prepared(&self.plans, id)?;
        let bytes = self.workspace.outputs.as_slice();
        let mut out = Vec::with_capacity(p.outputs.slots.len());
        for slot in &p.outputs.slots {
            let data = convert::decode(&bytes[slot.offset..slot.offset + slot.bytes], slot.dtype);
            out.push(data.ok_or_else(|| {
                kernel_error(format!(
                    "result `{}` is {}, expected plain elements; dequantise it",
                    slot.name, slot.dtype
                ))
            })?);
        }
        Ok(out)
    }

    fn run_ahead(
        &mut self,
        plan: PlanId,
        inputs: &Inputs,
        feedback: &Feedback,
        steps: usize,
        on_step: OnStep<'_>,
    ) -> Result<usize, ExecError> {
        match self.run_on_device(plan, inputs, feedback, steps, on_step)? {
            Some(ran) => Ok(ran),
            None => run_by_step(self, plan, inputs, feedback, steps, on_step),
        }
    }

    fn measure(&mut self, plan: PlanId, inputs: &Inputs, how: &Measure) -> Result<Option<Profile>, ExecError> {
        self.profile(plan, inputs, how).map(Some)
    }

    fn fill_random(&mut self, seed: u64) -> Result<bool, ExecError> {
        self.fill_states(seed)
    }

    fn count_phases(&mut self, phases: Phases) {
        self.phases.list().into_iter().for_each(|(p, s)| phases.add(p, std::time::Duration::from_secs_f64(s)));
        self.phases = phases;
    }

    fn probe(&mut self) -> Result<Option<Probe>, ExecError> {
        self.probe_device().map(Some)
    }

    fn clear_counts(&mut self, name: &str, row: usize) -> Result<(), ExecError> {
        Ok(self.states.clear_counts(&self.stream, name, row)?)
    }
}

impl Drop for CudaExecutor {
    fn drop(&mut self) {
        // After an error in the middle of a step kernels may still run. A device that cannot be waited for runs nothing any more.
        let _ = self.stream.synchronize();
    }
}

/// Writes one input into its bytes.
type Fill<'a> = &'a dyn Fn(&block::Slot, &mut [u8]) -> Result<(), ExecError>;

fn write_inputs(block: &Block, bytes: &mut [u8], fill: Fill<'_>) -> Result<(), ExecError> {
    block.slots.iter().try_for_each(|slot| fill(slot, &mut bytes[slot.offset..slot.offset + slot.bytes]))
}

/// Writes one input from the host's form.
fn write_host(slot: &block::Slot, inputs: &Inputs, out: &mut [u8]) -> Result<(), ExecError> {
    let data = inputs.get(&slot.name);
    let Some(data) = data.filter(|d| d.len() == slot.elements) else {
        let found = data.map_or(0, HostData::len);
        return Err(ExecError::Input { name: slot.name.clone(), found, expected: slot.elements });
    };
    convert::encode(data, slot.dtype, out).ok_or_else(|| {
        let given = if matches!(data, HostData::I32(_)) { "integers" } else { "floats" };
        kernel_error(format!("input `{}` is given as {given}, the plan needs {}", slot.name, slot.dtype))
    })
}

fn prepared(plans: &[Prepared], id: PlanId) -> Result<&Prepared, ExecError> {
    plans.get(id.0).ok_or_else(|| kernel_error(format!("plan {} was not prepared; please report it", id.0)))
}
