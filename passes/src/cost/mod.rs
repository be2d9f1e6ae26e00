//! The cost model: microseconds of a kernel, term by term, from what it moves and computes and a description of the machine.
//!
//! Owns the formulas, the [machine description](machine) and the way [from a kernel op to its figures](shape). Knows no device, no e-graph and
//! no model; reads no files. Every term can be printed, because a cost that cannot be read cannot be corrected.
//!
//! ```text
//! units    = groups * ceil(rows / unit_rows) * ceil(columns / unit_columns)       blocks of work; whole rows where a reduction needs them;
//!            where columns spread, no more of them than fill the machine
//! rounds   = ceil(units / sms): units of the busiest SM;  fill = units / (rounds * sms)
//! launch   = launches * launch_us;  ramp = ramp_us
//! prologue = rows held by a block / SM rate, or by all blocks / L2 rate, whichever is longer, + repeated operations + prologue_us
//! memory   = (weights + state + large activations) / (memory rate * efficiency) + small activations / L2 rate,
//!            or rounds * bytes of a unit / SM rate, whichever is longer
//! compute  = tensor flops, rows and columns rounded up to units, / (tensor rate * efficiency * fill),
//!            or scalar operations / (scalar rate * fill), whichever is longer
//! total    = launch + ramp + prologue + max(memory, compute)
//!            of several stages: launch and ramp once, hand_over_us for each stage after the first, and the sum of what the stages take
//! roofline = max(all bytes / memory rate, flops / tensor rate): no kernel can be faster
//! ```
//!
//! Where it comes from: launch and ramp from dependent launches of 5 to 50 MB (docs/performance.md 1.2 and 1.4), the memory rate from one
//! persistent read (1.3). Activations that together fit half the L2 were written there by the kernel before and are read from it; with two
//! partitions, data used from both sides takes twice its size.

pub mod machine;
pub mod shape;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;

pub use machine::{Device, Machine, MachineError, TemplateFigures};
pub use shape::{Operand, of_op, shape};

/// What a kernel moves and computes at given sizes, whatever the machine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KernelShape {
    /// Name of its template.
    pub template: String,
    /// Launches.
    pub launches: u32,
    /// Bytes to and from memory, each value once.
    pub bytes: Bytes,
    /// The work as a grid that blocks divide among them.
    pub grid: Grid,
    /// Operations on tensor cores, a multiply and an add counted as two; nothing rounded up.
    pub tensor_flops: f64,
    /// Lane instructions outside tensor cores, but for those below.
    pub scalar_ops: f64,
    /// Lane instructions to unpack the weights once; repeated for every part of the rows that meets them.
    pub weight_ops: f64,
    /// What every block does again because it holds its rows.
    pub held: Held,
    /// The stages after the first, which the rest is about; they launch nothing.
    pub then: Vec<KernelShape>,
}

impl KernelShape {
    /// The stages, in order.
    pub fn stages(&self) -> impl Iterator<Item = &KernelShape> {
        std::iter::once(self).chain(&self.then)
    }
}

/// Bytes of a kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bytes {
    /// Weights; of experts the expected distinct ones, see [`expected_distinct`].
    pub weights: f64,
    /// Keys and values of the attended context.
    pub state: f64,
    /// Activations and indices read.
    pub read: f64,
    /// Results written, state included.
    pub written: f64,
}

impl Bytes {
    /// All of them.
    pub fn total(&self) -> f64 {
        self.weights + self.state + self.read + self.written
    }

    fn add(&mut self, more: &Bytes) {
        self.weights += more.weights;
        self.state += more.state;
        self.read += more.read;
        self.written += more.written;
    }
}

/// The work of a kernel as a grid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    /// Independent problems: experts, heads and sequences; fractional where expected.
    pub groups: f64,
    /// Rows of each.
    pub rows: f64,
    /// Columns of each; for attention keys.
    pub columns: f64,
    /// True if a block must see a row as a whole.
    pub whole_rows: bool,
    /// True if weights belong to columns, so that all rows of a group share them (a contraction); else each block reads its part.
    pub shared_weights: bool,
}

