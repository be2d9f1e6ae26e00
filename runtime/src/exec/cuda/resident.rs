//! What stays on the device: weights as kernels read them, and results of work done once at load. Plans share it.
//!
//! A resident value is one of: a dense weight as stored; an MXFP4 weight as stored (codes and scales); an MXFP4 weight packed for the kernels,
//! expert by expert on the CPU, so that the device never holds both forms; dense weights one below the other; or the result of any other load op, evaluated by the
//! interpreter. Only values that steps read are kept. Memory and copies are behind [`Loader`], so all of this is tested without a GPU.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

use gossamer_codegen_cuda::layout::{LayoutError, Mxfp4Layout, RowOrder, ScaleMode};
use gossamer_codegen_cuda::lower::Part;
use gossamer_ir::interp::{Datum, EvalCx, Rounding, Tensor};
use gossamer_ir::{DType, LayoutName, OpId, OpKind, TensorType, Value};
use gossamer_models::names::{Part as StoredPart, StoredDType, WeightFormat, WeightSpec};
use gossamer_passes::Plan;
use gossamer_passes::buffers::Place;
use rayon::prelude::*;

use super::bind::kernel_error;
use super::convert::tensor_bytes;
use crate::checkpoint::{Progress, WeightSource, check_scales, fill_parallel, read_part};
use crate::exec::cpu::read_weight;
use crate::exec::{ExecError, resident_key};

/// The packed layout of MXFP4 weights ([`gossamer_codegen_cuda::layout::mxfp4`]) with scales as stored: any byte but 255.
pub const PACKED: &str = "mx64";

/// The same with scales folded for one multiply a pair, for bytes up to 128. A weight with greater ones gets [`PACKED`] instead, and its readers are
/// compiled for that.
pub const PACKED_FAST: &str = "mx64.fast";

/// Device memory being filled. One weight is loaded at a time; copies may still be running when a call returns, until [`Loader::finish`].
pub trait Loader {
    /// Device memory; cheap to clone, freed with the last clone.
    type Memory: Clone;

    /// Memory of `bytes` bytes; `what` names it in errors.
    ///
    /// # Errors
    /// Too little memory.
    fn allocate(&mut self, bytes: usize, what: &str) -> Result<Self::Memory, ExecError>;

    /// Device address of some memory.
    fn address(memory: &Self::Memory) -> u64;

    /// Most bytes that one [`Loader::stage`] may take.
    fn staging(&self) -> usize;

    /// Makes [`Loader::staging`] at least `bytes`.
    ///
    /// # Errors
    /// Too little host memory.
    fn reserve(&mut self, bytes: usize) -> Result<(), ExecError>;

    /// Has `fill` write `len` bytes of host memory, then copies them to `to` from byte `offset` on.
    ///
    /// # Errors
    /// What `fill` or the device gives.
    fn stage(
        &mut self,
        to: &Self::Memory,
        offset: usize,
        len: usize,
        fill: &mut dyn FnMut(&mut [u8]) -> Result<(), ExecError>,
    ) -> Result<(), ExecError>;

    /// Waits for all copies.
    ///
    /// # Errors
    /// What the device gives.
    fn finish(&mut self) -> Result<(), ExecError>;
}

/// A value that stays.
#[derive(Clone, Debug)]
pub struct Resident<M> {
    /// Its memory, by part.
    pub parts: Vec<(Part, M)>,
    /// The layout it has, if it is packed.
    pub layout: Option<LayoutName>,
}

/// Everything that stays, by what it is.
#[derive(Debug)]
pub struct Residents<M> {
    by_key: BTreeMap<String, Resident<M>>,
}

impl<M> Default for Residents<M> {
    fn default() -> Self {
        Residents { by_key: BTreeMap::new() }
    }
}

