//! `gossamer doctor`: what this machine has, what is missing and how to get it, on one page.
//!
//! Owns the findings ([`Doctor`]), how they are judged ([`Doctor::lines`]) and rendered as text and JSON. Must not know how
//! kernels are compiled: NVRTC's answer and the cache folder are handed in. Finding out changes nothing on the machine and
//! never fails: what cannot be found out is a line of its own.

mod fit;
mod probe;

use std::fmt::Write;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Value, json};

use crate::cuda::{self, CudaError, CudaVersion, DeviceProps, DriverVersion, MemoryInfo};
pub use fit::{DEFAULT_CONTEXT, Fit, GPT_OSS_20B, GPT_OSS_120B, MAX_CONTEXT, ModelNeed, WORKSPACE};
pub use probe::{CacheInfo, HostInfo};

/// NVRTC as found by the compiler layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NvrtcInfo {
    /// Version of its CUDA toolkit.
    pub version: CudaVersion,
    /// The library file.
    pub path: PathBuf,
}

/// What the rest of the program tells the doctor.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// NVRTC, or the one-line error of looking for it.
    pub nvrtc: Result<NvrtcInfo, String>,
    /// The kernel cache's folder; `None` if no folder is known or caching is off.
    pub cache_folder: Option<PathBuf>,
}

/// One GPU.
#[derive(Debug, Clone)]
pub struct GpuInfo {
    /// Its properties.
    pub props: DeviceProps,
    /// Its memory, or why it cannot be used.
    pub memory: Result<MemoryInfo, CudaError>,
}

/// Everything found out.
#[derive(Debug, Clone)]
pub struct Doctor {
    /// The driver, or why there is none.
    pub driver: Result<DriverVersion, CudaError>,
    /// The visible GPUs, or why one could not be asked.
    pub gpus: Vec<Result<GpuInfo, CudaError>>,
    /// NVRTC, or why there is none.
    pub nvrtc: Result<NvrtcInfo, String>,
    /// cuBLASLt, or the one-line error of looking for it.
    pub cublaslt: Result<cuda::CublasLtInfo, CudaError>,
    /// The kernel cache; `None` if there is no folder for it.
    pub cache: Option<CacheInfo>,
    /// Memory and cores of the host.
    pub host: HostInfo,
    /// The self test, when asked for: its report, or why it could not run.
    pub selftest: Option<Result<cuda::Report, String>>,
}

/// How a line is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// There, and good enough.
    Ok,
    /// Absent or not good enough; the line has a fix.
    Missing,
}

/// One line of the page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Whether it is good.
    pub status: Status,
    /// What it is about, in a word or two.
    pub topic: String,
    /// What was found, in one line.
    pub text: String,
    /// What to do; `None` when nothing needs doing.
    pub fix: Option<String>,
}

impl Doctor {
    /// Looks at the machine. Opens each usable GPU, so the driver makes (and drops) a context on it.
    pub fn examine(inputs: Inputs) -> Self {
        let (driver, gpus) = probe::gpus();
        Self {
            driver,
            gpus,
            nvrtc: inputs.nvrtc,
            cublaslt: cuda::CublasLt::find(),
            cache: inputs.cache_folder.as_deref().map(probe::cache),
            host: probe::host(),
            selftest: None,
        }
    }

    /// Whether models can run on a GPU here: a usable GPU and a way to get kernels.
    pub fn gpu_ready(&self) -> bool {
        self.best_gpu().is_some() && (self.nvrtc.is_ok() || self.cache.as_ref().is_some_and(|cache| cache.entries > 0))
    }

    /// The usable GPU with the most free memory; the first of equals.
    pub fn best_gpu(&self) -> Option<&GpuInfo> {
        let usable = self.gpus.iter().flatten().filter(|gpu| gpu.memory.is_ok());
        usable.reduce(|best, gpu| if free(gpu) > free(best) { gpu } else { best })
    }

