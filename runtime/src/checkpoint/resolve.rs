//! From a MODEL argument to weights.

use std::env;
use std::path::{Path, PathBuf};

use gossamer_models::config::{GenerationDefaults, ModelConfig};
use gossamer_models::names::{Part, WeightSpec};
use gossamer_models::presets::{self, PRESETS};

use super::error::{CheckpointError, Problem};
use super::files::read_small;
use super::open::Checkpoint;
use super::random::RandomWeights;
use super::read::WeightSource;
use super::scales::ScaleRange;

/// The model in the repository.
const DEMO: &str = "demo";
/// Names the demo model's folder where it is not next to the program.
const DEMO_VARIABLE: &str = "GOSSAMER_DEMO";
/// Seed of `--random-weights`: benchmarks should repeat.
const RANDOM_SEED: u64 = 0;

/// A model that can be loaded.
#[derive(Debug)]
pub struct ModelRef {
    /// Short name for messages: `demo`, a preset, or the folder's name.
    pub name: String,
    /// The folder; it also holds the tokenizer. `None` for presets.
    pub folder: Option<PathBuf>,
    /// The weights and, through them, the configuration.
    pub weights: Weights,
    /// Stop ids and sampling defaults; stop ids of both configuration files together.
    pub generation: GenerationDefaults,
    /// One line each: legal, but probably not meant.
    pub warnings: Vec<String>,
}

/// Weights from either source.
#[derive(Debug)]
pub enum Weights {
    /// From a folder.
    Checkpoint(Checkpoint),
    /// Generated.
    Random(RandomWeights),
}

impl ModelRef {
    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        self.weights.config()
    }
}

/// Finds the model that MODEL names: a checkpoint folder, `demo`, or a preset.
///
/// With `random`, weights are generated: presets work only so, and of a folder only the configuration is used. Without
/// it, a preset's name means a folder of that name if there is one.
///
/// # Errors
/// [`CheckpointError::Model`] when nothing has this name; otherwise what opening gives.
pub fn resolve(model: &str, random: bool) -> Result<ModelRef, CheckpointError> {
    resolve_in(model, random, &demo_candidates())
}

/// The folder that MODEL names, or `None` when it names a preset.
pub(super) fn folder(model: &str, demo: &[PathBuf]) -> Result<Option<PathBuf>, CheckpointError> {
    if model == DEMO {
        let found = demo.iter().find(|d| d.join("config.json").is_file()).cloned();
        return found.map(Some).ok_or_else(|| {
            let fix = format!("set {DEMO_VARIABLE} to the folder models/demo of the repository");
            CheckpointError::Model(Problem::new("MODEL demo", "no demo model near the program", "its folder", fix))
        });
    }
    let path = Path::new(model);
    if path.is_dir() {
        return Ok(Some(path.to_owned()));
    }
    if PRESETS.contains(&model) {
        return Ok(None);
    }
    let expected = format!("a checkpoint folder, demo, {}", PRESETS.join(", "));
    let (found, fix) = if path.exists() {
        ("a file", "name the folder that the file lies in")
    } else {
        ("no such folder", "check the path")
    };
    Err(CheckpointError::Model(Problem::new(format!("MODEL {}", super::error::quoted(model)), found, expected, fix)))
}

/// Where the demo model may be, best first: the variable, next to the program or above it, the source tree of the build.
pub(super) fn demo_candidates() -> Vec<PathBuf> {
    if let Some(dir) = env::var_os(DEMO_VARIABLE).filter(|d| !d.is_empty()) {
        return vec![dir.into()]; // an explicit choice is not second-guessed
    }
    let program = env::current_exe().ok().and_then(|p| p.canonicalize().ok());
    let above = program
        .iter()
        .flat_map(|p| p.ancestors().skip(1))
        .flat_map(|dir| [dir.join("models/demo"), dir.join("share/gossamer/demo")]);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(|root| root.join("models/demo"));
    above.chain(source).collect()
}

