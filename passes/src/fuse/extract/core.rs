//! The part of the input that needs thought: what is impossible, free or plainly worse is gone, and classes are numbered topologically.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use petgraph::algo::kosaraju_scc;
use petgraph::graph::{DiGraph, NodeIndex};

use super::{Choice, Choices, ExtractError};

/// Classes to choose for. Class 0 is the root; every child comes later, except within a component.
pub(super) struct Core {
    /// Classes, root first.
    pub classes: Vec<Class>,
    /// Maximal sets of classes that can reach each other, in order: ranges of `classes`, mostly of length 1.
    pub components: Vec<Range<usize>>,
}

/// The input without what is easy.
pub(super) struct Reduced {
    /// What is left; empty if the root itself is free.
    pub core: Core,
    /// Choices of input classes that cost nothing: taken whatever else is.
    free: BTreeMap<usize, usize>,
}

/// A class of the core.
pub(super) struct Class {
    /// Its number in what the core was made from.
    pub input: usize,
    /// Alternatives worth considering, in the order of the input.
    pub alternatives: Vec<Alternative>,
    /// Classes that have an alternative with this child, ascending.
    pub parents: Vec<usize>,
}

/// An alternative of the core.
#[derive(Clone)]
pub(super) struct Alternative {
    /// Its number there.
    pub input: usize,
    /// Own cost, finite.
    pub cost: f64,
    /// Children that are not free, ascending, without repeats.
    pub children: Vec<usize>,
}

impl Core {
    /// The classes that `picks` needs, ascending; `None` if they have a cycle.
    pub fn needed(&self, picks: &[usize]) -> Option<Vec<usize>> {
        // Topological numbers make one ascending sweep find all, but for components of several classes.
        let mut needed = vec![false; self.classes.len()];
        if let Some(root) = needed.first_mut() {
            *root = true;
        }
        for component in &self.components {
            let mut todo: Vec<usize> = component.clone().filter(|c| needed[*c]).collect();
            while let Some(c) = todo.pop() {
                for child in &self.classes[c].alternatives[picks[c]].children {
                    if !needed[*child] {
                        needed[*child] = true;
                        if component.contains(child) {
                            todo.push(*child);
                        }
                    }
                }
            }
            if component.len() > 1 && self.is_cyclic(component, picks, &needed) {
                return None;
            }
        }
        Some((0..needed.len()).filter(|c| needed[*c]).collect())
    }

    /// True if the needed classes of `component` need each other in a circle.
    fn is_cyclic(&self, component: &Range<usize>, picks: &[usize], needed: &[bool]) -> bool {
        let mut left: Vec<usize> = component.clone().filter(|c| needed[*c]).collect();
        loop {
            let before = left.len();
            let blocked =
                |c: &usize| self.classes[*c].alternatives[picks[*c]].children.iter().any(|d| left.contains(d));
            left = left.iter().copied().filter(blocked).collect();
            if left.is_empty() || left.len() == before {
                return !left.is_empty();
            }
        }
    }

    /// Cost of the classes that `picks` needs; infinite if they have a cycle.
    pub fn total(&self, picks: &[usize]) -> f64 {
        let cost = |c: usize| self.classes[c].alternatives[picks[c]].cost;
        self.needed(picks).map_or(f64::INFINITY, |needed| needed.into_iter().map(cost).sum())
    }
}

impl Reduced {
    /// Choices of the input that correspond to `picks`, with the free classes they need.
    pub fn expand(&self, choices: &Choices, picks: &[usize]) -> BTreeMap<usize, usize> {
        let own: BTreeMap<usize, usize> =
            self.core.classes.iter().zip(picks).map(|(c, pick)| (c.input, c.alternatives[*pick].input)).collect();
        let mut chosen = BTreeMap::new();
        let mut todo = vec![choices.root];
        while let Some(class) = todo.pop() {
            let pick = self.free.get(&class).or_else(|| own.get(&class));
            if let Some(pick) = pick
                && chosen.insert(class, *pick).is_none()
            {
                todo.extend(&choices.classes[class][*pick].children);
            }
        }
        chosen
    }
}

/// Reduces the input.
pub(super) fn reduce(choices: &Choices) -> Result<Reduced, ExtractError> {
    let possible = possible(choices);
    if !possible[choices.root] {
        return Err(ExtractError::Unsatisfiable { root: choices.root, classes: blame(choices, &possible) });
    }
    let free = free(choices);
    if free.contains_key(&choices.root) {
        return Ok(Reduced { core: Core { classes: Vec::new(), components: Vec::new() }, free });
    }
    // Alternatives of reachable classes, still with the input's numbers.
    let mut kept: BTreeMap<usize, Vec<Alternative>> = BTreeMap::new();
    let mut todo = vec![choices.root];
    while let Some(class) = todo.pop() {
        if kept.contains_key(&class) {
            continue;
        }
        let mut alternatives = Vec::new();
        for (input, choice) in choices.classes[class].iter().enumerate() {
            let usable = choice.cost.is_finite() && choice.children.iter().all(|c| possible[*c] && *c != class);
            if usable {
                let mut children: Vec<usize> =
                    choice.children.iter().copied().filter(|c| !free.contains_key(c)).collect();
                children.sort_unstable();
                children.dedup();
                alternatives.push(Alternative { input, cost: choice.cost, children });
            }
        }
        drop_dominated(&mut alternatives);
        todo.extend(alternatives.iter().flat_map(|a| &a.children));
        kept.insert(class, alternatives);
    }
    Ok(Reduced { core: number(choices.root, &kept), free })
}

