//! What `gossamer inspect` shows: every tensor, totals, memory, and on request the health of the data.

mod check;
mod memory;
mod render;

use std::path::Path;

use gossamer_models::config::ModelConfig;
use gossamer_models::names::{self, Layout, WeightFormat};
use gossamer_models::presets;
use serde::Serialize;

pub use check::{Check, ScaleCheck, ValueCheck, check, check_bytes};
pub use memory::{GPU_SIZES_GB, GpuFit, KvCache, RESERVED_BYTES};
pub use render::{render_check, render_json, render_text};

use super::error::CheckpointError;
use super::open::Checkpoint;
use super::resolve;

/// A model's tensors and what they add up to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    /// The argument: a folder, `demo` or a preset.
    pub model: String,
    /// `model_type` of the configuration.
    pub model_type: String,
    /// The folder; absent for presets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub folder: Option<String>,
    /// Whose tensor names are shown: `Hugging Face` or `original`.
    pub layout: String,
    /// The configuration in Hugging Face's spelling.
    pub config: serde_json::Value,
    /// Every stored tensor.
    pub tensors: Vec<TensorLine>,
    /// Sums over the tensors of the model.
    pub totals: Totals,
    /// Cache size.
    pub kv_cache: KvCache,
    /// What common GPUs have room for.
    pub fits: Vec<GpuFit>,
    /// One line each: legal, but probably not meant.
    pub warnings: Vec<String>,
    /// Health of the data, where it was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check: Option<Check>,
}

/// One stored tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TensorLine {
    /// Name in the checkpoint.
    pub name: String,
    /// Canonical names of the weights in it; none for a tensor that is not part of the model.
    pub weights: Vec<String>,
    /// Stored shape.
    pub shape: Vec<usize>,
    /// Stored element type.
    pub dtype: String,
    /// Length in bytes.
    pub bytes: u64,
    /// The file; absent for presets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shard: Option<String>,
}

/// Sums over a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Stored tensors.
    pub tensors: usize,
    /// Files.
    pub shards: usize,
    /// Parameters; an MXFP4 code counts as one, scales do not.
    pub parameters: u64,
    /// Parameters used for one token.
    pub active_parameters: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Bytes of MXFP4 blocks and scales.
    pub mxfp4_bytes: u64,
    /// Bytes of BF16 tensors.
    pub bf16_bytes: u64,
}

/// Inspects what MODEL names. Presets need no files: their tensors come from the name table.
///
/// # Errors
/// What resolving and opening give.
pub fn inspect(model: &str) -> Result<Inspection, CheckpointError> {
    match resolve::folder(model, &resolve::demo_candidates())? {
        Some(dir) => inspect_folder(model, &dir),
        None => {
            // `folder` gives nothing for presets only.
            let config = presets::preset(model).unwrap_or_else(presets::gpt_oss_20b);
            Ok(inspect_config(model, &ModelConfig::GptOss(config)))
        }
    }
}

/// Inspects a folder. For the health of the data, open the checkpoint, use [`inspect_checkpoint`], and set
/// [`Inspection::check`] to what [`check`] reports.
///
/// # Errors
/// What opening gives.
pub fn inspect_folder(model: &str, dir: &Path) -> Result<Inspection, CheckpointError> {
    Ok(inspect_checkpoint(model, &Checkpoint::open(dir)?))
}

/// Inspects an open checkpoint.
pub fn inspect_checkpoint(model: &str, checkpoint: &Checkpoint) -> Inspection {
    use super::read::WeightSource;
    let config = checkpoint.config();
    let mut inspection = inspect_layout(model, config, checkpoint.layout());
    inspection.folder = Some(checkpoint.dir().display().to_string());
    inspection.warnings = checkpoint.warnings().to_vec();
    let shard = |i: usize| Some(checkpoint.shards()[i].name.clone());
    for line in &mut inspection.tensors {
        line.shard = checkpoint.tensor(&line.name).and_then(|t| shard(t.shard));
    }
    let known = inspection.tensors.len();
    for tensor in &checkpoint.tensors()[known..] {
        inspection.tensors.push(TensorLine {
            name: tensor.name.clone(),
            weights: Vec::new(),
            shape: tensor.shape.clone(),
            dtype: tensor.dtype.clone(),
            bytes: tensor.bytes,
            shard: shard(tensor.shard),
        });
    }
    inspection.totals.shards = checkpoint.shards().len();
    inspection
}

/// Inspects a configuration without files, under Hugging Face names.
pub fn inspect_config(model: &str, config: &ModelConfig) -> Inspection {
    inspect_layout(model, config, Layout::HuggingFace)
}

fn inspect_layout(model: &str, config: &ModelConfig, layout: Layout) -> Inspection {
    let tensors: Vec<TensorLine> = config
        .checkpoint_tensors(layout)
        .into_iter()
        .map(|t| TensorLine {
            bytes: t.bytes(),
            dtype: t.dtype.to_string(),
            name: t.name,
            weights: t.weights,
            shape: t.shape,
            shard: None,
        })
        .collect();
    let weights = config.weights();
    let mxfp4_bytes = weights.iter().filter(|w| w.format == WeightFormat::Mxfp4).map(|w| w.bytes()).sum();
    let bytes = weights.iter().map(|w| w.bytes()).sum();
    let kv_cache = KvCache::of(config);
    Inspection {
        model: model.to_owned(),
        model_type: config.model_type().to_owned(),
        folder: None,
        layout: layout.to_string(),
        config: config.to_hf_json(),
        totals: Totals {
            tensors: tensors.len(),
            shards: 0,
            parameters: weights.iter().map(|w| w.elements()).sum(),
            active_parameters: names::active_parameters(&weights, config.experts_per_token()),
            bytes,
            mxfp4_bytes,
            bf16_bytes: bytes - mxfp4_bytes,
        },
        tensors,
        fits: memory::fits(bytes, &kv_cache),
        kv_cache,
        warnings: Vec::new(),
        check: None,
    }
}
