//! The task that owns a VM process's control socket and its process descriptor. It ends only when
//! the process is reaped, so [`MachinePhase::Ended`] means that nothing of it is left.

use crate::machine::allowance::EventAllowance;
use crate::machine::command::{MachineCommand, PendingReplies};
use crate::machine::end::MachineEnd;
use crate::machine::group::VmGroup;
use crate::machine::name::MachineName;
use crate::machine::phase::MachinePhase;
use crate::machine::ready;
use control::{ChannelError, Configured, Event, ExitReport, Request};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, pidfd_send_signal,
    waitid,
};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

/// How long a process may take to end after it was asked to, before it is killed.
pub(super) const GRACE: Duration = Duration::from_secs(1);

/// One VM process, from its configuration to its end.
pub(super) struct MachineTask {
    pub(super) name: MachineName,
    pub(super) phase: watch::Sender<MachinePhase>,
    pub(super) report: Option<ExitReport>,
    pub(super) failure: Option<String>,
    pub(super) allowance: EventAllowance,
    /// How long the process may take to end by itself.
    pub(super) grace: Duration,
    /// What limits the process.
    pub(super) group: Option<VmGroup>,
}

impl MachineTask {
    /// Follows the process to its end; its group is left to the caller.
    pub(super) async fn run(
        mut self,
        pid: Pid,
        control: OwnedFd,
        commands: mpsc::Receiver<MachineCommand>,
    ) -> (MachineEnd, Option<VmGroup>) {
        let status = match ProcessFds::new(pid, control) {
            Ok(ends) => {
                self.serve(&ends, commands).await;
                self.finish(&ends).await
            }
            Err(error) => {
                self.failure = Some(format!("its descriptors cannot be watched: {error}"));
                // Rare and bad (out of descriptors): a blocking wait, away from the runtime.
                let reaped = tokio::task::spawn_blocking(move || {
                    let _ = rustix::process::kill_process(pid, Signal::KILL);
                    waitid(WaitId::Pid(pid), WaitIdOptions::EXITED)
                });
                status_text(reaped.await.ok().and_then(Result::ok).flatten().as_ref())
            }
        };
        let group = self.group.as_ref().filter(|_| self.report.is_none());
        let end = MachineEnd {
            shortage: group.and_then(VmGroup::shortage),
            report: self.report,
            failure: self.failure,
            status,
        };
        (end, self.group)
    }

    /// Until the process has said its last word, is gone, or has been asked to end and does not.
    async fn serve(&mut self, ends: &ProcessFds, mut commands: mpsc::Receiver<MachineCommand>) {
        let mut waiting = PendingReplies::default();
        let mut stop_by: Option<Instant> = None;
        loop {
            let mut files = Vec::new();
            let request = tokio::select! {
                event = ends.event() => match event {
                    Ok(Some(event)) => match self.take(event, &mut waiting) {
                        true => continue,
                        false => return,
                    },
                    Ok(None) => return,
                    Err(error) => {
                        self.failure.get_or_insert_with(|| format!("{error}"));
                        return;
                    }
                },
                () = ends.exited() => return,
                () = sleep_until(stop_by.unwrap_or_else(Instant::now)), if stop_by.is_some() => {
                    return;
                }
                command = commands.recv(), if stop_by.is_none() => match command {
                    Some(MachineCommand::Start) => {
                        self.phase.send_replace(MachinePhase::Started);
                        Request::Start
                    }
                    Some(MachineCommand::Stats(reply)) => {
                        waiting.stats = Some(reply);
                        Request::Stats
                    }
                    Some(MachineCommand::Save(save, copied)) => {
                        if let Some(group) = &mut self.group {
                            group.make_room_for_save();
                        }
                        waiting.save = Some(save.outcome);
                        waiting.copied = Some(copied);
                        files = save.files;
                        Request::Save(save.spec)
                    }
                    Some(MachineCommand::Pause) => Request::Pause,
                    Some(MachineCommand::Reset(reset)) => {
                        waiting.reset = Some(reset.outcome);
                        files = reset.files;
                        Request::Reset(reset.spec)
                    }
                    // The handle is dropped: nobody wants this machine any more.
                    Some(MachineCommand::Stop) | None => {
                        stop_by = Some(Instant::now() + GRACE);
                        Request::Stop
                    }
                },
            };
            self.allowance.ask(&request);
            let borrowed: Vec<_> = files.iter().map(AsFd::as_fd).collect();
            if let Err(error) = control::send(&ends.control, &request, &borrowed) {
                waiting.not_sent(&request, &error);
                tracing::debug!(
                    sandbox_id = %self.name,
                    ?request,
                    %error,
                    "control request not sent"
                );
                if stop_by.is_some() {
                    return;
                }
            }
        }
    }