/// How a resident value is made.
#[derive(Clone, Debug)]
enum Recipe<'a> {
    /// As stored.
    Dense(&'a WeightSpec),
    /// Codes and scales as stored.
    RowMajor(&'a WeightSpec),
    /// Packed.
    Packed(&'a WeightSpec),
    /// Dense weights of one element type, one after the other.
    Joined(Vec<&'a WeightSpec>),
    /// By the interpreter, with the bytes of weights that it reads.
    Computed { weight_bytes: u64 },
}

/// Resident values that the steps or the results of a plan read.
pub fn used(plan: &Plan) -> BTreeSet<Value> {
    let operands = plan.steps.iter().flat_map(|id| &plan.func.graph.op(*id).operands);
    operands
        .chain(&plan.func.results)
        .filter_map(|v| match plan.buffers.places.get(v) {
            Some(Place::Resident(root)) => Some(*root),
            _ => None,
        })
        .collect()
}

/// A name that is equal for equal resident values of any plan: what makes it, and its type at the plan's sizes.
pub fn key(plan: &Plan, v: Value) -> String {
    let shape = plan.func.graph.ty(v).as_tensor().and_then(|t| t.shape(&plan.sizes).ok()).unwrap_or_default();
    format!("{}:{shape:?}", resident_key(&plan.func, v))
}

/// Device bytes of every resident value of a plan, by key; packed weights are counted with their padding.
///
/// # Errors
/// A weight that cannot be packed.
pub fn resident_bytes(plan: &Plan) -> Result<BTreeMap<String, u64>, ExecError> {
    let mut out = BTreeMap::new();
    for v in used(plan) {
        let Some(t) = plan.func.graph.ty(v).as_tensor() else { continue };
        let bytes = match t.layout {
            Some(_) => packing(t, plan, ScaleMode::General, &label(plan, v))?.bytes() as u64,
            None => t.bytes(&plan.sizes).unwrap_or(0),
        };
        out.insert(key(plan, v), bytes);
    }
    Ok(out)
}

impl<M: Clone> Residents<M> {
    /// The resident values of a plan that are loaded.
    pub fn of(&self, plan: &Plan) -> BTreeMap<Value, Resident<M>> {
        used(plan).into_iter().filter_map(|v| Some((v, self.by_key.get(&key(plan, v))?.clone()))).collect()
    }

    /// Loads what `plan` needs and is not there yet. `loader` is asked for once, with the bytes that the largest copy may have, and only if anything is
    /// missing. `progress` gets (bytes done, bytes in all) of checkpoint bytes, from any thread.
    ///
    /// # Errors
    /// A weight that the model does not have or that is not as the plan says, a scale byte of 255, what reading or the device gives. What
    /// was loaded before stays.
    pub fn load<L: Loader<Memory = M>>(
        &mut self,
        plan: &Plan,
        source: &dyn WeightSource,
        loader: impl FnOnce(u64) -> Result<L, ExecError>,
        progress: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<(), ExecError> {
        let mut jobs: Vec<(String, Value, Recipe)> = Vec::new();
        for v in used(plan) {
            let key = key(plan, v);
            if !self.by_key.contains_key(&key) && jobs.iter().all(|j| j.0 != key) {
                jobs.push((key, v, recipe(plan, v, source)?));
            }
        }
        if jobs.is_empty() {
            return Ok(());
        }
        // In the order of the checkpoint, which is the order on disk.
        let rank = |r: &Recipe| match r {
            Recipe::Dense(w) | Recipe::RowMajor(w) | Recipe::Packed(w) => {
                source.weights().iter().position(|s| s.name == w.name).unwrap_or(usize::MAX)
            }
            Recipe::Joined(w) => source.weights().iter().position(|s| s.name == w[0].name).unwrap_or(usize::MAX),
            Recipe::Computed { .. } => usize::MAX,
        };
        jobs.sort_by_cached_key(|(key, _, r)| (rank(r), key.clone()));
        let total: u64 = jobs.iter().map(|(_, _, r)| r.bytes()).sum();
        let done = AtomicU64::new(0);
        let read = |n: u64| progress(done.fetch_add(n, Ordering::Relaxed) + n, total);
        progress(0, total);
        let mut loader = loader(total)?;
        for (key, v, recipe) in jobs {
            let resident = match recipe {
                Recipe::Dense(w) => dense(&mut loader, source, w, &read)?,
                Recipe::RowMajor(w) => row_major(&mut loader, source, w, &read)?,
                Recipe::Joined(w) => joined(&mut loader, source, &w, &label(plan, v), &read)?,
                Recipe::Packed(w) => packed(&mut loader, source, w, plan, v, &read)?,
                Recipe::Computed { .. } => computed(&mut loader, source, plan, v, &read)?,
            };
            self.by_key.insert(key, resident);
        }
        loader.finish()
    }
}

impl Recipe<'_> {
    /// Checkpoint bytes that it reads.
    fn bytes(&self) -> u64 {
        match self {
            Recipe::Dense(w) | Recipe::RowMajor(w) | Recipe::Packed(w) => w.bytes(),
            Recipe::Joined(weights) => weights.iter().map(|w| w.bytes()).sum(),
            Recipe::Computed { weight_bytes } => *weight_bytes,
        }
    }
}

fn recipe<'a>(plan: &Plan, v: Value, source: &'a dyn WeightSource) -> Result<Recipe<'a>, ExecError> {
    let op = plan.func.graph.op(v.op);
    if op.kind == OpKind::Weight {
        let spec = weight(plan, v, source)?;
        return Ok(match spec.format {
            WeightFormat::Mxfp4 => Recipe::RowMajor(spec),
            WeightFormat::Dense(_) => Recipe::Dense(spec),
        });
    }
    let from = op.operands.first().copied().filter(|x| plan.func.graph.op(x.op).kind == OpKind::Weight);
    if op.kind == OpKind::Relayout {
        let layout = op.attrs.word("layout");
        let packable = matches!(layout, PACKED | PACKED_FAST);
        return match from.map(|x| weight(plan, x, source)).transpose()? {
            Some(spec) if spec.format == WeightFormat::Mxfp4 && packable => Ok(Recipe::Packed(spec)),
            _ => Err(kernel_error(format!(
                "{}: cannot be put into layout {layout}; expected an MXFP4 weight and layout {PACKED} or {PACKED_FAST}",
                label(plan, v)
            ))),
        };
    }
    let mut parts = Vec::new();
    if join(plan, v, source, &mut parts)? && parts.iter().all(|w| w.format == parts[0].format) {
        return Ok(Recipe::Joined(parts));
    }
    let mut bytes = 0;
    let (mut waiting, mut seen) = (vec![v.op], BTreeSet::new());
    while let Some(id) = waiting.pop() {
        if !seen.insert(id) {
            continue;
        }
        if plan.func.graph.op(id).kind == OpKind::Weight {
            bytes += weight(plan, Value { op: id, result: 0 }, source)?.bytes();
        }
        waiting.extend(plan.func.graph.op(id).operands.iter().map(|x| x.op));
    }
    Ok(Recipe::Computed { weight_bytes: bytes })
}

/// Collects the dense weights that are a value's rows, in order; false if it is anything else than weights joined along the first dim.
fn join<'a>(
    plan: &Plan,
    v: Value,
    source: &'a dyn WeightSource,
    out: &mut Vec<&'a WeightSpec>,
) -> Result<bool, ExecError> {
    let op = plan.func.graph.op(v.op);
    match op.kind {
        OpKind::Weight => {
            let spec = weight(plan, v, source)?;
            out.push(spec);
            Ok(matches!(spec.format, WeightFormat::Dense(_)))
        }
        OpKind::Concat if op.attrs.int("axis") == 0 => {
            for x in &op.operands {
                if !join(plan, *x, source, out)? {
                    return Ok(false);
                }
            }
            Ok(!out.is_empty())
        }
        _ => Ok(false),
    }
}

