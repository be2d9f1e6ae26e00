//! Run-time tensors of the interpreter, rounding to element types, and decoding of stored weights.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use half::{bf16, f16};

use super::simd;
use crate::dtype::{DType, MX_BLOCK};

/// Elements of a tensor. Computed floats are f32 whatever their dtype; weights keep the storage of the checkpoint, so that a large model
/// does not double in memory.
#[derive(Clone, Debug)]
pub enum Data {
    /// Floats of any dtype, already rounded to it if rounding is on.
    F32(Arc<Vec<f32>>),
    /// bf16 as stored.
    BF16(Arc<Vec<bf16>>),
    /// i32.
    I32(Arc<Vec<i32>>),
    /// u8, and bool as 0 or 1.
    U8(Arc<Vec<u8>>),
    /// MXFP4 as in checkpoints: 16 code bytes a block of 32, low nibble first, and one scale byte a block.
    Mxfp4 {
        /// Codes, two a byte.
        codes: Arc<Vec<u8>>,
        /// E8M0 scales.
        scales: Arc<Vec<u8>>,
    },
}

impl Data {
    /// Name of the storage, for messages.
    pub fn name(&self) -> &'static str {
        match self {
            Data::F32(_) => "f32",
            Data::BF16(_) => "bf16",
            Data::I32(_) => "i32",
            Data::U8(_) => "u8",
            Data::Mxfp4 { .. } => "mxfp4",
        }
    }

    /// Number of elements held.
    pub fn len(&self) -> usize {
        match self {
            Data::F32(v) => v.len(),
            Data::BF16(v) => v.len(),
            Data::I32(v) => v.len(),
            Data::U8(v) => v.len(),
            Data::Mxfp4 { codes, .. } => codes.len() * 2,
        }
    }

    /// True if there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn holds(&self, dtype: DType) -> bool {
        match self {
            Data::F32(_) => dtype.is_float(),
            Data::BF16(_) => matches!(dtype, DType::BF16 | DType::F32),
            Data::I32(_) => dtype == DType::I32,
            Data::U8(_) => matches!(dtype, DType::U8 | DType::Bool),
            Data::Mxfp4 { .. } => matches!(dtype, DType::Mxfp4 | DType::BF16 | DType::F32),
        }
    }
}

/// A row-major tensor.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Declared element type.
    pub dtype: DType,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Elements. A `dequant` result may keep [`Data::Mxfp4`]: consumers decode the rows they read.
    pub data: Data,
}

/// Data that does not fit a tensor's type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// Wrong number of elements.
    #[error("{tensor}: holds {found} elements, expected {expected}; check the shape against the data")]
    Len {
        /// Type and shape.
        tensor: String,
        /// Elements in the data.
        found: usize,
        /// Elements by the shape.
        expected: usize,
    },
    /// Storage that cannot hold the element type.
    #[error("{tensor}: stored as {found}, which cannot hold it; convert the data first")]
    Storage {
        /// Type and shape.
        tensor: String,
        /// The storage.
        found: &'static str,
    },
    /// An MXFP4 tensor whose rows are not whole blocks, or whose scales do not match its codes.
    #[error(
        "{tensor}: {scales} scale bytes, expected {expected}; an mxfp4 row is whole blocks of 32 with one scale each"
    )]
    Blocks {
        /// Type and shape.
        tensor: String,
        /// Scale bytes found.
        scales: usize,
        /// Scale bytes by the shape.
        expected: usize,
    },
}

impl Tensor {
    /// A tensor after checking that `data` fits `dtype` and `shape`.
    pub fn new(dtype: DType, shape: &[usize], data: Data) -> Result<Tensor, TensorError> {
        let tensor = Tensor { dtype, shape: shape.to_vec(), data };
        let expected = tensor.elements();
        if !tensor.data.holds(dtype) {
            return Err(TensorError::Storage { tensor: tensor.to_string(), found: tensor.data.name() });
        }
        if tensor.data.len() != expected {
            return Err(TensorError::Len { tensor: tensor.to_string(), found: tensor.data.len(), expected });
        }
        if let Data::Mxfp4 { scales, .. } = &tensor.data {
            let want = expected / MX_BLOCK as usize;
            if !tensor.width().is_multiple_of(MX_BLOCK as usize) || scales.len() != want {
                let (scales, tensor) = (scales.len(), tensor.to_string());
                return Err(TensorError::Blocks { tensor, scales, expected: want });
            }
        }
        Ok(tensor)
    }

