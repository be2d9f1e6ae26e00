use gossamer_ir::{Bindings, Module, OpKind, Value, text};

use super::*;

const H100: &str = include_str!("../../../codegen-cuda/machines/sm90-h100.toml");
const H200: &str = include_str!("../../../codegen-cuda/machines/sm90-h200.toml");

fn h100() -> Machine {
    Machine::parse("sm90-h100.toml", H100).unwrap()
}

/// A machine with round numbers: 100 SMs, 1 TB/s (1 MB/us), L2 10 TB/s and 20 MB, 100 GB/s an SM, 100 TFLOP/s, 10 Tops/s.
fn round() -> Machine {
    let mut machine = h100();
    machine.device = machine::Device {
        sms: 100,
        memory_tb_s: 1.0,
        l2_tb_s: 10.0,
        l2_mb: 20.0,
        sm_gb_s: 100.0,
        tensor_tflops: 100.0,
        scalar_tops: 10.0,
    };
    machine.templates.insert(
        "stream".into(),
        machine::TemplateFigures {
            sm_gb_s: None,
            launch_us: 1.0,
            ramp_us: 2.0,
            prologue_us: 0.5,
            hand_over_us: 0.0,
            bandwidth_efficiency: 0.5,
            compute_efficiency: 0.5,
            unit_rows: 16,
            unit_columns: 10,
            row_step: 8,
            units_per_sm: 1,
            spread: false,
            persistent: true,
        },
    );
    machine
}

fn near(found: f64, expected: f64) {
    assert!((found - expected).abs() <= 1e-9 * expected.abs().max(1.0), "{found} instead of {expected}");
}

#[test]
fn distinct_experts() {
    near(expected_distinct(32.0, 4.0, 1.0), 4.0);
    // 32 * (1 - (7/8)^8)
    near(expected_distinct(32.0, 4.0, 8.0), 32.0 * (1.0 - 0.343_608_915_805_816_65));
    near(expected_distinct(128.0, 4.0, 0.0), 0.0);
    near(expected_distinct(4.0, 8.0, 2.0), 4.0);
    near(expected_distinct(0.0, 4.0, 2.0), 0.0);
}

#[test]
fn terms_by_hand() {
    let kernel = KernelShape {
        template: "stream".into(),
        launches: 1,
        bytes: Bytes { weights: 10e6, state: 0.0, read: 0.02e6, written: 0.08e6 },
        grid: Grid { groups: 1.0, rows: 4.0, columns: 1500.0, whole_rows: false, shared_weights: true },
        tensor_flops: 40e6,
        scalar_ops: 1e6,
        weight_ops: 6e6,
        held: Held { bytes: 0.02e6, ops: 0.1e6, reduces: true },
        then: vec![],
    };
    let t = cost(&kernel, &round()).unwrap();
    // 150 units of 10 columns on 100 SMs: two on the busiest, fill 150 / 200.
    assert_eq!((t.units, t.rounds, t.fill), (150.0, 2.0, 0.75));
    assert_eq!((t.launch_us, t.ramp_us), (1.0, 2.0));
    // 100 blocks hold 20 KB: 0.2 us an SM, 2 MB from L2 also 0.2; 0.1 M operations on one SM at 0.1 Tops/s: 1 us; the norm 0.5.
    near(t.prologue_us, 0.2 + 1.0 + 0.5);
    near(t.repeated_bytes, 99.0 * 0.02e6);
    // 10 MB at 0.5 TB/s and 0.1 MB of activations from L2. (The busiest SM: 2 units of 66.7 KB and a bit take 1.3 us.)
    near(t.memory_us, 20.0 + 0.01);
    assert!(t.in_l2);
    // Rows rounded up to 8: 80 MFLOP at 50 TFLOP/s and fill 0.75: 2.13 us; 7 M operations at 10 Tops/s: 0.93.
    near(t.compute_us, 80.0 / 50.0 / 0.75);
    near(t.total_us, 1.0 + 2.0 + 1.7 + 20.01);
    near(t.roofline_us, 10.1);
    assert_eq!(t.bound(), "memory");

    // Activations beyond half of L2 go through memory.
    let big = KernelShape { bytes: Bytes { written: 11e6, ..kernel.bytes }, ..kernel.clone() };
    let t = cost(&big, &round()).unwrap();
    assert!(!t.in_l2);
    near(t.memory_us, 21.02 / 0.5);
    // One unit: one SM reads it all.
    let narrow = KernelShape { grid: Grid { columns: 10.0, ..kernel.grid }, held: Held::default(), ..kernel.clone() };
    let t = cost(&narrow, &round()).unwrap();
    near(t.memory_us, 10.1e6 / 0.1e6);
    near(t.fill, 0.01);
    // Spread columns: 5 groups of 4 rows leave room for 20 units of columns each, not 150.
    let mut spread = round();
    spread.templates.get_mut("stream").unwrap().spread = true;
    let grouped = KernelShape { grid: Grid { groups: 5.0, ..kernel.grid }, ..kernel.clone() };
    let t = cost(&grouped, &spread).unwrap();
    assert_eq!((t.units, t.fill), (100.0, 1.0));
    near(t.compute_us, 40.0 * (8.0 / 4.0) * (1504.0 / 1500.0) / 50.0);
    // No rows: nothing to do.
    let empty = KernelShape { grid: Grid { rows: 0.0, ..kernel.grid }, ..kernel.clone() };
    assert_eq!(cost(&empty, &round()).unwrap().total_us, 0.0);
    // Rows beyond a unit: three units of rows, weights unpacked for each, 48 rows instead of 40.
    let tall = KernelShape { grid: Grid { rows: 40.0, ..kernel.grid }, weight_ops: 600e6, ..kernel };
    let t = cost(&tall, &round()).unwrap();
    assert_eq!((t.units, t.rounds), (450.0, 5.0));
    near(t.compute_us, 1801.0 / 10.0 / 0.9);
}

