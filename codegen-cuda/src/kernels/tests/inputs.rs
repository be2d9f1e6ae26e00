//! Operands for a case, as the interpreter takes them and as bytes of device buffers.

use std::collections::BTreeMap;

use gossamer_ir::interp::{Data, Datum, StateStore, Tensor};
use gossamer_ir::{DType, OpKind, StateDecl, TensorType, Type};

use super::cases::Case;
use crate::layout::{Mxfp4Layout, ScaleMode};
use crate::lower::Part;

/// Operands, state stores and the bytes of every operand buffer.
pub struct Inputs {
    pub operands: Vec<Datum>,
    pub stores: Vec<StateStore>,
    pub buffers: BTreeMap<(usize, Part), Vec<u8>>,
}

/// Repeatable random numbers.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }
    pub fn word(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as u32
    }
    pub fn below(&mut self, n: i64) -> i64 {
        i64::from(self.word()) % n.max(1)
    }
    /// Roughly normal.
    pub fn float(&mut self) -> f32 {
        (0..4).map(|_| self.word() as f32 / (1u64 << 31) as f32 - 0.5).sum::<f32>() * 1.7
    }
}

/// Bytes of a tensor's buffers.
pub fn bytes(t: &Tensor) -> Vec<(Part, Vec<u8>)> {
    let data = match (&t.data, t.dtype) {
        (Data::Mxfp4 { codes, scales }, DType::Mxfp4) => {
            return vec![(Part::Codes, codes.to_vec()), (Part::Scales, scales.to_vec())];
        }
        (_, DType::I32) => t.as_i32().unwrap().iter().flat_map(|v| v.to_le_bytes()).collect(),
        (_, DType::U8 | DType::Bool) => t.as_u8().unwrap().to_vec(),
        (_, dtype) => floats(dtype, &t.to_f32()),
    };
    vec![(Part::Data, data)]
}

