//! Device memory: owned buffers, borrowed views, arenas, fills and copies.

use std::fmt;
use std::ops::Range;

use cudarc::driver::sys;

use super::capture;
use super::driver::{Device, call};
use super::error::{CudaError, code};
use super::pinned::PinnedBuffer;
use super::stream::Stream;

/// Alignment in bytes of every arena region: what the driver gives its own allocations.
pub const ARENA_ALIGN: u64 = 256;

/// The byte that [`DeviceSlice::poison`] fills with: NaN as f32, bf16 and f16, -1 as integers, and an invalid MXFP4 scale.
pub const POISON_BYTE: u8 = 0xff;

/// Owned device memory, uninitialised when made, freed when dropped.
///
/// Dropping does not wait for queued work that uses it: let the stream pass first. During a graph capture on the dropping
/// thread the free waits for the capture's end.
pub struct DeviceBuffer {
    device: Device,
    ptr: u64,
    len: usize,
}

impl DeviceBuffer {
    /// Allocates `len` bytes, 256-byte aligned. `what` names the use in error messages. No allocation is made for 0 bytes.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`] with how much is missing, [`CudaError::Capturing`], [`CudaError::Driver`] or
    /// [`CudaError::Poisoned`].
    pub fn alloc(device: &Device, len: usize, what: &str) -> Result<Self, CudaError> {
        capture::refuse("allocating device memory")?;
        device.enter()?;
        let mut ptr = 0;
        if len > 0 {
            // SAFETY: the context is current and `ptr` is valid for one write.
            let result = unsafe { sys::cuMemAlloc_v2(&mut ptr, len) };
            match result as u32 {
                code::SUCCESS => {}
                code::OUT_OF_MEMORY => return Err(out_of_memory(device, len as u64, what)?),
                _ => return Err(device.fail("cuMemAlloc_v2", result, &format!("allocating {what}"))),
            }
        }
        Ok(Self { device: device.clone(), ptr, len })
    }

    /// Its device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The device address, for kernel arguments; 0 for an empty buffer.
    pub fn ptr(&self) -> u64 {
        self.ptr
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All of it.
    pub fn all(&self) -> DeviceSlice<'_> {
        DeviceSlice { device: &self.device, ptr: self.ptr, len: self.len }
    }

    /// `len` bytes from `offset`.
    ///
    /// # Errors
    /// [`CudaError::OutOfBounds`].
    pub fn slice(&self, offset: usize, len: usize) -> Result<DeviceSlice<'_>, CudaError> {
        self.all().slice(offset, len)
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        if self.ptr == 0 {
            return;
        }
        let (device, ptr) = (self.device.clone(), self.ptr);
        capture::free_when_allowed(move || {
            if device.enter().is_ok() {
                // SAFETY: allocated by cuMemAlloc_v2 on this device, freed once.
                let _ = unsafe { sys::cuMemFree_v2(ptr) };
            }
        });
    }
}

impl fmt::Debug for DeviceBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceBuffer({:#x}, {} bytes)", self.ptr, self.len)
    }
}

/// Some bytes of a [`DeviceBuffer`]. All operations are ordered by the stream they are given; the contents are the
/// caller's to order, as nothing tracks who reads or writes them.
#[derive(Clone, Copy)]
pub struct DeviceSlice<'a> {
    device: &'a Device,
    ptr: u64,
    len: usize,
}

impl<'a> DeviceSlice<'a> {
    /// The device address, for kernel arguments.
    pub fn ptr(&self) -> u64 {
        self.ptr
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// `len` bytes from `offset` of this view.
    ///
    /// # Errors
    /// [`CudaError::OutOfBounds`].
    pub fn slice(&self, offset: usize, len: usize) -> Result<DeviceSlice<'a>, CudaError> {
        check_range("view", offset, len, self.len)?;
        Ok(DeviceSlice { device: self.device, ptr: self.ptr + offset as u64, len })
    }

