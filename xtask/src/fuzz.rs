//! `cargo xtask fuzz`: libFuzzer drives every decoder of bytes that others send or keep.
//!
//! A crate's fuzz targets are in the folder `fuzz` beside it: one program for all of them, and for
//! each a kept corpus, `corpus/<target>/`, that ordinary tests replay. The programs are built by
//! the stable compiler: LLVM's pass that counts edges is asked for by `-Cpasses`, and the crate
//! `libfuzzer-sys` brings libFuzzer itself, in C++.

#![expect(clippy::print_stdout, reason = "its output is what it is for")]

use crate::deps;
use crate::dist::{target_dir, workspace};
use anyhow::{Context, Result, bail};
use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;

/// Packages with fuzz targets, and their folders.
const PACKAGES: &[(&str, &str)] = &[
    ("snapshot-fuzz", "snapshot/fuzz"),
    ("agent-fuzz", "guest-agent/fuzz"),
    ("host-fuzz", "host/fuzz"),
    ("api-fuzz", "api/fuzz"),
];
/// What libFuzzer's `-fsanitize=fuzzer` would ask of a compiler.
const FLAGS: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Clink-dead-code",
];
/// With a target named, proc macros and build scripts are built without these flags.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";
/// Bytes of a corpus, above which it is made as small as its coverage allows.
const MAX_CORPUS: u64 = 200 << 10;
/// An input that takes longer is a finding.
const SLOWEST_S: u32 = 20;
/// Memory that an input may take, MiB.
const MEMORY_MIB: u32 = 2048;

/// Arguments.
#[derive(clap::Args)]
pub(crate) struct FuzzArgs {
    /// Minutes for all targets together
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Run only these targets, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "TARGET")]
    only: Vec<String>,
    /// Targets that are run at the same time; by default as many as there are processors
    #[arg(long)]
    jobs: Option<usize>,
    /// Only run this input, a crash for example, through the one target that `--only` names
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// List the targets and stop
    #[arg(long)]
    list: bool,
}

/// One target.
#[derive(Clone, Debug)]
struct FuzzTarget {
    package: &'static str,
    folder: PathBuf,
    name: String,
}

/// What came of running one.
struct FuzzOutcome {
    executions: u64,
    edges: u64,
    /// Inputs that the corpus has got.
    new: usize,
    crashes: Vec<PathBuf>,
}

