//! The disk cache of compiled kernels.
//!
//! Owns keys, entry files ([`entry`]), their life in one folder, and counters. Must not know NVRTC's calls (it is given a
//! [`Compile`]) nor what a kernel does.
//!
//! - The key is a hash of everything that decides the bytes: text, options, compiler fingerprint, target, format version.
//!   *Not* in it: the kernel's name, launch geometry, tensor contents, the GPU.
//! - An entry is trusted after its header, lengths, key and checksum agree, and after the image reads as a cubin. Anything
//!   else counts as damaged: it is compiled again and replaced.
//! - Entries appear by rename of a finished, synced file, so readers in any process see a whole entry or none.
//! - Trouble with the disk never stops a run: it is counted, and [`KernelCache::warning`] has one line about it.
//! - The checksum finds damage, not malice: whoever can write the folder can choose the machine code that runs.

pub mod entry;

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use crate::nvrtc::{Compile, CompileError, Compiled, Source};
pub use entry::Key;

/// Entries together stay below this unless [`KernelCache::with_capacity`] says otherwise: thousands of kernels.
pub const DEFAULT_CAPACITY: u64 = 1 << 30;

/// Extension of entries; other files in the folder are never touched.
const EXTENSION: &str = "gsk";
/// Unfinished files start like this. Readers never open them; old ones are left by killed processes and removed.
const TEMPORARY: &str = ".gossamer-tmp-";
const TEMPORARY_LIFE: Duration = Duration::from_secs(3600);
/// A hit renews an entry's time when it is older than this; renewing on every hit would write on every start.
const RENEW_AFTER: Duration = Duration::from_secs(60);

/// What a cache did since it was made. `lookups = hits + misses`, `compiles = misses`, `damaged <= misses`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Kernels that came from disk.
    pub hits: u64,
    /// Kernels that did not.
    pub misses: u64,
    /// Compiles started, failed ones included.
    pub compiles: u64,
    /// Misses whose entry was there but damaged.
    pub damaged: u64,
    /// Compiled kernels that could not be stored.
    pub write_failures: u64,
    /// Entries removed to stay below the capacity.
    pub evicted: u64,
}

impl fmt::Display for CacheStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} kernels from the cache, {} compiled", self.hits, self.compiles)?;
        for (count, what) in
            [(self.damaged, "damaged entries"), (self.write_failures, "not stored"), (self.evicted, "evicted")]
        {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        Ok(())
    }
}

/// A folder of compiled kernels. Share it by reference between threads; any number of processes may use one folder.
#[derive(Debug)]
pub struct KernelCache {
    folder: Option<PathBuf>,
    capacity: u64,
    hits: AtomicU64,
    misses: AtomicU64,
    compiles: AtomicU64,
    damaged: AtomicU64,
    write_failures: AtomicU64,
    evicted: AtomicU64,
    warning: Mutex<Option<String>>,
}

impl KernelCache {
    /// A cache in `folder`, which is made when the first kernel is stored.
    pub fn at(folder: impl Into<PathBuf>) -> KernelCache {
        KernelCache::new(Some(folder.into()))
    }

    /// No cache: every lookup compiles and nothing is written.
    pub fn disabled() -> KernelCache {
        KernelCache::new(None)
    }

    fn new(folder: Option<PathBuf>) -> KernelCache {
        KernelCache {
            folder,
            capacity: DEFAULT_CAPACITY,
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            compiles: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
            write_failures: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            warning: Mutex::new(None),
        }
    }

    /// Sets the bytes that entries may take together. When a store exceeds it, the longest unused go until a tenth is free;
    /// the entry just stored stays even if it is larger than the capacity.
    pub fn with_capacity(mut self, bytes: u64) -> KernelCache {
        self.capacity = bytes;
        self
    }

    /// The folder, if the cache is not disabled.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// The kernel for `source`: from disk, or compiled and then stored. Fails only when compiling fails.
    pub fn get_or_compile(&self, source: &Source, compiler: &dyn Compile) -> Result<Compiled, CompileError> {
        let key = Key::of(source, compiler.fingerprint());
        match self.lookup(&key) {
            Lookup::Hit(compiled) => {
                self.hits.fetch_add(1, Ordering::Relaxed);
                return Ok(*compiled);
            }
            Lookup::Damaged => {
                self.damaged.fetch_add(1, Ordering::Relaxed);
            }
            Lookup::Absent => {}
        }
        self.misses.fetch_add(1, Ordering::Relaxed);
        self.compiles.fetch_add(1, Ordering::Relaxed);
        let compiled = compiler.compile(source)?;
        if let Some(folder) = &self.folder
            && let Err(error) = self.store(folder, &key, &compiled)
        {
            self.write_failures.fetch_add(1, Ordering::Relaxed);
            self.warn(format!(
                "kernel cache {}: cannot store compiled kernels ({error}); they are compiled again in each run: free some space, make \
                 the folder writable or set GOSSAMER_CACHE_DIR to another",
                folder.display()
            ));
        }
        Ok(compiled)
    }