    /// Enqueues filling with a byte.
    ///
    /// # Errors
    /// [`CudaError::Driver`] or [`CudaError::Poisoned`].
    pub fn fill_u8(&self, stream: &Stream, value: u8) -> Result<(), CudaError> {
        if self.is_empty() {
            return Ok(());
        }
        self.device.enter()?;
        // SAFETY: the view lies within a live allocation.
        unsafe { call!(self.device, "filling device memory", cuMemsetD8Async(self.ptr, value, self.len, stream.raw())) }
    }

    /// Enqueues filling with a 32-bit pattern; address and length must be multiples of 4.
    ///
    /// # Errors
    /// [`CudaError::Misaligned`], [`CudaError::Driver`] or [`CudaError::Poisoned`].
    pub fn fill_u32(&self, stream: &Stream, value: u32) -> Result<(), CudaError> {
        for number in [self.ptr, self.len as u64] {
            if !number.is_multiple_of(4) {
                return Err(CudaError::Misaligned { what: "filling with 32-bit words", value: number, needed: 4 });
            }
        }
        if self.is_empty() {
            return Ok(());
        }
        self.device.enter()?;
        let words = self.len / 4;
        // SAFETY: the view lies within a live allocation and is 4-byte aligned.
        unsafe { call!(self.device, "filling device memory", cuMemsetD32Async(self.ptr, value, words, stream.raw())) }
    }

    /// Enqueues filling with zeros.
    ///
    /// # Errors
    /// As [`DeviceSlice::fill_u8`].
    pub fn zero(&self, stream: &Stream) -> Result<(), CudaError> {
        self.fill_u8(stream, 0)
    }

    /// Enqueues filling with [`POISON_BYTE`], so that reads of unwritten memory show as NaN.
    ///
    /// # Errors
    /// As [`DeviceSlice::fill_u8`].
    pub fn poison(&self, stream: &Stream) -> Result<(), CudaError> {
        self.fill_u8(stream, POISON_BYTE)
    }

    /// Copies `source` here and waits until it is there. The lengths must agree.
    ///
    /// # Errors
    /// [`CudaError::OutOfBounds`], [`CudaError::Capturing`], [`CudaError::Driver`] or [`CudaError::Poisoned`].
    pub fn upload(&self, stream: &Stream, source: &[u8]) -> Result<(), CudaError> {
        capture::refuse("copying from pageable memory")?;
        self.same_len("upload", source.len())?;
        if source.is_empty() {
            return Ok(());
        }
        self.device.enter()?;
        // SAFETY: both ranges have `self.len` bytes; `source` is borrowed until the copy has finished below.
        unsafe {
            call!(
                self.device,
                "copying to the GPU",
                cuMemcpyHtoDAsync_v2(self.ptr, source.as_ptr().cast(), self.len, stream.raw())
            )?;
        }
        stream.synchronize()
    }

    /// Copies this memory to `target` and waits until it is there. The lengths must agree.
    ///
    /// # Errors
    /// As [`DeviceSlice::upload`].
    pub fn download(&self, stream: &Stream, target: &mut [u8]) -> Result<(), CudaError> {
        capture::refuse("copying to pageable memory")?;
        self.same_len("download", target.len())?;
        if target.is_empty() {
            return Ok(());
        }
        self.device.enter()?;
        // SAFETY: both ranges have `self.len` bytes; `target` is borrowed until the copy has finished below.
        unsafe {
            call!(
                self.device,
                "copying from the GPU",
                cuMemcpyDtoHAsync_v2(target.as_mut_ptr().cast(), self.ptr, self.len, stream.raw())
            )?;
        }
        stream.synchronize()
    }

    /// Enqueues a copy of `range` of `source` to the start of this memory.
    ///
    /// # Errors
    /// [`CudaError::OutOfBounds`], [`CudaError::Driver`] or [`CudaError::Poisoned`].
    ///
    /// # Safety
    /// `source` must stay alive and unwritten in `range` until the copy has run (when captured: each time the graph runs).
    pub unsafe fn upload_async(
        &self,
        stream: &Stream,
        source: &PinnedBuffer,
        range: Range<usize>,
    ) -> Result<(), CudaError> {
        let len = self.check_pinned("asynchronous upload", source, &range)?;
        if len == 0 {
            return Ok(());
        }
        self.device.enter()?;
        // SAFETY: `range` is within `source` and no longer than this view; the caller keeps the memory for the copy.
        unsafe {
            let from = source.raw().add(range.start).cast();
            call!(self.device, "copying to the GPU", cuMemcpyHtoDAsync_v2(self.ptr, from, len, stream.raw()))
        }
    }

