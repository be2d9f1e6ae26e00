//! The one error type of the CUDA layer: every message is one line with what happened, what was found and expected, and
//! what to do.

use std::ffi::CStr;

use cudarc::driver::sys;

use super::driver::{ComputeCapability, NEEDED_CAPABILITY, NEEDED_CUDA, NEEDED_DRIVER};

/// Why a CUDA operation could not be done. `Display` is one line; the part after the last "; " is [`CudaError::fix`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    /// The driver library is absent or unusable.
    #[error("no NVIDIA driver: {detail}; {}", FIX_NO_DRIVER)]
    NoDriver {
        /// What was looked for, or how the library failed.
        detail: String,
    },
    /// The driver is older than the CUDA version the kernels are built for.
    #[error(
        "the NVIDIA driver is too old: found {found}, needs CUDA {NEEDED_CUDA} (driver {NEEDED_DRIVER} or newer); {}",
        FIX_OLD_DRIVER
    )]
    OldDriver {
        /// What the driver says it supports, or the entry point it lacks.
        found: String,
    },
    /// A driver is there but shows no GPU.
    #[error("no NVIDIA GPU is visible: {detail}; {}", FIX_NO_DEVICE)]
    NoDevice {
        /// What the driver said.
        detail: String,
    },
    /// The asked-for GPU does not exist.
    #[error("no GPU {asked}: {count} visible GPU(s), numbered from 0; {}", FIX_NO_SUCH_DEVICE)]
    NoSuchDevice {
        /// The ordinal asked for.
        asked: usize,
        /// How many GPUs there are.
        count: usize,
    },
    /// The GPU is older than Hopper.
    #[error("GPU {ordinal} ({name}) is too old: found {found}, needs {NEEDED_CAPABILITY} (Hopper); {}", FIX_WRONG_GPU)]
    OldGpu {
        /// Its ordinal.
        ordinal: usize,
        /// Its name.
        name: String,
        /// Its compute capability.
        found: ComputeCapability,
    },
    /// The GPU is newer than Hopper: `sm_90a` code runs on compute capability 9.0 only.
    #[error(
        "GPU {ordinal} ({name}) cannot run sm_90a kernels: found {found}, needs exactly {NEEDED_CAPABILITY} (Hopper); {}",
        FIX_WRONG_GPU
    )]
    NewGpu {
        /// Its ordinal.
        ordinal: usize,
        /// Its name.
        name: String,
        /// Its compute capability.
        found: ComputeCapability,
    },
    /// Device memory ran out.
    #[error("GPU {ordinal} is out of memory for {what}: asked for {}, {} of {} free, {} missing; {}", bytes(*.requested), bytes(*.free), bytes(*.total), bytes(*.missing), FIX_OUT_OF_MEMORY)]
    OutOfMemory {
        /// The device's ordinal.
        ordinal: usize,
        /// What the memory was for.
        what: String,
        /// Bytes asked for.
        requested: u64,
        /// Bytes free at the time.
        free: u64,
        /// Bytes the device has.
        total: u64,
        /// Bytes that were lacking: `requested - free`, or 0 when free memory is merely fragmented.
        missing: u64,
    },
    /// Page-locked host memory ran out.
    #[error("cannot lock {} of host memory for {what}; {}", bytes(*.requested), FIX_HOST_MEMORY)]
    HostOutOfMemory {
        /// What the memory was for.
        what: String,
        /// Bytes asked for.
        requested: u64,
    },
    /// A driver call failed.
    #[error("{call} failed while {what}: {name} ({code}), {text}; {}", fix_for_code(*.code))]
    Driver {
        /// The driver entry point.
        call: &'static str,
        /// The `CUresult` value.
        code: u32,
        /// Its name, such as `CUDA_ERROR_INVALID_VALUE`.
        name: String,
        /// The driver's own words.
        text: String,
        /// What was being done.
        what: String,
    },
    /// An earlier failure left the context unusable.
    #[error("GPU {ordinal} can no longer be used in this process, after: {first}; {}", FIX_POISONED)]
    Poisoned {
        /// The device's ordinal.
        ordinal: usize,
        /// The first failure, in words.
        first: String,
    },
    /// A copy, fill or view runs past the end of its buffer.
    #[error("{what}: bytes {offset}..{end} of a buffer of {size}; {}", FIX_INTERNAL)]
    OutOfBounds {
        /// The operation.
        what: &'static str,
        /// First byte asked for.
        offset: u64,
        /// One past the last byte asked for.
        end: u64,
        /// The buffer's size in bytes.
        size: u64,
    },
    /// A length or address does not have the alignment the operation needs.
    #[error("{what}: {value} is not a multiple of {needed}; {}", FIX_INTERNAL)]
    Misaligned {
        /// The operation.
        what: &'static str,
        /// The offending address or length in bytes.
        value: u64,
        /// The alignment in bytes.
        needed: u64,
    },
    /// An arena's size overflows.
    #[error("arena layout: {bytes} bytes after {total} overflow the address space; {}", FIX_INTERNAL)]
    ArenaOverflow {
        /// The region being added.
        bytes: u64,
        /// The size so far.
        total: u64,
    },
    /// A launch configuration or argument list does not fit the kernel.
    #[error("kernel {kernel}: {problem}; {}", FIX_INTERNAL)]
    BadLaunch {
        /// The kernel's entry name.
        kernel: String,
        /// What is wrong, with found and expected.
        problem: String,
    },
    /// An image is not a whole cubin, or the driver refused it.
    #[error("module {module}: {problem}; {}", FIX_MODULE)]
    BadModule {
        /// The module's label.
        module: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A module has no such entry.
    #[error("module {module}: no kernel named {entry:?} in the image; {}", FIX_MODULE)]
    NoSuchFunction {
        /// The module's label.
        module: String,
        /// The entry asked for.
        entry: String,
    },
    /// Something that a graph cannot record was tried on a capturing thread.
    #[error("{what} is not possible while a CUDA graph is being captured; {}", FIX_INTERNAL)]
    Capturing {
        /// The operation.
        what: &'static str,
    },
    /// A captured graph allocates or frees device memory.
    #[error("the captured graph holds {nodes} memory allocation node(s), expected none; {}", FIX_INTERNAL)]
    GraphAllocates {
        /// How many allocation and free nodes.
        nodes: usize,
    },
    /// cuBLASLt was not found.
    #[error("no cuBLASLt: {detail}; {}", FIX_NO_CUBLASLT)]
    NoCublasLt {
        /// Where it was looked for, or why a copy was not used.
        detail: String,
    },
    /// A call of cuBLASLt failed.
    #[error("{call} failed while {what}: {status}; {}", FIX_CUBLASLT)]
    CublasLt {
        /// The entry point.
        call: &'static str,
        /// The library's name of the result.
        status: String,
        /// What was being done.
        what: String,
    },
    /// A file could not be written.
    #[error("cannot write {path}: {problem}; {}", FIX_FILE)]
    File {
        /// The file.
        path: String,
        /// The system's words.
        problem: String,
    },
}

