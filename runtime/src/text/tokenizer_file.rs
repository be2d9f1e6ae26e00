//! Reading and checking `tokenizer.json` before the `tokenizers` library sees it.
//!
//! The library trusts its input in places (a merge longer than every vocabulary entry panics, added tokens with gaps in
//! their ids are silently renumbered), so the file is read into plain data here, checked, and handed over in parts.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::Value;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior};

use super::byte_level::{CharToByte, byte_to_char};
use super::control::Control;
use super::error::{TokenizerError, one_line, quote};

/// Ids must lie below this: the tables are indexed by id, and a foreign file must not choose their size.
const MAX_IDS: u32 = 1 << 21;

/// A checked `tokenizer.json`: the encoder and what every id means.
pub(super) struct TokenizerFile {
    /// Encodes ordinary text. Control tokens are not known to it at all, so no text can produce one.
    pub(super) encoder: tokenizers::Tokenizer,
    /// Control tokens by name.
    pub(super) control: BTreeMap<String, u32>,
    /// Bytes of every token, by id. A gap in the ids is `None`.
    pub(super) tokens: Vec<Option<Vec<u8>>>,
    /// The id of each single byte.
    pub(super) byte_ids: Box<[u32; 256]>,
    /// The control tokens that the post-processor puts before every text.
    pub(super) prefix: Vec<u32>,
}

/// Reads and checks the bytes of a `tokenizer.json`; `file` names it in errors.
pub(super) fn parse(file: &str, bytes: &[u8]) -> Result<TokenizerFile, TokenizerError> {
    let raw: RawFile = serde_json::from_slice(bytes).map_err(|error| malformed(file, one_line(&error)))?;
    check_model(file, &raw.model)?;
    let added = check_added(file, raw.added_tokens)?;
    let added_ids: BTreeMap<&str, u32> = added.iter().map(|token| (token.content.as_str(), token.id)).collect();

    let mut by_id: BTreeMap<u32, String> = BTreeMap::new();
    let mut vocab = tokenizers::models::bpe::Vocab::default();
    for (text, id) in raw.model.vocab.0 {
        check_id(file, "model.vocab", &text, id)?;
        if let Some(added_id) = added_ids.get(text.as_str()).filter(|&&added_id| added_id != id) {
            let found = format!("id {id} for {}", quote(&text));
            return Err(invalid(file, "model.vocab", found, format!("id {added_id} as in added_tokens")));
        }
        if let Some(other) = by_id.insert(id, text.clone()) {
            let found = format!("id {id} for both {} and {}", quote(&other), quote(&text));
            return Err(invalid(file, "model.vocab", found, "one token per id"));
        }
        if vocab.insert(text.clone(), id).is_some() {
            return Err(invalid(file, "model.vocab", format!("{} twice", quote(&text)), "one id per token"));
        }
    }

    let mut tokens = vocabulary_bytes(&by_id);
    let mut control = BTreeMap::new();
    for token in &added {
        if let Some(other) = by_id.get(&token.id)
            && *other != token.content
        {
            let found = format!("id {} for {}", token.id, quote(&token.content));
            let expected = format!("an id that model.vocab does not give to {}", quote(other));
            return Err(invalid(file, "added_tokens", found, expected));
        }
        let slot = token.id as usize;
        if tokens.len() <= slot {
            tokens.resize(slot + 1, None);
        }
        tokens[slot] = Some(token.content.as_bytes().to_vec());
        if token.is_control() {
            vocab.remove(&token.content);
            control.insert(token.content.clone(), token.id);
        } else {
            // The library takes the id of an added token from the model where it is there: this keeps the file's ids.
            vocab.insert(token.content.clone(), token.id);
        }
    }
    let byte_ids = single_byte_ids(file, &vocab)?;

    let merges = check_merges(file, raw.model.merges, &vocab)?;
    let model = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .ignore_merges(raw.model.ignore_merges.unwrap_or(false))
        .build()
        .map_err(|error| malformed(file, format!("model: {}", one_line(&error))))?;
    let mut encoder = tokenizers::Tokenizer::new(model);
    encoder.with_pre_tokenizer(Some(pre_tokenizer(file, &raw.pre_tokenizer)?));
    if normalizer_is_nfc(file, &raw.normalizer)? {
        encoder.with_normalizer(Some(NFC)).map_err(|error| malformed(file, one_line(&error)))?;
    }
    let ordinary = added.iter().filter(|token| !token.is_control()).map(RawAdded::to_library);
    encoder.add_tokens(ordinary).map_err(|error| malformed(file, format!("added_tokens: {}", one_line(&error))))?;
    encoder.set_encode_special_tokens(true);

    let prefix = text_prefix(file, &raw.post_processor, &control)?;
    Ok(TokenizerFile { encoder, control, tokens, byte_ids, prefix })
}

