use super::rules::{How, RULES};
use super::*;
use crate::cost::Machine;
use crate::{bucket, compile, manager};
use gossamer_ir::template::{Order, TEMPLATES};
use gossamer_models::config::GptOssConfig;
use gossamer_models::{gpt_oss, presets, step};

fn options(spaces: &Spaces, t: usize, s: usize) -> Options {
    Options {
        mxfp4_layout: Some("mx64".into()),
        sizes: bucket::sizes(t, s, s, 1024, 16),
        spaces: spaces.clone(),
        ..Options::default()
    }
}

fn program(head: step::Head) -> Module {
    let o = step::StepOptions { head, max_tokens: 8192, max_seqs: 256, context: 1024, page: 64 };
    gpt_oss::build(&presets::gpt_oss_120b(), &o).unwrap().module
}

fn templates(report: &Report, func: &str) -> Vec<String> {
    let f = report.funcs.iter().find(|f| &*f.name == func).unwrap();
    f.kernels.iter().map(|k| k.kernel.summary()).collect()
}

fn fused(module: Module, options: &Options) -> (Module, Report) {
    let (m, trace) = compile(module, &manager::default_pipeline(), options).unwrap_or_else(|e| panic!("{e}"));
    (m, trace.passes.into_iter().find_map(|p| p.fusion).unwrap())
}

#[test]
fn decode_is_six_kernels_a_layer() {
    let (module, report) = fused(program(step::Head::Sample), &options(&Spaces::default(), 1, 1));
    for layer in ["layer_window", "layer_full"] {
        assert_eq!(
            templates(&report, layer),
            [
                "stream[rms_norm cast | matmul | add split rope cast rope cast cast kv_write]",
                "attention[attention]",
                "stream[matmul | add add]",
                "router[rms_norm cast | matmul | add topk softmax]",
                "moe_stream[dequant | moe_matmul | gather_rows add swiglu cast]",
                "moe_stream[dequant | moe_matmul | gather_rows add cast cast moe_combine add]",
            ]
        );
    }
    assert!(templates(&report, "step").len() <= 4, "{:?}", templates(&report, "step"));
    gossamer_ir::verify::roundtrip(&module).unwrap();
}

#[test]
fn prefill_is_at_most_nine_launches_a_layer() {
    let (_, report) = fused(program(step::Head::Sample), &options(&Spaces::default(), 2048, 1));
    for layer in ["layer_window.given.giving", "layer_full.given.giving", "layer_full.given.rows"] {
        let f = report.funcs.iter().find(|f| &*f.name == layer).unwrap();
        // One launch more lists the rows by expert for both matmuls.
        assert!(f.kernels.len() < 8, "{:?}", templates(&report, layer));
        assert!(f.exact);
    }
}

#[test]
fn one_space_serves_every_bucket_and_the_same_text_comes_out() {
    let module = program(step::Head::Sample);
    let shared = Spaces::default();
    for (t, s) in [(1, 1), (4, 4), (256, 256), (512, 1), (8192, 8)] {
        let start = std::time::Instant::now();
        let (a, _) = fused(module.clone(), &options(&shared, t, s));
        let first = start.elapsed();
        let (b, _) = fused(module.clone(), &options(&Spaces::default(), t, s));
        println!("{t} {s}: {first:?}, alone {:?}", start.elapsed() - first);
        assert_eq!(a.to_string(), b.to_string());
    }
}

#[test]
fn the_library_is_used_when_asked_for() {
    let module = program(step::Head::Greedy);
    let shared = Spaces::default();
    let calls = |options: &Options| {
        let (_, report) = fused(module.clone(), options);
        let kernels = report.funcs.iter().flat_map(|f| &f.kernels).map(|k| k.kernel.summary());
        kernels.filter(|s| s.starts_with("cublaslt")).collect::<Vec<_>>()
    };
    let prompt = options(&shared, 2048, 1);
    assert_eq!(calls(&prompt), [""; 0]);
    let asked = Options { enabled_rules: vec!["seed/cublaslt".into()], ..prompt };
    // Where nothing else would take a matmul of many rows, the library does, and only there.
    let alone = Options {
        disabled_rules: vec!["seed/tile".into(), "seed/gemm".into(), "seed/gemm-pieces".into()],
        ..asked.clone()
    };
    assert!(calls(&alone).iter().all(|s| s == "cublaslt[matmul]"));
    assert!(calls(&alone).len() >= 4, "{:?}", calls(&alone));
    assert_eq!(calls(&Options { sizes: options(&shared, 1, 1).sizes, ..asked }), [""; 0]);
}

