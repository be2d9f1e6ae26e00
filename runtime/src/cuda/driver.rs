//! The driver, its devices and their primary contexts.

use std::fmt;
use std::sync::{Arc, OnceLock};

use cudarc::driver::sys;

use super::error::{CudaError, code, driver_error, is_sticky};
use super::symbols;

/// Calls a driver entry point; any failure becomes a [`CudaError`] with the device's state taken into account. The
/// description is evaluated on failure only. Expand it inside an `unsafe` block.
macro_rules! call {
    ($device:expr, $what:expr, $name:ident($($arg:expr),* $(,)?)) => {
        match sys::$name($($arg),*) {
            sys::CUresult::CUDA_SUCCESS => Ok(()),
            result => Err($device.fail(stringify!($name), result, &$what)),
        }
    };
}
pub(super) use call;

/// The compute capability that the kernels (`sm_90a`) need, exactly.
pub const NEEDED_CAPABILITY: ComputeCapability = ComputeCapability::new(9, 0);

/// The CUDA version that the driver must support.
pub const NEEDED_CUDA: CudaVersion = CudaVersion { major: 13, minor: 0 };

/// The first driver branch that supports [`NEEDED_CUDA`].
pub const NEEDED_DRIVER: u32 = 580;

/// A CUDA version, such as 13.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct CudaVersion {
    /// Major version.
    pub major: u32,
    /// Minor version.
    pub minor: u32,
}

impl CudaVersion {
    /// From the driver's encoding, `1000 * major + 10 * minor`.
    pub fn from_encoded(encoded: i32) -> Self {
        let encoded = u32::try_from(encoded).unwrap_or(0);
        Self { major: encoded / 1000, minor: encoded % 1000 / 10 }
    }
}

impl fmt::Display for CudaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A GPU's compute capability; prints as `SM90`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct ComputeCapability {
    /// Major number: 9 is Hopper.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl ComputeCapability {
    /// From its two numbers.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }
}

impl fmt::Display for ComputeCapability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SM{}{}", self.major, self.minor)
    }
}

/// What the driver says about itself.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct DriverVersion {
    /// The newest CUDA version it supports.
    pub cuda: CudaVersion,
    /// The kernel module's version, such as `580.95.05`, where the system tells it.
    pub kernel_module: Option<String>,
}

impl fmt::Display for DriverVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kernel_module {
            Some(version) => write!(f, "CUDA {} (driver {version})", self.cuda),
            None => write!(f, "CUDA {}", self.cuda),
        }
    }
}

/// The loaded and initialised driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Driver {
    version: DriverVersion,
    device_count: usize,
}

impl Driver {
    /// Finds, checks and starts the driver; later calls return the first call's answer.
    ///
    /// # Errors
    /// [`CudaError::NoDriver`], [`CudaError::OldDriver`], [`CudaError::NoDevice`], or [`CudaError::Driver`] for a driver
    /// that fails to start. Never panics, whatever is installed.
    pub fn load() -> Result<Self, CudaError> {
        static LOADED: OnceLock<Result<Driver, CudaError>> = OnceLock::new();
        LOADED.get_or_init(load_once).clone()
    }

    /// What the driver supports.
    pub fn version(&self) -> &DriverVersion {
        &self.version
    }

    /// The number of visible GPUs, at least 1.
    pub fn device_count(&self) -> usize {
        self.device_count
    }

    /// Properties of one GPU, usable or not, without making a context on it.
    ///
    /// # Errors
    /// [`CudaError::NoSuchDevice`] or [`CudaError::Driver`].
    pub fn props(&self, ordinal: usize) -> Result<DeviceProps, CudaError> {
        read_props(ordinal, self.handle(ordinal)?)
    }

