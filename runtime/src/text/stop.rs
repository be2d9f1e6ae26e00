//! The token ids that end generation.

use super::Tokenizer;

/// The token ids at which generation stops.
///
/// For a model that speaks harmony these are `<|return|>`, `<|call|>` and `<|endoftext|>`, plus the eos ids of
/// `generation_config.json`, but never `<|end|>`: it separates the messages of one answer, and stopping there would end the
/// turn after the analysis. For any other model they are the eos ids of the checkpoint's files, or `<|endoftext|>` where the
/// files name none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopSet {
    /// Sorted, without duplicates.
    ids: Vec<u32>,
}

impl StopSet {
    /// The stop set of a tokenizer and the configuration files beside it.
    pub fn for_tokenizer(tokenizer: &Tokenizer) -> Self {
        let control = tokenizer.control();
        let mut ids = tokenizer.special_ids().eos.clone();
        if control.has_harmony() {
            ids.extend([control.return_, control.call, control.endoftext].into_iter().flatten());
            ids.retain(|&id| Some(id) != control.end);
        } else if ids.is_empty() {
            ids.extend(control.endoftext);
        }
        Self::from_ids(ids)
    }

    /// A stop set of exactly these ids.
    pub fn from_ids(ids: impl IntoIterator<Item = u32>) -> Self {
        let mut ids: Vec<u32> = ids.into_iter().collect();
        ids.sort_unstable();
        ids.dedup();
        Self { ids }
    }

    /// Whether generation ends with this token.
    pub fn contains(&self, id: u32) -> bool {
        self.ids.binary_search(&id).is_ok()
    }

    /// The ids, ascending.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tokenizer::tests::{demo, from_parts};

    #[test]
    fn demo_stops_at_return_call_and_endoftext() {
        let tokenizer = demo();
        let control = tokenizer.control();
        let stop = StopSet::for_tokenizer(&tokenizer);
        assert_eq!(stop.ids(), [4088, 4089, 4095]);
        assert!(!stop.contains(control.end.unwrap()));
    }

    #[test]
    fn end_never_stops_a_harmony_model() {
        let tokenizer = from_parts(r#"{"eos_token_id": [256, 257]}"#, r#"{"eos_token": "<|end|>"}"#);
        let end = tokenizer.control().end.unwrap();
        assert!([256, 257].contains(&end));
        let stop = StopSet::for_tokenizer(&tokenizer);
        assert!(!stop.contains(end));
        assert!(stop.contains(tokenizer.control().return_.unwrap()));
        assert!(stop.contains(tokenizer.control().call.unwrap()));
    }
}
