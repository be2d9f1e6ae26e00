//! The inspection tools from outside: `ir`, `opt`, `diff`, `explain`.

use std::fs;
use std::path::Path;

use serde_json::Value as Json;
use tempfile::TempDir;

mod command;
use command::{fails, gossamer, run};

const CHAIN: &str = "gir 1

sym T in 1..=64

bucket small {T = 2}

func @f(%x: f32[T, 4]) -> (f32[T, 4]) {
  %a = cast %x {to = f32} : f32[T, 4]
  %b = neg %a : f32[T, 4]
  %c = silu %b : f32[T, 4]
  return %c
}
";

fn file(dir: &TempDir, name: &str, text: &str) -> String {
    let path = dir.path().join(name);
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

fn json(text: &str) -> Json {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[test]
fn passes_run_on_text() {
    let dir = TempDir::new().unwrap();
    let chain = file(&dir, "chain.gir", CHAIN);
    let ran = run(&["opt", &chain, "--passes", "canonicalise,dce", "--trace"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(ran.out, CHAIN.replace("  %a = cast %x {to = f32} : f32[T, 4]\n", "").replace("neg %a", "neg %x"));
    assert!(ran.err.contains("canonicalise") && ran.err.contains("changed"), "{}", ran.err);
    assert_eq!(run(&["opt", &chain, "--passes", "none"]).out, CHAIN);
    assert_eq!(run(&["opt", &chain, "--bucket", "small"]).code, 0);
    assert_eq!(run(&["opt", &chain, "--sizes", "T=64"]).code, 0);
    let piped = gossamer(&["opt", "-", "--passes", "none"]).write_stdin(CHAIN).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&piped.stdout), CHAIN);
    let rules = run(&["opt", "--list-rules"]).out;
    assert!(rules.starts_with("name") && rules.contains("off without --enable-rule: "), "{rules}");
    assert!(run(&["opt", "--list-passes"]).out.contains("canonicalise"));
}

#[test]
fn dumps_hold_what_changed_and_read_back() {
    let dir = TempDir::new().unwrap();
    let chain = file(&dir, "chain.gir", CHAIN);
    let dumps = dir.path().join("dumps").display().to_string();
    assert_eq!(run(&["opt", &chain, "--passes", "canonicalise,cse,dce", "--dump-dir", &dumps]).code, 0);
    let mut names: Vec<String> =
        fs::read_dir(&dumps).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    assert_eq!(names, ["00-input.gir", "01-canonicalise.gir", "03-dce.gir", "trace.json"]);
    for name in &names[..3] {
        assert_eq!(run(&["verify", &Path::new(&dumps).join(name).display().to_string()]).code, 0);
    }
    let trace = json(&fs::read_to_string(Path::new(&dumps).join("trace.json")).unwrap());
    assert_eq!(trace["passes"].as_array().map(Vec::len), Some(3));
}

#[test]
fn bench_reports_compare() {
    let dir = TempDir::new().unwrap();
    let decode = |extra: &[&str]| {
        let fixed = ["bench", "decode", "demo", "--device", "cpu", "--batch", "1,2", "--context", "8", "--steps", "3"];
        run(&[&fixed[..], extra].concat())
    };
    let ran = decode(&["--json", "--verify-repeat", "4"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let report = json(&ran.out);
    assert_eq!((&report["bench"], &report["version"]), (&Json::from("decode"), &Json::from(1)));
    assert_eq!(report["repeat"]["equal"], true);
    let results = report["results"].as_array().unwrap();
    let names: Vec<&str> = results.iter().map(|r| r["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["batch 1, context 8", "batch 2, context 8"]);
    for (batch, r) in [1.0, 2.0].into_iter().zip(results) {
        let m = &r["metrics"];
        let number = |key: &str| m[key].as_f64().unwrap_or_else(|| panic!("{key}: {r}"));
        assert!((number("tokens_per_s") * number("step_us") * 1e-6 / batch - 1.0).abs() < 1e-9, "{r}");
        assert!(number("step_us_min") <= number("step_us") && number("step_us") <= number("step_us_p99"), "{r}");
        assert!(number("roofline_fraction") > 0.0 && number("bytes") > 0.0 && number("distinct_experts") >= 1.0, "{r}");
        assert_eq!((&r["context_filled"], &r["profile"]), (&Json::from("prompt"), &Json::Null));
    }
    // Against itself made faster and slower.
    let with_rate = |name: &str, factor: f64| {
        let mut other = report.clone();
        for r in other["results"].as_array_mut().unwrap() {
            let rate = r["metrics"]["tokens_per_s"].as_f64().unwrap();
            r["metrics"]["tokens_per_s"] = Json::from(rate * factor);
        }
        file(&dir, name, &other.to_string())
    };
    let ran = decode(&["--compare", &with_rate("slow.json", 0.01)]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.contains("compared with") && ran.out.contains("tokens_per_s"), "{}", ran.out);
    let ran = decode(&["--compare", &with_rate("fast.json", 100.0)]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.err.contains("error: batch 1, context 8: worse than in") && ran.err.contains("--tolerance 3"),
        "{}",
        ran.err
    );

    let folder = tempfile::tempdir().unwrap();
    let chart = folder.path().join("chart.svg");
    let plot = ["--plot", chart.to_str().unwrap()];
    let ran = run(&[
        &["bench", "prefill", "demo", "--device", "cpu", "--tokens", "5,9", "--batch", "2", "--json"],
        &plot[..],
    ]
    .concat());
    let drawn = std::fs::read_to_string(&chart).unwrap();
    assert_eq!((drawn.matches("<polyline").count(), drawn.matches("<circle").count()), (1, 2), "{drawn}");
    assert_eq!(ran.code, 0, "{}", ran.err);
    let report = json(&ran.out);
    assert_eq!(report["results"][1]["name"], "2 x 9 tokens");
    for key in ["tokens_per_s", "flops_per_s", "first_token_s", "total_s"] {
        assert!(report["results"][0]["metrics"][key].as_f64().unwrap() > 0.0, "{key}");
    }
    let ran = run(&["bench", "startup", "demo", "--device", "cpu", "--context", "128"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.contains("cold start") && ran.out.contains("warm start"), "{}", ran.out);
    let ran = run(&["bench", "demo", "--device", "cpu", "--prompt", "4", "--steps", "2", "--json"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(json(&ran.out)["first_token_s"].as_f64().unwrap() > 0.0);
}

#[test]
fn bench_refuses_bad_lists_and_files() {
    let dir = TempDir::new().unwrap();
    let decode = |extra: &[&str], code, parts: &[&str]| {
        fails(&[&["bench", "decode", "demo", "--device", "cpu"][..], extra].concat(), code, parts);
    };
    decode(&["--batch", "1,,2"], 2, &["--batch: `` in `1,,2` is no number", "1 to 4096"]);
    decode(&["--batch", "0"], 2, &["--batch: `0` in `0` is out of range"]);
    decode(&["--batch", "4,4"], 2, &["is there twice"]);
    decode(&["--context", "-5"], 2, &["--context: `-5`"]);
    decode(&["--context", "99999999999999999999"], 2, &["--context: `99999999999999999999`"]);
    decode(&["--context", "131072"], 1, &["outside 1 to 131072"]);
    decode(&["--steps", "0"], 2, &["--steps is 0"]);
    decode(&["--tolerance", "-1", "--compare", "x"], 2, &["--tolerance is -1"]);
    decode(&["--compare", "/nowhere.json"], 1, &["/nowhere.json: cannot be read"]);
    decode(&["--compare", &file(&dir, "a.json", "{")], 1, &["a.json: is not JSON"]);
    decode(&["--compare", &file(&dir, "b.json", "{}")], 1, &["b.json: is no report", "--json"]);
    fails(&["bench", "prefill", "demo", "--tokens", "x"], 2, &["--tokens: `x` in `x` is no number"]);
    assert_eq!(run(&["bench", "decode"]).code, 2);
}

#[test]
fn bad_names_list_what_is_known() {
    let dir = TempDir::new().unwrap();
    let chain = file(&dir, "chain.gir", CHAIN);
    let ir = |extra: &[&str], parts: &[&str]| fails(&[&["ir", "demo"][..], extra].concat(), 2, parts);
    let opt = |extra: &[&str], parts: &[&str]| fails(&[&["opt", &chain][..], extra].concat(), 2, parts);
    ir(&["--bucket", "decod.4"], &["unknown bucket `decod.4`", "decode.16", "step.t512.s4.r4"]);
    ir(&["--bucket", "decode.0"], &["unknown bucket `decode.0`"]);
    ir(&["--bucket", "decode.9999"], &["is 9999, expected"]);
    ir(&["--disable-rule", "grow/everything"], &["unknown rule `grow/everything`", "known:"]);
    ir(&["--after", "fuzzy"], &["--after fuzzy", "canonicalise"]);
    opt(&["--passes", "fuze"], &["unknown pass `fuze`", "canonicalise"]);
    opt(&["--bucket", "large"], &["unknown bucket `large`", "the module declares small"]);
    opt(&["--sizes", "Q=1"], &["unknown symbol `Q`", "known: T"]);
    opt(&["--sizes", "T=65"], &["symbol T is 65, expected 1 to 64"]);
    opt(&["--sizes", "T=1,T=2"], &["sizes name T twice"]);
    opt(&["--sizes", "T"], &["sizes are `T`, expected NAME=NUMBER"]);
    opt(&["--disable-rule", "x"], &["unknown rule `x`"]);
    opt(&["--enable-rule", "x"], &["unknown rule `x`"]);
    fails(&["run", "demo", "x", "--disable-rule", "x"], 2, &["unknown rule `x`", "grow/residual"]);
    fails(&["bench", "demo", "--disable-rule", "x"], 2, &["unknown rule `x`", "grow/residual"]);
    fails(&["bench", "demo", "--enable-rule", "x"], 2, &["unknown rule `x`", "grow/residual"]);
    fails(
        &["diff", "demo", "--passes", "none", "--passes", "none", "--passes", "none"],
        2,
        &["--passes is given 3 times"],
    );
    fails(&["opt", "nowhere.gir"], 1, &["nowhere.gir: cannot be read"]);
    assert_eq!(run(&["opt"]).code, 2);
    let broken = file(&dir, "broken.gir", &CHAIN.replace("neg %a : f32[T, 4]", "neg %a : f32[T, 5]"));
    let ran = run(&["opt", &broken]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("V05") && ran.err.contains("broken.gir") && ran.err.contains('^'), "{}", ran.err);
}

#[test]
fn modules_are_compared_by_structure() {
    let dir = TempDir::new().unwrap();
    let a = file(&dir, "a.gir", CHAIN);
    let renamed = file(&dir, "renamed.gir", &CHAIN.replace("%b", "%other"));
    let b = file(&dir, "b.gir", &CHAIN.replace("  %b = neg %a : f32[T, 4]\n", "").replace("silu %b", "silu %a"));
    let same = run(&["diff", &a, &renamed]);
    assert_eq!((same.code, &*same.out), (0, "the same: 1 functions, 3 ops\n"));
    let ran = run(&["diff", &a, &b]);
    let want = "func @f: 1 removed, 1 changed, 1 the same\n  - %b = neg %a : f32[T, 4]\n  < %c = silu %b : f32[T, 4]\n  > %c = silu %a : f32[T, 4]  ; operands\n";
    assert_eq!((ran.code, &*ran.out, &*ran.err), (1, want, ""));
    let value = json(&run(&["diff", &b, &a, "--format", "json"]).out);
    assert_eq!((&value["equal"], &value["funcs"][0]["changes"][0]["change"]), (&false.into(), &"added".into()));
    assert_eq!(run(&["diff", &a, "--passes", "none", "--passes", "canonicalise"]).code, 1);
    let demo = run(&["diff", "demo", "--passes", "none", "--passes", "default"]);
    assert_eq!(demo.code, 1, "{}", demo.err);
    assert!(demo.out.contains("+ %") && demo.out.contains("{template = attention}"), "{}", demo.out);
    let rule = run(&["diff", "demo", "--disable-rule", "grow/residual"]);
    assert!(rule.code == 1 && rule.out.contains("; operands"), "{}{}", rule.err, rule.out);
    assert_eq!(demo.out, run(&["diff", "demo", "--passes", "none", "--passes", "default"]).out);
    assert_eq!(run(&["diff", "demo", "demo"]).code, 0);
}

#[test]
fn a_rule_that_is_off_can_be_asked_for() {
    let dir = TempDir::new().unwrap();
    let source = "gir 1

sym T in 1..=4096

bucket prompt {T = 2048}

func @f(%x: bf16[T, 512], %w: weight bf16[256, 512]) -> (f32[T, 256]) {
  %y = matmul %x, %w : f32[T, 256]
  return %y
}
";
    let matmul = file(&dir, "matmul.gir", source);
    let others = ["--disable-rule", "seed/tile", "--disable-rule", "seed/gemm-pieces"];
    let without = [&["opt", &matmul, "--bucket", "prompt"][..], &others].concat();
    assert!(!run(&without).out.contains("cublaslt"));
    let asked = run(&[&without[..], &["--enable-rule", "seed/cublaslt"]].concat());
    assert!(asked.out.contains("{template = cublaslt}"), "{}{}", asked.out, asked.err);
    let rules = ["--enable-rule", "seed/cublaslt", "--no-compile"];
    let explain =
        |extra: &[&str]| run(&[&["explain", &matmul, "--bucket", "prompt"][..], &others, &rules, extra].concat());
    let text = explain(&["--kernel", "0"]);
    assert!(
        text.out.contains("cublaslt_2048x256x512") && text.out.contains("a call of NVIDIA's cuBLASLt"),
        "{}",
        text.out
    );
    let value = json(&explain(&["--format", "json"]).out);
    let launch = &value["kernels"][0];
    assert_eq!((&launch["entry"], &launch["cuda"]), (&"cublaslt_2048x256x512".into(), &Json::Null));
    assert!(explain(&["--format", "html"]).out.contains("which launches kernels of its own"));
}

#[test]
fn memory_is_printed_for_every_bucket() {
    let ran = run(&["ir", "demo", "--memory"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    for part in ["most alive", "scratch", "\ndecode.1 ", "\ndecode.256 ", "\nstep.t8192.s1.r1 "] {
        assert!(ran.out.contains(part), "{part}: {}", ran.out);
    }
    let value = json(&run(&["ir", "demo", "--memory", "--bucket", "decode.4", "--format", "json"]).out);
    let row = &value["buckets"][0];
    assert_eq!((value["buckets"].as_array().map(Vec::len), &row["bucket"]), (Some(1), &"decode.4".into()));
    assert!(row["arena_bytes"].as_u64() >= row["live_bytes"].as_u64() && row["live_bytes"].as_u64() > Some(0));
    fails(&["ir", "demo", "--memory", "--format", "dot"], 2, &["--memory has no picture"]);
}

#[test]
fn a_step_is_explained_without_weights_or_gpu() {
    let dir = TempDir::new().unwrap();
    let explain = |extra: &[&str]| run(&[&["explain", "demo", "--no-compile"][..], extra].concat());
    let ran = explain(&[]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.contains("outside of layers") && ran.out.contains("4 x: l0, l2, .. l6"), "{}", ran.out);
    let value = json(&explain(&["--format", "json", "--bucket", "decode.4"]).out);
    let kernels = value["kernels"].as_array().unwrap();
    assert_eq!(value["totals"]["launches"], kernels.len());
    let sum: f64 = kernels.iter().filter_map(|k| k["predicted_us"].as_f64()).sum();
    let step = value["totals"]["predicted_step_us"].as_f64().unwrap();
    assert!(step > 0.0 && (sum - step).abs() < 1e-6 * step, "{sum} {step}");
    assert!(kernels.iter().all(|k| k["part"] != 0 || k["rules"].as_array().is_some_and(|r| !r.is_empty())));
    let shares: f64 = kernels.iter().filter_map(|k| k["share"].as_f64()).sum();
    assert!((shares - 1.0).abs() < 1e-9, "{shares}");
    for (i, k) in kernels.iter().enumerate() {
        assert_eq!(k["index"], i);
        for key in ["template", "rules", "ir_before", "ir_after", "cost", "entry", "cuda", "grid", "block"] {
            // The cost of a kernel of several launches is with the first.
            if key == "cost" && k["part"] != 0 {
                continue;
            }
            assert!(!k[key].is_null(), "{key} of {k}");
        }
        assert!(k["cuda"].as_str().unwrap().contains(k["entry"].as_str().unwrap()));
    }
    let card = explain(&["--kernel", "3"]).out;
    for part in [
        "kernel 3 of",
        "rules, in order",
        "  1. seed/stream  takes in matmul",
        "roofline",
        "before\n",
        "after\n",
        "cost\n",
        "entry",
        "CUDA\n",
    ] {
        assert!(card.contains(part), "{part}: {card}");
    }
    let page = dir.path().join("e.html");
    let written = explain(&["--format", "html", "-o", &page.display().to_string()]);
    assert_eq!((written.code, &*written.out), (0, ""), "{}", written.err);
    let html = fs::read_to_string(&page).unwrap();
    assert!(html.starts_with("<!doctype html>") && html.contains("<svg") && html.ends_with("</html>\n"));
    for outside in ["<script", "src=", "http://", "https://", "@import", "url("] {
        let found = html.replace("http://www.w3.org/2000/svg", "").replace("url(#arrow)", "").contains(outside);
        assert!(!found, "the page loads or runs something: {outside}");
    }
    assert!(explain(&["--format", "html"]).out == html, "another page the second time");
}

#[test]
fn files_are_explained_too() {
    let dir = TempDir::new().unwrap();
    let chain = file(&dir, "chain.gir", CHAIN);
    let value = json(&run(&["explain", &chain, "--no-compile", "--passes", "none", "--format", "json"]).out);
    assert_eq!(
        (&value["bucket"], &value["sizes"]["T"], &value["totals"]["launches"]),
        (&"small".into(), &2.into(), &3.into())
    );
    let explain = |extra: &[&str], parts: &[&str]| fails(&[&["explain"][..], extra].concat(), 2, parts);
    explain(&[&chain, "--no-compile", "--passes", "none", "--kernel", "9"], &["--kernel 9", "0 to 2"]);
    explain(&[&chain, "--bucket", "large"], &["unknown bucket `large`", "the module declares small"]);
    explain(&["demo", "--disable-rule", "x"], &["unknown rule `x`"]);
    explain(&["demo", "--passes", "fuze"], &["unknown pass `fuze`", "fuse"]);
    explain(&["demo", "--context", "0"], &["--context 0 is outside"]);
    explain(&[&chain, "--measure"], &["--measure needs a model"]);
    let bad = file(&dir, "machine.toml", "name = 1");
    fails(&["explain", "demo", "--machine", &bad], 1, &["machine.toml, line 1"]);
    fails(&["explain", "nowhere"], 1, &["nowhere"]);
    explain(&[&chain, "--no-compile", "-o", &chain], &["--out", "is a file that is read"]);
    assert_eq!(fs::read_to_string(&chain).unwrap(), CHAIN);
}

#[test]
fn a_file_that_is_piped_in_is_read_once() {
    // Its lines cannot be shown: opening the pipe again would wait for another writer.
    let dir = TempDir::new().unwrap();
    let pipe = dir.path().join("piped.gir");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let (path, bad) = (pipe.clone(), CHAIN.replace("neg %a : f32[T, 4]", "neg %a : f32[T, 5]"));
    let writer = std::thread::spawn(move || fs::write(path, bad));
    let mut command = gossamer(&["verify", &pipe.display().to_string()]);
    let ran = command.timeout(std::time::Duration::from_secs(20)).output().unwrap();
    writer.join().unwrap().unwrap();
    assert_eq!(ran.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&ran.stderr).contains("V05"));
}

/// Sizes whose products leave 64 bits, and a sum that would be written out term by term for ever.
#[test]
fn sizes_beyond_reason_are_refused() {
    let dir = TempDir::new().unwrap();
    let huge = file(&dir, "huge.gir", &CHAIN.replace("4]", "9223372036854775807]"));
    for command in [&["verify"][..], &["opt"], &["explain", "--no-compile"], &["ir", "--memory"]] {
        let ran = run(&[&command[..1], &[&huge], &command[1..]].concat());
        assert!(ran.code == 1 && ran.err.contains("V06") && ran.err.contains("2^50"), "{command:?}: {}", ran.err);
    }
    // 39 levels of two calls each: not inlined to see how many ops that makes.
    let mut doubling =
        "gir 1\n\nfunc @f0(%x: f32[4]) -> (f32[4]) {\n  %y = neg %x : f32[4]\n  return %y\n}\n".to_string();
    for i in 1..40 {
        let (name, call) = (if i == 39 { "step".into() } else { format!("f{i}") }, format!("call @f{}", i - 1));
        doubling += &format!(
            "func @{name}(%x: f32[4]) -> (f32[4]) {{\n  %a = {call} %x : f32[4]\n  %b = {call} %a : f32[4]\n  return %b\n}}\n"
        );
    }
    let doubling = file(&dir, "doubling.gir", &doubling);
    for command in [&["explain", &doubling, "--no-compile"][..], &["ir", &doubling, "--plan", "1,1,1"]] {
        fails(command, 1, &["@step has more than 1048576 ops", "call less often"]);
    }
    let many = "gir 1

sym T in 1..=4

func @f(%x: f32[T, 3037000500, 32], %w: f32[T, 3037000500]) -> (f32[T, 32]) {
  %y = moe_combine %x, %w : f32[T, 32]
  return %y
}
";
    let many = file(&dir, "many.gir", many);
    let mut command = gossamer(&["explain", &many, "--no-compile"]);
    let ran = command.timeout(std::time::Duration::from_secs(20)).output().unwrap();
    assert!(matches!(ran.status.code(), Some(0 | 1)), "{:?}: {}", ran.status, String::from_utf8_lossy(&ran.stderr));
}
