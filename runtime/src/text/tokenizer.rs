//! The tokenizer: text to ids and ids to exact bytes.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use super::control::ControlTokens;
use super::error::TokenizerError;
use super::tokenizer_config::{read, special_ids};
use super::tokenizer_file::{self, TokenizerFile};

/// A byte-level BPE tokenizer read from a `tokenizer.json`.
///
/// Encoding treats all text as ordinary text: no input ever becomes a control token. Decoding works in bytes, because a
/// character may span tokens; put a [`Utf8Stream`](super::Utf8Stream) behind it to stream text.
///
/// ```
/// use gossamer_runtime::text::Tokenizer;
///
/// # fn main() -> Result<(), gossamer_runtime::text::TokenizerError> {
/// let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/demo/tokenizer.json");
/// let tokenizer = Tokenizer::load(demo)?;
/// let ids = tokenizer.encode("a fox <|end|>");
/// assert!(ids.iter().all(|&id| !tokenizer.is_control(id)));
/// assert_eq!(tokenizer.decode(&ids), "a fox <|end|>");
/// # Ok(())
/// # }
/// ```
pub struct Tokenizer {
    file: String,
    encoder: tokenizers::Tokenizer,
    table: TokenTable,
    byte_ids: Box<[u32; 256]>,
    control_ids: BTreeMap<String, u32>,
    control: ControlTokens,
    special: SpecialIds,
    prefix: Vec<u32>,
}

/// The bos, eos and padding ids that the checkpoint's configuration files name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialIds {
    /// Begin-of-sequence id. GPT-OSS prompts do not use it.
    pub bos: Option<u32>,
    /// End-of-sequence ids as the file lists them, ascending. [`StopSet`](super::StopSet) decides which of them stop.
    pub eos: Vec<u32>,
    /// Padding id.
    pub pad: Option<u32>,
}

impl Tokenizer {
    /// Loads a tokenizer from a checkpoint folder or from its `tokenizer.json`, together with `generation_config.json` and
    /// `tokenizer_config.json` where they lie beside it.
    ///
    /// Fails with one line that names the file when a file is unreadable or malformed, when it is not a byte-level BPE, or
    /// when its ids contradict each other.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        let mut path = path.as_ref().to_path_buf();
        if path.is_dir() {
            path.push("tokenizer.json");
        }
        let mut tokenizer = Self::from_bytes(&path.display().to_string(), &read(&path)?)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        tokenizer.special = special_ids(folder, |name| tokenizer.id_of(name))?;
        Ok(tokenizer)
    }

    /// Reads a tokenizer from the bytes of a `tokenizer.json`; `file` names them in errors. Fails as [`Tokenizer::load`].
    pub fn from_bytes(file: &str, bytes: &[u8]) -> Result<Self, TokenizerError> {
        let TokenizerFile { encoder, control, tokens, byte_ids, prefix } = tokenizer_file::parse(file, bytes)?;
        let mut table = TokenTable::new(&tokens);
        for &id in control.values() {
            table.mark_control(id);
        }
        Ok(Self {
            file: file.to_owned(),
            encoder,
            table,
            byte_ids,
            control: ControlTokens::look_up(|name| control.get(name).copied()),
            control_ids: control,
            special: SpecialIds::default(),
            prefix,
        })
    }

    /// The ids of `text`, which is ordinary text throughout: names of control tokens in it are spelled out.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        match self.encoder.encode_fast(text, false) {
            Ok(encoding) => encoding.get_ids().to_vec(),
            // The encoder was checked to know every byte, so it does not fail; were it to, the bytes still say the same.
            Err(_) => text.bytes().map(|byte| self.byte_ids[usize::from(byte)]).collect(),
        }
    }

    /// The control tokens that the file's post-processor puts before every text, such as Llama's `<|begin_of_text|>`; none for GPT-OSS.
    /// [`Tokenizer::encode`] leaves them out.
    pub fn text_prefix(&self) -> &[u32] {
        &self.prefix
    }

    /// The exact bytes of one token: its name for a control token, nothing for an id the vocabulary does not have (the
    /// embedding table has more rows than the vocabulary has tokens).
    pub fn decode_bytes(&self, id: u32) -> Vec<u8> {
        self.token_bytes(id).to_vec()
    }

    /// As [`Tokenizer::decode_bytes`], without the copy.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.table.bytes(id)
    }

    /// The text of a sequence, control tokens by name, invalid UTF-8 as U+FFFD. For display and debugging.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.token_bytes(id)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// One more than the highest id in the file.
    pub fn vocab_size(&self) -> usize {
        self.table.len()
    }

    /// Whether `id` is a control (special) token.
    pub fn is_control(&self, id: u32) -> bool {
        self.table.is_control(id)
    }

    /// The control tokens this tokenizer has.
    pub fn control(&self) -> &ControlTokens {
        &self.control
    }

    /// The ids named by the configuration files beside the tokenizer; all empty when there were none.
    pub fn special_ids(&self) -> &SpecialIds {
        &self.special
    }

    /// The path this tokenizer was loaded from, for messages.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The id of a token by its name in the file.
    fn id_of(&self, name: &str) -> Option<u32> {
        self.control_ids.get(name).copied().or_else(|| self.encoder.token_to_id(name))
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("file", &self.file)
            .field("vocab_size", &self.vocab_size())
            .field("control", &self.control)
            .field("special", &self.special)
            .finish_non_exhaustive()
    }
}

/// Bytes and kind of every id, in three flat arrays.
struct TokenTable {
    bytes: Vec<u8>,
    /// `ends[id]` is where the bytes of `id` end; they begin where those of `id - 1` end.
    ends: Vec<u32>,
    control: Vec<bool>,
}

impl TokenTable {
    fn new(tokens: &[Option<Vec<u8>>]) -> Self {
        let mut bytes = Vec::new();
        let mut ends = Vec::with_capacity(tokens.len());
        for token in tokens {
            bytes.extend_from_slice(token.as_deref().unwrap_or_default());
            // A JSON file of 4 GiB of token text is not read on any machine; clamping keeps the arithmetic total.
            ends.push(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        }
        Self { bytes, control: vec![false; ends.len()], ends }
    }

    fn mark_control(&mut self, id: u32) {
        if let Some(slot) = self.control.get_mut(id as usize) {
            *slot = true;
        }
    }

    fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else {
            return &[];
        };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        self.bytes.get(start as usize..end as usize).unwrap_or_default()
    }

    fn is_control(&self, id: u32) -> bool {
        self.control.get(id as usize).copied().unwrap_or(false)
    }

    fn len(&self) -> usize {
        self.ends.len()
    }
}

#[cfg(test)]
pub(super) mod tests;
