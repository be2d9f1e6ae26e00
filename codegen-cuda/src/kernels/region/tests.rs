use gossamer_ir::{Attr, Attrs, DType, Dim, Func, Module, OpKind, Param, StateDecl, TensorType, Type, Value};

use super::{Columns, Give, Index, Need, Region, Source, Target, lift, sinks};

fn t(dtype: DType, dims: &str) -> Type {
    let dims = dims.split_whitespace().map(|d| d.parse::<i64>().map_or_else(|_| Dim::sym(d), Dim::from));
    Type::Tensor(TensorType::new(dtype, dims))
}

struct Build {
    module: Module,
    func: Func,
}

impl Build {
    fn new(states: &[StateDecl], params: Vec<Type>) -> Build {
        let params = params.into_iter().map(|ty| Param { name: "p".into(), ty, weight: false }).collect();
        Build { module: Module { states: states.to_vec(), ..Module::default() }, func: Func::new("r", params) }
    }

    fn p(&self, i: usize) -> Value {
        self.func.param(i).unwrap()
    }

    fn add<const N: usize>(&mut self, kind: OpKind, on: &[Value], attrs: [(&'static str, Attr); N]) -> Value {
        self.func.add(&self.module, kind, on.to_vec(), Attrs::from(attrs), &["x"], None).unwrap()[0]
    }

    fn cast(&mut self, x: Value) -> Value {
        self.add(OpKind::Cast, &[x], [("to", DType::BF16.into())])
    }
}

fn acc<'a>() -> Source<'a> {
    let give: Give = Box::new(|i| format!("acc({})", i.iter().map(Index::text).collect::<Vec<_>>().join(", ")));
    Source::Given(give)
}

fn memory<'a>(name: &str) -> Source<'a> {
    Source::Memory(name.into())
}

#[test]
fn a_shared_value_is_computed_once_and_rounding_is_the_casts() {
    let mut b = Build::new(&[], vec![t(DType::F32, "T 2880"), t(DType::BF16, "2880"), t(DType::F32, "T 2880")]);
    let sum = b.add(OpKind::Add, &[b.p(0), b.p(1)], []);
    let out = b.add(OpKind::Add, &[b.p(2), sum], []);
    let rounded = b.cast(out);
    b.func.results = vec![out, rounded];
    let mut r = Region::new(&b.func, &b.module, vec![acc(), memory("b"), memory("x")]);
    let at = [Index::var("t"), Index::var("n")];
    r.store(out, "y0", &at).unwrap();
    r.store(rounded, "y1", &at).unwrap();
    let expected = "\
// %2 = param {index = 2}
const f32 v2 = x[(i64)t * 2880 + n];
// %0 = param {index = 0}
const f32 v0 = acc(t, n);
// %1 = param {index = 1}
const f32 v1 = to_f32(b[n]);
// %3 = add %0, %1
const f32 v3 = v0 + v1;
// %4 = add %2, %3
const f32 v4 = v2 + v3;
y0[(i64)t * 2880 + n] = v4;
y1[(i64)t * 2880 + n] = from_f32<bf16>(v4);";
    assert_eq!(r.take().join("\n"), expected);
}

#[test]
fn four_columns_are_stored_at_once_behind_what_a_loop_over_rows_need_not_repeat() {
    let mut b = Build::new(&[], vec![t(DType::F32, "T 2880"), t(DType::BF16, "2880"), t(DType::F32, "T 2880")]);
    let sum = b.add(OpKind::Add, &[b.p(0), b.p(1)], []);
    let out = b.add(OpKind::Add, &[b.p(2), sum], []);
    let rounded = b.cast(out);
    b.func.results = vec![out, rounded];
    let held = Source::Given(Box::new(|at: &[Index]| format!("held[{}]", at[1].offset())));
    let mut r = Region::new(&b.func, &b.module, vec![held, memory("b"), memory("x")]);
    let at = [Index::var("t"), Index::var("n")];
    let (lines, ()) = r.scope(|r| r.store_four(rounded, "y1", &at)).unwrap();
    let (once, each) = lift(&lines, &["held", "t"]);
    assert_eq!(once.iter().filter(|l| l.contains("to_f32(b[n")).count(), 4, "{once:?}");
    assert!(!once.iter().any(|l| l.contains("held") || l.contains("(i64)t")), "{once:?}");
    assert!(each.iter().any(|l| l.contains("= held[3];")) && !each.iter().any(|l| l.contains("b[n")), "{each:?}");
    let last = each.last().unwrap();
    assert!(last.contains("store_four(y1 + ((i64)t * 2880 + n), v4, v4_1, v4_2, v4_3);"), "{last}");
    // Another store of the same elements, unrounded, goes through the same variables.
    assert!(r.scope(|r| r.store(out, "y0", &at)).unwrap().0.len() > 1);
}

#[test]
fn what_does_not_need_the_product_can_go_first() {
    let b = attention();
    let found = sinks(&b.func, 0).unwrap();
    let mut r = Region::new(&b.func, &b.module, attention_sources());
    let (lines, ()) = r.scope(|r| r.emit(&found[0], "y0", &[Index::var("t")], &Index::var("n"))).unwrap();
    let parts = super::split(&lines);
    let (early, late) = (parts.early.join("\n"), parts.late.join("\n"));
    for load in ["pos[t]", "table[", "b[n]"] {
        assert!(early.contains(load) && !late.contains(load), "{load}: {early}\n--\n{late}");
    }
    assert!(late.contains("acc(t, n)") && late.contains("y0[") && !early.contains("acc("), "{early}\n--\n{late}");
}

#[test]
fn swiglu_asks_for_both_columns() {
    for (layout, need, columns) in [
        ("interleaved", Need::Interleaved { offset: 0 }, ["acc(t, n * 2)", "acc(t, n * 2 + 1)"]),
        ("halves", Need::Halves { offset: 0, width: 32 }, ["acc(t, n)", "acc(t, n + 32)"]),
    ] {
        let mut b = Build::new(&[], vec![t(DType::F32, "T 64")]);
        let y = b.add(OpKind::Swiglu, &[b.p(0)], [("layout", layout.into())]);
        b.func.results = vec![y];
        let mut r = Region::new(&b.func, &b.module, vec![acc()]);
        r.store(y, "y0", &[Index::var("t"), Index::var("n")]).unwrap();
        let text = r.take().join("\n");
        assert!(columns.iter().all(|c| text.contains(c)), "{text}");
        assert_eq!(sinks(&b.func, 0).unwrap()[0].need, need);
    }
}

fn attention() -> Build {
    let kv = StateDecl::Kv { name: "kv".into(), heads: 2, head_dim: 64, page: 16, window: None, dtype: DType::BF16 };
    let params = vec![
        t(DType::F32, "T 512"),
        t(DType::BF16, "512"),
        t(DType::I32, "T"),
        t(DType::F32, "C 64"),
        kv.ty(),
        t(DType::I32, "T"),
        t(DType::I32, "S P"),
    ];
    let mut b = Build::new(&[kv], params);
    let y = b.add(OpKind::Add, &[b.p(0), b.p(1)], []);
    let part = |b: &mut Build, start: i64, len: i64| {
        b.add(OpKind::Slice, &[y], [("axis", Attr::Int(1)), ("start", Attr::Int(start)), ("len", Attr::Int(len))])
    };
    let (q, k, v) = (part(&mut b, 0, 256), part(&mut b, 256, 128), part(&mut b, 384, 128));
    let q = b.add(OpKind::Rope, &[q, b.p(2), b.p(3)], []);
    let k = b.add(OpKind::Rope, &[k, b.p(2), b.p(3)], []);
    let (q, k, v) = (b.cast(q), b.cast(k), b.cast(v));
    let kv = b.add(OpKind::KvWrite, &[b.p(4), k, v, b.p(2), b.p(5), b.p(6)], []);
    b.func.results = vec![q, kv];
    b
}

fn attention_sources<'a>() -> Vec<Source<'a>> {
    let cache = Source::Cache { keys: "keys".into(), values: "values".into() };
    vec![acc(), memory("b"), memory("pos"), memory("table"), cache, memory("seq"), memory("pages")]
}

#[test]
fn projections_are_stored_by_segment_and_rows_are_looked_up_once() {
    let b = attention();
    let found = sinks(&b.func, 0).unwrap();
    let needs: Vec<_> = found.iter().map(|s| (s.result, s.need, s.range())).collect();
    let expected = vec![
        (0, Need::Rope { offset: 0, dim: 64 }, (0, 256)),
        (1, Need::Rope { offset: 256, dim: 64 }, (256, 128)),
        (1, Need::Same { offset: 384 }, (384, 128)),
    ];
    assert_eq!(needs, expected);
    assert!(matches!(found[1].target, Target::Keys(_)) && matches!(found[2].target, Target::Values(_)));
    let mut r = Region::new(&b.func, &b.module, attention_sources());
    let n = Index::var("n");
    for sink in &found[1..] {
        r.emit(sink, "", &[Index::var("t")], &sink.column(&n)).unwrap();
    }
    let text = r.take().join("\n");
    assert_eq!(text.matches("= pos[t]").count(), 1, "{text}");
    assert_eq!(text.matches("seq[t]").count(), 1, "{text}");
    assert!(text.contains("keys[") && text.contains("values["), "{text}");
    assert!(text.contains("acc(t, n)"), "the rows of k begin where its columns do: {text}");
    let sizes: Vec<_> = r.sizes().iter().map(ToString::to_string).collect();
    assert_eq!(sizes, ["S", "P", "C"], "{text}");
}

#[test]
fn tiles_hold_partners_together() {
    let b = attention();
    let found = sinks(&b.func, 0).unwrap();
    for height in [16, 32, 64, 128] {
        let columns = Columns::choose(&found, 512, height).unwrap();
        assert_eq!(columns == Columns::Adjacent, height >= 64);
        let mut seen = vec![];
        for tile in 0..512 / height {
            let at: Vec<i64> =
                (0..height).map(|l| evaluate(&columns.global(&tile.to_string(), &l.to_string(), height))).collect();
            for (l, n) in at.iter().enumerate() {
                assert_eq!(evaluate(&columns.local(&Index::constant(*n), height)), l as i64, "{height} {n}");
                let partner = if n % 64 < 32 { n + 32 } else { n - 32 };
                assert!(at.contains(&partner), "{height} {n}");
            }
            seen.extend(at);
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..512).collect::<Vec<_>>());
    }
}

/// The value of an expression of numbers, `+`, `*`, `/`, `%` and one pair of parentheses around all of it.
fn evaluate(text: &str) -> i64 {
    let text = text.strip_prefix('(').and_then(|t| t.strip_suffix(')')).unwrap_or(text);
    text.split(" + ")
        .map(|term| {
            let mut words = term.split(' ');
            let mut value: i64 = words.next().unwrap().parse().unwrap();
            while let (Some(op), Some(x)) = (words.next(), words.next()) {
                let x: i64 = x.parse().unwrap();
                value = match op {
                    "*" => value * x,
                    "/" => value / x,
                    _ => value % x,
                };
            }
            value
        })
        .sum()
}

#[test]
fn what_needs_more_than_a_pair_is_refused() {
    let mut b = Build::new(&[], vec![t(DType::F32, "T 64")]);
    let y = b.add(OpKind::Softmax, &[b.p(0)], []);
    b.func.results = vec![y];
    let error = sinks(&b.func, 0).unwrap_err().to_string();
    assert!(error.contains("softmax of a product"), "{error}");
    let mut r = Region::new(&b.func, &b.module, vec![acc()]);
    let error = r.element(y, &[Index::var("t"), Index::var("n")]).unwrap_err().to_string();
    assert!(error.contains("softmax"), "{error}");
    r.set_statistics(y.op, ["most".to_string(), "sum".to_string()]);
    let name = r.element(y, &[Index::var("t"), Index::var("n")]).unwrap();
    assert!(r.take().join("\n").contains(&format!("const f32 {name} = expf(v0 - most) / sum;")));
}

#[test]
fn rows_outside_are_zero_and_scopes_do_not_leak() {
    let mut b = Build::new(&[], vec![t(DType::BF16, "N 8"), t(DType::I32, "T 4")]);
    let y = b.add(OpKind::GatherRows, &[b.p(0), b.p(1)], []);
    b.func.results = vec![y];
    let mut r = Region::new(&b.func, &b.module, vec![memory("x"), memory("ids")]);
    let at = [Index::var("t"), Index::constant(2), Index::var("n")];
    let (inner, _) = r.scope(|r| r.element(y, &at)).unwrap();
    let inner = super::text(&inner);
    assert!(inner.last().unwrap().ends_with("? to_f32(x[(i64)v1 * 8 + n]) : 0.0f;"), "{inner:?}");
    assert!(r.take().is_empty());
    let outer = r.element(y, &at).unwrap();
    assert_ne!(inner.last().unwrap().split(' ').nth(2), Some(outer.as_str()));
    assert_eq!(r.sizes(), [Dim::sym("N")]);
}
