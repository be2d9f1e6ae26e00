//! Every op on the GPU against the interpreter: `GOSSAMER_REQUIRE_GPU=1` makes a missing GPU a failure instead of a skip.
//!
//! Scenarios are built and evaluated on the CPU in any case, so that a mistake in one shows on every machine.

use std::collections::BTreeSet;

use gossamer_codegen_cuda::cache::KernelCache;
use gossamer_codegen_cuda::nvrtc::{self, Source};
use gossamer_ir::template::TEMPLATES;
use gossamer_ir::{Class, OpKind};
use gossamer_runtime::paths;
use gossamer_tests::gpu::{Bench, Scenario, cases, fused, library, name, stateful};

fn scenarios(classes: &[Class]) -> Vec<Scenario> {
    OpKind::ALL.iter().filter(|k| classes.contains(&k.class())).flat_map(|k| cases::of(*k)).collect()
}

/// Classes that tests below run, beside state.
const GROUPS: [&[Class]; 7] = [
    &[Class::Leaf, Class::View],
    &[Class::Elementwise],
    &[Class::Reduction],
    &[Class::Contraction],
    &[Class::Quant, Class::Indexing],
    &[Class::Composite],
    &[Class::Sampling],
];

macro_rules! gpu_tests {
    ($($name:ident => $scenarios:expr;)*) => {$(
        #[test]
        fn $name() {
            if let Some(mut bench) = Bench::open() {
                bench.check(&$scenarios);
            }
        }
    )*};
}

gpu_tests! {
    leaves_and_views => scenarios(GROUPS[0]);
    elementwise => scenarios(GROUPS[1]);
    reductions => scenarios(GROUPS[2]);
    contractions => scenarios(GROUPS[3]);
    quant_and_indexing => scenarios(GROUPS[4]);
    composites => scenarios(GROUPS[5]);
    sampling => scenarios(GROUPS[6]);
    attention_over_a_cache => stateful::attention();
    counts_and_penalties => stateful::counts();
    fused_kernels => fused::all();
}

#[test]
fn library_calls() {
    if library::present()
        && let Some(mut bench) = Bench::open()
    {
        bench.check(&library::matmuls());
    }
}

#[test]
fn every_op_is_covered() {
    let apart = [OpKind::KvWrite, OpKind::Attention, OpKind::CountTokens, OpKind::Penalize];
    // Fused kernels have scenarios of their own, `fused`.
    let bound = [OpKind::Param, OpKind::Weight, OpKind::Call, OpKind::Kernel];
    for kind in OpKind::ALL.iter().filter(|k| !apart.contains(k) && !bound.contains(k)) {
        assert!(!cases::of(*kind).is_empty(), "{} has no scenario", kind.name());
        assert!(GROUPS.iter().any(|g| g.contains(&kind.class())), "{} is in no group", kind.name());
    }
}

fn all() -> Vec<Scenario> {
    let mut all = scenarios(&GROUPS.concat());
    all.extend(stateful::attention());
    all.extend(stateful::counts());
    all.extend(library::matmuls());
    all.extend(fused::all());
    all
}

/// Every scenario has kernels; with NVRTC, `GOSSAMER_COMPILE_SCENARIOS=1` compiles them into the kernel cache, which may then be taken to the machine with
/// the GPU.
#[test]
fn scenarios_have_kernels() {
    let mut kernels = BTreeSet::new();
    let mut failures = Vec::new();
    for s in all() {
        match s.kernels() {
            Ok(k) => kernels.extend(k),
            Err(e) => failures.push(format!("{}: {e}", s.label)),
        }
    }
    println!("{} kernels", kernels.len());
    let names: BTreeSet<&str> = kernels.iter().map(|k| name(k)).collect();
    if std::env::var_os("GOSSAMER_LIST_KERNELS").is_some_and(|v| v == "1") {
        names.iter().for_each(|n| println!("{n}"));
    }
    // A call of a library has no text, and what runs by itself has that of its op.
    let templates = || TEMPLATES.iter().map(|t| t.name).filter(|t| !matches!(*t, "cublaslt" | "single"));
    let of = |name: &str| templates().filter(|t| name[3..].starts_with(t)).max_by_key(|t| t.len());
    let made: BTreeSet<&str> = names.iter().filter_map(|n| of(n)).collect();
    let missing = templates().filter(|t| !made.contains(t));
    failures.extend(missing.map(|t| format!("template `{t}`: no scenario makes a kernel of it")));
    assert!(failures.is_empty(), "{} scenarios without kernels:\n  {}", failures.len(), failures.join("\n  "));
    if std::env::var_os("GOSSAMER_COMPILE_SCENARIOS").is_none_or(|v| v != "1") {
        return;
    }
    let Some(nvrtc) = nvrtc::for_tests() else { return };
    let cache = paths::kernel_cache().map_or_else(KernelCache::disabled, KernelCache::at);
    for kernel in &kernels {
        if let Err(e) = cache.get_or_compile(&Source::new(&kernel.entry, &kernel.text), &nvrtc) {
            failures.push(e.to_string());
        }
    }
    println!("{}", cache.stats());
    assert!(failures.is_empty(), "{} kernels do not compile:\n  {}", failures.len(), failures.join("\n  "));
}

/// Labels seed the numbers and name failures: no two may be equal. Small scenarios are evaluated.
#[test]
fn scenarios_evaluate_on_the_cpu() {
    let all = all();
    let mut labels: Vec<&str> = all.iter().map(|s| s.label.as_str()).collect();
    labels.sort_unstable();
    let twice = labels.windows(2).find(|w| w[0] == w[1]).map(|w| w[0]);
    assert_eq!(twice, None, "two scenarios of one name");
    let mut evaluated = 0;
    for s in &all {
        let inputs = s.steps.iter().flat_map(|s| s.inputs.values());
        let elements: usize = inputs.chain(s.weights.values()).map(|t| t.elements()).sum();
        if elements < 20_000 {
            evaluated += 1;
            if let Err(e) = s.reference() {
                panic!("{}: {e}", s.label);
            }
        }
    }
    println!("{} scenarios, {evaluated} evaluated", all.len());
}
