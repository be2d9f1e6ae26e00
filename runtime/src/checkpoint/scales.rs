//! Scale bytes of MXFP4 weights: 255 is refused, the range decides which dequantisation is exact.

use std::collections::BTreeMap;

use gossamer_models::names::{Part, WeightFormat, WeightSpec};
use rayon::prelude::*;

use super::error::CheckpointError;
use super::read::{Progress, WeightSource, scan_part};

/// Largest scale byte for which a kernel may fold the scale and the exponent correction of the codes into one bf16
/// multiply: the combined exponent `s + 126` must stay below 255.
pub const FOLDED_SCALE_MAX: u8 = 128;

/// Smallest and largest scale byte of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScaleRange {
    /// Smallest byte.
    pub min: u8,
    /// Largest byte.
    pub max: u8,
}

impl ScaleRange {
    /// The range of some bytes; `None` of none.
    pub fn of(bytes: &[u8]) -> Option<ScaleRange> {
        // Two plain loops over what the cache holds: the compiler makes vectors of each.
        let of = |chunk: &[u8]| ScaleRange {
            min: chunk.iter().fold(u8::MAX, |a, b| a.min(*b)),
            max: chunk.iter().fold(0, |a, b| a.max(*b)),
        };
        bytes.par_chunks(1 << 16).map(of).reduce_with(ScaleRange::merge)
    }

    /// The smallest range that holds both.
    pub fn merge(self, other: ScaleRange) -> ScaleRange {
        ScaleRange { min: self.min.min(other.min), max: self.max.max(other.max) }
    }

    /// Whether the fast dequantisation is exact for every scale in the range; see [`FOLDED_SCALE_MAX`].
    pub fn allows_folding(self) -> bool {
        self.max <= FOLDED_SCALE_MAX
    }
}

/// Checks scale bytes of a weight, `byte_offset` bytes into its scales, and gives their range.
///
/// # Errors
/// [`CheckpointError::NanScale`] at the first byte of 255.
pub fn check_scales(
    weight: &WeightSpec,
    byte_offset: u64,
    scales: &[u8],
) -> Result<Option<ScaleRange>, CheckpointError> {
    let range = ScaleRange::of(scales);
    if range.is_some_and(|r| r.max == u8::MAX)
        && let Some(i) = scales.iter().position(|&b| b == u8::MAX)
    {
        let (expert, row, block) = place(weight, byte_offset + i as u64);
        return Err(CheckpointError::NanScale { tensor: weight.name.clone(), expert, row, block });
    }
    Ok(range)
}

/// The scale ranges of all MXFP4 weights by canonical name. Reads every scale tensor that the source does not know.
///
/// # Errors
/// [`CheckpointError::NanScale`], or what reading gives.
pub fn scale_ranges(
    source: &dyn WeightSource,
    progress: Progress<'_>,
) -> Result<BTreeMap<String, ScaleRange>, CheckpointError> {
    let mut ranges = BTreeMap::new();
    for weight in source.weights().iter().filter(|w| w.format == WeightFormat::Mxfp4) {
        let range = match source.known_scale_range(weight) {
            Some(range) => Some(range),
            None => {
                let chunks = scan_part(source, weight, Part::Scales, progress, |offset, bytes| {
                    check_scales(weight, offset, bytes)
                })?;
                chunks.into_iter().flatten().reduce(ScaleRange::merge)
            }
        };
        ranges.extend(range.map(|r| (weight.name.clone(), r)));
    }
    Ok(ranges)
}

/// Expert, row and block of a scale byte.
pub(super) fn place(weight: &WeightSpec, index: u64) -> (usize, usize, usize) {
    let shape = weight.part_shape(Part::Scales).unwrap_or_default();
    let &[.., rows, blocks] = shape.as_slice() else {
        return (0, 0, index as usize);
    };
    let (rows, blocks) = (rows as u64, blocks as u64);
    ((index / blocks / rows) as usize, (index / blocks % rows) as usize, (index % blocks) as usize)
}
