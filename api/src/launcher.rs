//! From a template to a VM process, and on to a machine whose agent is on the line.
//!
//! ```text
//! boot:   files, layer, sockets ─> fork ─> Configure ─> Configured ─> Start ─> Hello
//! clone:  golden, layer, sockets ─> fork ─> Configure ─> Configured: a husk, until it is claimed
//! ```
//!
//! Nothing here outlives a failure: descriptors close, the layer has no name, and dropping the
//! [`Machine`] ends the process.

mod error;
pub(crate) mod files;
mod timings;
mod zygote;

pub use error::LaunchError;
pub use timings::Timings;
pub use zygote::Nursery;

use crate::config::Template;
use crate::error::chain;
use crate::image::{Basis, Image};
use crate::link::Link;
use crate::machine::{LAST_WORD, Machine, Phase};
use crate::name::Name;
use crate::pager::{Brought, Pagers};
use crate::record::Record;
use crate::stderr;
use control::{
    BootSource, Descriptors, DeviceSpec, DiskSpec, FdName, Request, SavedLink, Spawned, VmSpec,
    VsockSpec,
};
use files::{open, reopen, unnamed};
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;

/// How long a VM process may take to build a machine, and again to start it.
const BUILD_TIMEOUT: Duration = Duration::from_secs(20);

/// What every launch needs.
#[derive(Clone, Debug)]
pub struct Launcher {
    /// The VM program.
    pub vmm: PathBuf,
    /// What makes its processes.
    pub nursery: Nursery,
    /// The guest agent.
    pub agent: PathBuf,
    /// Where private disk layers are made.
    pub layer_dir: PathBuf,
    /// Where VM processes are noted while they run.
    pub record_dir: PathBuf,
    /// Longest wait for the agent.
    pub boot_timeout: Duration,
    /// What brings memory that is not resident; `None`: it is made so first.
    pub pagers: Option<Arc<Pagers>>,
}

/// A machine to be made.
#[derive(Debug)]
pub struct Plan {
    /// Its name in the log.
    pub name: Name,
    /// Its template.
    pub template: Template,
    /// What it begins with.
    pub begin: Begin,
    /// A copy of which is learned what copies use first.
    pub trial: bool,
    /// What it counts for; given back when its process is reaped.
    pub slot: OwnedSemaphorePermit,
}

/// What a machine begins with.
#[derive(Clone, Debug)]
pub enum Begin {
    /// The template's kernel and image.
    Boot,
    /// A copy of a machine that was saved.
    Image(Arc<Image>),
    /// The template's kernel, and the disk of a machine that was saved.
    Files(Arc<Image>),
}

impl Begin {
    /// What the machine's disk and size are of; `None`: the template.
    fn image(&self) -> Option<&Arc<Image>> {
        match self {
            Self::Boot => None,
            Self::Image(image) | Self::Files(image) => Some(image),
        }
    }
}

/// A process that has been told what to build.
#[derive(Debug)]
pub struct Built {
    /// The VM process.
    pub machine: Machine,
    /// Our end of its link.
    pub stream: tokio::net::UnixStream,
    /// The root disk as the guest sees it, bytes.
    pub disk_size: u64,
}

/// A machine that runs, with its agent on the line, not yet anybody's.
#[derive(Debug)]
pub struct Launched {
    /// The VM process.
    pub machine: Machine,
    /// The agent.
    pub link: Link,
    /// The root disk as the guest sees it, bytes.
    pub disk_size: u64,
    /// What it began at; `None` if it booted.
    pub basis: Option<Arc<Basis>>,
}

