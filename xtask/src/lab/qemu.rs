//! Starts the QEMU process of a lab.

use super::clock;
use super::package::LabKernel;
use super::qemu_program::QemuProgram;
use super::state::{CONSOLE_NAME, LabPlace, LabState, PortForward, QMP_NAME};
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::Stdio;

/// Where the emulator's network has this machine's loopback, seen from the lab.
pub(crate) const THIS_MACHINE: &str = "10.0.2.2";

/// The lab kernel's command line. `tsc=reliable`: QEMU's counter is, but does not say so, and
/// without it every clock read is a slow device access. `debugfs=off`: what `doctor` recommends,
/// as KVM otherwise makes a folder of files for each virtual machine.
const COMMAND_LINE: &str =
    "console=ttyS0 quiet panic=-1 nokaslr tsc=reliable clocksource=tsc no_timer_check debugfs=off";

/// What is left out where nobody counts instructions, as it costs the emulator a third of its time
/// and no test is about it: mitigations (each indirect call and each exit of a guest), zeroing
/// pages that are written at once, other security modules than the jail's, and a wait for a
/// guest's next wake-up that keeps the only processor from the other guests.
const FAST: &str = "mitigations=off init_on_alloc=0 randomize_kstack_offset=off audit=0 \
                    lsm=landlock preempt=none kvm.halt_poll_ns=0";

/// AMD with nested paging. Without XSAVE and what rests on it: QEMU 7.2 lets a guest's guest set
/// XCR0 without an exit, so that KVM does not learn of it and the two disagree on the size of the
/// extended state.
const PROCESSOR: &str = "EPYC,+svm,+npt,-xsave,-avx,-avx2,-fma,-f16c";

/// Starts QEMU in the background, with its first root already in place. One processor: with two,
/// one in some hundred machines dies of a triple fault, and the lab itself once in a thousand (QEMU
/// 7.2 and 10.0: an interrupt injected into a nested guest is noted as an exception too, and comes
/// again when the other processor asks this one to leave its loop); with one, none of 6,000 did.
pub(super) fn start(place: &LabPlace, kernel: &LabKernel, state: &LabState) -> Result<()> {
    let mut command = QemuProgram::ensure()?.command();
    command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
    command.args(["-no-reboot", "-daemonize"]);
    command.args(["-name", &format!("hatchery-lab-{}", place.name)]);
    command.args(["-M", "q35,accel=tcg,smm=off,vmport=off", "-cpu", PROCESSOR]);
    command.args(["-m", &state.memory_mib.to_string()]);
    command.args(["-smp", "1"]);
    if state.icount {
        command.args(["-icount", "shift=0,sleep=off"]);
    }
    command
        .arg("-kernel")
        .arg(kernel.image())
        .arg("-initrd")
        .arg(place.initrd());
    command.args(["-append", &command_line(state.icount)]);
    command.args([
        "-netdev",
        &network(state),
        "-device",
        "virtio-net-pci,netdev=net,romfile=",
    ]);
    command.args(["-device", "virtio-rng-pci"]);
    for share in shares(place)? {
        command.args(["-virtfs", &share]);
    }
    command.arg("-pidfile").arg(place.pid_file());
    command.args(["-serial", &format!("file:{CONSOLE_NAME}")]);
    command.args(["-qmp", &format!("unix:{QMP_NAME},server=on,wait=off")]);
    let output = command
        .current_dir(&place.dir)
        .stdin(Stdio::null())
        .output();
    let output = output.with_context(|| format!("Running {}", command.get_program().display()))?;
    if !output.status.success() {
        bail!(
            "QEMU did not start: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// The kernel's command line. A clock that counts instructions is what the emulator says it is, and
/// what is counted stays as it was; the other runs as this machine's counter does, which the kernel
/// measures badly.
fn command_line(icount: bool) -> String {
    if icount {
        return COMMAND_LINE.to_owned();
    }
    let khz = clock::counter_khz().map(|khz| format!(" tsc_early_khz={khz}"));
    fast_command_line() + &khz.unwrap_or_default()
}

/// The command line of a lab that runs in real time, whoever emulates it.
pub(super) fn fast_command_line() -> String {
    format!("{COMMAND_LINE} {FAST}")
}

/// User-mode network; its forwards are of loopback only.
fn network(state: &LabState) -> String {
    let forward = |forward: &PortForward| {
        let host = forward.via.unwrap_or(forward.host);
        format!(",hostfwd=tcp:127.0.0.1:{host}-:{}", forward.lab)
    };
    "user,id=net".to_owned() + &state.forwards.iter().map(forward).collect::<String>()
}

/// Folders that the lab mounts by their tag.
fn shares(place: &LabPlace) -> Result<[String; 3]> {
    let share = |tag: &str, path: &Path, more: &str| {
        let path = prefixed("local,path=", path)?;
        Ok::<_, anyhow::Error>(format!(
            "{path},mount_tag={tag},security_model=none,multidevs=remap{more}"
        ))
    };
    Ok([
        share("share", &place.share, "")?,
        share("dist", &place.dist, ",readonly=on")?,
        share("image", &place.images, ",readonly=on")?,
    ])
}

/// A QEMU option with a path in it, where a comma would have to be doubled.
fn prefixed(prefix: &str, path: &Path) -> Result<String> {
    let path = path
        .to_str()
        .with_context(|| format!("{} is not plain text", path.display()))?;
    Ok(format!("{prefix}{}", path.replace(',', ",,")))
}
