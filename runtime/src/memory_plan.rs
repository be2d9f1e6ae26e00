//! The memory plan: what a model will take on a GPU, worked out before a byte is loaded, and what would fit if it does not.
//!
//! Plain arithmetic over plans and declarations. Must not know files or hold memory.

use std::collections::BTreeMap;
use std::fmt;

use gossamer_ir::StateDecl;
use gossamer_models::config::ModelConfig;
use gossamer_models::step::Head;
use gossamer_passes::Plan;
use gossamer_passes::bucket::StepSize;
use rayon::prelude::*;
use serde::Serialize;

use crate::cuda::{MemoryInfo, bytes};
use crate::engine::kv::Group;
use crate::engine::{EngineError, EngineOptions, plan_step, program, state_specs};
use crate::exec::StateSpec;
use crate::exec::cuda::resident::resident_bytes;
use crate::exec::cuda::state::buffer_bytes;
use crate::exec::cuda::workspace::Needs;

/// Set aside for code, graphs and what the driver keeps for them, in bytes. The demo
/// model's plans took under 10 MiB (H100, 22 November 2026); larger models keep larger graphs, so this is an estimate on the safe side.
pub const RESERVED: u64 = 256 << 20;

/// What a model needs under an engine's limits.
#[derive(Clone, Debug)]
pub struct Request {
    /// Weights as they will lie on the device, bytes.
    pub weights: u64,
    /// The plans of the steps that were asked about, for [`crate::engine::Engine::adopt`].
    pub plans: Vec<(Head, StepSize, Plan)>,
    /// Inputs, activations and scratch of the largest plan.
    pub workspace: Needs,
    /// The state.
    pub states: Vec<StateSpec>,
    /// Sequences at a time.
    pub max_seqs: usize,
    /// Longest sequence, in tokens.
    pub context: usize,
    /// Most tokens a step.
    pub chunk: usize,
}

/// What goes where, in bytes, and whether it fits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryPlan {
    /// Weights.
    pub weights: u64,
    /// KV cache by declaration, largest first.
    pub kv: Vec<KvPart>,
    /// Token counts for penalties.
    pub counts: u64,
    /// Inputs, activations and scratch.
    pub workspace: u64,
    /// Code, graphs and the driver, estimated.
    pub reserved: u64,
    /// The sum.
    pub needed: u64,
    /// Free on the device.
    pub free: u64,
    /// On the device in all.
    pub total: u64,
    /// What is lacking; 0 if it fits.
    pub missing: u64,
    /// Sequences at a time.
    pub max_seqs: usize,
    /// Longest sequence, in tokens.
    pub context: usize,
    /// Most tokens a step.
    pub chunk: usize,
    /// The longest context that fits with as many sequences; at most `context`.
    pub fits_context: Option<usize>,
    /// The most sequences that fit with the same context; at most `max_seqs`.
    pub fits_seqs: Option<usize>,
}

/// The KV cache of one declaration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KvPart {
    /// Its name.
    pub name: String,
    /// Layers that have one.
    pub layers: usize,
    /// Tokens that it holds, of all sequences together.
    pub tokens: u64,
    /// Bytes of all layers.
    pub bytes: u64,
}

/// A model that does not fit. One line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the GPU has {free} of {total} free, the model needs {needed}: {missing} missing; {fix}")]
pub struct TooLarge {
    free: String,
    total: String,
    needed: String,
    missing: String,
    fix: String,
}

/// Works out what a model needs: compiles its program and plans the given steps, for a GPU, without one. No kernel is compiled.
///
/// # Errors
/// A program that does not compile or plan, or an op without a kernel.
pub fn request(
    config: &ModelConfig,
    options: &EngineOptions,
    steps: &[(Head, StepSize)],
) -> Result<Request, EngineError> {
    let mut weights: BTreeMap<String, u64> = BTreeMap::new();
    let mut workspace = Needs::default();
    let made = steps.par_iter().map(|(head, size)| {
        let plan = plan_step(&program(config, options, *head)?.module, options, *size)?;
        let (weights, needs) = (resident_bytes(&plan)?, Needs::of(&plan)?);
        Ok(((*head, *size, plan), weights, needs))
    });
    let made: Result<Vec<_>, EngineError> = made.collect();
    let mut plans = Vec::with_capacity(steps.len());
    for (plan, bytes, needs) in made? {
        weights.extend(bytes);
        workspace = workspace.max(needs);
        plans.push(plan);
    }
    Ok(Request {
        weights: weights.values().sum(),
        plans,
        workspace,
        states: state_specs(config, options)?,
        max_seqs: options.max_seqs,
        context: options.context,
        chunk: options.chunk,
    })
}

