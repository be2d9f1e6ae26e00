//! One scenario: a module, its state, and steps; how it is run on both sides.

use std::collections::BTreeMap;
use std::sync::Arc;

use gossamer_codegen_cuda::layout::{Mxfp4Layout, RowOrder, ScaleMode};
use gossamer_codegen_cuda::lower::KernelSource;
use gossamer_ir::interp::{Data, Datum, EvalError, Rounding, StateStore, Tensor, run_func};
use gossamer_ir::{Attrs, Bindings, DType, Dim, Func, Module, OpKind, Param, SymDecl, TensorType, Type};
use gossamer_passes::plan::plan;
use gossamer_passes::{Options, Plan, compile, manager};
use gossamer_runtime::exec::cuda::CudaExecutor;
use gossamer_runtime::exec::cuda::bind::lower_step;
use gossamer_runtime::exec::cuda::convert::tensor_bytes;
use gossamer_runtime::exec::{Executor, PlanId, StateSpec};

use super::compare::compare;

/// The function that is run.
pub const ENTRY: &str = "f";

/// A module with inputs.
pub struct Scenario {
    /// What it tests; also the seed of its numbers.
    pub label: String,
    /// Has the function [`ENTRY`].
    pub module: Module,
    /// State by parameter name.
    pub states: Vec<StateSpec>,
    /// MXFP4 weights by their name in the module, which is also that in the checkpoint.
    pub weights: BTreeMap<String, Tensor>,
    /// Steps, run in order.
    pub steps: Vec<Step>,
    /// The first row of the last step by itself, if its results must not depend on the others.
    pub alone: Option<Step>,
    /// Greatest relative error of float results.
    pub tolerance: f32,
    /// Fused before it runs on the GPU; `None`: op by op.
    pub fused: Option<Fused>,
}

/// How a scenario is fused.
#[derive(Clone, Default)]
pub struct Fused {
    /// Options of the passes; sizes are those of each step.
    pub options: Options,
    /// Templates that must be among the kernels of every step.
    pub expected: &'static [&'static str],
    /// Parts, in order, of the name of a kernel that must be among those of every step: for a template with several texts.
    pub named: &'static [&'static str],
}

/// Sizes and inputs of one step.
#[derive(Clone, Default)]
pub struct Step {
    /// Values of the symbols.
    pub sizes: Bindings,
    /// Tensor parameters by name.
    pub inputs: BTreeMap<String, Tensor>,
}

/// An operand of a single op.
pub struct Operand {
    /// Its value.
    pub tensor: Tensor,
    /// Its first dim is the symbol T: one row for each row of the result.
    pub rows: bool,
    /// Goes through `relayout` first.
    pub layout: Option<&'static str>,
}

impl Operand {
    /// A value that is the same for every row.
    pub fn whole(tensor: Tensor) -> Operand {
        Operand { tensor, rows: false, layout: None }
    }

    /// One row for each row of the result.
    pub fn rows(tensor: Tensor) -> Operand {
        Operand { tensor, rows: true, layout: None }
    }
}

