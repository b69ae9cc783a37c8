//! From a template to a running machine whose agent has accepted its identity.
//!
//! ```text
//! files, layer, sockets ─> spawn ─> Configure ─> Configured ─> Start ─> Started ─> Hello ─> SetIdentity
//! ```
//!
//! Nothing here outlives a failure: descriptors close, the layer has no name, and dropping the
//! [`Machine`] ends the process.

use crate::config::Template;
use crate::link::{Link, LinkError};
use crate::machine::{End, Machine, Phase};
use crate::record::Record;
use crate::stderr;
use control::{ChannelError, DiskSpec, Origin, Request, SpecError, VmSpec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::Pid;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a VM process may take to build a machine, and again to start it.
const BUILD_TIMEOUT: Duration = Duration::from_secs(20);

/// What every launch needs.
#[derive(Clone, Debug)]
pub struct Launcher {
    /// The VM program.
    pub vmm: PathBuf,
    /// The guest agent.
    pub agent: PathBuf,
    /// Where private disk layers are made.
    pub layer_dir: PathBuf,
    /// Where VM processes are noted while they run.
    pub record_dir: PathBuf,
    /// Longest wait for the agent.
    pub boot_timeout: Duration,
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
}

/// How long each step took, in the order of the steps.
#[derive(Clone, Debug)]
pub struct Timings {
    start: Instant,
    last: Instant,
    steps: Vec<(&'static str, Duration)>,
}

impl Default for Timings {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            start: now,
            last: now,
            steps: Vec::new(),
        }
    }
}

impl Timings {
    /// The step that has just ended.
    pub fn step(&mut self, name: &'static str) {
        let now = Instant::now();
        self.steps.push((name, now - self.last));
        self.last = now;
    }

    /// Since the start.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.last - self.start
    }

    /// The value of a `Server-Timing` header, milliseconds.
    #[must_use]
    pub fn header(&self) -> String {
        let total = ("total", self.total());
        let entry =
            |(name, time): &(&str, Duration)| format!("{name};dur={:.3}", time.as_secs_f64() * 1e3);
        self.steps
            .iter()
            .chain([&total])
            .map(entry)
            .collect::<Vec<_>>()
            .join(", ")
    }
}

/// A process with its configuration, our end of its link, the size of its disk.
type Prepared = (Machine, UnixStream, u64);

