//! Random weights of realistic size, for benchmarks without a checkpoint.
//!
//! Counter based: a value depends only on the seed, the weight's name, the part and its index, so any byte range can be
//! produced by any thread in any order, the same on every machine.

use gossamer_models::config::ModelConfig;
use gossamer_models::names::{Part, StoredDType, WeightFormat, WeightRole, WeightSpec};
use half::f16;

use super::error::CheckpointError;
use super::read::{WeightSource, check_range};
use super::scales::ScaleRange;

/// Weights drawn from distributions like those of a trained model: dense matrices with variance 1/K, norms near 1,
/// sinks around 0, uniform MXFP4 codes under scales near `log2(1/sqrt(K))`.
#[derive(Clone, Debug)]
pub struct RandomWeights {
    config: ModelConfig,
    weights: Vec<WeightSpec>,
    seed: u64,
}

/// Root mean square of the sixteen E2M1 values.
const CODE_RMS: f64 = 2.93;
/// Exponent bias of a scale byte.
const SCALE_BIAS: f64 = 127.0;

impl RandomWeights {
    /// Weights for a model; equal seeds give equal weights.
    pub fn new(config: ModelConfig, seed: u64) -> RandomWeights {
        RandomWeights { weights: config.weights(), config, seed }
    }
}

impl WeightSource for RandomWeights {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn weights(&self) -> &[WeightSpec] {
        &self.weights
    }

    fn fill(&self, weight: &WeightSpec, part: Part, byte_offset: u64, out: &mut [u8]) -> Result<(), CheckpointError> {
        check_range(&weight.name, &part.to_string(), byte_offset, out.len(), weight.part_bytes(part))?;
        let key = key(self.seed, &weight.name, part);
        match (weight.format, part) {
            (WeightFormat::Mxfp4, Part::Scales) => {
                let base = middle_scale(weight);
                fill_items(byte_offset, out, |i| [base - 1 + scale_step(mix(key, i))]);
            }
            (WeightFormat::Mxfp4, _) => fill_items(byte_offset, out, |i| mix(key, i).to_le_bytes()),
            (WeightFormat::Dense(dtype), _) => {
                let (mean, std) = distribution(weight);
                let value = |i| mean + std * normal(mix(key, i));
                match dtype {
                    StoredDType::BF16 => fill_items(byte_offset, out, |i| bf16_bytes(value(i))),
                    StoredDType::F16 => fill_items(byte_offset, out, |i| f16::from_f32(value(i)).to_le_bytes()),
                    StoredDType::F32 => fill_items(byte_offset, out, |i| value(i).to_le_bytes()),
                    StoredDType::U8 => fill_items(byte_offset, out, |i| mix(key, i).to_le_bytes()),
                }
            }
        }
        Ok(())
    }

    fn known_scale_range(&self, weight: &WeightSpec) -> Option<ScaleRange> {
        let base = middle_scale(weight);
        (weight.format == WeightFormat::Mxfp4).then_some(ScaleRange { min: base - 1, max: base + 1 })
    }
}

/// Mean and standard deviation of a dense weight.
fn distribution(weight: &WeightSpec) -> (f32, f32) {
    let inputs = weight.shape.last().map_or(1.0, |&k| k as f32);
    match weight.role {
        WeightRole::Embedding | WeightRole::Sinks => (0.0, 1.0),
        WeightRole::Norm => (1.0, 0.1),
        WeightRole::Bias | WeightRole::ExpertBias => (0.0, 0.2),
        WeightRole::Projection | WeightRole::Expert | WeightRole::Router => (0.0, inputs.sqrt().recip()),
        // Logits wide enough that sampling has something to choose from.
        WeightRole::Head | WeightRole::TiedEmbedding => (0.0, 2.0 * inputs.sqrt().recip()),
    }
}

/// The scale byte under which uniform codes have variance 1/K, K being the reduction length: 120 at K = 2880.
fn middle_scale(weight: &WeightSpec) -> u8 {
    let inputs = weight.shape.last().map_or(1.0, |&k| k as f64);
    (SCALE_BIAS - (CODE_RMS * inputs.sqrt()).log2()).round().clamp(2.0, 126.0) as u8
}

/// 0, 1 or 2, the middle twice as often.
fn scale_step(word: u64) -> u8 {
    (word & 1) as u8 + (word >> 1 & 1) as u8
}

/// Writes items of N bytes into `out`, which begins `byte_offset` bytes into the sequence and may cut the items at its
/// ends.
fn fill_items<const N: usize>(byte_offset: u64, out: &mut [u8], item: impl Fn(u64) -> [u8; N]) {
    let n = N as u64;
    let skip = (byte_offset % n) as usize;
    let mut index = byte_offset / n;
    let mut rest = out;
    if skip != 0 {
        let head = (N - skip).min(rest.len());
        let (now, later) = rest.split_at_mut(head);
        now.copy_from_slice(&item(index)[skip..skip + head]);
        (rest, index) = (later, index + 1);
    }
    let mut items = rest.chunks_exact_mut(N);
    for slot in &mut items {
        slot.copy_from_slice(&item(index));
        index += 1;
    }
    let tail = items.into_remainder();
    let len = tail.len();
    if len != 0 {
        tail.copy_from_slice(&item(index)[..len]);
    }
}

