//! How `gemm` and `gemm_pieces` cut a product into tiles, and which of its columns a tile and a lane hold together.

use super::super::blocks;
use super::super::contraction::PROCESSORS;
use super::super::region::{Columns, Need, Sink, unsupported};
use super::super::view::gcd;
use crate::lower::LowerError;
use crate::resources::{SHARED_PER_BLOCK, SHARED_PER_SM, SHARED_RESERVED};

type Result<T> = std::result::Result<T, LowerError>;

/// Elements of K in a stage of the ring, and in a unit of pieces.
pub(super) const UNIT: i64 = 64;
/// Elements of a strip of results, and its columns where they divide those of a tile.
const STRIP_ELEMENTS: i64 = 512;
pub(super) const STRIP_COLUMNS: i64 = 64;
/// Stages at most.
const STAGES: i64 = 16;
/// Rounds of tiles from which blocks copy for each other.
const SHARED_ROUNDS: i64 = 6;
/// As measured on an H100 (docs/performance.md): bytes that a multiprocessor copies in a clock, clocks before a block's first multiply, and clocks of a strip
/// of results.
const COPIED: i64 = 50;
const TILE: i64 = 4000;
const STRIP: i64 = 3000;

/// How the work is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Warpgroups that multiply.
    pub groups: i64,
    /// Columns of a tile.
    pub width: i64,
    /// Blocks that share a multiprocessor.
    pub blocks: i64,
    /// Parts of a tile's columns whose sums lie in shared memory one after the other: 1, or 2, where the second waits in registers.
    pub halves: i64,
    /// Blocks of a cluster that copy columns of w for each other.
    pub share: i64,
}

/// A cut whose blocks have a multiprocessor each.
const fn alone(groups: i64, width: i64) -> Plan {
    Plan { groups, width, blocks: 1, halves: 1, share: 1 }
}

/// The largest tile: half of its sums wait in registers.
const LARGE: Plan = Plan { halves: 2, ..alone(2, 192) };

/// Cuts of one chain, from the smallest tile.
pub(super) const CHAIN: &[Plan] =
    &[alone(1, 32), alone(1, 48), alone(1, 64), alone(1, 96), alone(2, 64), alone(2, 96), alone(2, 128), LARGE];
/// Cuts of pieces: registers hold two sets of sums, so tiles are narrower.
pub(super) const PIECES: &[Plan] =
    &[alone(1, 32), alone(1, 48), alone(1, 64), alone(1, 96), alone(1, 128), alone(2, 64), alone(2, 96), alone(2, 128)];

impl Plan {
    /// Rows of a tile.
    pub fn height(self) -> i64 {
        self.groups * 64
    }

    /// Rows of a box of x, of so many in all.
    pub fn x_box(self, rows: i64) -> i64 {
        self.height().min(blocks(rows, 8) * 8)
    }

    /// Bytes of a stage.
    pub fn stage(self) -> i64 {
        (self.height() + self.width) * 2 * UNIT
    }

    /// Bytes of the sums in shared memory.
    pub fn sums(self) -> i64 {
        self.height() * (self.width / self.halves + 8) * 4
    }

    /// Stages that fit.
    pub fn stages(self) -> i64 {
        let sm = i64::from(SHARED_PER_SM) / self.blocks - i64::from(SHARED_RESERVED);
        let block = sm.min(i64::from(SHARED_PER_BLOCK)) - 16 * STAGES;
        ((block - 1024 - self.sums()) / self.stage()).min(STAGES)
    }

    /// Tiles down and across.
    pub fn tiles(self, rows: i64, n: i64) -> (i64, i64) {
        (blocks(rows, self.height()), blocks(n, self.width))
    }