impl Scenario {
    /// One op on its operands, and on its first row alone if some operand has rows. Dims of `attrs` may name the symbol T.
    ///
    /// # Panics
    /// If the op refuses its operands.
    pub fn op(label: impl Into<String>, kind: OpKind, attrs: Attrs, operands: Vec<Operand>) -> Scenario {
        let label = format!("{} {}", kind.name(), label.into());
        let rows = operands.iter().find(|o| o.rows).map_or(1, |o| o.tensor.shape[0]);
        let t = Dim::sym("T");
        let mut module = Module::default();
        module.syms.push(SymDecl { name: "T".into(), min: 0, max: 1 << 20 });
        let mut params = Vec::new();
        for (i, o) in operands.iter().enumerate() {
            let mut dims: Vec<Dim> = o.tensor.shape.iter().map(|d| Dim::from(*d)).collect();
            if o.rows {
                dims[0] = t.clone();
            }
            let ty = Type::tensor(o.tensor.dtype, dims);
            params.push(Param { name: format!("p{i}").into(), ty, weight: false });
        }
        let mut f = Func::new(ENTRY, params);
        let mut values = Vec::new();
        for (i, o) in operands.iter().enumerate() {
            let v = f.param(i).expect("a parameter");
            values.push(match o.layout {
                None => v,
                Some(layout) => {
                    let attrs = Attrs::from([("layout", layout.into())]);
                    f.add(&module, OpKind::Relayout, vec![v], attrs, &["packed"], None).expect("relayout")[0]
                }
            });
        }
        match f.add(&module, kind, values, attrs, &["y"], None) {
            Ok(results) => f.results = results,
            Err(e) => panic!("{label}: {e}"),
        }
        let by_row = |ty: &Type| ty.as_tensor().is_some_and(|ty| ty.dims.first() == Some(&t));
        let invariant = rows > 1 && f.result_types().iter().all(by_row);
        module.funcs.push(f);
        let step = |n: usize, cut: bool| Step {
            sizes: Bindings::from([("T".into(), n as i64)]),
            inputs: operands
                .iter()
                .enumerate()
                .map(|(i, o)| (format!("p{i}"), if cut && o.rows { head(&o.tensor, n) } else { o.tensor.clone() }))
                .collect(),
        };
        let alone = invariant.then(|| step(1, true));
        let tolerance = kind.info().tolerance;
        let steps = vec![step(rows, false)];
        Scenario { label, module, states: vec![], weights: BTreeMap::new(), steps, alone, tolerance, fused: None }
    }

    /// For results whose rows do depend on each other.
    pub fn mixing_rows(mut self) -> Scenario {
        self.alone = None;
        self
    }

    /// What the interpreter gives for each step, in device form.
    ///
    /// # Errors
    /// An op that does not evaluate.
    pub fn reference(&self) -> Result<Vec<Vec<Vec<u8>>>, String> {
        let mut stores: Vec<StateStore> = self.states.iter().map(|s| StateStore::for_decl(&s.decl, s.units)).collect();
        self.steps.iter().map(|step| self.evaluate(step, &mut stores)).collect()
    }

    /// The kernels that it needs.
    ///
    /// # Errors
    /// A step that does not plan, or an op without a kernel.
    pub fn kernels(&self) -> Result<Vec<Arc<KernelSource>>, String> {
        let mut out = Vec::new();
        for (i, step) in self.steps.iter().chain(&self.alone).enumerate() {
            let plan = self.plan(step, i == self.steps.len())?;
            let first = out.len();
            for id in &plan.steps {
                let lowered = lower_step(&plan, *id, &BTreeMap::new()).map_err(|e| e.to_string())?;
                out.extend(lowered.launches.into_iter().map(|l| l.kernel));
            }
            let named = self.fused.as_ref().map_or(&[][..], |f| f.named);
            let made: Vec<&str> = out[first..].iter().map(|k| name(k)).collect();
            if i < self.steps.len() && !named.is_empty() && !made.iter().any(|name| fits(name, named)) {
                return Err(format!("no kernel {} at {:?}: {}", named.join(".."), step.sizes, made.join(", ")));
            }
        }
        Ok(out)
    }

    fn plan(&self, step: &Step, alone: bool) -> Result<Plan, String> {
        let Some(fused) = &self.fused else {
            return plan(&self.module, ENTRY, &step.sizes).map_err(|e| e.to_string());
        };
        // A row by itself may take any kernel.
        let chosen = if alone { Options::default() } else { fused.options.clone() };
        let refuses = Some(gossamer_runtime::kernels::refuse());
        let options = Options { sizes: step.sizes.clone(), refuses, ..chosen };
        let passes = manager::parse_pipeline("default").map_err(|e| e.to_string())?;
        let (module, _) = compile(self.module.clone(), &passes, &options).map_err(|e| e.to_string())?;
        let f = module.func(ENTRY).ok_or("no entry")?;
        let ops = f.graph.ids();
        let made: Vec<&str> =
            ops.iter().filter_map(|id| f.graph.op(*id).attrs.kernel()).map(|k| &**k.template()).collect();
        if let Some(missing) = fused.expected.iter().find(|t| !alone && !made.contains(t)) {
            return Err(format!("no kernel of template `{missing}` at {:?}: {}", step.sizes, made.join(", ")));
        }
        plan(&module, ENTRY, &step.sizes).map_err(|e| e.to_string())
    }

