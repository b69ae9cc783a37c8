//! Starts, finds and stops the QEMU process of a lab.

use super::package::Kernel;
use super::qmp::Qmp;
use super::state::{Place, State};
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::json;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The lab kernel's command line. `tsc=reliable`: QEMU's counter is, but does not say so, and
/// without it every clock read is a slow device access. `debugfs=off`: what `doctor` recommends,
/// as KVM otherwise makes a folder of files for each virtual machine.
const COMMAND_LINE: &str =
    "console=ttyS0 quiet panic=-1 nokaslr tsc=reliable clocksource=tsc no_timer_check debugfs=off";

/// Starts QEMU in the background, with its first root already in place.
pub(super) fn start(place: &Place, kernel: &Kernel, state: &State) -> Result<()> {
    let shares = Shares::of(place);
    let mut command = Command::new("qemu-system-x86_64");
    command.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-daemonize",
    ]);
    command.args([
        "-M",
        "q35,accel=tcg,smm=off,vmport=off",
        "-cpu",
        "EPYC,+svm,+npt",
    ]);
    if state.icount {
        command.args(["-smp", "1", "-icount", "shift=0,sleep=off"]);
    } else {
        command.args(["-smp", "2"]);
    }
    command.args([
        "-m",
        &state.memory_mib.to_string(),
        "-name",
        &format!("hatchery-lab-{}", place.name),
    ]);
    command
        .arg("-kernel")
        .arg(kernel.image())
        .arg("-initrd")
        .arg(place.initrd());
    command.args(["-append", COMMAND_LINE]);
    command.arg("-pidfile").arg(place.pid_file());
    command
        .arg("-serial")
        .arg(prefixed("file:", &place.console())?);
    command
        .arg("-qmp")
        .arg(prefixed("unix:", &place.qmp())? + ",server=on,wait=off");
    let mut net = "user,id=net".to_owned();
    for forward in &state.forwards {
        net.push_str(&format!(
            ",hostfwd=tcp:127.0.0.1:{}-:{}",
            forward.host, forward.lab
        ));
    }
    command.args([
        "-netdev",
        &net,
        "-device",
        "virtio-net-pci,netdev=net,romfile=",
    ]);
    command.args(["-device", "virtio-rng-pci"]);
    for (tag, path, read_only) in shares.list {
        let read_only = if read_only { ",readonly=on" } else { "" };
        let local = prefixed("local,path=", path)?;
        command.arg("-virtfs").arg(format!(
            "{local},mount_tag={tag},security_model=none,multidevs=remap{read_only}"
        ));
    }
    let output = command
        .stdin(Stdio::null())
        .output()
        .context("Running qemu-system-x86_64")?;
    if !output.status.success() {
        bail!(
            "QEMU did not start: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// Folders that the lab mounts by their tag.
struct Shares<'a> {
    list: Vec<(&'static str, &'a Path, bool)>,
}

impl<'a> Shares<'a> {
    fn of(place: &'a Place) -> Self {
        let list = vec![
            ("share", &*place.share, false),
            ("dist", &*place.dist, true),
            ("image", &*place.images, true),
        ];
        Self { list }
    }
}

/// A QEMU option with a path in it, where a comma would have to be doubled.
fn prefixed(prefix: &str, path: &Path) -> Result<String> {
    let path = path
        .to_str()
        .with_context(|| format!("{} is not plain text", path.display()))?;
    Ok(format!("{prefix}{}", path.replace(',', ",,")))
}

/// The lab's QEMU process, if it runs. A stale file, or one whose number another process has
/// since been given, counts as none.
pub(super) fn process(place: &Place) -> Option<Pid> {
    let text = std::fs::read_to_string(place.pid_file()).ok()?;
    let pid = Pid::from_raw(text.trim().parse().ok()?)?;
    test_kill_process(pid).ok()?;
    let line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).ok()?;
    let expected = place.pid_file();
    line.split(|byte| *byte == 0)
        .any(|argument| argument == expected.as_os_str().as_encoded_bytes())
        .then_some(pid)
}

/// Ends the lab at once; it has nothing to save. False if it was not running.
pub(super) fn stop(place: &Place) -> Result<bool> {
    let Some(pid) = process(place) else {
        return Ok(false);
    };
    let asked = Qmp::connect(&place.qmp()).and_then(|mut qmp| qmp.execute("quit", &json!({})));
    if asked.is_err() || !gone_within(place, Duration::from_secs(5)) {
        let _ = kill_process(pid, Signal::KILL);
        if !gone_within(place, Duration::from_secs(10)) {
            bail!("QEMU (process {}) does not end", pid.as_raw_nonzero());
        }
    }
    Ok(true)
}

fn gone_within(place: &Place, limit: Duration) -> bool {
    let start = Instant::now();
    while start.elapsed() < limit {
        if process(place).is_none() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}
