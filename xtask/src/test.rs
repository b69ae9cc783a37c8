//! `cargo xtask test`: every check there is, in order, with one summary at the end.
//!
//! A stage that fails does not stop the later ones. The last line is `N passed, N failed, N
//! skipped`, summed over all runners; what was skipped is listed above it with the reason.

#![expect(clippy::print_stdout, reason = "its output is what it is for")]

mod e2e;
mod server;
mod tally;

pub(crate) use tally::Tally;

use crate::deps;
use crate::dist::workspace;
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Arguments.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run only these stages, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "STAGE")]
    only: Vec<String>,
    /// List the stages and stop
    #[arg(long)]
    list: bool,
    /// Run all of it so many times, and say how often each stage passed, and how often only when run
    /// again
    #[arg(long, value_name = "TIMES", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeat: u32,
}

struct Stage {
    name: &'static str,
    about: &'static str,
    run: fn() -> Result<Tally>,
}

const STAGES: &[Stage] = &[
    Stage {
        name: "fmt",
        about: "formatting",
        run: fmt,
    },
    Stage {
        name: "clippy",
        about: "clippy over everything, without warnings",
        run: clippy,
    },
    Stage {
        name: "unit",
        about: "unit, property and integration tests",
        run: unit,
    },
    Stage {
        name: "doc",
        about: "examples in documentation",
        run: doc,
    },
    Stage {
        name: "tidy",
        about: "the house's rules: structure, licences, dependencies",
        run: tidy,
    },
    Stage {
        name: "native",
        about: "SDK suites, agent as an ordinary process",
        run: e2e::native,
    },
    Stage {
        name: "vm",
        about: "SDK suites and README programs, in microVMs",
        run: e2e::vm,
    },
    Stage {
        name: "fault",
        about: "killed VMs, kernels, servers; leaks",
        run: e2e::fault,
    },
    Stage {
        name: "bench",
        about: "one short run of the barometer",
        run: e2e::bench,
    },
];

/// Runs the stages.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if args.list {
        for stage in STAGES {
            println!("{:<8} {}", stage.name, stage.about);
        }
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(unknown) = args
        .only
        .iter()
        .find(|only| STAGES.iter().all(|stage| stage.name != **only))
    {
        bail!("There is no stage {unknown:?}: `cargo xtask test --list` names them");
    }
    let chosen =
        |stage: &&Stage| args.only.is_empty() || args.only.iter().any(|only| only == stage.name);
    let stages: Vec<_> = STAGES.iter().filter(chosen).collect();
    deps::ensure(deps::TO_BUILD)?;
    let mut total = Tally::default();
    let mut rounds = vec![Rounds::default(); stages.len()];
    for round in 1..=args.repeat {
        if args.repeat > 1 {
            println!("\n== round {round} of {}", args.repeat);
        }
        total.add(all_once(&stages, &mut rounds));
    }
    if args.repeat > 1 {
        for (stage, rounds) in stages.iter().zip(&rounds) {
            println!("{}", rounds.summary(stage.name));
        }
    }
    println!(
        "{} passed, {} failed, {} skipped",
        total.passed, total.failed, total.skipped
    );
    let good = total.failed == 0 && total.passed > 0;
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// How one stage's rounds ended.
#[derive(Clone, Copy, Debug, Default)]
struct Rounds {
    all: u32,
    failed: u32,
    /// Passed, but something in it only when it was run again.
    flaky: u32,
}

impl Rounds {
    fn note(&mut self, tally: &Tally) {
        self.all += 1;
        if tally.failed > 0 {
            self.failed += 1;
        } else if tally.is_flaky() {
            self.flaky += 1;
        }
    }

    fn summary(self, name: &str) -> String {
        let Self { all, failed, flaky } = self;
        let clean = all - failed - flaky;
        format!("{name:<8} {all} rounds: {clean} clean, {flaky} flaky, {failed} failed")
    }
}

/// Runs each stage, prints the summary, and returns the sum.
fn all_once(stages: &[&Stage], rounds: &mut [Rounds]) -> Tally {
    let mut lines = Vec::new();
    let mut total = Tally::default();
    for (index, stage) in stages.iter().enumerate() {
        println!(
            "\n== [{}/{}] {}: {}",
            index + 1,
            stages.len(),
            stage.name,
            stage.about
        );
        let start = Instant::now();
        let tally = (stage.run)().unwrap_or_else(|error| Tally::fail(format!("{error:#}")));
        lines.push(summary(stage.name, &tally, start.elapsed()));
        println!("== {}", lines[index].lines().next().unwrap_or_default());
        if let Some(rounds) = rounds.get_mut(index) {
            rounds.note(&tally);
        }
        total.add(tally);
    }
    println!("\n{}\n", lines.join("\n"));
    total
}

