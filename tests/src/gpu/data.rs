//! Numbers for tests, the same on every machine.

use gossamer_ir::DType;
use gossamer_ir::interp::Tensor;

/// SplitMix64.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Seeded by a text: FNV-1a.
    pub fn new(label: &str) -> Rng {
        Rng(label.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3)))
    }

    /// 64 random bits.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// An integer in `0..n`, `n` at least 1.
    pub fn below(&mut self, n: usize) -> usize {
        (self.word() % n as u64) as usize
    }

    /// A number of about mean 0 and variance 1.
    pub fn normal(&mut self) -> f32 {
        let word = self.word();
        let sum: u32 = (0..4).map(|i| (word >> (16 * i) & 0xffff) as u32).sum();
        (sum as f32 - 131_070.0) / 37_837.23
    }

    /// Normal numbers times `scale`, rounded to `dtype`.
    pub fn floats(&mut self, dtype: DType, shape: &[usize], scale: f32) -> Tensor {
        let n = shape.iter().product();
        float(dtype, shape, (0..n).map(|_| scale * self.normal()).collect())
    }

    /// Integers in `from..to`.
    pub fn ints(&mut self, shape: &[usize], from: i32, to: i32) -> Tensor {
        let n = shape.iter().product();
        int(shape, (0..n).map(|_| from + self.below((to - from) as usize) as i32).collect())
    }

    /// MXFP4 with any codes and scales in `from..=to`.
    pub fn mxfp4(&mut self, shape: &[usize], from: u8, to: u8) -> Tensor {
        let n: usize = shape.iter().product();
        let codes = (0..n / 2).map(|_| self.word() as u8).collect();
        let scales = (0..n / 32).map(|_| from + self.below(usize::from(to - from) + 1) as u8).collect();
        made(Tensor::mxfp4(shape, codes, scales))
    }
}

/// Floats, rounded to `dtype`.
pub fn float(dtype: DType, shape: &[usize], values: Vec<f32>) -> Tensor {
    made(Tensor::float(dtype, shape, values))
}

/// Integers.
pub fn int(shape: &[usize], values: Vec<i32>) -> Tensor {
    made(Tensor::i32(shape, values))
}

/// Floats with NaN, infinities, zeros of both signs, subnormals and great numbers among them.
pub fn special(dtype: DType, shape: &[usize], rng: &mut Rng) -> Tensor {
    const ODD: [f32; 12] =
        [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 1e-40, -1e-40, 3e38, -3e38, 65504.0, 1.0, -1.0];
    let n: usize = shape.iter().product();
    let values = (0..n).map(|i| if i % 3 == 0 { rng.normal() } else { ODD[rng.below(ODD.len())] }).collect();
    float(dtype, shape, values)
}

/// A tensor that fits by construction.
///
/// # Panics
/// If it does not.
pub fn made<E: std::fmt::Display>(t: Result<Tensor, E>) -> Tensor {
    match t {
        Ok(t) => t,
        Err(e) => panic!("{e}"),
    }
}
