mod llama;

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::presets::{gpt_oss_20b, gpt_oss_120b};

/// The published 20B file, as far as it matters.
fn published() -> Value {
    json!({
        "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "attention_bias": true, "attention_dropout": 0.0,
        "eos_token_id": 200002, "experts_per_token": 4, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2880,
        "initial_context_length": 4096, "initializer_range": 0.02, "intermediate_size": 2880,
        "layer_types": (0..24).map(|i| if i % 2 == 0 { "sliding_attention" } else { "full_attention" }).collect::<Vec<_>>(),
        "max_position_embeddings": 131072, "num_attention_heads": 64, "num_experts_per_tok": 4, "num_hidden_layers": 24,
        "num_key_value_heads": 8, "num_local_experts": 32, "output_router_logits": false, "pad_token_id": 199999,
        "quantization_config": { "modules_to_not_convert": ["lm_head"], "quant_method": "mxfp4" },
        "rms_norm_eps": 1e-05,
        "rope_scaling": { "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096,
            "rope_type": "yarn", "truncate": false },
        "rope_theta": 150000, "router_aux_loss_coef": 0.9, "sliding_window": 128, "swiglu_limit": 7.0,
        "tie_word_embeddings": false, "transformers_version": "4.55.0.dev0", "use_cache": true, "vocab_size": 201088
    })
}

fn original() -> Value {
    json!({
        "num_hidden_layers": 36, "num_experts": 128, "experts_per_token": 4, "vocab_size": 201088, "hidden_size": 2880,
        "intermediate_size": 2880, "swiglu_limit": 7.0, "head_dim": 64, "num_attention_heads": 64, "num_key_value_heads": 8,
        "sliding_window": 128, "initial_context_length": 4096, "rope_theta": 150000, "rope_scaling_factor": 32.0,
        "rope_ntk_alpha": 1, "rope_ntk_beta": 32
    })
}

fn parse(value: &Value) -> Result<ParsedConfig, ConfigError> {
    ModelConfig::parse(&value.to_string(), "config.json")
}

fn parsed(value: &Value) -> GptOssConfig {
    match parse(value).unwrap().config {
        ModelConfig::GptOss(config) => config,
        other => panic!("{other:?}"),
    }
}

/// The fields complained about after one change to the published file.
fn offenders(change: impl FnOnce(&mut Map<String, Value>)) -> Vec<String> {
    offenders_of(published(), change)
}

fn offenders_of(mut value: Value, change: impl FnOnce(&mut Map<String, Value>)) -> Vec<String> {
    change(value.as_object_mut().unwrap());
    let error = parse(&value).unwrap_err();
    for line in error.to_string().lines() {
        assert!(line.starts_with("config.json: ") && line.contains("found ") && line.contains("expected "), "{line}");
    }
    error.problems().iter().map(|p| p.field.clone()).collect()
}

#[test]
fn the_published_file_gives_the_preset() {
    let mut preset = gpt_oss_20b();
    preset.eos = vec![200_002]; // the other ids come from generation_config.json
    let parsed = parse(&published()).unwrap();
    assert_eq!(parsed.config, ModelConfig::GptOss(preset));
    assert_eq!(parsed.layout, Layout::HuggingFace);
    assert_eq!(parsed.warnings, Vec::<String>::new());
}

#[test]
fn the_original_file_gives_the_preset() {
    let parsed = parse(&original()).unwrap();
    assert_eq!(parsed.config, ModelConfig::GptOss(gpt_oss_120b()));
    assert_eq!(parsed.layout, Layout::Original);
    let mut value = original();
    value["packed"] = json!(true);
    assert_eq!(parse(&value).unwrap().warnings, ["config.json: packed: not a field of the original release; ignored"]);
}

#[test]
fn rope_parameters_of_transformers_5_mean_the_same() {
    let mut value = published();
    let map = value.as_object_mut().unwrap();
    let mut rope = map.remove("rope_scaling").unwrap();
    rope["rope_theta"] = map.remove("rope_theta").unwrap();
    map.insert("rope_parameters".into(), rope);
    assert_eq!(parsed(&value), parsed(&published()));
}

#[test]
fn both_rope_objects_must_agree() {
    let mut value = published();
    value["rope_parameters"] = value["rope_scaling"].clone();
    assert_eq!(parsed(&value), parsed(&published()));
    value["rope_parameters"]["factor"] = json!(16);
    assert_eq!(parse(&value).unwrap_err().problems()[0].field, "rope_scaling");
    let mut value = published();
    value["rope_scaling"]["rope_theta"] = json!(10000);
    assert_eq!(parse(&value).unwrap_err().problems()[0].field, "rope_scaling.rope_theta");
}

