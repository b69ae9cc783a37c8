//! The life of one VM process.
//!
//! ```text
//! Idle ──Configure──> Standing ──Start──> Running ──(any end)──> Stopped
//!                        ^                   │ Save, Reset
//!                        │                   ├──> Copying ahead ──failed──> Running
//!                        │                   │         v
//!                        └─────written───────┼──> Saving ──failed──> Running
//!                        └─────put back──────┴──> Resetting ──failed──> Stopped
//! ```
//!
//! The main thread waits for [`Request::Configure`], builds the machine, and then runs the event
//! loop, in which the control socket is one descriptor among others. Whatever ends the machine
//! ends the loop; the last word is an [`ExitReport`].

use crate::assemble::{Machine, assemble};
use crate::ending::{Reason, classify};
use crate::log::Log;
use crate::prepared::Prepared;
use crate::reset::{self, ResetError, Target};
use crate::save::{self, SaveError, Targets};
use crate::trace::Trace;
use crate::wiring::borrow;
use control::{ChannelError, Configured, Event, ExitReport, Request, ResetSpec, VmSpec, VmStats};
use devices::{EventLoop, LoopControl, LoopHost, SavedDevices, WatchId};
use machine::monotonic_ns;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use snapshot_memory::Rewritten;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

const CONTROL: WatchId = WatchId(0);
const ENDING: WatchId = WatchId(1);
/// How long a vCPU may take to leave the guest.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// How long it may take to bring a vCPU to a halt that will run on.
const PARK_LIMIT: Duration = Duration::from_secs(1);
/// How long the service may take to make room for the last word.
const LAST_WORD_LIMIT: Timespec = Timespec {
    tv_sec: 2,
    tv_nsec: 0,
};

/// Why the process could not do its work to the end. What concerns the sandbox goes to the service
/// as an event; this is for the case that there is nobody to tell.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SuperviseError {
    #[error("The control socket does not work")]
    Control(#[from] ChannelError),
    #[error("A control message came out of turn: {0}")]
    OutOfTurn(String),
    #[error("The machine could not be built: {0}")]
    Build(String),
    #[error("Could not {what}")]
    Io {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
}

fn io<E: Into<std::io::Error>>(what: &'static str) -> impl FnOnce(E) -> SuperviseError {
    move |source| SuperviseError::Io {
        what,
        source: source.into(),
    }
}

/// Serves one sandbox over `control` until it ends. What is not `prepared` is made first.
pub(crate) fn serve(
    control: OwnedFd,
    prepared: Option<Prepared>,
    console_live: bool,
) -> Result<(), SuperviseError> {
    let Some((request, fds)) = control::recv::<Request>(&control)? else {
        return Ok(());
    };
    let Request::Configure(spec) = request else {
        return refuse(
            &control,
            SuperviseError::OutOfTurn(format!("{request:?} before Configure")),
        );
    };
    match configure(prepared, &spec, fds, &control, console_live) {
        Ok((machine, log, build_ns)) => {
            control::send(&control, &Event::Configured(Configured { build_ns }), &[])?;
            Supervisor::new(control, machine, log).run()
        }
        Err(error) => refuse(&control, error),
    }
}

fn refuse(control: &OwnedFd, error: SuperviseError) -> Result<(), SuperviseError> {
    control::send(
        control,
        &Event::Failed {
            message: chain(&error),
        },
        &[],
    )?;
    Err(error)
}

/// An error and its sources in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push_str(": ");
        text.push_str(&error.to_string());
        next = error.source();
    }
    text
}

type Built = (Machine, Log, u64);

fn configure(
    prepared: Option<Prepared>,
    spec: &VmSpec,
    fds: Vec<OwnedFd>,
    control: &OwnedFd,
    console_live: bool,
) -> Result<Built, SuperviseError> {
    let start = monotonic_ns();
    let build = |error: &dyn std::error::Error| SuperviseError::Build(chain(error));
    spec.check(fds.len()).map_err(|e| build(&e))?;
    let log = Log::new(&spec.sandbox_id, console_live);
    Trace::install(log.clone());
    let prepared = prepared.map_or_else(Prepared::new, Ok);
    let prepared = prepared.map_err(|e| SuperviseError::Build(format!("{e:#}")))?;
    let machine = assemble(prepared, spec, fds, control.as_fd(), &log).map_err(|e| build(&e))?;
    Ok((machine, log, monotonic_ns() - start))
}

enum Phase {
    /// Has not run yet, or is saved.
    Standing,
    Running,
    /// It runs, and is copied between the devices' turns.
    Copying(Targets),
    /// The vCPUs are parked; the devices finish what they have begun.
    Saving(Targets),
    /// The vCPUs are parked; the devices drop what they have begun.
    Resetting(Box<Target>),
}

impl std::fmt::Debug for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Standing => "standing",
            Self::Running => "running",
            Self::Copying(_) => "being copied",
            Self::Saving(_) => "being saved",
            Self::Resetting(_) => "being reset",
        })
    }
}

