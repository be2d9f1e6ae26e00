//! What the modes `cost`, `cuda` and `run` share: a file after passes, at the sizes that its `set:` lines give.

use std::collections::BTreeMap;

use gossamer_codegen_cuda::lower::{Lowered, OpInstance, lower};
use gossamer_ir::{Bindings, Class, Func, Module, OpId, OpKind, Type, verify};
use gossamer_passes::cost::Machine;
use gossamer_passes::{Options, compile, manager};

use super::modes::module;
use super::{Failure, Kind, Source};

/// What `set:` lines before some place say.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Settings {
    /// Values of symbols.
    pub sizes: Bindings,
    /// Layout that MXFP4 weights get.
    pub layout: Option<String>,
    /// Rules that are applied although they are off.
    pub enabled: Vec<String>,
    /// Rules that are not applied.
    pub disabled: Vec<String>,
}

impl Settings {
    /// Takes a line `T = 4, layout = mx64, enable = seed/cublaslt`; what only other modes read is passed over.
    pub fn set(&mut self, text: &str) -> Result<(), String> {
        let mut depth = 0i32;
        let outer = |c: char| {
            depth += i32::from(matches!(c, '[' | '(')) - i32::from(matches!(c, ']' | ')'));
            c == ',' && depth == 0
        };
        for part in text.split(outer) {
            let Some((name, value)) = part.split_once('=').map(|(n, v)| (n.trim(), v.trim())) else {
                return Err(format!("expected NAME = VALUE, found `{}`", part.trim()));
            };
            match (name, value.parse::<i64>()) {
                ("layout", _) => self.layout = Some(value.to_string()),
                ("enable", _) => self.enabled.push(value.to_string()),
                ("disable", _) => self.disabled.push(value.to_string()),
                (name, Ok(n)) if !name.starts_with('@') => drop(self.sizes.insert(name.into(), n)),
                ("rounding", _) => {}
                (name, _) if name.starts_with('@') => {}
                _ => return Err(format!("`{name}` is `{value}`, expected an integer")),
            }
        }
        Ok(())
    }

    /// The settings with all `set:` lines of a file.
    pub fn of(source: &Source) -> Result<Settings, Failure> {
        let mut settings = Settings::default();
        for d in source.of(&[Kind::Set]) {
            settings.set(&d.text).map_err(|e| Failure::new(d.line, e))?;
        }
        Ok(settings)
    }
}

/// The module of a file after `passes`, and the options they had. Symbols that are not set have their greatest value.
pub(super) fn compiled(
    source: &Source,
    mode: &str,
    passes: &str,
    settings: &Settings,
) -> Result<(Module, Options), Failure> {
    let at = source.commands.iter().find(|c| c.mode == mode).map_or(0, |c| c.line);
    let fail = |e: String| Failure::new(at, e);
    let module = module(source)?;
    let passes = manager::parse_pipeline(passes).map_err(|e| fail(e.to_string()))?;
    let mut sizes: Bindings = module.syms.iter().map(|s| (s.name.clone(), s.max)).collect();
    sizes.extend(settings.sizes.clone());
    let options = Options {
        mxfp4_layout: settings.layout.as_deref().map(Into::into),
        sizes,
        machine: Machine::default(),
        enabled_rules: settings.enabled.clone(),
        disabled_rules: settings.disabled.clone(),
        ..Options::default()
    };
    let (module, _) = compile(module, &passes, &options).map_err(|e| fail(e.to_string()))?;
    verify::roundtrip(&module).map_err(|e| fail(e.to_string()))?;
    Ok((module, options))
}

/// Ops of a function that depend on weights and constants alone, and those that run in a step: no leaves, no calls, no views. Both in order.
pub(super) fn steps(f: &Func) -> (Vec<OpId>, Vec<OpId>) {
    let mut weight_only: BTreeMap<OpId, bool> = BTreeMap::new();
    let (mut at_load, mut run) = (Vec::new(), Vec::new());
    for id in f.graph.order().unwrap_or_default() {
        let op = f.graph.op(id);
        let fixed = match op.kind {
            OpKind::Weight | OpKind::Const => true,
            OpKind::Param => f.params.get(op.attrs.int("index") as usize).is_some_and(|p| p.weight),
            _ => {
                let pure = !matches!(op.kind.class(), Class::State | Class::Sampling | Class::Call);
                pure && op.operands.iter().all(|v| weight_only.get(&v.op) == Some(&true))
            }
        };
        weight_only.insert(id, fixed);
        match fixed {
            true => at_load.push(id),
            false if matches!(op.kind, OpKind::Param | OpKind::Call | OpKind::Reshape) => {}
            false => run.push(id),
        }
    }
    (at_load, run)
}

/// What runs one op.
pub(super) fn lowered(module: &Module, f: &Func, id: OpId, sizes: &Bindings) -> Result<Lowered, String> {
    let op = f.graph.op(id);
    let operands: Vec<Type> = op.operands.iter().map(|v| f.graph.ty(*v).clone()).collect();
    let instance = OpInstance { op, operands: &operands, module, sizes, early: &[] };
    let name = op.names.first().map_or("", |n| n);
    lower(&instance).map_err(|e| format!("%{name}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_all_modes_are_read() {
        let mut s = Settings::default();
        assert_eq!(s.set("T = 4, @w = [1, 2], rounding = typed, layout = mx64, S=2, enable = seed/cublaslt"), Ok(()));
        assert_eq!(s.enabled, ["seed/cublaslt"]);
        assert_eq!(s.sizes, Bindings::from([("T".into(), 4), ("S".into(), 2)]));
        assert_eq!(s.layout.as_deref(), Some("mx64"));
        assert!(s.set("T = x").is_err() && s.set("T").is_err());
    }
}
