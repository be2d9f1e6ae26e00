//! Compiling kernels side by side. NVRTC compiles one program at a time in a process, so each kernel gets a process of its own: this program again,
//! under the hidden command [`COMMAND`], which leaves the result in the cache folder.
//!
//! A library user's program has no such command; there [`enable`] was not called and kernels are compiled one after the other.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, mpsc};

use gossamer_codegen_cuda::cache::KernelCache;
use gossamer_codegen_cuda::lower::KernelSource;
use gossamer_codegen_cuda::nvrtc::{Nvrtc, Source};

/// Name of the hidden command. Its argument is the cache folder; stdin holds the entry name in a line and then the text.
pub const COMMAND: &str = "compile-kernel";

static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// Lets this process use its own program as a worker.
pub fn enable() {
    if let Ok(program) = std::env::current_exe() {
        let _ = PROGRAM.set(program);
    }
}

/// The worker's side: compiles the kernel on stdin into the folder. True if it is there then.
pub fn work(folder: &Path) -> bool {
    let mut input = String::new();
    if std::io::stdin().lock().read_to_string(&mut input).is_err() {
        return false;
    }
    let Some((entry, text)) = input.split_once('\n') else { return false };
    let Ok(nvrtc) = Nvrtc::load() else { return false };
    KernelCache::at(folder).get_or_compile(&Source::new(entry, text), &nvrtc).is_ok()
}

/// Compiles the kernels that the cache does not hold, as many at a time as there are processors; `done` hears how many are. Returns how many were compiled: what
/// fails is left to this process, which then says why.
pub fn compile(kernels: &[Arc<KernelSource>], cache: &KernelCache, nvrtc: &Nvrtc, done: &dyn Fn(usize)) -> usize {
    let (Some(program), Some(folder)) = (PROGRAM.get(), cache.folder()) else { return 0 };
    let missing: Vec<&Arc<KernelSource>> =
        kernels.iter().filter(|k| !cache.contains(&Source::new(&k.entry, &k.text), nvrtc)).collect();
    if missing.len() < 2 {
        return 0;
    }
    let at_once = std::thread::available_parallelism().map_or(1, usize::from).min(missing.len());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        for _ in 0..at_once {
            let (sender, next, missing) = (sender.clone(), &next, &missing);
            scope.spawn(move || {
                while let Some(kernel) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let _ = sender.send(matches!(run(program, folder, kernel), Ok(true)));
                }
            });
        }
        drop(sender);
        let each = receiver.iter().enumerate().inspect(|(i, _)| done(i + 1));
        each.filter(|(_, compiled)| *compiled).count()
    })
}

/// True if the worker did it.
fn run(program: &Path, folder: &Path, kernel: &KernelSource) -> std::io::Result<bool> {
    let mut child = Command::new(program)
        .arg(COMMAND)
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    // Dropping the pipe ends the text.
    let written = match child.stdin.take() {
        Some(mut stdin) => write!(stdin, "{}\n{}", kernel.entry, kernel.text),
        None => Ok(()),
    };
    let ended = child.wait()?;
    written.map(|()| ended.success())
}
