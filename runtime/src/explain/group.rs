//! Launches in groups: layers that run the same kernels are shown once.

use super::Explanation;

/// A stretch of launches, or several equal ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Scopes it stands for; empty for launches outside of layers.
    pub scopes: Vec<String>,
    /// Its launches, a row each stretch: as many rows as scopes, or one.
    pub launches: Vec<Vec<usize>>,
}

impl Group {
    /// `12 x: l0, l2, .. l22`, or `outside the layers`.
    pub fn title(&self) -> String {
        match &self.scopes[..] {
            [] => "outside of layers".to_string(),
            [one] => one.clone(),
            [a, b] => format!("2 x: {a}, {b}"),
            [a, b, c] => format!("3 x: {a}, {b}, {c}"),
            [a, b, .., z] => format!("{} x: {a}, {b}, .. {z}", self.scopes.len()),
        }
    }

    /// How often it runs in a step.
    pub fn count(&self) -> usize {
        self.launches.len()
    }
}

/// Groups in the order of their first launch: consecutive launches of one scope are a stretch; stretches of scopes with the same kernels are one group.
pub fn groups(e: &Explanation) -> Vec<Group> {
    let mut stretches: Vec<(Option<String>, Vec<usize>)> = Vec::new();
    for (i, l) in e.launches.iter().enumerate() {
        match stretches.last_mut() {
            Some((scope, launches)) if *scope == l.scope => launches.push(i),
            _ => stretches.push((l.scope.clone(), vec![i])),
        }
    }
    let kernels = |launches: &[usize]| -> Vec<(usize, usize)> {
        launches.iter().map(|i| (e.launches[*i].card, e.launches[*i].part)).collect()
    };
    let mut out: Vec<Group> = Vec::new();
    for (scope, launches) in stretches {
        let equal = |g: &&mut Group| !g.scopes.is_empty() && kernels(&g.launches[0]) == kernels(&launches);
        match (scope, out.iter_mut().find(equal)) {
            (Some(scope), Some(group)) => {
                group.scopes.push(scope);
                group.launches.push(launches);
            }
            (scope, _) => out.push(Group { scopes: scope.into_iter().collect(), launches: vec![launches] }),
        }
    }
    out
}
