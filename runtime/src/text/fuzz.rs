//! Bodies for fuzzers and property tests.
//!
//! Each takes raw input, exercises one entry point and panics if a promise of this module is broken. The unit tests call them
//! from proptest; a fuzz target needs nothing more than to call them with its bytes.

use std::sync::{Arc, OnceLock};

use serde_json::{Map, json};

use super::byte_level::byte_to_char;
use super::harmony::Parser;
use super::{Control, Tokenizer, Utf8Stream};

/// Loading any bytes as a `tokenizer.json` gives a working tokenizer or a one-line error.
pub fn tokenizer_file(bytes: &[u8]) {
    let tokenizer = match Tokenizer::from_bytes("fuzz.json", bytes) {
        Ok(tokenizer) => tokenizer,
        Err(error) => {
            let message = error.to_string();
            assert!(!message.contains('\n') && message.starts_with("fuzz.json: "), "{message}");
            return;
        }
    };
    let ids = tokenizer.encode("The fox's <|end|> 狐 🦊\r\n  123456\t");
    assert!(ids.iter().all(|&id| !tokenizer.is_control(id)), "text became a control token");
    assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()), "an id outside the vocabulary");
    for id in [0, tokenizer.vocab_size() as u32, u32::MAX] {
        tokenizer.decode_bytes(id);
    }
}

/// Parsing any sequence keeps every byte: the texts of all events join to the bytes between control tokens.
///
/// Bytes below 32 pick control tokens and the words of harmony headers, the others stand for themselves.
pub fn harmony_parser(data: &[u8]) {
    let tokenizer = byte_tokenizer();
    let ids: Vec<u32> = data.iter().map(|&byte| palette(&tokenizer, byte)).collect();
    harmony_parser_ids(&tokenizer, &ids);
}

/// As [`harmony_parser`], for ids of any tokenizer that has the harmony tokens.
pub fn harmony_parser_ids(tokenizer: &Arc<Tokenizer>, ids: &[u32]) {
    let mut expected = String::new();
    for run in ids.split(|&id| tokenizer.is_control(id)) {
        expected.push_str(&tokenizer.decode(run));
    }
    let parsers = [Parser::for_completion(tokenizer.clone()), Parser::for_conversation(tokenizer.clone())];
    for parser in parsers {
        let mut parser = parser.expect("a tokenizer with the harmony tokens");
        let mut events = Vec::new();
        for &id in ids {
            events.extend(parser.push(id));
        }
        events.extend(parser.finish());
        assert!(parser.finish().is_empty(), "finish is idempotent");
        let text: String = events.iter().map(|event| event.text()).collect();
        assert_eq!(text, expected);
        super::harmony::check_event_order(&events).expect("events in order");
    }
}

/// However bytes are cut, the streamed pieces join to the lossy string of all of them. `cuts` gives the chunk lengths, used
/// in turn; zeros count as one.
pub fn utf8_stream(bytes: &[u8], cuts: &[usize]) {
    let mut stream = Utf8Stream::new();
    let mut text = String::new();
    let mut rest = bytes;
    let mut cuts = cuts.iter().cycle();
    while !rest.is_empty() {
        let len = cuts.next().copied().unwrap_or(1).clamp(1, rest.len());
        let (chunk, tail) = rest.split_at(len);
        text.push_str(&stream.push(chunk));
        assert!(stream.held() <= 3, "more than an incomplete character held back");
        rest = tail;
    }
    text.push_str(&stream.finish());
    assert_eq!(text, String::from_utf8_lossy(bytes));
}

/// A `tokenizer.json` small enough to mutate: ids 0..=255 are the bytes, 256.. the control tokens in the order of
/// [`Control::ALL`] and one reserved token, 300.. a few words.
pub fn byte_tokenizer_json() -> String {
    let mut vocab = Map::new();
    for byte in 0..=255u8 {
        vocab.insert(byte_to_char(byte).to_string(), json!(byte));
    }
    for (id, word) in (300u32..).zip(WORDS) {
        vocab.insert(word.replace(' ', "Ġ"), json!(id));
    }
    let mut added = Vec::new();
    let reserved = "<|reserved_265|>";
    for (id, name) in (256u32..).zip(Control::ALL.map(Control::name).into_iter().chain([reserved])) {
        added.push(json!({"id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}));
    }
    json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "dropout": null, "vocab": vocab, "merges": [["t", "h"], "h e"]},
    })
    .to_string()
}

/// The tokenizer of [`byte_tokenizer_json`], built once.
pub fn byte_tokenizer() -> Arc<Tokenizer> {
    static TOKENIZER: OnceLock<Arc<Tokenizer>> = OnceLock::new();
    let build = || Tokenizer::from_bytes("byte-tokenizer.json", byte_tokenizer_json().as_bytes());
    TOKENIZER.get_or_init(|| Arc::new(build().expect("the built-in tokenizer is valid"))).clone()
}

const WORDS: [&str; 12] = [
    "th",
    "he",
    "assistant",
    "analysis",
    "commentary",
    "final",
    " to=",
    "functions.",
    "json",
    "user",
    "the quick fox ",
    "\u{10a}",
];

fn palette(tokenizer: &Tokenizer, byte: u8) -> u32 {
    let control = Control::ALL.get(usize::from(byte)).and_then(|&control| tokenizer.control().id(control));
    match (control, byte) {
        (Some(id), _) => id,
        (None, 9) => 265,
        (None, 10) => 10,
        (None, 11) => 5000,
        (None, 12..24) => 288 + u32::from(byte),
        (None, _) => u32::from(byte),
    }
}