impl Default for Grid {
    fn default() -> Grid {
        Grid { groups: 1.0, rows: 1.0, columns: 1.0, whole_rows: false, shared_weights: false }
    }
}

/// Rows that a block keeps at hand, with what it does to them first.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Held {
    /// Bytes of all rows, as read.
    pub bytes: f64,
    /// Lane instructions on all rows.
    pub ops: f64,
    /// True if a row is reduced (a norm).
    pub reduces: bool,
}

/// What a kernel costs, term by term; times in microseconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Terms {
    /// Name of its template.
    pub template: String,
    /// Launches.
    pub launches: u32,
    /// Bytes of the whole kernel, each value once.
    pub bytes: Bytes,
    /// True if `bytes.read` and `bytes.written` go through L2 only.
    pub in_l2: bool,
    /// Tensor-core operations, nothing rounded up.
    pub flops: f64,
    /// Lane instructions, repeats included.
    pub scalar_ops: f64,
    /// Bytes that blocks read again because each holds its rows.
    pub repeated_bytes: f64,
    /// Blocks of work.
    pub units: f64,
    /// Blocks of work of the busiest SM.
    pub rounds: f64,
    /// Mean work of an SM as a fraction of the busiest one's.
    pub fill: f64,
    /// Launches.
    pub launch_us: f64,
    /// Tail of the kernel before and first loads.
    pub ramp_us: f64,
    /// Rows made ready by every block.
    pub prologue_us: f64,
    /// Bytes of the main loop.
    pub memory_us: f64,
    /// Arithmetic of the main loop.
    pub compute_us: f64,
    /// The kernel.
    pub total_us: f64,
    /// Least time on this machine by bytes and flops alone.
    pub roofline_us: f64,
}

/// Why a kernel has no cost.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CostError {
    /// A template that the machine description does not know.
    #[error("cost: machine {machine} has no figures for template `{template}`; add a table [template.{template}]")]
    Template {
        /// The machine.
        machine: String,
        /// The template.
        template: String,
    },
    /// A symbol without a value.
    #[error("cost: symbol `{symbol}` of {op} has no value; give the sizes of a bucket, for example decode.1")]
    Unbound {
        /// The kernel or op.
        op: String,
        /// The symbol.
        symbol: String,
    },
    /// A kernel that does not fit what it is given.
    #[error("cost: {op}: {what}; run the verifier on the module")]
    Malformed {
        /// The kernel or op.
        op: String,
        /// What is wrong.
        what: String,
    },
}

/// Columns of the smallest matrix multiply.
const COLUMN_STEP: f64 = 8.0;

/// The cost of a kernel on a machine.
///
/// # Errors
/// [`CostError::Template`].
pub fn cost(kernel: &KernelShape, machine: &Machine) -> Result<Terms, CostError> {
    let figures = machine
        .templates
        .get(&kernel.template)
        .ok_or_else(|| CostError::Template { machine: machine.name.clone(), template: kernel.template.clone() })?;
    let mut terms = stage(kernel, machine, figures);
    for next in &kernel.then {
        terms.add(&stage(next, machine, figures), figures, &machine.device);
    }
    Ok(terms)
}