    /// Opens a GPU; see [`Device::open`].
    ///
    /// # Errors
    /// [`CudaError::NoSuchDevice`], [`CudaError::OldGpu`], [`CudaError::NewGpu`] or [`CudaError::Driver`].
    pub fn open(&self, ordinal: usize) -> Result<Device, CudaError> {
        let dev = self.handle(ordinal)?;
        let props = read_props(ordinal, dev)?;
        props.check()?;
        let what = format!("opening GPU {ordinal}");
        let mut context = std::ptr::null_mut();
        // SAFETY: `dev` came from cuDeviceGet and `context` is valid for one write. The retain is undone in `Drop`.
        unsafe { bare("cuDevicePrimaryCtxRetain", sys::cuDevicePrimaryCtxRetain(&mut context, dev), &what)? };
        let device = Device(Arc::new(DeviceInner { ordinal, dev, context, props, poison: OnceLock::new() }));
        device.enter()?;
        Ok(device)
    }

    fn handle(&self, ordinal: usize) -> Result<sys::CUdevice, CudaError> {
        let missing = || CudaError::NoSuchDevice { asked: ordinal, count: self.device_count };
        if ordinal >= self.device_count {
            return Err(missing());
        }
        let index = i32::try_from(ordinal).map_err(|_| missing())?;
        let mut dev = 0;
        // SAFETY: the driver is initialised (`self` exists) and `dev` is valid for one write.
        unsafe { bare("cuDeviceGet", sys::cuDeviceGet(&mut dev, index), "looking up a GPU")? };
        Ok(dev)
    }
}

/// Fixed properties of one GPU.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct DeviceProps {
    /// Its number, from 0, among the visible GPUs.
    pub ordinal: usize,
    /// Its marketing name.
    pub name: String,
    /// Its PCI address, such as `0000:3B:00.0`; empty when unknown.
    pub pci: String,
    /// Its compute capability.
    pub capability: ComputeCapability,
    /// Streaming multiprocessors.
    pub sms: u32,
    /// L2 cache in bytes.
    pub l2_bytes: u64,
    /// Device memory in bytes.
    pub memory_bytes: u64,
    /// Most shared memory one block can opt in to, in bytes.
    pub shared_per_block: u32,
    /// Shared memory of one SM in bytes.
    pub shared_per_sm: u32,
    /// 32-bit registers of one SM.
    pub registers_per_sm: u32,
    /// Most resident threads of one SM.
    pub threads_per_sm: u32,
    /// Highest SM clock in kHz; 0 when unknown.
    pub clock_khz: u32,
    /// Memory clock in kHz; 0 when unknown.
    pub memory_clock_khz: u32,
    /// Memory bus width in bits.
    pub memory_bus_bits: u32,
}

impl DeviceProps {
    /// Whether our kernels run on this GPU.
    ///
    /// # Errors
    /// [`CudaError::OldGpu`] below [`NEEDED_CAPABILITY`], [`CudaError::NewGpu`] above it: `sm_90a` code is not forward
    /// compatible.
    pub fn check(&self) -> Result<(), CudaError> {
        let (ordinal, name, found) = (self.ordinal, self.name.clone(), self.capability);
        match found.cmp(&NEEDED_CAPABILITY) {
            std::cmp::Ordering::Less => Err(CudaError::OldGpu { ordinal, name, found }),
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Greater => Err(CudaError::NewGpu { ordinal, name, found }),
        }
    }

    /// Nominal memory bandwidth in bytes per second (two transfers per clock); 0 when the clocks are unknown.
    pub fn peak_bandwidth(&self) -> u64 {
        2 * u64::from(self.memory_clock_khz) * 1000 * u64::from(self.memory_bus_bits) / 8
    }
}

/// Free and total device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct MemoryInfo {
    /// Bytes free now, with this process's context made.
    pub free: u64,
    /// Bytes the device has.
    pub total: u64,
}

/// One usable GPU with its primary context held. Cheap to clone; the context is released with the last clone and the last
/// object made on it. May be used from any thread: each call makes the context current first.
#[derive(Clone)]
pub struct Device(Arc<DeviceInner>);

struct DeviceInner {
    ordinal: usize,
    dev: sys::CUdevice,
    context: sys::CUcontext,
    props: DeviceProps,
    /// The first sticky failure.
    poison: OnceLock<String>,
}

