//! Cache sizes and what GPUs have room for.

use gossamer_models::config::ModelConfig;
use serde::Serialize;

/// GPU memory sizes reported, in units of 10^9 bytes: RTX 4090, A100-40, H100, H200.
pub const GPU_SIZES_GB: [u64; 4] = [24, 40, 80, 141];

/// Set aside on a GPU for the driver's context, kernels, graphs and activations.
pub const RESERVED_BYTES: u64 = 1_500_000_000;

/// Bytes of a cached key or value element.
const BF16: u64 = 2;

/// Size of the KV cache in bf16.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KvCache {
    /// Bytes that every token of a sequence adds, in the layers with full attention.
    pub bytes_per_token: u64,
    /// Bytes per sequence that do not grow, in the layers with a window. Shorter sequences need less.
    pub window_bytes_per_sequence: u64,
    /// Longest sequence, in tokens.
    pub context: u64,
}

/// What fits beside the weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GpuFit {
    /// GPU memory in units of 10^9 bytes.
    pub gpu_gb: u64,
    /// Bytes left for the KV cache; negative when the weights do not fit.
    pub free_bytes: i64,
    /// Longest single sequence that fits, at most the model's context.
    pub longest_sequence: u64,
    /// Sequences of 8192 tokens (or the context, if shorter) that fit at once.
    pub sequences_of_8192: u64,
}

impl KvCache {
    /// The cache of a model.
    pub fn of(config: &ModelConfig) -> KvCache {
        let row = 2 * config.kv_width() as u64 * BF16; // keys and values of one token in one layer
        let (mut full, mut window) = (0, 0);
        for layer in config.windows() {
            match layer {
                None => full += 1,
                Some(keys) => window += keys.min(config.context()) as u64,
            }
        }
        KvCache {
            bytes_per_token: row * full,
            window_bytes_per_sequence: row * window,
            context: config.context() as u64,
        }
    }

    /// Bytes of one sequence.
    pub fn sequence_bytes(&self, tokens: u64) -> u64 {
        self.window_bytes_per_sequence + tokens * self.bytes_per_token
    }
}

/// What fits on each of [`GPU_SIZES_GB`] beside `weights` bytes.
pub(super) fn fits(weights: u64, kv: &KvCache) -> Vec<GpuFit> {
    let fit = |gpu_gb: u64| {
        let free_bytes = (gpu_gb * 1_000_000_000) as i64 - (weights + RESERVED_BYTES) as i64;
        let free = free_bytes.max(0) as u64;
        let growing = free.saturating_sub(kv.window_bytes_per_sequence);
        let longest_sequence = match growing.checked_div(kv.bytes_per_token) {
            Some(tokens) => tokens.min(kv.context),
            // Nothing grows: a sequence fits whole or not at all.
            None if free >= kv.window_bytes_per_sequence && free > 0 => kv.context,
            None => 0,
        };
        let one = kv.sequence_bytes(kv.context.min(8192));
        GpuFit { gpu_gb, free_bytes, longest_sequence, sequences_of_8192: free.checked_div(one).unwrap_or(0) }
    };
    GPU_SIZES_GB.map(fit).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use gossamer_models::presets;

    #[test]
    fn cache_sizes_equal_the_published_numbers() {
        let kv = KvCache::of(&ModelConfig::GptOss(presets::gpt_oss_20b()));
        assert_eq!((kv.bytes_per_token, kv.window_bytes_per_sequence), (24_576, 3_145_728));
        assert_eq!(kv.sequence_bytes(8192), 195 << 20);
        let kv = KvCache::of(&ModelConfig::GptOss(presets::gpt_oss_120b()));
        assert_eq!((kv.bytes_per_token, kv.window_bytes_per_sequence), (36_864, 4_718_592));
    }

    #[test]
    fn the_120b_model_fits_in_80_gb_only() {
        let kv = KvCache::of(&ModelConfig::GptOss(presets::gpt_oss_120b()));
        let fits = fits(65_248_815_744, &kv);
        assert!(fits[0].free_bytes < 0 && fits[1].free_bytes < 0);
        assert_eq!((fits[1].longest_sequence, fits[1].sequences_of_8192), (0, 0));
        assert_eq!(fits[2].longest_sequence, 131_072);
        assert!(fits[2].sequences_of_8192 > 40, "{fits:?}");
    }
}
