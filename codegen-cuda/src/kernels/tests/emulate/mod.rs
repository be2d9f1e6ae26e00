//! Runs every kernel on the CPU against the interpreter: the emitted text is compiled as C++ with a stand-in for the GPU (`shim.h`) and the
//! address sanitizer, which finds wrong indices and misaligned vectors as well as wrong values.
//!
//! It needs g++. The usual run takes a case of each kind of kernel, as all take minutes:
//! `GOSSAMER_EMULATE=all cargo test -p gossamer-codegen-cuda emulate -- --nocapture`; `GOSSAMER_EMULATE=attention` picks cases by name.

mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use gossamer_ir::interp::{Data, Datum, Rounding, StateStore, Tensor, eval_op};
use gossamer_ir::{DType, StateDecl, Type};

use self::text::host_text;
use super::cases::{self, Case};
use super::inputs::{Inputs, bytes, floats, inputs};
use crate::lower::{Arg, Launch, Lowered, Part, buffers};

/// What a case should give: results by buffer.
fn expected(case: &Case, inputs: &mut Inputs) -> Vec<Datum> {
    let operands: Vec<Datum> = inputs.operands.clone();
    eval_op(&case.op, &operands, &mut inputs.stores, &case.sizes, Rounding::Typed)
        .unwrap_or_else(|e| panic!("{}: {e}", case.name))
}

/// Numbers device buffers: operands, results, scratch.
#[derive(Default)]
struct Buffers {
    index: BTreeMap<String, usize>,
    count: usize,
    text: String,
    blob: Vec<u8>,
}

impl Buffers {
    fn alias(&mut self, key: String, of: &str) {
        self.index.insert(key, self.index[of]);
    }

    fn add(&mut self, key: String, size: u64, data: Option<&[u8]>) {
        self.index.insert(key, self.count);
        self.count += 1;
        writeln!(self.text, "B {size} {}", u8::from(data.is_some())).unwrap();
        self.blob.extend(data.unwrap_or(&[]));
    }
}

/// The job of a case for the emulator, and the result buffers it gives back: (result, part, bytes).
fn job(case: &Case, lowered: &Lowered, inputs: &Inputs, out: &mut Buffers) -> Vec<(usize, Part, u64)> {
    out.index.clear();
    out.count = 0;
    writeln!(out.text, "J {}", case.name.replace(' ', "_").chars().take(200).collect::<String>()).unwrap();
    for ((operand, part), data) in &inputs.buffers {
        out.add(format!("o{operand}{part:?}"), data.len() as u64, Some(data));
    }
    let mut results = vec![];
    for (r, ty) in case.op.results.iter().enumerate() {
        match ty {
            Type::Tensor(t) => {
                for (part, size) in buffers(t, &case.sizes).unwrap() {
                    out.add(format!("r{r}{part:?}"), size, None);
                    results.push((r, part, size));
                }
            }
            Type::State(..) => {
                for ((operand, part), data) in &inputs.buffers {
                    if case.operands[*operand] == *ty {
                        out.alias(format!("r{r}{part:?}"), &format!("o{operand}{part:?}"));
                        results.push((r, *part, data.len() as u64));
                    }
                }
            }
        }
    }
    for (i, size) in lowered.scratch.iter().enumerate() {
        out.add(format!("s{i}"), *size, None);
    }
    for (i, size) in lowered.kept.iter().enumerate() {
        out.add(format!("k{i}"), *size, None);
    }
    let counters = vec![0; 4 * lowered.counters as usize];
    out.add("c".into(), counters.len() as u64, Some(&counters));
    let number = |key: String| *out.index.get(&key).unwrap_or_else(|| panic!("{}: no buffer {key}", case.name));
    let mut text = String::new();
    for launch in &lowered.launches {
        let mut args = String::new();
        for arg in &launch.args {
            match arg {
                Arg::Operand { index, part } => write!(args, " p {}", number(format!("o{index}{part:?}"))),
                Arg::Result { index, part } => write!(args, " p {}", number(format!("r{index}{part:?}"))),
                Arg::Scratch(i) => write!(args, " p {}", number(format!("s{i}"))),
                Arg::Kept(i) => write!(args, " p {}", number(format!("k{i}"))),
                Arg::Counters => write!(args, " p {}", number("c".into())),
                Arg::TensorMap { index, part, matrix } => {
                    let buffer = number(format!("o{index}{part:?}"));
                    write!(args, " m {buffer} {} {} {}", matrix.rows, matrix.columns, matrix.box_rows)
                }
                // Nothing is wanted.
                Arg::Wanted => write!(args, " i 0"),
                Arg::I32(x) => write!(args, " i {x}"),
                Arg::I64(x) => write!(args, " i {x}"),
                Arg::F32(x) => write!(args, " i {}", x.to_bits()),
            }
            .unwrap();
        }
        writeln!(text, "L {} {} {} {}{args}", launch.kernel.entry, launch.grid[0], launch.block, launch.args.len())
            .unwrap();
    }
    writeln!(text, "Z {}", number("c".into())).unwrap();
    for (r, part, _) in &results {
        writeln!(text, "O {}", number(format!("r{r}{part:?}"))).unwrap();
    }
    out.text.push_str(&text);
    results
}

