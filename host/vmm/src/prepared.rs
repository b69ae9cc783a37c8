//! What every VM process needs and none of them changes: made once by a zygote, or by a VM process
//! that was started by itself.

use crate::confine;
use anyhow::{Context, Result};
use control::JailMode;
use jail::Filter;
use machine::{CpuContract, Kvm};
use std::os::fd::AsFd;

/// How much sooner than others a VM process is ended when the host has no memory left, of 1000.
const OOM_SCORE: &str = "500";

/// The host's KVM with what it offers, what guests see of that, and the compiled filter.
#[derive(Debug)]
pub(crate) struct PreparedHost {
    pub(crate) kvm: Kvm,
    pub(crate) filter: Filter,
    /// What guests see of the processor.
    pub(crate) cpu: CpuContract,
    /// Whether a VM process may do with fewer walls.
    pub(crate) mode: JailMode,
}

impl PreparedHost {
    /// Opens and compiles.
    pub(crate) fn new(mode: JailMode) -> Result<Self> {
        // The kernel, short of memory, is to end a sandbox and not the service. What a zygote forks
        // has it from the zygote. Without it all works.
        let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE);
        let kvm = Kvm::open()?;
        kvm.prepare()?;
        Ok(Self {
            cpu: kvm
                .cpu_contract()
                .context("Asking what guests see of the processor")?,
            kvm,
            filter: confine::filter()?,
            mode,
        })
    }
}

/// Makes VM processes for a service until it is gone; standard input is its socket. `Some`: this is
/// one of them, with its control socket and standard error in their places.
pub(crate) fn zygote(mode: JailMode) -> Result<Option<PreparedHost>> {
    let socket = std::io::stdin().as_fd().try_clone_to_owned()?;
    let prepared = PreparedHost::new(mode)?;
    // The first thread of a process has the standard library look for what the C library offers.
    let _ = std::thread::spawn(|| ()).join();
    let awake = prepared.kvm.keep_awake()?;
    match control::serve_zygote(socket, mode, confine::begin())? {
        control::Role::Ended => Ok(None),
        control::Role::Vm { control, stderr } => {
            drop(awake);
            rustix::stdio::dup2_stdin(&control)?;
            rustix::stdio::dup2_stderr(&stderr)?;
            Ok(Some(prepared))
        }
    }
}
