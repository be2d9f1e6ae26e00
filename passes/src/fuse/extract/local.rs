//! Local search on the true total of the root: single classes, then whole kernels.
//!
//! A move gives one class another alternative, or gives every class that can read its value from a certain kernel that kernel (a kernel with
//! three results may be dearer than one for a single result and cheaper than three). What is no longer needed is dropped; what becomes needed
//! takes the alternative that looks cheapest beside what is there already. Moves that close a cycle are refused.

use super::TIE;
use super::core::Core;
use super::greedy::{Greedy, greedy_beside};

/// Sweeps over all moves; each accepted move lowers the total, so this only bounds the time.
const SWEEPS: usize = 16;

/// Choices under change.
struct Working<'a> {
    core: &'a Core,
    /// Cost of each class with all it needs, if nothing else were there.
    alone: &'a [f64],
    /// Of needed classes: the choice. Of others: the latest one.
    picks: Vec<usize>,
    /// How many needed classes need this one; the root has one more.
    uses: Vec<u32>,
    total: f64,
}

/// Improves an answer until no move helps; `alone` as [`super::greedy::Greedy`] has it.
pub(super) fn improve(core: &Core, alone: &[f64], picks: Vec<usize>) -> Vec<usize> {
    let mut now = Working { core, alone, picks, uses: Vec::new(), total: 0.0 };
    if !now.recount() {
        return now.picks;
    }
    let bundles = bundles(core);
    for _ in 0..SWEEPS {
        let mut better = false;
        for c in 0..core.classes.len() {
            for i in 0..core.classes[c].alternatives.len() {
                better |= now.attempt(&[(c, i)]);
            }
        }
        for bundle in &bundles {
            better |= now.attempt(bundle);
        }
        if !better {
            break;
        }
    }
    now.picks
}

/// [`improve`], and for each class the choices that look best as if it were paid for: finds what several classes would have to change together.
/// Slower; large inputs are left as they are.
pub(super) fn improve_more(core: &Core, start: &Greedy, picks: Vec<usize>) -> Vec<usize> {
    const WORK: usize = 3_000;
    let mut best = improve(core, &start.alone, picks);
    let alternatives: usize = core.classes.iter().map(|c| c.alternatives.len()).sum();
    if core.classes.len() * alternatives > WORK {
        return best;
    }
    let mut total = core.total(&best);
    for c in 0..core.classes.len() {
        let picks = greedy_beside(core, c, start.picks[c]);
        if core.total(&picks).is_finite() {
            let picks = improve(core, &start.alone, picks);
            let new = core.total(&picks);
            if new < total * (1.0 - TIE) {
                (best, total) = (picks, new);
            }
        }
    }
    best
}

/// Gives classes an earlier alternative where the total stays the same.
pub(super) fn prefer_earlier(core: &Core, picks: &mut [usize]) {
    let total = core.total(picks);
    for c in core.needed(picks).unwrap_or_default() {
        for i in 0..picks[c] {
            let alternatives = &core.classes[c].alternatives;
            let before = std::mem::replace(&mut picks[c], i);
            if alternatives[i].cost <= alternatives[before].cost && core.total(picks) <= total {
                break;
            }
            picks[c] = before;
        }
    }
}

/// For each class that several others can have for nothing: those and the alternative in question.
fn bundles(core: &Core) -> Vec<Vec<(usize, usize)>> {
    let mut users: Vec<Vec<(usize, usize)>> = vec![Vec::new(); core.classes.len()];
    for (c, class) in core.classes.iter().enumerate() {
        for (i, a) in class.alternatives.iter().enumerate() {
            if let (0.0, [child]) = (a.cost, a.children.as_slice()) {
                users[*child].push((c, i));
            }
        }
    }
    users.retain(|u| u.len() > 1);
    users
}

