//! Vector primitives with one summation order on every machine.
//!
//! A dot product of length K keeps [`LANES`] partial sums; element k goes to lane `k mod LANES`, in order of k, each product and each sum rounded
//! (no fused multiply-add, which not every machine has). The lanes are then added as a fixed tree. So the bits of a result depend on its two
//! operands only: not on the instruction set, the number of threads, or what else is computed beside it.
//!
//! The AVX2 and the portable bodies are the same code over [`Lanes`]. All `unsafe` of the interpreter is here.

use half::bf16;

use super::tensor::{E2M1, e8m0};

/// Partial sums of a dot product.
pub(crate) const LANES: usize = 8;

/// Eight f32 numbers.
///
/// # Safety
/// The machine must have the instructions an implementation uses, and pointers must be valid for eight elements.
trait Lanes: Copy {
    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn load_bf16(p: *const bf16) -> Self;
    unsafe fn store(self, p: *mut f32);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    /// Decodes the 16 codes of 8 bytes, without scale, in order.
    unsafe fn e2m1(p: *const u8) -> [Self; 2];
}

#[derive(Clone, Copy)]
struct Portable([f32; LANES]);

impl Lanes for Portable {
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Portable([x; LANES])
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        Portable(unsafe { p.cast::<[f32; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Self {
        let v = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        Portable(v.map(|b| f32::from_bits(u32::from(b) << 16)))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe { p.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn add(mut self, other: Self) -> Self {
        for i in 0..LANES {
            self.0[i] += other.0[i];
        }
        self
    }
    #[inline(always)]
    unsafe fn mul(mut self, other: Self) -> Self {
        for i in 0..LANES {
            self.0[i] *= other.0[i];
        }
        self
    }
    #[inline(always)]
    unsafe fn e2m1(p: *const u8) -> [Self; 2] {
        let b = unsafe { p.cast::<[u8; LANES]>().read_unaligned() };
        let code = |i: usize| E2M1[usize::from(b[i / 2] >> (4 * (i % 2)) & 15)];
        [Portable(std::array::from_fn(code)), Portable(std::array::from_fn(|i| code(i + LANES)))]
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{E2M1, LANES, Lanes, bf16};

    #[derive(Clone, Copy)]
    pub(super) struct Avx2(__m256);

    impl Lanes for Avx2 {
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            Avx2(unsafe { _mm256_set1_ps(x) })
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            Avx2(unsafe { _mm256_loadu_ps(p) })
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const bf16) -> Self {
            unsafe {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
                Avx2(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide)))
            }
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            unsafe { _mm256_storeu_ps(p, self.0) }
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            Avx2(unsafe { _mm256_add_ps(self.0, other.0) })
        }
        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            Avx2(unsafe { _mm256_mul_ps(self.0, other.0) })
        }
        #[inline(always)]
        unsafe fn e2m1(p: *const u8) -> [Self; 2] {
            unsafe {
                // Lane i holds byte i: even elements are the low nibbles, odd ones the high nibbles.
                let bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()));
                let magnitudes = _mm256_loadu_ps(E2M1.as_ptr());
                let decode = |codes: __m256i| {
                    let sign = _mm256_slli_epi32::<28>(_mm256_and_si256(codes, _mm256_set1_epi32(8)));
                    // Only the low three bits of an index count.
                    _mm256_or_ps(_mm256_permutevar8x32_ps(magnitudes, codes), _mm256_castsi256_ps(sign))
                };
                let (even, odd) = (decode(bytes), decode(_mm256_srli_epi32::<4>(bytes)));
                let (a, b) = (_mm256_unpacklo_ps(even, odd), _mm256_unpackhi_ps(even, odd));
                [Avx2(_mm256_permute2f128_ps::<0x20>(a, b)), Avx2(_mm256_permute2f128_ps::<0x31>(a, b))]
            }
        }
    }

    const _: () = assert!(LANES == 8);
}

