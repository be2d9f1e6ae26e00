//! What holds for every text, and errors.

use gossamer_ir::{Attr, OpKind};

use super::cases::{self, *};
use crate::lower::{Launch, LowerError};

fn entries(launches: &[Launch]) -> Vec<&str> {
    launches.iter().map(|l| l.kernel.entry.as_str()).collect()
}

#[test]
fn texts_are_whole_deterministic_and_named_after_themselves() {
    for case in cases::all().iter().chain(&cases::full_size()).chain(&cases::prompts()) {
        let (first, again) = (case.lower().unwrap(), case.lower().unwrap());
        for (a, b) in first.launches.iter().zip(&again.launches) {
            assert_eq!(a.kernel, b.kernel, "{}", case.name);
            let (entry, text) = (&a.kernel.entry, &a.kernel.text);
            assert!(!text.contains("${"), "{}: {text}", case.name);
            assert!(text.contains(&format!("\n{entry}(")), "{}", case.name);
            assert!(!text.contains("#include"), "{}", case.name);
            assert!(
                entry.starts_with("gs_") && entry.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'),
                "{entry}"
            );
            assert_eq!(a.grid[1..], [1, 1]);
            assert!(a.grid[0] > 0 && a.block > 0 && a.block <= 1024);
        }
    }
}

#[test]
fn symbols_are_arguments_not_text() {
    for case in cases::all().iter_mut() {
        // One more token stays within the same template everywhere.
        let Some(tokens) = case.sizes.get("T").copied().filter(|t| ![8, 16, 32, 64].contains(t)) else { continue };
        // One row has a kernel of its own, and so have small numbers of rows of experts.
        let of_experts = case.op.attrs.kernel().is_some_and(|k| k.has(OpKind::MoeMatMul));
        if case.op.kind == OpKind::Kernel && (tokens == 1 || of_experts && ![6, 20, 70].contains(&tokens)) {
            continue;
        }
        let before = case.lower().unwrap();
        case.sizes.insert("T".into(), tokens + 1);
        let after = case.lower().unwrap();
        let grouped = case.op.kind == OpKind::MoeMatMul;
        if !grouped {
            assert_eq!(entries(&before.launches), entries(&after.launches), "{}", case.name);
        }
        for (a, b) in before.launches.iter().zip(&after.launches) {
            if a.kernel.entry == b.kernel.entry {
                assert_eq!((a.block, a.shared), (b.block, b.shared));
            }
        }
    }
    let moe = |tokens| {
        let operands = vec![t(BF16, "T 2880"), t(BF16, "32 5760 2880"), t(I32, "T 4")];
        plain(OpKind::MoeMatMul, operands, [], &format!("T={tokens}")).lower().unwrap()
    };
    assert_eq!(entries(&moe(700).launches), entries(&moe(2000).launches));
    assert_eq!(entries(&moe(1).launches), entries(&moe(2).launches));
}

/// Bits of a prompt's rows must not depend on how it is cut into steps: one kernel for all steps that feed prompts, others for those that decode.
#[test]
fn prompts_have_one_kernel_of_their_own() {
    for mut case in cases::prompts() {
        let mut at = |tokens: i64, sequences: i64| {
            case.sizes.insert("T".into(), tokens);
            case.sizes.insert("S".into(), sequences);
            entries(&case.lower().unwrap().launches).iter().map(|e| e.to_string()).collect::<Vec<_>>()
        };
        let prompts = at(2, 1);
        assert!(prompts[0].contains("_flash_"), "{prompts:?}");
        for (tokens, sequences) in [(5, 4), (64, 1), (65, 64), (1000, 1), (8192, 8)] {
            assert_eq!(at(tokens, sequences), prompts, "{}", case.name);
        }
        let decode = at(1, 1);
        assert!(!decode[0].contains("_flash_"), "{decode:?}");
        // Of those that decode there are two, which make the same bits (`emulate::rows_do_not_depend_on_the_step`).
        for tokens in [2, 8, 64, 256, 1024] {
            let many = at(tokens, tokens);
            assert!(many == decode || tokens > 8 && many[0].contains("_ring_"), "{}: {many:?}", case.name);
        }
    }
}

