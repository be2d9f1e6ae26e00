//! What a compiled kernel needs, read without a GPU, and the gate every emitted kernel passes.
//!
//! Owns reading a cubin ([`cubin`]) and the ptxas log, the SM90 limits, and [`check`]. Looking for instructions in the machine
//! code is in [`sass`], as it needs NVIDIA's disassembler. Must not know how a kernel is made or launched.

pub mod cubin;
mod log;
pub mod sass;

use std::fmt;

use crate::nvrtc::{Compiled, TARGET};
pub use sass::Instr;

/// Registers of one SM.
pub const REGISTERS_PER_SM: u32 = 65_536;
/// Shared memory one block may use on SM90, static and dynamic together, in bytes (227 KiB).
pub const SHARED_PER_BLOCK: u32 = 232_448;
/// Shared memory of one SM, in bytes; each block takes [`SHARED_RESERVED`] more than it asks for.
pub const SHARED_PER_SM: u32 = 233_472;
/// Dynamic shared memory in bytes of which an SM never holds two blocks, whatever they have statically.
pub const SHARED_ALONE: u32 = SHARED_PER_SM / 2 - SHARED_RESERVED + 128;
/// Shared memory the system keeps per block, in bytes.
pub const SHARED_RESERVED: u32 = 1024;
/// Threads of one block.
pub const THREADS_PER_BLOCK: u32 = 1024;
const THREADS_PER_SM: u32 = 2048;
const BLOCKS_PER_SM: u32 = 32;
/// Registers are given to warps in units of this many.
const REGISTER_UNIT: u32 = 256;

/// What one kernel needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelResources {
    /// Entry name in the image.
    pub entry: String,
    /// Registers per thread.
    pub registers: u32,
    /// Bytes of spill stores ptxas added, per thread; functions it calls without inlining included.
    pub spill_store_bytes: u32,
    /// Bytes of spill loads, likewise.
    pub spill_load_bytes: u32,
    /// Local-memory stack per thread in bytes, spills included.
    pub stack_bytes: u32,
    /// Static shared memory in bytes.
    pub shared_bytes: u32,
    /// Size of constant bank 0 in bytes: launch parameters and what the driver puts before them.
    pub const_bytes: u32,
    /// Number of parameters.
    pub params: u32,
}

/// What an image and its log say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Kernels, sorted by entry name.
    pub kernels: Vec<KernelResources>,
    /// ptxas messages `C75..`: wgmma made serial, a wait or fence added, `setmaxnreg` ignored. The kernel still computes the
    /// right thing, at half the speed.
    pub warnings: Vec<String>,
}

impl Resources {
    /// One kernel, by its entry name.
    pub fn kernel(&self, entry: &str) -> Option<&KernelResources> {
        self.kernels.iter().find(|k| k.entry == entry)
    }
}

/// Joins what the image says (entries, registers, stack, constants) with what only the log says (spills, static shared memory).
pub fn read(image: &[u8], log: &str) -> Result<Resources, ResourceError> {
    let entries = cubin::entries(image)?;
    if entries.is_empty() {
        return Err(ResourceError::NoKernel);
    }
    let mut logged = log::parse(log);
    let kernels = entries
        .into_iter()
        .map(|e| {
            let from_log = logged.functions.remove(&e.name).unwrap_or_default();
            KernelResources {
                registers: e.registers,
                spill_store_bytes: from_log.spill_store_bytes,
                spill_load_bytes: from_log.spill_load_bytes,
                stack_bytes: e.stack_bytes.max(from_log.stack_bytes),
                shared_bytes: from_log.shared_bytes,
                const_bytes: e.const_bytes,
                params: e.params,
                entry: e.name,
            }
        })
        .collect();
    let mut resources = Resources { kernels, warnings: logged.warnings };
    // What is left are functions that were not inlined; the log does not say who calls them, so each kernel answers for them.
    for function in logged.functions.values() {
        for kernel in &mut resources.kernels {
            kernel.spill_store_bytes = kernel.spill_store_bytes.saturating_add(function.spill_store_bytes);
            kernel.spill_load_bytes = kernel.spill_load_bytes.saturating_add(function.spill_load_bytes);
        }
    }
    Ok(resources)
}

