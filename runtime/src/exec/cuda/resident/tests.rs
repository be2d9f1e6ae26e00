use std::sync::{Arc, Mutex};

use super::super::testing::plan_with;
use super::*;
use crate::checkpoint::{CheckpointError, RandomWeights, ScaleRange};
use gossamer_models::config::ModelConfig;
use gossamer_models::presets;
use gossamer_models::step::{self, Head, StepOptions};
use gossamer_passes::{Options, bucket, compile, manager};

/// Device memory that is a vector, and a count of all of it.
#[derive(Clone, Default)]
struct Fake {
    held: Arc<Mutex<Held>>,
    staging: usize,
}

#[derive(Default)]
struct Held {
    allocated: usize,
    stages: usize,
    finished: bool,
}

type Memory = Arc<Mutex<Vec<u8>>>;

impl Loader for Fake {
    type Memory = Memory;

    fn allocate(&mut self, bytes: usize, _: &str) -> Result<Memory, ExecError> {
        self.held.lock().unwrap().allocated += bytes;
        Ok(Arc::new(Mutex::new(vec![0xee; bytes])))
    }

    fn address(memory: &Memory) -> u64 {
        Arc::as_ptr(memory) as u64
    }

    fn staging(&self) -> usize {
        self.staging
    }

    fn reserve(&mut self, bytes: usize) -> Result<(), ExecError> {
        self.staging = self.staging.max(bytes);
        Ok(())
    }

    fn stage(
        &mut self,
        to: &Memory,
        offset: usize,
        len: usize,
        fill: &mut dyn FnMut(&mut [u8]) -> Result<(), ExecError>,
    ) -> Result<(), ExecError> {
        assert!(len <= self.staging);
        self.held.lock().unwrap().stages += 1;
        fill(&mut to.lock().unwrap()[offset..offset + len])
    }

    fn finish(&mut self) -> Result<(), ExecError> {
        self.held.lock().unwrap().finished = true;
        Ok(())
    }
}

/// A small model: widths that do not fill tiles, three experts.
fn config() -> gossamer_models::config::GptOssConfig {
    let mut c = presets::gpt_oss_20b();
    (c.layers, c.experts, c.vocab, c.hidden, c.intermediate) = (2, 3, 50, 96, 32);
    (c.heads, c.kv_heads, c.experts_per_token) = (2, 1, 2);
    c.layer_types.truncate(2);
    c
}

fn plan_of(head: Head, n: usize, layout: Option<&str>) -> Plan {
    let o = StepOptions { head, max_tokens: 8, max_seqs: 8, context: 64, page: 16 };
    let program = gossamer_models::gpt_oss::build(&config(), &o).unwrap();
    let options = Options { mxfp4_layout: layout.map(Into::into), ..Options::default() };
    let (module, _) = compile(program.module, &manager::default_pipeline(), &options).unwrap();
    gossamer_passes::plan::plan(&module, step::ENTRY, &bucket::sizes(n, n, n, 64, 4)).unwrap()
}

/// Random weights with one scale byte of one weight replaced.
struct Scaled {
    inner: RandomWeights,
    weight: &'static str,
    at: u64,
    scale: u8,
}

impl WeightSource for Scaled {
    fn config(&self) -> &ModelConfig {
        self.inner.config()
    }

    fn weights(&self) -> &[WeightSpec] {
        self.inner.weights()
    }

    fn fill(&self, w: &WeightSpec, part: StoredPart, offset: u64, out: &mut [u8]) -> Result<(), CheckpointError> {
        self.inner.fill(w, part, offset, out)?;
        if w.name == self.weight && part == StoredPart::Scales && offset <= self.at {
            out.get_mut((self.at - offset) as usize).into_iter().for_each(|b| *b = self.scale);
        }
        Ok(())
    }

    fn known_scale_range(&self, _: &WeightSpec) -> Option<ScaleRange> {
        None
    }
}

fn random() -> RandomWeights {
    RandomWeights::new(ModelConfig::GptOss(config()), 3)
}

fn load(plan: &Plan, source: &dyn WeightSource, to: &mut Residents<Memory>, fake: &Fake) -> Result<(), ExecError> {
    to.load(plan, source, |_| Ok(fake.clone()), &|_, _| {})
}

fn fake(staging: usize) -> Fake {
    Fake { staging, ..Fake::default() }
}

/// The resident value that `name` is read through, by the name of the weight in its key.
fn named<'a>(plan: &Plan, r: &'a Residents<Memory>, name: &str) -> &'a Resident<Memory> {
    let v = used(plan).into_iter().find(|v| key(plan, *v).contains(name)).unwrap();
    &r.by_key[&key(plan, v)]
}