    /// Notes an event; false when it was the last that matters.
    fn take(&mut self, event: Event, waiting: &mut PendingReplies) -> bool {
        if !matches!(event, Event::Exited(_)) && !self.allowance.answer() {
            let why = "The VM process sent an answer to nothing; it is ended";
            tracing::warn!(sandbox_id = %self.name, "{why}");
            self.failure = Some(why.into());
            self.grace = Duration::ZERO;
            return false;
        }
        match event {
            Event::Configured(configured) => {
                self.phase
                    .send_replace(MachinePhase::Configured(configured));
            }
            Event::Stats(counters) => {
                if let Some(reply) = waiting.stats.take() {
                    let _ = reply.send(counters);
                }
            }
            Event::CopiedAhead => {
                if let Some(reply) = waiting.copied.take() {
                    let _ = reply.send(());
                }
            }
            Event::Saved(saved) => waiting.saved(Ok(saved)),
            Event::SaveFailed { message } => {
                waiting.saved(Err(message.chars().take(2048).collect()));
            }
            Event::Reset(reset) => {
                if let Some(reply) = waiting.reset.take() {
                    // As after its configuration: it is built and does not run.
                    self.phase
                        .send_replace(MachinePhase::Configured(Configured {
                            build_ns: reset.reset_ns,
                        }));
                    let _ = reply.send(Ok(reset));
                }
            }
            Event::ResetFailed { message } => {
                if let Some(reply) = waiting.reset.take() {
                    let _ = reply.send(Err(message.chars().take(2048).collect()));
                }
            }
            Event::Exited(report) => {
                self.report = Some(report);
                return false;
            }
            Event::Failed { message } => {
                let message: String = message.chars().take(2048).collect();
                tracing::warn!(
                    sandbox_id = %self.name,
                    message,
                    "the VM process could not do it"
                );
                let running = matches!(*self.phase.borrow(), MachinePhase::Started);
                self.failure.get_or_insert(message);
                return running;
            }
        }
        true
    }

    /// Sees the process out and reaps it.
    async fn finish(&mut self, ends: &ProcessFds) -> String {
        if timeout(self.grace, ends.exited()).await.is_err() {
            tracing::debug!(
                sandbox_id = %self.name,
                "killing a VM process that does not end"
            );
            let _ = pidfd_send_signal(&ends.process, Signal::KILL);
            ends.exited().await;
        }
        // It may have said why between the last look and its end; who talks unasked is not heard.
        while self.report.is_none() && !self.grace.is_zero() {
            match control::recv::<Event>(&ends.control) {
                Ok(Some((Event::Exited(report), _))) => self.report = Some(report),
                Ok(Some((Event::Failed { message }, _))) => {
                    self.failure.get_or_insert(message);
                }
                Ok(Some(_)) => {}
                _ => break,
            }
        }
        let status = waitid(WaitId::PidFd(ends.process.as_fd()), WaitIdOptions::EXITED);
        status_text(status.ok().flatten().as_ref())
    }
}

/// What connects a task to its process.
struct ProcessFds {
    control: AsyncFd<OwnedFd>,
    process: AsyncFd<OwnedFd>,
}

impl ProcessFds {
    /// `pid` is a child that nobody else reaps, so its number cannot have been given away.
    fn new(pid: Pid, control: OwnedFd) -> std::io::Result<Self> {
        let process = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        rustix::io::ioctl_fionbio(&control, true)?;
        Ok(Self {
            control: ready::for_input(control)?,
            process: ready::for_input(process)?,
        })
    }

    async fn event(&self) -> Result<Option<Event>, ChannelError> {
        ready::message(&self.control).await
    }

    async fn exited(&self) {
        // An error means that the runtime is shutting down; the process then ends by end-of-file.
        let _ = self.process.readable().await;
    }
}

fn status_text(status: Option<&WaitIdStatus>) -> String {
    match status {
        Some(s) if s.exited() => format!("exit status {}", s.exit_status().unwrap_or(-1)),
        Some(s) => format!("signal {}", s.terminating_signal().unwrap_or(-1)),
        None => "unknown status".into(),
    }
}