#[test]
fn text_and_json() {
    let kernel = KernelShape {
        template: "stream".into(),
        launches: 1,
        bytes: Bytes { weights: 10e6, state: 0.0, read: 0.02e6, written: 0.08e6 },
        grid: Grid { groups: 1.0, rows: 1.0, columns: 1000.0, whole_rows: false, shared_weights: true },
        tensor_flops: 40e6,
        ..KernelShape::default()
    };
    let t = cost(&kernel, &round()).unwrap();
    assert_eq!(
        t.text(),
        "launch         1.00 us   1 x stream\n\
         ramp           2.00 us   tail of the kernel before, first loads\n\
         prologue       0.00 us   0.000 MB read again by blocks that hold rows\n\
         memory        20.01 us   10.000 MB weights, 0.000 MB state, 0.020 MB read and 0.080 MB written from L2\n\
         compute        6.40 us   0.040 GFLOP on tensor cores, 0.000 G scalar operations\n\
         total         23.01 us   memory bound; 100 units, 1 on the busiest SM, fill 1.00\n\
         roofline      10.10 us   10.100 MB in all; 44 % of the total\n"
    );
    let json = t.json();
    assert_eq!(json["bytes"]["total"], 10.1e6);
    assert_eq!(json["us"]["memory"], t.memory_us);
    assert_eq!(json["bound"], "memory");
    let missing = KernelShape { template: "absent".into(), ..kernel };
    assert_eq!(
        cost(&missing, &round()).unwrap_err().to_string(),
        "cost: machine sm90-h100 has no figures for template `absent`; add a table [template.absent]"
    );
}

#[test]
fn shipped_machines_parse() {
    assert_eq!(h100().name, "sm90-h100");
    assert_eq!(Machine::default(), h100());
    let h200 = Machine::parse("sm90-h200.toml", H200).unwrap();
    assert_eq!(h200.name, "sm90-h200");
    assert!(h200.device.memory_tb_s > h100().device.memory_tb_s);
}

