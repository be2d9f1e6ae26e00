use std::fs::{self, OpenOptions};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use gossamer_models::names::{Layout, Part};
use safetensors::tensor::Dtype;
use serde_json::json;

use super::inspect::{self, render_text};
use super::testing::{Blob, Draft, demo_dir, small_source};
use super::*;

const FIRST: &str = "model-00000-of-00002.safetensors";
const SECOND: &str = "model-00001-of-00002.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const DOWN_SCALES: &str = "model.layers.1.mlp.experts.down_proj_scales";

/// The message of a folder that must not open. Every line must be complete.
fn refused(dir: &Path) -> String {
    let text = Checkpoint::open(dir).unwrap_err().to_string();
    for line in text.lines().filter(|l| !l.starts_with("and ")) {
        assert!(line.contains(": found ") && line.contains(", expected ") && line.contains("; "), "{line}");
    }
    text
}

/// Asserts one line that holds all the words.
fn one_line(text: &str, words: &[&str]) {
    assert_eq!(text.lines().count(), 1, "{text}");
    for word in words {
        assert!(text.contains(word), "{word} is not in: {text}");
    }
}

fn shrink(path: &Path, by: u64) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() - by).unwrap();
}

#[test]
fn every_layout_gives_the_same_weights() {
    let source = small_source();
    for (draft, layout, shards) in [
        (Draft::sharded(), Layout::HuggingFace, 3),
        (Draft::single(), Layout::HuggingFace, 1),
        (Draft::original(1), Layout::Original, 1),
        (Draft::original(4), Layout::Original, 4),
    ] {
        let dir = draft.write();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        assert_eq!((checkpoint.layout(), checkpoint.shards().len()), (layout, shards));
        assert_eq!(checkpoint.warnings(), [] as [String; 0]);
        let seen = AtomicU64::new(0);
        let count = |bytes| _ = seen.fetch_add(bytes, Ordering::Relaxed);
        for weight in checkpoint.weights() {
            for &part in weight.parts() {
                let stored = read_part(&checkpoint, weight, part, &count).unwrap();
                assert_eq!(stored, read_part(&source, weight, part, &|_| {}).unwrap(), "{} {part}", weight.name);
            }
        }
        let total: u64 = checkpoint.weights().iter().map(|w| w.bytes()).sum();
        assert_eq!(seen.into_inner(), total);
        let weight = &checkpoint.weights()[0];
        let beyond = checkpoint.fill(weight, Part::Values, weight.bytes() - 1, &mut [0; 2]);
        assert!(matches!(beyond, Err(CheckpointError::Range { .. })));
        assert!(matches!(checkpoint.fill(weight, Part::Scales, 0, &mut [0]), Err(CheckpointError::Range { .. })));
    }
}

#[test]
fn an_original_series_may_have_an_index() {
    let mut draft = Draft::original(3);
    draft.index = Some(draft.make_index());
    assert_eq!(Checkpoint::open(draft.write().path()).unwrap().shards().len(), 3);
}

#[test]
fn the_models_in_the_repository_open() {
    for dir in [demo_dir(), demo_dir().join("../../tests/fixtures/tiny")] {
        let checkpoint = Checkpoint::open(&dir).unwrap();
        assert_eq!(checkpoint.warnings(), [] as [String; 0]);
        assert!(scale_ranges(&checkpoint, &|_| {}).unwrap().values().all(|r| r.allows_folding()));
        assert!(!inspect::check(&checkpoint, &|_| {}).unwrap().has_errors());
    }
}

#[test]
fn subfolders_are_never_read() {
    let dir = Draft::sharded().write();
    fs::create_dir(dir.path().join("original")).unwrap();
    fs::write(dir.path().join("original/model.safetensors"), b"not one").unwrap();
    Checkpoint::open(dir.path()).unwrap();
}

#[test]
fn missing_files() {
    let dir = Draft::sharded().write();
    fs::remove_file(dir.path().join(SECOND)).unwrap();
    one_line(&refused(dir.path()), &[SECOND, "no such file", "fetch"]);

    let dir = Draft::sharded().write();
    fs::remove_file(dir.path().join(INDEX)).unwrap();
    one_line(&refused(dir.path()), &[FIRST, INDEX]);

    let dir = Draft::single().write();
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    one_line(&refused(dir.path()), &["no weights", "model.safetensors"]);
    fs::remove_file(dir.path().join("config.json")).unwrap();
    one_line(&refused(dir.path()), &["no config.json"]);
    let gone = Checkpoint::open(&dir.path().join("gone")).unwrap_err();
    one_line(&gone.to_string(), &["gone/config.json: cannot read"]);

    let dir = Draft::original(4).write();
    fs::remove_file(dir.path().join("model--00003-of-00004.safetensors")).unwrap();
    one_line(&refused(dir.path()), &["3 of 4 shards, without number 3"]);
    fs::write(dir.path().join("model--00003-of-00007.safetensors"), b"").unwrap();
    one_line(&refused(dir.path()), &["not one series"]);
}