fn bytes_of(r: &Resident<Memory>, part: Part) -> Vec<u8> {
    r.parts.iter().find(|p| p.0 == part).unwrap().1.lock().unwrap().clone()
}

/// Weights joined by rows, in pieces that end anywhere, are the bytes of the interpreter's result.
#[test]
fn joined_weights_are_read_one_after_the_other() {
    let o = StepOptions { head: Head::Greedy, max_tokens: 8, max_seqs: 8, context: 64, page: 16 };
    let program = gossamer_models::gpt_oss::build(&config(), &o).unwrap();
    let sizes = bucket::sizes(1, 1, 1, 64, 4);
    let options = Options { mxfp4_layout: Some(PACKED_FAST.into()), sizes: sizes.clone(), ..Options::default() };
    let (module, _) = compile(program.module, &manager::default_pipeline(), &options).unwrap();
    let plan = gossamer_passes::plan::plan(&module, step::ENTRY, &sizes).unwrap();
    let source = random();
    let joined: Vec<Value> = used(&plan)
        .into_iter()
        .filter(|v| matches!(recipe(&plan, *v, &source), Ok(Recipe::Joined(w)) if w.len() > 1))
        .collect();
    assert!(joined.len() >= 4, "weights and biases of q, k and v of both layers");
    for staging in [1000, 1 << 16] {
        let mut residents = Residents::default();
        load(&plan, &source, &mut residents, &fake(staging)).unwrap();
        for v in &joined {
            let tensor = evaluate(&plan, *v, &source, &mut BTreeMap::new(), &|_| {}).unwrap();
            let resident = &residents.by_key[&key(&plan, *v)];
            assert_eq!(bytes_of(resident, Part::Data), tensor_bytes(&tensor).unwrap());
        }
    }
}

#[test]
fn packed_weights_are_what_the_layout_packs_whatever_the_staging() {
    let source = random();
    for (name, mode) in [(PACKED, ScaleMode::General), (PACKED_FAST, ScaleMode::Fast)] {
        packs(&source, name, mode);
    }
}

fn packs(source: &RandomWeights, name: &str, mode: ScaleMode) {
    let plan = plan_of(Head::Greedy, 2, Some(name));
    let spec = source.weights().iter().find(|w| w.name == "l1.mlp.gate_up.w").unwrap();
    let [blocks, scales] =
        [StoredPart::Blocks, StoredPart::Scales].map(|p| read_part(source, spec, p, &|_| {}).unwrap());
    let layout = Mxfp4Layout::new(3, 64, 96, RowOrder::Identity, mode).unwrap();
    let mut expected = vec![0; layout.bytes()];
    layout.pack(&blocks, &scales, &mut expected).unwrap();
    for staging in [1, 5000, 1 << 20] {
        let (mut residents, fake) = (Residents::default(), fake(staging));
        load(&plan, source, &mut residents, &fake).unwrap();
        let packed = named(&plan, &residents, "l1.mlp.gate_up.w");
        assert_eq!(packed.layout.as_deref(), Some(name));
        assert_eq!(bytes_of(packed, Part::Data), expected);
        // Nothing but the packed form, at exactly the planned size.
        let planned: u64 = resident_bytes(&plan).unwrap().values().sum();
        let held = fake.held.lock().unwrap();
        assert_eq!((held.allocated as u64, held.finished), (planned, true));
    }
}

#[test]
fn dense_row_major_and_computed_values_are_as_stored() {
    let source = random();
    let plan = plan_of(Head::Greedy, 2, None);
    let mut residents = Residents::default();
    load(&plan, &source, &mut residents, &fake(1000)).unwrap();
    let stored = |name: &str, part| {
        let spec = source.weights().iter().find(|w| w.name == name).unwrap();
        read_part(&source, spec, part, &|_| {}).unwrap()
    };
    let down = named(&plan, &residents, "l0.mlp.down.w");
    assert_eq!(bytes_of(down, Part::Codes), stored("l0.mlp.down.w", StoredPart::Blocks));
    assert_eq!(bytes_of(down, Part::Scales), stored("l0.mlp.down.w", StoredPart::Scales));
    assert_eq!(bytes_of(named(&plan, &residents, "embed.w"), Part::Data), stored("embed.w", StoredPart::Values));
    let table = bytes_of(named(&plan, &residents, "rope_table"), Part::Data);
    assert_eq!(table.len(), 64 * 64 * 4);
}

