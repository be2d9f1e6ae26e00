//! Row orders: which row of a weight lies in which row of its tiles of 16.
//!
//! In an accumulator fragment one thread holds rows `g` and `g + 8` of each 16-row block. Putting two related features there
//! makes their combination a register operation:
//!
//! | order | rows 0..8 of 16-row block `q` | rows 8..16 |
//! |---|---|---|
//! | identity | rows `16q ..` | rows `16q + 8 ..` |
//! | paired | gate of features `8q ..` | up of the same features |
//! | rope, head dimension `d`, block `q` of a head | dimensions `8q ..` | dimensions `d/2 + 8q ..` |
//!
//! Rows beyond the tensor are padding. The same order applies to the weight, its scales and its bias.

use super::LayoutError;

/// Rows of a tile; packed tensors have a multiple of this.
pub const TILE_ROWS: usize = 16;

/// Where the two rows of a feature lie in the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PairSource {
    /// Row `2j` is the gate of feature `j`, row `2j + 1` its up (the GPT-OSS checkpoints).
    Interleaved,
    /// Rows `0..n/2` are gates, `n/2..n` ups.
    Halves,
}

/// Order of the rows of a packed weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RowOrder {
    /// As in the checkpoint.
    Identity,
    /// Gate and up of a feature eight rows apart; `n` must be even. 64 rows give 32 features, in order.
    PairedRows(PairSource),
    /// Dimensions `i` and `i + head_dim/2` of a head eight rows apart; `n` must be whole heads, `head_dim` a multiple of 16.
    RopePairs {
        /// Dimensions of a head.
        head_dim: usize,
    },
}

impl RowOrder {
    /// Whether `n` rows can be ordered like this.
    pub fn check(self, n: usize) -> Result<(), LayoutError> {
        let wrong = |dimension, found, expected| Err(LayoutError::Dimension { dimension, found, expected });
        match self {
            RowOrder::PairedRows(_) if !n.is_multiple_of(2) => {
                wrong("n", n, "an even number of rows, as gate and up come in pairs")
            }
            RowOrder::RopePairs { head_dim } if head_dim == 0 || !head_dim.is_multiple_of(16) => {
                wrong("head_dim", head_dim, "a positive multiple of 16")
            }
            RowOrder::RopePairs { head_dim } if !n.is_multiple_of(head_dim) => {
                wrong("n", n, "a multiple of the head dimension")
            }
            _ => Ok(()),
        }
    }

    /// Rows after packing: `n` rounded up to whole tiles.
    pub fn packed_rows(self, n: usize) -> usize {
        n.next_multiple_of(TILE_ROWS)
    }

    /// Row of the checkpoint that lies at row `packed`, or `None` for padding. `n` must satisfy [`RowOrder::check`].
    pub fn source_row(self, n: usize, packed: usize) -> Option<usize> {
        let (block, second, i) = (packed / 16, packed / 8 % 2, packed % 8);
        match self {
            RowOrder::Identity => (packed < n).then_some(packed),
            RowOrder::PairedRows(source) => {
                let (feature, features) = (8 * block + i, n / 2);
                (feature < features).then_some(match source {
                    PairSource::Interleaved => 2 * feature + second,
                    PairSource::Halves => features * second + feature,
                })
            }
            RowOrder::RopePairs { head_dim } => {
                let (head, q) = (packed / head_dim, packed % head_dim / 16);
                (packed < n).then_some(head * head_dim + second * (head_dim / 2) + 8 * q + i)
            }
        }
    }

    /// Packed row of row `source` of the checkpoint: the inverse of [`RowOrder::source_row`].
    pub fn packed_row(self, n: usize, source: usize) -> usize {
        let at = |block: usize, second: usize, i: usize| 16 * block + 8 * second + i;
        match self {
            RowOrder::Identity => source,
            RowOrder::PairedRows(order) => {
                let (feature, second) = match order {
                    PairSource::Interleaved => (source / 2, source % 2),
                    PairSource::Halves => (source % (n / 2), source / (n / 2)),
                };
                at(feature / 8, second, feature % 8)
            }
            RowOrder::RopePairs { head_dim } => {
                let (head, dim) = (source / head_dim, source % head_dim);
                let (second, i) = (dim / (head_dim / 2), dim % (head_dim / 2));
                head * head_dim + at(i / 8, second, i % 8)
            }
        }
    }