/// One line with a stage's counts and time, and its notes below.
fn summary(name: &str, tally: &Tally, time: Duration) -> String {
    let Tally {
        passed,
        failed,
        skipped,
        notes,
    } = tally;
    let verdict = if *failed == 0 { "ok" } else { "FAILED" };
    let seconds = time.as_secs_f64();
    let mut text = format!(
        "{name:<8} {verdict:<6} {passed:>5} passed {failed:>3} failed {skipped:>3} skipped {seconds:>7.1} s"
    );
    for note in notes {
        text.push_str("\n         ");
        text.push_str(note);
    }
    text
}

fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO"));
    command.args(args).current_dir(workspace());
    command
}

/// Whether cargo has this subcommand.
fn has(subcommand: &str) -> bool {
    let mut command = cargo(&[subcommand, "--version"]);
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// This program. A stage may have built it anew, and then the kernel calls ours deleted.
fn program() -> Result<String> {
    let path = std::env::current_exe()?.display().to_string();
    Ok(path
        .strip_suffix(" (deleted)")
        .map_or(path.clone(), str::to_owned))
}

fn check(args: &[&str]) -> Result<Tally> {
    let (status, _) = tee(&mut cargo(args))?;
    Ok(Tally::of_status(
        status,
        &format!("cargo {}", args.join(" ")),
    ))
}

fn fmt() -> Result<Tally> {
    check(&["fmt", "--all", "--check"])
}

fn clippy() -> Result<Tally> {
    check(&[
        "clippy",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "-D",
        "warnings",
    ])
}

/// Everything but the tidy test, which is a stage of its own.
fn unit() -> Result<Tally> {
    if has("nextest") {
        let filter = "not binary(tidy)";
        let args = [
            "nextest",
            "run",
            "--workspace",
            "--no-fail-fast",
            "--color=never",
            "-E",
            filter,
        ];
        let (status, text) = tee(cargo(&args).args(["--status-level", "slow"]))?;
        return Ok(Tally::of_nextest(&text).or_failed(status, "cargo nextest"));
    }
    let mut tally = Tally::default();
    let rest = [
        "test",
        "--workspace",
        "--exclude",
        "xtask",
        "--no-fail-fast",
        "--all-targets",
    ];
    for args in [&rest[..], &["test", "-p", "xtask", "--bins"]] {
        let (status, text) = tee(&mut cargo(args))?;
        tally.add(Tally::of_cargo_test(&text).or_failed(status, "cargo test"));
    }
    Ok(tally)
}

fn doc() -> Result<Tally> {
    let (status, text) = tee(&mut cargo(&[
        "test",
        "--workspace",
        "--doc",
        "--no-fail-fast",
    ]))?;
    let tally = Tally::of_cargo_test(&text);
    // There need not be any example.
    Ok(if status.success() {
        tally
    } else {
        tally.or_failed(status, "cargo test --doc")
    })
}

fn tidy() -> Result<Tally> {
    let (status, text) = tee(&mut cargo(&["test", "-p", "xtask", "--test", "tidy"]))?;
    let mut tally = Tally::of_cargo_test(&text).or_failed(status, "the tidy test");
    if has("deny") {
        tally.add(check(&[
            "deny",
            "--offline",
            "check",
            "bans",
            "licenses",
            "sources",
        ])?);
    } else {
        // The tidy test itself checks licences, sources, bans and duplicates against deny.toml.
        println!("cargo-deny is not installed: the tidy test has checked deny.toml's rules");
    }
    Ok(tally)
}

/// Runs a command; shows what it prints while it prints it, and returns it too.
pub(crate) fn tee(command: &mut Command) -> Result<(ExitStatus, String)> {
    let (reader, writer) = std::io::pipe()?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    let mut child = command
        .spawn()
        .with_context(|| format!("Running {command:?}"))?;
    command.stdout(Stdio::null()).stderr(Stdio::null()); // drops our ends of the pipe
    let mut text = String::new();
    let mut out = std::io::stdout().lock();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        out.write_all(&line)?;
        out.flush()?;
        text.push_str(&String::from_utf8_lossy(&line));
        line.clear();
    }
    Ok((child.wait()?, text))
}
