//! `gossamer inspect` and `gossamer doctor`, and opening a session with its progress shown.

use std::sync::Arc;

use gossamer_codegen_cuda::{cache, nvrtc};

use super::args::{DoctorArgs, InspectArgs};
use super::output::{self, Failure};
use crate::checkpoint::{inspect, resolve};
use crate::cuda::{CudaVersion, Driver, selftest};
use crate::doctor::{Doctor, Inputs, NvrtcInfo};
use crate::session::{self, Hooks, Session, SessionOptions};

/// Opens a session, with the memory plan, warnings and loading shown on stderr.
pub fn open(options: &SessionOptions) -> Result<Session, Failure> {
    let bars = super::bar::Loading::default();
    let hooks =
        Hooks { memory: Some(Arc::new(|plan| note!("{plan}"))), load: Some(Arc::new(move |event| bars.show(event))) };
    let session = session::open_with(options, &hooks)?;
    for note in &session.notes {
        note!("note: {note}");
    }
    Ok(session)
}

pub fn inspect(args: &InspectArgs) -> Result<(), Failure> {
    let mut found = inspect::inspect(&args.model)?;
    let mut damaged = false;
    if args.check {
        if found.folder.is_none() {
            return Err(Failure::Usage(format!(
                "{} is a preset and has no data to --check; name a folder",
                args.model
            )));
        }
        let model = resolve(&args.model, false)?;
        let bar = super::bar::bytes("checking", found.totals.bytes);
        let check = inspect::check(&model.weights, &|n| bar.inc(n))?;
        bar.finish_and_clear();
        damaged = check.has_errors();
        found.check = Some(check);
    }
    match args.json {
        true => output::json(&inspect::render_json(&found))?,
        false => output::text(&inspect::render_text(&found))?,
    }
    match damaged {
        true => Err(Failure::Failed(format!(
            "{}: the data is damaged, see the report; download the files named there again",
            args.model
        ))),
        false => Ok(()),
    }
}

pub fn doctor(args: &DoctorArgs) -> Result<(), Failure> {
    let nvrtc = nvrtc::Nvrtc::load();
    let info = match &nvrtc {
        Ok(n) => {
            let (major, minor) = n.version();
            Ok(NvrtcInfo { version: CudaVersion { major, minor }, path: n.path().to_path_buf() })
        }
        Err(e) => Err(e.to_string()),
    };
    let mut doctor = Doctor::examine(Inputs { nvrtc: info, cache_folder: cache::default_folder() });
    if args.selftest {
        doctor.selftest = Some(run_selftest(nvrtc.ok()).map_err(|e| e.to_string()));
    }
    let failed = matches!(doctor.selftest, Some(Err(_)));
    match args.json {
        true => output::json(&doctor.to_json())?,
        false => output::text(&doctor.to_text())?,
    }
    if failed { Err(Failure::Reported) } else { Ok(()) }
}

fn run_selftest(nvrtc: Option<nvrtc::Nvrtc>) -> Result<crate::cuda::Report, Box<dyn std::error::Error>> {
    let device = Driver::load()?.open(0)?;
    let cubin = match nvrtc {
        Some(n) => Some(n.compile(&nvrtc::Source::new("selftest", crate::cuda::SELFTEST_SOURCE))?.cubin),
        None => None,
    };
    let kernel =
        cubin.as_deref().map(|cubin| crate::cuda::SelftestKernel { cubin, entry: crate::cuda::SELFTEST_ENTRY });
    Ok(selftest(&device, kernel)?)
}
