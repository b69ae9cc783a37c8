//! The process: its two descriptors, and the loop that joins them to the network.

use crate::interception::Interception;
use crate::net_stack::NetStack;
use crate::outbox::Outbox;
use crate::poller::{PollToken, Watch};
use control::{ChannelError, HeaderRules, HeaderRulesError, MAX_FRAME, NetRequest, NetSpecError};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::net::{RecvFlags, recv};
use rustix::rand::{GetRandomFlags, getrandom};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// Frames that are read before flows have their turn: what two windows hold.
const BATCH: usize = 16;
const BATCH_BYTES: usize = 2 * MAX_FRAME;

/// Why a network ended other than by its service's or its machine's end.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The first message was not `Configure`.
    #[error("The first message is not Configure: the service and this program are mixed builds")]
    NotConfigured,
    /// `Configure` came again.
    #[error("Configure came a second time: start another process for another network")]
    ConfiguredTwice,
    /// What it should be is not possible.
    #[error("The network is not possible")]
    Spec(#[from] NetSpecError),
    /// Rules for headers came without the file of certificates.
    #[error("Headers came without a descriptor of certificates: the service is of another build")]
    NoRoots,
    /// Rules for headers are not possible.
    #[error("The rules for headers are not possible")]
    HeaderRules(#[from] HeaderRulesError),
    /// The service does not speak as it should.
    #[error("The service's message could not be read")]
    Channel(#[from] ChannelError),
    /// The kernel refused something that every network needs.
    #[error("Could not {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: Errno,
    },
}

fn system(what: &'static str) -> impl FnOnce(Errno) -> ServeError {
    move |source| ServeError::System { what, source }
}

/// Serves one guest's network until the machine or the service has closed its end.
///
/// `frames` and `control` are `SOCK_SEQPACKET` sockets; see [`control::NetRequest`]. The caller has
/// confined the process.
///
/// # Errors
/// [`ServeError`].
pub fn serve(frames: OwnedFd, control: OwnedFd) -> Result<(), ServeError> {
    let mut headers = None;
    let spec = loop {
        match control::recv::<NetRequest>(&control)? {
            Some((NetRequest::HeaderRules(rules), roots)) => {
                headers = Some(header_rules(*rules, roots)?);
            }
            Some((NetRequest::Configure(spec), _)) => break spec,
            Some(_) => return Err(ServeError::NotConfigured),
            None => return Ok(()),
        }
    };
    spec.check()?;
    let interception = Interception::new(headers);
    ioctl_fionbio(&control, true).map_err(system("make the control socket non-blocking"))?;
    let mut seed = [0; 8];
    getrandom(&mut seed, GetRandomFlags::empty()).map_err(system("draw random numbers"))?;
    let stack = NetStack::new(
        *spec,
        interception,
        frames,
        control,
        u64::from_ne_bytes(seed),
    );
    let mut stack = stack.map_err(system("make an epoll instance"))?;
    let ctx = &stack.ctx;
    let watch = |fd, token| ctx.poller.add(fd, token, Watch::Read);
    watch(ctx.outbox.socket(), PollToken::Frames).map_err(system("watch the frames"))?;
    watch(ctx.report.socket(), PollToken::Control).map_err(system("watch the service"))?;
    if !ctx.report.ready() {
        return Ok(());
    }
    FrameLoop::new().run(&mut stack)
}

/// What the loop remembers between two waits.
struct FrameLoop {
    buffer: Box<[u8]>,
    readable: bool,
    /// The frames' socket is watched for room.
    watched_for_room: bool,
    /// Headers whose policy has not come yet.
    headers: Option<(HeaderRules, OwnedFd)>,
}

/// Whether the process goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LoopState {
    Running,
    Ended,
}

impl FrameLoop {
    fn new() -> Self {
        Self {
            buffer: vec![0; MAX_FRAME].into_boxed_slice(),
            readable: true,
            watched_for_room: false,
            headers: None,
        }
    }

