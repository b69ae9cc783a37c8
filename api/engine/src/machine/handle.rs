//! A VM process as the service holds it: who owns it decides about its end, who has a handle asks
//! it. Dropping the owner ends the machine: that is how a failed creation is rolled back.

use crate::machine::allowance::EventAllowance;
use crate::machine::command::{MachineCommand, MachineOrder};
use crate::machine::end::MachineEnd;
use crate::machine::group::VmGroup;
use crate::machine::name::MachineName;
use crate::machine::phase::MachinePhase;
use crate::machine::task::{GRACE, MachineTask};
use control::{Reset, ResetSpec, SaveSpec, Saved, VmStats};
use rustix::process::Pid;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// How long a machine whose link broke may take to end and say why: its word is better than ours.
/// One whose pager is gone takes a second, in which its other threads may end in order.
pub const LAST_WORD: Duration = Duration::from_secs(3);

/// The handle of one VM process.
#[derive(Debug)]
pub struct VmProcess {
    name: MachineName,
    commands: mpsc::Sender<MachineCommand>,
    phase: watch::Receiver<MachinePhase>,
}

impl VmProcess {
    /// Takes over a process that has just been started and configured. Must be called on the
    /// runtime; returns at once. `keep` is dropped when the process is reaped, and only then are
    /// those told who wait for the end; its `group` is removed after that.
    #[must_use]
    pub fn adopt(
        name: MachineName,
        pid: Pid,
        control: OwnedFd,
        group: Option<VmGroup>,
        keep: impl Send + 'static,
    ) -> Self {
        let (commands, receiver) = mpsc::channel(8);
        let (sender, phase) = watch::channel(MachinePhase::Spawned);
        let task = MachineTask {
            name: name.clone(),
            phase: sender.clone(),
            report: None,
            failure: None,
            allowance: EventAllowance::configured(),
            grace: GRACE,
            group,
        };
        tokio::spawn(async move {
            let (end, group) = task.run(pid, control, receiver).await;
            drop(keep);
            sender.send_replace(MachinePhase::Ended(Arc::new(end)));
            if group.is_some() {
                // Nobody waits for it.
                tokio::task::spawn_blocking(move || drop(group));
            }
        });
        Self {
            name,
            commands,
            phase,
        }
    }

    /// Its name in the log.
    #[must_use]
    pub fn name(&self) -> &MachineName {
        &self.name
    }

    /// A handle on it.
    #[must_use]
    pub fn handle(&self) -> MachineHandle {
        MachineHandle(self.commands.downgrade())
    }

    /// Whether its process has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(*self.phase.borrow(), MachinePhase::Ended(_))
    }

    /// Follows the machine without keeping it: completes when its process is reaped.
    pub fn follow(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut phase = self.phase.clone();
        async move {
            // An error would mean that its task is gone, which is an end too.
            let _ = phase
                .wait_for(|p| matches!(p, MachinePhase::Ended(_)))
                .await;
        }
    }

    /// Waits for a phase of at least this kind; an end counts always.
    pub async fn wait(&mut self, reached: fn(&MachinePhase) -> bool) -> MachinePhase {
        let wanted =
            |phase: &MachinePhase| matches!(phase, MachinePhase::Ended(_)) || reached(phase);
        if let Ok(phase) = self.phase.wait_for(wanted).await {
            return phase.clone();
        }
        // The task publishes the end before it goes; this is for completeness.
        self.phase.borrow().clone()
    }

    /// Lets the vCPUs go.
    pub async fn start(&self) {
        let _ = self.commands.send(MachineCommand::Start).await;
    }

    /// Asks the process to end, and sees to it. Completes when it is reaped.
    pub async fn stop(&mut self) -> Option<Arc<MachineEnd>> {
        let _ = self.commands.send(MachineCommand::Stop).await;
        self.ended().await
    }

    /// Ends a machine that did not come up, and logs what its console last said: often the only
    /// word about the reason.
    pub async fn give_up(&mut self, id: &str) {
        if let Some(end) = self.stop().await {
            tracing::warn!(sandbox_id = id, %end, "machine given up");
            end.log_console(id);
        }
    }

    /// Completes when the process is reaped.
    pub async fn ended(&mut self) -> Option<Arc<MachineEnd>> {
        match self.wait(|_| false).await {
            MachinePhase::Ended(end) => Some(end),
            _ => None,
        }
    }

    /// The process's counters; `None` if it has ended.
    pub async fn stats(&self) -> Option<VmStats> {
        let (sender, receiver) = oneshot::channel();
        self.commands
            .send(MachineCommand::Stats(sender))
            .await
            .ok()?;
        receiver.await.ok()
    }
}

/// Why a machine was not reset in place.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// In the VM process's words; nothing has changed.
    #[error("it runs on as it was: {0}")]
    RunsOn(String),
    /// It failed half way, or for another reason.
    #[error("the machine has ended")]
    Ended,
    /// Nobody knows how it stands.
    #[error("it took more than {0:?}")]
    Late(Duration),
}

