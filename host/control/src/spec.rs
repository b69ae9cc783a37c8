//! What a machine is to be, where it is saved to and what it is reset to; and the gates that make
//! these valid.

use crate::descriptors::{FdName, MissingFd, check_names};
use crate::device::{DeviceReset, DeviceSpec, DiskSpec, VsockSpec};
use serde::{Deserialize, Serialize};

/// Most vCPUs a sandbox may have.
pub const MAX_VCPUS: u8 = 8;
/// Least guest memory, MiB.
pub const MIN_MEMORY_MIB: u32 = 128;
/// Most guest memory, MiB.
pub const MAX_MEMORY_MIB: u32 = 16 * 1024;
/// Most disks of one sandbox.
pub const MAX_DISKS: usize = 4;
/// Most devices of one sandbox.
pub const MAX_DEVICES: usize = 16;
const MAX_ID: usize = 64;
const MAX_CMDLINE: usize = 1024;

/// Everything a VM process needs to build a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// The sandbox's id, for logs: `[a-z0-9]`, at most 64 bytes.
    pub sandbox_id: String,
    /// Number of vCPUs, 1 to [`MAX_VCPUS`].
    pub vcpus: u8,
    /// Guest memory in MiB, [`MIN_MEMORY_MIB`] to [`MAX_MEMORY_MIB`].
    pub memory_mib: u32,
    /// What its memory and processors are at first.
    pub boot_source: BootSource,
    /// Its virtio devices, in the order the guest finds them.
    pub devices: Vec<DeviceSpec>,
}

/// What a machine is at first: a kernel that boots, or a restore point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BootSource {
    /// A kernel's entry, with empty memory.
    Kernel {
        /// An ELF `vmlinux`, open for reading.
        kernel: FdName,
        /// The agent's ELF, open for reading; the VM process puts it into the guest as `/init`.
        agent: FdName,
        /// Added to the kernel command line that the VM process composes.
        cmdline_extra: String,
        /// The section file of another machine with the same devices: it says which blocks the
        /// disks' parents hold. `None`: they have no parents.
        contents: Option<FdName>,
    },
    /// A restore point: another machine of the same shape as it was saved.
    Snapshot {
        /// All of its memory, sealed. Mapped copy-on-write, never written.
        base_memory: FdName,
        /// Its section file.
        state: FdName,
        /// A layer file with memory that differs from the base memory; copied in.
        delta_layer: Option<FdName>,
        /// Its state, when it is saved, names exactly the pages that it has used and written.
        trial: bool,
    },
    /// A restore point whose memory is not resident: a pager fills it on demand while the machine
    /// runs.
    DemandPaged {
        /// The machine's end of a socket to the pager, which knows whose memory it is.
        pager: FdName,
        /// `/dev/userfaultfd`, open for reading and writing.
        userfaultfd: FdName,
        /// Its section file.
        state: FdName,
    },
}

/// Where the parts of a machine are to be written: empty files, open for reading and writing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaveSpec {
    /// For the layer of memory that is not the base memory's (all of it, if the machine booted).
    pub memory: FdName,
    /// For the section file.
    pub state: FdName,
    /// For the contents of each device that has any (a flat layer for each disk: what is not the
    /// base image's, each block at its place), in the order of [`VmSpec::devices`].
    pub contents: Vec<FdName>,
    /// Whether memory is to be copied ahead while the machine runs, so that it is paused only for
    /// what it writes meanwhile. All in all that is more work. Before it is paused the service has
    /// its word: [`crate::Request::Pause`].
    pub ahead: bool,
}

/// The restore point that a machine is reset to. Its base memory is the one it was configured with.
/// [`ResetSpec::check`] is its gate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetSpec {
    /// The section file.
    pub state: FdName,
    /// A layer file with memory that differs from the base memory; copied in.
    pub delta_layer: Option<FdName>,
    /// What each device begins with, in the order of [`VmSpec::devices`].
    pub devices: Vec<DeviceReset>,
}

/// Why a [`VmSpec`] or a [`ResetSpec`] is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SpecError {
    /// The id is empty, too long or has other characters than `[a-z0-9]`.
    #[error("Sandbox id {0:?} is not 1 to {MAX_ID} characters of [a-z0-9]")]
    Id(String),
    /// vCPU count out of range.
    #[error("{0} vCPUs asked, 1 to {MAX_VCPUS} are possible")]
    Vcpus(u8),
    /// Memory size out of range.
    #[error("{0} MiB of memory asked, {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB} are possible")]
    Memory(u32),
    /// Kernel command line too long or not printable ASCII.
    #[error("Extra kernel command line of {0} bytes is over {MAX_CMDLINE} or not printable ASCII")]
    Cmdline(usize),
    /// Too many disks.
    #[error("{0} disks asked, at most {MAX_DISKS} are possible")]
    Disks(usize),
    /// Too many devices.
    #[error("{0} devices asked, at most {MAX_DEVICES} are possible")]
    Devices(usize),
    /// No link, or more than one.
    #[error("{0} socket devices asked, a machine has one")]
    Vsocks(usize),
    /// A name has no descriptor, or two uses share one.
    #[error(transparent)]
    Fd(#[from] MissingFd),
    /// A reset's devices are not those of the machine.
    #[error("A reset of {asked} devices was asked, the machine has {has}, or others")]
    Reset {
        /// How many were asked.
        asked: usize,
        /// How many it has.
        has: usize,
    },
    /// A disk size that is zero or not a multiple of 4096.
    #[error("Disk size {0} is not a positive multiple of 4096")]
    DiskSize(u64),
}