/// Makes a safe function that runs `$body::<Avx2>` where the machine can and `$body::<Portable>` elsewhere, with equal results.
macro_rules! dispatch {
    ($(#[$doc:meta])* $name:ident => $body:ident ( $($arg:ident : $ty:ty),* )) => {
        $(#[$doc])*
        pub(crate) fn $name($($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                unsafe fn fast($($arg: $ty),*) {
                    unsafe { $body::<avx2::Avx2>($($arg),*) }
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: AVX2 is there; `$body` checks the lengths it relies on.
                    return unsafe { fast($($arg),*) };
                }
            }
            // SAFETY: the portable lanes need no instructions; `$body` checks the lengths it relies on.
            unsafe { $body::<Portable>($($arg),*) }
        }
    };
}

dispatch! {
    /// `out[n * rows.len() + r] = x[rows[r]] . w[n]` for rows of `k` elements; `rows` are row numbers of `x`, and `w` has `out.len() / rows.len()` rows.
    ///
    /// Panics if a row is not there; callers check.
    dot_panel => dot_panel_body(x: &[f32], rows: &[u32], w: &[f32], k: usize, out: &mut [f32])
}
dispatch! {
    /// `acc[i] += p[0] * v[0][i]`, then `p[1] * v[1][i]` and so on, for rows of v as long as `acc`.
    weighted_sum => weighted_sum_body(p: &[f32], v: &[f32], acc: &mut [f32])
}
dispatch! {
    /// bf16 to f32; both slices have one length.
    decode_bf16 => decode_bf16_body(src: &[bf16], out: &mut [f32])
}
dispatch! {
    /// MXFP4 blocks to f32: 16 code bytes and one scale byte for 32 elements.
    decode_mxfp4 => decode_mxfp4_body(codes: &[u8], scales: &[u8], out: &mut [f32])
}

/// The dot product of two slices of one length.
pub(crate) fn dot(x: &[f32], w: &[f32]) -> f32 {
    let k = x.len().min(w.len());
    let mut out = [0.0];
    dot_panel(&x[..k], &[0], &w[..k], k, &mut out);
    out[0]
}

/// The sum of a slice, in the order of a dot product with ones.
pub(crate) fn sum(x: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let chunks = x.chunks_exact(LANES);
    let tail = chunks.remainder();
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane += v;
        }
    }
    for (lane, v) in lanes.iter_mut().zip(tail) {
        *lane += v;
    }
    tree(lanes)
}

#[inline(always)]
fn tree(a: [f32; LANES]) -> f32 {
    ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))
}

/// M x N dot products of length `k` at once.
///
/// # Safety
/// All pointers are valid for `k` elements.
#[inline(always)]
unsafe fn dots<L: Lanes, const M: usize, const N: usize>(
    x: [*const f32; M],
    w: [*const f32; N],
    k: usize,
) -> [[f32; N]; M] {
    unsafe {
        let mut acc = [[L::splat(0.0); N]; M];
        let whole = k - k % LANES;
        let mut i = 0;
        while i < whole {
            let xs: [L; M] = std::array::from_fn(|m| L::load(x[m].add(i)));
            for n in 0..N {
                let wn = L::load(w[n].add(i));
                for m in 0..M {
                    acc[m][n] = acc[m][n].add(xs[m].mul(wn));
                }
            }
            i += LANES;
        }
        let mut out = [[0.0; N]; M];
        for m in 0..M {
            for n in 0..N {
                let mut lanes = [0.0; LANES];
                acc[m][n].store(lanes.as_mut_ptr());
                for j in whole..k {
                    lanes[j - whole] += *x[m].add(j) * *w[n].add(j);
                }
                out[m][n] = tree(lanes);
            }
        }
        out
    }
}

/// Rows of x and of w that are multiplied at once: 8 sums, 4 rows and a weight fit 16 registers.
const MR: usize = 4;
const NR: usize = 2;
/// Weights at once for a single row of x.
const NV: usize = 4;

