//! Binding: from an op of a plan to launches whose arguments are places in memory.
//!
//! Places in the workspace (inputs, arena, scratch) are kept as offsets, because the workspace moves when a later plan needs a larger one; weights
//! and state never move. Plain arithmetic: nothing here touches a device.

use std::collections::BTreeMap;
use std::sync::Arc;

use gossamer_codegen_cuda::lower::{
    Arg, KernelSource, Lowered, MAX_COUNTERS, Matrix, OpInstance, Part, lower, settles,
};
use gossamer_ir::{DType, LayoutName, OpId, OpKind, TensorType, Type, Value};
use gossamer_passes::Plan;
use gossamer_passes::buffers::{ALIGN, Place};

use super::share::share_prepared;
use crate::cuda::{Boxes, Element};
use crate::exec::ExecError;

/// A stretch of the workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Region {
    /// The input block.
    Inputs,
    /// Computed values.
    Arena,
    /// Scratch of one op at a time.
    Scratch,
}

/// An address in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// Bytes from the start of a region of the workspace.
    Workspace(Region, u64),
    /// A device pointer.
    Fixed(u64),
}

/// An argument of a bound launch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BoundArg {
    /// A pointer.
    Address(Address),
    /// A tensor map of a matrix at this address.
    TensorMap(Address, Matrix),
    /// What the op behind this one would find in the L2 cache.
    Wanted(BoundWanted),
    /// A 4-byte integer.
    I32(i32),
    /// An 8-byte integer.
    I64(i64),
    /// A 4-byte float.
    F32(f32),
}

/// [`Arg::Wanted`] as kernels get it: `struct Wanted` of the kernel library's `async.cuh`. All zeros: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::NoUninit)]
#[repr(C)]
pub struct BoundWanted {
    at: u64,
    apart: i64,
    parts: u32,
    bytes: u32,
}

/// Ops behind one that asks among which the first that wants anything is looked for: a sum over experts and a norm may stand in between.
const AHEAD: usize = 3;

/// The op that a kernel in front of `behind` asks memory for: the nearest that wants anything, unless one that asks itself stands in front of it.
pub fn asked_for<'a, T: Copy>(behind: &[(T, &'a Arc<Lowered>)]) -> Option<(T, &'a Lowered)> {
    let (id, lowered) = *behind.iter().take(AHEAD).find(|(_, l)| l.wanted.is_some() || l.asks())?;
    lowered.wanted.is_some().then_some((id, lowered.as_ref()))
}

/// What a lowered op would find in the L2 cache: nothing unless it is a weight, whose place never changes.
pub fn wanted(plan: &Plan, id: OpId, lowered: &Lowered, homes: &Homes) -> BoundWanted {
    let place = lowered.wanted.and_then(|wanted| {
        let value = *plan.func.graph.op(id).operands.get(wanted.index)?;
        match address(plan, value, wanted.part, homes)? {
            Address::Fixed(at) if homes.residents.contains_key(&value) => {
                Some(BoundWanted { at, apart: wanted.apart as i64, parts: wanted.parts, bytes: wanted.bytes })
            }
            _ => None,
        }
    });
    place.unwrap_or_default()
}

/// A launch with its arguments.
#[derive(Clone, Debug)]
pub struct BoundLaunch {
    /// The kernel.
    pub kernel: Arc<KernelSource>,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared: u32,
    /// True if it may start before the launch before it has ended.
    pub dependent: bool,
    /// Arguments in order.
    pub args: Vec<BoundArg>,
    /// The op it belongs to.
    pub op: OpId,
}

/// Device pointers of a value that does not move, by part.
pub type Parts = Vec<(Part, u64)>;

/// Where the values of a plan are that are not in the arena.
#[derive(Clone, Debug, Default)]
pub struct Homes {
    /// Offset in the input block by parameter number.
    pub inputs: BTreeMap<usize, u64>,
    /// State by parameter number.
    pub states: BTreeMap<usize, Parts>,
    /// Resident values.
    pub residents: BTreeMap<Value, Parts>,
    /// The device pointer of [`Arg::Counters`].
    pub counters: u64,
    /// Bytes at the start of scratch that hold what was prepared and is kept: see [`ScratchBytes::kept`].
    pub kept: u64,
}

