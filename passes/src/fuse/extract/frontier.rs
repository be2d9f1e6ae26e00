//! The exact search: dynamic programming over frontiers.
//!
//! Classes are decided in topological order, root first. When a class's turn comes, all that could need it have been decided, so what is still
//! to be paid depends only on the *frontier*: the set of classes that are needed and undecided. Of all ways to reach a frontier the cheapest
//! is kept. Classes that can reach each other are decided together, by trying all their acyclic choices. A frontier is dropped if its cost and
//! a lower bound of the rest are no better than the answer known; if there are too many, only the most promising of each step are kept,
//! and the result is not proved.
//!
//! Lower bound: classes that every answer contains count in full, once. Every other class spreads its cost evenly over the classes that could
//! need it, and the cheapest alternative of a class counts; one on the frontier counts the shares of those decided. No class is counted more
//! than once in full, so the sum cannot be too high.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use super::TIE;
use super::core::{Alternative, Core};
use super::sets::{bits, contains, insert, remove, union};

/// Expansions that one search may use: about 5 ms.
pub(super) const LIMIT: usize = 40_000;

/// Most choices that are tried for one component.
const COMPONENT_LIMIT: usize = 2_000;

/// What the search found.
pub(super) struct Found {
    /// Choices that are better than the known answer, if there are any.
    pub picks: Option<Vec<usize>>,
    /// True if nothing better than the result (or the known answer) exists.
    pub exact: bool,
    /// Expansions used.
    pub spent: usize,
}

/// A frontier and the cheapest way to it.
struct State {
    frontier: Box<[u64]>,
    cost: f64,
    bound: f64,
    from: Option<(u32, Picks)>,
}

/// Classes decided in one step, with their alternatives.
type Decisions = Vec<(usize, usize)>;

/// Index of decisions in the log.
type Picks = u32;

/// One way to decide a component, given which of its classes are needed.
struct Way {
    cost: f64,
    /// Children outside.
    exits: Vec<usize>,
    picks: Picks,
}

/// Searches for choices cheaper than `known`.
pub(super) fn search(core: &Core, known: f64, limit: usize) -> Found {
    let shares = Shares::new(core);
    let component_of: Vec<usize> =
        core.components.iter().enumerate().flat_map(|(i, r)| std::iter::repeat_n(i, r.len())).collect();
    let mut table =
        Table { states: Vec::new(), by_frontier: HashMap::new(), turns: vec![Vec::new(); core.components.len() + 1] };
    let mut log: Vec<Decisions> = Vec::new();
    let mut found = Found { picks: None, exact: true, spent: 0 };
    let good_enough = known * (1.0 - TIE);
    let mut start = vec![0u64; core.classes.len().div_ceil(64)].into_boxed_slice();
    insert(&mut start, 0);
    table.put(start, 0.0, None, 0, |_| 0.0);
    for (turn, component) in core.components.iter().enumerate() {
        let mut states = std::mem::take(&mut table.turns[turn]);
        let left = limit.saturating_sub(found.spent);
        // Most turns need few; one may take an eighth of what is left.
        let width = (left / 8).max(left / (core.components.len() - turn)).max(4);
        // Most promising first; frontiers break ties.
        let rank = |s: &u32| {
            let s = &table.states[*s as usize];
            ((s.cost + s.bound).to_bits(), &s.frontier)
        };
        states.sort_by(|a, b| rank(a).cmp(&rank(b)));
        let mut ways: BTreeMap<Vec<usize>, Vec<Way>> = BTreeMap::new();
        let mut spent = 0;
        for s in states {
            let state = &table.states[s as usize];
            if state.cost + state.bound >= good_enough {
                continue;
            }
            if spent > width {
                found.exact = false;
                break;
            }
            let (cost, frontier) = (state.cost, state.frontier.clone());
            let entries: Vec<usize> = component.clone().filter(|c| contains(&frontier, *c)).collect();
            let ways = ways.entry(entries.clone()).or_insert_with_key(|entries| {
                let (ways, complete) = decide(core, component, entries, &mut log);
                found.exact &= complete;
                ways
            });
            spent += ways.len();
            for way in ways.iter() {
                let mut next = frontier.clone();
                entries.iter().for_each(|c| remove(&mut next, *c));
                way.exits.iter().for_each(|c| insert(&mut next, *c));
                let cost = cost + way.cost;
                let turn = bits(&next).next().map_or(core.components.len(), |c| component_of[c]);
                let bound = |frontier: &[u64]| {
                    shares.bound(core, frontier, core.components.get(turn).map_or(core.classes.len(), |r| r.start))
                };
                if cost < good_enough {
                    table.put(next, cost, Some((s, way.picks)), turn, bound);
                }
            }
        }
        found.spent += spent;
    }
    let end = table.turns[core.components.len()].first().map(|s| &table.states[*s as usize]);
    if let Some(mut state) = end {
        let mut picks = vec![0; core.classes.len()];
        while let Some((from, step)) = state.from {
            log[step as usize].iter().for_each(|(c, i)| picks[*c] = *i);
            state = &table.states[from as usize];
        }
        found.picks = Some(picks);
    }
    found
}

/// All states, and those that wait for each turn: a state's turn is the first component that its frontier touches.
struct Table {
    states: Vec<State>,
    by_frontier: HashMap<Box<[u64]>, u32>,
    turns: Vec<Vec<u32>>,
}

impl Table {
    /// Adds a state, or lowers the cost of the one with this frontier.
    fn put(
        &mut self,
        frontier: Box<[u64]>,
        cost: f64,
        from: Option<(u32, Picks)>,
        turn: usize,
        bound: impl Fn(&[u64]) -> f64,
    ) {
        if let Some(s) = self.by_frontier.get(&frontier) {
            let state = &mut self.states[*s as usize];
            if cost < state.cost {
                (state.cost, state.from) = (cost, from);
            }
            return;
        }
        let s = self.states.len() as u32;
        let bound = bound(&frontier);
        self.by_frontier.insert(frontier.clone(), s);
        self.states.push(State { frontier, cost, bound, from });
        self.turns[turn].push(s);
    }
}

