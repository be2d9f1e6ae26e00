//! Comparing what the shards hold with what the configuration and the index promise.

use std::collections::BTreeMap;
use std::path::Path;

use gossamer_models::config::ModelConfig;
use gossamer_models::names::{Layout, TensorSpec};

use super::error::{CheckpointError, Problem, quoted};
use super::files::{INDEX, Index};
use super::header::HeaderTensor;
use super::open::{Shard, StoredTensor};

/// What validation establishes.
pub(super) struct Tables {
    pub(super) layout: Layout,
    pub(super) tensors: Vec<StoredTensor>,
    pub(super) warnings: Vec<String>,
}

const FETCH: &str = "fetch the checkpoint again";

/// Checks every tensor and reports all that is wrong. `headers` are the shards' headers in the same order.
pub(super) fn validate(
    dir: &Path,
    config: &ModelConfig,
    shards: &[Shard],
    headers: Vec<Vec<HeaderTensor>>,
    index: Option<&Index>,
) -> Result<Tables, CheckpointError> {
    let mut problems = Vec::new();
    let mut found = merge(dir, shards, headers, &mut problems);
    if let Some(index) = index {
        check_index(dir, index, shards, &found, &mut problems);
    }
    let (layout, expected) = choose_layout(config, &found);
    let mut tensors = Vec::new();
    let mut absent = Vec::new();
    for spec in &expected {
        match found.remove(&spec.name) {
            Some(tensor) => {
                problems.extend(check_tensor(dir, shards, spec, &tensor));
                tensors.push(tensor);
            }
            None => absent.push(spec),
        }
    }
    if absent.len() == expected.len() {
        // One line instead of hundreds: this is another model.
        let found = format!("none of the {} tensors that config.json implies", expected.len());
        let expected = format!("a checkpoint of a {} model", config.model_type());
        problems.push(Problem::new(dir.display().to_string(), found, expected, "name another folder"));
    } else {
        // A tensor that the index places in a shard that lacks it has been reported.
        let reported = |name: &str| index.is_some_and(|i| i.weight_map.contains_key(name));
        let missing = absent.into_iter().filter(|spec| !reported(&spec.name)).map(|spec| {
            let expected = format!("{} {}, as config.json implies", spec.dtype, shape(&spec.shape));
            Problem::new(format!("tensor {}", spec.name), "nothing", expected, FETCH)
        });
        problems.extend(missing);
    }
    let mut warnings = Vec::new();
    for tensor in found.into_values() {
        let file = dir.join(&shards[tensor.shard].name).display().to_string();
        if belongs_to_layer(&tensor.name) {
            let found = format!("{} {}", tensor.dtype, shape(&tensor.shape));
            let expected = "no such tensor in the model that config.json describes";
            problems.push(Problem::new(
                format!("{file}: tensor {}", quoted(&tensor.name)),
                found,
                expected,
                "fetch config.json again, or use a published checkpoint",
            ));
        } else {
            warnings.push(format!("{file}: tensor {}: not part of the model; ignored", quoted(&tensor.name)));
        }
        tensors.push(tensor);
    }
    if !problems.is_empty() {
        return Err(CheckpointError::Invalid { problems });
    }
    let sum: u64 = tensors.iter().map(|t| t.bytes).sum();
    if let Some(total) = index.and_then(|i| i.total_size)
        && total != sum
    {
        warnings.push(format!(
            "{}: total_size says {total}, the tensors have {sum} bytes; the tensors count",
            dir.join(INDEX).display()
        ));
    }
    Ok(Tables { layout, tensors, warnings })
}

/// All tensors by name; a name in two shards is a problem.
fn merge(
    dir: &Path,
    shards: &[Shard],
    headers: Vec<Vec<HeaderTensor>>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, StoredTensor> {
    let mut found: BTreeMap<String, StoredTensor> = BTreeMap::new();
    for (shard, tensors) in headers.into_iter().enumerate() {
        for HeaderTensor { name, dtype, shape, offset, bytes } in tensors {
            if let Some(first) = found.get(&name) {
                let place = format!("{}: tensor {}", dir.join(&shards[shard].name).display(), quoted(&name));
                let found = format!("a second copy; the first is in {}", shards[first.shard].name);
                problems.push(Problem::new(place, found, "each tensor in one shard", FETCH));
                continue;
            }
            found.insert(name.clone(), StoredTensor { name, shape, dtype, shard, offset, bytes });
        }
    }
    found
}

/// The index and the headers must place every tensor in the same file.
fn check_index(
    dir: &Path,
    index: &Index,
    shards: &[Shard],
    found: &BTreeMap<String, StoredTensor>,
    problems: &mut Vec<Problem>,
) {
    let path = dir.join(INDEX).display().to_string();
    for (name, file) in &index.weight_map {
        let actual = found.get(name).map(|t| shards[t.shard].name.as_str());
        if actual != Some(file) {
            let place = format!("{}: tensor {}", dir.join(file).display(), quoted(name));
            let found = actual.map_or_else(|| "nothing".to_owned(), |other| format!("it in {other}"));
            problems.push(Problem::new(place, found, format!("the tensor, as {INDEX} says"), FETCH));
        }
    }
    for tensor in found.values().filter(|t| !index.weight_map.contains_key(&t.name)) {
        let found = format!("no entry for tensor {} of {}", quoted(&tensor.name), shards[tensor.shard].name);
        problems.push(Problem::new(&path, found, "an entry for every tensor", "fetch the file again"));
    }
}

/// The layout whose names occur more often; the configuration's own file name style does not matter.
fn choose_layout(config: &ModelConfig, found: &BTreeMap<String, StoredTensor>) -> (Layout, Vec<TensorSpec>) {
    let mut best: Option<(usize, Layout, Vec<TensorSpec>)> = None;
    for layout in config.layouts() {
        let specs = config.checkpoint_tensors(*layout);
        let hits = specs.iter().filter(|s| found.contains_key(&s.name)).count();
        if best.as_ref().is_none_or(|b| hits > b.0) {
            best = Some((hits, *layout, specs));
        }
    }
    best.map_or((Layout::HuggingFace, Vec::new()), |(_, layout, specs)| (layout, specs))
}

fn check_tensor(dir: &Path, shards: &[Shard], spec: &TensorSpec, tensor: &StoredTensor) -> Option<Problem> {
    if tensor.shape == spec.shape && tensor.dtype == spec.dtype.name() {
        return None;
    }
    let place = format!("{}: tensor {}", dir.join(&shards[tensor.shard].name).display(), spec.name);
    let found = format!("{} {}", tensor.dtype, shape(&tensor.shape));
    let expected = format!("{} {}, as config.json implies", spec.dtype, shape(&spec.shape));
    Some(Problem::new(place, found, expected, "use the published checkpoint with its own config.json"))
}

/// Tensors that take part in a layer. Stored rotary tables are left-overs that nobody reads.
fn belongs_to_layer(name: &str) -> bool {
    (name.starts_with("model.layers.") || name.starts_with("block.")) && !name.ends_with("rotary_emb.inv_freq")
}

fn shape(shape: &[usize]) -> String {
    // Shapes of foreign files may have any rank.
    const SHOWN: usize = 8;
    let dims: Vec<String> = shape.iter().take(SHOWN).map(usize::to_string).collect();
    let more = if shape.len() > SHOWN { ", ..." } else { "" };
    format!("[{}{more}]", dims.join(", "))
}
