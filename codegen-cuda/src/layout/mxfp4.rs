//! The packed MXFP4 layout that every kernel reads.
//!
//! A checkpoint tensor is `blocks [E, N, K/32, 16]` and `scales [E, N, K/32]`, both bytes: row `n` of expert `e` has two codes to a
//! byte, the even `k` in the low nibble, and one scale per 32 codes. A value is `E2M1(code) * 2^(scale - 127)`. K must be a
//! multiple of 32; N is free. Packed, rows (in a [`RowOrder`]) are padded with zeros to 16, K to 64, and cut into tiles of 16 rows x 64 k:
//!
//! ```text
//! [expert][row tile][k tile] -> record of 544 bytes = 512 bytes of codes, 32 bytes of scales
//! codes  [thread 32][word 4]   u32, little endian: one 16-byte load per thread and tile
//! scales [g 8][4]              bytes: (row g, block 0) (row g, block 1) (row g + 8, block 0) (row g + 8, block 1)
//! ```
//!
//! The k tiles of a row tile are one run of bytes, a *strip*; any part of it is one bulk copy. A warp multiplies a strip; the warpgroup of `wgmma`
//! takes four, warp `w` the row tile `4 i + w` of its 64 rows.
//!
//! **Codes** lie in the order of the A fragment of `mma.m16n8k16`, which is a warp's part of that of `wgmma.m64nNk16`. Thread `t = 4 g + c` finds in
//! word `s` the eight codes of its fragment for `k = 16 s ..`: pair `j` (0..4), half `b` (0, 1) is
//!
//! ```text
//! row = g + 8 (j & 1)        k = 16 s + 8 (j >> 1) + 2 c + b
//! ```
//!
//! Inside a word the bits are interleaved so that a pair comes out as two bf16 with few instructions. With
//! `enc(n) = (n & 8) << 12 | (n & 7) << 6` (the code's sign at bit 15, the rest at bits 8..6) and the second half 16 bits higher, pairs are taken
//! out under the mask `0x81c081c0`, which the places of all four tile without a gap:
//!
//! ```text
//! word = pair0 | pair1 >> 4 | pair2 rotated right by 10 | (pair3 & 0x80c080c0) >> 6 | (pair3 & 0x01000100) << 2
//! ```
//!
//! No four shifts or rotations of one mask fill a word, so one pair is in two parts; of all ways with two parts this has the fewest instructions
//! (nine a word: five logical, two shifts that a multiply-add unit makes, two that it does not) by exhaustive search.
//!
//! An extracted half, read as bf16, is `E2M1(code) * 2^-126`: code 1 is a bf16 subnormal, so multiplies must keep them.
//!
//! **Scales** are stored in one of two ways for a whole tensor ([`ScaleMode`]). *Fast*: the byte is `scale + 126`, which as a bf16
//! exponent is `2^(scale - 1) = 2^126 * 2^(scale - 127)`: one multiply undoes the `2^-126` and scales. It takes scales up to 128
//! (`2^1`, weights up to 12); GPT-OSS stays far below. *General*: the byte is the scale, and decoding multiplies by `2^126`, then by
//! `2^(scale - 127)`; any scale but 255, which is NaN in E8M0. Both are exact: every value with a scale of at most 252 is a bf16. With
//! 253 and 254 the largest codes exceed bf16 and become infinite, as in any bf16 dequantisation.
//!
//! All bytes of padding are zero, in both modes, and decode to zero. [`DEVICE_DECODE`] reads the layout in CUDA C++.

mod pack;
mod word;

use super::LayoutError;
use super::rows::RowOrder;
pub use super::rows::TILE_ROWS;
pub use word::{CODE_VALUES, decode, unpack_word};

