//! Preparing a plan: its kernels written, compiled while its weights are read, and bound to places in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use gossamer_codegen_cuda::lower::{KernelSource, Lowered, Part};
use gossamer_ir::{LayoutName, OpId, Type, Value};
use gossamer_passes::Plan;

use super::bind::{BoundLaunch, Homes, kernel_error};
use super::library::BoundGemm;
use super::loader::Uploader;
use super::resident::{Loader, Resident};
use super::workspace::Needs;
use super::{Call, CudaExecutor, Launch, LoadEvent, Prepared, Source, bind, block, library};
use crate::cuda::{DeviceBuffer, LaunchConfig};
use crate::exec::{ExecError, PlanId};
use crate::phases::Phase;

/// A call before its kernel or algorithm is known.
enum Bound {
    Kernel(BoundLaunch),
    Library(BoundGemm),
}

impl CudaExecutor {
    /// [`crate::exec::Executor::prepare`].
    pub(super) fn prepare_plan(&mut self, plan: Arc<Plan>) -> Result<PlanId, ExecError> {
        // Weights decide between two layouts, and so between kernels; nearly always it is the one that was planned. So those are compiled meanwhile.
        let mut lowered = self.lower(&plan, &BTreeMap::new())?;
        let planned: BTreeSet<Arc<KernelSource>> =
            lowered.iter().flat_map(|l| l.launches.iter().map(|launch| launch.kernel.clone())).collect();
        let beside = self.kernels.compile_beside(planned.into_iter().collect());
        let loaded = self.load_weights(&plan);
        // A thread that panicked leaves kernels that are compiled below.
        beside.map(|thread| self.phases.time(Phase::Compile, || thread.join().is_ok()));
        loaded?;
        let residents = self.residents.of(&plan);
        let layouts: BTreeMap<Value, LayoutName> =
            residents.iter().filter_map(|(v, r)| Some((*v, r.layout.clone()?))).collect();
        let planned = |v: &Value| plan.func.graph.ty(*v).as_tensor().and_then(|t| t.layout.clone());
        if layouts.iter().any(|(v, layout)| planned(v).as_ref() != Some(layout)) {
            lowered = self.lower(&plan, &layouts)?;
        }
        let scratch = bind::ScratchBytes::of_all(&lowered);
        let homes = Homes { kept: scratch.kept, ..self.homes(&plan, &residents)? };
        let mut bound = Vec::new();
        let steps: Vec<(OpId, &Arc<Lowered>)> =
            plan.steps.iter().copied().zip(&lowered).filter(|(_, l)| l.count() > 0).collect();
        for (i, (id, lowered)) in steps.iter().enumerate() {
            let next = bind::asked_for(&steps[i + 1..]);
            let ahead = next.map(|(id, next)| bind::wanted(&plan, id, next, &homes)).unwrap_or_default();
            bound.extend(bind::bind_step(&plan, *id, lowered, &homes, ahead)?.into_iter().map(Bound::Kernel));
            bound.extend(library::bind_gemm(&plan, *id, lowered, &homes)?.map(Bound::Library));
        }
        let mut needed: BTreeMap<Arc<KernelSource>, u32> = BTreeMap::new();
        for bound in &bound {
            let Bound::Kernel(launch) = bound else { continue };
            let shared = needed.entry(launch.kernel.clone()).or_default();
            *shared = launch.shared.max(*shared);
        }
        let options = &self.options;
        self.kernels.load(&self.device, &needed, &self.phases, &|done, total, next| {
            options.tell(LoadEvent::Kernels { done, total, next })
        })?;
        let mut calls = Vec::with_capacity(bound.len());
        for bound in bound {
            calls.push(match bound {
                Bound::Kernel(launch) => self.kernel(launch)?,
                Bound::Library(gemm) => {
                    let chosen = self.gemms.get(&self.device, gemm.shape)?;
                    Call::Library(gemm, chosen)
                }
            });
        }
        let results = self.results(&plan, &homes, &residents)?;
        let needs = Needs::with_scratch(&plan, scratch.total())?;
        let (inputs, _) = block::inputs(&plan)?;
        let outputs = block::outputs(&plan)?;
        let id = PlanId(self.plans.len());
        self.plans.push(Prepared { plan, needs, inputs, outputs, results, calls, graph: None, ahead: None });
        // Here, not at the first step, so that a workspace that does not fit is an error of preparing.
        if let Err(e) = self.ready(id) {
            self.plans.pop();
            return Err(e);
        }
        Ok(id)
    }