#[test]
fn machine_errors_are_one_line() {
    let of = |from: &str, to: &str| {
        assert!(H100.contains(from));
        Machine::parse("m.toml", &H100.replacen(from, to, 1)).unwrap_err().to_string()
    };
    let line = |what: &str| 1 + H100.lines().position(|l| l.starts_with(what)).unwrap();
    assert_eq!(
        of("l2_mb = 50.0 ", "l2_gb = 50.0 "),
        format!(
            "m.toml, line {}: unknown field `l2_gb`, expected one of `sms`, `memory_tb_s`, `l2_tb_s`, `l2_mb`, `sm_gb_s`, \
             `tensor_tflops`, `scalar_tops`",
            line("l2_mb")
        )
    );
    assert_eq!(
        of("sms = 132", "sms = \"many\""),
        format!("m.toml, line {}: invalid type: string \"many\", expected u32", line("sms"))
    );
    assert!(of("sms = 132", "sms = ").starts_with(&format!("m.toml, line {}: ", line("sms"))));
    assert!(of("sms = 132\n", "").contains("missing field `sms`"));
    assert_eq!(of("sms = 132", "sms = 0"), "m.toml: device.sms is 0, expected at least 1");
    assert_eq!(of("l2_mb = 50.0", "l2_mb = -1.0"), "m.toml: device.l2_mb is -1, expected a number from 1e-6 to 1e9");
    assert_eq!(of("l2_mb = 50.0", "l2_mb = nan"), "m.toml: device.l2_mb is NaN, expected a number from 1e-6 to 1e9");
    assert_eq!(
        of("bandwidth_efficiency = 0.97", "bandwidth_efficiency = 1.5"),
        "m.toml: template.stream.bandwidth_efficiency is 1.5, expected a fraction from 1e-6 to 1"
    );
    // So small that every time would be infinite, and nothing could be chosen.
    assert_eq!(
        of("compute_efficiency = 0.093", "compute_efficiency = 1e-320"),
        format!("m.toml: template.stream.compute_efficiency is {}, expected a fraction from 1e-6 to 1", 1e-320)
    );
    assert_eq!(
        of("launch_us = 1.20", "launch_us = 1e10"),
        "m.toml: template.stream.launch_us is 10000000000, expected microseconds from 0 to 1e9"
    );
    assert_eq!(of("unit_rows = 32", "unit_rows = 0"), "m.toml: template.stream.unit_rows is 0, expected at least 1");
    assert_eq!(
        of("[template.stream]", "[template.steam]"),
        format!(
            "m.toml: template `stream` has no table; expected one table for each of {}",
            gossamer_ir::template::TEMPLATES.iter().map(|t| t.name).collect::<Vec<_>>().join(", ")
        )
    );
    for error in [of("sms = 132", "sms = "), of("[device]", "[devices]"), of("ramp_us = 1.7", "ramp = 1")] {
        assert!(!error.contains('\n') && error.len() < 250, "{error}");
    }
}

const SYMS: &str = "gir 1\n\nsym C in 1..=8192\nsym P in 1..=512\nsym S in 1..=64\nsym T in 1..=2048\n\n\
                    kv full {head_dim = 64, heads = 8, page = 16}\nkv near {head_dim = 64, heads = 8, page = 16, window = 128}\n\n";

fn sizes(t: i64, s: i64) -> Bindings {
    [("T", t), ("S", s), ("C", 4096), ("P", 256)].into_iter().map(|(n, v)| (n.into(), v)).collect()
}

/// The shape of the last op of the first function; parameters of `weights` are weights.
fn shape_of(body: &str, sizes: &Bindings) -> KernelShape {
    try_shape(body, sizes).unwrap()
}

fn try_shape(body: &str, sizes: &Bindings) -> Result<KernelShape, CostError> {
    let module: Module = text::parse("t.gir", &format!("{SYMS}{body}")).unwrap();
    gossamer_ir::verify::verify(&module, gossamer_ir::verify::Stage::Tensor).unwrap();
    let f = &module.funcs[0];
    let id = f.graph.ids().into_iter().rfind(|id| f.graph.op(*id).kind != OpKind::Param).unwrap();
    let is_weight = |v: Value| f.graph.op(v.op).names.first().is_some_and(|n| n.starts_with("w."));
    of_op(&module, f, id, &is_weight, sizes)
}

const QKV: &str = "func @f(%x: f32[T, 2880], %w.n: bf16[2880], %w.w: bf16[5120, 2880], %w.b: bf16[5120]) -> (f32[T, 5120], f32[T, 2880]) {
  %y, %r = kernel %x, %w.n, %w.w, %w.b, %x {template = stream}
    prologue(%x: f32[T, 2880], %n: bf16[2880]) {
      %y = rms_norm %x, %n : f32[T, 2880]
      %y.1 = cast %y {to = bf16} : bf16[T, 2880]
      yield %y.1
    }
    main(%y: bf16[T, 2880], %w: bf16[5120, 2880]) {
      %a = matmul %y, %w : f32[T, 5120]
      yield %a
    }
    epilogue(%a: f32[T, 5120], %b: bf16[5120], %x: f32[T, 2880]) {
      %z = add %a, %b : f32[T, 5120]
      yield %z, %x
    } : f32[T, 5120], f32[T, 2880]
  return %y, %r
}
";

