//! Kernels of several stages: what passes between them, and that they are shown as they are.

use super::*;
use crate::interp::{Datum, Rounding, Tensor, run_func};
use crate::{Bindings, Module, diff, dump, text, verify};

/// `(x + x)` summed with `b`, then `1 - exp` of that, scaled by `x`; the same as two kernels.
fn modules() -> [Module; 2] {
    let chained = "func @f(%x: f32[4], %b: f32[4]) -> (f32[4]) {
  %y = kernel %x, %b, %x {template = two}
    main(%x: f32[4]) {
      %a = add %x, %x : f32[4]
      yield %a
    }
    epilogue(%a: f32[4], %b: f32[4]) {
      %c = sub %a, %b : f32[4]
      yield %c
    }
    then
    prologue(%c: f32[4]) {
      %e = exp %c : f32[4]
      yield %e, %c
    }
    main(%e: f32[4], %c: f32[4], %x: f32[4]) {
      %m = mul %e, %x : f32[4]
      %n = sub %m, %c : f32[4]
      yield %n
    } : f32[4]
  return %y
}\n";
    let apart = "func @f(%x: f32[4], %b: f32[4]) -> (f32[4]) {
  %a = add %x, %x : f32[4]
  %c = sub %a, %b : f32[4]
  %e = exp %c : f32[4]
  %m = mul %e, %x : f32[4]
  %n = sub %m, %c : f32[4]
  return %n
}\n";
    [chained, apart].map(|t| text::parse("f.gir", &format!("gir 1\n{t}")).unwrap_or_else(|e| panic!("{}", e.render())))
}

fn kernel(module: &Module) -> Kernel {
    let f = &module.funcs[0];
    let found = f.graph.ids().into_iter().find_map(|id| f.graph.op(id).attrs.kernel().cloned());
    Kernel::clone(&found.unwrap())
}

#[test]
fn operands_flow_through_stages() {
    let k = kernel(&modules()[0]);
    assert_eq!((k.depth(), k.operands()), (2, 3));
    assert_eq!((0..6).map(|r| k.operands_of(r)).collect::<Vec<_>>(), [0, 1, 1, 0, 1, 0]);
    assert_eq!(k.operand_types().len(), 3);
    assert_eq!(k.result_types().len(), 1);
    assert_eq!(k.summary(), "two[add | sub then exp | mul sub]");
    assert_eq!([1, 5].map(|r| k.place(r)), ["`main` of stage 1", "`epilogue` of stage 2"]);
    // In the second main region: what its prologue computes, what passes through it, and an operand.
    let main = &k.stages().nth(1).unwrap().main;
    let from: Vec<Source> = (0..3).map(|i| k.source(4, main.param(i).unwrap())).collect();
    assert!(matches!(from[0], Source::Made { region: 3, .. }), "{from:?}");
    assert!(matches!(from[1], Source::Made { region: 2, .. }), "{from:?}");
    assert_eq!(from[2], Source::Operand(2));
    assert_eq!(k.operand_of(2, 1), Some(1));
    assert_eq!(k.operand_of(2, 0), None);
}

#[test]
fn stages_mean_their_ops_in_order() {
    let none = |name: &str| -> Result<Tensor, crate::interp::EvalError> { panic!("weight {name}") };
    let results = modules().map(|m| {
        let tensor = |v: [f32; 4]| Datum::Tensor(Tensor::f32(&[4], v.to_vec()).unwrap());
        let args = vec![tensor([1.0, -0.5, 0.25, 3.0]), tensor([0.5, 0.25, -2.0, 8.0])];
        let out = run_func(&m, "f", args, &none, &mut [], &Bindings::new(), Rounding::Typed).unwrap();
        out[0].as_tensor().unwrap().to_f32().to_vec()
    });
    assert_eq!(results[0], results[1]);
}

#[test]
fn stages_are_part_of_what_a_kernel_is() {
    let [chained, _] = modules();
    let k = kernel(&chained);
    // Printed and read back, and the same regions in another order of stages are another kernel.
    assert_eq!(text::parse("again", &chained.to_string()).unwrap().to_string(), chained.to_string());
    verify::roundtrip(&chained).unwrap();
    let mut stages = k.stages().cloned();
    let (first, second) = (stages.next().unwrap(), stages.next().unwrap());
    assert_eq!(Kernel::of("two", first.clone(), vec![second.clone()]), k);
    assert_ne!(Kernel::of("two", second, vec![first.clone()]), k);
    assert_ne!(Kernel::of("two", first, vec![]), k);
    assert_eq!(k.anonymous().depth(), 2);
    let json = dump::json(&chained).to_string();
    assert!(json.contains("\"stage\":0") && json.contains("\"stage\":1"), "{json}");
    // A difference says in which stage it is.
    let other = chained.to_string().replace("%m = mul", "%m = div");
    let other = text::parse("other", &other).unwrap();
    let found = diff::diff(&chained, &other).text();
    assert!(found.contains("main of stage 2") && found.contains("div"), "{found}");
    assert!(!found.contains("stage 1"), "{found}");
}