impl VmSpec {
    /// Checks every field, with `fds` descriptors having come along.
    ///
    /// # Errors
    /// The first field that is out of bounds.
    pub fn check(&self, fds: usize) -> Result<(), SpecError> {
        let id = &self.sandbox_id;
        let id_ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        if id.is_empty() || id.len() > MAX_ID || !id.bytes().all(id_ok) {
            return Err(SpecError::Id(id.chars().take(MAX_ID).collect()));
        }
        if self.vcpus == 0 || self.vcpus > MAX_VCPUS {
            return Err(SpecError::Vcpus(self.vcpus));
        }
        if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&self.memory_mib) {
            return Err(SpecError::Memory(self.memory_mib));
        }
        if let BootSource::Kernel { cmdline_extra, .. } = &self.boot_source {
            let printable = |b: u8| (0x20..0x7f).contains(&b);
            if cmdline_extra.len() > MAX_CMDLINE || !cmdline_extra.bytes().all(printable) {
                return Err(SpecError::Cmdline(cmdline_extra.len()));
            }
        }
        self.check_devices()?;
        // Layers and the link are private; base images, kernels and snapshots may be shared by
        // several uses, but here each name is used once so that each use owns its descriptor.
        let devices = self.devices.iter().flat_map(DeviceSpec::fds);
        Ok(check_names(self.boot_source.fds().chain(devices), fds)?)
    }

    fn check_devices(&self) -> Result<(), SpecError> {
        if self.devices.len() > MAX_DEVICES {
            return Err(SpecError::Devices(self.devices.len()));
        }
        let is_vsock = |device: &&DeviceSpec| matches!(device, DeviceSpec::Vsock(_));
        match self.devices.iter().filter(is_vsock).count() {
            1 => {}
            other => return Err(SpecError::Vsocks(other)),
        }
        let disks = self.disks().count();
        if disks > MAX_DISKS {
            return Err(SpecError::Disks(disks));
        }
        let mut sizes = self.disks().map(|disk| disk.size);
        match sizes.find(|size| *size == 0 || size % 4096 != 0) {
            Some(size) => Err(SpecError::DiskSize(size)),
            None => Ok(()),
        }
    }

    /// Its disks, in the order the guest finds them.
    pub fn disks(&self) -> impl Iterator<Item = &DiskSpec> {
        self.devices.iter().filter_map(|device| match device {
            DeviceSpec::Block(disk) => Some(disk),
            _ => None,
        })
    }

    /// Its link to the service.
    #[must_use]
    pub fn vsock(&self) -> Option<&VsockSpec> {
        self.devices.iter().find_map(|device| match device {
            DeviceSpec::Vsock(vsock) => Some(vsock),
            _ => None,
        })
    }
}

impl BootSource {
    /// The descriptors that it names.
    fn fds(&self) -> impl Iterator<Item = FdName> + use<> {
        let named = match *self {
            Self::Kernel {
                kernel,
                agent,
                contents,
                ..
            } => [Some(kernel), Some(agent), contents],
            Self::Snapshot {
                base_memory,
                state,
                delta_layer,
                ..
            } => [Some(base_memory), Some(state), delta_layer],
            Self::DemandPaged {
                pager,
                userfaultfd,
                state,
            } => [Some(pager), Some(userfaultfd), Some(state)],
        };
        named.into_iter().flatten()
    }
}

