//! Kernel launches: configuration, arguments and the launch call.

use std::ffi::c_void;

use bytemuck::NoUninit;
use cudarc::driver::sys;

use super::capture;
use super::driver::call;
use super::error::CudaError;
use super::module::Function;
use super::stream::Stream;

/// How many blocks of how many threads, with what else the launch asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaunchConfig {
    /// Blocks in x, y, z; each at least 1.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z; each at least 1.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block in bytes.
    pub shared: u32,
    /// Blocks of a cluster in x, y, z; the grid must be a multiple of it.
    pub cluster: Option<[u32; 3]>,
    /// Programmatic dependent launch: the kernel may start before its predecessor in the stream ends, and must execute
    /// `griddepcontrol.wait` before it touches anything a predecessor writes. Inside a capture the edge from the
    /// preceding kernel becomes programmatic; memory operations in between make it a full one.
    pub pdl: bool,
}

impl LaunchConfig {
    /// A one-dimensional launch without extras.
    pub const fn linear(blocks: u32, threads: u32) -> Self {
        Self { grid: [blocks, 1, 1], block: [threads, 1, 1], shared: 0, cluster: None, pdl: false }
    }

    /// Threads of one block.
    pub fn threads(&self) -> u64 {
        self.block.iter().map(|&n| u64::from(n)).product()
    }

    /// Checks the configuration against what a function was compiled and configured for.
    ///
    /// # Errors
    /// [`CudaError::BadLaunch`] with the kernel's name, what was asked for and what is possible.
    pub fn check(&self, kernel: &str, limits: &LaunchLimits) -> Result<(), CudaError> {
        self.problem(limits).map_or(Ok(()), |problem| {
            Err(CudaError::BadLaunch { kernel: kernel.to_owned(), problem: format!("launch {problem}") })
        })
    }

    fn problem(&self, limits: &LaunchLimits) -> Option<String> {
        const MAX_GRID: [u32; 3] = [0x7fff_ffff, 65_535, 65_535];
        const MAX_BLOCK: [u32; 3] = [1024, 1024, 64];
        const MAX_CLUSTER: u64 = 16;
        let within = |dims: [u32; 3], max: [u32; 3]| (0..3).all(|i| (1..=max[i]).contains(&dims[i]));
        if !within(self.grid, MAX_GRID) {
            return Some(format!("has grid {:?}, expected 1..={MAX_GRID:?}", self.grid));
        }
        if !within(self.block, MAX_BLOCK) {
            return Some(format!("has block {:?}, expected 1..={MAX_BLOCK:?}", self.block));
        }
        if self.threads() > u64::from(limits.max_threads) {
            return Some(format!("has {} threads per block, at most {} fit", self.threads(), limits.max_threads));
        }
        if self.shared > limits.max_dynamic_shared {
            let (asked, most) = (self.shared, limits.max_dynamic_shared);
            return Some(format!("asks for {asked} bytes of dynamic shared memory, configured for {most}"));
        }
        if let Some(cluster) = self.cluster {
            let blocks: u64 = cluster.iter().map(|&n| u64::from(n)).product();
            if blocks == 0 || blocks > MAX_CLUSTER {
                return Some(format!("has cluster {cluster:?}, expected 1 to {MAX_CLUSTER} blocks"));
            }
            if (0..3).any(|i| !self.grid[i].is_multiple_of(cluster[i])) {
                return Some(format!("has grid {:?}, expected a multiple of cluster {cluster:?}", self.grid));
            }
        }
        None
    }

