//! Text and JSON of an inspection.

use std::fmt::Write;

use serde_json::Value;

use super::{Check, Inspection, RESERVED_BYTES};

/// The whole report as text, ending in a newline.
pub fn render_text(inspection: &Inspection) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_text(&mut out, inspection);
    out
}

/// The whole report as JSON.
pub fn render_json(inspection: &Inspection) -> Value {
    serde_json::to_value(inspection).unwrap_or_default()
}

/// The part of the report about the data, ending in a newline.
pub fn render_check(check: &Check) -> String {
    let mut out = String::new();
    let _ = write_check(&mut out, check);
    out
}

fn write_text(out: &mut String, i: &Inspection) -> std::fmt::Result {
    let place = i
        .folder
        .as_deref()
        .map_or_else(|| "no files; tensors of the published checkpoint".to_owned(), |f| format!("in {f}"));
    writeln!(out, "{} ({}, {} layout, {place})", i.model, i.model_type, i.layout)?;
    writeln!(out, "{}", describe(&i.config))?;
    writeln!(out)?;
    write_tensors(out, i)?;
    writeln!(out)?;
    let t = &i.totals;
    let files = if t.shards == 0 {
        String::new()
    } else {
        format!(" in {} file{}", t.shards, if t.shards == 1 { "" } else { "s" })
    };
    writeln!(out, "tensors     {:>18}{files}", grouped(t.tensors as u64))?;
    writeln!(out, "parameters  {:>18}  ({} active per token)", grouped(t.parameters), grouped(t.active_parameters))?;
    writeln!(out, "bytes       {:>18}  ({})", grouped(t.bytes), gigabytes(t.bytes as i64))?;
    if t.mxfp4_bytes > 0 {
        writeln!(out, "  MXFP4     {:>18}", grouped(t.mxfp4_bytes))?;
    }
    writeln!(out, "  BF16      {:>18}", grouped(t.bf16_bytes))?;
    let kv = &i.kv_cache;
    let windows = match kv.window_bytes_per_sequence {
        0 => String::new(),
        bytes => format!(", and {} per sequence for the windows", grouped(bytes)),
    };
    writeln!(out, "KV cache    {:>18}  bytes per token{windows}", grouped(kv.bytes_per_token))?;
    writeln!(out)?;
    let reserved = gigabytes(RESERVED_BYTES as i64);
    writeln!(
        out,
        "GPU memory    left for KV    longest sequence    sequences of {}    ({reserved} set aside)",
        kv.context.min(8192)
    )?;
    for fit in &i.fits {
        let gpu = format!("{} GB", fit.gpu_gb);
        if fit.free_bytes < 0 {
            writeln!(out, "{gpu:>10}    does not fit: {} missing", gigabytes(-fit.free_bytes))?;
        } else {
            writeln!(
                out,
                "{gpu:>10}    {:>11}    {:>16}    {:>17}",
                gigabytes(fit.free_bytes),
                grouped(fit.longest_sequence),
                grouped(fit.sequences_of_8192)
            )?;
        }
    }
    if let Some(check) = &i.check {
        writeln!(out)?;
        write_check(out, check)?;
    }
    if !i.warnings.is_empty() {
        writeln!(out)?;
        for warning in &i.warnings {
            writeln!(out, "warning: {warning}")?;
        }
    }
    Ok(())
}

