//! One VM process: a task that owns its control socket and its process descriptor, and a handle.
//!
//! The task ends only when the process is reaped, so [`Phase::Ended`] means that nothing of it is
//! left. Dropping the handle ends the machine: that is how a failed creation is rolled back.

mod end;

pub use end::End;

use crate::name::Name;
use crate::ready;
use control::{
    ChannelError, Configured, Event, ExitReport, Request, Reset, ResetSpec, SaveSpec, Saved,
    VmStats,
};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, pidfd_send_signal,
    waitid,
};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

/// How long a process may take to end after it was asked to, before it is killed.
const GRACE: Duration = Duration::from_secs(1);

/// How long a machine whose link broke may take to end and say why: its word is better than ours. One whose
/// pager is gone takes a second, in which its other threads may end in order.
pub const LAST_WORD: Duration = Duration::from_secs(3);

/// How far a machine is.
#[derive(Clone, Debug)]
pub enum Phase {
    /// The process runs and has its configuration.
    Spawned,
    /// Built, not running.
    Configured(Configured),
    /// The vCPUs run, or are about to.
    Started,
    /// The process is gone and reaped.
    Ended(Arc<End>),
}

#[derive(Debug)]
enum Command {
    Start,
    Stop,
    Stats(oneshot::Sender<VmStats>),
    Save(Box<Order<SaveSpec, Saved>>),
    Reset(Box<Order<ResetSpec, Reset>>),
}

/// A request with files, and who waits for its outcome.
#[derive(Debug)]
struct Order<S, T> {
    spec: S,
    files: Vec<OwnedFd>,
    outcome: oneshot::Sender<Result<T, String>>,
}

/// Who waits for what.
#[derive(Debug, Default)]
struct Waiting {
    stats: Option<oneshot::Sender<VmStats>>,
    save: Option<oneshot::Sender<Result<Saved, String>>>,
    reset: Option<oneshot::Sender<Result<Reset, String>>>,
}

impl Waiting {
    /// Tells whoever waits for the outcome of a request that it was not sent.
    fn not_sent(&mut self, request: &Request, error: &ChannelError) {
        match request {
            Request::Save(_) => {
                if let Some(reply) = self.save.take() {
                    let _ = reply.send(Err(error.to_string()));
                }
            }
            Request::Reset(_) => {
                if let Some(reply) = self.reset.take() {
                    let _ = reply.send(Err(error.to_string()));
                }
            }
            _ => {}
        }
    }
}

/// The handle of one VM process.
#[derive(Debug)]
pub struct Machine {
    name: Name,
    commands: mpsc::Sender<Command>,
    phase: watch::Receiver<Phase>,
}

impl Machine {
    /// Takes over a process that has just been started and configured. Must be called on the
    /// runtime; returns at once. `keep` is dropped when the process is reaped, and only then are
    /// those told who wait for the end.
    #[must_use]
    pub fn adopt(name: Name, pid: Pid, control: OwnedFd, keep: impl Send + 'static) -> Self {
        // The kernel, short of memory, is to end a sandbox and not the service. Without it all works.
        let _ = std::fs::write(
            format!("/proc/{}/oom_score_adj", pid.as_raw_nonzero()),
            "500",
        );
        let (commands, receiver) = mpsc::channel(8);
        let (sender, phase) = watch::channel(Phase::Spawned);
        let task = Task {
            name: name.clone(),
            phase: sender.clone(),
            report: None,
            failure: None,
        };
        tokio::spawn(async move {
            let end = task.run(pid, control, receiver).await;
            drop(keep);
            sender.send_replace(Phase::Ended(Arc::new(end)));
        });
        Self {
            name,
            commands,
            phase,
        }
    }

    /// Its name in the log.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Another hand on it.
    #[must_use]
    pub fn hand(&self) -> Hand {
        Hand(self.commands.downgrade())
    }

