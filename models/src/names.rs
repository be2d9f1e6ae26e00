//! Names, shapes and storage of a model's weights.
//!
//! A *weight* is what the graph sees: a canonical name (`l3.attn.q.w`), a logical shape and a [`WeightFormat`]. A *tensor*
//! is what a checkpoint file stores. They differ in two ways: an MXFP4 weight is stored as two tensors (blocks and
//! scales), and the original release stores q, k and v as rows of one tensor. One table per model holds all of it:
//! [`gpt_oss`], [`llama`].
//!
//! Knows names and sizes only; reading files is the runtime's work.

pub mod gpt_oss;
pub mod llama;

use std::fmt;
use std::ops::Range;

use crate::config::MXFP4_BLOCK;

/// Element type of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StoredDType {
    /// Brain float, 2 bytes.
    BF16,
    /// IEEE half, 2 bytes.
    F16,
    /// IEEE single, 4 bytes.
    F32,
    /// Bytes: MXFP4 blocks and scales.
    U8,
}

/// Which release's tensor names a checkpoint uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Layout {
    /// `model.layers.0.self_attn.q_proj.weight`.
    HuggingFace,
    /// `block.0.attn.qkv.weight`.
    Original,
}

/// How a weight's numbers are represented.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WeightFormat {
    /// One stored tensor of the weight's own shape.
    Dense(StoredDType),
    /// OCP MXFP4, blocks of 32 along the last axis: two stored tensors, `[.., K/32, 16]` and `[.., K/32]`.
    Mxfp4,
}

/// One of the stored tensors that make up a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The numbers of a dense weight.
    Values,
    /// The 4-bit codes of an MXFP4 weight; the low nibble of a byte is the even element.
    Blocks,
    /// The scale bytes of an MXFP4 weight: byte `s` means `2^(s-127)`.
    Scales,
}

/// What a weight does. Sizes random weights and counts parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WeightRole {
    /// Token embedding `[vocab, hidden]`.
    Embedding,
    /// Token embedding that is also the output head `[vocab, hidden]`.
    TiedEmbedding,
    /// Gain of an RMSNorm `[hidden]`.
    Norm,
    /// Projection of attention or of a dense MLP `[out, in]`.
    Projection,
    /// Bias of an attention projection or of the router.
    Bias,
    /// Sink logit per query head `[heads]`.
    Sinks,
    /// Router `[experts, hidden]`.
    Router,
    /// Expert matrix `[experts, out, in]`.
    Expert,
    /// Bias of the experts `[experts, out]`.
    ExpertBias,
    /// Output head `[vocab, hidden]`.
    Head,
}

/// A weight of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightSpec {
    /// Canonical name, as the IR shows it.
    pub name: String,
    /// Logical shape; of MXFP4 weights in elements.
    pub shape: Vec<usize>,
    /// Representation.
    pub format: WeightFormat,
    /// Purpose.
    pub role: WeightRole,
    /// Where a Hugging Face checkpoint keeps it; one entry per [`Part`].
    hugging_face: Vec<StoredPart>,
    /// Where an original checkpoint keeps it; one entry per [`Part`], none for a model without that layout.
    original: Vec<StoredPart>,
}

/// Where a part of a weight is stored: rows of a stored tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredPart {
    /// Which part of the weight this is.
    pub part: Part,
    /// Name of the stored tensor.
    pub tensor: String,
    /// Shape of the whole stored tensor.
    pub tensor_shape: Vec<usize>,
    /// Its element type.
    pub dtype: StoredDType,
    /// The rows (first axis) that belong to the weight; all of them unless tensors were concatenated.
    pub rows: Range<usize>,
}

/// A tensor that a checkpoint stores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name in the checkpoint.
    pub name: String,
    /// Stored shape.
    pub shape: Vec<usize>,
    /// Stored element type.
    pub dtype: StoredDType,
    /// Which part of its weights it holds.
    pub part: Part,
    /// Canonical names of the weights in it, in row order.
    pub weights: Vec<String>,
}

impl WeightSpec {
    /// Number of parameters.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product()
    }

    /// The parts this weight consists of.
    pub fn parts(&self) -> &'static [Part] {
        match self.format {
            WeightFormat::Dense(_) => &[Part::Values],
            WeightFormat::Mxfp4 => &[Part::Blocks, Part::Scales],
        }
    }

    /// Shape of a part as stored for this weight alone, or `None` when the weight has no such part.
    pub fn part_shape(&self, part: Part) -> Option<Vec<usize>> {
        part_shape(&self.shape, self.format, part)
    }

    /// Bytes of a part; 0 when the weight has no such part.
    pub fn part_bytes(&self, part: Part) -> u64 {
        let dtype = match self.format {
            WeightFormat::Dense(dtype) => dtype,
            WeightFormat::Mxfp4 => StoredDType::U8,
        };
        self.part_shape(part).map_or(0, |shape| bytes_of(&shape, dtype))
    }

    /// Bytes of all parts.
    pub fn bytes(&self) -> u64 {
        self.parts().iter().map(|&p| self.part_bytes(p)).sum()
    }

    /// Where a checkpoint in this layout keeps the weight; one entry per part, none if the model has no such layout.
    pub fn stored(&self, layout: Layout) -> &[StoredPart] {
        match layout {
            Layout::HuggingFace => &self.hugging_face,
            Layout::Original => &self.original,
        }
    }

    /// Where a checkpoint in this layout keeps one part.
    pub fn stored_part(&self, layout: Layout, part: Part) -> Option<&StoredPart> {
        self.stored(layout).iter().find(|s| s.part == part)
    }
}