    /// Columns of a tile between two strips of a row, where one warp makes them one after the other: see [`results`].
    pub fn period(self, pairs: Pairs) -> Option<i64> {
        let (held, apart) = (self.width / self.halves, pairs.apart / self.halves);
        let strip = [64, 32].into_iter().find(|c| held % c == 0).unwrap_or(16);
        let regular = pairs.columns == Columns::Adjacent && strip % (2 * apart) == 0;
        // Modulo a common divisor of that and a tile's columns, a lane's column is the same in all strips.
        (self.halves > 1).then(|| if regular { gcd(strip * self.halves, self.width) } else { 1 })
    }

    /// Blocks of a cluster: two where they read so much that the L2 cache delays them, which takes several rounds of tiles, and where no
    /// multiprocessor has more tiles for it.
    fn shared(self, pairs: Pairs, rows: i64, n: i64) -> i64 {
        let (down, across) = self.tiles(rows, n);
        let rounds = |share: i64| blocks(blocks(down, share) * across, PROCESSORS / share);
        let whole = self.halves > 1 && pairs.columns == Columns::Adjacent && self.blocks == 1;
        if whole && rounds(1) >= SHARED_ROUNDS && rounds(2) <= rounds(1) { 2 } else { 1 }
    }

    /// Clocks that the busiest multiprocessor takes: tiles one after the other, each as long as its multiplies, its copies or the results of the one
    /// before it, and the results of the last, in which all join.
    fn cost(self, rows: i64, n: i64, k: i64) -> i64 {
        let (down, across) = self.tiles(rows, n);
        let rounds = blocks(down * across, PROCESSORS);
        let units = blocks(k, UNIT);
        let multiplies = units * self.height() / 64 * 2 * self.width;
        let copied = units * (self.x_box(rows) + self.width) * 2 * UNIT;
        let main = multiplies.max(copied / COPIED);
        let strips = self.height() * self.width / STRIP_ELEMENTS;
        let results = blocks(strips, 4) * STRIP;
        (rounds - 1) * main.max(results) + main + TILE + blocks(strips, 4 + 4 * self.groups) * STRIP
    }

    /// The cut for so many rows of a product of `n` columns, and how its tiles hold together what `sinks` need together.
    pub fn choose(
        plans: &[Plan],
        sinks: &[Sink],
        run: Option<i64>,
        (rows, n, k): (i64, i64, i64),
    ) -> Result<(Plan, Pairs)> {
        let mut best: Option<(i64, Plan, Pairs)> = None;
        let mut refused = None;
        for plan in plans.iter().filter(|p| run.is_none_or(|r| p.width % (r * STRIP_COLUMNS) == 0)) {
            match Pairs::choose(sinks, n, plan.width) {
                Ok(pairs) => {
                    // Halves hold eights of columns whole and what lies apart together, but not the columns of a maximum.
                    let plan = match pairs.apart % (8 * plan.halves) == 0 && run.is_none() {
                        true => *plan,
                        false => Plan { halves: 1, ..*plan },
                    };
                    let plan = Plan { share: plan.shared(pairs, rows, n), ..plan };
                    let cost = plan.cost(rows, n, k);
                    if best.as_ref().is_none_or(|b| cost < b.0) {
                        best = Some((cost, plan, pairs));
                    }
                }
                Err(e) => refused = Some(e),
            }
        }
        let wide =
            || unsupported(format!("tile_max over {} columns", run.unwrap_or(1) * STRIP_COLUMNS), "64 or 128 columns");
        best.map(|(_, plan, pairs)| (plan, pairs)).ok_or_else(|| refused.unwrap_or_else(wide))
    }
}

/// The columns that a lane makes results of at a time: two in a row, and two more that are `apart` further on in the tile and `far` in the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pairs {
    pub columns: Columns,
    pub apart: i64,
    pub far: i64,
    /// Size of the heads whose halves these are.
    pub dim: Option<i64>,
}