/// An error about kernels that is already one whole line.
pub fn kernel_error(line: impl Into<String>) -> ExecError {
    ExecError::Kernel(line.into())
}

/// `matmul (%q.3)`: how errors name an op of a plan.
pub fn op_label(plan: &Plan, id: OpId) -> String {
    let op = plan.func.graph.op(id);
    match op.names.first() {
        Some(name) => format!("{} (%{name})", op.kind.name()),
        None => op.kind.name().to_string(),
    }
}

/// Kernels of one op; none for a view that shares its operand's bytes. `layouts` overrides the layout of resident operands where loading chose
/// another one than the plan asked for.
///
/// # Errors
/// An op without a kernel.
pub fn lower_step(plan: &Plan, id: OpId, layouts: &BTreeMap<Value, LayoutName>) -> Result<Lowered, ExecError> {
    let op = plan.func.graph.op(id);
    let place = |v: Value| plan.buffers.places.get(&v);
    let result = Value { op: id, result: 0 };
    if op.kind == OpKind::Reshape && place(op.operands[0]) == place(result) {
        return Ok(Lowered::default());
    }
    for (r, ty) in op.results.iter().enumerate() {
        check_packed_result(plan, Value { op: id, result: r as u16 }, ty)?;
    }
    let operands: Vec<Type> = op.operands.iter().map(|v| operand_type(plan, *v, layouts)).collect();
    let early = early_operands(plan, id);
    let instance = OpInstance { op, operands: &operands, module: &plan.decls, sizes: &plan.sizes, early: &early };
    lower(&instance).map_err(|e| kernel_error(format!("%{}: {e}", op.names.first().map_or("", |n| n))))
}

/// [`lower_step`] of every step of a plan, in order. Equal kernels, as the layers of a model have them, are lowered once. Launches that would prepare
/// what the op that prepared last has left are not among them.
///
/// # Errors
/// An op without a kernel.
pub fn lower_steps(plan: &Plan, layouts: &BTreeMap<Value, LayoutName>) -> Result<Vec<Arc<Lowered>>, ExecError> {
    let mut known: BTreeMap<String, Arc<Lowered>> = BTreeMap::new();
    let mut out = Vec::with_capacity(plan.steps.len());
    for id in &plan.steps {
        let op = plan.func.graph.op(*id);
        // Beside its body, what a kernel's text depends on: types, and what may be read early.
        let key = op.attrs.kernel().map(|kernel| {
            let mut key = kernel.key().to_string();
            for (v, early) in op.operands.iter().zip(early_operands(plan, *id)) {
                key += &format!("\n{} {early}", operand_type(plan, *v, layouts));
            }
            op.results.iter().for_each(|ty| key += &format!("\n{ty}"));
            key
        });
        let lowered = match key.as_ref().and_then(|k| known.get(k)) {
            Some(lowered) => lowered.clone(),
            None => Arc::new(lower_step(plan, *id, layouts)?),
        };
        if let Some(key) = key {
            known.insert(key, lowered.clone());
        }
        out.push(lowered);
    }
    share_prepared(&plan.func, &plan.steps, &mut out);
    Ok(out)
}

/// Which operands of an op are whole before its kernels can start: see [`OpInstance::early`].
pub fn early_operands(plan: &Plan, id: OpId) -> Vec<bool> {
    let position = |id: OpId| plan.steps.iter().position(|s| *s == id);
    // All steps before this one have ended when a kernel of `id` starts.
    let ended = position(id).and_then(|at| at.checked_sub(1)).filter(|front| settles_here(plan, plan.steps[*front]));
    let early = |v: Value| match plan.buffers.places.get(&v) {
        Some(Place::Param(_)) => !plan.func.graph.ty(v).is_state(),
        Some(Place::Resident(_)) => true,
        _ => !plan.func.graph.ty(v).is_state() && ended.is_some_and(|end| position(v.op).is_some_and(|at| at < end)),
    };
    plan.func.graph.op(id).operands.iter().map(|v| early(*v)).collect()
}