impl ResetSpec {
    /// Checks it against the `devices` that the machine has, with `fds` descriptors having come
    /// along.
    ///
    /// # Errors
    /// The devices are others, or a descriptor is missing.
    pub fn check(&self, devices: &[DeviceSpec], fds: usize) -> Result<(), SpecError> {
        let (asked, has) = (self.devices.len(), devices.len());
        let mut pairs = self.devices.iter().zip(devices);
        if asked != has || !pairs.all(|(reset, device)| reset.fits(device)) {
            return Err(SpecError::Reset { asked, has });
        }
        let named = [Some(self.state), self.delta_layer];
        let devices = self.devices.iter().map(DeviceReset::fd);
        Ok(check_names(
            named.into_iter().chain(devices).flatten(),
            fds,
        )?)
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::{Descriptors, SavedLink};

    /// Names of the positions 0 to N - 1.
    fn names<const N: usize>() -> [FdName; N] {
        let mut fds = Descriptors::default();
        [(); N].map(|()| fds.add(crate::pair().unwrap().0))
    }

    fn link(link: FdName) -> VsockSpec {
        let connection = SavedLink::Kept;
        VsockSpec { link, connection }
    }

    fn spec() -> VmSpec {
        let [kernel, agent, socket, base, layer] = names();
        VmSpec {
            sandbox_id: "i1".into(),
            vcpus: 1,
            memory_mib: 512,
            boot_source: BootSource::Kernel {
                kernel,
                agent,
                cmdline_extra: String::new(),
                contents: None,
            },
            devices: vec![
                DeviceSpec::Vsock(link(socket)),
                DeviceSpec::Block(DiskSpec {
                    base,
                    parent: None,
                    layer: Some(layer),
                    size: 4096,
                }),
                DeviceSpec::Rng,
            ],
        }
    }

    fn disk(spec: &mut VmSpec) -> &mut DiskSpec {
        match &mut spec.devices[1] {
            DeviceSpec::Block(disk) => disk,
            other => panic!("{other:?}"),
        }
    }

    fn boot(spec: &mut VmSpec) -> &mut String {
        match &mut spec.boot_source {
            BootSource::Kernel { cmdline_extra, .. } => cmdline_extra,
            _ => panic!("not a boot"),
        }
    }

    fn missing(index: usize, count: usize) -> SpecError {
        SpecError::Fd(MissingFd { index, count })
    }

    #[test]
    fn a_good_spec_passes() {
        assert_eq!(spec().check(5), Ok(()));
        let [base_memory, state, _, _, _, layer, parent] = names();
        let mut from_snapshot = spec();
        from_snapshot.boot_source = BootSource::Snapshot {
            base_memory,
            state,
            delta_layer: Some(layer),
            trial: false,
        };
        disk(&mut from_snapshot).parent = Some(parent);
        assert_eq!(from_snapshot.check(7), Ok(()));
        assert_eq!(from_snapshot.check(6), Err(missing(6, 6)));
        let demand_paged = |pager, userfaultfd| VmSpec {
            boot_source: BootSource::DemandPaged {
                pager,
                userfaultfd,
                state,
            },
            ..spec()
        };
        assert_eq!(demand_paged(base_memory, layer).check(6), Ok(()));
        assert_eq!(
            demand_paged(base_memory, state).check(6),
            Err(missing(1, 6))
        );
    }

    #[test]
    fn each_bound_is_checked() {
        let refuse = |change: fn(&mut VmSpec), fds| {
            let mut s = spec();
            change(&mut s);
            s.check(fds).expect_err("must be refused")
        };
        assert_eq!(refuse(|s| s.vcpus = 0, 5), SpecError::Vcpus(0));
        assert_eq!(refuse(|s| s.vcpus = 9, 5), SpecError::Vcpus(9));
        assert_eq!(refuse(|s| s.memory_mib = 127, 5), SpecError::Memory(127));
        assert_eq!(refuse(|s| disk(s).size = 1, 5), SpecError::DiskSize(1));
        let shared: fn(&mut VmSpec) = |s| s.devices[0] = DeviceSpec::Vsock(link(names::<2>()[1]));
        assert_eq!(refuse(shared, 5), missing(1, 5));
        assert_eq!(refuse(|_| (), 4), missing(4, 4));
        let none: fn(&mut VmSpec) = |s| _ = s.devices.remove(0);
        assert_eq!(refuse(none, 5), SpecError::Vsocks(0));
        let twice: fn(&mut VmSpec) = |s| s.devices.push(s.devices[0].clone());
        assert_eq!(refuse(twice, 5), SpecError::Vsocks(2));
        let many: fn(&mut VmSpec) = |s| {
            let disk = s.devices[1].clone();
            s.devices.extend(vec![disk; MAX_DISKS]);
        };
        assert_eq!(refuse(many, 5), SpecError::Disks(MAX_DISKS + 1));
        let crowd: fn(&mut VmSpec) = |s| s.devices.resize(MAX_DEVICES + 1, DeviceSpec::Rng);
        assert_eq!(refuse(crowd, 5), SpecError::Devices(MAX_DEVICES + 1));
        assert!(matches!(
            refuse(|s| s.sandbox_id = "../x".into(), 5),
            SpecError::Id(_)
        ));
        assert!(matches!(
            refuse(|s| boot(s).push_str("a\nb"), 5),
            SpecError::Cmdline(3)
        ));
    }

    #[test]
    fn a_reset_is_of_the_machine_s_devices() {
        let [state, socket, parent, layer] = names();
        let parent = Some(parent);
        let reset = ResetSpec {
            state,
            delta_layer: Some(layer),
            devices: vec![
                DeviceReset::Vsock(link(socket)),
                DeviceReset::Block { parent },
                DeviceReset::Rng,
            ],
        };
        let devices = spec().devices;
        assert_eq!(reset.check(&devices, 4), Ok(()));
        assert_eq!(reset.check(&devices, 3), Err(missing(3, 3)));
        let other = |asked| Err(SpecError::Reset { asked, has: 3 });
        let mut swapped = reset.clone();
        swapped.devices.swap(0, 1);
        assert_eq!(swapped.check(&devices, 4), other(3));
        let mut fewer = reset.clone();
        fewer.devices.pop();
        assert_eq!(fewer.check(&devices, 4), other(2));
        let mut twice = reset;
        twice.delta_layer = Some(state);
        assert_eq!(twice.check(&devices, 4), Err(missing(0, 4)));
    }
}
