//! Run-time tensors of the interpreter.

use std::sync::Arc;

use half::bf16;

use crate::dtype::DType;

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
