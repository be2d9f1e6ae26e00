//! An opened checkpoint folder.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use gossamer_models::config::ModelConfig;
use gossamer_models::names::{Layout, Part, WeightSpec};

use super::error::{CheckpointError, Problem};
use super::read::{WeightSource, check_range};
use super::{files, header, validate};

/// A validated checkpoint folder. Its files stay open; nothing of their data is in memory.
#[derive(Debug)]
pub struct Checkpoint {
    pub(super) dir: PathBuf,
    pub(super) config: ModelConfig,
    pub(super) layout: Layout,
    pub(super) shards: Vec<Shard>,
    pub(super) tensors: Vec<StoredTensor>,
    /// Tensor name to position in `tensors`.
    pub(super) by_name: BTreeMap<String, usize>,
    pub(super) weights: Vec<WeightSpec>,
    pub(super) warnings: Vec<String>,
}

/// A file of a checkpoint.
#[derive(Debug)]
pub struct Shard {
    /// Name within the folder.
    pub name: String,
    /// Length in bytes.
    pub bytes: u64,
    file: File,
}

/// A tensor in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTensor {
    /// Name in the checkpoint.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// Element type as the safetensors header names it.
    pub dtype: String,
    /// Position of its file in [`Checkpoint::shards`].
    pub shard: usize,
    /// First byte within the file.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

impl Checkpoint {
    /// Opens a folder and checks every header against `config.json`. Reads no weights.
    ///
    /// # Errors
    /// [`CheckpointError::Config`] when `config.json` cannot be used, [`CheckpointError::Invalid`] with every problem of
    /// the files, [`CheckpointError::Io`] when the folder cannot be read.
    pub fn open(dir: &Path) -> Result<Checkpoint, CheckpointError> {
        let config_path = dir.join("config.json");
        if dir.is_dir() && !config_path.exists() {
            let fix = if dir.join("original").is_dir() {
                "fetch it, or name the original folder inside"
            } else {
                "name a checkpoint folder, or fetch the file"
            };
            return Err(CheckpointError::one(Problem::new(
                dir.display().to_string(),
                "no config.json",
                "a checkpoint folder with config.json",
                fix,
            )));
        }
        let parsed = ModelConfig::parse(&files::read_small(&config_path)?, &config_path.display().to_string())?;
        let located = files::locate(dir)?;
        let (shards, headers) = open_shards(dir, &located.shards)?;
        let tables = validate::validate(dir, &parsed.config, &shards, headers, located.index.as_ref())?;
        let by_name = tables.tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        let warnings = parsed.warnings.into_iter().chain(tables.warnings).collect();
        Ok(Checkpoint {
            dir: dir.to_owned(),
            weights: parsed.config.weights(),
            config: parsed.config,
            layout: tables.layout,
            shards,
            tensors: tables.tensors,
            by_name,
            warnings,
        })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Which release's tensor names it uses.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Its files.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// The tensors of the model in the order of the name table, then unknown ones.
    pub fn tensors(&self) -> &[StoredTensor] {
        &self.tensors
    }

    /// A tensor by its stored name.
    pub fn tensor(&self, name: &str) -> Option<&StoredTensor> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }

    /// One line each: legal, but probably not meant.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Reads `out.len()` bytes of a tensor from `byte_offset` on.
    ///
    /// # Errors
    /// [`CheckpointError::Range`] beyond the tensor, [`CheckpointError::Shrunk`] when the file lost the bytes since it
    /// was opened, [`CheckpointError::Io`] otherwise.
    pub fn read_into(&self, tensor: &StoredTensor, byte_offset: u64, out: &mut [u8]) -> Result<(), CheckpointError> {
        check_range(&tensor.name, "stored", byte_offset, out.len(), tensor.bytes)?;
        let shard = &self.shards[tensor.shard];
        let start = tensor.offset + byte_offset;
        shard.file.read_exact_at(out, start).map_err(|e| {
            let path = self.dir.join(&shard.name);
            match e.kind() {
                std::io::ErrorKind::UnexpectedEof => CheckpointError::Shrunk {
                    path: path.display().to_string(),
                    tensor: tensor.name.clone(),
                    end: start + out.len() as u64,
                },
                _ => CheckpointError::io(&path, "read", e),
            }
        })
    }
}

impl WeightSource for Checkpoint {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn weights(&self) -> &[WeightSpec] {
        &self.weights
    }

    fn fill(&self, weight: &WeightSpec, part: Part, byte_offset: u64, out: &mut [u8]) -> Result<(), CheckpointError> {
        check_range(&weight.name, &part.to_string(), byte_offset, out.len(), weight.part_bytes(part))?;
        let stored = weight.stored_part(self.layout, part).and_then(|s| Some((s, self.tensor(&s.tensor)?)));
        match stored {
            Some((stored, tensor)) => self.read_into(tensor, stored.byte_offset() + byte_offset, out),
            // Only for a weight of another model: validation found every tensor of this one.
            None => Err(CheckpointError::one(Problem::new(
                self.dir.display().to_string(),
                format!("no weight {}", weight.name),
                "a weight of this model",
                "this is a bug in the loader, please report it",
            ))),
        }
    }
}

/// Opens every shard and reads its header; reports the problems of all of them.
fn open_shards(dir: &Path, names: &[String]) -> Result<(Vec<Shard>, Vec<Vec<header::HeaderTensor>>), CheckpointError> {
    let mut shards = Vec::new();
    let mut headers = Vec::new();
    let mut problems = Vec::new();
    for name in names {
        let opened = files::open_shard(dir, name).and_then(|(file, bytes)| {
            let place = dir.join(name).display().to_string();
            let tensors = header::read_header(&place, bytes, |offset, out| file.read_exact_at(out, offset))?;
            Ok((Shard { name: name.clone(), bytes, file }, tensors))
        });
        match opened {
            Ok((shard, tensors)) => {
                shards.push(shard);
                headers.push(tensors);
            }
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() { Ok((shards, headers)) } else { Err(CheckpointError::Invalid { problems }) }
}
