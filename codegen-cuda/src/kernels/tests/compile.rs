//! Compiles every kernel that the cases need and checks what came out.

use std::collections::BTreeMap;

use super::cases::{self, Case};
use crate::lower::Launch;
use crate::nvrtc::{self, Source};
use crate::resources::{self, Expect, Instr, sass};

/// Kernels by entry, and the launch that needs most shared memory.
fn kernels(cases: &[Case]) -> BTreeMap<String, Launch> {
    let mut out: BTreeMap<String, Launch> = BTreeMap::new();
    for case in cases {
        let lowered = case.lower().unwrap_or_else(|e| panic!("{}: {e}", case.name));
        assert!(!lowered.launches.is_empty(), "{}", case.name);
        for launch in lowered.launches {
            let entry = launch.kernel.entry.clone();
            if let Some(known) = out.get(&entry) {
                assert_eq!(known.kernel.text, launch.kernel.text, "{entry}");
            }
            out.insert(entry, launch);
        }
    }
    out
}

fn check(kernels: &BTreeMap<String, Launch>) {
    let Some(nvrtc) = nvrtc::for_tests() else { return };
    let nvdisasm = sass::Nvdisasm::for_tests();
    let mut failures = Vec::new();
    for (entry, launch) in kernels {
        let text = &launch.kernel.text;
        let compiled = match nvrtc.compile(&Source::new(entry, text.clone())) {
            Ok(c) => c,
            Err(e) => {
                failures.push(format!("{e}"));
                continue;
            }
        };
        let tensor = text.contains("mma_k32<") && !entry.ends_with("_f");
        let expect = Expect {
            dynamic_shared: launch.shared,
            must_contain: if tensor { &[Instr::Hmma] } else { &[] },
            ..Expect::new(entry, launch.block)
        };
        match resources::check(&compiled, &expect) {
            Ok(report) => println!("{report}"),
            Err(e) => failures.push(e.to_string()),
        }
        if let (true, Some(nvdisasm)) = (tensor, &nvdisasm)
            && let Err(e) = sass::check_instructions(&compiled.cubin, &expect, nvdisasm)
        {
            failures.push(e.to_string());
        }
    }
    assert!(failures.is_empty(), "{} of {} kernels:\n{}", failures.len(), kernels.len(), failures.join("\n"));
}

#[test]
fn every_kernel_compiles_without_spills() {
    check(&kernels(&cases::all()));
}

/// Writes every kernel's text to the folder named by `GOSSAMER_DUMP_KERNELS`, to read them.
#[test]
#[ignore = "writes files; for people"]
fn dump() {
    let Some(folder) = std::env::var_os("GOSSAMER_DUMP_KERNELS") else { return };
    std::fs::create_dir_all(&folder).unwrap();
    for (entry, launch) in kernels(&cases::all()) {
        std::fs::write(std::path::Path::new(&folder).join(format!("{entry}.cu")), &launch.kernel.text).unwrap();
    }
}
