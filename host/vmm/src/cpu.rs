//! The processor that a machine has seen: a section of its state, checked before a machine goes on from
//! there. A guest keeps in mind what it was offered, and would fail much later, and anyhow, without it.

use anyhow::{Context, Result};
use machine::{Kvm, cpuid};
use snapshot_format::{CpuContract, CpuMismatch};

/// The section's name. A state may lack it.
pub(crate) const CPU: &str = "cpu";

/// What guests see on this host; the counter's rate is each machine's own.
pub(crate) fn contract(kvm: &Kvm) -> Result<CpuContract> {
    let identity = cpuid::identity(kvm).context("Asking what guests see of the processor")?;
    Ok(CpuContract {
        vendor: identity.vendor,
        features: identity.features,
        xsave_size: identity.xsave_size,
        tsc_khz: 0,
    })
}

/// Whether a machine that has seen `saved` can go on here. Its counter's rate is set, or refused, when
/// its processors are loaded.
pub(crate) fn check(saved: Option<&CpuContract>, host: &CpuContract) -> Result<(), CpuMismatch> {
    saved.map_or(Ok(()), |saved| saved.fits(host, true))
}
