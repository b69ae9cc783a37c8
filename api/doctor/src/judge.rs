//! What the facts mean.

mod groups;
mod kvm_module;
mod tls;

use crate::host::HostFacts;
use crate::probe::{KvmFacts, ProbeOutcome, ProbeReport, UserfaultfdFacts, WallFacts};
use crate::{Finding, Level};
use control::{JailMode, Wall, list_missing};

/// Below this a guest kernel does not come up in useful time: real hardware runs thousands, full
/// emulation of the whole host some hundred, a host that interprets guest kernels about one.
const SLOWEST: f64 = 20.0;
/// Descriptors of the service for one sandbox: control, process, log, link, and a connection or
/// two.
const FILES_PER_SANDBOX: u64 = 8;
/// Processes and threads of one sandbox on the host, at most: vCPUs, event loop, log.
const TASKS_PER_SANDBOX: u64 = 12;
/// Disk that each sandbox should be able to write, MiB.
const DISK_PER_SANDBOX: u64 = 256;
/// Above this a change of memory slots shows the cost that kernels have since 6.18, microseconds.
const SLOW_SLOT_US: f64 = 1000.0;

/// All findings, in the order in which they matter.
#[must_use]
pub fn judge(facts: &HostFacts) -> Vec<Finding> {
    let mut findings = vec![config(facts)];
    findings.extend(facts.tls.as_ref().map(tls::judge));
    findings.extend(files(facts));
    match &facts.probe {
        Ok(probe) => findings.extend(virtualization(facts, probe)),
        Err(error) => findings.push(Finding::bad(
            Level::Unusable,
            "virtualization",
            error.clone(),
            "Nothing is known about virtual machines on this host.",
            "Build or install hatchery-vmm, and name it by `vmm` or --vmm.",
        )),
    }
    findings.extend(kvm_module::judge(&facts.modules));
    findings.push(groups::judge(facts.cgroup, &facts.groups));
    findings.push(names(&facts.name_servers));
    findings.push(debugfs(facts));
    findings.push(open_files(facts));
    findings.push(tasks(facts));
    findings.push(memory(facts));
    findings.push(overcommit(facts));
    findings.push(disk(facts));
    findings
}

fn config(facts: &HostFacts) -> Finding {
    match &facts.config {
        Ok(()) if facts.has_key => Finding::fine("configuration", "valid"),
        Ok(()) => Finding::bad(
            Level::Note,
            "configuration",
            "valid, without an API key",
            "`hatchery serve` does not start before it has one.",
            "Set HATCHERY_API_KEYS; a key that every SDK accepts is `e2b_` and 40 lowercase hex \
             digits.",
        ),
        Err(problem) => Finding::bad(
            Level::Unusable,
            "configuration",
            problem.clone(),
            "`hatchery serve` does not start.",
            "Correct the configuration; api/hatchery.toml has every key.",
        ),
    }
}

fn files(facts: &HostFacts) -> Vec<Finding> {
    let missing = facts.files.iter().filter_map(|(what, path, error)| {
        let error = error.as_ref()?;
        Some(Finding::bad(
            Level::Unusable,
            "files",
            format!("{what} {}: {error}", path.display()),
            "Sandboxes that need it cannot be created.",
            "Build it (`cargo xtask up` does) or set its path in the configuration.",
        ))
    });
    let missing: Vec<_> = missing.collect();
    if missing.is_empty() {
        let count = facts.files.len();
        return vec![Finding::fine(
            "files",
            format!("all {count} programs and images are there"),
        )];
    }
    missing
}

/// Who answers sandboxes' questions for names.
fn names(servers: &Result<usize, String>) -> Finding {
    let found = match servers {
        Ok(0) => "this host has no name server".to_owned(),
        Ok(1) => return Finding::fine("names", "1 name server"),
        Ok(count) => return Finding::fine("names", format!("{count} name servers")),
        Err(error) => error.clone(),
    };
    Finding::bad(
        Level::Degraded,
        "names",
        found,
        "Sandboxes find no names, unless they are created with name servers of their own.",
        "Put `nameserver` lines into /etc/resolv.conf, or create sandboxes with \
         network.dnsServers.",
    )
}

fn virtualization(facts: &HostFacts, probe: &ProbeReport) -> Vec<Finding> {
    let mut findings = vec![kvm(facts, &probe.kvm)];
    if probe.kvm.ok {
        findings.push(speed(facts, &probe.kvm));
        findings.push(slots(facts, &probe.kvm));
    }
    findings.push(match (&probe.io_uring.ok, &probe.io_uring.error) {
        (true, _) => Finding::fine("io_uring", "allowed"),
        (false, error) => Finding::bad(
            Level::Unusable,
            "io_uring",
            error.clone().unwrap_or_else(|| "not allowed".into()),
            "A sandbox's event loop cannot run.",
            "Set kernel.io_uring_disabled=0, and allow io_uring_setup in the container's seccomp \
             profile.",
        ),
    });
    findings.push(userfaultfd(facts, &probe.userfaultfd));
    findings.push(walls(facts.jail, &probe.walls));
    findings
}

