//! What the service and a machine tell the pager, and what it answers: one packet, one message, all
//! numbers little-endian, descriptors beside it.

use super::error::{PagerError, io};
use crate::dirty::PageRange;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Most layers of one machine's memory.
pub const MAX_LAYERS: usize = 16;
/// Descriptors of one message: socket, record, layers.
const MAX_FDS: usize = MAX_LAYERS + 2;
/// Most bytes of one message.
const MAX_BYTES: usize = 64 << 10;
/// Most bytes of a reason.
const MAX_REASON: usize = 1024;
/// Most parts that a memory lies in.
const MAX_PARTS: usize = 4;
/// Most ranges that are fetched first.
const MAX_FIRST: usize = 2048;
/// Most bytes of a machine's name.
const MAX_NAME: usize = 64;
const VERSION: u8 = 1;

/// A machine that is to be served.
#[derive(Debug)]
pub struct PagingJob {
    /// Its name in the log, at most 64 bytes.
    pub name: String,
    /// Pages of its memory.
    pub pages: u64,
    /// The pager's end of the machine's socket.
    pub machine: OwnedFd,
    /// Layer files, newest first, at most [`MAX_LAYERS`]. Only by offset are they read.
    pub layers: Vec<OwnedFd>,
    /// Notes each page here when it is first touched, as a 64-bit number whose highest bit says
    /// that it was to be written; nothing is fetched that is not touched.
    pub record: Option<OwnedFd>,
}

/// Gives the pager behind `socket` another machine.
///
/// # Errors
/// [`PagerError::Message`] for what is over a limit, or the socket's error: the pager is gone.
pub fn send_job(socket: impl AsFd, job: &PagingJob) -> Result<(), PagerError> {
    let mut bytes = vec![VERSION, u8::from(job.record.is_some())];
    bytes.extend_from_slice(&job.pages.to_le_bytes());
    bytes.extend_from_slice(job.name.as_bytes());
    let mut fds = vec![job.machine.as_fd()];
    fds.extend(job.record.as_ref().map(AsFd::as_fd));
    fds.extend(job.layers.iter().map(AsFd::as_fd));
    if fds.len() > MAX_FDS || job.layers.is_empty() || job.name.len() > MAX_NAME {
        let text = format!("{} layers and a name {:?}", job.layers.len(), job.name);
        return Err(PagerError::Message(text));
    }
    send(socket, &bytes, &fds)
}

/// The next machine; `None`: the service is gone.
pub(super) fn receive_job(socket: impl AsFd) -> Result<Option<PagingJob>, PagerError> {
    let Some((bytes, fds)) = receive(socket)? else {
        return Ok(None);
    };
    let JobHeader {
        record,
        pages,
        name,
    } = JobHeader::decode(&bytes)?;
    let mut fds = fds.into_iter();
    let mut fd = || fds.next().ok_or_else(|| invalid("a descriptor is missing"));
    let machine = fd()?;
    let record = record.then(fd).transpose()?;
    let layers: Vec<_> = fds.collect();
    if layers.is_empty() || layers.len() > MAX_LAYERS {
        return Err(PagerError::Message(format!("{} layers", layers.len())));
    }
    Ok(Some(PagingJob {
        name,
        pages,
        machine,
        layers,
        record,
    }))
}

/// What a [`PagingJob`] says in bytes.
#[derive(Debug)]
pub(super) struct JobHeader {
    record: bool,
    pages: u64,
    name: String,
}

impl JobHeader {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, PagerError> {
        let mut reader = MessageReader(bytes);
        check_version(reader.byte()?)?;
        let record = reader.byte()? != 0;
        let pages = reader.number()?;
        if reader.0.len() > MAX_NAME {
            let text = format!("a name of {} bytes", reader.0.len());
            return Err(PagerError::Message(text));
        }
        let name = String::from_utf8_lossy(reader.0).into_owned();
        Ok(Self {
            record,
            pages,
            name,
        })
    }
}

/// Where a machine's memory lies, and what of it is used soon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AttachRequest {
    /// Address and pages of each part, in the order of the whole.
    pub(super) parts: Vec<(usize, u64)>,
    pub(super) first: Vec<PageRange>,
}