    /// Whether the cache holds a sound entry for `source`, without compiling or counting.
    pub fn contains(&self, source: &Source, compiler: &dyn Compile) -> bool {
        matches!(self.lookup(&Key::of(source, compiler.fingerprint())), Lookup::Hit(_))
    }

    /// What happened so far.
    pub fn stats(&self) -> CacheStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CacheStats {
            hits: get(&self.hits),
            misses: get(&self.misses),
            compiles: get(&self.compiles),
            damaged: get(&self.damaged),
            write_failures: get(&self.write_failures),
            evicted: get(&self.evicted),
        }
    }

    /// The first trouble with the disk, as one line to show the user; `None` if there was none.
    pub fn warning(&self) -> Option<String> {
        self.warning.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    fn warn(&self, text: String) {
        self.warning.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(text);
    }

    fn lookup(&self, key: &Key) -> Lookup {
        let Some(folder) = &self.folder else {
            return Lookup::Absent;
        };
        let path = path_of(folder, key);
        match read_file(&path) {
            Ok(bytes) => match entry::decode(&bytes, key) {
                Some(compiled) => Lookup::Hit(Box::new(compiled)),
                None => Lookup::Damaged,
            },
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Lookup::Absent
            }
            Err(error) => {
                self.warn(format!("kernel cache: cannot read {}: {error}; compiling instead", path.display()));
                Lookup::Damaged
            }
        }
    }

    fn store(&self, folder: &Path, key: &Key, compiled: &Compiled) -> io::Result<()> {
        fs::create_dir_all(folder)?;
        let mut file = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(folder)?;
        file.write_all(&entry::encode(key, compiled))?;
        file.as_file().sync_all()?;
        file.persist(path_of(folder, key)).map_err(|e| e.error)?;
        // The rename itself is made durable by syncing the folder. Not every file system can; the entry is whole either way.
        if let Ok(folder) = File::open(folder) {
            let _ = folder.sync_all();
        }
        self.evict(folder, key);
        Ok(())
    }

    /// Removes old temporary files, then the longest unused entries while all together exceed the capacity. Another process may
    /// do the same at the same time: a file that is already gone is not an error.
    fn evict(&self, folder: &Path, keep: &Key) {
        let now = SystemTime::now();
        let keep = path_of(folder, keep);
        let mut entries = Vec::new();
        for file in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(meta) = file.metadata() else { continue };
            let modified = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let path = file.path();
            if file.file_name().to_string_lossy().starts_with(TEMPORARY) {
                if now.duration_since(modified).is_ok_and(|age| age > TEMPORARY_LIFE) {
                    let _ = fs::remove_file(path);
                }
            } else if meta.is_file() && path.extension().is_some_and(|e| e == EXTENSION) {
                entries.push((modified, path, meta.len()));
            }
        }
        let mut total: u64 = entries.iter().map(|e| e.2).sum();
        if total <= self.capacity {
            return;
        }
        let low_water = self.capacity - self.capacity / 10;
        entries.sort();
        for (_, path, bytes) in entries.into_iter().filter(|e| e.1 != keep) {
            if total <= low_water {
                break;
            }
            if fs::remove_file(&path).is_ok() {
                self.evicted.fetch_add(1, Ordering::Relaxed);
            }
            total = total.saturating_sub(bytes);
        }
    }
}

/// Where kernels are cached by default: `GOSSAMER_CACHE_DIR`, else `gossamer/cubin` in `XDG_CACHE_HOME` or `HOME/.cache`. `None`
/// when none of them is set; then use [`KernelCache::disabled`].
pub fn default_folder() -> Option<PathBuf> {
    default_folder_with(&|name| std::env::var_os(name))
}

fn default_folder_with(env: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let set = |name| env(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("GOSSAMER_CACHE_DIR").or_else(|| {
        // The XDG rules say that a relative path is to be ignored.
        let base = set("XDG_CACHE_HOME").filter(|p| p.is_absolute()).or_else(|| set("HOME").map(|h| h.join(".cache")));
        base.map(|b| b.join("gossamer/cubin"))
    })
}

enum Lookup {
    Hit(Box<Compiled>),
    Absent,
    Damaged,
}

fn path_of(folder: &Path, key: &Key) -> PathBuf {
    folder.join(format!("{key}.{EXTENSION}"))
}

/// Reads an entry and renews its time. Only plain files of a sensible size: opening a pipe would wait forever.
fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let meta = fs::metadata(path)?;
    if !meta.is_file() || meta.len() > entry::MAX_BYTES {
        return Ok(Vec::new());
    }
    let file = File::open(path)?;
    let mut bytes = Vec::with_capacity(usize::try_from(meta.len()).unwrap_or(0));
    Read::take(&file, entry::MAX_BYTES + 1).read_to_end(&mut bytes)?;
    let now = SystemTime::now();
    if meta.modified().is_ok_and(|m| now.duration_since(m).is_ok_and(|age| age > RENEW_AFTER)) {
        // On a read-only folder the order of use is simply not recorded.
        let _ = file.set_modified(now);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
