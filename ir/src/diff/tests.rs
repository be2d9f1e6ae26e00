use super::*;
use crate::text::parse;

fn module(body: &str) -> Module {
    let text = format!("gir 1\nsym T in 1..=8\nweight @w : bf16[4, 4] = \"w\"\nweight @v : bf16[4, 4] = \"v\"\n{body}");
    parse("t.gir", &text).unwrap_or_else(|e| panic!("{}", e.render()))
}

fn f(lines: &str, result: &str) -> Module {
    module(&format!("func @f(%x: f32[T, 4], %b: f32[4]) -> f32[T, 4] {{\n{lines}\n  return {result}\n}}"))
}

fn text(a: &Module, b: &Module) -> String {
    let d = diff(a, b);
    // What is added in one direction is removed in the other.
    let back = diff(b, a);
    let count = |d: &ModuleDiff| d.funcs.iter().flat_map(|f| &f.changes).count();
    assert_eq!(count(&d), count(&back));
    assert_eq!(diff(a, b).json(), d.json());
    d.text()
}

const CHAIN: &str =
    "  %c = cast %x {to = bf16} : bf16[T, 4]\n  %m = matmul %c, @w : f32[T, 4]\n  %y = add %m, %b : f32[T, 4]";

#[test]
fn names_and_order_do_not_count() {
    let a = f("  %p = neg %x : f32[T, 4]\n  %q = silu %x : f32[T, 4]\n  %r = add %p, %q : f32[T, 4]", "%r");
    let b = f("  %z = silu %x : f32[T, 4]\n  %a = neg %x : f32[T, 4]\n  %s = add %a, %z : f32[T, 4]", "%s");
    assert_eq!(text(&a, &b), "the same: 1 functions, 3 ops\n");
    assert_eq!(diff(&a, &b).json()["equal"], true);
    let swapped = f("  %z = silu %x : f32[T, 4]\n  %a = neg %x : f32[T, 4]\n  %s = add %z, %a : f32[T, 4]", "%s");
    assert_eq!(
        text(&a, &swapped),
        "func @f: 1 changed, 2 the same\n  < %r = add %p, %q : f32[T, 4]\n  > %s = add %z, %a : f32[T, 4]  ; operands\n"
    );
}

#[test]
fn an_op_taken_out_of_a_chain_is_found_from_both_ends() {
    let b = f(
        "  %c = cast %x {to = bf16} : bf16[T, 4]\n  %m = matmul %c, @w : f32[T, 4]\n  %n = neg %m : f32[T, 4]\n  %y = add %n, %b : f32[T, 4]",
        "%y",
    );
    assert_eq!(
        text(&f(CHAIN, "%y"), &b),
        "func @f: 1 added, 1 changed, 2 the same\n  + %n = neg %m : f32[T, 4]\n  < %y = add %m, %b : f32[T, 4]\n  > %y = add %n, %b : f32[T, 4]  ; operands\n"
    );
}

#[test]
fn attributes_types_and_weights() {
    let narrow = CHAIN.replace("%x {to = bf16}", "%x {to = f32}").replace("bf16[T, 4]", "f32[T, 4]");
    assert_eq!(
        text(&f(CHAIN, "%y"), &f(&narrow, "%y")),
        "func @f: 1 changed, 2 the same\n  < %c = cast %x {to = bf16} : bf16[T, 4]\n  > %c = cast %x {to = f32} : f32[T, 4]  ; attributes, retyped\n"
    );
    let other = CHAIN.replace("@w", "@v");
    assert_eq!(
        text(&f(CHAIN, "%y"), &f(&other, "%y")),
        "func @f: 1 changed, 2 the same\n  < %m = matmul %c, @w : f32[T, 4]\n  > %m = matmul %c, @v : f32[T, 4]  ; operands\n"
    );
}

#[test]
fn one_of_two_equal_ops_is_enough() {
    let two = "  %p = neg %x : f32[T, 4]\n  %q = neg %x : f32[T, 4]\n  %r = add %p, %q : f32[T, 4]";
    let one = "  %p = neg %x : f32[T, 4]\n  %r = add %p, %p : f32[T, 4]";
    assert_eq!(
        text(&f(two, "%r"), &f(one, "%r")),
        "func @f: 1 removed, 1 changed, 1 the same\n  - %q = neg %x : f32[T, 4]\n  < %r = add %p, %q : f32[T, 4]\n  > %r = add %p, %p : f32[T, 4]  ; operands\n"
    );
}

#[test]
fn functions_declarations_signatures_and_results() {
    let a = module("func @g(%x: f32[4]) -> f32[4] {\n  %y = neg %x : f32[4]\n  return %y\n}");
    let mut b = module("func @h(%x: f32[4]) -> f32[4] {\n  return %x\n}");
    assert_eq!(text(&a, &b), "func @g: removed, 1 ops\n  - %y = neg %x : f32[4]\nfunc @h: added, 0 ops\n");
    b = module("func @g(%a: f32[5]) -> f32[5] {\n  return %a\n}");
    b.syms[0].max = 9;
    b.weights.remove(1);
    assert_eq!(
        text(&a, &b),
        "< sym T in 1..=8\n> sym T in 1..=9\n- weight @v : bf16[4, 4] = \"v\"\nfunc @g: 1 removed, 0 the same\n  \
         < func @g(%x: f32[4]) -> (f32[4]) {\n  > func @g(%a: f32[5]) -> (f32[5]) {\n  - %y = neg %x : f32[4]\n  < return %y\n  > return %a  ; other values\n"
    );
    let d = diff(&a, &b).json();
    assert_eq!(
        (&d["decls"][0]["change"], &d["funcs"][0]["changes"][0]["change"]),
        (&"changed".into(), &"removed".into())
    );
}

fn kernel(epilogue: &str, operands: &str, params: &str) -> Module {
    f(
        &format!(
            "  %c = cast %x {{to = bf16}} : bf16[T, 4]\n  %y = kernel %c, @w{operands} {{template = stream}}\n    main(%x: bf16[T, 4], %w: bf16[4, 4]) {{\n      \
             %a = matmul %x, %w : f32[T, 4]\n      yield %a\n    }}\n    epilogue(%a: f32[T, 4]{params}) {{\n{epilogue}\n      yield %z\n    }} : f32[T, 4]"
        ),
        "%y",
    )
}

#[test]
fn kernels_are_compared_region_by_region() {
    let plain = kernel("      %z = neg %a : f32[T, 4]", "", "");
    let renamed = kernel("      %q = neg %a : f32[T, 4]\n      %z = silu %q : f32[T, 4]", "", "");
    assert!(diff(&plain, &plain.clone()).is_empty());
    assert_eq!(
        text(&plain, &renamed),
        "func @f: 1 changed, 1 the same\n  < %y = kernel %c, @w {template = stream}\n  > %y = kernel %c, @w {template = stream}  ; body\n    \
         epilogue: 1 added, 1 the same\n      + %z = silu %q : f32[T, 4]\n      < yield %z\n      > yield %z  ; other values\n"
    );
    let bias = kernel("      %q = add %a, %b : f32[T, 4]\n      %z = neg %q : f32[T, 4]", ", %b", ", %b: f32[4]");
    let t = text(&plain, &bias);
    assert!(t.contains("> %y = kernel %c, @w, %b {template = stream}  ; operands, body\n    epilogue: 1 added, 1 changed, 0 the same"), "{t}");
    assert!(t.contains("< epilogue(%a: f32[T, 4]) {\n      > epilogue(%a: f32[T, 4], %b: f32[4]) {"), "{t}");
}
