//! Checks of this layer on a real GPU: copies, fills, events, captures, replays and dependent launches. Run by
//! `gossamer doctor --selftest`; takes well under a second and about 100 MB of device memory.

use std::fmt;
use std::time::Instant;

use super::driver::Device;
use super::error::CudaError;
use super::event::{Event, EventKind};
use super::graph::{Dependency, Graph};
use super::launch::{ArgList, LaunchConfig};
use super::memory::{DeviceBuffer, DeviceSlice, POISON_BYTE};
use super::module::{Carveout, Function, Module};
use super::pinned::{PinnedBuffer, PinnedKind};
use super::stream::{Priority, Stream};

/// CUDA C++ of the kernel the self test launches: `out[i] = a[i] + b[i]`. It lets its successor start at once, so that a
/// chain with dependent launch is right only if waiting works.
pub const SELFTEST_SOURCE: &str = r#"extern "C" __global__ void gossamer_selftest_add(const float* a, const float* b, float* out, unsigned n) {
    asm volatile("griddepcontrol.launch_dependents;");
    asm volatile("griddepcontrol.wait;" ::: "memory");
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = a[i] + b[i];
}
"#;

/// The entry of [`SELFTEST_SOURCE`].
pub const SELFTEST_ENTRY: &str = "gossamer_selftest_add";

/// A compiled [`SELFTEST_SOURCE`] for `sm_90a`.
#[derive(Debug, Clone, Copy)]
pub struct SelftestKernel<'a> {
    /// The cubin.
    pub cubin: &'a [u8],
    /// Its entry, [`SELFTEST_ENTRY`].
    pub entry: &'a str,
}

/// How one check went.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(tag = "outcome", content = "detail", rename_all = "lowercase")]
pub enum Outcome {
    /// As expected; what was seen.
    Passed(String),
    /// Not as expected; found and expected.
    Failed(String),
    /// Not run; why.
    Skipped(String),
}

/// One check of the self test.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Check {
    /// What was checked.
    pub name: &'static str,
    /// How it went.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Host time it took, in microseconds.
    pub micros: u64,
}

/// All checks of one run, in order.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Report {
    /// The GPU.
    pub device: String,
    /// The checks.
    pub checks: Vec<Check>,
}

impl Report {
    /// Whether no check failed.
    pub fn passed(&self) -> bool {
        !self.checks.iter().any(|check| matches!(check.outcome, Outcome::Failed(_)))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for check in &self.checks {
            let (word, detail) = match &check.outcome {
                Outcome::Passed(detail) => ("ok", detail),
                Outcome::Failed(detail) => ("FAILED", detail),
                Outcome::Skipped(detail) => ("skipped", detail),
            };
            writeln!(f, "{word:8} {:24} {detail} ({} us)", check.name, check.micros)?;
        }
        Ok(())
    }
}

/// Runs all checks on `device`. Without a kernel those that launch one are skipped and say so. A failing check does not stop
/// the rest.
///
/// # Errors
/// [`CudaError`] if not even a stream can be made.
pub fn selftest(device: &Device, kernel: Option<SelftestKernel<'_>>) -> Result<Report, CudaError> {
    let bench = Bench { device, stream: Stream::new(device)? };
    let mut report = Report { device: device.props().name.clone(), checks: Vec::new() };
    let mut run = |name, check: &dyn Fn(&Bench<'_>) -> Verdict| {
        let start = Instant::now();
        let outcome = match device.poisoned() {
            // Everything fails now; the first failure is the one to read.
            Some(_) => Outcome::Skipped("an earlier failure left the GPU unusable for this process".to_owned()),
            None => match check(&bench) {
                Ok(detail) => Outcome::Passed(detail),
                Err(Failure(detail)) => Outcome::Failed(detail),
            },
        };
        report.checks.push(Check { name, outcome, micros: start.elapsed().as_micros() as u64 });
    };
    run("memory", &memory);
    run("pageable copies", &pageable_copies);
    run("pinned copies", &pinned_copies);
    run("fills", &fills);
    run("bounds", &bounds);
    run("events", &events);
    run("other threads", &other_threads);
    run("graph of copies", &graph_of_copies);
    run("capture rules", &capture_rules);
    run("out of memory", &out_of_memory);
    run("damaged cubin", &|bench| damaged_cubin(bench, kernel));
    match kernel {
        Some(kernel) => {
            run("kernel launch", &|bench| kernel_launch(bench, kernel));
            run("launch checks", &|bench| launch_checks(bench, kernel));
            run("graph replay", &|bench| graph_replay(bench, kernel));
            run("dependent launch", &|bench| dependent_launch(bench, kernel));
            run("graph by hand", &|bench| graph_by_hand(bench, kernel));
        }
        None => {
            for name in ["kernel launch", "launch checks", "graph replay", "dependent launch", "graph by hand"] {
                let outcome = Outcome::Skipped("no compiled kernel was given (NVRTC missing?)".to_owned());
                report.checks.push(Check { name, outcome, micros: 0 });
            }
        }
    }
    Ok(report)
}

