//! Answers that are not searched for: all of them, and a random one. For tests of the search and of what is done with its answers.

use std::collections::{BTreeMap, BTreeSet};

use super::core::possible;
use super::{Choices, Extraction, total};

/// The best answer by trying everything; exponential, for up to about 12 classes. `None` if there is no answer.
pub fn brute_force(choices: &Choices) -> Option<Extraction> {
    let mut best = None;
    attempt(choices, &mut BTreeMap::new(), &BTreeSet::from([choices.root]), &mut best);
    best
}

fn attempt(
    choices: &Choices,
    chosen: &mut BTreeMap<usize, usize>,
    open: &BTreeSet<usize>,
    best: &mut Option<Extraction>,
) {
    let Some(class) = open.first().copied() else {
        if let Ok(total) = total(choices, chosen)
            && best.as_ref().is_none_or(|b| total < b.total)
        {
            *best = Some(Extraction { chosen: chosen.clone(), total, exact: true });
        }
        return;
    };
    for (i, choice) in choices.classes[class].iter().enumerate().filter(|(_, c)| c.cost.is_finite()) {
        chosen.insert(class, i);
        let paid: f64 = chosen.iter().map(|(c, i)| choices.classes[*c][*i].cost).sum();
        if best.as_ref().is_none_or(|b| paid <= b.total) {
            let mut open = open.clone();
            open.remove(&class);
            open.extend(choice.children.iter().filter(|c| !chosen.contains_key(c)));
            attempt(choices, chosen, &open, best);
        }
        chosen.remove(&class);
    }
}

/// A random answer: finite, acyclic, not at all cheap. Different seeds give different ones where there are several; the same seed the same.
/// `None` if there is no answer or the input is malformed.
pub fn random(choices: &Choices, seed: u64) -> Option<Extraction> {
    let mut rng = Rng(seed);
    let n = choices.classes.len();
    if super::check(choices).is_err() {
        return None;
    }
    // A random order of the classes stands for depth: a class chooses among alternatives whose children chose before it, and waits as long as
    // others can choose without it, so that deep alternatives get their turn.
    let usable = possible(choices);
    let mut picks: Vec<Option<usize>> = vec![None; n];
    loop {
        let ready = |class: usize, picks: &[Option<usize>]| -> (Vec<usize>, bool) {
            let mut all = true;
            let mut ready = Vec::new();
            for (i, choice) in choices.classes[class].iter().enumerate() {
                if choice.cost.is_finite() && choice.children.iter().all(|c| usable[*c] && *c != class) {
                    match choice.children.iter().all(|c| picks[*c].is_some()) {
                        true => ready.push(i),
                        false => all = false,
                    }
                }
            }
            (ready, all)
        };
        let open: Vec<(usize, Vec<usize>, bool)> = (0..n)
            .filter(|c| picks[*c].is_none())
            .map(|c| (c, ready(c, &picks)))
            .filter(|(_, (ready, _))| !ready.is_empty())
            .map(|(c, (ready, all))| (c, ready, all))
            .collect();
        if open.is_empty() {
            break;
        }
        let complete = open.iter().any(|(_, _, all)| *all);
        if complete {
            for (c, ready, _) in open.iter().filter(|(_, _, all)| *all) {
                picks[*c] = Some(ready[rng.below(ready.len())]);
            }
        } else {
            // A cycle: somebody must go first.
            let (c, ready, _) = &open[rng.below(open.len())];
            picks[*c] = Some(ready[rng.below(ready.len())]);
        }
    }
    let mut chosen = BTreeMap::new();
    let mut todo = vec![choices.root];
    while let Some(class) = todo.pop() {
        if chosen.insert(class, picks[class]?).is_none() {
            todo.extend(&choices.classes[class][picks[class]?].children);
        }
    }
    let total = total(choices, &chosen).ok()?;
    Some(Extraction { chosen, total, exact: false })
}

/// SplitMix64 (Steele, Lea and Flood 2014).
pub(super) struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}
