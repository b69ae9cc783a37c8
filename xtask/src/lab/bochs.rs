//! The Intel lab's machine: Bochs, which emulates VMX with EPT and XSAVE, up to AVX-512.
//!
//! Bochs boots from a CD with the lab's kernel, has the programs on a disk (`files_disk`), its
//! network by slirp as QEMU has, and its screen on a terminal that nobody looks at. It takes no
//! orders while it runs: ports are forwarded from its start, or not at all.
//!
//! What to know of version 2.7: a guest with interrupts off cannot be interrupted, so that a
//! program which spins so (`hatchery-vmm probe` has one) stops the whole lab; two sub-leaves of
//! CPUID leaf 0xd are wrong, for which [`IntelModel::kernel_options`] switches off what rests on
//! them; string instructions are slow. One processor, at most 2 GiB.

use super::intel_model::IntelModel;
use super::package::LabKernel;
use super::state::{CONSOLE_NAME, LabPlace, LabState, PortForward, tail};
use super::{emulator, files_disk, qemu};
use crate::deps;
use crate::kernel::output;
use anyhow::{Context, Result, bail};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Debian's packages with Bochs, its firmware, and what makes a CD to boot from.
const PACKAGES: &[&str] = &[
    "bochs",
    "bochs-term",
    "bochsbios",
    "vgabios",
    "isolinux",
    "syslinux-common",
    "genisoimage",
    "e2fsprogs",
];

/// The most memory that Bochs 2.7 gives a machine, MiB.
pub(crate) const MAX_MEMORY_MIB: u32 = 2048;

/// Beside the other lab's options: without the kernel's tests of its ciphers, which cost Bochs
/// much. `lab.files` is for the lab's own first program.
const KERNEL_OPTIONS: &str = "cryptomgr.notests=1 lab.files=/dev/sda";

/// Begins Bochs' work without a question: Debian's has the debugger built in.
const DEBUGGER: &str = "c\n";
/// What Bochs says of itself, in the lab's folder.
const LOG_NAME: &str = "bochs.log";
/// Bochs has written its number within this.
const START_LIMIT: Duration = Duration::from_secs(20);