    /// Enqueues a copy of the start of this memory to `range` of `target`.
    ///
    /// # Errors
    /// [`CudaError::OutOfBounds`], [`CudaError::Driver`] or [`CudaError::Poisoned`].
    ///
    /// # Safety
    /// `target` must stay alive, and nobody may hold or make a reference into `range`, until the copy has run (when
    /// captured: each time the graph runs).
    pub unsafe fn download_async(
        &self,
        stream: &Stream,
        target: &PinnedBuffer,
        range: Range<usize>,
    ) -> Result<(), CudaError> {
        let len = self.check_pinned("asynchronous download", target, &range)?;
        if len == 0 {
            return Ok(());
        }
        self.device.enter()?;
        // SAFETY: `range` is within `target` and no longer than this view; the caller keeps the memory for the copy.
        unsafe {
            let to = target.raw().add(range.start).cast();
            call!(self.device, "copying from the GPU", cuMemcpyDtoHAsync_v2(to, self.ptr, len, stream.raw()))
        }
    }

    /// Enqueues a copy of other device memory, of the same length, to here. The two must not overlap.
    ///
    /// # Errors
    /// [`CudaError::OutOfBounds`], [`CudaError::Driver`] or [`CudaError::Poisoned`].
    pub fn copy_from(&self, stream: &Stream, source: DeviceSlice<'_>) -> Result<(), CudaError> {
        self.same_len("device copy", source.len)?;
        if self.is_empty() {
            return Ok(());
        }
        self.device.enter()?;
        // SAFETY: both views lie within live allocations and have the same length.
        unsafe {
            call!(self.device, "copying on the GPU", cuMemcpyDtoDAsync_v2(self.ptr, source.ptr, self.len, stream.raw()))
        }
    }

    fn same_len(&self, what: &'static str, len: usize) -> Result<(), CudaError> {
        if len == self.len {
            return Ok(());
        }
        Err(CudaError::OutOfBounds { what, offset: 0, end: len as u64, size: self.len as u64 })
    }

    fn check_pinned(
        &self,
        what: &'static str,
        pinned: &PinnedBuffer,
        range: &Range<usize>,
    ) -> Result<usize, CudaError> {
        let len = range.end.saturating_sub(range.start);
        check_range(what, range.start, len, pinned.len())?;
        check_range(what, 0, len, self.len)?;
        Ok(len)
    }
}

impl fmt::Debug for DeviceSlice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceSlice({:#x}, {} bytes)", self.ptr, self.len)
    }
}

/// A place in an arena: plain numbers, to be kept in a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Region {
    /// First byte, a multiple of [`ARENA_ALIGN`].
    pub offset: u64,
    /// Size in bytes.
    pub len: u64,
}

/// Arithmetic of an arena: regions one after the other, each aligned to [`ARENA_ALIGN`]. Needs no GPU, so that a plan can be
/// printed before anything is allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ArenaLayout {
    total: u64,
}

impl ArenaLayout {
    /// An empty layout.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `len` bytes.
    ///
    /// # Errors
    /// [`CudaError::ArenaOverflow`].
    pub fn push(&mut self, len: u64) -> Result<Region, CudaError> {
        let overflow = CudaError::ArenaOverflow { bytes: len, total: self.total };
        let Some(total) = len.checked_next_multiple_of(ARENA_ALIGN).and_then(|len| self.total.checked_add(len)) else {
            return Err(overflow);
        };
        let region = Region { offset: self.total, len };
        self.total = total;
        Ok(region)
    }

    /// Size in bytes of what was pushed, with padding; a multiple of [`ARENA_ALIGN`].
    pub fn total(&self) -> u64 {
        self.total
    }
}

