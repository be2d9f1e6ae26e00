//! The library itself: opening it with its builtins, its entry points, and the calls of one compile. All `unsafe` of NVRTC is here.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;

use crate::dylib::{Candidate, Library, numbers, path_of};

type Program = *mut c_void;
/// `nvrtcResult`; an integer here, as a newer library may return values that no enum of ours lists.
type Status = c_int;
const SUCCESS: Status = 0;

/// Entry points of one loaded library. It is never closed: the pointers stay valid for the life of the process.
#[derive(Debug)]
pub(super) struct Api {
    pub(super) path: PathBuf,
    pub(super) version: (u32, u32),
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Status,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status,
    destroy: unsafe extern "C" fn(*mut Program) -> Status,
    cubin_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    cubin: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    log: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    error_string: unsafe extern "C" fn(Status) -> *const c_char,
}

/// What one compile produced.
pub(super) struct Output {
    /// The image; `None` when the source was rejected.
    pub(super) cubin: Option<Vec<u8>>,
    pub(super) log: String,
    /// NVRTC's name of the result.
    pub(super) status: String,
}

impl Api {
    /// Opens a candidate and resolves every entry point. The error says why in one line.
    pub(super) fn open(candidate: &Candidate) -> Result<Api, String> {
        let name = candidate.name()?;
        if let Candidate::File(path) = candidate {
            preload_builtins(path);
        }
        let library = Library::open(&name)?;
        // SAFETY: each type is the signature of that function in NVRTC's C interface, unchanged since version 11.2.
        unsafe {
            let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status = library.symbol(c"nvrtcVersion")?;
            let path = path_of(version as usize).unwrap_or_else(|| PathBuf::from(name.to_string_lossy().as_ref()));
            if matches!(candidate, Candidate::Name(_)) {
                preload_builtins(&path);
            }
            let (mut major, mut minor) = (0, 0);
            let status = version(&mut major, &mut minor);
            if status != SUCCESS {
                return Err(format!("nvrtcVersion failed with status {status}"));
            }
            Ok(Api {
                path,
                version: (u32::try_from(major).unwrap_or(0), u32::try_from(minor).unwrap_or(0)),
                create: library.symbol(c"nvrtcCreateProgram")?,
                compile: library.symbol(c"nvrtcCompileProgram")?,
                destroy: library.symbol(c"nvrtcDestroyProgram")?,
                cubin_size: library.symbol(c"nvrtcGetCUBINSize")?,
                cubin: library.symbol(c"nvrtcGetCUBIN")?,
                log_size: library.symbol(c"nvrtcGetProgramLogSize")?,
                log: library.symbol(c"nvrtcGetProgramLog")?,
                error_string: library.symbol(c"nvrtcGetErrorString")?,
            })
        }
    }

    /// Compiles one program. `Err` is a failure of the library; a rejected source is an [`Output`] without an image.
    pub(super) fn compile(&self, text: &CStr, file: &CStr, options: &[CString]) -> Result<Output, String> {
        let pointers: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
        let count = c_int::try_from(pointers.len()).map_err(|_| "too many options".to_owned())?;
        let mut program = OwnedProgram { api: self, raw: ptr::null_mut() };
        // SAFETY: strings and arrays outlive the calls; the program is valid after a successful create and freed once, by its owner.
        unsafe {
            let status = (self.create)(&mut program.raw, text.as_ptr(), file.as_ptr(), 0, ptr::null(), ptr::null());
            self.require("nvrtcCreateProgram", status)?;
            let status = (self.compile)(program.raw, count, pointers.as_ptr());
            let log = self.read("nvrtcGetProgramLog", program.raw, self.log_size, self.log)?;
            let log = String::from_utf8_lossy(&log).trim_end_matches(['\0', '\n']).to_owned();
            let cubin = match status {
                SUCCESS => Some(self.read("nvrtcGetCUBIN", program.raw, self.cubin_size, self.cubin)?),
                _ => None,
            };
            Ok(Output { cubin, log, status: self.name_of(status) })
        }
    }

    unsafe fn read(
        &self,
        call: &str,
        program: Program,
        size: unsafe extern "C" fn(Program, *mut usize) -> Status,
        read: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    ) -> Result<Vec<u8>, String> {
        let mut bytes = 0usize;
        // SAFETY: the library writes exactly the number of bytes it announces.
        unsafe {
            self.require(call, size(program, &mut bytes))?;
            let mut buffer = vec![0u8; bytes];
            if bytes > 0 {
                self.require(call, read(program, buffer.as_mut_ptr().cast()))?;
            }
            Ok(buffer)
        }
    }

    fn require(&self, call: &str, status: Status) -> Result<(), String> {
        if status == SUCCESS { Ok(()) } else { Err(format!("{call} returned {}", self.name_of(status))) }
    }

    fn name_of(&self, status: Status) -> String {
        // SAFETY: returns a static string for any value.
        let text = unsafe { (self.error_string)(status) };
        if text.is_null() {
            return format!("status {status}");
        }
        // SAFETY: a static C string, see above.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }
}

struct OwnedProgram<'a> {
    api: &'a Api,
    raw: Program,
}

impl Drop for OwnedProgram<'_> {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: created by this library and not destroyed before.
            unsafe { (self.api.destroy)(&mut self.raw) };
        }
    }
}

/// Opens the builtins that lie beside the library, by full path. NVRTC asks for them by plain name when it compiles, and
/// without a run path of its own finds only what is already loaded or in the loader's path. A failure shows up in that compile.
fn preload_builtins(library: &Path) {
    let Some(folder) = library.parent() else {
        return;
    };
    let major = library.file_name().and_then(|n| numbers(&n.to_string_lossy()).first().copied());
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|e| e.file_name()).collect();
    names.sort();
    for name in names {
        let text = name.to_string_lossy();
        let same_release = major.is_none() || numbers(&text).first().copied() == major;
        if text.starts_with("libnvrtc-builtins.so.")
            && same_release
            && let Ok(path) = CString::new(folder.join(&name).as_os_str().as_bytes())
        {
            // It stays open.
            let _ = Library::open(&path);
        }
    }
}
