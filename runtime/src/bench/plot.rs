//! A chart of measured speeds: one SVG file that needs nothing else, a line for each number of prompts over the tokens of a prompt.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A measured case.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Tokens of each prompt: the place along the chart, in powers of two.
    pub tokens: usize,
    /// Prompts: which line.
    pub batch: usize,
    /// Tokens a second of all prompts: the height.
    pub tokens_per_s: f64,
}

const WIDTH: f64 = 880.0;
const HEIGHT: f64 = 500.0;
const LEFT: f64 = 86.0;
const RIGHT: f64 = 28.0;
const TOP: f64 = 58.0;
const BOTTOM: f64 = 62.0;
/// Colours of lines, told apart by most readers; further lines begin again.
const COLOURS: [&str; 6] = ["#1f6fb4", "#c8501e", "#2b8a57", "#8a4fa3", "#a8851a", "#5a6470"];

/// The chart; `title` and `subtitle` stand above it. The same points give the same bytes.
pub fn svg(title: &str, subtitle: &str, points: &[Point]) -> String {
    let mut lines: BTreeMap<usize, BTreeMap<usize, f64>> = BTreeMap::new();
    for p in points.iter().filter(|p| p.tokens > 0 && p.tokens_per_s.is_finite()) {
        lines.entry(p.batch).or_default().insert(p.tokens, p.tokens_per_s.max(0.0));
    }
    let all = || lines.values().flatten();
    let ends = (all().map(|p| *p.0).min().unwrap_or(1), all().map(|p| *p.0).max().unwrap_or(1));
    // A power of two at both ends; at least one step, so that a single point has a place.
    let low = (ends.0 as f64).log2().floor();
    let high = (ends.1 as f64).log2().ceil().max(low + 1.0);
    let step = nice(all().map(|p| *p.1).fold(0.0, f64::max) / 6.0);
    let most = (all().map(|p| *p.1).fold(0.0, f64::max) * 1.04 / step).ceil().max(1.0) * step;
    let x = |tokens: f64| LEFT + (tokens.log2() - low) / (high - low) * (WIDTH - LEFT - RIGHT);
    let y = |speed: f64| HEIGHT - BOTTOM - speed / most * (HEIGHT - TOP - BOTTOM);

    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\" fill=\"#222\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"24\" font-size=\"16\" font-weight=\"600\">{}</text>\n\
         <text x=\"{LEFT}\" y=\"42\" fill=\"#666\">{}</text>\n",
        escape(title),
        escape(subtitle)
    );
    // Writing to a string cannot fail.
    for i in 0..=(most / step).round() as usize {
        let speed = i as f64 * step;
        let at = y(speed);
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{:.1}\" y2=\"{at:.1}\" stroke=\"{}\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            if i == 0 { "#222" } else { "#e4e4e4" },
            LEFT - 8.0,
            at + 4.0,
            short(speed)
        );
    }
    for power in low as i64..=high as i64 {
        let tokens = 2f64.powi(power as i32);
        let _ = writeln!(
            out,
            "<line x1=\"{0:.1}\" y1=\"{1:.1}\" x2=\"{0:.1}\" y2=\"{2:.1}\" stroke=\"#222\"/>\n\
             <text x=\"{0:.1}\" y=\"{3:.1}\" text-anchor=\"middle\">{4}</text>",
            x(tokens),
            HEIGHT - BOTTOM,
            HEIGHT - BOTTOM + 5.0,
            HEIGHT - BOTTOM + 19.0,
            tokens
        );
    }
    let _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">tokens of a prompt</text>\n\
         <text transform=\"translate(20 {:.1}) rotate(-90)\" text-anchor=\"middle\">tokens a second</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 18.0,
        (TOP + HEIGHT - BOTTOM) / 2.0
    );
    for (i, (batch, line)) in lines.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let places: Vec<String> =
            line.iter().map(|(tokens, speed)| format!("{:.1},{:.1}", x(*tokens as f64), y(*speed))).collect();
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            places.join(" ")
        );
        for (tokens, speed) in line {
            let _ = writeln!(
                out,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"><title>{batch} x {tokens} tokens: {speed:.0} tok/s</title></circle>",
                x(*tokens as f64),
                y(*speed)
            );
        }
        let name = if *batch == 1 { "1 prompt".to_string() } else { format!("{batch} prompts") };
        let at = TOP + 6.0 + 18.0 * i as f64;
        let _ = writeln!(
            out,
            "<line x1=\"{0:.1}\" y1=\"{at:.1}\" x2=\"{1:.1}\" y2=\"{at:.1}\" stroke=\"{colour}\" stroke-width=\"2\"/>\n\
             <text x=\"{2:.1}\" y=\"{3:.1}\">{name}</text>",
            LEFT + 14.0,
            LEFT + 36.0,
            LEFT + 42.0,
            at + 4.0
        );
    }
    out.push_str("</svg>\n");
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// 1, 2 or 5 times a power of ten, not below `least`.
fn nice(least: f64) -> f64 {
    if !least.is_finite() || least <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0].map(|f| f * power).into_iter().find(|s| *s >= least * 0.999).unwrap_or(10.0 * power)
}

/// `80k`, `2.5k`, `500`, `0.2`.
fn short(speed: f64) -> String {
    let (scaled, unit) = if speed >= 1000.0 { (speed / 1000.0, "k") } else { (speed, "") };
    let text = format!("{scaled:.3}");
    format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(tokens: usize, batch: usize, tokens_per_s: f64) -> Point {
        Point { tokens, batch, tokens_per_s }
    }

    #[test]
    fn a_line_for_each_number_of_prompts_in_order_of_tokens() {
        let points = [point(2048, 1, 60e3), point(64, 1, 9e3), point(8192, 1, 80e3), point(2048, 8, 88e3)];
        let text = svg("a < b", "H100", &points);
        assert!(text.starts_with("<svg ") && text.ends_with("</svg>\n") && text.contains("a &lt; b"));
        assert_eq!((text.matches("<polyline").count(), text.matches("<circle").count()), (2, 4));
        assert!(text.contains(">64</text>") && text.contains(">8192</text>") && text.contains(">80k</text>"));
        assert!(text.contains("1 x 64 tokens: 9000 tok/s") && text.contains(">8 prompts</text>"));
        // From left to right whatever the order they were measured in.
        let line = text.lines().find(|l| l.starts_with("<polyline")).unwrap();
        let places: Vec<f64> = line.split('"').nth(1).unwrap().split([' ', ',']).map(|n| n.parse().unwrap()).collect();
        let across: Vec<f64> = places.iter().copied().step_by(2).collect();
        assert!(
            across.is_sorted() && across.len() == 3 && places.iter().all(|p| (0.0..=WIDTH).contains(p)),
            "{places:?}"
        );
    }

    #[test]
    fn few_points_and_odd_ones_have_a_place() {
        for points in [vec![], vec![point(1, 1, 0.0)], vec![point(17, 2, 3.5)], vec![point(5, 1, f64::NAN)]] {
            let text = svg("t", "", &points);
            assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
        }
    }

    #[test]
    fn steps_are_round() {
        assert_eq!(
            [0.0, 0.9, 1.3, 14_000.0, 20_000.0, 70_000.0].map(nice),
            [1.0, 1.0, 2.0, 20_000.0, 20_000.0, 100_000.0]
        );
        assert_eq!([0.0, 0.2, 500.0, 2500.0, 80_000.0].map(short), ["0", "0.2", "500", "2.5k", "80k"]);
    }
}