    fn func(&self) -> &Func {
        self.module.func(ENTRY).expect("the entry")
    }

    fn evaluate(&self, step: &Step, stores: &mut [StateStore]) -> Result<Vec<Vec<u8>>, String> {
        let mut args = Vec::new();
        for p in &self.func().params {
            args.push(match &p.ty {
                Type::State(..) => {
                    let at = self.states.iter().position(|s| *s.name == *p.name);
                    Datum::State(at.ok_or_else(|| format!("state {} is missing", p.name))?)
                }
                Type::Tensor(_) => {
                    let t = step.inputs.get(&*p.name).ok_or_else(|| format!("input {} is missing", p.name))?;
                    Datum::Tensor(t.clone())
                }
            });
        }
        let weight = |name: &str| {
            let missing = || EvalError::Weight { name: name.into(), message: "the scenario has no such weight".into() };
            self.weights.get(name).cloned().ok_or_else(missing)
        };
        let results = run_func(&self.module, ENTRY, args, &weight, stores, &step.sizes, Rounding::Typed)
            .map_err(|e| e.to_string())?;
        let types = self.func().result_types();
        let tensors = results.iter().zip(&types).filter_map(|(d, ty)| Some((d.as_tensor()?, ty.as_tensor()?)));
        tensors.map(|(t, ty)| device_form(t, ty)).collect()
    }

    /// Runs it on the GPU and compares. Returns the greatest share of the tolerance that a result used.
    ///
    /// # Errors
    /// What differs, or what the executor gives.
    pub fn check(&self, executor: &mut CudaExecutor) -> Result<f32, String> {
        let expected = self.reference()?;
        let mut worst = 0.0f32;
        let mut steps: Vec<Vec<Vec<u8>>> = Vec::new();
        for (i, (step, expected)) in self.steps.iter().zip(&expected).enumerate() {
            let id = self.prepare(step, false, executor)?;
            let found = run(executor, id, step)?;
            for (r, (ty, (found, expected))) in self.tensors().into_iter().zip(found.iter().zip(expected)).enumerate() {
                let dtype = if ty.layout.is_some() { DType::U8 } else { ty.dtype };
                let used = compare(found, expected, dtype, self.tolerance);
                worst = worst.max(used.map_err(|d| format!("step {i}, result {r}: {}", d.0))?);
            }
            // Counts are not the same the second time; everything else is.
            if self.states.is_empty() && run(executor, id, step)? != found {
                return Err(format!("step {i} gives other bits the second time"));
            }
            steps.push(found);
        }
        if let Some(step) = &self.alone {
            let id = self.prepare(step, true, executor)?;
            let one = run(executor, id, step)?;
            let last = steps.last().ok_or("a scenario has steps")?;
            self.same_rows(&one, last)
                .map_err(|r| format!("{r}: the first row alone has other bits than among others"))?;
            // Steps of fused kernels have the first rows of the same inputs.
            if let (Some(_), Some(longest)) = (&self.fused, steps.iter().max_by_key(|s| s[0].len())) {
                for (i, step) in steps.iter().enumerate() {
                    let differs = |r| format!("step {i}, {r}: rows have other bits than among more");
                    self.same_rows(step, longest).map_err(differs)?;
                }
            }
        }
        Ok(worst)
    }