/// The cost of a kernel's first stage.
fn stage(kernel: &KernelShape, machine: &Machine, figures: &TemplateFigures) -> Terms {
    let (device, grid, bytes) = (&machine.device, &kernel.grid, &kernel.bytes);
    let launch_us = f64::from(kernel.launches) * figures.launch_us;
    if grid.groups * grid.rows * grid.columns <= 0.0 {
        return Terms { template: kernel.template.clone(), ..Terms::default() };
    }

    // Units and how they fill the machine.
    let unit_rows = if grid.whole_rows { 1.0 } else { f64::from(figures.unit_rows) };
    let unit_columns = if grid.whole_rows { grid.columns } else { f64::from(figures.unit_columns) };
    let row_units = (grid.rows / unit_rows).ceil().max(1.0);
    let sms = f64::from(device.sms);
    let column_units = match (grid.columns / unit_columns).ceil().max(1.0) {
        most if figures.spread => most.min((sms / (grid.groups * row_units)).floor()).max(1.0),
        most => most,
    };
    let units = grid.groups * row_units * column_units;
    let rounds = (units / sms).ceil();
    let fill = units / (rounds * sms);

    // Rows that each block holds.
    let blocks = if figures.persistent { units.min(sms * f64::from(figures.units_per_sm)) } else { units };
    let held_bytes = kernel.held.bytes / row_units;
    let repeated_bytes = (blocks * held_bytes - kernel.held.bytes).max(0.0);
    let held_ops = kernel.held.ops / row_units;
    let sm_ops = device.scalar_tops * 1e6 / sms;
    let sm_rate = device.sm_gb_s * 1e3;
    let l2_rate = device.l2_tb_s * 1e6;
    let prologue_us = (held_bytes / sm_rate).max(blocks * held_bytes / l2_rate)
        + held_ops / sm_ops
        + if kernel.held.reduces { figures.prologue_us } else { 0.0 };

    // Bytes: all of the machine, and its busiest SM.
    let memory_rate = device.memory_tb_s * 1e6;
    let activations = bytes.read + bytes.written;
    let in_l2 = activations <= device.l2_mb * 1e6 / 2.0;
    let (from_memory, from_l2) = match in_l2 {
        true => (bytes.weights + bytes.state, activations),
        false => (bytes.total(), 0.0),
    };
    let shared_us = from_memory / (memory_rate * figures.bandwidth_efficiency) + from_l2 / l2_rate;
    let readers = if grid.shared_weights { grid.groups * column_units } else { units };
    let unit_bytes = bytes.weights / readers + (bytes.state + activations) / units;
    let unit_rate = figures.sm_gb_s.unwrap_or(device.sm_gb_s).min(device.sm_gb_s) * 1e3;
    let memory_us = shared_us.max(rounds * unit_bytes / unit_rate);

    // Arithmetic: whole units, or whole steps of a matrix multiply if one unit is not full.
    let step = f64::from(figures.row_step);
    let full_rows = match row_units > 1.0 || grid.whole_rows {
        true => row_units * unit_rows,
        false => (grid.rows / step).ceil() * step,
    };
    let full_columns = match (column_units > 1.0 || grid.whole_rows) && !figures.spread {
        true => column_units * unit_columns,
        false => (grid.columns / COLUMN_STEP).ceil() * COLUMN_STEP,
    };
    let padding = full_rows * full_columns / (grid.rows * grid.columns);
    let scalar_ops = kernel.scalar_ops + kernel.weight_ops * row_units;
    let tensor_us = kernel.tensor_flops * padding / (device.tensor_tflops * 1e6 * figures.compute_efficiency * fill);
    let scalar_us = scalar_ops / (device.scalar_tops * 1e6 * fill);
    let compute_us = tensor_us.max(scalar_us);

    let roofline_us = (bytes.total() / memory_rate).max(kernel.tensor_flops / (device.tensor_tflops * 1e6));
    Terms {
        template: kernel.template.clone(),
        launches: kernel.launches,
        bytes: *bytes,
        in_l2,
        flops: kernel.tensor_flops,
        scalar_ops: scalar_ops + held_ops * blocks,
        repeated_bytes,
        units,
        rounds,
        fill,
        launch_us,
        ramp_us: figures.ramp_us,
        prologue_us,
        memory_us,
        compute_us,
        total_us: launch_us + figures.ramp_us + prologue_us + memory_us.max(compute_us),
        roofline_us,
    }
}