/// Words for what passed, or for what failed.
type Verdict = Result<String, Failure>;

struct Failure(String);

impl From<CudaError> for Failure {
    fn from(error: CudaError) -> Self {
        Self(error.to_string())
    }
}

struct Bench<'a> {
    device: &'a Device,
    stream: Stream,
}

impl Bench<'_> {
    fn buffer(&self, len: usize) -> Result<DeviceBuffer, CudaError> {
        let buffer = DeviceBuffer::alloc(self.device, len, "the self test")?;
        buffer.all().poison(&self.stream)?;
        Ok(buffer)
    }

    fn filled(&self, values: &[f32]) -> Result<DeviceBuffer, CudaError> {
        let buffer = self.buffer(size_of_val(values))?;
        buffer.all().upload(&self.stream, bytemuck::cast_slice(values))?;
        Ok(buffer)
    }

    fn read(&self, slice: DeviceSlice<'_>) -> Result<Vec<u8>, CudaError> {
        let mut bytes = vec![0; slice.len()];
        slice.download(&self.stream, &mut bytes)?;
        Ok(bytes)
    }

    fn expect(&self, slice: DeviceSlice<'_>, expected: &[u8], what: &str) -> Result<(), Failure> {
        same(&self.read(slice)?, expected, what)
    }

    fn expect_floats(&self, buffer: &DeviceBuffer, expected: impl Fn(usize) -> f32, what: &str) -> Result<(), Failure> {
        let expected: Vec<f32> = (0..buffer.len() / 4).map(expected).collect();
        self.expect(buffer.all(), bytemuck::cast_slice(&expected), what)
    }

    fn function(&self, kernel: SelftestKernel<'_>) -> Result<Function, CudaError> {
        Module::load(self.device, "selftest", kernel.cubin)?.function(kernel.entry)
    }
}

const N: usize = (1 << 20) + 3;
const THREADS: u32 = 256;

fn memory(bench: &Bench<'_>) -> Verdict {
    let memory = bench.device.memory()?;
    ensure(memory.free > 0 && memory.free <= memory.total, || format!("odd memory sizes: {memory:?}"))?;
    Ok(format!("{} of {} bytes free", memory.free, memory.total))
}

fn pageable_copies(bench: &Bench<'_>) -> Verdict {
    let data = pattern(N);
    let (first, second) = (bench.buffer(N)?, bench.buffer(N)?);
    first.all().upload(&bench.stream, &data)?;
    second.all().copy_from(&bench.stream, first.all())?;
    bench.expect(second.all(), &data, "host to device to device to host")?;
    bench.expect(second.slice(5, 1000)?, &data[5..1005], "part of a buffer")?;
    Ok(format!("{N} bytes there and back"))
}

fn pinned_copies(bench: &Bench<'_>) -> Verdict {
    let data = pattern(N);
    let mut source = PinnedBuffer::new(bench.device, N, PinnedKind::WriteCombined, "the self test")?;
    let target = PinnedBuffer::new(bench.device, N, PinnedKind::Cached, "the self test")?;
    same(&target.as_slice()[..64], &[0; 64], "fresh pinned memory")?;
    source.as_mut_slice().copy_from_slice(&data);
    let buffer = bench.buffer(N)?;
    // SAFETY: both pinned buffers live, and nobody touches them, until the synchronisation below.
    unsafe {
        buffer.all().upload_async(&bench.stream, &source, 0..N)?;
        buffer.all().download_async(&bench.stream, &target, 0..N)?;
    }
    bench.stream.synchronize()?;
    same(target.as_slice(), &data, "pinned round trip")?;
    Ok(format!("{N} bytes there and back"))
}

