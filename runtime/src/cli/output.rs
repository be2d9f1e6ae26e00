//! Writing results and naming failures.

use std::fmt::Display;
use std::io::{self, Write};

/// Why a command ended early.
#[derive(Debug)]
pub enum Failure {
    /// The request failed: exit code 1.
    Failed(String),
    /// Wrong usage that the parser could not see: exit code 2.
    Usage(String),
    /// Nobody reads stdout any more.
    BrokenPipe,
    /// The failure is part of the output already: exit code 1.
    Reported,
}

impl Failure {
    /// A failed request, from any error's one line.
    pub fn from_error(e: impl Display) -> Failure {
        Failure::Failed(e.to_string())
    }
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Failure {
        match e.kind() {
            io::ErrorKind::BrokenPipe => Failure::BrokenPipe,
            _ => Failure::Failed(format!("writing the output: {e}")),
        }
    }
}

macro_rules! failures {
    ($($ty:ty),* $(,)?) => {$(
        impl From<$ty> for Failure {
            fn from(e: $ty) -> Failure { Failure::from_error(e) }
        }
    )*};
}
failures!(
    crate::session::SessionError,
    crate::engine::EngineError,
    crate::checkpoint::CheckpointError,
    crate::text::TokenizerError,
    gossamer_passes::PassError,
    gossamer_passes::PlanError,
    gossamer_ir::InferError,
);

/// Writes to stdout and flushes, so that a reader sees text as it comes.
pub fn text(s: &str) -> Result<(), Failure> {
    bytes(s.as_bytes())
}

/// Writes bytes to stdout and flushes.
pub fn bytes(b: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(b)?;
    Ok(out.flush()?)
}

/// Writes a JSON value and a newline.
pub fn json(value: &serde_json::Value) -> Result<(), Failure> {
    text(&format!("{value:#}\n"))
}

/// Writes a file whole or not at all: into a temporary file beside it, then renamed.
pub fn file(path: &std::path::Path, contents: &[u8]) -> Result<(), Failure> {
    let fail = |e: io::Error| Failure::Failed(format!("{}: cannot be written: {e}", path.display()));
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(std::path::Path::new("."));
    let mut temp = tempfile::NamedTempFile::new_in(dir).map_err(fail)?;
    temp.write_all(contents).map_err(fail)?;
    temp.as_file().sync_all().map_err(fail)?;
    temp.persist(path).map_err(|e| fail(e.error))?;
    Ok(())
}

/// Reads a JSON file of token ids: a list, or an object with a list under `tokens`.
pub fn read_tokens(path: &std::path::Path) -> Result<Vec<u32>, Failure> {
    let fail = |what: String| Failure::Failed(format!("{}: {what}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| fail(format!("cannot be read: {e}")))?;
    let value: serde_json::Value = serde_json::from_str(&text).map_err(|e| fail(format!("is not JSON: {e}")))?;
    let list = value.as_array().or_else(|| value.get("tokens").and_then(|t| t.as_array()));
    let Some(list) = list else {
        return Err(fail("holds no list of token ids; expected [1, 2, ..] or {\"tokens\": [1, 2, ..]}".into()));
    };
    let ids: Vec<u32> = list
        .iter()
        .enumerate()
        .map(|(i, v)| {
            let id = v.as_u64().and_then(|n| u32::try_from(n).ok());
            id.ok_or_else(|| fail(format!("entry {i} is {v}, expected a token id (an integer from 0)")))
        })
        .collect::<Result<_, _>>()?;
    match ids.is_empty() {
        true => Err(fail("holds no token; give at least one".into())),
        false => Ok(ids),
    }
}