/// One allocation cut up by an [`ArenaLayout`].
#[derive(Debug)]
pub struct Arena {
    buffer: DeviceBuffer,
}

impl Arena {
    /// Allocates a layout. `what` names the use in error messages.
    ///
    /// # Errors
    /// Those of [`DeviceBuffer::alloc`].
    pub fn alloc(device: &Device, layout: &ArenaLayout, what: &str) -> Result<Self, CudaError> {
        // Only 64-bit hosts have a driver, so `u64` sizes fit.
        DeviceBuffer::alloc(device, layout.total() as usize, what).map(|buffer| Self { buffer })
    }

    /// The memory of a region.
    ///
    /// # Errors
    /// [`CudaError::OutOfBounds`] for a region of a larger layout.
    pub fn at(&self, region: Region) -> Result<DeviceSlice<'_>, CudaError> {
        self.buffer.slice(region.offset as usize, region.len as usize)
    }

    /// The whole allocation.
    pub fn buffer(&self) -> &DeviceBuffer {
        &self.buffer
    }
}

/// Fails unless `offset..offset + len` lies within `size`.
fn check_range(what: &'static str, offset: usize, len: usize, size: usize) -> Result<(), CudaError> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        end => Err(CudaError::OutOfBounds {
            what,
            offset: offset as u64,
            end: end.map_or(u64::MAX, |end| end as u64),
            size: size as u64,
        }),
    }
}

/// The error for an allocation that did not fit; `Err` if free memory cannot be read.
fn out_of_memory(device: &Device, requested: u64, what: &str) -> Result<CudaError, CudaError> {
    let memory = device.memory()?;
    Ok(CudaError::OutOfMemory {
        ordinal: device.ordinal(),
        what: what.to_owned(),
        requested,
        free: memory.free,
        total: memory.total,
        missing: requested.saturating_sub(memory.free),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arena_offsets_are_aligned_and_disjoint() {
        let mut layout = ArenaLayout::new();
        let regions: Vec<Region> = [1, 0, 256, 257, 5760 * 2, 255].map(|len| layout.push(len).unwrap()).to_vec();
        let offsets: Vec<u64> = regions.iter().map(|region| region.offset).collect();
        assert_eq!(offsets, [0, 256, 256, 512, 1024, 1024 + 11_520]);
        assert_eq!(layout.total(), 1024 + 11_520 + 256);
        for pair in regions.windows(2) {
            assert!(pair[0].offset + pair[0].len <= pair[1].offset);
            assert_eq!(pair[1].offset % ARENA_ALIGN, 0);
        }
    }

    #[test]
    fn arena_overflow_is_an_error_and_changes_nothing() {
        let mut layout = ArenaLayout::new();
        layout.push(512).unwrap();
        for len in [u64::MAX, u64::MAX - 511, u64::MAX - 255] {
            assert_eq!(layout.push(len), Err(CudaError::ArenaOverflow { bytes: len, total: 512 }));
        }
        assert_eq!(layout.total(), 512);
    }

    #[test]
    fn ranges_are_checked_without_overflow() {
        assert!(check_range("t", 0, 0, 0).is_ok());
        assert!(check_range("t", 4, 4, 8).is_ok());
        assert!(check_range("t", 5, 4, 8).is_err());
        assert!(check_range("t", 9, 0, 8).is_err());
        assert!(check_range("t", usize::MAX, 2, 8).is_err());
    }

    #[test]
    fn poison_is_not_a_number() {
        assert!(f32::from_le_bytes([POISON_BYTE; 4]).is_nan());
        assert!(half::bf16::from_le_bytes([POISON_BYTE; 2]).is_nan());
        assert!(half::f16::from_le_bytes([POISON_BYTE; 2]).is_nan());
        assert_eq!(i32::from_le_bytes([POISON_BYTE; 4]), -1);
    }

    #[test]
    fn buffers_are_send_and_sync() {
        fn both<T: Send + Sync>() {}
        both::<DeviceBuffer>();
        both::<PinnedBuffer>();
        both::<Arena>();
        both::<DeviceSlice<'_>>();
    }
}