fn fills(bench: &Bench<'_>) -> Verdict {
    let buffer = bench.buffer(4096)?;
    bench.expect(buffer.all(), &[POISON_BYTE; 4096], "poison")?;
    buffer.all().zero(&bench.stream)?;
    buffer.slice(256, 512)?.fill_u32(&bench.stream, 0x0403_0201)?;
    buffer.slice(4095, 1)?.fill_u8(&bench.stream, 9)?;
    let mut expected = vec![0; 4096];
    expected[256..768].chunks_exact_mut(4).for_each(|word| word.copy_from_slice(&[1, 2, 3, 4]));
    expected[4095] = 9;
    bench.expect(buffer.all(), &expected, "fills of parts")?;
    Ok("bytes, words, zeros, poison".to_owned())
}

fn bounds(bench: &Bench<'_>) -> Verdict {
    let buffer = bench.buffer(64)?;
    let empty = bench.buffer(0)?;
    empty.all().upload(&bench.stream, &[])?;
    let refused = [
        buffer.slice(60, 5).err(),
        buffer.slice(65, 0).err(),
        buffer.all().upload(&bench.stream, &[0; 65]).err(),
        buffer.all().download(&bench.stream, &mut [0; 63]).err(),
        buffer.slice(2, 8)?.fill_u32(&bench.stream, 0).err(),
    ];
    let passed = refused.iter().filter(|error| error.is_none()).count();
    ensure(passed == 0, || format!("{passed} of {} bad requests were accepted", refused.len()))?;
    Ok(format!("{} bad requests refused", refused.len()))
}

fn events(bench: &Bench<'_>) -> Verdict {
    let other = Stream::with_priority(bench.device, Priority::High)?;
    let (start, end) = (Event::new(bench.device, EventKind::Timing)?, Event::new(bench.device, EventKind::Timing)?);
    let (big, copy) = (bench.buffer(32 << 20)?, bench.buffer(32 << 20)?);
    bench.stream.synchronize()?;
    start.record(&bench.stream)?;
    big.all().fill_u8(&bench.stream, 7)?;
    end.record(&bench.stream)?;
    other.wait(&end)?;
    copy.all().copy_from(&other, big.all())?;
    other.synchronize()?;
    ensure(end.is_done()? && other.is_idle()?, || "work is pending after synchronising".to_owned())?;
    bench.expect(copy.slice((32 << 20) - 8, 8)?, &[7; 8], "a copy that waited for another stream")?;
    let us = start.elapsed_us(&end)?;
    ensure(us > 0.0 && us < 1e6, || format!("a 32 MiB fill took {us} us"))?;
    Ok(format!("32 MiB filled in {us:.1} us, ordered across streams"))
}

fn other_threads(bench: &Bench<'_>) -> Verdict {
    let buffer = bench.buffer(1024)?;
    bench.stream.synchronize()?;
    let shared = &buffer;
    let device = bench.device;
    let work = move || -> Result<(), CudaError> {
        let stream = Stream::new(device)?;
        shared.all().upload(&stream, &[42; 1024])?;
        DeviceBuffer::alloc(device, 1 << 20, "a thread")?.all().zero(&stream)?;
        stream.synchronize()
    };
    let joined = std::thread::scope(|scope| scope.spawn(work).join());
    joined.map_err(|_| Failure("a thread that used the GPU panicked".to_owned()))??;
    bench.expect(buffer.all(), &[42; 1024], "an upload on another thread")?;
    Ok("the context follows the caller".to_owned())
}

fn graph_of_copies(bench: &Bench<'_>) -> Verdict {
    let (source, target) = (bench.buffer(4096)?, bench.buffer(4096)?);
    let (graph, ()) = bench.stream.capture(|| {
        target.all().zero(&bench.stream)?;
        target.slice(1024, 1024)?.copy_from(&bench.stream, source.slice(0, 1024)?)
    })?;
    bench.expect(target.all(), &[POISON_BYTE; 4096], "recording must not run")?;
    let counts = graph.node_counts()?;
    ensure(counts.fills == 1 && counts.copies == 1 && counts.total() == 2, || format!("odd graph: {counts:?}"))?;
    let exec = graph.instantiate()?;
    drop(graph);
    exec.upload(&bench.stream)?;
    for value in [3u8, 4] {
        source.all().fill_u8(&bench.stream, value)?;
        // SAFETY: both buffers live until `expect` has synchronised.
        unsafe { exec.launch(&bench.stream)? };
        let mut expected = vec![0; 4096];
        expected[1024..2048].fill(value);
        bench.expect(target.all(), &expected, "a replay")?;
    }
    Ok("recorded once, replayed twice".to_owned())
}