/// Which classes have a finite acyclic choice: the least fixpoint from the leaves.
pub(super) fn possible(choices: &Choices) -> Vec<bool> {
    let mut possible = vec![false; choices.classes.len()];
    for (class, _) in grow(choices, |choice, done| choice.cost.is_finite() && choice.children.iter().all(|c| done[*c]))
    {
        possible[class] = true;
    }
    possible
}

/// Classes that cost nothing, with the choice that shows it.
fn free(choices: &Choices) -> BTreeMap<usize, usize> {
    grow(choices, |choice, done| choice.cost == 0.0 && choice.children.iter().all(|c| done[*c])).into_iter().collect()
}

/// Least fixpoint: classes with an alternative that `accept`s, given the classes accepted before; with that alternative, in order of acceptance.
fn grow(choices: &Choices, accept: impl Fn(&Choice, &[bool]) -> bool) -> Vec<(usize, usize)> {
    let n = choices.classes.len();
    let mut parents: Vec<Vec<usize>> = vec![Vec::new(); n];
    for (class, alternatives) in choices.classes.iter().enumerate() {
        for child in alternatives.iter().flat_map(|a| &a.children) {
            if parents[*child].last() != Some(&class) {
                parents[*child].push(class);
            }
        }
    }
    let mut done = vec![false; n];
    let mut order = Vec::new();
    let mut todo: VecDeque<usize> = (0..n).collect();
    while let Some(class) = todo.pop_front() {
        if done[class] {
            continue;
        }
        if let Some(i) = choices.classes[class].iter().position(|choice| accept(choice, &done)) {
            done[class] = true;
            order.push((class, i));
            todo.extend(&parents[class]);
        }
    }
    order
}

/// The deepest impossible classes: components of the impossible part below the root from which no other component of it is reached.
fn blame(choices: &Choices, possible: &[bool]) -> Vec<usize> {
    let mut graph = DiGraph::<usize, ()>::new();
    let mut index: BTreeMap<usize, NodeIndex> = BTreeMap::from([(choices.root, graph.add_node(choices.root))]);
    let mut todo = vec![choices.root];
    while let Some(class) = todo.pop() {
        for child in choices.classes[class].iter().flat_map(|a| &a.children).filter(|c| !possible[**c]) {
            let to = *index.entry(*child).or_insert_with(|| {
                todo.push(*child);
                graph.add_node(*child)
            });
            graph.add_edge(index[&class], to, ());
        }
    }
    let mut classes = Vec::new();
    for component in kosaraju_scc(&graph) {
        let bottom = component.iter().all(|c| graph.neighbors(*c).all(|d| component.contains(&d)));
        if bottom {
            classes.extend(component.iter().map(|c| graph[*c]));
        }
    }
    classes.sort_unstable();
    classes
}

/// Drops alternatives that need no less than another one and cost no less; of equals the first stays.
fn drop_dominated(alternatives: &mut Vec<Alternative>) {
    let within = |a: &Alternative, b: &Alternative| a.children.iter().all(|c| b.children.binary_search(c).is_ok());
    let mut kept: Vec<Alternative> = Vec::with_capacity(alternatives.len());
    for a in alternatives.drain(..) {
        if kept.iter().any(|k| k.cost <= a.cost && within(k, &a)) {
            continue;
        }
        kept.retain(|k| !(a.cost <= k.cost && within(&a, k)));
        kept.push(a);
    }
    *alternatives = kept;
}

/// Numbers the classes topologically, root first.
fn number(root: usize, kept: &BTreeMap<usize, Vec<Alternative>>) -> Core {
    let mut graph = DiGraph::<usize, ()>::with_capacity(kept.len(), kept.len() * 4);
    let index: BTreeMap<usize, NodeIndex> = kept.keys().map(|c| (*c, graph.add_node(*c))).collect();
    for (class, alternatives) in kept {
        for child in alternatives.iter().flat_map(|a| &a.children) {
            graph.add_edge(index[class], index[child], ());
        }
    }
    let components =
        kosaraju_scc(&graph).iter().rev().map(|members| members.iter().map(|c| graph[*c]).collect()).collect();
    Core::new(root, components, |class| kept[&class].clone())
}

impl Core {
    /// From `components` in topological order; `alternatives` of a class, with the children's numbers as they are outside.
    pub fn new(root: usize, components: Vec<Vec<usize>>, alternatives: impl Fn(usize) -> Vec<Alternative>) -> Core {
        let mut core = Core { classes: Vec::new(), components: Vec::new() };
        let mut position = BTreeMap::new();
        for mut members in components {
            // The root is alone at the top, or the first of its component.
            members.sort_unstable_by_key(|c| (*c != root, *c));
            let start = core.classes.len();
            for class in members {
                position.insert(class, core.classes.len());
                core.classes.push(Class { input: class, alternatives: alternatives(class), parents: Vec::new() });
            }
            core.components.push(start..core.classes.len());
        }
        let mut parents = vec![Vec::new(); core.classes.len()];
        for (i, class) in core.classes.iter_mut().enumerate() {
            for a in &mut class.alternatives {
                a.children.iter_mut().for_each(|c| *c = position[c]);
                a.children.sort_unstable();
                for c in &a.children {
                    if parents[*c].last() != Some(&i) {
                        parents[*c].push(i);
                    }
                }
            }
        }
        core.classes.iter_mut().zip(parents).for_each(|(class, parents)| class.parents = parents);
        core
    }
}
