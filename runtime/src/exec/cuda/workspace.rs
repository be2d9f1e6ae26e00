//! The workspace: one device allocation that all plans of an executor share (input block, arena, scratch), and the page-locked host memory that steps
//! are fed from and read back to. It grows when a larger plan comes; graphs captured before are then stale.

use gossamer_passes::Plan;
use gossamer_passes::buffers::ALIGN;

use super::bind::{Address, Region, ScratchBytes, lower_steps};
use super::block;
use crate::cuda::{CudaError, Device, DeviceBuffer, PinnedBuffer, PinnedKind, Stream};
use crate::exec::ExecError;

/// What one plan, or several taken together, need of the workspace; bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Needs {
    /// The input block, on the device and page-locked on the host.
    pub inputs: u64,
    /// Computed values.
    pub arena: u64,
    /// Prepared buffers and the scratch of the op that needs most.
    pub scratch: u64,
    /// Results, page-locked on the host.
    pub outputs: u64,
}

impl Needs {
    /// What a plan needs. Lowers its ops; compiles nothing.
    ///
    /// # Errors
    /// An op without a kernel, or a symbol without a value.
    pub fn of(plan: &Plan) -> Result<Needs, ExecError> {
        let lowered = lower_steps(plan, &Default::default())?;
        Needs::with_scratch(plan, ScratchBytes::of_all(&lowered).total())
    }

    /// What a plan needs whose ops need `scratch`.
    ///
    /// # Errors
    /// A symbol without a value.
    pub fn with_scratch(plan: &Plan, scratch: u64) -> Result<Needs, ExecError> {
        let inputs = block::inputs(plan)?.0.bytes as u64;
        let outputs = block::outputs(plan)?.bytes as u64;
        Ok(Needs { inputs, arena: plan.buffers.arena_bytes, scratch, outputs })
    }

    /// Enough for either.
    pub fn max(self, other: Needs) -> Needs {
        Needs {
            inputs: self.inputs.max(other.inputs),
            arena: self.arena.max(other.arena),
            scratch: self.scratch.max(other.scratch),
            outputs: self.outputs.max(other.outputs),
        }
    }

    /// First byte of a region; regions lie in the order of [`Region`].
    pub fn start(&self, region: Region) -> u64 {
        let aligned = |n: u64| n.next_multiple_of(ALIGN);
        match region {
            Region::Inputs => 0,
            Region::Arena => aligned(self.inputs),
            Region::Scratch => aligned(self.inputs) + aligned(self.arena),
        }
    }

    /// Bytes on the device.
    pub fn device_bytes(&self) -> u64 {
        self.start(Region::Scratch) + self.scratch.next_multiple_of(ALIGN)
    }
}

/// The memory itself.
pub struct Workspace {
    needs: Needs,
    generation: u64,
    /// Inputs, arena, scratch.
    pub device: DeviceBuffer,
    /// The input block on the host.
    pub inputs: PinnedBuffer,
    /// Results on the host.
    pub outputs: PinnedBuffer,
}

impl Workspace {
    /// An empty one.
    ///
    /// # Errors
    /// What the device gives.
    pub fn new(device: &Device) -> Result<Workspace, CudaError> {
        let (memory, inputs, outputs) = allocate(device, &Needs::default())?;
        Ok(Workspace { needs: Needs::default(), generation: 0, device: memory, inputs, outputs })
    }

    /// Makes it large enough. If it has to move, the old memory is freed first, so that both are never held, and the generation changes; contents are
    /// lost. After an error it is empty, and the next call tries again.
    ///
    /// # Errors
    /// Too little memory.
    pub fn fit(&mut self, device: &Device, stream: &Stream, needs: Needs) -> Result<(), CudaError> {
        let wanted = self.needs.max(needs);
        if wanted == self.needs {
            return Ok(());
        }
        // Nothing may still read what is freed here.
        stream.synchronize()?;
        let before = self.needs;
        self.replace(device, Needs::default())?;
        let grown = self.replace(device, wanted);
        if grown.is_err() {
            // The plans of before may still run.
            self.replace(device, before)?;
        }
        grown
    }

    fn replace(&mut self, device: &Device, needs: Needs) -> Result<(), CudaError> {
        let (memory, inputs, outputs) = allocate(device, &needs)?;
        *self = Workspace { needs, generation: self.generation + 1, device: memory, inputs, outputs };
        Ok(())
    }

    /// Changes whenever addresses do.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What it is large enough for.
    pub fn needs(&self) -> Needs {
        self.needs
    }

    /// The device pointer of an address.
    pub fn resolve(&self, address: Address) -> u64 {
        match address {
            Address::Workspace(region, offset) => self.device.ptr() + self.needs.start(region) + offset,
            Address::Fixed(ptr) => ptr,
        }
    }
}

fn allocate(device: &Device, needs: &Needs) -> Result<(DeviceBuffer, PinnedBuffer, PinnedBuffer), CudaError> {
    let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    Ok((
        DeviceBuffer::alloc(device, size(needs.device_bytes()), "activations and scratch")?,
        PinnedBuffer::new(device, size(needs.inputs), PinnedKind::Cached, "step inputs")?,
        PinnedBuffer::new(device, size(needs.outputs), PinnedKind::Cached, "step results")?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_aligned_and_disjoint() {
        let needs = Needs { inputs: 10, arena: 300, scratch: 1, outputs: 7 };
        let starts = [Region::Inputs, Region::Arena, Region::Scratch].map(|r| needs.start(r));
        assert_eq!((starts, needs.device_bytes()), ([0, 256, 768], 1024));
        assert_eq!(Needs::default().device_bytes(), 0);
    }

    #[test]
    fn several_plans_need_the_most_of_each() {
        let a = Needs { inputs: 1, arena: 20, scratch: 3, outputs: 40 };
        let b = Needs { inputs: 10, arena: 2, scratch: 30, outputs: 4 };
        assert_eq!(a.max(b), Needs { inputs: 10, arena: 20, scratch: 30, outputs: 40 });
    }
}