    /// Results of fewer rows must be the first of those of more; else which is not.
    fn same_rows(&self, few: &[Vec<u8>], more: &[Vec<u8>]) -> Result<(), String> {
        let types = self.tensors();
        let differs = |r: &usize| !starts_with(&more[*r], &few[*r], &types[*r]);
        (0..few.len()).find(differs).map_or(Ok(()), |r| Err(format!("result {r}")))
    }

    fn prepare(&self, step: &Step, alone: bool, executor: &mut CudaExecutor) -> Result<PlanId, String> {
        executor.prepare(Arc::new(self.plan(step, alone)?)).map_err(|e| e.to_string())
    }

    fn tensors(&self) -> Vec<TensorType> {
        self.func().result_types().iter().filter_map(|t| t.as_tensor().cloned()).collect()
    }
}

/// True if the rows of `one` are the first of those of `all`. Row-major MXFP4 is two runs of rows, codes and scales, 16 to 1.
fn starts_with(all: &[u8], one: &[u8], ty: &TensorType) -> bool {
    match (ty.dtype, &ty.layout) {
        (DType::Mxfp4, None) => {
            let codes = |bytes: &[u8]| bytes.len() / 17 * 16;
            let (a, b) = (all.split_at(codes(all)), one.split_at(codes(one)));
            a.0.starts_with(b.0) && a.1.starts_with(b.1)
        }
        _ => all.starts_with(one),
    }
}

fn run(executor: &mut CudaExecutor, id: PlanId, step: &Step) -> Result<Vec<Vec<u8>>, String> {
    let mut inputs = BTreeMap::new();
    for (name, t) in &step.inputs {
        inputs.insert(name.clone(), tensor_bytes(t).ok_or_else(|| format!("input {name} has no device form"))?);
    }
    executor.run_raw(id, &inputs).map_err(|e| e.to_string())
}

/// A result of the interpreter as the device holds it.
fn device_form(t: &Tensor, ty: &TensorType) -> Result<Vec<u8>, String> {
    let (Some(_), Data::Mxfp4 { codes, scales }) = (&ty.layout, &t.data) else {
        return tensor_bytes(t).ok_or_else(|| format!("a result of type {ty} has no device form"));
    };
    let [experts @ .., n, k] = t.shape.as_slice() else { return Err(format!("{ty} cannot be packed")) };
    let experts = experts.iter().product();
    let layout =
        Mxfp4Layout::new(experts, *n, *k, RowOrder::Identity, ScaleMode::General).map_err(|e| e.to_string())?;
    let mut out = vec![0; layout.bytes()];
    layout.pack(codes, scales, &mut out).map_err(|e| e.to_string())?;
    Ok(out)
}

/// The name of a kernel without the hash of its text: template, types and sizes.
pub fn name(kernel: &KernelSource) -> &str {
    kernel.entry.rsplit_once('_').map_or(&*kernel.entry, |(name, _)| name)
}

/// True if `parts` are in `name`, one behind the other.
fn fits(name: &str, parts: &[&str]) -> bool {
    parts.iter().try_fold(name, |rest, part| Some(rest.split_once(part)?.1)).is_some()
}

/// The first `n` rows of a tensor.
pub fn head(t: &Tensor, n: usize) -> Tensor {
    let mut shape = t.shape.clone();
    let row: usize = shape[1..].iter().product();
    shape[0] = n;
    let data = match &t.data {
        Data::F32(v) => Data::F32(Arc::new(v[..n * row].to_vec())),
        Data::BF16(v) => Data::BF16(Arc::new(v[..n * row].to_vec())),
        Data::I32(v) => Data::I32(Arc::new(v[..n * row].to_vec())),
        Data::U8(v) => Data::U8(Arc::new(v[..n * row].to_vec())),
        Data::Mxfp4 { codes, scales } => Data::Mxfp4 {
            codes: Arc::new(codes[..n * row / 2].to_vec()),
            scales: Arc::new(scales[..n * row / 32].to_vec()),
        },
    };
    Tensor { dtype: t.dtype, shape, data }
}