/// What VM processes are behind.
fn walls(mode: JailMode, walls: &WallFacts) -> Finding {
    let names: Vec<_> = Wall::ALL.map(Wall::name).into();
    let found = match &walls.error {
        None if walls.ok => return Finding::fine("walls", names.join(", ")),
        Some(error) => format!("not known: {error}"),
        None if walls.missing.is_empty() => "not known".to_owned(),
        None => list_missing(&walls.missing),
    };
    let (level, consequence) = match mode {
        JailMode::Required => (Level::Unusable, "No sandbox starts: jail = \"required\"."),
        JailMode::Degraded => (
            Level::Degraded,
            "What takes over a VM process reaches further into this host.",
        ),
    };
    let remedy = "Do what is in brackets for each; jail = \"degraded\" starts sandboxes without \
                  these walls.";
    Finding::bad(level, "walls", found, consequence, remedy)
}

/// Needed with `clones.lazy` only.
fn userfaultfd(facts: &HostFacts, fault: &UserfaultfdFacts) -> Finding {
    let why = |outcome: &ProbeOutcome| outcome.error.clone().unwrap_or("not allowed".into());
    let setting = match fault.unprivileged {
        Some(true) => ", vm.unprivileged_userfaultfd=1",
        Some(false) => ", vm.unprivileged_userfaultfd=0",
        None => "",
    };
    let (found, remedy) = match (&fault.features, &facts.lazy) {
        _ if !fault.device.ok => (
            format!("/dev/userfaultfd: {}{setting}", why(&fault.device)),
            "Run as root, or give this user access to /dev/userfaultfd; the sysctl alone is not \
             enough, because VM processes may not make the system call.",
        ),
        (Some(features), _) if !features.ok => (why(features), "Use Linux 6.7 or newer."),
        (_, Some(Err(error))) => (
            error.clone(),
            "Put hatchery-pager beside the VM program (`cargo xtask up` builds it).",
        ),
        _ => {
            let found = format!("/dev/userfaultfd has all that is needed{setting}");
            return Finding::fine("userfaultfd", found);
        }
    };
    let (level, consequence) = match facts.lazy {
        Some(_) => (
            Level::Degraded,
            "clones.lazy is set, but stored machines are put into memory whole before they run.",
        ),
        None => (
            Level::Note,
            "clones.lazy, which is off, would not do anything.",
        ),
    };
    Finding::bad(level, "userfaultfd", found, consequence, remedy)
}

fn kvm(facts: &HostFacts, kvm: &KvmFacts) -> Finding {
    if kvm.ok {
        let absent = match kvm.optional_missing.as_slice() {
            [] => String::new(),
            missing => format!(" (not needed, absent: {})", missing.join(", ")),
        };
        return Finding::fine("kvm", format!("/dev/kvm has all that is needed{absent}"));
    }
    let (found, remedy) = match &kvm.error {
        Some(error) if facts.cpu_virtualizes => (
            error.clone(),
            "Load kvm_intel or kvm_amd, and give this user access to /dev/kvm (group kvm).",
        ),
        Some(error) => (
            format!("{error}; the processor does not offer virtualization"),
            "Switch virtualization on in the firmware, or nested virtualization in the host above; \
             `cargo xtask up` falls back to the emulated lab by itself.",
        ),
        None => (
            format!("/dev/kvm lacks {}", kvm.missing.join(", ")),
            "Use a kernel with these capabilities.",
        ),
    };
    Finding::bad(
        Level::Unusable,
        "kvm",
        found,
        "No virtual machine can be made here.",
        remedy,
    )
}

fn speed(facts: &HostFacts, kvm: &KvmFacts) -> Finding {
    let speed = &kvm.supervisor_speed;
    let Some(millions) = speed.million_instructions_per_second.filter(|_| speed.ok) else {
        return Finding::bad(
            Level::Degraded,
            "guest speed",
            speed.error.clone().unwrap_or_else(|| "not measured".into()),
            "It is not known whether guest kernels run at a useful speed.",
            "Boot one by hand: hatchery-vmm run --kernel … --agent ….",
        );
    };
    let found = format!("guest kernels run {millions:.1} million instructions/s");
    if millions >= SLOWEST {
        return Finding::fine("guest speed", found);
    }
    let flags = if facts.cpu_virtualizes {
        ""
    } else {
        "; the processor offers no virtualization"
    };
    Finding::bad(
        Level::Unusable,
        "guest speed",
        format!("{found}{flags}"),
        "This /dev/kvm interprets guest kernels: Linux does not come up in useful time.",
        "Use a host with hardware virtualization, or the emulated lab (`cargo xtask up` chooses it \
         by itself).",
    )
}

/// Kernels since 6.18 make a change of memory slots slow once the whole interrupt controller is in
/// the kernel. Our machines do neither, so this is for those who compare.
fn slots(facts: &HostFacts, kvm: &KvmFacts) -> Finding {
    let Some(slow) = kvm
        .times_us
        .slot_after_full_irqchip
        .filter(|us| *us > SLOW_SLOT_US)
    else {
        return Finding::fine(
            "memory slots",
            format!("kernel {}: no late cost", facts.kernel),
        );
    };
    Finding::bad(
        Level::Note,
        "memory slots",
        format!(
            "kernel {}: {:.1} ms for a late change of memory slots",
            facts.kernel,
            slow / 1e3
        ),
        "VMMs that add memory after the in-kernel interrupt controller are slow to start here. \
         Hatchery's machines are not.",
        "None is needed.",
    )
}