/// Why a machine could not be launched.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A program or image is missing.
    #[error("Cannot open {what} {path}: {source}")]
    Open {
        /// Which kind of file.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The template's disk is smaller than its image.
    #[error("disk_size_mb = {disk_mb} is less than the image {path} of {image} bytes")]
    DiskTooSmall {
        /// The setting.
        disk_mb: u64,
        /// The image.
        path: PathBuf,
        /// Its size.
        image: u64,
    },
    /// The private layer cannot be made.
    #[error("Cannot make a disk layer in {path}: {source}")]
    Layer {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The VM program does not start.
    #[error("Cannot start {path}: {source}")]
    Spawn {
        /// The program.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The template asks for what no machine can have.
    #[error("The template makes no valid machine: {0}")]
    Spec(#[from] SpecError),
    /// The control socket failed.
    #[error("The VM process could not be told what to do: {0}")]
    Channel(#[from] ChannelError),
    /// The machine ended before it was ready.
    #[error("The sandbox ended while {doing}: {end}")]
    Ended {
        /// The step.
        doing: &'static str,
        /// Why.
        end: Arc<End>,
    },
    /// A step took too long.
    #[error("Gave up {doing} after {seconds} s; the log has the end of the guest's console")]
    Timeout {
        /// The step.
        doing: &'static str,
        /// The bound.
        seconds: u64,
    },
    /// The agent spoke something else, or the link broke.
    #[error("The guest agent's link failed while {doing}: {source}")]
    Link {
        /// The step.
        doing: &'static str,
        /// Why.
        source: LinkError,
    },
    /// No random bytes for the guest.
    #[error("The host gave no random bytes for the guest: {0}")]
    Entropy(String),
    /// The task that makes files and processes broke.
    #[error("The launch was given up")]
    GivenUp,
}

impl Launcher {
    /// Runs a machine from `template` until its agent has said Hello. Cancel-safe: dropping the
    /// future leaves nothing behind.
    ///
    /// # Errors
    /// The first step that failed; nothing is left of the attempt.
    pub async fn launch(
        &self,
        id: &str,
        template: &Template,
        timings: &mut Timings,
    ) -> Result<Launched, LaunchError> {
        let (launcher, template, name) = (self.clone(), template.clone(), id.to_owned());
        let prepare = tokio::task::spawn_blocking(move || launcher.prepare(&name, &template));
        let (mut machine, stream, disk_size) =
            prepare.await.map_err(|_| LaunchError::GivenUp)??;
        timings.step("spawn");

        match self.bring_up(&mut machine, stream, timings).await {
            Ok(link) => Ok(Launched {
                machine,
                link,
                disk_size,
            }),
            Err(error) => {
                machine.give_up(id).await;
                Err(error)
            }
        }
    }

    async fn bring_up(
        &self,
        machine: &mut Machine,
        stream: UnixStream,
        timings: &mut Timings,
    ) -> Result<Link, LaunchError> {
        let configured = |p: &Phase| matches!(p, Phase::Configured(_) | Phase::Started);
        reach(machine, configured, "building the machine", BUILD_TIMEOUT).await?;
        timings.step("configure");

        machine.start().await;
        let started = |p: &Phase| matches!(p, Phase::Started);
        reach(machine, started, "starting the machine", BUILD_TIMEOUT).await?;
        timings.step("start");

        let link = self.hello(machine, stream).await?;
        timings.step("hello");
        Ok(link)
    }

    /// Waits for the agent, for the machine's end, and no longer than allowed.
    async fn hello(&self, machine: &mut Machine, stream: UnixStream) -> Result<Link, LaunchError> {
        let doing = "waiting for its agent";
        let failed = |source| LaunchError::Link { doing, source };
        let stream =
            tokio::net::UnixStream::from_std(stream).map_err(|source| LaunchError::Open {
                what: "socket",
                path: "link".into(),
                source,
            })?;
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
                match tokio::time::timeout(Duration::from_secs(1), machine.ended()).await {
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
    fn prepare(&self, id: &str, t: &Template) -> Result<Prepared, LaunchError> {
        let kernel = open("kernel", &t.kernel)?;
        let agent = open("guest agent", &self.agent)?;
        let base = open("image", &t.image)?;
        let size = disk_size(t, &base)?;
        let layer = private_layer(&self.layer_dir).map_err(|source| LaunchError::Layer {
            path: self.layer_dir.clone(),
            source,
        })?;
        let spawn_error = |source| LaunchError::Spawn {
            path: self.vmm.clone(),
            source,
        };
        let (link, guest_link) = UnixStream::pair().map_err(spawn_error)?;
        link.set_nonblocking(true).map_err(spawn_error)?;

        let spec = VmSpec {
            sandbox_id: id.to_owned(),
            vcpus: t.cpu_count,
            memory_mib: t.memory_mb,
            origin: Origin::Boot {
                kernel: 0,
                agent: 1,
                cmdline_extra: t.cmdline_extra.clone(),
            },
            link: 2,
            disks: vec![DiskSpec {
                base: 3,
                parent: None,
                layer: Some(4),
                size,
            }],
        };
        let fds = [
            kernel.as_fd(),
            agent.as_fd(),
            guest_link.as_fd(),
            base.as_fd(),
            layer.as_fd(),
        ];
        spec.check(fds.len())?;

        let (mut child, control) = control::spawn(&self.vmm, &[]).map_err(spawn_error)?;
        let stderr = child.stderr.take();
        let sent = control::send(&control, &Request::Configure(Box::new(spec)), &fds);
        let pid = Pid::from_child(&child);
        // Without it all works but the cleaning after a crash of this server and a hanging machine.
        let record = Record::new(&self.record_dir, pid)
            .inspect_err(|error| tracing::warn!(sandbox_id = id, %error, "no record of a machine"));
        // From here on the task reaps the process, whatever becomes of this launch.
        let machine = Machine::adopt(id, pid, control, record.ok());
        if let Some(stderr) = stderr {
            stderr::pump(id, stderr.into());
        }
        sent?;
        Ok((machine, link, size))
    }
}

async fn reach(
    machine: &mut Machine,
    reached: fn(&Phase) -> bool,
    doing: &'static str,
    bound: Duration,
) -> Result<(), LaunchError> {
    match tokio::time::timeout(bound, machine.wait(reached)).await {
        Ok(Phase::Ended(end)) => Err(LaunchError::Ended { doing, end }),
        Ok(_) => Ok(()),
        Err(_) => Err(LaunchError::Timeout {
            doing,
            seconds: bound.as_secs(),
        }),
    }
}

/// A file of its own for each machine, so that no two share a position.
fn open(what: &'static str, path: &Path) -> Result<File, LaunchError> {
    File::open(path).map_err(|source| LaunchError::Open {
        what,
        path: path.to_owned(),
        source,
    })
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

/// An empty file without a name, which goes with its last descriptor.
fn private_layer(dir: &Path) -> io::Result<OwnedFd> {
    let access = OFlags::RDWR | OFlags::CLOEXEC;
    let owner = Mode::RUSR | Mode::WUSR;
    match rustix::fs::open(dir, access | OFlags::TMPFILE, owner) {
        Ok(fd) => Ok(fd),
        // The file system has no unnamed files: make one and take its name away.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT) => {
            let path = dir.join(format!("layer-{}", crate::ids::random_name(16)?));
            let fd = rustix::fs::open(&path, access | OFlags::CREATE | OFlags::EXCL, owner)?;
            rustix::fs::unlink(&path)?;
            Ok(fd)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_layer_has_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let layer = private_layer(dir.path()).unwrap();
        rustix::io::pwrite(&layer, b"x", 8192).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_header_names_each_step_and_the_total() {
        let mut timings = Timings::default();
        timings.step("spawn");
        timings.step("hello");
        let header = timings.header();
        let names: Vec<_> = header
            .split(", ")
            .map(|e| e.split(';').next().unwrap())
            .collect();
        assert_eq!(names, ["spawn", "hello", "total"]);
    }
}