/// True if the op settles and has kernels: with results of no element there may be none.
fn settles_here(plan: &Plan, id: OpId) -> bool {
    let op = plan.func.graph.op(id);
    let some = |ty: &Type| ty.as_tensor().and_then(|t| t.shape(&plan.sizes).ok()).is_some_and(|s| !s.contains(&0));
    settles(op) && op.results.iter().any(some)
}

/// Bytes of scratch, each buffer aligned. What is kept lies in front of what each op uses by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScratchBytes {
    /// Prepared buffers, which live beyond their op.
    pub kept: u64,
    /// Buffers of one op.
    pub own: u64,
}

impl ScratchBytes {
    /// Of one lowered op.
    pub fn of(lowered: &Lowered) -> ScratchBytes {
        ScratchBytes { kept: aligned(&lowered.kept), own: aligned(&lowered.scratch) }
    }

    /// Enough for each of some ops, which run one after the other.
    pub fn of_all<'a>(lowered: impl IntoIterator<Item = &'a Arc<Lowered>>) -> ScratchBytes {
        let all = lowered.into_iter().map(|l| ScratchBytes::of(l));
        all.fold(ScratchBytes::default(), |a, b| ScratchBytes { kept: a.kept.max(b.kept), own: a.own.max(b.own) })
    }

    /// Both.
    pub fn total(&self) -> u64 {
        self.kept + self.own
    }
}

fn aligned(buffers: &[u64]) -> u64 {
    buffers.iter().map(|b| b.next_multiple_of(ALIGN)).sum()
}

/// Where buffer `i` of some begins.
fn offset(buffers: &[u64], i: usize) -> Option<u64> {
    buffers.get(..i).filter(|_| i < buffers.len()).map(aligned)
}

/// Launches of a lowered op with their arguments; `ahead` is what the op behind it would find in the L2 cache.
///
/// # Errors
/// An argument that names no place: the kernel library and the plan do not agree.
pub fn bind_step(
    plan: &Plan,
    id: OpId,
    lowered: &Lowered,
    homes: &Homes,
    ahead: BoundWanted,
) -> Result<Vec<BoundLaunch>, ExecError> {
    let mut launches = Vec::with_capacity(lowered.launches.len());
    for launch in &lowered.launches {
        launches.push(BoundLaunch {
            kernel: launch.kernel.clone(),
            grid: launch.grid,
            block: launch.block,
            shared: launch.shared,
            dependent: launch.dependent,
            args: bind_args(plan, id, lowered, &launch.args, &launch.kernel.entry, homes, ahead)?,
            op: id,
        });
    }
    Ok(launches)
}

/// The arguments of one launch, of the kernel `name`.
pub(super) fn bind_args(
    plan: &Plan,
    id: OpId,
    lowered: &Lowered,
    args: &[Arg],
    name: &str,
    homes: &Homes,
    ahead: BoundWanted,
) -> Result<Vec<BoundArg>, ExecError> {
    let op = plan.func.graph.op(id);
    let scratch = |i: usize| {
        let offset = homes.kept + offset(&lowered.scratch, i)?;
        Some(Address::Workspace(Region::Scratch, offset))
    };
    let kept = |i: usize| {
        let fits = aligned(&lowered.kept) <= homes.kept;
        Some(Address::Workspace(Region::Scratch, offset(&lowered.kept, i).filter(|_| fits)?))
    };
    let bind = |arg: &Arg| {
        let place = match *arg {
            Arg::Operand { index, part } => op.operands.get(index).and_then(|v| address(plan, *v, part, homes)),
            Arg::Result { index, part } if index < op.results.len() => {
                address(plan, Value { op: id, result: index as u16 }, part, homes)
            }
            Arg::Result { .. } => None,
            Arg::Scratch(i) => scratch(i),
            Arg::Kept(i) => kept(i),
            Arg::Counters => (lowered.counters <= MAX_COUNTERS).then_some(Address::Fixed(homes.counters)),
            Arg::TensorMap { index, part, matrix } => {
                let place = op.operands.get(index).and_then(|v| address(plan, *v, part, homes));
                let place = place.ok_or_else(|| no_place(plan, id, arg, name))?;
                return Ok(BoundArg::TensorMap(place, matrix));
            }
            Arg::Wanted => return Ok(BoundArg::Wanted(ahead)),
            Arg::I32(x) => return Ok(BoundArg::I32(x)),
            Arg::I64(x) => return Ok(BoundArg::I64(x)),
            Arg::F32(x) => return Ok(BoundArg::F32(x)),
        };
        place.map(BoundArg::Address).ok_or_else(|| no_place(plan, id, arg, name))
    };
    args.iter().map(bind).collect()
}

