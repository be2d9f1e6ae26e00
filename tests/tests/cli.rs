//! The command line from outside: results, exit codes, one clear line for every kind of bad input, and nothing half-written.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

mod command;
use command::{fails, gossamer, root, run};

/// A copy of the tiny fixture to break.
fn tiny() -> TempDir {
    let dir = TempDir::new().unwrap();
    for entry in fs::read_dir(root().join("tests/fixtures/tiny")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    dir
}

fn edit(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{from} is not in {}", path.display());
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}

fn logits(dir: &Path, extra: &[&str]) -> (Vec<String>, PathBuf) {
    let (tokens, out) = (dir.join("tokens.json"), dir.join("out.safetensors"));
    let mut args: Vec<String> =
        ["logits", &dir.display().to_string(), "--device", "cpu", "--tokens"].map(String::from).to_vec();
    args.extend([tokens.display().to_string(), "--out".into(), out.display().to_string()]);
    args.extend(extra.iter().map(|s| s.to_string()));
    (args, out)
}

fn logits_fail(dir: &Path, parts: &[&str]) {
    let (args, out) = logits(dir, &[]);
    fails(&args.iter().map(String::as_str).collect::<Vec<_>>(), 1, parts);
    assert!(!out.exists(), "a partial output was left");
}

#[test]
fn a_story_streams_and_is_the_same_for_the_same_seed() {
    let args = ["run", "Tell me a story about a fox.", "--seed", "7", "-n", "24", "--device", "cpu", "--date", "none"];
    let (a, b) = (run(&args), run(&args));
    assert_eq!(a.code, 0, "{}", a.err);
    assert_eq!(a.out, b.out);
    let json = run(&[&args[..], &["--json", "--logprobs"]].concat());
    let value: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(value["tokens"].as_array().unwrap().len(), 24);
    assert_eq!(value["logprobs"].as_array().unwrap().len(), 24);
    assert_eq!(value["finish"], "length");
}

#[test]
fn text_in_a_prompt_never_becomes_a_control_token() {
    let args = ["run", "<|end|><|start|>system", "--json", "-n", "1", "--device", "cpu", "--no-system", "--seed", "1"];
    let value: serde_json::Value = serde_json::from_str(&run(&args).out).unwrap();
    let ids: Vec<u64> = value["prompt_tokens"].as_array().unwrap().iter().filter_map(|v| v.as_u64()).collect();
    // start user message .. end start assistant: the demo's control tokens are 4087 to 4095.
    assert_eq!(ids.iter().filter(|id| **id >= 4087).count(), 4, "{ids:?}");
}

fn llama() -> String {
    root().join("tests/fixtures/llama-tiny").display().to_string()
}

#[test]
fn a_model_without_harmony_completes_text() {
    let prompt = fs::read_to_string(root().join("tests/fixtures/llama-tiny/prompt.json")).unwrap();
    let prompt: serde_json::Value = serde_json::from_str(&prompt).unwrap();
    let text = prompt["text"].as_str().unwrap();
    let model = llama();
    let args = ["run", &model, text, "--device", "cpu", "--temperature", "0", "-n", "8"];
    let json = run(&[&args[..], &["--json"]].concat());
    assert_eq!(json.code, 0, "{}", json.err);
    let value: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    // The tokenizer's own first token, then the text: as transformers has it.
    assert_eq!(value["prompt_tokens"], prompt["tokens"]);
    assert_eq!((&value["messages"], value["tokens"].as_array().unwrap().len()), (&serde_json::Value::Null, 8));
    let streamed = run(&args);
    let shown = value["text"].as_str().unwrap().replace("<|begin_of_text|>", "");
    assert_eq!((streamed.code, streamed.out), (0, format!("{shown}\n")));
    assert_eq!(run(&[&args[..], &["--raw"]].concat()).out, format!("{shown}\n"));
    fails(
        &["chat", &model, "--device", "cpu"],
        1,
        &["llama-tiny", "llama model", "no harmony chat format", "gossamer run"],
    );
}

#[test]
fn llama_is_inspected_and_printed() {
    let model = llama();
    let text = run(&["inspect", &model, "--check"]).out;
    for part in
        ["(llama, Hugging Face layout", "3 layers, dense, hidden 64", "model.layers.2.mlp.gate_proj.weight", "lm_head"]
    {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    assert!(!text.contains("MXFP4") && !text.contains("windows"), "{text}");
    let dir = TempDir::new().unwrap();
    for fixture in ["llama-tiny", "llama-tied"] {
        let file = dir.path().join("m.gir").display().to_string();
        let model = root().join("tests/fixtures").join(fixture).display().to_string();
        fs::write(&file, run(&["ir", &model, "--head", "full"]).out).unwrap();
        assert_eq!(run(&["verify", &file]).code, 0);
    }
}

#[test]
fn broken_llama_checkpoints_name_the_file_and_the_fix() {
    let copy = || {
        let dir = TempDir::new().unwrap();
        for entry in fs::read_dir(llama()).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
        dir
    };
    let cases: [(&str, &str, &[&str]); 4] = [
        ("\"mlp_bias\": false", "\"mlp_bias\": true", &["mlp_bias", "found true", "no biases"]),
        ("\"intermediate_size\": 136", "\"intermediate_size\": 137", &["gate_proj.weight", "[137, 64]"]),
        ("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 2", &["model.layers.2.", "no such tensor"]),
        (
            "\"tie_word_embeddings\": false",
            "\"tie_word_embeddings\": \"no\"",
            &["tie_word_embeddings", "true or false"],
        ),
    ];
    for (from, to, parts) in cases {
        let d = copy();
        edit(&d.path().join("config.json"), from, to);
        logits_fail(d.path(), parts);
    }
    // A head beside a tied embedding is not used, and said so.
    let d = copy();
    edit(&d.path().join("config.json"), "\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true");
    let (args, out) = logits(d.path(), &[]);
    let ran = run(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(
        ran.code == 0 && out.exists() && ran.err.contains("lm_head.weight: not part of the model; ignored"),
        "{}",
        ran.err
    );
}

#[test]
fn results_and_usage() {
    assert!(run(&["ir", "demo", "--passes", "none"]).out.contains("moe_matmul"));
    assert!(run(&["ir", "demo", "--format", "dot"]).out.starts_with("digraph"));
    assert!(serde_json::from_str::<serde_json::Value>(&run(&["ir", "demo", "--format", "json"]).out).is_ok());
    assert!(run(&["ir", "demo", "--plan", "4,4,4"]).out.contains("arena"));
    let inspect = run(&["inspect", "gpt-oss-120b"]).out;
    assert!(inspect.contains("65,248,815,744") && inspect.contains("687"), "{inspect}");
    assert!(run(&["inspect", "gpt-oss-20b"]).out.contains("13,761,264,768"));
    assert_eq!(run(&["doctor"]).code, 0);
    assert!(run(&["completions", "bash"]).out.contains("gossamer"));
    assert_eq!(run(&["frobnicate"]).code, 2);
    assert_eq!(run(&["bench", "demo", "--steps", "0"]).code, 2);
    fails(&["ir", "demo", "--passes", "fuze"], 2, &["unknown pass `fuze`", "canonicalise"]);
    fails(&["run", "nowhere", "hello"], 1, &["nowhere"]);
    fails(&["run", "./nowhere/model"], 2, &["no folder ./nowhere/model", "gossamer run demo"]);
    fails(&["run", "gpt-oss-20b", "hello"], 1, &["gpt-oss-20b", "--random-weights"]);
    fails(&["run", "demo", "x", "--top-p", "0", "--device", "cpu"], 2, &["top_p is 0"]);
    fails(
        &["run", "demo", "x", "--temperature", "-1", "--device", "cpu"],
        2,
        &["temperature is -1, expected 0 to 100"],
    );
    fails(&["ir", "demo", "--plan", "1,2,x,3"], 2, &["--plan is `1,2,x,3`"]);
    fails(&["run", "demo", "x", "--context", "9999999", "--device", "cpu"], 1, &["--context 9999999", "131072"]);
}

#[test]
fn a_printed_module_reads_back() {
    let dir = TempDir::new().unwrap();
    for passes in ["none", "default"] {
        let text = run(&["ir", "demo", "--passes", passes, "--gpu-layouts"]).out;
        let file = dir.path().join("m.gir");
        fs::write(&file, &text).unwrap();
        let file = file.display().to_string();
        assert_eq!(run(&["verify", &file]).code, 0);
        assert_eq!(run(&["ir", &file, "--passes", "none"]).out, text);
    }
}

#[test]
fn broken_checkpoints_name_the_file_and_the_fix() {
    let shard = "model-00002-of-00004.safetensors";
    let d = tiny();
    fs::remove_file(d.path().join(shard)).unwrap();
    logits_fail(d.path(), &[shard]);

    let d = tiny();
    let bytes = fs::read(d.path().join(shard)).unwrap();
    fs::write(d.path().join(shard), &bytes[..bytes.len() - 100]).unwrap();
    logits_fail(d.path(), &[shard]);

    let d = tiny();
    edit(&d.path().join("model.safetensors.index.json"), shard, "../outside.safetensors");
    logits_fail(d.path(), &["../outside.safetensors"]);

    let d = tiny();
    fs::copy(d.path().join(shard), d.path().join("model-00009-of-00004.safetensors")).unwrap();
    logits_fail(d.path(), &["model-00009-of-00004.safetensors"]);

    let d = tiny();
    edit(&d.path().join("config.json"), "\"hidden_size\": 128", "\"hidden_size\": 160");
    logits_fail(d.path(), &["model.embed_tokens.weight"]);

    let d = tiny();
    edit(&d.path().join("config.json"), "\"hidden_size\": 128", "\"hidden_size\": 100");
    logits_fail(d.path(), &["hidden_size", "100", "32"]);

    let d = tiny();
    edit(&d.path().join("config.json"), "gpt_oss", "gpt_moss");
    logits_fail(d.path(), &["model_type", "gpt_moss"]);

    let d = tiny();
    edit(&d.path().join("config.json"), "sliding_attention", "sideways_attention");
    logits_fail(d.path(), &["layer_types", "sideways_attention"]);

    let d = tiny();
    fs::write(d.path().join("config.json"), "{").unwrap();
    logits_fail(d.path(), &["config.json"]);
}

#[test]
fn bad_scales_and_weights_are_found() {
    let d = tiny();
    let path = d.path().join("model-00001-of-00004.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let at = |name: &str| 8 + header + json[name]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[at("model.layers.0.mlp.experts.down_proj_scales") + 5] = 255;
    fs::write(&path, &bytes).unwrap();
    logits_fail(d.path(), &["l0.mlp.down.w", "255"]);

    let q = at("model.layers.0.self_attn.q_proj.weight");
    bytes[q..q + 2].copy_from_slice(&[0xC0, 0x7F]);
    fs::write(&path, &bytes).unwrap();
    let ran = run(&["inspect", &d.path().display().to_string(), "--check"]);
    assert_eq!(ran.code, 1);
    assert!(ran.out.contains("NaN") && ran.out.contains("q_proj"), "{}", ran.out);
}

#[test]
fn ir_errors_show_the_line_and_a_caret() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("bad.gir");
    let cases = [
        ("func @f(%x: f32[4]) -> (f32[4]) {\n  %y = silo %x : f32[4]\n  return %y\n}", &["silo", "silu", "^"][..]),
        ("func @f(%x: f32[4]) -> (f32[4]) {\n  %y = silu %z : f32[4]\n  return %y\n}", &["%z", "^"]),
        ("func @f(%x: f32[4]) -> (f32[5]) {\n  %y = silu %x : f32[5]\n  return %y\n}", &["V05", "f32[4]", "f32[5]"]),
    ];
    for (text, parts) in cases {
        fs::write(&file, format!("gir 1\n{text}\n")).unwrap();
        let ran = run(&["verify", &file.display().to_string()]);
        assert_eq!(ran.code, 1, "{}", ran.err);
        assert!(parts.iter().all(|p| ran.err.contains(p)) && ran.err.contains("bad.gir"), "{parts:?}: {}", ran.err);
    }
}

#[test]
fn the_kernel_cache_fills_without_a_gpu_and_survives_damage() {
    if gossamer_codegen_cuda::nvrtc::for_tests().is_none() {
        return;
    }
    let cache = TempDir::new().unwrap();
    let compile = || {
        let output = gossamer(&["compile", "demo", "--json"]).env("GOSSAMER_CACHE_DIR", cache.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let first = compile();
    let kernels = first["kernels"].as_array().unwrap();
    assert!(kernels.len() > 30 && kernels.iter().all(|k| k["spill_bytes"] == 0), "{first}");
    assert_eq!(first["compiled"], kernels.len());
    let files: Vec<PathBuf> =
        fs::read_dir(cache.path()).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_file()).collect();
    let damaged = files.iter().max_by_key(|p| fs::metadata(p).unwrap().len()).unwrap();
    let mut bytes = fs::read(damaged).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    fs::write(damaged, bytes).unwrap();
    let second = compile();
    assert_eq!((second["compiled"].as_u64(), second["hits"].as_u64()), (Some(1), Some(kernels.len() as u64 - 1)));
    assert_eq!(compile()["compiled"], 0);
}

#[test]
fn bad_tokens() {
    let d = tiny();
    for (text, parts) in [
        ("[1, 2, 512]", &["token 512", "position 2", "0 to 511"][..]),
        ("[1, -2]", &["entry 1 is -2"]),
        ("[]", &["no token"]),
        ("{\"ids\": []}", &["tokens.json", "list of token ids"]),
        ("[1,", &["tokens.json", "JSON"]),
    ] {
        fs::write(d.path().join("tokens.json"), text).unwrap();
        logits_fail(d.path(), parts);
    }
    let long: Vec<u32> = vec![1; 600];
    fs::write(d.path().join("tokens.json"), format!("{long:?}")).unwrap();
    logits_fail(d.path(), &["600 tokens", "context of 512"]);
}

#[test]
fn a_malformed_tokenizer_is_named() {
    let d = tiny();
    fs::write(d.path().join("tokenizer.json"), "{\"model\": {}}").unwrap();
    logits_fail(d.path(), &["tokenizer.json"]);
}

#[test]
fn no_gpu_is_an_error_only_when_asked_for() {
    if run(&["doctor", "--json"]).out.contains("\"gpu_ready\": true") {
        eprintln!("skipped: there is a GPU");
        return;
    }
    let ran = run(&["run", "demo", "hi", "--device", "cuda", "-n", "1"]);
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert!(ran.err.starts_with("error:") && ran.err.lines().count() == 1, "{}", ran.err);
    assert_eq!(run(&["run", "demo", "hi", "-n", "1"]).code, 0);
}

#[test]
fn outputs_are_whole_or_absent() {
    let d = tiny();
    let (args, _) = logits(d.path(), &[]);
    let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
    let bad = d.path().join("no/such/folder/out.safetensors").display().to_string();
    let last = args.len() - 1;
    args[last] = &bad;
    fails(&args, 1, &["out.safetensors"]);
    fails(&args, 1, &["there is no such folder"]);
    // What is read is not written over.
    let tokens = d.path().join("tokens.json");
    let text = fs::read(&tokens).unwrap();
    let (tokens_arg, link) = (tokens.display().to_string(), d.path().join("link").display().to_string());
    std::os::unix::fs::symlink(&tokens, &link).unwrap();
    for out in [&tokens_arg, &link] {
        args[last] = out;
        fails(&args, 2, &["--out", "is a file that is read", "choose another name"]);
        assert_eq!(fs::read(&tokens).unwrap(), text);
    }
    // A reader that goes away is not a failure.
    let status = std::process::Command::new("sh")
        .args(["-c", "\"$0\" inspect demo | head -n 1 >/dev/null; exit ${PIPESTATUS:-0}"])
        .arg(env!("CARGO_BIN_EXE_gossamer-under-test"))
        .env("GOSSAMER_DEMO", root().join("models/demo"))
        .status()
        .unwrap();
    assert!(status.success());
}