fn capture_rules(bench: &Bench<'_>) -> Verdict {
    let buffer = bench.buffer(256)?;
    let doomed = bench.buffer(256)?;
    let (graph, refused) = bench.stream.capture(|| -> Result<Vec<bool>, CudaError> {
        drop(doomed);
        buffer.all().zero(&bench.stream)?;
        Ok(vec![
            DeviceBuffer::alloc(bench.device, 256, "a capture").is_err(),
            bench.stream.synchronize().is_err(),
            buffer.all().upload(&bench.stream, &[0; 256]).is_err(),
            bench.stream.capture(|| Ok::<(), CudaError>(())).is_err(),
        ])
    })?;
    ensure(refused.iter().all(|&refused| refused), || format!("allowed inside a capture: {refused:?}"))?;
    ensure(graph.node_counts()?.total() == 1, || "a refused operation left a node".to_owned())?;
    let failed = bench.stream.capture(|| Err::<(), Failure>(Failure("on purpose".to_owned())));
    ensure(failed.is_err_and(|Failure(text)| text == "on purpose"), || "a failed recording gave a graph".to_owned())?;
    bench.stream.synchronize()?;
    Ok("no allocation, no waiting; errors leave the stream usable".to_owned())
}

fn out_of_memory(bench: &Bench<'_>) -> Verdict {
    let total = bench.device.memory()?.total;
    match DeviceBuffer::alloc(bench.device, total as usize * 2, "too much") {
        Err(CudaError::OutOfMemory { requested, free, missing, .. }) => {
            ensure(missing == requested - free, || format!("missing {missing}, asked {requested}, free {free}"))?;
            bench.stream.synchronize()?;
            Ok("refused, and the context survives".to_owned())
        }
        Err(error) => Err(error.into()),
        Ok(_) => Err(Failure("twice the device's memory was allocated".to_owned())),
    }
}

fn damaged_cubin(bench: &Bench<'_>, kernel: Option<SelftestKernel<'_>>) -> Verdict {
    let mut images = vec![Vec::new(), vec![0u8; 512]];
    if let Some(kernel) = kernel {
        images.push(kernel.cubin[..kernel.cubin.len() / 2].to_vec());
    }
    for image in &images {
        let refused = matches!(Module::load(bench.device, "damaged", image), Err(CudaError::BadModule { .. }));
        ensure(refused, || format!("a damaged image of {} bytes was loaded", image.len()))?;
    }
    Ok(format!("{} images refused", images.len()))
}

fn kernel_launch(bench: &Bench<'_>, kernel: SelftestKernel<'_>) -> Verdict {
    let mut function = bench.function(kernel)?;
    function.configure(100 << 10, Carveout::Max)?;
    let (a, b) = (bench.filled(&ramp(N, 1.0))?, bench.filled(&ramp(N, 2.0))?);
    let out = bench.buffer(N * 4)?;
    let (start, end) = (Event::new(bench.device, EventKind::Timing)?, Event::new(bench.device, EventKind::Timing)?);
    start.record(&bench.stream)?;
    let config = LaunchConfig { shared: 100 << 10, ..grid() };
    // SAFETY: the three buffers have N floats and live until `expect_floats` has synchronised.
    unsafe { function.launch(&bench.stream, &config, &add_args(&a, &b, &out))? };
    end.record(&bench.stream)?;
    bench.expect_floats(&out, |i| 3.0 * (i % 1000) as f32, "a + b")?;
    let info = function.info();
    ensure(info.local_bytes == 0 && info.registers > 0, || format!("odd kernel: {info:?}"))?;
    let blocks = function.occupancy(THREADS, 0)?;
    ensure(blocks > 0, || "no block fits on an SM".to_owned())?;
    let us = start.elapsed_us(&end)?;
    Ok(format!("{N} sums in {us:.1} us, {} registers, {blocks} blocks per SM", info.registers))
}

