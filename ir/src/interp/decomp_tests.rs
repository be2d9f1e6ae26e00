//! Every decomposition in the op table means the same as the op.

use std::collections::BTreeMap;

use crate::interp::testing::*;
use crate::op::{Class, InferCx, infer};
use crate::text::parse_decomp;

/// The op and its decomposition on the same random f32 operands.
fn compare(kind: OpKind, attrs: Attrs, shapes: &[&[usize]], sizes: &[(&str, i64)]) {
    let text = kind.info().decomposition.expect("has a decomposition");
    let attrs = kind.complete_attrs(attrs).unwrap();
    let module = parse_decomp(kind.name(), text, &attrs).unwrap_or_else(|e| panic!("{}", e.render()));
    let graph = &module.func(kind.name()).unwrap().graph;
    for op in graph.ids().into_iter().map(|id| graph.op(id)).filter(|op| op.kind != OpKind::Param) {
        let operands: Vec<Type> = op.operands.iter().map(|v| graph.ty(*v).clone()).collect();
        let types = infer(op.kind, &InferCx { operands: &operands, attrs: &op.attrs, module: &module });
        assert_eq!(types.as_ref(), Ok(&op.results), "{} in {}", op.kind.name(), kind.name());
    }
    let args: Vec<Datum> = shapes
        .iter()
        .enumerate()
        .map(|(i, shape)| {
            let x = noise(shape.iter().product(), i as u32 + 1);
            f32s(shape, &x.iter().map(|x| 9.0 * x).collect::<Vec<_>>()).into()
        })
        .collect();
    let sizes: Bindings = sizes.iter().map(|(name, n)| ((*name).into(), *n)).collect::<BTreeMap<_, _>>();
    let missing = |name: &str| -> Result<Tensor, EvalError> { panic!("no weight {name}") };
    let got = run_func(&module, kind.name(), args.clone(), &missing, &mut [], &sizes, Rounding::Exact).unwrap();

    let types: Vec<Type> =
        shapes.iter().map(|s| Type::tensor(DType::F32, s.iter().map(|n| Dim::from(*n as i64)))).collect();
    let results = infer(kind, &InferCx { operands: &types, attrs: &attrs, module: &module }).unwrap();
    let (rounding, states) = (Rounding::Exact, &mut []);
    let mut cx = EvalCx { kind, operands: &args, attrs: &attrs, results: &results, sizes: &sizes, rounding, states };
    let want = (kind.info().eval)(&mut cx).unwrap();
    let (got, want) = (got[0].as_tensor().unwrap(), want[0].as_tensor().unwrap());
    assert_eq!(got.shape, want.shape);
    close(&got.to_f32(), &want.to_f32(), 2e-6);
}

#[test]
fn every_decomposition_agrees_with_its_op() {
    let mut seen = vec![];
    let mut check = |kind: OpKind, attrs: Attrs, shapes: &[&[usize]], sizes: &[(&str, i64)]| {
        seen.push(kind);
        compare(kind, attrs, shapes, sizes);
    };
    let mn = [("M", 3), ("N", 50)];
    check(OpKind::Softmax, Attrs::default(), &[&[3, 50]], &mn);
    check(OpKind::LogSumExp, Attrs::default(), &[&[3, 50]], &mn);
    check(OpKind::RmsNorm, Attrs::from([("eps", Attr::Float(0.25))]), &[&[3, 50], &[50]], &mn);
    check(OpKind::LayerNorm, Attrs::from([("eps", Attr::Float(0.25))]), &[&[3, 50], &[50], &[50]], &mn);
    for layout in ["interleaved", "halves"] {
        let attrs = Attrs::from([("layout", Attr::from(layout)), ("limit", Attr::Float(5.0))]);
        check(OpKind::Swiglu, attrs, &[&[3, 24]], &[("M", 3), ("I", 12)]);
    }
    check(OpKind::MoeCombine, Attrs::default(), &[&[3, 4, 5], &[3, 4]], &[("T", 3), ("J", 4), ("N", 5)]);
    let all = OpKind::ALL.iter().filter(|k| k.info().decomposition.is_some());
    let untested: Vec<_> = all.filter(|k| !seen.contains(k)).map(|k| k.name()).collect();
    assert!(untested.is_empty(), "no test of the decomposition of {}", untested.join(", "));
    assert!(seen.iter().all(|k| matches!(k.class(), Class::Composite)));
}
