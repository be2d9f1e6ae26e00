//! The rewrite rules by name: what `--list-rules` prints, and what `--disable-rule` and `--enable-rule` take.

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
    /// Two kernels become one that runs one after the other.
    Chain,
    /// Views and work on weights that need no kernel of a step.
    Fold,
}

impl Family {
    /// `seed`, `grow`, `absorb`, `chain` or `fold`.
    pub fn name(self) -> &'static str {
        match self {
            Family::Seed => "seed",
            Family::Grow => "grow",
            Family::Absorb => "absorb",
            Family::Chain => "chain",
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
    /// Why it is applied only if asked for; `None`: it is applied.
    pub off: Option<&'static str>,
}

/// Every rule, by family and name.
pub static RULES: std::sync::LazyLock<Vec<RuleInfo>> =
    std::sync::LazyLock::new(|| crate::fuse::rules::RULES.iter().map(|r| r.info).collect());

/// The rules as a table: name, family, meaning, and of those that are off the reason.
pub fn list() -> String {
    let width = RULES.iter().map(|r| r.name.len()).max().unwrap_or(4).max(4);
    let mut out = format!("{:<width$}  {:<7} meaning\n", "name", "family");
    for r in RULES.iter() {
        // Writing to a string cannot fail.
        let off = r.off.map_or(String::new(), |why| format!(" (off without --enable-rule: {why})"));
        let _ = writeln!(out, "{:<width$}  {:<7} {}{off}", r.name, r.family.name(), r.meaning);
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

/// Names of the rules that are not applied: those that are disabled, and those that are off and not enabled. In the order of the table.
pub fn excluded(disabled: &[String], enabled: &[String]) -> Vec<String> {
    let named = |list: &[String], r: &RuleInfo| list.iter().any(|n| n == r.name);
    let left_out = |r: &&RuleInfo| named(disabled, r) || r.off.is_some() && !named(enabled, r);
    RULES.iter().filter(left_out).map(|r| r.name.to_string()).collect()
}

/// Checks names given to [`Options::disabled_rules`](crate::Options::disabled_rules) or [`Options::enabled_rules`](crate::Options::enabled_rules).
///
/// # Errors
/// [`PassError::UnknownRule`] for the first that is not a rule, with what is known.
pub fn check_names(names: &[String]) -> Result<(), PassError> {
    match names.iter().find(|n| RULES.iter().all(|r| r.name != **n)) {
        Some(name) => Err(PassError::UnknownRule { name: name.clone() }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_are_off_must_be_asked_for() {
        let names: Vec<String> = RULES.iter().filter(|r| r.off.is_some()).map(|r| r.name.to_string()).collect();
        assert!(names.contains(&"seed/cublaslt".to_string()));
        assert_eq!(excluded(&[], &[]), names);
        assert_eq!(excluded(&[], &names), [""; 0]);
        // What is disabled stays out.
        assert_eq!(excluded(&names, &names), names);
        assert_eq!(excluded(&["grow/bias".into()], &names), ["grow/bias"]);
        assert!(check_names(&names).is_ok());
        let line = list().lines().find(|l| l.starts_with("seed/cublaslt")).unwrap().to_string();
        assert!(line.contains("off without --enable-rule: "), "{line}");
    }
}
