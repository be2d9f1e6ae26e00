//! A thin launch layer over the CUDA driver.
//!
//! Owns: finding the driver, devices and their primary contexts, device and pinned host memory, modules and functions,
//! streams, events, launches, CUDA graphs and the one library that is called ([`CublasLt`]). Must not know: models, plans,
//! kernel sources, checkpoints or NVRTC; it takes cubins as bytes and launches what it is told to.
//!
//! Rules that hold everywhere here:
//! - Nothing panics when the driver is missing, too old or broken: [`Driver::load`] checks for the library and for every
//!   entry point this module uses before the first call, and each failed call is a [`CudaError`] of one line.
//! - Work is ordered by streams only. There is no hidden event tracking and no implicit synchronisation, so what a caller
//!   enqueues is exactly what a capture records.
//! - Nothing allocates while this thread captures a graph; an attempt is an error and frees are put off until it ends.
//! - After a sticky error (an illegal address, a failed launch) the device refuses further work with
//!   [`CudaError::Poisoned`], which names the first failure.
//!
//! Threads: [`Driver`], [`Device`], [`Module`], [`Function`], [`DeviceBuffer`] and [`PinnedBuffer`] are `Send + Sync`.
//! [`Stream`], [`Event`], [`Graph`] and [`GraphExec`] are `Send` but not `Sync`: move them between threads, but use each
//! from one thread at a time.

mod capture;
mod cublaslt;
mod driver;
mod error;
mod event;
mod graph;
mod launch;
mod memory;
mod module;
mod pinned;
mod selftest;
mod stream;
mod symbols;
mod tensor_map;

pub use cublaslt::{CublasLt, CublasLtInfo, Element, Gemm, GemmShape};
pub use driver::{
    ComputeCapability, CudaVersion, Device, DeviceProps, Driver, DriverVersion, MemoryInfo, NEEDED_CAPABILITY,
    NEEDED_CUDA, NEEDED_DRIVER,
};
pub use error::CudaError;
pub(crate) use error::bytes;
pub use event::{Event, EventKind};
pub use graph::{Dependency, Edge, Graph, GraphExec, GraphNode, NodeCounts};
pub use launch::{ArgList, LaunchConfig, LaunchLimits};
pub use memory::{ARENA_ALIGN, Arena, ArenaLayout, DeviceBuffer, DeviceSlice, POISON_BYTE, Region};
pub use module::{Carveout, Function, FunctionInfo, Module};
pub use pinned::{PinnedBuffer, PinnedKind};
pub use selftest::{Check, Outcome, Report, SELFTEST_ENTRY, SELFTEST_SOURCE, SelftestKernel, selftest};
pub use stream::{Priority, Stream};
pub use tensor_map::{Boxes, TensorMap};
