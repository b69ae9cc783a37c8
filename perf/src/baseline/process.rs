//! One VM process with a bare guest, spoken to as the service does. Nothing waits for ever, and
//! nothing that was started is left behind.

use super::guest::{BareGuest, MEMORY_MIB, file, kernel};
use crate::engine::child::{self, VmChild};
use crate::engine::now_ns;
use anyhow::{Context, Result, bail, ensure};
use control::{
    BootSource, Descriptors, DeviceReset, DeviceSpec, Event, ExitCause, ExitReport, Request, Reset,
    ResetSpec, SaveSpec, Saved, SavedLink, VmSpec, VsockSpec,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// How long anything may take.
const PATIENCE_S: i64 = 20;
/// Most bytes of one log line.
const MAX_LINE: usize = 4096;

/// A VM process; killed and reaped when dropped.
pub(crate) struct BareProcess {
    child: VmChild,
    control: OwnedFd,
    pipe: File,
    log: Vec<u8>,
    link: UnixStream,
    /// When its start was asked for, and when it stood ready; `CLOCK_MONOTONIC` nanoseconds.
    pub(crate) spawned_ns: u64,
    pub(crate) configured_ns: u64,
}

impl BareProcess {
    /// A machine with the bare guest that has not run.
    pub(crate) fn boot(program: &Path) -> Result<Self> {
        let mut fds = Descriptors::default();
        let kernel = BootSource::Kernel {
            kernel: fds.add(file_of(&kernel())?),
            agent: fds.add(file_of(b"agent")?),
            cmdline_extra: String::new(),
            contents: None,
        };
        Self::build(program, kernel, fds)
    }

    /// A machine that stands where the bare guest was saved.
    pub(crate) fn warm_vm(program: &Path, bare: &BareGuest) -> Result<Self> {
        let mut fds = Descriptors::default();
        let snapshot = BootSource::Snapshot {
            base_memory: fds.add(bare.memory.as_fd().try_clone_to_owned()?),
            state: fds.add(bare.state.try_clone()?),
            delta_layer: None,
            trial: false,
        };
        Self::build(program, snapshot, fds)
    }

    fn build(program: &Path, boot_source: BootSource, mut fds: Descriptors) -> Result<Self> {
        let spawned_ns = now_ns();
        let (child, spawned) = child::spawn(program)?;
        let (ours, theirs) = UnixStream::pair()?;
        let vsock = VsockSpec {
            link: fds.add(theirs),
            connection: SavedLink::Kept,
        };
        let spec = VmSpec {
            sandbox_id: "baseline".into(),
            vcpus: 1,
            memory_mib: MEMORY_MIB,
            boot_source,
            devices: vec![DeviceSpec::Vsock(vsock), DeviceSpec::Rng],
        };
        let mut process = Self {
            child,
            control: spawned.control,
            pipe: spawned.stderr.into(),
            log: Vec::new(),
            link: ours,
            spawned_ns,
            configured_ns: 0,
        };
        let configure = Request::Configure(Box::new(spec));
        control::send(&process.control, &configure, &fds.borrow())?;
        match process.receive()? {
            Event::Configured(_) => process.configured_ns = now_ns(),
            other => bail!("Configure: the VM process answered {other:?}"),
        }
        Ok(process)
    }

    /// The process's id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets the vCPU go; when that was asked.
    pub(crate) fn start(&self) -> Result<u64> {
        let asked_ns = now_ns();
        control::send(&self.control, &Request::Start, &[])?;
        Ok(asked_ns)
    }

    /// The guest's next line, and when it was here.
    pub(crate) fn answer(&mut self) -> Result<(String, u64)> {
        loop {
            let line = self.log_line()?;
            let here_ns = now_ns();
            let line: serde_json::Value = serde_json::from_slice(&line)
                .with_context(|| format!("log line {:?}", String::from_utf8_lossy(&line)))?;
            if let Some(said) = line["console"].as_str() {
                return Ok((said.into(), here_ns));
            }
        }
    }

    fn log_line(&mut self) -> Result<Vec<u8>> {
        let pipe = &mut self.pipe;
        loop {
            if let Some(end) = self.log.iter().position(|b| *b == b'\n') {
                let rest = self.log.split_off(end + 1);
                return Ok(std::mem::replace(&mut self.log, rest));
            }
            ensure!(
                self.log.len() < MAX_LINE,
                "a log line is over {MAX_LINE} bytes"
            );
            wait_for(pipe, "its log")?;
            let mut bytes = [0; 1024];
            let got = pipe.read(&mut bytes)?;
            ensure!(got > 0, "the VM process closed its log");
            self.log.extend(&bytes[..got]);
        }
    }

    /// Saves the machine, which then stands still.
    pub(crate) fn save(&self, memory: &OwnedFd, state: &OwnedFd) -> Result<Saved> {
        let mut fds = Descriptors::default();
        let spec = SaveSpec {
            memory: fds.add(memory.try_clone()?),
            state: fds.add(state.try_clone()?),
            contents: Vec::new(),
            ahead: false,
        };
        control::send(&self.control, &Request::Save(spec), &fds.borrow())?;
        match self.receive()? {
            Event::Saved(saved) => Ok(saved),
            other => bail!("Save: the VM process answered {other:?}"),
        }
    }

    /// Puts the machine back to where `bare` was saved; it then stands still.
    pub(crate) fn reset(&mut self, bare: &BareGuest) -> Result<Reset> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut fds = Descriptors::default();
        let spec = ResetSpec {
            state: fds.add(bare.state.try_clone()?),
            delta_layer: None,
            devices: vec![
                DeviceReset::Vsock(VsockSpec {
                    link: fds.add(theirs),
                    connection: SavedLink::Kept,
                }),
                DeviceReset::Rng,
            ],
        };
        control::send(&self.control, &Request::Reset(spec), &fds.borrow())?;
        let reset = match self.receive()? {
            Event::Reset(reset) => reset,
            other => bail!("Reset: the VM process answered {other:?}"),
        };
        self.link = ours;
        Ok(reset)
    }

    /// Ends the machine in order; its last word.
    pub(crate) fn stop(self) -> Result<ExitReport> {
        control::send(&self.control, &Request::Stop, &[])?;
        self.last_word(&ExitCause::Stopped)
    }

    /// Waits for the machine's end, which must be for this cause, and for that of its process.
    pub(crate) fn last_word(mut self, cause: &ExitCause) -> Result<ExitReport> {
        let report = match self.receive()? {
            Event::Exited(report) => report,
            other => bail!("at its end the VM process said {other:?}"),
        };
        ensure!(
            report.cause == *cause,
            "the machine ended with {:?}",
            report.cause
        );
        let status = self.child.wait()?;
        ensure!(
            status.exit_status() == Some(0),
            "the VM process ended with {status:?}"
        );
        Ok(report)
    }

    /// Sends the signal that cannot be refused.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill()
    }

    /// Waits until nothing is left of the process.
    pub(crate) fn reap(mut self) -> Result<()> {
        self.child.wait()?;
        Ok(())
    }

    fn receive(&self) -> Result<Event> {
        wait_for(&self.control, "its control socket")?;
        match control::recv::<Event>(&self.control)? {
            Some((event, _)) => Ok(event),
            None => bail!("the VM process closed its control socket"),
        }
    }
}

fn wait_for(fd: &impl AsFd, what: &str) -> Result<()> {
    let limit = Timespec {
        tv_sec: PATIENCE_S,
        tv_nsec: 0,
    };
    let ready = poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&limit))?;
    ensure!(
        ready == 1,
        "the VM process is silent on {what} for {PATIENCE_S} s"
    );
    Ok(())
}

fn file_of(contents: &[u8]) -> Result<OwnedFd> {
    let mut file = File::from(file()?);
    file.write_all(contents)?;
    Ok(file.into())
}
