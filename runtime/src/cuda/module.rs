//! Modules (loaded cubins) and their functions.

use std::ffi::CString;
use std::fmt;
use std::sync::Arc;

use cudarc::driver::sys;

use super::capture;
use super::driver::{Device, call};
use super::error::{CudaError, code, driver_error};
use super::launch::{LaunchConfig, LaunchLimits};

/// Dynamic and static shared memory that a block may use without opting in, in bytes.
const DEFAULT_SHARED: u32 = 48 * 1024;

/// A cubin loaded on a device. Cheap to clone; unloaded with the last clone, function or graph that uses it.
#[derive(Clone)]
pub struct Module(Arc<ModuleHandle>);

/// The driver's module, unloaded on drop.
pub(super) struct ModuleHandle {
    device: Device,
    raw: sys::CUmodule,
    label: String,
}

// SAFETY: a module handle may be used from any thread and the driver locks internally.
unsafe impl Send for ModuleHandle {}
// SAFETY: as above.
unsafe impl Sync for ModuleHandle {}

impl Drop for ModuleHandle {
    fn drop(&mut self) {
        let (device, raw) = (self.device.clone(), self.raw);
        capture::free_when_allowed(move || {
            if device.enter().is_ok() {
                // SAFETY: loaded once, unloaded once, and nothing that launches from it is left.
                let _ = unsafe { sys::cuModuleUnload(raw) };
            }
        });
    }
}

impl Module {
    /// Loads a cubin. `label` names it in error messages.
    ///
    /// # Errors
    /// [`CudaError::BadModule`] if the image is not a whole cubin or is for another GPU, [`CudaError::Capturing`],
    /// [`CudaError::Driver`] or [`CudaError::Poisoned`].
    pub fn load(device: &Device, label: &str, cubin: &[u8]) -> Result<Self, CudaError> {
        capture::refuse("loading a module")?;
        let bad = |problem| CudaError::BadModule { module: label.to_owned(), problem };
        // The driver takes no length: it trusts the offsets in the image, so they are checked here.
        check_cubin(cubin).map_err(bad)?;
        device.enter()?;
        // The driver reads 8-byte fields in place.
        let mut image = vec![0u64; cubin.len().div_ceil(8)];
        bytemuck::cast_slice_mut::<u64, u8>(&mut image)[..cubin.len()].copy_from_slice(cubin);
        let mut raw = std::ptr::null_mut();
        // SAFETY: the context is current, `raw` is valid for one write, and every header and section of the image lies
        // within it (checked above).
        let result = unsafe { sys::cuModuleLoadData(&mut raw, image.as_ptr().cast()) };
        match result as u32 {
            code::SUCCESS => Ok(Self(Arc::new(ModuleHandle { device: device.clone(), raw, label: label.to_owned() }))),
            code::INVALID_IMAGE | code::NO_BINARY_FOR_GPU | code::INVALID_SOURCE => {
                Err(bad(format!("the driver refused it: {}", reason(driver_error("cuModuleLoadData", result, "")))))
            }
            _ => Err(device.fail("cuModuleLoadData", result, &format!("loading module {label}"))),
        }
    }

    /// The label given at loading.
    pub fn label(&self) -> &str {
        &self.0.label
    }

    /// Looks up a kernel by its entry name, loads its code now (never inside a later capture) and reads its needs.
    ///
    /// # Errors
    /// [`CudaError::NoSuchFunction`], [`CudaError::Capturing`], [`CudaError::Driver`] or [`CudaError::Poisoned`].
    pub fn function(&self, entry: &str) -> Result<Function, CudaError> {
        self.function_of(entry, None)
    }

    /// As [`Module::function`] for a kernel known to have `params` parameters. A driver of CUDA 13.0 can only be asked for one parameter after the other
    /// until it refuses, which compute-sanitizer reports as an error; knowing the number avoids that.
    ///
    /// # Errors
    /// As [`Module::function`].
    pub fn function_of(&self, entry: &str, params: Option<u32>) -> Result<Function, CudaError> {
        capture::refuse("loading a kernel")?;
        let device = &self.0.device;
        device.enter()?;
        let missing = || CudaError::NoSuchFunction { module: self.0.label.clone(), entry: entry.to_owned() };
        let name = CString::new(entry).map_err(|_| missing())?;
        let what = format!("loading kernel {entry}");
        let mut raw = std::ptr::null_mut();
        // SAFETY: the module is loaded, the name NUL-terminated, `raw` valid for one write.
        let result = unsafe { sys::cuModuleGetFunction(&mut raw, self.0.raw, name.as_ptr()) };
        match result as u32 {
            code::SUCCESS => {}
            code::NOT_FOUND => return Err(missing()),
            _ => return Err(device.fail("cuModuleGetFunction", result, &what)),
        }
        // SAFETY: `raw` was just found in the loaded module.
        unsafe { call!(device, what, cuFuncLoad(raw))? };
        let info = read_info(device, raw, params, &what)?;
        let max_dynamic_shared = DEFAULT_SHARED.saturating_sub(info.static_shared);
        Ok(Function { module: Arc::clone(&self.0), raw, name: entry.into(), info: Arc::new(info), max_dynamic_shared })
    }

