use super::*;
use crate::nvrtc::{self, TARGET};
use crate::resources::{KernelResources, Resources};
use std::sync::atomic::AtomicUsize;

/// A compiler whose image is a real (tiny) ELF of the CUDA kind, with the text's length as code.
struct Fake {
    calls: AtomicUsize,
    fingerprint: &'static str,
}

impl Fake {
    fn new() -> Fake {
        Fake { calls: AtomicUsize::new(0), fingerprint: "fake 1" }
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }
}

impl Compile for Fake {
    fn fingerprint(&self) -> &str {
        self.fingerprint
    }

    fn compile(&self, source: &Source) -> Result<Compiled, CompileError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if source.text == "bad" {
            let text = String::new;
            return Err(CompileError::Rejected { kernel: source.name.clone(), first_error: text(), log: text() });
        }
        let log = format!("ptxas info    : Function properties for k\n{}", source.text);
        Ok(Compiled::new(elf(source.text.as_bytes()), log).unwrap())
    }
}

/// The smallest cubin that reads as one: kernel `k` with 32 registers.
fn elf(code: &[u8]) -> Vec<u8> {
    let names = b"\0.text.k\0.symtab\0.nv.info\0k\0";
    let symbol: Vec<u8> = [&26u32.to_le_bytes()[..], &[0x12, 0x10, 1, 0], &[0; 16]].concat();
    let info = [&[4u8, 0x2f, 8, 0][..], &0u32.to_le_bytes(), &32u32.to_le_bytes()].concat();
    let parts: [(u32, u32, &[u8], u32); 5] =
        [(0, 0, &[], 0), (1, 1, code, 0), (0, 3, names, 0), (9, 2, &symbol, 2), (17, 0x7000_0000, &info, 0)];
    let mut image = vec![0u8; 64];
    let mut table = Vec::new();
    for (name, kind, data, link) in parts {
        let mut record = [0u8; 64];
        record[0..4].copy_from_slice(&name.to_le_bytes());
        record[4..8].copy_from_slice(&kind.to_le_bytes());
        record[24..32].copy_from_slice(&(image.len() as u64).to_le_bytes());
        record[32..40].copy_from_slice(&(data.len() as u64).to_le_bytes());
        record[40..44].copy_from_slice(&link.to_le_bytes());
        image.extend_from_slice(data);
        table.extend_from_slice(&record);
    }
    image[..6].copy_from_slice(b"\x7fELF\x02\x01");
    image[18..20].copy_from_slice(&190u16.to_le_bytes());
    let start = image.len() as u64;
    image[40..48].copy_from_slice(&start.to_le_bytes());
    image[48..52].copy_from_slice(&0x5a00u32.to_le_bytes());
    for (at, value) in [(58, 64u16), (60, 5), (62, 2)] {
        image[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    image.extend(table);
    image
}

fn source(text: &str) -> Source {
    Source::new("k", text)
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut list: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    list.sort();
    list
}

fn age(path: &Path, seconds: u64) {
    let file = File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
}

#[test]
fn the_second_lookup_comes_from_disk_and_is_equal() {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::new();
    let path = folder.path().join("made/on/demand");
    let cache = KernelCache::at(&path);
    let first = cache.get_or_compile(&source("a"), &fake).unwrap();
    let again = KernelCache::at(&path);
    assert!(again.contains(&source("a"), &fake) && !again.contains(&source("b"), &fake));
    assert_eq!(again.get_or_compile(&source("a"), &fake).unwrap(), first);
    assert_eq!(fake.calls(), 1);
    assert_eq!(cache.stats(), CacheStats { misses: 1, compiles: 1, ..CacheStats::default() });
    assert_eq!(again.stats(), CacheStats { hits: 1, ..CacheStats::default() });
    assert_eq!((cache.warning(), again.warning()), (None, None));
    let kernel = KernelResources { entry: "k".to_owned(), registers: 32, ..KernelResources::default() };
    assert_eq!(first.resources, Resources { kernels: vec![kernel], warnings: Vec::new() });
}

#[test]
fn the_key_covers_text_options_and_compiler_but_not_the_name() {
    let key = |s: &Source, f: &str| Key::of(s, f).to_string();
    let base = source("text");
    let with = |options: &[&str]| Source { options: options.iter().map(|o| o.to_string()).collect(), ..base.clone() };
    let named = Source { name: "other".to_owned(), ..base.clone() };
    assert_eq!(key(&base, "f"), key(&named, "f"));
    let keys = [
        key(&base, "f"),
        key(&source("text "), "f"),
        key(&base, "g"),
        key(&with(&["-DA", "-DB"]), "f"),
        key(&with(&["-DB", "-DA"]), "f"),
        key(&with(&["-DA-DB"]), "f"),
    ];
    let mut unique = keys.to_vec();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), keys.len());
    assert!(keys.iter().all(|k| k.len() == 64 && k.chars().all(|c| c.is_ascii_hexdigit())));
    assert_eq!(TARGET, "sm_90a");
}