    /// An f32 tensor.
    pub fn f32(shape: &[usize], data: Vec<f32>) -> Result<Tensor, TensorError> {
        Tensor::new(DType::F32, shape, Data::F32(Arc::new(data)))
    }

    /// A float tensor of `dtype`, each element rounded to it.
    pub fn float(dtype: DType, shape: &[usize], mut data: Vec<f32>) -> Result<Tensor, TensorError> {
        round_all(dtype, &mut data);
        Tensor::new(dtype, shape, Data::F32(Arc::new(data)))
    }

    /// A bf16 tensor in its stored form.
    pub fn bf16(shape: &[usize], data: Vec<bf16>) -> Result<Tensor, TensorError> {
        Tensor::new(DType::BF16, shape, Data::BF16(Arc::new(data)))
    }

    /// An i32 tensor.
    pub fn i32(shape: &[usize], data: Vec<i32>) -> Result<Tensor, TensorError> {
        Tensor::new(DType::I32, shape, Data::I32(Arc::new(data)))
    }

    /// A u8 tensor.
    pub fn u8(shape: &[usize], data: Vec<u8>) -> Result<Tensor, TensorError> {
        Tensor::new(DType::U8, shape, Data::U8(Arc::new(data)))
    }

    /// A bool tensor.
    pub fn bool(shape: &[usize], data: &[bool]) -> Result<Tensor, TensorError> {
        Tensor::new(DType::Bool, shape, Data::U8(Arc::new(data.iter().map(|b| u8::from(*b)).collect())))
    }

    /// An MXFP4 tensor of logical `shape`, as in checkpoints: codes two a byte (low nibble first), one scale byte per 32 elements.
    pub fn mxfp4(shape: &[usize], codes: Vec<u8>, scales: Vec<u8>) -> Result<Tensor, TensorError> {
        Tensor::new(DType::Mxfp4, shape, Data::Mxfp4 { codes: Arc::new(codes), scales: Arc::new(scales) })
    }

    /// Floats that are known to fit `shape`.
    pub(crate) fn raw(dtype: DType, shape: Vec<usize>, data: Vec<f32>) -> Tensor {
        debug_assert_eq!(shape.iter().product::<usize>(), data.len());
        Tensor { dtype, shape, data: Data::F32(Arc::new(data)) }
    }

    /// Integers that are known to fit `shape`.
    pub(crate) fn raw_i32(shape: Vec<usize>, data: Vec<i32>) -> Tensor {
        debug_assert_eq!(shape.iter().product::<usize>(), data.len());
        Tensor { dtype: DType::I32, shape, data: Data::I32(Arc::new(data)) }
    }

    /// Bytes that are known to fit `shape`.
    pub(crate) fn raw_u8(dtype: DType, shape: Vec<usize>, data: Vec<u8>) -> Tensor {
        debug_assert_eq!(shape.iter().product::<usize>(), data.len());
        Tensor { dtype, shape, data: Data::U8(Arc::new(data)) }
    }

    /// Number of elements; saturates.
    pub fn elements(&self) -> usize {
        self.shape.iter().fold(1usize, |n, d| n.saturating_mul(*d))
    }

