//! Where the time of starting goes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What takes time before a first answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Checkpoint, tokenizer and device opened.
    Open,
    /// Modules built, passes run, steps and memory planned.
    Plan,
    /// Keys, values, activations: allocated and zeroed.
    Memory,
    /// Weights read or generated, and packed.
    Weights,
    /// Waiting for copies of weights to the device.
    Upload,
    /// Text of kernels.
    Codegen,
    /// Kernels compiled, or read from the cache.
    Compile,
    /// Compiled kernels loaded onto the device.
    Modules,
    /// Graphs captured and made ready.
    Graphs,
}

impl Phase {
    /// Its name in reports, with the unit.
    pub fn key(self) -> &'static str {
        match self {
            Phase::Open => "device_s",
            Phase::Plan => "plan_s",
            Phase::Memory => "memory_s",
            Phase::Weights => "weights_s",
            Phase::Upload => "upload_s",
            Phase::Codegen => "codegen_s",
            Phase::Compile => "compile_s",
            Phase::Modules => "modules_s",
            Phase::Graphs => "graphs_s",
        }
    }

    /// What it is, for people.
    pub fn about(self) -> &'static str {
        match self {
            Phase::Open => "checkpoint, tokenizer and device opened",
            Phase::Plan => "modules, passes, plans",
            Phase::Memory => "caches and activations allocated",
            Phase::Weights => "weights read or generated, and packed",
            Phase::Upload => "waiting for copies of weights",
            Phase::Codegen => "text of kernels",
            Phase::Compile => "kernels compiled or read from the cache",
            Phase::Modules => "kernels loaded",
            Phase::Graphs => "graphs captured",
        }
    }
}

/// Time by phase; clones count together.
#[derive(Clone, Debug, Default)]
pub struct Phases(Arc<Mutex<BTreeMap<Phase, Duration>>>);

impl Phases {
    /// Counts the time that `work` takes.
    pub fn time<R>(&self, phase: Phase, work: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let result = work();
        self.add(phase, start.elapsed());
        result
    }

    /// Counts time.
    pub fn add(&self, phase: Phase, time: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(phase).or_default() += time;
    }

    /// Time of some phases together.
    pub fn sum(&self, phases: &[Phase]) -> Duration {
        let times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        phases.iter().filter_map(|p| times.get(p)).sum()
    }

    /// Seconds so far, in the order of [`Phase`].
    pub fn list(&self) -> Vec<(Phase, f64)> {
        let times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        times.iter().map(|(phase, time)| (*phase, time.as_secs_f64())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_count_together() {
        let phases = Phases::default();
        phases.clone().add(Phase::Graphs, Duration::from_millis(250));
        phases.add(Phase::Plan, Duration::from_millis(500));
        assert_eq!(phases.time(Phase::Plan, || 3), 3);
        let list = phases.list();
        assert_eq!(list.iter().map(|p| p.0.key()).collect::<Vec<_>>(), ["plan_s", "graphs_s"]);
        assert!(list[0].1 >= 0.5 && list[1].1 == 0.25);
    }
}