impl AttachRequest {
    pub(super) fn send(&self, socket: impl AsFd, uffd: BorrowedFd<'_>) -> Result<(), PagerError> {
        let mut bytes = vec![VERSION, u8::try_from(self.parts.len()).unwrap_or(u8::MAX)];
        for (address, pages) in &self.parts {
            bytes.extend_from_slice(&(*address as u64).to_le_bytes());
            bytes.extend_from_slice(&pages.to_le_bytes());
        }
        for range in self.first.iter().take(MAX_FIRST) {
            bytes.extend_from_slice(&range.first.to_le_bytes());
            bytes.extend_from_slice(&range.end.to_le_bytes());
        }
        send(socket, &bytes, &[uffd])
    }

    /// What a machine says, of a memory of `pages` pages; `None`: it is gone.
    pub(super) fn receive(
        socket: impl AsFd,
        pages: u64,
    ) -> Result<Option<(Self, OwnedFd)>, PagerError> {
        let Some((bytes, fds)) = receive(socket)? else {
            return Ok(None);
        };
        let attach = Self::decode(&bytes, pages)?;
        let uffd = fds.into_iter().next();
        let uffd = uffd.ok_or_else(|| invalid("the userfaultfd is missing"))?;
        Ok(Some((attach, uffd)))
    }

    /// Of a memory of `pages` pages.
    pub(super) fn decode(bytes: &[u8], pages: u64) -> Result<Self, PagerError> {
        let mut reader = MessageReader(bytes);
        check_version(reader.byte()?)?;
        let count = usize::from(reader.byte()?);
        if count == 0 || count > MAX_PARTS {
            return Err(PagerError::Message(format!("memory in {count} parts")));
        }
        let mut parts = Vec::with_capacity(count);
        let mut whole = 0_u64;
        for _ in 0..count {
            let (address, pages) = (reader.number()?, reader.number()?);
            whole = whole.saturating_add(pages);
            let address = usize::try_from(address).unwrap_or(usize::MAX);
            let bytes = usize::try_from(pages.saturating_mul(4096)).unwrap_or(usize::MAX);
            if address % 4096 != 0 || address.checked_add(bytes).is_none() {
                return Err(PagerError::Message(format!(
                    "{pages} pages at {address:#x}"
                )));
            }
            parts.push((address, pages));
        }
        let mut first = Vec::new();
        while !reader.0.is_empty() && first.len() < MAX_FIRST {
            let range = PageRange {
                first: reader.number()?,
                end: reader.number()?,
            };
            if range.first >= range.end || range.end > pages {
                return Err(PagerError::Message(format!("{range:?} of {pages} pages")));
            }
            first.push(range);
        }
        if whole != pages {
            let text = format!("memory of {whole} pages, layers of {pages}");
            return Err(PagerError::Message(text));
        }
        Ok(Self { parts, first })
    }
}

/// What the pager tells a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PagerStatus {
    /// Memory may be touched from now on.
    Ready,
    /// All of it is there.
    Done,
    /// It cannot go on.
    Failed(String),
}

impl PagerStatus {
    pub(super) fn send(&self, socket: impl AsFd) -> Result<(), PagerError> {
        let (kind, text) = match self {
            Self::Ready => (0, ""),
            Self::Done => (1, ""),
            Self::Failed(why) => (2, why.as_str()),
        };
        let text: String = text.chars().take(MAX_REASON / 4).collect();
        send(socket, &[&[VERSION, kind], text.as_bytes()].concat(), &[])
    }

    /// `None`: the pager is gone.
    pub(super) fn receive(socket: impl AsFd) -> Result<Option<Self>, PagerError> {
        let received = receive(socket)?;
        received.map(|(bytes, _)| Self::decode(&bytes)).transpose()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, PagerError> {
        let mut reader = MessageReader(bytes);
        check_version(reader.byte()?)?;
        match reader.byte()? {
            0 => Ok(Self::Ready),
            1 => Ok(Self::Done),
            2 => Ok(Self::Failed(String::from_utf8_lossy(reader.0).into_owned())),
            kind => Err(PagerError::Message(format!("a status of kind {kind}"))),
        }
    }
}

struct MessageReader<'a>(&'a [u8]);

impl MessageReader<'_> {
    fn byte(&mut self) -> Result<u8, PagerError> {
        let (first, rest) = self
            .0
            .split_first()
            .ok_or_else(|| invalid("it is cut off"))?;
        self.0 = rest;
        Ok(*first)
    }

    fn number(&mut self) -> Result<u64, PagerError> {
        let (bytes, rest) = self
            .0
            .split_first_chunk()
            .ok_or_else(|| invalid("it is cut off"))?;
        self.0 = rest;
        Ok(u64::from_le_bytes(*bytes))
    }
}