#[test]
fn dense_kernel() {
    let k = shape_of(QKV, &sizes(2, 2));
    assert_eq!((k.template.as_str(), k.launches), ("stream", 1));
    // Weight, norm and bias in bf16; x in f32 although it is passed twice.
    near(k.bytes.weights, 2.0 * (5120.0 * 2880.0 + 2880.0 + 5120.0));
    near(k.bytes.read, 2.0 * 2880.0 * 4.0);
    near(k.bytes.written, 2.0 * (5120.0 + 2880.0) * 4.0);
    near(k.bytes.state, 0.0);
    assert_eq!(k.grid, Grid { groups: 1.0, rows: 2.0, columns: 5120.0, whole_rows: false, shared_weights: true });
    near(k.tensor_flops, 2.0 * 2.0 * 5120.0 * 2880.0);
    // The bias in the epilogue; norm (4) and cast (1) in every block, which holds x and the norm's weight.
    near(k.scalar_ops, 2.0 * 5120.0);
    near(k.held.ops, 5.0 * 2.0 * 2880.0);
    near(k.held.bytes, 2.0 * 2880.0 * 4.0 + 2880.0 * 2.0);
    assert!(k.held.reduces);
    // performance.md 1.5 has 12.3 us for this kernel at one row with plain edges; the norm in front is ours.
    let t = cost(&shape_of(QKV, &sizes(1, 1)), &h100()).unwrap();
    assert!((12.0..14.5).contains(&t.total_us), "{}", t.text());
    assert!((9.3..9.5).contains(&t.roofline_us), "{}", t.text());
}

const GATE_UP: &str = "func @f(%x: bf16[T, 2880], %w.w: mxfp4[32, 5760, 2880], %ids: i32[T, 4], %w.b: bf16[32, 5760]) -> (bf16[T, 4, 2880]) {
  %y = kernel %w.w, %x, %ids, %w.b, %ids {template = moe_stream}
    prologue(%w: mxfp4[32, 5760, 2880]) {
      %d = dequant %w {to = bf16} : bf16[32, 5760, 2880]
      yield %d
    }
    main(%d: bf16[32, 5760, 2880], %x: bf16[T, 2880], %ids: i32[T, 4]) {
      %a = moe_matmul %x, %d, %ids : f32[T, 4, 5760]
      yield %a
    }
    epilogue(%a: f32[T, 4, 5760], %b: bf16[32, 5760], %ids: i32[T, 4]) {
      %c = gather_rows %b, %ids : bf16[T, 4, 5760]
      %z = add %a, %c : f32[T, 4, 5760]
      %s = swiglu %z : f32[T, 4, 2880]
      %o = cast %s {to = bf16} : bf16[T, 4, 2880]
      yield %o
    } : bf16[T, 4, 2880]
  return %y
}
";

#[test]
fn experts_kernel() {
    let k = shape_of(GATE_UP, &sizes(1, 1));
    // Four of 32 experts at 4.25 bits; of the bias the rows that four random draws hit, 32 (1 - (31/32)^4).
    let bias_rows = 32.0 * (1.0 - (31.0f64 / 32.0).powi(4));
    near(k.bytes.weights, 4.0 * 5760.0 * 2880.0 * 4.25 / 8.0 + bias_rows * 5760.0 * 2.0);
    near(k.bytes.read, 2880.0 * 2.0 + 4.0 * 4.0);
    near(k.bytes.written, 4.0 * 2880.0 * 2.0);
    assert_eq!(k.grid, Grid { groups: 4.0, rows: 1.0, columns: 5760.0, whole_rows: false, shared_weights: true });
    near(k.tensor_flops, 2.0 * 4.0 * 5760.0 * 2880.0);
    near(k.weight_ops, 3.5 * 4.0 * 5760.0 * 2880.0);
    // Rows come with the weights of their expert.
    near(k.held.bytes, 0.0);
    near(k.held.ops, 0.0);
    let k = shape_of(GATE_UP, &sizes(8, 8));
    let hit = 32.0 * (1.0 - 0.875f64.powi(8));
    near(k.grid.groups, hit);
    near(k.grid.rows, 32.0 / hit);
    near(k.weight_ops, 3.5 * hit * 5760.0 * 2880.0);
}

