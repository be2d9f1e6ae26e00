//! The first answer, from the leaves up.
//!
//! Knuth's generalisation of Dijkstra's algorithm, with sets: of all alternatives whose children are settled, the one with the cheapest set of
//! classes settles its class next. A set never costs less than a part of it, so no later alternative could have been cheaper *as seen from
//! that class*, and choices never form a cycle. What is shared between classes above is not seen; local search is for that.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::core::Core;
use super::sets::{bits, insert, union};

/// An answer for every class of the core.
pub(super) struct Greedy {
    /// Chosen alternative.
    pub picks: Vec<usize>,
    /// Cost of a class and everything it needs, if nothing else were there.
    pub alone: Vec<f64>,
}

/// A candidate: cost of its set, class, alternative. Costs are finite and not negative, so their bits are ordered as they are.
type Candidate = Reverse<(u64, usize, usize)>;

/// Settles every class.
pub(super) fn greedy(core: &Core) -> Greedy {
    settle(core, None)
}

/// [`greedy`] as if class `paid` cost nothing; it keeps the alternative given. The choices may have a cycle through it.
pub(super) fn greedy_beside(core: &Core, paid: usize, pick: usize) -> Vec<usize> {
    settle(core, Some((paid, pick))).picks
}

fn settle(core: &Core, paid: Option<(usize, usize)>) -> Greedy {
    let n = core.classes.len();
    let words = n.div_ceil(64);
    let mut out = Greedy { picks: vec![0; n], alone: vec![f64::INFINITY; n] };
    let mut sets = vec![0u64; n * words];
    let mut settled = vec![false; n];
    let mut waiting: Vec<Vec<usize>> =
        core.classes.iter().map(|c| c.alternatives.iter().map(|a| a.children.len()).collect()).collect();
    let mut heap: BinaryHeap<Candidate> = BinaryHeap::new();
    for (c, class) in core.classes.iter().enumerate() {
        for (i, a) in class.alternatives.iter().enumerate().filter(|(_, a)| a.children.is_empty()) {
            heap.push(Reverse((a.cost.to_bits(), c, i)));
        }
    }
    if let Some((c, i)) = paid {
        heap.push(Reverse((0, c, i)));
    }
    let mut set = vec![0u64; words];
    while let Some(Reverse((_, c, i))) = heap.pop() {
        if settled[c] {
            continue;
        }
        settled[c] = true;
        out.picks[c] = i;
        set.fill(0);
        if paid.is_none_or(|(p, _)| p != c) {
            union(&mut set, &sets, &core.classes[c].alternatives[i].children);
            insert(&mut set, c);
        }
        sets[c * words..(c + 1) * words].copy_from_slice(&set);
        out.alone[c] = weigh(core, &out.picks, &set);
        for p in &core.classes[c].parents {
            for (j, a) in core.classes[*p].alternatives.iter().enumerate() {
                if settled[*p] || a.children.binary_search(&c).is_err() {
                    continue;
                }
                waiting[*p][j] -= 1;
                if waiting[*p][j] == 0 {
                    let cost = match a.children.as_slice() {
                        [child] => a.cost + out.alone[*child],
                        children => {
                            union(&mut set, &sets, children);
                            a.cost + weigh(core, &out.picks, &set)
                        }
                    };
                    heap.push(Reverse((cost.to_bits(), *p, j)));
                }
            }
        }
    }
    out
}

/// Own costs of the classes of `set`.
fn weigh(core: &Core, picks: &[usize], set: &[u64]) -> f64 {
    bits(set).map(|c| core.classes[c].alternatives[picks[c]].cost).sum()
}
