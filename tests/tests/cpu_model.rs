//! Whole models on the CPU against Hugging Face transformers in float32: the fixture to 1e-5, the demo model's losses and greedy text.

use std::fs;
use std::path::{Path, PathBuf};

use gossamer_ir::interp::Rounding;
use gossamer_models::names::{Layout, Part};
use gossamer_passes::manager::{default_pipeline, parse_pipeline};
use gossamer_runtime::checkpoint::{Checkpoint, WeightSource, read_part};
use gossamer_runtime::engine::{Engine, SamplingParams, Work};
use gossamer_runtime::generate::{Flow, Request, generate};
use gossamer_runtime::session::{DeviceChoice, SessionOptions, open};
use gossamer_runtime::text::StopSet;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn options(model: &str) -> SessionOptions {
    let model = root().join(model).display().to_string();
    SessionOptions { device: DeviceChoice::Cpu, ..SessionOptions::new(&model) }
}

fn f32s(file: &SafeTensors, name: &str) -> Vec<f32> {
    let data = file.tensor(name).unwrap().data().to_vec();
    data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// Greatest relative error over rows of `width`.
fn worst(reference: &[f32], got: &[f32], width: usize) -> f64 {
    assert_eq!(reference.len(), got.len());
    let row = |(a, b): (&[f32], &[f32])| {
        let d: f64 = a.iter().zip(b).map(|(x, y)| f64::from(x - y).powi(2)).sum();
        let n: f64 = a.iter().map(|x| f64::from(*x).powi(2)).sum();
        (d / n).sqrt()
    };
    reference.chunks(width).zip(got.chunks(width)).map(row).fold(0.0, f64::max)
}

/// Logits of all tokens and hidden states, fed in chunks of the engine's size.
fn feed(engine: &mut Engine, tokens: &[u32]) -> (Vec<f32>, Vec<Vec<f32>>) {
    let seq = engine.start(tokens.len()).unwrap();
    let (mut logits, mut hidden) = (Vec::new(), Vec::<Vec<f32>>::new());
    for part in tokens.chunks(engine.options().chunk) {
        let out = engine.logits(seq, part, true).unwrap();
        logits.extend(out.logits);
        hidden.resize(out.hidden.len(), Vec::new());
        hidden.iter_mut().zip(out.hidden).for_each(|(all, part)| all.extend(part));
    }
    engine.end(seq);
    (logits, hidden)
}

fn request(prompt: &[u32], max_tokens: usize) -> Request {
    Request { prompt: prompt.to_vec(), params: SamplingParams::greedy(), max_tokens, stop: StopSet::from_ids([]) }
}

fn greedy(engine: &mut Engine, requests: &[Request]) -> Vec<Vec<u32>> {
    let (answers, _) = generate(engine, requests, &mut |_, _| Flow::Continue).unwrap();
    answers.iter().map(|a| a.tokens.iter().map(|t| t.token).collect()).collect()
}

/// A sequence of a fixture, named by a suffix, and what transformers gives for it.
struct Expected {
    tokens: Vec<u32>,
    logits: Vec<f32>,
    vocab: usize,
    /// The residual stream and its width, where the fixture has it.
    hidden: Option<(Vec<f32>, usize)>,
    greedy: Vec<u32>,
}

fn expected(fixture: &str, suffix: &str) -> Expected {
    let bytes = fs::read(root().join(fixture).join("expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let ids = |name: &str| -> Vec<u32> {
        let data = file.tensor(&format!("{name}{suffix}")).unwrap().data().to_vec();
        data.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    };
    let width = |name: &str| *file.tensor(name).unwrap().shape().last().unwrap();
    let [logits, hidden] = ["logits", "hidden"].map(|name| format!("{name}{suffix}"));
    Expected {
        tokens: ids("tokens"),
        logits: f32s(&file, &logits),
        vocab: width(&logits),
        hidden: file.tensor(&hidden).ok().map(|_| (f32s(&file, &hidden), width(&hidden))),
        greedy: ids("greedy"),
    }
}

/// Logits, hidden states and greedy tokens are those of transformers: with and without passes, fused and unfused, whole and in chunks.
fn agrees_with_transformers(fixture: &str, suffix: &str) {
    let want = expected(fixture, suffix);
    for (passes, fuse) in [("none", false), ("default", false), ("default", true)] {
        for chunk in [None, Some(7)] {
            let passes_list = parse_pipeline(passes).unwrap();
            let o = SessionOptions { passes: passes_list, chunk, fuse: Some(fuse), ..options(fixture) };
            let mut engine = open(&o).unwrap().engine;
            let (got, got_hidden) = feed(&mut engine, &want.tokens);
            let what = format!("{fixture}, sequence `{suffix}`, passes {passes}, fused {fuse}, chunk {chunk:?}");
            let error = worst(&want.logits, &got, want.vocab);
            assert!(error < 1e-5, "{what}: {error:.2e}");
            if let Some((hidden, width)) = &want.hidden {
                let error = worst(hidden, &got_hidden.concat(), *width);
                assert!(error < 1e-5, "{what}: {error:.2e}");
            }
            let tokens = greedy(&mut engine, &[request(&want.tokens, want.greedy.len())]);
            assert_eq!(tokens, vec![want.greedy.clone()], "{what}");
        }
    }
}

#[test]
fn the_fixture_agrees_with_transformers() {
    agrees_with_transformers("tests/fixtures/tiny", "");
}

/// Grouped heads of 32, and tied embeddings with heads of 64 and Llama 3's frequencies.
#[test]
fn llama_agrees_with_transformers() {
    for (fixture, suffix) in [("llama-tiny", ""), ("llama-tiny", ".1"), ("llama-tied", "")] {
        agrees_with_transformers(&format!("tests/fixtures/{fixture}"), suffix);
    }
}

#[test]
fn runs_of_steps_are_single_steps() {
    let tokens = std::fs::read_to_string(root().join("tests/fixtures/tiny/tokens.json")).unwrap();
    let tokens: Vec<u32> = serde_json::from_str(&tokens).unwrap();
    let o = SessionOptions { max_seqs: 2, chunk: Some(8), context: Some(64), ..options("tests/fixtures/tiny") };
    let mut engine = open(&o).unwrap().engine;
    let params = SamplingParams { seed: 3, ..SamplingParams::default() };
    let by_step = {
        let seq = engine.start(1).unwrap();
        let mut out = vec![tokens[0]];
        for _ in 0..64 {
            let given = [out[out.len() - 1]];
            let w = Work { seq, tokens: &given, params: Some(&params), sample: true };
            out.push(engine.step(&[w]).unwrap()[0].as_ref().unwrap().token);
        }
        let w = Work { seq, tokens: &tokens[..1], params: Some(&params), sample: true };
        assert!(engine.step(&[w]).is_err() && engine.decode(&[w], 1, &mut |_, _| true).is_err(), "the context is full");
        engine.end(seq);
        out
    };
    let seq = engine.start(1).unwrap();
    let mut out = vec![tokens[0]];
    while engine.len(seq) < 64 {
        let before = engine.len(seq);
        let given = [out[out.len() - 1]];
        let w = Work { seq, tokens: &given, params: Some(&params), sample: true };
        let mut steps = 0;
        let ran = engine.decode(&[w], 100, &mut |drawn, _| {
            out.push(drawn[0].token);
            steps += 1;
            steps != 3 || before > 10
        });
        // No more than a chunk, for which there are pages; three where it was stopped.
        assert_eq!((ran.unwrap(), engine.len(seq) - before), (steps, steps));
        assert!(steps <= 8);
    }
    assert_eq!(out, by_step);
    // What does not sample, or has more than a token, is not decoding.
    let more = Work { seq, tokens: &tokens[..2], params: Some(&params), sample: true };
    assert!(engine.decode(&[more], 1, &mut |_, _| true).is_err());
    engine.end(seq);
    assert!(engine.is_empty());
}

#[test]
fn sequences_in_a_batch_do_not_affect_each_other() {
    let tokens = std::fs::read_to_string(root().join("tests/fixtures/tiny/tokens.json")).unwrap();
    let tokens: Vec<u32> = serde_json::from_str(&tokens).unwrap();
    let requests: Vec<Request> =
        [1, 5, 17, 40, 90].iter().enumerate().map(|(i, n)| request(&tokens[i..i + n], 12)).collect();
    for rounding in [Rounding::Exact, Rounding::Typed] {
        let o = SessionOptions { max_seqs: 5, chunk: Some(32), rounding, ..options("tests/fixtures/tiny") };
        let mut engine = open(&o).unwrap().engine;
        let together = greedy(&mut engine, &requests);
        let alone: Vec<Vec<u32>> =
            requests.iter().map(|r| greedy(&mut engine, std::slice::from_ref(r)).remove(0)).collect();
        assert_eq!(together, alone);
    }
}

#[test]
fn the_demo_model_has_its_losses_and_its_greedy_text() {
    let eval = std::fs::read_to_string(root().join("models/demo/eval.json")).unwrap();
    let eval: serde_json::Value = serde_json::from_str(&eval).unwrap();
    let list = |v: &serde_json::Value| -> Vec<u32> {
        v.as_array().unwrap().iter().map(|t| t.as_u64().unwrap() as u32).collect()
    };
    let (tokens, window) = (list(&eval["tokens"]), 512);
    let mut engine = open(&SessionOptions { passes: default_pipeline(), ..options("models/demo") }).unwrap().engine;
    let vocab = engine.config().vocab();
    // Two of the windows: the rest is `gossamer eval`'s business and takes long in a debug build.
    for w in [0, 11] {
        let span = &tokens[w * window..=(w + 1) * window];
        let (logits, _) = feed(&mut engine, &span[..window]);
        let nll = |(row, target): (&[f32], &u32)| {
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = row.iter().map(|x| f64::from(x - max).exp()).sum();
            sum.ln() - f64::from(row[*target as usize] - max)
        };
        let loss: f64 = logits.chunks(vocab).zip(&span[1..]).map(nll).sum::<f64>() / window as f64;
        let want = eval["nll_per_window"][w].as_f64().unwrap();
        assert!((loss - want).abs() < 5e-4, "window {w}: {loss}, transformers {want}");
    }
    for sample in eval["samples"].as_array().unwrap() {
        let (prompt, want) = (list(&sample["prompt_tokens"]), list(&sample["greedy_tokens"]));
        let got = greedy(&mut engine, &[request(&prompt, 64)]).remove(0);
        assert_eq!(got, want[..64.min(want.len())]);
    }
}

/// Writes the tiny fixture's weights in another layout, in one file.
fn rewrite(layout: Layout, file: &str) -> tempfile::TempDir {
    let source = Checkpoint::open(&root().join("tests/fixtures/tiny")).unwrap();
    let dir = tempfile::TempDir::new().unwrap();
    let mut data: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    for spec in source.config().checkpoint_tensors(layout) {
        let mut bytes = Vec::new();
        for name in &spec.weights {
            let weight = source.weights().iter().find(|w| w.name == *name).unwrap();
            bytes.extend(read_part(&source, weight, spec.part, &|_| {}).unwrap());
        }
        let dtype = if spec.part == Part::Values { Dtype::BF16 } else { Dtype::U8 };
        data.push((spec.name, dtype, spec.shape, bytes));
    }
    let views = data.iter().map(|(n, d, s, b)| (n.as_str(), TensorView::new(*d, s.clone(), b).unwrap()));
    safetensors::serialize_to_file(views, None, &dir.path().join(file)).unwrap();
    let config = match layout {
        Layout::HuggingFace => fs::read_to_string(root().join("tests/fixtures/tiny/config.json")).unwrap(),
        Layout::Original => serde_json::json!({
            "num_hidden_layers": 4, "num_experts": 8, "experts_per_token": 4, "vocab_size": 512, "hidden_size": 128,
            "intermediate_size": 96, "swiglu_limit": 7.0, "head_dim": 64, "num_attention_heads": 4,
            "num_key_value_heads": 2, "sliding_window": 16, "initial_context_length": 64, "rope_theta": 150000,
            "rope_scaling_factor": 8.0, "rope_ntk_alpha": 1, "rope_ntk_beta": 32
        })
        .to_string(),
    };
    fs::write(dir.path().join("config.json"), config).unwrap();
    dir
}

#[test]
fn every_layout_of_a_checkpoint_gives_the_same_bits() {
    let tokens: Vec<u32> = (0..40).map(|i| i * 11 % 512).collect();
    let logits = |model: &Path| {
        let o = SessionOptions { device: DeviceChoice::Cpu, ..SessionOptions::new(&model.display().to_string()) };
        feed(&mut open(&o).unwrap().engine, &tokens).0
    };
    let expected = logits(&root().join("tests/fixtures/tiny"));
    for (layout, file) in [(Layout::HuggingFace, "model.safetensors"), (Layout::Original, "model.safetensors")] {
        assert!(logits(rewrite(layout, file).path()) == expected, "{layout}");
    }
}

/// Each pass alone, and all of them, leave the bits of every head's results alone.
#[test]
fn no_pass_changes_a_result() {
    let tokens: Vec<u32> = (0..24).map(|i| i * 7 % 512).collect();
    let full = SamplingParams {
        repetition_penalty: 1.3,
        frequency_penalty: 0.2,
        logprobs: true,
        seed: 9,
        ..SamplingParams::default()
    };
    let run = |passes: &str| {
        let passes = parse_pipeline(passes).unwrap();
        let mut engine = open(&SessionOptions { passes, ..options("tests/fixtures/tiny") }).unwrap().engine;
        let logits = feed(&mut engine, &tokens);
        let request = |params: &SamplingParams| Request { params: params.clone(), ..request(&tokens, 8) };
        let requests = [SamplingParams::greedy(), SamplingParams::default(), full.clone()].map(|p| request(&p));
        let answers: Vec<_> = requests
            .iter()
            .map(|r| {
                generate(&mut engine, std::slice::from_ref(r), &mut |_, _| Flow::Continue).unwrap().0.remove(0).tokens
            })
            .collect();
        (logits, answers)
    };
    let expected = run("none");
    for passes in ["canonicalise", "cse", "narrow", "layout", "dce", "default"] {
        assert!(run(passes) == expected, "{passes}");
    }
}

/// Penalties count the whole prompt, however it is cut and whatever runs beside it.
#[test]
fn penalties_do_not_depend_on_chunks_or_neighbours() {
    let tokens: Vec<u32> = (0..40).map(|i| i * 5 % 64).collect();
    let penalized = SamplingParams { repetition_penalty: 1.8, presence_penalty: 0.5, ..SamplingParams::greedy() };
    let answer = |chunk: usize, beside: usize| {
        let o = SessionOptions { chunk: Some(chunk), max_seqs: 3, ..options("tests/fixtures/tiny") };
        let mut engine = open(&o).unwrap().engine;
        let mut requests = vec![Request { params: penalized.clone(), ..request(&tokens, 12) }];
        requests.extend((0..beside).map(|i| request(&tokens[i..20 + i], 12)));
        greedy(&mut engine, &requests).remove(0)
    };
    let expected = answer(64, 0);
    for (chunk, beside) in [(7, 0), (64, 2), (9, 2)] {
        assert_eq!(answer(chunk, beside), expected, "chunks of {chunk}, {beside} beside it");
    }
}
