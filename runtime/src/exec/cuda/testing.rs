//! Plans for the tests of this module.

use gossamer_ir::{Bindings, OpId, OpKind};
use gossamer_models::step::{self, Head, StepOptions};
use gossamer_models::{gpt_oss, presets};
use gossamer_passes::plan::plan;
use gossamer_passes::{Options, Plan, bucket, compile, manager};

/// A greedy decode step of `n` sequences of a two-layer model of full width, without a packed layout.
pub fn decode_plan(n: usize) -> Plan {
    plan_with(n, Head::Greedy, &Options::default())
}

/// As [`decode_plan`], with another head and options for the passes.
pub fn plan_with(n: usize, head: Head, options: &Options) -> Plan {
    plan_at(2, &bucket::sizes(n, n, n, 512, 8), head, options)
}

/// A step of three layers that reads a prompt of `tokens`, with the options' own sizes in the passes. The last layer's experts have the rows that get logits.
pub fn prompt_plan(tokens: usize, head: Head, options: &Options) -> Plan {
    plan_at(3, &bucket::sizes(tokens, 1, 1, 512, 8), head, options)
}

fn plan_at(layers: usize, sizes: &Bindings, head: Head, options: &Options) -> Plan {
    let mut config = presets::gpt_oss_20b();
    config.layers = layers;
    config.layer_types.truncate(layers);
    let o = StepOptions { head, max_tokens: 64, max_seqs: 8, context: 512, page: 64 };
    let program = gpt_oss::build(&config, &o).unwrap();
    let (module, _) = compile(program.module, &manager::default_pipeline(), options).unwrap();
    plan(&module, step::ENTRY, sizes).unwrap()
}

/// The ops of one kind in a plan's steps.
pub fn ops(plan: &Plan, kind: OpKind) -> Vec<OpId> {
    plan.steps.iter().copied().filter(|id| plan.func.graph.op(*id).kind == kind).collect()
}