impl StoredPart {
    /// First byte of the part within the stored tensor.
    pub fn byte_offset(&self) -> u64 {
        self.rows.start as u64 * self.row_bytes()
    }

    /// Bytes of the part.
    pub fn bytes(&self) -> u64 {
        self.rows.len() as u64 * self.row_bytes()
    }

    fn row_bytes(&self) -> u64 {
        bytes_of(&self.tensor_shape[1..], self.dtype)
    }
}

impl TensorSpec {
    /// Bytes of the tensor.
    pub fn bytes(&self) -> u64 {
        bytes_of(&self.shape, self.dtype)
    }
}

impl StoredDType {
    /// Bytes of an element.
    pub fn bytes(self) -> u64 {
        match self {
            StoredDType::BF16 | StoredDType::F16 => 2,
            StoredDType::F32 => 4,
            StoredDType::U8 => 1,
        }
    }

    /// The name in a safetensors header.
    pub fn name(self) -> &'static str {
        match self {
            StoredDType::BF16 => "BF16",
            StoredDType::F16 => "F16",
            StoredDType::F32 => "F32",
            StoredDType::U8 => "U8",
        }
    }
}

impl fmt::Display for StoredDType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Layout::HuggingFace => "Hugging Face",
            Layout::Original => "original",
        })
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::Values => "values",
            Part::Blocks => "blocks",
            Part::Scales => "scales",
        })
    }
}

/// Every tensor that a checkpoint of these weights stores, in their order; none if the model has no such layout.
///
/// ```
/// use gossamer_models::{names::{self, Layout}, presets};
/// let weights = names::gpt_oss::weights(&presets::gpt_oss_20b());
/// let tensors = names::checkpoint_tensors(&weights, Layout::HuggingFace);
/// assert_eq!(tensors.len(), 459);
/// assert_eq!(tensors.iter().map(|t| t.bytes()).sum::<u64>(), 13_761_264_768);
/// ```
pub fn checkpoint_tensors(weights: &[WeightSpec], layout: Layout) -> Vec<TensorSpec> {
    // Weights that share a tensor are close together.
    const NEAR: usize = 17;
    let mut tensors: Vec<TensorSpec> = Vec::new();
    for weight in weights {
        for stored in weight.stored(layout) {
            let recent = tensors.len().saturating_sub(NEAR);
            match tensors[recent..].iter_mut().find(|t| t.name == stored.tensor) {
                Some(tensor) => tensor.weights.push(weight.name.clone()),
                None => tensors.push(TensorSpec {
                    name: stored.tensor.clone(),
                    shape: stored.tensor_shape.clone(),
                    dtype: stored.dtype,
                    part: stored.part,
                    weights: vec![weight.name.clone()],
                }),
            }
        }
    }
    tensors
}

/// Parameters used for one token: everything but a table that is only looked up, and of the experts only the chosen ones.
pub fn active_parameters(weights: &[WeightSpec], experts_per_token: usize) -> u64 {
    let active = |w: &WeightSpec| match w.role {
        WeightRole::Embedding => 0,
        WeightRole::Expert | WeightRole::ExpertBias => w.elements() / w.shape[0] as u64 * experts_per_token as u64,
        _ => w.elements(),
    };
    weights.iter().map(active).sum()
}

/// `name` under the prefix of its layer: `l3.attn.q.w`, `model.layers.3.self_attn.q_proj.weight`.
fn prefixed(prefix: &str, layer: Option<usize>, name: &str) -> String {
    match layer {
        Some(i) => format!("{prefix}{i}.{name}"),
        None => name.to_owned(),
    }
}

/// The stored tensors of a weight that is `rows` of `total` rows. MXFP4 names get a suffix after `separator`.
fn stored(
    shape: &[usize],
    format: WeightFormat,
    tensor: &str,
    separator: char,
    rows: Range<usize>,
    total: usize,
) -> Vec<StoredPart> {
    let (dtype, parts): (_, &[Part]) = match format {
        WeightFormat::Dense(dtype) => (dtype, &[Part::Values]),
        WeightFormat::Mxfp4 => (StoredDType::U8, &[Part::Blocks, Part::Scales]),
    };
    let part = |&part: &Part| {
        let mut tensor_shape = part_shape(shape, format, part)?;
        tensor_shape[0] = total;
        let tensor = if part == Part::Values { tensor.to_owned() } else { format!("{tensor}{separator}{part}") };
        Some(StoredPart { part, tensor, tensor_shape, dtype, rows: rows.clone() })
    };
    parts.iter().filter_map(part).collect()
}

