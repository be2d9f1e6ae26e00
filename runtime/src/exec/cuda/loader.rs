//! Uploading: two page-locked buffers in turn, so that the CPU reads and packs one while the GPU copies the other.

use std::sync::Arc;
use std::time::Instant;

use super::resident::Loader;
use crate::cuda::{CudaError, Device, DeviceBuffer, Event, EventKind, PinnedBuffer, PinnedKind, Stream};
use crate::exec::ExecError;
use crate::phases::{Phase, Phases};

/// Bytes of each of the two buffers: enough that every core packs an expert of a large model at a time.
const STAGING: usize = 128 << 20;

/// Fills device memory from the host.
pub struct Uploader {
    // Before the device objects: dropping waits for copies that read the buffers.
    stream: Stream,
    slots: [Slot; 2],
    next: usize,
    device: Device,
    phases: Phases,
}

struct Slot {
    memory: PinnedBuffer,
    copied: Event,
}

impl Uploader {
    /// An uploader for `total` bytes in all; small totals get small buffers.
    ///
    /// # Errors
    /// What locking host memory gives.
    pub fn new(device: &Device, total: u64, phases: &Phases) -> Result<Uploader, ExecError> {
        let begun = Instant::now();
        let bytes = usize::try_from(total).unwrap_or(STAGING).clamp(1 << 16, STAGING);
        let uploader = Uploader {
            stream: Stream::new(device)?,
            slots: [Slot::new(device, bytes)?, Slot::new(device, bytes)?],
            next: 0,
            device: device.clone(),
            phases: phases.clone(),
        };
        phases.add(Phase::Memory, begun.elapsed());
        Ok(uploader)
    }
}

impl Slot {
    fn new(device: &Device, bytes: usize) -> Result<Slot, CudaError> {
        Ok(Slot {
            memory: PinnedBuffer::new(device, bytes, PinnedKind::Cached, "loading weights")?,
            copied: Event::new(device, EventKind::Order)?,
        })
    }
}

impl Loader for Uploader {
    type Memory = Arc<DeviceBuffer>;

    fn allocate(&mut self, bytes: usize, what: &str) -> Result<Arc<DeviceBuffer>, ExecError> {
        let memory = self.phases.time(Phase::Memory, || DeviceBuffer::alloc(&self.device, bytes, what));
        Ok(Arc::new(memory?))
    }

    fn address(memory: &Arc<DeviceBuffer>) -> u64 {
        memory.ptr()
    }

    fn staging(&self) -> usize {
        self.slots[0].memory.len()
    }

    fn reserve(&mut self, bytes: usize) -> Result<(), ExecError> {
        if bytes > self.staging() {
            self.stream.synchronize()?;
            self.slots = [Slot::new(&self.device, bytes)?, Slot::new(&self.device, bytes)?];
        }
        Ok(())
    }

    fn stage(
        &mut self,
        to: &Arc<DeviceBuffer>,
        offset: usize,
        len: usize,
        fill: &mut dyn FnMut(&mut [u8]) -> Result<(), ExecError>,
    ) -> Result<(), ExecError> {
        let target = to.slice(offset, len)?;
        let slot = &mut self.slots[self.next];
        self.next = 1 - self.next;
        // The copy that read this buffer last.
        self.phases.time(Phase::Upload, || slot.copied.synchronize())?;
        let size = slot.memory.len();
        let Some(out) = slot.memory.as_mut_slice().get_mut(..len) else {
            let (what, end) = ("staging a weight", len as u64);
            return Err(CudaError::OutOfBounds { what, offset: 0, end, size: size as u64 }.into());
        };
        fill(out)?;
        // SAFETY: the buffer is written again only after `copied` has passed, and dropped only after the stream has (see `Drop` and `reserve`).
        unsafe { target.upload_async(&self.stream, &slot.memory, 0..len)? };
        Ok(slot.copied.record(&self.stream)?)
    }

    fn finish(&mut self) -> Result<(), ExecError> {
        Ok(self.phases.time(Phase::Upload, || self.stream.synchronize())?)
    }
}

impl Drop for Uploader {
    fn drop(&mut self) {
        // Copies may still read the buffers when loading ends with an error. A device that cannot be waited for runs nothing any more.
        let _ = self.stream.synchronize();
    }
}