/// What a kernel is expected to be, for [`check`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expect<'a> {
    /// Entry name.
    pub entry: &'a str,
    /// Threads per block at launch.
    pub threads: u32,
    /// Dynamic shared memory at launch, in bytes.
    pub dynamic_shared: u32,
    /// Stack that is accepted, in bytes per thread; 0 unless the kernel indexes a local array on purpose.
    pub stack_limit: u32,
    /// Instructions the machine code must hold; looked at by [`sass::check_instructions`] only.
    pub must_contain: &'a [Instr],
}

impl<'a> Expect<'a> {
    /// A kernel with no dynamic shared memory, no stack and no required instruction.
    pub fn new(entry: &'a str, threads: u32) -> Expect<'a> {
        Expect { entry, threads, dynamic_shared: 0, stack_limit: 0, must_contain: &[] }
    }
}

/// A kernel that passed [`check`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What it needs.
    pub kernel: KernelResources,
    /// Threads per block.
    pub threads: u32,
    /// Dynamic shared memory per block in bytes.
    pub dynamic_shared: u32,
    /// Blocks of this kernel that one SM holds at a time.
    pub blocks_per_sm: u32,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let KernelResources { entry, registers, stack_bytes, shared_bytes, .. } = &self.kernel;
        write!(
            f,
            "{entry}: {} threads, {registers} registers, {shared_bytes} + {} B shared, {stack_bytes} B stack, {} blocks/SM",
            self.threads, self.dynamic_shared, self.blocks_per_sm
        )
    }
}

/// Checks one kernel against what is expected and against the limits of SM90: entry present, no spills, no stack beyond the
/// limit, registers and shared memory fit at least one block, no `C75..` message in the log.
pub fn check(compiled: &Compiled, expect: &Expect) -> Result<Report, ResourceError> {
    let entry = || expect.entry.to_owned();
    let Some(kernel) = compiled.kernel(expect.entry) else {
        let found = compiled.resources.kernels.iter().map(|k| k.entry.as_str()).collect::<Vec<_>>().join(", ");
        return Err(ResourceError::MissingEntry { entry: entry(), found });
    };
    let threads = expect.threads;
    if threads == 0 || threads > THREADS_PER_BLOCK {
        return Err(ResourceError::Threads { entry: entry(), threads });
    }
    if kernel.spill_store_bytes > 0 || kernel.spill_load_bytes > 0 {
        let (stores, loads) = (kernel.spill_store_bytes, kernel.spill_load_bytes);
        return Err(ResourceError::Spills { entry: entry(), registers: kernel.registers, stores, loads });
    }
    if kernel.stack_bytes > expect.stack_limit {
        return Err(ResourceError::Stack { entry: entry(), bytes: kernel.stack_bytes, limit: expect.stack_limit });
    }
    let block_registers = registers_of_block(kernel.registers, threads);
    if block_registers > REGISTERS_PER_SM {
        return Err(ResourceError::Registers {
            entry: entry(),
            registers: kernel.registers,
            threads,
            block: block_registers,
        });
    }
    let shared = u64::from(kernel.shared_bytes) + u64::from(expect.dynamic_shared);
    if shared > u64::from(SHARED_PER_BLOCK) {
        return Err(ResourceError::Shared {
            entry: entry(),
            fixed: kernel.shared_bytes,
            dynamic: expect.dynamic_shared,
        });
    }
    if let Some(message) = compiled.resources.warnings.first() {
        return Err(ResourceError::Serialised { entry: entry(), message: message.clone() });
    }
    let shared = kernel.shared_bytes + expect.dynamic_shared + SHARED_RESERVED;
    let warp_threads = threads.next_multiple_of(32);
    let blocks_per_sm = (REGISTERS_PER_SM / block_registers.max(1))
        .min(SHARED_PER_SM / shared)
        .min(THREADS_PER_SM / warp_threads)
        .min(BLOCKS_PER_SM);
    Ok(Report { kernel: kernel.clone(), threads, dynamic_shared: expect.dynamic_shared, blocks_per_sm })
}

/// Registers a block takes: whole warps, each rounded up to the unit of allocation.
fn registers_of_block(registers: u32, threads: u32) -> u32 {
    (registers * 32).next_multiple_of(REGISTER_UNIT) * threads.div_ceil(32)
}