impl CudaError {
    /// What to do about it; the end of the `Display` line.
    pub fn fix(&self) -> &'static str {
        match self {
            Self::NoDriver { .. } => FIX_NO_DRIVER,
            Self::OldDriver { .. } => FIX_OLD_DRIVER,
            Self::NoDevice { .. } => FIX_NO_DEVICE,
            Self::NoSuchDevice { .. } => FIX_NO_SUCH_DEVICE,
            Self::OldGpu { .. } | Self::NewGpu { .. } => FIX_WRONG_GPU,
            Self::OutOfMemory { .. } => FIX_OUT_OF_MEMORY,
            Self::HostOutOfMemory { .. } => FIX_HOST_MEMORY,
            Self::Driver { code, .. } => fix_for_code(*code),
            Self::Poisoned { .. } => FIX_POISONED,
            Self::BadModule { .. } | Self::NoSuchFunction { .. } => FIX_MODULE,
            Self::NoCublasLt { .. } => FIX_NO_CUBLASLT,
            Self::CublasLt { .. } => FIX_CUBLASLT,
            Self::File { .. } => FIX_FILE,
            Self::OutOfBounds { .. }
            | Self::Misaligned { .. }
            | Self::ArenaOverflow { .. }
            | Self::BadLaunch { .. }
            | Self::Capturing { .. }
            | Self::GraphAllocates { .. } => FIX_INTERNAL,
        }
    }

    /// The `Display` line without its fix.
    pub fn problem(&self) -> String {
        let line = self.to_string();
        match line.strip_suffix(self.fix()).and_then(|head| head.strip_suffix("; ")) {
            Some(problem) => problem.to_owned(),
            None => line,
        }
    }

    /// Whether there simply is no usable GPU here, so that `--device auto` may take the CPU.
    pub fn is_no_gpu(&self) -> bool {
        matches!(
            self,
            Self::NoDriver { .. }
                | Self::OldDriver { .. }
                | Self::NoDevice { .. }
                | Self::OldGpu { .. }
                | Self::NewGpu { .. }
        )
    }
}