/// The matrix at `address` as the copy engine is told of it.
///
/// # Errors
/// An element type that it is not asked for: code generation and this crate do not agree.
pub fn boxes(address: u64, matrix: Matrix) -> Result<Boxes, ExecError> {
    let Matrix { dtype, rows, columns, box_rows } = matrix;
    let element = match dtype {
        DType::BF16 => Element::Bf16,
        DType::F16 => Element::F16,
        _ => return Err(kernel_error(format!("a tensor map of {dtype} elements; please report it"))),
    };
    Ok(Boxes { address, element, rows, columns, box_rows })
}

/// Where `part` of a value is.
pub fn address(plan: &Plan, v: Value, part: Part, homes: &Homes) -> Option<Address> {
    let fixed = |parts: &Parts| parts.iter().find(|p| p.0 == part).map(|p| Address::Fixed(p.1));
    let ty = plan.func.graph.ty(v);
    match *plan.buffers.places.get(&v)? {
        Place::Param(i) if ty.is_state() => fixed(homes.states.get(&i)?),
        Place::Param(i) => {
            let offset = homes.inputs.get(&i)? + part_offset(ty.as_tensor()?, part, plan)?;
            Some(Address::Workspace(Region::Inputs, offset))
        }
        Place::Resident(root) => fixed(homes.residents.get(&root)?),
        Place::Arena { offset, .. } => {
            Some(Address::Workspace(Region::Arena, offset + part_offset(ty.as_tensor()?, part, plan)?))
        }
    }
}

/// Offset of a part in the one stretch of bytes that holds a tensor: row-major MXFP4 has its codes first, then its scales.
fn part_offset(ty: &TensorType, part: Part, plan: &Plan) -> Option<u64> {
    let split = ty.dtype == DType::Mxfp4 && ty.layout.is_none();
    match part {
        Part::Data if !split => Some(0),
        Part::Codes if split => Some(0),
        Part::Scales if split => u64::try_from(ty.count(&plan.sizes).ok()?).ok().map(|n| n / 2),
        _ => None,
    }
}

fn operand_type(plan: &Plan, v: Value, layouts: &BTreeMap<Value, LayoutName>) -> Type {
    let ty = plan.func.graph.ty(v);
    let chosen = match plan.buffers.places.get(&v) {
        Some(Place::Resident(root)) => layouts.get(root),
        _ => None,
    };
    match (ty, chosen) {
        (Type::Tensor(t), Some(layout)) => Type::Tensor(TensorType { layout: Some(layout.clone()), ..t.clone() }),
        _ => ty.clone(),
    }
}

/// A packed tensor in the arena must not be padded beyond the bytes that the buffer plan gave it.
fn check_packed_result(plan: &Plan, v: Value, ty: &Type) -> Result<(), ExecError> {
    let Some(t) = ty.as_tensor().filter(|t| t.layout.is_some()) else { return Ok(()) };
    let shape = t.shape(&plan.sizes).unwrap_or_default();
    let whole = shape.len() >= 2 && shape[shape.len() - 2..].iter().all(|d| d % 64 == 0);
    match whole {
        true => Ok(()),
        false => Err(kernel_error(format!(
            "{}: a packed value of type {t} is computed in every step; only weights may be padded, so pack it at load",
            op_label(plan, v.op)
        ))),
    }
}