impl Launcher {
    /// Builds a machine that has not run. Cancel-safe: dropping the future leaves nothing behind.
    ///
    /// # Errors
    /// The first step that failed; nothing is left of the attempt.
    pub async fn build(&self, plan: Plan, timings: &mut Timings) -> Result<Built, LaunchError> {
        let (launcher, name) = (self.clone(), plan.name.clone());
        let prepare = tokio::task::spawn_blocking(move || launcher.prepare(plan));
        let (mut machine, stream, disk_size) =
            prepare.await.map_err(|_| LaunchError::GivenUp)??;
        timings.step("spawn");

        let ready = async {
            let configured = |p: &Phase| matches!(p, Phase::Configured(_) | Phase::Started);
            reach(&mut machine, configured, "building the machine").await?;
            tokio::net::UnixStream::from_std(stream).map_err(|source| LaunchError::Open {
                what: "socket",
                path: "link".into(),
                source,
            })
        };
        match ready.await {
            Ok(stream) => {
                timings.step("configure");
                Ok(Built {
                    machine,
                    stream,
                    disk_size,
                })
            }
            Err(error) => {
                machine.give_up(&name.to_string()).await;
                Err(error)
            }
        }
    }

    /// Runs a machine until its agent has said Hello. Cancel-safe as [`Launcher::build`] is.
    ///
    /// # Errors
    /// The first step that failed; nothing is left of the attempt.
    pub async fn launch(&self, plan: Plan, timings: &mut Timings) -> Result<Launched, LaunchError> {
        let name = plan.name.clone();
        let basis = match &plan.begin {
            Begin::Image(image) => Some(Arc::clone(&image.basis)),
            Begin::Boot | Begin::Files(_) => None,
        };
        let built = self.build(plan, timings).await?;
        let (mut machine, disk_size) = (built.machine, built.disk_size);
        match self.greet(&mut machine, built.stream, timings).await {
            Ok(link) => Ok(Launched {
                machine,
                link,
                disk_size,
                basis,
            }),
            Err(error) => {
                machine.give_up(&name.to_string()).await;
                Err(error)
            }
        }
    }

    async fn greet(
        &self,
        machine: &mut Machine,
        stream: tokio::net::UnixStream,
        timings: &mut Timings,
    ) -> Result<Link, LaunchError> {
        machine.start().await;
        let link = self.hello(machine, stream).await?;
        timings.step("hello");
        Ok(link)
    }

    /// Waits for the agent, for the machine's end, and no longer than allowed.
    pub(crate) async fn hello(
        &self,
        machine: &mut Machine,
        stream: tokio::net::UnixStream,
    ) -> Result<Link, LaunchError> {
        let doing = "waiting for its agent";
        let failed = |source| LaunchError::Link { doing, source };
        let ready = tokio::time::timeout(self.boot_timeout, async {
            tokio::select! {
                // The machine's end explains more than the link's.
                biased;
                end = machine.ended() => Err(end),
                link = Link::connect(stream) => Ok(link),
            }
        });
        match ready.await {
            Ok(Ok(Ok((link, hello)))) => {
                tracing::debug!(?hello, "agent ready");
                Ok(link)
            }
            Ok(Ok(Err(error))) => {
                // A link that breaks is most often a machine that ends: give it time to say so.
                match tokio::time::timeout(LAST_WORD, machine.ended()).await {
                    Ok(Some(end)) => Err(LaunchError::Ended { doing, end }),
                    _ => Err(failed(error)),
                }
            }
            Ok(Err(Some(end))) => Err(LaunchError::Ended { doing, end }),
            Ok(Err(None)) => Err(LaunchError::GivenUp),
            Err(_) => Err(LaunchError::Timeout {
                doing,
                seconds: self.boot_timeout.as_secs(),
            }),
        }
    }