fn launch_checks(bench: &Bench<'_>, kernel: SelftestKernel<'_>) -> Verdict {
    let module = Module::load(bench.device, "selftest", kernel.cubin)?;
    let missing = matches!(module.function("no_such_kernel"), Err(CudaError::NoSuchFunction { .. }));
    ensure(missing, || "a kernel that does not exist was found".to_owned())?;
    let mut function = module.function(kernel.entry)?;
    ensure(function.info().params == [8, 8, 8, 4], || format!("odd parameters: {:?}", function.info().params))?;
    let out = bench.buffer(N * 4)?;
    let args = add_args(&out, &out, &out);
    let mut short = ArgList::new();
    short.ptr(out.ptr());
    // SAFETY: none of these launches may happen; the buffer is valid all the same.
    let refused = unsafe {
        [
            function.launch(&bench.stream, &grid(), &short).is_err(),
            function.launch(&bench.stream, &LaunchConfig { grid: [0, 1, 1], ..grid() }, &args).is_err(),
            function.launch(&bench.stream, &LaunchConfig { shared: 100 << 10, ..grid() }, &args).is_err(),
            function.launch(&bench.stream, &LaunchConfig { block: [1025, 1, 1], ..grid() }, &args).is_err(),
            function.configure(1 << 20, Carveout::Auto).is_err(),
        ]
    };
    ensure(refused.iter().all(|&refused| refused), || format!("bad launches accepted: {refused:?}"))?;
    bench.stream.synchronize()?;
    Ok(format!("{} bad launches refused", refused.len()))
}

fn graph_replay(bench: &Bench<'_>, kernel: SelftestKernel<'_>) -> Verdict {
    let function = bench.function(kernel)?;
    let (a, b) = (bench.filled(&ramp(N, 1.0))?, bench.filled(&ramp(N, 2.0))?);
    let (x, y) = (bench.buffer(N * 4)?, bench.buffer(N * 4)?);
    let cluster = LaunchConfig { grid: [grid().grid[0].next_multiple_of(2), 1, 1], cluster: Some([2, 1, 1]), ..grid() };
    let (graph, ()) = bench.stream.capture(|| {
        // SAFETY: the four buffers have N floats and outlive the replays below.
        unsafe {
            function.launch(&bench.stream, &grid(), &add_args(&a, &b, &x))?;
            function.launch(&bench.stream, &cluster, &add_args(&x, &b, &y))
        }
    })?;
    // The executable must hold the module by itself.
    drop(function);
    let kernels = graph.node_counts()?.kernels;
    ensure(kernels == 2, || format!("{kernels} kernel nodes, expected 2"))?;
    ensure(graph.programmatic_edges()? == 0, || "programmatic edges without asking".to_owned())?;
    ensure(graph.dot()?.contains("digraph"), || "the drawing is not DOT".to_owned())?;
    let exec = graph.instantiate()?;
    drop(graph);
    for scale in [1.0, 3.0] {
        a.all().upload(&bench.stream, bytemuck::cast_slice(&ramp(N, scale)))?;
        y.all().poison(&bench.stream)?;
        // SAFETY: the buffers live until `expect_floats` has synchronised.
        unsafe { exec.launch(&bench.stream)? };
        bench.expect_floats(&y, |i| (scale + 4.0) * (i % 1000) as f32, "a replayed chain")?;
    }
    Ok("two kernels, one in clusters, replayed twice on new inputs".to_owned())
}

fn dependent_launch(bench: &Bench<'_>, kernel: SelftestKernel<'_>) -> Verdict {
    const LINKS: usize = 9;
    let function = bench.function(kernel)?;
    let b = bench.filled(&ramp(N, 1.0))?;
    let (x, y) = (bench.buffer(N * 4)?, bench.buffer(N * 4)?);
    let config = LaunchConfig { pdl: true, ..grid() };
    let (graph, ()) = bench.stream.capture(|| -> Result<(), CudaError> {
        for link in 0..LINKS {
            let (from, to) = if link % 2 == 0 { (&x, &y) } else { (&y, &x) };
            // SAFETY: the buffers have N floats and outlive the replays below.
            unsafe { function.launch(&bench.stream, &config, &add_args(from, &b, to))? };
        }
        Ok(())
    })?;
    let edges = graph.programmatic_edges()?;
    ensure(edges == LINKS - 1, || format!("{edges} programmatic edges, expected {}", LINKS - 1))?;
    let exec = graph.instantiate()?;
    for _ in 0..2 {
        x.all().zero(&bench.stream)?;
        // SAFETY: the buffers live until `expect_floats` has synchronised.
        unsafe { exec.launch(&bench.stream)? };
        bench.expect_floats(&y, |i| (LINKS * (i % 1000)) as f32, "a chain with dependent launch")?;
    }
    Ok(format!("{LINKS} kernels, {edges} programmatic edges, replayed twice"))
}