const FIX_NO_DRIVER: &str = "install the NVIDIA driver 580 or newer, or use --device cpu";
const FIX_OLD_DRIVER: &str = "update the NVIDIA driver, or use --device cpu";
const FIX_NO_DEVICE: &str = "check nvidia-smi and CUDA_VISIBLE_DEVICES, or use --device cpu";
const FIX_NO_SUCH_DEVICE: &str = "ask for an existing GPU, or check CUDA_VISIBLE_DEVICES";
const FIX_WRONG_GPU: &str = "use an H100, H200 or GH200, or --device cpu";
const FIX_OUT_OF_MEMORY: &str =
    "free GPU memory (nvidia-smi shows who holds it), shorten the context or lower the batch";
const FIX_HOST_MEMORY: &str = "free host memory, or raise the limit on locked memory (ulimit -l)";
const FIX_POISONED: &str = "restart the process, and report it with the first failure if it happens again";
const FIX_MODULE: &str = "clear the kernel cache and compile again";
const FIX_FILE: &str = "choose a path that can be written";
const FIX_NO_CUBLASLT: &str =
    "install the Python wheel nvidia-cublas (13.0), or set GOSSAMER_CUBLASLT to the folder of libcublasLt.so.13";
const FIX_CUBLASLT: &str = "do without --enable-rule seed/cublaslt, and report this line";
const FIX_INTERNAL: &str = "this is a bug in Gossamer, please report it";
const FIX_BUSY: &str = "another process holds the GPU exclusively: stop it or wait";
const FIX_RETRY: &str = "run gossamer doctor, and report this line if it finds nothing";
const FIX_HARDWARE: &str =
    "the GPU reported a hardware error: check nvidia-smi -q and the system log, then reset or replace it";

/// Result codes used by name here. Kept as numbers, because a newer driver may return values the bindings do not list.
pub(super) mod code {
    pub(in crate::cuda) const SUCCESS: u32 = 0;
    pub(in crate::cuda) const INVALID_VALUE: u32 = 1;
    pub(in crate::cuda) const OUT_OF_MEMORY: u32 = 2;
    pub(in crate::cuda) const DEINITIALIZED: u32 = 4;
    pub(in crate::cuda) const STUB_LIBRARY: u32 = 34;
    pub(in crate::cuda) const DEVICE_UNAVAILABLE: u32 = 46;
    pub(in crate::cuda) const NO_DEVICE: u32 = 100;
    pub(in crate::cuda) const INVALID_IMAGE: u32 = 200;
    pub(in crate::cuda) const NO_BINARY_FOR_GPU: u32 = 209;
    pub(in crate::cuda) const ECC_UNCORRECTABLE: u32 = 214;
    pub(in crate::cuda) const NVLINK_UNCORRECTABLE: u32 = 220;
    pub(in crate::cuda) const CONTAINED: u32 = 226;
    pub(in crate::cuda) const INVALID_SOURCE: u32 = 300;
    pub(in crate::cuda) const NOT_FOUND: u32 = 500;
    pub(in crate::cuda) const NOT_READY: u32 = 600;
    pub(in crate::cuda) const SYSTEM_DRIVER_MISMATCH: u32 = 803;
}

