//! Inputs of a step: arrays of the bucket's size, real entries first, padding behind.

use gossamer_models::step::{Head, LOGIT_BIAS};
use gossamer_passes::bucket::StepSize;

use super::{Engine, SamplingParams, Work};
use crate::exec::{HostData, Inputs};

/// The inputs for `work` in `bucket`. The work has been admitted.
pub(super) fn step(engine: &Engine, work: &[Work], head: Head, bucket: StepSize) -> Inputs {
    let pages = engine.options.context.div_ceil(engine.options.page);
    let (mut tokens, mut pos, mut seq, mut rows) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut tables: Vec<Vec<i32>> = vec![Vec::new(); engine.groups.len()];
    let (mut slots, mut prompt_len) = (Vec::new(), Vec::new());
    let mut sampled: Vec<(&SamplingParams, usize, usize)> = Vec::new();
    let all_rows = matches!(head, Head::Logits { .. });
    for (s, w) in work.iter().enumerate() {
        let Some(state) = &engine.seqs[w.seq.0] else { continue };
        for (i, token) in w.tokens.iter().enumerate() {
            if all_rows {
                rows.push(tokens.len() as i32);
            }
            tokens.push(*token as i32);
            pos.push((state.len + i) as i32);
            seq.push(s as i32);
        }
        if let (false, true, Some(params)) = (all_rows, w.sample, w.params) {
            rows.push(tokens.len() as i32 - 1);
            sampled.push((params, w.seq.0, state.len + w.tokens.len()));
        }
        for (out, table) in tables.iter_mut().zip(&state.tables) {
            let start = out.len();
            out.extend_from_slice(table.entries());
            out.resize(start + pages, -1);
        }
        slots.push(w.seq.0 as i32);
        prompt_len.push(state.prompt_len as i32);
    }
    let (t, s, r) = (bucket.tokens, bucket.seqs, bucket.rows);
    let mut inputs = Inputs::new();
    let mut put_i = |name: &str, mut v: Vec<i32>, len: usize, pad: i32| {
        v.resize(len, pad);
        inputs.insert(name.to_string(), HostData::I32(v));
    };
    put_i("tokens", tokens, t, 0);
    put_i("pos", pos, t, 0);
    put_i("seq", seq, t, -1);
    put_i("rows", rows, r, 0);
    for (group, table) in engine.groups.iter().zip(tables) {
        put_i(&format!("pages.{}", group.name), table, s * pages, -1);
    }
    if all_rows {
        return inputs;
    }
    if head == Head::Greedy {
        return inputs;
    }
    put_i("sample_pos", sampled.iter().map(|(_, _, pos)| *pos as i32).collect(), r, 0);
    put_i("top_k", sampled.iter().map(|(p, ..)| p.top_k as i32).collect(), r, 0);
    let words = |seed: u64| [seed as u32 as i32, (seed >> 32) as u32 as i32];
    put_i("seed", sampled.iter().flat_map(|(p, ..)| words(p.seed)).collect(), 2 * r, 0);
    if head == Head::Full {
        put_i("slots", slots, s, 0);
        put_i("prompt_len", prompt_len, s, 0);
        put_i("row_slots", sampled.iter().map(|(_, slot, _)| *slot as i32).collect(), r, -1);
        let mut ids = Vec::new();
        for (p, ..) in &sampled {
            let start = ids.len();
            ids.extend(p.logit_bias.iter().map(|(t, _)| *t as i32));
            ids.resize(start + LOGIT_BIAS, -1);
        }
        put_i("bias_ids", ids, r * LOGIT_BIAS, -1);
    }
    let mut put_f = |name: &str, mut v: Vec<f32>, len: usize, pad: f32| {
        v.resize(len, pad);
        inputs.insert(name.to_string(), HostData::F32(v));
    };
    let column = |get: fn(&SamplingParams) -> f32| sampled.iter().map(|(p, ..)| get(p)).collect::<Vec<f32>>();
    put_f("temperature", column(|p| p.temperature), r, 0.0);
    put_f("top_p", column(|p| p.top_p), r, 1.0);
    put_f("min_p", column(|p| p.min_p), r, 0.0);
    if head == Head::Full {
        put_f("repetition", column(|p| p.repetition_penalty), r, 1.0);
        put_f("presence", column(|p| p.presence_penalty), r, 0.0);
        put_f("frequency", column(|p| p.frequency_penalty), r, 0.0);
        let mut values = Vec::new();
        for (p, ..) in &sampled {
            let start = values.len();
            values.extend(p.logit_bias.iter().map(|(_, b)| *b));
            values.resize(start + LOGIT_BIAS, 0.0);
        }
        put_f("bias_values", values, r * LOGIT_BIAS, 0.0);
    }
    inputs
}
