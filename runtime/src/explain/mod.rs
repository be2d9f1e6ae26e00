//! Why each kernel is what it is: the data behind `gossamer explain`, and tables of what steps need.
//!
//! [`explain`] compiles and plans a step as an engine on a GPU would and keeps everything on the way: the module after each pass, the rules that made each kernel,
//! its ops before and after, its predicted cost, its CUDA text. It needs neither weights nor a GPU. [`Explanation::compile`] adds what kernels take (registers,
//! shared memory), which needs NVRTC; [`Explanation::measure`] adds times from a profile. The same step gives the same output.
//!
//! Must not know the command line.

mod build;
mod group;
mod html;
mod json;
pub mod memory;
mod origin;
mod sides;
mod text;
mod unfuse;

use std::collections::BTreeMap;

use gossamer_codegen_cuda::cache::KernelCache;
use gossamer_codegen_cuda::nvrtc::{CompileError, Nvrtc, Source};
use gossamer_ir::{Bindings, Module};

pub use build::{Request, entry, explain};
pub use group::{Group, groups};
use memory::BucketMemory;

/// Everything about one step.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// What was explained: a model's or a file's name.
    pub name: String,
    /// The bucket.
    pub bucket: String,
    /// Values of the symbols.
    pub sizes: Bindings,
    /// The machine that costs are for.
    pub machine: String,
    /// The module before the first pass, and after each.
    pub stages: Vec<Stage>,
    /// Distinct kernels, in the order of their first launch.
    pub cards: Vec<Card>,
    /// Every launch of a step, in order.
    pub launches: Vec<LaunchEntry>,
    /// Generated sources by entry name.
    pub sources: BTreeMap<String, Generated>,
    /// Memory of the step.
    pub memory: BucketMemory,
    /// The module after the last pass.
    pub module: Module,
    /// The step as it was measured.
    pub measured: Option<MeasuredStep>,
}

/// A step as it was measured; times in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MeasuredStep {
    /// A whole step as steps usually run: the median.
    pub step_us: f64,
    /// A whole step with time stamps in its kernels: the sum of its launches' parts and of `end_us`.
    pub traced_us: f64,
    /// What handing results to the next step takes; 0 where steps do not follow each other on the device.
    pub end_us: f64,
    /// Between launches, where nothing had begun.
    pub gaps_us: f64,
    /// While the next launch had begun.
    pub overlap_us: f64,
}

/// A module at one point of the pipeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Name of the pass; `input` for the first.
    pub name: String,
    /// What the pass does.
    pub summary: String,
    /// True if it changed anything.
    pub changed: bool,
    /// Ops before and after.
    pub ops: (usize, usize),
    /// Text of each function after it, by name; empty if nothing changed.
    pub funcs: Vec<(String, String)>,
}

/// A kernel of the plan: what it computes, why, and how.
#[derive(Clone, Debug)]
pub struct Card {
    /// One line: template and ops.
    pub summary: String,
    /// Name of the template; `single` for an op that was not fused.
    pub template: String,
    /// What the template is.
    pub about: String,
    /// Canonical text of the kernel's body, if it has one.
    pub key: String,
    /// Rules that made it, in order.
    pub rules: Vec<RuleStep>,
    /// Its ops without the kernel, as a function.
    pub before: String,
    /// The kernel, as a function.
    pub after: String,
    /// Types of its results.
    pub results: Vec<String>,
    /// Predicted cost.
    pub prediction: Option<Prediction>,
    /// Numbers of its launches, first instance only.
    pub launches: Vec<usize>,
}

/// A rule that took part in making a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleStep {
    /// Its name.
    pub rule: String,
    /// The op that it took in.
    pub op: String,
}

/// Predicted cost of a kernel.
#[derive(Clone, Debug)]
pub struct Prediction {
    /// Microseconds, all launches together.
    pub total_us: f64,
    /// The least that the machine allows: bytes at full bandwidth or flops at full speed, whichever takes longer.
    pub roofline_us: f64,
    /// Bytes moved.
    pub bytes: f64,
    /// Floating-point operations.
    pub flops: f64,
    /// The terms, for people: name and value.
    pub terms: Vec<(String, String)>,
    /// The terms, for tools.
    pub json: serde_json::Value,
}

/// One launch of a step.
#[derive(Clone, Debug)]
pub struct LaunchEntry {
    /// Number of its kernel among [`Explanation::cards`].
    pub card: usize,
    /// Which launch of its kernel this is, from 0. The prediction belongs to the first.
    pub part: usize,
    /// Entry name in the CUDA text, or the name of a library call.
    pub entry: String,
    /// First value that the op makes, `l3.q`.
    pub value: String,
    /// The scope the op was inlined from, `l3`.
    pub scope: Option<String>,
    /// Blocks; 0 of a library call, which has no kernel of ours.
    pub grid: [u32; 3],
    /// Threads of a block; 0 of a library call.
    pub block: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared: u32,
    /// Bytes of scratch of its op.
    pub scratch: u64,
    /// Measured part of a step, in microseconds: from the end of the launch before to its own end.
    pub measured_us: Option<f64>,
    /// Measured median time by itself.
    pub alone_us: Option<f64>,
}

