//! Scenarios of contractions: sizes around tiles, ragged edges, the widths of GPT-OSS, mixed element types, experts out of range.

use gossamer_ir::{Attr, Attrs, DType, OpKind};

use super::super::data::{Rng, int};
use super::super::scenario::{Operand, Scenario};
use super::{attrs, label};

fn out_attr(d: DType) -> Attrs {
    attrs([("out", Attr::DType(d))])
}

pub(super) fn matmuls() -> Vec<Scenario> {
    let mut rng = Rng::new("matmul");
    let mut out = Vec::new();
    let mut push = |m: usize, k: usize, n: usize, (x, w, y): (DType, DType, DType)| {
        let name = format!("[{m},{k}] {x} by [{n},{k}] {w} to {y}");
        let scale = (k as f32).sqrt().recip();
        let operands = vec![Operand::rows(rng.floats(x, &[m, k], 1.0)), Operand::whole(rng.floats(w, &[n, k], scale))];
        out.push(Scenario::op(name, OpKind::MatMul, out_attr(y), operands));
    };
    use DType::{BF16, F16, F32};
    let bf16 = (BF16, BF16, F32);
    for (k, n) in [(1, 1), (7, 5), (64, 64), (96, 33), (100, 130), (384, 512)] {
        for m in [1, 2, 5, 16, 17, 70] {
            push(m, k, n, bf16);
        }
    }
    for m in [1, 3, 8, 130] {
        push(m, 2880, 640, bf16);
        push(m, 4096, 320, bf16);
    }
    push(2, 2880, 32, bf16);
    push(1, 2880, 20_000, bf16);
    for types in
        [(BF16, BF16, BF16), (F32, F32, F32), (F32, BF16, F32), (BF16, F32, F32), (F16, F16, F16), (F16, BF16, F32)]
    {
        push(1, 96, 65, types);
        push(37, 96, 65, types);
    }
    let operands =
        vec![Operand::rows(rng.floats(BF16, &[3, 4, 64], 1.0)), Operand::whole(rng.floats(BF16, &[40, 64], 0.1))];
    out.push(Scenario::op("three dims", OpKind::MatMul, out_attr(F32), operands));
    out
}

pub(super) fn batch_matmuls() -> Vec<Scenario> {
    let mut rng = Rng::new("bmm");
    let mut out = Vec::new();
    for (b, m, n, k) in [(1, 1, 1, 1), (3, 5, 7, 9), (2, 64, 64, 64), (4, 33, 70, 100)] {
        for (dtype, to) in
            [(DType::BF16, DType::F32), (DType::F32, DType::F32), (DType::BF16, DType::BF16), (DType::F16, DType::F32)]
        {
            let name = format!("{b} of [{m},{k}] by [{n},{k}] {dtype} to {to}");
            let operands = [m, n].map(|rows| Operand::rows(rng.floats(dtype, &[b, rows, k], 1.0)));
            out.push(Scenario::op(name, OpKind::BatchMatMul, out_attr(to), operands.into()));
        }
    }
    out
}

pub(super) fn moe_matmuls() -> Vec<Scenario> {
    let mut rng = Rng::new("moe_matmul");
    let mut out = Vec::new();
    let mut push =
        |t: usize, j: usize, e: usize, n: usize, k: usize, by_choice: bool, (x, w, y): (DType, DType, DType)| {
            let shape = if by_choice { vec![t, j, k] } else { vec![t, k] };
            let name = format!("{} of {e} experts [{n},{k}], {j} a token, {w} to {y}", label(&shape, x));
            let scale = (k as f32).sqrt().recip();
            // One id in eight is outside.
            let mut ids: Vec<i32> = (0..t * j).map(|_| rng.below(e) as i32).collect();
            for id in &mut ids {
                if rng.below(8) == 0 {
                    *id = [-1, e as i32, i32::MIN, i32::MAX][rng.below(4)];
                }
            }
            let operands = vec![
                Operand::rows(rng.floats(x, &shape, 1.0)),
                Operand::whole(rng.floats(w, &[e, n, k], scale)),
                Operand::rows(int(&[t, j], ids)),
            ];
            out.push(Scenario::op(name, OpKind::MoeMatMul, out_attr(y), operands));
        };
    use DType::{BF16, F32};
    let bf16 = (BF16, BF16, F32);
    for by_choice in [false, true] {
        for t in [1, 2, 5, 17, 70] {
            push(t, 4, 8, 64, 96, by_choice, bf16);
            push(t, 2, 3, 33, 40, by_choice, bf16);
        }
        push(3, 4, 5, 192, 2880, by_choice, bf16);
        push(3, 1, 2, 7, 5, by_choice, (F32, F32, F32));
        push(20, 2, 4, 64, 64, by_choice, (BF16, BF16, BF16));
        push(3, 2, 4, 33, 64, by_choice, (F32, BF16, F32));
    }
    // All tokens choose one expert.
    let ids = int(&[40, 4], vec![2; 160]);
    let operands = vec![
        Operand::rows(rng.floats(BF16, &[40, 64], 1.0)),
        Operand::whole(rng.floats(BF16, &[4, 64, 64], 0.1)),
        Operand::rows(ids),
    ];
    out.push(Scenario::op("one expert", OpKind::MoeMatMul, out_attr(F32), operands));
    out
}