// SAFETY: a context handle may be made current on any thread and the driver locks internally; the rest is plain data.
unsafe impl Send for DeviceInner {}
// SAFETY: as above; shared access never mutates anything but the OnceLock.
unsafe impl Sync for DeviceInner {}

impl Drop for DeviceInner {
    fn drop(&mut self) {
        // SAFETY: balances the retain in `Driver::open`. At process exit the driver may be gone and answer with an error,
        // which nobody can act on.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.dev) };
    }
}

impl Device {
    /// Loads the driver and opens GPU `ordinal`.
    ///
    /// # Errors
    /// Those of [`Driver::load`] and [`Driver::open`].
    pub fn open(ordinal: usize) -> Result<Self, CudaError> {
        Driver::load()?.open(ordinal)
    }

    /// Its number among the visible GPUs.
    pub fn ordinal(&self) -> usize {
        self.0.ordinal
    }

    /// Its fixed properties.
    pub fn props(&self) -> &DeviceProps {
        &self.0.props
    }

    /// Free and total memory now.
    ///
    /// # Errors
    /// [`CudaError::Driver`] or [`CudaError::Poisoned`].
    pub fn memory(&self) -> Result<MemoryInfo, CudaError> {
        self.enter()?;
        let (mut free, mut total) = (0usize, 0usize);
        // SAFETY: the context is current and both pointers are valid for one write.
        unsafe { call!(self, "reading free memory", cuMemGetInfo_v2(&mut free, &mut total))? };
        Ok(MemoryInfo { free: free as u64, total: total as u64 })
    }

    /// The first sticky failure, if there was one: the device is then of no more use to this process.
    pub fn poisoned(&self) -> Option<&str> {
        self.0.poison.get().map(String::as_str)
    }

    /// Whether two handles are the same opened device.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Makes the context current on this thread; every operation starts with it.
    pub(super) fn enter(&self) -> Result<(), CudaError> {
        if let Some(first) = self.poisoned() {
            return Err(CudaError::Poisoned { ordinal: self.ordinal(), first: first.to_owned() });
        }
        // SAFETY: the context is retained for as long as `self` lives.
        unsafe { call!(self, "making the context current", cuCtxSetCurrent(self.0.context)) }
    }

    /// The error of a failed call; remembers sticky ones.
    pub(super) fn fail(&self, call: &'static str, result: sys::CUresult, what: &str) -> CudaError {
        let error = driver_error(call, result, what);
        if is_sticky(result as u32) {
            // Only the first failure is kept: it is the cause, the rest follow from it.
            let _ = self.0.poison.set(error.problem());
        }
        error
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({}: {})", self.0.ordinal, self.0.props.name)
    }
}

fn load_once() -> Result<Driver, CudaError> {
    // SAFETY: opens and closes the library by its known names; running libcuda's initialisers has no precondition.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoDriver { detail: "libcuda.so.1 was not found".to_owned() });
    }
    if let Some(name) = missing_symbol(&["cuInit", "cuDriverGetVersion", "cuGetErrorName", "cuGetErrorString"]) {
        return Err(CudaError::NoDriver { detail: format!("the libcuda found has no {name}") });
    }
    let mut encoded = 0;
    // SAFETY: the entry point exists (checked above), needs no initialisation, and `encoded` is valid for one write.
    let result = unsafe { sys::cuDriverGetVersion(&mut encoded) };
    started("cuDriverGetVersion", result, "asking the driver for its version")?;
    let version = DriverVersion { cuda: CudaVersion::from_encoded(encoded), kernel_module: kernel_module_version() };
    if version.cuda < NEEDED_CUDA {
        return Err(CudaError::OldDriver { found: version.to_string() });
    }
    if let Some(name) = missing_symbol(symbols::REQUIRED) {
        return Err(CudaError::OldDriver { found: format!("{version} without {name}") });
    }
    // SAFETY: cuInit may be called any number of times from any thread; flags must be 0.
    started("cuInit", unsafe { sys::cuInit(0) }, "starting the driver")?;
    let mut count = 0;
    // SAFETY: the driver is initialised and `count` is valid for one write.
    unsafe { bare("cuDeviceGetCount", sys::cuDeviceGetCount(&mut count), "counting GPUs")? };
    match usize::try_from(count) {
        Ok(device_count) if device_count > 0 => Ok(Driver { version, device_count }),
        _ => Err(CudaError::NoDevice { detail: "the driver lists no devices".to_owned() }),
    }
}

