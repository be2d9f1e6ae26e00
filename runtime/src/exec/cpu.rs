//! The CPU executor: runs plans with the reference interpreter. The reference, and the fallback without a GPU.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gossamer_ir::interp::{Data, Datum, EvalCx, Rounding, StateStore, Tensor};
use gossamer_ir::{DType, OpId, OpKind, Type, Value};
use gossamer_models::names::{Part, WeightFormat};
use gossamer_passes::Plan;
use half::bf16;

use super::cuda::{LoadEvent, Observer};
use super::{ExecError, Executor, HostData, Inputs, PlanId, StateSpec, resident_key};
use crate::checkpoint::{Progress, WeightSource, check_scales, read_part};

/// Runs plans on the CPU.
pub struct CpuExecutor {
    source: Arc<dyn WeightSource>,
    rounding: Rounding,
    observer: Option<Observer>,
    resident: BTreeMap<String, Tensor>,
    state_names: Vec<String>,
    states: Vec<StateStore>,
    plans: Vec<Prepared>,
}

/// A plan with everything looked up that does not change between runs.
struct Prepared {
    plan: Arc<Plan>,
    /// Weights and load results.
    resident: BTreeMap<Value, Tensor>,
    /// The value of each parameter.
    params: Vec<Option<Value>>,
    /// Values to drop after each step.
    dead_after: Vec<Vec<Value>>,
}

impl CpuExecutor {
    /// An executor over `source` with its own state. Weights are read when a plan first needs them.
    pub fn new(
        source: Arc<dyn WeightSource>,
        states: &[StateSpec],
        rounding: Rounding,
        observer: Option<Observer>,
    ) -> CpuExecutor {
        let stores = states.iter().map(|s| StateStore::for_decl(&s.decl, s.units)).collect();
        CpuExecutor {
            source,
            rounding,
            observer,
            resident: BTreeMap::new(),
            state_names: states.iter().map(|s| s.name.clone()).collect(),
            states: stores,
            plans: Vec::new(),
        }
    }

    /// Reads the weights of a plan that are not there yet.
    fn load(&mut self, plan: &Plan) -> Result<(), ExecError> {
        let f = &plan.func;
        let names = f.graph.ids().into_iter().map(|id| f.graph.op(id)).filter(|op| op.kind == OpKind::Weight);
        let missing: Vec<String> =
            names.map(|op| op.attrs.word("name").to_string()).filter(|n| !self.resident.contains_key(n)).collect();
        let specs = self.source.weights();
        let total = specs.iter().filter(|w| missing.contains(&w.name)).map(|w| w.bytes()).sum();
        let done = AtomicU64::new(0);
        let progress = |n: u64| {
            let done = done.fetch_add(n, Ordering::Relaxed) + n;
            if let Some(observer) = &self.observer {
                observer(LoadEvent::Weights { done, total });
            }
        };
        let mut loaded = Vec::with_capacity(missing.len());
        for name in missing {
            let tensor = read_weight(&*self.source, &name, &progress)?;
            loaded.push((name, tensor));
        }
        self.resident.extend(loaded);
        Ok(())
    }

    fn state_index(&self, name: &str) -> Result<usize, ExecError> {
        self.state_names.iter().position(|n| n == name).ok_or_else(|| ExecError::Weight {
            name: name.to_string(),
            problem: "a state that was not allocated".to_string(),
        })
    }
}

/// Reads a whole weight as the interpreter holds it.
///
/// # Errors
/// A weight that the model does not have, or what reading gives.
pub fn read_weight(source: &dyn WeightSource, name: &str, progress: Progress<'_>) -> Result<Tensor, ExecError> {
    let spec = source.weights().iter().find(|w| w.name == name);
    let spec = spec.ok_or_else(|| ExecError::Weight { name: name.to_string(), problem: "not in the model".into() })?;
    let shape = spec.shape.clone();
    let bytes = |part| read_part(source, spec, part, progress);
    match spec.format {
        WeightFormat::Mxfp4 => {
            let (codes, scales) = (bytes(Part::Blocks)?, bytes(Part::Scales)?);
            check_scales(spec, 0, &scales)?;
            let data = Data::Mxfp4 { codes: Arc::new(codes), scales: Arc::new(scales) };
            Ok(Tensor { dtype: DType::Mxfp4, shape, data })
        }
        WeightFormat::Dense(_) => {
            let raw = bytes(Part::Values)?;
            let values = raw.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]])).collect();
            Ok(Tensor { dtype: DType::BF16, shape, data: Data::BF16(Arc::new(values)) })
        }
    }
}

impl Executor for CpuExecutor {
    fn describe(&self) -> String {
        format!("CPU ({} threads)", rayon::current_num_threads())
    }

    fn exact_sizes(&self) -> bool {
        true
    }