/// A handle on a machine that does not keep it: whoever owns the [`VmProcess`] decides about its
/// end.
#[derive(Clone, Debug)]
pub struct MachineHandle(mpsc::WeakSender<MachineCommand>);

impl MachineHandle {
    /// Whether the machine has ended, or is about to.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.0.upgrade().is_none_or(|commands| commands.is_closed())
    }

    /// Lets the vCPUs go, for the first time or on after a [`MachineHandle::save`].
    pub async fn start(&self) {
        if let Some(commands) = self.0.upgrade() {
            let _ = commands.send(MachineCommand::Start).await;
        }
    }

    /// Brings the machine to a halt and has its state written to `files`, which `spec` assigns.
    /// Then it stands still until [`MachineHandle::start`]. One saving at a time. `before_pause` is
    /// what has to happen in the guest just before.
    ///
    /// # Errors
    /// Why it could not be saved, in the VM process's words; it then runs on. Or why what comes
    /// before did not happen; it then runs on, or stands still.
    pub async fn save(
        &self,
        spec: SaveSpec,
        files: Vec<OwnedFd>,
        before_pause: impl Future<Output = Result<(), String>>,
    ) -> Result<Saved, String> {
        let ended = || "the machine has ended".to_owned();
        let ahead = spec.ahead;
        let (copied, is_copied) = oneshot::channel();
        let ask = |order| MachineCommand::Save(order, copied);
        if !ahead {
            before_pause.await?;
            let saved = self.order(spec, files, ask).await;
            return saved.unwrap_or_else(|| Err(ended()));
        }
        let pause = async {
            if is_copied.await.is_err() {
                return Ok(()); // the save is over: its outcome tells why
            }
            let ready = before_pause.await;
            let commands = self.0.upgrade().ok_or_else(ended)?;
            commands
                .send(MachineCommand::Pause)
                .await
                .map_err(|_| ended())?;
            ready
        };
        let (saved, ready) = tokio::join!(self.order(spec, files, ask), pause);
        let saved = saved.unwrap_or_else(|| Err(ended()))?;
        ready.map(|()| saved)
    }

    /// Has the machine reset to what `files` hold, which `spec` assigns. Then it
    /// stands still until [`MachineHandle::start`]. One at a time.
    ///
    /// # Errors
    /// Whether it runs on as it was, or has ended.
    pub async fn reset(&self, spec: ResetSpec, files: Vec<OwnedFd>) -> Result<Reset, ResetError> {
        match self.order(spec, files, MachineCommand::Reset).await {
            Some(outcome) => outcome.map_err(ResetError::RunsOn),
            None => Err(ResetError::Ended),
        }
    }

    /// `None`: the machine has ended.
    async fn order<S, T>(
        &self,
        spec: S,
        files: Vec<OwnedFd>,
        command: impl FnOnce(Box<MachineOrder<S, T>>) -> MachineCommand,
    ) -> Option<Result<T, String>> {
        let commands = self.0.upgrade()?;
        let (outcome, receiver) = oneshot::channel();
        let order = MachineOrder {
            spec,
            files,
            outcome,
        };
        commands.send(command(Box::new(order))).await.ok()?;
        // Whoever drops the machine now ends it.
        drop(commands);
        receiver.await.ok()
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use control::{ExitCause, ExitReport};
    use tokio::time::timeout;

    fn shell(script: &str) -> VmProcess {
        let (child, control) = control::spawn("/bin/sh", &["-c", script]).unwrap();
        let pid = Pid::from_child(&child);
        VmProcess::adopt(MachineName::new("itest"), pid, control, None, ())
    }

    fn no_such_process(pid: Pid) -> bool {
        rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH)
    }

    #[tokio::test]
    async fn a_process_that_ends_by_itself_is_reaped_and_explained() {
        let end = shell("exit 3").ended().await.unwrap();
        assert_eq!(
            end.to_string(),
            "the VM process ended without a report (exit status 3)"
        );
    }

    #[tokio::test]
    async fn a_process_that_does_not_listen_is_killed() {
        let mut machine = shell("trap '' TERM; exec sleep 600");
        let end = timeout(Duration::from_secs(20), machine.stop())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(end.status, "signal 9");
    }

    #[tokio::test]
    async fn dropping_the_handle_leaves_no_process() {
        let (child, control) = control::spawn("/bin/sh", &["-c", "exec sleep 600"]).unwrap();
        let pid = Pid::from_child(&child);
        drop(VmProcess::adopt(
            MachineName::new("itest"),
            pid,
            control,
            None,
            (),
        ));
        for _ in 0..400 {
            if no_such_process(pid) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("process {pid:?} is still there");
    }

    #[test]
    fn the_console_tail_is_made_printable() {
        let report = ExitReport {
            cause: ExitCause::GuestPanic,
            console_tail: b"a\r\nb\x1b[31m\xff".to_vec(),
            stats: VmStats::default(),
        };
        let end = MachineEnd {
            report: Some(report),
            failure: None,
            shortage: None,
            status: String::new(),
        };
        assert_eq!(end.console_tail(), "a\nb\u{fffd}[31m\u{fffd}");
        assert_eq!(end.to_string(), "the guest kernel panicked");
    }
}
