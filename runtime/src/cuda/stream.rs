//! Streams: ordered queues of GPU work.

use cudarc::driver::sys;

use super::capture;
use super::driver::{Device, call};
use super::error::{CudaError, code};
use super::event::Event;

/// Which of two streams' ready work the GPU prefers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Priority {
    /// The default.
    #[default]
    Normal,
    /// The highest the device offers.
    High,
}

/// A non-blocking stream: work runs in the order enqueued and is independent of the legacy default stream. `Send` but not
/// `Sync`: enqueue from one thread at a time. Dropping it does not wait; the driver finishes what is queued.
pub struct Stream {
    device: Device,
    raw: sys::CUstream,
}

// SAFETY: a stream handle is not tied to a thread; `!Sync` (from the raw pointer) keeps use to one thread at a time.
unsafe impl Send for Stream {}

impl Stream {
    /// Makes a stream of normal priority.
    ///
    /// # Errors
    /// [`CudaError::Driver`] or [`CudaError::Poisoned`].
    pub fn new(device: &Device) -> Result<Self, CudaError> {
        Self::with_priority(device, Priority::Normal)
    }

    /// Makes a stream of the given priority.
    ///
    /// # Errors
    /// [`CudaError::Driver`] or [`CudaError::Poisoned`].
    pub fn with_priority(device: &Device, priority: Priority) -> Result<Self, CudaError> {
        device.enter()?;
        let (mut least, mut greatest) = (0, 0);
        // SAFETY: the context is current and both pointers are valid for one write.
        unsafe { call!(device, "reading stream priorities", cuCtxGetStreamPriorityRange(&mut least, &mut greatest))? };
        let level = match priority {
            Priority::Normal => least,
            Priority::High => greatest,
        };
        let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the context is current, the level is within the range read above, `raw` is valid for one write.
        unsafe { call!(device, "making a stream", cuStreamCreateWithPriority(&mut raw, flags, level))? };
        Ok(Self { device: device.clone(), raw })
    }

    /// The device it belongs to.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Waits until everything enqueued so far has run. Errors of earlier launches show up here.
    ///
    /// # Errors
    /// [`CudaError::Driver`], [`CudaError::Poisoned`], or [`CudaError::Capturing`] on a capturing thread.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        capture::refuse("waiting for a stream")?;
        self.device.enter()?;
        // SAFETY: the stream lives as long as `self`.
        unsafe { call!(self.device, "waiting for the GPU", cuStreamSynchronize(self.raw)) }
    }

    /// Whether everything enqueued so far has run.
    ///
    /// # Errors
    /// As [`Stream::synchronize`].
    pub fn is_idle(&self) -> Result<bool, CudaError> {
        capture::refuse("asking a stream for its state")?;
        self.device.enter()?;
        // SAFETY: the stream lives as long as `self`.
        match unsafe { sys::cuStreamQuery(self.raw) } {
            sys::CUresult::CUDA_SUCCESS => Ok(true),
            result if result as u32 == code::NOT_READY => Ok(false),
            result => Err(self.device.fail("cuStreamQuery", result, "asking a stream for its state")),
        }
    }

    /// Makes later work of this stream wait for `event`'s last record, on any stream. Inside a capture this joins the
    /// event's stream to the graph.
    ///
    /// # Errors
    /// [`CudaError::Driver`] or [`CudaError::Poisoned`].
    pub fn wait(&self, event: &Event) -> Result<(), CudaError> {
        self.device.enter()?;
        // SAFETY: both handles are alive; flags must be 0.
        unsafe { call!(self.device, "waiting for an event", cuStreamWaitEvent(self.raw, event.raw(), 0)) }
    }

    pub(super) fn raw(&self) -> sys::CUstream {
        self.raw
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.device.enter().is_ok() {
            // SAFETY: the handle is ours and not used again; pending work completes on its own.
            let _ = unsafe { sys::cuStreamDestroy_v2(self.raw) };
        }
    }
}
