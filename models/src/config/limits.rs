//! Upper limits of sizes. They are far above any model, and low enough that no product of sizes formed from a valid configuration (bytes of a
//! tensor, bytes of all tensors) leaves 64 bits.

pub(super) const MAX_LAYERS: usize = 1 << 10;
pub(super) const MAX_EXPERTS: usize = 1 << 12;
pub(super) const MAX_WIDTH: usize = 1 << 18;
pub(super) const MAX_HEADS: usize = 1 << 12;
pub(super) const MAX_HEAD_DIM: usize = 1 << 10;
pub(super) const MAX_VOCAB: usize = 1 << 24;
pub(super) const MAX_CONTEXT: usize = 1 << 26;
