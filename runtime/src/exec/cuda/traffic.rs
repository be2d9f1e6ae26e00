//! How many bytes of device memory an op has to move: what its time is compared with.
//!
//! A fused kernel's bytes are those of the cost model, but for what a run knows better: the experts that were chosen and the context that is seen.

use gossamer_ir::kernel::Stage;
use gossamer_ir::{Op, OpId, OpKind, StateDecl, Type, Value};
use gossamer_passes::{Plan, cost};

use crate::exec::{HostData, Inputs};

/// Bytes that the op reads and writes at the plan's sizes, each operand and result once. Of tables only the rows that can be used are counted: gathered
/// rows, `experts` experts (if unknown, those expected under uniform routing for a kernel, one a choice for an op), and the cached keys and values that
/// `inputs` make visible.
pub fn bytes(plan: &Plan, id: OpId, inputs: &Inputs, experts: Option<f64>) -> f64 {
    match fused(plan, id, inputs, experts) {
        Some(bytes) => bytes,
        None => single(plan, id, inputs) as f64,
    }
}

/// Bytes of a fused kernel.
fn fused(plan: &Plan, id: OpId, inputs: &Inputs, experts: Option<f64>) -> Option<f64> {
    let op = plan.func.graph.op(id);
    let kernel = op.attrs.kernel()?;
    let weight = |v: Value| plan.load.contains(&v.op) || plan.func.graph.op(v.op).kind == OpKind::Weight;
    let shape = cost::of_op(&plan.decls, &plan.func, id, &weight, &plan.sizes).ok()?;
    let stages = shape.stages().zip(kernel.stages());
    stages.map(|(shape, stage)| of_stage(plan, op, (shape, stage), inputs, experts)).sum()
}

/// Bytes of a stage of the kernel that `op` is.
fn of_stage(
    plan: &Plan,
    op: &Op,
    (shape, stage): (&cost::KernelShape, &Stage),
    inputs: &Inputs,
    experts: Option<f64>,
) -> Option<f64> {
    let mut bytes = shape.bytes;
    for region in stage.regions().into_iter().flatten() {
        for inner in region.graph.ids().into_iter().map(|i| region.graph.op(i)) {
            match inner.kind {
                OpKind::MoeMatMul => {
                    let dims = |i: usize| {
                        let t = inner.operands.get(i).and_then(|v| region.graph.ty(*v).as_tensor());
                        t.and_then(|t| t.shape(&plan.sizes).ok()).unwrap_or_default()
                    };
                    if let (Some(experts), [n, ..], [rows, each]) = (experts, &dims(1)[..], &dims(2)[..]) {
                        let expected = cost::expected_distinct(*n as f64, *each as f64, *rows as f64);
                        bytes.weights *= if expected > 0.0 { experts / expected } else { 1.0 };
                    }
                }
                OpKind::Attention => {
                    let states = op.operands.iter().map(|v| plan.func.graph.ty(*v));
                    let state =
                        states.filter_map(|ty| if let Type::State(_, name) = ty { Some(name) } else { None }).next();
                    let named = |name: &str| inputs.get(name).map(HostData::i32);
                    if let (Some(state), Some(pos), Some(seq)) = (state, named("pos"), named("seq")) {
                        bytes.state = visible(plan, state, inner.attrs.int("window"), pos, seq)? as f64;
                    }
                }
                _ => {}
            }
        }
    }
    Some(bytes.total())
}

/// Bytes of an op by itself.
fn single(plan: &Plan, id: OpId, inputs: &Inputs) -> u64 {
    let op = plan.func.graph.op(id);
    let tensor = |ty: &Type| ty.as_tensor().and_then(|t| t.bytes(&plan.sizes).ok()).unwrap_or(0);
    let mut distinct: Vec<Value> = op.operands.clone();
    distinct.sort_unstable();
    distinct.dedup();
    let operand = |v: &Value| tensor(plan.func.graph.ty(*v));
    let results: u64 = op.results.iter().map(tensor).sum();
    let all: u64 = distinct.iter().map(operand).sum::<u64>() + results;
    let operand_at = |i: usize| op.operands.get(i).map_or(0, &operand);
    match op.kind {
        OpKind::GatherRows => all - operand_at(0) + operand_at(0).min(results),
        OpKind::MoeMatMul => {
            let dims = |i: usize| -> Vec<i64> {
                let t = op.operands.get(i).and_then(|v| plan.func.graph.ty(*v).as_tensor());
                t.and_then(|t| t.shape(&plan.sizes).ok()).unwrap_or_default()
            };
            let experts = dims(1).first().copied().unwrap_or(1).max(1) as u64;
            let chosen = dims(2).iter().product::<i64>().max(0) as u64;
            all - operand_at(1) + operand_at(1) / experts * chosen.min(experts)
        }
        OpKind::Attention => all + cached(plan, id, inputs).unwrap_or(0),
        OpKind::KvWrite => all + operand_at(1) + operand_at(2),
        OpKind::Penalize => all + results,
        _ => all,
    }
}

