//! Element types and their storage sizes, in bits rather than bytes: MXFP4 has 4.25 of them.

use std::fmt;

/// Element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DType {
    /// IEEE binary32.
    F32,
    /// bfloat16: the upper half of a binary32.
    BF16,
    /// IEEE binary16.
    F16,
    /// Signed 32-bit integer; every index tensor has this type.
    I32,
    /// Unsigned byte.
    U8,
    /// Truth value, one byte in memory (0 or 1).
    Bool,
    /// Logical MXFP4 element (OCP MX v1.0): E2M1 codes in blocks of 32 along the last dim, one E8M0 scale per block.
    /// One tensor is two buffers in memory: codes (two per byte, low nibble first) and scale bytes.
    Mxfp4,
}

/// Elements that share one MXFP4 scale.
pub const MX_BLOCK: i64 = 32;

impl DType {
    /// Every dtype, in the order of the reference.
    pub const ALL: [DType; 7] = [DType::F32, DType::BF16, DType::F16, DType::I32, DType::U8, DType::Bool, DType::Mxfp4];

    /// The name used in IR text.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::BF16 => "bf16",
            DType::F16 => "f16",
            DType::I32 => "i32",
            DType::U8 => "u8",
            DType::Bool => "bool",
            DType::Mxfp4 => "mxfp4",
        }
    }

    /// The dtype named `name` in IR text.
    pub fn parse(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|d| d.name() == name)
    }

    /// Bits that [`MX_BLOCK`] consecutive elements take, scales included (136 for MXFP4: 4.25 bits an element).
    pub fn bits_per_block(self) -> u64 {
        match self {
            DType::F32 | DType::I32 => 32 * 32,
            DType::BF16 | DType::F16 => 16 * 32,
            DType::U8 | DType::Bool => 8 * 32,
            DType::Mxfp4 => 32 * 4 + 8,
        }
    }

    /// Bytes of one element; `None` for MXFP4, whose elements have no address of their own.
    pub fn bytes(self) -> Option<u64> {
        (self != DType::Mxfp4).then(|| self.bits_per_block() / 32 / 8)
    }

    /// Bytes that `elements` of this type take (MXFP4: whole blocks, scales included).
    pub fn storage_bytes(self, elements: u64) -> u64 {
        match self.bytes() {
            Some(b) => elements * b,
            None => elements.div_ceil(MX_BLOCK as u64) * self.bits_per_block() / 8,
        }
    }

    /// True for `f32`, `bf16` and `f16`.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::BF16 | DType::F16)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
