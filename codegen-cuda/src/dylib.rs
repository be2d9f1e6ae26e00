//! Shared libraries of a CUDA toolkit, found and opened while the program runs: nothing is needed to build or start it.
//!
//! Owns where they may be, opening one, and looking up its entry points. Must not know what a library is for, nor call it.
//!
//! cudarc's own tables open a library by name on first use, panic when there is none, and may pick another copy than the one chosen here; so they
//! are used for the driver alone.

mod search;

use std::ffi::{CStr, CString, OsString, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;

pub(crate) use search::numbers;

/// Looks up an environment variable.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// A library to look for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Environment variable that names its file or folder; when set nothing else is tried.
    pub variable: &'static str,
    /// File name without version: `libnvrtc.so`.
    pub stem: &'static str,
    /// Names that the system loader may know, best first.
    pub names: &'static [&'static str],
    /// Folders below `site-packages/nvidia` whose `lib` may hold it, best first.
    pub wheels: &'static [&'static str],
    /// Variables that name other libraries of the toolkit, beside which it may lie.
    pub beside: &'static [&'static str],
}

/// One thing to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Candidate {
    /// A file.
    File(PathBuf),
    /// A name for the system loader to resolve.
    Name(&'static str),
}

/// A library was not found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Its variable names nothing that can be opened.
    Override {
        /// Value of the variable.
        path: PathBuf,
        /// What is there instead.
        found: String,
    },
    /// No usable copy anywhere.
    Nowhere {
        /// Copies that were there but did not do, with reasons; empty or ` (unusable: ...)`.
        unusable: String,
    },
}

/// Why a candidate was passed over, in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It did not open. Of a name the system loader does not know this is the normal case, and says nothing.
    Closed(String),
    /// It opened but cannot be used; says which file it is.
    Unfit(String),
}

impl From<String> for Refusal {
    fn from(reason: String) -> Refusal {
        Refusal::Closed(reason)
    }
}

impl Wanted {
    /// The first candidate that `open` takes. Order: the variable (when set nothing else is tried), the names the system loader knows, folders of
    /// [`Wanted::beside`], `CUDA_HOME` and `CUDA_PATH`, `/usr/local/cuda`, then Python wheels under `VIRTUAL_ENV`, `CONDA_PREFIX`, the user's and
    /// the system's site-packages.
    ///
    /// # Errors
    /// None that `open` takes.
    pub fn find<T>(&self, env: Env, open: impl Fn(&Candidate) -> Result<T, Refusal>) -> Result<T, Missing> {
        let candidates = search::candidates(self, env)?;
        let mut failures = Vec::new();
        for candidate in &candidates {
            match (open(candidate), candidate) {
                (Ok(found), _) => return Ok(found),
                (Err(Refusal::Unfit(reason)), _) => failures.push(reason),
                (Err(Refusal::Closed(reason)), Candidate::File(path)) => {
                    failures.push(format!("{}: {reason}", path.display()));
                }
                (Err(Refusal::Closed(_)), Candidate::Name(_)) => {}
            }
        }
        let failures = failures.join("; ");
        if let Some(path) = env(self.variable).filter(|v| !v.is_empty()) {
            return Err(Missing::Override { path: path.into(), found: failures });
        }
        let unusable = if failures.is_empty() { failures } else { format!(" (unusable: {failures})") };
        Err(Missing::Nowhere { unusable })
    }

    /// Paths a program of the toolkit may have, best first.
    pub(crate) fn tools(&self, env: Env, tool: &str) -> Vec<PathBuf> {
        search::tool_candidates(self, env, tool)
    }
}

impl Candidate {
    /// The name to open it by.
    ///
    /// # Errors
    /// A file that cannot be reached, in the system's words.
    pub fn name(&self) -> Result<CString, String> {
        match self {
            Candidate::File(path) => {
                let path = path.canonicalize().map_err(|e| e.to_string())?;
                CString::new(path.as_os_str().as_bytes()).map_err(|e| e.to_string())
            }
            Candidate::Name(name) => CString::new(*name).map_err(|e| e.to_string()),
        }
    }
}

/// An open library. It is never closed: entry points stay valid for the life of the process.
#[derive(Clone, Copy, Debug)]
pub struct Library {
    handle: *mut c_void,
}

impl Library {
    /// Opens a library by path or name.
    ///
    /// # Errors
    /// The loader's reason, in one line.
    pub fn open(name: &CStr) -> Result<Library, String> {
        // SAFETY: opening a shared library runs its initialisers; those of the toolkit have no preconditions.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() { Err(loader_error()) } else { Ok(Library { handle }) }
    }

    /// The function `name`.
    ///
    /// # Errors
    /// The library has none.
    ///
    /// # Safety
    /// `F` must be the type of the function of that name.
    pub unsafe fn symbol<F: Copy>(&self, name: &CStr) -> Result<F, String> {
        const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
        // SAFETY: the handle is open; the caller vouches for the type.
        unsafe {
            let address = libc::dlsym(self.handle, name.as_ptr());
            if address.is_null() {
                return Err(format!("it has no symbol {}", name.to_string_lossy()));
            }
            Ok(std::mem::transmute_copy::<*mut c_void, F>(&address))
        }
    }
}

/// The file that the code at an address was loaded from.
pub fn path_of(address: usize) -> Option<PathBuf> {
    let mut info = libc::Dl_info {
        dli_fname: ptr::null(),
        dli_fbase: ptr::null_mut(),
        dli_sname: ptr::null(),
        dli_saddr: ptr::null_mut(),
    };
    // SAFETY: the address is looked up, not read; `info` is written on success; the name is a C string owned by the loader.
    unsafe {
        if libc::dladdr(ptr::without_provenance(address), &mut info) == 0 || info.dli_fname.is_null() {
            return None;
        }
        let bytes = CStr::from_ptr(info.dli_fname).to_bytes();
        let path = Path::new(std::ffi::OsStr::from_bytes(bytes));
        Some(path.canonicalize().unwrap_or_else(|_| path.to_owned()))
    }
}

fn loader_error() -> String {
    // SAFETY: dlerror returns null or a C string that is valid until the next call on this thread.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return "the loader gave no reason".to_owned();
    }
    // SAFETY: see above.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().replace('\n', " ")
}