/// Bytes of keys and values that the tokens of a step see, each once.
fn cached(plan: &Plan, id: OpId, inputs: &Inputs) -> Option<u64> {
    let op = plan.func.graph.op(id);
    let Type::State(_, name) = plan.func.graph.ty(*op.operands.get(1)?) else { return None };
    let input = |i: usize| -> Option<&[i32]> {
        let leaf = plan.func.graph.op(op.operands.get(i)?.op);
        let param = (leaf.kind == OpKind::Param).then(|| plan.func.params.get(leaf.attrs.int("index") as usize))??;
        inputs.get(&*param.name).map(HostData::i32)
    };
    visible(plan, name, op.attrs.int("window"), input(2)?, input(3)?)
}

/// Bytes of a cache that tokens at these positions of these sequences see.
fn visible(plan: &Plan, state: &str, window: i64, pos: &[i32], seq: &[i32]) -> Option<u64> {
    let Some(StateDecl::Kv { heads, head_dim, dtype, .. }) = plan.decls.state(state) else { return None };
    let mut spans: std::collections::BTreeMap<i32, (i64, i64)> = std::collections::BTreeMap::new();
    for (pos, seq) in pos.iter().zip(seq).filter(|(_, seq)| **seq >= 0) {
        let pos = i64::from(*pos);
        let first = if window > 0 { (pos + 1 - window).max(0) } else { 0 };
        let span = spans.entry(*seq).or_insert((first, pos + 1));
        *span = (span.0.min(first), span.1.max(pos + 1));
    }
    let tokens: i64 = spans.values().map(|(first, end)| (end - first).max(0)).sum();
    Some(dtype.storage_bytes((2 * tokens * heads * head_dim).max(0) as u64))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{decode_plan, ops};
    use super::*;

    fn inputs(pos: &[i32], seq: &[i32]) -> Inputs {
        let data = |v: &[i32]| HostData::I32(v.to_vec());
        Inputs::from([("pos".to_string(), data(pos)), ("seq".to_string(), data(seq))])
    }

    #[test]
    fn attention_counts_the_keys_it_sees() {
        let plan = decode_plan(2);
        let row = 2 * 8 * 64 * 2;
        let in_and_out = |id: OpId| single(&plan, id, &Inputs::new());
        let [window, full] = [0, 1].map(|i| ops(&plan, OpKind::Attention)[i]);
        let seen = |id, pos: &[i32], seq: &[i32]| (single(&plan, id, &inputs(pos, seq)) - in_and_out(id)) / row;
        assert_eq!(plan.func.graph.op(window).attrs.int("window"), 128);
        assert_eq!(seen(full, &[99, 9], &[0, 1]), 110);
        assert_eq!(seen(full, &[99, 9], &[0, -1]), 100);
        assert_eq!(seen(full, &[98, 99], &[0, 0]), 100);
        assert_eq!(seen(window, &[299, 9], &[0, 1]), 138);
        assert_eq!(seen(window, &[298, 299], &[0, 0]), 129);
    }

    #[test]
    fn tables_count_by_rows() {
        let plan = decode_plan(2);
        let embed = ops(&plan, OpKind::GatherRows)[0];
        assert_eq!(single(&plan, embed, &Inputs::new()), 2 * 4 + 2 * 2 * 2880 * 2);
        let moe = ops(&plan, OpKind::MoeMatMul)[0];
        // x, ids, 2 x 4 experts of bf16, y in f32.
        let experts = 8 * 5760 * 2880 * 2;
        assert_eq!(single(&plan, moe, &Inputs::new()), 2 * 2880 * 2 + 8 * 4 + experts + 8 * 5760 * 4);
    }
}
