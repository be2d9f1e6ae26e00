//! NVRTC: CUDA C++ text in, `sm_90a` cubin and compiler log out.
//!
//! Owns finding and opening the library, the fixed option list, and turning its results into values and one-line errors.
//! Must not know what a kernel computes, what a GPU is doing, or where cubins are kept ([`crate::cache`]).
//!
//! The entry points are resolved from the library that was found, see [`crate::dylib`].

mod library;

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::dylib::{Missing, Refusal, Wanted};
use crate::resources::{self, KernelResources, Resources};
use library::Api;

/// Where NVRTC is looked for.
pub(crate) const WANTED: Wanted = Wanted {
    variable: "GOSSAMER_NVRTC",
    stem: "libnvrtc.so",
    names: &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"],
    wheels: &["cu13", "cuda_nvrtc"],
    beside: &[],
};

/// The only target: Hopper with its architecture-specific instructions (wgmma, setmaxnreg).
pub const TARGET: &str = "sm_90a";

/// Options of every compile, before those of the [`Source`]. `-v` fills the log that [`crate::resources`] reads.
pub const BASE_OPTIONS: [&str; 4] =
    ["--gpu-architecture=sm_90a", "--std=c++17", "-default-device", "--ptxas-options=-v"];

/// Stack of the thread a compile runs on. The compiler recurses with the nesting of the source and the default of a Rust
/// thread (2 MiB) is a quarter of what it gets in an ordinary C program; an overflow would kill the process without a word.
const COMPILE_STACK: usize = 64 << 20;

/// One translation unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Kernel name, used in messages and as the file name inside the log. Not part of what is compiled.
    pub name: String,
    /// CUDA C++ text; entries should be `extern "C"`, so that their names in the cubin are the names in the text.
    pub text: String,
    /// Options after [`BASE_OPTIONS`], such as `-DTILE=64` or `--ptxas-options=--maxrregcount=128`.
    pub options: Vec<String>,
}

impl Source {
    /// A source with no extra options.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Source {
        Source { name: name.into(), text: text.into(), options: Vec::new() }
    }

    /// All options in the order NVRTC gets them.
    pub fn all_options(&self) -> impl Iterator<Item = &str> {
        BASE_OPTIONS.into_iter().chain(self.options.iter().map(String::as_str))
    }
}

/// A compiled translation unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// ELF image for `sm_90a`, as `cuModuleLoadData` takes it.
    pub cubin: Vec<u8>,
    /// Log of the compiler and ptxas, with `-v` lines.
    pub log: String,
    /// What the image and the log say about each kernel.
    pub resources: Resources,
}

impl Compiled {
    /// Joins an image and its log, reading both. Fails on a damaged image or one with no kernel in it.
    pub fn new(cubin: Vec<u8>, log: String) -> Result<Compiled, resources::ResourceError> {
        let resources = resources::read(&cubin, &log)?;
        Ok(Compiled { cubin, log, resources })
    }

    /// Resources of one kernel, by its entry name.
    pub fn kernel(&self, entry: &str) -> Option<&KernelResources> {
        self.resources.kernel(entry)
    }
}

/// Something that compiles a [`Source`]: NVRTC, or a stand-in for it in tests of the cache.
pub trait Compile {
    /// Identifies compiler and version: two compilers with one fingerprint give the same bytes for the same source.
    fn fingerprint(&self) -> &str;
    /// Compiles one translation unit.
    fn compile(&self, source: &Source) -> Result<Compiled, CompileError>;
}

/// A loaded NVRTC. Cheap to clone; safe to use from several threads (the library itself compiles one program at a time).
#[derive(Clone, Debug)]
pub struct Nvrtc {
    api: Arc<Api>,
    fingerprint: Arc<str>,
}