/// Gate and up and then down of the same experts, as one kernel.
const PAIR: &str = "func @f(%x: bf16[T, 2880], %w.g: mxfp4[32, 5760, 2880], %ids: i32[T, 4], %w.b: bf16[32, 5760], %w.d: mxfp4[32, 2880, 2880], %p: f32[T, 4]) -> (f32[T, 2880]) {
  %y = kernel %w.g, %x, %ids, %w.b, %ids, %w.d, %ids, %p {template = moe_pair}
    prologue(%w: mxfp4[32, 5760, 2880]) {
      %d = dequant %w {to = bf16} : bf16[32, 5760, 2880]
      yield %d
    }
    main(%d: bf16[32, 5760, 2880], %x: bf16[T, 2880], %ids: i32[T, 4]) {
      %a = moe_matmul %x, %d, %ids : f32[T, 4, 5760]
      yield %a
    }
    epilogue(%a: f32[T, 4, 5760], %b: bf16[32, 5760], %ids: i32[T, 4]) {
      %c = gather_rows %b, %ids : bf16[T, 4, 5760]
      %z = add %a, %c : f32[T, 4, 5760]
      %s = swiglu %z : f32[T, 4, 2880]
      %o = cast %s {to = bf16} : bf16[T, 4, 2880]
      yield %o
    }
    then
    prologue(%h: bf16[T, 4, 2880], %w: mxfp4[32, 2880, 2880]) {
      %d = dequant %w {to = bf16} : bf16[32, 2880, 2880]
      yield %h, %d
    }
    main(%h: bf16[T, 4, 2880], %d: bf16[32, 2880, 2880], %ids: i32[T, 4]) {
      %a = moe_matmul %h, %d, %ids : f32[T, 4, 2880]
      yield %a
    }
    epilogue(%a: f32[T, 4, 2880], %p: f32[T, 4]) {
      %z = moe_combine %a, %p : f32[T, 2880]
      yield %z
    } : f32[T, 2880]
  return %y
}
";

const DOWN: &str =
    "func @f(%h: bf16[T, 4, 2880], %ids: i32[T, 4], %w.d: mxfp4[32, 2880, 2880], %p: f32[T, 4]) -> (f32[T, 2880]) {
  %y = kernel %w.d, %h, %ids, %p {template = moe_stream}
    prologue(%w: mxfp4[32, 2880, 2880]) {
      %d = dequant %w {to = bf16} : bf16[32, 2880, 2880]
      yield %d
    }
    main(%d: bf16[32, 2880, 2880], %h: bf16[T, 4, 2880], %ids: i32[T, 4]) {
      %a = moe_matmul %h, %d, %ids : f32[T, 4, 2880]
      yield %a
    }
    epilogue(%a: f32[T, 4, 2880], %p: f32[T, 4]) {
      %z = moe_combine %a, %p : f32[T, 2880]
      yield %z
    } : f32[T, 2880]
  return %y
}
";