/// The first of `names` that the library does not export. The library must be present.
fn missing_symbol<'a>(names: &[&'a str]) -> Option<&'a str> {
    // SAFETY: the caller has checked that the library can be loaded; it is never unloaded.
    let library = unsafe { sys::culib() };
    names.iter().copied().find(|name| {
        // SAFETY: the symbol is only tested for presence, never called through this type.
        unsafe { library.get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_err()
    })
}

fn started(call: &'static str, result: sys::CUresult, what: &str) -> Result<(), CudaError> {
    match result as u32 {
        code::SUCCESS => Ok(()),
        code::NO_DEVICE => {
            Err(CudaError::NoDevice { detail: "the driver found no device (CUDA_ERROR_NO_DEVICE)".into() })
        }
        code::STUB_LIBRARY => {
            Err(CudaError::NoDriver { detail: "the libcuda found is the toolkit's stub, not a driver".into() })
        }
        code::SYSTEM_DRIVER_MISMATCH => Err(CudaError::NoDriver {
            detail: "the driver library and the kernel module have different versions (reboot, or reload the module)"
                .into(),
        }),
        _ => Err(driver_error(call, result, what)),
    }
}

/// A checked call before any device is open.
fn bare(call: &'static str, result: sys::CUresult, what: &str) -> Result<(), CudaError> {
    match result {
        sys::CUresult::CUDA_SUCCESS => Ok(()),
        _ => Err(driver_error(call, result, what)),
    }
}

