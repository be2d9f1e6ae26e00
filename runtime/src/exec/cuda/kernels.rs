//! Kernels: from text to functions, through the cubin cache and NVRTC, each text once.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use gossamer_codegen_cuda::cache::{CacheStats, KernelCache};
use gossamer_codegen_cuda::lower::KernelSource;
use gossamer_codegen_cuda::nvrtc::{Nvrtc, Source};

use super::bind::kernel_error;
use crate::cuda::{Carveout, Device, Function, Module};
use crate::exec::ExecError;
use crate::phases::{Phase, Phases};
use crate::workers;

/// Loaded kernels of one device.
pub struct Kernels {
    nvrtc: Nvrtc,
    cache: KernelCache,
    loaded: BTreeMap<Arc<KernelSource>, Function>,
}

impl Kernels {
    /// Finds NVRTC; nothing is compiled yet. Without a folder nothing is cached.
    ///
    /// # Errors
    /// No usable NVRTC.
    pub fn new(folder: Option<PathBuf>) -> Result<Kernels, ExecError> {
        let nvrtc = Nvrtc::load().map_err(|e| kernel_error(e.to_string()))?;
        let cache = folder.map_or_else(KernelCache::disabled, KernelCache::at);
        Ok(Kernels { nvrtc, cache, loaded: BTreeMap::new() })
    }

    /// Starts compiling, beside what this process does meanwhile, the kernels that the cache does not hold. Wait for it before [`Kernels::load`], which compiles
    /// what is still missing.
    pub fn compile_beside(&self, kernels: Vec<Arc<KernelSource>>) -> Option<std::thread::JoinHandle<()>> {
        let kernels: Vec<_> = kernels.into_iter().filter(|k| !self.loaded.contains_key(k)).collect();
        let folder = self.cache.folder().map(PathBuf::from);
        let nvrtc = self.nvrtc.clone();
        let work = move || {
            let cache = folder.map_or_else(KernelCache::disabled, KernelCache::at);
            workers::compile(&kernels, &cache, &nvrtc, &|_| {});
        };
        std::thread::Builder::new().name("compile".into()).spawn(work).ok()
    }

    /// Makes kernels ready to launch with up to the given bytes of dynamic shared memory. `progress` gets (kernels done, kernels missing at the start,
    /// entry name of the one that is next).
    ///
    /// # Errors
    /// A text that does not compile, or an image that the device refuses.
    pub fn load(
        &mut self,
        device: &Device,
        needed: &BTreeMap<Arc<KernelSource>, u32>,
        phases: &Phases,
        progress: &dyn Fn(usize, usize, &str),
    ) -> Result<(), ExecError> {
        let missing: Vec<Arc<KernelSource>> =
            needed.keys().filter(|k| !self.loaded.contains_key(*k)).cloned().collect();
        let beside = |done: usize| {
            if let Some(next) = missing.get(done) {
                progress(done, missing.len(), &next.entry);
            }
        };
        phases.time(Phase::Compile, || workers::compile(&missing, &self.cache, &self.nvrtc, &beside));
        for (i, kernel) in missing.iter().enumerate() {
            progress(i, missing.len(), &kernel.entry);
            let source = Source::new(&kernel.entry, &kernel.text);
            let compiled = phases.time(Phase::Compile, || self.cache.get_or_compile(&source, &self.nvrtc));
            let compiled = compiled.map_err(|e| kernel_error(e.to_string()))?;
            let begun = Instant::now();
            let module = Module::load(device, &kernel.entry, &compiled.cubin)?;
            let params = compiled.kernel(&kernel.entry).map(|k| k.params);
            let mut function = module.function_of(&kernel.entry, params)?;
            // One split of L1 and shared memory for all: changing it between kernels drains the multiprocessor, and dependent kernels must fit side by side.
            function.configure(needed[kernel], Carveout::Max)?;
            phases.add(Phase::Modules, begun.elapsed());
            self.loaded.insert(kernel.clone(), function);
        }
        if !missing.is_empty() {
            progress(missing.len(), missing.len(), "");
        }
        for (kernel, shared) in needed {
            if let Some(function) = self.loaded.get_mut(kernel)
                && *shared > function.limits().max_dynamic_shared
            {
                function.configure(*shared, Carveout::Max)?;
            }
        }
        Ok(())
    }

    /// A loaded kernel.
    pub fn get(&self, kernel: &Arc<KernelSource>) -> Option<&Function> {
        self.loaded.get(kernel)
    }

    /// What the cubin cache did.
    pub fn cache_stats(&self) -> CacheStats {
        self.cache.stats()
    }

    /// Trouble with the cache folder, as one line.
    pub fn warning(&self) -> Option<String> {
        self.cache.warning()
    }
}
