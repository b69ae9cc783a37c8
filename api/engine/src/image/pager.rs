//! The process that brings memory which is not resident to machines.
//!
//! It is started when the first machine needs it, and again when it has gone: machines whose memory
//! was not yet whole have ended with it by themselves, each with its own word about it.

use crate::error::chain;
use snapshot_memory::pager::{self, MAX_LAYERS, PagerError, PagingJob, send_job};
use std::fs::File;
use std::io::{BufRead, BufReader, Error};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, Mutex, PoisonError};

/// Beside the VM program.
const PROGRAM: &str = "hatchery-pager";
/// What a machine makes its userfaultfd of.
const DEVICE: &str = "/dev/userfaultfd";
/// Most layers of a memory that is paged in; longer chains are merged first.
pub const LONGEST: usize = MAX_LAYERS / 2;

/// Starts the pager, and gives it machines.
#[derive(Debug)]
pub struct PagerClient {
    program: PathBuf,
    /// The socket of the one that runs.
    running: Mutex<Option<OwnedFd>>,
}

/// What a machine needs to have its memory paged in.
#[derive(Debug)]
pub struct PagedMemory {
    /// Its end of a socket to the pager.
    pub socket: OwnedFd,
    /// The device, open.
    pub device: OwnedFd,
}

impl PagerClient {
    /// With the program that lies beside `vmm`; `None`, and a word in the log, if this host or user
    /// cannot have one: memory is put together before a machine begins then.
    #[must_use]
    pub fn find(vmm: &Path) -> Option<Arc<Self>> {
        let program = Self::program(vmm);
        let missing = match (std::fs::metadata(&program), device().map(pager::check)) {
            (Ok(_), Ok(Ok(()))) => {
                let running = Mutex::default();
                return Some(Arc::new(Self { program, running }));
            }
            (Err(error), _) => format!("{}: {error}", program.display()),
            (_, Err(error)) => format!("{DEVICE}: {error}"),
            (_, Ok(Err(error))) => chain(&error),
        };
        tracing::warn!(
            missing,
            "stored machines are put into memory whole before they run"
        );
        None
    }

    /// Its program, which lies beside `vmm`.
    #[must_use]
    pub fn program(vmm: &Path) -> PathBuf {
        vmm.with_file_name(PROGRAM)
    }

    /// Has the memory of a machine demand-paged: `layers`, newest first, of `pages` pages. Blocks
    /// while the program is started.
    ///
    /// # Errors
    /// When it cannot be started, or does not take the machine.
    pub fn attach(
        &self,
        name: &str,
        pages: u64,
        layers: &[Arc<File>],
    ) -> Result<PagedMemory, PagerError> {
        let device = OwnedFd::from(device().map_err(failed("Opening a file", DEVICE))?);
        let (socket, theirs) = control::pair().map_err(failed("Making a socket", "the pager's"))?;
        let copy = |file: &Arc<File>| file.try_clone().map(OwnedFd::from);
        let copies = layers.iter().map(copy).collect::<Result<Vec<_>, _>>();
        let job = PagingJob {
            name: name.chars().take(16).collect(),
            pages,
            machine: theirs,
            layers: copies.map_err(failed("Copying a descriptor", "a layer's"))?,
            record: None,
        };
        // Nothing panics while it holds the lock.
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pager) = &*running
            && send_job(pager, &job).is_ok()
        {
            return Ok(PagedMemory { socket, device });
        }
        let pager = self
            .start()
            .map_err(failed("Starting a program", PROGRAM))?;
        send_job(&pager, &job)?;
        *running = Some(pager);
        Ok(PagedMemory { socket, device })
    }

    fn start(&self) -> Result<OwnedFd, Error> {
        let (child, socket) = control::spawn(&self.program, &[])?;
        tracing::info!(pid = child.id(), "pager started");
        // It ends with its socket.
        std::thread::Builder::new().spawn(move || follow(child))?;
        Ok(socket)
    }
}

/// Logs what the process says, and reaps it.
fn follow(mut child: Child) {
    let said = child.stderr.take().map(BufReader::new);
    for line in said
        .into_iter()
        .flat_map(BufRead::lines)
        .map_while(Result::ok)
    {
        let line: String = line.chars().take(1024).collect();
        tracing::warn!(target: "pager", "{line}");
    }
    match child.wait() {
        Ok(status) if status.success() => tracing::debug!("pager ended"),
        Ok(status) => tracing::error!(%status, "the pager ended, and machines with it"),
        Err(error) => tracing::error!(error = chain(&error), "the pager was lost"),
    }
}

fn device() -> Result<File, Error> {
    File::options().read(true).write(true).open(DEVICE)
}

fn failed(what: &'static str, with: &'static str) -> impl FnOnce(Error) -> PagerError {
    move |source| PagerError::Io {
        what,
        with: with.to_owned(),
        source,
    }
}