    /// What would fit on [`Doctor::best_gpu`], smallest model first.
    pub fn fits(&self) -> Vec<Fit> {
        let free = self.best_gpu().map(free);
        [GPT_OSS_20B, GPT_OSS_120B].map(|model| Fit::new(&model, DEFAULT_CONTEXT, free)).to_vec()
    }

    /// The page, line by line.
    pub fn lines(&self) -> Vec<Line> {
        let mut lines = vec![self.driver_line()];
        lines.extend(self.gpus.iter().map(gpu_line));
        lines.push(self.nvrtc_line());
        lines.push(self.cublaslt_line());
        lines.push(self.cache_line());
        lines.push(ok("host memory", host_text(&self.host)));
        lines.push(ok("CPU", format!("{} cores", self.host.cores)));
        lines.push(ok("demo model", "runs on the CPU of any machine".to_owned()));
        lines.extend(self.fits().iter().map(fit_line));
        lines.extend(self.selftest_lines());
        lines
    }

    /// The page as text: aligned, at most two terminal lines per finding, ending in a verdict.
    pub fn to_text(&self) -> String {
        let lines = self.lines();
        let width = lines.iter().map(|line| line.topic.chars().count()).max().unwrap_or(0);
        let mut text = String::new();
        for Line { status, topic, text: found, fix } in &lines {
            let word = match status {
                Status::Ok => "ok",
                Status::Missing => "missing",
            };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{word:7}  {topic:width$}  {found}");
            if let Some(fix) = fix {
                let _ = writeln!(text, "{:7}  {:width$}  fix: {fix}", "", "");
            }
        }
        let verdict = match self.gpu_ready() {
            true => "Models run on the GPU here.",
            false => "Models run on the CPU here; the lines marked missing say what a GPU would need.",
        };
        let _ = writeln!(text, "\n{verdict}");
        text
    }

    /// The page for programs: the lines, and the findings behind them.
    pub fn to_json(&self) -> Value {
        json!({
            "gpu_ready": self.gpu_ready(),
            "lines": self.lines(),
            "driver": self.driver.as_ref().ok(),
            "gpus": self.gpus.iter().flatten().map(gpu_json).collect::<Vec<_>>(),
            "nvrtc": self.nvrtc.as_ref().ok(),
            "cublaslt": self.cublaslt.as_ref().ok(),
            "cache": self.cache,
            "host": self.host,
            "fits": self.fits(),
            "selftest": self.selftest.as_ref().and_then(|run| run.as_ref().ok()),
        })
    }

    fn driver_line(&self) -> Line {
        match &self.driver {
            Ok(version) => ok("driver", format!("{version}, {} GPU(s)", self.gpus.len())),
            Err(error) => missing_for("driver", error),
        }
    }

    fn nvrtc_line(&self) -> Line {
        match (&self.nvrtc, &self.driver) {
            (Ok(nvrtc), Ok(driver)) if nvrtc.version.major > driver.cuda.major => missing(
                "NVRTC",
                format!("{} makes kernels newer than the driver's CUDA {}", nvrtc.version, driver.cuda),
                format!("install NVRTC {}, or update the driver", cuda::NEEDED_CUDA),
            ),
            (Ok(nvrtc), _) => ok("NVRTC", format!("{} at {}", nvrtc.version, nvrtc.path.display())),
            (Err(line), _) => {
                let line = line.lines().next().unwrap_or("not found");
                let (problem, fix) = line
                    .rsplit_once("; ")
                    .unwrap_or((line, "install the Python wheel nvidia-cuda-nvrtc==13.0.88, or set GOSSAMER_NVRTC"));
                missing("NVRTC", problem.to_owned(), fix.to_owned())
            }
        }
    }