impl Pairs {
    fn choose(found: &[Sink], n: i64, width: i64) -> Result<Pairs> {
        let columns = Columns::choose(found, n, width)?;
        let heads = found.iter().find_map(|s| if let Need::Rope { dim, .. } = s.need { Some(dim) } else { None });
        match (columns, heads) {
            (Columns::Paired { dim }, _) => Ok(Pairs { columns, apart: width / 2, far: dim / 2, dim: Some(dim) }),
            (_, Some(dim)) if dim % 4 == 0 => Ok(Pairs { columns, apart: dim / 2, far: dim / 2, dim: heads }),
            (_, Some(dim)) => Err(unsupported(format!("rope of heads of {dim}"), "heads of a multiple of 4")),
            // As far apart as fits the columns: neighbouring lanes then store what lies side by side.
            _ => {
                let apart = [32, 16].into_iter().find(|a| n % 64 == 0 && width % (2 * a) == 0).unwrap_or(8);
                Ok(Pairs { columns, apart, far: apart, dim: None })
            }
        }
    }

    /// Where the lane's column is, relative to its first, among the four.
    pub fn place(self, offset: i64) -> Option<usize> {
        [0, 1, self.far, self.far + 1].iter().position(|o| *o == offset)
    }

    /// Runs of the columns that a lane makes of a value.
    pub fn runs(self, need: Need) -> Vec<Vec<i64>> {
        match need {
            Need::Halves { .. } => vec![vec![0, 1]],
            Need::Interleaved { .. } => vec![vec![0], vec![self.far]],
            _ => vec![vec![0, 1], vec![self.far, self.far + 1]],
        }
    }

    /// What values' columns must start and end at a multiple of, so that a lane makes all of its columns of one or none.
    pub fn step(self, need: Need) -> i64 {
        match need {
            Need::Halves { .. } => 2,
            _ => 2 * self.far,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pairs of columns within heads of 64.
    const HEADS: Pairs = Pairs { columns: Columns::Adjacent, apart: 32, far: 32, dim: Some(64) };

    #[test]
    fn halves_leave_room_for_a_stage_and_the_ring_for_a_half() {
        for plan in CHAIN.iter().chain(PIECES) {
            assert!(plan.stages() >= 3, "{plan:?}");
            let whole = Plan { halves: 1, ..*plan };
            assert!(plan.halves == 1 || plan.stages() > whole.stages(), "{plan:?}");
            // The second half of the last tile goes where the ring was.
            assert!(plan.halves == 1 || plan.sums() <= plan.stages() * plan.stage(), "{plan:?}");
        }
    }

    #[test]
    fn blocks_share_what_takes_several_rounds_and_costs_none() {
        let plan = LARGE;
        let share = |rows, n| plan.shared(HEADS, rows, n);
        assert_eq!([share(512, 5120), share(2048, 5120), share(8192, 5120), share(8192, 2880)], [1, 1, 2, 2]);
        // An odd number of rows of tiles: the block without a row must not cost a round.
        let rounds = |down: i64, share: i64| blocks(blocks(down, share) * 11, PROCESSORS / share);
        for down in 1..200 {
            assert_eq!(
                share(128 * down, 11 * 192) == 2,
                rounds(down, 1) >= SHARED_ROUNDS && rounds(down, 2) <= rounds(down, 1)
            );
        }
        assert_eq!(Plan { halves: 1, ..plan }.shared(HEADS, 8192, 5120), 1);
        assert_eq!(plan.shared(Pairs { columns: Columns::Paired { dim: 2880 }, ..HEADS }, 8192, 5760), 1);
    }

    #[test]
    fn strips_of_a_row_are_whole_heads_apart() {
        let plan = LARGE;
        assert_eq!(plan.period(HEADS), Some(64));
        assert_eq!(plan.period(Pairs { apart: 16, far: 16, dim: Some(32), ..HEADS }), Some(64));
        assert_eq!(plan.period(Pairs { apart: 64, far: 64, dim: Some(128), ..HEADS }), Some(1));
        assert_eq!(Plan { halves: 1, ..plan }.period(HEADS), None);
    }
}