/// Whether a context is lost after this code: every later call fails and only a new process helps.
pub(super) fn is_sticky(result: u32) -> bool {
    // 700..=719 without the peer, host-registration and resource codes that fail one call only.
    matches!(result, 700 | 702 | 709 | 710 | 714..=719 | 721)
        || matches!(
            result,
            code::DEINITIALIZED | code::ECC_UNCORRECTABLE | code::NVLINK_UNCORRECTABLE | code::CONTAINED
        )
}

/// A [`CudaError::Driver`] for a failed call. Call it only once the library is known to be loaded.
pub(super) fn driver_error(call: &'static str, result: sys::CUresult, what: &str) -> CudaError {
    let (name, text) = name_and_text(result);
    CudaError::Driver { call, code: result as u32, name, text, what: what.to_owned() }
}

/// `12.8 GiB`, with bytes below a KiB; for people.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if n < 1024 {
        return format!("{n} bytes");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would print as 1024.0.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

fn fix_for_code(result: u32) -> &'static str {
    match result {
        code::OUT_OF_MEMORY => FIX_OUT_OF_MEMORY,
        code::DEVICE_UNAVAILABLE => FIX_BUSY,
        code::ECC_UNCORRECTABLE | code::NVLINK_UNCORRECTABLE | code::CONTAINED => FIX_HARDWARE,
        _ if is_sticky(result) => FIX_POISONED,
        _ => FIX_RETRY,
    }
}

fn name_and_text(result: sys::CUresult) -> (String, String) {
    let mut name = std::ptr::null();
    let mut text = std::ptr::null();
    // SAFETY: the library is loaded (a call has just returned `result`), both entry points are in the checked list, and the
    // pointers are valid for one write each. Unknown codes leave them null.
    unsafe {
        let _ = sys::cuGetErrorName(result, &mut name);
        let _ = sys::cuGetErrorString(result, &mut text);
    }
    (static_text(name, "unknown error"), static_text(text, "the driver has no description"))
}

