//! The lab's kernel: Debian's own package, unpacked but not installed.

use super::modules::{ModuleDependencies, name_of};
use crate::kernel::output;
use crate::{cache, deps};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The package that always depends on the newest 6.12 kernel of this Debian.
const META: &str = "linux-image-6.12-amd64";

/// The modules that a lab's machine needs.
#[derive(Debug)]
pub(super) struct ModuleSet {
    /// Loaded when the lab boots: the machine's own devices, files, and KVM.
    boot: &'static [&'static str],
    /// Found by `modprobe` or by the kernel itself when something in the lab asks for them.
    on_demand: &'static [&'static str],
    /// Without debug data and signature. Bochs takes half a minute to check the signatures.
    stripped: bool,
}

/// QEMU's machine with an AMD processor.
pub(super) const AMD: &ModuleSet = &ModuleSet {
    boot: &[
        "virtio_pci",
        "virtio_blk",
        "virtio_net",
        "virtio_rng",
        "9pnet_virtio",
        "9p",
        "ccp",
        "kvm",
        "kvm_amd",
        "tun",
    ],
    on_demand: &[
        "ext4",
        "erofs",
        "overlay",
        "fuse",
        "loop",
        "vsock",
        "vhost_vsock",
        "vhost_net",
        "veth",
        "bridge",
        "af_packet",
    ],
    stripped: false,
};

/// Bochs' machine with an Intel processor.
pub(super) const INTEL: &ModuleSet = &ModuleSet {
    boot: &[
        "scsi_mod",
        "sd_mod",
        "ata_piix",
        "e1000",
        "af_packet",
        "crc32c_generic",
        "ext4",
        "kvm",
        "kvm_intel",
        "tun",
    ],
    on_demand: &["erofs", "overlay", "loop"],
    stripped: true,
};

/// An unpacked kernel: `vmlinuz` and a `modules` tree, both immutable.
pub(super) struct LabKernel {
    /// Its folder in the cache.
    pub(super) dir: PathBuf,
    /// As `uname -r` prints it.
    pub(super) release: String,
    set: &'static ModuleSet,
}

impl LabKernel {
    /// Fetches and unpacks the kernel unless it is in the cache.
    ///
    /// # Errors
    /// Without the package's index or the package; or if a module is missing in it.
    pub(super) fn ensure(set: &'static ModuleSet) -> Result<Self> {
        deps::ensure(&["kmod", "xz-utils", "binutils"])?;
        let package = match resolve()? {
            Some(package) => package,
            None => {
                apt_update()?;
                resolve()?.with_context(|| format!("Debian's archive has no package {META}"))?
            }
        };
        let release = package.trim_start_matches("linux-image-").to_owned();
        let lists = [set.boot.join(" "), set.on_demand.join(" ")];
        let mut inputs = vec!["lab kernel 1", &package, &lists[0], &lists[1]];
        inputs.extend(set.stripped.then_some("stripped"));
        let key = cache::key(inputs.into_iter().map(str::as_bytes));
        let dir = cache::entry("lab", &key, |dir| build(dir, &package, &release, set))?;
        Ok(Self { dir, release, set })
    }

    /// The modules to load at boot, in order, as paths below `/lib/modules/<release>`.
    pub(super) fn boot_order(&self) -> Result<Vec<String>> {
        let tree = self.modules();
        let order = dependencies(&tree)?;
        Ok(order
            .load_order(self.set.boot)?
            .into_iter()
            .map(str::to_owned)
            .collect())
    }

    /// The folder that is `/lib/modules/<release>` in the lab.
    pub(super) fn modules(&self) -> PathBuf {
        self.dir.join("root/lib/modules").join(&self.release)
    }

    /// The compressed kernel.
    pub(super) fn image(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }
}

/// The name of the package with the newest kernel, by [`META`]'s dependencies.
fn resolve() -> Result<Option<String>> {
    let output = Command::new("apt-cache")
        .args(["show", "--no-all-versions", META])
        .stderr(Stdio::null())
        .output()
        .context("Running apt-cache")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let depends = text.lines().find_map(|line| line.strip_prefix("Depends: "));
    Ok(depends
        .and_then(|list| {
            list.split([',', ' '])
                .find(|word| word.starts_with("linux-image-"))
        })
        .map(str::to_owned))
}

pub(super) fn apt_update() -> Result<()> {
    run(Command::new("apt-get").args(["-qq", "update"]))
}

fn build(dir: &Path, package: &str, release: &str, set: &ModuleSet) -> Result<()> {
    eprintln!("lab: fetching Debian's {package} (about 100 MB)");
    let download = || {
        run(Command::new("apt-get")
            .args(["-qq", "-o", "APT::Sandbox::User=root", "download", package])
            .current_dir(dir))
    };
    if download().is_err() {
        apt_update()?; // a stale index names a version that the archive no longer has
        download()?;
    }
    let file = std::fs::read_dir(dir)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|e| e == "deb"))
        .context("apt-get download left no package file")?;
    let all = dir.join("all");
    run(Command::new("dpkg-deb").arg("-x").args([&file, &all]))?;
    run(Command::new("depmod")
        .arg("-b")
        .args([&all, Path::new(release)]))?;
    let from = all.join("lib/modules").join(release);
    let root = dir.join("root");
    let to = root.join("lib/modules").join(release);
    let wanted: Vec<_> = set.boot.iter().chain(set.on_demand).copied().collect();
    for path in dependencies(&from)?.load_order(&wanted)? {
        let module = to.join(Path::new(path).with_file_name(name_of(path) + ".ko"));
        unpack(&from.join(path), &module)?;
        if set.stripped {
            run(Command::new("strip").arg("--strip-debug").arg(&module))?;
        }
    }
    for list in [
        "modules.builtin",
        "modules.builtin.modinfo",
        "modules.order",
    ] {
        std::fs::copy(from.join(list), to.join(list)).with_context(|| format!("Copying {list}"))?;
    }
    run(Command::new("depmod")
        .arg("-b")
        .args([&root, Path::new(release)]))?;
    std::fs::copy(
        all.join(format!("boot/vmlinuz-{release}")),
        dir.join("vmlinuz"),
    )?;
    std::fs::remove_dir_all(&all)?;
    std::fs::remove_file(&file)?;
    Ok(())
}

fn dependencies(tree: &Path) -> Result<ModuleDependencies> {
    let text = |name: &str| {
        let path = tree.join(name);
        std::fs::read_to_string(&path).with_context(|| format!("Reading {}", path.display()))
    };
    Ok(ModuleDependencies::parse(
        &text("modules.dep")?,
        &text("modules.builtin")?,
    ))
}

/// Copies a module, decompressed: the lab would take longer for that than for reading it.
fn unpack(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().context("A module outside of any folder")?;
    std::fs::create_dir_all(folder)?;
    if from.extension().is_some_and(|e| e == "ko") {
        std::fs::copy(from, to)?;
        return Ok(());
    }
    let file = std::fs::File::create(to).with_context(|| format!("Creating {}", to.display()))?;
    run(Command::new("xz").arg("-dc").arg(from).stdout(file))
}

/// Runs a command that must succeed; what it says is part of the error, and shown only then.
fn run(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}