fn invalid(why: &str) -> PagerError {
    PagerError::Message(why.to_owned())
}

fn check_version(version: u8) -> Result<(), PagerError> {
    match version {
        VERSION => Ok(()),
        other => Err(PagerError::Message(format!(
            "it has version {other}, this program speaks {VERSION}: mixed builds?"
        ))),
    }
}

/// Waits until the socket has something, at most `seconds`; false: it has not.
pub(super) fn wait(socket: impl AsFd, seconds: i64) -> Result<bool, PagerError> {
    let limit = Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    match poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&limit)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(true),
        Err(errno) => Err(io("Waiting for a message", format!("{seconds} s"))(errno)),
    }
}

fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), PagerError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(PagerError::Message(format!("{} descriptors", fds.len())));
    }
    loop {
        match sendmsg(
            &socket,
            &[IoSlice::new(bytes)],
            &mut beside,
            SendFlags::NOSIGNAL,
        ) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::PIPE | Errno::CONNRESET) => return Err(PagerError::Gone),
            Err(errno) => {
                return Err(io("Sending a message", format!("{} bytes", bytes.len()))(
                    errno,
                ));
            }
        }
    }
}

/// Bytes, and the descriptors beside them.
type Packet = (Vec<u8>, Vec<OwnedFd>);

/// `None`: nobody is at the other end.
fn receive(socket: impl AsFd) -> Result<Option<Packet>, PagerError> {
    let mut bytes = vec![0; MAX_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let mut reset = false;
    let received = loop {
        let mut slices = [IoSliceMut::new(&mut bytes)];
        match recvmsg(&socket, &mut slices, &mut beside, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => break received,
            Err(Errno::INTR) => {}
            // Once, when the other end closed without reading all: its last message comes after it.
            Err(Errno::CONNRESET) if !reset => reset = true,
            Err(Errno::CONNRESET) => return Ok(None),
            Err(errno) => return Err(io("Receiving a message", "")(errno)),
        }
    };
    let fds = beside.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let fds: Vec<_> = fds.flatten().collect();
    if received
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Err(PagerError::Message(format!(
            "over {MAX_BYTES} bytes or {MAX_FDS} descriptors"
        )));
    }
    bytes.truncate(received.bytes);
    Ok((received.bytes > 0).then_some((bytes, fds)))
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn pair() -> (OwnedFd, OwnedFd) {
        let kind = SocketType::SEQPACKET;
        socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[test]
    fn statuses_arrive() {
        let (a, b) = pair();
        for status in [
            PagerStatus::Ready,
            PagerStatus::Done,
            PagerStatus::Failed("no".into()),
        ] {
            status.send(&a).unwrap();
            assert_eq!(PagerStatus::receive(&b).unwrap(), Some(status));
        }
        drop(a);
        assert_eq!(PagerStatus::receive(&b).unwrap(), None);
    }

    #[test]
    fn a_memory_that_does_not_fit_is_refused() {
        let said = |parts: &[(usize, u64)], first: &[(u64, u64)]| {
            let (a, b) = pair();
            let first = first.iter().map(|&(first, end)| PageRange { first, end });
            let attach = AttachRequest {
                parts: parts.to_vec(),
                first: first.collect(),
            };
            attach.send(&a, a.as_fd()).unwrap();
            AttachRequest::receive(&b, 8).map(|got| got.unwrap().0 == attach)
        };
        assert!(said(&[(4096, 3), (1 << 20, 5)], &[(0, 8)]).unwrap());
        for (parts, first) in [
            (&[(4096, 3)][..], &[][..]),
            (&[(4097, 8)], &[]),
            (&[(usize::MAX - 4095, 8)], &[]),
            (&[], &[]),
            (&[(0, 1), (0, 1), (0, 1), (0, 1), (0, 4)], &[]),
            (&[(0, 8)], &[(3, 9)]),
            (&[(0, 8)], &[(3, 3)]),
        ] {
            said(parts, first).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 1..100)) {
            let (a, b) = pair();
            for _ in 0..3 {
                send(&a, &bytes, &[a.as_fd()]).unwrap();
            }
            let _ = AttachRequest::receive(&b, 8);
            let _ = PagerStatus::receive(&b);
            let _ = receive_job(&b);
        }
    }
}
