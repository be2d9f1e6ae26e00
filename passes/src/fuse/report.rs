//! What fusion did, for people and tools.

use std::sync::Arc;

use gossamer_ir::Kernel;

use super::facts::Origin;
use super::saturate::Saturation;
use crate::cost::Terms;

/// What fusion did to a module.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// By function.
    pub funcs: Vec<FuncReport>,
}

/// What fusion did to a function.
#[derive(Clone, Debug)]
pub struct FuncReport {
    /// Its name.
    pub name: Arc<str>,
    /// How the e-graph grew.
    pub saturation: Saturation,
    /// Sum of the kernels' costs, in microseconds.
    pub predicted_us: f64,
    /// True if no choice is cheaper by the cost model.
    pub exact: bool,
    /// Kernels that code generation refused, and why.
    pub refused: Vec<(Arc<Kernel>, String)>,
    /// Its kernels, in the order in which they were put into the function.
    pub kernels: Vec<KernelReport>,
}

/// Where a kernel comes from.
#[derive(Clone, Debug)]
pub struct KernelReport {
    /// The kernel.
    pub kernel: Arc<Kernel>,
    /// The rules that made it, first to last.
    pub history: Vec<Origin>,
    /// Its cost.
    pub terms: Option<Terms>,
}

impl Report {
    /// The report of a kernel by its body; equal bodies have equal reports.
    pub fn kernel(&self, kernel: &Kernel) -> Option<&KernelReport> {
        self.funcs.iter().flat_map(|f| &f.kernels).find(|k| *k.kernel == *kernel)
    }
}
