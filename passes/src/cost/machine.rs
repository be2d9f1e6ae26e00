//! The machine description: rates of one GPU and what each template makes of them, read from TOML text.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use gossamer_ir::template::TEMPLATES;
use serde::Deserialize;

/// What the cost model knows of a GPU.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Its name, `sm90-h100`.
    pub name: String,
    /// Rates of the device.
    pub device: Device,
    /// Figures of each template, by name; one for every template there is.
    #[serde(rename = "template")]
    pub templates: BTreeMap<String, TemplateFigures>,
}

/// Rates of a device; decimal units.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Multiprocessors.
    pub sms: u32,
    /// Memory, TB/s: the ceiling of a plain read.
    pub memory_tb_s: f64,
    /// L2 to all SMs, TB/s.
    pub l2_tb_s: f64,
    /// L2 size, MB.
    pub l2_mb: f64,
    /// What one SM can read when others are idle, GB/s.
    pub sm_gb_s: f64,
    /// Dense bf16 with f32 sums, TFLOP/s.
    pub tensor_tflops: f64,
    /// Lane instructions that all SMs sustain, 10^12/s.
    pub scalar_tops: f64,
}

/// Figures of a template on a device.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TemplateFigures {
    /// One launch in a graph, us.
    pub launch_us: f64,
    /// Tail of the kernel before and first loads, us.
    pub ramp_us: f64,
    /// A reduction over rows in the prologue, us.
    pub prologue_us: f64,
    /// From one stage of a kernel to the next, us.
    #[serde(default)]
    pub hand_over_us: f64,
    /// Fraction of the memory rate that the main loop reaches.
    pub bandwidth_efficiency: f64,
    /// Fraction of the tensor rate that it reaches.
    pub compute_efficiency: f64,
    /// Rows of a block's part of the result.
    pub unit_rows: u32,
    /// Columns of it.
    pub unit_columns: u32,
    /// GB/s that a multiprocessor pulls for one unit after the other, where that is less than [`Device::sm_gb_s`]: few warps, little under way.
    #[serde(default)]
    pub sm_gb_s: Option<f64>,
    /// Rows are rounded up to this inside a unit.
    pub row_step: u32,
    /// Blocks an SM holds.
    pub units_per_sm: u32,
    /// True if columns are cut into units only as far as multiprocessors would be idle otherwise.
    pub spread: bool,
    /// True if there are no more blocks than the device holds, each keeping its rows for all of its units.
    pub persistent: bool,
}

/// Why a description cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MachineError {
    /// Not TOML, or not these fields.
    #[error("{origin}, line {line}: {what}")]
    Syntax {
        /// Where the text comes from.
        origin: String,
        /// Line number from 1.
        line: usize,
        /// What is wrong and what was expected.
        what: String,
    },
    /// A number outside its range.
    #[error("{origin}: {field} is {found}, expected {expected}")]
    Value {
        /// Where the text comes from.
        origin: String,
        /// `device.sms`, `template.stream.ramp_us`.
        field: String,
        /// Its value.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// A template without figures, or figures without a template.
    #[error("{origin}: {what}; expected one table for each of {known}")]
    Templates {
        /// Where the text comes from.
        origin: String,
        /// Which.
        what: String,
        /// All templates.
        known: String,
    },
}

/// The description of an H100: what is assumed of a machine that nobody names.
const DEFAULT: &str = include_str!("../../../codegen-cuda/machines/sm90-h100.toml");

impl Default for Machine {
    fn default() -> Machine {
        static PARSED: LazyLock<Machine> =
            LazyLock::new(|| Machine::parse("sm90-h100.toml", DEFAULT).expect("a test parses this constant"));
        PARSED.clone()
    }
}

/// Rates that give finite times for whatever a kernel moves or computes.
const RATES: std::ops::RangeInclusive<f64> = 1e-6..=1e9;
/// Microseconds of launches and the like.
const TIMES: std::ops::RangeInclusive<f64> = 0.0..=1e9;
/// Parts of a rate that a kernel reaches.
const EFFICIENCIES: std::ops::RangeInclusive<f64> = 1e-6..=1.0;