impl Nvrtc {
    /// Finds and opens NVRTC, version 12 or newer. Never panics; safe to call again.
    ///
    /// Order: `GOSSAMER_NVRTC` (the library or its folder; when set nothing else is tried), the names the system loader knows,
    /// `CUDA_HOME` and `CUDA_PATH`, `/usr/local/cuda`, then Python wheels under `VIRTUAL_ENV`, `CONDA_PREFIX`, the user's and the
    /// system's site-packages.
    pub fn load() -> Result<Nvrtc, NvrtcError> {
        Nvrtc::load_with(&|name| std::env::var_os(name))
    }

    fn load_with(env: &dyn Fn(&str) -> Option<std::ffi::OsString>) -> Result<Nvrtc, NvrtcError> {
        let found = WANTED.find(env, |candidate| match Api::open(candidate)? {
            api if api.version.0 < 12 => {
                let (major, minor) = api.version;
                Err(Refusal::Unfit(format!("{} is version {major}.{minor}", api.path.display())))
            }
            api => Ok(api),
        });
        found.map(Nvrtc::of).map_err(|missing| match missing {
            Missing::Override { path, found } => NvrtcError::BadOverride { path, found },
            Missing::Nowhere { unusable } => NvrtcError::NotFound { unusable },
        })
    }

    fn of(api: Api) -> Nvrtc {
        // The version call gives no patch level; the size of the library tells patch releases apart.
        let bytes = std::fs::metadata(&api.path).map_or(0, |m| m.len());
        let fingerprint = format!("nvrtc {}.{} ({bytes} bytes)", api.version.0, api.version.1).into();
        Nvrtc { api: Arc::new(api), fingerprint }
    }

    /// Major and minor version of the CUDA toolkit it belongs to.
    pub fn version(&self) -> (u32, u32) {
        self.api.version
    }

    /// The library file in use.
    pub fn path(&self) -> &Path {
        &self.api.path
    }

    /// Compiles one translation unit to a cubin for [`TARGET`].
    pub fn compile(&self, source: &Source) -> Result<Compiled, CompileError> {
        let kernel = || source.name.clone();
        let text = c_string(&source.text, "text", source)?;
        let file = c_string(&format!("{}.cu", source.name), "name", source)?;
        let options = source.all_options().map(|o| c_string(o, "option", source)).collect::<Result<Vec<_>, _>>()?;
        let output = std::thread::scope(|scope| {
            std::thread::Builder::new()
                .name("nvrtc".to_owned())
                .stack_size(COMPILE_STACK)
                .spawn_scoped(scope, || self.api.compile(&text, &file, &options))
                .map_err(|e| format!("no thread to compile on: {e}"))
                .and_then(|thread| thread.join().map_err(|_| "the compiling thread panicked".to_owned()))
                .and_then(|result| result)
        });
        let output = output.map_err(|reason| CompileError::Library { kernel: kernel(), reason })?;
        let Some(cubin) = output.cubin else {
            let first_error = first_error(&output.log, &output.status);
            return Err(CompileError::Rejected { kernel: kernel(), first_error, log: output.log });
        };
        Compiled::new(cubin, output.log.clone()).map_err(|e| CompileError::BadImage {
            kernel: kernel(),
            reason: e.to_string(),
            log: output.log,
        })
    }
}

impl Compile for Nvrtc {
    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn compile(&self, source: &Source) -> Result<Compiled, CompileError> {
        Nvrtc::compile(self, source)
    }
}

