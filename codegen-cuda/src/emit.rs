//! Kernel text: templates with slots, the prelude they share, and entry names.
//!
//! A template is a `.cu` file in `kernels/cuda/` with slots written `${name}`. A slot that stands alone in its line may hold several
//! lines, which take over its indentation, or none, which removes the line. The finished text needs no header and holds one
//! `extern "C"` kernel, whose name ends in a hash of the text: equal names mean equal text.

use std::collections::BTreeMap;
use std::sync::Arc;

use gossamer_ir::DType;
use sha2::{Digest, Sha256};

/// The text of one kernel.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KernelSource {
    /// Name of the kernel in the text and the compiled image.
    pub entry: String,
    /// CUDA C++ without headers, for [`crate::nvrtc`].
    pub text: String,
}

/// Shared device functions, emitted in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Piece {
    /// Types, conversions, packs of elements. Always there.
    Base,
    /// Sums and maxima over a warp or block, in a fixed order.
    Reduce,
    /// Order-preserving integer keys of floats.
    Order,
    /// Finding the bin of a histogram that holds a rank or quantile.
    Select,
    /// Finding the expert of a tile of grouped rows.
    Group,
    /// The constant `INF`.
    Infinity,
    /// Matrix multiplies of a warp and 16-byte copies.
    Mma,
    /// What attention of steps that decode folds, and how. After [`Piece::Infinity`] and [`Piece::Mma`].
    Fold,
    /// Launching before the predecessor has ended.
    Dependent,
    /// Background copies of whole runs of bytes, signals, barriers of a part of a block.
    Async,
    /// Warpgroup multiplies: tensor maps, operands, fences, registers. After [`Piece::Async`], whose signals its copies report to.
    Wgmma,
    /// Counter-based random numbers.
    Philox,
    /// Ordered loads, and blocks that share a result.
    Grid,
    /// Blocks that read each other's shared memory.
    Cluster,
    /// Drawing tokens by noise. After [`Piece::Philox`], [`Piece::Order`] and [`Piece::Infinity`].
    Draw,
    /// The greatest element by the maxima of tiles.
    Tiles,
    /// Readers of the packed MXFP4 layout.
    Mxfp4,
    /// Tables of rows by expert in shared memory.
    Items,
    /// The same for many rows.
    Rows,
}

impl Piece {
    fn text(self) -> &'static str {
        match self {
            Piece::Base => include_str!("kernels/cuda/base.cuh"),
            Piece::Reduce => include_str!("kernels/cuda/reduce.cuh"),
            Piece::Order => include_str!("kernels/cuda/order.cuh"),
            Piece::Select => include_str!("kernels/cuda/select.cuh"),
            Piece::Group => include_str!("kernels/cuda/group.cuh"),
            Piece::Infinity => "#define INF __uint_as_float(0x7f800000u)\n",
            Piece::Mma => include_str!("kernels/cuda/mma.cuh"),
            Piece::Fold => include_str!("kernels/cuda/fold.cuh"),
            Piece::Dependent => include_str!("kernels/cuda/dependent.cuh"),
            Piece::Async => include_str!("kernels/cuda/async.cuh"),
            Piece::Wgmma => include_str!("kernels/cuda/wgmma.cuh"),
            Piece::Philox => include_str!("kernels/cuda/philox.cuh"),
            Piece::Draw => include_str!("kernels/cuda/draw.cuh"),
            Piece::Cluster => include_str!("kernels/cuda/cluster.cuh"),
            Piece::Tiles => include_str!("kernels/cuda/tiles.cuh"),
            Piece::Grid => include_str!("kernels/cuda/grid.cuh"),
            Piece::Mxfp4 => crate::layout::mxfp4::DEVICE_DECODE,
            Piece::Items => include_str!("kernels/cuda/moe_items.cuh"),
            Piece::Rows => include_str!("kernels/cuda/moe_rows.cuh"),
        }
    }
}

/// A kernel being written.
pub(crate) struct Text {
    name: String,
    body: &'static str,
    pieces: Vec<Piece>,
    slots: BTreeMap<&'static str, String>,
}

