//! Rules that text cannot break, on graphs built by hand; the others have filetests.

use proptest::prelude::*;

use super::*;
use crate::text::parse;
use crate::{Attr, Attrs, DType, Dim, OpKind, StateDecl, SymDecl, Type, Value, WeightDecl};

const TEXT: &str = r#"gir 1
sym T in 1..=8
sym P in 1..=8
kv full {head_dim = 4, heads = 2, page = 16}
weight @w : f32[8, 8] = "w"
func @norm(%x: f32[T, 8], %s: weight f32[8, 8]) -> (f32[T, 8]) {
  %y = matmul %x, %s : f32[T, 8]
  return %y
}
func @f(%x: f32[T, 8], %pos: i32[T], %pages: i32[P, P], %kv: kv<full>) -> (f32[T, 8], kv<full>, i32[T, 2]) {
  %k = kv_write %kv, %x, %x, %pos, %pos, %pages : kv<full>
  %a = attention %x, %k, %pos, %pos, %pages {scale = 0.5} : f32[T, 8]
  %m = matmul %a, @w : f32[T, 8]
  %v, %i = topk %m {k = 2} : f32[T, 2], i32[T, 2]
  %n = call @norm %m, @w : f32[T, 8]
  %s = add %n, %x : f32[T, 8]
  return %s, %k, %i
}
"#;

fn module() -> Module {
    parse("t.gir", TEXT).unwrap_or_else(|e| panic!("{}", e.render()))
}

fn find(f: &Func, kind: OpKind) -> OpId {
    f.graph.ids().into_iter().find(|id| f.graph.op(*id).kind == kind).unwrap()
}

fn rules(m: &Module) -> Vec<&'static str> {
    match verify(m, Stage::Tensor) {
        Ok(_) => vec![],
        Err(e) => e.errors.iter().map(|e| e.rule).collect(),
    }
}

#[test]
fn a_correct_module_passes() {
    let m = module();
    let facts = verify(&m, Stage::Tensor).unwrap_or_else(|e| panic!("{}", e.render(Some(("t.gir", TEXT)))));
    assert_eq!(facts.warnings, []);
    roundtrip(&m).unwrap();
    let planned = verify(&m, Stage::Planned).unwrap_err();
    assert_eq!(planned.errors.len(), 1);
    assert_eq!(
        planned.to_string(),
        "V13: a planned module has no calls; inline them before, in @f, at `%n = call @norm %m, @w : f32[T, 8]` (t.gir:15:3)"
    );
}

#[test]
fn v01_operands_and_results_exist() {
    let mut m = module();
    let f = &mut m.funcs[1];
    let add = find(f, OpKind::Add);
    f.graph.op_mut(add).operands[1].result = 9;
    assert_eq!(rules(&m), ["V01", "V03"]);
    let mut m = module();
    m.funcs[1].results[2] = Value { op: OpId::new(999), result: 0 };
    assert_eq!(rules(&m), ["V01"]);
    assert!(verify(&m, Stage::Tensor).unwrap_err().to_string().contains("at `return %s, %k, %?`"));
}

#[test]
fn v02_no_cycles() {
    let mut m = module();
    let f = &mut m.funcs[1];
    let (matmul, add) = (find(f, OpKind::MatMul), find(f, OpKind::Add));
    f.graph.set_operand(matmul, 0, Value { op: add, result: 0 });
    assert!(rules(&m).contains(&"V02"));
    let errors = verify(&m, Stage::Tensor).unwrap_err();
    assert!(
        errors.errors.iter().any(|e| e.message.starts_with("the op is on or behind a cycle of 4 ops")),
        "{errors:?}"
    );
}

#[test]
fn v03_edges_mirror_operands() {
    let mut m = module();
    let f = &mut m.funcs[1];
    let add = find(f, OpKind::Add);
    f.graph.op_mut(add).operands.swap(0, 1);
    assert_eq!(rules(&m), ["V03"]);
    f_drop_operand(&mut m);
}