#[test]
fn plans_share_what_is_loaded() {
    let source = random();
    let (mut residents, first) = (Residents::default(), fake(1 << 16));
    let plans = [plan_of(Head::Greedy, 2, Some(PACKED)), plan_of(Head::Sample, 4, Some(PACKED))];
    load(&plans[0], &source, &mut residents, &first).unwrap();
    let never = |_| -> Result<Fake, ExecError> { panic!("everything is there") };
    residents.load(&plans[1], &source, never, &|_, _| {}).unwrap();
    let [a, b] = plans.each_ref().map(|p| residents.of(p));
    assert_eq!(a.len(), used(&plans[0]).len());
    let addresses = |m: &BTreeMap<Value, Resident<Memory>>| -> BTreeSet<u64> {
        m.values().flat_map(|r| r.parts.iter().map(|p| Fake::address(&p.1))).collect()
    };
    assert_eq!(addresses(&a), addresses(&b));
}

#[test]
fn progress_ends_at_the_total() {
    let source = random();
    let plan = plan_of(Head::Greedy, 1, Some(PACKED));
    let seen = Mutex::new(Vec::new());
    let mut residents = Residents::<Memory>::default();
    residents
        .load(&plan, &source, |_| Ok(fake(4096)), &|done, total| seen.lock().unwrap().push((done, total)))
        .unwrap();
    let seen = seen.into_inner().unwrap();
    let total: u64 = source.weights().iter().map(WeightSpec::bytes).sum();
    assert_eq!(seen[0], (0, total));
    assert!(seen.contains(&(total, total)) && seen.iter().all(|s| s.0 <= total && s.1 == total));
}

#[test]
fn scales_outside_the_fast_range_take_the_general_layout() {
    let source = Scaled { inner: random(), weight: "l0.mlp.down.w", at: 5, scale: 200 };
    let plan = plan_of(Head::Greedy, 1, Some(PACKED_FAST));
    let mut residents = Residents::default();
    load(&plan, &source, &mut residents, &fake(1 << 16)).unwrap();
    assert_eq!(named(&plan, &residents, "l0.mlp.down.w").layout.as_deref(), Some(PACKED));
    assert_eq!(named(&plan, &residents, "l1.mlp.down.w").layout.as_deref(), Some(PACKED_FAST));
    let layout = Mxfp4Layout::new(3, 96, 32, RowOrder::Identity, ScaleMode::General).unwrap();
    let packed = bytes_of(named(&plan, &residents, "l0.mlp.down.w"), Part::Data);
    assert_eq!(layout.element(&packed, 0, 5, 0).unwrap().1, 200);
}

#[test]
fn a_nan_scale_is_refused_in_both_forms() {
    for layout in [None, Some(PACKED), Some(PACKED_FAST)] {
        let source = Scaled { inner: random(), weight: "l1.mlp.gate_up.w", at: 3 * 64 + 4, scale: 255 };
        let plan = plan_of(Head::Greedy, 1, layout);
        let line = load(&plan, &source, &mut Residents::default(), &fake(100)).unwrap_err().to_string();
        let place = "tensor l1.mlp.gate_up.w: expert 1, row 1, block 1: found scale byte 255";
        assert!(line.starts_with(place), "{line}");
    }
}

#[test]
fn a_module_of_another_model_is_refused() {
    let mut other = config();
    other.vocab = 51;
    let source = RandomWeights::new(ModelConfig::GptOss(other), 0);
    let plan = plan_of(Head::Greedy, 1, Some(PACKED));
    let line = load(&plan, &source, &mut Residents::default(), &fake(100)).unwrap_err().to_string();
    assert!(
        line.starts_with("weight `embed.w` is bf16[51, 96] in the checkpoint, bf16[50, 96] in the module"),
        "{line}"
    );
    let plan = plan_of(Head::Greedy, 1, Some("nonsense"));
    let line = load(&plan, &random(), &mut Residents::default(), &fake(100)).unwrap_err().to_string();
    assert!(line.contains("cannot be put into layout nonsense"), "{line}");
}

#[test]
fn sizes_of_the_20b_layers() {
    let plan = plan_with(1, Head::Greedy, &Options { mxfp4_layout: Some(PACKED.into()), ..Options::default() });
    let sizes = resident_bytes(&plan).unwrap();
    let gate_up = sizes.iter().find(|(k, _)| k.contains("l0.mlp.gate_up.w")).unwrap().1;
    assert_eq!(*gate_up, 32 * 90 * 45 * 2176);
    assert_eq!(sizes.keys().filter(|k| k.starts_with("relayout")).count(), 4);
    assert_eq!(sizes.iter().find(|(k, _)| k.starts_with("embed.w")).unwrap().1, &(201_088 * 2880 * 2));
}
