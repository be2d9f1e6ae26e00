//! Checkpoint bytes to records and back, on the host, in parallel over row tiles.

use rayon::prelude::*;

use super::word::{pack_word, unpack_word};
use super::{
    BLOCK, CODE_BYTES, LayoutError, MAX_FAST_SCALE, Mxfp4Layout, RECORD_BYTES, SCALE_BYTES, ScaleMode, TILE_K,
    TILE_ROWS,
};

/// Bytes of codes one row has in one tile, and of scales.
const ROW_CODES: usize = TILE_K / 2;
const ROW_SCALES: usize = TILE_K / BLOCK;
/// Pairs of rows, `g` and `g + 8`, in a tile.
const GROUPS: usize = TILE_ROWS / 2;

impl Mxfp4Layout {
    /// Packs a whole tensor: `blocks [E, N, K/32, 16]`, `scales [E, N, K/32]`, `out` of [`Mxfp4Layout::bytes`].
    pub fn pack(&self, blocks: &[u8], scales: &[u8], out: &mut [u8]) -> Result<(), LayoutError> {
        length("blocks", blocks.len(), self.experts * self.block_bytes())?;
        length("scales", scales.len(), self.experts * self.scale_bytes())?;
        length("the packed tensor", out.len(), self.bytes())?;
        let experts = blocks.chunks_exact(self.block_bytes()).zip(scales.chunks_exact(self.scale_bytes()));
        for (expert, ((blocks, scales), out)) in experts.zip(out.chunks_exact_mut(self.expert_bytes())).enumerate() {
            self.pack_expert(expert, blocks, scales, out)?;
        }
        Ok(())
    }

    /// Packs one expert from its part of the checkpoint into its part of the packed tensor, so that a loader can stream.
    /// `expert` is used in messages only. Fails before writing anything.
    pub fn pack_expert(&self, expert: usize, blocks: &[u8], scales: &[u8], out: &mut [u8]) -> Result<(), LayoutError> {
        length("blocks of one expert", blocks.len(), self.block_bytes())?;
        length("scales of one expert", scales.len(), self.scale_bytes())?;
        length("packed space of one expert", out.len(), self.expert_bytes())?;
        self.check_scales(expert, scales)?;
        out.par_chunks_exact_mut(self.strip_bytes()).enumerate().for_each(|(row_tile, strip)| {
            let rows = self.source_rows(row_tile);
            for (k_tile, record) in strip.chunks_exact_mut(RECORD_BYTES).enumerate() {
                self.pack_record(&rows, k_tile, blocks, scales, record);
            }
        });
        Ok(())
    }