/// NVRTC for a test: `None`, after printing why, when the machine has none and so the test should return early.
///
/// # Panics
/// With `GOSSAMER_REQUIRE_NVRTC=1` (as in CI) a missing NVRTC fails the test instead of skipping it.
pub fn for_tests() -> Option<Nvrtc> {
    match Nvrtc::load() {
        Ok(nvrtc) => Some(nvrtc),
        Err(error) if required_by_tests() => panic!("GOSSAMER_REQUIRE_NVRTC=1, but {error}"),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// Whether tests must fail rather than skip without NVRTC and its companions: `GOSSAMER_REQUIRE_NVRTC=1`.
pub(crate) fn required_by_tests() -> bool {
    std::env::var_os("GOSSAMER_REQUIRE_NVRTC").is_some_and(|v| v == "1")
}

/// NVRTC could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NvrtcError {
    /// `GOSSAMER_NVRTC` names nothing that can be opened.
    #[error(
        "GOSSAMER_NVRTC={}: {found}; set it to libnvrtc.so.13 or to the folder that holds it, or unset it", path.display()
    )]
    BadOverride {
        /// Value of the variable.
        path: PathBuf,
        /// What is there instead.
        found: String,
    },
    /// No usable library anywhere.
    #[error(
        "NVRTC 12 or newer not found in the loader's path, CUDA_HOME, CUDA_PATH, /usr/local/cuda or Python wheels{unusable}; install \
         the wheel nvidia-cuda-nvrtc==13.0.88 or set GOSSAMER_NVRTC to the folder of libnvrtc.so.13"
    )]
    NotFound {
        /// Libraries that were there but did not load, with reasons; empty or ` (unusable: ...)`.
        unusable: String,
    },
}

/// A source did not become a cubin. `Display` is one line; [`CompileError::log`] has the rest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// The compiler or ptxas rejected the text.
    #[error("kernel {kernel} does not compile: {first_error}")]
    Rejected {
        /// Name of the source.
        kernel: String,
        /// First error line of the log.
        first_error: String,
        /// The whole log.
        log: String,
    },
    /// Compilation succeeded, but the image cannot be used: no kernel in it, or not an `sm_90a` ELF.
    #[error("kernel {kernel} compiles to an unusable image: {reason}")]
    BadImage {
        /// Name of the source.
        kernel: String,
        /// What is wrong with it.
        reason: String,
        /// The whole log.
        log: String,
    },
    /// The text, name or an option holds a zero byte, which C strings cannot.
    #[error("kernel {kernel}: its {part} holds a zero byte at offset {offset}; remove it")]
    ZeroByte {
        /// Name of the source, with the zero byte shown as an escape.
        kernel: String,
        /// Which part: `text`, `name` or `option`.
        part: &'static str,
        /// Byte offset in that part.
        offset: usize,
    },
    /// The library itself failed.
    #[error("kernel {kernel}: NVRTC failed: {reason}")]
    Library {
        /// Name of the source.
        kernel: String,
        /// Call and message.
        reason: String,
    },
}

impl CompileError {
    /// The compiler's log, empty when compilation never started.
    pub fn log(&self) -> &str {
        match self {
            CompileError::Rejected { log, .. } | CompileError::BadImage { log, .. } => log,
            CompileError::ZeroByte { .. } | CompileError::Library { .. } => "",
        }
    }
}

fn c_string(text: &str, part: &'static str, source: &Source) -> Result<CString, CompileError> {
    CString::new(text).map_err(|e| CompileError::ZeroByte {
        kernel: source.name.escape_default().to_string(),
        part,
        offset: e.nul_position(),
    })
}