/// Elements of a buffer as floats (integers and bytes by value).
fn values(dtype: DType, data: &[u8]) -> Vec<f32> {
    match dtype {
        DType::BF16 => data.chunks(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        DType::F16 => data.chunks(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        DType::F32 => data.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        DType::I32 => data.chunks(4).map(|b| i32::from_le_bytes(b.try_into().unwrap()) as f32).collect(),
        _ => data.iter().map(|b| f32::from(*b)).collect(),
    }
}

/// Why two results differ, if they do. `tolerance` is relative, in the Euclidean norm; 0 asks for equality.
fn difference(got: &[f32], want: &[f32], tolerance: f32) -> Option<String> {
    if got.len() != want.len() {
        return Some(format!("{} elements, expected {}", got.len(), want.len()));
    }
    let (mut error, mut norm) = (0.0f64, 0.0f64);
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let same = g == w || g.is_nan() && w.is_nan();
        if !same && (tolerance == 0.0 || !g.is_finite() || !w.is_finite()) {
            return Some(format!("element {i} is {g}, expected {w}"));
        }
        if w.is_finite() {
            error += f64::from(g - w).powi(2);
            norm += f64::from(*w).powi(2);
        }
    }
    let relative = (error / norm.max(1e-30)).sqrt();
    (relative > f64::from(tolerance)).then(|| format!("relative error {relative:e}, expected at most {tolerance}"))
}

fn wanted(case: &Case, result: usize, part: Part, want: &[Datum], stores: &[StateStore]) -> (DType, Vec<f32>) {
    match (&want[result], part) {
        (Datum::Tensor(t), _) => {
            let t: Tensor = t.plain();
            let data = bytes(&t).into_iter().next().unwrap().1;
            (t.dtype, values(t.dtype, &data))
        }
        (Datum::State(s), _) => match (&stores[*s], &case.module.states[0]) {
            (StateStore::Kv(kv), StateDecl::Kv { dtype, .. }) => {
                let mut all = vec![];
                for page in 0..kv.pages() {
                    for head in 0..kv.heads() {
                        let slab =
                            if part == Part::Keys { kv.keys(page as i32, head) } else { kv.values(page as i32, head) };
                        all.extend_from_slice(slab.unwrap());
                    }
                }
                (*dtype, values(*dtype, &floats(*dtype, &all)))
            }
            (StateStore::Counts(c), _) => {
                let words = (0..3).flat_map(|s| c.row(s).unwrap().to_vec());
                (DType::I32, words.map(|w| w as i32 as f32).collect())
            }
            _ => unreachable!(),
        },
    }
}

/// A kernel's text, its shared memory in bytes, and whether its blocks count what they have done.
struct Kernel {
    text: String,
    shared: u32,
    counts: bool,
}

/// Blocks of a cluster.
fn cluster(text: &str) -> u32 {
    text.split_once("__cluster_dims__(").map_or(1, |(_, after)| after.split(',').next().unwrap().parse().unwrap())
}

fn build(folder: &Path, texts: &BTreeMap<String, Kernel>) {
    let mut program = [include_str!("shim.h"), include_str!("hardware.h")].concat();
    let mut table = "static std::map<std::string, Kernel> table() {\n  std::map<std::string, Kernel> t;\n".to_string();
    for (i, (entry, kernel)) in texts.iter().enumerate() {
        let Kernel { text, shared, counts } = kernel;
        let blocks = cluster(text);
        let together = blocks > 1 || *counts;
        // Blocks that run at the same time take turns in one place, a section; others have theirs where the sanitizer watches it.
        let (place, section) = match together {
            true => {
                let section = format!("shared_{i}");
                writeln!(program, "extern \"C\" char __start_{section}[], __stop_{section}[];").unwrap();
                writeln!(program, "static uint4 any_{i} __attribute__((section(\"{section}\"), used));").unwrap();
                let place = format!("{}, __start_{section}, __stop_{section}", if *counts { 3 } else { 1 });
                (place, format!(" __attribute__((section(\"{section}\")))"))
            }
            false => ("1, nullptr, nullptr".to_string(), String::new()),
        };
        writeln!(program, "#undef __shared__\n#define __shared__ static{section}").unwrap();
        let text = host_text(text, *shared, together);
        write!(program, "namespace k{i} {{\nnamespace {{\n{text}\n}}\n}}\n#undef INF\n").unwrap();
        writeln!(table, "  t[\"{entry}\"] = kernel(k{i}::{entry}, {blocks}, {place});").unwrap();
    }
    program.push_str(&table);
    program.push_str("  return t;\n}\n");
    let source = folder.join("program.cpp");
    std::fs::write(&source, program).unwrap();
    let flags = [
        "-std=c++17",
        "-O1",
        "-g1",
        "-w",
        // Addresses of shared memory are 32 bits.
        "-no-pie",
        "-ffp-contract=off",
        "-fsanitize=address,alignment",
        "-fno-sanitize-recover=all",
    ];
    let output = Command::new("g++").args(flags).arg(&source).arg("-o").arg(folder.join("program")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The bytes of each result buffer of a case.
type Outputs = Vec<(usize, Part, Vec<u8>)>;

/// Runs the kernels of all cases in one program. The error is what the sanitizer or the emulator says.
fn execute(cases: &[(&Case, &Inputs)]) -> Result<Vec<Outputs>, String> {
    let folder = tempfile::tempdir().unwrap();
    let mut texts = BTreeMap::new();
    let mut jobs = Buffers::default();
    let mut results = vec![];
    for (case, inputs) in cases {
        let lowered = case.lower().unwrap_or_else(|e| panic!("{}: {e}", case.name));
        for launch in &lowered.launches {
            let counts = launch.args.contains(&Arg::Counters);
            let kernel = Kernel { text: launch.kernel.text.clone(), shared: launch.shared, counts };
            texts.insert(launch.kernel.entry.clone(), kernel);
        }
        results.push(job(case, &lowered, inputs, &mut jobs));
    }
    build(folder.path(), &texts);
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("jobs"), &jobs.text).unwrap();
    std::fs::write(path("blob"), &jobs.blob).unwrap();
    let output = Command::new(path("program"))
        .args([path("jobs"), path("blob"), path("out")])
        .env("ASAN_OPTIONS", "detect_stack_use_after_return=0:detect_leaks=0")
        .output()
        .unwrap();
    if !output.status.success() {
        let log = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<_> = log.lines().filter(|l| !l.trim().is_empty()).collect();
        let from =
            lines.iter().position(|l| l.contains("ERROR") || l.contains("runtime error") || l.contains("deadlock"));
        let from = from.unwrap_or(lines.len().saturating_sub(5)).saturating_sub(2);
        return Err(lines[from..].iter().take(14).copied().collect::<Vec<_>>().join("\n"));
    }
    let out = std::fs::read(path("out")).unwrap();
    let mut at = 0;
    let mut take = |size: u64| {
        at += size as usize;
        out[at - size as usize..at].to_vec()
    };
    Ok(results.into_iter().map(|r| r.into_iter().map(|(i, part, size)| (i, part, take(size))).collect()).collect())
}

/// Runs cases; gives (case, problem) for each that is wrong.
fn run(cases: &[&Case]) -> Vec<(String, String)> {
    let mut all: Vec<Inputs> = cases.iter().map(|c| inputs(c)).collect();
    let pairs: Vec<_> = cases.iter().copied().zip(&all).collect();
    let outputs = match execute(&pairs) {
        Ok(o) => o,
        Err(e) => return vec![("the emulator".into(), e)],
    };
    let expectations = cases.iter().zip(&mut all).zip(outputs).map(|((case, inputs), outputs)| {
        let want = expected(case, inputs);
        (case, outputs, want, std::mem::take(&mut inputs.stores))
    });
    let mut wrong = vec![];
    for (case, results, want, stores) in expectations {
        for (r, part, data) in results {
            // A packed result is compared with the host packer's bytes.
            if case.op.results[r].as_tensor().is_some_and(|t| t.layout.is_some()) {
                let Datum::Tensor(t) = &want[r] else { unreachable!() };
                let Data::Mxfp4 { codes, scales } = &t.data else { unreachable!() };
                let shape: Vec<i64> = t.shape.iter().map(|n| *n as i64).collect();
                let layout = crate::kernels::quant::packed(&shape).unwrap().unwrap();
                let mut packed = vec![0; layout.bytes()];
                layout.pack(codes, scales, &mut packed).unwrap();
                if packed != data {
                    wrong.push((case.name.clone(), "packed bytes differ".to_string()));
                }
                continue;
            }
            if let (Type::Tensor(t), Datum::Tensor(w)) = (&case.op.results[r], &want[r])
                && t.dtype == DType::Mxfp4
            {
                let expect = bytes(w).into_iter().find(|(p, _)| *p == part).unwrap().1;
                if expect != data {
                    wrong.push((case.name.clone(), format!("{part:?} differ")));
                }
                continue;
            }
            let (dtype, expect) = wanted(case, r, part, &want, &stores);
            let mut got = values(dtype, &data);
            let mut expect = expect;
            if part == Part::Keys || part == Part::Values {
                // What nothing was written to does not count.
                got.iter_mut().zip(&mut expect).filter(|(g, _)| g.is_nan()).for_each(|(g, w)| (*g, *w) = (0.0, 0.0));
            }
            if let Some(problem) = difference(&got, &expect, case.op.kind.info().tolerance) {
                wrong.push((case.name.clone(), format!("result {r} {part:?}: {problem}")));
            }
        }
    }
    wrong
}

/// The filter of `GOSSAMER_EMULATE` (`all`, or part of a case's name).
fn filter() -> Option<String> {
    std::env::var("GOSSAMER_EMULATE").ok().map(|f| if f == "all" { String::new() } else { f })
}

/// The filter, for what takes minutes; without it that is skipped.
fn asked() -> Option<String> {
    let filter = filter();
    if filter.is_none() {
        println!("skipped: GOSSAMER_EMULATE is not set (needs g++ and minutes)");
    }
    filter
}

/// A case of each kind of kernel: the first whose entries, but for sizes and what the text is hashed to, are others than those before. Clusters of thousands of
/// threads take too long for every run.
fn one_of_each(all: &[Case]) -> Vec<&Case> {
    let mut kinds = BTreeSet::new();
    let kind = |case: &&Case| {
        let lowered = case.lower().unwrap_or_else(|e| panic!("{}: {e}", case.name));
        let words = |entry: &str| -> Vec<String> {
            entry.split('_').filter(|w| !w.contains(|c: char| c.is_ascii_digit())).map(str::to_string).collect()
        };
        let kind = |l: &Launch| (words(&l.kernel.entry), cluster(&l.kernel.text) > 1);
        let quick = lowered.launches.iter().all(|l| cluster(&l.kernel.text) * l.block <= 4096);
        quick && kinds.insert(lowered.launches.iter().map(kind).collect::<Vec<_>>())
    };
    all.iter().filter(kind).collect()
}

#[test]
fn emulate() {
    let all: Vec<Case> = cases::all().into_iter().chain(cases::wide()).collect();
    let chosen: Vec<&Case> = match filter() {
        Some(filter) => all.iter().filter(|c| c.name.contains(&filter)).collect(),
        None if Command::new("g++").arg("--version").output().is_err() => {
            println!("skipped: no g++");
            return;
        }
        None => one_of_each(&all),
    };
    assert!(!chosen.is_empty(), "no case has a name with GOSSAMER_EMULATE in it");
    let mut wrong = vec![];
    // A program each: compiling is what takes time, and memory.
    for cases in chosen.chunks(100) {
        wrong.extend(run(cases));
    }
    println!("{} cases, {} wrong", chosen.len(), wrong.len());
    let text: Vec<_> = wrong.iter().map(|(c, p)| format!("{c}\n    {p}")).collect();
    assert!(wrong.is_empty(), "{}", text.join("\n"));
}

/// The same op for the first `tokens` tokens.
fn shortened(case: &Case, inputs: &Inputs, tokens: i64) -> (Case, Inputs) {
    let mut short = Case {
        name: format!("{} first {tokens}", case.name),
        module: case.module.clone(),
        op: case.op.clone(),
        operands: case.operands.clone(),
        sizes: case.sizes.clone(),
    };
    let before = short.sizes.insert("T".into(), tokens).unwrap() as usize;
    let mut buffers = inputs.buffers.clone();
    for ((i, _), data) in &mut buffers {
        if case.operands[*i].as_tensor().is_some_and(|t| t.dims.first() == Some(&gossamer_ir::Dim::sym("T"))) {
            data.truncate(data.len() / before * tokens as usize);
        }
    }
    (short, Inputs { operands: vec![], stores: vec![], buffers })
}

#[test]
fn rows_do_not_depend_on_the_step() {
    use gossamer_ir::OpKind as K;
    if asked().is_none() {
        return;
    }
    for (kind, from) in [(K::MatMul, 70), (K::MoeMatMul, 70), (K::Attention, 90)] {
        let all = cases::all();
        let long: Vec<_> = all.iter().filter(|c| c.op.kind == kind && c.sizes.get("T") == Some(&from)).collect();
        assert!(!long.is_empty());
        let long: Vec<(&Case, Inputs)> = long.into_iter().map(|c| (c, inputs(c))).collect();
        let short: Vec<(Case, Inputs)> =
            long.iter().flat_map(|(c, i)| [1, 2, 9, 20, 33, 50, 64].map(|t| shortened(c, i, t))).collect();
        let pairs: Vec<_> = long.iter().map(|(c, i)| (*c, i)).chain(short.iter().map(|(c, i)| (c, i))).collect();
        let mut outputs = execute(&pairs).unwrap_or_else(|e| panic!("{e}"));
        let short_outputs = outputs.split_off(long.len());
        for (i, out) in short_outputs.iter().enumerate() {
            let whole = &outputs[i / 7][0].2;
            assert!(whole.starts_with(&out[0].2), "{}", short[i].0.name);
        }
    }
}

#[test]
fn rows_of_experts_are_the_same_in_both_templates() {
    use super::moe::{Kind, Shape, experts};
    if asked().is_none() {
        return;
    }
    for (kind, n, k) in [(Kind::Plain, 50, 352), (Kind::Interleaved, 80, 608), (Kind::Halves, 96, 640)] {
        let of = |template: &str, tokens| {
            experts(template, kind, Shape { tokens, choices: 2, experts: 6, n, k }, "mx64.fast")
        };
        let long = of("moe_tile", 70);
        let given = inputs(&long);
        let short: Vec<(Case, Inputs)> =
            [1, 2, 4, 7, 17, 33, 64].map(|t| (of("moe_stream", t), shortened(&long, &given, t).1)).into();
        let pairs: Vec<_> = [(&long, &given)].into_iter().chain(short.iter().map(|(c, i)| (c, i))).collect();
        let outputs = execute(&pairs).unwrap_or_else(|e| panic!("{e}"));
        let (whole, parts) = outputs.split_first().unwrap();
        for (part, (case, _)) in parts.iter().zip(&short) {
            assert!(whole[0].2.starts_with(&part[0].2), "{}", case.name);
        }
    }
}

#[test]
fn rows_of_dense_matmuls_are_the_same_in_all_templates() {
    if asked().is_none() {
        return;
    }
    for (n, k) in [(48, 1096), (80, 2880)] {
        let of = |template: &str, tokens| super::fused::out(template, n, k, &format!("T={tokens}"));
        let long = of("tile", 70);
        let given = inputs(&long);
        let templates = [("stream", &[1, 2, 9, 32][..]), ("gemm_pieces", &[9, 33, 64, 70]), ("tile", &[40])];
        let short: Vec<(Case, Inputs)> = templates
            .iter()
            .flat_map(|(t, all)| all.iter().map(|tokens| (of(t, *tokens), shortened(&long, &given, *tokens).1)))
            .collect();
        let pairs: Vec<_> = [(&long, &given)].into_iter().chain(short.iter().map(|(c, i)| (c, i))).collect();
        let outputs = execute(&pairs).unwrap_or_else(|e| panic!("{e}"));
        let (whole, parts) = outputs.split_first().unwrap();
        for (part, (case, _)) in parts.iter().zip(&short) {
            for (whole, part) in whole.iter().zip(part) {
                assert!(whole.2.starts_with(&part.2), "{}, result {}", case.name, part.0);
            }
        }
    }
}
