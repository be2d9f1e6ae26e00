//! Reading weights from any source, in parallel.

use gossamer_models::config::ModelConfig;
use gossamer_models::names::{Part, WeightSpec};
use rayon::prelude::*;

use super::error::CheckpointError;
use super::scales::ScaleRange;

/// Called with the number of bytes just read, from any thread.
pub type Progress<'a> = &'a (dyn Fn(u64) + Sync);

/// Bytes per positioned read: large enough for full disk rate, small enough to spread over threads and to keep progress
/// smooth.
const CHUNK: usize = 8 << 20;

/// Where weights come from: a folder, or a generator.
pub trait WeightSource: Send + Sync {
    /// The model.
    fn config(&self) -> &ModelConfig;

    /// Every weight of the model, in the order of [`gossamer_models::names`].
    fn weights(&self) -> &[WeightSpec];

    /// Writes `out.len()` bytes of a part of a weight, from `byte_offset` within that part on, as a checkpoint stores
    /// them: little-endian values, MXFP4 blocks `[.., K/32, 16]`, scales `[.., K/32]`.
    ///
    /// # Errors
    /// [`CheckpointError::Range`] for bytes the part does not have; otherwise what reading files gives.
    fn fill(&self, weight: &WeightSpec, part: Part, byte_offset: u64, out: &mut [u8]) -> Result<(), CheckpointError>;

    /// The range of a weight's scale bytes where it is known without reading them.
    fn known_scale_range(&self, _weight: &WeightSpec) -> Option<ScaleRange> {
        None
    }
}

/// Fills `out` with a part of a weight from `byte_offset` on, in chunks on the rayon pool.
///
/// # Errors
/// What [`WeightSource::fill`] gives; `out` is then partly filled.
pub fn fill_parallel(
    source: &dyn WeightSource,
    weight: &WeightSpec,
    part: Part,
    byte_offset: u64,
    out: &mut [u8],
    progress: Progress<'_>,
) -> Result<(), CheckpointError> {
    check_range(&weight.name, &part.to_string(), byte_offset, out.len(), weight.part_bytes(part))?;
    out.par_chunks_mut(CHUNK).enumerate().try_for_each(|(i, chunk)| {
        source.fill(weight, part, byte_offset + (i * CHUNK) as u64, chunk)?;
        progress(chunk.len() as u64);
        Ok(())
    })
}

/// Reads a whole part of a weight into memory.
///
/// # Errors
/// [`CheckpointError::Memory`] when it does not fit, otherwise what [`WeightSource::fill`] gives.
pub fn read_part(
    source: &dyn WeightSource,
    weight: &WeightSpec,
    part: Part,
    progress: Progress<'_>,
) -> Result<Vec<u8>, CheckpointError> {
    let bytes = weight.part_bytes(part);
    let mut out = Vec::new();
    out.try_reserve_exact(bytes as usize)
        .map_err(|_| CheckpointError::Memory { weight: weight.name.clone(), bytes })?;
    out.resize(bytes as usize, 0);
    fill_parallel(source, weight, part, 0, &mut out, progress)?;
    Ok(out)
}

/// Visits a part in chunks on the rayon pool without holding all of it: `visit(byte_offset, bytes)`. Offsets are
/// multiples of an even chunk size, so that 2- and 4-byte values are never split.
pub(super) fn scan_part<T: Send>(
    source: &dyn WeightSource,
    weight: &WeightSpec,
    part: Part,
    progress: Progress<'_>,
    visit: impl Fn(u64, &[u8]) -> Result<T, CheckpointError> + Sync,
) -> Result<Vec<T>, CheckpointError> {
    let bytes = weight.part_bytes(part);
    let chunks = bytes.div_ceil(CHUNK as u64);
    (0..chunks)
        .into_par_iter()
        .map_init(Vec::new, |buffer, i| {
            let offset = i * CHUNK as u64;
            buffer.resize((bytes - offset).min(CHUNK as u64) as usize, 0);
            source.fill(weight, part, offset, buffer)?;
            let seen = visit(offset, buffer)?;
            progress(buffer.len() as u64);
            Ok(seen)
        })
        .collect()
}

pub(super) fn check_range(weight: &str, part: &str, start: u64, out: usize, len: u64) -> Result<(), CheckpointError> {
    let end = start.saturating_add(out as u64);
    if end <= len {
        return Ok(());
    }
    Err(CheckpointError::Range { weight: weight.to_owned(), part: part.to_owned(), start, end, len })
}