impl Working<'_> {
    /// Makes those of `moves` (class, alternative) whose class is needed, then re-chooses what they made needed; keeps the result only if the
    /// total falls. True if kept.
    fn attempt(&mut self, moves: &[(usize, usize)]) -> bool {
        if !moves.iter().any(|(c, i)| self.uses[*c] > 0 && self.picks[*c] != *i) {
            return false;
        }
        let before = (self.picks.clone(), self.uses.clone(), self.total);
        for (c, i) in moves {
            if self.uses[*c] > 0 && self.picks[*c] != *i {
                self.switch(*c, *i);
            }
        }
        let fell = |now: &Self| now.total < before.2 * (1.0 - TIE);
        let mut better = self.recount();
        while better && !fell(self) {
            better = false;
            for c in 0..self.uses.len() {
                for i in 0..self.core.classes[c].alternatives.len() {
                    let new = self.uses[c] > 0 && before.1[c] == 0;
                    better |= new && self.picks[c] != i && self.step(c, i);
                }
            }
        }
        if better {
            return true;
        }
        (self.picks, self.uses, self.total) = before;
        false
    }

    /// Gives a needed class another alternative if that alone lowers the total; true if so.
    fn step(&mut self, c: usize, i: usize) -> bool {
        let before = (self.picks.clone(), self.uses.clone(), self.total);
        // The change is off if a cycle came up; the recount is not.
        if self.switch(c, i) < 0.0 && self.recount() && self.total < before.2 * (1.0 - TIE) {
            return true;
        }
        (self.picks, self.uses, self.total) = before;
        false
    }

    /// Gives a needed class another alternative; the change of the total.
    fn switch(&mut self, c: usize, i: usize) -> f64 {
        let core = self.core;
        let (old, new) = (&core.classes[c].alternatives[self.picks[c]], &core.classes[c].alternatives[i]);
        // First what is needed now, so that what both need stays.
        let gained = self.acquire(&new.children);
        self.picks[c] = i;
        new.cost - old.cost + gained - self.release(&old.children)
    }

    /// One more use of each of `classes`; cost of those that were not needed before.
    fn acquire(&mut self, classes: &[usize]) -> f64 {
        let core = self.core;
        let mut gained = 0.0;
        let mut todo = classes.to_vec();
        while let Some(c) = todo.pop() {
            self.uses[c] += 1;
            if self.uses[c] == 1 {
                let mut best = (f64::INFINITY, self.picks[c]);
                for (i, a) in core.classes[c].alternatives.iter().enumerate() {
                    let extra = |d: &usize| if self.uses[*d] == 0 { self.alone[*d] } else { 0.0 };
                    let cost = a.cost + a.children.iter().map(extra).sum::<f64>();
                    if cost < best.0 {
                        best = (cost, i);
                    }
                }
                self.picks[c] = best.1;
                let pick = &core.classes[c].alternatives[best.1];
                gained += pick.cost;
                todo.extend(&pick.children);
            }
        }
        gained
    }

    /// One use less of each of `classes`; cost of those that are not needed any more.
    fn release(&mut self, classes: &[usize]) -> f64 {
        let core = self.core;
        let mut lost = 0.0;
        let mut todo = classes.to_vec();
        while let Some(c) = todo.pop() {
            self.uses[c] -= 1;
            if self.uses[c] == 0 {
                let pick = &core.classes[c].alternatives[self.picks[c]];
                lost += pick.cost;
                todo.extend(&pick.children);
            }
        }
        lost
    }

    /// Uses and total from the choices alone; false, with nothing changed, if they have a cycle.
    fn recount(&mut self) -> bool {
        let Some(needed) = self.core.needed(&self.picks) else { return false };
        let mut uses = vec![0; self.core.classes.len()];
        uses[0] = 1;
        self.total = 0.0;
        for c in needed {
            let pick = &self.core.classes[c].alternatives[self.picks[c]];
            self.total += pick.cost;
            pick.children.iter().for_each(|d| uses[*d] += 1);
        }
        self.uses = uses;
        true
    }
}
