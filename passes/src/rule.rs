//! The rewrite rules by name: what `--list-rules` prints and `--disable-rule` takes.

use std::fmt::Write as _;

use crate::PassError;

/// Families of rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// An op may start a kernel.
    Seed,
    /// A kernel takes the op that follows it into its epilogue.
    Grow,
    /// A kernel takes the op in front of it into its prologue.
    Absorb,
    /// Views and work on weights that need no kernel of a step.
    Fold,
}

impl Family {
    /// `seed`, `grow`, `absorb` or `fold`.
    pub fn name(self) -> &'static str {
        match self {
            Family::Seed => "seed",
            Family::Grow => "grow",
            Family::Absorb => "absorb",
            Family::Fold => "fold",
        }
    }
}

/// A rule, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleInfo {
    /// Its name on the command line and in dumps, `family/what`.
    pub name: &'static str,
    /// Its family.
    pub family: Family,
    /// One line: what it rewrites into what.
    pub meaning: &'static str,
}

/// Every rule, by family and name.
pub static RULES: std::sync::LazyLock<Vec<RuleInfo>> =
    std::sync::LazyLock::new(|| crate::fuse::rules::RULES.iter().map(|r| r.info).collect());

/// The rules as a table: name, family, meaning.
pub fn list() -> String {
    let width = RULES.iter().map(|r| r.name.len()).max().unwrap_or(4).max(4);
    let mut out = format!("{:<width$}  {:<7} meaning\n", "name", "family");
    for r in RULES.iter() {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{:<width$}  {:<7} {}", r.name, r.family.name(), r.meaning);
    }
    out
}

/// The names, for messages.
pub(crate) fn known() -> String {
    match RULES.is_empty() {
        true => "none".to_string(),
        false => RULES.iter().map(|r| r.name).collect::<Vec<_>>().join(", "),
    }
}

/// Checks names given to [`Options::disabled_rules`](crate::Options::disabled_rules).
///
/// # Errors
/// [`PassError::UnknownRule`] for the first that is not a rule, with what is known.
pub fn check_names(names: &[String]) -> Result<(), PassError> {
    match names.iter().find(|n| RULES.iter().all(|r| r.name != **n)) {
        Some(name) => Err(PassError::UnknownRule { name: name.clone() }),
        None => Ok(()),
    }
}