    /// The inverse of [`Mxfp4Layout::pack_expert`]: every byte of the checkpoint back.
    pub fn unpack_expert(&self, packed: &[u8], blocks: &mut [u8], scales: &mut [u8]) -> Result<(), LayoutError> {
        length("packed space of one expert", packed.len(), self.expert_bytes())?;
        length("blocks of one expert", blocks.len(), self.block_bytes())?;
        length("scales of one expert", scales.len(), self.scale_bytes())?;
        let rows = blocks.par_chunks_exact_mut(self.k / 2).zip(scales.par_chunks_exact_mut(self.k / BLOCK));
        rows.enumerate().for_each(|(row, (codes, scales))| {
            let row = self.row_order.packed_row(self.n, row);
            let (group, second) = (row % 8, row / 8 % 2);
            let records = packed[row / TILE_ROWS * self.strip_bytes()..].chunks_exact(RECORD_BYTES);
            let tiles = codes.chunks_mut(ROW_CODES).zip(scales.chunks_mut(ROW_SCALES));
            for ((codes, scales), record) in tiles.zip(records) {
                for (i, code) in codes.iter_mut().enumerate() {
                    // Byte i of a row holds k = 2i: word i/8, upper pairs from i%8 = 4, quarter i%4.
                    let (word, high, quarter) = (i / 8, i / 4 % 2, i % 4);
                    let at = 16 * (4 * group + quarter) + 4 * word;
                    let word = u32::from_le_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]]);
                    *code = unpack_word(word)[second + 2 * high];
                }
                for (i, scale) in scales.iter_mut().enumerate() {
                    *scale = self.checkpoint_scale(record[CODE_BYTES + 4 * group + 2 * second + i]);
                }
            }
        });
        Ok(())
    }

    /// The first scale that this layout's mode cannot hold is an error.
    pub fn check_scales(&self, expert: usize, scales: &[u8]) -> Result<(), LayoutError> {
        let (limit, expected) = match self.scale_mode {
            ScaleMode::Fast => (
                MAX_FAST_SCALE,
                "at most 128 for the fast layout; pack the tensor with the general one (a 255 is damage)",
            ),
            ScaleMode::General => (254, "at most 254, as 255 is NaN; the checkpoint is damaged, fetch it again"),
        };
        let blocks = self.k / BLOCK;
        // The greatest by vectors; its place is looked for only if it is too great.
        if scales.iter().fold(0, |a, b| a.max(*b)) <= limit {
            return Ok(());
        }
        match scales.iter().position(|&s| s > limit) {
            None => Ok(()),
            Some(at) => {
                Err(LayoutError::Scale { expert, row: at / blocks, block: at % blocks, found: scales[at], expected })
            }
        }
    }

    fn source_rows(&self, row_tile: usize) -> [Option<usize>; TILE_ROWS] {
        std::array::from_fn(|i| self.row_order.source_row(self.n, row_tile * TILE_ROWS + i))
    }

    fn pack_record(
        &self,
        rows: &[Option<usize>; TILE_ROWS],
        k_tile: usize,
        blocks: &[u8],
        scales: &[u8],
        record: &mut [u8],
    ) {
        let (codes_out, scales_out) = record.split_at_mut(CODE_BYTES);
        let groups =
            codes_out.chunks_exact_mut(CODE_BYTES / GROUPS).zip(scales_out.chunks_exact_mut(SCALE_BYTES / GROUPS));
        for (group, (codes_out, scales_out)) in groups.enumerate() {
            let pair = [rows[group], rows[group + 8]];
            let [low, high] = pair.map(|row| self.row_codes(row, k_tile, blocks));
            // A quad of threads, each with four words, shares the two rows. Constant bounds let the compiler unroll all of it.
            let mut words = [0; CODE_BYTES / GROUPS];
            for quarter in 0..4 {
                for step in 0..4 {
                    let (a, b) = (8 * step + quarter, 8 * step + 4 + quarter);
                    let word = pack_word([low[a], high[a], low[b], high[b]]);
                    words[16 * quarter + 4 * step..][..4].copy_from_slice(&word.to_le_bytes());
                }
            }
            codes_out.copy_from_slice(&words);
            for (out, row) in scales_out.chunks_exact_mut(ROW_SCALES).zip(pair) {
                out.copy_from_slice(&self.row_scales(row, k_tile, scales));
            }
        }
    }

    fn row_codes(&self, row: Option<usize>, k_tile: usize, blocks: &[u8]) -> [u8; ROW_CODES] {
        let mut codes = [0; ROW_CODES];
        if let Some(row) = row {
            let tail = &blocks[row * (self.k / 2)..][k_tile * ROW_CODES..self.k / 2];
            match tail.first_chunk() {
                Some(whole) => codes = *whole,
                None => codes[..tail.len()].copy_from_slice(tail),
            }
        }
        codes
    }

    fn row_scales(&self, row: Option<usize>, k_tile: usize, scales: &[u8]) -> [u8; ROW_SCALES] {
        let mut stored = [0; ROW_SCALES];
        if let Some(row) = row {
            let start = k_tile * ROW_SCALES;
            let len = ROW_SCALES.min(self.k / BLOCK - start);
            for (to, &from) in stored.iter_mut().zip(&scales[row * (self.k / BLOCK) + start..][..len]) {
                *to = self.stored_scale(from);
            }
        }
        stored
    }
}

fn length(what: &'static str, found: usize, expected: usize) -> Result<(), LayoutError> {
    if found == expected { Ok(()) } else { Err(LayoutError::Length { what, found, expected }) }
}