/// Floats as elements of `dtype`.
pub fn floats(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::BF16 => values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

/// The page of position block `b` of sequence `s`; scattered over the pool.
fn page_of(s: i64, b: i64, per_seq: i64, sequences: i64) -> i64 {
    let n = sequences * per_seq;
    // 7 and n may share factors; a shuffle by reversal keeps pages distinct anyway.
    n - 1 - (s * per_seq + b) + 2
}

/// A ragged step: runs of tokens of each sequence, single ones, padding.
fn step(tokens: i64, sequences: i64, capacity: i64) -> (Vec<i32>, Vec<i32>) {
    let (mut pos, mut seq) = (vec![], vec![]);
    let run = (tokens / 2).min(capacity / 2);
    let mut push = |s: i64, p: i64| {
        if (pos.len() as i64) < tokens {
            pos.push(p as i32);
            seq.push(s as i32);
        }
    };
    for i in 0..run {
        push(0, capacity / 3 + i);
    }
    push(1, capacity - 1);
    push(-1, 0);
    for i in 0..tokens {
        if i < capacity {
            push(2.min(sequences - 1), i);
        }
    }
    for i in 0..tokens {
        push(if i % 2 == 0 { -1 } else { sequences + 5 }, 3);
    }
    (pos, seq)
}

pub fn inputs(case: &Case) -> Inputs {
    let mut r = Random::new(case.name.bytes().fold(7u64, |h, b| h.wrapping_mul(31).wrapping_add(b.into())));
    let mut out = Inputs { operands: vec![], stores: vec![], buffers: BTreeMap::new() };
    let size = |name: &str| case.sizes.get(name).copied().unwrap_or(0);
    for (i, ty) in case.operands.iter().enumerate() {
        let (kind, role) = role(case, i);
        // A value that is passed twice is the same twice.
        if let Some(v) = case.op.operands.get(i)
            && let Some(first) = case.op.operands[..i].iter().position(|w| w == v)
            && ty.as_tensor().is_some()
        {
            let again = out.buffers.range((first, Part::Data)..(first + 1, Part::Data));
            let again: Vec<_> = again.map(|((_, part), data)| ((i, *part), data.clone())).collect();
            out.buffers.extend(again);
            out.operands.push(out.operands[first].clone());
            continue;
        }
        let t = match ty {
            Type::Tensor(t) => t,
            Type::State(_, name) => {
                let decl = case.module.state(name).unwrap();
                state(case, i, decl, &mut r, &mut out);
                continue;
            }
        };
        let shape: Vec<usize> = t.shape(&case.sizes).unwrap().iter().map(|n| *n as usize).collect();
        let n: usize = shape.iter().product();
        let ints =
            |f: &mut dyn FnMut(usize) -> i64| Tensor::i32(&shape, (0..n).map(|i| f(i) as i32).collect()).unwrap();
        let tensor = match (kind, role) {
            (OpKind::KvWrite, 3 | 4) | (OpKind::Attention, 2 | 3) => {
                let (pos, seq) = step(size("T"), size("S"), capacity(case));
                Tensor::i32(&shape, if role == 3 && kind == OpKind::KvWrite || role == 2 { pos } else { seq }).unwrap()
            }
            (OpKind::KvWrite, 5) | (OpKind::Attention, 4) => {
                let (s, p) = (size("S"), size("P"));
                ints(&mut |i| {
                    if i as i64 % p == 1 && i > 2 * p as usize { -1 } else { page_of(i as i64 / p, i as i64 % p, p, s) }
                })
            }
            (OpKind::Rope, 1) => ints(&mut |_| r.below(60) - 5),
            (OpKind::GatherRows, 1) => ints(&mut |_| r.below(54) - 2),
            (OpKind::MoeMatMul, 2) => ints(&mut |_| r.below(8) - 1),
            (OpKind::CountTokens, 1) => ints(&mut |i| if i % 3 == 0 { 5 } else { r.below(620) - 10 }),
            (OpKind::CountTokens, 2) => ints(&mut |_| r.below(10)),
            (OpKind::CountTokens, 3) => ints(&mut |_| r.below(5) - 1),
            (OpKind::CountTokens, 4) => ints(&mut |i| [2, -1, 0][i % 3]),
            (OpKind::CountTokens, 5) => ints(&mut |i| [4, 5, 0][i % 3]),
            (OpKind::Penalize, 2) => ints(&mut |i| [2, -1, 0, 1][i % 4]),
            (OpKind::Penalize, 3) => float(t, &shape, &mut |i| [1.0, 1.3, 0.8, 2.0][i % 4]),
            (OpKind::LogitBias, 1) => ints(&mut |i| [3, 2499, 1024, -1, 2500, 1023, 7, 8, 9, 2000][i % 10]),
            (OpKind::Sample, 1) => float(t, &shape, &mut |i| [0.0, 1.0, 0.7, 1.5, -1.0, 1.0][i % 6]),
            (OpKind::Sample, 2) => ints(&mut |i| [0, 0, 5, 1, 3, 4000, 0, 40, 0, 2, 0, 0][i % 12]),
            (OpKind::Sample, 3) => {
                float(t, &shape, &mut |i| [1.0, 1.0, 0.9, 1.0, 0.5, 0.3, 0.7, 0.95, 1.0, 0.0, 0.99, 1.0][i % 12])
            }
            (OpKind::Sample, 4) => {
                float(t, &shape, &mut |i| [0.0, 0.0, 0.0, 0.1, 0.0, 0.0, 0.05, 0.01, 0.3, 0.0][i % 10])
            }
            (OpKind::Sample, 5) => ints(&mut |_| i64::from(r.word() as i32)),
            (OpKind::Sample, 7) | (OpKind::ArgMax, 1) => {
                let (Some(Datum::Tensor(x)), tiles) = (out.operands.first(), shape[1]) else { unreachable!() };
                let (x, width) = (x.to_f32(), x.shape[1]);
                let tile = width.div_ceil(tiles).next_power_of_two();
                float(t, &shape, &mut |i| {
                    let row = &x[i / tiles * width..(i / tiles + 1) * width];
                    let tile = &row[i % tiles * tile..((i % tiles + 1) * tile).min(width)];
                    tile.iter().copied().filter(|x| !x.is_nan()).fold(f32::NEG_INFINITY, f32::max)
                })
            }
            (OpKind::Sample, 6) => ints(&mut |i| 100 + i as i64),
            (OpKind::TokenLogprob, 1) => ints(&mut |i| [3, 0, -1, 100000, 6][i % 5]),
            (OpKind::Div, 1) if t.dtype == DType::I32 => ints(&mut |i| [0, -1, 3, -7, 100][i % 5]),
            (OpKind::Log | OpKind::Sqrt | OpKind::Rsqrt, 0) => {
                float(t, &shape, &mut |i| if i == 3 { -1.0 } else { r.float().abs() + 0.01 })
            }
            (OpKind::Sample, 0) => {
                float(t, &shape, &mut |i| match i % 97 {
                    13 => f32::NAN,
                    14 => f32::NEG_INFINITY,
                    // Ties at many ranks.
                    x if x < 40 => (r.float() * 8.0).round() / 2.0,
                    _ => r.float() * 4.0,
                })
            }
            (OpKind::TopK | OpKind::ArgMax, 0) => float(t, &shape, &mut |i| match i % 53 {
                13 => f32::NAN,
                14 => f32::NEG_INFINITY,
                15 => 0.0,
                16 => -0.0,
                _ => (r.float() * 20.0).round() / 4.0,
            }),
            // Sums of products with every scale there is would be infinite.
            (OpKind::Dequant, 0) if case.op.kind == OpKind::Kernel => {
                let codes = (0..n / 2).map(|_| r.word() as u8).collect();
                let scales = (0..n / 32).map(|i| if i % 11 == 0 { 0 } else { 118 + r.below(8) as u8 }).collect();
                Tensor::mxfp4(&shape, codes, scales).unwrap()
            }
            _ => random(t, &shape, kind == OpKind::Relayout || t.layout.is_some(), &mut r),
        };
        for (part, data) in bytes(&tensor) {
            out.buffers.insert((i, part), data);
        }
        out.operands.push(Datum::Tensor(tensor));
        // A packed operand is logically its plain form; its bytes come from the host packer.
        if t.layout.is_some() {
            let Some(Datum::Tensor(tensor)) = out.operands.last() else { unreachable!() };
            let Data::Mxfp4 { codes, scales } = &tensor.data else { unreachable!() };
            let dims: Vec<i64> = shape.iter().map(|n| *n as i64).collect();
            let layout = crate::kernels::quant::packed(&dims).unwrap().unwrap();
            let fast = t.layout.as_deref() == Some(crate::kernels::quant::PACKED_FAST);
            let mode = if fast { ScaleMode::Fast } else { ScaleMode::General };
            let layout = Mxfp4Layout::new(layout.experts(), layout.n(), layout.k(), layout.row_order(), mode).unwrap();
            let mut data = vec![0; layout.bytes()];
            layout.pack(codes, scales, &mut data).unwrap();
            out.buffers.retain(|(operand, _), _| *operand != i);
            out.buffers.insert((i, Part::Data), data);
        }
    }
    out
}

/// The op that an operand is for, and which of its operands it is: inside a kernel, the first op that reads it.
fn role(case: &Case, i: usize) -> (OpKind, usize) {
    let Some(kernel) = case.op.attrs.kernel() else { return (case.op.kind, i) };
    let mut first = 0;
    for (number, f) in kernel.numbered() {
        let count = kernel.operands_of(number);
        if i < first + count {
            let param = f.param(f.params.len() - count + i - first).unwrap();
            let users = f.graph.users(param);
            // Integers have a meaning; prefer the user that gives it one.
            let telling = |u: &&(gossamer_ir::OpId, u16)| f.graph.op(u.0).kind == OpKind::KvWrite;
            let (user, operand) = users.iter().find(telling).or(users.first()).copied().unwrap();
            return (f.graph.op(user).kind, operand as usize);
        }
        first += count;
    }
    (case.op.kind, i)
}

/// True if the case writes the cache.
fn writes(case: &Case) -> bool {
    case.op.kind == OpKind::KvWrite || case.op.attrs.kernel().is_some_and(|k| k.has(OpKind::KvWrite))
}

fn capacity(case: &Case) -> i64 {
    match case.module.states.first() {
        Some(StateDecl::Kv { page, .. }) => page * case.sizes["P"],
        _ => 0,
    }
}

fn float(t: &TensorType, shape: &[usize], f: &mut dyn FnMut(usize) -> f32) -> Tensor {
    let n: usize = shape.iter().product();
    Tensor::float(t.dtype, shape, (0..n).map(f).collect()).unwrap()
}

fn random(t: &TensorType, shape: &[usize], packs: bool, r: &mut Random) -> Tensor {
    let n: usize = shape.iter().product();
    match t.dtype {
        DType::I32 => Tensor::i32(shape, (0..n).map(|_| r.word() as i32 >> (r.word() % 30)).collect()).unwrap(),
        DType::U8 => Tensor::u8(shape, (0..n).map(|_| r.word() as u8).collect()).unwrap(),
        DType::Bool => Tensor::bool(shape, &(0..n).map(|_| r.word() % 2 == 1).collect::<Vec<_>>()).unwrap(),
        DType::Mxfp4 => {
            let codes = (0..n / 2).map(|_| r.word() as u8).collect();
            if t.layout.as_deref() == Some(crate::kernels::quant::PACKED_FAST) {
                let scales = (0..n / 32).map(|i| [0, 1, 128, 120][i % 4]).collect();
                return Tensor::mxfp4(shape, codes, scales).unwrap();
            }
            // Both ends of the range that bf16 holds exactly; where nothing is packed also what it does not hold.
            let ends = if packs { [0, 1, 120, 252] } else { [0, 254, 255, 253] };
            let scale =
                |i: usize, r: &mut Random| if i.is_multiple_of(3) { ends[i / 3 % 4] } else { r.below(253) as u8 };
            let scales = (0..n / 32).map(|i| scale(i, r)).collect();
            Tensor::mxfp4(shape, codes, scales).unwrap()
        }
        _ => float(t, shape, &mut |_| r.float()),
    }
}

fn state(case: &Case, i: usize, decl: &StateDecl, r: &mut Random, out: &mut Inputs) {
    let (s, p) = (case.sizes.get("S").copied().unwrap_or(0), case.sizes.get("P").copied().unwrap_or(0));
    match decl {
        StateDecl::Kv { heads, head_dim, page, dtype, .. } => {
            let pages = s * p + 3;
            let mut store = StateStore::for_decl(decl, pages as usize);
            let StateStore::Kv(kv) = &mut store else { unreachable!() };
            // Pages hold positions up to the greatest of their sequence; what lies beyond is not a number on the device.
            let (pos, seq) = step(case.sizes["T"], s, page * p);
            let n = (pages * heads * page * head_dim) as usize;
            let (mut keys, mut values) = (vec![f32::NAN; n], vec![f32::NAN; n]);
            for sequence in 0..s {
                let last = pos.iter().zip(&seq).filter(|(_, q)| i64::from(**q) == sequence).map(|(p, _)| *p).max();
                for position in 0..=i64::from(last.unwrap_or(-1)) {
                    if writes(case) {
                        break;
                    }
                    let id = page_of(sequence, position / page, p, s);
                    let row = |r: &mut Random| (0..heads * head_dim).map(|_| r.float()).collect::<Vec<f32>>();
                    let (k, v) = (row(r), row(r));
                    kv.write(id as i32, (position % page) as usize, &k, &v, true);
                    for h in 0..*heads {
                        for d in 0..*head_dim {
                            let at = (((id * heads + h) * page + position % page) * head_dim + d) as usize;
                            keys[at] = k[(h * head_dim + d) as usize];
                            values[at] = v[(h * head_dim + d) as usize];
                        }
                    }
                }
            }
            if writes(case) {
                keys.fill(0.0);
                values.fill(0.0);
            }
            out.buffers.insert((i, Part::Keys), floats(*dtype, &keys));
            out.buffers.insert((i, Part::Values), floats(*dtype, &values));
            out.operands.push(Datum::State(out.stores.len()));
            out.stores.push(store);
        }
        StateDecl::Counts { vocab, .. } => {
            let slots = 3;
            let mut store = StateStore::for_decl(decl, slots);
            let StateStore::Counts(counts) = &mut store else { unreachable!() };
            for _ in 0..500 {
                counts.record(r.below(3) as i32, r.below(*vocab) as i32, r.below(3) > 0);
            }
            let words = (0..slots as i32).flat_map(|s| counts.row(s).unwrap().to_vec());
            out.buffers.insert((i, Part::Counts), words.flat_map(|w| w.to_le_bytes()).collect());
            out.operands.push(Datum::State(out.stores.len()));
            out.stores.push(store);
        }
    }
}
