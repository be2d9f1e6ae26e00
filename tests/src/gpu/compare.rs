//! Comparing results: bit for bit, or by relative error.

use gossamer_ir::DType;
use gossamer_runtime::exec::HostData;
use gossamer_runtime::exec::cuda::convert::decode;

/// How an array differs from its reference.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference(pub String);

/// How far elements may be off, as a multiple of the tolerance for the norm: sums of a few terms spread more than whole rows.
const ELEMENT: f32 = 8.0;

/// Compares arrays in device form. With a tolerance of 0, and for integers, every element must be equal (all NaN count as one); otherwise the
/// Euclidean error must be at most `tolerance` of the reference, no element may be off by more than 8 times that of its own and the
/// root mean square together, and NaN and infinities must be at the same places. Returns the share of the tolerance that was used.
///
/// # Errors
/// The first or the greatest difference, with its index.
pub fn compare(found: &[u8], expected: &[u8], dtype: DType, tolerance: f32) -> Result<f32, Difference> {
    if found.len() != expected.len() {
        return Err(Difference(format!("{} bytes, expected {}", found.len(), expected.len())));
    }
    match (decode(found, dtype), decode(expected, dtype)) {
        (Some(HostData::F32(found)), Some(HostData::F32(expected))) => floats(&found, &expected, tolerance),
        _ => match found.iter().zip(expected).position(|(a, b)| a != b) {
            None => Ok(0.0),
            Some(byte) => {
                let size = dtype.bytes().unwrap_or(1) as usize;
                let at = byte / size * size;
                let (a, b) = (&found[at..at + size], &expected[at..at + size]);
                Err(Difference(format!("element {} is {a:?}, expected {b:?} (bytes)", byte / size)))
            }
        },
    }
}

fn floats(found: &[f32], expected: &[f32], tolerance: f32) -> Result<f32, Difference> {
    let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        let wrong = if tolerance == 0.0 || !a.is_finite() || !b.is_finite() { !same(*a, *b) } else { false };
        if wrong {
            return Err(Difference(format!("element {i} of {} is {a:e}, expected {b:e}", found.len())));
        }
    }
    if tolerance == 0.0 {
        return Ok(0.0);
    }
    let finite = || found.iter().zip(expected).enumerate().filter(|(_, (_, b))| b.is_finite());
    let (mut error, mut norm, mut count) = (0.0f64, 0.0f64, 0usize);
    for (_, (a, b)) in finite() {
        error += (f64::from(*a) - f64::from(*b)).powi(2);
        norm += f64::from(*b).powi(2);
        count += 1;
    }
    let used = if error == 0.0 { 0.0 } else { (error / norm).sqrt() as f32 / tolerance };
    if used > 1.0 || used.is_nan() {
        return Err(Difference(format!("relative error {:.3e}, expected at most {tolerance:e}", used * tolerance)));
    }
    let rms = (norm / count.max(1) as f64).sqrt();
    for (i, (a, b)) in finite() {
        let off = (f64::from(*a) - f64::from(*b)).abs();
        if off > f64::from(ELEMENT * tolerance) * (f64::from(b.abs()) + rms) {
            return Err(Difference(format!("element {i} of {} is {a:e}, expected {b:e} (rms {rms:.2e})", found.len())));
        }
    }
    Ok(used)
}

/// Euclidean norm of the difference over that of the reference.
pub fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    let (mut error, mut norm) = (0.0f64, 0.0f64);
    for (a, b) in found.iter().zip(expected) {
        error += (f64::from(*a) - f64::from(*b)).powi(2);
        norm += f64::from(*b).powi(2);
    }
    (error / norm.max(f64::MIN_POSITIVE)).sqrt()
}

/// Relative errors of rows, sorted.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows(Vec<f64>);

impl Rows {
    /// The error that a share `q` of the rows does not exceed; 0 without rows.
    pub fn quantile(&self, q: f64) -> f64 {
        let last = self.0.len().saturating_sub(1);
        self.0.get((q * last as f64).round() as usize).copied().unwrap_or(0.0)
    }
}

/// [`relative_error`] of each row of `width` elements.
pub fn row_errors(found: &[f32], expected: &[f32], width: usize) -> Rows {
    let mut errors: Vec<f64> =
        found.chunks(width).zip(expected.chunks(width)).map(|(a, b)| relative_error(a, b)).collect();
    errors.sort_by(f64::total_cmp);
    Rows(errors)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(v: &[f32]) -> Vec<u8> {
        v.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    fn check(found: &[f32], expected: &[f32], tolerance: f32) -> Result<f32, Difference> {
        compare(&bytes(found), &bytes(expected), DType::F32, tolerance)
    }

    #[test]
    fn exact_means_bits() {
        let odd = [f32::NAN, -0.0, f32::INFINITY, 1.0];
        assert_eq!(check(&odd, &odd, 0.0), Ok(0.0));
        assert!(check(&[0.0], &[-0.0], 0.0).is_err());
        assert!(check(&[1.0], &[1.0 + f32::EPSILON], 0.0).is_err());
        assert!(compare(&[1, 0, 0, 0], &[2, 0, 0, 0], DType::I32, 0.5).is_err());
    }

    #[test]
    fn tolerances_bind_the_norm_and_each_element() {
        assert_eq!(check(&[2.0, 0.0], &[2.0, 0.0], 1e-3), Ok(0.0));
        assert!((check(&[2.0, 0.001], &[2.0, 0.0], 1e-3).unwrap() - 0.5).abs() < 1e-3);
        assert!(check(&[2.0, 0.01], &[2.0, 0.0], 1e-3).is_err());
        // One element of many is lost in the norm, but not here.
        let (mut found, expected) = (vec![1.0; 10_000], vec![1.0; 10_000]);
        found[77] = 1.1;
        let line = check(&found, &expected, 5e-3).unwrap_err().0;
        assert!(line.starts_with("element 77 of 10000 is 1.1e0, expected 1e0"), "{line}");
    }

    #[test]
    fn unwritten_elements_are_found() {
        let line = check(&[1.0, f32::NAN], &[1.0, 1.0], 0.5).unwrap_err().0;
        assert_eq!(line, "element 1 of 2 is NaN, expected 1e0");
        assert!(check(&[1.0, 1.0], &[1.0, f32::INFINITY], 0.5).is_err());
    }

    #[test]
    fn rows_are_sorted() {
        let rows = row_errors(&[1.0, 1.0, 3.0, 1.0], &[1.0, 1.0, 2.0, 1.0], 1);
        assert_eq!((rows.quantile(0.5), rows.quantile(1.0)), (0.0, 0.5));
    }
}
