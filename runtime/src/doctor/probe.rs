//! Finding things out: GPUs, the cache folder, host memory and cores. Nothing here fails or leaves a trace.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::GpuInfo;
use crate::cuda::{CudaError, Driver, DriverVersion};

/// Less free disk than this makes the cache line a warning, in bytes.
pub(super) const ENOUGH_DISK: u64 = 256 << 20;

/// The kernel cache's folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CacheInfo {
    /// The folder; it is made when the first kernel is stored.
    pub folder: PathBuf,
    /// Whether it exists.
    pub exists: bool,
    /// Files in it, without temporary ones.
    pub entries: usize,
    /// Their size in bytes.
    pub bytes: u64,
    /// Why nothing can be written there, in the system's words; `None` if it can.
    pub problem: Option<String>,
    /// Free space on its disk in bytes, where the system tells.
    pub disk_free: Option<u64>,
}

/// Memory and cores that this process may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HostInfo {
    /// Memory in bytes, the container's limit included; `None` where the system does not tell.
    pub memory_total: Option<u64>,
    /// What is available of it in bytes.
    pub memory_available: Option<u64>,
    /// Cores.
    pub cores: usize,
}

/// The driver and all visible GPUs.
pub(super) fn gpus() -> (Result<DriverVersion, CudaError>, Vec<Result<GpuInfo, CudaError>>) {
    let driver = match Driver::load() {
        Ok(driver) => driver,
        Err(error) => return (Err(error), Vec::new()),
    };
    let one = |ordinal| -> Result<GpuInfo, CudaError> {
        let props = driver.props(ordinal)?;
        let memory = driver.open(ordinal).and_then(|device| device.memory());
        Ok(GpuInfo { props, memory })
    };
    (Ok(driver.version().clone()), (0..driver.device_count()).map(one).collect())
}

/// Looks at the cache folder without making it.
pub(super) fn cache(folder: &Path) -> CacheInfo {
    let mut info = CacheInfo {
        folder: folder.to_owned(),
        exists: folder.exists(),
        entries: 0,
        bytes: 0,
        problem: None,
        disk_free: None,
    };
    if info.exists {
        match std::fs::read_dir(folder) {
            Ok(files) => {
                for file in files.flatten() {
                    let hidden = file.file_name().as_bytes().starts_with(b".");
                    if let Ok(meta) = file.metadata()
                        && meta.is_file()
                        && !hidden
                    {
                        info.entries += 1;
                        info.bytes += meta.len();
                    }
                }
            }
            Err(error) => info.problem = Some(error.to_string()),
        }
    }
    // What does not exist yet would be made below the nearest folder that does.
    let existing = folder.ancestors().map(or_here).find(|path| path.exists()).unwrap_or(Path::new("/"));
    // An unnamed file: gone when closed, even if the process dies.
    if info.problem.is_none()
        && let Err(error) = tempfile::tempfile_in(existing)
    {
        info.problem = Some(error.to_string());
    }
    info.disk_free = disk_free(existing);
    info
}

/// Memory and cores.
pub(super) fn host() -> HostInfo {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let meminfo = read("/proc/meminfo").unwrap_or_default();
    let limit = read("/sys/fs/cgroup/memory.max").or_else(|| read("/sys/fs/cgroup/memory/memory.limit_in_bytes"));
    let used = read("/sys/fs/cgroup/memory.current").or_else(|| read("/sys/fs/cgroup/memory/memory.usage_in_bytes"));
    let (memory_total, memory_available) = memory(&meminfo, limit.as_deref(), used.as_deref());
    HostInfo { memory_total, memory_available, cores: std::thread::available_parallelism().map_or(1, usize::from) }
}

/// Total and available memory from the texts of `/proc/meminfo` and the control group's limit and use.
fn memory(meminfo: &str, limit: Option<&str>, used: Option<&str>) -> (Option<u64>, Option<u64>) {
    let field = |name: &str| -> Option<u64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()?.saturating_mul(1024))
    };
    let number = |text: Option<&str>| text.and_then(|text| text.trim().parse::<u64>().ok());
    let (mut total, mut available) = (field("MemTotal"), field("MemAvailable"));
    // "max", or a number above the machine's memory, is no limit.
    if let (Some(limit), Some(machine)) = (number(limit), total)
        && limit < machine
    {
        total = Some(limit);
        let left = number(used).map(|used| limit.saturating_sub(used));
        available = match (available, left) {
            (Some(available), Some(left)) => Some(available.min(left)),
            (available, left) => available.or(left),
        };
    }
    (total, available)
}

/// The current folder for the empty path that ends a relative path's ancestors.
fn or_here(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

fn disk_free(folder: &Path) -> Option<u64> {
    let path = CString::new(folder.as_os_str().as_bytes()).ok()?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path is NUL-terminated and `stat` is valid for one write; it is read only after success.
    let stat = unsafe {
        if libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) != 0 {
            return None;
        }
        stat.assume_init()
    };
    Some((stat.f_bavail as u64).saturating_mul(stat.f_frsize as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:       24000 kB\nMemFree:         1000 kB\nMemAvailable:   20000 kB\n";

    #[test]
    fn memory_respects_the_container() {
        let kib = |n: u64| Some(n * 1024);
        assert_eq!(memory(MEMINFO, None, None), (kib(24_000), kib(20_000)));
        assert_eq!(memory(MEMINFO, Some("max\n"), Some("5\n")), (kib(24_000), kib(20_000)));
        assert_eq!(memory(MEMINFO, Some("10240000\n"), Some("2048000\n")), (kib(10_000), kib(8_000)));
        assert_eq!(memory(MEMINFO, Some("9223372036854771712\n"), None), (kib(24_000), kib(20_000)));
        assert_eq!(memory("", None, None), (None, None));
        assert_eq!(memory("MemTotal: x kB", None, None), (None, None));
    }

    #[test]
    fn a_cache_folder_is_counted_and_left_alone() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("a/b");
        let absent = cache(&folder);
        assert_eq!((absent.exists, absent.entries, absent.problem), (false, 0, None));
        assert!(!folder.exists() && absent.disk_free.is_some());
        std::fs::create_dir_all(folder.join("sub")).unwrap();
        std::fs::write(folder.join("one.gsk"), [0; 100]).unwrap();
        std::fs::write(folder.join("two.gsk"), [0; 50]).unwrap();
        std::fs::write(folder.join(".tmp-1"), [0; 9]).unwrap();
        let present = cache(&folder);
        assert_eq!((present.exists, present.entries, present.bytes), (true, 2, 150));
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 4);
    }

    #[test]
    fn a_file_in_place_of_the_folder_is_a_problem() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("cache");
        std::fs::write(&file, b"x").unwrap();
        assert!(cache(&file).problem.is_some());
        assert!(cache(&file.join("below")).problem.is_some());
    }

    #[test]
    fn relative_folders_work() {
        assert_eq!(cache(Path::new("no-such-folder-here/x")).problem, None);
    }
}
