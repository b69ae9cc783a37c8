//! What only Intel's virtualization has: the same programs in the lab whose processor is Intel's.
//!
//! The short form is a stage of every run: a template machine on `kvm_intel`, the smoke check, and
//! the registers of AVX-512 over checkpoint, pause, fork and reset. The long form runs the suites
//! of branches, checkpoints, pauses and life cycles; it is run when it is named.

use super::e2e;
use super::runner::tee;
use super::tally::Tally;
use crate::dist::{Dist, target_dir, workspace};
use crate::lab::{self, IntelModel, Lab, LabOptions, free_port};
use crate::sdk::{self, SdkRelease, SdkTarget, TestRound};
use crate::service::{API_KEY, LAB_PORT, RunningService, ServerPlace};
use anyhow::Result;
use std::process::Command;

/// One template, without a warm VM that takes the only processor from the tests.
const CONFIG: &str = "[templates.base]\nimage = \"base.ext4\"\n";
/// Of the lab; ended after each form.
const NAME: &str = "intel-test";

/// The stage of every run.
pub(super) fn short() -> Result<Tally> {
    let model = IntelModel::IceLake;
    in_intel_lab(
        "smoke and registers on kvm_intel",
        model,
        |target, round| {
            let mut smoke = Command::new(sdk::python()?);
            smoke.arg(workspace().join("api/tests/sdk/smoke.py"));
            target.apply(&mut smoke);
            let mut tally = Tally::of_status(tee(&mut smoke)?.0, "smoke.py on kvm_intel");
            e2e::add_register_holder(target)?;
            target.set("HATCHERY_REGISTER_WIDTH", "avx512");
            let registers = ["test_registers.py"];
            tally.add(sdk::pytest(target, &SdkRelease::Pinned, &registers, round)?);
            Ok(tally)
        },
    )
}

/// The stage that is run when it is named.
pub(super) fn long() -> Result<Tally> {
    const SUITES: &[&str] = &[
        "-m",
        "not fault and not leaks",
        "test_branches.py",
        "test_checkpoints.py",
        "test_pause.py",
        "test_lifecycle.py",
    ];
    in_intel_lab(
        "suites on kvm_intel",
        IntelModel::Haswell,
        |target, round| sdk::pytest(target, &SdkRelease::Pinned, SUITES, round),
    )
}

/// Runs `tests` against a server in a fresh lab with this processor.
fn in_intel_lab(
    what: &str,
    model: IntelModel,
    tests: impl Fn(&mut SdkTarget, TestRound) -> Result<Tally>,
) -> Result<Tally> {
    let dist = Dist::ensure()?;
    let log = target_dir().join("test-intel.log");
    // Bochs forwards a port from its start, or not at all.
    let port = free_port()?;
    let options = LabOptions {
        name: NAME.to_owned(),
        forwards: vec![(port, LAB_PORT)],
        ..LabOptions::intel(model)
    };
    lab::stop(NAME)?;
    let choose = || Ok(ServerPlace::Lab(Box::new(Lab::ensure(&options)?)));
    let tally = e2e::in_chosen(what, choose, |place, round| {
        let service = RunningService::start(place, &dist, port, &log, CONFIG, API_KEY)?;
        tests(&mut e2e::target(place, &service.url), round)
    });
    lab::stop(NAME)?;
    Ok(tally)
}