/// A kernel or an image is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResourceError {
    /// The image is no cubin for this target.
    #[error("image is not a whole {TARGET} cubin: {what} at byte {offset}; compile it again")]
    Malformed {
        /// What is wrong.
        what: &'static str,
        /// Where in the image.
        offset: usize,
    },
    /// Nothing was emitted.
    #[error("image holds no kernel; emit entries as extern \"C\" __global__ functions, not as templates")]
    NoKernel,
    /// The entry is not in the image.
    #[error("kernel {entry} is not in the image, which holds {found}; emit it under that name as extern \"C\"")]
    MissingEntry {
        /// Expected name.
        entry: String,
        /// Names in the image, separated by commas.
        found: String,
    },
    /// The block size is illegal.
    #[error(
        "kernel {entry}: {threads} threads per block, expected 1 to {THREADS_PER_BLOCK}; change its launch geometry"
    )]
    Threads {
        /// Kernel.
        entry: String,
        /// Threads asked for.
        threads: u32,
    },
    /// Registers went to local memory.
    #[error(
        "kernel {entry} spills {stores} B of stores and {loads} B of loads per thread at {registers} registers, expected none; use \
         smaller tiles or looser launch bounds"
    )]
    Spills {
        /// Kernel.
        entry: String,
        /// Registers per thread.
        registers: u32,
        /// Bytes stored per thread.
        stores: u32,
        /// Bytes loaded per thread.
        loads: u32,
    },
    /// Local arrays live in memory.
    #[error(
        "kernel {entry} keeps {bytes} B of stack per thread, expected at most {limit}; index local arrays by constants"
    )]
    Stack {
        /// Kernel.
        entry: String,
        /// Bytes per thread.
        bytes: u32,
        /// Accepted bytes.
        limit: u32,
    },
    /// One block needs more registers than an SM has.
    #[error(
        "kernel {entry}: {threads} threads of {registers} registers take {block} of the {REGISTERS_PER_SM} of an SM; use fewer threads \
         or set launch bounds"
    )]
    Registers {
        /// Kernel.
        entry: String,
        /// Registers per thread.
        registers: u32,
        /// Threads per block.
        threads: u32,
        /// Registers a block takes.
        block: u32,
    },
    /// One block needs more shared memory than it may have.
    #[error(
        "kernel {entry}: {fixed} B static and {dynamic} B dynamic shared memory, expected at most {SHARED_PER_BLOCK} B together; use smaller tiles or fewer stages"
    )]
    Shared {
        /// Kernel.
        entry: String,
        /// Static bytes.
        fixed: u32,
        /// Dynamic bytes.
        dynamic: u32,
    },
    /// ptxas changed the wgmma pipeline.
    #[error(
        "kernel {entry}: ptxas gave up on asynchronous wgmma: {message}; fence and wait around the accumulators in straight code"
    )]
    Serialised {
        /// Kernel.
        entry: String,
        /// Line of the log.
        message: String,
    },
    /// The compiler chose other machine instructions.
    #[error(
        "kernel {entry} holds no {instruction} instruction; the code that should become one was compiled to something else"
    )]
    MissingInstruction {
        /// Kernel.
        entry: String,
        /// Mnemonic.
        instruction: &'static str,
    },
    /// The disassembler failed.
    #[error("nvdisasm could not read the image: {reason}; install the wheel nvidia-cuda-nvdisasm 13.2.86 or newer")]
    Disassembler {
        /// Its message or the system's, in one line.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvrtc::{self, Source};

    fn compiled(kernel: KernelResources, warnings: &[&str]) -> Compiled {
        let warnings = warnings.iter().map(|w| w.to_string()).collect();
        Compiled { cubin: Vec::new(), log: String::new(), resources: Resources { kernels: vec![kernel], warnings } }
    }

    fn kernel() -> KernelResources {
        KernelResources { entry: "k".to_owned(), registers: 64, ..KernelResources::default() }
    }

    #[test]
    fn a_good_kernel_passes_and_reports_occupancy() {
        let report =
            check(&compiled(kernel(), &[]), &Expect { dynamic_shared: 100 * 1024, ..Expect::new("k", 256) }).unwrap();
        assert_eq!(report.blocks_per_sm, 2);
        assert_eq!(report.to_string(), "k: 256 threads, 64 registers, 0 + 102400 B shared, 0 B stack, 2 blocks/SM");
        assert_eq!(check(&compiled(kernel(), &[]), &Expect::new("k", 256)).unwrap().blocks_per_sm, 4);
        assert_eq!(check(&compiled(kernel(), &[]), &Expect::new("k", 1)).unwrap().blocks_per_sm, 32);
    }

    #[test]
    fn each_limit_has_its_own_error() {
        let error = |change: &dyn Fn(&mut KernelResources, &mut Expect)| {
            let (mut k, mut e) = (kernel(), Expect::new("k", 256));
            change(&mut k, &mut e);
            let text = check(&compiled(k, &[]), &e).unwrap_err().to_string();
            assert_eq!(text.lines().count(), 1, "{text}");
            text
        };
        assert!(error(&|_, e| e.entry = "other").contains("holds k"));
        assert!(error(&|_, e| e.threads = 0).contains("0 threads"));
        assert!(error(&|_, e| e.threads = 1025).contains("1025 threads"));
        assert!(error(&|k, _| k.spill_load_bytes = 4).contains("spills 0 B of stores and 4 B"));
        assert!(error(&|k, _| k.stack_bytes = 8).contains("8 B of stack"));
        assert!(error(&|k, e| (k.registers, e.threads) = (65, 1024)).contains("take 73728"));
        assert!(error(&|k, e| (k.shared_bytes, e.dynamic_shared) = (1, SHARED_PER_BLOCK)).contains("1 B static"));
        assert!(error(&|_, e| e.dynamic_shared = u32::MAX).contains("dynamic shared"));
        let text = check(&compiled(kernel(), &["(C7510) x"]), &Expect::new("k", 32)).unwrap_err().to_string();
        assert!(text.contains("(C7510) x"));
        let mut k = kernel();
        k.stack_bytes = 8;
        assert!(check(&compiled(k, &[]), &Expect { stack_limit: 8, ..Expect::new("k", 256) }).is_ok());
    }

    #[test]
    fn spills_stack_and_shared_memory_are_seen_in_real_images() {
        let Some(nvrtc) = nvrtc::for_tests() else {
            return;
        };
        let text = r#"
            extern "C" __global__ void shared(const float* a, float* b) {
                __shared__ float s[256];
                s[threadIdx.x] = a[threadIdx.x];
                __syncthreads();
                b[threadIdx.x] = s[255 - threadIdx.x];
            }
            extern "C" __global__ void stack(const float* a, float* b, int n) {
                float t[40];
                for (int i = 0; i < 40; i++) t[i] = 0;
                for (int i = 0; i < n; i++) t[(int)a[i] % 40] += a[i + n];
                b[threadIdx.x] = t[(n + threadIdx.x) % 40];
            }
            extern "C" __global__ void __launch_bounds__(1024, 2) spills(const float* a, float* b) {
                float t[48];
                #pragma unroll
                for (int i = 0; i < 48; i++) t[i] = a[i * 1024 + threadIdx.x];
                __syncthreads();
                #pragma unroll
                for (int i = 0; i < 48; i++) b[i * 1024 + threadIdx.x] = t[i] * t[47 - i] + t[(i * 7) % 48];
            }"#;
        let compiled = nvrtc.compile(&Source::new("resources", text)).unwrap();
        let names: Vec<_> = compiled.resources.kernels.iter().map(|k| k.entry.as_str()).collect();
        assert_eq!(names, ["shared", "spills", "stack"]);
        let report = check(&compiled, &Expect { dynamic_shared: 512, ..Expect::new("shared", 256) }).unwrap();
        assert_eq!((report.kernel.shared_bytes, report.dynamic_shared), (1024, 512));
        let stack = compiled.kernel("stack").unwrap();
        assert!(stack.stack_bytes >= 160 && stack.spill_store_bytes == 0, "{stack:?}");
        assert!(matches!(check(&compiled, &Expect::new("stack", 32)), Err(ResourceError::Stack { .. })));
        assert!(matches!(check(&compiled, &Expect::new("spills", 1024)), Err(ResourceError::Spills { .. })));
    }

    #[test]
    fn serialised_wgmma_is_refused() {
        let Some(nvrtc) = nvrtc::for_tests() else {
            return;
        };
        let text = r#"
            extern "C" __global__ void w(float* o, unsigned long long d, unsigned a) {
                float c[4] = {0, 0, 0, 0};
                for (int i = 0; i < o[5]; i++) {
                    asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0,%1,%2,%3}, {%4,%4,%4,%4}, %5, 1, 1, 1, 0;"
                        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a), "l"(d));
                    c[0] += 1;
                }
                o[threadIdx.x] = c[0] + c[1] + c[2] + c[3];
            }"#;
        let compiled = nvrtc.compile(&Source::new("w", text)).unwrap();
        assert!(
            matches!(check(&compiled, &Expect::new("w", 128)), Err(ResourceError::Serialised { .. })),
            "{}",
            compiled.log
        );
    }
}
