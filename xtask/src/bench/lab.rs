//! The benchmark suite in the lab, part by part: a lab that dies costs one part, which is tried
//! again in another one.
//!
//! QEMU's emulation of nested virtualization kills a guest now and then (a sample that failed), and
//! seldom the lab itself.

use super::lines::OutputLines;
use super::peer;
use super::results::ResultsFolder;
use super::status::exit_code;
use crate::dist::Dist;
use crate::lab::{Lab, LabOptions, OutputStream};
use crate::service::install_whole_in_lab;
use crate::test::tally::FLAKY;
use anyhow::{Context, Result, bail};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::time::{Duration, Instant};

/// A lab that says nothing for so long, while it had a processor of this machine, has died, or what
/// runs in it has. Where idle time is skipped, a step is a few seconds of its clock and may be
/// minutes of this machine's.
const SILENCE: Duration = Duration::from_secs(400);

/// One run of the suite's program in a lab.
#[derive(Clone, Debug)]
pub(super) struct BenchPart {
    /// The name of its records.
    pub(super) name: String,
    /// The program's arguments; where the programs are is added.
    pub(super) argv: Vec<String>,
    /// Whether QEMU is measured beside.
    pub(super) peer: bool,
    /// Files of this machine that the lab gets, as values of these options.
    pub(super) files: Vec<(&'static str, PathBuf)>,
}

impl BenchPart {
    /// With these arguments.
    pub(super) fn new(name: &str, argv: &[&str]) -> Self {
        Self {
            name: name.into(),
            argv: argv.iter().map(|&word| word.to_owned()).collect(),
            peer: false,
            files: Vec::new(),
        }
    }

    /// With QEMU beside.
    pub(super) fn beside_peer(mut self) -> Self {
        self.peer = true;
        self
    }
}

/// A lab for benchmarks, started when it is needed.
pub(super) struct LabBench {
    options: LabOptions,
    dist: Dist,
    up: Option<BenchLab>,
    /// Parts that were run again in a fresh lab.
    pub(super) again: Vec<String>,
}

/// A lab that runs, with the programs in it.
struct BenchLab {
    lab: Lab,
    programs: PathBuf,
    peer: Option<PathBuf>,
}

impl LabBench {
    /// In the lab of these options.
    pub(super) fn new(options: LabOptions) -> Result<Self> {
        Ok(Self {
            options,
            dist: Dist::ensure()?,
            up: None,
            again: Vec::new(),
        })
    }

    fn up(&mut self) -> Result<&mut BenchLab> {
        if self.up.is_none() {
            eprintln!("the lab {:?} is started", self.options.name);
            let lab = Lab::ensure(&self.options)?;
            let programs = install_whole_in_lab(&lab, &self.dist)?;
            self.up = Some(BenchLab {
                lab,
                programs,
                peer: None,
            });
        }
        self.up.as_mut().context("No lab")
    }

    /// Ends the lab.
    pub(super) fn stop(&mut self) -> Result<()> {
        match self.up.take() {
            Some(up) => up.lab.stop(),
            None => Ok(()),
        }
    }

    /// Ends a lab that has failed, whatever state it is in; the next part gets a fresh one.
    fn give_up(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("the lab that failed could not be stopped either: {error:#}");
        }
    }

    /// Measures a part; its records go into `results`, if there are any, and replace those of a try
    /// before. The program's exit status, or that there was no lab that lived.
    pub(super) fn part(
        &mut self,
        part: &BenchPart,
        results: Option<&ResultsFolder>,
    ) -> Result<ExitCode> {
        let begin = Instant::now();
        let (status, died) = until_it_lives(&part.name, |again| {
            if again {
                self.give_up();
            }
            self.once(part, results)
        });
        if status.is_err() {
            self.give_up();
        }
        let status = status?;
        if let Some(died) = died {
            let died = format!("{died:#}").replace('\n', " | ");
            let note = format!("{}: run again, because its lab failed: {died}", part.name);
            eprintln!("{FLAKY}{note}");
            if let Some(results) = results {
                results.note(&note)?;
            }
            self.again.push(part.name.clone());
        }
        eprintln!("{}: {:.0} s", part.name, begin.elapsed().as_secs_f64());
        Ok(exit_code(status))
    }

    fn once(&mut self, part: &BenchPart, results: Option<&ResultsFolder>) -> Result<ExitStatus> {
        let commit = results.map_or("unknown", |r| r.commit.as_str()).to_owned();
        let icount = self.options.icount;
        let up = self.up()?;
        let mut argv = vec![up.programs.join("hatchery-bench").display().to_string()];
        argv.extend(part.argv.iter().cloned());
        argv.extend(["--dist".into(), up.programs.display().to_string()]);
        if icount {
            argv.push("--icount".into());
        }
        if part.argv.first().is_some_and(|word| word == "service") {
            argv.extend(["--commit".into(), commit]);
        }
        if part.peer {
            argv.extend(["--qemu".into(), up.peer()?.display().to_string()]);
        }
        for (option, file) in &part.files {
            let there = peer::push(&up.lab, file)?.display().to_string();
            argv.extend([(*option).into(), there]);
        }
        let lines = OutputLines::new(results.map(|r| (r.dir.as_path(), part.name.as_str())));
        run_suite(&up.lab, &argv, lines)
    }
}

/// Runs a part, in a fresh lab again when its lab dies; the outcome, and how the first lab died.
fn until_it_lives<T>(
    name: &str,
    mut run: impl FnMut(bool) -> Result<T>,
) -> (Result<T>, Option<anyhow::Error>) {
    let died = match run(false) {
        Ok(done) => return (Ok(done), None),
        Err(error) => error,
    };
    eprintln!("{name}: the lab failed, so it is run again in a fresh one: {died:#}");
    let again = run(true).with_context(|| format!("{name}: the lab failed twice"));
    (again, Some(died))
}

impl BenchLab {
    fn peer(&mut self) -> Result<&Path> {
        if self.peer.is_none() {
            self.peer = Some(peer::install(&self.lab, &self.programs)?);
        }
        self.peer.as_deref().context("No peer")
    }
}

/// Runs the suite's program with its output passed through, but for what goes to files.
fn run_suite(lab: &Lab, argv: &[String], mut lines: OutputLines) -> Result<ExitStatus> {
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    let mut running = lab.spawn(&argv)?;
    running.limit_silence(SILENCE);
    let status = running.wait(|stream, bytes| {
        match stream {
            OutputStream::Stdout => lines.take(bytes)?,
            OutputStream::Stderr => std::io::stderr().write_all(bytes)?,
        }
        Ok(())
    })?;
    if status.code().is_none() {
        bail!("The benchmark suite ended with {status}");
    }
    Ok(status)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_part_whose_lab_dies_is_run_again_in_a_fresh_one_once() {
        let mut fresh = Vec::new();
        let (done, died) = until_it_lives("x", |again| {
            fresh.push(again);
            if fresh.len() < 2 {
                bail!("the lab is silent")
            }
            Ok(7)
        });
        assert_eq!(done.unwrap(), 7);
        assert_eq!(died.unwrap().to_string(), "the lab is silent");
        assert_eq!(fresh, [false, true]);
        let (alive, died) = until_it_lives("x", |_| Ok(7));
        assert!(alive.is_ok_and(|n| n == 7) && died.is_none());
        let mut tries = 0;
        let (dead, _) = until_it_lives::<()>("x", |_| {
            tries += 1;
            bail!("no lab")
        });
        let error = format!("{:#}", dead.unwrap_err());
        assert_eq!(
            (tries, error.as_str()),
            (2, "x: the lab failed twice: no lab")
        );
    }
}