/// Starts Bochs in the background, with its first root already in place.
pub(super) fn start(
    place: &LabPlace,
    kernel: &LabKernel,
    state: &LabState,
    model: IntelModel,
) -> Result<()> {
    deps::ensure(PACKAGES)?;
    let cd = cd(place, kernel, model)?;
    let disk = place.dir.join("files.ext4");
    files_disk::write(&disk, &place.dist, &place.dir.join("files"))?;
    let network = place.dir.join("slirp.conf");
    write(&network, &forwards(state))?;
    let machine = machine(&cd, &disk, &network, state.memory_mib, model)?;
    write(&place.bochsrc(), &machine)?;
    let commands = place.dir.join("bochs.commands");
    write(&commands, DEBUGGER)?;
    for stale in [&place.bochs_pid_file(), &place.console()] {
        let _ = fs::remove_file(stale);
    }
    // `script` gives Bochs' screen a terminal and takes what is drawn. Its input is a pipe that is
    // open for writing too, so that it never ends.
    let keyboard = place.dir.join("keyboard");
    let _ = fs::remove_file(&keyboard);
    mknodat(CWD, &keyboard, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
        .context("Making the lab's keyboard")?;
    let keyboard = File::options().read(true).write(true).open(&keyboard)?;
    let bochs = r#"echo $$ > "$LAB_PID" && exec bochs-bin -q -unlock -f "$LAB_RC" -rc "$LAB_GO""#;
    Command::new("script")
        .args(["-q", "-e", "-c", bochs, "/dev/null"])
        .env("LAB_PID", place.bochs_pid_file())
        .env("LAB_RC", place.bochsrc())
        .env("LAB_GO", &commands)
        .env("TERM", "vt100")
        .env("SHELL", "/bin/sh")
        .current_dir(&place.dir)
        .stdin(keyboard)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .context("Running Bochs")?;
    // Nothing tells when the shell has become Bochs.
    let begin = Instant::now();
    while emulator::process(place).is_none() {
        if begin.elapsed() > START_LIMIT {
            bail!(
                "Bochs did not start; its log ends with:\n{}",
                tail(&place.dir.join(LOG_NAME), 20)
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A CD that boots the lab's kernel.
fn cd(place: &LabPlace, kernel: &LabKernel, model: IntelModel) -> Result<PathBuf> {
    let tree = place.dir.join("cd");
    let _ = fs::remove_dir_all(&tree);
    fs::create_dir_all(&tree).with_context(|| format!("Creating {}", tree.display()))?;
    let copy = |from: &Path, name: &str| {
        fs::copy(from, tree.join(name)).with_context(|| format!("Copying {}", from.display()))
    };
    copy(Path::new("/usr/lib/ISOLINUX/isolinux.bin"), "isolinux.bin")?;
    copy(
        Path::new("/usr/lib/syslinux/modules/bios/ldlinux.c32"),
        "ldlinux.c32",
    )?;
    copy(&kernel.image(), "vmlinuz")?;
    copy(&place.initrd(), "initrd")?;
    let menu = format!(
        "default lab\nlabel lab\n  kernel vmlinuz\n  initrd initrd\n  append {} {KERNEL_OPTIONS} \
         {}\n",
        qemu::fast_command_line(),
        model.kernel_options()
    );
    write(&tree.join("isolinux.cfg"), &menu)?;
    let cd = place.dir.join("cd.iso");
    output(
        Command::new("genisoimage")
            .args(["-quiet", "-o"])
            .arg(&cd)
            .args(["-b", "isolinux.bin", "-c", "boot.cat"])
            .args(["-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"])
            .arg(&tree),
    )?;
    // The token is in the copy of the first root.
    fs::remove_dir_all(&tree).with_context(|| format!("Removing {}", tree.display()))?;
    restrict(&cd)?;
    Ok(cd)
}

/// Only this user may read it.
fn restrict(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("Restricting {}", path.display()))
}

/// The network's configuration; its forwards are of loopback only.
fn forwards(state: &LabState) -> String {
    let forward = |forward: &PortForward| {
        format!(
            "hostfwd = tcp:127.0.0.1:{}-10.0.2.15:{}\n",
            forward.host, forward.lab
        )
    };
    let lines: String = state.forwards.iter().map(forward).collect();
    format!("# slirp config\n{lines}")
}

/// Bochs' configuration.
fn machine(
    cd: &Path,
    disk: &Path,
    network: &Path,
    memory_mib: u32,
    model: IntelModel,
) -> Result<String> {
    let [cd, disk, network] = [cd, disk, network].map(plain);
    Ok(format!(
        "cpu: {processor}, reset_on_triple_fault=1, ignore_bad_msrs=1
memory: guest={memory_mib}, host={memory_mib}
clock: sync=slowdown, time0=utc
romimage: file=/usr/share/bochs/BIOS-bochs-latest, options=fastboot
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
pci: enabled=1, chipset=i440fx
ata0: enabled=1
ata0-master: type=disk, mode=flat, path={disk}
ata1: enabled=1, ioaddr1=0x170, ioaddr2=0x370, irq=15
ata1-master: type=cdrom, path={cd}, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev={CONSOLE_NAME}
e1000: enabled=1, mac=52:54:00:12:34:56, ethmod=slirp, script={network}
display_library: term
log: {LOG_NAME}
panic: action=fatal
error: action=ignore
info: action=ignore
debug: action=ignore
speaker: enabled=0
mouse: enabled=0
",
        processor = model.processor(),
        cd = cd?,
        disk = disk?,
        network = network?,
    ))
}

/// A path in Bochs' configuration, which has no way to quote.
fn plain(path: &Path) -> Result<&str> {
    path.to_str()
        .filter(|path| !path.contains([',', ' ', '"', '$', '\n']))
        .with_context(|| format!("Bochs cannot be told of a path like {}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("Writing {}", path.display()))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn ports_are_forwarded_from_loopback_only() {
        let mut state = LabState::new(false, MAX_MEMORY_MIB, Some(IntelModel::IceLake)).unwrap();
        state.forwards = [(4000, 1), (4001, 3000)]
            .map(|(host, lab)| PortForward {
                host,
                lab,
                via: None,
            })
            .to_vec();
        let lines = "# slirp config\nhostfwd = tcp:127.0.0.1:4000-10.0.2.15:1\n\
                     hostfwd = tcp:127.0.0.1:4001-10.0.2.15:3000\n";
        assert_eq!(forwards(&state), lines);
    }

    #[test]
    fn the_machine_has_its_parts_and_listens_nowhere() {
        let [cd, disk, network] = ["/a/cd.iso", "/a/files.ext4", "/a/slirp.conf"].map(Path::new);
        let text = machine(cd, disk, network, 1024, IntelModel::Haswell).unwrap();
        assert!(text.starts_with("cpu: model=corei7_haswell_4770, count=1,"));
        assert!(text.contains("memory: guest=1024, host=1024\n"));
        assert!(text.contains("\ndisplay_library: term\n") && !text.contains("rfb"));
        let odd = Path::new("/a b/cd.iso");
        machine(odd, disk, network, 1024, IntelModel::Haswell).unwrap_err();
    }
}
