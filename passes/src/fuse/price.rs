//! Prices: what each alternative of the e-graph costs at given sizes, and which alternatives are open there.

use std::collections::{BTreeMap, BTreeSet};

use egg::Id;
use gossamer_ir::template::{Order, TEMPLATES, Template, template};
use gossamer_ir::{Bindings, Dim, Kernel, OpKind};

use super::Space;
use super::extract::{Choice, Choices};
use super::facts::{Graph, parts};
use super::rules::{How, RULES, at_load};
use super::term::Term;
use crate::cost::{self, Machine, Terms};

/// The alternatives of every class the root may reach, with what they stand for.
pub struct Priced {
    /// For extraction.
    pub choices: Choices,
    /// Class of each index.
    pub classes: Vec<Id>,
    /// Node of each alternative.
    pub nodes: Vec<Vec<Term>>,
}

/// Added to what is only right where nothing else is.
const LAST_RESORT_US: f64 = 1e6;

/// What prices depend on.
#[derive(Clone, Copy, Debug)]
pub struct Point<'a> {
    /// Value of each symbol.
    pub sizes: &'a Bindings,
    /// The machine that costs are for.
    pub machine: &'a Machine,
    /// Symbol that counts the rows of prompts, if the step holds any; see [`crate::bucket::prompt_rows`].
    pub prompt_rows: Option<&'a str>,
    /// Rules that are not applied: templates that only they start are not there.
    pub excluded: &'a [String],
}

impl<'a> Point<'a> {
    /// A point at which every rule is applied and no row is a prompt's.
    pub fn new(sizes: &'a Bindings, machine: &'a Machine) -> Point<'a> {
        Point { sizes, machine, prompt_rows: None, excluded: &[] }
    }

    /// Templates that sum in one chain and that some rule starts.
    fn chains(&self) -> Vec<&'static Template> {
        let started = |t: &Template| {
            let mut seeds = RULES.iter().filter(|r| matches!(r.how, How::Seed(name) if name == t.name));
            seeds.any(|r| !self.excluded.iter().any(|e| e == r.info.name))
        };
        TEMPLATES.iter().filter(|t| t.order == Order::Chain && started(t)).collect()
    }
}

/// Prices every node at `point`: kernels by the cost model, work at load and renaming nothing, everything else infinite.
pub fn price(space: &Space, point: &Point) -> Priced {
    let eg = &space.bridged.graph;
    let (chains, ranked) = (point.chains(), ranked_weights(eg));
    let mut classes: Vec<Id> = eg.classes().map(|c| c.id).collect();
    classes.sort_unstable();
    let index: BTreeMap<Id, usize> = classes.iter().enumerate().map(|(i, id)| (*id, i)).collect();
    let mut nodes = Vec::with_capacity(classes.len());
    let mut alternatives = Vec::with_capacity(classes.len());
    for id in &classes {
        let mut here: Vec<Term> = eg[*id].nodes.clone();
        here.sort_unstable();
        let choices = here
            .iter()
            .map(|n| Choice {
                cost: own_cost(eg, *id, n, point, (&chains, &ranked)),
                children: egg::Language::children(n).iter().map(|c| index[&eg.find(*c)]).collect(),
            })
            .collect();
        nodes.push(here);
        alternatives.push(choices);
    }
    let root = index[&eg.find(space.bridged.root)];
    Priced { choices: Choices { classes: alternatives, root }, classes, nodes }
}

fn own_cost(eg: &Graph, class: Id, node: &Term, point: &Point, (chains, ranked): (&[&Template], &BTreeSet<Id>)) -> f64 {
    match node {
        Term::Leaf(_) | Term::Attrs(_) | Term::Proj(..) | Term::Outputs(_) | Term::Opaque(..) => 0.0,
        Term::Kernel(k, _) if !in_order(&eg.analysis.kernels[*k as usize], point.prompt_rows, chains) => f64::INFINITY,
        Term::Kernel(k, operands) => {
            let kernel = &eg.analysis.kernels[*k as usize];
            let last = expands(eg, kernel, operands) || unranked(eg, kernel, operands, ranked);
            let last = if last { LAST_RESORT_US } else { 0.0 };
            kernel_cost(eg, *k, operands, point.sizes, point.machine).map_or(f64::INFINITY, |t| last + t.total_us)
        }
        Term::Op(OpKind::Reshape, _) => 0.0,
        Term::Op(..) if at_load(eg, class, node) => 0.0,
        Term::Op(..) => f64::INFINITY,
    }
}