    /// Size of the last dim; 1 for a scalar.
    pub fn width(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Number of rows: the product of all dims but the last.
    pub fn rows(&self) -> usize {
        match self.shape.split_last() {
            Some((_, rest)) => rest.iter().product(),
            None => 1,
        }
    }

    /// Elements as f32: borrowed if they are stored so, decoded if they are bf16 or MXFP4, converted if they are integers.
    pub fn to_f32(&self) -> Cow<'_, [f32]> {
        match &self.data {
            Data::F32(v) => Cow::Borrowed(v),
            Data::BF16(_) | Data::Mxfp4 { .. } => {
                let mut out = vec![0.0; self.elements()];
                let width = self.width().max(1);
                let rows = self.weight_rows();
                out.chunks_mut(width).enumerate().for_each(|(r, row)| rows.decode(r, row));
                Cow::Owned(out)
            }
            Data::I32(v) => Cow::Owned(v.iter().map(|x| *x as f32).collect()),
            Data::U8(v) => Cow::Owned(v.iter().map(|x| f32::from(*x)).collect()),
        }
    }

    /// Elements as i32, if that is what they are.
    pub fn as_i32(&self) -> Option<&[i32]> {
        match &self.data {
            Data::I32(v) => Some(v),
            _ => None,
        }
    }

    /// Elements as bytes (u8, and bool as 0 or 1), if that is what they are.
    pub fn as_u8(&self) -> Option<&[u8]> {
        match &self.data {
            Data::U8(v) => Some(v),
            _ => None,
        }
    }

    /// The same tensor with floats stored as f32, decoded if need be. Shares storage where nothing changes.
    pub fn plain(&self) -> Tensor {
        match &self.data {
            Data::BF16(_) | Data::Mxfp4 { .. } => Tensor {
                dtype: self.dtype,
                shape: self.shape.clone(),
                data: Data::F32(Arc::new(self.to_f32().into_owned())),
            },
            _ => self.clone(),
        }
    }

    /// Rows of [`Tensor::width`] elements, for decoding one at a time. Integers have none.
    pub(crate) fn weight_rows(&self) -> WeightRows<'_> {
        match &self.data {
            Data::F32(v) => WeightRows::F32(v),
            Data::BF16(v) => WeightRows::BF16(v),
            Data::Mxfp4 { codes, scales } => WeightRows::Mxfp4 { codes, scales },
            Data::I32(_) | Data::U8(_) => WeightRows::F32(&[]),
        }
    }
}

impl fmt::Display for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.dtype)?;
        for (i, d) in self.shape.iter().enumerate() {
            write!(f, "{}{d}", if i > 0 { ", " } else { "" })?;
        }
        f.write_str("]")
    }
}

/// Stored float rows of one width.
#[derive(Clone, Copy)]
pub(crate) enum WeightRows<'a> {
    /// f32.
    F32(&'a [f32]),
    /// bf16.
    BF16(&'a [bf16]),
    /// MXFP4.
    Mxfp4 {
        /// Codes, two a byte.
        codes: &'a [u8],
        /// Scale bytes.
        scales: &'a [u8],
    },
}

impl<'a> WeightRows<'a> {
    /// Decodes as many consecutive rows of `width` elements, from `row` on, as fit into `out`. Rows that are not there are left as they are.
    pub(crate) fn decode_many(self, row: usize, width: usize, out: &mut [f32]) {
        let (at, n) = (row * width, out.len());
        match self {
            WeightRows::F32(v) => {
                if let Some(src) = v.get(at..at + n) {
                    out.copy_from_slice(src);
                }
            }
            WeightRows::BF16(v) => {
                if let Some(src) = v.get(at..at + n) {
                    simd::decode_bf16(src, out);
                }
            }
            WeightRows::Mxfp4 { codes, scales } => {
                let block = MX_BLOCK as usize;
                let found = codes.get(at / 2..(at + n) / 2).zip(scales.get(at / block..(at + n) / block));
                if let Some((codes, scales)) = found {
                    simd::decode_mxfp4(codes, scales, out);
                }
            }
        }
    }

    /// Decodes row `row` into `out`, whose length is the width.
    pub(crate) fn decode(self, row: usize, out: &mut [f32]) {
        self.decode_many(row, out.len(), out);
    }
}

/// Values of the 16 E2M1 codes.
pub const E2M1: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Value of an E8M0 scale byte: `2^(byte - 127)`, exactly, the subnormal 2^-127 at 0 and NaN at 255.
pub fn e8m0(byte: u8) -> f32 {
    match byte {
        0 => f32::from_bits(0x0040_0000),
        255 => f32::NAN,
        _ => f32::from_bits(u32::from(byte) << 23),
    }
}

/// `x` rounded to bf16, to nearest, ties to even.
pub fn round_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    if x.is_nan() {
        return f32::from_bits((bits | 0x0040_0000) & 0xffff_0000);
    }
    f32::from_bits((bits.wrapping_add(0x7fff + (bits >> 16 & 1))) & 0xffff_0000)
}

