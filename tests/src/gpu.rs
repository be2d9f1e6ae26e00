//! Tests of the CUDA backend against the interpreter.
//!
//! A [`Scenario`] is a small module with inputs for one or more steps. [`Bench::check`] plans it, runs it on the GPU with poisoned memory, and compares every
//! result with the interpreter's under the op table's tolerance; runs it again, for equal bits; and runs the first row by itself, for equal bits again.
//! [`cases`] has scenarios for every op, [`fused`] for the kernels that fusion makes, [`library`] for calls of a library. Test binaries run on a machine that has nothing but the repository's files: see [`root`].

pub mod cases;
mod compare;
mod data;
pub mod fused;
pub mod library;
mod scenario;
pub mod stateful;
mod weights;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gossamer_ir::interp::Tensor;
use gossamer_runtime::cuda::Device;
use gossamer_runtime::exec::StateSpec;
use gossamer_runtime::exec::cuda::{CudaExecutor, CudaOptions};

pub use compare::{Difference, Rows, compare, relative_error, row_errors};
pub use data::Rng;
pub use scenario::{ENTRY, Fused, Scenario, Step, name};
use weights::Weights;

/// The repository: `GOSSAMER_ROOT`, else where this crate was built if that is here, else the current folder.
pub fn root() -> PathBuf {
    if let Some(root) = std::env::var_os("GOSSAMER_ROOT").filter(|r| !r.is_empty()) {
        return root.into();
    }
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf);
    built.filter(|r| r.join("models/demo").is_dir()).unwrap_or_else(|| PathBuf::from("."))
}

/// The GPU that tests run on; `None`, after saying why, where there is none.
///
/// # Panics
/// Without a GPU or NVRTC when `GOSSAMER_REQUIRE_GPU=1`.
pub fn device() -> Option<Device> {
    let found = Device::open(0).map_err(|e| e.to_string());
    let found = found.and_then(|d| gossamer_codegen_cuda::nvrtc::Nvrtc::load().map(|_| d).map_err(|e| e.to_string()));
    match found {
        Ok(device) => Some(device),
        Err(why) if std::env::var_os("GOSSAMER_REQUIRE_GPU").is_some_and(|v| v == "1") => {
            panic!("GOSSAMER_REQUIRE_GPU=1, but {why}")
        }
        Err(why) => {
            println!("skipped: {why}");
            None
        }
    }
}

/// Makes executors for scenarios.
pub struct Bench {
    device: Device,
    shared: CudaExecutor,
}

impl Bench {
    /// A bench on the GPU, or `None` where there is none ([`device`]).
    ///
    /// # Panics
    /// If the GPU does not give an executor.
    pub fn open() -> Option<Bench> {
        let device = device()?;
        let shared = executor(&device, &[], &BTreeMap::new());
        Some(Bench { device, shared })
    }

    /// Checks one scenario; the share of the tolerance that was used.
    ///
    /// # Errors
    /// What differs, or what the device gives; a lost device is named.
    ///
    /// # Panics
    /// If the GPU does not give an executor.
    pub fn run(&mut self, s: &Scenario) -> Result<f32, String> {
        let mut own = None;
        let executor = match s.states.is_empty() && s.weights.is_empty() {
            true => &mut self.shared,
            false => own.insert(executor(&self.device, &s.states, &s.weights)),
        };
        let result = s.check(executor);
        match self.device.poisoned() {
            Some(dead) => Err(format!("the GPU is lost: {dead}")),
            None => result,
        }
    }

    /// Checks scenarios; every failure is listed.
    ///
    /// # Panics
    /// If one fails.
    pub fn check(&mut self, scenarios: &[Scenario]) {
        let mut failures = Vec::new();
        let mut worst = (0.0, "none");
        for s in scenarios {
            match self.run(s) {
                Ok(error) if error > worst.0 => worst = (error, &s.label),
                Ok(_) => {}
                Err(why) => failures.push(format!("{}: {why}", s.label)),
            }
            if self.device.poisoned().is_some() {
                break;
            }
        }
        println!("{} scenarios, largest share of a tolerance used: {:.3} ({})", scenarios.len(), worst.0, worst.1);
        let list = failures.join("\n  ");
        assert!(failures.is_empty(), "{} of {} scenarios failed:\n  {list}", failures.len(), scenarios.len());
    }
}

/// An executor with poisoned memory for modules with this state and these weights.
fn executor(device: &Device, states: &[StateSpec], weights: &BTreeMap<String, Tensor>) -> CudaExecutor {
    let options = CudaOptions { poison: true, ..CudaOptions::from_env() };
    match CudaExecutor::new(device.clone(), Arc::new(Weights::new(weights)), states, options) {
        Ok(executor) => executor,
        Err(e) => panic!("{e}"),
    }
}