/// True if the kernel sums in the order that its rows have everywhere: rows of prompts in one chain where a template does that, all others in pieces.
/// Sizes do not matter here, so neither does what else is in the step.
fn in_order(kernel: &Kernel, prompt_rows: Option<&str>, chains: &[&Template]) -> bool {
    let main = kernel.main();
    let leading = main.results.first().and_then(|v| main.graph.ty(*v).as_tensor()).and_then(|t| t.dims.first());
    let prompt = prompt_rows.is_some_and(|rows| leading.is_some_and(|d| *d == Dim::sym(rows)));
    let order = match template(kernel.template()) {
        // By itself it takes the templates' order.
        Some(t) if t.name == "single" && main_kind(kernel) == Some(OpKind::MatMul) => Order::Pieces,
        // No other template ranks a row; without ranks it is one of several.
        Some(t) if t.name == "router" && !kernel.has(OpKind::TopK) => Order::Pieces,
        Some(t) => t.order,
        None => Order::Own,
    };
    match order {
        Order::Chain => prompt,
        Order::Pieces => !prompt || !chains.iter().any(|t| t.takes(kernel)),
        Order::Own => true,
    }
}

/// True if the kernel multiplies by expanded weights of experts that others would decode: it adds the columns of a unit in another order than they do, so it must not
/// be one of several choices by size.
fn expands(eg: &Graph, kernel: &Kernel, operands: &[Id]) -> bool {
    let dequant = |id: &Id| eg[*id].nodes.iter().any(|n| matches!(n, Term::Op(OpKind::Dequant, _)));
    main_kind(kernel) == Some(OpKind::MoeMatMul) && &**kernel.template() == "single" && operands.iter().any(dequant)
}

/// Weights of matmuls whose rows are ranked, through adds and casts.
fn ranked_weights(eg: &Graph) -> BTreeSet<Id> {
    let mut out = BTreeSet::new();
    let mut todo: Vec<Id> = Vec::new();
    let mut seen: BTreeSet<Id> = BTreeSet::new();
    for class in eg.classes() {
        for node in &class.nodes {
            if let Term::Op(OpKind::TopK, children) = node {
                todo.extend(parts(eg, OpKind::TopK, children).0.first());
            }
        }
    }
    while let Some(id) = todo.pop() {
        if !seen.insert(eg.find(id)) {
            continue;
        }
        for node in &eg[id].nodes {
            match node {
                Term::Op(kind @ (OpKind::Add | OpKind::Cast), children) => todo.extend(parts(eg, *kind, children).0),
                Term::Op(OpKind::MatMul, children) => {
                    out.extend(parts(eg, OpKind::MatMul, children).0.get(1).map(|w| eg.find(*w)))
                }
                _ => {}
            }
        }
    }
    out
}

/// True if the kernel multiplies by such weights and leaves the ranks to others. The kernel that ranks adds in pieces in every step, so it must not be one of several
/// choices by size either.
fn unranked(eg: &Graph, kernel: &Kernel, operands: &[Id], ranked: &BTreeSet<Id>) -> bool {
    main_kind(kernel) == Some(OpKind::MatMul)
        && !kernel.has(OpKind::TopK)
        && operands.iter().any(|o| ranked.contains(&eg.find(*o)))
}

/// The op of a main region that holds one.
fn main_kind(kernel: &Kernel) -> Option<OpKind> {
    let graph = &kernel.main().graph;
    let mut ops = graph.ids().into_iter().map(|id| graph.op(id).kind).filter(|k| *k != OpKind::Param);
    ops.next().filter(|_| ops.next().is_none())
}

/// The cost of a kernel with these operands at `sizes`; `None` if its template does not take it there.
pub fn kernel_cost(eg: &Graph, kernel: u32, operands: &[Id], sizes: &Bindings, machine: &Machine) -> Option<Terms> {
    let kernel = &eg.analysis.kernels[kernel as usize];
    let template = template(kernel.template())?;
    template.fits(kernel, sizes).ok()?;
    let operand = |id: &Id| cost::Operand { value: usize::from(eg.find(*id)), weight: eg[*id].data.weight_only };
    let operands: Vec<cost::Operand> = operands.iter().map(operand).collect();
    let shape = cost::shape(&eg.analysis.module, kernel, &operands, sizes).ok()?;
    cost::cost(&shape, machine).ok()
}
