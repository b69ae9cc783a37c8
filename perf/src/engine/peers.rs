//! Which other engines are measured beside ours.

use super::cloud_hypervisor::CloudHypervisorEngine;
use super::firecracker::FirecrackerEngine;
use super::peer::PeerEngine;
use super::qemu::QemuEngine;
use std::path::PathBuf;

/// Their programs.
#[derive(clap::Args)]
pub(crate) struct PeerArgs {
    /// A QEMU with a `microvm` machine
    #[arg(long)]
    qemu: Option<PathBuf>,
    /// A Firecracker
    #[arg(long)]
    firecracker: Option<PathBuf>,
    /// A Cloud Hypervisor; needs a kernel with PCI
    #[arg(long, requires = "cloud_hypervisor_kernel")]
    cloud_hypervisor: Option<PathBuf>,
    /// The kernel for Cloud Hypervisor
    #[arg(long)]
    cloud_hypervisor_kernel: Option<PathBuf>,
}

impl PeerArgs {
    /// Those that were given.
    pub(crate) fn engines(&self) -> Vec<Box<dyn PeerEngine>> {
        let mut peers: Vec<Box<dyn PeerEngine>> = Vec::new();
        if let Some(program) = self.qemu.clone() {
            peers.push(Box::new(QemuEngine { program }));
        }
        if let Some(program) = self.firecracker.clone() {
            peers.push(Box::new(FirecrackerEngine { program }));
        }
        let kernel = self.cloud_hypervisor_kernel.clone();
        if let Some((program, kernel)) = self.cloud_hypervisor.clone().zip(kernel) {
            peers.push(Box::new(CloudHypervisorEngine { program, kernel }));
        }
        peers
    }
}