#[inline(always)]
unsafe fn dot_panel_body<L: Lanes>(x: &[f32], rows: &[u32], w: &[f32], k: usize, out: &mut [f32]) {
    let m = rows.len();
    if m == 0 {
        return;
    }
    let n = out.len() / m;
    assert!(w.len() >= n * k && rows.iter().all(|r| (*r as usize + 1) * k <= x.len()), "rows are there");
    // SAFETY: the assertion bounds every row that is read.
    unsafe {
        let x_row = |r: usize| x.as_ptr().add(rows[r] as usize * k);
        let w_row = |c: usize| w.as_ptr().add(c * k);
        let mut r = 0;
        while r + MR <= m {
            let xs: [_; MR] = std::array::from_fn(|i| x_row(r + i));
            let mut c = 0;
            while c + NR <= n {
                let sums = dots::<L, MR, NR>(xs, std::array::from_fn(|j| w_row(c + j)), k);
                for i in 0..MR {
                    for j in 0..NR {
                        out[(c + j) * m + r + i] = sums[i][j];
                    }
                }
                c += NR;
            }
            while c < n {
                let sums = dots::<L, MR, 1>(xs, [w_row(c)], k);
                for i in 0..MR {
                    out[c * m + r + i] = sums[i][0];
                }
                c += 1;
            }
            r += MR;
        }
        while r < m {
            let mut c = 0;
            while c + NV <= n {
                let sums = dots::<L, 1, NV>([x_row(r)], std::array::from_fn(|j| w_row(c + j)), k);
                for j in 0..NV {
                    out[(c + j) * m + r] = sums[0][j];
                }
                c += NV;
            }
            while c < n {
                out[c * m + r] = dots::<L, 1, 1>([x_row(r)], [w_row(c)], k)[0][0];
                c += 1;
            }
            r += 1;
        }
    }
}

#[inline(always)]
unsafe fn weighted_sum_body<L: Lanes>(p: &[f32], v: &[f32], acc: &mut [f32]) {
    let d = acc.len();
    assert!(v.len() >= p.len() * d, "rows are there");
    let mut at = 0;
    // SAFETY: the assertion bounds every row, and `at` stays below d.
    unsafe {
        while at + 4 * LANES <= d {
            columns::<L, 4>(p, v.as_ptr().add(at), d, acc.as_mut_ptr().add(at));
            at += 4 * LANES;
        }
        while at + LANES <= d {
            columns::<L, 1>(p, v.as_ptr().add(at), d, acc.as_mut_ptr().add(at));
            at += LANES;
        }
    }
    for (j, p) in p.iter().enumerate() {
        for i in at..d {
            acc[i] += p * v[j * d + i];
        }
    }
}

/// C vectors of columns of a weighted sum of rows `stride` apart, kept in registers.
///
/// # Safety
/// `acc` is valid for `C * LANES` elements, and so is `v` plus each of `p.len()` strides.
#[inline(always)]
unsafe fn columns<L: Lanes, const C: usize>(p: &[f32], v: *const f32, stride: usize, acc: *mut f32) {
    unsafe {
        let mut sums: [L; C] = std::array::from_fn(|c| L::load(acc.add(c * LANES)));
        for (j, p) in p.iter().enumerate() {
            let (p, row) = (L::splat(*p), v.add(j * stride));
            for c in 0..C {
                sums[c] = sums[c].add(p.mul(L::load(row.add(c * LANES))));
            }
        }
        for c in 0..C {
            sums[c].store(acc.add(c * LANES));
        }
    }
}

#[inline(always)]
unsafe fn decode_bf16_body<L: Lanes>(src: &[bf16], out: &mut [f32]) {
    let n = src.len().min(out.len());
    let whole = n - n % LANES;
    // SAFETY: all indices are below n.
    unsafe {
        let mut i = 0;
        while i < whole {
            L::load_bf16(src.as_ptr().add(i)).store(out.as_mut_ptr().add(i));
            i += LANES;
        }
    }
    for i in whole..n {
        out[i] = src[i].to_f32();
    }
}