fn debugfs(facts: &HostFacts) -> Finding {
    if !facts.debugfs {
        return Finding::fine("debugfs", "off");
    }
    Finding::bad(
        Level::Note,
        "debugfs",
        "on",
        "Each virtual machine gets a folder of files there, under one lock of the whole host: some \
         60 KiB and part of its start and end.",
        "On a host for sandboxes only, boot with debugfs=off.",
    )
}

fn open_files(facts: &HostFacts) -> Finding {
    let needed = u64::try_from(facts.max_sandboxes).unwrap_or(u64::MAX);
    let needed = needed
        .saturating_mul(FILES_PER_SANDBOX)
        .saturating_add(1024);
    match facts.open_files {
        Some(limit) if limit < needed => Finding::bad(
            Level::Degraded,
            "open files",
            format!("at most {limit}"),
            format!(
                "{} sandboxes with their clients need about {needed}.",
                facts.max_sandboxes
            ),
            "Raise LimitNOFILE (systemd) or `ulimit -Hn`, or lower limits.max_sandboxes.",
        ),
        limit => Finding::fine(
            "open files",
            limit.map_or("no limit".into(), |n| n.to_string()),
        ),
    }
}

fn tasks(facts: &HostFacts) -> Finding {
    let needed = u64::try_from(facts.max_sandboxes).unwrap_or(u64::MAX);
    let needed = needed.saturating_mul(TASKS_PER_SANDBOX).saturating_add(256);
    match facts.tasks {
        Some(limit) if limit < needed => Finding::bad(
            Level::Degraded,
            "processes",
            format!("at most {limit} processes and threads"),
            format!("{} sandboxes need up to {needed}.", facts.max_sandboxes),
            "Raise kernel.pid_max, kernel.threads-max, TasksMax (systemd) or pids.max (cgroup), or \
             lower limits.max_sandboxes.",
        ),
        limit => Finding::fine(
            "processes",
            limit.map_or("no limit".into(), |n| n.to_string()),
        ),
    }
}

fn memory(facts: &HostFacts) -> Finding {
    let found = format!(
        "{} MiB, {} MiB available",
        facts.memory_mb, facts.available_mb
    );
    let one = u64::from(facts.largest_mb);
    if facts.available_mb < one + 128 {
        return Finding::bad(
            Level::Unusable,
            "memory",
            found,
            format!("Not even one sandbox of {one} MiB fits."),
            "Free some memory, or lower memory_mb of the templates.",
        );
    }
    let all = u64::try_from(facts.max_sandboxes)
        .unwrap_or(u64::MAX)
        .saturating_mul(one);
    if all > facts.memory_mb {
        return Finding::bad(
            Level::Note,
            "memory",
            found,
            format!(
                "{} sandboxes that use all their {one} MiB need {all}.",
                facts.max_sandboxes
            ),
            "Fine while most use less: memory is taken when it is touched. Otherwise lower \
             limits.max_sandboxes.",
        );
    }
    Finding::fine("memory", found)
}

fn overcommit(facts: &HostFacts) -> Finding {
    let mode = format!("vm.overcommit_memory={}", facts.overcommit);
    if facts.overcommit != 2 {
        return Finding::fine("overcommit", mode);
    }
    Finding::bad(
        Level::Degraded,
        "overcommit",
        mode,
        "Each sandbox counts with all its memory, touched or not.",
        "Set vm.overcommit_memory=0 or 1.",
    )
}

fn disk(facts: &HostFacts) -> Finding {
    let disk = match &facts.disk {
        Ok(disk) => disk,
        Err(error) => {
            return Finding::bad(
                Level::Unusable,
                "disk",
                error.clone(),
                "`hatchery serve` cannot keep its data.",
                "Set data_dir to a folder that this user can write.",
            );
        }
    };
    let found = format!("{}: {} MiB free", disk.path.display(), disk.free_mb);
    let wanted = u64::try_from(facts.max_sandboxes).unwrap_or(u64::MAX);
    let wanted = wanted.saturating_mul(DISK_PER_SANDBOX);
    if disk.free_mb < wanted {
        return Finding::bad(
            Level::Degraded,
            "disk",
            found,
            format!(
                "{} sandboxes that write {DISK_PER_SANDBOX} MiB each need {wanted}; when the disk \
                 is full, those that write wait until there is room.",
                facts.max_sandboxes
            ),
            "Set data_dir to a larger disk, or lower limits.max_sandboxes.",
        );
    }
    if !disk.unnamed_files {
        return Finding::bad(
            Level::Note,
            "disk",
            format!("{found}, without unnamed files"),
            "A crash within a narrow window may leave an empty file; the next start removes it.",
            "Use ext4, xfs, btrfs or tmpfs for data_dir.",
        );
    }
    Finding::fine("disk", found)
}

#[cfg(test)]
mod test;