/// What the event loop calls for the control socket and for the end.
struct Supervisor {
    control: OwnedFd,
    machine: Machine,
    log: Log,
    phase: Phase,
    /// Of memory that was copied ahead: kept until the machine runs, since to end it takes time.
    watches: Vec<Rewritten>,
}

impl Supervisor {
    fn new(control: OwnedFd, machine: Machine, log: Log) -> Self {
        Self {
            control,
            machine,
            log,
            phase: Phase::Standing,
            watches: Vec::new(),
        }
    }

    fn run(mut self) -> Result<(), SuperviseError> {
        rustix::io::ioctl_fionbio(&self.control, true).map_err(io("prepare the control socket"))?;
        let control = self
            .control
            .try_clone()
            .map_err(io("watch the control socket"))?;
        let ending = borrow(self.machine.ending.wake())
            .try_clone_to_owned()
            .map_err(io("watch for the end"))?;
        let fail = |e: devices::LoopError| SuperviseError::Build(chain(&e));
        if let Some(event_loop) = &mut self.machine.event_loop {
            event_loop.watch(control, CONTROL).map_err(fail)?;
            event_loop.watch(ending, ENDING).map_err(fail)?;
        }
        self.machine
            .filter
            .apply()
            .map_err(|e| SuperviseError::Build(chain(&e)))?;
        // The loop calls back into the rest of the supervisor, so it is taken out of it.
        if let Some(mut event_loop) = self.machine.event_loop.take()
            && let Err(error) = event_loop.run(&mut self)
        {
            self.machine.ending.report(Reason::Host(chain(&error)));
        }
        self.finish()
    }

    /// Stops the vCPUs and tells the service why and with which counters.
    fn finish(mut self) -> Result<(), SuperviseError> {
        for vcpu in &mut self.machine.vcpus {
            if let Err(error) = vcpu.finish(STOP_LIMIT) {
                self.log.line("error", &chain(&error));
            }
        }
        let stats = self.stats();
        let reason = self.machine.ending.reason().unwrap_or(Reason::Stopped);
        let console_tail = self.machine.console.tail();
        let cause = classify(&reason, &console_tail);
        self.log.line("info", &format!("ended: {cause:?}"));
        let report = Event::Exited(ExitReport {
            cause,
            console_tail,
            stats,
        });
        match control::send(&self.control, &report, &[]) {
            Err(error) if error.would_block() => {
                let mut ready = [PollFd::new(&self.control, PollFlags::OUT)];
                poll(&mut ready, Some(&LAST_WORD_LIMIT)).map_err(io("wait for the service"))?;
                Ok(control::send(&self.control, &report, &[])?)
            }
            // A service that is gone does not listen.
            Err(ChannelError::Io(_)) => Ok(()),
            other => Ok(other?),
        }
    }

    fn stats(&mut self) -> VmStats {
        let machine = &mut self.machine;
        machine.accounts.stats(&machine.vcpus, &machine.metrics)
    }

    /// Takes every message that is there.
    fn receive(&mut self, control: &mut LoopControl) {
        loop {
            match control::recv::<Request>(self.control.as_fd()) {
                Ok(Some((request, fds))) => self.handle(&request, fds, control),
                Ok(None) => return self.machine.ending.report(Reason::Stopped),
                Err(error) if error.would_block() => return,
                Err(error) => {
                    return self.machine.ending.report(Reason::Host(chain(&error)));
                }
            }
        }
    }

    fn handle(&mut self, request: &Request, fds: Vec<OwnedFd>, control: &mut LoopControl) {
        match (request, &self.phase) {
            (Request::Start, Phase::Standing) => {
                if let Some(saved) = self.machine.saved.take()
                    && let Err(error) = save::go_back(&self.machine, &saved)
                {
                    return self.machine.ending.report(Reason::Host(chain(&error)));
                }
                self.run_vcpus();
                self.watches.clear();
            }
            (Request::Save(spec), Phase::Running) => {
                match Targets::new(spec, fds, self.machine.vm.memory()) {
                    Ok(targets) => self.save(targets, spec.ahead, control),
                    Err(error) => self.go_on(&error),
                }
            }
            (Request::Reset(spec), Phase::Standing | Phase::Running) => match self.aim(spec, fds) {
                Ok(target) => {
                    self.phase = Phase::Resetting(Box::new(target));
                    control.clear();
                }
                Err(error) => self.refuse_reset(&chain(&error)),
            },
            (Request::Reset(_), phase) => {
                let message = format!("A machine cannot be reset while it is {phase:?}");
                self.refuse_reset(&message);
            }
            (Request::Stats, _) => {
                let stats = self.stats();
                self.send(&Event::Stats(stats));
            }
            (Request::Stop, _) => self.machine.ending.report(Reason::Stopped),
            (Request::Save(_), phase) => {
                let message = format!("A machine cannot be saved while it is {phase:?}");
                self.send(&Event::SaveFailed { message });
            }
            (Request::Configure(_) | Request::Start, phase) => {
                let message = format!("{request:?} while {phase:?}");
                self.send(&Event::Failed { message });
            }
        }
    }

