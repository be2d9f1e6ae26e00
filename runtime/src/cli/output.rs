//! Writing results and naming failures.

use std::fmt::Display;
use std::io::{self, Read as _, Write};

/// A line on stderr. A closed stderr is not worth failing for, as `eprintln!` would.
macro_rules! note {
    ($($arg:tt)*) => { $crate::cli::output::aside(format_args!("{}\n", format_args!($($arg)*))) };
}

/// Text on stderr, not worth failing for.
pub fn aside(text: std::fmt::Arguments<'_>) {
    let mut err = io::stderr().lock();
    let _ = err.write_fmt(text);
    let _ = err.flush();
}

/// Why a command ended early.
#[derive(Debug)]
pub enum Failure {
    /// The request failed: exit code 1.
    Failed(String),
    /// Wrong usage that the parser could not see: exit code 2.
    Usage(String),
    /// stdout cannot be written: exit code 1.
    Output(String),
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
            _ => Failure::Output(format!("stdout cannot be written: {e}; free space, or write elsewhere")),
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
    let fail = |e: io::Error| {
        // tempfile's errors name its own file; only the reason matters.
        let reason = match (e.raw_os_error(), e.kind()) {
            (Some(c), _) => io::Error::from_raw_os_error(c).to_string(),
            (None, io::ErrorKind::NotFound) => "there is no such folder".to_string(),
            (None, kind) => kind.to_string(),
        };
        Failure::Failed(format!("{}: cannot be written: {reason}; choose another place", path.display()))
    };
    // A device or pipe is written to; only files are replaced, behind links too.
    let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    if std::fs::metadata(&target).is_ok_and(|m| !m.is_file() && !m.is_dir()) {
        let mut device = std::fs::OpenOptions::new().write(true).open(&target).map_err(fail)?;
        return device.write_all(contents).map_err(fail);
    }
    let dir = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(std::path::Path::new("."));
    // The umask narrows this; the default of temporary files would keep the result from other users.
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    let mut temp = tempfile::Builder::new().permissions(permissions).tempfile_in(dir).map_err(fail)?;
    temp.write_all(contents).map_err(fail)?;
    temp.as_file().sync_all().map_err(fail)?;
    temp.persist(&target).map_err(|e| fail(e.error))?;
    Ok(())
}

/// Makes a folder for files, and those above it.
pub fn folder(path: &std::path::Path) -> Result<(), Failure> {
    std::fs::create_dir_all(path)
        .map_err(|e| Failure::Failed(format!("{}: cannot be made: {e}; choose another folder", path.display())))
}

/// Refuses to write over a file that the same command reads; `option` names where to write.
pub fn not_over(option: &str, out: &std::path::Path, read: &std::path::Path) -> Result<(), Failure> {
    let same = |a: &std::fs::Metadata, b: &std::fs::Metadata| {
        use std::os::unix::fs::MetadataExt;
        a.is_file() && (a.dev(), a.ino()) == (b.dev(), b.ino())
    };
    match (std::fs::metadata(out), std::fs::metadata(read)) {
        (Ok(a), Ok(b)) if same(&a, &b) => {
            Err(Failure::Usage(format!("{option} {} is a file that is read; choose another name", out.display())))
        }
        _ => Ok(()),
    }
}

/// Most bytes of text that are read from a file or from stdin.
const MAX_TEXT: u64 = 64 << 20;

/// Reads a text file.
pub fn read_text(path: &std::path::Path) -> Result<String, Failure> {
    let name = path.display().to_string();
    let file = std::fs::File::open(path)
        .map_err(|e| Failure::Failed(format!("{name}: cannot be read: {e}; check the path")))?;
    read_all(file, &name)
}

/// Reads text to its end; `name` names it in errors.
pub fn read_all(from: impl io::Read, name: &str) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    from.take(MAX_TEXT + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Failure::Failed(format!("{name}: cannot be read: {e}")))?;
    if bytes.len() as u64 > MAX_TEXT {
        return Err(Failure::Failed(format!("{name}: is larger than {} MiB; give a shorter text", MAX_TEXT >> 20)));
    }
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Failure::Failed(format!("{name}: is not UTF-8 at byte {at}; convert it to UTF-8"))
    })
}

/// Reads a JSON file of token ids: a list, or an object with a list under `tokens`.
pub fn read_tokens(path: &std::path::Path) -> Result<Vec<u32>, Failure> {
    let fail = |what: String| Failure::Failed(format!("{}: {what}", path.display()));
    let text = read_text(path)?;
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