    /// Never missing: only a rule that is off by default calls it.
    fn cublaslt_line(&self) -> Line {
        let text = match &self.cublaslt {
            Ok(found) => format!("{} at {}, for --enable-rule seed/cublaslt", found.version, found.path.display()),
            Err(error) => {
                let problem = error.problem();
                let problem = problem.strip_prefix("no cuBLASLt: ").unwrap_or(&problem);
                format!("not needed without --enable-rule seed/cublaslt; {problem}")
            }
        };
        ok("cuBLASLt", text)
    }

    fn cache_line(&self) -> Line {
        const TOPIC: &str = "kernel cache";
        let Some(cache) = &self.cache else {
            let fix = "set GOSSAMER_CACHE_DIR, XDG_CACHE_HOME or HOME";
            return missing(TOPIC, "no folder for it: kernels compile at each start".to_owned(), fix.to_owned());
        };
        let folder = cache.folder.display();
        let size = format!("{folder}: {} kernels, {}", cache.entries, cuda::bytes(cache.bytes));
        match (&cache.problem, cache.disk_free) {
            (Some(problem), _) => {
                let fix = "make the folder writable, or set GOSSAMER_CACHE_DIR to one that is";
                missing(TOPIC, format!("{size}, cannot be written: {problem}"), fix.to_owned())
            }
            (None, Some(free)) if free < probe::ENOUGH_DISK => {
                let fix = "free disk space, or set GOSSAMER_CACHE_DIR to a folder on another disk";
                missing(TOPIC, format!("{size}, only {} left on its disk", cuda::bytes(free)), fix.to_owned())
            }
            _ => ok(TOPIC, format!("{size}, writable")),
        }
    }

    fn selftest_lines(&self) -> Vec<Line> {
        const TOPIC: &str = "self test";
        const FIX: &str = "please report it with the output of gossamer doctor --selftest --json";
        match &self.selftest {
            None => Vec::new(),
            Some(Err(line)) => {
                let (problem, fix) = line.rsplit_once("; ").unwrap_or((line, FIX));
                vec![missing(TOPIC, format!("did not run: {problem}"), fix.to_owned())]
            }
            Some(Ok(report)) => report.checks.iter().map(|check| selftest_line(check, FIX)).collect(),
        }
    }
}

fn gpu_line(gpu: &Result<GpuInfo, CudaError>) -> Line {
    let gpu = match gpu {
        Ok(gpu) => gpu,
        Err(error) => return missing_for("GPU", error),
    };
    let props = &gpu.props;
    let topic = format!("GPU {}", props.ordinal);
    match &gpu.memory {
        Ok(memory) => ok(
            &topic,
            format!(
                "{}, {}, {} SMs at {} MHz, {} of {} free, L2 {}, {:.2} TB/s nominal",
                props.name,
                props.capability,
                props.sms,
                props.clock_khz / 1000,
                cuda::bytes(memory.free),
                cuda::bytes(memory.total),
                cuda::bytes(props.l2_bytes),
                props.peak_bandwidth() as f64 / 1e12,
            ),
        ),
        Err(error) => missing_for(&topic, error),
    }
}

fn gpu_json(gpu: &GpuInfo) -> Value {
    json!({
        "props": gpu.props,
        "memory": gpu.memory.as_ref().ok(),
        "error": gpu.memory.as_ref().err().map(ToString::to_string),
    })
}

fn host_text(host: &HostInfo) -> String {
    match (host.memory_available, host.memory_total) {
        (Some(available), Some(total)) => format!("{} of {} available", cuda::bytes(available), cuda::bytes(total)),
        (None, Some(total)) => cuda::bytes(total),
        _ => "size unknown".to_owned(),
    }
}

