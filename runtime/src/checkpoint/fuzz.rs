//! Fuzz bodies for the files a stranger may hand us. Each takes any bytes and panics only when a promise is broken;
//! property tests call them here, a fuzzer may call them from outside.

use gossamer_models::config::{GenerationDefaults, ModelConfig};

use super::files::{is_plain_name, parse_index};
use super::header::read_header;

/// Reads `file` as a safetensors file: whatever is accepted has disjoint tensors that tile the data exactly.
pub fn safetensors_header(file: &[u8]) {
    let len = file.len() as u64;
    let read_at = |offset: u64, out: &mut [u8]| {
        let start = offset as usize;
        out.copy_from_slice(&file[start..start + out.len()]); // a read beyond the file would panic here
        Ok(())
    };
    match read_header("fuzz.safetensors", len, read_at) {
        Ok(tensors) => {
            let mut end = None;
            for t in &tensors {
                assert!(end.is_none_or(|end| end == t.offset), "gap or overlap before {}", t.name);
                end = Some(t.offset + t.bytes);
            }
            assert!(end.is_none_or(|end| end == len), "data of an accepted file ends at {end:?} of {len}");
        }
        Err(problem) => assert_one_line(&problem.to_string()),
    }
}

/// Reads `text` as an index: whatever is accepted names only files directly inside the folder.
pub fn index(text: &str) {
    match parse_index("fuzz.index.json", text) {
        Ok(index) => {
            for file in index.weight_map.values() {
                assert!(is_plain_name(file), "{file:?} leaves the folder");
                let path = std::path::Path::new(file);
                assert_eq!(path.components().count(), 1, "{file:?} leaves the folder");
            }
        }
        Err(problems) => problems.iter().for_each(|p| assert_one_line(&p.to_string())),
    }
}

/// Reads `text` as `config.json` and as `generation_config.json`: an accepted configuration writes and reads back as
/// itself, and its tensor table can be made without overflow.
pub fn config(text: &str) {
    match ModelConfig::parse(text, "config.json") {
        Ok(parsed) => {
            let bytes: u64 = parsed.config.weights().iter().map(|w| w.bytes()).sum();
            for layout in parsed.config.layouts() {
                let stored: u64 = parsed.config.checkpoint_tensors(*layout).iter().map(|t| t.bytes()).sum();
                assert_eq!(stored, bytes);
            }
        }
        Err(error) => error.to_string().lines().for_each(assert_one_line),
    }
    let _ = GenerationDefaults::parse(text, "generation_config.json");
}

fn assert_one_line(text: &str) {
    assert!(!text.is_empty() && !text.chars().any(char::is_control), "not one clean line: {text:?}");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    /// A file from a header and some data, and its length field possibly wrong.
    fn file(header: &[u8], data: usize, error: i64) -> Vec<u8> {
        let len = (header.len() as u64).wrapping_add_signed(error);
        [&len.to_le_bytes()[..], header, &vec![0; data]].concat()
    }

    fn number() -> impl Strategy<Value = Value> {
        prop_oneof![
            (0_u64..40).prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from)
        ]
    }

    fn tensor() -> impl Strategy<Value = Value> {
        let dtype = prop::sample::select(vec!["BF16", "U8", "F32", "F4", "F6_E2M3", "nonsense"]);
        let valid =
            (0_u64..4, 0_u64..5).prop_map(|(n, at)| json!({"dtype": "U8", "shape": [n], "data_offsets": [at, at + n]}));
        let any = (dtype, prop::collection::vec(number(), 0..4), number(), number())
            .prop_map(|(d, shape, a, b)| json!({"dtype": d, "shape": shape, "data_offsets": [a, b]}));
        prop_oneof![3 => valid, 2 => any, 1 => number()]
    }

    fn header() -> impl Strategy<Value = String> {
        prop::collection::vec(("[a-c]|__metadata__|\u{7}", tensor()), 0..4).prop_map(|entries| {
            // Written by hand: names may repeat.
            let entries: Vec<String> = entries.iter().map(|(k, v)| format!("{}: {v}", json!(k))).collect();
            format!("{{{}}}", entries.join(","))
        })
    }

    proptest! {
        #[test]
        fn header_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            super::safetensors_header(&bytes);
        }

        #[test]
        fn header_structures(header in header(), data in 0_usize..12, error in prop_oneof![8 => Just(0_i64), 1 => -3_i64..3, 1 => any::<i64>()]) {
            super::safetensors_header(&file(header.as_bytes(), data, error));
        }

        #[test]
        fn index_text(text in prop_oneof![".{0,100}", r#"\{"weight_map": \{"[a-b]": "[./\\\\a-b~]{0,4}(\.safetensors)?"(, "[a-b]": "\.?[a-z]\.safetensors")?\}\}"#]) {
            super::index(&text);
        }

        #[test]
        fn config_text(text in prop_oneof![".{0,100}", r#"\{"model_type": "(gpt_oss|llama)", "(hidden_size|head_dim|rope_scaling|layer_types)": (\[\]|\{\}|-?[0-9]{1,20}|"\u0007")\}"#]) {
            super::config(&text);
        }
    }

    #[test]
    fn valid_files_are_accepted() {
        let header = br#"{"a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}}"#;
        super::safetensors_header(&file(header, 3, 0));
        super::config(&gossamer_models::presets::gpt_oss_20b().to_hf_json().to_string());
        super::index(r#"{"metadata": {"total_size": 3}, "weight_map": {"a": "model.safetensors"}}"#);
    }
}