    fn run(&mut self, stack: &mut NetStack) -> Result<(), ServeError> {
        loop {
            let may_read = self.readable && stack.pause().is_zero() && stack.ctx.outbox.room();
            let limit = if may_read {
                Some(Duration::ZERO)
            } else {
                stack.sleep()
            };
            let events = stack.ctx.poller.wait(limit).map_err(system("wait"))?;
            stack.ctx.now = Instant::now();
            let mut asked = false;
            for event in events {
                match event.token {
                    PollToken::Frames => {
                        self.readable |= event.readable || event.ended;
                        if event.writable {
                            stack.ctx.outbox.unblock();
                            stack.ctx.outbox.flush();
                        }
                    }
                    PollToken::Control => asked = true,
                    _ => stack.event(event),
                }
            }
            if asked && requests(stack, &mut self.headers)? == LoopState::Ended {
                return Ok(());
            }
            if self.frames(stack)? == LoopState::Ended {
                return Ok(());
            }
            stack.turn();
            stack.ctx.report.tell(stack.ctx.now, false);
            self.watch_for_room(stack)?;
        }
    }

    /// Takes some frames, unless what they are answered by has no room.
    fn frames(&mut self, stack: &mut NetStack) -> Result<LoopState, ServeError> {
        let mut bytes = 0;
        for _ in 0..BATCH {
            let may = stack.pause().is_zero() && stack.ctx.outbox.room();
            if !self.readable || !may || bytes >= BATCH_BYTES {
                break;
            }
            let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
            match recv(stack.ctx.outbox.socket(), &mut self.buffer[..], flags) {
                Ok((0, _)) => return Ok(LoopState::Ended),
                // One that is too long is cut, and then its lengths do not fit.
                Ok((kept, _)) => {
                    bytes += kept;
                    stack.frame(&self.buffer[..kept]);
                }
                Err(Errno::AGAIN) => self.readable = false,
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Ok(LoopState::Ended),
                Err(error) => return Err(system("read frames")(error)),
            }
        }
        Ok(LoopState::Running)
    }

    /// Has the end of a full socket told, and only that: the device takes frames one by one, and
    /// each would wake us.
    fn watch_for_room(&mut self, stack: &NetStack) -> Result<(), ServeError> {
        let outbox: &Outbox = &stack.ctx.outbox;
        if outbox.is_blocked() == self.watched_for_room {
            return Ok(());
        }
        self.watched_for_room = outbox.is_blocked();
        let watch = if self.watched_for_room {
            Watch::ReadWrite
        } else {
            Watch::Read
        };
        let changed = stack
            .ctx
            .poller
            .change(outbox.socket().as_fd(), PollToken::Frames, watch);
        changed.map_err(system("watch the frames"))
    }
}

/// Rules that have passed their gate, with the file that came with them.
fn header_rules(
    rules: HeaderRules,
    roots: Vec<OwnedFd>,
) -> Result<(HeaderRules, OwnedFd), ServeError> {
    rules.check()?;
    let roots = roots.into_iter().next().ok_or(ServeError::NoRoots)?;
    Ok((rules, roots))
}

/// Does what the service asks.
fn requests(
    stack: &mut NetStack,
    headers: &mut Option<(HeaderRules, OwnedFd)>,
) -> Result<LoopState, ServeError> {
    loop {
        match control::recv::<NetRequest>(stack.ctx.report.socket()) {
            Ok(Some((NetRequest::SetPolicy(policy), _))) => {
                policy.check().map_err(NetSpecError::from)?;
                stack.set_policy(*policy, headers.take());
            }
            Ok(Some((NetRequest::HeaderRules(rules), roots))) => {
                *headers = Some(header_rules(*rules, roots)?);
            }
            Ok(Some((NetRequest::Configure(_), _))) => return Err(ServeError::ConfiguredTwice),
            Ok(None) => return Ok(LoopState::Ended),
            Err(error) if error.would_block() => return Ok(LoopState::Running),
            Err(error) => return Err(error.into()),
        }
    }
}
