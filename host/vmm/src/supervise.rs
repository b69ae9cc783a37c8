//! The life of a machine that is built.
//!
//! ```text
//!   built ──> Paused ──Start──> Running ──(any end)──> the last word
//!               ^                  │ Save, Reset
//!               │                  ├──> Copying ahead ──failed──> Running
//!               │                  │         v
//!               │                  │    Copied ahead ──Save──> as from Running
//!               │                  │         │ Pause
//!               │                  │         v
//!               ├─────written──────┼──> Saving ──failed──> Running
//!               └─────reset────────┴──> Resetting ──failed──> the last word
//! ```
//!
//! The main thread runs the event loop, in which the control socket is one descriptor among others.
//! Whatever ends the machine ends the loop; the last word is an [`ExitReport`].

use crate::ending::{EndReason, classify};
use crate::error::{ResetError, SaveError, SuperviseError, chain};
use crate::log::SandboxLog;
use crate::parts::Machine;
use crate::reset::{self, ResetTarget};
use crate::save::{self, SaveTask};
use crate::wiring::borrow;
use control::{ChannelError, Event, ExitReport, Request, ResetSpec, VmStats};
use devices::{EventLoop, LoopControl, LoopHost, SavedDevices, WatchId};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use snapshot_memory::WriteTracking;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

const CONTROL: WatchId = WatchId(0);
const ENDING: WatchId = WatchId(1);
/// How long a vCPU may take to leave the guest.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// How long it may take to park a vCPU that will run on.
const PARK_LIMIT: Duration = Duration::from_secs(1);
/// How long the service may take to make room for the last word.
const LAST_WORD_LIMIT: Timespec = Timespec {
    tv_sec: 2,
    tv_nsec: 0,
};

fn io<E: Into<std::io::Error>>(what: &'static str) -> impl FnOnce(E) -> SuperviseError {
    move |source| SuperviseError::Io {
        what,
        source: source.into(),
    }
}

enum Phase {
    /// Has not run yet, has been saved, or has been reset.
    Paused,
    Running,
    /// It runs, and is copied between the devices' turns.
    Copying(SaveTask),
    /// It runs, what could be copied has been, and the service says when it is to be paused.
    Copied(SaveTask),
    /// The vCPUs are parked; the devices finish what is in flight.
    Saving(SaveTask),
    /// The vCPUs are parked; the devices drop what is in flight.
    Resetting(Box<ResetTarget>),
}

impl std::fmt::Debug for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Paused => "paused",
            Self::Running => "running",
            Self::Copying(_) => "being copied",
            Self::Copied(_) => "about to be paused",
            Self::Saving(_) => "being saved",
            Self::Resetting(_) => "being reset",
        })
    }
}

/// What the event loop calls for the control socket and for the end.
pub(crate) struct Supervisor {
    control: OwnedFd,
    machine: Machine,
    log: SandboxLog,
    phase: Phase,
    /// Of memory that was copied ahead: kept until the machine runs, since to end it takes time.
    watches: Vec<WriteTracking>,
}

impl Supervisor {
    pub(crate) fn new(control: OwnedFd, machine: Machine, log: SandboxLog) -> Self {
        Self {
            control,
            machine,
            log,
            phase: Phase::Paused,
            watches: Vec::new(),
        }
    }