/// Builds the targets and runs them.
pub(crate) fn run(args: &FuzzArgs) -> Result<ExitCode> {
    let targets = chosen(&args.only)?;
    if args.list {
        for target in &targets {
            println!("{:<16} {}", target.name, target.folder.display());
        }
        return Ok(ExitCode::SUCCESS);
    }
    build(&targets)?;
    if let Some(input) = &args.input {
        let [target] = &targets[..] else {
            bail!("--input needs one target: say which by --only");
        };
        let status = target.program().arg(input).status()?;
        return Ok(ExitCode::from(u8::from(!status.success())));
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = args.jobs.unwrap_or(cores).clamp(1, targets.len());
    let each = seconds_each(args.minutes, targets.len(), jobs);
    println!(
        "targets: {}, {jobs} at a time, {each} s each",
        targets.len()
    );
    let queue = Mutex::new(VecDeque::from(targets));
    let crashes = Mutex::new(0);
    std::thread::scope(|scope| {
        let work = || -> Result<()> {
            while let Some(target) = lock(&queue).pop_front() {
                let outcome = target.fuzz(each).with_context(|| target.name.clone())?;
                outcome.print(&target)?;
                *lock(&crashes) += outcome.crashes.len();
            }
            Ok(())
        };
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
        let mut ended = workers.into_iter().map(|worker| worker.join());
        ended.try_for_each(|ended| ended.unwrap_or_else(|_| bail!("A worker panicked")))
    })?;
    let crashes = *lock(&crashes);
    if crashes > 0 {
        println!(
            "inputs that were not survived: {crashes}. Move one to the corpus once it is mended: tests replay that"
        );
    }
    Ok(ExitCode::from(u8::from(crashes > 0)))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Seconds for each of `targets`, of which `jobs` run at a time.
fn seconds_each(minutes: f64, targets: usize, jobs: usize) -> u64 {
    let turns = targets.div_ceil(jobs).max(1);
    let all = std::time::Duration::try_from_secs_f64(minutes * 60.0).unwrap_or_default();
    (all.as_secs() / turns as u64).max(1)
}

/// Every target with a corpus, or those of these names.
fn chosen(only: &[String]) -> Result<Vec<FuzzTarget>> {
    let mut targets = Vec::new();
    for (package, folder) in PACKAGES {
        let folder = workspace().join(folder);
        let corpora = folder.join("corpus");
        let mut names =
            names(&corpora).with_context(|| format!("Listing {}", corpora.display()))?;
        names.retain(|name| only.is_empty() || only.contains(name));
        targets.extend(names.into_iter().map(|name| FuzzTarget {
            package,
            folder: folder.clone(),
            name,
        }));
    }
    let unknown = only
        .iter()
        .find(|only| targets.iter().all(|target| target.name != **only));
    match unknown {
        Some(name) => bail!("There is no target {name:?}: `cargo xtask fuzz --list` names them"),
        None => Ok(targets),
    }
}

/// Names of what is in a folder.
fn names(folder: &Path) -> std::io::Result<BTreeSet<String>> {
    fs::read_dir(folder)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

fn build_dir() -> PathBuf {
    target_dir().join("fuzz")
}

fn build(targets: &[FuzzTarget]) -> Result<()> {
    deps::ensure(deps::TO_BUILD)?;
    deps::ensure(&["g++"])?;
    let packages: BTreeSet<_> = targets.iter().map(|target| target.package).collect();
    // One by one: features of one must not show in another.
    for package in packages {
        let status = Command::new(env!("CARGO"))
            .args(["build", "--profile", "fuzz", "--target", PLATFORM])
            .args(["--features", "libfuzzer", "-p", package, "--target-dir"])
            .arg(build_dir())
            .current_dir(workspace())
            .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"))
            .status()
            .context("Running cargo")?;
        if !status.success() {
            bail!("The fuzz targets of {package} do not build");
        }
    }
    Ok(())
}

impl FuzzTarget {
    /// The program, at a low priority.
    fn program(&self) -> Command {
        let built = build_dir().join(PLATFORM).join("fuzz").join(self.package);
        let mut command = Command::new("nice");
        command
            .args(["-n", "10"])
            .arg(built)
            .env("HATCHERY_FUZZ_TARGET", &self.name)
            .arg(format!("-timeout={SLOWEST_S}"))
            .arg(format!("-rss_limit_mb={MEMORY_MIB}"));
        command
    }

    fn corpus(&self) -> PathBuf {
        self.folder.join("corpus").join(&self.name)
    }

    /// Runs it for so long, and keeps what it finds.
    fn fuzz(&self, seconds: u64) -> Result<FuzzOutcome> {
        let work = build_dir().join("work").join(self.package).join(&self.name);
        let _ = fs::remove_dir_all(&work);
        let found = work.join("found");
        let crashes = self.folder.join("crashes").join(&self.name);
        for folder in [&found, &crashes] {
            fs::create_dir_all(folder).with_context(|| format!("Making {}", folder.display()))?;
        }
        let known = names(&crashes)?;
        let log = work.join("log");
        let output = fs::File::create(&log)?;
        self.program()
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-artifact_prefix={}/", crashes.display()))
            .arg("-print_final_stats=1")
            .args([&found, &self.corpus()])
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .status()
            .context("Running nice")?;
        let new = self.keep(&found, &work)?;
        let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
        let (executions, edges) = figures(&text);
        let mut crashed: Vec<_> = names(&crashes)?.difference(&known).cloned().collect();
        // Of an input that was only slow there is a note, but it was survived.
        crashed.retain(|name| !name.starts_with("slow-unit"));
        let crashed: Vec<_> = crashed.iter().map(|name| crashes.join(name)).collect();
        if executions == 0 && crashed.is_empty() {
            bail!("It does not run: see {}", log.display());
        }
        // Neither is left behind without a crash.
        let _ = fs::remove_dir(&crashes);
        let _ = crashes.parent().map(fs::remove_dir);
        Ok(FuzzOutcome {
            executions,
            edges,
            new,
            crashes: crashed,
        })
    }

    /// Adds to the corpus what brings it coverage; says how many inputs that were.
    fn keep(&self, found: &Path, work: &Path) -> Result<usize> {
        let (corpus, log) = (self.corpus(), work.join("merge-log"));
        let before = names(&corpus)?;
        self.merge(&corpus, found, &log)?;
        if size(&corpus)? > MAX_CORPUS {
            let small = work.join("small");
            fs::create_dir_all(&small)?;
            self.merge(&small, &corpus, &log)?;
            for name in names(&corpus)?.difference(&names(&small)?) {
                fs::remove_file(corpus.join(name))?;
            }
        }
        Ok(names(&corpus)?.difference(&before).count())
    }

    /// Copies the fewest inputs of `from` to `into` that bring it all of the edges. How often an
    /// edge is taken does not count: a kept corpus is read by people.
    fn merge(&self, into: &Path, from: &Path, log: &Path) -> Result<()> {
        let output = fs::File::create(log)?;
        let status = self
            .program()
            .args(["-set_cover_merge=1", "-use_counters=0"])
            .args([into, from])
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .status()?;
        if !status.success() {
            bail!(
                "Merging into {} failed: see {}",
                into.display(),
                log.display()
            );
        }
        Ok(())
    }
}

impl FuzzOutcome {
    fn print(&self, target: &FuzzTarget) -> Result<()> {
        let corpus = target.corpus();
        println!(
            "{:<16} {:>12} executions {:>6} edges {:>4} new inputs, {:>4} in the corpus ({} KiB)",
            target.name,
            self.executions,
            self.edges,
            self.new,
            names(&corpus)?.len(),
            size(&corpus)?.div_ceil(1024)
        );
        for crash in &self.crashes {
            println!(
                "{:<16} not survived: cargo xtask fuzz --only {} --input {}",
                target.name,
                target.name,
                crash.strip_prefix(workspace()).unwrap_or(crash).display()
            );
        }
        Ok(())
    }
}

/// Bytes of the files in a folder.
fn size(folder: &Path) -> std::io::Result<u64> {
    fs::read_dir(folder)?
        .map(|entry| Ok(entry?.metadata()?.len()))
        .sum()
}

/// Executions and edges, from what libFuzzer prints.
fn figures(log: &str) -> (u64, u64) {
    let after = |line: &str, key: &str| -> Option<u64> {
        let (_, rest) = line.split_once(key)?;
        rest.split_whitespace().next()?.parse().ok()
    };
    let last = |key: &str| log.lines().rev().find_map(|line| after(line, key));
    let executions = last("stat::number_of_executed_units:").unwrap_or(0);
    (executions, last(" cov: ").unwrap_or(0))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn figures_are_read() {
        let log = "INFO: seed corpus: files: 2\n#3 INITED cov: 10 ft: 12 corp: 2/9b exec/s: 0 rss: 30Mb\n\
                   #9\tNEW    cov: 37 ft: 70 corp: 5/12b lim: 4 exec/s: 0 rss: 30Mb L: 1/4 MS: 1 Ins-\n\
                   Done 12 runs in 1 second(s)\nstat::number_of_executed_units: 12\nstat::new_units_added: 3\n";
        assert_eq!(figures(log), (12, 37));
        assert_eq!(figures("==1==ERROR: libFuzzer"), (0, 0));
    }

    #[test]
    fn the_time_is_shared() {
        assert_eq!(seconds_each(10.0, 20, 2), 60);
        assert_eq!(seconds_each(1.0, 7, 2), 15);
        assert_eq!(seconds_each(0.0, 7, 2), 1);
    }
}