#[test]
fn integers_and_floats_are_interchangeable() {
    let mut value = published();
    value["rope_scaling"]["factor"] = json!(32);
    value["swiglu_limit"] = json!(7);
    value["rope_theta"] = json!(150000.0);
    value["num_hidden_layers"] = json!(24.0);
    assert_eq!(parsed(&value), parsed(&published()));
}

#[test]
fn absent_layer_types_alternate_and_absent_eos_is_empty() {
    let mut value = published();
    let map = value.as_object_mut().unwrap();
    map.remove("layer_types");
    map.remove("num_experts_per_tok");
    map.insert("eos_token_id".into(), json!([5, 6, 5]));
    let config = parsed(&value);
    assert_eq!(config.layer_types, GptOssConfig::alternating(24));
    assert_eq!(config.experts_per_token, 4);
    assert_eq!(config.eos, [5, 6]);
}

#[test]
fn concentration_follows_the_factor_unless_given() {
    assert!((gpt_oss_20b().rope.attention_factor - 1.346_573_590_279_972_7).abs() < 1e-15);
    let mut value = published();
    value["rope_scaling"]["attention_factor"] = json!(1.5);
    assert_eq!(parsed(&value).rope.attention_factor, 1.5);
    value["rope_scaling"] = json!({"rope_type": "default"});
    let rope = parsed(&value).rope;
    assert_eq!((rope.factor, rope.attention_factor), (1.0, 1.0));
}

#[test]
fn absent_truncate_is_true_with_a_warning() {
    let mut value = published();
    value["rope_scaling"].as_object_mut().unwrap().remove("truncate");
    let parsed = parse(&value).unwrap();
    assert!(matches!(parsed.config, ModelConfig::GptOss(config) if config.rope.truncate));
    assert!(parsed.warnings[0].contains("rope_scaling.truncate"), "{:?}", parsed.warnings);
}

#[test]
fn every_bad_value_names_its_field() {
    let set = |key: &'static str, value: Value| {
        offenders(move |m| {
            m.insert(key.into(), value);
        })
    };
    assert_eq!(set("model_type", json!("mixtral")), ["model_type"]);
    assert_eq!(set("model_type", json!(7)), ["model_type"]);
    assert_eq!(set("hidden_size", json!(2890)), ["hidden_size"]);
    assert_eq!(set("intermediate_size", json!(33)), ["intermediate_size"]);
    assert_eq!(set("num_key_value_heads", json!(7)), ["num_attention_heads"]);
    assert_eq!(set("num_attention_heads", json!(0)), ["num_attention_heads"]);
    assert_eq!(set("head_dim", json!(63)), ["head_dim"]);
    assert_eq!(set("vocab_size", json!(1_u64 << 60)), ["vocab_size"]);
    assert_eq!(set("vocab_size", json!(-3)), ["vocab_size"]);
    assert_eq!(set("vocab_size", json!("many")), ["vocab_size"]);
    assert_eq!(set("num_experts_per_tok", json!(5)), ["experts_per_token"]);
    assert_eq!(set("num_local_experts", json!(3)), ["num_experts_per_tok"]);
    assert_eq!(set("sliding_window", Value::Null), ["sliding_window"]);
    assert_eq!(set("attention_bias", json!(false)), ["attention_bias"]);
    assert_eq!(set("tie_word_embeddings", json!(true)), ["tie_word_embeddings"]);
    assert_eq!(set("hidden_act", json!("gelu")), ["hidden_act"]);
    assert_eq!(set("rms_norm_eps", json!(-1)), ["rms_norm_eps"]);
    assert_eq!(set("quantization_config", json!({"quant_method": "gptq"})), ["quantization_config.quant_method"]);
    assert_eq!(set("quantization_config", Value::Null), ["quantization_config"]);
    assert_eq!(set("quantization_config", json!([])), ["quantization_config"]);
    assert_eq!(set("rope_scaling", json!({"rope_type": "longrope"})), ["rope_scaling.rope_type"]);
    assert_eq!(set("rope_scaling", json!({})), ["rope_scaling.type"]);
    assert_eq!(set("rope_scaling", Value::Null), ["rope_scaling"]);
    assert_eq!(set("rope_scaling", json!(4)), ["rope_scaling"]);
    assert_eq!(set("rope_theta", json!(0)), ["rope_theta"]);
    assert_eq!(set("layer_types", json!("alternate")), ["layer_types"]);
    assert_eq!(set("eos_token_id", json!([1, "x"])), ["eos_token_id"]);
    let types = offenders(|m| {
        let list = m["layer_types"].as_array_mut().unwrap();
        list[3] = json!("chunked_attention");
        list.push(json!("full_attention"));
    });
    assert_eq!(types, ["layer_types", "layer_types[3]"]);
}

