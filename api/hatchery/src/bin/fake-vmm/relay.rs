//! The link between service and agent through this program, which may lie or break off when the
//! agent is to become somebody.

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::error::Error;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;
use wire::{Frame, FrameHeader, FrameKind, HEADER_LEN, Message, PROTOCOL_VERSION, Reply, Request};

/// What becomes of the answer to a new identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RelayLie {
    /// It is passed on.
    None,
    /// It never comes.
    Mute,
    /// It is of another identity.
    Wrong,
    /// The agent dies first.
    AgentDies,
    /// This program is killed first.
    Vanish,
}

impl RelayLie {
    /// The one that a mode tells.
    pub(crate) fn of(mode: &str) -> Self {
        match mode {
            "mute" => Self::Mute,
            "wrong" => Self::Wrong,
            "agentdies" => Self::AgentDies,
            "vanish" => Self::Vanish,
            _ => Self::None,
        }
    }
}

/// Greets a fresh agent in place of the service, which is not to notice that it is a fresh one.
pub(crate) fn greet(agent: &mut UnixStream) -> Result<(), Box<dyn Error>> {
    let (header, payload) = frame(agent)?;
    let frame = Frame {
        header,
        payload: &payload,
    };
    let Ok(Message::Hello(theirs)) = Message::decode(&frame) else {
        return Err("the agent does not say Hello".into());
    };
    let ours = wire::Hello {
        version: PROTOCOL_VERSION,
        agent: "fake-vmm",
        ..theirs
    };
    Ok(send(agent, 0, &Message::Hello(ours))?)
}

/// Connects the two until one of them goes. `group` is the agent's process group.
pub(crate) fn connect(
    agent: &UnixStream,
    link: &UnixStream,
    lie: RelayLie,
    group: Pid,
) -> Result<(), Box<dyn Error>> {
    // The stream on which the agent is to become somebody; 0: none yet.
    let identity = Arc::new(AtomicU32::new(0));
    let (mut from, mut to, seen) = (agent.try_clone()?, link.try_clone()?, Arc::clone(&identity));
    std::thread::spawn(move || {
        let _ = answers(&mut from, &mut to, lie, &seen);
        let _ = to.shutdown(Shutdown::Both);
    });
    let (mut from, mut to) = (link.try_clone()?, agent.try_clone()?);
    std::thread::spawn(move || {
        let _ = requests(&mut from, &mut to, (lie, group), &identity);
        let _ = to.shutdown(Shutdown::Both);
    });
    Ok(())
}

fn requests(
    link: &mut UnixStream,
    agent: &mut UnixStream,
    (lie, group): (RelayLie, Pid),
    identity: &AtomicU32,
) -> std::io::Result<()> {
    if lie == RelayLie::None {
        return std::io::copy(link, agent).map(drop);
    }
    loop {
        let (header, payload) = frame(link)?;
        let becomes = header.kind == FrameKind::Open
            && matches!(Request::decode(&payload), Ok(Request::SetIdentity(_)));
        if becomes {
            identity.store(header.stream, SeqCst);
            match lie {
                RelayLie::AgentDies => drop(kill_process_group(group, Signal::KILL)),
                RelayLie::Vanish => drop(kill_process(rustix::process::getpid(), Signal::KILL)),
                RelayLie::None | RelayLie::Mute | RelayLie::Wrong => {}
            }
        }
        agent.write_all(&header.encode())?;
        agent.write_all(&payload)?;
    }
}

fn answers(
    agent: &mut UnixStream,
    link: &mut UnixStream,
    lie: RelayLie,
    identity: &AtomicU32,
) -> std::io::Result<()> {
    if lie == RelayLie::None {
        return std::io::copy(agent, link).map(drop);
    }
    loop {
        let (header, payload) = frame(agent)?;
        if header.kind == FrameKind::Reply && header.stream == identity.load(SeqCst) {
            match (lie, Reply::decode(&payload)) {
                (RelayLie::Wrong, Ok(Reply::Done(generation))) => {
                    let other = Message::Reply(Reply::Done(generation + 1));
                    send(link, header.stream, &other)?;
                    continue;
                }
                (RelayLie::Mute, _) => continue,
                _ => {}
            }
        }
        link.write_all(&header.encode())?;
        link.write_all(&payload)?;
    }
}

fn frame(from: &mut UnixStream) -> std::io::Result<(FrameHeader, Vec<u8>)> {
    let mut head = [0; HEADER_LEN];
    from.read_exact(&mut head)?;
    let header = FrameHeader::decode(&head).map_err(std::io::Error::other)?;
    let mut payload = vec![0; header.len];
    from.read_exact(&mut payload)?;
    Ok((header, payload))
}

fn send(to: &mut UnixStream, stream: u32, message: &Message<'_>) -> std::io::Result<()> {
    let mut out = [0; 1024];
    let length = message
        .encode(stream, &mut out)
        .map_err(|error| std::io::Error::other(error.to_string()))?;
    to.write_all(&out[..length])
}