impl MemoryPlan {
    /// Sets a request against the memory of a device.
    pub fn new(request: &Request, memory: MemoryInfo) -> MemoryPlan {
        let mut kv: Vec<KvPart> = Vec::new();
        let mut counts = 0;
        for spec in &request.states {
            let size: u64 = buffer_bytes(spec).iter().map(|b| b.1).sum();
            let StateDecl::Kv { name, page, .. } = &spec.decl else {
                counts += size;
                continue;
            };
            match kv.iter_mut().find(|k| *k.name == **name) {
                Some(part) => (part.layers, part.bytes) = (part.layers + 1, part.bytes + size),
                None => {
                    let tokens = spec.units as u64 * u64::try_from(*page).unwrap_or(0);
                    kv.push(KvPart { name: name.to_string(), layers: 1, tokens, bytes: size });
                }
            }
        }
        kv.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
        let workspace = request.workspace.device_bytes();
        let fixed = request.weights + workspace + RESERVED;
        let needed = fixed + counts + kv.iter().map(|k| k.bytes).sum::<u64>();
        let fits = |seqs: usize, context: usize| fixed + state_bytes(request, seqs, context) <= memory.free;
        MemoryPlan {
            weights: request.weights,
            kv,
            counts,
            workspace,
            reserved: RESERVED,
            needed,
            free: memory.free,
            total: memory.total,
            missing: needed.saturating_sub(memory.free),
            max_seqs: request.max_seqs,
            context: request.context,
            chunk: request.chunk,
            fits_context: greatest(request.context, |context| fits(request.max_seqs, context)),
            fits_seqs: greatest(request.max_seqs, |seqs| fits(seqs, request.context)),
        }
    }

    /// Refuses what does not fit.
    ///
    /// # Errors
    /// How much is missing and what would fit.
    pub fn check(&self) -> Result<(), TooLarge> {
        if self.missing == 0 {
            return Ok(());
        }
        let mut choices = Vec::new();
        if let Some(context) = self.fits_context {
            choices.push(format!("--context {context}"));
        }
        if let Some(seqs) = self.fits_seqs {
            choices.push(format!("{seqs} instead of {} sequences at a time", self.max_seqs));
        }
        let least = self.weights + self.workspace + self.reserved;
        let fix = match choices.is_empty() {
            false => format!("what fits: {}", choices.join(", or ")),
            true if least > self.free => {
                format!("without any KV cache it is {}: use a larger GPU, free memory, or --device cpu", bytes(least))
            }
            true => "lower both the context and the number of sequences".to_string(),
        };
        let [free, total, needed, missing] = [self.free, self.total, self.needed, self.missing].map(bytes);
        Err(TooLarge { free, total, needed, missing, fix })
    }

    /// As JSON, sizes in bytes.
    pub fn json(&self) -> serde_json::Value {
        serde_json::to_value(self).unwrap_or_default()
    }
}

impl fmt::Display for MemoryPlan {
    /// A small table for people, without a line feed at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = vec![("weights".to_string(), self.weights, String::new())];
        for k in &self.kv {
            let layers = if k.layers == 1 { "layer" } else { "layers" };
            rows.push((
                format!("KV cache ({})", k.name),
                k.bytes,
                format!("{} {layers}, {} tokens", k.layers, k.tokens),
            ));
        }
        if self.counts > 0 {
            rows.push(("token counts".into(), self.counts, format!("{} sequences", self.max_seqs)));
        }
        rows.push(("activations".into(), self.workspace, format!("steps of up to {} tokens", self.chunk)));
        rows.push(("code and graphs".into(), self.reserved, "estimated".into()));
        let verdict = match self.missing {
            0 => format!("of {} free", bytes(self.free)),
            n => format!("of {} free: {} missing", bytes(self.free), bytes(n)),
        };
        rows.push(("together".into(), self.needed, verdict));
        let width = rows.iter().map(|r| r.0.len()).max().unwrap_or(0);
        write!(f, "GPU memory:")?;
        for (name, size, note) in rows {
            write!(f, "\n  {}", format!("{name:width$}  {:>10}  {note}", bytes(size)).trim_end())?;
        }
        Ok(())
    }
}

