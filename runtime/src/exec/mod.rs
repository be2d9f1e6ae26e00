//! Executors: they hold weights and state on a device, and run plans there.
//!
//! Must not know rewrite rules, tokenizers or requests. An executor gets [`Plan`]s and arrays, and gives arrays back; everything about sequences
//! and sampling is in `engine`.

pub mod cpu;
pub mod cuda;
mod resident;

use std::collections::BTreeMap;
use std::sync::Arc;

use gossamer_ir::StateDecl;
use gossamer_ir::interp::EvalError;
use gossamer_passes::Plan;

use crate::checkpoint::CheckpointError;
use crate::phases::Phases;
pub use resident::resident_key;

/// An array on the host, row-major.
#[derive(Clone, Debug, PartialEq)]
pub enum HostData {
    /// i32 elements.
    I32(Vec<i32>),
    /// f32 elements; bf16 results are widened, which is exact.
    F32(Vec<f32>),
}

impl HostData {
    /// The integers; empty if there are floats.
    pub fn i32(&self) -> &[i32] {
        match self {
            HostData::I32(v) => v,
            HostData::F32(_) => &[],
        }
    }

    /// The floats; empty if there are integers.
    pub fn f32(&self) -> &[f32] {
        match self {
            HostData::F32(v) => v,
            HostData::I32(_) => &[],
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            HostData::I32(v) => v.len(),
            HostData::F32(v) => v.len(),
        }
    }

    /// True without elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Layout that MXFP4 weights get on a GPU, see `gossamer_codegen_cuda::layout`.
pub const MXFP4_LAYOUT: &str = "mx64.fast";

/// Tensor inputs of a step by parameter name.
pub type Inputs = BTreeMap<String, HostData>;

/// State to allocate: the parameter's name, its declaration, and pages (KV) or rows (counts).
#[derive(Clone, Debug)]
pub struct StateSpec {
    /// Name of the parameter of `@step`.
    pub name: String,
    /// What it is.
    pub decl: StateDecl,
    /// Pages of a KV cache, rows of counts.
    pub units: usize,
}

/// Names a prepared plan of one executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanId(pub usize);

/// Which inputs of a step follow from the results of the step before, where entry i of each belongs to sequence i.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feedback {
    /// An input, and the number of the result that takes its place.
    pub replaced: Vec<(String, usize)>,
    /// Inputs that grow by one.
    pub counted: Vec<String>,
    /// The input whose entries below 0 mark padding, which stays as it is.
    pub live: String,
}

impl Feedback {
    /// The inputs of the next step on the host.
    fn apply(&self, inputs: &mut Inputs, results: &[HostData]) {
        let live: Vec<bool> = inputs.get(&self.live).map_or(vec![], |v| v.i32().iter().map(|s| *s >= 0).collect());
        let mut change = |name: &str, next: &dyn Fn(usize, i32) -> i32| {
            if let Some(HostData::I32(values)) = inputs.get_mut(name) {
                let of_live = values.iter_mut().enumerate().filter(|(i, _)| live.get(*i) == Some(&true));
                of_live.for_each(|(i, x)| *x = next(i, *x));
            }
        };
        for (name, result) in &self.replaced {
            let new = results.get(*result).map_or(&[][..], HostData::i32);
            change(name, &|i, old| new.get(i).copied().unwrap_or(old));
        }
        self.counted.iter().for_each(|name| change(name, &|_, x| x.wrapping_add(1)));
    }
}

/// Is given the results of a step of a run and when it ended, in nanoseconds of the device's clock; false: no further step is to start.
pub type OnStep<'a> = &'a mut dyn FnMut(&[HostData], u64) -> bool;

/// [`Executor::run_ahead`] with the host between the steps.
fn run_by_step<E: Executor + ?Sized>(
    executor: &mut E,
    plan: PlanId,
    inputs: &Inputs,
    feedback: &Feedback,
    steps: usize,
    on_step: OnStep<'_>,
) -> Result<usize, ExecError> {
    let clock = std::time::Instant::now();
    let mut inputs = inputs.clone();
    for done in 1..=steps {
        let results = executor.run(plan, &inputs)?;
        if !on_step(&results, clock.elapsed().as_nanos() as u64) {
            return Ok(done);
        }
        feedback.apply(&mut inputs, &results);
    }
    Ok(steps)
}

/// How a plan is to be measured.
#[derive(Clone, Copy, Debug)]
pub struct Measure<'a> {
    /// Rounds over which times are taken.
    pub rounds: usize,
    /// How steps feed each other, and how many may follow one another (at least [`TRACED_STEPS`]); `None`: one step is repeated.
    pub ahead: Option<(&'a Feedback, usize)>,
    /// Distinct experts that a layer's tokens choose, where known.
    pub experts: Option<f64>,
}

/// Steps that a traced run has at least.
pub const TRACED_STEPS: usize = 3;