fn no_place(plan: &Plan, id: OpId, arg: &Arg, kernel: &str) -> ExecError {
    let what = match arg {
        Arg::Operand { index, part } | Arg::TensorMap { index, part, .. } => {
            format!("{part:?} of operand {index}").to_lowercase()
        }
        Arg::Result { index, part } => format!("{part:?} of result {index}").to_lowercase(),
        Arg::Scratch(i) => format!("scratch buffer {i}"),
        Arg::Kept(i) => format!("prepared buffer {i}"),
        Arg::Counters => format!("more than {MAX_COUNTERS} counters"),
        Arg::Wanted | Arg::I32(_) | Arg::I64(_) | Arg::F32(_) => "a number".to_string(),
    };
    kernel_error(format!(
        "{}: kernel {kernel} asks for {what}, which has no place; please report it",
        op_label(plan, id)
    ))
}

#[cfg(test)]
mod tests {
    use super::super::resident;
    use super::super::testing::{decode_plan, ops, plan_with};
    use super::*;
    use gossamer_codegen_cuda::lower::{Launch, Wanted};
    use gossamer_ir::StateFamily;
    use gossamer_models::step::Head;
    use gossamer_passes::Options;

    fn kernel(args: Vec<Arg>, scratch: Vec<u64>) -> Lowered {
        let kernel = Arc::new(KernelSource { entry: "k".into(), text: "text".into() });
        Lowered {
            launches: vec![Launch { kernel, grid: [1, 1, 1], block: 32, shared: 0, dependent: false, args }],
            scratch,
            ..Lowered::default()
        }
    }

    fn arg(index: usize, part: Part) -> Arg {
        Arg::Operand { index, part }
    }

    fn bound(plan: &Plan, id: OpId, args: Vec<Arg>, homes: &Homes) -> Result<Vec<BoundArg>, ExecError> {
        bind_step(plan, id, &kernel(args, vec![100, 8]), homes, BoundWanted::default()).map(|l| l[0].args.clone())
    }

    #[test]
    fn the_nearest_op_that_wants_weights_is_asked_for() {
        let wanted = Some(Wanted { index: 1, part: Part::Data, apart: 128, parts: 4, bytes: 64 });
        let quiet = Arc::new(kernel(vec![], vec![]));
        let asks = Arc::new(kernel(vec![Arg::Wanted], vec![]));
        let wants = Arc::new(Lowered { wanted, ..kernel(vec![], vec![]) });
        let both = Arc::new(Lowered { wanted, ..kernel(vec![Arg::Wanted], vec![]) });
        let found = |behind: &[&Arc<Lowered>]| {
            let numbered: Vec<(usize, &Arc<Lowered>)> = behind.iter().copied().enumerate().collect();
            asked_for(&numbered).map(|(i, _)| i)
        };
        assert_eq!(found(&[]), None);
        assert_eq!(found(&[&wants, &both]), Some(0));
        assert_eq!(found(&[&quiet, &quiet, &both]), Some(2));
        assert_eq!(found(&[&quiet, &quiet, &quiet, &wants]), None, "too far behind");
        assert_eq!(found(&[&quiet, &asks, &wants]), None, "another asks for it");
    }

