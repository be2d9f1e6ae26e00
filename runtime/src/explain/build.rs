//! Making an explanation: passes, plan and kernels of one step, with everything kept.

use std::collections::BTreeMap;

use gossamer_codegen_cuda::lower::Lowered;
use gossamer_ir::{Bindings, Func, Module, OpId, OpKind, template, text};
use gossamer_passes::manager::{Pass, compile_with};
use gossamer_passes::plan::plan;
use gossamer_passes::{Options, Plan, Trace};

use super::{Card, Explanation, Generated, LaunchEntry, Stage, origin, unfuse};
use crate::engine::EngineError;
use crate::exec::cuda::bind::{ScratchBytes, lower_steps};
use crate::explain::memory::BucketMemory;

/// What to explain.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Name of the model or file.
    pub name: &'a str,
    /// Name of the bucket; the sizes are those of the options.
    pub bucket: &'a str,
    /// The function that is a step.
    pub entry: &'a str,
    /// Passes to run.
    pub passes: &'a [Pass],
    /// What they are told, sizes among it.
    pub options: &'a Options,
}

/// Explains one step of `module`.
///
/// # Errors
/// Passes or a plan that fail, or an op without a kernel.
pub fn explain(module: Module, request: &Request) -> Result<Explanation, EngineError> {
    let mut seen: BTreeMap<usize, Vec<(String, String)>> = BTreeMap::new();
    let funcs = |m: &Module| m.funcs.iter().map(|f| (f.name.to_string(), text::print_func(f))).collect::<Vec<_>>();
    let ops = module.funcs.iter().map(|f| f.graph.len()).sum();
    let mut observe = |number: usize, _: &str, m: &Module| drop(seen.insert(number, funcs(m)));
    let (module, trace) = compile_with(module, request.passes, request.options, &mut observe)?;
    let mut take = |number: usize| seen.remove(&number).unwrap_or_default();
    let mut stages = vec![Stage {
        name: "input".into(),
        summary: "the source: unfused, as the model says it".into(),
        changed: true,
        ops: (ops, ops),
        funcs: take(0),
    }];
    for (i, p) in trace.passes.iter().enumerate() {
        stages.push(Stage {
            name: p.name.to_string(),
            summary: request.passes.get(i).map_or(String::new(), |p| p.summary.to_string()),
            changed: p.changed,
            ops: (p.ops_before, p.ops_after),
            funcs: take(i + 1),
        });
    }
    let plan = plan(&module, request.entry, &request.options.sizes)?;
    let mut kernels =
        Kernels { plan: &plan, options: request.options, trace: &trace, known: BTreeMap::new(), out: Parts::default() };
    let lowered = lower_steps(&plan, &BTreeMap::new())?;
    for (id, lowered) in plan.steps.iter().zip(&lowered) {
        kernels.add(*id, lowered);
    }
    let Parts { cards, launches, sources } = kernels.out;
    let memory = BucketMemory::of(request.bucket, &plan, ScratchBytes::of_all(&lowered).total())?;
    Ok(Explanation {
        name: request.name.to_string(),
        bucket: request.bucket.to_string(),
        sizes: request.options.sizes.clone(),
        machine: origin::machine(request.options),
        stages,
        cards,
        launches,
        sources,
        memory,
        module,
        measured: None,
    })
}

#[derive(Default)]
struct Parts {
    cards: Vec<Card>,
    launches: Vec<LaunchEntry>,
    sources: BTreeMap<String, Generated>,
}

/// The kernels of a plan while they are collected.
struct Kernels<'a> {
    plan: &'a Plan,
    options: &'a Options,
    trace: &'a Trace,
    known: BTreeMap<String, usize>,
    out: Parts,
}