    /// The driver's launch attributes for this configuration; the number in use comes second.
    pub(super) fn attributes(&self) -> ([sys::CUlaunchAttribute; 2], usize) {
        use sys::CUlaunchAttributeID as Id;
        let attribute =
            |id| sys::CUlaunchAttribute { id, pad: [0; 4], value: sys::CUlaunchAttributeValue { pad: [0; 64] } };
        let mut attributes = [attribute(Id::CU_LAUNCH_ATTRIBUTE_IGNORE); 2];
        let mut count = 0;
        if let Some(cluster) = self.cluster {
            attributes[count] = attribute(Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION);
            attributes[count].value = cluster_value(cluster);
            count += 1;
        }
        if self.pdl {
            attributes[count] = attribute(Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION);
            attributes[count].value.programmaticStreamSerializationAllowed = 1;
            count += 1;
        }
        (attributes, count)
    }

    /// The driver's launch structure. `attributes` must outlive its use.
    pub(super) fn raw(&self, stream: sys::CUstream, attributes: &mut [sys::CUlaunchAttribute]) -> sys::CUlaunchConfig {
        sys::CUlaunchConfig {
            gridDimX: self.grid[0],
            gridDimY: self.grid[1],
            gridDimZ: self.grid[2],
            blockDimX: self.block[0],
            blockDimY: self.block[1],
            blockDimZ: self.block[2],
            sharedMemBytes: self.shared,
            hStream: stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        }
    }
}

/// What a launch of a function may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaunchLimits {
    /// Most threads per block, given its registers.
    pub max_threads: u32,
    /// Dynamic shared memory it is configured for, in bytes.
    pub max_dynamic_shared: u32,
}

/// Kernel arguments by value, in order. Each argument owns whole 8-byte slots, so their addresses can be handed to a launch,
/// a capture or a graph node; all three copy the values during the call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ArgList {
    slots: Vec<u64>,
    /// First slot and size in bytes of each argument.
    args: Vec<(usize, usize)>,
}

impl ArgList {
    /// No arguments.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a device pointer, from [`super::DeviceSlice::ptr`].
    pub fn ptr(&mut self, ptr: u64) -> &mut Self {
        self.value(&ptr)
    }

    /// Adds an `int`.
    pub fn i32(&mut self, value: i32) -> &mut Self {
        self.value(&value)
    }

    /// Adds an `unsigned`.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.value(&value)
    }

    /// Adds a `long long`.
    pub fn i64(&mut self, value: i64) -> &mut Self {
        self.value(&value)
    }

    /// Adds an `unsigned long long`.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.value(&value)
    }

    /// Adds a `float`.
    pub fn f32(&mut self, value: f32) -> &mut Self {
        self.value(&value)
    }

    /// Adds a structure by value, such as a tensor map; its layout must be the kernel's.
    pub fn value<T: NoUninit>(&mut self, value: &T) -> &mut Self {
        let bytes = bytemuck::bytes_of(value);
        let start = self.slots.len();
        self.slots.resize(start + bytes.len().div_ceil(8), 0);
        bytemuck::cast_slice_mut::<u64, u8>(&mut self.slots[start..])[..bytes.len()].copy_from_slice(bytes);
        self.args.push((start, bytes.len()));
        self
    }

    /// The number of arguments.
    pub fn len(&self) -> usize {
        self.args.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.args.is_empty()
    }

    /// Each argument's size in bytes, in order.
    pub fn sizes(&self) -> impl Iterator<Item = usize> + '_ {
        self.args.iter().map(|&(_, size)| size)
    }

    /// Checks number and sizes against a kernel's parameters.
    ///
    /// # Errors
    /// [`CudaError::BadLaunch`] with the first difference.
    pub fn check(&self, kernel: &str, params: &[usize]) -> Result<(), CudaError> {
        let bad = |problem| Err(CudaError::BadLaunch { kernel: kernel.to_owned(), problem });
        if self.len() != params.len() {
            return bad(format!("{} arguments, expected {}", self.len(), params.len()));
        }
        for (index, (found, &expected)) in self.sizes().zip(params).enumerate() {
            if found != expected {
                return bad(format!("argument {index} has {found} bytes, expected {expected}"));
            }
        }
        Ok(())
    }

    /// Calls `f` with the array of argument addresses that the driver takes; valid during the call only, and not to be
    /// written through.
    pub(super) fn with_pointers<R>(&self, f: impl FnOnce(*mut *mut c_void) -> R) -> R {
        const INLINE: usize = 48;
        let address = |&(start, _): &(usize, usize)| self.slots[start..].as_ptr().cast_mut().cast::<c_void>();
        if self.args.len() <= INLINE {
            let mut pointers = [std::ptr::null_mut(); INLINE];
            for (pointer, arg) in pointers.iter_mut().zip(&self.args) {
                *pointer = address(arg);
            }
            f(pointers.as_mut_ptr())
        } else {
            f(self.args.iter().map(address).collect::<Vec<_>>().as_mut_ptr())
        }
    }
}