fn f_drop_operand(m: &mut Module) {
    let f = &mut m.funcs[1];
    let add = find(f, OpKind::Add);
    f.graph.op_mut(add).operands.pop();
    assert_eq!(rules(m), ["V03", "V04"]);
}

#[test]
fn v04_attributes_and_parameters_are_the_tables() {
    let mut m = module();
    let f = &mut m.funcs[1];
    let topk = find(f, OpKind::TopK);
    f.graph.op_mut(topk).attrs.set("k", Attr::Bool(true));
    f.graph.op_mut(topk).attrs.set("j", Attr::Int(1));
    assert_eq!(rules(&m), ["V04"]);
    let f = &mut m.funcs[1];
    f.graph.op_mut(topk).attrs = Attrs::from([("k", Attr::Int(2))]);
    let matmul = find(f, OpKind::MatMul);
    f.graph.op_mut(matmul).attrs = Attrs::default();
    let param = find(f, OpKind::Param);
    f.graph.op_mut(param).attrs.set("index", Attr::Int(1));
    // The parameter's type is now another's, and so is its name.
    assert_eq!(rules(&m), ["V05", "V04", "V04"]);
}

#[test]
fn v05_stored_types_are_inferred_types() {
    let mut m = module();
    let f = &mut m.funcs[1];
    let topk = find(f, OpKind::TopK);
    f.graph.op_mut(topk).results[1] = Type::tensor(DType::I32, [Dim::sym("T"), Dim::from(3i64)]);
    let errors = verify(&m, Stage::Tensor).unwrap_err();
    assert_eq!(errors.errors[0].rule, "V05");
    assert_eq!(errors.errors[0].message, "the results are f32[T, 2], i32[T, 3], expected f32[T, 2], i32[T, 2]");
}

#[test]
fn v06_dims_are_not_negative() {
    let mut m = module();
    let f = &mut m.funcs[1];
    let c = Attrs::from([("dims", Attr::Dims(vec![Dim::from(-2i64)])), ("value", Attr::Float(0.0))]);
    let attrs = OpKind::Const.complete_attrs(c).unwrap();
    let results = vec![Type::tensor(DType::F32, [Dim::from(-2i64)])];
    f.graph.add(crate::Op { kind: OpKind::Const, attrs, operands: vec![], results, names: vec![], seq: 0, loc: None });
    assert_eq!(rules(&m), ["V06"]);
    m.syms.push(SymDecl { name: "Z".into(), min: -1, max: 4 });
    assert_eq!(rules(&m), ["V06", "V06"]);
}

#[test]
fn v08_weights_are_declared_once() {
    let mut m = module();
    let f = &mut m.funcs[1];
    let leaf = f.graph.op(find(f, OpKind::Weight)).clone();
    let twin = f.graph.add(leaf);
    let matmul = find(f, OpKind::MatMul);
    f.graph.set_operand(matmul, 1, Value { op: twin, result: 0 });
    assert_eq!(rules(&m), ["V08"]);
    m.weights.clear();
    assert_eq!(rules(&m), ["V08", "V08"]);
    let mut m = module();
    m.weights[0].ty.dims[0] = Dim::from(16i64);
    assert_eq!(rules(&m), ["V08"]);
}

#[test]
fn v09_unsound_sizes_do_not_overflow() {
    let mut m = module();
    m.states[0] = StateDecl::Kv {
        name: "full".into(),
        heads: i64::MAX,
        head_dim: i64::MAX,
        page: 0,
        window: Some(-1),
        dtype: DType::I32,
    };
    assert_eq!(rules(&m), ["V09"; 5]);
}

#[test]
fn v14_finds_what_text_cannot_hold() {
    let mut m = module();
    m.weights[0].name = "a b".into();
    assert_eq!(roundtrip(&m).unwrap_err().errors[0].rule, "V14");
    m.weights.push(WeightDecl { name: "norm".into(), ty: m.weights[0].ty.clone(), key: "k".into() });
    assert!(rules(&m).starts_with(&["V15", "V15"]), "{:?}", rules(&m));
}

