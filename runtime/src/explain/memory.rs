//! Memory of a step by bucket: what computed values and scratch take, and what they would take without sharing.

use std::fmt::Write;
use std::time::{Duration, Instant};

use gossamer_ir::{Bindings, Module};
use gossamer_passes::bucket::{StepSize, decode_ladder, named};
use gossamer_passes::manager::{Pass, Trace};
use gossamer_passes::plan::plan;
use gossamer_passes::{Options, Plan, compile};
use serde_json::{Value as Json, json};

use crate::engine::EngineError;
use crate::exec::ExecError;
use crate::exec::cuda::workspace::Needs;

/// What a step of one bucket needs, besides weights and state; bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketMemory {
    /// Name of the bucket.
    pub bucket: String,
    /// Values of the symbols.
    pub sizes: Bindings,
    /// Launched ops of a step.
    pub steps: usize,
    /// The arena: all computed values.
    pub arena: u64,
    /// The most that is alive at once: the least an arena can be.
    pub live: u64,
    /// Sum of all computed values, as if none shared bytes.
    pub unshared: u64,
    /// Scratch of the op that needs most.
    pub scratch: u64,
    /// The input block.
    pub inputs: u64,
    /// The result block.
    pub outputs: u64,
}

impl BucketMemory {
    /// Of a plan whose ops need at most `scratch` bytes.
    ///
    /// # Errors
    /// A symbol without a value.
    pub fn of(bucket: &str, plan: &Plan, scratch: u64) -> Result<BucketMemory, ExecError> {
        let needs = Needs::with_scratch(plan, scratch)?;
        Ok(BucketMemory {
            bucket: bucket.to_string(),
            sizes: plan.sizes.clone(),
            steps: plan.steps.len(),
            arena: plan.buffers.arena_bytes,
            live: plan.buffers.live_bytes,
            unshared: plan.buffers.total_bytes,
            scratch,
            inputs: needs.inputs,
            outputs: needs.outputs,
        })
    }

    /// As JSON, sizes in bytes.
    pub fn json(&self) -> Json {
        let sizes: serde_json::Map<String, Json> = self.sizes.iter().map(|(k, v)| (k.to_string(), json!(v))).collect();
        json!({
            "bucket": self.bucket, "sizes": sizes, "ops": self.steps, "arena_bytes": self.arena, "live_bytes": self.live,
            "unshared_bytes": self.unshared, "scratch_bytes": self.scratch, "input_bytes": self.inputs, "result_bytes": self.outputs,
        })
    }
}

/// Where the time of a table went, over all its buckets.
#[derive(Clone, Debug, Default)]
pub struct Times {
    /// The pipeline.
    pub passes: Trace,
    /// Calls inlined, steps ordered, values placed.
    pub plans: Duration,
    /// Kernels lowered for the scratch they need.
    pub kernels: Duration,
}

impl Times {
    /// Some lines for people.
    pub fn text(&self, buckets: usize) -> String {
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        format!(
            "{}{buckets} buckets: pipeline {:.0} ms, plans {:.0} ms, kernels for their scratch {:.0} ms\n",
            self.passes.text(),
            self.passes.microseconds() as f64 / 1e3,
            ms(self.plans),
            ms(self.kernels)
        )
    }
}

/// Buckets worth a row: every decode bucket, and prompts of one sequence in powers of two, within the bounds of the module's symbols; else those the
/// module declares.
pub fn buckets(module: &Module) -> Vec<(String, Bindings)> {
    let bound = |name: &str| module.sym(name).map(|s| s.max.clamp(1, 1 << 20) as usize);
    let names: Vec<String> = match (bound("T"), bound("S")) {
        (Some(tokens), Some(seqs)) => {
            let decode = decode_ladder(seqs.min(tokens)).into_iter().map(|n| StepSize { tokens: n, seqs: n, rows: n });
            let prompts = decode_ladder(tokens).into_iter().filter(|t| *t >= 16);
            decode.chain(prompts.map(|t| StepSize { tokens: t, seqs: 1, rows: 1 })).map(|s| s.name()).collect()
        }
        _ => module.buckets.iter().map(|b| b.name.to_string()).collect(),
    };
    names.into_iter().filter_map(|name| named(module, &name).ok().map(|sizes| (name, sizes))).collect()
}

/// Compiles `module` for each bucket and plans `entry`; also where the time went.
///
/// # Errors
/// Passes or plans that fail, or an op without a kernel.
pub fn table(
    module: &Module,
    entry: &str,
    passes: &[Pass],
    options: &Options,
    buckets: &[(String, Bindings)],
) -> Result<(Vec<BucketMemory>, Times), EngineError> {
    let mut times = Times::default();
    let mut row = |(bucket, sizes): &(String, Bindings)| {
        let options = Options { sizes: sizes.clone(), ..options.clone() };
        let (compiled, trace) = compile(module.clone(), passes, &options)?;
        times.passes.add(trace);
        let start = Instant::now();
        let p = plan(&compiled, entry, sizes)?;
        times.plans += start.elapsed();
        let start = Instant::now();
        let scratch = Needs::of(&p)?.scratch;
        times.kernels += start.elapsed();
        Ok(BucketMemory::of(bucket, &p, scratch)?)
    };
    let rows = buckets.iter().map(&mut row).collect::<Result<_, EngineError>>()?;
    Ok((rows, times))
}

/// A table in bytes.
pub fn text(rows: &[BucketMemory]) -> String {
    let width = rows.iter().map(|r| r.bucket.len()).max().unwrap_or(6).max(6);
    let mut out = format!(
        "{:<width$} {:>6} {:>13} {:>13} {:>15} {:>12} {:>10} {:>10}\n",
        "bucket", "ops", "arena", "most alive", "without sharing", "scratch", "inputs", "results"
    );
    for r in rows {
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "{:<width$} {:>6} {:>13} {:>13} {:>15} {:>12} {:>10} {:>10}",
            r.bucket, r.steps, r.arena, r.live, r.unshared, r.scratch, r.inputs, r.outputs
        );
    }
    out
}

/// The same for tools: `{"version": 1, "buckets": [..]}`.
pub fn json(rows: &[BucketMemory]) -> Json {
    let rows: Vec<Json> = rows.iter().map(BucketMemory::json).collect();
    json!({ "version": 1, "buckets": rows })
}