    /// Address and size in bytes of a `__device__` or `__constant__` variable.
    ///
    /// # Errors
    /// [`CudaError::NoSuchFunction`], [`CudaError::Driver`] or [`CudaError::Poisoned`].
    pub fn global(&self, name: &str) -> Result<(u64, usize), CudaError> {
        let device = &self.0.device;
        device.enter()?;
        let missing = || CudaError::NoSuchFunction { module: self.0.label.clone(), entry: name.to_owned() };
        let text = CString::new(name).map_err(|_| missing())?;
        let (mut ptr, mut len) = (0, 0);
        // SAFETY: the module is loaded, the name NUL-terminated, both outputs valid for one write.
        let result = unsafe { sys::cuModuleGetGlobal_v2(&mut ptr, &mut len, self.0.raw, text.as_ptr()) };
        match result as u32 {
            code::SUCCESS => Ok((ptr, len)),
            code::NOT_FOUND => Err(missing()),
            _ => Err(device.fail("cuModuleGetGlobal_v2", result, &format!("looking up variable {name}"))),
        }
    }
}

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Module({})", self.0.label)
    }
}

/// What a kernel was compiled to need.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct FunctionInfo {
    /// Registers per thread.
    pub registers: u32,
    /// Local memory per thread in bytes: spills and indexed arrays; 0 for a good kernel.
    pub local_bytes: u32,
    /// Static shared memory per block in bytes.
    pub static_shared: u32,
    /// Constant memory in bytes.
    pub const_bytes: u32,
    /// Most threads per block.
    pub max_threads: u32,
    /// Size in bytes of each parameter.
    pub params: Vec<usize>,
}

/// How much of an SM's L1 becomes shared memory. Kernels that follow each other should agree: the split changes only on an
/// idle SM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carveout {
    /// The driver chooses.
    Auto,
    /// All that is possible.
    Max,
    /// At least this share, in percent.
    Percent(u8),
}

/// One kernel. Keeps its module loaded. `Send + Sync`; cheap to clone.
#[derive(Clone)]
pub struct Function {
    module: Arc<ModuleHandle>,
    raw: sys::CUfunction,
    name: Arc<str>,
    info: Arc<FunctionInfo>,
    max_dynamic_shared: u32,
}

