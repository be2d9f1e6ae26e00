//! `gossamer bench`: speed of a model in short, and in detail of decoding, of reading prompts, and of starting.

pub mod args;
mod lists;
mod quick;
mod report;

use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::output::{self, Failure};
use crate::bench::plot::{self, Point};
use crate::bench::{VERSION, cpu_bandwidth, decode, prefill, startup};
use crate::engine::Engine;
use crate::exec::Probe;
use crate::session::{Hooks, Session};
use args::{BenchArgs, BenchDecodeArgs, BenchKind, BenchPrefillArgs, BenchStartupArgs};
use lists::{MAX_BATCH, MAX_TOKENS, list};
use report::Report;

pub fn bench(args: &BenchArgs) -> Result<(), Failure> {
    match &args.kind {
        None => quick::bench(args),
        Some(BenchKind::Decode(a)) => bench_decode(a),
        Some(BenchKind::Prefill(a)) => bench_prefill(a),
        Some(BenchKind::Startup(a)) => bench_startup(a),
    }
}

/// What a device reaches at best; on the CPU reading alone.
fn probe(engine: &mut Engine) -> Result<Probe, Failure> {
    Ok(match engine.probe()? {
        Some(probe) => probe,
        None => Probe { read: cpu_bandwidth(), ..Probe::default() },
    })
}

fn probe_text(probe: &Probe) -> String {
    let multiply = match probe.bf16 {
        Some(flops) => format!("bf16 multiply of 8192 cubed {:.1} TFLOP/s ({})", flops / 1e12, probe.bf16_by),
        None => "no bf16 multiply".into(),
    };
    let read = if probe.read < 1e11 {
        format!("{:.1} GB/s", probe.read / 1e9)
    } else {
        format!("{:.3} TB/s", probe.read / 1e12)
    };
    format!("measured now: reads {read}; {multiply}\n")
}

/// What every report begins with.
fn head(bench: &str, session: &Session, probe: Option<&Probe>) -> Json {
    json!({
        "version": VERSION,
        "bench": bench,
        "model": session.name,
        "device": session.engine.describe(),
        "read_bytes_per_s": probe.map(|p| p.read),
        "bf16_flops_per_s": probe.and_then(|p| p.bf16),
        "bf16_by": probe.filter(|p| p.bf16.is_some()).map(|p| p.bf16_by),
    })
}

fn bench_decode(args: &BenchDecodeArgs) -> Result<(), Failure> {
    let batches = list("--batch", &args.batch, MAX_BATCH)?;
    let contexts = list("--context", &args.context, MAX_TOKENS)?;
    if args.steps == 0 {
        return Err(Failure::Usage("--steps is 0, expected at least 1".into()));
    }
    let report = Report::new(&args.report)?;
    let most = batches.iter().copied().max().unwrap_or(1);
    let repeated = args.verify_repeat.map_or(0, |n| n.saturating_add(decode::REPEAT_PROMPT));
    let behind = decode::WARM_STEPS + args.steps + decode::ROOM;
    let longest = contexts.iter().max().unwrap_or(&1).saturating_add(behind);
    let mut options = args.model.session(&args.model_name)?;
    options.max_seqs = most;
    options.context = Some(longest.max(repeated));
    options.kv_tokens = Some((longest.saturating_mul(most)).max(repeated.saturating_mul(batches[0])));
    // Prompts are not read where caches can be filled, and a large chunk keeps more of a window's pages.
    options.chunk = options.chunk.or(Some(most.max(CHUNK)));
    let mut session = super::system::open(&options)?;
    let probe = probe(&mut session.engine)?;
    report.text(&format!("{} on {}\n{}", session.name, session.engine.describe(), probe_text(&probe)))?;
    let mut value = head("decode", &session, Some(&probe));
    let mut results = Vec::new();
    for context in &contexts {
        for batch in &batches {
            let case = decode::Case { batch: *batch, context: *context, steps: args.steps, seed: args.seed };
            let measured = decode::measure(&mut session.engine, &case)?;
            report.text(&format!("\n{}", measured.text(&probe)))?;
            results.push(measured.json(&probe));
        }
    }
    value["results"] = json!(results);
    let mut differs = None;
    if let Some(steps) = args.verify_repeat {
        let repeat = decode::repeat(&mut session.engine, batches[0], steps, args.seed)?;
        value["repeat"] = json!({ "batch": repeat.batch, "steps": repeat.steps, "equal": repeat.differs.is_none() });
        match repeat.differs {
            None => report.text(&format!("\n{steps} steps, twice, batch {}: the same tokens\n", repeat.batch))?,
            Some((step, seq)) => {
                differs = Some(format!(
                    "two runs of the same {steps} steps differ from step {step}, sequence {seq} on; look for a race with compute-sanitizer"
                ));
            }
        }
    }
    let finished = report.finish(&value);
    match differs {
        Some(line) => Err(Failure::Failed(line)),
        None => finished,
    }
}

