//! From the kernel's first user-space instruction to a guest that can serve.
//!
//! The program is `/init` of a small initial file system. It mounts the disk, moves onto it, mounts
//! what Linux programs expect, makes the cgroup of user processes and connects. It waits for
//! nothing: all drivers are built in, so the disk is there before the first instruction. Whatever a
//! sandbox cannot be without ends the program with a line in the kernel's log; the host sees the
//! kernel's panic and the line.

use crate::agent::Agent;
use crate::card;
use crate::cgroups::{CgroupTable, put_number};
use crate::identity::{GENERATION, MACHINE_ID};
use crate::link::HostLink;
use crate::sys::file::{
    O_CREAT, O_DIRECTORY, O_PATH, O_RDWR, O_WRONLY, PathBase, chmod, mkdir, open, replace, symlink,
    sync, write_setting,
};
use crate::sys::network::loopback_up;
use crate::sys::system::{
    MS_BIND, MS_MOVE, MS_NOATIME, MS_NODEV, MS_NOEXEC, MS_NOSUID, chdir, chroot, log, mount,
};
use crate::sys::{Errno, spawn, system};
use core::ffi::CStr;
use wire::boot_flags;

/// The root disk.
const DISK: &CStr = c"/dev/vda";
/// Nothing in the background: the kernel would read all bitmaps of the disk and zero all of its
/// unused inodes, in every clone again, where most need neither.
const DISK_OPTIONS: &CStr = c"no_prefetch_block_bitmaps,noinit_itable";
/// The cgroup of everything the agent starts.
const CGROUP: &CStr = c"/sys/fs/cgroup/user";
/// What it, and each command's cgroup below it, has limits and counters of.
const CONTROLLERS: &str = "+memory +pids +cpu";
/// Open files of user processes (soft, hard); the agent's own stay below.
const OPEN_FILES: (u64, u64) = (65_536, 1_048_576);

/// One mount of the list below.
struct MountEntry {
    kind: &'static CStr,
    target: &'static CStr,
    flags: usize,
    data: &'static CStr,
}

const SAFE: usize = MS_NOSUID | MS_NODEV | MS_NOEXEC;

/// After the root disk, in order. `/tmp` stays on the disk: people put large files there.
const MOUNTS: [MountEntry; 6] = [
    MountEntry {
        kind: c"proc",
        target: c"/proc",
        flags: SAFE,
        data: c"",
    },
    MountEntry {
        kind: c"sysfs",
        target: c"/sys",
        flags: SAFE,
        data: c"",
    },
    MountEntry {
        kind: c"devpts",
        target: c"/dev/pts",
        flags: MS_NOSUID | MS_NOEXEC,
        data: c"gid=5,mode=620,ptmxmode=666",
    },
    MountEntry {
        kind: c"tmpfs",
        target: c"/dev/shm",
        flags: MS_NOSUID | MS_NODEV,
        data: c"mode=1777",
    },
    MountEntry {
        kind: c"tmpfs",
        target: c"/run",
        flags: MS_NOSUID | MS_NODEV,
        data: c"mode=755,size=25%",
    },
    MountEntry {
        kind: c"cgroup2",
        target: c"/sys/fs/cgroup",
        flags: SAFE,
        data: c"nsdelegate",
    },
];

const LINKS: [(&CStr, &CStr); 4] = [
    (c"/proc/self/fd", c"/dev/fd"),
    (c"/proc/self/fd/0", c"/dev/stdin"),
    (c"/proc/self/fd/1", c"/dev/stdout"),
    (c"/proc/self/fd/2", c"/dev/stderr"),
];

/// Devices the kernel gives to root alone and that everybody may use, as on any distribution.
const OPEN_NODES: [&CStr; 2] = [c"/dev/fuse", c"/dev/net/tun"];

/// Settings of the kernel that differ from its own, and how they are written. Without proactive
/// compaction: its thread wakes twice a second in every guest, for ever, to find that there is
/// nothing to do.
const SETTINGS: [(&CStr, &str); 1] = [(c"/proc/sys/vm/compaction_proactiveness", "0")];

/// Sets the guest up, serves until the host shuts it down, and ends it.
pub(crate) fn run(agent: &mut Agent, start_ns: u64) -> ! {
    let mut flags = boot_flags::INIT;
    if let Err((what, e)) = enter_disk() {
        log(format_args!("cannot {what}: errno {}", e.0));
        spawn::exit(1);
    }
    set_up();
    agent.tasks.identity.look();
    match make_cgroups(&mut agent.tasks.cgroups) {
        Ok(()) => flags |= boot_flags::CGROUP | boot_flags::FREEZER,
        Err(e) => log(format_args!(
            "user processes are not confined: errno {}",
            e.0
        )),
    }
    match agent.run(HostLink::vsock(flags, start_ns)) {
        Ok(()) => {
            spawn::kill_all();
            sync();
            system::restart();
        }
        Err(e) => log(format_args!("cannot serve: errno {}", e.0)),
    }
    spawn::exit(1)
}