// SAFETY: a function handle is immutable data of a loaded module; the driver locks internally.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Function {
    /// Allows up to `dynamic_shared` bytes of dynamic shared memory and sets the L1 split. Once, after loading; a clone made
    /// earlier keeps its older limit.
    ///
    /// # Errors
    /// [`CudaError::BadLaunch`] if the device cannot give that much, [`CudaError::Driver`] or [`CudaError::Poisoned`].
    pub fn configure(&mut self, dynamic_shared: u32, carveout: Carveout) -> Result<(), CudaError> {
        use sys::CUfunction_attribute as A;
        let device = self.module.device.clone();
        let most = device.props().shared_per_block;
        let total = dynamic_shared.saturating_add(self.info.static_shared);
        if total > most {
            let problem = format!("needs {total} bytes of shared memory per block, the GPU gives at most {most}");
            return Err(CudaError::BadLaunch { kernel: self.name.to_string(), problem });
        }
        device.enter()?;
        let set = |attribute, value: u32| {
            let value = value as i32;
            // SAFETY: the function is loaded; these attributes may be set at any time.
            unsafe {
                call!(device, format!("configuring {}", self.name), cuFuncSetAttribute(self.raw, attribute, value))
            }
        };
        if total > DEFAULT_SHARED {
            set(A::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, dynamic_shared)?;
        }
        match carveout {
            Carveout::Auto => {}
            Carveout::Max => set(A::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 100)?,
            Carveout::Percent(p) => set(A::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, u32::from(p.min(100)))?,
        }
        self.max_dynamic_shared = dynamic_shared.max(DEFAULT_SHARED.saturating_sub(self.info.static_shared));
        Ok(())
    }

    /// Allows clusters of more than 8 blocks, which not every Hopper part can schedule.
    ///
    /// # Errors
    /// [`CudaError::Driver`] or [`CudaError::Poisoned`].
    pub fn allow_large_clusters(&mut self) -> Result<(), CudaError> {
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED;
        let device = &self.module.device;
        device.enter()?;
        // SAFETY: the function is loaded.
        unsafe { call!(device, format!("configuring {}", self.name), cuFuncSetAttribute(self.raw, attribute, 1)) }
    }

    /// The entry name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its device.
    pub fn device(&self) -> &Device {
        &self.module.device
    }

    /// What it was compiled to need.
    pub fn info(&self) -> &FunctionInfo {
        &self.info
    }

    /// What a launch may ask for.
    pub fn limits(&self) -> LaunchLimits {
        LaunchLimits { max_threads: self.info.max_threads, max_dynamic_shared: self.max_dynamic_shared }
    }

    /// Blocks that fit on one SM at once, for this block size and dynamic shared memory; 0 if none does.
    ///
    /// # Errors
    /// [`CudaError::BadLaunch`], [`CudaError::Driver`] or [`CudaError::Poisoned`].
    pub fn occupancy(&self, threads: u32, dynamic_shared: u32) -> Result<u32, CudaError> {
        let probe = LaunchConfig { shared: dynamic_shared, ..LaunchConfig::linear(1, threads) };
        probe.check(&self.name, &self.limits())?;
        let device = &self.module.device;
        device.enter()?;
        let mut blocks = 0;
        // SAFETY: the function is loaded, the sizes are checked, `blocks` is valid for one write.
        unsafe {
            call!(
                device,
                format!("computing the occupancy of {}", self.name),
                cuOccupancyMaxActiveBlocksPerMultiprocessor(
                    &mut blocks,
                    self.raw,
                    threads as i32,
                    dynamic_shared as usize
                )
            )?;
        }
        Ok(u32::try_from(blocks).unwrap_or(0))
    }

    /// Clusters that fit on the whole device at once, for a configuration with a cluster.
    ///
    /// # Errors
    /// [`CudaError::BadLaunch`], [`CudaError::Driver`] or [`CudaError::Poisoned`].
    pub fn max_active_clusters(&self, config: &LaunchConfig) -> Result<u32, CudaError> {
        config.check(&self.name, &self.limits())?;
        let device = &self.module.device;
        device.enter()?;
        let (mut attributes, count) = config.attributes();
        let raw = config.raw(std::ptr::null_mut(), &mut attributes[..count]);
        let mut clusters = 0;
        // SAFETY: the function is loaded; `raw` and its attributes live until the call returns.
        unsafe {
            call!(
                device,
                format!("computing the cluster occupancy of {}", self.name),
                cuOccupancyMaxActiveClusters(&mut clusters, self.raw, &raw)
            )?;
        }
        Ok(u32::try_from(clusters).unwrap_or(0))
    }

    pub(super) fn raw(&self) -> sys::CUfunction {
        self.raw
    }

    pub(super) fn module(&self) -> &Arc<ModuleHandle> {
        &self.module
    }
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Function({}: {:?})", self.name, self.info)
    }
}

