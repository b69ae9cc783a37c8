//! The event loop: one thread, one epoll, one connection.
//!
//! ```text
//! wait -> note what is ready -> reap -> read link -> step tasks -> pump processes -> write link
//!   ^_______________ at once if something may go on, else when something is ready _______________|
//! ```
//!
//! Nothing in a turn is unbounded: a frame per process and way, a step per task, one buffer of
//! input. What does not fit waits for the next turn.

use crate::link::{HostLink, LinkRead};
use crate::sys::event::{Epoll, EpollEvent, child_signals};
use crate::sys::spawn::{Reaped, reap};
use crate::sys::{Errno, Fd, read, system};
use crate::tasks::TaskTable;
use crate::tokens::{DRAIN, ERR, LINK, OUT, PORT, ProcessPort, SIGNAL, STDIN, of_process};
use agent_core::{FatalError, HostAction, HostInput, Session};
use wire::Message;

/// Events taken at once.
const EVENTS: usize = 64;
/// Children reaped per turn.
const REAP_PER_TURN: usize = 512;
/// Frames handled per turn.
const FRAMES_PER_TURN: usize = 64;

/// Everything the agent has.
pub(crate) struct Agent {
    input: HostInput,
    session: Session,
    pub(crate) tasks: TaskTable,
    turn: usize,
}

/// What the loop waits on.
struct EventSources {
    epoll: Epoll,
    signals: Fd,
    /// Children may have ended.
    ended: bool,
}

impl Agent {
    pub(crate) const fn new() -> Self {
        Self {
            input: HostInput::new(),
            session: Session::new(),
            tasks: TaskTable::new(),
            turn: 0,
        }
    }

    /// Serves the link until there is none to be had, which for PID 1 is never.
    ///
    /// # Errors
    /// When the kernel refuses what the loop cannot be without.
    pub(crate) fn run(&mut self, mut link: HostLink) -> Result<(), Errno> {
        let epoll = Epoll::new()?;
        let signals = child_signals()?;
        epoll.add(&signals, SIGNAL, false, true)?;
        let mut sources = EventSources {
            epoll,
            signals,
            ended: true,
        };
        link.begin(&sources.epoll, &self.tasks.identity, &mut self.session);
        let mut again = true;
        loop {
            let timeout = if again { Some(0) } else { link.retry_in_ms() };
            self.wait(&mut sources, &mut link, timeout);
            again = self.reap(&mut sources);
            again |= self.receive(&mut link, &sources.epoll);
            again |= self.tasks.step(self.turn, &mut self.session);
            again |=
                self.tasks
                    .procs
                    .pump(self.turn, &mut self.session, &sources.epoll, of_process);
            again |= self
                .tasks
                .ports
                .pump(self.turn, &mut self.session, &sources.epoll);
            let tight = self.session.is_tight();
            link.send(&mut self.session, &sources.epoll);
            again |= tight && !self.session.is_tight();
            self.turn = self.turn.wrapping_add(1);
            if link.is_lost() {
                self.tasks.disconnect();
                self.input.clear();
                self.session.clear();
                if link.is_final() {
                    self.tasks.procs.kill_all();
                    return Ok(());
                }
            }
            link.begin(&sources.epoll, &self.tasks.identity, &mut self.session);
            if self.tasks.shutdown && self.session.output().is_empty() {
                return Ok(());
            }
            if !again {
                self.tasks.cgroups.prepare();
            }
        }
    }

    /// Takes events, and notes what they make possible.
    fn wait(&mut self, sources: &mut EventSources, link: &mut HostLink, timeout: Option<u32>) {
        let mut events = [EpollEvent::default(); EVENTS];
        let n = sources.epoll.wait(&mut events, timeout);
        for event in &events[..n.min(EVENTS)] {
            let token = event.token();
            let process = usize::try_from(token & 0xffff_ffff).unwrap_or(usize::MAX);
            let (readable, writable) = (event.readable(), event.writable());
            match token & !0xffff_ffff {
                LINK => link.on_event(readable, writable, event.ended()),
                SIGNAL => sources.ended = true,
                STDIN => self
                    .tasks
                    .procs
                    .on_event(process, ProcessPort::Stdin, false, writable),
                OUT => self
                    .tasks
                    .procs
                    .on_event(process, ProcessPort::Out, readable, writable),
                ERR => self
                    .tasks
                    .procs
                    .on_event(process, ProcessPort::Err, readable, false),
                DRAIN => self.tasks.procs.on_drain_event(process),
                PORT => {
                    let ended = event.ended();
                    self.tasks
                        .ports
                        .on_event(process, readable, writable, ended);
                }
                _ => {}
            }
        }
    }

    /// Reaps children that have ended, the agent's own and orphans.
    fn reap(&mut self, sources: &mut EventSources) -> bool {
        if !sources.ended {
            return false;
        }
        let _ = read(&sources.signals, &mut [0; 128]);
        let TaskTable { procs, cgroups, .. } = &mut self.tasks;
        for _ in 0..REAP_PER_TURN {
            match reap() {
                Reaped::One(pid, exit) => procs.on_exit(pid, exit),
                Reaped::NoMore { alone } => {
                    procs.release(cgroups, alone);
                    sources.ended = false;
                    return false;
                }
            }
        }
        procs.release(cgroups, false);
        true
    }

    /// Reads the link and handles what has arrived, as long as there is room for answers.
    fn receive(&mut self, link: &mut HostLink, epoll: &Epoll) -> bool {
        for _ in 0..FRAMES_PER_TURN {
            if !link.is_up() || !self.session.has_room() {
                return false;
            }
            match self.input.next(&mut self.session) {
                Err(fatal) => {
                    self.go_away(link, &fatal, epoll);
                    return false;
                }
                Ok(Some(action)) => act(&action, &mut self.tasks, &mut self.session, epoll),
                Ok(None) => match link.receive(self.input.space()) {
                    LinkRead::Bytes(n) => self.input.commit(n),
                    LinkRead::Nothing => return false,
                    LinkRead::End => {
                        link.lose();
                        return false;
                    }
                },
            }
        }
        true
    }

    /// Tells the host why, as far as the link takes it, and gives the connection up.
    fn go_away(&mut self, link: &mut HostLink, fatal: &FatalError, epoll: &Epoll) {
        system::log(format_args!("closing the link: {}", fatal.message.as_str()));
        let message = fatal.message.as_str();
        self.session.connection(&Message::GoAway {
            code: fatal.code,
            message,
        });
        link.send(&mut self.session, epoll);
        link.lose();
    }
}

fn act(action: &HostAction<'_>, tasks: &mut TaskTable, session: &mut Session, epoll: &Epoll) {
    match *action {
        HostAction::Open { slot, ref request } => tasks.open(slot, request, session, epoll),
        HostAction::Data {
            slot,
            channel,
            bytes,
        } => tasks.data(slot, channel, bytes, session),
        HostAction::End { slot } => tasks.end(slot, session),
        HostAction::Abandon { slot } => tasks.abandon(slot),
        HostAction::None => {}
    }
}