#[test]
fn stages_cost_what_kernels_do_without_the_second_launch() {
    for t in [1, 4, 8] {
        let [pair, first, second] = [PAIR, GATE_UP, DOWN].map(|text| shape_of(text, &sizes(t, t)));
        // The stages are the kernels, but for the ids, which are read once.
        let ids = 4.0 * 4.0 * t as f64;
        assert_eq!((pair.stages().count(), pair.launches), (2, 1));
        let [a, b] = [pair.clone(), pair.then[0].clone()];
        assert_eq!((a.grid, a.bytes, a.held), (first.grid, first.bytes, first.held));
        assert_eq!((b.launches, b.grid, b.held), (0, second.grid, second.held));
        near(b.bytes.read, second.bytes.read - ids);
        near(b.bytes.weights, second.bytes.weights);
        near(b.bytes.written, second.bytes.written);
        assert_eq!(
            (b.tensor_flops, b.weight_ops, b.scalar_ops),
            (second.tensor_flops, second.weight_ops, second.scalar_ops)
        );
        // What the merger saves by itself: all else as in the kernels it replaces.
        let mut machine = h100();
        let figures = TemplateFigures { hand_over_us: 1.0, ..machine.templates["moe_stream"].clone() };
        machine.templates.insert("moe_pair".into(), figures.clone());
        let [pair, first, second] = [pair, first, second].map(|k| cost(&k, &machine).unwrap());
        let saved = figures.launch_us + figures.ramp_us - figures.hand_over_us;
        assert!(
            saved > 0.0 && (first.total_us + second.total_us - pair.total_us - saved).abs() < 0.05,
            "{}",
            pair.text()
        );
        near(pair.bytes.total(), first.bytes.total() + second.bytes.total() - ids);
        near(pair.ramp_us, figures.ramp_us + figures.hand_over_us);
        near(pair.flops, first.flops + second.flops);
        assert!(pair.fill > 0.0 && pair.fill <= 1.0 && pair.units == first.units + second.units);
    }
}

#[test]
fn unfused_dequant_writes_everything() {
    let k = shape_of(
        "func @f(%w.w: mxfp4[32, 5760, 2880]) -> (bf16[32, 5760, 2880]) {\n  %d = dequant %w.w {to = bf16} : bf16[32, 5760, 2880]\n  return %d\n}\n",
        &sizes(1, 1),
    );
    assert_eq!(k.template, "single");
    near(k.bytes.weights, 32.0 * 5760.0 * 2880.0 * 4.25 / 8.0);
    near(k.bytes.written, 32.0 * 5760.0 * 2880.0 * 2.0);
    near(k.weight_ops, 0.0);
    // performance.md 3.3: 20 ms a step for 24 layers of this and half as much again.
    let t = cost(&k, &h100()).unwrap();
    assert!((500.0..700.0).contains(&t.total_us), "{}", t.text());
}

fn attention(state: &str, window: &str) -> String {
    format!(
        "func @f(%q: bf16[T, 4096], %kv: kv<{state}>, %pos: i32[T], %seq: i32[T], %pages: i32[S, P], %w.s: bf16[64]) -> (bf16[T, 4096], kv<{state}>) {{\n  \
         %y = kernel %q, %kv, %pos, %seq, %pages, %w.s {{template = attention}}\n    \
         main(%q: bf16[T, 4096], %kv: kv<{state}>, %pos: i32[T], %seq: i32[T], %pages: i32[S, P], %s: bf16[64]) {{\n      \
         %a = attention %q, %kv, %pos, %seq, %pages, %s {{scale = 0.125{window}}} : bf16[T, 4096]\n      yield %a\n    }} : bf16[T, 4096]\n  \
         return %y, %kv\n}}\n"
    )
}

#[test]
fn attention_reads_a_representative_context() {
    let k = shape_of(&attention("full", ""), &sizes(2, 2));
    // 1024 positions of 8 heads of 64, keys and values in bf16, two sequences; 64 of 256 pages of each.
    near(k.bytes.state, 2.0 * 2.0 * 1024.0 * 8.0 * 64.0 * 2.0);
    near(k.bytes.read, 2.0 * 4096.0 * 2.0 + 2.0 * 4.0 + 2.0 * 4.0 + 2.0 * 64.0 * 4.0);
    near(k.bytes.weights, 64.0 * 2.0);
    near(k.bytes.written, 2.0 * 4096.0 * 2.0);
    near(k.tensor_flops, 4.0 * 2.0 * 4096.0 * 1024.0);
    assert_eq!(k.grid, Grid { groups: 16.0, rows: 8.0, columns: 1024.0, ..Grid::default() });
    let k = shape_of(&attention("near", ", window = 128"), &sizes(2, 2));
    near(k.bytes.state, 2.0 * 2.0 * 128.0 * 8.0 * 64.0 * 2.0);
    // A page table that holds less.
    let mut small = sizes(1, 1);
    small.insert("P".into(), 2);
    near(shape_of(&attention("full", ""), &small).bytes.state, 2.0 * 32.0 * 8.0 * 64.0 * 2.0);
}

