use proptest::prelude::*;

use super::*;
use crate::{Attr, Attrs, DType, Dim, Func, Module, OpKind, Param, StateDecl, Type};

/// One of everything the format has.
pub(crate) const SAMPLE: &str = r#"gir 1

sym R in 1..=4
sym S in 1..=4
sym T in 1..=64
sym P in 1..=16

kv full {head_dim = 64, heads = 8, page = 64}
kv window {dtype = f16, head_dim = 64, heads = 8, page = 64, window = 128}
counts seen {vocab = 4096}

weight @emb : bf16[4096, 512] = "model.embed \"x\" \\ \u{7} ä"
weight @l0.gu.w : mxfp4[32, 5760, 512] = "model.layers.0.mlp.experts.gate_up_proj"

bucket decode.4 {R = 4, S = 4, T = 4}
bucket empty {}

func @norm(%x: bf16[T, 512], %w: weight f32[512]) -> (bf16[T, 512]) {
  %y = rms_norm %x, %w : bf16[T, 512]
  %y.1 = rms_norm %y, %w {eps = 1e-6} : bf16[T, 512]
  return %y.1
}

func @empty() -> () {
  return
}

func @step(%tokens: i32[T], %pos: i32[T], %seq: i32[T], %pages: i32[S, P], %kv: kv<full>, %w: weight f32[512]) -> (f32[T, 4096], kv<full>, f32[T, 4], i32[T, 4]) {
  %x = gather_rows @emb, %tokens : bf16[T, 512]
  %n = call @norm %x, %w : bf16[T, 512]
  call @empty
  %kv.1 = kv_write %kv, %n, %n, %pos, %seq, %pages : kv<full>
  %a = attention %n, %kv.1, %pos, %seq, %pages {scale = 0.125} : bf16[T, 512]
  %c = const {dims = [], value = -inf} : f32[]
  %c.1 = const {dims = [ceil(T / 64)*2 + 3, 1], dtype = bf16, value = nan} : bf16[ceil(T / 64)*2 + 3, 1]
  %r = relayout %a {layout = #sm90.tile64} : bf16[T, 512] #sm90.tile64
  %p = permute %a {perm = [1, 0]} : bf16[512, T]
  %s = reduce %a {axis = 1, keep = true, op = mean} : bf16[T, 1]
  %l = matmul %a, @emb : f32[T, 4096]
  %v, %i = topk %l {k = 4} : f32[T, 4], i32[T, 4]
  return %l, %kv.1, %v, %i
}
"#;

#[test]
fn canonical_text_is_a_fixed_point() {
    let module = parse("sample.gir", SAMPLE).unwrap_or_else(|e| panic!("{}", e.render()));
    assert_eq!(print(&module), SAMPLE);
    assert_eq!(module.to_string(), SAMPLE);
    let func = module.func("norm").unwrap();
    assert_eq!(&*func.params[0].name, "x");
    let op = func.graph.ids().into_iter().find(|id| func.graph.op(*id).kind == OpKind::RmsNorm).unwrap();
    assert_eq!(func.graph.op(op).attrs.float("eps"), 1e-5);
    let loc = func.graph.op(op).loc.clone().unwrap();
    assert_eq!((&*loc.file, loc.line, loc.column), ("sample.gir", 19, 3));
    assert_eq!(print_op(func, op), "%y = rms_norm %x, %w : bf16[T, 512]");
}

#[test]
fn free_form_is_read_and_made_canonical() {
    let text = "; a comment\ngir 1 ; version\nfunc @f( %x : f32[ 2*T+T , 3 ] ,\n  %7: f32[]) -> f32[T*3, 3] {\n\n; nothing\n%y.9 = clamp %x\t{lo=-1,\n hi = 2 } :f32[T*3,3]\n return %y.9 }\n";
    let err = parse("f.gir", text).unwrap_err();
    assert_eq!(err.to_string(), "f.gir:9:14: expected the end of the line, found `}`");
    let text = text.replace(" }\n", "\n}").replace("hi = 2\n}", "hi = 2 }");
    let module = parse("f.gir", &text).unwrap_or_else(|e| panic!("{}", e.render()));
    let canonical = "gir 1\n\nfunc @f(%x: f32[T*3, 3], %7: f32[]) -> (f32[T*3, 3]) {\n  %y = clamp %x {hi = 2.0, lo = -1.0} : f32[T*3, 3]\n  return %y\n}\n";
    assert_eq!(print(&module), canonical);
}

#[test]
fn broken_modules_print() {
    let mut f = Func::new("f", vec![Param { name: "x".into(), ty: Type::tensor(DType::F32, []), weight: false }]);
    let x = f.param(0).unwrap();
    let y = f.add(&Module::default(), OpKind::Neg, vec![x], Attrs::default(), &["y"], None).unwrap()[0];
    f.results = vec![y, crate::Value { op: y.op, result: 7 }, crate::Value { op: crate::OpId::new(99), result: 0 }];
    assert!(print_func(&f).ends_with("return %y, %?, %?\n}\n"));
    f.graph.op_mut(y.op).operands[0] = y;
    assert!(print_func(&f).contains("%y = neg %y : f32[]"));
}

#[test]
fn floats_keep_their_bits() {
    for x in [
        0.0,
        -0.0,
        1e-5,
        0.1,
        f64::MIN_POSITIVE,
        5e-324,
        f64::MAX,
        1e16,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
        -f64::NAN,
    ] {
        let text =
            format!("gir 1\nfunc @f() -> () {{\n%c = const {{dims = [], value = {}}} : f32[]\nreturn\n}}", float(x));
        let module = parse("f.gir", &text).unwrap_or_else(|e| panic!("{}", e.render()));
        let f = &module.funcs[0];
        assert_eq!(f.graph.op(f.graph.ids()[0]).attrs.float("value").to_bits(), x.to_bits(), "{text}");
    }
}

#[test]
fn decompositions_take_attributes_and_guards() {
    let text = "decomp clamp {lo = 0.0}(%x: f32[N]) -> (f32[N]) {\n  return %x\n}\ndecomp clamp(%x: f32[N]) -> (f32[N]) {\n  %l = const {dims = [N], value = -$lo} : f32[N]\n  %y = max %x, %l : f32[N]\n  return %y\n}\n";
    let attrs = |lo: f64| OpKind::Clamp.complete_attrs(Attrs::from([("lo", Attr::Float(lo))])).unwrap();
    let guarded = parse_decomp("clamp", text, &attrs(0.0)).unwrap_or_else(|e| panic!("{}", e.render()));
    assert_eq!(guarded.funcs.len(), 1);
    assert_eq!(guarded.funcs[0].graph.len(), 1);
    let general = parse_decomp("clamp", text, &attrs(2.0)).unwrap();
    assert!(general.to_string().contains("value = -2.0"));
    assert_eq!(&*general.syms[0].name, "N");
    let unknown = parse_decomp("clamp", &text.replace("$lo", "$loo"), &attrs(1.0)).unwrap_err();
    assert_eq!(unknown.to_string(), "clamp:5:36: unknown attribute `$loo`; did you mean `$lo`?");
    assert!(parse("f.gir", &format!("gir 1\n{text}")).is_err());
}

#[test]
fn every_declaration_survives() {
    let module = parse("sample.gir", SAMPLE).unwrap();
    assert!(matches!(&module.states[1], StateDecl::Kv { dtype: DType::F16, window: Some(128), .. }));
    assert_eq!(module.weights[0].key, "model.embed \"x\" \\ \u{7} ä");
    assert_eq!(module.bucket("decode.4").unwrap().sizes.len(), 3);
    assert_eq!(module.sym("T").unwrap().max, 64);
    let again = parse("again.gir", &print(&module)).unwrap();
    assert_eq!(same(&module, &again), Ok(()));
    let mut other = again.clone();
    other.syms[0].max = 5;
    assert_eq!(same(&module, &other), Err("symbols differ".into()));
}

#[test]
fn errors_show_line_and_caret() {
    let text = "gir 1\nfunc @f(%x: f32[4]) -> (f32[4]) {\n  %y = matmull %x : f32[4]\n  %z = neg %y : f32[4]\n  %w = neg %q : f33[4]\n  return %z\n}\n";
    let errors = parse("bad.gir", text).unwrap_err();
    let expected = "error: unknown op `matmull`
 --> bad.gir:3:8
  |
3 |   %y = matmull %x : f32[4]
  |        ^^^^^^^
  |
  = help: did you mean `matmul`?

error: unknown value `%q`
 --> bad.gir:5:12
  |
5 |   %w = neg %q : f33[4]
  |            ^^
  |
  = help: known: %x, %y, %z

error: unknown element type `f33`
 --> bad.gir:5:17
  |
5 |   %w = neg %q : f33[4]
  |                 ^^^
  |
  = help: did you mean `f32`?
";
    assert_eq!(errors.render(), expected);
    assert_eq!(errors.to_string(), "bad.gir:3:8: unknown op `matmull`; did you mean `matmul`? (and 2 more errors)");
}

#[test]
fn dims_cannot_explode() {
    let sums: Vec<String> = (0..12).map(|i| format!("ceil(A{i}*2 + 2 / 2)")).collect();
    let text = |dim: &str| format!("gir 1\nweight @w : f32[{dim}] = \"w\"\n");
    assert!(parse("d", &text(&sums.join("*"))).unwrap_err().to_string().contains("at most 64 factors"));
    let deep = format!("{}T{}", "ceil(".repeat(1000), " / 3)".repeat(1000));
    assert!(parse("d", &text(&deep)).unwrap_err().to_string().contains("at most 8 nested"));
    assert!(parse("d", &text("9223372036854775807*T*3 + ceil(9223372036854775807 / 2)")).is_ok());
    assert!(parse("d", &text("9223372036854775808")).is_err());
}

#[test]
fn reading_stops_after_many_errors() {
    let text = format!("gir 1\n{}", "nonsense\nweight @w\n".repeat(5000));
    let errors = parse("many.gir", &text).unwrap_err();
    assert_eq!(errors.errors.len(), 64);
    assert!(errors.stopped && errors.render().ends_with("stopped after 64 errors\n"));
}

/// The sample with `count` edits at places chosen by `at`: bytes dropped, doubled, or replaced by bits of syntax.
fn mutated(edits: &[(usize, usize, u8)]) -> String {
    let bits = [
        "%", "@", "{", "}", "(", ")", "[", "]", "\n", ":", "=", ",", "\"", ";", "$x", "->", "1", "ceil(", "kv<",
        "func ", "return", "9", "é", "-", "#",
    ];
    let mut text: Vec<u8> = SAMPLE.into();
    for (at, len, what) in edits {
        let at = at % (text.len() + 1);
        let end = (at + len % 12).min(text.len());
        let what = *what as usize;
        match what % 3 {
            0 => drop(text.drain(at..end)),
            1 => drop(text.splice(at..end, bits[what % bits.len()].bytes())),
            _ => {
                let copy: Vec<u8> = text[at..end].into();
                text.splice(at..at, copy);
            }
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_bytes_are_read_or_refused(data in proptest::collection::vec(any::<u8>(), 0..400)) {
        fuzz::module(&data);
        fuzz::module(&[b"gir 1\n", data.as_slice()].concat());
        fuzz::decomp(&data);
    }

    #[test]
    fn mutated_text_is_read_or_refused(edits in proptest::collection::vec((any::<usize>(), any::<usize>(), any::<u8>()), 1..6)) {
        let text = mutated(&edits);
        fuzz::module(text.as_bytes());
        fuzz::decomp(text.replace("func @", "decomp ").as_bytes());
    }

    #[test]
    fn any_dim_reads_back(a in 0..9i64, b in 1..9i64, c in 0..99i64, s in "[A-Z]", t in "[A-Z]") {
        let (s, t) = (Dim::sym(&s), Dim::sym(&t));
        let dim = &(&(&(&s * &t) * &Dim::from(a)) + &(&s + &Dim::from(c)).ceil_div(b)) + &Dim::from(c);
        let text = format!("gir 1\nweight @w : f32[{dim}] = \"w\"\n");
        let module = parse("d", &text).unwrap_or_else(|e| panic!("{}", e.render()));
        prop_assert_eq!(&module.weights[0].ty.dims[0], &dim);
    }
}