#[test]
fn every_damaged_byte_and_every_cut_is_found_and_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::new();
    let good = KernelCache::at(folder.path()).get_or_compile(&source("a"), &fake).unwrap();
    let path = entries(folder.path()).remove(0);
    let bytes = fs::read(&path).unwrap();
    let mut variants: Vec<Vec<u8>> = (0..bytes.len()).step_by(7).map(|n| bytes[..n].to_vec()).collect();
    // Bytes 12..16 are unused, but the checksum covers them too.
    variants.extend((0..bytes.len()).step_by(3).map(|at| {
        let mut changed = bytes.clone();
        changed[at] ^= 0x10;
        changed
    }));
    variants.push([&bytes[..], b"x"].concat());
    variants.push(Vec::new());
    for (i, variant) in variants.iter().enumerate() {
        fs::write(&path, variant).unwrap();
        let cache = KernelCache::at(folder.path());
        assert_eq!(cache.get_or_compile(&source("a"), &fake).unwrap(), good, "variant {i}");
        assert_eq!(
            cache.stats(),
            CacheStats { misses: 1, compiles: 1, damaged: 1, ..CacheStats::default() },
            "variant {i}"
        );
        assert_eq!(fs::read(&path).unwrap(), bytes, "variant {i}");
    }
}

#[test]
fn an_entry_under_a_wrong_name_is_not_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::new();
    let cache = KernelCache::at(folder.path());
    cache.get_or_compile(&source("a"), &fake).unwrap();
    let other = path_of(folder.path(), &Key::of(&source("b"), "fake 1"));
    fs::copy(entries(folder.path()).remove(0), &other).unwrap();
    assert_eq!(cache.get_or_compile(&source("b"), &fake).unwrap().cubin, elf(b"b"));
    assert_eq!(cache.stats().damaged, 1);
}

#[test]
fn trouble_with_the_disk_is_counted_and_told_once_but_never_fatal() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "in the way").unwrap();
    let fake = Fake::new();
    let cache = KernelCache::at(file.join("below"));
    for text in ["a", "b", "a"] {
        cache.get_or_compile(&source(text), &fake).unwrap();
    }
    assert_eq!(cache.stats(), CacheStats { misses: 3, compiles: 3, write_failures: 3, ..CacheStats::default() });
    let warning = cache.warning().unwrap();
    assert!(warning.contains("cannot store") && warning.contains("GOSSAMER_CACHE_DIR"), "{warning}");
    assert_eq!(warning.lines().count(), 1);
    assert_eq!(cache.stats().to_string(), "0 kernels from the cache, 3 compiled, 3 not stored");

    // A folder where the entry should be: neither readable nor replaceable.
    let cache = KernelCache::at(folder.path());
    fs::create_dir(path_of(folder.path(), &Key::of(&source("a"), "fake 1"))).unwrap();
    cache.get_or_compile(&source("a"), &fake).unwrap();
    assert_eq!((cache.stats().damaged, cache.stats().write_failures), (1, 1));
    assert!(
        !entries(folder.path()).iter().any(|p| { p.file_name().unwrap().to_string_lossy().starts_with(TEMPORARY) })
    );
}

#[test]
fn a_disabled_cache_compiles_each_time_and_errors_pass_through() {
    let fake = Fake::new();
    let cache = KernelCache::disabled();
    cache.get_or_compile(&source("a"), &fake).unwrap();
    cache.get_or_compile(&source("a"), &fake).unwrap();
    assert!(cache.get_or_compile(&source("bad"), &fake).is_err());
    assert_eq!(cache.stats(), CacheStats { misses: 3, compiles: 3, ..CacheStats::default() });
    assert_eq!((fake.calls(), cache.folder(), cache.warning()), (3, None, None));
}

#[test]
fn a_failed_compile_stores_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let cache = KernelCache::at(folder.path());
    assert!(cache.get_or_compile(&source("bad"), &Fake::new()).is_err());
    assert!(entries(folder.path()).is_empty());
}

#[test]
fn the_longest_unused_go_first_and_foreign_files_stay() {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::new();
    let foreign = folder.path().join("notes.txt");
    fs::write(&foreign, [0; 100_000]).unwrap();
    let path = |text: &str| path_of(folder.path(), &Key::of(&source(text), "fake 1"));
    let unlimited = KernelCache::at(folder.path());
    for (text, seconds) in [("a", 5000), ("b", 4000), ("c", 3000)] {
        unlimited.get_or_compile(&source(text), &fake).unwrap();
        age(&path(text), seconds);
    }
    let each = fs::metadata(path("a")).unwrap().len();
    // A hit makes the oldest the newest.
    unlimited.get_or_compile(&source("a"), &fake).unwrap();
    let cache = KernelCache::at(folder.path()).with_capacity(3 * each + each / 2);
    let (old, fresh) = (folder.path().join(format!("{TEMPORARY}1")), folder.path().join(format!("{TEMPORARY}2")));
    for file in [&old, &fresh] {
        fs::write(file, "half").unwrap();
    }
    age(&old, 4000);
    cache.get_or_compile(&source("d"), &fake).unwrap();
    let left: Vec<_> = ["a", "b", "c", "d"].map(|t| path(t).exists()).into_iter().collect();
    assert_eq!(left, [true, false, true, true]);
    assert_eq!(cache.stats().evicted, 1);
    assert!(foreign.exists() && fresh.exists() && !old.exists());

    let tiny = KernelCache::at(folder.path()).with_capacity(1);
    tiny.get_or_compile(&source("e"), &fake).unwrap();
    assert!(path("e").exists() && !path("a").exists() && foreign.exists());
}