    /// Whether its process has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(*self.phase.borrow(), Phase::Ended(_))
    }

    /// Follows the machine without keeping it: completes when its process is reaped.
    pub fn follow(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut phase = self.phase.clone();
        async move {
            // An error would mean that its task is gone, which is an end too.
            let _ = phase.wait_for(|p| matches!(p, Phase::Ended(_))).await;
        }
    }

    /// Waits for a phase of at least this kind; an end counts always.
    pub async fn wait(&mut self, reached: fn(&Phase) -> bool) -> Phase {
        let wanted = |phase: &Phase| matches!(phase, Phase::Ended(_)) || reached(phase);
        if let Ok(phase) = self.phase.wait_for(wanted).await {
            return phase.clone();
        }
        // The task publishes the end before it goes; this is for completeness.
        self.phase.borrow().clone()
    }

    /// Lets the vCPUs go.
    pub async fn start(&self) {
        let _ = self.commands.send(Command::Start).await;
    }

    /// Asks the process to end, and sees to it. Completes when it is reaped.
    pub async fn stop(&mut self) -> Option<Arc<End>> {
        let _ = self.commands.send(Command::Stop).await;
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
    pub async fn ended(&mut self) -> Option<Arc<End>> {
        match self.wait(|_| false).await {
            Phase::Ended(end) => Some(end),
            _ => None,
        }
    }

    /// The process's counters; `None` if it has ended.
    pub async fn stats(&self) -> Option<VmStats> {
        let (sender, receiver) = oneshot::channel();
        self.commands.send(Command::Stats(sender)).await.ok()?;
        receiver.await.ok()
    }
}

/// Why a machine was not put back.
#[derive(Debug, thiserror::Error)]
pub enum NotReset {
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

/// A hand on a machine that does not keep it: whoever owns the [`Machine`] decides about its end.
#[derive(Clone, Debug)]
pub struct Hand(mpsc::WeakSender<Command>);

impl Hand {
    /// Whether the machine has ended, or is about to.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.0.upgrade().is_none_or(|commands| commands.is_closed())
    }

    /// Lets the vCPUs go, for the first time or on after a [`Hand::save`].
    pub async fn start(&self) {
        if let Some(commands) = self.0.upgrade() {
            let _ = commands.send(Command::Start).await;
        }
    }

    /// Brings the machine to a halt and has its state written to `files`, which `spec` assigns.
    /// Then it stands still until [`Hand::start`]. One saving at a time.
    ///
    /// # Errors
    /// Why it could not be saved, in the VM process's words; it then runs on.
    pub async fn save(&self, spec: SaveSpec, files: Vec<OwnedFd>) -> Result<Saved, String> {
        let saved = self.order(spec, files, Command::Save).await;
        saved.unwrap_or_else(|| Err("the machine has ended".into()))
    }

    /// Has the machine put back to the moment that `files` hold, which `spec` assigns. Then it stands
    /// still until [`Hand::start`]. One at a time.
    ///
    /// # Errors
    /// Whether it runs on as it was, or has ended.
    pub async fn reset(&self, spec: ResetSpec, files: Vec<OwnedFd>) -> Result<Reset, NotReset> {
        match self.order(spec, files, Command::Reset).await {
            Some(outcome) => outcome.map_err(NotReset::RunsOn),
            None => Err(NotReset::Ended),
        }
    }

