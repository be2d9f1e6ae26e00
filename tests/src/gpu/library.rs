//! Scenarios of library calls. A row's bits may depend on the number of rows there, so no row is run alone.

use std::collections::BTreeMap;

use gossamer_ir::interp::Tensor;
use gossamer_ir::{Bindings, DType, OpKind, text};
use gossamer_runtime::cuda::CublasLt;

use super::data::Rng;
use super::scenario::{Scenario, Step};

/// True if cuBLASLt is there, or has to be; says why not.
///
/// # Panics
/// Without the library when `GOSSAMER_REQUIRE_CUBLASLT=1`.
pub fn present() -> bool {
    match CublasLt::find() {
        Ok(_) => true,
        Err(e) if std::env::var_os("GOSSAMER_REQUIRE_CUBLASLT").is_some_and(|v| v == "1") => {
            panic!("GOSSAMER_REQUIRE_CUBLASLT=1, but {e}")
        }
        Err(e) => {
            println!("skipped: {e}");
            false
        }
    }
}

/// Matmuls of many rows: sizes of GPT-OSS, ragged ones, sums that are split, all element types, two steps of one executor.
pub fn matmuls() -> Vec<Scenario> {
    use DType::{BF16, F16, F32};
    let bf16 = (BF16, F32);
    let mut out = Vec::new();
    for (rows, k, n, types) in [
        (&[64][..], 64, 64, bf16),
        (&[65, 200, 65], 2880, 640, bf16),
        (&[128], 4096, 320, bf16),
        (&[70], 96, 33, bf16),
        (&[129], 100, 130, bf16),
        (&[77], 7, 5, bf16),
        (&[96], 512, 2880, (BF16, BF16)),
        (&[96], 512, 64, (F16, F32)),
        (&[64], 96, 65, (F16, F16)),
    ] {
        out.push(matmul(rows, k, n, types));
    }
    out
}

/// A step for each number of rows.
fn matmul(rows: &[usize], k: usize, n: usize, (input, output): (DType, DType)) -> Scenario {
    let label = format!("cublaslt {rows:?} of {k} {input} by {n} to {output}");
    let source = format!(
        "gir 1

sym T in 64..=4096

func @f(%x: {input}[T, {k}], %w: {input}[{n}, {k}]) -> ({output}[T, {n}]) {{
  %y = kernel %x, %w {{template = cublaslt}}
    main(%x: {input}[T, {k}], %w: {input}[{n}, {k}]) {{
      %a = matmul %x, %w {{out = {output}}} : {output}[T, {n}]
      yield %a
    }} : {output}[T, {n}]
  return %y
}}
"
    );
    let module = match text::parse(&label, &source) {
        Ok(module) => module,
        Err(errors) => panic!("{label}: {}", errors.render()),
    };
    let mut rng = Rng::new(&label);
    let w = rng.floats(input, &[n, k], (k as f32).sqrt().recip());
    let mut step = |rows: usize| {
        let x: Tensor = rng.floats(input, &[rows, k], 1.0);
        Step {
            sizes: Bindings::from([("T".into(), rows as i64)]),
            inputs: [("x".to_string(), x), ("w".to_string(), w.clone())].into(),
        }
    };
    let steps = rows.iter().map(|r| step(*r)).collect();
    Scenario {
        label,
        module,
        states: vec![],
        weights: BTreeMap::new(),
        steps,
        alone: None,
        tolerance: OpKind::MatMul.info().tolerance,
        fused: None,
    }
}
