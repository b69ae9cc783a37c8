//! What a VM process used: counters of the machine, and memory as the kernel accounts it.

use crate::device_list::DeviceMetrics;
use control::VmStats;
use machine::VcpuThread;
use std::fs::File;
use std::io::{Read, Seek};
use std::ops::Range;
use std::sync::atomic::Ordering;

/// Most bytes of accounts: a VM process has about 150 mappings of under 1 KiB of text each.
const MAX_SMAPS: u64 = 1 << 20;
/// Room for what there usually is.
const TYPICAL_SMAPS: usize = 32 << 10;

/// Reads the process's own accounts. The file is opened before the process is confined.
#[derive(Debug)]
pub(crate) struct ProcessAccounts {
    smaps: File,
    guest: Vec<Range<usize>>,
}

impl ProcessAccounts {
    /// For a process whose mappings `smaps` tells, and whose guest memory lies at `guest`.
    pub(crate) const fn new(smaps: File, guest: Vec<Range<usize>>) -> Self {
        Self { smaps, guest }
    }

    /// Guest memory that is present, and private memory outside of it, both KiB.
    fn memory_kib(&mut self) -> std::io::Result<(u64, u64)> {
        self.smaps.rewind()?;
        // In one piece: reading it by and by makes the kernel walk the mappings again each time.
        let mut text = String::with_capacity(TYPICAL_SMAPS);
        // `take` also keeps the standard library from asking for the file's size first.
        (&self.smaps).take(MAX_SMAPS).read_to_string(&mut text)?;
        Ok(sum(&text, &self.guest))
    }

    /// All counters.
    pub(crate) fn stats(&mut self, vcpus: &[VcpuThread], metrics: &DeviceMetrics) -> VmStats {
        let total = |count: fn(&VcpuThread) -> u64| vcpus.iter().map(count).sum();
        let first = vcpus
            .first()
            .map_or(0, |v| v.counters().first_run_ns.load(Ordering::Relaxed));
        // Memory that cannot be read is reported as 0: a report must not fail because of it.
        let (guest_resident_kib, overhead_kib) = self.memory_kib().unwrap_or_default();
        VmStats {
            vm_exits: total(VcpuThread::exits),
            io_exits: total(|v| v.counters().io.load(Ordering::Relaxed)),
            ring_enters: metrics.event_loop.enters.get(),
            loop_syscalls: metrics.event_loop.syscalls.get(),
            vsock_rx_bytes: metrics.vsock.from_guest_bytes.get(),
            vsock_tx_bytes: metrics.vsock.to_guest_bytes.get(),
            layer_blocks: metrics.blocks.iter().map(|b| b.layer_blocks.get()).sum(),
            cpu_ns: cpu_ns(),
            guest_resident_kib,
            overhead_kib,
            first_run_ns: first,
        }
    }
}

/// CPU time of the whole process.
fn cpu_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    u64::try_from(
        time.tv_sec
            .saturating_mul(1_000_000_000)
            .saturating_add(time.tv_nsec),
    )
    .unwrap_or(0)
}

/// Sums `/proc/self/smaps`: what is resident in `guest`, and what is private elsewhere.
fn sum(smaps: &str, guest: &[Range<usize>]) -> (u64, u64) {
    let (mut resident, mut overhead) = (0, 0);
    let mut in_guest = false;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(key), Some(value)) = (words.next(), words.next()) else {
            continue;
        };
        let number = || value.parse::<u64>().unwrap_or(0);
        match (key, in_guest) {
            ("Rss:", true) => resident += number(),
            ("Private_Clean:" | "Private_Dirty:", false) => overhead += number(),
            _ => {
                if let Some((start, end)) = mapping(key) {
                    // Neighbours with equal flags are one mapping to the kernel, so guest memory
                    // may be part of a larger one: whoever overlaps it is counted as guest.
                    in_guest = guest.iter().any(|g| g.start < end && start < g.end);
                }
            }
        }
    }
    (resident, overhead)
}

/// The address range at the head of a mapping's lines.
fn mapping(word: &str) -> Option<(usize, usize)> {
    let (start, end) = word.split_once('-')?;
    Some((
        usize::from_str_radix(start, 16).ok()?,
        usize::from_str_radix(end, 16).ok()?,
    ))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn guest_and_other_memory_are_told_apart() {
        let smaps = "\
1000-3000 rw-p 00000000 00:00 0\nSize: 8 kB\nRss: 8 kB\nPrivate_Clean: 1 kB\nPrivate_Dirty: 4 kB
3000-9000 rw-p 00000000 00:00 0 \nRss: 16 kB\nPrivate_Dirty: 16 kB
a000-b000 r-xp 00000000 08:01 12 /bin/x\nRss: 4 kB\nPrivate_Clean: 2 kB\nShared_Clean: 2 kB\n";
        let guest = 0x3000..0x9000;
        assert_eq!(sum(smaps, std::slice::from_ref(&guest)), (16, 7));
    }

    #[test]
    fn this_process_has_accounts() {
        let mut accounts = ProcessAccounts::new(File::open("/proc/self/smaps").unwrap(), vec![]);
        let (resident, overhead) = accounts.memory_kib().unwrap();
        assert!(resident == 0 && overhead > 0);
    }
}