#[test]
fn all_problems_are_reported_at_once() {
    let fields = offenders(|m| {
        m.insert("hidden_size".into(), json!(100));
        m.insert("head_dim".into(), json!(null));
        m.insert("tie_word_embeddings".into(), json!(true));
        m["rope_scaling"]["beta_fast"] = json!(0.5);
    });
    assert_eq!(fields, ["head_dim", "rope_scaling.beta_fast", "tie_word_embeddings", "hidden_size"]);
}

#[test]
fn messages_read_well() {
    let mut value = published();
    value["hidden_size"] = json!(100);
    let text = parse(&value).unwrap_err().to_string();
    assert_eq!(
        text,
        "config.json: hidden_size: found 100, expected a multiple of 32, the MXFP4 block; take the values from the published config.json"
    );
    let text = ModelConfig::parse("{\"a\": }", "x/config.json").unwrap_err().to_string();
    assert_eq!(text, "x/config.json: line 1, column 7: not valid JSON (expected value); fetch the file again");
    let text = ModelConfig::parse("[1]", "config.json").unwrap_err().to_string();
    assert_eq!(text, "config.json: found a list, expected a JSON object; fetch the file again");
}

#[test]
fn generation_defaults() {
    let text = r#"{"bos_token_id": 199998, "do_sample": true, "eos_token_id": [200002, 199999], "temperature": 1, "top_k": 0}"#;
    let d = GenerationDefaults::parse(text, "generation_config.json").unwrap();
    assert_eq!(d.eos, [200_002, 199_999]);
    assert_eq!((d.bos, d.pad, d.temperature, d.top_k, d.do_sample), (Some(199_998), None, Some(1.0), None, Some(true)));
    let e = GenerationDefaults::parse(r#"{"top_p": 3, "eos_token_id": -1}"#, "g.json").unwrap_err();
    assert_eq!(e.problems().len(), 2);
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        // Short binary fractions: the JSON parser may be one ulp off on others, which round trips would see.
        any::<i16>().prop_map(|n| Value::from(f64::from(n) / 64.0)),
        Just(json!(1e300)),
        Just(json!(-1e-300)),
        (0_u64..300).prop_map(Value::from),
        "[a-z_0-9.]{0,12}".prop_map(Value::from),
        Just(json!("yarn")),
        Just(json!("llama3")),
        Just(json!("default")),
        Just(json!("mxfp4")),
    ];
    leaf.prop_recursive(3, 24, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map("[a-z_]{1,10}", inner, 0..5)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

/// Replaces, removes or nests at random places of a valid file.
fn mutated(base: Value) -> impl Strategy<Value = Value> {
    let keys: Vec<String> =
        base.as_object().unwrap().keys().cloned().chain(["rope_parameters".into(), "swiglu_alpha".into()]).collect();
    let edit = (prop::sample::select(keys), prop::option::of(any_json()), any::<bool>());
    prop::collection::vec(edit, 0..4).prop_map(move |edits| {
        let mut value = base.clone();
        for (key, new, inside) in edits {
            let map = value.as_object_mut().unwrap();
            match (new, map.get_mut(&key)) {
                (Some(new), Some(Value::Object(inner))) if inside => {
                    let first = inner.keys().next().cloned().unwrap_or_default();
                    inner.insert(first, new);
                }
                (Some(new), _) => drop(map.insert(key, new)),
                (None, _) => drop(map.remove(&key)),
            }
        }
        value
    })
}

fn never_panics_and_round_trips(value: &Value) {
    if let Ok(parsed) = parse(value) {
        let again = parse(&parsed.config.to_hf_json()).unwrap();
        assert_eq!(again.config, parsed.config);
        let total: u64 = parsed.config.weights().iter().map(WeightSpec::bytes).sum();
        assert!(total > 0);
    }
}

proptest! {
    #[test]
    fn random_json_never_panics(value in any_json()) {
        never_panics_and_round_trips(&value);
    }

    #[test]
    fn random_text_never_panics(text in ".{0,200}") {
        let _ = ModelConfig::parse(&text, "config.json");
        let _ = GenerationDefaults::parse(&text, "generation_config.json");
    }

    #[test]
    fn mutated_files_never_panic(value in prop_oneof![mutated(published()), mutated(original()), mutated(llama::published())]) {
        never_panics_and_round_trips(&value);
    }
}