fn static_text(text: *const std::ffi::c_char, fallback: &str) -> String {
    if text.is_null() {
        return fallback.to_owned();
    }
    // SAFETY: the driver returns pointers to static, NUL-terminated strings.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    text.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<CudaError> {
        vec![
            CudaError::NoDriver { detail: "libcuda.so.1 was not found".into() },
            CudaError::OldDriver { found: "CUDA 12.8".into() },
            CudaError::NoDevice { detail: "the driver lists 0 devices".into() },
            CudaError::NoSuchDevice { asked: 3, count: 1 },
            CudaError::OldGpu { ordinal: 0, name: "NVIDIA A100".into(), found: ComputeCapability::new(8, 0) },
            CudaError::NewGpu { ordinal: 0, name: "NVIDIA B200".into(), found: ComputeCapability::new(10, 0) },
            CudaError::OutOfMemory {
                ordinal: 0,
                what: "weights".into(),
                requested: 65_248_815_744,
                free: 40 << 30,
                total: 80 << 30,
                missing: 65_248_815_744 - (40 << 30),
            },
            CudaError::HostOutOfMemory { what: "staging".into(), requested: 1 << 28 },
            CudaError::Driver {
                call: "cuLaunchKernelEx",
                code: 700,
                name: "CUDA_ERROR_ILLEGAL_ADDRESS".into(),
                text: "an illegal memory access was encountered".into(),
                what: "launching moe_gate_up".into(),
            },
            CudaError::Driver {
                call: "cuCtxSetCurrent",
                code: 46,
                name: "CUDA_ERROR_DEVICE_UNAVAILABLE".into(),
                text: "busy".into(),
                what: "opening GPU 0".into(),
            },
            CudaError::Poisoned { ordinal: 0, first: "cuStreamSynchronize: illegal address".into() },
            CudaError::OutOfBounds { what: "upload", offset: 8, end: 40, size: 32 },
            CudaError::Misaligned { what: "fill_u32", value: 7, needed: 4 },
            CudaError::ArenaOverflow { bytes: u64::MAX, total: 256 },
            CudaError::BadLaunch { kernel: "k".into(), problem: "3 arguments, expected 4".into() },
            CudaError::BadModule { module: "m".into(), problem: "not an ELF file".into() },
            CudaError::NoSuchFunction { module: "m".into(), entry: "k".into() },
            CudaError::Capturing { what: "allocating device memory" },
            CudaError::GraphAllocates { nodes: 2 },
            CudaError::File { path: "graph.dot".into(), problem: "Permission denied".into() },
            CudaError::NoCublasLt { detail: "GOSSAMER_CUBLASLT=/x: that path does not exist".into() },
            CudaError::CublasLt {
                call: "cublasLtMatmul",
                status: "CUBLAS_STATUS_NOT_SUPPORTED".into(),
                what: "launching a matmul of 64x128x256".into(),
            },
        ]
    }

    #[test]
    fn every_message_is_one_line_with_a_fix() {
        for error in samples() {
            let line = error.to_string();
            assert!(!line.contains('\n'), "{line}");
            assert!(line.ends_with(error.fix()), "{line}");
            assert_eq!(format!("{}; {}", error.problem(), error.fix()), line);
            // Readers split problem and fix at the last "; ".
            assert!(!error.problem().is_empty() && !error.fix().contains("; "), "{line}");
        }
    }

    #[test]
    fn old_hardware_and_drivers_name_found_and_needed() {
        let lines: Vec<String> = samples().iter().map(ToString::to_string).collect();
        assert!(lines[1].contains("found CUDA 12.8, needs CUDA 13.0 (driver 580 or newer)"), "{}", lines[1]);
        assert!(lines[4].contains("GPU 0 (NVIDIA A100) is too old: found SM80, needs SM90"), "{}", lines[4]);
        assert!(lines[5].contains("found SM100, needs exactly SM90"), "{}", lines[5]);
    }

    #[test]
    fn out_of_memory_says_how_much_is_missing() {
        let line = samples()[6].to_string();
        assert!(line.contains("asked for 60.8 GiB, 40.0 GiB of 80.0 GiB free, 20.8 GiB missing"), "{line}");
    }

    #[test]
    fn sticky_codes_are_those_that_kill_a_context() {
        for sticky in [4, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721] {
            assert!(is_sticky(sticky), "{sticky}");
        }
        for other in [0, 1, 2, 100, 200, 500, 600, 701, 704, 705, 708, 711, 712, 713, 720, 900, 901, 999] {
            assert!(!is_sticky(other), "{other}");
        }
    }

    #[test]
    fn byte_counts_read_well() {
        assert_eq!(bytes(0), "0 bytes");
        assert_eq!(bytes(1023), "1023 bytes");
        assert_eq!(bytes(1024), "1.0 KiB");
        assert_eq!(bytes((1 << 20) - 1), "1.0 MiB");
        assert_eq!(bytes(13_761_264_768), "12.8 GiB");
        assert_eq!(bytes(u64::MAX), "16777216.0 TiB");
    }
}