#[inline(always)]
unsafe fn decode_mxfp4_body<L: Lanes>(codes: &[u8], scales: &[u8], out: &mut [f32]) {
    const BYTES: usize = 16;
    let blocks = scales.len().min(codes.len() / BYTES).min(out.len() / (2 * BYTES));
    for block in 0..blocks {
        // SAFETY: `blocks` bounds both slices.
        unsafe {
            let scale = L::splat(e8m0(scales[block]));
            let (src, dst) = (codes.as_ptr().add(block * BYTES), out.as_mut_ptr().add(block * 2 * BYTES));
            for half in 0..2 {
                let [a, b] = L::e2m1(src.add(half * LANES));
                a.mul(scale).store(dst.add(half * 2 * LANES));
                b.mul(scale).store(dst.add(half * 2 * LANES + LANES));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, seed: u32) -> Vec<f32> {
        let mut s = seed;
        (0..n)
            .map(|_| {
                s = s.wrapping_mul(1664525).wrapping_add(1013904223);
                (s >> 8) as f32 / 8388608.0 - 1.0
            })
            .collect()
    }

    #[test]
    fn portable_and_native_bodies_give_the_same_bits() {
        for k in [0, 1, 7, 8, 9, 32, 67] {
            for (m, n) in [(1, 1), (1, 9), (3, 5), (4, 2), (6, 7), (9, 4)] {
                let (x, w) = (noise(m * k, 1), noise(n * k, 2));
                let rows: Vec<u32> = (0..m as u32).rev().collect();
                let (mut a, mut b) = (vec![0.0; m * n], vec![0.0; m * n]);
                dot_panel(&x, &rows, &w, k, &mut a);
                // SAFETY: the portable body needs no instructions.
                unsafe { dot_panel_body::<Portable>(&x, &rows, &w, k, &mut b) };
                assert_eq!(a, b);
                for r in 0..m {
                    for c in 0..n {
                        let alone = dot(&x[rows[r] as usize * k..][..k], &w[c * k..][..k]);
                        assert_eq!(a[c * m + r].to_bits(), alone.to_bits(), "k {k} m {m} n {n}");
                    }
                }
            }
        }
        for (n, d) in [(3, 77), (1, 8), (0, 5), (9, 32)] {
            let (p, v) = (noise(n, 5), noise(n * d, 6));
            let (mut a, mut b, mut c) = (noise(d, 7), noise(d, 7), noise(d, 7));
            weighted_sum(&p, &v, &mut a);
            // SAFETY: as above.
            unsafe { weighted_sum_body::<Portable>(&p, &v, &mut b) };
            p.iter().zip(v.chunks(d)).for_each(|(p, v)| c.iter_mut().zip(v).for_each(|(c, v)| *c += p * v));
            assert!(a == b && b == c);
        }
        let codes: Vec<u8> = (0..=255).collect();
        let (mut a, mut b) = (vec![0.0; 512], vec![0.0; 512]);
        let scales: Vec<u8> = (0..16).map(|i| i * 16).collect();
        decode_mxfp4(&codes, &scales, &mut a);
        // SAFETY: as above.
        unsafe { decode_mxfp4_body::<Portable>(&codes, &scales, &mut b) };
        let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&a), bits(&b));
    }

    #[test]
    fn dot_and_sum_are_close_to_exact() {
        let (x, w) = (noise(2880, 3), noise(2880, 4));
        let exact: f64 = x.iter().zip(&w).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        assert!((f64::from(dot(&x, &w)) - exact).abs() < 1e-4);
        let exact: f64 = x.iter().map(|a| f64::from(*a)).sum();
        assert!((f64::from(sum(&x)) - exact).abs() < 1e-4);
        assert_eq!((dot(&[], &[]), sum(&[])), (0.0, 0.0));
    }
}
