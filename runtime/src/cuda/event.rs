//! Events: points in a stream to wait for or to time.

use cudarc::driver::sys;

use super::capture;
use super::driver::{Device, call};
use super::error::{CudaError, code};
use super::stream::Stream;

/// What an event is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// Ordering only; cheaper to record and to wait for.
    Order,
    /// Ordering and time stamps, for [`Event::elapsed_us`].
    Timing,
}

/// A point in a stream's work. `Send` but not `Sync`.
pub struct Event {
    device: Device,
    raw: sys::CUevent,
}

// SAFETY: an event handle is not tied to a thread; `!Sync` (from the raw pointer) keeps use to one thread at a time.
unsafe impl Send for Event {}

impl Event {
    /// Makes an event.
    ///
    /// # Errors
    /// [`CudaError::Driver`] or [`CudaError::Poisoned`].
    pub fn new(device: &Device, kind: EventKind) -> Result<Self, CudaError> {
        device.enter()?;
        let flags = match kind {
            EventKind::Order => sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as u32,
            EventKind::Timing => sys::CUevent_flags_enum::CU_EVENT_DEFAULT as u32,
        };
        let mut raw = std::ptr::null_mut();
        // SAFETY: the context is current and `raw` is valid for one write.
        unsafe { call!(device, "making an event", cuEventCreate(&mut raw, flags))? };
        Ok(Self { device: device.clone(), raw })
    }

    /// Marks the end of what `stream` holds now; replaces an earlier mark.
    ///
    /// # Errors
    /// [`CudaError::Driver`] or [`CudaError::Poisoned`].
    pub fn record(&self, stream: &Stream) -> Result<(), CudaError> {
        self.device.enter()?;
        // SAFETY: both handles are alive.
        unsafe { call!(self.device, "recording an event", cuEventRecord(self.raw, stream.raw())) }
    }

    /// Waits on the host until the recorded work has run. At once if nothing was recorded.
    ///
    /// # Errors
    /// [`CudaError::Driver`], [`CudaError::Poisoned`], or [`CudaError::Capturing`] on a capturing thread.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        capture::refuse("waiting for an event")?;
        self.device.enter()?;
        // SAFETY: the event is alive.
        unsafe { call!(self.device, "waiting for the GPU", cuEventSynchronize(self.raw)) }
    }

    /// Whether the recorded work has run.
    ///
    /// # Errors
    /// As [`Event::synchronize`].
    pub fn is_done(&self) -> Result<bool, CudaError> {
        capture::refuse("asking an event for its state")?;
        self.device.enter()?;
        // SAFETY: the event is alive.
        match unsafe { sys::cuEventQuery(self.raw) } {
            sys::CUresult::CUDA_SUCCESS => Ok(true),
            result if result as u32 == code::NOT_READY => Ok(false),
            result => Err(self.device.fail("cuEventQuery", result, "asking an event for its state")),
        }
    }

    /// Microseconds of GPU time from this event to a later one. Both must be [`EventKind::Timing`], recorded and done.
    ///
    /// # Errors
    /// [`CudaError::Driver`] if one is not, or [`CudaError::Poisoned`].
    pub fn elapsed_us(&self, later: &Self) -> Result<f64, CudaError> {
        self.device.enter()?;
        let mut milliseconds = 0f32;
        // SAFETY: both events are alive and `milliseconds` is valid for one write.
        unsafe { call!(self.device, "timing", cuEventElapsedTime_v2(&mut milliseconds, self.raw, later.raw))? };
        Ok(f64::from(milliseconds) * 1000.0)
    }

    pub(super) fn raw(&self) -> sys::CUevent {
        self.raw
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.device.enter().is_ok() {
            // SAFETY: the handle is ours and not used again; pending waits on it complete on their own.
            let _ = unsafe { sys::cuEventDestroy_v2(self.raw) };
        }
    }
}
