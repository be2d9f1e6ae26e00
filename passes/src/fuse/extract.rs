//! Extraction: one alternative for every class that is needed, so that the sum over the distinct classes is least.
//!
//! Owns the search; knows nothing of e-graphs, terms or kernels: [`Choices`] is numbers. A value that is used twice is paid once (the cost is
//! that of a DAG, not of a tree), so the best alternative of a class depends on what others chose. A kernel with several results is a class of
//! its own; its results are classes with an alternative of cost 0 and that kernel as the only child. Stages:
//!
//! 1. `core`: drop what no answer can contain, give away what is free, number the rest topologically.
//! 2. `regions`: cut it where all that a class needs is needed through it alone (a layer's residual stream, say), and solve from the bottom up:
//! 3. `greedy`: from the leaves up, each class the alternative whose set of classes is cheapest;
//! 4. `local`: re-choose single classes, and all users of one kernel together, while the region's true total falls;
//! 5. `frontier`: exact dynamic programming over sets of open classes, pruned by the answer so far; a beam if that would take too long.
//!
//! ```
//! use gossamer_passes::fuse::extract::{Choice, Choices, extract};
//!
//! // Class 0 is `f x x x` at 1.0 or `g y` at 1.1; y is `g x` at 1.1; x costs 1.0. Shared, x is paid once.
//! let alternative = |cost: f64, children: &[usize]| Choice { cost, children: children.to_vec() };
//! let classes = vec![vec![alternative(1.0, &[2, 2, 2]), alternative(1.1, &[1])], vec![alternative(1.1, &[2])], vec![alternative(1.0, &[])]];
//! let best = extract(&Choices { classes, root: 0 }).unwrap();
//! assert_eq!((best.total, best.chosen.len()), (2.0, 2));
//! ```

mod core;
mod frontier;
mod greedy;
mod local;
mod regions;
mod sample;
mod sets;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use sample::{brute_force, random};

/// Differences of totals below this fraction are ties: sums in another order differ by as much.
const TIE: f64 = 1e-12;

/// What there is to choose from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choices {
    /// The alternatives of each class, in a deterministic order; ties go to the earlier one.
    pub classes: Vec<Vec<Choice>>,
    /// The class that is wanted.
    pub root: usize,
}

/// One alternative of a class.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choice {
    /// Classes it needs; repeats are allowed.
    pub children: Vec<usize>,
    /// Its own cost in microseconds, at least 0; infinite if nothing can execute it.
    pub cost: f64,
}

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Extraction {
    /// The chosen alternative of every class that is needed, and of no other.
    pub chosen: BTreeMap<usize, usize>,
    /// Sum of the own costs, in microseconds, as [`total`] computes it.
    pub total: f64,
    /// True if no choice is cheaper; false if the search was cut short by its limit.
    pub exact: bool,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExtractError {
    /// The input is not a problem.
    #[error("extraction: class {class}, alternative {alternative}: {what}")]
    Malformed {
        /// The class.
        class: usize,
        /// Its alternative.
        alternative: usize,
        /// What is wrong and what was expected.
        what: String,
    },
    /// Nothing finite and free of cycles reaches the root.
    #[error(
        "extraction: class {root} has no executable choice because every alternative of class {} is infinite or part of a cycle; give these a finite one",
        list(classes)
    )]
    Unsatisfiable {
        /// The class that was wanted.
        root: usize,
        /// The classes to blame: the deepest ones, ascending.
        classes: Vec<usize>,
    },
    /// A set of choices that is not an answer.
    #[error("extraction: class {class} {what}")]
    Invalid {
        /// The class.
        class: usize,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// The least costly choice: exact for all but the largest inputs (see [`Extraction::exact`]). The same input gives the same answer.
///
/// # Errors
/// [`ExtractError::Malformed`] for a class index out of range or a cost that is negative or not a number;
/// [`ExtractError::Unsatisfiable`] if no finite acyclic choice exists.
pub fn extract(choices: &Choices) -> Result<Extraction, ExtractError> {
    search(choices, frontier::LIMIT)
}

/// [`extract`] that spends at most about `limit` expansions on the exact search; 0: local search alone.
fn search(choices: &Choices, limit: usize) -> Result<Extraction, ExtractError> {
    check(choices)?;
    let reduced = core::reduce(choices)?;
    let (picks, exact) = regions::solve(&reduced.core, limit);
    let chosen = reduced.expand(choices, &picks);
    Ok(Extraction { total: total(choices, &chosen)?, chosen, exact })
}

/// The true total of `chosen` in microseconds: every needed class once, summed in the order of classes.
///
/// # Errors
/// [`ExtractError::Invalid`] if a needed class has no choice, a choice does not exist or is infinite, the choices have a cycle, or a class is
/// chosen that is not needed; [`ExtractError::Malformed`] as in [`extract`].
pub fn total(choices: &Choices, chosen: &BTreeMap<usize, usize>) -> Result<f64, ExtractError> {
    check(choices)?;
    // Depth first with an explicit stack; `open` are the classes on the path from the root.
    let mut state = vec![Visit::New; choices.classes.len()];
    let mut stack = vec![(choices.root, 0)];
    while let Some((class, child)) = stack.pop() {
        let pick = *chosen.get(&class).ok_or(ExtractError::Invalid { class, what: "is needed but has no choice" })?;
        let choice = choices.classes[class]
            .get(pick)
            .ok_or(ExtractError::Invalid { class, what: "has a choice that does not exist" })?;
        if choice.cost.is_infinite() {
            return Err(ExtractError::Invalid { class, what: "has a choice that nothing can execute" });
        }
        if child == 0 {
            state[class] = Visit::Open;
        }
        let Some(next) = choice.children.get(child) else {
            state[class] = Visit::Done;
            continue;
        };
        stack.push((class, child + 1));
        match state[*next] {
            Visit::New => stack.push((*next, 0)),
            Visit::Open => return Err(ExtractError::Invalid { class: *next, what: "needs itself" }),
            Visit::Done => {}
        }
    }
    if let Some((class, _)) = chosen.iter().find(|(c, _)| state.get(**c) != Some(&Visit::Done)) {
        return Err(ExtractError::Invalid { class: *class, what: "has a choice but is not needed" });
    }
    Ok(chosen.iter().map(|(class, pick)| choices.classes[*class][*pick].cost).sum())
}

#[derive(Clone, Copy, PartialEq)]
enum Visit {
    New,
    Open,
    Done,
}

fn check(choices: &Choices) -> Result<(), ExtractError> {
    let n = choices.classes.len();
    let malformed = |class, alternative, what| Err(ExtractError::Malformed { class, alternative, what });
    if choices.root >= n {
        return malformed(choices.root, 0, format!("the root is outside the {n} classes"));
    }
    for (class, alternatives) in choices.classes.iter().enumerate() {
        for (i, choice) in alternatives.iter().enumerate() {
            if choice.cost.is_nan() || choice.cost < 0.0 {
                return malformed(class, i, format!("the cost is {}, expected 0 or more microseconds", choice.cost));
            }
            if let Some(child) = choice.children.iter().find(|c| **c >= n) {
                return malformed(class, i, format!("child {child} is outside the {n} classes"));
            }
        }
    }
    Ok(())
}

fn list(classes: &[usize]) -> String {
    classes.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}
