//! The targets: what the agent and the service say to each other, and what the agent reads in a
//! guest.

use agent_core::{
    ALL_STREAMS, AccountFiles, BASE_ENTRIES, HostAction, HostInput, ProcessEnvironment, Session,
};
use wire::fuzz::{fuzz_frames, fuzz_records, fuzz_request};
use wire::{
    DataChannel, FrameBuffer, MAX_FRAME, MAX_GROUPS, MAX_STREAMS, Message, Reply, Request,
    StreamEvent, StringList,
};

/// A fuzz target: its name, which is its corpus' too, and what is run.
pub(crate) type Target = (&'static str, fn(&[u8]));

pub(crate) const TARGETS: &[Target] = &[
    ("frames", fuzz_frames),
    ("request", fuzz_request),
    ("records", fuzz_records),
    ("host_input", fuzz_host_input),
    ("accounts", fuzz_accounts),
    ("environment", fuzz_environment),
];

/// A connection of a host that sends anything, to an agent that answers some of it. What the agent
/// sends is always frames.
fn fuzz_host_input(bytes: &[u8]) {
    let Some((&step, mut rest)) = bytes.split_first() else {
        return;
    };
    let mut input: Box<HostInput> = Box::default();
    let mut session: Box<Session> = Box::default();
    let mut output = Box::new(FrameBuffer::<{ 2 * MAX_FRAME }>::new());
    while !rest.is_empty() {
        let space = input.space();
        let n = space.len().min(rest.len()).min(usize::from(step) + 1);
        space[..n].copy_from_slice(&rest[..n]);
        input.commit(n);
        rest = &rest[n..];
        loop {
            assert!(session.has_room(), "the output is read all the time");
            match input.next(&mut session) {
                Ok(Some(action)) => answer(&action, &mut session),
                Ok(None) => break,
                Err(fatal) => {
                    session.connection(&Message::GoAway {
                        code: fatal.code,
                        message: fatal.message.as_str(),
                    });
                    return read_output(&mut session, &mut output);
                }
            }
            read_output(&mut session, &mut output);
        }
    }
}

/// Uses each part of a session's interface for one kind of request or data.
fn answer(action: &HostAction<'_>, session: &mut Session) {
    match *action {
        HostAction::Open { slot, ref request } => {
            let ports = MAX_STREAMS..ALL_STREAMS;
            assert!(slot < ALL_STREAMS && ports.contains(&slot) == request.is_port());
            match request {
                Request::ConnectPort { .. } => {
                    session.event(slot, &StreamEvent::Connected);
                    session.end_data(slot);
                }
                Request::Stat { .. } => session.reply(slot, &Reply::Done(0)),
                Request::Sync | Request::Freeze | Request::Thaw => session.forget(slot),
                _ => {}
            }
        }
        HostAction::Data {
            slot,
            channel,
            bytes,
        } => {
            assert!(!bytes.is_empty() && slot < ALL_STREAMS, "slot {slot}");
            if channel == DataChannel::Stdin {
                session.consumed(slot, bytes.len());
            }
            if let Some(space) = session.data_space(slot) {
                let n = space.len().min(bytes.len());
                space[..n].copy_from_slice(&bytes[..n]);
                session.data_commit(slot, DataChannel::Stdout, n);
            }
        }
        HostAction::End { slot } => session.reply(slot, &Reply::Done(1)),
        HostAction::Abandon { slot } => assert!(slot < ALL_STREAMS, "slot {slot}"),
        HostAction::None => {}
    }
}

fn read_output(session: &mut Session, output: &mut FrameBuffer<{ 2 * MAX_FRAME }>) {
    while !session.output().is_empty() {
        let space = output.space();
        let n = space.len().min(session.output().len());
        space[..n].copy_from_slice(&session.output()[..n]);
        output.commit(n);
        session.sent(n);
        while let Some(frame) = output.next_frame().expect("the agent sends frames") {
            Message::decode(&frame).expect("the agent sends messages");
        }
    }
}

/// `/etc/passwd`, `/etc/group` and a name, each behind a byte 255 but the first.
fn fuzz_accounts(bytes: &[u8]) {
    let mut parts = bytes.split(|&byte| byte == 255);
    let mut next = || parts.next().unwrap_or_default();
    let (passwd, group, name) = (next(), next(), next());
    let files = AccountFiles { passwd, group };
    let _ = (files.user_name(0), files.group_name(0));
    if let Some(user) = files.user(name) {
        let mut groups = [0; MAX_GROUPS];
        let groups = files.groups(&user, &mut groups);
        assert_eq!(groups.first(), Some(&user.gid));
        assert!(files.user(b"root").is_some(), "root always exists");
    }
}

/// The lists of a request to start a process, as its environment.
fn fuzz_environment(bytes: &[u8]) {
    let (defaults, own) = match Request::decode(bytes) {
        Ok(Request::Start(start)) => (start.argv, start.env),
        Ok(Request::SetIdentity(identity)) => (identity.env, StringList::EMPTY),
        _ => return,
    };
    let files = AccountFiles {
        passwd: b"",
        group: b"",
    };
    let root = files.user(b"").expect("root always exists");
    let mut entries = 0;
    ProcessEnvironment::new().build(&root, defaults, own, |entry| {
        assert_eq!(
            entry.iter().position(|&byte| byte == 0),
            Some(entry.len() - 1)
        );
        entries += 1;
    });
    assert!(
        entries <= BASE_ENTRIES + defaults.count() + own.count(),
        "{entries} entries"
    );
}