    fn prepare(&mut self, plan: Arc<Plan>) -> Result<PlanId, ExecError> {
        self.load(&plan)?;
        let f = &plan.func;
        let mut resident: BTreeMap<Value, Tensor> = BTreeMap::new();
        for id in f.graph.ids() {
            let op = f.graph.op(id);
            if let (OpKind::Weight, Some(t)) = (op.kind, self.resident.get(op.attrs.word("name"))) {
                resident.insert(Value { op: id, result: 0 }, t.clone());
            }
        }
        for id in &plan.load {
            let first = resident_key(f, Value { op: *id, result: 0 });
            if !self.resident.contains_key(&first) {
                let operands: Vec<Datum> =
                    f.graph.op(*id).operands.iter().map(|v| Datum::Tensor(resident[v].clone())).collect();
                let results = eval(&plan, *id, &operands, self.rounding, &mut [])?;
                for (r, datum) in results.into_iter().enumerate() {
                    if let Datum::Tensor(t) = datum {
                        self.resident.insert(resident_key(f, Value { op: *id, result: r as u16 }), t);
                    }
                }
            }
            for r in 0..f.graph.op(*id).results.len() as u16 {
                let v = Value { op: *id, result: r };
                if let Some(t) = self.resident.get(&resident_key(f, v)) {
                    resident.insert(v, t.clone());
                }
            }
        }
        let mut dead_after: Vec<Vec<Value>> = vec![Vec::new(); plan.steps.len()];
        for (v, last) in gossamer_passes::schedule::last_uses(f, &plan.steps) {
            if last < plan.steps.len() && !resident.contains_key(&v) {
                dead_after[last].push(v);
            }
        }
        let params = (0..f.params.len()).map(|i| f.param(i)).collect();
        self.plans.push(Prepared { plan, resident, params, dead_after });
        Ok(PlanId(self.plans.len() - 1))
    }

    fn run(&mut self, id: PlanId, inputs: &Inputs) -> Result<Vec<HostData>, ExecError> {
        let Some(prepared) = self.plans.get(id.0) else {
            return Err(ExecError::Kernel(format!("plan {} was not prepared", id.0)));
        };
        let plan = prepared.plan.clone();
        let f = &plan.func;
        let mut values: BTreeMap<Value, Datum> = BTreeMap::new();
        for (i, p) in f.params.iter().enumerate() {
            let Some(v) = prepared.params[i] else { continue };
            let datum = match &p.ty {
                Type::State(..) => Datum::State(self.state_index(&p.name)?),
                Type::Tensor(t) => Datum::Tensor(input(&plan, &p.name, t, inputs)?),
            };
            values.insert(v, datum);
        }
        let prepared = &self.plans[id.0];
        for (step, dead) in plan.steps.iter().zip(&prepared.dead_after) {
            let op = f.graph.op(*step);
            let mut operands = Vec::with_capacity(op.operands.len());
            for v in &op.operands {
                let datum = match prepared.resident.get(v) {
                    Some(t) => Datum::Tensor(t.clone()),
                    None => values.get(v).cloned().ok_or_else(|| missing(&plan, *step))?,
                };
                operands.push(datum);
            }
            let results = eval(&plan, *step, &operands, self.rounding, &mut self.states)?;
            for (r, datum) in results.into_iter().enumerate() {
                values.insert(Value { op: *step, result: r as u16 }, datum);
            }
            for v in dead {
                values.remove(v);
            }
        }
        let mut out = Vec::new();
        for v in f.results.iter().filter(|v| !f.graph.ty(**v).is_state()) {
            let tensor = match (values.get(v), prepared.resident.get(v)) {
                (Some(Datum::Tensor(t)), _) | (None, Some(t)) => t,
                _ => return Err(missing(&plan, v.op)),
            };
            out.push(match &tensor.data {
                Data::I32(d) => HostData::I32(d.to_vec()),
                _ => HostData::F32(tensor.to_f32().to_vec()),
            });
        }
        Ok(out)
    }

    fn clear_counts(&mut self, name: &str, row: usize) -> Result<(), ExecError> {
        let store = self.state_names.iter().position(|n| n == name).map(|i| &mut self.states[i]);
        if let Some(StateStore::Counts(counts)) = store {
            counts.reset(row);
        }
        Ok(())
    }
}

fn missing(plan: &Plan, op: OpId) -> ExecError {
    let op = plan.func.graph.op(op);
    ExecError::Kernel(format!("an operand of `{}` was not computed; the plan's order is wrong", op.kind.name()))
}

fn eval(
    plan: &Plan,
    id: OpId,
    operands: &[Datum],
    rounding: Rounding,
    states: &mut [StateStore],
) -> Result<Vec<Datum>, ExecError> {
    let op = plan.func.graph.op(id);
    let mut cx = EvalCx {
        kind: op.kind,
        operands,
        attrs: &op.attrs,
        results: &op.results,
        sizes: &plan.sizes,
        rounding,
        states,
    };
    Ok((op.kind.info().eval)(&mut cx)?)
}

fn input(plan: &Plan, name: &str, ty: &gossamer_ir::TensorType, inputs: &Inputs) -> Result<Tensor, ExecError> {
    let shape: Vec<usize> = ty.shape(&plan.sizes).unwrap_or_default().iter().map(|d| *d as usize).collect();
    let expected = shape.iter().product();
    let found = inputs.get(name).map_or(0, HostData::len);
    let data = match inputs.get(name) {
        Some(HostData::I32(v)) if v.len() == expected => Data::I32(Arc::new(v.clone())),
        Some(HostData::F32(v)) if v.len() == expected => Data::F32(Arc::new(v.clone())),
        _ => return Err(ExecError::Input { name: name.to_string(), found, expected }),
    };
    Ok(Tensor { dtype: ty.dtype, shape, data })
}
