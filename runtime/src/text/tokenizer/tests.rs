use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::text::fuzz;

/// The demo model's tokenizer.
pub(in crate::text) fn demo() -> Tokenizer {
    Tokenizer::load(demo_folder()).unwrap()
}

pub(in crate::text) fn demo_folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../models/demo"))
}

/// The small byte tokenizer with the given configuration files beside it.
pub(in crate::text) fn from_parts(generation_config: &str, tokenizer_config: &str) -> Tokenizer {
    load_parts(&fuzz::byte_tokenizer_json(), generation_config, tokenizer_config).unwrap()
}

fn load_parts(tokenizer: &str, generation: &str, config: &str) -> Result<Tokenizer, TokenizerError> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer).unwrap();
    std::fs::write(folder.path().join("generation_config.json"), generation).unwrap();
    std::fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
    Tokenizer::load(folder.path())
}

/// The small tokenizer with a post-processor.
fn with_post_processor(processor: Value) -> Result<Tokenizer, TokenizerError> {
    let mut json: Value = serde_json::from_str(&fuzz::byte_tokenizer_json()).unwrap();
    json["post_processor"] = processor;
    Tokenizer::from_bytes("dir/tokenizer.json", json.to_string().as_bytes())
}

#[test]
fn a_template_may_put_tokens_before_every_text() {
    let template = |name: &str| {
        json!({"type": "TemplateProcessing", "single": [
            {"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "<|end|>", "type_id": 0}}
        ]})
    };
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true});
    let start = template("<|startoftext|>");
    for processor in [start.clone(), json!({"type": "Sequence", "processors": [byte_level, start]})] {
        let tokenizer = with_post_processor(processor).unwrap();
        assert_eq!(tokenizer.text_prefix(), [tokenizer.control().startoftext.unwrap()]);
        assert_eq!(tokenizer.encode("ab"), [97, 98]);
    }
    for processor in [Value::Null, byte_level.clone(), json!({"type": "Sequence", "processors": [byte_level]})] {
        assert!(with_post_processor(processor).unwrap().text_prefix().is_empty());
    }
    let text = with_post_processor(template("<s>")).unwrap_err().to_string();
    assert!(text.starts_with("dir/tokenizer.json: post_processor.single") && text.contains("<s>"), "{text}");
}

/// The error of the small tokenizer after `edit`; checks that it is one line naming the file.
fn error_after(edit: impl FnOnce(&mut Value)) -> String {
    let mut json: Value = serde_json::from_str(&fuzz::byte_tokenizer_json()).unwrap();
    edit(&mut json);
    error_of(json.to_string().as_bytes())
}

fn error_of(bytes: &[u8]) -> String {
    let message = Tokenizer::from_bytes("dir/tokenizer.json", bytes).unwrap_err().to_string();
    assert!(message.starts_with("dir/tokenizer.json: "), "{message}");
    assert!(!message.contains('\n'), "{message}");
    message
}

#[test]
fn demo_vocabulary() {
    let tokenizer = demo();
    assert_eq!(tokenizer.vocab_size(), 4096);
    let expected = ControlTokens {
        startoftext: Some(4087),
        endoftext: Some(4088),
        return_: Some(4089),
        constrain: Some(4090),
        channel: Some(4091),
        start: Some(4092),
        end: Some(4093),
        message: Some(4094),
        call: Some(4095),
    };
    assert_eq!(*tokenizer.control(), expected);
    assert!(tokenizer.is_control(4087) && tokenizer.is_control(4095));
    assert!(!tokenizer.is_control(4086) && !tokenizer.is_control(4096));
    let special = SpecialIds { bos: Some(4087), eos: vec![4088, 4089, 4095], pad: Some(4088) };
    assert_eq!(*tokenizer.special_ids(), special);
}

#[test]
fn ids_outside_the_vocabulary_are_empty() {
    let tokenizer = demo();
    for id in [4096, 201_087, u32::MAX] {
        assert_eq!(tokenizer.decode_bytes(id), b"");
        assert!(!tokenizer.is_control(id));
    }
}

#[test]
fn control_names_in_text_stay_text() {
    let tokenizer = demo();
    for name in ["<|start|>", "<|end|>", "<|message|>", "<|call|>", "<|endoftext|>"] {
        let text = format!("x {name}{name} y");
        let ids = tokenizer.encode(&text);
        assert!(ids.iter().all(|&id| !tokenizer.is_control(id)), "{name}");
        assert_eq!(tokenizer.decode(&ids), text);
    }
}

#[test]
fn control_names_stay_text_even_without_pre_splitting() {
    // With ignore_merges and no splitting the whole text is one piece, and a vocabulary entry equal to it would win.
    let mut json: Value = serde_json::from_str(&fuzz::byte_tokenizer_json()).unwrap();
    json["model"]["ignore_merges"] = json!(true);
    json["model"]["vocab"]["<|end|>"] = json.pointer("/added_tokens/1/id").unwrap().clone();
    assert_eq!(json["added_tokens"][1]["content"], "<|end|>");
    json["pre_tokenizer"]["use_regex"] = json!(false);
    let tokenizer = Tokenizer::from_bytes("t", json.to_string().as_bytes()).unwrap();
    let ids = tokenizer.encode("<|end|>");
    assert!(ids.iter().all(|&id| !tokenizer.is_control(id)), "{ids:?}");
}

