//! `gossamer compile`: fills the kernel cache. Needs NVRTC, but no GPU.

use gossamer_codegen_cuda::cache::{self, KernelCache};
use gossamer_codegen_cuda::nvrtc::{Nvrtc, Source};
use gossamer_passes::Options;
use serde_json::json;

use super::args::CompileArgs;
use super::output::{self, Failure};
use crate::engine::EngineOptions;
use crate::exec::MXFP4_LAYOUT;
use crate::session::{GPU_CHUNK, PAGE};

pub fn compile(args: &CompileArgs) -> Result<(), Failure> {
    if args.max_seqs == 0 {
        return Err(Failure::Usage("--max-seqs is 0, expected at least 1".into()));
    }
    let config = super::pipeline::config(&args.model)?;
    let options = EngineOptions {
        context: config.context(),
        chunk: GPU_CHUNK.max(args.max_seqs).min(config.context().max(args.max_seqs)),
        max_seqs: args.max_seqs,
        page: PAGE,
        kv_tokens: None,
        passes: super::pipeline::passes(&args.passes)?,
        pass_options: Options { mxfp4_layout: Some(MXFP4_LAYOUT.into()), ..Options::default() },
        fuse: true,
    };
    let kernels = crate::kernels::of_model(&config, &options)?.map_err(Failure::from_error)?;
    if let Some(dir) = &args.emit {
        output::folder(dir)?;
        for k in kernels.values() {
            output::file(&dir.join(format!("{}.cu", k.entry)), k.text.as_bytes())?;
        }
    }
    let nvrtc = Nvrtc::load().map_err(Failure::from_error)?;
    let cache = cache::default_folder().map_or_else(KernelCache::disabled, KernelCache::at);
    let bar = super::bar::count("compiling", kernels.len() as u64);
    let start = std::time::Instant::now();
    let (mut table, mut bytes) = (Vec::new(), 0);
    let all: Vec<_> = kernels.values().cloned().collect();
    let beside = crate::workers::compile(&all, &cache, &nvrtc, &|n| bar.set_position(n as u64)) as u64;
    for (i, k) in kernels.values().enumerate() {
        let compiled = cache.get_or_compile(&Source::new(&k.entry, &k.text), &nvrtc).map_err(Failure::from_error)?;
        bytes += compiled.cubin.len();
        let r = compiled.kernel(&k.entry);
        table.push(json!({
            "entry": k.entry, "cubin_bytes": compiled.cubin.len(),
            "registers": r.map(|r| r.registers), "shared_bytes": r.map(|r| r.shared_bytes),
            "spill_bytes": r.map(|r| r.spill_store_bytes + r.spill_load_bytes),
        }));
        bar.set_position(i as u64 + 1);
    }
    bar.finish_and_clear();
    if let Some(warning) = cache.warning() {
        note!("note: {warning}");
    }
    let stats = cache.stats();
    if stats.write_failures > 0 || cache.folder().is_none() {
        let n = if cache.folder().is_none() { stats.compiles } else { stats.write_failures };
        return Err(Failure::Failed(format!(
            "{n} kernels could not be stored; set GOSSAMER_CACHE_DIR to a folder that can be written"
        )));
    }
    let folder = cache.folder().map_or("nowhere".to_string(), |f| f.display().to_string());
    match args.json {
        true => output::json(&json!({
            "model": args.model, "folder": folder, "kernels": table, "compiled": stats.compiles + beside, "hits": stats.hits.saturating_sub(beside),
            "seconds": start.elapsed().as_secs_f64(),
        })),
        false => output::text(&format!(
            "{}: {} kernels, {} bytes of cubins in {folder}: {} compiled, {} there already, {:.1} s\n",
            args.model,
            kernels.len(),
            bytes,
            stats.compiles + beside,
            stats.hits.saturating_sub(beside),
            start.elapsed().as_secs_f64()
        )),
    }
}
