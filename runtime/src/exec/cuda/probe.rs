//! What the device reaches at best, and caches full of random values: for benchmarks.

use std::collections::BTreeMap;
use std::sync::Arc;

use gossamer_codegen_cuda::lower::{GEMM_WORKSPACE, KernelSource};
use gossamer_codegen_cuda::tools;

use super::CudaExecutor;
use super::bind::kernel_error;
use crate::cuda::{ArgList, DeviceBuffer, Element, Event, EventKind, Function, GemmShape, LaunchConfig};
use crate::exec::{ExecError, Probe};

/// Bytes that are read, less where less is free: many times the L2 cache.
const READ: u64 = 4 << 30;
/// Passes; the best counts.
const PASSES: usize = 6;
/// Rows, columns and depth of the matrix multiply.
const GEMM: u64 = 8192;

impl CudaExecutor {
    /// Measures reading and multiplying.
    ///
    /// # Errors
    /// Too little free memory for either, or what the device gives.
    pub(super) fn probe_device(&mut self) -> Result<Probe, ExecError> {
        Ok(Probe { read: self.probe_read()?, bf16: self.probe_gemm()? })
    }

    /// A kernel of ours that belongs to no plan.
    pub(super) fn tool(&mut self, kernel: &Arc<KernelSource>) -> Result<Function, ExecError> {
        self.kernels.load(&self.device, &BTreeMap::from([(kernel.clone(), 0)]), &self.phases, &|_, _, _| {})?;
        let missing = || kernel_error(format!("kernel {} was not loaded; please report it", kernel.entry));
        self.kernels.get(kernel).cloned().ok_or_else(missing)
    }

    /// Microseconds of the fastest of some passes.
    fn best_us(&self, pass: &mut dyn FnMut() -> Result<(), ExecError>) -> Result<f64, ExecError> {
        let (start, end) = (Event::new(&self.device, EventKind::Timing)?, Event::new(&self.device, EventKind::Timing)?);
        let mut times = Vec::new();
        for _ in 0..PASSES {
            start.record(&self.stream)?;
            pass()?;
            end.record(&self.stream)?;
            self.stream.synchronize()?;
            times.push(start.elapsed_us(&end)?);
        }
        Ok(times.into_iter().fold(f64::INFINITY, f64::min))
    }

    fn probe_read(&mut self) -> Result<f64, ExecError> {
        let function = self.tool(&tools::read_probe())?;
        let bytes = READ.min(self.device.memory()?.free / 2) / 16 * 16;
        let data = DeviceBuffer::alloc(&self.device, bytes as usize, "measuring how fast memory is read")?;
        let out = DeviceBuffer::alloc(&self.device, 4, "measuring how fast memory is read")?;
        data.all().zero(&self.stream)?;
        let mut args = ArgList::new();
        args.ptr(data.ptr()).i64((bytes / 16) as i64).ptr(out.ptr());
        let config = LaunchConfig::linear(2 * self.device.props().sms, 512);
        let us = self.best_us(&mut || {
            // SAFETY: the kernel reads `bytes` bytes of `data` and may write `out`; both live until the stream has been waited for.
            Ok(unsafe { function.launch(&self.stream, &config, &args)? })
        });
        self.stream.synchronize()?;
        Ok(bytes as f64 / us? * 1e6)
    }

    /// `None` without the library.
    fn probe_gemm(&mut self) -> Result<Option<f64>, ExecError> {
        let shape = GemmShape { m: GEMM, n: GEMM, k: GEMM, input: Element::Bf16, output: Element::Bf16 };
        let Ok(gemm) = self.gemms.get(&self.device, shape) else { return Ok(None) };
        let bytes = (GEMM * GEMM * 2) as usize;
        let what = "measuring how fast matrices are multiplied";
        let matrix = || DeviceBuffer::alloc(&self.device, bytes, what);
        let (x, w, y) = (matrix()?, matrix()?, matrix()?);
        let space = DeviceBuffer::alloc(&self.device, GEMM_WORKSPACE as usize, what)?;
        for (buffer, seed) in [(&x, 1), (&w, 2)] {
            self.fill(buffer.ptr(), bytes, gossamer_ir::DType::BF16, seed)?;
        }
        let us = self.best_us(&mut || {
            // SAFETY: the matrices have the shape's sizes and the workspace the size that the algorithm was chosen for; all live until the stream has been
            // waited for.
            Ok(unsafe { gemm.launch(&self.stream, [x.ptr(), w.ptr(), y.ptr(), space.ptr()])? })
        });
        self.stream.synchronize()?;
        Ok(Some(2.0 * (GEMM as f64).powi(3) / us? * 1e6))
    }

    /// Enqueues random values for `bytes` bytes at `ptr`; false for elements that are not floats.
    fn fill(&mut self, ptr: u64, bytes: usize, dtype: gossamer_ir::DType, seed: u64) -> Result<bool, ExecError> {
        let Some(kernel) = tools::fill_random(dtype) else { return Ok(false) };
        let function = self.tool(&kernel)?;
        let elements = bytes as u64 / dtype.storage_bytes(1).max(1);
        let mut args = ArgList::new();
        args.ptr(ptr).i64(elements as i64).u64(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let blocks = elements.div_ceil(256).clamp(1, 8 * u64::from(self.device.props().sms)) as u32;
        // SAFETY: the kernel writes `elements` elements at `ptr`, which the caller owns.
        unsafe { function.launch(&self.stream, &LaunchConfig::linear(blocks, 256), &args)? };
        Ok(true)
    }

    /// Fills all keys and values; false if there are some of another type than floats.
    pub(super) fn fill_states(&mut self, seed: u64) -> Result<bool, ExecError> {
        let caches: Vec<_> = self.states.caches().collect();
        let mut all = true;
        for (i, (ptr, bytes, dtype)) in caches.into_iter().enumerate() {
            all &= self.fill(ptr, bytes, dtype, seed.wrapping_add(i as u64))?;
        }
        self.stream.synchronize()?;
        Ok(all)
    }
}