    /// Reorders rows of `row_len` values, as for a bias (`row_len` 1) or a bf16 weight, to [`RowOrder::packed_rows`] rows; padding
    /// gets the default value.
    pub fn gather<T: Copy + Default>(self, rows: &[T], row_len: usize) -> Result<Vec<T>, LayoutError> {
        if row_len == 0 || !rows.len().is_multiple_of(row_len) {
            let expected = rows.len().next_multiple_of(row_len.max(1));
            return Err(LayoutError::Length { what: "a tensor of rows", found: rows.len(), expected });
        }
        let n = rows.len() / row_len;
        self.check(n)?;
        let mut packed = vec![T::default(); self.packed_rows(n) * row_len];
        for (to, out) in packed.chunks_exact_mut(row_len).enumerate() {
            if let Some(from) = self.source_row(n, to) {
                out.copy_from_slice(&rows[from * row_len..][..row_len]);
            }
        }
        Ok(packed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORDERS: [RowOrder; 6] = [
        RowOrder::Identity,
        RowOrder::PairedRows(PairSource::Interleaved),
        RowOrder::PairedRows(PairSource::Halves),
        RowOrder::RopePairs { head_dim: 16 },
        RowOrder::RopePairs { head_dim: 64 },
        RowOrder::RopePairs { head_dim: 80 },
    ];

    #[test]
    fn every_order_is_a_bijection_with_padding() {
        for order in ORDERS {
            for n in (0..700).chain([2880, 5760]).filter(|&n| order.check(n).is_ok()) {
                let sources: Vec<_> = (0..order.packed_rows(n)).map(|p| order.source_row(n, p)).collect();
                for source in 0..n {
                    assert_eq!(sources[order.packed_row(n, source)], Some(source), "{order:?} {n}");
                }
                assert_eq!(sources.iter().flatten().count(), n, "{order:?} {n}");
            }
        }
    }

    #[test]
    fn partners_are_eight_rows_apart() {
        let n = 128;
        for i in 0..n / 2 {
            let interleaved = RowOrder::PairedRows(PairSource::Interleaved);
            assert_eq!(interleaved.packed_row(n, 2 * i) + 8, interleaved.packed_row(n, 2 * i + 1));
            let halves = RowOrder::PairedRows(PairSource::Halves);
            assert_eq!(halves.packed_row(n, i) + 8, halves.packed_row(n, i + 64));
            let rope = RowOrder::RopePairs { head_dim: 64 };
            let dim = i / 32 * 64 + i % 32;
            assert_eq!(rope.packed_row(n, dim) + 8, rope.packed_row(n, dim + 32));
        }
        // 64 rows hold 32 consecutive features.
        let order = RowOrder::PairedRows(PairSource::Interleaved);
        assert_eq!(order.source_row(5760, 64), Some(64));
        assert_eq!(order.source_row(5760, 72), Some(65));
        assert_eq!(order.source_row(20, 16 + 2), None);
        assert_eq!(order.source_row(20, 16 + 8), Some(17));
    }

    #[test]
    fn gather_moves_rows_and_pads() {
        let bias: Vec<i32> = (1..=20).collect();
        let packed = RowOrder::PairedRows(PairSource::Interleaved).gather(&bias, 1).unwrap();
        assert_eq!(packed.len(), 32);
        assert_eq!(packed[..16], [1, 3, 5, 7, 9, 11, 13, 15, 2, 4, 6, 8, 10, 12, 14, 16]);
        assert_eq!(packed[16..32], [17, 19, 0, 0, 0, 0, 0, 0, 18, 20, 0, 0, 0, 0, 0, 0]);
        let rows = RowOrder::Identity.gather(&[1, 2, 3, 4, 5, 6], 3).unwrap();
        assert_eq!((rows.len(), &rows[..7]), (48, &[1, 2, 3, 4, 5, 6, 0][..]));
    }

    #[test]
    fn impossible_shapes_are_refused() {
        let text = |order: RowOrder, n: usize| order.check(n).unwrap_err().to_string();
        assert!(text(RowOrder::PairedRows(PairSource::Halves), 7).contains("n is 7, expected an even"));
        assert!(text(RowOrder::RopePairs { head_dim: 24 }, 48).contains("head_dim is 24"));
        assert!(text(RowOrder::RopePairs { head_dim: 0 }, 0).contains("head_dim is 0"));
        assert!(text(RowOrder::RopePairs { head_dim: 64 }, 96).contains("n is 96"));
        assert!(RowOrder::Identity.gather(&[1, 2, 3], 2).is_err());
        assert!(RowOrder::Identity.gather(&[1], 0).is_err());
    }
}
