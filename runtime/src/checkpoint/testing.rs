//! Small checkpoints on disk for tests, whole or broken in one way.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use gossamer_models::config::{GptOssConfig, ModelConfig};
use gossamer_models::names::{Layout, StoredDType};
use gossamer_models::presets;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{RandomWeights, WeightSource};

/// A tensor to be written.
#[derive(Clone)]
pub(super) struct Blob {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) data: Vec<u8>,
}

/// A checkpoint to be written.
pub(super) struct Draft {
    pub(super) config: Value,
    /// File name to its tensors.
    pub(super) shards: BTreeMap<String, BTreeMap<String, Blob>>,
    /// The index to write; `None` for none.
    pub(super) index: Option<Value>,
}

/// Two layers of two experts.
pub(super) fn small_config() -> GptOssConfig {
    GptOssConfig {
        layers: 2,
        experts: 2,
        experts_per_token: 1,
        hidden: 64,
        intermediate: 32,
        heads: 4,
        kv_heads: 2,
        head_dim: 4,
        vocab: 16,
        layer_types: GptOssConfig::alternating(2),
        eos: vec![3],
        pad: Some(2),
        ..presets::gpt_oss_20b()
    }
}

pub(super) fn small_source() -> RandomWeights {
    RandomWeights::new(ModelConfig::GptOss(small_config()), 11)
}

impl Draft {
    /// Hugging Face layout in three shards with an index.
    pub(super) fn sharded() -> Draft {
        let mut draft = Draft { config: small_config().to_hf_json(), shards: BTreeMap::new(), index: None };
        for (i, (name, blob)) in blobs(Layout::HuggingFace).into_iter().enumerate() {
            let file = format!("model-{:05}-of-00002.safetensors", i % 3); // zero based, like the published files
            draft.shards.entry(file).or_default().insert(name, blob);
        }
        draft.index = Some(draft.make_index());
        draft
    }

    /// Hugging Face layout in one file.
    pub(super) fn single() -> Draft {
        let shard = blobs(Layout::HuggingFace).into_iter().collect();
        Draft {
            config: small_config().to_hf_json(),
            shards: [("model.safetensors".to_owned(), shard)].into(),
            index: None,
        }
    }

    /// Original layout in `files` files without an index.
    pub(super) fn original(files: usize) -> Draft {
        let c = small_config();
        let config = json!({
            "num_hidden_layers": c.layers, "num_experts": c.experts, "experts_per_token": c.experts_per_token,
            "vocab_size": c.vocab, "hidden_size": c.hidden, "intermediate_size": c.intermediate, "swiglu_limit": 7.0,
            "head_dim": c.head_dim, "num_attention_heads": c.heads, "num_key_value_heads": c.kv_heads,
            "sliding_window": 128, "initial_context_length": 4096, "rope_theta": 150000, "rope_scaling_factor": 32.0,
            "rope_ntk_alpha": 1, "rope_ntk_beta": 32,
        });
        let mut draft = Draft { config, shards: BTreeMap::new(), index: None };
        for (i, (name, blob)) in blobs(Layout::Original).into_iter().enumerate() {
            let file = match files {
                1 => "model.safetensors".to_owned(),
                n => format!("model--{:05}-of-{n:05}.safetensors", i % n + 1),
            };
            draft.shards.entry(file).or_default().insert(name, blob);
        }
        draft
    }

    pub(super) fn make_index(&self) -> Value {
        let mut total = 0;
        let mut map = serde_json::Map::new();
        for (file, tensors) in &self.shards {
            for (name, blob) in tensors {
                total += blob.data.len();
                map.insert(name.clone(), file.as_str().into());
            }
        }
        json!({ "metadata": { "total_size": total }, "weight_map": map })
    }

    /// The tensor wherever it is.
    pub(super) fn blob(&mut self, name: &str) -> &mut Blob {
        self.shards.values_mut().find_map(|s| s.get_mut(name)).unwrap()
    }

    pub(super) fn remove(&mut self, name: &str) -> Blob {
        self.shards.values_mut().find_map(|s| s.remove(name)).unwrap()
    }

    pub(super) fn write(&self) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), self.config.to_string()).unwrap();
        for (file, tensors) in &self.shards {
            let views =
                tensors.iter().map(|(name, b)| (name, TensorView::new(b.dtype, b.shape.clone(), &b.data).unwrap()));
            safetensors::serialize_to_file(views, None, &dir.path().join(file)).unwrap();
        }
        if let Some(index) = &self.index {
            fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        }
        dir
    }
}

/// The demo model of the repository.
pub(super) fn demo_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo")
}

/// All tensors of the small model, filled from [`small_source`].
fn blobs(layout: Layout) -> Vec<(String, Blob)> {
    let source = small_source();
    let specs = source.config().checkpoint_tensors(layout);
    let blob = |spec: &gossamer_models::names::TensorSpec| {
        let mut data = Vec::new();
        for name in &spec.weights {
            let weight = source.weights().iter().find(|w| &w.name == name).unwrap();
            data.extend(super::read_part(&source, weight, spec.part, &|_| {}).unwrap());
        }
        let dtype = if spec.dtype == StoredDType::U8 { Dtype::U8 } else { Dtype::BF16 };
        Blob { dtype, shape: spec.shape.clone(), data }
    };
    specs.iter().map(|spec| (spec.name.clone(), blob(spec))).collect()
}