/// The first line that reports an error, else the first line, else what the call returned (bad options leave an empty log).
fn first_error(log: &str, status: &str) -> String {
    let is_error = |l: &&str| ["error:", "error :", "error   :", "fatal", "catastrophic"].iter().any(|w| l.contains(w));
    let mut lines = log.lines().map(str::trim).filter(|l| !l.is_empty());
    let line = lines.clone().find(is_error).or_else(|| lines.next());
    line.map_or_else(|| status.to_owned(), |l| format!("{l} ({status})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const AXPY: &str = r#"
        extern "C" __global__ void axpy(float a, const float* x, float* y, int n) {
            int i = blockIdx.x * blockDim.x + threadIdx.x;
            if (i < n) y[i] = a * x[i] + y[i];
        }"#;

    #[test]
    fn compiles_to_a_cubin_with_resources() {
        let Some(nvrtc) = for_tests() else { return };
        assert!(nvrtc.version().0 >= 12);
        assert!(nvrtc.path().is_file(), "{}", nvrtc.path().display());
        let compiled = nvrtc.compile(&Source::new("axpy", AXPY)).unwrap();
        let kernel = compiled.kernel("axpy").unwrap();
        assert!(kernel.registers > 0 && kernel.registers < 64, "{kernel:?}");
        assert_eq!(
            (kernel.spill_store_bytes, kernel.spill_load_bytes, kernel.stack_bytes, kernel.shared_bytes),
            (0, 0, 0, 0)
        );
        assert!(kernel.const_bytes > 0);
        assert_eq!(kernel.params, 4);
        assert_eq!(compiled.resources.kernels.len(), 1);
    }

    #[test]
    fn same_source_gives_the_same_bytes_on_any_thread() {
        let Some(nvrtc) = for_tests() else { return };
        let images: Vec<_> = std::thread::scope(|s| {
            let run = |name: &'static str| {
                let nvrtc = &nvrtc;
                s.spawn(move || nvrtc.compile(&Source::new(name, AXPY)).unwrap().cubin)
            };
            [run("a"), run("b")].into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(images[0], images[1]);
    }

    #[test]
    fn errors_are_one_line_and_keep_the_log() {
        let Some(nvrtc) = for_tests() else { return };
        let error = nvrtc
            .compile(&Source::new("broken", "extern \"C\" __global__ void k() { foo(); }\nint x = ;"))
            .unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with("kernel broken does not compile: broken.cu(1): error: identifier \"foo\" is undefined"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 1);
        assert!(error.log().contains("2 errors detected"), "{}", error.log());

        let bad_ptx = "extern \"C\" __global__ void k() { asm volatile(\"wgmmaa.fence;\"); }";
        let text = nvrtc.compile(&Source::new("ptx", bad_ptx)).unwrap_err().to_string();
        assert!(text.contains("Unknown modifier") && text.lines().count() == 1, "{text}");

        let mut source = Source::new("option", AXPY);
        source.options.push("--no-such-option".to_owned());
        let text = nvrtc.compile(&source).unwrap_err().to_string();
        assert!(text.contains("option") && text.lines().count() == 1, "{text}");
    }

    #[test]
    fn an_image_without_a_kernel_is_an_error() {
        let Some(nvrtc) = for_tests() else { return };
        let template = "template <class T> __global__ void k(T* p) { *p = 1; }";
        let text = nvrtc.compile(&Source::new("empty", template)).unwrap_err().to_string();
        assert!(text.contains("kernel empty compiles to an unusable image") && text.contains("no kernel"), "{text}");
    }

    #[test]
    fn zero_bytes_are_refused() {
        let Some(nvrtc) = for_tests() else { return };
        let text = nvrtc.compile(&Source::new("zero", "a\0b")).unwrap_err().to_string();
        assert_eq!(text, "kernel zero: its text holds a zero byte at offset 1; remove it");
    }

    #[test]
    fn a_wrong_override_is_an_error_and_no_panic() {
        let folder = tempfile::tempdir().unwrap();
        let load = |path: &Path| {
            let path = path.to_owned();
            Nvrtc::load_with(&move |name| (name == "GOSSAMER_NVRTC").then(|| path.clone().into_os_string()))
                .unwrap_err()
                .to_string()
        };
        assert!(load(folder.path()).contains("no libnvrtc.so"), "{}", load(folder.path()));
        assert!(load(&folder.path().join("absent")).contains("does not exist"));
        let fake = folder.path().join("libnvrtc.so.13");
        std::fs::write(&fake, "not a library").unwrap();
        for path in [fake.as_path(), folder.path()] {
            let text = load(path);
            assert!(text.contains("libnvrtc.so.13") && text.lines().count() == 1, "{text}");
        }
    }

    #[test]
    fn first_error_prefers_error_lines() {
        assert_eq!(first_error("note\nk.cu(3): error: bad\n", "S"), "k.cu(3): error: bad (S)");
        assert_eq!(first_error("\n  only a note\n", "S"), "only a note (S)");
        assert_eq!(first_error("", "S"), "S");
    }
}
