//! What `gemm` and `gemm_pieces` fill their text with where cuts of the work differ: the first copies, the sums of a tile, and how they reach the
//! warps that make results.

use std::collections::BTreeMap;

use crate::emit::fill;

/// Fills the ring for the first time: with weights before the kernels in front of this one have ended.
pub(super) const FIRST_EARLY: &str = "\
#pragma unroll 1
for (int i = 0; i < FIRST; i++) {
  expect(i);
  fetch_w(i, i, column);
}
wait_for_predecessors();
#pragma unroll 1
for (int i = 0; i < FIRST; i++) fetch_x(i, i, row0);";

/// The same where another kernel makes what stands in the place of weights.
pub(super) const FIRST: &str = "\
wait_for_predecessors();
#pragma unroll 1
for (int i = 0; i < FIRST; i++) {
  expect(i);
  fetch_w(i, i, column);
  fetch_x(i, i, row0);
}";

/// Multiplies a stage of the ring; `unit` says which of K.
const STEP: &str = "\
signal_wait(full + 8 * s, parity);
const u64 x = operand_at(ring + s * STAGE + group * 64 * 128);
const u64 w = operand_at(ring + s * STAGE + X_BYTES);
multiply_begin();
#pragma unroll
for (int k = 0; k < 4; k++) multiply(sums, x + k * 2, w + k * 2, ${from_first} + k > 0);
multiply_commit();
// One batch stays under way; the stage of the one before it is free.
if (unit > ${first_unit}) {
  multiply_wait<1>();
  release(last);
}
last = s;
if (++s == STAGES) {
  s = 0;
  parity ^= 1;
}";

/// Sums a tile: in pieces of K (`folds`) or one chain, with so many halves of the tile before in registers.
pub(super) fn sums(folds: bool, halves: i64) -> String {
    let (text, from_first, first_unit) = match (folds, halves) {
        (true, _) => (SUM_PIECES, "unit - first", "first"),
        (false, 1) => (SUM_CHAIN, "unit", "0"),
        (false, _) => (SUM_HALVES, "unit", "0"),
    };
    let step = STEP.replace("${from_first}", from_first).replace("${first_unit}", first_unit);
    fill(text, &BTreeMap::from([("step", step)]))
}

/// Sums a tile in one chain.
const SUM_CHAIN: &str = "\
int last = 0;
#pragma unroll 1
for (int unit = 0; unit < UNITS; unit++) {
  ${step}
}
multiply_wait<0>();
release(last);";

/// The same, while half of the tile before waits in registers for its turn in shared memory.
const SUM_HALVES: &str = "\
int last = 0;
auto step = [&](int unit) {
  ${step}
};
#pragma unroll 1
for (int unit = 0; unit < UNITS / 2; unit++) step(unit);
// By now results of the first half of the tile before are made.
if (tile != ${start}) {
  signal_wait(finished, 0);
#pragma unroll
  for (int e = 0; e < HELD / 8; e++) put(home + 8 * e, kept + 4 * e);
  signal_arrive(summed);
}
#pragma unroll 1
for (int unit = UNITS / 2; unit < UNITS; unit++) step(unit);
multiply_wait<0>();
release(last);";

/// Sums it in pieces.
const SUM_PIECES: &str = "\
#pragma unroll
for (int i = 0; i < WIDTH / 2; i++) total[i] = 0.0f;
int unit = 0;
#pragma unroll 1
for (int piece = 0; piece < PIECES; piece++) {
  const int first = unit;
  const int end = UNITS * (piece + 1) / PIECES;
  int last = 0;
#pragma unroll 1
  for (; unit < end; unit++) {
    ${step}
  }
  multiply_wait<0>();
  release(last);
  hold(sums);
#pragma unroll
  for (int i = 0; i < WIDTH / 2; i++) total[i] += sums[i];
}";

/// Results of a strip.
pub(super) const STRIP_CODE: &str = "\
f32 held[STEPS][4];
#pragma unroll
for (int j = 0; j < STEPS; j++) {
  const float2 near = *(const float2*)(from + (top + DOWN * j) * PITCH + at);
  const float2 far = *(const float2*)(from + (top + DOWN * j) * PITCH + at + APART);
  held[j][0] = near.x;
  held[j][1] = near.y;
  held[j][2] = far.x;
  held[j][3] = far.y;
}
// What is computed beyond the ends is not stored.
const i32 n = column < N ? column : 0;
${finish}
${store_maxima}";

