//! Scenarios of ops on logits.

use gossamer_ir::interp::Tensor;
use gossamer_ir::{Attrs, DType, OpKind};

use super::super::data::{Rng, float, int};
use super::super::scenario::{Operand, Scenario};

pub(super) fn biases() -> Vec<Scenario> {
    let mut rng = Rng::new("logit_bias");
    let mut out = Vec::new();
    for (r, v, b) in [(1, 7, 1), (5, 1000, 33), (3, 201_088, 512)] {
        let mut ids = Vec::new();
        for _ in 0..r {
            // Distinct, spread out, the last ones outside.
            let from = rng.below(v);
            ids.extend((0..b).map(|i| match i {
                _ if i >= v || i % 5 == 4 => [-1, v as i32, i32::MAX, i32::MIN][i % 4],
                _ => ((from + i * (v / b).max(1)) % v) as i32,
            }));
        }
        let operands = vec![
            Operand::rows(rng.floats(DType::F32, &[r, v], 3.0)),
            Operand::rows(int(&[r, b], ids)),
            Operand::rows(rng.floats(DType::F32, &[r, b], 10.0)),
        ];
        out.push(Scenario::op(format!("{b} of {v} in {r} rows"), OpKind::LogitBias, Attrs::default(), operands));
    }
    out
}

/// Columns of sampling parameters: temperature, top_k, top_p, min_p.
const SAMPLING: [(f32, i32, f32, f32); 12] = [
    (0.0, 0, 1.0, 0.0),
    (1.0, 0, 1.0, 0.0),
    (0.7, 1, 1.0, 0.0),
    (1.0, 40, 1.0, 0.0),
    (1.0, 0, 0.9, 0.0),
    (1.0, 0, 1e-6, 0.0),
    (1.0, 0, 1.0, 0.1),
    (1.0, 0, 1.0, 1.0),
    (0.8, 50, 0.95, 0.02),
    (2.0, 1_000_000, 0.5, 0.0),
    (0.01, 5, 1.0, 0.0),
    (100.0, 0, 1.0, 0.0),
];

pub(super) fn samples() -> Vec<Scenario> {
    let mut rng = Rng::new("sample");
    let mut out = Vec::new();
    let mut push = |name: &str, logits: Tensor, rng: &mut Rng| {
        let rows = logits.shape[0];
        let column = |get: fn(&(f32, i32, f32, f32)) -> f32| -> Vec<f32> {
            (0..rows).map(|r| get(&SAMPLING[r % SAMPLING.len()])).collect()
        };
        let floats = |v| Operand::rows(float(DType::F32, &[rows], v));
        let top_k = (0..rows).map(|r| SAMPLING[r % SAMPLING.len()].1).collect();
        let width = logits.shape[1];
        let operands = vec![
            Operand::rows(logits),
            floats(column(|p| p.0)),
            Operand::rows(int(&[rows], top_k)),
            floats(column(|p| p.2)),
            floats(column(|p| p.3)),
            Operand::rows(rng.ints(&[rows, 2], i32::MIN / 2, i32::MAX / 2)),
            Operand::rows(rng.ints(&[rows], 0, 5000)),
        ];
        out.push(Scenario::op(format!("{rows} rows of {width} {name}"), OpKind::Sample, Attrs::default(), operands));
    };
    for (rows, width) in [(12, 1), (24, 33), (48, 1000), (24, 4096), (12, 201_088)] {
        let logits = rng.floats(DType::F32, &[rows, width], 3.0);
        push("", logits, &mut rng);
    }
    let coarse = (0..12 * 600).map(|_| rng.below(3) as f32).collect();
    push("of ties", float(DType::F32, &[12, 600], coarse), &mut rng);
    let mut odd: Vec<f32> = (0..12 * 100).map(|_| rng.normal()).collect();
    odd.iter_mut().step_by(7).for_each(|x| *x = f32::NAN);
    odd.iter_mut().skip(3).step_by(11).for_each(|x| *x = f32::NEG_INFINITY);
    push("with NaN", float(DType::F32, &[12, 100], odd), &mut rng);
    out
}

pub(super) fn logprobs() -> Vec<Scenario> {
    let mut rng = Rng::new("token_logprob");
    [(1, 1), (7, 33), (5, 4096), (3, 201_088)]
        .into_iter()
        .map(|(r, v)| {
            let tokens = (0..r).map(|i| [0, v as i32 - 1, v as i32, -1, i32::MAX][i % 5]).collect();
            let logits = Operand::rows(rng.floats(DType::F32, &[r, v], 3.0));
            let operands = vec![logits, Operand::rows(int(&[r], tokens))];
            Scenario::op(format!("{r} rows of {v}"), OpKind::TokenLogprob, Attrs::default(), operands)
        })
        .collect()
}
