//! The stages that need a server: the published SDKs against it, natively and with microVMs.

use super::rerun::{self, PartRun};
use super::runner::{program, tee};
use super::server::{MortalServer, OTHER_KEY};
use super::tally::{FLAKY, Tally};
use crate::dist::{Dist, cargo, target_dir};
use crate::lab::{self, LabOptions, free_port};
use crate::sdk::{self, SdkRelease, SdkTarget, TestRound};
use crate::service::{API_KEY, RunningService, ServerPlace};
use anyhow::Result;
use std::process::Command;

/// The templates that the suites use.
const CONFIG: &str = include_str!("../../../api/tests/sdk/server.toml");
/// The lab of the faults, beside that of the other suites.
const FAULT_LAB: &str = "fault";
/// That of the other SDKs.
const SDK_LAB: &str = "sdk";
/// How much more patience the tests need in the lab.
const LAB_SCALE: &str = "10";
/// The large file of the suites in the lab, MiB; the README's programs move 100 MiB all the same.
const LAB_BIG_MIB: &str = "16";

/// SDK suites with the agent as an ordinary process, faults and leaks among them: what they show of
/// the service needs no virtual machine.
pub(super) fn native() -> Result<Tally> {
    if !rustix::process::geteuid().is_root() {
        return Ok(Tally::skip(
            "native: only root can give the agent a user and a home of its own",
        ));
    }
    let server = MortalServer::start_native()?;
    let mut target = SdkTarget::new("native", &server.url, API_KEY);
    target.set("HATCHERY_NATIVE", "1");
    target.set("HATCHERY_OTHER_KEY", OTHER_KEY);
    server.describe(&mut target);
    let mut tally = sdk::pytest(&target, &SdkRelease::Pinned, &[], TestRound::First)?;
    tally.add(sdk::node_tests(&target, &SdkRelease::Pinned)?);
    Ok(tally)
}

/// A part of the stages with microVMs: its name, and what it runs.
type SuitePart = (&'static str, fn(&mut SdkTarget, TestRound) -> Result<Tally>);

/// The Python suite, with microVMs.
pub(super) fn vm() -> Result<Tally> {
    const PARTS: &[SuitePart] = &[("Python", |target, round| {
        add_register_holder(target)?;
        let ordinary = ["-m", "not fault and not leaks"];
        sdk::pytest(target, &SdkRelease::Pinned, &ordinary, round)
    })];
    in_microvms("vm", &LabOptions::default(), PARTS)
}

/// What else of SDKs and the README's programs there is, with microVMs: in a lab of its own.
pub(super) fn sdk() -> Result<Tally> {
    const PARTS: &[SuitePart] = &[
        ("JavaScript", |target, _| {
            sdk::node_tests(target, &SdkRelease::Pinned)
        }),
        ("README", |target, _| sdk::snippets(target)),
        ("Python, first API", |target, round| {
            sdk::pytest(target, &SdkRelease::FirstApi, &["-m", "compat"], round)
        }),
        ("Python, latest", |target, round| {
            sdk::pytest(target, &SdkRelease::Latest, &["-m", "compat"], round)
        }),
        ("JavaScript, latest", |target, _| {
            sdk::node_tests(target, &SdkRelease::Latest)
        }),
    ];
    let options = LabOptions {
        name: SDK_LAB.to_owned(),
        ..LabOptions::default()
    };
    let tally = in_microvms("sdk", &options, PARTS);
    lab::stop(SDK_LAB)?;
    tally
}

/// Runs the parts of a stage, each with a server of its own.
fn in_microvms(stage: &str, options: &LabOptions, parts: &[SuitePart]) -> Result<Tally> {
    let dist = Dist::ensure()?;
    let log = target_dir().join(format!("test-{stage}.log"));
    let mut tally = Tally::default();
    for (what, run) in parts {
        let choose = || ServerPlace::choose(options);
        tally.add(in_chosen(what, choose, |place, round| {
            let mut service =
                RunningService::start(place, &dist, free_port()?, &log, CONFIG, API_KEY)?;
            let mut tally = run(&mut target(place, &service.url), round)?;
            if service.ended()? {
                tally.add(Tally::fail(format!("{what}: the server ended by itself")));
            }
            Ok(tally)
        }));
    }
    Ok(tally)
}

/// Faults and leaks: a server of its own, because it is killed.
pub(super) fn fault() -> Result<Tally> {
    let dist = Dist::ensure()?;
    let options = LabOptions {
        name: FAULT_LAB.to_owned(),
        ..LabOptions::default()
    };
    let choose = || ServerPlace::choose(&options);
    let tally = in_chosen("faults", choose, |place, round| {
        let server = MortalServer::start(place, &dist)?;
        let mut target = target(place, &server.url);
        server.describe(&mut target);
        sdk::pytest(
            &target,
            &SdkRelease::Pinned,
            &["-m", "fault or leaks"],
            round,
        )
    });
    lab::stop(FAULT_LAB)?;
    Ok(tally)
}

/// Runs a part in the place that `choose` gives, which is asked again for a second run; see
/// [`rerun::twice`] for what happens if that is a lab.
pub(super) fn in_chosen(
    what: &str,
    choose: impl Fn() -> Result<ServerPlace>,
    run: impl Fn(&mut ServerPlace, TestRound) -> Result<Tally>,
) -> Tally {
    rerun::twice(what, |round| match choose() {
        Ok(mut place) => {
            let tally = run(&mut place, round);
            let tally = tally.unwrap_or_else(|error| Tally::fail(format!("{what}: {error:#}")));
            let death = if tally.failed > 0 {
                place.death()
            } else {
                None
            };
            PartRun {
                tally,
                in_lab: matches!(place, ServerPlace::Lab(_)),
                death,
            }
        }
        Err(error) => PartRun::without_a_lab(format!("{error:#}")),
    })
}

/// One short run of the benchmark command: whether it measures, not what. The targets are judged by
/// the command itself.
pub(super) fn bench() -> Result<Tally> {
    let mut command = Command::new(program()?);
    command.args([
        "bench",
        "boot",
        "--samples",
        "1",
        "--no-peer",
        "--report-only",
    ]);
    let (status, text) = tee(&mut command)?;
    let mut tally = Tally::of_status(status, "cargo xtask bench boot");
    let again = text.lines().filter(|line| line.starts_with(FLAKY));
    tally.notes.extend(again.map(str::to_owned));
    Ok(tally)
}

/// Builds what holds values in registers, for the suites that ask for it.
pub(super) fn add_register_holder(target: &mut SdkTarget) -> Result<()> {
    cargo(&["--release", "-p", "register-holder"])?;
    let holder = target_dir().join("release/register-holder");
    target.set("HATCHERY_REGISTER_HOLDER", holder.display().to_string());
    Ok(())
}

/// The suites' settings for a server at `url`.
pub(super) fn target(place: &ServerPlace, url: &str) -> SdkTarget {
    let mut target = SdkTarget::new(place.name(), url, API_KEY);
    if matches!(place, ServerPlace::Lab(_)) {
        target
            .set("HATCHERY_TIME_SCALE", LAB_SCALE)
            .set("HATCHERY_BIG_MIB", LAB_BIG_MIB)
            .set("HATCHERY_WORLD", lab::THIS_MACHINE);
    }
    target
}
