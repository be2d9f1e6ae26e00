//! The optional files beside `tokenizer.json` that name the bos, eos and padding tokens.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::error::{TokenizerError, one_line, quote};
use super::tokenizer::SpecialIds;

/// Reads `generation_config.json` and `tokenizer_config.json` in `folder`, each only if it is there. Ids given by the first
/// win over names given by the second; `id_of` finds a token's id by name.
pub(super) fn special_ids(folder: &Path, id_of: impl Fn(&str) -> Option<u32>) -> Result<SpecialIds, TokenizerError> {
    let mut ids = SpecialIds::default();
    if let Some((file, bytes)) = read_optional(&folder.join("generation_config.json"))? {
        ids = generation_ids(&file, &bytes)?;
    }
    if let Some((file, bytes)) = read_optional(&folder.join("tokenizer_config.json"))? {
        let named = named_ids(&file, &bytes, id_of)?;
        ids.bos = ids.bos.or(named.bos);
        ids.pad = ids.pad.or(named.pad);
        if ids.eos.is_empty() {
            ids.eos = named.eos;
        }
    }
    Ok(ids)
}

/// The ids of a `generation_config.json`.
pub(super) fn generation_ids(file: &str, bytes: &[u8]) -> Result<SpecialIds, TokenizerError> {
    let raw: RawGeneration = parse(file, bytes, "generation_config.json")?;
    let bos = ids(file, "bos_token_id", &raw.bos_token_id)?;
    let mut eos = ids(file, "eos_token_id", &raw.eos_token_id)?;
    let pad = ids(file, "pad_token_id", &raw.pad_token_id)?;
    eos.sort_unstable();
    eos.dedup();
    Ok(SpecialIds { bos: bos.first().copied(), eos, pad: pad.first().copied() })
}

/// The ids of the tokens a `tokenizer_config.json` names.
pub(super) fn named_ids(
    file: &str,
    bytes: &[u8],
    id_of: impl Fn(&str) -> Option<u32>,
) -> Result<SpecialIds, TokenizerError> {
    let raw: RawNames = parse(file, bytes, "tokenizer_config.json")?;
    let find = |field: &str, value: &Value| {
        // A token is written as its name or as an object that holds the name as `content`.
        let Some(name) = value.as_str().or_else(|| value["content"].as_str()) else {
            return Ok(None);
        };
        id_of(name).map(Some).ok_or_else(|| TokenizerError::Invalid {
            file: file.to_owned(),
            field: field.to_owned(),
            found: quote(name),
            expected: "a token of tokenizer.json".to_owned(),
        })
    };
    Ok(SpecialIds {
        bos: find("bos_token", &raw.bos_token)?,
        eos: find("eos_token", &raw.eos_token)?.into_iter().collect(),
        pad: find("pad_token", &raw.pad_token)?,
    })
}

/// Most bytes of a file; those of large vocabularies have about 30 MB.
const MAX_BYTES: u64 = 256 << 20;

/// Reads a whole file; errors name it. A device may have no end, so that what is read has a limit.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, TokenizerError> {
    let failed = |reason| TokenizerError::Read { file: path.display().to_string(), reason };
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|f| f.take(MAX_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| failed(one_line(&error)))?;
    match bytes.len() as u64 > MAX_BYTES {
        true => Err(failed(format!("larger than {} MiB", MAX_BYTES >> 20))),
        false => Ok(bytes),
    }
}

/// An id, a list of ids, or null.
fn ids(file: &str, field: &str, value: &Value) -> Result<Vec<u32>, TokenizerError> {
    let one = |value: &Value| {
        value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| TokenizerError::Invalid {
            file: file.to_owned(),
            field: field.to_owned(),
            found: quote(&value.to_string()),
            expected: "a token id, a list of token ids or null".to_owned(),
        })
    };
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Array(values) => values.iter().map(one).collect(),
        value => Ok(vec![one(value)?]),
    }
}

#[derive(Deserialize)]
struct RawGeneration {
    #[serde(default)]
    bos_token_id: Value,
    #[serde(default)]
    eos_token_id: Value,
    #[serde(default)]
    pad_token_id: Value,
}

#[derive(Deserialize)]
struct RawNames {
    #[serde(default)]
    bos_token: Value,
    #[serde(default)]
    eos_token: Value,
    #[serde(default)]
    pad_token: Value,
}

fn parse<'a, T: Deserialize<'a>>(file: &str, bytes: &'a [u8], expected: &'static str) -> Result<T, TokenizerError> {
    serde_json::from_slice(bytes).map_err(|error| TokenizerError::Malformed {
        file: file.to_owned(),
        reason: one_line(&error),
        expected,
    })
}

/// A file that nobody named is opened only if it is one: opening a pipe would wait for a writer.
fn read_optional(path: &Path) -> Result<Option<(String, Vec<u8>)>, TokenizerError> {
    let file = path.display().to_string();
    match std::fs::metadata(path) {
        Ok(m) if m.is_file() => Ok(Some((file, read(path)?))),
        Ok(_) => Err(TokenizerError::Read { file, reason: "not a file".to_owned() }),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(TokenizerError::Read { file, reason: one_line(&error) }),
    }
}