#[test]
fn extra_files() {
    for extra in ["model-00003-of-00003.safetensors", "model--00001-of-00002.safetensors", "model.safetensors"] {
        let dir = Draft::sharded().write();
        fs::write(dir.path().join(extra), b"").unwrap();
        one_line(&refused(dir.path()), &[extra, "does not name", "delete it"]);
    }
    let dir = Draft::single().write();
    fs::write(dir.path().join(FIRST), b"").unwrap();
    one_line(&refused(dir.path()), &[FIRST, "one checkpoint"]);
    let dir = Draft::sharded().write();
    fs::write(dir.path().join("expected.safetensors"), b"other data").unwrap();
    Checkpoint::open(dir.path()).unwrap();
}

#[test]
fn truncated_and_grown_shards() {
    let dir = Draft::sharded().write();
    let path = dir.path().join(FIRST);
    let whole = fs::read(&path).unwrap();
    shrink(&path, 1);
    one_line(&refused(dir.path()), &[FIRST, &format!("found {} bytes", whole.len() - 1), "cut short"]);
    for keep in [0, 7, 8, 40] {
        fs::write(&path, &whole[..keep]).unwrap();
        one_line(&refused(dir.path()), &[FIRST, &format!("{keep} bytes")]);
    }
    fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
    one_line(&refused(dir.path()), &[FIRST, "has grown"]);
    fs::write(&path, [&u64::MAX.to_le_bytes()[..], &whole[8..]].concat()).unwrap();
    one_line(&refused(dir.path()), &[FIRST, "not a safetensors file"]);
    shrink(&dir.path().join(SECOND), 2);
    assert_eq!(refused(dir.path()).lines().count(), 2);
}

#[test]
fn bad_headers() {
    let dir = Draft::single().write();
    let path = dir.path().join("model.safetensors");
    let with_header = |header: &str, words: &[&str]| {
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 8]].concat();
        fs::write(&path, bytes).unwrap();
        one_line(&refused(dir.path()), words);
    };
    let entry = |name: &str, from: u64, to: u64| {
        format!(r#""{name}": {{"dtype": "U8", "shape": [{}], "data_offsets": [{from}, {to}]}}"#, to - from)
    };
    with_header(&format!("{{{}, {}}}", entry("a", 0, 5), entry("b", 4, 8)), &["bad header", "`b`", "back to back"]);
    with_header(&format!("{{{}, {}}}", entry("a", 0, 3), entry("b", 4, 8)), &["bad header", "`b`"]);
    with_header(&format!("{{{}, {}}}", entry("a", 0, 4), entry("a", 4, 8)), &["tensor a twice"]);
    with_header(r#"{"a": {"dtype": "U8", "shape": [9], "data_offsets": [0, 8]}}"#, &["bad header"]);
    with_header(r#"{"a": {"dtype": "U9", "shape": [8], "data_offsets": [0, 8]}}"#, &["bad header", "U9"]);
    with_header(
        r#"{"a": {"dtype": "U8", "shape": [18446744073709551615, 8], "data_offsets": [0, 8]}}"#,
        &["bad header"],
    );
    with_header("{", &["bad header"]);
    with_header("{}", &["as the header says", "grown"]);
    with_header(&format!("{{{}}}", entry("a", 0, 8)), &["none of the 41 tensors", "another folder"]);
}

#[test]
fn the_index_cannot_leave_the_folder() {
    let outside = tempfile::tempdir().unwrap();
    let stray = outside.path().join("stray.safetensors");
    fs::write(&stray, b"").unwrap();
    for name in [
        "../stray.safetensors",
        "/etc/x.safetensors",
        "a/b.safetensors",
        "..",
        "",
        "a\\b.safetensors",
        ".hidden.safetensors",
        "config.json",
        "x\n.safetensors",
    ] {
        let mut draft = Draft::sharded();
        draft.index.as_mut().unwrap()["weight_map"]["lm_head.weight"] = json!(name);
        one_line(&refused(draft.write().path()), &[INDEX, "lm_head.weight", "same folder"]);
    }

    let dir = Draft::sharded().write();
    let path = dir.path().join(FIRST);
    let moved = outside.path().join("moved.safetensors");
    fs::rename(&path, &moved).unwrap();
    symlink(&moved, &path).unwrap();
    one_line(&refused(dir.path()), &[FIRST, "a link to", "inside the folder"]);
    fs::remove_file(&path).unwrap();
    symlink("nowhere", &path).unwrap();
    one_line(&refused(dir.path()), &[FIRST, "no such file"]);
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    one_line(&refused(dir.path()), &[FIRST, "not a file"]);
    fs::remove_dir(&path).unwrap();
    fs::copy(&moved, dir.path().join("real.safetensors")).unwrap();
    symlink("real.safetensors", &path).unwrap();
    Checkpoint::open(dir.path()).unwrap();
}

#[test]
fn links_of_a_download_cache_are_followed() {
    let cache = tempfile::tempdir().unwrap();
    let (blobs, snapshot) = (cache.path().join("blobs"), cache.path().join("snapshots/abc"));
    fs::create_dir(&blobs).unwrap();
    fs::create_dir_all(&snapshot).unwrap();
    let dir = Draft::sharded().write();
    for (i, entry) in fs::read_dir(dir.path()).unwrap().enumerate() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), blobs.join(i.to_string())).unwrap();
        symlink(format!("../../blobs/{i}"), snapshot.join(entry.file_name())).unwrap();
    }
    Checkpoint::open(&snapshot).unwrap();
}

