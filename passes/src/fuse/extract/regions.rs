//! Cutting a problem into regions that can be solved one after the other.
//!
//! A class is a *cut* if whatever it needs is needed through it alone, whatever is chosen: it dominates all that it can reach. What it costs with
//! all below is then one number, the same for everyone, so it is solved first and is a leaf of that cost for the region above.

use petgraph::algo::dominators::simple_fast;
use petgraph::graph::{DiGraph, NodeIndex};

use super::core::{Alternative, Core};
use super::sets::{bits, insert};
use super::{frontier, greedy, local};

/// Choices for all classes, and whether no others are cheaper; at most about `limit` expansions are spent on proof, 0: on none.
pub(super) fn solve(core: &Core, limit: usize) -> (Vec<usize>, bool) {
    let n = core.classes.len();
    if n == 0 {
        return (Vec::new(), true);
    }
    let mut picks = vec![0; n];
    let mut exact = true;
    // What each cut costs, once solved.
    let mut solved: Vec<Option<f64>> = vec![None; n];
    let mut left = limit;
    let cuts = cuts(core);
    let size = |region: &Core| region.classes.iter().map(|c| c.alternatives.len()).sum::<usize>();
    let mut size_left: usize = size(core) + cuts.len();
    for cut in cuts {
        let region = region(core, cut, &solved);
        // A fair part of what is left.
        let size = size(&region);
        let budget = left * size / size_left.max(1);
        size_left = size_left.saturating_sub(size);
        let start = greedy::greedy(&region);
        let mut found = local::improve(&region, &start.alone, start.picks.clone());
        let mut proved = region.classes.len() == 1;
        if budget > 0 && !proved {
            let better = frontier::search(&region, region.total(&found), budget);
            proved = better.exact;
            left -= better.spent.min(left);
            found = better.picks.unwrap_or(found);
        }
        if !proved {
            found = local::improve_more(&region, &start, found);
            exact = false;
        }
        local::prefer_earlier(&region, &mut found);
        for (class, pick) in region.classes.iter().zip(&found) {
            if solved[class.input].is_none() {
                picks[class.input] = class.alternatives[*pick].input;
            }
        }
        solved[cut] = Some(region.total(&found));
    }
    (picks, exact)
}

/// What each class can reach, itself included.
fn reach(core: &Core) -> Vec<Vec<u64>> {
    let words = core.classes.len().div_ceil(64);
    let mut reach = vec![vec![0u64; words]; core.classes.len()];
    for component in core.components.iter().rev() {
        let mut all = vec![0u64; words];
        for c in component.clone() {
            insert(&mut all, c);
            for d in core.classes[c].alternatives.iter().flat_map(|a| &a.children) {
                if !component.contains(d) {
                    all.iter_mut().zip(&reach[*d]).for_each(|(to, from)| *to |= from);
                }
            }
        }
        component.clone().for_each(|c| reach[c].clone_from(&all));
    }
    reach
}

/// The cuts, deepest first; the last is the root.
fn cuts(core: &Core) -> Vec<usize> {
    let reach = reach(core);
    let n = core.classes.len();
    let mut graph = DiGraph::<(), ()>::with_capacity(n, n * 4);
    for _ in 0..n {
        graph.add_node(());
    }
    for (c, class) in core.classes.iter().enumerate() {
        for p in &class.parents {
            graph.add_edge(NodeIndex::new(*p), NodeIndex::new(c), ());
        }
    }
    let dominators = simple_fast(&graph, NodeIndex::new(0));
    let mut dominated = vec![0usize; n];
    for c in 0..n {
        for d in dominators.dominators(NodeIndex::new(c)).into_iter().flatten() {
            dominated[d.index()] += 1;
        }
    }
    let is_cut = |c: &usize| bits(&reach[*c]).count() == dominated[*c];
    (0..n).rev().filter(is_cut).collect()
}

/// What `cut` needs, up to the cuts that are solved, which have no children any more.
fn region(core: &Core, cut: usize, solved: &[Option<f64>]) -> Core {
    let alternatives = |c: usize| match solved[c] {
        Some(cost) => vec![Alternative { input: 0, cost, children: Vec::new() }],
        None => {
            let number = |(input, a): (usize, &Alternative)| Alternative { input, ..a.clone() };
            core.classes[c].alternatives.iter().enumerate().map(number).collect()
        }
    };
    let mut inside = vec![false; core.classes.len()];
    let mut todo = vec![cut];
    while let Some(c) = todo.pop() {
        if !std::mem::replace(&mut inside[c], true) && solved[c].is_none() {
            todo.extend(core.classes[c].alternatives.iter().flat_map(|a| &a.children));
        }
    }
    let members = |range: &std::ops::Range<usize>| range.clone().filter(|c| inside[*c]).collect::<Vec<_>>();
    let components = core.components.iter().map(members).filter(|c| !c.is_empty()).collect();
    Core::new(cut, components, alternatives)
}