#[test]
fn single_tokens_decode_to_partial_characters() {
    let tokenizer = demo();
    let ids = tokenizer.encode("🦊");
    assert!(ids.len() > 1);
    let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.decode_bytes(id)).collect();
    assert_eq!(bytes, "🦊".as_bytes());
}

#[test]
fn gaps_between_added_tokens_keep_their_ids() {
    let mut json: Value = serde_json::from_str(&fuzz::byte_tokenizer_json()).unwrap();
    json["added_tokens"].as_array_mut().unwrap().push(json!({"id": 900, "content": "<|far|>", "special": true}));
    json["added_tokens"].as_array_mut().unwrap().push(json!({"id": 800, "content": "<think>", "special": false}));
    let tokenizer = Tokenizer::from_bytes("t", json.to_string().as_bytes()).unwrap();
    assert_eq!(tokenizer.vocab_size(), 901);
    assert_eq!(tokenizer.decode_bytes(900), b"<|far|>");
    assert_eq!(tokenizer.decode_bytes(850), b"");
    assert!(tokenizer.is_control(900) && !tokenizer.is_control(800));
    assert!(tokenizer.encode("a<think>b").contains(&800));
    assert!(!tokenizer.encode("a<|far|>b").contains(&900));
    assert_eq!(tokenizer.control().harmony(&tokenizer).unwrap().start, 256);
}

#[test]
fn gpt_oss_pre_tokenizer_splits_as_published() {
    // The published pattern: words with contractions, numbers in threes, punctuation with trailing newlines.
    let pattern = [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
    .join("|");
    let mut json: Value = serde_json::from_str(&fuzz::byte_tokenizer_json()).unwrap();
    json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
    ]});
    json["model"]["ignore_merges"] = json!(true);
    let vocab = json["model"]["vocab"].as_object_mut().unwrap();
    for (id, piece) in (700u32..).zip(["Don't", "Ġstop", "123", "45", "!!Ċ", "ĠĠ", "Ġgo"]) {
        vocab.insert(piece.to_owned(), json!(id));
    }
    let tokenizer = Tokenizer::from_bytes("t", json.to_string().as_bytes()).unwrap();
    assert_eq!(tokenizer.encode("Don't stop12345!!\n   go"), [700, 701, 702, 703, 704, 705, 706]);
}

#[test]
fn missing_file_is_one_line() {
    let message = Tokenizer::load("no/such/tokenizer.json").unwrap_err().to_string();
    assert!(message.starts_with("no/such/tokenizer.json: cannot read"), "{message}");
    assert!(!message.contains('\n'));
}

#[test]
fn what_has_no_end_is_refused() {
    // Read whole, this would take all memory; a pipe beside the file would wait for a writer.
    let message = Tokenizer::load("/dev/zero").unwrap_err().to_string();
    assert!(message.contains("/dev/zero: cannot read: larger than 256 MiB"), "{message}");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), fuzz::byte_tokenizer_json()).unwrap();
    let pipe = folder.path().join("tokenizer_config.json");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let message = Tokenizer::load(folder.path()).unwrap_err().to_string();
    assert!(message.contains("tokenizer_config.json: cannot read: not a file"), "{message}");
}

#[test]
fn malformed_files_name_the_reason() {
    assert!(error_of(b"").contains("malformed"));
    assert!(error_of(b"\xff\xfe{").contains("malformed"));
    assert!(error_of(b"{\"model\": 3}").contains("line 1 column"));
    let json = fuzz::byte_tokenizer_json();
    assert!(error_of(&json.as_bytes()[..json.len() / 2]).contains("EOF"));
    assert!(error_after(|json| json["model"]["type"] = json!("Unigram")).contains("model.type: found \"Unigram\""));
    assert!(error_after(|json| json["model"]["vocab"] = json!([["a", 0.5]])).contains("a map from token to id"));
    assert!(error_after(|json| json["model"]["vocab"]["a"] = json!(-1)).contains("malformed"));
    assert!(error_after(|json| json["model"]["vocab"]["zz"] = json!(u32::MAX)).contains("ids below"));
    assert!(error_after(|json| json["model"]["vocab"]["zz"] = json!(0)).contains("id 0 for both"));
    assert!(error_after(|json| json["model"]["dropout"] = json!(0.1)).contains("model.dropout"));
    assert!(error_after(|json| json["model"]["end_of_word_suffix"] = json!("</w>")).contains("end_of_word_suffix"));
    assert!(error_after(|json| json["normalizer"] = json!({"type": "Lowercase"})).contains("normalizer"));
    assert!(error_after(|json| json["pre_tokenizer"] = json!(null)).contains("pre_tokenizer"));
    assert!(error_after(|json| json["pre_tokenizer"]["add_prefix_space"] = json!(true)).contains("add_prefix_space"));
    assert!(
        error_after(|json| {
            json["model"]["vocab"].as_object_mut().unwrap().remove("Ġ");
        })
        .contains("byte 0x20")
    );
    assert!(
        error_after(|json| json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]}))
        .contains("does not compile")
    );
}