impl Function {
    /// Enqueues the kernel on `stream`, or records it if the stream is being captured.
    ///
    /// # Errors
    /// [`CudaError::BadLaunch`] if configuration or arguments do not fit the kernel; [`CudaError::Driver`] or
    /// [`CudaError::Poisoned`]. Errors of the kernel itself appear at a later call.
    ///
    /// # Safety
    /// Each pointer argument must be a device address whose memory stays allocated, and is used by nobody in conflict, until
    /// the kernel has run: for a captured launch, each time the graph runs. The kernel must stay within that memory for
    /// these arguments.
    pub unsafe fn launch(&self, stream: &Stream, config: &LaunchConfig, args: &ArgList) -> Result<(), CudaError> {
        config.check(self.name(), &self.limits())?;
        args.check(self.name(), &self.info().params)?;
        let device = stream.device();
        device.enter()?;
        capture::keep(self.module());
        let (mut attributes, count) = config.attributes();
        let raw = config.raw(stream.raw(), &mut attributes[..count]);
        args.with_pointers(|pointers| {
            // SAFETY: function and stream are alive; `raw` and its attributes live until the call returns; `pointers` has
            // one valid address per parameter, of the parameter's size (checked above). The caller answers for what the
            // pointers among them point to.
            unsafe {
                call!(
                    device,
                    format!("launching {}", self.name()),
                    cuLaunchKernelEx(&raw, self.raw(), pointers, std::ptr::null_mut())
                )
            }
        })
    }
}