fn resolve_in(model: &str, random: bool, demo: &[PathBuf]) -> Result<ModelRef, CheckpointError> {
    // Asking for random weights of a preset means the preset, whatever folders there are.
    if let (true, Some(config)) = (random, presets::preset(model)) {
        let generation = GenerationDefaults { eos: config.eos.clone(), pad: config.pad, ..Default::default() };
        let weights = Weights::Random(RandomWeights::new(ModelConfig::GptOss(config), RANDOM_SEED));
        return Ok(ModelRef { name: model.to_owned(), folder: None, weights, generation, warnings: Vec::new() });
    }
    let Some(dir) = folder(model, demo)? else {
        return Err(CheckpointError::Model(Problem::new(
            format!("MODEL {model}"),
            "a name without weights",
            "a checkpoint folder",
            "name the folder of the downloaded model, or add --random-weights to benchmark without one",
        )));
    };
    let (weights, mut warnings) = if random {
        let path = dir.join("config.json");
        let parsed = ModelConfig::parse(&read_small(&path)?, &path.display().to_string())?;
        (Weights::Random(RandomWeights::new(parsed.config, RANDOM_SEED)), parsed.warnings)
    } else {
        let checkpoint = Checkpoint::open(&dir)?;
        let warnings = checkpoint.warnings().to_vec();
        (Weights::Checkpoint(checkpoint), warnings)
    };
    let generation = generation(&dir, weights.config(), &mut warnings)?;
    Ok(ModelRef { name: display_name(model, &dir), folder: Some(dir), weights, generation, warnings })
}

/// `generation_config.json`, if there is one, together with the ids of `config.json`.
fn generation(
    dir: &Path,
    config: &ModelConfig,
    warnings: &mut Vec<String>,
) -> Result<GenerationDefaults, CheckpointError> {
    let path = dir.join("generation_config.json");
    let mut defaults = match path.exists() {
        true => GenerationDefaults::parse(&read_small(&path)?, &path.display().to_string())?,
        false => GenerationDefaults::default(),
    };
    for &id in config.eos() {
        if !defaults.eos.contains(&id) {
            defaults.eos.push(id);
        }
    }
    defaults.pad = defaults.pad.or(config.pad());
    if defaults.eos.is_empty() {
        warnings.push(format!(
            "{}: no eos_token_id in any configuration file; generation ends only at the token limit",
            dir.display()
        ));
    }
    Ok(defaults)
}

fn display_name(model: &str, dir: &Path) -> String {
    if model == DEMO {
        return model.to_owned();
    }
    let resolved = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    resolved.file_name().map_or_else(|| model.to_owned(), |n| n.to_string_lossy().into_owned())
}

impl WeightSource for Weights {
    fn config(&self) -> &ModelConfig {
        self.source().config()
    }

    fn weights(&self) -> &[WeightSpec] {
        self.source().weights()
    }

    fn fill(&self, weight: &WeightSpec, part: Part, byte_offset: u64, out: &mut [u8]) -> Result<(), CheckpointError> {
        self.source().fill(weight, part, byte_offset, out)
    }

    fn known_scale_range(&self, weight: &WeightSpec) -> Option<ScaleRange> {
        self.source().known_scale_range(weight)
    }
}

impl Weights {
    fn source(&self) -> &dyn WeightSource {
        match self {
            Weights::Checkpoint(checkpoint) => checkpoint,
            Weights::Random(random) => random,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demo() -> Vec<PathBuf> {
        vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo")]
    }

    #[test]
    fn the_demo_is_found_and_opens() {
        let model = resolve_in("demo", false, &demo()).unwrap();
        assert_eq!(model.name, "demo");
        assert_eq!(model.generation.eos, [4089, 4088, 4095]);
        assert_eq!(model.warnings, Vec::<String>::new());
        assert!(matches!(model.weights, Weights::Checkpoint(_)));
        assert!(matches!(resolve_in("demo", true, &demo()).unwrap().weights, Weights::Random(_)));
        let text = resolve_in("demo", false, &[]).unwrap_err().to_string();
        assert!(text.contains("GOSSAMER_DEMO"), "{text}");
    }

    #[test]
    fn presets_have_only_random_weights() {
        let model = resolve_in("gpt-oss-120b", true, &[]).unwrap();
        assert_eq!(model.weights.weights().len(), 36 * 17 + 3);
        assert_eq!(model.generation.eos, [200_002, 199_999, 200_012]);
        let text = resolve_in("gpt-oss-20b", false, &[]).unwrap_err().to_string();
        assert!(text.contains("--random-weights"), "{text}");
    }

    #[test]
    fn other_names_are_explained() {
        let text = resolve_in("no/such/place", false, &[]).unwrap_err().to_string();
        assert_eq!(
            text,
            "MODEL no/such/place: found no such folder, expected a checkpoint folder, demo, gpt-oss-20b, gpt-oss-120b; check the path"
        );
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let text = resolve_in(file.to_str().unwrap(), false, &[]).unwrap_err().to_string();
        assert!(text.contains("found a file"), "{text}");
    }
}
