//! How work is split over threads. Splitting never changes results: every element is computed alone.

use rayon::prelude::*;

/// Below about this many operations a loop stays on the calling thread.
pub(crate) const SERIAL: usize = 1 << 16;

/// A vector of `len` zeros, filled in chunks: `f(start, chunk)` sets elements from `start` on. `cost` is operations an element.
pub(crate) fn fill(len: usize, cost: usize, f: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let mut out = vec![0.0; len];
    let chunk = (SERIAL / 2 / cost.max(1)).max(1);
    if len <= 2 * chunk {
        f(0, &mut out);
    } else {
        out.par_chunks_mut(chunk).enumerate().for_each(|(i, c)| f(i * chunk, c));
    }
    out
}

/// A vector of `rows` rows of `width` zeros, filled row by row. `cost` is operations a row.
pub(crate) fn rows(rows: usize, width: usize, cost: usize, f: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let mut out = vec![0.0; rows * width];
    if width == 0 {
        return out;
    }
    if rows.saturating_mul(cost) <= SERIAL {
        out.chunks_mut(width).enumerate().for_each(|(r, row)| f(r, row));
    } else {
        let least = (SERIAL / 4 / cost.max(1)).max(1);
        out.par_chunks_mut(width).with_min_len(least).enumerate().for_each(|(r, row)| f(r, row));
    }
    out
}

/// One value a row, computed in order or in parallel. `cost` is operations a row.
pub(crate) fn map<T: Send>(rows: usize, cost: usize, f: impl Fn(usize) -> T + Sync + Send) -> Vec<T> {
    if rows.saturating_mul(cost) <= SERIAL {
        (0..rows).map(f).collect()
    } else {
        (0..rows).into_par_iter().map(f).collect()
    }
}
