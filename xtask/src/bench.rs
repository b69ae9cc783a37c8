//! `cargo xtask bench`: runs the barometer where its figures mean something.

mod firecracker;
mod floor;
mod lab;
mod lines;
mod peer;
mod results;

use crate::lab::Options;
use anyhow::{Result, ensure};
use clap::Subcommand;
use floor::{Programs, Reader};
use lab::{Bench, Part};
use results::Results;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus};
use std::time::Instant;

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
    /// The whole system and QEMU's microvm beside it, in the lab: counted, and ratios of real time
    Lab {
        /// Only these parts: clone, versus, boot, or groups of scenarios (create, burst, branch, idle, density,
        /// cycles)
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
        /// Only where the clock counts instructions
        #[arg(long, conflicts_with = "wall")]
        counted: bool,
        /// Only where it does not
        #[arg(long)]
        wall: bool,
        #[command(flatten)]
        peers: Peers,
    },
    /// What the bars need, one line per bar; fails if one is missed
    Bars {
        /// Judge the records of this folder instead of measuring
        #[arg(long)]
        results: Option<PathBuf>,
    },
    /// Two sets of records, figure by figure: names what got worse and better, and fails if something
    /// that is counted did
    Compare {
        /// A folder of records (such as `bench/latest`), or one file of them
        old: PathBuf,
        /// What is held against it
        new: PathBuf,
        /// So many per cent worse is still good
        #[arg(long, default_value = "2", value_name = "PERCENT")]
        limit: String,
    },
    /// Everything that this machine and its lab can measure, and the report; fails if a bar is missed
    All {
        #[command(flatten)]
        peers: Peers,
    },
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

/// Engines to measure beside ours and QEMU, which Debian has.
#[derive(clap::Args, Default)]
struct Peers {
    /// A static Firecracker, any release; v1.12.1 is fetched otherwise
    #[arg(long)]
    firecracker: Option<PathBuf>,
    /// A static Cloud Hypervisor, any release
    #[arg(long, requires = "cloud_hypervisor_kernel")]
    cloud_hypervisor: Option<PathBuf>,
    /// An uncompressed kernel with PCI for it: ours has none
    #[arg(long)]
    cloud_hypervisor_kernel: Option<PathBuf>,
}

impl Peers {
    fn files(&self) -> Vec<(&'static str, PathBuf)> {
        let all = [
            ("--firecracker", self.firecracker.clone().or_else(fetched)),
            ("--cloud-hypervisor", self.cloud_hypervisor.clone()),
            (
                "--cloud-hypervisor-kernel",
                self.cloud_hypervisor_kernel.clone(),
            ),
        ];
        let given = |(option, path): (&'static str, Option<PathBuf>)| Some((option, path?));
        all.into_iter().filter_map(given).collect()
    }
}

/// Without it the bench goes on, and the bars that are a part of it are not measured.
fn fetched() -> Option<PathBuf> {
    let fetched = firecracker::program();
    fetched
        .inspect_err(|error| eprintln!("bench: Firecracker is left out: {error:#}"))
        .ok()
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    match &args.what {
        What::Floor { only } => {
            let programs = Programs::ensure()?;
            let results = Results::create()?;
            programs.floor(&results, only)?;
            programs.reader.bars(&results.dir)
        }
        What::Lab {
            only,
            counted,
            wall,
            peers,
        } => {
            let programs = Programs::ensure()?;
            let results = Results::create()?;
            let failed = in_labs(&results, only, (!wall, !counted), peers)?;
            programs.reader.report(&results.dir)?;
            programs.reader.bars(&results.dir)?;
            Ok(if failed.is_empty() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        }
        What::All { peers } => all(peers),
        What::Bars { results: None } => all(&Peers::default()),
        What::Report { results } => Reader::ensure()?.report(results),
        What::Bars { results: Some(dir) } => Reader::ensure()?.bars(dir),
        What::Compare { old, new, limit } => Reader::ensure()?.compare(old, new, limit),
        &What::Boot {
            samples,
            no_peer,
            report_only,
        } => {
            let samples = samples.to_string();
            let mut part = Part::new("boot", &["boot", "--samples", &samples]);
            if report_only {
                part.argv.push("--report-only".into());
            }
            part.peer = !no_peer;
            Bench::new(Options::counting())?.part(&part, None)
        }
        &What::Clone { samples, density } => {
            let (samples, density) = (samples.to_string(), density.to_string());
            let argv = ["clone", "--samples", &samples, "--density", &density];
            Bench::new(Options::counting())?.part(&Part::new("clone", &argv), None)
        }
    }
}

/// Everything, the report and the bars.
fn all(peers: &Peers) -> Result<ExitCode> {
    let begin = Instant::now();
    let programs = Programs::ensure()?;
    let results = Results::create()?;
    let floor = programs.floor(&results, &[])?;
    let mut failed = in_labs(&results, &[], (true, true), peers)?;
    if floor != ExitCode::SUCCESS {
        failed.push("floor".into());
    }
    programs.reader.report(&results.dir)?;
    let bars = programs.reader.bars(&results.dir)?;
    eprintln!("bench: {:.0} minutes", begin.elapsed().as_secs_f64() / 60.0);
    ensure!(failed.is_empty(), "These failed: {}", failed.join(", "));
    Ok(bars)
}

/// The groups of the lab's scenarios that have rounds where the clock counts.
const COUNTED: [&str; 4] = ["create", "burst", "branch", "idle"];
/// And where it does not.
const WALL: [&str; 5] = ["create", "burst", "branch", "density", "cycles"];

/// Measures in the counting lab and then in an ordinary one, if that is wanted; the names of parts that
/// failed.
fn in_labs(
    results: &Results,
    only: &[String],
    (counted, wall): (bool, bool),
    peers: &Peers,
) -> Result<Vec<String>> {
    let wanted = |name: &str| only.is_empty() || only.iter().any(|o| o == name);
    let mut passes = Vec::new();
    if counted {
        let mut parts = vec![
            Part::new("clone", &["clone", "--samples", "10", "--density", "50"]),
            Part {
                files: if wanted("versus") {
                    peers.files()
                } else {
                    Vec::new()
                },
                ..Part::new("versus", &["versus", "--samples", "5"]).beside_peer()
            },
            Part::new("boot", &["boot", "--samples", "3", "--report-only"]).beside_peer(),
        ];
        parts.extend(COUNTED.map(|group| Part::new(group, &["service", "--only", group])));
        passes.push((Options::counting(), "lab", parts));
    }
    if wall {
        let parts = WALL.map(|group| Part::new(group, &["service", "--only", group]));
        let options = Options {
            name: "bench".into(),
            ..Options::default()
        };
        passes.push((options, "wall", parts.into()));
    }
    let mut failed = Vec::new();
    for (options, pass, parts) in passes {
        let mut bench = Bench::new(options)?;
        for mut part in parts.into_iter().filter(|part| wanted(&part.name)) {
            part.name = format!("{pass}-{}", part.name);
            match bench.part(&part, Some(results)) {
                Ok(status) if status == ExitCode::SUCCESS => {}
                Ok(_) => failed.push(part.name),
                Err(error) => {
                    eprintln!("{error:#}");
                    failed.push(part.name);
                }
            }
        }
        bench.stop()?;
    }
    Ok(failed)
}

/// A program's exit status as our own; a signal as a shell shows it.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status
        .code()
        .or(status.signal().map(|s| 128 + s))
        .unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
