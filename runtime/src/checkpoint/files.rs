//! Which files of a folder are the checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::error::{CheckpointError, Problem, quoted};
use super::header::Entries;

/// Largest JSON file read from a checkpoint folder, in bytes.
const JSON_CAP: u64 = 64 << 20;
pub(super) const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// The shards of a checkpoint, in order.
#[derive(Debug)]
pub(super) struct Located {
    /// File names within the folder.
    pub(super) shards: Vec<String>,
    pub(super) index: Option<Index>,
}

/// A parsed `model.safetensors.index.json`. Every file name in it is a plain name.
#[derive(Debug)]
pub(super) struct Index {
    /// Sum of tensor bytes as the file claims it.
    pub(super) total_size: Option<u64>,
    /// Tensor name to file name.
    pub(super) weight_map: BTreeMap<String, String>,
}

/// Finds the shards: by the index if there is one, otherwise `model.safetensors`, otherwise a complete series
/// `model--00001-of-0000N.safetensors`. Never looks into subfolders: published repositories carry the same weights
/// again in `original/`.
pub(super) fn locate(dir: &Path) -> Result<Located, CheckpointError> {
    let names = list(dir)?;
    let has = |name: &str| names.contains(name);
    let series: Vec<(&String, Series)> = names.iter().filter_map(|n| Some((n, Series::parse(n)?))).collect();
    if has(INDEX) {
        let index = parse_index(&dir.join(INDEX).display().to_string(), &read_small(&dir.join(INDEX))?)
            .map_err(|problems| CheckpointError::Invalid { problems })?;
        let shards: BTreeSet<&String> = index.weight_map.values().collect();
        let extra = series.iter().map(|(name, _)| *name).chain(names.get(SINGLE)).filter(|name| !shards.contains(name));
        let problems: Vec<Problem> = extra
            .map(|name| {
                Problem::new(
                    dir.join(name).display().to_string(),
                    "a weight file that the index does not name",
                    "only files of this checkpoint",
                    format!("delete it, or fetch {INDEX} again"),
                )
            })
            .collect();
        if !problems.is_empty() {
            return Err(CheckpointError::Invalid { problems });
        }
        let shards = shards.into_iter().cloned().collect();
        return Ok(Located { shards, index: Some(index) });
    }
    if has(SINGLE) {
        if let Some((name, _)) = series.first() {
            return Err(CheckpointError::one(Problem::new(
                dir.join(name).display().to_string(),
                format!("a shard next to {SINGLE}"),
                "one checkpoint in the folder",
                format!("delete one of the two, or add {INDEX}"),
            )));
        }
        return Ok(Located { shards: vec![SINGLE.to_owned()], index: None });
    }
    without_index(dir, &series, &names)
}

/// A JSON file of the checkpoint. Checks kind and size before reading.
pub(super) fn read_small(path: &Path) -> Result<String, CheckpointError> {
    let io = |e| CheckpointError::io(path, "read", e);
    let place = path.display().to_string();
    let metadata = fs::metadata(path).map_err(io)?;
    if !metadata.is_file() || metadata.len() > JSON_CAP {
        let found = if metadata.is_file() {
            format!("{} bytes", metadata.len())
        } else {
            "something that is not a file".to_owned()
        };
        return Err(CheckpointError::one(Problem::new(
            place,
            found,
            format!("a JSON file of at most {JSON_CAP} bytes"),
            "fetch the file again",
        )));
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|f| f.take(JSON_CAP).read_to_end(&mut bytes)).map_err(io)?;
    String::from_utf8(bytes).map_err(|e| {
        let found = format!("bytes that are not UTF-8 at offset {}", e.utf8_error().valid_up_to());
        CheckpointError::one(Problem::new(place, found, "JSON text", "fetch the file again"))
    })
}

/// Opens a shard by its plain name and gives its length. Links may stay within the folder, or lead into the `blobs` of
/// a Hugging Face download cache; any other target is refused.
pub(super) fn open_shard(dir: &Path, name: &str) -> Result<(File, u64), Problem> {
    let path = dir.join(name);
    let place = path.display().to_string();
    let unreadable = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => {
            Problem::new(&place, "no such file", "a shard of the checkpoint", "fetch the missing file")
        }
        _ => Problem::new(
            &place,
            format!("an unreadable file ({e})"),
            "a shard of the checkpoint",
            "check its permissions",
        ),
    };
    let root = dir.canonicalize().map_err(unreadable)?;
    let target = path.canonicalize().map_err(unreadable)?;
    let allowed = target.starts_with(&root) || download_cache(&root).is_some_and(|blobs| target.starts_with(blobs));
    if !allowed {
        return Err(Problem::new(
            place,
            format!("a link to {}", target.display()),
            "a file inside the folder",
            "copy the file into the folder, or name the folder it lies in",
        ));
    }
    // Checked before opening: opening a pipe would wait for a writer.
    let metadata = fs::metadata(&target).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(Problem::new(
            place,
            "something that is not a file",
            "a shard of the checkpoint",
            "fetch the file again",
        ));
    }
    let file = File::open(&target).map_err(unreadable)?;
    let len = file.metadata().map_err(unreadable)?.len();
    Ok((file, len))
}