/// The weight that a leaf names, checked against the plan's type.
fn weight<'a>(plan: &Plan, v: Value, source: &'a dyn WeightSource) -> Result<&'a WeightSpec, ExecError> {
    let name = plan.func.graph.op(v.op).attrs.word("name");
    let wrong = |problem: String| ExecError::Weight { name: name.to_string(), problem };
    let spec = source.weights().iter().find(|w| w.name == name).ok_or_else(|| wrong("not in the model".into()))?;
    let Some(t) = plan.func.graph.ty(v).as_tensor() else { return Err(wrong("a state in the module".into())) };
    let stored = match spec.format {
        WeightFormat::Mxfp4 => DType::Mxfp4,
        WeightFormat::Dense(StoredDType::BF16) => DType::BF16,
        WeightFormat::Dense(StoredDType::F16) => DType::F16,
        WeightFormat::Dense(StoredDType::F32) => DType::F32,
        WeightFormat::Dense(StoredDType::U8) => DType::U8,
    };
    let shape: Vec<i64> = spec.shape.iter().map(|d| *d as i64).collect();
    match t.dtype == stored && t.shape(&plan.sizes).as_ref() == Ok(&shape) {
        true => Ok(spec),
        false => Err(wrong(format!("{stored}{shape:?} in the checkpoint, {t} in the module"))),
    }
}