/// Bytes of all state for other limits than the request's.
fn state_bytes(request: &Request, seqs: usize, context: usize) -> u64 {
    let units = |decl: &StateDecl| match decl {
        StateDecl::Kv { .. } => Group::pages_for(decl, seqs, context, request.chunk),
        StateDecl::Counts { .. } => seqs,
    };
    // A budget for the cache holds for fewer and shorter sequences too.
    let size = |s: &StateSpec| buffer_bytes(&StateSpec { units: units(&s.decl).min(s.units), ..s.clone() });
    request.states.iter().flat_map(size).map(|b| b.1).sum()
}

/// The greatest `n` in 1..=max with `fits(n)`, if `fits` holds up to some point and not beyond.
fn greatest(max: usize, fits: impl Fn(usize) -> bool) -> Option<usize> {
    let (mut low, mut high) = (0, max);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(middle) { low = middle } else { high = middle - 1 }
    }
    (low > 0).then_some(low)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gossamer_ir::DType;
    use gossamer_models::presets;
    use gossamer_passes::{Options, manager};

    const GIB: u64 = 1 << 30;

    /// Two layers, one of each kind, as in GPT-OSS: 2 KiB a token and layer.
    fn asked(max_seqs: usize, context: usize) -> Request {
        let decl = |name: &str, window| StateDecl::Kv {
            name: name.into(),
            heads: 8,
            head_dim: 64,
            page: 64,
            window,
            dtype: DType::BF16,
        };
        let mut states: Vec<StateSpec> = [("kv.0", decl("window", Some(128))), ("kv.1", decl("full", None))]
            .into_iter()
            .map(|(name, decl)| {
                let units = Group::pages_for(&decl, max_seqs, context, 512);
                StateSpec { name: name.into(), decl, units }
            })
            .collect();
        let decl = StateDecl::Counts { name: "seen".into(), vocab: 1024 };
        states.push(StateSpec { name: "seen".into(), decl, units: max_seqs });
        let workspace = Needs { inputs: 100, arena: GIB, scratch: 0, outputs: 5 };
        Request { weights: 10 * GIB, plans: vec![], workspace, states, max_seqs, context, chunk: 512 }
    }

    fn memory(free: u64) -> MemoryInfo {
        MemoryInfo { free, total: 80 * GIB }
    }

    #[test]
    fn the_sum_is_exact() {
        let plan = MemoryPlan::new(&asked(4, 8192), memory(79 * GIB));
        let full = 4 * 8192 * 2048;
        let window = 4 * 11 * 64 * 2048;
        assert_eq!(
            plan.kv.iter().map(|k| (&*k.name, k.bytes)).collect::<Vec<_>>(),
            [("full", full), ("window", window)]
        );
        assert_eq!((plan.counts, plan.workspace), (4 * 4096, GIB + 256));
        assert_eq!(plan.needed, 11 * GIB + 256 + RESERVED + full + window + 4 * 4096);
        assert_eq!((plan.missing, plan.fits_context, plan.fits_seqs), (0, Some(8192), Some(4)));
        assert!(plan.check().is_ok());
    }

    #[test]
    fn a_refusal_says_what_is_missing_and_what_would_fit() {
        let needed = MemoryPlan::new(&asked(4, 8192), memory(0)).needed;
        assert_eq!(MemoryPlan::new(&asked(4, 8192), memory(needed)).missing, 0);
        let tight = MemoryPlan::new(&asked(4, 8192), memory(needed - 1));
        assert_eq!(tight.missing, 1);
        // One page fewer for each sequence.
        assert_eq!((tight.fits_context, tight.fits_seqs), (Some(8128), Some(3)));
        let line = tight.check().unwrap_err().to_string();
        let end = "what fits: --context 8128, or 3 instead of 4 sequences at a time";
        assert!(line.ends_with(end) && line.contains("1 bytes missing"), "{line}");
        assert_eq!(line.lines().count(), 1);
        // What is offered does fit.
        assert_eq!(MemoryPlan::new(&asked(4, 8128), memory(needed - 1)).missing, 0);
        assert_eq!(MemoryPlan::new(&asked(3, 8192), memory(needed - 1)).missing, 0);
    }

    #[test]
    fn weights_alone_may_be_too_large() {
        let plan = MemoryPlan::new(&asked(4, 8192), memory(8 * GIB));
        assert_eq!((plan.fits_context, plan.fits_seqs), (None, None));
        let line = plan.check().unwrap_err().to_string();
        assert!(line.contains("without any KV cache it is 11.3 GiB: use a larger GPU"), "{line}");
    }

    #[test]
    fn a_budget_for_the_cache_is_not_exceeded_by_the_search() {
        let mut request = asked(4, 8192);
        request.states[1].units = 10;
        let plan = MemoryPlan::new(&request, memory(79 * GIB));
        assert_eq!(plan.kv.iter().find(|k| k.name == "full").unwrap().tokens, 640);
        assert_eq!(plan.fits_context, Some(8192));
    }

    #[test]
    fn it_prints_as_a_table_and_as_json() {
        let plan = MemoryPlan::new(&asked(4, 8192), memory(79 * GIB));
        let expected = "\
GPU memory:
  weights              10.0 GiB
  KV cache (full)      64.0 MiB  1 layer, 32768 tokens
  KV cache (window)     5.5 MiB  1 layer, 2816 tokens
  token counts         16.0 KiB  4 sequences
  activations           1.0 GiB  steps of up to 512 tokens
  code and graphs     256.0 MiB  estimated
  together             11.3 GiB  of 79.0 GiB free";
        assert_eq!(plan.to_string(), expected);
        assert_eq!(plan.json()["kv"][0]["layers"], 1);
        assert_eq!(plan.json()["missing"], 0);
        let short = MemoryPlan::new(&asked(4, 8192), memory(GIB)).to_string();
        assert!(short.ends_with("of 1.0 GiB free: 10.3 GiB missing"), "{short}");
    }

    #[test]
    fn the_20b_model_in_80_gb() {
        let config = ModelConfig::GptOss(presets::gpt_oss_20b());
        let options = EngineOptions {
            context: 8192,
            chunk: 512,
            max_seqs: 4,
            page: 64,
            kv_tokens: None,
            passes: manager::default_pipeline(),
            pass_options: Options { mxfp4_layout: Some("mx64".into()), ..Options::default() },
            fuse: false,
        };
        let steps = [StepSize { tokens: 4, seqs: 4, rows: 4 }, StepSize { tokens: 512, seqs: 1, rows: 1 }];
        let request = request(&config, &options, &steps.map(|s| (Head::Full, s))).unwrap();
        // The published bytes, and the table of rotary angles; nothing is padded at these sizes.
        assert_eq!(request.weights, 13_761_264_768 + 8192 * 64 * 4);
        let plan = MemoryPlan::new(&request, memory(79 * GIB));
        assert_eq!((plan.missing, plan.kv[0].bytes), (0, 4 * 8192 * 24_576));
        assert_eq!(plan.counts, 4 * 201_088 * 4);
        assert!(plan.workspace > GIB / 2 && plan.workspace < 4 * GIB, "{}", plan.workspace);
        // The smaller step alone needs less.
        let small = super::request(&config, &options, &[(Head::Full, steps[0])]).unwrap();
        assert!(small.workspace.arena < request.workspace.arena && small.weights == request.weights);
    }

    #[test]
    fn the_search_finds_the_edge() {
        for edge in 0..20 {
            assert_eq!(greatest(10, |n| n <= edge), (edge > 0).then_some(edge.min(10)), "{edge}");
        }
    }
}
