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
pub const MXFP4_LAYOUT: &str = "mx64";

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

/// Times of one plan on a device, in microseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// Of each launch by itself, in order: medians.
    pub launches: Vec<f64>,
    /// Of a whole step as it usually runs: the median.
    pub step_us: f64,
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

    /// Runs a prepared plan as [`Executor::run`], then times it over some rounds on the same inputs. `None` if the device has no launches to time.
    ///
    /// # Errors
    /// As [`Executor::run`].
    fn measure(&mut self, plan: PlanId, inputs: &Inputs, rounds: usize) -> Result<Option<Profile>, ExecError> {
        let _ = rounds;
        self.run(plan, inputs)?;
        Ok(None)
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