/// CUDA C++ functions that read this layout, to be put in front of a kernel's text; needs no header. Names start with `gs_mxfp4_`,
/// constants with `GS_MXFP4_`; a template parameter `FAST` picks the [`ScaleMode`].
///
/// - `gs_mxfp4_record(packed, row_tiles, k_tiles, expert, row_tile, k_tile)`: address of a record;
/// - `gs_mxfp4_load_codes(record, thread)`, `gs_mxfp4_load_scales(record, thread)`: what a thread of 32 needs of it;
/// - `gs_mxfp4_factors<FAST>(scales, block)`: of rows `g` and `g + 8`, as two bf16;
/// - `gs_mxfp4_decode8<FAST>(word, factors, a)`: eight codes to the four A registers of one MMA;
/// - `gs_mxfp4_decode_tile<FAST>(codes, scales, a)`: all four words of a tile;
/// - `gs_mxfp4_pack8(byte)`: the word of four bytes of a checkpoint;
/// - `gs_mxfp4_value<FAST>(record, row, k)`: one element as float, slowly, for reference kernels and dequantisation.
pub const DEVICE_DECODE: &str = include_str!("mxfp4/decode.cuh");

/// Codes of one scale.
pub const BLOCK: usize = 32;
/// Columns of a tile.
pub const TILE_K: usize = 64;
/// Bytes of codes in a record.
pub const CODE_BYTES: usize = TILE_ROWS * TILE_K / 2;
/// Bytes of scales in a record.
pub const SCALE_BYTES: usize = TILE_ROWS * TILE_K / BLOCK;
/// Bytes of a record.
pub const RECORD_BYTES: usize = CODE_BYTES + SCALE_BYTES;
/// Largest scale that [`ScaleMode::Fast`] takes.
pub const MAX_FAST_SCALE: u8 = 128;
/// What [`ScaleMode::Fast`] adds to a scale.
pub const FAST_BIAS: u8 = 126;

/// How scale bytes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ScaleMode {
    /// `scale + 126`: one multiply per pair of weights; scales 0..=128.
    Fast,
    /// The scale itself: two multiplies; scales 0..=254.
    General,
}

impl ScaleMode {
    /// The fastest mode that holds these scales. A 255 needs no mode of its own: packing refuses it.
    pub fn for_scales(scales: &[u8]) -> ScaleMode {
        let largest = scales.iter().fold(0, |largest, &s| largest.max(s));
        if largest <= MAX_FAST_SCALE { ScaleMode::Fast } else { ScaleMode::General }
    }
}

/// Describes one packed tensor of E experts, N output rows and K inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mxfp4Layout {
    experts: usize,
    n: usize,
    k: usize,
    row_order: RowOrder,
    scale_mode: ScaleMode,
}

/// Where an element of a tile lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Thread of the warp, 0..32.
    pub thread: usize,
    /// Word of the thread, 0..4.
    pub word: usize,
    /// Pair of the word, 0..4: the fragment register.
    pub pair: usize,
    /// Half of the pair: 0 low, 1 high.
    pub half: usize,
    /// Scale byte of the record, 0..32.
    pub scale: usize,
}

/// Position of the element at `row` (below 16), `k` (below 64) of a tile.
pub fn position(row: usize, k: usize) -> Position {
    let (second, g) = (row / 8, row % 8);
    let (word, high, c, half) = (k / 16, k / 8 % 2, k % 8 / 2, k % 2);
    Position { thread: 4 * g + c, word, pair: second + 2 * high, half, scale: 4 * g + 2 * second + k / BLOCK }
}

