//! The barometer in the lab, part by part: a lab that dies costs one part, which is tried again in
//! another one.
//!
//! QEMU's emulation of nested virtualization kills a guest now and then (a sample that failed), and
//! seldom the lab itself.

use super::lines::Lines;
use super::peer;
use super::results::Results;
use crate::dist::Dist;
use crate::lab::{Lab, Options, Stream};
use crate::service::install_whole_in_lab;
use anyhow::{Context, Result, bail};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::time::{Duration, Instant};

/// A lab that says nothing for so long has died, or its barometer has.
const SILENCE: Duration = Duration::from_secs(200);
/// How often a part is tried.
const TRIES: u32 = 2;

/// One run of the barometer in a lab.
#[derive(Clone, Debug)]
pub(super) struct Part {
    /// The name of its records.
    pub(super) name: String,
    /// The barometer's arguments; where the programs are is added.
    pub(super) argv: Vec<String>,
    /// Whether QEMU is measured beside.
    pub(super) peer: bool,
    /// Files of this machine that the lab gets, as values of these options.
    pub(super) files: Vec<(&'static str, PathBuf)>,
}

impl Part {
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
pub(super) struct Bench {
    options: Options,
    dist: Dist,
    up: Option<Up>,
}

/// A lab that runs, with the programs in it.
struct Up {
    lab: Lab,
    programs: PathBuf,
    peer: Option<PathBuf>,
}

impl Bench {
    /// In the lab of these options.
    pub(super) fn new(options: Options) -> Result<Self> {
        Ok(Self {
            options,
            dist: Dist::ensure()?,
            up: None,
        })
    }

    fn up(&mut self) -> Result<&mut Up> {
        if self.up.is_none() {
            eprintln!("the lab {:?} is started", self.options.name);
            let lab = Lab::ensure(&self.options)?;
            let programs = install_whole_in_lab(&lab, &self.dist)?;
            self.up = Some(Up {
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

    /// Measures a part; its records go into `results`, if there are any, and replace those of a try
    /// before. The barometer's exit status, or that there was no lab that lived.
    pub(super) fn part(&mut self, part: &Part, results: Option<&Results>) -> Result<ExitCode> {
        let begin = Instant::now();
        let mut tries = 1;
        let status = loop {
            match self.once(part, results) {
                Ok(status) => break status,
                Err(error) if tries < TRIES => {
                    eprintln!(
                        "{}: the lab failed, once more in another: {error:#}",
                        part.name
                    );
                    tries += 1;
                    self.stop()?;
                }
                Err(error) => {
                    self.stop()?;
                    return Err(
                        error.context(format!("{}: the lab failed {TRIES} times", part.name))
                    );
                }
            }
        };
        eprintln!("{}: {:.0} s", part.name, begin.elapsed().as_secs_f64());
        Ok(super::exit_code(status))
    }

    fn once(&mut self, part: &Part, results: Option<&Results>) -> Result<ExitStatus> {
        let commit = results.map_or("unknown", |r| r.commit.as_str()).to_owned();
        let icount = self.options.icount;
        let up = self.up()?;
        let mut argv = vec![up.programs.join("barometer").display().to_string()];
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
        let lines = Lines::new(results.map(|r| (r.dir.as_path(), part.name.as_str())));
        barometer(&up.lab, &argv, lines)
    }
}

impl Up {
    fn peer(&mut self) -> Result<&Path> {
        if self.peer.is_none() {
            self.peer = Some(peer::install(&self.lab, &self.programs)?);
        }
        self.peer.as_deref().context("No peer")
    }
}

/// Runs the barometer with its output passed through, but for what goes to files.
fn barometer(lab: &Lab, argv: &[String], mut lines: Lines) -> Result<ExitStatus> {
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    let running = lab.spawn(&argv)?;
    running.limit_silence(SILENCE)?;
    let status = running.wait(|stream, bytes| {
        match stream {
            Stream::Stdout => lines.take(bytes)?,
            Stream::Stderr => std::io::stderr().write_all(bytes)?,
        }
        Ok(())
    })?;
    if status.code().is_none() {
        bail!("The barometer ended with {status}");
    }
    Ok(status)
}