    fn run_vcpus(&mut self) {
        self.phase = Phase::Running;
        self.machine.vcpus.iter().for_each(machine::VcpuThread::run);
    }

    /// Copies what can be copied ahead, if that is asked for and possible, or begins with the rest.
    fn save(&mut self, mut targets: Targets, ahead: bool, control: &mut LoopControl) {
        // Memory that a pager fills, and that of a trial, is watched by another userfaultfd already.
        let free = self.machine.lazy.is_none() && self.machine.trial.is_none();
        if ahead && free {
            match targets.memory.begin_ahead(&self.machine) {
                Ok(()) => {
                    self.phase = Phase::Copying(targets);
                    return;
                }
                Err(error) => {
                    let why = format!("memory is not copied ahead: {}", chain(&error));
                    self.log.line("warn", &why);
                }
            }
        }
        self.halt(targets, control);
    }

    /// Brings every vCPU to a halt, and then the devices.
    fn halt(&mut self, mut targets: Targets, control: &mut LoopControl) {
        targets.halt = Instant::now();
        let mut vcpus = self.machine.vcpus.iter();
        match vcpus.try_for_each(|vcpu| vcpu.park(PARK_LIMIT)) {
            Ok(()) => {
                targets.parked = Instant::now();
                self.phase = Phase::Saving(targets);
                control.quiesce();
            }
            Err(error) => self.go_on(&SaveError::Park(error)),
        }
    }

    /// Reads where the machine is to go, and brings every vCPU to a halt. On an error those that ran go
    /// on.
    fn aim(&self, spec: &ResetSpec, fds: Vec<OwnedFd>) -> Result<Target, ResetError> {
        let target = Target::new(&self.machine, spec, fds)?;
        let parked = self
            .machine
            .vcpus
            .iter()
            .try_for_each(|v| v.park(PARK_LIMIT));
        if let (Err(_), Phase::Running) = (&parked, &self.phase) {
            self.machine.vcpus.iter().for_each(machine::VcpuThread::run);
        }
        parked?;
        Ok(target)
    }

    fn refuse_reset(&self, message: &str) {
        self.log.line("error", message);
        self.send(&Event::ResetFailed {
            message: message.into(),
        });
    }

    /// The machine could not be saved: it runs as before.
    fn go_on(&mut self, error: &SaveError) {
        let message = chain(error);
        self.log.line("error", &message);
        self.run_vcpus();
        self.send(&Event::SaveFailed { message });
    }

    /// An answer that does not fit is dropped and said so: the service has stopped reading.
    fn send(&self, event: &Event) {
        if let Err(error) = control::send(&self.control, event, &[]) {
            self.log
                .line("error", &format!("answer dropped: {}", chain(&error)));
        }
    }
}

impl LoopHost for Supervisor {
    fn ready(&mut self, watch: WatchId, control: &mut LoopControl) {
        if watch == CONTROL {
            self.receive(control);
        }
        if self.machine.ending.reason().is_some() {
            control.stop();
        }
    }

    fn deadline(&self) -> Option<Instant> {
        // After each turn of the devices there is more to copy.
        match &self.phase {
            Phase::Copying(targets) => Some(targets.asked),
            _ => None,
        }
    }

    fn tick(&mut self, _now: Instant, control: &mut LoopControl) {
        let Phase::Copying(mut targets) = std::mem::replace(&mut self.phase, Phase::Running) else {
            return;
        };
        match targets.go_on(&self.machine) {
            Ok(false) => self.phase = Phase::Copying(targets),
            Ok(true) => self.halt(targets, control),
            Err(error) => self.go_on(&error),
        }
    }

    fn quiesced(
        &mut self,
        devices: Result<SavedDevices, devices::SaveError>,
        _control: &mut LoopControl,
    ) {
        let Phase::Saving(targets) = std::mem::replace(&mut self.phase, Phase::Standing) else {
            return;
        };
        let saved = devices
            .map_err(SaveError::from)
            .and_then(|devices| save::write(&self.machine, &devices, targets));
        match saved {
            Ok((saved, watches)) => {
                self.watches = watches;
                self.send(&Event::Saved(saved));
            }
            Err(error) => self.go_on(&error),
        }
    }

    fn cleared(
        &mut self,
        outcome: Result<(), devices::SaveError>,
        event_loop: &mut EventLoop,
        _control: &mut LoopControl,
    ) {
        let Phase::Resetting(target) = std::mem::replace(&mut self.phase, Phase::Standing) else {
            return;
        };
        let back = outcome
            .map_err(ResetError::Busy)
            .and_then(|()| reset::put_back(&mut self.machine, *target, event_loop));
        match back {
            Ok(done) => self.send(&Event::Reset(done)),
            Err(error) => {
                let why = format!("a reset failed half way: {}", chain(&error));
                self.machine.ending.report(Reason::Host(why));
            }
        }
    }

    fn peer_closed(&mut self, _control: &mut LoopControl) {
        self.log.line("info", "the service closed the link");
    }
}