fn part_shape(shape: &[usize], format: WeightFormat, part: Part) -> Option<Vec<usize>> {
    let (&k, rows) = shape.split_last()?;
    match (format, part) {
        (WeightFormat::Dense(_), Part::Values) => Some(shape.to_vec()),
        (WeightFormat::Mxfp4, Part::Blocks) => Some([rows, &[k / MXFP4_BLOCK, MXFP4_BLOCK / 2]].concat()),
        (WeightFormat::Mxfp4, Part::Scales) => Some([rows, &[k / MXFP4_BLOCK]].concat()),
        _ => None,
    }
}

fn bytes_of(shape: &[usize], dtype: StoredDType) -> u64 {
    shape.iter().map(|&n| n as u64).product::<u64>() * dtype.bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presets;
    use gpt_oss::weights;

    #[test]
    fn totals_equal_the_published_checkpoints() {
        for (config, hf, original, bytes, parameters, active) in [
            (presets::gpt_oss_20b(), 459, 363, 13_761_264_768_u64, 20_914_757_184_u64, 3_608_307_264_u64),
            (presets::gpt_oss_120b(), 687, 543, 65_248_815_744, 116_829_156_672, 5_132_849_472),
        ] {
            for (layout, count) in [(Layout::HuggingFace, hf), (Layout::Original, original)] {
                let tensors = checkpoint_tensors(&weights(&config), layout);
                assert_eq!(tensors.len(), count);
                assert_eq!(tensors.iter().map(TensorSpec::bytes).sum::<u64>(), bytes);
            }
            let weights = weights(&config);
            assert_eq!(weights.iter().map(WeightSpec::bytes).sum::<u64>(), bytes);
            assert_eq!(weights.iter().map(WeightSpec::elements).sum::<u64>(), parameters);
            assert_eq!(active_parameters(&weights, config.experts_per_token), active);
        }
    }

    #[test]
    fn mxfp4_bytes_equal_the_published_split() {
        let weights = weights(&presets::gpt_oss_20b());
        let mxfp4: u64 = weights.iter().filter(|w| w.format == WeightFormat::Mxfp4).map(WeightSpec::bytes).sum();
        assert_eq!(mxfp4, 10_152_345_600);
    }

    #[test]
    fn names_are_unique_in_every_naming() {
        let config = presets::gpt_oss_20b();
        let mut names: Vec<String> = weights(&config).into_iter().map(|w| w.name).collect();
        for layout in [Layout::HuggingFace, Layout::Original] {
            names.extend(checkpoint_tensors(&weights(&config), layout).into_iter().map(|t| t.name));
        }
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn original_projections_are_row_slices() {
        let weights = weights(&presets::gpt_oss_20b());
        let find = |name: &str| weights.iter().find(|w| w.name == name).unwrap();
        for (name, rows) in [("l2.attn.q.w", 0..4096), ("l2.attn.k.w", 4096..4608), ("l2.attn.v.w", 4608..5120)] {
            let stored = find(name).stored_part(Layout::Original, Part::Values).unwrap();
            assert_eq!(stored.tensor, "block.2.attn.qkv.weight");
            assert_eq!(stored.tensor_shape, [5120, 2880]);
            assert_eq!(stored.rows, rows);
            assert_eq!(stored.bytes(), find(name).bytes());
            assert_eq!(stored.byte_offset(), rows.start as u64 * 5760);
        }
        let tensors = checkpoint_tensors(&weights, Layout::Original);
        let qkv = tensors.iter().find(|t| t.name == "block.23.attn.qkv.bias").unwrap();
        assert_eq!(qkv.weights, ["l23.attn.q.b", "l23.attn.k.b", "l23.attn.v.b"]);
        assert_eq!(qkv.shape, [5120]);
    }

    #[test]
    fn an_mxfp4_weight_has_two_stored_tensors() {
        let weights = weights(&presets::gpt_oss_20b());
        let down = weights.iter().find(|w| w.name == "l0.mlp.down.w").unwrap();
        assert_eq!(down.shape, [32, 2880, 2880]);
        assert_eq!(down.part_shape(Part::Blocks).unwrap(), [32, 2880, 90, 16]);
        assert_eq!(down.part_shape(Part::Scales).unwrap(), [32, 2880, 90]);
        assert_eq!(down.part_shape(Part::Values), None);
        let hf: Vec<&str> = down.stored(Layout::HuggingFace).iter().map(|s| s.tensor.as_str()).collect();
        assert_eq!(hf, ["model.layers.0.mlp.experts.down_proj_blocks", "model.layers.0.mlp.experts.down_proj_scales"]);
        let original: Vec<&str> = down.stored(Layout::Original).iter().map(|s| s.tensor.as_str()).collect();
        assert_eq!(original, ["block.0.mlp.mlp2_weight.blocks", "block.0.mlp.mlp2_weight.scales"]);
    }
}