#[test]
fn errors_show_the_line() {
    let text = TEXT
        .replace("%s = add %n, %x : f32[T, 8]", "%s = add %n, %x : bf16[T, 8]")
        .replace("(f32[T, 8], kv", "(bf16[T, 8], kv");
    let text = text.replace("T in 1..=8", "T in 9..=8");
    let m = parse("t.gir", &text).unwrap_or_else(|e| panic!("{}", e.render()));
    let errors = verify(&m, Stage::Tensor).unwrap_err();
    let expected = "error: V06: bounds 9..=8 hold nothing or are negative; expected 0 <= least <= greatest
 --> t.gir:2:1
  |
2 | sym T in 9..=8
  | ^^^^^^^^^^^^^^

error: V05: the results are bf16[T, 8], expected f32[T, 8]
  --> t.gir:16:3
   |
16 |   %s = add %n, %x : bf16[T, 8]
   |   ^^^^^^^^^^^^^^^^^^^^^^^^^^^^
";
    assert_eq!(errors.render(Some(("t.gir", &text))), expected);
    assert_eq!(errors.render(None).lines().count(), 2);
}

#[test]
fn weight_only_follows_pure_ops() {
    let m = parse("t.gir", "gir 1\nsym T in 1..=8\nweight @w : f32[8] = \"w\"\nfunc @f(%x: f32[8], %s: weight f32[8]) -> (f32[8], f32[T]) {\n  %a = add @w, %s : f32[8]\n  %b = add %a, %x : f32[8]\n  %c = const {dims = [T], value = 0.0} : f32[T]\n  return %b, %c\n}\n").unwrap();
    let f = &m.funcs[0];
    let names = Names::new(f, &order(f));
    let known: Vec<String> = weight_only(f).iter().map(|v| names.value(*v).to_string()).collect();
    assert_eq!(known, ["%s", "@w", "%a", "%c"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_graph_is_too_broken(edits in proptest::collection::vec((0..6u8, any::<u16>(), any::<u16>(), any::<u16>()), 1..8)) {
        let mut m = module();
        for (what, a, b, c) in edits {
            let f = &mut m.funcs[usize::from(c) % 2];
            let ids = f.graph.ids();
            let id = ids[usize::from(a) % ids.len()];
            let other = Value { op: ids[usize::from(b) % ids.len()], result: c % 3 };
            let n = f.graph.op(id).operands.len();
            match what {
                0 if n > 0 => f.graph.set_operand(id, b % n as u16, Value { result: 0, ..other }),
                1 if n > 0 => f.graph.op_mut(id).operands[usize::from(b) % n] = other,
                2 => f.graph.op_mut(id).operands.push(Value { op: OpId::new(usize::from(b)), result: c }),
                3 => {
                    let kind = OpKind::ALL[usize::from(b) % OpKind::ALL.len()];
                    f.graph.op_mut(id).kind = kind;
                }
                4 => drop(f.graph.op_mut(id).results.pop()),
                _ => f.results.push(other),
            }
        }
        for stage in [Stage::Tensor, Stage::Planned] {
            if let Err(e) = verify(&m, stage) {
                prop_assert!(!e.render(Some(("t.gir", TEXT))).is_empty());
            }
        }
        crate::text::print(&m);
        crate::dump::dot(&m);
        crate::dump::json(&m);
        drop(roundtrip(&m));
    }
}

#[test]
fn many_errors_are_not_all_shown() {
    let text = format!("gir 1\n{}", "sym T in 1..=2\n".repeat(200));
    let errors = verify(&crate::text::parse("m.gir", &text).unwrap(), Stage::Tensor).unwrap_err();
    let shown = errors.render(Some(("m.gir", &text)));
    assert_eq!((errors.errors.len(), shown.matches("error: V15").count()), (199, 64));
    assert!(shown.ends_with("\n\nand 135 more\n"), "{shown}");
}
