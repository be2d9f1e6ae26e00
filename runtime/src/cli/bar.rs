//! Progress bars on stderr; nothing where stderr is not a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar over bytes with rate and time left.
pub fn bytes(what: &str, total: u64) -> ProgressBar {
    let template = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    bar(what, total, template)
}

/// A bar over a count of things.
pub fn count(what: &str, total: u64) -> ProgressBar {
    bar(what, total, "{msg} [{bar:30}] {pos}/{len} {eta}")
}

fn bar(what: &str, total: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(total).with_style(style.progress_chars("=> ")).with_message(what.to_string());
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