#[test]
fn gathers_read_rows_and_states_what_is_stored() {
    let k = shape_of(
        "func @f(%w.e: bf16[1000, 64], %ids: i32[T]) -> (f32[T, 64]) {\n  %y = kernel %w.e, %ids {template = map}\n    \
         main(%e: bf16[1000, 64], %ids: i32[T]) {\n      %a = gather_rows %e, %ids : bf16[T, 64]\n      %c = cast %a {to = f32} : f32[T, 64]\n      \
         yield %c\n    } : f32[T, 64]\n  return %y\n}\n",
        &sizes(8, 8),
    );
    near(k.bytes.weights, 1000.0 * (1.0 - 0.999f64.powi(8)) * 64.0 * 2.0);
    near(k.bytes.written, 8.0 * 64.0 * 4.0);
    assert_eq!(k.grid, Grid { groups: 1.0, rows: 8.0, columns: 64.0, ..Grid::default() });
    let k = shape_of(
        "func @f(%kv: kv<full>, %k: bf16[T, 512], %v: bf16[T, 512], %pos: i32[T], %seq: i32[T], %pages: i32[S, P]) -> (kv<full>) {\n  \
         %y = kv_write %kv, %k, %v, %pos, %seq, %pages : kv<full>\n  return %y\n}\n",
        &sizes(4, 4),
    );
    near(k.bytes.state, 0.0);
    near(k.bytes.written, 2.0 * 4.0 * 512.0 * 2.0);
    near(k.bytes.read, 2.0 * 4.0 * 512.0 * 2.0 + 2.0 * 4.0 * 4.0 + 4.0 * 4.0);
}

#[test]
fn reductions_take_whole_rows() {
    let k =
        shape_of("func @f(%x: f32[T, 4096]) -> (i32[T]) {\n  %y = argmax %x : i32[T]\n  return %y\n}\n", &sizes(3, 3));
    assert_eq!(k.grid, Grid { groups: 1.0, rows: 3.0, columns: 4096.0, whole_rows: true, shared_weights: false });
    let t = cost(&k, &h100()).unwrap();
    assert_eq!(t.units, 3.0);
}

#[test]
fn sizes_must_be_known() {
    let error = try_shape(QKV, &Bindings::new()).unwrap_err().to_string();
    assert_eq!(
        error,
        "cost: symbol `T` of stream[rms_norm cast | matmul | add] has no value; give the sizes of a bucket, for example decode.1"
    );
    let module = text::parse("t.gir", &format!("{SYMS}{QKV}")).unwrap();
    let f = &module.funcs[0];
    let kernel = f.graph.ids().into_iter().find_map(|id| f.graph.op(id).attrs.kernel()).unwrap();
    assert_eq!(
        shape(&module, kernel, &[], &sizes(1, 1)).unwrap_err().to_string(),
        "cost: stream[rms_norm cast | matmul | add]: 0 operands, its regions take 5; run the verifier on the module"
    );
}

#[test]
fn fusing_the_norm_pays_for_few_rows_only() {
    // The same matmul without its norm, and a kernel for the norm.
    let plain = "func @f(%x: bf16[T, 2880], %w.w: bf16[5120, 2880]) -> (f32[T, 5120]) {\n  %y = kernel %x, %w.w {template = stream}\n    \
                 main(%x: bf16[T, 2880], %w: bf16[5120, 2880]) {\n      %a = matmul %x, %w : f32[T, 5120]\n      yield %a\n    } : f32[T, 5120]\n  return %y\n}\n";
    let norm = "func @f(%x: f32[T, 2880], %w.n: bf16[2880]) -> (bf16[T, 2880]) {\n  %y = kernel %x, %w.n {template = row}\n    \
                main(%x: f32[T, 2880], %n: bf16[2880]) {\n      %a = rms_norm %x, %n : f32[T, 2880]\n      yield %a\n    }\n    \
                epilogue(%a: f32[T, 2880]) {\n      %c = cast %a {to = bf16} : bf16[T, 2880]\n      yield %c\n    } : bf16[T, 2880]\n  return %y\n}\n";
    let us = |text: &str, t: i64| cost(&shape_of(text, &sizes(t, t)), &h100()).unwrap().total_us;
    assert!(us(QKV, 1) < us(plain, 1) + us(norm, 1));
    assert!(us(QKV, 8) > us(plain, 8) + us(norm, 8));
    assert!(us(QKV, 32) > us(plain, 32) + us(norm, 32));
}