    #[test]
    fn arguments_become_places() {
        let plan = decode_plan(2);
        let write = ops(&plan, OpKind::KvWrite)[0];
        let state = plan.func.params.iter().position(|p| p.ty.is_state()).unwrap();
        let homes = Homes {
            inputs: (0..plan.func.params.len()).map(|i| (i, 256 * i as u64)).collect(),
            states: BTreeMap::from([(state, vec![(Part::Keys, 0x1000), (Part::Values, 0x2000)])]),
            residents: BTreeMap::new(),
            counters: 0x4000,
            kept: 512,
        };
        let matrix = Matrix { dtype: DType::BF16, rows: 9, columns: 64, box_rows: 3 };
        let args = vec![
            arg(0, Part::Keys),
            arg(0, Part::Values),
            arg(1, Part::Data),
            arg(3, Part::Data),
            Arg::Scratch(1),
            Arg::I32(-1),
            Arg::I64(7),
            Arg::F32(0.5),
            Arg::Result { index: 0, part: Part::Keys },
            Arg::TensorMap { index: 0, part: Part::Values, matrix },
        ];
        let found = bound(&plan, write, args, &homes).unwrap();
        let k = plan.func.graph.op(write).operands[1];
        let Place::Arena { offset, .. } = plan.buffers.places[&k] else { panic!("k is computed") };
        let expected = [
            BoundArg::Address(Address::Fixed(0x1000)),
            BoundArg::Address(Address::Fixed(0x2000)),
            BoundArg::Address(Address::Workspace(Region::Arena, offset)),
            BoundArg::Address(Address::Workspace(Region::Inputs, 256)),
            BoundArg::Address(Address::Workspace(Region::Scratch, 512 + 256)),
            BoundArg::I32(-1),
            BoundArg::I64(7),
            BoundArg::F32(0.5),
            // The new state is the old one's memory.
            BoundArg::Address(Address::Fixed(0x1000)),
            BoundArg::TensorMap(Address::Fixed(0x2000), matrix),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn only_weights_are_asked_for_ahead() {
        let plan = decode_plan(2);
        let homes = anywhere(&plan);
        let graph = &plan.func.graph;
        let weighs = |v: &Value| homes.residents.contains_key(v);
        let id = *plan.steps.iter().find(|id| graph.op(**id).operands.iter().any(weighs)).unwrap();
        let index = graph.op(id).operands.iter().position(weighs).unwrap();
        let (part, at) = homes.residents[&graph.op(id).operands[index]][0];
        let ask = Wanted { index, part, apart: 256, parts: 3, bytes: 64 };
        let lowered = |wanted| Lowered { wanted, ..kernel(vec![Arg::Wanted], vec![]) };
        let asked = wanted(&plan, id, &lowered(Some(ask)), &homes);
        assert_eq!(asked, BoundWanted { at, apart: 256, parts: 3, bytes: 64 });
        // A kernel that asks for others gets it as it is; where nothing is wanted, or what a step computes, all is zero.
        let launches = bind_step(&plan, id, &lowered(None), &homes, asked).unwrap();
        assert_eq!(launches[0].args, [BoundArg::Wanted(asked)]);
        let write = ops(&plan, OpKind::KvWrite)[0];
        let computed = Wanted { index: 1, part: Part::Data, ..ask };
        for none in [wanted(&plan, id, &lowered(None), &homes), wanted(&plan, write, &lowered(Some(computed)), &homes)]
        {
            assert_eq!(none, BoundWanted::default());
        }
    }

    #[test]
    fn what_has_no_place_is_named() {
        let plan = decode_plan(2);
        let write = ops(&plan, OpKind::KvWrite)[0];
        for (bad, what) in [
            (arg(0, Part::Counts), "counts of operand 0"),
            (arg(9, Part::Data), "data of operand 9"),
            (Arg::Scratch(2), "scratch buffer 2"),
            (Arg::Kept(0), "prepared buffer 0"),
            (Arg::Result { index: 3, part: Part::Data }, "data of result 3"),
            (arg(1, Part::Codes), "codes of operand 1"),
        ] {
            let line = bound(&plan, write, vec![bad], &Homes::default()).unwrap_err().to_string();
            assert!(line.starts_with("kv_write (%") && line.contains(what), "{line}");
        }
    }

    #[test]
    fn residents_are_found_through_views_and_by_part() {
        let plan = decode_plan(1);
        let dequant = ops(&plan, OpKind::Dequant)[0];
        let weight = plan.func.graph.op(dequant).operands[0];
        let residents = BTreeMap::from([(weight, vec![(Part::Codes, 64), (Part::Scales, 128)])]);
        let homes = Homes { residents, ..Homes::default() };
        let found = bound(&plan, dequant, vec![arg(0, Part::Scales), arg(0, Part::Codes)], &homes).unwrap();
        assert_eq!(found, [128, 64].map(|p| BoundArg::Address(Address::Fixed(p))));
    }

    #[test]
    fn a_layout_chosen_at_load_reaches_the_kernels() {
        let plan = decode_plan(1);
        let dequant = ops(&plan, OpKind::Dequant)[0];
        let weight = plan.func.graph.op(dequant).operands[0];
        let layouts = BTreeMap::from([(weight, LayoutName::from("other"))]);
        let ty = operand_type(&plan, weight, &layouts);
        assert_eq!(ty.as_tensor().unwrap().layout.as_deref(), Some("other"));
        assert_eq!(&operand_type(&plan, weight, &BTreeMap::new()), plan.func.graph.ty(weight));
    }

    /// Homes for everything that a plan does not compute, at made-up addresses.
    fn anywhere(plan: &Plan) -> Homes {
        let mut homes = Homes::default();
        for (i, p) in plan.func.params.iter().enumerate() {
            match &p.ty {
                Type::State(StateFamily::Kv, _) => {
                    homes.states.insert(i, vec![(Part::Keys, 256), (Part::Values, 512)]);
                }
                Type::State(..) => {
                    homes.states.insert(i, vec![(Part::Counts, 256)]);
                }
                Type::Tensor(_) => {
                    homes.inputs.insert(i, 256 * i as u64);
                }
            }
        }
        for v in resident::used(plan) {
            let t = plan.func.graph.ty(v).as_tensor().unwrap();
            let split = t.dtype == DType::Mxfp4 && t.layout.is_none();
            let parts = if split { vec![Part::Codes, Part::Scales] } else { vec![Part::Data] };
            homes.residents.insert(v, parts.into_iter().map(|p| (p, 4096)).collect());
        }
        homes
    }

    #[test]
    fn every_argument_of_every_step_has_a_place() {
        let heads = [Head::Greedy, Head::Sample, Head::Full, Head::Logits { hidden: true }];
        for (head, layout) in heads.into_iter().flat_map(|h| [(h, None), (h, Some(resident::PACKED))]) {
            let options = Options { mxfp4_layout: layout.map(Into::into), ..Options::default() };
            let plan = plan_with(3, head, &options);
            let lowered = lower_steps(&plan, &BTreeMap::new()).unwrap();
            let homes = Homes { kept: ScratchBytes::of_all(&lowered).kept, ..anywhere(&plan) };
            let arena = plan.buffers.arena_bytes;
            let mut launches = 0;
            for (id, lowered) in plan.steps.iter().zip(&lowered) {
                for launch in bind_step(&plan, *id, lowered, &homes, BoundWanted::default()).unwrap() {
                    launches += 1;
                    for arg in launch.args {
                        if let BoundArg::Address(Address::Workspace(Region::Arena, offset)) = arg {
                            assert!(offset < arena && offset.is_multiple_of(16), "{}", op_label(&plan, *id));
                        }
                    }
                }
            }
            assert!(launches > 60, "{launches}");
        }
    }

    #[test]
    fn equal_layers_are_lowered_once_and_alike() {
        let sizes = gossamer_passes::bucket::sizes(2, 2, 2, 64, 1);
        let options = Options { mxfp4_layout: Some(resident::PACKED.into()), sizes, ..Options::default() };
        let plan = plan_with(2, Head::Greedy, &options);
        let together = lower_steps(&plan, &BTreeMap::new()).unwrap();
        for (id, lowered) in plan.steps.iter().zip(&together) {
            let alone = lower_step(&plan, *id, &BTreeMap::new()).unwrap();
            assert_eq!(format!("{alone:?}"), format!("{lowered:?}"));
        }
    }

    #[test]
    fn scratch_buffers_do_not_overlap() {
        let mut with_kept = kernel(vec![], vec![100, 8, 256]);
        with_kept.kept = vec![1, 257];
        assert_eq!(ScratchBytes::of(&with_kept), ScratchBytes { kept: 768, own: 768 });
        let other = kernel(vec![], vec![2000]);
        let all = ScratchBytes::of_all(&[Arc::new(with_kept), Arc::new(other)]);
        assert_eq!((all, all.total()), (ScratchBytes { kept: 768, own: 2048 }, 2816));
        assert_eq!(ScratchBytes::of(&Lowered::default()).total(), 0);
    }
}