/// Blocks copy for each other where a matmul takes several rounds of tiles; the grid is then a multiple of a cluster.
#[test]
fn large_matmuls_share_columns_of_w() {
    for case in super::fused::prompts() {
        for launch in case.lower().unwrap().launches {
            let text = &launch.kernel.text;
            let shared = text.contains("__cluster_dims__(2, 1, 1)");
            assert!(!shared || launch.grid[0].is_multiple_of(2), "{}: {:?}", case.name, launch.grid);
            assert_eq!(shared, text.contains("fetch_box_to(to"), "{}", case.name);
            let (rows, gemm) = (case.sizes["T"], launch.kernel.entry.starts_with("gs_gemm_bf16"));
            assert!(!shared || gemm && launch.grid[0] > 128, "{}", case.name);
            assert!(shared || !gemm || rows < 8192, "{}", case.name);
        }
    }
}

#[test]
fn no_rows_no_launches() {
    for case in cases::all().iter_mut() {
        let first_dim_is_tokens = case
            .operands
            .iter()
            .any(|t| t.as_tensor().is_some_and(|t| t.dims.first().is_some_and(|d| d.to_string() == "T")));
        let rows = case.op.results.first().and_then(|t| t.as_tensor()).and_then(|t| t.dims.first().cloned());
        let picked = case.op.kind == OpKind::Kernel && rows.is_some_and(|d| d.to_string() != "T");
        if first_dim_is_tokens && !picked && case.op.kind != OpKind::Concat && case.op.kind != OpKind::MatMul {
            case.sizes.insert("T".into(), 0);
            assert!(case.lower().unwrap().launches.is_empty(), "{}", case.name);
        }
    }
}

#[test]
fn equal_kernels_are_one_text_whatever_op_asks() {
    let reshape = plain(OpKind::Reshape, vec![t(BF16, "T 24")], [("dims", dims_of("T 3 8").into())], "T=5");
    let slice = [("axis", Attr::Int(0)), ("start", Attr::Int(1)), ("len", Attr::Int(2))];
    let slice = plain(OpKind::Slice, vec![t(F32, "4 16")], slice, "");
    let (a, b) = (reshape.lower().unwrap(), slice.lower().unwrap());
    assert_eq!(a.launches[0].kernel, b.launches[0].kernel);
}

#[test]
fn errors_say_what_is_missing_in_one_line() {
    let error = |case: Case| {
        let text = case.lower().unwrap_err().to_string();
        assert_eq!(text.lines().count(), 1);
        text
    };
    assert_eq!(
        error(plain(OpKind::Neg, vec![t(F32, "T 3")], [], "S=1")),
        "neg: symbol `T` has no value; add it to the sizes of the bucket"
    );
    assert_eq!(
        error(plain(OpKind::TopK, vec![t(F32, "T 9000")], [("k", Attr::Int(3000))], "T=1")),
        "topk: no kernel for k = 3000 of 9000; supported: k up to 2048 of rows below 2^31"
    );
    assert_eq!(
        error(plain(OpKind::Relayout, vec![t(BF16, "64 64")], [("layout", "mx64".into())], "")),
        "relayout: no kernel for bf16[64, 64] to #mx64; supported: row-major mxfp4 to #mx64"
    );
    let decl = kv(1, 264, 16, None, BF16);
    let operands = vec![t(BF16, "T 264"), state(&decl), t(I32, "T"), t(I32, "T"), t(I32, "S P")];
    let wide = case(OpKind::Attention, operands, attrs([("scale", Attr::Float(1.0))]), &[decl], "T=1 S=1 P=1");
    assert_eq!(error(wide), "attention: no kernel for heads of 264 elements; supported: multiples of 8 up to 256");
    let mut leaf = plain(OpKind::Iota, vec![], [("dims", dims_of("3").into())], "");
    leaf.op.kind = OpKind::Param;
    assert!(matches!(leaf.lower(), Err(LowerError::Unsupported { op: "param", .. })));
}
