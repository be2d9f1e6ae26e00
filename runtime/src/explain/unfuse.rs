//! A kernel taken out of its function: once as the kernel, once as the ops it is made of.

use std::collections::BTreeMap;

use gossamer_ir::{Func, Kernel, Op, OpId, OpKind, Param, Value, text};

/// Op `id` of `func` alone, as a function of its operands: as it is, and with a kernel's ops in place of the kernel.
pub fn alone(func: &Func, id: OpId) -> (String, String) {
    let op = func.graph.op(id);
    let params: Vec<Param> = op
        .operands
        .iter()
        .map(|v| {
            let source = func.graph.op(v.op);
            let weight = source.kind == OpKind::Weight;
            let name = source.names.get(v.result as usize).cloned().unwrap_or_else(|| "v".into());
            Param { name, ty: func.graph.ty(*v).clone(), weight }
        })
        .collect();
    let mut after = Func::new("kernel", params.clone());
    let operands: Vec<Value> = (0..params.len()).filter_map(|i| after.param(i)).collect();
    let made = after.graph.add(Op { operands: operands.clone(), ..op.clone() });
    after.results = (0..op.results.len() as u16).map(|result| Value { op: made, result }).collect();
    let before = match op.attrs.kernel() {
        Some(kernel) => {
            let mut before = Func::new("kernel", params);
            before.results = inline(&mut before, kernel, &operands);
            text::print_func(&before)
        }
        None => text::print_func(&after),
    };
    (before, text::print_func(&after))
}

/// Adds the ops of a kernel's regions; the values of its results.
fn inline(into: &mut Func, kernel: &Kernel, operands: &[Value]) -> Vec<Value> {
    let mut rest = operands.iter().copied();
    let mut carried: Vec<Value> = Vec::new();
    for region in kernel.regions() {
        let own = region.params.len().saturating_sub(carried.len());
        let args: Vec<Value> = carried.iter().copied().chain(rest.by_ref().take(own)).collect();
        let mut map: BTreeMap<Value, Value> = BTreeMap::new();
        for id in region.graph.order().unwrap_or_default() {
            let op = region.graph.op(id);
            if op.kind == OpKind::Param {
                if let Some(v) = args.get(op.attrs.int("index") as usize) {
                    map.insert(Value { op: id, result: 0 }, *v);
                }
                continue;
            }
            let operands = op.operands.iter().filter_map(|v| map.get(v).copied()).collect();
            let new = into.graph.add(Op { operands, ..op.clone() });
            for result in 0..op.results.len() as u16 {
                map.insert(Value { op: id, result }, Value { op: new, result });
            }
        }
        carried = region.results.iter().filter_map(|v| map.get(v).copied()).collect();
    }
    carried
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_become_statements() {
        let source = "gir 1\nsym T in 1..=8\nfunc @f(%x: f32[T, 4], %g: f32[4], %w: f32[3, 4], %b: f32[3]) -> f32[T, 3] {\n  %y = kernel %x, %g, %w, %b {template = single}\n    \
                      prologue(%x: f32[T, 4], %g: f32[4]) {\n      %n = rms_norm %x, %g : f32[T, 4]\n      yield %n\n    }\n    \
                      main(%n: f32[T, 4], %w: f32[3, 4]) {\n      %a = matmul %n, %w : f32[T, 3]\n      yield %a\n    }\n    \
                      epilogue(%a: f32[T, 3], %b: f32[3]) {\n      %z = add %a, %b : f32[T, 3]\n      yield %z\n    } : f32[T, 3]\n  return %y\n}\n";
        let module = text::parse("f.gir", source).unwrap_or_else(|e| panic!("{}", e.render()));
        let f = &module.funcs[0];
        let (before, after) = alone(f, f.results[0].op);
        let want = "func @kernel(%x: f32[T, 4], %g: f32[4], %w: f32[3, 4], %b: f32[3]) -> (f32[T, 3]) {\n  %n = rms_norm %x, %g : f32[T, 4]\n  \
                    %a = matmul %n, %w : f32[T, 3]\n  %z = add %a, %b : f32[T, 3]\n  return %z\n}\n";
        assert_eq!(before, want);
        assert!(after.contains("%y = kernel %x, %g, %w, %b {template = single}\n    prologue("), "{after}");
    }
}