    /// Addresses of everything that a plan reads or replaces and that is not computed in it.
    fn homes(&self, plan: &Plan, residents: &BTreeMap<Value, Resident<Arc<DeviceBuffer>>>) -> Result<Homes, ExecError> {
        let mut homes = Homes { counters: self.counters.ptr(), ..Homes::default() };
        let (block, index) = block::inputs(plan)?;
        for (param, slot) in index {
            homes.inputs.insert(param, block.slots[slot].offset as u64);
        }
        for (i, p) in plan.func.params.iter().enumerate() {
            let Type::State(_, decl) = &p.ty else { continue };
            let wrong = |problem: String| ExecError::Weight { name: p.name.to_string(), problem };
            let spec = self.states.spec(&p.name).ok_or_else(|| wrong("a state that was not allocated".into()))?;
            if plan.decls.state(decl) != Some(&spec.decl) {
                return Err(wrong(format!("a state that was allocated for another declaration than `{decl}`")));
            }
            homes.states.extend(self.states.parts(&p.name).map(|parts| (i, parts)));
        }
        for (v, resident) in residents {
            let parts = resident.parts.iter().map(|(part, m)| (*part, Uploader::address(m))).collect();
            homes.residents.insert(*v, parts);
        }
        Ok(homes)
    }

    /// Where the tensor results of a plan are.
    fn results(
        &self,
        plan: &Plan,
        homes: &Homes,
        residents: &BTreeMap<Value, Resident<Arc<DeviceBuffer>>>,
    ) -> Result<Vec<Source>, ExecError> {
        let mut out = Vec::new();
        for v in &plan.func.results {
            let Some(t) = plan.func.graph.ty(*v).as_tensor() else { continue };
            let part = if t.dtype.bytes().is_none() && t.layout.is_none() { Part::Codes } else { Part::Data };
            let source = match plan.buffers.places.get(v) {
                Some(gossamer_passes::buffers::Place::Resident(root)) => {
                    residents.get(root).filter(|r| r.parts.len() == 1).map(|r| Source::Resident(r.parts[0].1.clone()))
                }
                _ => bind::address(plan, *v, part, homes).map(Source::Workspace),
            };
            let label = || bind::op_label(plan, v.op);
            out.push(source.ok_or_else(|| {
                kernel_error(format!("{}: type {t} cannot be a result of a step; return a plain tensor", label()))
            })?);
        }
        Ok(out)
    }

    /// A launch with its kernel, which was loaded before.
    fn kernel(&self, bound: BoundLaunch) -> Result<Call, ExecError> {
        let function =
            self.kernels.get(&bound.kernel).cloned().ok_or_else(|| {
                kernel_error(format!("kernel {} was not loaded; please report it", bound.kernel.entry))
            })?;
        let block = [bound.block, 1, 1];
        let config =
            LaunchConfig { grid: bound.grid, block, shared: bound.shared, cluster: None, pdl: bound.dependent };
        Ok(Call::Kernel(Launch { bound, function, config }))
    }

    /// The steps of a plan as launches, where weights have these layouts instead of those that it asks for.
    fn lower(&self, plan: &Plan, layouts: &BTreeMap<Value, LayoutName>) -> Result<Vec<Arc<Lowered>>, ExecError> {
        self.phases.time(Phase::Codegen, || bind::lower_steps(plan, layouts))
    }

    fn load_weights(&mut self, plan: &Plan) -> Result<(), ExecError> {
        let options = self.options.clone();
        let (device, phases) = (&self.device, &self.phases);
        let (begun, other) = (Instant::now(), phases.sum(&[Phase::Memory, Phase::Upload]));
        let loaded =
            self.residents.load(plan, &*self.source, |total| Uploader::new(device, total, phases), &|done, total| {
                options.tell(LoadEvent::Weights { done, total })
            });
        // The rest is the CPU's: reading, packing, evaluating.
        let other = phases.sum(&[Phase::Memory, Phase::Upload]).saturating_sub(other);
        phases.add(Phase::Weights, begun.elapsed().saturating_sub(other));
        loaded
    }
}