fn fit_line(fit: &Fit) -> Line {
    let need = format!(
        "needs {} ({} weights, {} KV cache for {} tokens, about {} workspace)",
        cuda::bytes(fit.needed),
        cuda::bytes(fit.weights),
        cuda::bytes(fit.kv),
        fit.context,
        cuda::bytes(fit.workspace)
    );
    match (fit.free, fit.max_context) {
        (None, _) => missing(
            fit.model,
            format!("{need} of GPU memory; no GPU to use"),
            "use an H100 or H200; the demo model runs without".to_owned(),
        ),
        (Some(_), Some(context)) if fit.missing == 0 => {
            ok(fit.model, format!("{need}; fits, with room for up to {context} tokens"))
        }
        (Some(free), Some(context)) => missing(
            fit.model,
            format!("{need}; {} free, {} missing", cuda::bytes(free), cuda::bytes(fit.missing)),
            format!("free GPU memory, or run with at most {context} tokens of context"),
        ),
        (Some(free), None) => missing(
            fit.model,
            format!("{need}; {} free, {} missing", cuda::bytes(free), cuda::bytes(fit.missing)),
            "free GPU memory (nvidia-smi shows who holds it), or use a larger GPU".to_owned(),
        ),
    }
}

fn selftest_line(check: &cuda::Check, fix: &str) -> Line {
    let topic = "self test";
    match &check.outcome {
        cuda::Outcome::Passed(detail) => ok(topic, format!("{}: {detail}", check.name)),
        cuda::Outcome::Skipped(why) => ok(topic, format!("{}: skipped, {why}", check.name)),
        cuda::Outcome::Failed(detail) => missing(topic, format!("{} FAILED: {detail}", check.name), fix.to_owned()),
    }
}

fn free(gpu: &GpuInfo) -> u64 {
    gpu.memory.as_ref().map_or(0, |memory| memory.free)
}

fn ok(topic: &str, text: String) -> Line {
    Line { status: Status::Ok, topic: topic.to_owned(), text, fix: None }
}

fn missing(topic: &str, text: String, fix: String) -> Line {
    Line { status: Status::Missing, topic: topic.to_owned(), text, fix: Some(fix) }
}

