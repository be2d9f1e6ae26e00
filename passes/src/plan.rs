//! The plan: what an executor runs. One per bucket; everything in it follows from the module and the sizes.

use gossamer_ir::{Bindings, Func, InferError, Module, OpId, OpKind};

use crate::buffers::{self, BufferPlan};
use crate::{dce, inline, schedule, weight_only};

/// A flat function with an order and a place for every value.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Declarations (symbols, state, weights) of the module it was made from; no functions.
    pub decls: Module,
    /// The flat function.
    pub func: Func,
    /// Values of all symbols.
    pub sizes: Bindings,
    /// Ops that run once at load, in order.
    pub load: Vec<OpId>,
    /// Ops of a step, in order: one kernel each. Leaves are not among them.
    pub steps: Vec<OpId>,
    /// Where values live.
    pub buffers: BufferPlan,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The entry does not exist.
    #[error("the module has no function `@{entry}`; it has {known}")]
    NoEntry {
        /// What was asked for.
        entry: String,
        /// What there is.
        known: String,
    },
    /// A symbol has no value or one outside its bounds.
    #[error("symbol {symbol} is {found}, expected {min} to {max}; choose a bucket inside the module's bounds")]
    Size {
        /// The symbol.
        symbol: String,
        /// Its value, or `unset`.
        found: String,
        /// Least.
        min: i64,
        /// Greatest.
        max: i64,
    },
    /// Calls of calls that make more ops than any plan may have.
    #[error("@{entry} has more than {} ops with its calls inlined; call less often", MAX_OPS)]
    TooLarge {
        /// The entry.
        entry: String,
    },
    /// The graph has a cycle.
    #[error("the graph has a cycle through {ops} ops; run the verifier for details")]
    Cycle {
        /// How many ops are on or behind it.
        ops: usize,
    },
    /// An op that its type rule refuses.
    #[error(transparent)]
    Infer(#[from] InferError),
    /// Two live values share bytes: a bug in the planner.
    #[error("the buffer plan is wrong: {0}; please report this with the output of `gossamer ir`")]
    Buffers(String),
}

/// Most ops of a plan before those without effect go; a thousand layers have a tenth of it.
const MAX_OPS: usize = 1 << 20;

/// Makes the plan of `entry` at the given sizes.
///
/// # Errors
/// See [`PlanError`].
pub fn plan(module: &Module, entry: &str, sizes: &Bindings) -> Result<Plan, PlanError> {
    for s in &module.syms {
        let value = sizes.get(&s.name);
        if value.is_none_or(|v| *v < s.min || *v > s.max) {
            let found = value.map_or("unset".to_string(), ToString::to_string);
            return Err(PlanError::Size { symbol: s.name.to_string(), found, min: s.min, max: s.max });
        }
    }
    if inline::size(module, entry) > MAX_OPS {
        return Err(PlanError::TooLarge { entry: entry.to_string() });
    }
    let mut func = inline::inline(module, entry)?.ok_or_else(|| PlanError::NoEntry {
        entry: entry.to_string(),
        known: module.funcs.iter().map(|f| format!("@{}", f.name)).collect::<Vec<_>>().join(", "),
    })?;
    dce::dead_ops(&mut func);
    let order = schedule::schedule(&func, sizes).map_err(|ops| PlanError::Cycle { ops: ops.len() })?;
    let load = weight_only::at_load(&func, &order, sizes);
    let at_load: std::collections::BTreeSet<OpId> = load.iter().copied().collect();
    let leaf = |id: &OpId| matches!(func.graph.op(*id).kind, OpKind::Param | OpKind::Weight);
    let steps: Vec<OpId> = order.into_iter().filter(|id| !leaf(id) && !at_load.contains(id)).collect();
    let buffers = buffers::plan(&func, &steps, &load, sizes);
    if let Some(problem) = buffers::check(&func, &steps, &buffers).into_iter().next() {
        return Err(PlanError::Buffers(problem));
    }
    let mut decls = module.clone();
    decls.funcs.clear();
    Ok(Plan { decls, func, sizes: sizes.clone(), load, steps, buffers })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffers::Place;
    use crate::{Options, bucket, compile, manager};
    use gossamer_models::{gpt_oss, presets, step};

    fn program(head: step::Head, options: &Options) -> Plan {
        let o = step::StepOptions { head, max_tokens: 64, max_seqs: 8, context: 1024, page: 64 };
        let program = gpt_oss::build(&presets::gpt_oss_20b(), &o).unwrap();
        let (module, _) = compile(program.module, &manager::default_pipeline(), options).unwrap();
        plan(&module, step::ENTRY, &bucket::sizes(8, 4, 4, 1024, 16)).unwrap()
    }

    #[test]
    fn every_value_has_a_place_and_memory_is_reused() {
        for head in [step::Head::Greedy, step::Head::Sample, step::Head::Full, step::Head::Logits { hidden: true }] {
            let p = program(head, &Options::default());
            for id in &p.steps {
                for r in 0..p.func.graph.op(*id).results.len() as u16 {
                    assert!(p.buffers.places.contains_key(&gossamer_ir::Value { op: *id, result: r }));
                }
            }
            assert!(p.buffers.arena_bytes < p.buffers.total_bytes / 20, "{}", p.buffers.arena_bytes);
            assert!(p.buffers.arena_bytes < p.buffers.live_bytes * 5 / 4);
        }
    }

    #[test]
    fn tables_and_layouts_are_made_at_load_and_dequant_is_not() {
        let p = program(step::Head::Greedy, &Options { mxfp4_layout: Some("mx64".into()), ..Options::default() });
        let kinds: Vec<_> = p.load.iter().map(|id| p.func.graph.op(*id).kind).collect();
        assert_eq!(kinds.iter().filter(|k| **k == OpKind::RopeTable).count(), 1);
        assert_eq!(kinds.iter().filter(|k| **k == OpKind::Relayout).count(), 48);
        assert!(!kinds.contains(&OpKind::Dequant));
        assert_eq!(p.steps.iter().filter(|id| p.func.graph.op(**id).kind == OpKind::Dequant).count(), 48);
    }

    #[test]
    fn states_stay_where_they_are() {
        let p = program(step::Head::Greedy, &Options::default());
        for (result, param) in p.func.results.iter().filter(|v| p.func.graph.ty(**v).is_state()).zip(8..) {
            assert!(matches!(p.buffers.places[result], Place::Param(_)), "{param}");
        }
    }

    #[test]
    fn sizes_outside_the_bounds_are_refused() {
        let o = step::StepOptions { head: step::Head::Greedy, max_tokens: 64, max_seqs: 8, context: 1024, page: 64 };
        let m = gpt_oss::build(&presets::gpt_oss_20b(), &o).unwrap().module;
        let e = plan(&m, "step", &bucket::sizes(65, 1, 1, 1024, 16)).unwrap_err().to_string();
        assert_eq!(e, "symbol T is 65, expected 1 to 64; choose a bucket inside the module's bounds");
        let e = plan(&m, "nope", &bucket::sizes(1, 1, 1, 1024, 16)).unwrap_err().to_string();
        assert!(e.contains("@layer_window, @layer_full, @step"), "{e}");
    }
}