fn graph_by_hand(bench: &Bench<'_>, kernel: SelftestKernel<'_>) -> Verdict {
    let function = bench.function(kernel)?;
    let (a, b) = (bench.filled(&ramp(N, 1.0))?, bench.filled(&ramp(N, 2.0))?);
    let (x, y) = (bench.buffer(N * 4)?, bench.buffer(N * 4)?);
    let mut graph = Graph::new(bench.device)?;
    // SAFETY: the four buffers have N floats and outlive the runs below.
    unsafe {
        let first = graph.add_kernel(&[], &function, &grid(), &add_args(&a, &b, &x))?;
        let next = [(first, Dependency::Programmatic)];
        graph.add_kernel(&next, &function, &grid(), &add_args(&x, &b, &y))?;
    }
    let edges = graph.edges()?;
    let programmatic = edges.len() == 1 && edges[0].dependency == Dependency::Programmatic;
    ensure(programmatic, || format!("edges {edges:?}, expected one programmatic"))?;
    let exec = graph.instantiate()?;
    // SAFETY: the buffers live until `expect_floats` has synchronised.
    unsafe { exec.launch(&bench.stream)? };
    bench.expect_floats(&y, |i| 5.0 * (i % 1000) as f32, "a graph built by hand")?;
    Ok("two nodes, one programmatic edge".to_owned())
}

fn grid() -> LaunchConfig {
    LaunchConfig::linear((N as u32).div_ceil(THREADS), THREADS)
}

fn add_args(a: &DeviceBuffer, b: &DeviceBuffer, out: &DeviceBuffer) -> ArgList {
    let mut args = ArgList::new();
    args.ptr(a.ptr()).ptr(b.ptr()).ptr(out.ptr()).u32(N as u32);
    args
}

/// Small integers times `scale`, exact in f32.
fn ramp(n: usize, scale: f32) -> Vec<f32> {
    (0..n).map(|i| scale * (i % 1000) as f32).collect()
}

/// Bytes without a short period.
fn pattern(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn ensure(condition: bool, words: impl FnOnce() -> String) -> Result<(), Failure> {
    if condition { Ok(()) } else { Err(Failure(words())) }
}

fn same(found: &[u8], expected: &[u8], what: &str) -> Result<(), Failure> {
    if found.len() != expected.len() {
        return Err(Failure(format!("{what}: {} bytes, expected {}", found.len(), expected.len())));
    }
    match found.iter().zip(expected).position(|(found, expected)| found != expected) {
        None => Ok(()),
        Some(at) => Err(Failure(format!(
            "{what}: byte {at} of {} is {:#04x}, expected {:#04x}",
            found.len(),
            found[at],
            expected[at]
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs what can be run without a compiled kernel; on a machine without a GPU says why not.
    #[test]
    fn selftest_without_a_kernel() {
        match Device::open(0) {
            Ok(device) => {
                let report = selftest(&device, None).unwrap();
                print!("{report}");
                assert!(report.passed(), "{report}");
            }
            Err(error) => println!("skipped: {error}"),
        }
    }

    #[test]
    fn comparison_names_the_first_difference() {
        assert!(same(&[1, 2, 3], &[1, 2, 3], "x").is_ok());
        assert_eq!(same(&[1, 2, 3], &[1, 9, 3], "x").unwrap_err().0, "x: byte 1 of 3 is 0x02, expected 0x09");
        assert_eq!(same(&[1], &[1, 9], "x").unwrap_err().0, "x: 1 bytes, expected 2");
    }

    #[test]
    fn reports_print_and_serialise() {
        let check = |name, outcome| Check { name, outcome, micros: 5 };
        let mut report = Report { device: "GPU".into(), checks: vec![check("fills", Outcome::Passed("fine".into()))] };
        assert!(report.passed());
        report.checks.push(check("graph replay", Outcome::Skipped("no kernel".into())));
        assert!(report.passed());
        report.checks.push(check("events", Outcome::Failed("late".into())));
        assert!(!report.passed());
        assert_eq!(report.to_string().lines().count(), 3);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["checks"][2]["outcome"], "failed");
        assert_eq!(json["checks"][2]["detail"], "late");
    }

    #[test]
    fn the_source_has_the_entry() {
        assert!(SELFTEST_SOURCE.contains(&format!("void {SELFTEST_ENTRY}(")));
    }
}