/// Mounts the devices and the disk, and makes the disk the root.
fn enter_disk() -> Result<(), (&'static str, Errno)> {
    let _ = mkdir(PathBase::Cwd, c"/dev", 0o755);
    mount(
        c"dev",
        c"/dev",
        c"devtmpfs",
        MS_NOSUID | MS_NOEXEC,
        c"mode=755",
    )
    .map_err(|e| ("mount /dev", e))?;
    standard_descriptors().map_err(|e| ("open /dev/null and /dev/kmsg", e))?;
    let _ = mkdir(PathBase::Cwd, c"/newroot", 0o755);
    mount(DISK, c"/newroot", c"ext4", MS_NOATIME, DISK_OPTIONS)
        .map_err(|e| ("mount /dev/vda as ext4", e))?;
    let _ = mkdir(PathBase::Cwd, c"/newroot/dev", 0o755);
    mount(c"/dev", c"/newroot/dev", c"", MS_MOVE, c"").map_err(|e| ("move /dev", e))?;
    chdir(c"/newroot").map_err(|e| ("enter the disk", e))?;
    mount(c".", c"/", c"", MS_MOVE, c"").map_err(|e| ("move the root", e))?;
    chroot(c".").map_err(|e| ("change the root", e))?;
    chdir(c"/").map_err(|e| ("enter the root", e))
}

/// Nothing on 0 and 1, the kernel's log on 2. The kernel may have started us with none of them.
fn standard_descriptors() -> Result<(), Errno> {
    let null = open(PathBase::Cwd, c"/dev/null", O_RDWR, 0)?;
    let log = open(PathBase::Cwd, c"/dev/kmsg", O_WRONLY, 0)?;
    for (fd, number) in [(&null, 0), (&null, 1), (&log, 2)] {
        replace(fd, number)?;
    }
    for fd in [null, log] {
        if fd.raw() <= 2 {
            core::mem::forget(fd);
        }
    }
    Ok(())
}

/// What programs expect. A guest without some of it is still a guest: failures are only logged.
fn set_up() {
    for (i, m) in MOUNTS.iter().enumerate() {
        let mut mounted = mount(m.kind, m.target, m.kind, m.flags, m.data);
        if mounted == Err(Errno::NOENT) {
            let _ = mkdir(PathBase::Cwd, m.target, 0o755);
            mounted = mount(m.kind, m.target, m.kind, m.flags, m.data);
        }
        if let Err(e) = mounted {
            log(format_args!(
                "cannot mount number {i} of the list: errno {}",
                e.0
            ));
        }
    }
    for (target, path) in LINKS {
        let _ = symlink(target, path);
    }
    for node in OPEN_NODES {
        let _ = chmod(node, 0o666);
    }
    if let Err(e) = loopback_up() {
        log(format_args!(
            "cannot bring the loopback interface up: errno {}",
            e.0
        ));
    }
    if let Err((what, e)) = card::set_up() {
        log(format_args!("no network: cannot {what}: errno {}", e.0));
    }
    if let Err(e) = identity_files() {
        log(format_args!(
            "cannot make the files of the identity: errno {}",
            e.0
        ));
    }
    for (path, value) in SETTINGS {
        if let Err(e) = write_setting(PathBase::Cwd, path, value) {
            log(format_args!(
                "cannot write {value} to {path:?}: errno {}",
                e.0
            ));
        }
    }
    let _ = system::set_hostname(b"sandbox");
    if let Err(e) = system::limit_open_files(OPEN_FILES.0, OPEN_FILES.1) {
        log(format_args!(
            "cannot raise the limit of open files: errno {}",
            e.0
        ));
    }
}

/// Makes the files that each new identity writes to, so that a clone's first does not.
fn identity_files() -> Result<(), Errno> {
    mkdir(PathBase::Cwd, c"/run/hatchery", 0o755)?;
    for path in [GENERATION, MACHINE_ID] {
        open(PathBase::Cwd, path, O_WRONLY | O_CREAT, 0o444)?;
    }
    mount(MACHINE_ID, c"/etc/machine-id", c"", MS_BIND, c"")
}

/// Makes the cgroup of all user processes, and those of commands below it. Its limits leave room
/// for the kernel and the agent, so that neither a fork bomb nor hungry processes can take them
/// down; and its processes together weigh as much as the agent alone. A command may have a quarter
/// of the tasks: while one uses up its share, others begin.
fn make_cgroups(cgroups: &mut CgroupTable) -> Result<(), Errno> {
    write_setting(
        PathBase::Cwd,
        c"/sys/fs/cgroup/cgroup.subtree_control",
        CONTROLLERS,
    )?;
    mkdir(PathBase::Cwd, CGROUP, 0o755)?;
    let cgroup = open(PathBase::Cwd, CGROUP, O_PATH | O_DIRECTORY, 0)?;
    let memory = system::memory_bytes()?;
    let (bytes, tasks) = user_limits(memory);
    put_number(&cgroup, c"memory.max", bytes)?;
    put_number(&cgroup, c"pids.max", tasks)?;
    write_setting(
        PathBase::At(&cgroup),
        c"cgroup.subtree_control",
        CONTROLLERS,
    )?;
    cgroups.confine(cgroup, tasks / 4)
}

/// Bytes and tasks for user processes in a guest with so much memory: all but 16 MiB and a
/// thirty-second; and three quarters of the tasks the kernel allows (one per 128 KiB), of at most
/// 32768 ids.
fn user_limits(memory: u64) -> (u64, u64) {
    const MIB: u64 = 1 << 20;
    let bytes = memory.saturating_sub(16 * MIB + memory / 32).max(16 * MIB);
    let tasks = (memory / (128 * 1024) / 4 * 3).clamp(256, 24_576);
    (bytes, tasks)
}
