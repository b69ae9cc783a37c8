//! `cargo xtask up`: from nothing to a server that the E2B SDKs can use.

use crate::dist::{Dist, target_dir, workspace};
use crate::lab::LabOptions;
use crate::service::{self, RunningService, ServerPlace};
use crate::{key, sdk};
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Arguments.
#[derive(clap::Args)]
pub(crate) struct UpArgs {
    /// Exit after the smoke check, with its status
    #[arg(long)]
    once: bool,
    /// The port of 127.0.0.1 to serve on
    #[arg(long, default_value_t = 3000)]
    port: u16,
}

#[expect(clippy::print_stdout, reason = "what was asked for")]
pub(crate) fn run(args: &UpArgs) -> Result<ExitCode> {
    let start = Instant::now();
    let step = |n: u32, what: &str| eprintln!("[{n}/4 {:>4}s] {what}", start.elapsed().as_secs());
    step(
        1,
        "building: a few seconds when cached, up to 25 minutes on a fresh machine",
    );
    let dist = Dist::ensure()?;
    let python = sdk::python()?;
    step(2, "choosing where guests run");
    let mut place = ServerPlace::choose(&LabOptions::default())?;
    step(3, "starting the server");
    let log = target_dir().join("hatchery.log");
    let key = key::kept_in(&service::data_dir())?;
    let mut service = RunningService::start(&mut place, &dist, args.port, &log, "", &key)?;
    step(4, "smoke check with the published E2B Python SDK");
    smoke(&python, &service.url, &key)?;
    println!(
        "\nHatchery serves on {} (log: {}). In another terminal:\n",
        service.url,
        log.display()
    );
    println!("export E2B_API_URL={}", service.url);
    println!("export E2B_SANDBOX_URL={}", service.url);
    println!("export E2B_API_KEY={key}\n");
    println!(
        "What listens on a port of a sandbox: http://PORT-ID.localhost:{}\n",
        args.port
    );
    if args.once {
        return Ok(ExitCode::SUCCESS);
    }
    println!("Ctrl-C stops it.");
    wait(&mut service)
}

/// Runs the smoke check and prints the time of each step.
#[expect(clippy::print_stdout, reason = "what was asked for")]
fn smoke(python: &std::path::Path, url: &str, key: &str) -> Result<()> {
    let script = workspace().join("api/tests/sdk/smoke.py");
    let mut child = Command::new(python)
        .arg(&script)
        .env("E2B_API_URL", url)
        .env("E2B_SANDBOX_URL", url)
        .env("E2B_API_KEY", key)
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("Running {}", script.display()))?;
    let stdout = child
        .stdout
        .take()
        .context("The smoke check has no output")?;
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        let step: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        let name = step["step"].as_str().unwrap_or("?");
        match (step["ms"].as_f64(), step["error"].as_str()) {
            (Some(ms), _) => println!("  {name:<8} ok {ms:>10.1} ms"),
            (_, Some(error)) => println!("  {name:<8} FAILED: {error}"),
            _ => println!("  {line}"),
        }
    }
    if !child.wait()?.success() {
        bail!(
            "The smoke check failed: see above, and the server's log in {}",
            target_dir().display()
        );
    }
    Ok(())
}

/// Waits for Ctrl-C or a termination signal, or the server's own end.
fn wait(service: &mut RunningService) -> Result<ExitCode> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let asked = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&asked))?;
    }
    while !asked.load(Ordering::Relaxed) {
        if service.ended()? {
            bail!(
                "The server ended by itself: see its log in {}",
                target_dir().display()
            );
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    eprintln!("stopping");
    Ok(ExitCode::SUCCESS)
}