impl Kernels<'_> {
    fn add(&mut self, id: OpId, lowered: &Lowered) {
        let op = self.plan.func.graph.op(id);
        if lowered.count() == 0 {
            return;
        }
        let scratch = ScratchBytes::of(lowered).total();
        let value = op.names.first().map_or(String::new(), |n| n.to_string());
        let first = self.out.launches.len();
        let call = lowered.library.as_ref().map(|gemm| gemm.name());
        let entries: Vec<&str> = lowered.launches.iter().map(|l| &*l.kernel.entry).chain(call.as_deref()).collect();
        let card = self.card(id, &entries);
        for (part, l) in lowered.launches.iter().enumerate() {
            let source = || Generated { text: l.kernel.text.clone(), resources: None };
            self.out.sources.entry(l.kernel.entry.clone()).or_insert_with(source);
            self.out.launches.push(LaunchEntry {
                card,
                part,
                entry: l.kernel.entry.clone(),
                scope: scope(&value),
                value: value.clone(),
                grid: l.grid,
                block: l.block,
                shared: l.shared,
                scratch,
                measured_us: None,
                alone_us: None,
            });
        }
        if let Some(entry) = call {
            let (scope, value) = (scope(&value), value.clone());
            let (grid, block, shared) = ([0; 3], 0, 0);
            self.out.launches.push(LaunchEntry {
                card,
                part: 0,
                entry,
                scope,
                value,
                grid,
                block,
                shared,
                scratch,
                measured_us: None,
                alone_us: None,
            });
        }
        let card = &mut self.out.cards[card];
        if card.launches.is_empty() {
            card.launches = (first..self.out.launches.len()).collect();
        }
    }

    /// The card of an op, made if there is no equal one.
    fn card(&mut self, id: OpId, entries: &[&str]) -> usize {
        let f = &self.plan.func;
        let op = f.graph.op(id);
        let kernel = op.attrs.kernel();
        let operands: Vec<String> = op.operands.iter().map(|v| f.graph.ty(*v).to_string()).collect();
        let results: Vec<String> = op.results.iter().map(ToString::to_string).collect();
        let body = match kernel {
            Some(k) => k.key().to_string(),
            None => {
                format!("{} {:?}", op.kind.name(), op.attrs.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>())
            }
        };
        let key = format!("{body}\n{operands:?}\n{results:?}\n{entries:?}");
        if let Some(card) = self.known.get(&key) {
            return *card;
        }
        let template = kernel.map_or("single", |k| k.template());
        let (before, after) = unfuse::alone(f, id);
        self.known.insert(key, self.out.cards.len());
        self.out.cards.push(Card {
            summary: summary(f, id),
            template: template.to_string(),
            about: template::template(template).map_or(String::new(), |t| t.summary.to_string()),
            key: kernel.map_or(String::new(), |k| k.key().to_string()),
            rules: kernel.map_or(vec![], |k| origin::rules(self.trace, k)),
            before,
            after,
            results,
            prediction: origin::predict(self.plan, id, self.options),
            launches: vec![],
        });
        self.out.cards.len() - 1
    }
}

/// `rms_norm cast | matmul | add rope`: the ops of a kernel by region and stage, or the op.
fn summary(f: &Func, id: OpId) -> String {
    let op = f.graph.op(id);
    let Some(kernel) = op.attrs.kernel() else { return op.kind.name().to_string() };
    kernel.outline(&|kind| kind != OpKind::Const)
}

/// `l3` of `l3.attn.q`: inlining puts the scope of a call in front of names.
fn scope(value: &str) -> Option<String> {
    value
        .split_once('.')
        .map(|(scope, _)| scope)
        .filter(|s| s.ends_with(|c: char| c.is_ascii_digit()))
        .map(String::from)
}

/// The function to explain: `step` if the module has it, else its last one.
pub fn entry(module: &Module) -> Option<&str> {
    let step = gossamer_models::step::ENTRY;
    module.func(step).or(module.funcs.last()).map(|f| &*f.name)
}

/// Sizes by name, for messages: `T = 1, S = 1`.
pub fn sizes_text(sizes: &Bindings) -> String {
    sizes.iter().map(|(k, v)| format!("{k} = {v}")).collect::<Vec<_>>().join(", ")
}
