//! The guest's figures, from `/proc` and the root file system.

use crate::sys::event::{monotonic_ns, wall_ns};
use crate::sys::file::{O_RDONLY, PathBase, disk_space, open};
use crate::sys::{Fd, read};
use core::ffi::CStr;
use wire::Sysinfo;

/// Everything now; what cannot be read is 0.
pub(crate) fn figures(cgroup: Option<&Fd>) -> Sysinfo {
    let mut buffer = [0; 4096];
    let mut info = Sysinfo {
        uptime_ns: monotonic_ns(),
        wall_clock_ns: wall_ns(),
        ..Sysinfo::default()
    };
    let memory = contents(PathBase::Cwd, c"/proc/meminfo", &mut buffer);
    let kib = |name: &[u8]| field(memory, name).saturating_mul(1024);
    info.memory_total = kib(b"MemTotal:");
    info.memory_available = kib(b"MemAvailable:");
    info.memory_cached = kib(b"Cached:");
    processors(
        contents(PathBase::Cwd, c"/proc/stat", &mut buffer),
        &mut info,
    );
    if let Ok((total, free)) = disk_space(c"/") {
        info.disk_total = total;
        info.disk_free = free;
    }
    if let Some(cgroup) = cgroup {
        let tasks = number(contents(PathBase::At(cgroup), c"pids.current", &mut buffer));
        info.user_tasks = u32::try_from(tasks).unwrap_or(u32::MAX);
    }
    info
}

/// The front of a small file.
fn contents<'a>(dir: PathBase<'_>, path: &CStr, buffer: &'a mut [u8]) -> &'a [u8] {
    let Ok(file) = open(dir, path, O_RDONLY, 0) else {
        return &[];
    };
    let n = read(&file, buffer).unwrap_or(0);
    &buffer[..n]
}

/// The number after a name at the begin of a line.
pub(crate) fn field(text: &[u8], name: &[u8]) -> u64 {
    text.split(|&b| b == b'\n')
        .find_map(|line| line.strip_prefix(name))
        .map_or(0, number)
}

/// The first number of a text.
fn number(text: &[u8]) -> u64 {
    let digits = text
        .iter()
        .skip_while(|b| !b.is_ascii_digit())
        .take_while(|b| b.is_ascii_digit());
    digits.fold(0u64, |n, d| {
        n.saturating_mul(10).saturating_add(u64::from(d - b'0'))
    })
}

/// Counts the processors and the time they were busy: `user nice system idle iowait irq softirq
/// steal`, in ticks of 10 ms.
fn processors(stat: &[u8], info: &mut Sysinfo) {
    const TICK_NS: u64 = 10_000_000;
    for line in stat
        .split(|&b| b == b'\n')
        .filter(|l| l.starts_with(b"cpu"))
    {
        if line.get(3) != Some(&b' ') {
            info.cpus += 1;
            continue;
        }
        let mut busy = 0u64;
        let values = line[3..].split(|&b| b == b' ').filter(|v| !v.is_empty());
        for (i, value) in values.take(8).enumerate() {
            if i != 3 && i != 4 {
                busy = busy.saturating_add(number(value));
            }
        }
        info.cpu_busy_ns = busy.saturating_mul(TICK_NS);
    }
}
