//! An explanation for tools.

use serde_json::{Map, Value as Json, json};

use super::{Explanation, LaunchEntry, MeasuredStep};

/// Version of the JSON form, in its field `version`. It grows when a key changes its meaning or goes away.
const VERSION: u32 = 2;

pub(super) fn json(e: &Explanation, kernel: Option<usize>) -> Json {
    let sizes: Map<String, Json> = e.sizes.iter().map(|(k, v)| (k.to_string(), json!(v))).collect();
    let stages: Vec<Json> = e
        .stages
        .iter()
        .skip(1)
        .map(|s| {
            json!({
                "name": s.name, "summary": s.summary, "changed": s.changed, "ops_before": s.ops.0, "ops_after": s.ops.1,
            })
        })
        .collect();
    let wanted = |i: &usize| kernel.is_none_or(|k| k == *i);
    let kernels: Vec<Json> =
        e.launches.iter().enumerate().filter(|(i, _)| wanted(i)).map(|(i, l)| launch(e, i, l)).collect();
    let alone = e.total(|l| l.alone_us);
    let measured = |of: fn(&MeasuredStep) -> f64| e.measured.as_ref().map(of);
    let predicted = e.predicted_step_us();
    json!({
        "version": VERSION,
        "name": e.name,
        "bucket": e.bucket,
        "sizes": sizes,
        "machine": e.machine,
        "passes": stages,
        "kernels": kernels,
        "totals": {
            "launches": e.launches.len(),
            "distinct_kernels": e.cards.len(),
            "predicted_step_us": predicted,
            "roofline_step_us": e.total(|l| e.roofline_us(l)),
            "measured_step_us": measured(|m| m.step_us),
            "traced_step_us": measured(|m| m.traced_us),
            "step_end_us": measured(|m| m.end_us),
            "gaps_us": measured(|m| m.gaps_us),
            "overlap_us": measured(|m| m.overlap_us),
            "alone_kernels_us": alone,
        },
        "memory": e.memory.json(),
    })
}

fn launch(e: &Explanation, index: usize, l: &LaunchEntry) -> Json {
    let card = &e.cards[l.card];
    let source = e.sources.get(&l.entry);
    let resources = source.and_then(|s| s.resources).map(|r| {
        json!({
            "registers": r.registers, "static_shared_bytes": r.static_shared, "spill_bytes": r.spills, "stack_bytes": r.stack,
            "cubin_bytes": r.cubin_bytes,
        })
    });
    let predicted = e.predicted_us(l);
    let share = predicted.zip(e.predicted_step_us()).filter(|(_, all)| *all > 0.0).map(|(us, all)| us / all);
    json!({
        "index": index,
        "kernel": l.card,
        "part": l.part,
        "value": l.value,
        "layer": l.scope,
        "template": card.template,
        "template_summary": card.about,
        "ops": card.summary,
        "results": card.results,
        "rules": card.rules.iter().map(|r| json!({"rule": r.rule, "op": r.op})).collect::<Vec<_>>(),
        "ir_before": card.before,
        "ir_after": card.after,
        "cost": card.prediction.as_ref().filter(|_| l.part == 0).map(|p| p.json.clone()),
        "predicted_us": predicted,
        "share": share,
        "roofline_us": e.roofline_us(l),
        "measured_us": l.measured_us,
        "alone_us": l.alone_us,
        "entry": l.entry,
        "grid": l.grid,
        "block": l.block,
        "dynamic_shared_bytes": l.shared,
        "scratch_bytes": l.scratch,
        "resources": resources,
        "cuda": source.map(|s| s.text.as_str()),
    })
}
