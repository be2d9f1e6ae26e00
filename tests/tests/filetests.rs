//! Runs every file under `filetests/`. `FILETEST=text` runs those whose path contains the text; `BLESS=1` rewrites `exact` outputs.

use std::path::Path;

use gossamer_ir::{Class, OpKind};
use gossamer_tests::filetest;

fn folder() -> std::path::PathBuf {
    match std::env::var_os("GOSSAMER_ROOT") {
        Some(root) => Path::new(&root).join("tests/filetests"),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("filetests"),
    }
}

/// Writes a file in one step: other tests may read it at the same time.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).and_then(|()| std::fs::rename(new, path)).expect("a blessed file can be written");
}

#[test]
fn filetests() {
    let filter = std::env::var("FILETEST").unwrap_or_default();
    let bless = std::env::var("BLESS").is_ok_and(|v| v == "1");
    let mut report = String::new();
    let (mut ran, mut failed) = (0, 0);
    for path in filetest::files(&folder()).expect("the folder of filetests can be read") {
        let name = path.strip_prefix(folder()).unwrap_or(&path).to_string_lossy().replace('\\', "/");
        if !name.contains(&filter) {
            continue;
        }
        ran += 1;
        let text = std::fs::read_to_string(&path).expect("a filetest is readable text");
        match filetest::run(&name, &text, bless) {
            Ok(None) => {}
            Ok(Some(new)) => replace(&path, &new),
            Err(failures) => {
                failed += 1;
                for f in failures {
                    report.push_str(&format!("{name}:{}: {}\n", f.line, f.message));
                }
            }
        }
    }
    assert!(failed == 0, "{failed} of {ran} filetests failed\n{report}");
    assert!(ran > 0, "no filetest matches `{filter}`");
}

/// Rules that text can break have a file that must fail and one that must pass; the others are tested in `ir/src/verify/tests.rs`.
#[test]
fn every_rule_has_files() {
    let by_hand = ["V01", "V02", "V03", "V14"];
    for n in 1..=15 {
        let rule = format!("V{n:02}");
        if by_hand.contains(&&*rule) {
            continue;
        }
        let low = rule.to_lowercase();
        let bad = std::fs::read_to_string(folder().join(format!("verify/{low}_bad.gir"))).unwrap_or_default();
        assert!(bad.contains(&format!("; error: {rule} ")), "verify/{low}_bad.gir has no `error: {rule}`");
        assert!(folder().join(format!("verify/{low}_good.gir")).exists(), "verify/{low}_good.gir is missing");
    }
}

/// Every op is in the roundtrip file of its class.
#[test]
fn every_op_is_printed_and_read() {
    for kind in OpKind::ALL.iter().filter(|k| !matches!(k, OpKind::Param | OpKind::Weight)) {
        let class: Class = kind.class();
        let text =
            std::fs::read_to_string(folder().join(format!("roundtrip/{}.gir", class.name()))).unwrap_or_default();
        let found = text.lines().any(|l| l.contains(&format!("= {} ", kind.name())));
        assert!(found, "roundtrip/{}.gir has no `{}`", class.name(), kind.name());
    }
}

/// The models themselves are text too: they verify, print, and read back equal, before and after the default passes.
#[test]
fn models_read_back() {
    use gossamer_ir::{text, verify};
    use gossamer_models::config::ModelConfig;
    use gossamer_models::{presets, step};
    let options = step::StepOptions { head: step::Head::Full, max_tokens: 64, max_seqs: 4, context: 1024, page: 64 };
    let [tiny, tied] =
        [include_str!("../fixtures/llama-tiny/config.json"), include_str!("../fixtures/llama-tied/config.json")]
            .map(|text| ModelConfig::parse(text, "config.json").expect("a fixture's configuration is valid").config);
    let presets = [presets::gpt_oss_20b(), presets::gpt_oss_120b()].map(ModelConfig::GptOss);
    for config in presets.into_iter().chain([tiny, tied]) {
        let program = gossamer_models::build(&config, &options).expect("a model builds");
        let printed = text::print(&program.module);
        let facts = verify::verify(&program.module, verify::Stage::Tensor)
            .unwrap_or_else(|e| panic!("{}", e.render(Some(("printed", &printed)))));
        let warnings: Vec<String> = facts.warnings.iter().map(ToString::to_string).collect();
        assert!(warnings.is_empty(), "{}", warnings.join("\n"));
        verify::roundtrip(&program.module).unwrap_or_else(|e| panic!("{e}"));
        let passes = gossamer_passes::manager::default_pipeline();
        let (module, _) = gossamer_passes::compile(program.module, &passes, &Default::default()).expect("passes run");
        verify::roundtrip(&module).unwrap_or_else(|e| panic!("{e}"));
    }
}

/// A dense model as text: the file is what the model builds, so that a change of the model is a change of the file.
#[test]
fn llama_is_its_file() {
    use gossamer_ir::text;
    use gossamer_models::config::ModelConfig;
    use gossamer_models::step::{Head, StepOptions};
    let config = include_str!("../fixtures/llama-tiny/config.json");
    let config = ModelConfig::parse(config, "config.json").expect("the fixture's configuration is valid").config;
    let options = StepOptions { head: Head::Greedy, max_tokens: 64, max_seqs: 4, context: 256, page: 64 };
    let program = gossamer_models::build(&config, &options).expect("the fixture builds");
    let built = format!("; test: roundtrip\n{}", text::print(&program.module));
    let path = folder().join("roundtrip/llama.gir");
    if std::env::var("BLESS").is_ok_and(|v| v == "1") {
        replace(&path, &built);
    }
    let file = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(file == built, "{} is not what the model builds; BLESS=1 accepts it\n{built}", path.display());
}