#[test]
fn bad_indexes() {
    let dir = Draft::sharded().write();
    let path = dir.path().join(INDEX);
    for (text, words) in [
        ("", &["bad index"][..]),
        ("[]", &["bad index"]),
        ("{}", &["bad index", "weight_map"]),
        (r#"{"weight_map": {}}"#, &["empty weight_map"]),
        (r#"{"weight_map": {"a": 3}}"#, &["bad index"]),
        (r#"{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}"#, &["tensor a twice"]),
    ] {
        fs::write(&path, text).unwrap();
        // The files of the old index are extra now, but the index comes first.
        one_line(&refused(dir.path()), words);
    }
    fs::write(&path, [0xff, 0xfe]).unwrap();
    one_line(&refused(dir.path()), &[INDEX, "not UTF-8"]);

    let mut draft = Draft::sharded();
    draft.index.as_mut().unwrap()["weight_map"]["model.norm.weight"] = json!(FIRST);
    draft.index.as_mut().unwrap()["weight_map"]["lm_head.weight"] = json!(FIRST);
    let text = refused(draft.write().path());
    assert!(text.contains("as model.safetensors.index.json says"), "{text}");

    let mut draft = Draft::sharded();
    draft.index.as_mut().unwrap()["weight_map"].as_object_mut().unwrap().remove(DOWN_SCALES);
    one_line(&refused(draft.write().path()), &["no entry for tensor", DOWN_SCALES]);

    let mut draft = Draft::sharded();
    draft.index.as_mut().unwrap()["metadata"]["total_size"] = json!(1);
    let checkpoint = Checkpoint::open(draft.write().path()).unwrap();
    assert!(checkpoint.warnings()[0].contains("total_size says 1"), "{:?}", checkpoint.warnings());
}

#[test]
fn all_wrong_tensors_are_listed() {
    let mut draft = Draft::single();
    draft.blob("model.norm.weight").dtype = Dtype::F16;
    let sinks = draft.blob("model.layers.0.self_attn.sinks");
    sinks.shape = vec![2, 2];
    draft.remove(DOWN_SCALES);
    draft.remove("lm_head.weight");
    let text = refused(draft.write().path());
    assert_eq!(text.lines().count(), 4, "{text}");
    for line in [
        "tensor model.norm.weight: found F16 [64], expected BF16 [64], as config.json implies",
        "tensor model.layers.0.self_attn.sinks: found BF16 [2, 2], expected BF16 [4], as config.json implies",
        "tensor lm_head.weight: found nothing, expected BF16 [16, 64], as config.json implies",
        "tensor model.layers.1.mlp.experts.down_proj_scales: found nothing, expected U8 [2, 64, 1], as config.json implies",
    ] {
        assert!(text.contains(line), "{line} is not in:\n{text}");
    }

    // A configuration of another size: everything is wrong, the list is capped.
    let mut draft = Draft::single();
    draft.config["hidden_size"] = json!(96);
    let text = refused(draft.write().path());
    assert_eq!(text.lines().count(), 21);
    assert!(text.lines().last().unwrap().starts_with("and "), "{text}");
}

#[test]
fn tensors_twice_or_unknown() {
    let mut draft = Draft::sharded();
    let norm = draft.blob("model.norm.weight").clone();
    let index = draft.index.clone();
    let other = draft.shards.values_mut().find(|s| !s.contains_key("model.norm.weight")).unwrap();
    other.insert("model.norm.weight".into(), norm);
    draft.index = index;
    let text = refused(draft.write().path());
    assert!(text.lines().next().unwrap().contains("a second copy; the first is in"), "{text}");

    let extra = || Blob { dtype: Dtype::F32, shape: vec![2], data: vec![0; 8] };
    let mut draft = Draft::single();
    let shard = draft.shards.get_mut("model.safetensors").unwrap();
    shard.insert("model.layers.0.self_attn.q_norm.weight".into(), extra());
    shard.insert("model.layers.2.self_attn.sinks".into(), extra());
    let text = refused(draft.write().path());
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(text.contains("q_norm.weight: found F32 [2], expected no such tensor"), "{text}");

    let mut draft = Draft::single();
    let shard = draft.shards.get_mut("model.safetensors").unwrap();
    shard.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), extra());
    shard.insert("note".into(), extra());
    let dir = draft.write();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.warnings().len(), 2);
    assert!(
        checkpoint.warnings()[1].ends_with("tensor note: not part of the model; ignored"),
        "{:?}",
        checkpoint.warnings()
    );
    let report = inspect::inspect_checkpoint("x", &checkpoint);
    assert_eq!(report.tensors.len(), 43);
    assert_eq!(report.totals.tensors, 41);
}