#[test]
fn contradicting_ids_and_merges_are_errors() {
    assert!(error_after(|json| json["added_tokens"][0]["id"] = json!(65)).contains("added_tokens"));
    assert!(error_after(|json| json["added_tokens"][0]["id"] = json!(257)).contains("id 257 for both"));
    assert!(error_after(|json| json["added_tokens"][0]["content"] = json!("")).contains("empty content"));
    assert!(error_after(|json| json["added_tokens"][0]["content"] = json!("<|end|>")).contains("twice"));
    assert!(error_after(|json| json["model"]["vocab"]["<|end|>"] = json!(999)).contains("id 257 as in added_tokens"));
    assert!(error_after(|json| json["model"]["merges"] = json!([["a", "no\nsuch"]])).contains("in merge 0"));
    assert!(error_after(|json| json["model"]["merges"] = json!([["a", "b", "c"]])).contains("a merge"));
    assert!(error_after(|json| json["model"]["merges"] = json!(["a b c"])).contains("a merge"));
    // Two tokens whose join is longer than any token of the vocabulary.
    assert!(error_after(|json| json["model"]["merges"] = json!([["th", "th"]])).contains("\"thth\" in merge 0"));
    // Text must not be able to merge into a control token.
    let merge_into_control = error_after(|json| {
        json["model"]["vocab"]["ab"] = json!(990);
        json["added_tokens"].as_array_mut().unwrap().push(json!({"id": 990, "content": "ab", "special": true}));
        json["model"]["merges"] = json!([["a", "b"]]);
    });
    assert!(merge_into_control.contains("\"ab\" in merge 0"), "{merge_into_control}");
}

#[test]
fn configuration_files_are_optional_and_checked() {
    let tokenizer = from_parts(
        r#"{"bos_token_id": null, "eos_token_id": 7, "pad_token_id": [3, 4]}"#,
        r#"{"bos_token": {"content": "<|startoftext|>"}, "eos_token": "<|end|>"}"#,
    );
    let expected = SpecialIds { bos: tokenizer.control().startoftext, eos: vec![7], pad: Some(3) };
    assert_eq!(*tokenizer.special_ids(), expected);
    assert_eq!(*from_parts("{}", "{}").special_ids(), SpecialIds::default());

    let json = fuzz::byte_tokenizer_json();
    let message = load_parts(&json, r#"{"eos_token_id": "x"}"#, "{}").unwrap_err().to_string();
    assert!(message.contains("generation_config.json: eos_token_id: found \"\\\"x\\\"\""), "{message}");
    let message = load_parts(&json, "{}", r#"{"eos_token": "<|nope|>"}"#).unwrap_err().to_string();
    assert!(message.contains("tokenizer_config.json: eos_token: found \"<|nope|>\""), "{message}");
    let message = load_parts(&json, "[", "{}").unwrap_err().to_string();
    assert!(message.contains("generation_config.json: malformed"), "{message}");
}

#[test]
fn harmony_needs_its_tokens() {
    let mut json: Value = serde_json::from_str(&fuzz::byte_tokenizer_json()).unwrap();
    json["added_tokens"].as_array_mut().unwrap().retain(|token| token["content"] != "<|channel|>");
    let tokenizer = Tokenizer::from_bytes("m/tokenizer.json", json.to_string().as_bytes()).unwrap();
    assert!(!tokenizer.control().has_harmony());
    let message = tokenizer.control().harmony(&tokenizer).unwrap_err().to_string();
    assert!(message.starts_with("m/tokenizer.json: added_tokens: found no <|channel|>"), "{message}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn text_round_trips_without_control_tokens(text in prop_oneof![
        any::<String>(),
        "[a-z <|>endstartmessage\n]{0,40}",
        "(<\\|(end|start|message|channel|return|call)\\|>| |[a-z]{1,5}){0,12}",
    ]) {
        let tokenizer = fuzz::byte_tokenizer();
        let ids = tokenizer.encode(&text);
        prop_assert!(ids.iter().all(|&id| !tokenizer.is_control(id)));
        prop_assert_eq!(tokenizer.decode(&ids), text);
    }

    #[test]
    fn damaged_files_never_panic(
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
        cut in proptest::option::of(any::<proptest::sample::Index>()),
    ) {
        let mut bytes = fuzz::byte_tokenizer_json().into_bytes();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        fuzz::tokenizer_file(&bytes);
    }

    #[test]
    fn foreign_split_patterns_never_panic(pattern in "[ab()\\[\\]{}|?*+^$\\\\.!=<:,0-9 dswp]{0,16}", text in any::<String>()) {
        let mut json: Value = serde_json::from_str(&fuzz::byte_tokenizer_json()).unwrap();
        json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]});
        if let Ok(tokenizer) = Tokenizer::from_bytes("t", json.to_string().as_bytes()) {
            prop_assert_eq!(tokenizer.decode(&tokenizer.encode(&text)), text);
        }
    }
}
