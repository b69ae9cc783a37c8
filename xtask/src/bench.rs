//! `cargo xtask bench`: runs the benchmark suite where its figures mean something.

mod firecracker;
mod lab;
mod lines;
mod peer;
mod results;
mod status;
mod suite;

use crate::lab::LabOptions;
use anyhow::{Result, ensure};
use clap::Subcommand;
use lab::{BenchPart, LabBench};
use results::ResultsFolder;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;
use suite::{RecordReader, SuitePrograms};

/// Arguments.
#[derive(clap::Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    what: BenchCommand,
}

#[derive(Subcommand)]
enum BenchCommand {
    /// Bare guests on this machine's own KVM: what the VM process itself costs, in real time
    #[command(alias = "floor")]
    Baseline {
        /// Only scenarios with one of these names
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
    },
    /// The whole system and QEMU's microvm beside it, in the lab: counted, and ratios of real time
    Lab {
        /// Only these parts: clone, versus, boot, net, or groups of scenarios (create, burst,
        /// branch, idle, density, cycles)
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
        /// Only where the clock counts instructions
        #[arg(long, conflicts_with = "wall")]
        counted: bool,
        /// Only where it does not
        #[arg(long)]
        wall: bool,
        #[command(flatten)]
        peers: PeerPrograms,
    },
    /// What the targets need, one line per target; fails if one is missed or its samples failed
    #[command(alias = "bars")]
    Targets {
        /// Judge the records of this folder instead of measuring
        #[arg(long)]
        results: Option<PathBuf>,
    },
    /// Two sets of records, figure by figure: names what got worse and better, and fails if
    /// something that is counted did
    Compare {
        /// A folder of records (such as `bench/latest`), or one file of them
        old: PathBuf,
        /// What is held against it
        new: PathBuf,
        /// So many per cent worse is still good
        #[arg(long, default_value = "2", value_name = "PERCENT")]
        limit: String,
    },
    /// Everything that this machine and its lab can measure, and the report; fails if a target is
    /// missed
    All {
        #[command(flatten)]
        peers: PeerPrograms,
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
        /// Exit with success although a target is missed
        #[arg(long)]
        report_only: bool,
    },
    /// Bytes and round trips over a guest's network, beside QEMU's user network and Firecracker
    /// with a TAP; in the lab under instruction counting
    Net {
        #[command(flatten)]
        peers: PeerPrograms,
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
struct PeerPrograms {
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

impl PeerPrograms {
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

/// Without it the bench goes on, and the targets that are a part of it are not measured.
fn fetched() -> Option<PathBuf> {
    let fetched = firecracker::program();
    fetched
        .inspect_err(|error| eprintln!("bench: Firecracker is left out: {error:#}"))
        .ok()
}

pub(crate) fn run(args: &BenchArgs) -> Result<ExitCode> {
    match &args.what {
        BenchCommand::Baseline { only } => {
            let programs = SuitePrograms::ensure()?;
            let results = ResultsFolder::create()?;
            programs.baseline(&results, only)?;
            programs.reader.targets(&results.dir)
        }
        BenchCommand::Lab {
            only,
            counted,
            wall,
            peers,
        } => some(only, (!wall, !counted), peers),
        BenchCommand::Net { peers } => some(&["net".into()], (true, false), peers),
        BenchCommand::All { peers } => all(peers),
        BenchCommand::Targets { results: None } => all(&PeerPrograms::default()),
        BenchCommand::Report { results } => RecordReader::ensure()?.report(results),
        BenchCommand::Targets { results: Some(dir) } => RecordReader::ensure()?.targets(dir),
        BenchCommand::Compare { old, new, limit } => {
            RecordReader::ensure()?.compare(old, new, limit)
        }
        &BenchCommand::Boot {
            samples,
            no_peer,
            report_only,
        } => {
            let samples = samples.to_string();
            let mut part = BenchPart::new("boot", &["boot", "--samples", &samples]);
            if report_only {
                part.argv.push("--report-only".into());
            }
            part.peer = !no_peer;
            LabBench::new(LabOptions::counting())?.part(&part, None)
        }
        &BenchCommand::Clone { samples, density } => {
            let (samples, density) = (samples.to_string(), density.to_string());
            let argv = ["clone", "--samples", &samples, "--density", &density];
            LabBench::new(LabOptions::counting())?.part(&BenchPart::new("clone", &argv), None)
        }
    }
}

/// These parts in the labs, the report and the targets.
fn some(only: &[String], passes: (bool, bool), peers: &PeerPrograms) -> Result<ExitCode> {
    let programs = SuitePrograms::ensure()?;
    let results = ResultsFolder::create()?;
    let failed = in_labs(&results, only, passes, peers)?;
    programs.reader.report(&results.dir)?;
    programs.reader.targets(&results.dir)?;
    Ok(if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Everything, the report and the targets.
fn all(peers: &PeerPrograms) -> Result<ExitCode> {
    let begin = Instant::now();
    let programs = SuitePrograms::ensure()?;
    let results = ResultsFolder::create()?;
    let mut failed = Vec::new();
    if !Path::new("/dev/kvm").exists() {
        eprintln!("baseline: not measured: this machine has no /dev/kvm");
    } else if programs.baseline(&results, &[])? != ExitCode::SUCCESS {
        failed.push("baseline".into());
    }
    failed.extend(in_labs(&results, &[], (true, true), peers)?);
    programs.reader.report(&results.dir)?;
    let targets = programs.reader.targets(&results.dir)?;
    eprintln!("bench: {:.0} minutes", begin.elapsed().as_secs_f64() / 60.0);
    ensure!(failed.is_empty(), "These failed: {}", failed.join(", "));
    Ok(targets)
}

/// The groups of the lab's scenarios that have rounds where the clock counts.
const COUNTED: [&str; 4] = ["create", "burst", "branch", "idle"];
/// And where it does not.
const WALL: [&str; 5] = ["create", "burst", "branch", "density", "cycles"];

/// Measures in the counting lab and then in an ordinary one, if that is wanted; the names of parts
/// that failed.
fn in_labs(
    results: &ResultsFolder,
    only: &[String],
    (counted, wall): (bool, bool),
    peers: &PeerPrograms,
) -> Result<Vec<String>> {
    let wanted = |name: &str| only.is_empty() || only.iter().any(|o| o == name);
    let mut passes = Vec::new();
    if counted {
        let beside_all = |part: BenchPart| BenchPart {
            files: if wanted(&part.name) {
                peers.files()
            } else {
                Vec::new()
            },
            ..part.beside_peer()
        };
        let mut parts = vec![
            BenchPart::new("clone", &["clone", "--samples", "10", "--density", "50"]),
            beside_all(BenchPart::new("versus", &["versus", "--samples", "5"])),
            beside_all(BenchPart::new("net", &["net", "--samples", "3"])),
            BenchPart::new("boot", &["boot", "--samples", "3", "--report-only"]).beside_peer(),
        ];
        parts.extend(COUNTED.map(|group| BenchPart::new(group, &["service", "--only", group])));
        passes.push((LabOptions::counting(), "lab", parts));
    }
    if wall {
        let parts = WALL.map(|group| BenchPart::new(group, &["service", "--only", group]));
        let options = LabOptions {
            name: "bench".into(),
            ..LabOptions::default()
        };
        passes.push((options, "wall", parts.into()));
    }
    let mut failed = Vec::new();
    for (options, pass, parts) in passes {
        let mut bench = LabBench::new(options)?;
        for mut part in parts.into_iter().filter(|part| wanted(&part.name)) {
            part.name = format!("{pass}-{}", part.name);
            match bench.part(&part, Some(results)) {
                Ok(status) if status == ExitCode::SUCCESS => {}
                Ok(_) => failed.push(part.name),
                Err(error) => {
                    eprintln!("{error:#}");
                    results.note(&format!("{error:#}").replace('\n', " | "))?;
                    failed.push(part.name);
                }
            }
        }
        if !bench.again.is_empty() {
            eprintln!(
                "bench: run again in a fresh lab: {}",
                bench.again.join(", ")
            );
        }
        bench.stop()?;
    }
    Ok(failed)
}