fn dense<L: Loader>(
    loader: &mut L,
    source: &dyn WeightSource,
    spec: &WeightSpec,
    read: Progress<'_>,
) -> Result<Resident<L::Memory>, ExecError> {
    let memory = upload(loader, spec.bytes() as usize, &spec.name, &mut |offset, out| {
        Ok(fill_parallel(source, spec, StoredPart::Values, offset, out, read)?)
    })?;
    Ok(Resident { parts: vec![(Part::Data, memory)], layout: None })
}

/// Dense weights one after the other in one stretch of memory.
fn joined<L: Loader>(
    loader: &mut L,
    source: &dyn WeightSource,
    specs: &[&WeightSpec],
    what: &str,
    read: Progress<'_>,
) -> Result<Resident<L::Memory>, ExecError> {
    let bytes: u64 = specs.iter().map(|w| w.bytes()).sum();
    let memory = upload(loader, bytes as usize, what, &mut |offset, out| {
        let (mut start, end) = (0, offset + out.len() as u64);
        for spec in specs {
            let (first, last) = (start.max(offset), (start + spec.bytes()).min(end));
            if first < last {
                let piece = &mut out[(first - offset) as usize..(last - offset) as usize];
                fill_parallel(source, spec, StoredPart::Values, first - start, piece, read)?;
            }
            start += spec.bytes();
        }
        Ok(())
    })?;
    Ok(Resident { parts: vec![(Part::Data, memory)], layout: None })
}

fn row_major<L: Loader>(
    loader: &mut L,
    source: &dyn WeightSource,
    spec: &WeightSpec,
    read: Progress<'_>,
) -> Result<Resident<L::Memory>, ExecError> {
    let mut parts = Vec::new();
    for (part, stored) in [(Part::Codes, StoredPart::Blocks), (Part::Scales, StoredPart::Scales)] {
        let what = format!("{} ({stored})", spec.name);
        let memory = upload(loader, spec.part_bytes(stored) as usize, &what, &mut |offset, out| {
            fill_parallel(source, spec, stored, offset, out, read)?;
            if stored == StoredPart::Scales {
                check_scales(spec, offset, out)?;
            }
            Ok(())
        })?;
        parts.push((part, memory));
    }
    Ok(Resident { parts, layout: None })
}

/// Packs as many experts at a time as the staging memory holds, each on its own thread.
fn packed<L: Loader>(
    loader: &mut L,
    source: &dyn WeightSource,
    spec: &WeightSpec,
    plan: &Plan,
    v: Value,
    read: Progress<'_>,
) -> Result<Resident<L::Memory>, ExecError> {
    let Some(ty) = plan.func.graph.ty(v).as_tensor() else {
        return Err(kernel_error(format!("{}: expected a tensor; verify the module", label(plan, v))));
    };
    let scales = read_part(source, spec, StoredPart::Scales, read)?;
    check_scales(spec, 0, &scales)?;
    let mode = match ty.layout.as_deref() {
        Some(PACKED_FAST) => ScaleMode::for_scales(&scales),
        _ => ScaleMode::General,
    };
    let layout = packing(ty, plan, mode, &spec.name)?;
    let memory = loader.allocate(layout.bytes(), &spec.name)?;
    let (out_bytes, in_bytes, scale_bytes) = (layout.expert_bytes(), layout.block_bytes(), layout.scale_bytes());
    loader.reserve(out_bytes)?;
    let batch = (loader.staging() / out_bytes).max(1);
    for first in (0..layout.experts()).step_by(batch) {
        let count = batch.min(layout.experts() - first);
        loader.stage(&memory, first * out_bytes, count * out_bytes, &mut |out| {
            let experts = out.par_chunks_exact_mut(out_bytes).enumerate();
            experts.try_for_each_init(Vec::new, |blocks, (i, out)| {
                let expert = first + i;
                blocks.resize(in_bytes, 0);
                source.fill(spec, StoredPart::Blocks, (expert * in_bytes) as u64, blocks)?;
                read(in_bytes as u64);
                let scales = &scales[expert * scale_bytes..][..scale_bytes];
                layout.pack_expert(expert, blocks, scales, out).map_err(|e| packing_error(&spec.name, &e))
            })
        })?;
    }
    let name = if mode == ScaleMode::Fast { PACKED_FAST } else { PACKED };
    Ok(Resident { parts: vec![(Part::Data, memory)], layout: Some(name.into()) })
}