/// The parts of `tokenizer.json` that matter here. Truncation, padding and the decoder are left out on purpose: prompts are
/// never cut or padded, and decoding is exact in bytes. Of the post-processor only what it puts before a text counts.
#[derive(Deserialize)]
struct RawFile {
    #[serde(default)]
    added_tokens: Vec<RawAdded>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    model: RawModel,
}

#[derive(Deserialize)]
struct RawAdded {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

impl RawAdded {
    /// Special tokens, and harmony's tokens whatever the file calls them.
    fn is_control(&self) -> bool {
        self.special || Control::ALL.iter().any(|control| control.name() == self.content)
    }

    fn to_library(&self) -> AddedToken {
        AddedToken::from(self.content.clone(), false)
            .single_word(self.single_word)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
            .normalized(self.normalized)
    }
}

#[derive(Deserialize)]
struct RawModel {
    r#type: Option<String>,
    vocab: Vocab,
    merges: Vec<Merge>,
    dropout: Option<f64>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    ignore_merges: Option<bool>,
}

/// The vocabulary in file order, so that a token listed twice is seen.
struct Vocab(Vec<(String, u32)>);

impl<'de> Deserialize<'de> for Vocab {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Vocab;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a map from token to id (a BPE vocabulary)")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocab, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Vocab(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// One merge, written either as `["a", "b"]` or as `"a b"`.
struct Merge(String, String);

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pair;
        impl<'de> Visitor<'de> for Pair {
            type Value = Merge;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a merge, [\"a\", \"b\"] or \"a b\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Merge, E> {
                match text.split_once(' ') {
                    Some((a, b)) if !b.contains(' ') => Ok(Merge(a.to_owned(), b.to_owned())),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Merge, A::Error> {
                let a = seq.next_element()?.ok_or_else(|| de::Error::invalid_length(0, &self))?;
                let b = seq.next_element()?.ok_or_else(|| de::Error::invalid_length(1, &self))?;
                match seq.next_element::<de::IgnoredAny>()? {
                    None => Ok(Merge(a, b)),
                    Some(_) => Err(de::Error::invalid_length(3, &self)),
                }
            }
        }
        deserializer.deserialize_any(Pair)
    }
}

fn check_model(file: &str, model: &RawModel) -> Result<(), TokenizerError> {
    if let Some(kind) = model.r#type.as_deref().filter(|&kind| kind != "BPE") {
        return Err(invalid(file, "model.type", quote(kind), "\"BPE\", a byte-level BPE as GPT-OSS has"));
    }
    if let Some(dropout) = model.dropout.filter(|&p| p != 0.0) {
        return Err(invalid(file, "model.dropout", dropout.to_string(), "null: encoding must be deterministic"));
    }
    let affixes = [
        ("model.continuing_subword_prefix", &model.continuing_subword_prefix),
        ("model.end_of_word_suffix", &model.end_of_word_suffix),
    ];
    for (field, affix) in affixes {
        if let Some(affix) = affix.as_deref().filter(|affix| !affix.is_empty()) {
            return Err(invalid(file, field, quote(affix), "null, as in a byte-level BPE"));
        }
    }
    Ok(())
}

/// Checks the added tokens by themselves and sorts them by id.
fn check_added(file: &str, mut added: Vec<RawAdded>) -> Result<Vec<RawAdded>, TokenizerError> {
    let mut contents = BTreeMap::new();
    for token in &added {
        check_id(file, "added_tokens", &token.content, token.id)?;
        if token.content.is_empty() {
            return Err(invalid(file, "added_tokens", format!("empty content for id {}", token.id), "a name"));
        }
        if contents.insert(token.content.as_str(), token.id).is_some() {
            return Err(invalid(file, "added_tokens", format!("{} twice", quote(&token.content)), "each token once"));
        }
    }
    added.sort_by_key(|token| token.id);
    for pair in added.windows(2) {
        if pair[0].id == pair[1].id {
            let found =
                format!("id {} for both {} and {}", pair[0].id, quote(&pair[0].content), quote(&pair[1].content));
            return Err(invalid(file, "added_tokens", found, "one token per id"));
        }
    }
    Ok(added)
}

/// Every merge must join two tokens into a third. A merge into a control token would let text become one, so control tokens
/// are not in `vocab` by now and such a merge is an error.
fn check_merges(
    file: &str,
    merges: Vec<Merge>,
    vocab: &tokenizers::models::bpe::Vocab,
) -> Result<Vec<(String, String)>, TokenizerError> {
    let mut checked = Vec::with_capacity(merges.len());
    for (i, Merge(a, b)) in merges.into_iter().enumerate() {
        let joined = format!("{a}{b}");
        for part in [&a, &b, &joined] {
            if !vocab.contains_key(part) {
                let found = format!("{} in merge {i}", quote(part));
                return Err(invalid(file, "model.merges", found, "ordinary tokens of model.vocab"));
            }
        }
        checked.push((a, b));
    }
    Ok(checked)
}

fn check_id(file: &str, field: &str, text: &str, id: u32) -> Result<(), TokenizerError> {
    if id < MAX_IDS {
        return Ok(());
    }
    Err(invalid(file, field, format!("id {id} for {}", quote(text)), format!("ids below {MAX_IDS}")))
}

/// The ids of the 256 single bytes. All must be there, or some text could not be encoded.
fn single_byte_ids(file: &str, vocab: &tokenizers::models::bpe::Vocab) -> Result<Box<[u32; 256]>, TokenizerError> {
    let mut ids = Box::new([0; 256]);
    for byte in 0..=255u8 {
        let entry = byte_to_char(byte).to_string();
        ids[usize::from(byte)] = *vocab.get(&entry).ok_or_else(|| {
            let found = format!("no entry {} for byte 0x{byte:02x}", quote(&entry));
            invalid(file, "model.vocab", found, "all 256 bytes of a byte-level BPE")
        })?;
    }
    Ok(ids)
}

fn vocabulary_bytes(by_id: &BTreeMap<u32, String>) -> Vec<Option<Vec<u8>>> {
    let char_to_byte = CharToByte::new();
    let len = by_id.last_key_value().map_or(0, |(&id, _)| id as usize + 1);
    let mut tokens = vec![None; len];
    for (&id, entry) in by_id {
        let mut bytes = Vec::with_capacity(entry.len());
        char_to_byte.decode_into(entry, &mut bytes);
        tokens[id as usize] = Some(bytes);
    }
    tokens
}

/// Builds the pre-tokenizer: any number of isolating `Split`s, then one `ByteLevel`.
fn pre_tokenizer(file: &str, value: &Value) -> Result<PreTokenizerWrapper, TokenizerError> {
    let single = std::slice::from_ref(value);
    let (field, steps) = match value.get("pretokenizers").and_then(Value::as_array) {
        Some(steps) if value["type"] == "Sequence" => ("pre_tokenizer.pretokenizers", steps.as_slice()),
        _ => ("pre_tokenizer", single),
    };
    let Some((last, splits)) = steps.split_last() else {
        return Err(invalid(file, field, "an empty list", "Split steps and a final ByteLevel"));
    };
    let mut built = Vec::with_capacity(steps.len());
    for step in splits {
        built.push(PreTokenizerWrapper::Split(split_step(file, field, step)?));
    }
    built.push(PreTokenizerWrapper::ByteLevel(byte_level_step(file, field, last)?));
    Ok(PreTokenizerWrapper::Sequence(Sequence::new(built)))
}

fn split_step(file: &str, field: &str, step: &Value) -> Result<Split, TokenizerError> {
    let shape = "type Split, behavior Isolated, invert false and a pattern with a Regex or a String";
    if step["type"] != "Split" || step["behavior"] != "Isolated" || step["invert"].as_bool().unwrap_or(false) {
        return Err(invalid(file, field, quote(&step.to_string()), shape));
    }
    let pattern = match (step["pattern"]["Regex"].as_str(), step["pattern"]["String"].as_str()) {
        (Some(regex), None) => SplitPattern::Regex(regex.to_owned()),
        (None, Some(text)) => SplitPattern::String(text.to_owned()),
        _ => return Err(invalid(file, field, quote(&step.to_string()), shape)),
    };
    Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
        .map_err(|error| malformed(file, format!("{field}: pattern does not compile: {}", one_line(&error))))
}

fn byte_level_step(file: &str, field: &str, step: &Value) -> Result<ByteLevel, TokenizerError> {
    if step["type"] != "ByteLevel" || step["add_prefix_space"].as_bool().unwrap_or(true) {
        let shape = "a final step of type ByteLevel with add_prefix_space false";
        return Err(invalid(file, field, quote(&step.to_string()), shape));
    }
    let use_regex = step["use_regex"].as_bool().unwrap_or(true);
    Ok(ByteLevel::new(false, false, use_regex))
}

/// Whether text is brought to NFC first. GPT-OSS normalises nothing; other normalisers would change the text itself.
fn normalizer_is_nfc(file: &str, value: &Value) -> Result<bool, TokenizerError> {
    if value.is_null() {
        return Ok(false);
    }
    if value["type"] == "NFC" {
        return Ok(true);
    }
    Err(invalid(file, "normalizer", quote(&value.to_string()), "null or type NFC"))
}

/// The ids before the text in the post-processor's template for a single text. Processors that only move offsets add none.
fn text_prefix(file: &str, value: &Value, control: &BTreeMap<String, u32>) -> Result<Vec<u32>, TokenizerError> {
    let single = std::slice::from_ref(value);
    let steps = value["processors"].as_array().map_or(single, Vec::as_slice);
    let mut prefix = Vec::new();
    for step in steps.iter().filter(|step| step["type"] == "TemplateProcessing") {
        let template = step["single"].as_array().map_or(&[][..], Vec::as_slice);
        for token in template.iter().map_while(|piece| piece.get("SpecialToken")) {
            let name = token["id"].as_str().unwrap_or_default();
            let id = control.get(name).ok_or_else(|| {
                invalid(file, "post_processor.single", quote(name), "the name of a special token of added_tokens")
            })?;
            prefix.push(*id);
        }
    }
    Ok(prefix)
}

fn malformed(file: &str, reason: String) -> TokenizerError {
    TokenizerError::Malformed { file: file.to_owned(), reason, expected: "tokenizer.json" }
}

fn invalid(file: &str, field: &str, found: impl Into<String>, expected: impl Into<String>) -> TokenizerError {
    TokenizerError::Invalid {
        file: file.to_owned(),
        field: field.to_owned(),
        found: found.into(),
        expected: expected.into(),
    }
}