    pub(crate) fn run(mut self) -> Result<(), SuperviseError> {
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
            self.machine.ending.report(EndReason::Host(chain(&error)));
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
        let reason = self.machine.ending.reason().unwrap_or(EndReason::Stopped);
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
                Ok(None) => return self.machine.ending.report(EndReason::Stopped),
                Err(error) if error.would_block() => return,
                Err(error) => {
                    return self.machine.ending.report(EndReason::Host(chain(&error)));
                }
            }
        }
    }

    fn handle(&mut self, request: &Request, fds: Vec<OwnedFd>, control: &mut LoopControl) {
        match (request, &self.phase) {
            (Request::Start, Phase::Paused) => {
                if let Some(state) = self.machine.restore_point.take()
                    && let Err(error) = save::restore_clocks(&self.machine, &state)
                {
                    return self.machine.ending.report(EndReason::Host(chain(&error)));
                }
                self.run_vcpus();
                self.watches.clear();
            }
            // A save that was copied ahead and not paused for has been given up.
            (Request::Save(spec), Phase::Running | Phase::Copied(_)) => {
                match SaveTask::new(spec, fds, self.machine.vm.memory()) {
                    Ok(task) => self.save(task, spec.ahead, control),
                    Err(error) => self.resume_unsaved(&error),
                }
            }
            (Request::Pause, Phase::Copied(_)) => {
                if let Phase::Copied(task) = std::mem::replace(&mut self.phase, Phase::Running) {
                    self.pause(task, control);
                }
            }
            (Request::Reset(spec), Phase::Paused | Phase::Running) => {
                match self.prepare_reset(spec, fds) {
                    Ok(target) => {
                        self.phase = Phase::Resetting(Box::new(target));
                        control.clear();
                    }
                    Err(error) => self.refuse_reset(&chain(&error)),
                }
            }
            (Request::Reset(_), phase) => {
                let message = format!("A machine cannot be reset while it is {phase:?}");
                self.refuse_reset(&message);
            }
            (Request::Stats, _) => {
                let stats = self.stats();
                self.send(&Event::Stats(stats));
            }
            (Request::Stop, _) => self.machine.ending.report(EndReason::Stopped),
            (Request::Save(_), phase) => {
                let message = format!("A machine cannot be saved while it is {phase:?}");
                self.send(&Event::SaveFailed { message });
            }
            (Request::Configure(_) | Request::Start | Request::Pause, phase) => {
                let message = format!("{request:?} while {phase:?}");
                self.send(&Event::Failed { message });
            }
        }
    }

    fn run_vcpus(&mut self) {
        self.phase = Phase::Running;
        self.machine.vcpus.iter().for_each(machine::VcpuThread::run);
    }

    /// Starts with what can be copied ahead, if that is asked for and possible, or else with the
    /// rest.
    fn save(&mut self, mut task: SaveTask, ahead: bool, control: &mut LoopControl) {
        // Demand-paged memory, and that of a trial run, is watched by another userfaultfd already.
        let free = self.machine.demand_paged.is_none() && self.machine.trial.is_none();
        if !ahead {
            return self.pause(task, control);
        }
        let started = free
            && match task.memory.start_ahead(&self.machine) {
                Ok(()) => true,
                Err(error) => {
                    let why = format!("memory is not copied ahead: {}", chain(&error));
                    self.log.line("warn", &why);
                    false
                }
            };
        if started {
            self.phase = Phase::Copying(task);
        } else {
            self.copied_ahead(task);
        }
    }

    /// The service is told, and says when the machine is to be paused.
    fn copied_ahead(&mut self, task: SaveTask) {
        self.phase = Phase::Copied(task);
        self.send(&Event::CopiedAhead);
    }

    /// Parks every vCPU, and then quiesces the devices.
    fn pause(&mut self, mut task: SaveTask, control: &mut LoopControl) {
        task.pausing = Instant::now();
        let mut vcpus = self.machine.vcpus.iter();
        match vcpus.try_for_each(|vcpu| vcpu.park(PARK_LIMIT)) {
            Ok(()) => {
                task.paused = Instant::now();
                self.phase = Phase::Saving(task);
                control.quiesce();
            }
            Err(error) => self.resume_unsaved(&SaveError::Park(error)),
        }
    }

    /// Reads the restore point, and parks every vCPU. After an error those that ran run again.
    fn prepare_reset(
        &self,
        spec: &ResetSpec,
        fds: Vec<OwnedFd>,
    ) -> Result<ResetTarget, ResetError> {
        let target = ResetTarget::new(&self.machine, spec, fds)?;
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
    fn resume_unsaved(&mut self, error: &SaveError) {
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
            Phase::Copying(task) => Some(task.asked),
            _ => None,
        }
    }

    fn tick(&mut self, _now: Instant, _control: &mut LoopControl) {
        let Phase::Copying(mut task) = std::mem::replace(&mut self.phase, Phase::Running) else {
            return;
        };
        match task.copy_slice(&self.machine) {
            Ok(false) => self.phase = Phase::Copying(task),
            Ok(true) => self.copied_ahead(task),
            Err(error) => self.resume_unsaved(&error),
        }
    }

    fn quiesced(
        &mut self,
        devices: Result<SavedDevices, devices::SaveError>,
        _control: &mut LoopControl,
    ) {
        let Phase::Saving(task) = std::mem::replace(&mut self.phase, Phase::Paused) else {
            return;
        };
        let saved = devices
            .map_err(SaveError::from)
            .and_then(|devices| save::write(&self.machine, &devices, task));
        match saved {
            Ok((saved, watches)) => {
                self.watches = watches;
                self.send(&Event::Saved(saved));
            }
            Err(error) => self.resume_unsaved(&error),
        }
    }

    fn cleared(
        &mut self,
        outcome: Result<(), devices::SaveError>,
        event_loop: &mut EventLoop,
        _control: &mut LoopControl,
    ) {
        let Phase::Resetting(target) = std::mem::replace(&mut self.phase, Phase::Paused) else {
            return;
        };
        let reset = outcome
            .map_err(ResetError::Busy)
            .and_then(|()| reset::reset(&mut self.machine, *target, event_loop));
        match reset {
            Ok(done) => self.send(&Event::Reset(done)),
            Err(error) => {
                let why = format!("a reset failed half way: {}", chain(&error));
                self.machine.ending.report(EndReason::Host(why));
            }
        }
    }

    fn peer_closed(&mut self, _control: &mut LoopControl) {
        self.log.line("info", "the service closed the link");
    }
}