/// All acyclic ways to decide what `entries` need inside `component`; false if there were too many.
fn decide(core: &Core, component: &Range<usize>, entries: &[usize], log: &mut Vec<Decisions>) -> (Vec<Way>, bool) {
    let mut ways: BTreeMap<Vec<usize>, (f64, Decisions)> = BTreeMap::new();
    let mut tried = 0;
    let mut stack = vec![(Decisions::new(), entries.to_vec())];
    while let Some((picks, mut open)) = stack.pop() {
        if tried > COMPONENT_LIMIT {
            break;
        }
        let Some(c) = open.pop() else {
            tried += 1;
            let alternative = |(c, i): &(usize, usize)| &core.classes[*c].alternatives[*i];
            let cost: f64 = picks.iter().map(|p| alternative(p).cost).sum();
            let mut exits: Vec<usize> = picks
                .iter()
                .flat_map(|p| &alternative(p).children)
                .copied()
                .filter(|c| !component.contains(c))
                .collect();
            exits.sort_unstable();
            exits.dedup();
            let entry = ways.entry(exits).or_insert((f64::INFINITY, Decisions::new()));
            if cost < entry.0 {
                *entry = (cost, picks);
            }
            continue;
        };
        // Pushed last to first, so that earlier alternatives are tried first.
        for (i, a) in core.classes[c].alternatives.iter().enumerate().rev() {
            let mut picks = picks.clone();
            picks.push((c, i));
            if reaches(core, &picks, &a.children, c) {
                continue;
            }
            let mut open = open.clone();
            for d in a.children.iter().filter(|d| component.contains(d)) {
                if !open.contains(d) && !picks.iter().any(|(p, _)| p == d) {
                    open.push(*d);
                }
            }
            stack.push((picks, open));
        }
    }
    let complete = tried <= COMPONENT_LIMIT;
    let ways = ways
        .into_iter()
        .map(|(exits, (cost, picks))| {
            log.push(picks);
            Way { cost, exits, picks: log.len() as u32 - 1 }
        })
        .collect();
    (ways, complete)
}

/// True if one of `from` needs `target` by `picks`.
fn reaches(core: &Core, picks: &[(usize, usize)], from: &[usize], target: usize) -> bool {
    let mut todo = from.to_vec();
    let mut seen = Vec::new();
    while let Some(c) = todo.pop() {
        if c == target {
            return true;
        }
        if let Some((_, i)) = picks.iter().find(|(p, _)| *p == c)
            && !seen.contains(&c)
        {
            seen.push(c);
            todo.extend(&core.classes[c].alternatives[*i].children);
        }
    }
    false
}

/// The lower bound's tables.
struct Shares {
    /// What each class costs at least, with its share of what it needs and not every answer contains.
    least: Vec<f64>,
    /// Classes that every answer contains, as a set.
    always: Vec<u64>,
    /// Sum of `least` of those from each class on; one more at the end.
    rest: Vec<f64>,
}

impl Shares {
    fn new(core: &Core) -> Shares {
        let n = core.classes.len();
        let always = always(core);
        let mut least = vec![0.0; n];
        for component in core.components.iter().rev() {
            // Inside a component start from 0; each round stays below the true values.
            for _ in 0..component.len() {
                for c in component.clone() {
                    let share = |d: &usize| match contains(&always, *d) {
                        true => 0.0,
                        false => least[*d] / core.classes[*d].parents.len() as f64,
                    };
                    let cost = |a: &Alternative| a.cost + a.children.iter().map(share).sum::<f64>();
                    least[c] = core.classes[c].alternatives.iter().map(cost).fold(f64::INFINITY, f64::min);
                }
            }
        }
        let mut rest = vec![0.0; n + 1];
        for c in (0..n).rev() {
            rest[c] = rest[c + 1] + if contains(&always, c) { least[c] } else { 0.0 };
        }
        Shares { least, always, rest }
    }

    /// Least cost of what is left, given the frontier, when all classes before `decided` are decided.
    fn bound(&self, core: &Core, frontier: &[u64], decided: usize) -> f64 {
        let share = |c: usize| {
            let parents = &core.classes[c].parents;
            let done = parents.partition_point(|p| *p < decided);
            self.least[c] * done as f64 / parents.len() as f64
        };
        self.rest[decided] + bits(frontier).filter(|c| !contains(&self.always, *c)).map(share).sum::<f64>()
    }
}

/// Classes that every answer contains: those that all alternatives of the root lead to, whatever is chosen.
fn always(core: &Core) -> Vec<u64> {
    let n = core.classes.len();
    let words = n.div_ceil(64);
    // Of each class; from everything downwards, so that cycles end at the greatest fixpoint.
    let mut sets = vec![u64::MAX; n * words];
    let (mut set, mut all) = (vec![0u64; words], vec![0u64; words]);
    for component in core.components.iter().rev() {
        let mut changed = true;
        while changed {
            changed = false;
            for c in component.clone() {
                all.fill(u64::MAX);
                for a in &core.classes[c].alternatives {
                    union(&mut set, &sets, &a.children);
                    all.iter_mut().zip(&set).for_each(|(all, one)| *all &= one);
                }
                insert(&mut all, c);
                let old = &mut sets[c * words..(c + 1) * words];
                changed |= component.len() > 1 && old != all;
                old.copy_from_slice(&all);
            }
        }
    }
    sets[..words].to_vec()
}