/// An attribute value holding cluster dimensions.
pub(super) fn cluster_value(cluster: [u32; 3]) -> sys::CUlaunchAttributeValue {
    let mut value = sys::CUlaunchAttributeValue { pad: [0; 64] };
    value.clusterDim.x = cluster[0];
    value.clusterDim.y = cluster[1];
    value.clusterDim.z = cluster[2];
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: LaunchLimits = LaunchLimits { max_threads: 256, max_dynamic_shared: 1000 };

    fn message(config: LaunchConfig) -> String {
        config.check("k", &LIMITS).unwrap_err().to_string()
    }

    #[test]
    fn arguments_keep_order_size_and_value() {
        #[derive(Clone, Copy)]
        #[repr(C)]
        struct Map([u64; 16]);
        // SAFETY: an array of integers has no padding.
        unsafe impl NoUninit for Map {}

        let mut args = ArgList::new();
        args.ptr(0x7f00_1234_5678_9abc)
            .i32(-2)
            .u32(7)
            .i64(-9)
            .u64(u64::MAX)
            .f32(1.5)
            .value(&Map([3; 16]))
            .value(&[1u8, 2, 3]);
        assert_eq!(args.sizes().collect::<Vec<_>>(), [8, 4, 4, 8, 8, 4, 128, 3]);
        args.with_pointers(|pointers| {
            // SAFETY: one valid pointer per argument, each to at least the argument's size, 8-byte aligned.
            unsafe {
                assert_eq!((*pointers).cast::<u64>().read(), 0x7f00_1234_5678_9abc);
                assert_eq!((*pointers.add(1)).cast::<i32>().read(), -2);
                assert_eq!((*pointers.add(2)).cast::<u32>().read(), 7);
                assert_eq!((*pointers.add(3)).cast::<i64>().read(), -9);
                assert_eq!((*pointers.add(4)).cast::<u64>().read(), u64::MAX);
                assert_eq!((*pointers.add(5)).cast::<f32>().read(), 1.5);
                assert_eq!((*pointers.add(6)).cast::<[u64; 16]>().read(), [3; 16]);
                assert_eq!((*pointers.add(7)).cast::<[u8; 3]>().read(), [1, 2, 3]);
            }
        });
    }

    #[test]
    fn long_argument_lists_work_too() {
        let mut args = ArgList::new();
        for i in 0..100 {
            args.u32(i);
        }
        args.with_pointers(|pointers| {
            for i in 0..100 {
                // SAFETY: 100 valid pointers to u32.
                assert_eq!(unsafe { (*pointers.add(i)).cast::<u32>().read() }, i as u32);
            }
        });
    }

    #[test]
    fn arguments_are_checked_against_parameters() {
        let mut args = ArgList::new();
        args.ptr(0).u32(1);
        assert!(args.check("k", &[8, 4]).is_ok());
        assert!(args.check("k", &[8]).unwrap_err().to_string().starts_with("kernel k: 2 arguments, expected 1"));
        let line = args.check("k", &[8, 8]).unwrap_err().to_string();
        assert!(line.starts_with("kernel k: argument 1 has 4 bytes, expected 8"), "{line}");
        assert!(ArgList::new().check("k", &[]).is_ok());
    }

    #[test]
    fn configurations_are_checked() {
        let good = LaunchConfig { shared: 1000, ..LaunchConfig::linear(8, 256) };
        assert!(good.check("k", &LIMITS).is_ok());
        assert!(message(LaunchConfig { grid: [0, 1, 1], ..good }).contains("has grid [0, 1, 1]"));
        assert!(message(LaunchConfig { grid: [1, 70_000, 1], ..good }).contains("has grid [1, 70000, 1]"));
        assert!(message(LaunchConfig { block: [1, 1, 65], ..good }).contains("has block [1, 1, 65]"));
        assert!(
            message(LaunchConfig { block: [257, 1, 1], ..good }).contains("has 257 threads per block, at most 256 fit")
        );
        assert!(
            message(LaunchConfig { shared: 1001, ..good })
                .contains("1001 bytes of dynamic shared memory, configured for 1000")
        );
        assert!(message(LaunchConfig { cluster: Some([3, 1, 1]), ..good }).contains("multiple of cluster [3, 1, 1]"));
        assert!(message(LaunchConfig { cluster: Some([32, 1, 1]), ..good }).contains("1 to 16 blocks"));
        assert!(message(LaunchConfig { cluster: Some([0, 1, 1]), ..good }).contains("1 to 16 blocks"));
    }

    #[test]
    fn attributes_carry_cluster_and_dependent_launch() {
        use sys::CUlaunchAttributeID as Id;
        let plain = LaunchConfig::linear(8, 32);
        assert_eq!(plain.attributes().1, 0);
        let both = LaunchConfig { cluster: Some([4, 2, 1]), pdl: true, ..plain };
        let (mut attributes, count) = both.attributes();
        assert_eq!(count, 2);
        assert_eq!(attributes[0].id, Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION);
        assert_eq!(attributes[1].id, Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION);
        // SAFETY: the fields read are the ones written, over zeroed storage.
        unsafe {
            let cluster = attributes[0].value.clusterDim;
            assert_eq!([cluster.x, cluster.y, cluster.z], [4, 2, 1]);
            assert_eq!(attributes[1].value.programmaticStreamSerializationAllowed, 1);
        }
        let raw = both.raw(std::ptr::null_mut(), &mut attributes[..count]);
        assert_eq!((raw.gridDimX, raw.blockDimX, raw.numAttrs), (8, 32, 2));
        let only = LaunchConfig { pdl: true, ..plain };
        let (attributes, count) = only.attributes();
        assert_eq!((attributes[0].id, count), (Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, 1));
    }
}
