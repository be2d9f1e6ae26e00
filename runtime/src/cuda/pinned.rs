//! Page-locked host memory, for copies that run beside the CPU.

use std::sync::atomic::AtomicU32;

use cudarc::driver::sys;

use super::capture;
use super::driver::Device;
use super::error::{CudaError, code};

/// How the CPU caches a pinned buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinnedKind {
    /// Ordinary cached memory: for results that the CPU reads.
    Cached,
    /// Write-combined: a little faster to upload from, very slow for the CPU to read. Write it in order, once.
    WriteCombined,
}

/// Page-locked host memory, visible to the GPU at the same address. Zeroed when made. Copies from and to it are on
/// [`super::DeviceSlice`].
pub struct PinnedBuffer {
    device: Device,
    /// Never null; dangling when `len` is 0.
    ptr: std::ptr::NonNull<u8>,
    len: usize,
    kind: PinnedKind,
}

// SAFETY: the memory is owned and reached through `&self`/`&mut self` like a Vec's; the asynchronous copies that bypass the
// borrow checker are `unsafe` functions.
unsafe impl Send for PinnedBuffer {}
// SAFETY: as above.
unsafe impl Sync for PinnedBuffer {}

impl PinnedBuffer {
    /// Locks `len` bytes, zeroed. `what` names the use in error messages.
    ///
    /// # Errors
    /// [`CudaError::HostOutOfMemory`], [`CudaError::Capturing`], [`CudaError::Driver`] or [`CudaError::Poisoned`].
    pub fn new(device: &Device, len: usize, kind: PinnedKind, what: &str) -> Result<Self, CudaError> {
        capture::refuse("allocating pinned memory")?;
        device.enter()?;
        let mut ptr = std::ptr::NonNull::<u8>::dangling();
        if len > 0 {
            let mut raw = std::ptr::null_mut();
            let base = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
            let flags = match kind {
                PinnedKind::Cached => base,
                PinnedKind::WriteCombined => base | sys::CU_MEMHOSTALLOC_WRITECOMBINED,
            };
            // SAFETY: the context is current and `raw` is valid for one write.
            let result = unsafe { sys::cuMemHostAlloc(&mut raw, len, flags) };
            ptr = match (result as u32, std::ptr::NonNull::new(raw.cast())) {
                (code::SUCCESS, Some(ptr)) => ptr,
                (code::SUCCESS | code::OUT_OF_MEMORY, _) => {
                    return Err(CudaError::HostOutOfMemory { what: what.to_owned(), requested: len as u64 });
                }
                _ => return Err(device.fail("cuMemHostAlloc", result, &format!("locking host memory for {what}"))),
            };
            // SAFETY: the driver returned `len` writable bytes; zeroing makes them initialised.
            unsafe { ptr.as_ptr().write_bytes(0, len) };
        }
        Ok(Self { device: device.clone(), ptr, len, kind })
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How the CPU caches it.
    pub fn kind(&self) -> PinnedKind {
        self.kind
    }

    /// The device it was made on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The bytes. Slow for [`PinnedKind::WriteCombined`]. Results of an asynchronous download are there once the stream has
    /// passed it.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `ptr` covers `len` initialised bytes (dangling for 0) for as long as `self` lives.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }

    /// The bytes, to write.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as `as_slice`, and `&mut self` makes the access unique on the host.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }

    /// A word that the GPU may write at any time; `None` outside the buffer or at an offset that is no multiple of 4.
    pub fn word(&self, offset: usize) -> Option<&AtomicU32> {
        let inside = offset.is_multiple_of(4) && offset.checked_add(4).is_some_and(|end| end <= self.len);
        // SAFETY: the word lies within `len` bytes that live as long as `self`, and is aligned: the allocation is to a page.
        inside.then(|| unsafe { AtomicU32::from_ptr(self.ptr.as_ptr().add(offset).cast()) })
    }

    /// Copies bytes from `offset` on, while the GPU may be writing others; false outside the buffer.
    pub fn read(&self, offset: usize, out: &mut [u8]) -> bool {
        let inside = offset.checked_add(out.len()).is_some_and(|end| end <= self.len);
        if inside {
            // SAFETY: the source lies within the buffer; `out` is other memory, as the buffer is only lent through `self`.
            unsafe { std::ptr::copy_nonoverlapping(self.ptr.as_ptr().add(offset), out.as_mut_ptr(), out.len()) };
        }
        inside
    }

    /// The address, good on the host and, by unified addressing, as a kernel argument.
    pub fn ptr(&self) -> u64 {
        self.ptr.as_ptr() as u64
    }

    pub(super) fn raw(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        if self.len == 0 {
            return;
        }
        let (device, ptr) = (self.device.clone(), self.ptr);
        capture::free_when_allowed(move || {
            if device.enter().is_ok() {
                // SAFETY: allocated by cuMemHostAlloc, freed once. Copies still running on it are excluded by the contract
                // of the `unsafe` functions that start them.
                let _ = unsafe { sys::cuMemFreeHost(ptr.as_ptr().cast()) };
            }
        });
    }
}
