use super::*;

const NEG: &str = "gir 1\nfunc @f(%x: f32[2]) -> (f32[2]) {\n  %y = neg %x : f32[2]\n  return %y\n}\n";

fn messages(text: &str) -> Vec<String> {
    run("t.gir", text, false)
        .err()
        .unwrap_or_default()
        .into_iter()
        .map(|f| format!("{}: {}", f.line, f.message))
        .collect()
}

#[test]
fn nothing_is_skipped_silently() {
    assert_eq!(messages(NEG), ["0: has no `; test: MODE` line"]);
    let known = "known: roundtrip, verify, opt, exact, eval, cost, cuda, run";
    assert_eq!(messages(&format!("; test: ptx\n{NEG}")), [format!("1: unknown mode `ptx`; {known}")]);
    let lost = messages(&format!("; test: verify\n{NEG}; check: x\n"));
    assert_eq!(lost, ["7: no mode of this file reads `check:`"]);
    assert_eq!(messages(&format!("; test: eval\n{NEG}")), ["0: has no `; eval:` line"]);
}

#[test]
fn verify_wants_every_error_and_no_other() {
    let bad = NEG.replace(": f32[2]\n", ": f16[2]\n");
    let found = messages(&format!("; test: verify\n{bad}"));
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("5: unexpected error: syntax expected a result of type f32[2]"), "{found:?}");
    let bad = NEG.replace("neg %x :", "neg %x, %x : ");
    assert_eq!(
        messages(&format!(
            "; test: verify\n{}",
            bad.replace("f32[2]\n  r", "f32[2] ; error: V04 `neg` has 2 operands\n  r")
        )),
        [""; 0]
    );
    let wrong = messages(&format!("; test: verify\n{}", bad.replace("f32[2]\n  r", "f32[2] ; error: V05 neg\n  r")));
    assert_eq!(wrong[0], "4: there is no error `V05 neg` on line 4");
    assert_eq!(wrong.len(), 2);
}

#[test]
fn eval_compares_values() {
    let text = |eval: &str| format!("; test: eval\n{NEG}; eval: {eval}\n");
    assert_eq!(messages(&text("@f([1, -inf]) = [-1, inf]")), [""; 0]);
    assert_eq!(messages(&text("@f(random(3)) = @f")), [""; 0]);
    assert_eq!(
        messages(&text("@f([1, 2]) = [-1, -3]")),
        ["7: result 0 differs at element 1: found -2, expected -3; all of it: [-1, -2]"]
    );
    assert_eq!(messages(&text("@f([1, 2, 3]) = _")), ["7: argument `%x`: f32[2] has 2 elements, found 3"]);
    assert_eq!(messages(&text("@g([1]) = _")), ["7: there is no function @g"]);
    assert_eq!(messages(&text("@f([1, 2] = _")), ["7: expected `,` at `= _`"]);
}

#[test]
fn exact_is_blessed() {
    let file = format!("; test: exact none\n{NEG}");
    assert!(messages(&file)[0].contains("BLESS=1 accepts it"));
    let blessed = run("t.gir", &file, true).unwrap().unwrap();
    assert!(blessed.ends_with(
        "; exact:\n; gir 1\n;\n; func @f(%x: f32[2]) -> (f32[2]) {\n;   %y = neg %x : f32[2]\n;   return %y\n; }\n"
    ));
    assert_eq!(run("t.gir", &blessed, true), Ok(None));
    assert_eq!(run("t.gir", &blessed, false), Ok(None));
}

#[test]
fn roundtrip_wants_canonical_text() {
    assert_eq!(messages(&format!("; test: roundtrip\n{NEG}")), [""; 0]);
    let odd = format!("; test: roundtrip\n{}", NEG.replace("%y = neg %x", "%y  = neg %x"));
    assert_eq!(
        messages(&odd),
        ["4: is not canonical\n  found    `  %y  = neg %x : f32[2]`\n  expected `  %y = neg %x : f32[2]`"]
    );
}

#[test]
fn cost_counts_launches() {
    let text = |cost: &str| format!("; test: cost\n{NEG}; cost: {cost}\n");
    assert_eq!(messages(&text("launches = 1, kernels = neg")), [""; 0]);
    assert_eq!(messages(&text("launches < 1")), ["7: launches is 1, expected < 1; the kernels are: neg"]);
    assert_eq!(messages(&format!("; test: cost\n{NEG}")), ["0: has no `; cost:` line"]);
    assert_eq!(messages(&format!("; test: cost\n; cost: launches = 1, arena <= 256 B\n{NEG}")), [""; 0]);
    assert!(
        messages(&format!("; test: cost\n; set: T = x\n; cost: launches = 1\n{NEG}"))[0].starts_with("2: `T` is `x`")
    );
}

#[test]
fn cuda_looks_at_the_text() {
    let text = |check: &str| format!("; test: cuda\n{NEG}; check: {check}\n");
    assert_eq!(messages(&text("extern \"C\"")), [""; 0]);
    assert_eq!(messages(&text("// kernel 0: gs_")), [""; 0]);
    assert_eq!(messages(&text("no such text")), ["7: found no line with `no such text` in the output:"]);
}

#[test]
fn run_is_built_everywhere() {
    assert_eq!(messages(&format!("; test: run\n{NEG}")), ["0: has no `; eval:` line"]);
    assert_eq!(
        messages(&format!("; test: run\n{NEG}; eval: @f([1]) = _\n")),
        ["7: argument `%x`: f32[2] has 2 elements, found 1"]
    );
    assert_eq!(messages(&format!("; test: run\n{NEG}; eval: @f([1, 2]) = _\n")), [""; 0]);
}