impl Mxfp4Layout {
    /// A layout for `experts` matrices of `n` rows and `k` columns. Fails if a dimension is zero, `k` is no multiple of 32, the row
    /// order does not fit `n`, or the packed size is beyond what memory can address.
    pub fn new(
        experts: usize,
        n: usize,
        k: usize,
        row_order: RowOrder,
        scale_mode: ScaleMode,
    ) -> Result<Mxfp4Layout, LayoutError> {
        let wrong = |dimension, found, expected| Err(LayoutError::Dimension { dimension, found, expected });
        for (dimension, found) in [("experts", experts), ("n", n), ("k", k)] {
            if found == 0 {
                return wrong(dimension, 0, "at least 1");
            }
        }
        if !k.is_multiple_of(BLOCK) {
            return wrong("k", k, "a multiple of 32, the block of one scale");
        }
        row_order.check(n)?;
        let limit = isize::MAX as u128;
        let records = experts as u128 * n.div_ceil(TILE_ROWS) as u128;
        let bytes = records.checked_mul(k.div_ceil(TILE_K) as u128 * RECORD_BYTES as u128);
        if bytes.is_none_or(|b| b > limit) {
            return wrong("n", n, "a packed size that fits memory");
        }
        Ok(Mxfp4Layout { experts, n, k, row_order, scale_mode })
    }

    /// Number of experts.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Rows of one expert in the checkpoint.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Columns (reduction dimension).
    pub fn k(&self) -> usize {
        self.k
    }

    /// Order of rows inside the tiles.
    pub fn row_order(&self) -> RowOrder {
        self.row_order
    }

    /// How scales are stored.
    pub fn scale_mode(&self) -> ScaleMode {
        self.scale_mode
    }

    /// Tiles along the rows.
    pub fn row_tiles(&self) -> usize {
        self.n.div_ceil(TILE_ROWS)
    }

    /// Tiles along K; the last is half zero when K is an odd multiple of 32.
    pub fn k_tiles(&self) -> usize {
        self.k.div_ceil(TILE_K)
    }

    /// Packed bytes of all K tiles of one row tile, which lie together.
    pub fn strip_bytes(&self) -> usize {
        self.k_tiles() * RECORD_BYTES
    }

    /// Packed bytes of one expert.
    pub fn expert_bytes(&self) -> usize {
        self.row_tiles() * self.strip_bytes()
    }

    /// Packed bytes of the tensor.
    pub fn bytes(&self) -> usize {
        self.experts * self.expert_bytes()
    }

    /// Checkpoint bytes of one expert's blocks.
    pub fn block_bytes(&self) -> usize {
        self.n * self.k / 2
    }

    /// Checkpoint bytes of one expert's scales.
    pub fn scale_bytes(&self) -> usize {
        self.n * self.k / BLOCK
    }

    /// Byte offset of a record.
    pub fn record_offset(&self, expert: usize, row_tile: usize, k_tile: usize) -> usize {
        ((expert * self.row_tiles() + row_tile) * self.k_tiles() + k_tile) * RECORD_BYTES
    }

    /// Code and scale of the checkpoint's element `row`, `k` of an expert, from the packed tensor. `None` if an index is out of
    /// range or `packed` too short.
    pub fn element(&self, packed: &[u8], expert: usize, row: usize, k: usize) -> Option<(u8, u8)> {
        if expert >= self.experts || row >= self.n || k >= self.k {
            return None;
        }
        let row = self.row_order.packed_row(self.n, row);
        let record = packed.get(self.record_offset(expert, row / TILE_ROWS, k / TILE_K)..)?.get(..RECORD_BYTES)?;
        let at = position(row % TILE_ROWS, k % TILE_K);
        let word = 16 * at.thread + 4 * at.word;
        let word = u32::from_le_bytes(record[word..word + 4].try_into().ok()?);
        let byte = unpack_word(word)[at.pair];
        let code = if at.half == 0 { byte & 15 } else { byte >> 4 };
        Some((code, self.checkpoint_scale(record[CODE_BYTES + at.scale])))
    }

    fn stored_scale(&self, scale: u8) -> u8 {
        match self.scale_mode {
            ScaleMode::Fast => scale + FAST_BIAS,
            ScaleMode::General => scale,
        }
    }

    fn checkpoint_scale(&self, stored: u8) -> u8 {
        match self.scale_mode {
            // Padding is stored as 0, below every real scale.
            ScaleMode::Fast => stored.saturating_sub(FAST_BIAS),
            ScaleMode::General => stored,
        }
    }
}

#[cfg(test)]
mod tests;
