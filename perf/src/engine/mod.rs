//! What can run the agent: a VM that boots the same kernel, agent and disk, and gives a byte
//! stream.

pub(crate) mod child;
pub(crate) mod cloud_hypervisor;
pub(crate) mod firecracker;
pub(crate) mod hatchery;
pub(crate) mod net_process;
mod no_xsave;
pub(crate) mod peer;
pub(crate) mod peers;
pub(crate) mod qemu;
mod qmp;
#[cfg(test)]
mod stand_in;
mod started;

use crate::agent::AgentReady;
use anyhow::Result;
use std::path::PathBuf;

/// What every engine boots.
#[derive(Clone, Debug)]
pub(crate) struct GuestSpec {
    /// Folder with `hatchery-vmm`, `hatchery-agent`, `vmlinux`, `base.ext4`.
    pub(crate) dist: PathBuf,
    /// vCPUs.
    pub(crate) vcpus: u8,
    /// Guest memory, MiB.
    pub(crate) memory_mib: u32,
    /// Whether a peer's guest has a network card, at whose other end this machine is.
    pub(crate) network: bool,
}

/// Where the time of one cold boot went, nanoseconds of the host's monotonic clock. Under
/// instruction counting one nanosecond is one instruction.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BootTimes {
    /// Program start to the first entry into the guest.
    pub(crate) vmm_ns: u64,
    /// First entry to the agent's first instruction.
    pub(crate) kernel_ns: u64,
    /// The agent's first instruction to its greeting.
    pub(crate) agent_ns: u64,
}

impl BootTimes {
    /// Splits a boot by what the VM process and the agent reported.
    pub(crate) fn split(
        spawned_ns: u64,
        first_run_ns: u64,
        greeted_ns: u64,
        ready: AgentReady,
    ) -> Self {
        let agent_ns = ready.ready_ns.saturating_sub(ready.agent_start_ns);
        Self {
            vmm_ns: first_run_ns.saturating_sub(spawned_ns),
            kernel_ns: greeted_ns
                .saturating_sub(first_run_ns)
                .saturating_sub(agent_ns),
            agent_ns,
        }
    }
}

/// Nanoseconds of CLOCK_MONOTONIC.
pub(crate) fn now_ns() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let part = |n: i64| u64::try_from(n).unwrap_or(0);
    part(t.tv_sec) * 1_000_000_000 + part(t.tv_nsec)
}

/// Runs `action` and returns how many nanoseconds it took.
pub(crate) fn timed<T>(action: impl FnOnce() -> Result<T>) -> Result<(T, u64)> {
    let start = now_ns();
    let value = action()?;
    Ok((value, now_ns() - start))
}