/// The experts of few rows are one kernel where it is asked for and worth its price, and two wherever it is not or cannot be.
#[test]
fn the_experts_are_one_kernel_when_asked_for() {
    let module = program(step::Head::Greedy);
    let shared = Spaces::default();
    // As measured it never is.
    let mut cheap = Machine::default();
    cheap.templates.get_mut("moe_pair").unwrap().hand_over_us = 0.0;
    let options = |shared: &Spaces, t: usize, s: usize| Options { machine: cheap.clone(), ..options(shared, t, s) };
    let pair = "moe_pair[dequant | moe_matmul | gather_rows add swiglu cast then dequant | moe_matmul | gather_rows add cast cast moe_combine add]";
    let experts = |options: &Options| {
        let (module, report) = fused(module.clone(), options);
        gossamer_ir::verify::roundtrip(&module).unwrap_or_else(|e| panic!("{e}"));
        let of = |f: &&FuncReport| f.name.starts_with("layer_full");
        let all = templates(&report, &report.funcs.iter().find(of).unwrap().name);
        let experts = all.into_iter().filter(|s| s.starts_with("moe_")).collect::<Vec<_>>();
        (experts, report)
    };
    for (t, s, asked) in [(1, 1, true), (4, 4, true), (8, 8, true), (16, 16, false), (4, 1, false), (512, 1, false)] {
        let plain = options(&shared, t, s);
        let (without, _) = experts(&plain);
        assert!(without.len() == 2 && without.iter().all(|k| !k.starts_with("moe_pair")), "{t}: {without:?}");
        let (with, report) = experts(&Options { enabled_rules: vec!["chain/moe-pair".into()], ..plain.clone() });
        assert_eq!(with, if asked { vec![pair.to_string()] } else { without }, "{t} {s}");
        if !asked {
            continue;
        }
        // `explain` shows how both stages grew, and then that they were put together.
        let f = report.funcs.iter().find(|f| &*f.name == "layer_full").unwrap();
        let kernel = f.kernels.iter().find(|k| k.kernel.depth() == 2).unwrap();
        let rules: Vec<&str> = kernel.history.iter().map(|o| o.rule).collect();
        assert_eq!(rules.iter().filter(|r| **r == "seed/moe-stream").count(), 2, "{rules:?}");
        assert_eq!(rules.last(), Some(&"chain/moe-pair"));
        assert_eq!(kernel.terms.as_ref().map(|t| t.launches), Some(1));
    }
    // What code generation refuses is replaced.
    let refuses = Refuse(std::sync::Arc::new(|k, _, _, _| (k.depth() > 1).then(|| "no text".to_string())));
    let refused =
        Options { enabled_rules: vec!["chain/moe-pair".into()], refuses: Some(refuses), ..options(&shared, 1, 1) };
    let (two, report) = experts(&refused);
    assert_eq!(two.len(), 2, "{two:?}");
    assert!(report.funcs.iter().any(|f| f.refused.iter().any(|(k, why)| k.depth() == 2 && why == "no text")));
}

/// Whatever the sizes, a row of a prompt is summed in one chain and a decoded row in pieces, and rows that get logits in pieces in both.
#[test]
fn prompts_and_decoded_rows_keep_their_orders() {
    let large = presets::gpt_oss_120b();
    // Small enough that every template is the fastest at some size.
    let small =
        GptOssConfig { hidden: 128, intermediate: 96, heads: 4, kv_heads: 2, experts: 8, vocab: 512, ..large.clone() };
    for config in [large, small] {
        keep_their_orders(&config);
    }
}

fn keep_their_orders(config: &GptOssConfig) {
    let o = step::StepOptions { head: step::Head::Sample, max_tokens: 8192, max_seqs: 256, context: 1024, page: 64 };
    let module = gpt_oss::build(config, &o).unwrap().module;
    let shared = Spaces::default();
    for (t, s) in [(1, 1), (8, 8), (64, 64), (256, 256), (2, 1), (16, 1), (192, 1), (700, 3), (8192, 8)] {
        let (_, report) = fused(module.clone(), &options(&shared, t, s));
        for kernel in report.funcs.iter().flat_map(|f| &f.kernels).map(|k| &k.kernel) {
            let template = gossamer_ir::template::template(kernel.template()).unwrap();
            let main = kernel.main();
            let op = main.graph.op(main.results[0].op);
            let rows = op.results[0].as_tensor().map(|t| t.dims[0].to_string()).unwrap_or_default();
            if !matches!(op.kind, OpKind::MatMul | OpKind::MoeMatMul) || kernel.has(OpKind::TopK) {
                continue;
            }
            let on =
                |t: &str| RULES.iter().any(|r| r.info.off.is_none() && matches!(r.how, How::Seed(name) if name == t));
            let there = TEMPLATES.iter().any(|t| t.order == Order::Chain && t.main.contains(&op.kind) && on(t.name));
            let chain = there && t != s && rows == "T";
            assert_eq!(template.order == Order::Chain, chain, "{t} {s}: {}", kernel.summary());
        }
    }
}