/// A stream's key: FNV-1a over the seed, the name and the part.
fn key(seed: u64, name: &str, part: Part) -> u64 {
    let part = [part as u8];
    let bytes = seed.to_le_bytes().into_iter().chain(name.bytes()).chain(part);
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// The `index`-th word of a stream: SplitMix64 started at `key`.
fn mix(key: u64, index: u64) -> u64 {
    let mut z = key.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Rounds a finite number to nearest even. The half crate's conversion also handles NaN, at a third of the speed.
fn bf16_bytes(x: f32) -> [u8; 2] {
    let bits = x.to_bits();
    let rounded = bits + 0x7fff + (bits >> 16 & 1);
    ((rounded >> 16) as u16).to_le_bytes()
}

/// Approximately normal with mean 0 and variance 1, within +-3.5: the sum of four 16-bit uniform numbers. Much faster
/// than an exact normal, and weights need no tails.
fn normal(word: u64) -> f32 {
    let sum = (0..4).map(|i| (word >> (16 * i) & 0xffff) as u32).sum::<u32>();
    // Each term has mean 65535/2 and variance (65536^2 - 1)/12.
    const SCALE: f32 = 1.0 / 37_837.23;
    (sum as f32 - 131_070.0) * SCALE
}

#[cfg(test)]
mod tests {
    use super::super::read::read_part;
    use super::*;
    use gossamer_models::presets;
    use half::bf16;

    fn source(seed: u64) -> RandomWeights {
        let mut config = presets::gpt_oss_20b();
        (config.vocab, config.experts) = (512, 4);
        RandomWeights::new(ModelConfig::GptOss(config), seed)
    }

    fn bytes(source: &RandomWeights, name: &str, part: Part) -> Vec<u8> {
        let weight = source.weights().iter().find(|w| w.name == name).unwrap();
        read_part(source, weight, part, &|_| {}).unwrap()
    }

    fn moments(bytes: &[u8]) -> (f64, f64) {
        let values: Vec<f64> = bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
        (mean, variance.sqrt())
    }

    #[test]
    fn any_range_equals_the_whole() {
        let source = source(7);
        for (name, part) in
            [("l0.attn.k.w", Part::Values), ("l0.mlp.down.w", Part::Blocks), ("l0.mlp.down.w", Part::Scales)]
        {
            let whole = bytes(&source, name, part);
            let weight = source.weights().iter().find(|w| w.name == name).unwrap();
            for (start, len) in [(0, 1), (1, 1), (3, 17), (8, 8), (5, 3), (whole.len() - 13, 13)] {
                let mut out = vec![0; len];
                source.fill(weight, part, start as u64, &mut out).unwrap();
                assert_eq!(out, whole[start..start + len], "{name} {start} {len}");
            }
            let mut out = [0; 2];
            assert!(matches!(
                source.fill(weight, part, whole.len() as u64 - 1, &mut out),
                Err(CheckpointError::Range { .. })
            ));
        }
    }

    #[test]
    fn rounding_equals_the_half_crate() {
        for x in (0..10_000).map(|i| normal(mix(5, i))).chain([0.0, -0.0, 1.0, -3.5]) {
            assert_eq!(bf16_bytes(x), bf16::from_f32(x).to_le_bytes());
        }
    }

    #[test]
    fn seed_and_name_decide() {
        let a = bytes(&source(1), "l0.attn.k.w", Part::Values);
        assert_eq!(a, bytes(&source(1), "l0.attn.k.w", Part::Values));
        assert_ne!(a, bytes(&source(2), "l0.attn.k.w", Part::Values));
        assert_ne!(a, bytes(&source(1), "l0.attn.v.w", Part::Values));
    }

    #[test]
    fn distributions_are_realistic() {
        let source = source(3);
        let (mean, std) = moments(&bytes(&source, "l0.attn.q.w", Part::Values));
        assert!(mean.abs() < 1e-4 && (std * 2880_f64.sqrt() - 1.0).abs() < 0.01, "{mean} {std}");
        let (mean, std) = moments(&bytes(&source, "l0.attn_norm.w", Part::Values));
        assert!((mean - 1.0).abs() < 0.01 && (std - 0.1).abs() < 0.01, "{mean} {std}");
        let scales = bytes(&source, "l0.mlp.gate_up.w", Part::Scales);
        let range = ScaleRange::of(&scales).unwrap();
        assert_eq!(range, ScaleRange { min: 119, max: 121 });
        let weight = source.weights().iter().find(|w| w.name == "l0.mlp.gate_up.w").unwrap();
        assert_eq!(source.known_scale_range(weight), Some(range));
        let blocks = bytes(&source, "l0.mlp.gate_up.w", Part::Blocks);
        let mut codes = [0_u64; 16];
        for b in &blocks {
            codes[usize::from(b & 15)] += 1;
            codes[usize::from(b >> 4)] += 1;
        }
        let even = blocks.len() as f64 / 8.0;
        assert!(codes.iter().all(|&n| (n as f64 / even - 1.0).abs() < 0.01), "{codes:?}");
    }
}