/// Tokens a step at most while decoding is measured, unless asked otherwise.
const CHUNK: usize = 512;

/// Tokens a step at most while prompts are read, unless asked otherwise.
const PREFILL_CHUNK: usize = 16384;

fn bench_prefill(args: &BenchPrefillArgs) -> Result<(), Failure> {
    let tokens = list("--tokens", &args.tokens, MAX_TOKENS)?;
    let batches = list("--batch", &args.batch, MAX_BATCH)?;
    let report = Report::new(&args.report)?;
    let (longest, most) = (*tokens.iter().max().unwrap_or(&1), *batches.iter().max().unwrap_or(&1));
    let all = longest.saturating_mul(most);
    let mut options = args.model.session(&args.model_name)?;
    options.max_seqs = most;
    options.context = Some(longest);
    options.chunk = options.chunk.or(Some(all.min(PREFILL_CHUNK)));
    let mut session = super::system::open(&options)?;
    let probe = probe(&mut session.engine)?;
    report.text(&format!("{} on {}\n{}", session.name, session.engine.describe(), probe_text(&probe)))?;
    let mut value = head("prefill", &session, Some(&probe));
    let (mut results, mut points) = (Vec::new(), Vec::new());
    for batch in &batches {
        for tokens in &tokens {
            let case = prefill::Case { tokens: *tokens, batch: *batch, seed: args.seed };
            let measured = prefill::measure(&mut session.engine, &case)?;
            report.text(&format!("\n{}", measured.text(&probe)))?;
            results.push(measured.json(&probe));
            points.push(Point { tokens: *tokens, batch: *batch, tokens_per_s: measured.tokens_per_s() });
            // After each case, so that a long run that is cut off leaves what it has.
            if let Some(file) = &args.plot {
                let title = format!("Reading prompts: {}", session.name);
                let under =
                    format!("{}, {} tokens a step at most", session.engine.describe(), session.engine.options().chunk);
                output::file(file, plot::svg(&title, &under, &points).as_bytes())?;
            }
        }
    }
    value["results"] = json!(results);
    report.finish(&value)
}

fn bench_startup(args: &BenchStartupArgs) -> Result<(), Failure> {
    let report = Report::new(&args.report)?;
    let folder = tempfile::tempdir().map_err(|e| Failure::Failed(format!("no folder for kernels: {e}")))?;
    let mut options = args.model.session(&args.model_name)?;
    options.context = Some(args.context);
    options.kernel_cache = Some(folder.path().to_path_buf());
    let bars = Arc::new(super::bar::Loading::default());
    let (mut results, mut value) = (Vec::new(), None);
    for name in ["cold", "warm"] {
        let bars = bars.clone();
        let hooks = Hooks { memory: None, load: Some(Arc::new(move |event| bars.show(event))) };
        let (start, session) = startup::start(name, &options, &hooks).map_err(Failure::from_error)?;
        if value.is_none() {
            report.text(&format!("{} on {}\n", session.name, session.engine.describe()))?;
            value = Some(head("startup", &session, None));
        }
        report.text(&start.text())?;
        results.push(start.json());
    }
    let mut value = value.unwrap_or_default();
    value["results"] = json!(results);
    report.finish(&value)
}
