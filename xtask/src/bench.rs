//! `cargo xtask bench`: runs the barometer where its figures mean something.

mod floor;
mod lines;
mod peer;
mod results;

use crate::dist::Dist;
use crate::lab::{Lab, Options, Stream};
use crate::service::install_in_lab;
use anyhow::{Result, ensure};
use clap::Subcommand;
use floor::Programs;
use lines::Lines;
use results::Results;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus};

/// Arguments.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Bare guests on this machine's own KVM: what the VM process itself costs, in real time
    Floor {
        /// Only scenarios with one of these names
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
    },
    /// What the bars need, one line per bar; fails if one is missed
    Bars {
        /// Judge the records of this folder instead of measuring
        #[arg(long)]
        results: Option<PathBuf>,
    },
    /// Everything that this machine and its lab can measure, and the report; fails if a bar is missed
    All,
    /// The report of records that there are
    Report {
        /// The folder with the records
        #[arg(long)]
        results: PathBuf,
    },
    /// Cold boot, first exec and bulk transfer, in the lab under instruction counting
    Boot {
        /// Boots to measure
        #[arg(long, default_value_t = 3)]
        samples: u32,
        /// Leave the peer (QEMU microvm with vhost-vsock) out
        #[arg(long)]
        no_peer: bool,
        /// Exit with success although a bar is missed
        #[arg(long)]
        report_only: bool,
    },
    /// Clones of a saved VM: claim, first exec, memory; in the lab under instruction counting
    Clone {
        /// Clones to measure
        #[arg(long, default_value_t = 5)]
        samples: u32,
        /// Clones to hold at once, for the memory they take; 0 for none
        #[arg(long, default_value_t = 50)]
        density: u32,
    },
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    match &args.what {
        What::Floor { only } => {
            let programs = Programs::ensure()?;
            let results = Results::create()?;
            programs.floor(&results, only)?;
            programs.bars(&results.dir)
        }
        What::All => all(),
        What::Report { results } => Programs::ensure()?.report(results),
        What::Bars { results: Some(dir) } => Programs::ensure()?.bars(dir),
        What::Bars { results: None } => {
            let programs = Programs::ensure()?;
            let results = Results::create()?;
            programs.floor(&results, &[])?;
            programs.bars(&results.dir)
        }
        &What::Boot {
            samples,
            no_peer,
            report_only,
        } => boot(samples, !no_peer, report_only),
        &What::Clone { samples, density } => {
            let Bench { lab, mut argv, .. } = Bench::prepare("clone", samples)?;
            argv.extend(["--density".into(), density.to_string()]);
            barometer(&lab, &argv, None)
        }
    }
}

/// How many clones stand at once for the report.
const DENSITY: &str = "100";

fn all() -> Result<ExitCode> {
    let programs = Programs::ensure()?;
    let results = Results::create()?;
    programs.floor(&results, &[])?;
    let Bench {
        lab,
        programs: installed,
        mut argv,
    } = Bench::prepare("clone", 10)?;
    argv.extend(["--density".into(), DENSITY.into()]);
    let mut failed = Vec::new();
    let mut measure = |name: &str, argv: &[String]| -> Result<()> {
        let file = results.dir.join(name).with_extension("jsonl");
        if barometer(&lab, argv, Some(file))? != ExitCode::SUCCESS {
            failed.push(name.to_owned());
        }
        Ok(())
    };
    measure("lab-clone", &argv)?;
    let boot = argv.iter_mut().find(|word| *word == "clone");
    boot.into_iter().for_each(|word| *word = "boot".into());
    argv.truncate(argv.len() - 2);
    let peer = peer::install(&lab, &installed)?.display().to_string();
    argv.extend(["--report-only".into(), "--qemu".into(), peer]);
    measure("lab-boot", &argv)?;
    programs.report(&results.dir)?;
    let bars = programs.bars(&results.dir)?;
    ensure!(failed.is_empty(), "These failed: {}", failed.join(", "));
    Ok(bars)
}

/// A lab that counts instructions, with the programs in it.
struct Bench {
    lab: Lab,
    programs: PathBuf,
    /// The barometer's command line so far.
    argv: Vec<String>,
}

impl Bench {
    fn prepare(what: &str, samples: u32) -> Result<Self> {
        let dist = Dist::ensure()?;
        eprintln!("starting the lab that counts instructions");
        let lab = Lab::ensure(&Options::counting())?;
        let programs = install_in_lab(&lab, &dist)?;
        lab.warm(&dist.image)?;
        let barometer = programs.join("barometer").display().to_string();
        let mut argv = vec![barometer, what.into(), "--icount".into(), "--dist".into()];
        argv.push(programs.display().to_string());
        argv.extend(["--samples".into(), samples.to_string()]);
        Ok(Self {
            lab,
            programs,
            argv,
        })
    }
}

fn boot(samples: u32, peer: bool, report_only: bool) -> Result<ExitCode> {
    let Bench {
        lab,
        programs,
        mut argv,
    } = Bench::prepare("boot", samples)?;
    if report_only {
        argv.push("--report-only".into());
    }
    if peer {
        let program = peer::install(&lab, &programs)?;
        argv.extend(["--qemu".into(), program.display().to_string()]);
    }
    barometer(&lab, &argv, None)
}

/// Runs the barometer with its output passed through, but for records, which go to a file if there is
/// one; its exit status.
fn barometer(lab: &Lab, argv: &[String], records: Option<PathBuf>) -> Result<ExitCode> {
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    let mut lines = Lines::new(records);
    let status = lab.spawn(&argv)?.wait(|stream, bytes| {
        match stream {
            Stream::Stdout => lines.take(bytes)?,
            Stream::Stderr => std::io::stderr().write_all(bytes)?,
        }
        Ok(())
    })?;
    Ok(exit_code(status))
}

/// A program's exit status as our own; a signal as a shell shows it.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status
        .code()
        .or(status.signal().map(|s| 128 + s))
        .unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