#[test]
fn bad_configs_come_first() {
    let mut draft = Draft::sharded();
    draft.config["model_type"] = json!("mamba");
    let text = refused(draft.write().path());
    one_line(&text, &["config.json: model_type: found \"mamba\""]);
    let dir = draft.write();
    fs::write(dir.path().join("config.json"), "{").unwrap();
    let text = Checkpoint::open(dir.path()).unwrap_err().to_string();
    one_line(&text, &["config.json: line 1, column 1", "not valid JSON"]);
}

#[test]
fn a_file_that_shrinks_later_gives_an_error() {
    let dir = Draft::single().write();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    shrink(&dir.path().join("model.safetensors"), 10);
    let last = checkpoint.tensors().iter().max_by_key(|t| t.offset).unwrap();
    let mut out = vec![0; last.bytes as usize];
    let text = checkpoint.read_into(last, 0, &mut out).unwrap_err().to_string();
    one_line(&text, &["model.safetensors", &last.name, "ended before"]);
}

#[test]
fn scales_are_checked() {
    let mut draft = Draft::single();
    draft.blob(DOWN_SCALES).data[64 + 5] = 140; // expert 1, row 5
    let dir = draft.write();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let ranges = scale_ranges(&checkpoint, &|_| {}).unwrap();
    assert_eq!(ranges.len(), 4);
    assert_eq!(ranges["l1.mlp.down.w"].max, 140);
    assert!(!ranges["l1.mlp.down.w"].allows_folding() && ranges["l0.mlp.down.w"].allows_folding());
    let known = small_source();
    let weight = known.weights().iter().find(|w| w.name == "l0.mlp.down.w").unwrap();
    let stated = known.known_scale_range(weight).unwrap();
    assert!(ranges["l0.mlp.down.w"].min >= stated.min && ranges["l0.mlp.down.w"].max <= stated.max);

    draft.blob(DOWN_SCALES).data[64 + 7] = 255;
    let dir = draft.write();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let text = scale_ranges(&checkpoint, &|_| {}).unwrap_err().to_string();
    one_line(&text, &["tensor l1.mlp.down.w: expert 1, row 7, block 0: found scale byte 255"]);
}

#[test]
fn inspection_reports_bad_numbers() {
    let mut draft = Draft::sharded();
    draft.blob(DOWN_SCALES).data[3] = 255;
    draft.blob("model.layers.0.self_attn.sinks").data[2..4].copy_from_slice(&0x7fc0_u16.to_le_bytes());
    draft.blob("lm_head.weight").data[130..132].copy_from_slice(&0xff80_u16.to_le_bytes());
    let dir = draft.write();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let seen = AtomicU64::new(0);
    let check = inspect::check(&checkpoint, &|bytes| _ = seen.fetch_add(bytes, Ordering::Relaxed)).unwrap();
    assert!(check.has_errors());
    assert_eq!(seen.into_inner(), inspect::check_bytes(&checkpoint));
    let mut report = inspect::inspect_checkpoint("small", &checkpoint);
    report.check = Some(check);
    let text = render_text(&report);
    for line in [
        "l0.attn.sinks: 1 NaN and 0 infinite values, the first at [1]",
        "head.w: 0 NaN and 1 infinite values, the first at [1, 1]",
        "l1.mlp.down.w: scale byte 255 (NaN), the first at expert 0, row 3, block 0",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
    }
    assert!(text.contains("tensors                     41 in 3 files"), "{text}");
    let json = inspect::render_json(&report);
    assert_eq!(json["check"]["values"].as_array().unwrap().len(), 33);
    assert_eq!(json["tensors"][0]["shard"], "model-00000-of-00002.safetensors");
}