fn computed<L: Loader>(
    loader: &mut L,
    source: &dyn WeightSource,
    plan: &Plan,
    v: Value,
    read: Progress<'_>,
) -> Result<Resident<L::Memory>, ExecError> {
    let tensor = evaluate(plan, v, source, &mut BTreeMap::new(), read)?;
    let no_bytes = || kernel_error(format!("{}: its value {tensor:?} has no form on the device", label(plan, v)));
    let bytes = tensor_bytes(&tensor).ok_or_else(no_bytes)?;
    let split = match tensor.dtype {
        DType::Mxfp4 => bytes.len() / 17 * 16,
        _ => bytes.len(),
    };
    let mut parts = Vec::new();
    let names = if tensor.dtype == DType::Mxfp4 { vec![Part::Codes, Part::Scales] } else { vec![Part::Data] };
    for (part, bytes) in names.into_iter().zip([&bytes[..split], &bytes[split..]]) {
        let memory = upload(loader, bytes.len(), &label(plan, v), &mut |offset, out| {
            out.copy_from_slice(&bytes[offset as usize..][..out.len()]);
            Ok(())
        })?;
        parts.push((part, memory));
    }
    Ok(Resident { parts, layout: None })
}

/// The value of a load op on the host.
fn evaluate(
    plan: &Plan,
    v: Value,
    source: &dyn WeightSource,
    known: &mut BTreeMap<OpId, Vec<Tensor>>,
    read: Progress<'_>,
) -> Result<Tensor, ExecError> {
    let op = plan.func.graph.op(v.op);
    if !known.contains_key(&v.op) {
        let results = match op.kind {
            OpKind::Weight => vec![read_weight(source, op.attrs.word("name"), read)?],
            _ => {
                let mut operands = Vec::with_capacity(op.operands.len());
                for x in &op.operands {
                    operands.push(Datum::Tensor(evaluate(plan, *x, source, known, read)?));
                }
                let mut cx = EvalCx {
                    kind: op.kind,
                    operands: &operands,
                    attrs: &op.attrs,
                    results: &op.results,
                    sizes: &plan.sizes,
                    rounding: Rounding::Typed,
                    states: &mut [],
                };
                let results = (op.kind.info().eval)(&mut cx)?;
                results.into_iter().filter_map(|d| if let Datum::Tensor(t) = d { Some(t) } else { None }).collect()
            }
        };
        known.insert(v.op, results);
    }
    let tensor = known.get(&v.op).and_then(|r| r.get(usize::from(v.result))).cloned();
    tensor.ok_or_else(|| kernel_error(format!("{}: has no value at load; verify the module", label(plan, v))))
}

/// Writes some bytes of a value: (byte offset, bytes).
type Fill<'a> = &'a mut dyn FnMut(u64, &mut [u8]) -> Result<(), ExecError>;

/// Allocates and fills memory in pieces of the staging size.
fn upload<L: Loader>(loader: &mut L, bytes: usize, what: &str, fill: Fill<'_>) -> Result<L::Memory, ExecError> {
    let memory = loader.allocate(bytes, what)?;
    let piece = loader.staging().max(1);
    for offset in (0..bytes).step_by(piece) {
        let len = piece.min(bytes - offset);
        loader.stage(&memory, offset, len, &mut |out| fill(offset as u64, out))?;
    }
    Ok(memory)
}

/// The packed layout of an MXFP4 tensor `[.., N, K]`; leading dims are experts.
fn packing(t: &TensorType, plan: &Plan, mode: ScaleMode, name: &str) -> Result<Mxfp4Layout, ExecError> {
    let shape = t.shape(&plan.sizes).unwrap_or_default();
    let sizes: Vec<usize> = shape.iter().map(|d| usize::try_from(*d).unwrap_or(0)).collect();
    let [experts @ .., n, k] = sizes.as_slice() else {
        return Err(kernel_error(format!("weight {name}: {t} cannot be packed; expected at least 2 dims")));
    };
    Mxfp4Layout::new(experts.iter().product(), *n, *k, RowOrder::Identity, mode).map_err(|e| packing_error(name, &e))
}

fn packing_error(name: &str, e: &LayoutError) -> ExecError {
    kernel_error(format!("weight {name}: {e}"))
}

fn label(plan: &Plan, v: Value) -> String {
    super::bind::op_label(plan, v.op)
}

#[cfg(test)]
mod tests;