    /// `None`: the machine has ended.
    async fn order<S, T>(
        &self,
        spec: S,
        files: Vec<OwnedFd>,
        command: fn(Box<Order<S, T>>) -> Command,
    ) -> Option<Result<T, String>> {
        let commands = self.0.upgrade()?;
        let (outcome, receiver) = oneshot::channel();
        let order = Order {
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

struct Task {
    name: Name,
    phase: watch::Sender<Phase>,
    report: Option<ExitReport>,
    failure: Option<String>,
}

impl Task {
    async fn run(mut self, pid: Pid, control: OwnedFd, commands: mpsc::Receiver<Command>) -> End {
        let status = match Ends::new(pid, control) {
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
        End {
            report: self.report,
            failure: self.failure,
            status,
        }
    }

    /// Until the process has said its last word, is gone, or has been asked to end and does not.
    async fn serve(&mut self, ends: &Ends, mut commands: mpsc::Receiver<Command>) {
        let mut waiting = Waiting::default();
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
                    Some(Command::Start) => {
                        self.phase.send_replace(Phase::Started);
                        Request::Start
                    }
                    Some(Command::Stats(reply)) => {
                        waiting.stats = Some(reply);
                        Request::Stats
                    }
                    Some(Command::Save(save)) => {
                        waiting.save = Some(save.outcome);
                        files = save.files;
                        Request::Save(save.spec)
                    }
                    Some(Command::Reset(reset)) => {
                        waiting.reset = Some(reset.outcome);
                        files = reset.files;
                        Request::Reset(reset.spec)
                    }
                    // The handle is dropped: nobody wants this machine any more.
                    Some(Command::Stop) | None => {
                        stop_by = Some(Instant::now() + GRACE);
                        Request::Stop
                    }
                },
            };
            let borrowed: Vec<_> = files.iter().map(AsFd::as_fd).collect();
            if let Err(error) = control::send(&ends.control, &request, &borrowed) {
                waiting.not_sent(&request, &error);
                tracing::debug!(sandbox_id = %self.name, ?request, %error, "control request not sent");
                if stop_by.is_some() {
                    return;
                }
            }
        }
    }

    /// Notes an event; false when it was the last that matters.
    fn take(&mut self, event: Event, waiting: &mut Waiting) -> bool {
        match event {
            Event::Configured(configured) => {
                self.phase.send_replace(Phase::Configured(configured));
            }
            Event::Stats(counters) => {
                if let Some(reply) = waiting.stats.take() {
                    let _ = reply.send(counters);
                }
            }
            Event::Saved(saved) => {
                if let Some(reply) = waiting.save.take() {
                    let _ = reply.send(Ok(saved));
                }
            }
            Event::SaveFailed { message } => {
                if let Some(reply) = waiting.save.take() {
                    let _ = reply.send(Err(message.chars().take(2048).collect()));
                }
            }
            Event::Reset(reset) => {
                if let Some(reply) = waiting.reset.take() {
                    // As after its configuration: it is built and does not run.
                    self.phase.send_replace(Phase::Configured(Configured {
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
                let running = matches!(*self.phase.borrow(), Phase::Started);
                self.failure = Some(message);
                return running;
            }
        }
        true
    }

    /// Sees the process out and reaps it.
    async fn finish(&mut self, ends: &Ends) -> String {
        if timeout(GRACE, ends.exited()).await.is_err() {
            tracing::debug!(
                sandbox_id = %self.name,
                "killing a VM process that does not end"
            );
            let _ = pidfd_send_signal(&ends.process, Signal::KILL);
            ends.exited().await;
        }
        // It may have said why between the last look and its end.
        while self.report.is_none() {
            match control::recv::<Event>(&ends.control) {
                Ok(Some((Event::Exited(report), _))) => self.report = Some(report),
                Ok(Some((Event::Failed { message }, _))) => self.failure = Some(message),
                Ok(Some(_)) => {}
                _ => break,
            }
        }
        let status = waitid(WaitId::PidFd(ends.process.as_fd()), WaitIdOptions::EXITED);
        status_text(status.ok().flatten().as_ref())
    }
}

/// What connects a task to its process.
struct Ends {
    control: AsyncFd<OwnedFd>,
    process: AsyncFd<OwnedFd>,
}

impl Ends {
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
        loop {
            let mut ready = self.control.readable().await.map_err(ChannelError::Io)?;
            match control::recv::<Event>(&self.control) {
                Err(error) if error.would_block() => ready.clear_ready(),
                // Descriptors that come along are not expected and closed here.
                other => return other.map(|event| event.map(|(event, _fds)| event)),
            }
        }
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

#[cfg(test)]
mod test {
    use super::*;
    use control::ExitCause;

    fn shell(script: &str) -> Machine {
        let (child, control) = control::spawn("/bin/sh", &["-c", script]).unwrap();
        let pid = Pid::from_child(&child);
        Machine::adopt(Name::new("itest"), pid, control, ())
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
        drop(Machine::adopt(Name::new("itest"), pid, control, ()));
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
        let end = End {
            report: Some(report),
            failure: None,
            status: String::new(),
        };
        assert_eq!(end.console_tail(), "a\nb\u{fffd}[31m\u{fffd}");
        assert_eq!(end.to_string(), "the guest kernel panicked");
    }
}
