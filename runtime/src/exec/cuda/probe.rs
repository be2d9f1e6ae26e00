//! What the device reaches at best, and caches full of random values: for benchmarks.

use std::collections::BTreeMap;
use std::sync::Arc;

use gossamer_codegen_cuda::lower::{GEMM_WORKSPACE, KernelSource};
use gossamer_codegen_cuda::tools;
use gossamer_ir::Bindings;
use gossamer_passes::manager::default_pipeline;
use gossamer_passes::plan::plan;
use gossamer_passes::{Options, Plan, compile};

use super::bind::kernel_error;
use super::bind::{Address, Region};
use super::{CudaExecutor, prepared};
use crate::cuda::{ArgList, DeviceBuffer, Element, Event, EventKind, Function, GemmShape, LaunchConfig};
use crate::exec::{ExecError, Probe};

/// Bytes that are read, less where less is free: many times the L2 cache.
const READ: u64 = 4 << 30;
/// Passes; the best counts.
const PASSES: usize = 6;
/// Rows, columns and depth of the matrix multiply.
const GEMM: u64 = 8192;

/// The plan of a matrix multiply of [`GEMM`] rows, columns and depth.
fn own_multiply() -> Option<Plan> {
    let text = format!(
        "gir 1\n\nsym T in 1..={GEMM}\n\nfunc @step(%x: bf16[T, {GEMM}], %w: bf16[{GEMM}, {GEMM}]) -> (bf16[T, {GEMM}]) {{\n  \
         %y = matmul %x, %w : f32[T, {GEMM}]\n  %z = cast %y {{to = bf16}} : bf16[T, {GEMM}]\n  return %z\n}}\n"
    );
    let module = gossamer_ir::text::parse("multiply", &text).ok()?;
    let sizes: Bindings = [("T".into(), GEMM as i64)].into_iter().collect();
    let refuses = Some(crate::kernels::refuse());
    let options = Options { sizes: sizes.clone(), refuses, ..Options::default() };
    let (module, _) = compile(module, &default_pipeline(), &options).ok()?;
    plan(&module, "step", &sizes).ok()
}

impl CudaExecutor {
    /// Measures reading and multiplying.
    ///
    /// # Errors
    /// Too little free memory for either, or what the device gives.
    pub(super) fn probe_device(&mut self) -> Result<Probe, ExecError> {
        let read = self.probe_read()?;
        Ok(match self.probe_library()? {
            Some(flops) => Probe { read, bf16: Some(flops), bf16_by: "cuBLASLt" },
            None => Probe { read, bf16: self.probe_own()?, bf16_by: "our own kernel, as there is no cuBLASLt" },
        })
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
            unsafe { function.launch(&self.stream, &config, &args)? };
            Ok(())
        });
        self.stream.synchronize()?;
        Ok(bytes as f64 / us? * 1e6)
    }

    /// `None` without the library.
    fn probe_library(&mut self) -> Result<Option<f64>, ExecError> {
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
            unsafe { gemm.launch(&self.stream, [x.ptr(), w.ptr(), y.ptr(), space.ptr()])? };
            Ok(())
        });
        self.stream.synchronize()?;
        Ok(Some(2.0 * (GEMM as f64).powi(3) / us? * 1e6))
    }

    /// The multiply by the kernels that we would choose for it; `None` if there are none.
    fn probe_own(&mut self) -> Result<Option<f64>, ExecError> {
        let Some(plan) = own_multiply() else { return Ok(None) };
        let id = self.prepare_plan(Arc::new(plan))?;
        let start = self.workspace.resolve(Address::Workspace(Region::Inputs, 0));
        let slots = prepared(&self.plans, id)?.inputs.slots.clone();
        for (slot, seed) in slots.iter().zip(1..) {
            self.fill(start + slot.offset as u64, slot.bytes, slot.dtype, seed)?;
        }
        let p = prepared(&self.plans, id)?;
        let us = self.best_us(&mut || p.calls.iter().try_for_each(|call| self.enqueue_call(call, false)))?;
        Ok(Some(2.0 * (GEMM as f64).powi(3) / us * 1e6))
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

#[cfg(test)]
mod tests {
    use super::*;
    use gossamer_codegen_cuda::lower::Lowered;

    #[test]
    fn our_own_multiply_has_kernels() {
        let plan = own_multiply().unwrap();
        let lower = |id| crate::exec::cuda::bind::lower_step(&plan, id, &BTreeMap::new()).unwrap();
        let launches: Vec<Lowered> = plan.steps.iter().map(|id| lower(*id)).collect();
        assert!(launches.iter().map(Lowered::count).sum::<usize>() > 0);
        let (inputs, _) = crate::exec::cuda::block::inputs(&plan).unwrap();
        assert_eq!(inputs.slots.len(), 2);
    }
}
