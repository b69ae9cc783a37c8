//! The stages that need a server: the published SDKs against it, natively and with microVMs.

use super::Tally;
use super::server::{Mortal, free_port};
use crate::dist::{Dist, target_dir};
use crate::lab::Options;
use crate::sdk::{self, Release, Round, Target};
use crate::service::{API_KEY, Place, Service};
use anyhow::Result;
use std::process::Command;

/// The templates that the suites use.
const CONFIG: &str = include_str!("../../../api/tests/sdk/server.toml");
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
    let server = Mortal::start_native()?;
    let mut target = Target::new(&server.url, API_KEY);
    target.set("HATCHERY_NATIVE", "1");
    server.describe(&mut target);
    let mut tally = sdk::pytest(&target, &Release::Pinned, &[], Round::First)?;
    tally.add(sdk::node_tests(&target, &Release::Pinned)?);
    Ok(tally)
}

/// All SDK suites and the README's programs, with microVMs.
pub(super) fn vm() -> Result<Tally> {
    let dist = Dist::ensure()?;
    let mut place = Place::choose(&Options::default())?;
    let log = target_dir().join("test-vm.log");
    let service = Service::start(&mut place, &dist, free_port()?, &log, CONFIG)?;
    let target = target(&place, &service.url);
    let lab = matches!(place, Place::Lab(_));
    let mut tally = Tally::default();
    let mut part =
        |what: &str, run: &dyn Fn(Round) -> Result<Tally>| tally.add(rounds(lab, what, run));
    let python = |release: &Release, marks: &str, round| {
        sdk::pytest(&target, release, &["-m", marks], round)
    };
    part("Python", &|round| {
        python(&Release::Pinned, "not fault and not leaks", round)
    });
    part("JavaScript", &|_| {
        sdk::node_tests(&target, &Release::Pinned)
    });
    part("README", &|_| sdk::snippets(&target));
    part("Python, first API", &|round| {
        python(&Release::FirstApi, "compat", round)
    });
    part("Python, latest", &|round| {
        python(&Release::Latest, "compat", round)
    });
    part("JavaScript, latest", &|_| {
        sdk::node_tests(&target, &Release::Latest)
    });
    drop(service);
    Ok(tally)
}

/// Runs a suite; in the lab, where few tests failed, once more what failed.
fn rounds(lab: bool, what: &str, run: &dyn Fn(Round) -> Result<Tally>) -> Tally {
    let once = |round| {
        let result = run(round);
        result.unwrap_or_else(|error| Tally::fail(format!("{what}: {error:#}")))
    };
    let first = once(Round::First);
    if lab {
        first.or_again(what, || once(Round::Failed))
    } else {
        first
    }
}

/// Faults and leaks: a server of its own, because it is killed.
pub(super) fn fault() -> Result<Tally> {
    let dist = Dist::ensure()?;
    let mut place = Place::choose(&Options::default())?;
    let server = Mortal::start(&mut place, &dist)?;
    let mut target = target(&place, &server.url);
    server.describe(&mut target);
    let lab = matches!(place, Place::Lab(_));
    Ok(rounds(lab, "faults", &|round| {
        sdk::pytest(&target, &Release::Pinned, &["-m", "fault or leaks"], round)
    }))
}

/// One short run of the benchmark command: whether it measures, not what. The bars are judged by
/// the command itself.
pub(super) fn bench() -> Result<Tally> {
    let program = super::program()?;
    let mut command = Command::new(program);
    command.args([
        "bench",
        "boot",
        "--samples",
        "1",
        "--no-peer",
        "--report-only",
    ]);
    let (status, _) = super::tee(&mut command)?;
    Ok(Tally::of_status(status, "cargo xtask bench boot"))
}

fn target(place: &Place, url: &str) -> Target {
    let mut target = Target::new(url, API_KEY);
    if matches!(place, Place::Lab(_)) {
        target
            .set("HATCHERY_TIME_SCALE", LAB_SCALE)
            .set("HATCHERY_BIG_MIB", LAB_BIG_MIB);
    }
    target
}