/// What blocks have in common.
pub(super) struct Sharing {
    /// The cluster's shape.
    pub cluster: &'static str,
    /// Names of what is shared.
    pub rank: &'static str,
    /// The number of whoever makes tiles, a block or a cluster, and how many there are.
    pub workers: (&'static str, &'static str),
    /// First row of a tile.
    pub row: &'static str,
    /// Warps that read a stage.
    pub readers: &'static str,
    /// All threads meet when the signals are there.
    pub meet: &'static str,
    /// Copies rows of w.
    pub fetch_w: &'static str,
    /// The first of those, in the tile.
    pub w_box: &'static str,
    /// A warp has read a stage.
    pub release: &'static str,
    /// At the end.
    pub leave: &'static str,
}

/// A block by itself.
pub(super) const ALONE: Sharing = Sharing {
    cluster: "",
    rank: "",
    workers: ("(int)blockIdx.x", "(int)gridDim.x"),
    row: "(band * ${band} + inside % high) * HEIGHT",
    readers: "GROUPS * 4",
    meet: "__syncthreads();",
    fetch_w: "\
if (W_BOXES == 1) {
  if (elected()) fetch_box(to, &w_map, unit * 64, column, full + 8 * s);
} else if (lane < W_BOXES) {
  fetch_box(to + lane * W_BOX * 128, &w_map, unit * 64, column, full + 8 * s);
}",
    w_box: "lane < W_BOXES ? lane * W_BOX : 0",
    release: "if (lane == 0) signal_arrive(empty + 8 * stage);",
    leave: "",
};

/// Two blocks of a cluster make tiles one above the other, of the same columns.
pub(super) const PAIRED: Sharing = Sharing {
    cluster: "__cluster_dims__(2, 1, 1) ",
    rank: "\
// Two blocks make tiles one above the other: each copies half of the rows of w, to both.
const int rank = (int)rank_in_cluster();
const int cluster = (int)blockIdx.x / 2;
const int clusters = (int)gridDim.x / 2;",
    workers: ("cluster", "clusters"),
    row: "((band * ${band} + inside % high) * 2 + rank) * HEIGHT",
    readers: "2 * GROUPS * 4",
    meet: "\
__syncwarp();
meet_cluster();",
    fetch_w: "if (elected()) fetch_box_to(to + rank * W_BOX * 128, &w_map, unit * 64, column, full + 8 * s, 3);",
    w_box: "rank * W_BOX",
    release: "if (lane < 2) signal_arrive_at(empty + 8 * stage, lane);",
    leave: "\
// The other block may still copy to this one and wait for its warps.
__syncwarp();
meet_cluster();",
};

/// How the sums of a tile reach the warps that make results.
pub(super) struct Handing {
    /// Columns of a tile over those whose sums lie in shared memory at one time.
    pub halves: i64,
    /// What the results of one call of `finish` are.
    pub which: &'static str,
    /// Parameter that says which half.
    pub half: &'static str,
    /// The loop over strips.
    pub strips: &'static str,
    /// Loop of the warps that do nothing else.
    pub finisher: &'static str,
    /// Registers of a group that multiplies for what waits there.
    pub kept: &'static str,
    /// What such a group knows of turns.
    pub turn: &'static str,
    /// Puts the sums of a tile into shared memory; ends the loop after the last.
    pub give: &'static str,
    /// Results of the last tile.
    pub finish_last: &'static str,
}

