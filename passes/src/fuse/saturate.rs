//! Saturation: egg's runner with our rules, limits and bookkeeping.

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use egg::{
    Applier, Id, PatternAst, Rewrite, Runner, SearchMatches, Searcher, SimpleScheduler, StopReason, Subst, Symbol, Var,
};

use super::bridge::Bridged;
use super::error::FuseError;
use super::facts::{Facts, Graph, Origin};
use super::rules::{Equal, Proposal, Rule, Target};
use super::term::{Head, Term};

/// Most nodes of an e-graph. A layer needs a tenth.
pub const MAX_NODES: usize = 20_000;
/// Most rounds. A layer needs about ten: one for each op of the longest kernel.
pub const MAX_ROUNDS: usize = 40;

/// How an e-graph grew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saturation {
    /// Nodes at the end.
    pub nodes: usize,
    /// Classes at the end.
    pub classes: usize,
    /// Rounds until nothing changed.
    pub rounds: usize,
    /// New kernels by rule.
    pub made: BTreeMap<&'static str, usize>,
}

/// Applies `rules` until nothing changes.
///
/// # Errors
/// A contradiction, or a limit.
pub fn run(bridged: &mut Bridged, func: &str, rules: &[&'static Rule]) -> Result<Saturation, FuseError> {
    let rewrites: Vec<Rewrite<Term, Facts>> = rules
        .iter()
        .filter(|r| !r.heads().is_empty())
        .filter_map(|r| Rewrite::new(r.info.name, Search { heads: r.heads() }, Apply { rule: r }).ok())
        .collect();
    let graph = std::mem::replace(&mut bridged.graph, Graph::new(Facts::new(Arc::default())));
    let runner = Runner::<Term, Facts>::new(Facts::new(Arc::default()))
        .with_egraph(graph)
        .with_scheduler(SimpleScheduler)
        .with_iter_limit(MAX_ROUNDS)
        .with_node_limit(MAX_NODES)
        // Time must not decide what is found: the other limits stop first.
        .with_time_limit(std::time::Duration::from_secs(600))
        .with_hook(|r| match r.egraph.analysis.conflicts.is_empty() {
            true => Ok(()),
            false => Err("type conflict".into()),
        })
        .run(&rewrites);
    let (stop, rounds) = (runner.stop_reason, runner.iterations.len());
    bridged.graph = runner.egraph;
    let eg = &bridged.graph;
    if let Some(c) = eg.analysis.conflicts.first() {
        let (left, right) = (c.left.clone(), c.right.clone());
        return Err(FuseError::Conflict { func: func.into(), rule: c.rule.into(), left, right });
    }
    let mut made: BTreeMap<&'static str, usize> = BTreeMap::new();
    for origin in &eg.analysis.origins {
        *made.entry(origin.rule).or_default() += 1;
    }
    let out = Saturation { nodes: eg.total_number_of_nodes(), classes: eg.number_of_classes(), rounds, made };
    match stop {
        Some(StopReason::Saturated) => Ok(out),
        _ => {
            let most = out.made.iter().max_by_key(|(name, n)| (**n, std::cmp::Reverse(**name)));
            Err(FuseError::Limit {
                func: func.into(),
                nodes: out.nodes,
                classes: out.classes,
                rounds,
                max_nodes: MAX_NODES,
                max_rounds: MAX_ROUNDS,
                rule: most.map_or("none", |(name, _)| name),
                made: most.map_or(0, |(_, n)| *n),
            })
        }
    }
}

/// Finds classes that hold a node with one of the heads.
struct Search {
    heads: Vec<Head>,
}

impl Searcher<Term, Facts> for Search {
    fn search_eclass_with_limit(&self, eg: &Graph, class: Id, _: usize) -> Option<SearchMatches<'_, Term>> {
        let found = eg[class].nodes.iter().any(|n| self.heads.contains(&egg::Language::discriminant(n)));
        found.then(|| SearchMatches { eclass: class, substs: vec![Subst::default()], ast: None })
    }

    fn search_with_limit(&self, eg: &Graph, _: usize) -> Vec<SearchMatches<'_, Term>> {
        let mut classes: Vec<Id> = self.heads.iter().filter_map(|h| eg.classes_for_op(h)).flatten().collect();
        classes.sort_unstable();
        classes.dedup();
        classes.into_iter().filter_map(|c| self.search_eclass_with_limit(eg, c, usize::MAX)).collect()
    }

    fn vars(&self) -> Vec<Var> {
        vec![]
    }
}

/// Proposes for every node of a class, asks the template, and unites.
struct Apply {
    rule: &'static Rule,
}

impl Applier<Term, Facts> for Apply {
    fn apply_one(&self, eg: &mut Graph, class: Id, _: &Subst, _: Option<&PatternAst<Term>>, _: Symbol) -> Vec<Id> {
        let class = eg.find(class);
        let heads = self.rule.heads();
        let nodes: Vec<Term> =
            eg[class].nodes.iter().filter(|n| heads.contains(&egg::Language::discriminant(*n))).cloned().collect();
        let mut changed = Vec::new();
        for node in nodes {
            let mut tried = std::mem::take(&mut eg.analysis.tried);
            let proposals = self.rule.propose(eg, class, &node, &mut tried);
            eg.analysis.tried = tried;
            for proposal in proposals {
                changed.extend(accept(eg, self.rule.info.name, proposal));
            }
        }
        changed
    }
}

/// Adds a proposed kernel if its template takes it; the classes that changed.
fn accept(eg: &mut Graph, rule: &'static str, proposal: Proposal) -> Vec<Id> {
    let Proposal { body, from, op, equal } = proposal;
    let Ok((kernel, operands)) = body.close(eg) else { return vec![] };
    eg.analysis.rule = rule;
    let number = eg.analysis.intern_kernel(kernel, Origin { rule, from, op });
    let before = eg.number_of_classes();
    let tuple = eg.add(Term::Kernel(number, operands));
    let mut changed = if eg.number_of_classes() > before { vec![tuple] } else { vec![] };
    let mut unite = |eg: &mut Graph, a: Id, b: Id| {
        if eg.union(a, b) {
            changed.push(a);
        }
    };
    match equal {
        Equal::Tuple(other) => unite(eg, tuple, other),
        Equal::Results(results) => {
            for (i, target) in results {
                let result = eg.add(Term::Proj(i, [tuple]));
                let target = match target {
                    Target::Class(id) => id,
                    Target::Proj(n, t) => eg.add(Term::Proj(n, [t])),
                };
                unite(eg, result, target);
            }
        }
    }
    changed
}

/// Remembers what was proposed, so that a round costs what is new.
#[derive(Default)]
pub struct Tried {
    seen: HashSet<u64>,
}

impl Tried {
    /// True the first time.
    pub fn first(&mut self, key: impl Hash) -> bool {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        self.seen.insert(hasher.finish())
    }
}