    /// Opens, makes, spawns, and sends the configuration. Blocks.
    fn prepare(&self, plan: Plan) -> Result<(Machine, UnixStream, u64), LaunchError> {
        let mut fds = Descriptors::default();
        let spawn_error = |source| LaunchError::Spawn {
            path: self.vmm.clone(),
            source,
        };
        let (link, guest_link) = UnixStream::pair().map_err(spawn_error)?;
        link.set_nonblocking(true).map_err(spawn_error)?;
        let guest_link = fds.add(guest_link);
        let spec = self.spec(&plan, guest_link, &mut fds)?;
        spec.check(fds.count())?;
        let size = spec.disks().next().map_or(0, |disk| disk.size);

        let spawned = self.nursery.spawn(&self.vmm).map_err(spawn_error)?;
        let Spawned {
            pid,
            control,
            stderr,
        } = spawned;
        let configure = Request::Configure(Box::new(spec));
        let sent = control::send(&control, &configure, &fds.borrow());
        let Plan { name, slot, .. } = plan;
        // Without it all works but the cleaning after a crash of this server and a hanging machine.
        let record = Record::new(&self.record_dir, pid).inspect_err(
            |error| tracing::warn!(sandbox_id = %name, %error, "no record of a machine"),
        );
        // From here on the task reaps the process, whatever becomes of this launch.
        let machine = Machine::adopt(name.clone(), pid, control, (record.ok(), slot));
        stderr::pump(name, stderr);
        sent?;
        Ok((machine, link, size))
    }

    /// Where a machine goes on, with the files for it.
    fn continued(
        &self,
        image: &Image,
        plan: &Plan,
        fds: &mut Descriptors,
    ) -> Result<BootSource, LaunchError> {
        let state = fds.add(reopen("state", &image.state)?);
        if let Some(Brought { socket, device }) = self.brought(image, plan) {
            return Ok(BootSource::DemandPaged {
                pager: fds.add(socket),
                userfaultfd: fds.add(device),
                state,
            });
        }
        let memory = image.basis.memory().map_err(LaunchError::Memory)?;
        let base_memory = fds.add(reopen("memory", memory)?);
        let diff = image.diff.as_ref();
        let diff = diff.map(|diff| reopen("memory layer", diff)).transpose()?;
        Ok(BootSource::Snapshot {
            base_memory,
            state,
            delta_layer: diff.map(|diff| fds.add(diff)),
            trial: plan.trial,
        })
    }

    /// Somebody to bring the machine's memory, if it is not resident and that is worth it.
    fn brought(&self, image: &Image, plan: &Plan) -> Option<Brought> {
        let pagers = self
            .pagers
            .as_ref()
            .filter(|_| image.diff.is_none() && !plan.trial)?;
        let basis = Some(&image.basis).filter(|basis| basis.bring())?;
        match pagers.bring(plan.name.own(), basis.pages(), basis.layers()) {
            Ok(brought) => Some(brought),
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
        plan: &Plan,
        link: FdName,
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
        if let Some(image) = plan.begin.image() {
            disk.parent = Some(fds.add(reopen("disk layer", &image.disk)?));
            disk.size = image.shape.disk_size;
            (vcpus, memory_mib) = (image.shape.vcpus, image.shape.memory_mib);
        }
        let mut connection = SavedLink::Broken;
        let boot_source = match &plan.begin {
            Begin::Boot | Begin::Files(_) => BootSource::Kernel {
                kernel: fds.add(open("kernel", &t.kernel)?),
                agent: fds.add(open("guest agent", &self.agent)?),
                cmdline_extra: t.cmdline_extra.clone(),
                contents: match plan.begin.image() {
                    Some(image) => Some(fds.add(reopen("state", &image.state)?)),
                    None => None,
                },
            },
            Begin::Image(image) => {
                connection = image.link.into();
                self.continued(image, plan, fds)?
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
            ],
        })
    }
}

async fn reach(
    machine: &mut Machine,
    reached: fn(&Phase) -> bool,
    doing: &'static str,
) -> Result<(), LaunchError> {
    match tokio::time::timeout(BUILD_TIMEOUT, machine.wait(reached)).await {
        Ok(Phase::Ended(end)) => Err(LaunchError::Ended { doing, end }),
        Ok(_) => Ok(()),
        Err(_) => Err(LaunchError::Timeout {
            doing,
            seconds: BUILD_TIMEOUT.as_secs(),
        }),
    }
}

fn disk_size(template: &Template, base: &File) -> Result<u64, LaunchError> {
    let path = || template.image.clone();
    let image = base
        .metadata()
        .map_err(|source| LaunchError::Open {
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
