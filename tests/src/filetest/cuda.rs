//! Mode `cuda`: the text of the kernels of each function.
//!
//! The output of a function is, for each of its launches in order, a line `// kernel N: ENTRY, GRID blocks of BLOCK threads` and the whole text; `check`, `next` and `not` are matched against it.
//! Sizes come from `set:`; one that is not set has its greatest value. With NVRTC every text is compiled too, and must not spill.

use std::collections::{BTreeMap, BTreeSet};

use gossamer_codegen_cuda::cache::{KernelCache, default_folder};
use gossamer_codegen_cuda::nvrtc::{self, Source as Text};

use super::compiled::{Settings, compiled, lowered, steps};
use super::matcher::check_with;
use super::modes::Stop;
use super::{Failure, Kind, Source};

pub(super) fn run(source: &Source, args: &str) -> Result<(), Stop> {
    let (module, options) = compiled(source, "cuda", args, &Settings::of(source)?)?;
    let mut outputs: BTreeMap<String, String> = BTreeMap::new();
    let mut texts: BTreeMap<String, String> = BTreeMap::new();
    for f in &module.funcs {
        let mut out = String::new();
        let mut number = 0;
        for id in steps(f).1 {
            let made =
                lowered(&module, f, id, &options.sizes).map_err(|e| Failure::new(0, format!("@{}: {e}", f.name)))?;
            if let Some(gemm) = &made.library {
                out.push_str(&format!("// kernel {number}: {}, a library call\n", gemm.name()));
                number += 1;
            }
            for l in made.launches {
                let [x, y, z] = l.grid;
                let entry = &l.kernel.entry;
                out.push_str(&format!(
                    "// kernel {number}: {entry}, {x} x {y} x {z} blocks of {} threads\n{}\n",
                    l.block, l.kernel.text
                ));
                texts.insert(entry.clone(), l.kernel.text.clone());
                number += 1;
            }
        }
        outputs.insert(f.name.to_string(), out);
    }
    let all: String = outputs.values().cloned().collect();
    let directives = source.of(&[Kind::Check, Kind::Next, Kind::Not]);
    let lines = |func: Option<&str>| match func {
        None => Some(all.lines().collect::<Vec<_>>()),
        Some(name) => outputs.get(name).map(|o| o.lines().collect()),
    };
    let mut failures = check_with(&directives, &lines);
    // The text is too long to show; what is looked for says enough.
    failures.iter_mut().for_each(|f| f.message = f.message.lines().next().unwrap_or_default().to_string());
    failures.extend(compile(&texts));
    if failures.is_empty() { Ok(()) } else { Err(Stop::Failed(failures)) }
}

/// What is wrong with texts once they are compiled; nothing without NVRTC.
fn compile(texts: &BTreeMap<String, String>) -> BTreeSet<Failure> {
    let mut failures = BTreeSet::new();
    let Some(nvrtc) = nvrtc::for_tests() else { return failures };
    let cache = default_folder().map_or_else(KernelCache::disabled, KernelCache::at);
    for (entry, text) in texts {
        match cache.get_or_compile(&Text::new(entry, text), &nvrtc) {
            Err(e) => drop(failures.insert(Failure::new(0, format!("{entry}: {e}")))),
            Ok(compiled) => {
                let spills = compiled.kernel(entry).map(|k| k.spill_store_bytes + k.spill_load_bytes);
                if spills != Some(0) {
                    let found = spills.map_or("is not in the image".to_string(), |n| format!("spills {n} bytes"));
                    failures.insert(Failure::new(0, format!("{entry} {found}")));
                }
            }
        }
    }
    failures
}