#[test]
fn threads_and_caches_on_one_folder_agree() {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::new();
    let texts: Vec<String> = (0..6).map(|i| format!("kernel {i}")).collect();
    let caches = [KernelCache::at(folder.path()), KernelCache::at(folder.path()).with_capacity(1500)];
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let (fake, texts, caches) = (&fake, &texts, &caches);
            scope.spawn(move || {
                for round in 0..20 {
                    let text = &texts[(thread + round) % texts.len()];
                    let compiled = caches[thread % 2].get_or_compile(&source(text), fake).unwrap();
                    assert_eq!(compiled.cubin, elf(text.as_bytes()));
                }
            });
        }
    });
    let stats = caches.each_ref().map(KernelCache::stats);
    for s in stats {
        assert_eq!((s.hits + s.misses, s.compiles, s.damaged, s.write_failures), (60, s.misses, 0, 0));
    }
    assert_eq!(fake.calls() as u64, stats[0].compiles + stats[1].compiles);
    for file in entries(folder.path()) {
        assert_eq!(file.extension().unwrap(), EXTENSION);
    }
}

#[test]
fn processes_on_one_folder_see_whole_entries_only() {
    // Each child runs this same test, told so by a variable, and hammers the folder.
    const FOLDER: &str = "GOSSAMER_TEST_CACHE_FOLDER";
    let work = |folder: &Path| {
        let fake = Fake::new();
        let cache = KernelCache::at(folder).with_capacity(2000);
        for round in 0..60 {
            let text = format!("kernel {}", round % 7);
            assert_eq!(cache.get_or_compile(&source(&text), &fake).unwrap().cubin, elf(text.as_bytes()));
        }
        let stats = cache.stats();
        assert_eq!((stats.damaged, stats.write_failures, stats.hits + stats.misses), (0, 0, 60));
    };
    if let Some(folder) = std::env::var_os(FOLDER) {
        let folder = Path::new(&folder);
        work(folder);
        fs::write(folder.join(format!("done-{}", std::process::id())), "").unwrap();
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let test = "cache::tests::processes_on_one_folder_see_whole_entries_only";
    let children: Vec<_> = (0..3)
        .map(|_| {
            let mut command = std::process::Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", test]).env(FOLDER, folder.path());
            command.stdout(std::process::Stdio::null()).spawn().unwrap()
        })
        .collect();
    work(folder.path());
    for mut child in children {
        assert!(child.wait().unwrap().success());
        assert!(folder.path().join(format!("done-{}", child.id())).exists(), "the child ran no test");
    }
}

#[test]
fn default_folders_follow_the_environment() {
    let folder = |vars: &[(&str, &str)]| {
        default_folder_with(&|n| vars.iter().find(|v| v.0 == n).map(|v| v.1.into())).map(|p| p.display().to_string())
    };
    let home = ("HOME", "/h");
    assert_eq!(folder(&[("GOSSAMER_CACHE_DIR", "/g"), ("XDG_CACHE_HOME", "/x"), home]).as_deref(), Some("/g"));
    assert_eq!(
        folder(&[("GOSSAMER_CACHE_DIR", ""), ("XDG_CACHE_HOME", "/x"), home]).as_deref(),
        Some("/x/gossamer/cubin")
    );
    assert_eq!(folder(&[("XDG_CACHE_HOME", "relative"), home]).as_deref(), Some("/h/.cache/gossamer/cubin"));
    assert_eq!(folder(&[]), None);
}

#[test]
fn nvrtc_kernels_survive_the_disk() {
    let Some(nvrtc) = nvrtc::for_tests() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let source = source(
        "extern \"C\" __global__ void k(float* p) { __shared__ float s[32]; s[threadIdx.x] = p[threadIdx.x]; __syncthreads(); p[threadIdx.x] = s[31 - threadIdx.x]; }",
    );
    let cache = KernelCache::at(folder.path());
    let fresh = cache.get_or_compile(&source, &nvrtc).unwrap();
    assert_eq!(cache.get_or_compile(&source, &nvrtc).unwrap(), fresh);
    assert_eq!(cache.stats().to_string(), "1 kernels from the cache, 1 compiled");
    assert_eq!(fresh.kernel("k").unwrap().shared_bytes, 128);
}