impl Text {
    /// A kernel from template `body`; `name` says what it computes (`matmul_bf16_bf16_f32_n4096_k2880`), `ir` is the op it stands for.
    pub fn new(name: impl AsRef<str>, ir: impl Into<String>, body: &'static str) -> Text {
        let name = format!("gs_{}", name.as_ref().replace(|c: char| !c.is_ascii_alphanumeric(), "_"));
        Text { name, body, pieces: vec![Piece::Base], slots: BTreeMap::from([("ir", ir.into())]) }
    }

    /// Puts a piece of the prelude in front.
    pub fn with(mut self, piece: Piece) -> Text {
        self.pieces.push(piece);
        self
    }

    /// Fills a slot.
    pub fn set(mut self, slot: &'static str, text: impl ToString) -> Text {
        self.slots.insert(slot, text.to_string());
        self
    }

    /// The finished text.
    pub fn build(mut self) -> Arc<KernelSource> {
        self.pieces.sort();
        self.pieces.dedup();
        let mut text = String::new();
        for piece in &self.pieces {
            text.push_str(piece.text());
            text.push('\n');
        }
        text.push_str(&fill(self.body, &self.slots));
        let hash = Sha256::digest(text.as_bytes());
        let entry = format!("{}_{:02x}{:02x}{:02x}{:02x}", self.name, hash[0], hash[1], hash[2], hash[3]);
        let text = text.replace("${entry}", &entry);
        Arc::new(KernelSource { entry, text })
    }
}

/// `body` with its slots filled. Unknown slots stay, so that the compiler refuses the text.
pub(crate) fn fill(body: &str, slots: &BTreeMap<&'static str, String>) -> String {
    let mut out = String::new();
    for line in body.lines() {
        let indent = &line[..line.len() - line.trim_start().len()];
        let alone = line.trim().strip_prefix("${").and_then(|l| l.strip_suffix('}')).and_then(|name| slots.get(name));
        if let Some(value) = alone {
            for l in value.lines() {
                if !l.is_empty() {
                    out.push_str(indent);
                }
                out.push_str(l);
                out.push('\n');
            }
            continue;
        }
        let mut rest = line;
        while let Some((before, after)) = rest.split_once("${") {
            out.push_str(before);
            match after.split_once('}').and_then(|(name, tail)| slots.get(name).map(|v| (v, tail))) {
                Some((value, tail)) => {
                    out.push_str(value);
                    rest = tail;
                }
                None => {
                    out.push_str("${");
                    rest = after;
                }
            }
        }
        out.push_str(rest);
        out.push('\n');
    }
    out
}

/// The C++ type that holds one element in memory. MXFP4 has none; its bytes are handled as such.
pub(crate) fn c_type(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "f32",
        DType::BF16 => "bf16",
        DType::F16 => "f16",
        DType::I32 => "i32",
        DType::U8 | DType::Mxfp4 => "u8",
        DType::Bool => "b8",
    }
}

/// A C++ literal with the value of `x` rounded to f32.
pub(crate) fn f32_literal(x: f64) -> String {
    let x = x as f32;
    match x.is_finite() {
        true => format!("{x:?}f"),
        false => format!("__uint_as_float(0x{:08x}u)", x.to_bits()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_keep_indentation_and_empty_ones_vanish() {
        let slots = BTreeMap::from([("a", "x;\ny;".to_string()), ("b", String::new()), ("c", "3".to_string())]);
        assert_eq!(fill("  ${a}\n  ${b}\nint n = ${c} + ${c};\n${d}", &slots), "  x;\n  y;\nint n = 3 + 3;\n${d}\n");
    }

    #[test]
    fn literals_read_back() {
        assert_eq!(f32_literal(1.702), "1.702f");
        assert_eq!(f32_literal(1e-5), "1e-5f");
        assert_eq!(f32_literal(7.0), "7.0f");
        assert_eq!(f32_literal(f64::NEG_INFINITY), "__uint_as_float(0xff800000u)");
    }
}