/// Where the time of a step goes on a device; times in microseconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profile {
    /// Every launch, in order.
    pub launches: Vec<LaunchTime>,
    /// What handing results to the next step takes, at the end; 0 if it is not handed any.
    pub end_us: f64,
    /// Time in which no kernel ran, or only ones that waited: from the end of one to the first block of the next.
    pub gaps_us: f64,
    /// Time in which the next kernel was already on the machine.
    pub overlap_us: f64,
    /// A whole step, as steps usually run: the median.
    pub step_us: f64,
}

impl Profile {
    /// A whole step as it was traced: the sum of its parts.
    pub fn traced_us(&self) -> f64 {
        self.launches.iter().map(|l| l.part_us).sum::<f64>() + self.end_us
    }
}

/// Time of one launch of a step, in microseconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LaunchTime {
    /// Entry name of the kernel, or of a library call.
    pub name: String,
    /// The op it belongs to: name and value.
    pub op: String,
    /// Its part of a step: from the end of the launch before to its own end. These add up to the step.
    pub part_us: f64,
    /// By itself, with nothing beside it: the median.
    pub alone_us: f64,
    /// Bytes that its op moves, at the op's longest launch; 0 at the others.
    pub bytes: f64,
}

/// A device that runs plans.
pub trait Executor {
    /// One line for people: device and its size.
    fn describe(&self) -> String;

    /// True if plans are cheap to make, so that each step may have one of exactly its size instead of a padded bucket.
    fn exact_sizes(&self) -> bool {
        false
    }

    /// Makes a plan ready to run: weights it needs are loaded, kernels compiled, a graph captured. State parameters are matched by name.
    ///
    /// # Errors
    /// What loading, compiling or the device gives.
    fn prepare(&mut self, plan: Arc<Plan>) -> Result<PlanId, ExecError>;

    /// Runs a prepared plan once and returns its tensor results, in order, without the states.
    ///
    /// # Errors
    /// Inputs that do not fit the plan, or what the device gives.
    fn run(&mut self, plan: PlanId, inputs: &Inputs) -> Result<Vec<HostData>, ExecError>;

    /// Runs a prepared plan up to `steps` times, each step on what the one before gives. Every step that was started is reported, in order, also those
    /// behind the one at which `on_step` said stop. Returns how many ran.
    ///
    /// # Errors
    /// As [`Executor::run`].
    fn run_ahead(
        &mut self,
        plan: PlanId,
        inputs: &Inputs,
        feedback: &Feedback,
        steps: usize,
        on_step: OnStep<'_>,
    ) -> Result<usize, ExecError> {
        run_by_step(self, plan, inputs, feedback, steps, on_step)
    }

    /// Runs a prepared plan as [`Executor::run`], then measures it. `None` if the device has no launches to time.
    ///
    /// # Errors
    /// As [`Executor::run`].
    fn measure(&mut self, plan: PlanId, inputs: &Inputs, how: &Measure) -> Result<Option<Profile>, ExecError> {
        let _ = how;
        self.run(plan, inputs)?;
        Ok(None)
    }

    /// Fills keys and values with random numbers, so that sequences may begin as if they had been read. False if the device cannot.
    ///
    /// # Errors
    /// What the device gives.
    fn fill_random(&mut self, seed: u64) -> Result<bool, ExecError> {
        let _ = seed;
        Ok(false)
    }

    /// Measures the device itself; `None` where it has no figures of its own.
    ///
    /// # Errors
    /// What the device gives.
    fn probe(&mut self) -> Result<Option<Probe>, ExecError> {
        Ok(None)
    }

    /// Counts time of loading into `phases` from now on.
    fn count_phases(&mut self, phases: Phases) {
        let _ = phases;
    }

    /// Bytes a second that the device can read, if the executor knows.
    fn read_bandwidth(&self) -> Option<f64> {
        None
    }

    /// Zeroes row `row` of the counts state `name`, for a new sequence in that row. Unknown names are ignored: a model may have no counts.
    ///
    /// # Errors
    /// What the device gives.
    fn clear_counts(&mut self, name: &str, row: usize) -> Result<(), ExecError>;
}

/// What a device reaches at best, measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Probe {
    /// Bytes a second that it reads.
    pub read: f64,
    /// Operations a second of a large bf16 matrix multiply.
    pub bf16: Option<f64>,
    /// What multiplied.
    pub bf16_by: &'static str,
}

/// Why a plan could not be prepared or run.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// A weight could not be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// An op failed on the CPU.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// The device failed.
    #[error(transparent)]
    Cuda(#[from] crate::cuda::CudaError),
    /// The plan names a weight that the model does not have.
    #[error("weight `{name}` is {problem}; the module and the checkpoint do not belong together")]
    Weight {
        /// Its name.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// An input is missing or has another size than the plan's.
    #[error("input `{name}` has {found} elements, the plan needs {expected}")]
    Input {
        /// Name of the parameter.
        name: String,
        /// Elements given.
        found: usize,
        /// Elements needed.
        expected: usize,
    },
    /// A kernel could not be made.
    #[error("{0}")]
    Kernel(String),
}
