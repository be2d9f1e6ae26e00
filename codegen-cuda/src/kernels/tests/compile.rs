//! Compiles every kernel that the cases need and checks what came out.

use std::collections::BTreeMap;

use super::cases::{self, Case};
use crate::lower::Launch;
use crate::nvrtc::{self, Source};
use crate::resources::{self, Expect, Instr, sass};

/// Kernels of one translation unit: the compiler's start-up is most of the time of a small one.
const UNIT: usize = 24;

/// Kernels by entry.
fn kernels<'a>(cases: impl IntoIterator<Item = &'a Case>) -> BTreeMap<String, Launch> {
    let mut out: BTreeMap<String, Launch> = BTreeMap::new();
    for case in cases {
        let lowered = case.lower().unwrap_or_else(|e| panic!("{}: {e}", case.name));
        assert!(!lowered.launches.is_empty(), "{}", case.name);
        for launch in lowered.launches {
            let entry = launch.kernel.entry.clone();
            if let Some(known) = out.get(&entry) {
                assert_eq!(known.kernel.text, launch.kernel.text, "{entry}");
                assert_eq!((known.block, known.shared), (launch.block, launch.shared), "{entry}");
            }
            out.insert(entry, launch);
        }
    }
    out
}

/// Compiles kernels and checks each: entry there, no spills, within limits, matrix instructions where they are meant.
fn check(kernels: &BTreeMap<String, Launch>) {
    let Some(nvrtc) = nvrtc::for_tests() else { return };
    let Some(nvdisasm) = sass::Nvdisasm::for_tests() else { return };
    let mut failures = Vec::new();
    let launches: Vec<_> = kernels.values().collect();
    for unit in launches.chunks(UNIT) {
        // Each text repeats the prelude; a namespace apiece keeps them apart, and extern "C" keeps the entries' names.
        let texts = unit.iter().enumerate().map(|(i, l)| format!("namespace k{i} {{\n{}\n}}\n", l.kernel.text));
        let compiled = match nvrtc.compile(&Source::new("unit", texts.collect::<String>())) {
            Ok(c) => c,
            Err(e) => {
                failures.push(e.to_string());
                continue;
            }
        };
        let histograms = nvdisasm.histograms(&compiled.cubin).unwrap();
        for launch in unit {
            let entry = &launch.kernel.entry;
            let expect = Expect { dynamic_shared: launch.shared, ..Expect::new(entry, launch.block) };
            match resources::check(&compiled, &expect) {
                Ok(report) => println!("{report}"),
                Err(e) => failures.push(e.to_string()),
            }
            let wide = launch.kernel.text.contains("wgmma.mma_async");
            if wide && !histograms[entry].keys().any(|opcode| opcode.starts_with("HGMMA")) {
                failures.push(format!("{entry} holds no warpgroup multiply"));
            }
            let tensor = ["mma_k32<In>", "mma(bf16(), acc"].iter().any(|m| launch.kernel.text.contains(m));
            if tensor && !histograms[entry].keys().any(|opcode| opcode.starts_with("HMMA")) {
                failures.push(format!("{entry} holds no {}", Instr::Hmma.mnemonic()));
            }
        }
    }
    assert!(failures.is_empty(), "{} of {} kernels:\n{}", failures.len(), kernels.len(), failures.join("\n"));
}

#[test]
fn every_kernel_compiles_without_spills() {
    check(&kernels(&cases::all()));
}

#[test]
fn attention_of_prompts_compiles_without_spills() {
    check(&kernels(&cases::prompts()));
}

#[test]
fn kernels_of_experts_for_prompts_compile_without_spills() {
    check(&kernels(&super::moe::prompts()));
}

#[test]
fn kernels_of_two_products_with_experts_compile_without_spills() {
    check(&kernels(super::pair::cases().iter().chain(&super::pair::full_size())));
}

#[test]
fn full_size_kernels_compile_without_spills() {
    check(&kernels(&cases::full_size()));
}

#[test]
fn kernels_for_prompts_compile_without_spills() {
    check(&kernels(&super::fused::prompts()));
}