fn read_info(device: &Device, raw: sys::CUfunction, count: Option<u32>, what: &str) -> Result<FunctionInfo, CudaError> {
    use sys::CUfunction_attribute as A;
    let read = |attribute| -> Result<u32, CudaError> {
        let mut value = 0;
        // SAFETY: the function is loaded and `value` is valid for one write.
        unsafe { call!(device, what, cuFuncGetAttribute(&mut value, attribute, raw))? };
        Ok(u32::try_from(value).unwrap_or(0))
    };
    let mut params = Vec::new();
    while count.is_none_or(|n| params.len() < n as usize) {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: the function is loaded and both outputs are valid for one write.
        let result = unsafe { sys::cuFuncGetParamInfo(raw, params.len(), &mut offset, &mut size) };
        match result as u32 {
            code::SUCCESS => params.push(size),
            // How the driver says that there are no more.
            code::INVALID_VALUE => break,
            _ => return Err(device.fail("cuFuncGetParamInfo", result, what)),
        }
    }
    Ok(FunctionInfo {
        registers: read(A::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
        local_bytes: read(A::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
        static_shared: read(A::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?,
        const_bytes: read(A::CU_FUNC_ATTRIBUTE_CONST_SIZE_BYTES)?,
        max_threads: read(A::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
        params,
    })
}

/// The driver's name and words of an error.
fn reason(error: CudaError) -> String {
    match error {
        CudaError::Driver { name, text, .. } => format!("{name}, {text}"),
        other => other.problem(),
    }
}

/// Checks that `image` is a 64-bit CUDA ELF file whose headers, sections and segments all lie within it.
fn check_cubin(image: &[u8]) -> Result<(), String> {
    const EM_CUDA: u64 = 190;
    const SHT_NOBITS: u64 = 8;
    const ELF_64_LITTLE: [u8; 6] = [0x7f, b'E', b'L', b'F', 2, 1];
    let len = image.len() as u64;
    let cut = || format!("the image is cut off at {len} bytes");
    if !image.starts_with(&ELF_64_LITTLE) {
        return Err(format!("expected a cubin (a 64-bit ELF file), found {len} bytes of something else"));
    }
    // Little-endian fields of 2, 4 or 8 bytes.
    let field = |offset: u64, size: usize| -> Result<u64, String> {
        let start = usize::try_from(offset).map_err(|_| cut())?;
        let bytes = start.checked_add(size).and_then(|end| image.get(start..end)).ok_or_else(cut)?;
        Ok(bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    };
    let within = |offset: u64, size: u64| match offset.checked_add(size) {
        Some(end) if end <= len => Ok(()),
        _ => Err(cut()),
    };
    let machine = field(18, 2)?;
    if machine != EM_CUDA {
        return Err(format!("expected ELF machine {EM_CUDA} (CUDA), found {machine}"));
    }
    let (segments, sections) = (field(32, 8)?, field(40, 8)?);
    let (segment_size, segment_count) = (field(54, 2)?, field(56, 2)?);
    let (section_size, section_count) = (field(58, 2)?, field(60, 2)?);
    if section_count == 0 || section_size < 64 || (segment_count > 0 && segment_size < 56) {
        return Err("the ELF header has no usable section table".to_owned());
    }
    let entries = |base: u64, size: u64, count: u64| -> Result<Vec<u64>, String> {
        within(base, size * count)?;
        Ok((0..count).map(|i| base + i * size).collect())
    };
    for header in entries(sections, section_size, section_count)? {
        if field(header + 4, 4)? != SHT_NOBITS {
            within(field(header + 24, 8)?, field(header + 32, 8)?)?;
        }
    }
    for header in entries(segments, segment_size, segment_count)? {
        within(field(header + 8, 8)?, field(header + 32, 8)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A minimal CUDA ELF: header, one section of 16 bytes, one NOBITS section.
    fn sample() -> Vec<u8> {
        let mut image = vec![0u8; 64 + 16 + 3 * 64];
        image[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
        let mut put = |offset: usize, bytes: &[u8]| image[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(18, &190u16.to_le_bytes());
        put(40, &80u64.to_le_bytes());
        put(58, &64u16.to_le_bytes());
        put(60, &3u16.to_le_bytes());
        let (text, bss) = (80 + 64, 80 + 128);
        put(text + 4, &1u32.to_le_bytes());
        put(text + 24, &64u64.to_le_bytes());
        put(text + 32, &16u64.to_le_bytes());
        put(bss + 4, &8u32.to_le_bytes());
        put(bss + 24, &80u64.to_le_bytes());
        put(bss + 32, &(1u64 << 40).to_le_bytes());
        image
    }

    #[test]
    fn a_whole_cubin_passes() {
        assert_eq!(check_cubin(&sample()), Ok(()));
    }

    #[test]
    fn every_truncation_is_caught() {
        let image = sample();
        for len in 0..image.len() {
            assert!(check_cubin(&image[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn other_files_are_refused() {
        assert!(check_cubin(b".version 9.0\n.target sm_90a").unwrap_err().contains("expected a cubin"));
        assert!(check_cubin(b"").unwrap_err().contains("found 0 bytes"));
        let mut host = sample();
        host[18] = 62;
        assert_eq!(check_cubin(&host).unwrap_err(), "expected ELF machine 190 (CUDA), found 62");
        let mut far = sample();
        far[80 + 64 + 24..80 + 64 + 32].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(check_cubin(&far).unwrap_err().contains("cut off"));
        let mut table = sample();
        table[40..48].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(check_cubin(&table).unwrap_err().contains("cut off"));
    }

    #[test]
    fn arbitrary_bytes_never_panic() {
        use proptest::prelude::*;
        proptest!(ProptestConfig::with_cases(256), |(
            patches in proptest::collection::vec((0usize..272, any::<u8>()), 0..24),
            len in 0usize..=272,
        )| {
            let mut image = sample();
            for (at, byte) in patches {
                image[at] = byte;
            }
            let _ = check_cubin(&image[..len]);
        });
    }

    #[test]
    fn handles_are_send_and_sync() {
        fn both<T: Send + Sync>() {}
        both::<Module>();
        both::<Function>();
    }
}