fn write_tensors(out: &mut String, i: &Inspection) -> std::fmt::Result {
    let rows: Vec<[String; 5]> = i
        .tensors
        .iter()
        .map(|t| {
            let dims: Vec<String> = t.shape.iter().map(usize::to_string).collect();
            [
                t.name.escape_debug().to_string(),
                format!("[{}]", dims.join(", ")),
                t.dtype.clone(),
                grouped(t.bytes),
                t.shard.clone().unwrap_or_default(),
            ]
        })
        .collect();
    let header =
        ["tensor", "shape", "dtype", "bytes", if i.totals.shards > 0 { "file" } else { "" }].map(str::to_owned);
    let mut widths = [0; 5];
    for row in rows.iter().chain([&header]) {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let [name, shape, dtype, bytes, _] = widths;
    for [a, b, c, d, e] in [&header].into_iter().chain(&rows) {
        let line = format!("{a:name$}  {b:shape$}  {c:dtype$}  {d:>bytes$}  {e}");
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

fn write_check(out: &mut String, check: &Check) -> std::fmt::Result {
    let mut clean = true;
    for v in check.values.iter().filter(|v| v.first_bad.is_some()) {
        clean = false;
        let place = v.first_bad.as_deref().unwrap_or_default();
        writeln!(
            out,
            "{}: {} NaN and {} infinite values, the first at {place:?}",
            v.weight,
            grouped(v.nan),
            grouped(v.infinite)
        )?;
    }
    for s in &check.scales {
        if let Some((expert, row, block)) = s.first_nan {
            clean = false;
            writeln!(
                out,
                "{}: scale byte 255 (NaN), the first at expert {expert}, row {row}, block {block}",
                s.weight
            )?;
        } else if !s.allows_folding() {
            let max = s.histogram.last().map_or(0, |&(byte, _)| byte);
            writeln!(out, "{}: scale bytes up to {max}; above 128 the slower exact dequantisation is used", s.weight)?;
        }
    }
    if clean {
        let scales = if check.scales.is_empty() { "" } else { ", no scale is NaN" };
        writeln!(out, "data        every value is finite{scales}")?;
    }
    if check.scales.is_empty() {
        return Ok(());
    }
    let histogram = check.histogram();
    let total = histogram.iter().map(|&(_, n)| n).sum::<u64>().max(1);
    writeln!(out, "scale bytes of all MXFP4 weights (byte s means 2^(s-127)):")?;
    for (byte, count) in histogram {
        let share = count as f64 / total as f64;
        let bar = "#".repeat((share * 50.0).round() as usize);
        writeln!(out, "{}", format!("  {byte:>3}  {:>15}  {:>6.2}%  {bar}", grouped(count), share * 100.0).trim_end())?;
    }
    Ok(())
}

/// A sentence on the architecture.
fn describe(config: &Value) -> String {
    let n = |key: &str| config[key].as_u64().unwrap_or(0);
    let sliding =
        config["layer_types"].as_array().map_or(0, |l| l.iter().filter(|t| *t == "sliding_attention").count());
    let windows = match sliding {
        0 => String::new(),
        _ => format!(" ({sliding} with a window of {})", n("sliding_window")),
    };
    let experts = match n("num_local_experts") {
        0 => "dense".to_owned(),
        e => format!("{e} experts with {} active", n("num_experts_per_tok")),
    };
    let tied = if config["tie_word_embeddings"] == true { " (the head is the embedding)" } else { "" };
    format!(
        "{} layers{windows}, {experts}, hidden {}, intermediate {}, {} query and {} KV heads of {}, vocabulary {}{tied}, context {}",
        n("num_hidden_layers"),
        n("hidden_size"),
        n("intermediate_size"),
        n("num_attention_heads"),
        n("num_key_value_heads"),
        n("head_dim"),
        n("vocab_size"),
        n("max_position_embeddings"),
    )
}

/// An integer with thousands separators.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

fn gigabytes(bytes: i64) -> String {
    format!("{:.2} GB", bytes as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::inspect::inspect;

    #[test]
    fn presets_list_every_published_tensor() {
        for (name, tensors, bytes) in [("gpt-oss-20b", 459, "13,761,264,768"), ("gpt-oss-120b", 687, "65,248,815,744")]
        {
            let inspection = inspect(name).unwrap();
            assert_eq!(inspection.tensors.len(), tensors);
            let text = render_text(&inspection);
            assert_eq!(text.lines().filter(|l| l.contains(".weight ") || l.contains("model.layers.")).count(), tensors);
            assert!(text.contains(bytes), "{text}");
            assert_eq!(render_json(&inspection)["totals"]["bytes"].as_u64().map(grouped).as_deref(), Some(bytes));
        }
    }

    #[test]
    fn the_layout_is_stable() {
        let text = render_text(&inspect("gpt-oss-20b").unwrap());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            "gpt-oss-20b (gpt_oss, Hugging Face layout, no files; tensors of the published checkpoint)"
        );
        assert!(lines[1].starts_with("24 layers (12 with a window of 128), 32 experts with 4 active, hidden 2880"));
        assert_eq!(lines[3].split_whitespace().collect::<Vec<_>>(), ["tensor", "shape", "dtype", "bytes"]);
        let embed: Vec<&str> = lines[4].split_whitespace().collect();
        assert_eq!(embed, ["model.embed_tokens.weight", "[201088,", "2880]", "BF16", "1,158,266,880"]);
        let gpu = lines.iter().find(|l| l.trim_start().starts_with("24 GB")).unwrap();
        assert_eq!(gpu.split_whitespace().collect::<Vec<_>>(), ["24", "GB", "8.74", "GB", "131,072", "42"]);
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
