//! Weights of a scenario: tensors in memory where a checkpoint's files would be.

use std::collections::BTreeMap;

use gossamer_ir::interp::{Data, Tensor};
use gossamer_models::config::ModelConfig;
use gossamer_models::names::{Part, WeightFormat, WeightSpec};
use gossamer_models::presets;
use gossamer_runtime::checkpoint::{CheckpointError, RandomWeights, WeightSource};

/// MXFP4 weights by name. Its model is one without these weights; nothing asks for more of it.
pub struct Weights {
    model: RandomWeights,
    specs: Vec<WeightSpec>,
    tensors: BTreeMap<String, Tensor>,
}

impl Weights {
    /// A source of these tensors.
    ///
    /// # Panics
    /// If one is not MXFP4.
    pub fn new(tensors: &BTreeMap<String, Tensor>) -> Weights {
        let model = RandomWeights::new(ModelConfig::GptOss(presets::gpt_oss_20b()), 0);
        let packed =
            model.weights().iter().find(|w| w.format == WeightFormat::Mxfp4).expect("GPT-OSS has MXFP4 weights");
        let spec = |(name, t): (&String, &Tensor)| {
            assert!(matches!(t.data, Data::Mxfp4 { .. }), "weight {name} is not MXFP4");
            let mut spec = packed.clone();
            (spec.name, spec.shape) = (name.clone(), t.shape.clone());
            spec
        };
        let specs = tensors.iter().map(spec).collect();
        Weights { specs, tensors: tensors.clone(), model }
    }
}

impl WeightSource for Weights {
    fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    fn weights(&self) -> &[WeightSpec] {
        &self.specs
    }

    fn fill(&self, weight: &WeightSpec, part: Part, byte_offset: u64, out: &mut [u8]) -> Result<(), CheckpointError> {
        let bytes = match (self.tensors.get(&weight.name).map(|t| &t.data), part) {
            (Some(Data::Mxfp4 { codes, .. }), Part::Blocks) => &codes[..],
            (Some(Data::Mxfp4 { scales, .. }), Part::Scales) => &scales[..],
            _ => &[],
        };
        let (start, len) = (byte_offset, bytes.len() as u64);
        let end = start.saturating_add(out.len() as u64);
        if end > len {
            return Err(CheckpointError::Range {
                weight: weight.name.clone(),
                part: part.to_string(),
                start,
                end,
                len,
            });
        }
        out.copy_from_slice(&bytes[start as usize..end as usize]);
        Ok(())
    }
}