fn missing_for(topic: &str, error: &CudaError) -> Line {
    missing(topic, error.problem(), error.fix().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::{Check, ComputeCapability, NEEDED_CAPABILITY, Outcome};

    fn gpu(ordinal: usize, capability: ComputeCapability, free: u64) -> GpuInfo {
        let props = DeviceProps {
            ordinal,
            name: "NVIDIA H100 80GB HBM3".into(),
            pci: "0000:3B:00.0".into(),
            capability,
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
        };
        let memory = props.check().map(|()| MemoryInfo { free, total: 80 << 30 });
        GpuInfo { props, memory }
    }

    fn bare() -> Doctor {
        Doctor {
            driver: Err(CudaError::NoDriver { detail: "libcuda.so.1 was not found".into() }),
            gpus: Vec::new(),
            nvrtc: Err("NVRTC 12 or newer not found; install the wheel".into()),
            cublaslt: Err(CudaError::NoCublasLt { detail: "version 12 or newer not found".into() }),
            cache: None,
            host: HostInfo { memory_total: Some(24 << 30), memory_available: Some(20 << 30), cores: 2 },
            selftest: None,
        }
    }

    fn equipped() -> Doctor {
        let cache = CacheInfo {
            folder: "kernels".into(),
            exists: true,
            entries: 41,
            bytes: 3 << 20,
            problem: None,
            disk_free: Some(1 << 40),
        };
        Doctor {
            driver: Ok(DriverVersion { cuda: cuda::NEEDED_CUDA, kernel_module: Some("580.95.05".into()) }),
            gpus: vec![Ok(gpu(0, NEEDED_CAPABILITY, 79 << 30))],
            nvrtc: Ok(NvrtcInfo { version: cuda::NEEDED_CUDA, path: "libnvrtc.so.13".into() }),
            cache: Some(cache),
            ..bare()
        }
    }

    fn line(doctor: &Doctor, topic: &str) -> Line {
        let found = doctor.lines().into_iter().find(|line| line.topic == topic);
        found.unwrap_or_else(|| panic!("no line about {topic}"))
    }

    #[test]
    fn every_line_is_one_line_and_every_gap_has_a_fix() {
        for doctor in [bare(), equipped()] {
            for line in doctor.lines() {
                assert!(!line.text.contains('\n') && !line.topic.is_empty(), "{line:?}");
                assert_eq!(line.fix.is_some(), line.status == Status::Missing, "{line:?}");
            }
        }
    }

    #[test]
    fn this_machine_can_be_examined() {
        let nothing = Inputs { nvrtc: Err("not looked for".into()), cache_folder: None };
        let doctor = Doctor::examine(nothing);
        print!("{}", doctor.to_text());
        assert!(doctor.host.cores > 0);
        assert!(doctor.to_json()["lines"].is_array());
    }

    #[test]
    fn a_bare_machine_reads_well() {
        let text = bare().to_text();
        let expected = "\
missing  driver        no NVIDIA driver: libcuda.so.1 was not found
                       fix: install the NVIDIA driver 580 or newer, or use --device cpu
missing  NVRTC         NVRTC 12 or newer not found
                       fix: install the wheel
ok       cuBLASLt      not needed without --enable-rule seed/cublaslt; version 12 or newer not found
missing  kernel cache  no folder for it: kernels compile at each start
                       fix: set GOSSAMER_CACHE_DIR, XDG_CACHE_HOME or HOME
ok       host memory   20.0 GiB of 24.0 GiB available
ok       CPU           2 cores
ok       demo model    runs on the CPU of any machine
missing  gpt-oss-20b   needs 14.0 GiB (12.8 GiB weights, 195.0 MiB KV cache for 8192 tokens, about 1.0 GiB workspace) of \
GPU memory; no GPU to use
                       fix: use an H100 or H200; the demo model runs without
missing  gpt-oss-120b  needs 62.1 GiB (60.8 GiB weights, 292.5 MiB KV cache for 8192 tokens, about 1.0 GiB workspace) of \
GPU memory; no GPU to use
                       fix: use an H100 or H200; the demo model runs without

Models run on the CPU here; the lines marked missing say what a GPU would need.
";
        assert_eq!(text, expected);
    }

    #[test]
    fn an_equipped_machine_is_all_ok() {
        let doctor = equipped();
        assert!(doctor.gpu_ready());
        assert!(doctor.lines().iter().all(|line| line.status == Status::Ok), "{}", doctor.to_text());
        assert_eq!(line(&doctor, "driver").text, "CUDA 13.0 (driver 580.95.05), 1 GPU(s)");
        let text = line(&doctor, "GPU 0").text;
        assert!(
            text.starts_with("NVIDIA H100 80GB HBM3, SM90, 132 SMs at 1980 MHz, 79.0 GiB of 80.0 GiB free"),
            "{text}"
        );
        assert!(line(&doctor, "gpt-oss-120b").text.ends_with("fits, with room for up to 131072 tokens"));
        assert!(doctor.to_text().ends_with("Models run on the GPU here.\n"));
    }

    #[test]
    fn old_and_mixed_gpus() {
        let mut doctor = equipped();
        doctor.gpus = vec![Ok(gpu(0, ComputeCapability::new(8, 0), 79 << 30))];
        assert!(!doctor.gpu_ready());
        let old = line(&doctor, "GPU 0");
        assert!(old.text.contains("too old: found SM80, needs SM90 (Hopper)"), "{}", old.text);
        assert_eq!(line(&doctor, "gpt-oss-20b").status, Status::Missing);
        // The free one of two Hoppers counts.
        doctor.gpus.push(Ok(gpu(1, NEEDED_CAPABILITY, 4 << 30)));
        doctor.gpus.push(Ok(gpu(2, NEEDED_CAPABILITY, 40 << 30)));
        assert_eq!(doctor.best_gpu().map(|gpu| gpu.props.ordinal), Some(2));
        assert_eq!(line(&doctor, "gpt-oss-20b").status, Status::Ok);
        let large = line(&doctor, "gpt-oss-120b");
        assert!(large.text.ends_with("40.0 GiB free, 22.1 GiB missing"), "{}", large.text);
    }

    #[test]
    fn cache_trouble_is_told() {
        let mut doctor = equipped();
        let mut cache = doctor.cache.clone().unwrap();
        cache.problem = Some("Read-only file system".into());
        doctor.cache = Some(cache.clone());
        let text = line(&doctor, "kernel cache").text;
        assert_eq!(text, "kernels: 41 kernels, 3.0 MiB, cannot be written: Read-only file system");
        doctor.cache = Some(CacheInfo { problem: None, disk_free: Some(1 << 20), ..cache });
        assert!(line(&doctor, "kernel cache").text.ends_with("only 1.0 MiB left on its disk"));
    }

    #[test]
    fn a_library_that_few_need_is_not_missing() {
        let mut doctor = bare();
        let found = line(&doctor, "cuBLASLt");
        assert_eq!((found.status, found.fix), (Status::Ok, None));
        assert!(found.text.ends_with("seed/cublaslt; version 12 or newer not found"), "{}", found.text);
        doctor.cublaslt = Ok(cuda::CublasLtInfo { version: "13.0.0".into(), path: "lib/libcublasLt.so.13".into() });
        assert!(line(&doctor, "cuBLASLt").text.starts_with("13.0.0 at lib/libcublasLt.so.13, "));
        assert_eq!(doctor.to_json()["cublaslt"]["version"], "13.0.0");
    }

    #[test]
    fn a_too_new_compiler_is_told() {
        let mut doctor = equipped();
        doctor.nvrtc = Ok(NvrtcInfo { version: CudaVersion { major: 14, minor: 1 }, path: "libnvrtc.so.14".into() });
        assert_eq!(line(&doctor, "NVRTC").text, "14.1 makes kernels newer than the driver's CUDA 13.0");
    }

    #[test]
    fn self_test_results_join_the_page() {
        let mut doctor = equipped();
        let check = |name, outcome| Check { name, outcome, micros: 1 };
        doctor.selftest = Some(Ok(cuda::Report {
            device: "GPU".into(),
            checks: vec![
                check("fills", Outcome::Passed("fine".into())),
                check("events", Outcome::Failed("late".into())),
                check("graph replay", Outcome::Skipped("no kernel".into())),
            ],
        }));
        let text = doctor.to_text();
        assert!(text.contains("ok       self test     fills: fine\n"), "{text}");
        assert!(text.contains("missing  self test     events FAILED: late\n"), "{text}");
        assert!(text.contains("graph replay: skipped, no kernel\n"), "{text}");
        doctor.selftest = Some(Err("no NVIDIA driver; install it".into()));
        assert_eq!(line(&doctor, "self test").text, "did not run: no NVIDIA driver");
        assert_eq!(line(&doctor, "self test").fix.as_deref(), Some("install it"));
    }

    #[test]
    fn json_has_lines_and_findings() {
        let json = equipped().to_json();
        assert_eq!(json["gpu_ready"], true);
        assert_eq!(json["driver"]["cuda"]["major"], 13);
        assert_eq!(json["gpus"][0]["props"]["sms"], 132);
        assert_eq!(json["gpus"][0]["memory"]["free"], 79u64 << 30);
        assert_eq!(json["fits"][1]["weights"], 65_248_815_744u64);
        assert_eq!(json["lines"][0]["status"], "ok");
        assert_eq!(json["cache"]["entries"], 41);
        let json = bare().to_json();
        assert_eq!(json["gpu_ready"], false);
        assert!(json["driver"].is_null() && json["cache"].is_null());
        assert_eq!(json["lines"][0]["status"], "missing");
    }
}
