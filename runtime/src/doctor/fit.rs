//! What fits into GPU memory: weights, KV cache and workspace of the published models.

use serde::Serialize;

/// Context that the page counts with, in tokens.
pub const DEFAULT_CONTEXT: u64 = 8192;

/// The models' longest context in tokens.
pub const MAX_CONTEXT: u64 = 131_072;

/// Set aside for activations, logits, CUDA graphs and code, in bytes. An estimate; the loader's own plan is exact.
pub const WORKSPACE: u64 = 1 << 30;

/// Memory needs of one model for one sequence, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelNeed {
    /// Its name.
    pub name: &'static str,
    /// All weights, as published.
    pub weights: u64,
    /// KV cache per token: the layers with full attention, bf16.
    pub kv_per_token: u64,
    /// KV cache per sequence: the layers with a sliding window, bf16.
    pub kv_per_sequence: u64,
}

/// GPT-OSS 20B: 24 layers, half of them with full attention.
pub const GPT_OSS_20B: ModelNeed =
    ModelNeed { name: "gpt-oss-20b", weights: 13_761_264_768, kv_per_token: 24_576, kv_per_sequence: 3_145_728 };

/// GPT-OSS 120B: 36 layers, half of them with full attention.
pub const GPT_OSS_120B: ModelNeed =
    ModelNeed { name: "gpt-oss-120b", weights: 65_248_815_744, kv_per_token: 36_864, kv_per_sequence: 4_718_592 };

/// Whether one model fits, and with how much context. Sizes in bytes, contexts in tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fit {
    /// The model's name.
    pub model: &'static str,
    /// Its weights.
    pub weights: u64,
    /// The context counted with.
    pub context: u64,
    /// KV cache for that context.
    pub kv: u64,
    /// Workspace, estimated.
    pub workspace: u64,
    /// The sum.
    pub needed: u64,
    /// Free memory, if there is a GPU.
    pub free: Option<u64>,
    /// What is lacking; 0 if it fits, all of it without a GPU.
    pub missing: u64,
    /// The longest context, up to [`MAX_CONTEXT`], that fits; `None` if not one token does.
    pub max_context: Option<u64>,
}

impl Fit {
    /// Counts one sequence of `context` tokens against `free` bytes.
    pub fn new(model: &ModelNeed, context: u64, free: Option<u64>) -> Self {
        let kv = model.kv_per_sequence + context * model.kv_per_token;
        let needed = model.weights + kv + WORKSPACE;
        let fixed = model.weights + model.kv_per_sequence + WORKSPACE;
        let longest = free.unwrap_or(0).saturating_sub(fixed) / model.kv_per_token;
        Self {
            model: model.name,
            weights: model.weights,
            context,
            kv,
            workspace: WORKSPACE,
            needed,
            free,
            missing: needed.saturating_sub(free.unwrap_or(0)),
            max_context: (longest > 0).then_some(longest.min(MAX_CONTEXT)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_the_published_totals() {
        let fit = Fit::new(&GPT_OSS_20B, 8192, Some(80 << 30));
        assert_eq!(fit.kv, 195 << 20);
        assert_eq!(fit.needed, 13_761_264_768 + (195 << 20) + (1 << 30));
        assert_eq!((fit.missing, fit.max_context), (0, Some(MAX_CONTEXT)));
        assert_eq!(Fit::new(&GPT_OSS_20B, 131_072, None).kv, 3075 << 20);
        assert_eq!(Fit::new(&GPT_OSS_120B, 32_768, None).kv, (1156 << 20) + (1 << 19));
    }

    #[test]
    fn shortage_is_exact() {
        let needed = Fit::new(&GPT_OSS_120B, 8192, None).needed;
        assert_eq!(Fit::new(&GPT_OSS_120B, 8192, None).missing, needed);
        assert_eq!(Fit::new(&GPT_OSS_120B, 8192, Some(needed)).missing, 0);
        let tight = Fit::new(&GPT_OSS_120B, 8192, Some(needed - 1));
        assert_eq!((tight.missing, tight.max_context), (1, Some(8191)));
        assert_eq!(Fit::new(&GPT_OSS_120B, 8192, Some(40 << 30)).max_context, None);
    }
}