/// A whole tile at a time: `$` stands for the registers with its sums.
pub(super) const WHOLE: Handing = Handing {
    halves: 1,
    which: ", those of a tile: every workers-th ${strips}",
    half: "",
    strips: "\
#pragma unroll 1
for (int strip = ${first_strip}; strip < STRIPS; strip += ${next_strip}) {
  const int pair = strip % PARTS * LANES + lane % LANES;
  const int at = 2 * pair / APART * (2 * APART) + 2 * pair % APART;
  const int local = at;
  const i32 column = ${column};
  const int top = strip / PARTS * ROWS + lane / LANES;
  if (row0 + strip / PARTS * ROWS >= rows) break;
  auto row_of = [&](int j) -> i32 { return row0 + top + DOWN * j; };
  ${strip}
}",
    finisher: "\
u32 parity = 0;
#pragma unroll 1
for (int tile = ${start}; tile < tiles; tile += ${stride}) {
  signal_wait(summed, parity);
  finish(tile, tile_sums, warp & 3, tile + ${stride} < tiles ? 4 : 4 + 4 * GROUPS);
  signal_arrive(finished);
  parity ^= 1;
}",
    kept: "",
    turn: "u32 turn = 0;",
    give: "\
signal_wait(finished, turn ^ 1);
#pragma unroll
for (int e = 0; e < WIDTH / 8; e++) put(home + 8 * e, $ + 4 * e);
signal_arrive(summed);
if (tile + ${stride} >= tiles) break;
turn ^= 1;",
    finish_last: "\
signal_wait(summed, turn);
finish(tile, tile_sums, 4 + warp, 4 + 4 * GROUPS);",
};

/// Half of a tile at a time: the other half waits in registers until half of the next tile is summed, which leaves room for another stage of the ring.
/// Each half has APART columns of every 2 * APART, so that columns that are needed together are in one.
pub(super) const HALVES: Handing = Handing {
    halves: 2,
    which: ", those of half a tile: strips side by side, as much as there are for each of the workers",
    half: "int half, ",
    strips: "\
int strip = STRIPS * worker / workers;
const int end = STRIPS * (worker + 1) / workers;
auto first = [&](int strip) -> int {
  const int pair = strip % PARTS * LANES + lane % LANES;
  return 2 * pair / APART * (2 * APART) + 2 * pair % APART;
};
auto in_tile = [&](int at) -> int { return at / APART * (2 * APART) + half * APART + at % APART; };
const i32 phase = in_tile(first(0));  // what a lane's columns have in common, modulo the distance of strips
#pragma unroll 1
while (strip < end) {
  const int top = strip / PARTS * ROWS + lane / LANES;
  if (row0 + strip / PARTS * ROWS >= rows) break;
  auto row_of = [&](int j) -> i32 { return row0 + top + DOWN * j; };
  ${rows}
#pragma unroll 1
  do {
    const int at = first(strip);
    const int local = in_tile(at);
    const i32 column = ${column};
    ${strip}
  } while (++strip < end && strip % PARTS > 0);
}",
    finisher: "\
#pragma unroll 1
for (int tile = ${start}; tile < tiles; tile += ${stride}) {
  const bool last = tile + ${stride} >= tiles;
#pragma unroll 1
  for (int half = 0; half < 2; half++) {
    // Both halves of the last tile come at once.
    if (half == 0 || !last) signal_wait(summed, half);
    finish(tile, half, half == 1 && last ? ring_sums : tile_sums, warp & 3, last ? 4 + 4 * GROUPS : 4);
    signal_arrive(finished);
  }
}",
    kept: "f32 kept[HELD / 2];  // sums of the second half of the tile before",
    turn: "\
// Number of an eight of columns of a half, in the tile.
auto eight = [](int half, int e) { return (8 * e / APART * (2 * APART) + half * APART + 8 * e % APART) / 8; };",
    give: "\
signal_wait(finished, 1);
#pragma unroll
for (int e = 0; e < HELD / 8; e++) put(home + 8 * e, $ + 4 * eight(0, e));
if (tile + ${stride} >= tiles) break;
signal_arrive(summed);
#pragma unroll
for (int i = 0; i < HELD / 2; i++) kept[i] = $[4 * eight(1, i / 4) + i % 4];",
    finish_last: "\
// The ring is free when all groups have multiplied: the second half goes there.
barrier<GROUPS * 128>(1);
#pragma unroll
for (int e = 0; e < HELD / 8; e++) put(ring_sums + (home - tile_sums) + 8 * e, $ + 4 * eight(1, e));
signal_arrive(summed);
signal_wait(summed, 0);
#pragma unroll 1
for (int half = 0; half < 2; half++) finish(tile, half, half == 1 ? ring_sums : tile_sums, 4 + warp, 4 + 4 * GROUPS);",
};
