use super::*;

/// The file of Llama 3.1 8B, as far as it matters.
pub fn published() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
        "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": { "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
            "rope_type": "llama3" },
        "rope_theta": 500000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16", "use_cache": true, "vocab_size": 128256
    })
}

fn parsed(value: &Value) -> LlamaConfig {
    match parse(value).unwrap().config {
        ModelConfig::Llama(config) => config,
        other => panic!("{other:?}"),
    }
}

fn set(key: &str, value: Value) -> Vec<String> {
    offenders_of(published(), |m| drop(m.insert(key.into(), value)))
}

#[test]
fn the_published_file_is_read() {
    let c = parsed(&published());
    assert_eq!((c.layers, c.hidden, c.intermediate, c.vocab, c.context), (32, 4096, 14336, 128_256, 131_072));
    assert_eq!((c.heads, c.kv_heads, c.head_dim, c.q_width(), c.kv_width()), (32, 8, 128, 4096, 1024));
    assert_eq!((c.rms_eps, c.tied, c.eos.as_slice(), c.pad), (1e-5, false, &[128_001, 128_008, 128_009][..], None));
    let rope = RopeConfig {
        theta: 500_000.0,
        factor: 8.0,
        beta_fast: 4.0,
        beta_slow: 1.0,
        original_context: 8192,
        ramp: RopeRamp::Rotations,
        truncate: false,
        attention_factor: 1.0,
    };
    assert_eq!(c.rope, rope);
    let config = parse(&published()).unwrap();
    assert_eq!((config.layout, config.warnings), (Layout::HuggingFace, vec![]));
    assert_eq!(config.config.windows(), [None; 32]);
    assert_eq!((config.config.experts_per_token(), config.config.speaks_harmony()), (0, false));
}

#[test]
fn absent_fields_mean_what_transformers_takes() {
    let mut value = published();
    let map = value.as_object_mut().unwrap();
    for key in ["architectures", "rope_scaling", "rope_theta", "num_key_value_heads", "rms_norm_eps", "eos_token_id"] {
        map.remove(key);
    }
    map.insert("pad_token_id".into(), json!(-1));
    let c = parsed(&value);
    assert_eq!((c.kv_heads, c.rms_eps, c.eos.len(), c.pad), (32, 1e-6, 0, None));
    assert_eq!((c.rope.theta, c.rope.factor, c.rope.attention_factor), (10_000.0, 1.0, 1.0));
    value["rope_scaling"] = json!({"rope_type": "default"});
    assert_eq!(parsed(&value).rope, c.rope);
    value["rope_scaling"] = Value::Null;
    value["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 10000.0});
    assert_eq!(parsed(&value).rope, c.rope);
    value["head_dim"] = json!(96);
    assert_eq!(parsed(&value).q_width(), 32 * 96);
}

#[test]
fn every_bad_value_names_its_field() {
    assert_eq!(set("hidden_size", Value::Null), ["hidden_size"]);
    assert_eq!(set("hidden_size", json!(4100)), ["head_dim"]);
    assert_eq!(set("head_dim", json!(33)), ["head_dim"]);
    assert_eq!(set("head_dim", json!(0)), ["head_dim"]);
    assert_eq!(set("num_key_value_heads", json!(7)), ["num_attention_heads"]);
    assert_eq!(set("num_key_value_heads", json!(0)), ["num_key_value_heads"]);
    assert_eq!(set("architectures", json!(["LlamaForSequenceClassification"])), ["architectures"]);
    assert_eq!(set("attention_bias", json!(true)), ["attention_bias"]);
    assert_eq!(set("mlp_bias", json!(true)), ["mlp_bias"]);
    assert_eq!(set("mlp_bias", json!("no")), ["mlp_bias"]);
    assert_eq!(set("hidden_act", json!("gelu")), ["hidden_act"]);
    assert_eq!(set("quantization_config", json!({"quant_method": "fp8"})), ["quantization_config"]);
    assert_eq!(set("tie_word_embeddings", json!(1)), ["tie_word_embeddings"]);
    assert_eq!(set("partial_rotary_factor", json!(0.5)), ["partial_rotary_factor"]);
    assert_eq!(set("pad_token_id", json!(-2)), ["pad_token_id"]);
    assert_eq!(set("rope_theta", json!(0)), ["rope_theta"]);
    let rope = |key: &str, value: Value| {
        offenders_of(published(), |m| drop(m["rope_scaling"].as_object_mut().unwrap().insert(key.into(), value)))
    };
    assert_eq!(rope("rope_type", json!("yarn")), ["rope_scaling.rope_type"]);
    assert_eq!(rope("rope_type", json!("linear")), ["rope_scaling.rope_type"]);
    assert_eq!(rope("factor", Value::Null), ["rope_scaling.factor"]);
    assert_eq!(rope("high_freq_factor", json!(0.5)), ["rope_scaling.high_freq_factor"]);
    assert_eq!(rope("original_max_position_embeddings", json!(0)), ["rope_scaling.original_max_position_embeddings"]);
}

#[test]
fn messages_read_well() {
    let message = |key: &str, value: Value| {
        let mut file = published();
        file[key] = value;
        parse(&file).unwrap_err().to_string()
    };
    assert_eq!(
        message("model_type", json!("mistral")),
        "config.json: model_type: found \"mistral\", expected \"gpt_oss\" or \"llama\"; use a GPT-OSS or Llama checkpoint; other architectures are not supported"
    );
    assert_eq!(
        message("rope_scaling", json!({"rope_type": "dynamic"})),
        "config.json: rope_scaling.rope_type: found \"dynamic\", expected \"default\" or \"llama3\"; use a published checkpoint; other rope types are not supported for this model"
    );
    assert_eq!(
        message("num_attention_heads", json!(48)),
        "config.json: head_dim: found nothing, expected a size from 1 to 1024, because hidden_size / num_attention_heads is not one; take the value from the published config.json"
    );
}

#[test]
fn the_json_reads_back() {
    let mut value = published();
    for rope in [value["rope_scaling"].clone(), Value::Null] {
        value["rope_scaling"] = rope;
        let config = parse(&value).unwrap().config;
        assert_eq!(parse(&config.to_hf_json()).unwrap().config, config);
    }
}
