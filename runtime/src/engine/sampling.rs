//! What a request may ask of sampling, checked once.

use gossamer_models::step::{Head, LOGIT_BIAS};

/// Sampling parameters of one request.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep this many tokens; 0: all.
    pub top_k: u32,
    /// Keep the most probable tokens up to this mass; 1: all.
    pub top_p: f32,
    /// Keep tokens with at least this fraction of the greatest probability; 0: all.
    pub min_p: f32,
    /// Divides (or multiplies) logits of tokens that occurred; 1: off.
    pub repetition_penalty: f32,
    /// Subtracted once for tokens that were generated; 0: off.
    pub presence_penalty: f32,
    /// Subtracted per generated occurrence; 0: off.
    pub frequency_penalty: f32,
    /// Added to logits, by token.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the draws.
    pub seed: u64,
    /// Return log probabilities.
    pub logprobs: bool,
}

impl Default for SamplingParams {
    /// Plain sampling at temperature 1 with seed 0.
    fn default() -> SamplingParams {
        SamplingParams {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            logprobs: false,
        }
    }
}

/// A parameter outside its range.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("{name} is {found}, expected {expected}")]
pub struct SamplingError {
    name: &'static str,
    found: String,
    expected: &'static str,
}

impl SamplingParams {
    /// Greedy decoding.
    pub fn greedy() -> SamplingParams {
        SamplingParams { temperature: 0.0, ..SamplingParams::default() }
    }

    /// Checks every range; `vocab` bounds the tokens of the logit bias.
    ///
    /// # Errors
    /// The first parameter that is outside its range.
    pub fn check(&self, vocab: usize) -> Result<(), SamplingError> {
        let ranges = [
            ("temperature", self.temperature, 0.0, 100.0, "0 to 100"),
            ("top_p", self.top_p, f32::MIN_POSITIVE, 1.0, "above 0, at most 1"),
            ("min_p", self.min_p, 0.0, 1.0, "0 to 1"),
            ("repetition_penalty", self.repetition_penalty, 0.01, 100.0, "0.01 to 100"),
            ("presence_penalty", self.presence_penalty, -100.0, 100.0, "-100 to 100"),
            ("frequency_penalty", self.frequency_penalty, -100.0, 100.0, "-100 to 100"),
        ];
        for (name, value, min, max, expected) in ranges {
            // NaN is in no range.
            if !(min..=max).contains(&value) {
                return Err(SamplingError { name, found: value.to_string(), expected });
            }
        }
        if self.top_k > i32::MAX as u32 {
            return Err(SamplingError { name: "top_k", found: self.top_k.to_string(), expected: "0 to 2147483647" });
        }
        if self.logit_bias.len() > LOGIT_BIAS {
            let found = format!("for {} tokens", self.logit_bias.len());
            return Err(SamplingError { name: "logit_bias", found, expected: "at most 512 tokens" });
        }
        let mut tokens: Vec<u32> = self.logit_bias.iter().map(|b| b.0).collect();
        tokens.sort_unstable();
        let twice = tokens.windows(2).find(|w| w[0] == w[1]).map(|w| w[0]);
        let bad = self.logit_bias.iter().find(|(t, b)| *t as usize >= vocab || !b.is_finite());
        match (twice, bad) {
            (Some(t), _) => Err(SamplingError {
                name: "logit_bias",
                found: format!("given twice for token {t}"),
                expected: "once a token",
            }),
            (_, Some((t, b))) => Err(SamplingError {
                name: "logit_bias",
                found: format!("{b} for token {t}"),
                expected: "a finite number and a token of the vocabulary",
            }),
            _ => Ok(()),
        }
    }

    /// The least head that can serve this request.
    pub fn head(&self) -> Head {
        let penalties = self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0;
        if penalties || self.logprobs || !self.logit_bias.is_empty() {
            Head::Full
        } else if self.temperature > 0.0 {
            Head::Sample
        } else {
            Head::Greedy
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_checked_and_the_least_head_is_chosen() {
        let p = SamplingParams::default();
        assert_eq!((p.check(10), p.head()), (Ok(()), Head::Sample));
        assert_eq!(SamplingParams::greedy().head(), Head::Greedy);
        assert_eq!(SamplingParams { logprobs: true, ..SamplingParams::greedy() }.head(), Head::Full);
        let e = SamplingParams { top_p: 0.0, ..p.clone() }.check(10).unwrap_err().to_string();
        assert_eq!(e, "top_p is 0, expected above 0, at most 1");
        assert!(SamplingParams { temperature: f32::NAN, ..p.clone() }.check(10).is_err());
        assert!(SamplingParams { logit_bias: vec![(10, 1.0)], ..p.clone() }.check(10).is_err());
        assert!(SamplingParams { logit_bias: vec![(1, 1.0), (1, 2.0)], ..p }.check(10).is_err());
    }
}
