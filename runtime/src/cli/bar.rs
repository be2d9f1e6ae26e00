//! Progress bars on stderr; nothing where stderr is not a terminal.

use std::sync::Mutex;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::exec::cuda::LoadEvent;

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

/// The bars of loading: one for weights, one for kernels, made when there is something to show.
#[derive(Default)]
pub struct Loading {
    bars: Mutex<(Option<ProgressBar>, Option<ProgressBar>)>,
}

impl Loading {
    /// Shows an event.
    pub fn show(&self, event: LoadEvent<'_>) {
        // A panic of another thread while it held the lock leaves bars that can still be drawn.
        let mut bars = self.bars.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match event {
            LoadEvent::Weights { done, total } => step(&mut bars.0, done, total, || bytes("weights", total)),
            LoadEvent::Kernels { done, total, .. } => {
                step(&mut bars.1, done as u64, total as u64, || count("kernels", total as u64));
            }
        }
    }
}

fn step(bar: &mut Option<ProgressBar>, done: u64, total: u64, make: impl FnOnce() -> ProgressBar) {
    let shown = bar.get_or_insert_with(make);
    shown.set_length(total);
    shown.set_position(done.max(shown.position()));
    if done >= total {
        shown.finish_and_clear();
        *bar = None;
    }
}