impl LaunchEntry {
    /// True if a library is called instead of a kernel.
    pub fn is_library_call(&self) -> bool {
        self.block == 0
    }
}

/// A generated source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Generated {
    /// CUDA C++.
    pub text: String,
    /// What the compiled kernel takes; `None` until [`Explanation::compile`].
    pub resources: Option<Resources>,
}

/// What a compiled kernel takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of static shared memory of a block.
    pub static_shared: u32,
    /// Bytes of spill stores and loads of a thread.
    pub spills: u32,
    /// Bytes of local memory of a thread.
    pub stack: u32,
    /// Size of the compiled image in bytes.
    pub cubin_bytes: usize,
}

/// A profile that belongs to another plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the device ran {found} launches, the explanation has {expected}; explain the bucket and passes that were measured"
)]
pub struct OtherPlan {
    found: usize,
    expected: usize,
}

impl Explanation {
    /// Compiles every source, through the cache. `progress` is told the number of sources that are done.
    ///
    /// # Errors
    /// A source that does not compile.
    pub fn compile(
        &mut self,
        cache: &KernelCache,
        nvrtc: &Nvrtc,
        progress: &dyn Fn(usize),
    ) -> Result<(), CompileError> {
        for (i, (entry, source)) in self.sources.iter_mut().enumerate() {
            progress(i);
            let compiled = cache.get_or_compile(&Source::new(entry, &source.text), nvrtc)?;
            let k = compiled.kernel(entry);
            source.resources = Some(Resources {
                registers: k.map_or(0, |k| k.registers),
                static_shared: k.map_or(0, |k| k.shared_bytes),
                spills: k.map_or(0, |k| k.spill_store_bytes + k.spill_load_bytes),
                stack: k.map_or(0, |k| k.stack_bytes),
                cubin_bytes: compiled.cubin.len(),
            });
        }
        progress(self.sources.len());
        Ok(())
    }

    /// Adds measured times: of each launch, and of the whole step.
    ///
    /// # Errors
    /// Another number of launches.
    pub fn measure(&mut self, profile: &crate::exec::Profile) -> Result<(), OtherPlan> {
        let (found, expected) = (profile.launches.len(), self.launches.len());
        if found != expected {
            return Err(OtherPlan { found, expected });
        }
        for (entry, time) in self.launches.iter_mut().zip(&profile.launches) {
            entry.measured_us = Some(time.part_us);
            entry.alone_us = Some(time.alone_us);
        }
        self.measured = Some(MeasuredStep {
            step_us: profile.step_us,
            traced_us: profile.traced_us(),
            end_us: profile.end_us,
            gaps_us: profile.gaps_us,
            overlap_us: profile.overlap_us,
        });
        Ok(())
    }

    /// Predicted time of a launch: of its kernel at the first, 0 at the others. `None` if nothing is known of it.
    pub fn predicted_us(&self, launch: &LaunchEntry) -> Option<f64> {
        let prediction = self.cards[launch.card].prediction.as_ref()?;
        Some(if launch.part == 0 { prediction.total_us } else { 0.0 })
    }

    /// The least time that the machine allows a launch, as [`Explanation::predicted_us`].
    pub fn roofline_us(&self, launch: &LaunchEntry) -> Option<f64> {
        let prediction = self.cards[launch.card].prediction.as_ref()?;
        Some(if launch.part == 0 { prediction.roofline_us } else { 0.0 })
    }

    /// Sum of something over all launches; `None` if it is unknown of one.
    pub fn total(&self, of: impl Fn(&LaunchEntry) -> Option<f64>) -> Option<f64> {
        self.launches.iter().map(of).sum()
    }

    /// Predicted time of a step: the sum over its launches.
    pub fn predicted_step_us(&self) -> Option<f64> {
        self.total(|l| self.predicted_us(l))
    }

    /// The explanation as text: a table, or everything about the kernel of launch `kernel`.
    pub fn text(&self, kernel: Option<usize>) -> String {
        text::text(self, kernel)
    }

    /// As JSON: `kernels`, one entry a launch of a step, in order. With `kernel`: that entry alone.
    pub fn json(&self, kernel: Option<usize>) -> serde_json::Value {
        json::json(self, kernel)
    }

    /// As one HTML page that loads nothing.
    pub fn html(&self) -> String {
        html::html(self)
    }
}