fn read_props(ordinal: usize, dev: sys::CUdevice) -> Result<DeviceProps, CudaError> {
    use sys::CUdevice_attribute as A;
    let what = "reading GPU properties";
    let attribute = |attribute: A| -> Result<u32, CudaError> {
        let mut value = 0;
        // SAFETY: `dev` is a valid device of the initialised driver and `value` is valid for one write.
        unsafe { bare("cuDeviceGetAttribute", sys::cuDeviceGetAttribute(&mut value, attribute, dev), what)? };
        Ok(u32::try_from(value).unwrap_or(0))
    };
    let mut name = [0u8; 256];
    // SAFETY: the buffer is 256 bytes long, as passed; the driver NUL-terminates within it.
    unsafe { bare("cuDeviceGetName", sys::cuDeviceGetName(name.as_mut_ptr().cast(), 256, dev), what)? };
    let mut pci = [0u8; 32];
    // SAFETY: the buffer is 32 bytes long, as passed; a failure leaves it empty, which is an unknown address.
    let _ = unsafe { sys::cuDeviceGetPCIBusId(pci.as_mut_ptr().cast(), 32, dev) };
    let mut memory = 0usize;
    // SAFETY: as for the attributes.
    unsafe { bare("cuDeviceTotalMem_v2", sys::cuDeviceTotalMem_v2(&mut memory, dev), what)? };
    Ok(DeviceProps {
        ordinal,
        name: text_of(&name),
        pci: text_of(&pci),
        capability: ComputeCapability::new(
            attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        sms: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        l2_bytes: u64::from(attribute(A::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?),
        memory_bytes: memory as u64,
        shared_per_block: attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        shared_per_sm: attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?,
        registers_per_sm: attribute(A::CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR)?,
        threads_per_sm: attribute(A::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR)?,
        clock_khz: attribute(A::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?,
        memory_clock_khz: attribute(A::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?,
        memory_bus_bits: attribute(A::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?,
    })
}

/// Text up to the first NUL.
fn text_of(buffer: &[u8]) -> String {
    let end = buffer.iter().position(|&b| b == 0).unwrap_or(buffer.len());
    String::from_utf8_lossy(&buffer[..end]).trim().to_owned()
}

/// The NVIDIA kernel module's version where Linux tells it.
fn kernel_module_version() -> Option<String> {
    parse_module_version(&std::fs::read_to_string("/proc/driver/nvidia/version").ok()?)
}

/// Finds `580.95.05` in the text of `/proc/driver/nvidia/version`.
fn parse_module_version(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with("NVRM version"))?;
    line.split_whitespace()
        .find(|word| word.contains('.') && word.split('.').all(|part| part.parse::<u32>().is_ok()))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hopper() -> DeviceProps {
        DeviceProps {
            ordinal: 0,
            name: "NVIDIA H100 80GB HBM3".into(),
            pci: "0000:3B:00.0".into(),
            capability: NEEDED_CAPABILITY,
            sms: 132,
            l2_bytes: 50 << 20,
            memory_bytes: 80 << 30,
            shared_per_block: 232_448,
            shared_per_sm: 233_472,
            registers_per_sm: 65_536,
            threads_per_sm: 2048,
            clock_khz: 1_980_000,
            memory_clock_khz: 2_619_000,
            memory_bus_bits: 5120,
        }
    }

    #[test]
    fn loading_never_panics_and_repeats_itself() {
        let first = Driver::load();
        assert_eq!(first, Driver::load());
        match first {
            Ok(driver) => println!("driver present: {}; the no-driver path is not tested here", driver.version()),
            Err(error) => {
                assert!(!error.to_string().contains('\n'));
                println!("no GPU here, so only error paths are tested: {error}");
                assert_eq!(Device::open(0).unwrap_err(), error);
            }
        }
    }

    #[test]
    fn a_machine_without_the_library_gets_the_fix() {
        // SAFETY: see `load_once`.
        if unsafe { sys::is_culib_present() } {
            println!("skipped: libcuda is installed here");
            return;
        }
        assert_eq!(
            Driver::load().unwrap_err().to_string(),
            "no NVIDIA driver: libcuda.so.1 was not found; install the NVIDIA driver 580 or newer, or use --device cpu"
        );
    }

    #[test]
    fn capability_must_match() {
        assert!(hopper().check().is_ok());
        let old = DeviceProps { capability: ComputeCapability::new(8, 9), ..hopper() };
        assert!(matches!(old.check(), Err(CudaError::OldGpu { found, .. }) if found.to_string() == "SM89"));
        let new = DeviceProps { capability: ComputeCapability::new(12, 0), ..hopper() };
        assert!(matches!(new.check(), Err(CudaError::NewGpu { found, .. }) if found.to_string() == "SM120"));
    }

    #[test]
    fn nominal_bandwidth_of_an_h100() {
        assert_eq!(hopper().peak_bandwidth(), 3_352_320_000_000);
    }

    #[test]
    fn versions() {
        assert_eq!(CudaVersion::from_encoded(13_000), NEEDED_CUDA);
        assert_eq!(CudaVersion::from_encoded(12_080).to_string(), "12.8");
        assert!(CudaVersion::from_encoded(12_090) < NEEDED_CUDA);
        assert!(CudaVersion::from_encoded(13_010) > NEEDED_CUDA);
        assert_eq!(CudaVersion::from_encoded(-1), CudaVersion { major: 0, minor: 0 });
    }

    #[test]
    fn module_version_is_found_in_both_layouts() {
        let closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023\nGCC version: 12.2.0\n";
        assert_eq!(parse_module_version(closed).as_deref(), Some("535.129.03"));
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (x)  Tue\n";
        assert_eq!(parse_module_version(open).as_deref(), Some("580.95.05"));
        assert_eq!(parse_module_version("nonsense"), None);
    }

    #[test]
    fn handles_are_send_and_sync() {
        fn both<T: Send + Sync>() {}
        both::<Device>();
        both::<Driver>();
    }
}
