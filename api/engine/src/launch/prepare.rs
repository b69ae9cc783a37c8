//! What a VM process is given: descriptors, its specification, and the process itself.

use crate::error::chain;
use crate::files::{FileError, open, reopen, unnamed};
use crate::image::machine_image::MachineImage;
use crate::image::pager::PagedMemory;
use crate::launch::error::LaunchError;
use crate::launch::launcher::MachineLauncher;
use crate::launch::plan::{LaunchPlan, PreparedMachine};
use crate::machine::group::MachineSize;
use crate::machine::handle::VmProcess;
use crate::machine::pidfile::PidFile;
use crate::machine::stderr;
use crate::network::FrameSocket;
use crate::restore_point::BootSource;
use crate::template::Template;
use control::{
    BootSource as VmBootSource, Descriptors, DeviceSpec, DiskSpec, FdName, NetDeviceSpec, Request,
    SavedLink, Spawned, VmSpec, VsockSpec,
};
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

impl MachineLauncher {
    /// Opens, makes, spawns, and sends the configuration. Blocks.
    pub(super) fn prepare(&self, plan: LaunchPlan) -> Result<PreparedMachine, LaunchError> {
        let mut fds = Descriptors::default();
        let spawn_error = |source| LaunchError::Spawn {
            path: self.vmm.clone(),
            source,
        };
        let (link, guest_link) = UnixStream::pair().map_err(LaunchError::Socket)?;
        link.set_nonblocking(true).map_err(LaunchError::Socket)?;
        let (frames, guest_frames) = FrameSocket::pair().map_err(LaunchError::Socket)?;
        let sockets = (fds.add(guest_link), fds.add(guest_frames));
        let spec = self.spec(&plan, sockets, &mut fds)?;
        spec.check(fds.count())?;
        let disk_size = spec.disks().next().map_or(0, |disk| disk.size);

        let group = self.groups.for_machine(MachineSize {
            vcpus: spec.vcpus,
            memory_mib: spec.memory_mib,
            disk: disk_size,
        })?;
        let spawned = self.spawner.spawn(&self.vmm, group.as_ref());
        let spawned = spawned.map_err(spawn_error)?;
        let Spawned {
            pid,
            control,
            stderr,
        } = spawned;
        let configure = Request::Configure(Box::new(spec));
        let sent = control::send(&control, &configure, &fds.borrow());
        let LaunchPlan { name, slot, .. } = plan;
        // Without it all works but the cleaning after a crash of this server and a hanging machine.
        let record = PidFile::new(&self.record_dir, pid).inspect_err(
            |error| tracing::warn!(sandbox_id = %name, %error, "no record of a machine"),
        );
        // From here on the task reaps the process, whatever becomes of this launch.
        let machine = VmProcess::adopt(name.clone(), pid, control, group, (record.ok(), slot));
        stderr::copy_to_log(name, stderr);
        sent?;
        Ok(PreparedMachine {
            machine,
            link,
            frames,
            disk_size,
        })
    }

    /// Where a machine goes on, with the files for it.
    fn restored(
        &self,
        image: &MachineImage,
        plan: &LaunchPlan,
        fds: &mut Descriptors,
    ) -> Result<VmBootSource, LaunchError> {
        let state = fds.add(reopen("state", &image.state)?);
        if let Some(PagedMemory { socket, device }) = self.demand_paged(image, plan) {
            return Ok(VmBootSource::DemandPaged {
                pager: fds.add(socket),
                userfaultfd: fds.add(device),
                state,
            });
        }
        let memory = image.base_memory.memory().map_err(LaunchError::Memory)?;
        let base_memory = fds.add(reopen("memory", memory)?);
        let delta = image.delta.as_ref();
        let delta = delta
            .map(|delta| reopen("memory layer", delta))
            .transpose()?;
        Ok(VmBootSource::Snapshot {
            base_memory,
            state,
            delta_layer: delta.map(|delta| fds.add(delta)),
            trial: plan.trial,
        })
    }

    /// A pager for the machine's memory, if it is not resident and that is worth it.
    fn demand_paged(&self, image: &MachineImage, plan: &LaunchPlan) -> Option<PagedMemory> {
        let pagers = self
            .pagers
            .as_ref()
            .filter(|_| image.delta.is_none() && !plan.trial)?;
        let base_memory =
            Some(&image.base_memory).filter(|base_memory| base_memory.should_page())?;
        match pagers.attach(plan.name.own(), base_memory.pages(), base_memory.layers()) {
            Ok(paged) => Some(paged),
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(sandbox_id = %plan.name, error, "memory is put together instead");
                None
            }
        }
    }

    /// What the VM process is told, with the files for it.
    fn spec(
        &self,
        plan: &LaunchPlan,
        (link, frames): (FdName, FdName),
        fds: &mut Descriptors,
    ) -> Result<VmSpec, LaunchError> {
        let t = &plan.template;
        let base = open("image", &t.image)?;
        let boot_size = disk_size(t, &base)?;
        let layer = unnamed(&self.layer_dir).map_err(|source| LaunchError::Layer {
            path: self.layer_dir.clone(),
            source,
        })?;
        let mut disk = DiskSpec {
            base: fds.add(base),
            parent: None,
            layer: Some(fds.add(layer)),
            size: boot_size,
        };
        let (mut vcpus, mut memory_mib) = (t.cpu_count, t.memory_mb);
        if let Some(image) = plan.source.image() {
            disk.parent = Some(fds.add(reopen("disk layer", &image.disk)?));
            disk.size = image.shape.disk_size;
            (vcpus, memory_mib) = (image.shape.vcpus, image.shape.memory_mib);
        }
        let mut connection = SavedLink::Broken;
        let boot_source = match &plan.source {
            BootSource::Boot | BootSource::Files(_) => VmBootSource::Kernel {
                kernel: fds.add(open("kernel", &t.kernel)?),
                agent: fds.add(open("guest agent", &self.agent)?),
                cmdline_extra: t.cmdline_extra.clone(),
                contents: match plan.source.image() {
                    Some(image) => Some(fds.add(reopen("state", &image.state)?)),
                    None => None,
                },
            },
            BootSource::Image(image) => {
                connection = image.link.into();
                self.restored(image, plan, fds)?
            }
        };
        Ok(VmSpec {
            sandbox_id: plan.name.own().to_owned(),
            vcpus,
            memory_mib,
            boot_source,
            devices: vec![
                DeviceSpec::Vsock(VsockSpec { link, connection }),
                DeviceSpec::Block(disk),
                DeviceSpec::Rng,
                DeviceSpec::Net(NetDeviceSpec { frames }),
            ],
        })
    }
}

fn disk_size(template: &Arc<Template>, base: &File) -> Result<u64, LaunchError> {
    let path = || template.image.clone();
    let image = base
        .metadata()
        .map_err(|source| FileError::Open {
            what: "image",
            path: path(),
            source,
        })?
        .len();
    match template.disk_size_mb {
        Some(disk_mb) if disk_mb << 20 < image => Err(LaunchError::DiskTooSmall {
            disk_mb,
            path: path(),
            image,
        }),
        Some(disk_mb) => Ok(disk_mb << 20),
        None => Ok(image.next_multiple_of(4096)),
    }
}
