//! What benchmarks count: bytes that a step must read, and how fast the device can read.

use gossamer_models::config::ModelConfig;
use gossamer_models::names::WeightRole;

use crate::exec::Executor;

/// Median, 99th percentile and least of some times.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Percentiles {
    /// Middle value.
    pub median: f64,
    /// 99 of 100 are not above it.
    pub p99: f64,
    /// Least.
    pub min: f64,
}

impl Percentiles {
    /// Of at least one value; zeros for none.
    pub fn of(values: &[f64]) -> Percentiles {
        let mut v = values.to_vec();
        v.sort_by(f64::total_cmp);
        let at = |q: f64| v.get(((v.len() as f64 * q).ceil() as usize).saturating_sub(1)).copied().unwrap_or(0.0);
        Percentiles { median: at(0.5), p99: at(0.99), min: at(0.0) }
    }
}

/// Bytes that a decode step of `batch` sequences of `context` tokens must read: every weight it uses once, in the checkpoint's format, and the keys
/// and values. Experts are counted as expected under uniform routing: `E (1 - (1 - k/E)^batch)` of them.
pub fn decode_bytes(config: &ModelConfig, batch: usize, context: usize) -> u64 {
    let mut bytes = 0.0;
    for w in config.weights() {
        bytes += match w.role {
            WeightRole::Embedding => w.bytes() as f64 / w.shape[0] as f64 * batch as f64,
            WeightRole::Expert | WeightRole::ExpertBias => {
                let e = w.shape[0] as f64;
                let distinct = e * (1.0 - (1.0 - config.experts_per_token() as f64 / e).powi(batch as i32));
                w.bytes() as f64 / e * distinct
            }
            _ => w.bytes() as f64,
        };
    }
    let rows: usize = config.windows().iter().map(|window| window.map_or(context, |w| context.min(w))).sum();
    bytes as u64 + (batch * rows * config.kv_width() * 2 * 2) as u64
}

/// Bytes a second that the device can read: what the executor knows of it, else measured on the CPU.
pub fn read_bandwidth(executor: &dyn Executor) -> f64 {
    executor.read_bandwidth().unwrap_or_else(cpu_bandwidth)
}

/// Best of a few passes over more memory than caches hold, on all threads.
fn cpu_bandwidth() -> f64 {
    use rayon::prelude::*;
    let data: Vec<u64> = (0..(256 << 20) / 8).collect();
    let pass = || {
        let start = std::time::Instant::now();
        let sum = data.par_chunks(1 << 16).map(|c| c.iter().fold(0u64, |a, b| a ^ b)).reduce(|| 0, |a, b| a ^ b);
        std::hint::black_box(sum);
        (data.len() * 8) as f64 / start.elapsed().as_secs_f64()
    };
    (0..5).map(|_| pass()).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gossamer_models::presets;

    #[test]
    fn bytes_of_a_token_are_those_of_the_specification() {
        let c20 = ModelConfig::GptOss(presets::gpt_oss_20b());
        assert_eq!(decode_bytes(&c20, 1, 0), 3_708_089_088);
        let c120 = ModelConfig::GptOss(presets::gpt_oss_120b());
        assert_eq!(decode_bytes(&c120, 1, 0), 5_002_907_904);
    }

    #[test]
    fn percentiles() {
        let v: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(Percentiles::of(&v), Percentiles { median: 50.0, p99: 99.0, min: 1.0 });
        assert_eq!(Percentiles::of(&[]), Percentiles::default());
    }
}