/// How many of `n` things are expected to be chosen at least once by `draws` rows that choose `each` different ones at random:
/// `n * (1 - (1 - each / n)^draws)`.
pub fn expected_distinct(n: f64, each: f64, draws: f64) -> f64 {
    match n > 0.0 {
        true => n * (1.0 - (1.0 - (each / n).min(1.0)).powf(draws)),
        false => 0.0,
    }
}

impl Terms {
    /// Adds a further stage: its work, and the hand-over in place of a launch and a ramp.
    fn add(&mut self, next: &Terms, figures: &TemplateFigures, device: &Device) {
        if next.units <= 0.0 {
            return;
        }
        self.bytes.add(&next.bytes);
        self.in_l2 &= next.in_l2;
        self.flops += next.flops;
        self.scalar_ops += next.scalar_ops;
        self.repeated_bytes += next.repeated_bytes;
        self.units += next.units;
        self.rounds += next.rounds;
        self.fill = self.units / (self.rounds * f64::from(device.sms));
        self.ramp_us += figures.hand_over_us;
        self.prologue_us += next.prologue_us;
        self.memory_us += next.memory_us;
        self.compute_us += next.compute_us;
        self.total_us += figures.hand_over_us + next.prologue_us + next.memory_us.max(next.compute_us);
        self.roofline_us += next.roofline_us;
    }

    /// `memory` or `compute`: which of the two is longer.
    pub fn bound(&self) -> &'static str {
        if self.memory_us >= self.compute_us { "memory" } else { "compute" }
    }

    /// One line a term, with units.
    pub fn text(&self) -> String {
        let b = &self.bytes;
        let mut out = String::new();
        let mut line = |name: &str, us: f64, what: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{name:<9}{us:>10.2} us   {what}");
        };
        let from = if self.in_l2 { "from L2" } else { "from memory" };
        line("launch", self.launch_us, format!("{} x {}", self.launches, self.template));
        line("ramp", self.ramp_us, "tail of the kernel before, first loads".into());
        line("prologue", self.prologue_us, format!("{} read again by blocks that hold rows", mb(self.repeated_bytes)));
        line(
            "memory",
            self.memory_us,
            format!(
                "{} weights, {} state, {} read and {} written {from}",
                mb(b.weights),
                mb(b.state),
                mb(b.read),
                mb(b.written)
            ),
        );
        line(
            "compute",
            self.compute_us,
            format!("{:.3} GFLOP on tensor cores, {:.3} G scalar operations", self.flops / 1e9, self.scalar_ops / 1e9),
        );
        line(
            "total",
            self.total_us,
            format!(
                "{} bound; {:.0} units, {:.0} on the busiest SM, fill {:.2}",
                self.bound(),
                self.units.ceil(),
                self.rounds,
                self.fill
            ),
        );
        let share = if self.total_us > 0.0 { 100.0 * self.roofline_us / self.total_us } else { 100.0 };
        line("roofline", self.roofline_us, format!("{} in all; {share:.0} % of the total", mb(b.total())));
        out
    }

    /// The same for programs; times in `us`, bytes as numbers.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "template": self.template,
            "launches": self.launches,
            "bytes": {
                "weights": self.bytes.weights.round(), "state": self.bytes.state.round(), "read": self.bytes.read.round(),
                "written": self.bytes.written.round(), "total": self.bytes.total().round(), "repeated": self.repeated_bytes.round(),
                "in_l2": self.in_l2,
            },
            "flops": self.flops.round(),
            "scalar_ops": self.scalar_ops.round(),
            "units": self.units, "rounds": self.rounds, "fill": self.fill,
            "us": {
                "launch": self.launch_us, "ramp": self.ramp_us, "prologue": self.prologue_us, "memory": self.memory_us,
                "compute": self.compute_us, "total": self.total_us, "roofline": self.roofline_us,
            },
            "bound": self.bound(),
        })
    }
}

/// Decimal megabytes.
fn mb(bytes: f64) -> String {
    format!("{:.3} MB", bytes / 1e6)
}
