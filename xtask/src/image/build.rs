//! The steps from a recipe to an ext4 image: bootstrap, prepare, pack.

use super::recipe::{EPOCH, ImageRecipe, RecipeFile, SOURCES, SUITE};
use super::{node, times};
use crate::deps;
use crate::kernel::output;
use crate::kernel::progress::BuildProgress;
use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, Command, Stdio};

/// What building an image needs on a machine that has only a Rust toolchain.
const TOOLS: &[&str] = &["e2fsprogs", "mmdebstrap", "tar"];

/// Documentation is left out, now and when a sandbox's user installs more; licences stay.
const DPKG_OPTIONS: &[&str] = &[
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/man/*",
];

/// The ext4 features of an image. Without a journal: a sandbox's disk lives and dies with its
/// memory, so there is never a log to replay, and each block would be written twice. Without
/// metadata checksums: the image is content-addressed, and each check costs guest instructions.
/// With group checksums (`uninit_bg`): unused groups need no bitmaps on disk.
const FEATURES: &str =
    "^has_journal,^metadata_csum,^resize_inode,^64bit,^orphan_file,uninit_bg,dir_index,extent";

/// What is run in the tree when all packages are there.
const HOOKS: [&str; 2] = [
    "useradd --create-home --shell /bin/bash --uid 1000 --user-group user",
    // The default locale in one file rather than twelve: a shell opens and maps each of them, 74
    // system calls for every command where this takes 9.
    "localedef --add-to-archive /usr/lib/locale/C.utf8",
];

/// Lines that the bootstrap prints for one package, on average: fetch, unpack, set up.
const STEPS_PER_PACKAGE: u64 = 3;

/// Packages that come with each one that a recipe names; only the progress line depends on it.
const PACKAGES_PER_NAMED: u64 = 6;

/// Makes the file tree of `recipe` in `scratch` and returns its folder.
pub(super) fn bootstrap(recipe: &ImageRecipe, scratch: &Path) -> Result<PathBuf> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "Building an image needs root, for the owners of its files; run the command as root"
    );
    deps::ensure(TOOLS)?;
    let archive = scratch.join("tree.tar");
    debootstrap(recipe, &archive)?;
    let tree = scratch.join("tree");
    fs::create_dir(&tree).with_context(|| format!("Creating {}", tree.display()))?;
    let mut tar = Command::new("tar");
    tar.args([
        "--extract",
        "--preserve-permissions",
        "--numeric-owner",
        "--xattrs",
    ])
    .args(["--xattrs-include=*", "--file"])
    .arg(&archive)
    .arg("--directory")
    .arg(&tree);
    output(&mut tar)?;
    fs::remove_file(&archive).with_context(|| format!("Removing {}", archive.display()))?;
    prepare(recipe, &tree)?;
    Ok(tree)
}

/// Names and versions of all packages in `tree`, one a line.
pub(super) fn packages(tree: &Path) -> Result<String> {
    let mut admin = std::ffi::OsString::from("--admindir=");
    admin.push(tree.join("var/lib/dpkg"));
    let mut query = Command::new("dpkg-query");
    query
        .arg(admin)
        .args(["-W", "-f", "${Package} ${Version} ${Architecture}\n"]);
    let list = output(&mut query)?;
    ensure!(
        list.lines().count() > 50,
        "The tree in {} holds no Debian",
        tree.display()
    );
    Ok(list)
}

/// Packs `tree` into the ext4 image `image`.
pub(super) fn pack(recipe: &ImageRecipe, tree: &Path, image: &Path) -> Result<()> {
    eprintln!("image {}: packing", recipe.name);
    fs::File::create(image)
        .and_then(|file| file.set_len(recipe.disk))
        .with_context(|| format!("Creating {} of {} bytes", image.display(), recipe.disk))?;
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.args([
        "-q", "-F", "-b", "4096", "-I", "256", "-i", "16384", "-m", "0", "-G", "64",
    ])
    .args(["-e", "remount-ro", "-L", recipe.name, "-O", FEATURES])
    .args(["-U", "68617463-6865-7279-8000-000000000001"])
    // Prezeroed: inode tables stay holes, and the guest has no background work to zero them.
    .args([
        "-E",
        "hash_seed=68617463-6865-7279-8000-000000000002,assume_storage_prezeroed=1",
    ])
    .arg("-d")
    .arg(tree)
    .arg(image)
    .env("E2FSPROGS_FAKE_TIME", EPOCH.to_string());
    output(&mut mkfs)?;
    times::normalize(image, EPOCH)?;
    let mut check = Command::new("e2fsck");
    output(check.args(["-f", "-n"]).arg(image))?;
    fs::set_permissions(image, fs::Permissions::from_mode(0o444))
        .with_context(|| format!("Protecting {}", image.display()))
}

/// Runs mmdebstrap, showing how far it is.
fn debootstrap(recipe: &ImageRecipe, archive: &Path) -> Result<()> {
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--verbose", "--variant=minbase", "--format=tar"])
        .arg(format!("--include={}", recipe.packages.join(",")))
        .arg("--aptopt=APT::Install-Recommends \"false\"")
        .args(
            DPKG_OPTIONS
                .iter()
                .map(|option| format!("--dpkgopt={option}")),
        )
        .args(HOOKS.map(|hook| format!("--customize-hook=chroot \"$1\" {hook}")))
        .arg(SUITE)
        .arg(archive)
        .args(SOURCES)
        .env("SOURCE_DATE_EPOCH", EPOCH.to_string())
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().context("Starting mmdebstrap")?;
    let lines = child.stderr.take().map(BufReader::new);
    let named = u64::try_from(recipe.packages.len())?;
    let tail = follow(lines, named * PACKAGES_PER_NAMED * STEPS_PER_PACKAGE);
    let status = child.wait().context("Waiting for mmdebstrap")?;
    if !status.success() {
        bail!(
            "Bootstrapping `{}` failed ({status}):\n  {}",
            recipe.name,
            tail.join("\n  ")
        );
    }
    Ok(())
}

/// Counts the bootstrap's steps until it closes its output, and returns its last lines.
fn follow(lines: Option<BufReader<ChildStderr>>, expected: u64) -> Vec<String> {
    const TAIL: usize = 30;
    let mut progress = BuildProgress::new("image", "steps", expected);
    let mut tail = std::collections::VecDeque::with_capacity(TAIL);
    let mut steps = 0;
    for line in lines
        .into_iter()
        .flat_map(BufRead::lines)
        .map_while(Result::ok)
    {
        if ["Get:", "Unpacking ", "Setting up "]
            .iter()
            .any(|start| line.starts_with(start))
        {
            steps += 1;
            progress.set(steps);
        }
        if tail.len() == TAIL {
            tail.pop_front();
        }
        tail.push_back(line);
    }
    progress.finish();
    tail.into()
}

/// Writes and removes what the recipe says, and leaves no trace of the build machine.
fn prepare(recipe: &ImageRecipe, tree: &Path) -> Result<()> {
    for path in recipe.removed {
        remove(tree, path).with_context(|| format!("Removing {path} from the image"))?;
    }
    for file in recipe.files {
        write(tree, file).with_context(|| format!("Writing {} in the image", file.path))?;
    }
    node::install(tree).context("Installing Node.js in the image")?;
    own_local(tree)?;
    let sources = SOURCES.join("\n") + "\n";
    fs::write(tree.join("etc/apt/sources.list"), sources).context("Writing sources.list")?;
    stamp(tree)
}

/// Gives `/usr/local` to `user`, who may become root anyway: what `npm install -g` and
/// `pip install` bring is found by everybody, without `sudo`.
fn own_local(tree: &Path) -> Result<()> {
    let mut chown = Command::new("chown");
    chown.args(["--recursive", "--no-dereference", "1000:1000"]);
    output(chown.arg(tree.join("usr/local"))).map(drop)
}

/// Deletes a path, or empties a folder whose path ends in `/`.
fn remove(tree: &Path, path: &str) -> Result<()> {
    let target = tree.join(path.trim_start_matches('/'));
    if !path.ends_with('/') {
        return match fs::remove_file(&target) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        };
    }
    for entry in fs::read_dir(&target)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn write(tree: &Path, file: &RecipeFile) -> Result<()> {
    let target = tree.join(file.path.trim_start_matches('/'));
    // What is there may be a link that leads out of the tree.
    match fs::remove_file(&target) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    fs::write(&target, file.content)?;
    fs::set_permissions(&target, fs::Permissions::from_mode(file.mode))?;
    Ok(())
}

/// Gives everything that this build touched the recipe's time.
fn stamp(tree: &Path) -> Result<()> {
    let mut find = Command::new("find");
    let newer = format!("@{EPOCH}");
    find.arg(tree).args([
        "-newermt",
        &newer,
        "-exec",
        "touch",
        "--no-dereference",
        "--date",
    ]);
    find.args([OsStr::new(&newer), OsStr::new("{}"), OsStr::new("+")]);
    output(&mut find).map(drop)
}