/// `x` rounded to f16, to nearest, ties to even; beyond 65504 infinite.
pub fn round_f16(x: f32) -> f32 {
    f16::from_f32(x).to_f32()
}

/// Rounds each element to `dtype`; nothing happens for f32 and for types that are not floats.
pub fn round_all(dtype: DType, values: &mut [f32]) {
    match dtype {
        DType::BF16 => values.iter_mut().for_each(|x| *x = round_bf16(*x)),
        DType::F16 => values.iter_mut().for_each(|x| *x = round_f16(*x)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_agrees_with_half_on_awkward_bits() {
        for hi in (0..=0xffffu32).step_by(7) {
            for lo in [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let x = f32::from_bits(hi << 16 | lo);
                let (a, b) = (round_bf16(x), bf16::from_f32(x).to_f32());
                assert!(a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()), "{x} {a} {b}");
            }
        }
        assert_eq!(round_f16(65520.0), f32::INFINITY);
        assert_eq!(round_f16(1.0 + 1.0 / 2048.0), 1.0);
    }

    #[test]
    fn mxfp4_test_block_decodes() {
        let bytes: Vec<u8> = [0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE].repeat(2);
        let t = Tensor::mxfp4(&[1, 32], bytes, vec![125]).unwrap();
        let want = [0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0, 1.5, -0.0, -0.125, -0.25, -0.375, -0.5, -0.75, -1.0, -1.5];
        let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&t.to_f32()), bits(&[want, want].concat()));
    }

    #[test]
    fn mxfp4_is_exact_for_every_scale_byte() {
        let codes: Vec<u8> = (0..16u8).map(|i| (i * 2 % 16) | ((i * 2 + 1) % 16) << 4).collect();
        for s in 0..=255u8 {
            let t = Tensor::mxfp4(&[32], codes.clone(), vec![s]).unwrap();
            for (i, got) in t.to_f32().iter().enumerate() {
                if s == 255 {
                    assert!(got.is_nan());
                    continue;
                }
                let want = (f64::from(E2M1[i % 16]) * 2f64.powi(i32::from(s) - 127)) as f32;
                assert_eq!(got.to_bits(), want.to_bits(), "scale {s} code {}", i % 16);
                assert!(s > 252 || round_bf16(*got) == *got, "bf16 holds it");
            }
        }
    }

    #[test]
    fn wrong_data_is_refused_in_one_line() {
        let e = Tensor::f32(&[2, 3], vec![0.0; 5]).unwrap_err();
        assert_eq!(e.to_string(), "f32[2, 3]: holds 5 elements, expected 6; check the shape against the data");
        assert!(matches!(Tensor::mxfp4(&[2, 16], vec![0; 16], vec![0]), Err(TensorError::Blocks { .. })));
        assert!(matches!(Tensor::mxfp4(&[2, 32], vec![0; 32], vec![0]), Err(TensorError::Blocks { .. })));
        let ints = Data::I32(Arc::new(vec![0]));
        assert!(matches!(Tensor::new(DType::F32, &[1], ints), Err(TensorError::Storage { .. })));
    }

    #[test]
    fn rows_decode_one_at_a_time() {
        let t = Tensor::bf16(&[2, 3], (0..6).map(|i| bf16::from_f32(i as f32)).collect()).unwrap();
        let mut row = [0.0; 3];
        t.weight_rows().decode(1, &mut row);
        assert_eq!(row, [3.0, 4.0, 5.0]);
        assert_eq!((t.rows(), t.width()), (2, 3));
        assert_eq!(Tensor::f32(&[], vec![1.0]).unwrap().rows(), 1);
    }
}