impl Machine {
    /// Reads a description; `origin` names the text in messages.
    ///
    /// # Errors
    /// [`MachineError`]: not TOML, an unknown, missing or mistyped field, a value that makes no sense, a template without a table.
    pub fn parse(origin: &str, text: &str) -> Result<Machine, MachineError> {
        let machine: Machine = toml::from_str(text).map_err(|e| {
            // A missing field has no place of its own; the parser points at the table or at nothing.
            let at = e.span().map_or(0, |s| s.start).min(text.len());
            let line = 1 + text.bytes().take(at).filter(|b| *b == b'\n').count();
            let what = e.message().split_whitespace().collect::<Vec<_>>().join(" ");
            MachineError::Syntax { origin: origin.into(), line, what }
        })?;
        machine.check(origin)?;
        Ok(machine)
    }

    fn check(&self, origin: &str) -> Result<(), MachineError> {
        let d = &self.device;
        let rates = [
            ("memory_tb_s", d.memory_tb_s),
            ("l2_tb_s", d.l2_tb_s),
            ("l2_mb", d.l2_mb),
            ("sm_gb_s", d.sm_gb_s),
            ("tensor_tflops", d.tensor_tflops),
            ("scalar_tops", d.scalar_tops),
        ];
        let refuse = |field: String, found: String, expected: &'static str| {
            Err(MachineError::Value { origin: origin.into(), field, found, expected })
        };
        if d.sms == 0 {
            return refuse("device.sms".into(), "0".into(), "at least 1");
        }
        for (field, value) in rates {
            if !RATES.contains(&value) {
                return refuse(format!("device.{field}"), value.to_string(), "a number from 1e-6 to 1e9");
            }
        }
        for (name, t) in &self.templates {
            let times = [
                ("launch_us", t.launch_us),
                ("ramp_us", t.ramp_us),
                ("prologue_us", t.prologue_us),
                ("hand_over_us", t.hand_over_us),
            ];
            for (field, value) in times {
                if !TIMES.contains(&value) {
                    return refuse(format!("template.{name}.{field}"), value.to_string(), "microseconds from 0 to 1e9");
                }
            }
            let efficiencies =
                [("bandwidth_efficiency", t.bandwidth_efficiency), ("compute_efficiency", t.compute_efficiency)];
            for (field, value) in efficiencies {
                if !EFFICIENCIES.contains(&value) {
                    return refuse(format!("template.{name}.{field}"), value.to_string(), "a fraction from 1e-6 to 1");
                }
            }
            if let Some(rate) = t.sm_gb_s.filter(|r| !RATES.contains(r)) {
                return refuse(format!("template.{name}.sm_gb_s"), rate.to_string(), "a number from 1e-6 to 1e9");
            }
            let counts = [
                ("unit_rows", t.unit_rows),
                ("unit_columns", t.unit_columns),
                ("row_step", t.row_step),
                ("units_per_sm", t.units_per_sm),
            ];
            if let Some((field, _)) = counts.iter().find(|(_, n)| *n == 0) {
                return refuse(format!("template.{name}.{field}"), "0".into(), "at least 1");
            }
        }
        let missing = TEMPLATES.iter().find(|t| !self.templates.contains_key(t.name));
        let unknown = self.templates.keys().find(|name| TEMPLATES.iter().all(|t| t.name != **name));
        let what = match (missing, unknown) {
            (Some(t), _) => format!("template `{}` has no table", t.name),
            (_, Some(name)) => format!("there is no template `{name}`"),
            _ => return Ok(()),
        };
        let known = TEMPLATES.iter().map(|t| t.name).collect::<Vec<_>>().join(", ");
        Err(MachineError::Templates { origin: origin.into(), what, known })
    }
}
