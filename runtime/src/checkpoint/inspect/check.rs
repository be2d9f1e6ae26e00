//! Reading all weights and reporting numbers that no model should have.

use gossamer_models::names::{Part, StoredDType, WeightFormat, WeightSpec};
use half::{bf16, f16};
use serde::Serialize;

use crate::checkpoint::error::CheckpointError;
use crate::checkpoint::read::{Progress, WeightSource, scan_part};
use crate::checkpoint::scales::{self, FOLDED_SCALE_MAX};

/// Health of all weights.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    /// Every dense weight.
    pub values: Vec<ValueCheck>,
    /// Every MXFP4 weight's scales. (All sixteen codes are numbers: blocks cannot be wrong.)
    pub scales: Vec<ScaleCheck>,
}

/// A dense weight's numbers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ValueCheck {
    /// Canonical name.
    pub weight: String,
    /// How many are NaN.
    pub nan: u64,
    /// How many are infinite.
    pub infinite: u64,
    /// Largest finite magnitude.
    pub max_abs: f32,
    /// Index of the first NaN or infinity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_bad: Option<Vec<usize>>,
}

/// An MXFP4 weight's scale bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ScaleCheck {
    /// Canonical name.
    pub weight: String,
    /// How often each byte occurs; bytes that do not occur are left out.
    pub histogram: Vec<(u8, u64)>,
    /// Expert, row and block of the first byte 255.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_nan: Option<(usize, usize, usize)>,
}

impl Check {
    /// Whether a weight has NaN or infinite numbers, or a scale of 255.
    pub fn has_errors(&self) -> bool {
        self.values.iter().any(|v| v.first_bad.is_some()) || self.scales.iter().any(|s| s.first_nan.is_some())
    }

    /// Histogram of the scale bytes of all weights together.
    pub fn histogram(&self) -> Vec<(u8, u64)> {
        let mut counts = [0; 256];
        for &(byte, count) in self.scales.iter().flat_map(|s| &s.histogram) {
            counts[usize::from(byte)] += count;
        }
        sparse(&counts)
    }
}

impl ScaleCheck {
    /// Whether the fast dequantisation is exact for this weight.
    pub fn allows_folding(&self) -> bool {
        self.histogram.last().is_none_or(|&(max, _)| max <= FOLDED_SCALE_MAX)
    }
}

/// Reads all dense values and all scales of a source. Damage is reported, not an error. Blocks are not read: every code
/// is a number.
///
/// # Errors
/// What reading gives.
pub fn check(source: &dyn WeightSource, progress: Progress<'_>) -> Result<Check, CheckpointError> {
    let mut report = Check { values: Vec::new(), scales: Vec::new() };
    for weight in source.weights() {
        match weight.format {
            WeightFormat::Mxfp4 => report.scales.push(check_scales(source, weight, progress)?),
            WeightFormat::Dense(dtype) => report.values.push(check_values(source, weight, dtype, progress)?),
        }
    }
    Ok(report)
}

/// Bytes that [`check`] reads of a source, for a progress bar.
pub fn check_bytes(source: &dyn WeightSource) -> u64 {
    let part = |w: &WeightSpec| if w.format == WeightFormat::Mxfp4 { Part::Scales } else { Part::Values };
    source.weights().iter().map(|w| w.part_bytes(part(w))).sum()
}

#[derive(Default)]
struct Seen {
    nan: u64,
    infinite: u64,
    max_abs: f32,
    first_bad: Option<u64>,
}

fn check_values(
    source: &dyn WeightSource,
    weight: &WeightSpec,
    dtype: StoredDType,
    progress: Progress<'_>,
) -> Result<ValueCheck, CheckpointError> {
    let chunks = scan_part(source, weight, Part::Values, progress, |offset, bytes| {
        let first = offset / dtype.bytes();
        Ok(match dtype {
            StoredDType::BF16 => scan(first, bytes, |b| bf16::from_le_bytes(b).to_f32()),
            StoredDType::F16 => scan(first, bytes, |b| f16::from_le_bytes(b).to_f32()),
            StoredDType::F32 => scan(first, bytes, f32::from_le_bytes),
            StoredDType::U8 => Seen::default(), // integers are always finite
        })
    })?;
    let mut all = Seen::default();
    for chunk in chunks {
        all.nan += chunk.nan;
        all.infinite += chunk.infinite;
        all.max_abs = all.max_abs.max(chunk.max_abs);
        all.first_bad = all.first_bad.or(chunk.first_bad);
    }
    Ok(ValueCheck {
        weight: weight.name.clone(),
        nan: all.nan,
        infinite: all.infinite,
        max_abs: all.max_abs,
        first_bad: all.first_bad.map(|i| coordinates(&weight.shape, i)),
    })
}

fn scan<const N: usize>(first: u64, bytes: &[u8], decode: impl Fn([u8; N]) -> f32) -> Seen {
    let mut seen = Seen::default();
    for (i, item) in bytes.as_chunks::<N>().0.iter().enumerate() {
        let x = decode(*item);
        if x.is_finite() {
            seen.max_abs = seen.max_abs.max(x.abs());
        } else {
            seen.nan += u64::from(x.is_nan());
            seen.infinite += u64::from(x.is_infinite());
            seen.first_bad.get_or_insert(first + i as u64);
        }
    }
    seen
}

fn check_scales(
    source: &dyn WeightSource,
    weight: &WeightSpec,
    progress: Progress<'_>,
) -> Result<ScaleCheck, CheckpointError> {
    let chunks = scan_part(source, weight, Part::Scales, progress, |offset, bytes| {
        let mut counts = [0_u64; 256];
        for &b in bytes {
            counts[usize::from(b)] += 1;
        }
        let first_nan = bytes.iter().position(|&b| b == u8::MAX).filter(|_| counts[255] > 0).map(|i| offset + i as u64);
        Ok((counts, first_nan))
    })?;
    let mut counts = [0; 256];
    let mut first_nan = None;
    for (chunk, nan) in chunks {
        counts.iter_mut().zip(chunk).for_each(|(sum, n)| *sum += n);
        first_nan = first_nan.or(nan);
    }
    Ok(ScaleCheck {
        weight: weight.name.clone(),
        histogram: sparse(&counts),
        first_nan: first_nan.map(|i| scales::place(weight, i)),
    })
}

fn sparse(counts: &[u64; 256]) -> Vec<(u8, u64)> {
    (0_u8..=255).zip(counts.iter().copied()).filter(|&(_, n)| n > 0).collect()
}

fn coordinates(shape: &[usize], mut index: u64) -> Vec<usize> {
    let mut place: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&n| {
            let n = n.max(1) as u64;
            let i = index % n;
            index /= n;
            i as usize
        })
        .collect();
    place.reverse();
    place
}