/// Parses an index. All bad file names are reported.
pub(super) fn parse_index(place: &str, text: &str) -> Result<Index, Vec<Problem>> {
    #[derive(Deserialize)]
    struct Raw {
        #[serde(default)]
        metadata: Option<serde_json::Value>,
        weight_map: Entries<String>,
    }
    const FETCH: &str = "fetch the file again";
    let raw: Raw = serde_json::from_str(text).map_err(|e| {
        vec![Problem::new(
            place,
            format!("a bad index ({})", quoted(&e.to_string())),
            "an object with weight_map from tensor to file",
            FETCH,
        )]
    })?;
    let total_size = raw
        .metadata
        .as_ref()
        .and_then(|m| m.get("total_size"))
        .and_then(|n| n.as_u64().or_else(|| n.as_f64().map(|x| x as u64)));
    let mut problems = Vec::new();
    let mut weight_map = BTreeMap::new();
    let mut bad_files = BTreeSet::new();
    for (tensor, file) in raw.weight_map.0 {
        if !is_plain_name(&file) && bad_files.insert(file.clone()) {
            let found = format!("file \"{}\" for tensor {}", quoted(&file), quoted(&tensor));
            problems.push(Problem::new(
                place,
                found,
                "the name of a .safetensors file in the same folder",
                "do not use this checkpoint, or fetch the index again",
            ));
        }
        if weight_map.insert(tensor.clone(), file).is_some() {
            problems.push(Problem::new(place, format!("tensor {} twice", quoted(&tensor)), "each tensor once", FETCH));
        }
    }
    if weight_map.is_empty() {
        problems.push(Problem::new(place, "an empty weight_map", "the file of every tensor", FETCH));
    }
    if problems.is_empty() { Ok(Index { total_size, weight_map }) } else { Err(problems) }
}

/// A name that, joined to a folder, stays directly inside it.
pub(super) fn is_plain_name(name: &str) -> bool {
    let stem = name.strip_suffix(".safetensors");
    stem.is_some_and(|s| !s.is_empty() && !s.starts_with('.'))
        && name.len() <= 255
        && !name.contains(['/', '\\', ':'])
        && !name.chars().any(char::is_control)
}

/// A numbered shard name: `model-00000-of-00002.safetensors` or, original release, `model--00001-of-00007.safetensors`.
struct Series {
    dashes: &'static str,
    number: u64,
    total: u64,
}

impl Series {
    fn parse(name: &str) -> Option<Series> {
        let rest = name.strip_prefix("model-")?.strip_suffix(".safetensors")?;
        let (dashes, rest) = match rest.strip_prefix('-') {
            Some(rest) => ("--", rest),
            None => ("-", rest),
        };
        let (number, total) = rest.split_once("-of-")?;
        let count = |s: &str| {
            if s.bytes().all(|b| b.is_ascii_digit()) { s.parse().ok() } else { None }
        };
        Some(Series { dashes, number: count(number)?, total: count(total)? })
    }
}

/// Without an index only the original release's series is complete in itself: it counts from 1 to N.
fn without_index(
    dir: &Path,
    series: &[(&String, Series)],
    names: &BTreeSet<String>,
) -> Result<Located, CheckpointError> {
    let original: Vec<&(&String, Series)> = series.iter().filter(|(_, s)| s.dashes == "--").collect();
    let place = dir.display().to_string();
    let Some((_, first)) = original.first() else {
        let (found, fix) = match series.first() {
            Some((name, _)) => (format!("{name} but no {INDEX}"), format!("fetch {INDEX}")),
            None if names.contains("original") => {
                ("no weights at this level".to_owned(), format!("try {}", dir.join("original").display()))
            }
            None => ("no weights".to_owned(), "name a folder with config.json and .safetensors files".to_owned()),
        };
        return Err(CheckpointError::one(Problem::new(place, found, format!("{INDEX} or {SINGLE}"), fix)));
    };
    let total = first.total;
    let present: BTreeSet<u64> = original.iter().map(|(_, s)| s.number).collect();
    if total == 0
        || original.iter().any(|(_, s)| s.total != total || s.number == 0 || s.number > total)
        || present.len() != original.len()
        || original.len() != series.len()
    {
        let found = format!(
            "shards that are not one series: {}",
            series.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>().join(", ")
        );
        return Err(CheckpointError::one(Problem::new(
            place,
            quoted(&found),
            "one complete series",
            "delete the files of the other checkpoint",
        )));
    }
    if present.len() as u64 != total {
        // Not enumerated: `total` comes from a file name and may be anything.
        let missing = (1..=total).find(|n| !present.contains(n)).unwrap_or(total);
        let found = format!("{} of {total} shards, without number {missing}", present.len());
        return Err(CheckpointError::one(Problem::new(
            place,
            found,
            format!("all {total} shards"),
            "fetch the missing files",
        )));
    }
    Ok(Located { shards: original.iter().map(|(name, _)| (*name).clone()).collect(), index: None })
}

/// Names directly inside the folder. Names that are not UTF-8 cannot be ours.
fn list(dir: &Path) -> Result<BTreeSet<String>, CheckpointError> {
    let io = |e| CheckpointError::io(dir, "list the folder", e);
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(dir).map_err(io)? {
        names.extend(entry.map_err(io)?.file_name().into_string());
    }
    Ok(names)
}

/// The `blobs` folder next to `snapshots/<revision>` in a Hugging Face download cache.
fn download_cache(root: &Path) -> Option<PathBuf> {
    let snapshots = root.parent()?;
    (snapshots.file_name()? == "snapshots").then(|| snapshots.with_file_name("blobs"))
}
