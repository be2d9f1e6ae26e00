//! Library calls: arguments and what is refused.

use gossamer_ir::DType;

use super::cases::Case;
use super::fused::kernel;
use crate::lower::{Arg, GEMM_WORKSPACE, Gemm, Part};

/// A matmul of x of the given dims by 640 rows of 2880 weights, with a result of type `y`.
fn case(dims: &str, y: &str, input: &str, sizes: &str) -> Case {
    let body = format!(
        "sym T in 0..=9000\nfunc @f(%w: {input}[640, 2880], %x: {input}[{dims}, 2880]) -> ({y}[{dims}, 640]) {{
  %y = kernel %x, %w {{template = cublaslt}}
    main(%x: {input}[{dims}, 2880], %w: {input}[640, 2880]) {{
      %a = matmul %x, %w {{out = {y}}} : {y}[{dims}, 640]
      yield %a
    }} : {y}[{dims}, 640]
  return %y
}}\n"
    );
    kernel(&format!("cublaslt {dims} {y}"), &body, sizes)
}

#[test]
fn a_matmul_is_one_call_of_the_library() {
    let lowered = case("T", "f32", "bf16", "T=100").lower().unwrap();
    let data = |index| Arg::Operand { index, part: Part::Data };
    let expected = Gemm {
        m: 100,
        n: 640,
        k: 2880,
        input: DType::BF16,
        output: DType::F32,
        x: data(0),
        w: data(1),
        y: Arg::Result { index: 0, part: Part::Data },
        workspace: Arg::Scratch(0),
    };
    assert_eq!((lowered.launches.len(), lowered.count()), (0, 1));
    assert_eq!(lowered.scratch, [GEMM_WORKSPACE]);
    assert_eq!(lowered.library.as_ref(), Some(&expected));
    assert_eq!(expected.name(), "cublaslt_100x640x2880");
    // All dims but the last are rows.
    let three = case("T, 4", "f16", "f16", "T=50").lower().unwrap().library.unwrap();
    assert_eq!((three.m, three.input, three.output), (200, DType::F16, DType::F16));
}

#[test]
fn types_that_the_library_is_not_asked_for_are_refused() {
    let line = case("T", "f16", "bf16", "T=64").lower().unwrap_err().to_string();
    assert!(line.contains("to f16; supported: bf16 or f16 on both sides"), "{line}");
}
