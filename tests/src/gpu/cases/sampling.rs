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
    // Rows take their parameters in turn, the first those at `from`.
    let mut push = |name: &str, from: usize, logits: Tensor, rng: &mut Rng| {
        let rows = logits.shape[0];
        let of = move |r: usize| &SAMPLING[(from + r) % SAMPLING.len()];
        let column = |get: fn(&(f32, i32, f32, f32)) -> f32| -> Vec<f32> { (0..rows).map(|r| get(of(r))).collect() };
        let floats = |v| Operand::rows(float(DType::F32, &[rows], v));
        let top_k = (0..rows).map(|r| of(r).1).collect();
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
    for (rows, width) in [(12, 1), (24, 33), (48, 1000), (24, 4096), (100, 1000), (12, 201_088), (24, 20_001)] {
        let logits = rng.floats(DType::F32, &[rows, width], 3.0);
        push("", 0, logits, &mut rng);
    }
    // Few rows, which share all blocks: without filters, with each of them, and greedy.
    for (rows, from, width) in [(1, 1, 201_088), (1, 8, 201_088), (2, 0, 201_088), (5, 3, 20_001), (6, 10, 50_000)] {
        let logits = rng.floats(DType::F32, &[rows, width], 3.0);
        push(&format!("from {from}"), from, logits, &mut rng);
    }
    for (rows, width) in [(12, 600), (12, 20_000), (14, 20_000)] {
        let coarse = (0..rows * width).map(|_| rng.below(3) as f32).collect();
        push("of ties", 0, float(DType::F32, &[rows, width], coarse), &mut rng);
    }
    for (rows, width) in [(12, 100), (12, 20_000), (14, 20_000)] {
        let mut odd: Vec<f32> = (0..rows * width).map(|_| rng.normal()).collect();
        odd.iter_mut().step_by(7).for_each(|x| *x = f32::NAN);
        odd.iter_mut().skip(3).step_by(11).for_each(|x| *x = f32::NEG_INFINITY);
        push("with NaN", 0, float(DType::F32, &[rows, width], odd), &mut rng);
    }
    // Nothing to draw from.
    for rows in [3, 14] {
        let none = [f32::NAN, f32::NEG_INFINITY, f32::INFINITY];
        let logits = (0..rows * 20_000).map(|i| none[i / 20_000 % 3]).collect();
        push("without finite logits", 1, float(DType::F32, &[rows, 20_000], logits), &mut rng);
    }
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
