//! The streams of one connection, and the frames on their way out.
//!
//! ```text
//!            data_space / data_commit        take / sent
//!  pipes, files ----> [ out: 256 KiB ] -----------------> link
//!            reply, event, credit, reset
//! ```
//!
//! Data may fill the buffer only up to a reserve, so that there is always room for the answer to
//! one more frame; input is read only while that room is there. So a peer that does not read is not
//! read from, and nothing grows.

use crate::FixedText;
use wire::{
    DataChannel, ErrorCode, FrameHeader, FrameKind, HEADER_LEN, INPUT_WINDOW, MAX_FRAME,
    MAX_MESSAGE, MAX_PAYLOAD, MAX_PORT_STREAMS, MAX_STREAMS, Message, RecvWindow, Reply,
    ReplyError, Request, ResetCode, SendWindow, StreamEvent,
};

/// Bytes of frames that may wait for the link.
pub const OUT_BUFFER: usize = 256 * 1024;
/// Places for streams: those to ports are the last [`MAX_PORT_STREAMS`], so that however many of
/// them are open, none is missing for the others.
pub const ALL_STREAMS: usize = MAX_STREAMS + MAX_PORT_STREAMS;
/// Kept free of data, for the other frames.
const RESERVE: usize = 3 * MAX_FRAME;

/// A stream's place in the table.
#[derive(Debug, Clone, Copy)]
struct StreamState {
    /// 0 when the place is free.
    id: u32,
    send: SendWindow,
    recv: RecvWindow,
    /// The host has ended its half.
    ended: bool,
}

impl StreamState {
    const FREE: Self = Self {
        id: 0,
        send: SendWindow::new(0),
        recv: RecvWindow::new(0),
        ended: false,
    };
}

/// The streams of a connection and its output. Streams are named by their slot, 0 to
/// [`ALL_STREAMS`], which stays theirs until [`reply`](Self::reply) or
/// [`forget`](Self::forget).
pub struct Session {
    streams: [StreamState; ALL_STREAMS],
    /// No place at or beyond is in use.
    high: usize,
    out: [u8; OUT_BUFFER],
    start: usize,
    end: usize,
}

impl Session {
    /// Without streams or output.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            streams: [StreamState::FREE; ALL_STREAMS],
            high: 0,
            out: [0; OUT_BUFFER],
            start: 0,
            end: 0,
        }
    }

    /// Forgets everything: for a new connection.
    pub fn clear(&mut self) {
        self.streams = [StreamState::FREE; ALL_STREAMS];
        self.high = 0;
        self.start = 0;
        self.end = 0;
    }

    /// Bytes for the link.
    #[must_use]
    pub fn output(&self) -> &[u8] {
        &self.out[self.start..self.end]
    }

    /// The link took `n` bytes of [`output`](Self::output).
    pub fn sent(&mut self, n: usize) {
        self.start = self.start.saturating_add(n).min(self.end);
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Whether any answer to one more frame, or to one step of a task, has room.
    #[must_use]
    pub fn has_room(&self) -> bool {
        OUT_BUFFER - (self.end - self.start) >= RESERVE
    }

    /// Whether something may be waiting for room: when the link has taken bytes after this was
    /// true, everything is worth another try.
    #[must_use]
    pub fn is_tight(&self) -> bool {
        OUT_BUFFER - (self.end - self.start) < RESERVE + MAX_FRAME
    }

    /// The slot of a stream.
    #[must_use]
    pub fn find(&self, id: u32) -> Option<usize> {
        if id == 0 {
            None
        } else {
            self.streams[..self.high].iter().position(|s| s.id == id)
        }
    }

    /// A slot for a new stream with this request, or `None` when all of its kind are taken.
    pub(crate) fn open(&mut self, id: u32, request: &Request<'_>) -> Option<usize> {
        let (first, end) = if request.is_port() {
            (MAX_STREAMS, ALL_STREAMS)
        } else {
            (0, MAX_STREAMS)
        };
        let free = self.streams[first..end].iter().position(|s| s.id == 0)?;
        let slot = first + free;
        self.streams[slot] = StreamState {
            id,
            send: SendWindow::new(request.output_window()),
            recv: RecvWindow::new(INPUT_WINDOW),
            ended: false,
        };
        self.high = self.high.max(slot + 1);
        Some(slot)
    }

    /// Frees a slot without a word.
    pub fn forget(&mut self, slot: usize) {
        self.streams[slot] = StreamState::FREE;
        while self.high > 0 && self.streams[self.high - 1].id == 0 {
            self.high -= 1;
        }
    }

    pub(crate) fn receive(&mut self, slot: usize, bytes: usize) -> Result<(), ResetCode> {
        let stream = &mut self.streams[slot];
        if stream.ended {
            return Err(ResetCode::Protocol);
        }
        let bytes = u32::try_from(bytes).map_err(|_| ResetCode::FlowControl)?;
        stream
            .recv
            .receive(bytes)
            .map_err(|_| ResetCode::FlowControl)
    }

    pub(crate) fn grant(&mut self, slot: usize, bytes: u32) -> Result<(), ResetCode> {
        self.streams[slot]
            .send
            .grant(bytes)
            .map_err(|_| ResetCode::FlowControl)
    }

    pub(crate) fn end(&mut self, slot: usize) {
        self.streams[slot].ended = true;
    }

    /// The stream's data was used up: lets the host send more. The host has ended its half:
    /// nothing.
    pub fn consumed(&mut self, slot: usize, bytes: usize) {
        let stream = &mut self.streams[slot];
        stream
            .recv
            .consume(u32::try_from(bytes).unwrap_or(u32::MAX));
        if stream.ended {
            return;
        }
        if let Some(credit) = stream.recv.take_grant() {
            let id = stream.id;
            self.push(id, &Message::Credit(credit));
        }
    }

    /// Ends a stream with its answer and frees the slot.
    pub fn reply(&mut self, slot: usize, reply: &Reply<'_>) {
        let id = self.streams[slot].id;
        self.forget(slot);
        self.push(id, &Message::Reply(*reply));
    }

    /// Ends a stream with an error and frees the slot.
    pub fn fail(
        &mut self,
        slot: usize,
        code: ErrorCode,
        errno: i32,
        message: core::fmt::Arguments<'_>,
    ) {
        let text = FixedText::<MAX_MESSAGE>::of(message);
        self.reply(
            slot,
            &Reply::Error(ReplyError {
                code,
                errno,
                message: text.as_str(),
            }),
        );
    }

    /// Refuses a stream that never got a slot.
    pub(crate) fn refuse(&mut self, id: u32, code: ErrorCode, message: core::fmt::Arguments<'_>) {
        let text = FixedText::<MAX_MESSAGE>::of(message);
        let error = ReplyError {
            code,
            errno: 0,
            message: text.as_str(),
        };
        self.push(id, &Message::Reply(Reply::Error(error)));
    }

    /// Tells news of a stream.
    pub fn event(&mut self, slot: usize, event: &StreamEvent<'_>) {
        self.push(self.streams[slot].id, &Message::Event(*event));
    }

    /// There will be no more data on a stream to a port.
    pub fn end_data(&mut self, slot: usize) {
        self.push(self.streams[slot].id, &Message::End);
    }

    /// Gives a stream up and frees the slot.
    pub fn reset(&mut self, slot: usize, code: ResetCode, message: &str) {
        let id = self.streams[slot].id;
        self.forget(slot);
        self.push(id, &Message::Reset { code, message });
    }

    /// A message about the connection.
    pub fn connection(&mut self, message: &Message<'_>) {
        self.push(0, message);
    }

    /// Where to put the stream's next data: as much as its window and the buffer allow now, at most
    /// one payload. `None` when it has to wait. Follow with [`data_commit`](Self::data_commit).
    pub fn data_space(&mut self, slot: usize) -> Option<&mut [u8]> {
        let window = usize::try_from(self.streams[slot].send.available()).unwrap_or(usize::MAX);
        let waiting = self.end - self.start;
        let room = (OUT_BUFFER - waiting).checked_sub(RESERVE + HEADER_LEN)?;
        let n = room.min(window).min(MAX_PAYLOAD);
        if n == 0 || self.streams[slot].id == 0 {
            return None;
        }
        self.make_room(HEADER_LEN + n);
        let body = self.end + HEADER_LEN;
        self.out.get_mut(body..body + n)
    }

    /// Sends the first `n` bytes of the space just got.
    pub fn data_commit(&mut self, slot: usize, channel: DataChannel, n: usize) {
        let stream = &mut self.streams[slot];
        let len = u32::try_from(n).unwrap_or(u32::MAX);
        if n == 0 || stream.send.take(len).is_err() {
            return;
        }
        let header = FrameHeader {
            len: n,
            stream: stream.id,
            kind: FrameKind::Data,
            flags: channel.to_u8(),
        };
        let body = self.end + HEADER_LEN;
        self.out[self.end..body].copy_from_slice(&header.encode());
        self.end = body + n;
    }

    /// Whether the stream's window has room for a record of any size.
    #[must_use]
    pub fn has_credit(&self, slot: usize, bytes: u32) -> bool {
        self.streams[slot].send.available() >= bytes
    }

    fn make_room(&mut self, n: usize) {
        if OUT_BUFFER - self.end < n {
            self.out.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
    }

    /// Appends a frame. Callers have checked [`has_room`](Self::has_room) before they began; a
    /// frame without room would be lost, which the test below shows cannot be.
    fn push(&mut self, stream: u32, message: &Message<'_>) {
        self.make_room(MAX_FRAME);
        match message.encode(stream, &mut self.out[self.end..]) {
            Ok(n) => self.end += n,
            Err(_) => debug_assert!(false, "a frame of the agent must encode"),
        }
    }
}

impl Default for Session {
    fn default() -> Self {
        Self::new()
    }
}

impl core::fmt::Debug for Session {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let open = self.streams.iter().filter(|s| s.id != 0).count();
        write!(
            f,
            "Session({open} streams, {} bytes out)",
            self.end - self.start
        )
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::HostInput;
    use proptest::prelude::*;
    use wire::{
        EntryInfo, FileKind, FrameBuffer, Hello, MAX_PATH, OUTPUT_WINDOW, PORT_WINDOW,
        PROTOCOL_VERSION, RequestPart,
    };

    /// Both halves of a connection, greeted.
    struct Pair {
        input: Box<HostInput>,
        session: Box<Session>,
    }

    impl Pair {
        fn new() -> Self {
            let mut pair = Self {
                input: Box::default(),
                session: Box::default(),
            };
            let hello = Hello {
                version: PROTOCOL_VERSION,
                agent: "",
                generation: 0,
                flags: 0,
                agent_start_ns: 0,
                ready_ns: 0,
            };
            assert_eq!(pair.take(0, &Message::Hello(hello)), "None");
            pair
        }

        /// Hands one message in and returns the action's name.
        fn take(&mut self, stream: u32, message: &Message<'_>) -> String {
            let space = self.input.space();
            let n = message.encode(stream, space).unwrap();
            self.input.commit(n);
            let action = self.input.next(&mut self.session).unwrap().unwrap();
            let text = format!("{action:?}");
            text.split([' ', '{']).next().unwrap().to_owned()
        }

        fn open(&mut self, stream: u32) -> usize {
            self.open_for(stream, &Request::Sysinfo)
        }

        fn open_for(&mut self, stream: u32, request: &Request<'_>) -> usize {
            let mut bytes = [0; 64];
            let n = request.encode(&mut bytes).unwrap();
            let open = Message::Open(RequestPart {
                more: false,
                part: &bytes[..n],
            });
            assert_eq!(self.take(stream, &open), "Open");
            self.session.find(stream).unwrap()
        }

        /// What was sent, as (stream, kind, payload length).
        fn sent(&mut self) -> Vec<(u32, FrameKind, usize)> {
            let mut buffer = Box::new(FrameBuffer::<{ OUT_BUFFER + MAX_FRAME }>::new());
            let out = self.session.output();
            buffer.space()[..out.len()].copy_from_slice(out);
            buffer.commit(out.len());
            self.session.sent(usize::MAX);
            let mut frames = Vec::new();
            while let Some(frame) = buffer.next_frame().unwrap() {
                frames.push((frame.header.stream, frame.header.kind, frame.header.len));
            }
            frames
        }
    }

    #[test]
    fn data_stops_at_the_window_and_goes_on_with_credit() {
        let mut pair = Pair::new();
        let slot = pair.open(1);
        let mut total = 0;
        while let Some(space) = pair.session.data_space(slot) {
            let n = space.len();
            pair.session.data_commit(slot, DataChannel::Stdout, n);
            total += n;
            pair.sent();
        }
        assert_eq!(total, usize::try_from(OUTPUT_WINDOW).unwrap());
        assert_eq!(pair.take(1, &Message::Credit(10)), "None");
        assert_eq!(pair.session.data_space(slot).unwrap().len(), 10);
    }

    #[test]
    fn a_link_that_takes_nothing_stops_data_but_leaves_room_for_answers() {
        let mut pair = Pair::new();
        let slots: Vec<_> = (1..=64).map(|id| pair.open(id)).collect();
        for &slot in &slots {
            while let Some(n) = pair.session.data_space(slot).map(|s| s.len()) {
                pair.session.data_commit(slot, DataChannel::File, n);
            }
        }
        assert!(pair.session.has_room(), "data used up the reserve");
        let path = [b'/'; MAX_PATH];
        let entry = EntryInfo {
            path: &path,
            kind: FileKind::Symlink,
            target_kind: FileKind::File,
            symlink_target: &path,
            ..EntryInfo::default()
        };
        let mut answers = 0;
        while pair.session.has_room() {
            pair.session.reply(slots[answers], &Reply::Entry(entry));
            answers += 1;
        }
        let frames = pair.sent();
        assert_eq!(
            frames.iter().filter(|f| f.1 == FrameKind::Reply).count(),
            answers
        );
        assert!(answers > 0);
    }

    #[test]
    fn slots_are_freed_and_bounded() {
        let mut pair = Pair::new();
        let last = u32::try_from(MAX_STREAMS).unwrap();
        for id in 1..=last {
            pair.open(id);
        }
        let mut bytes = [0; 8];
        let n = Request::Sysinfo.encode(&mut bytes).unwrap();
        let open = Message::Open(RequestPart {
            more: false,
            part: &bytes[..n],
        });
        assert_eq!(pair.take(last + 1, &open), "None");
        assert_eq!(pair.sent(), [(last + 1, FrameKind::Reply, pair_busy_len())]);
        let slot = pair.session.find(5).unwrap();
        pair.session.reply(slot, &Reply::Done(0));
        assert_eq!(pair.session.find(5), None);
        assert_eq!(pair.open(last + 2), slot);
        assert_eq!(
            pair.take(5, &Message::End),
            "None",
            "late frames of an ended stream mean nothing"
        );
    }

    #[test]
    fn ports_have_streams_of_their_own_and_a_smaller_window() {
        let port = Request::ConnectPort { port: 80 };
        let mut pair = Pair::new();
        let ports = u32::try_from(MAX_PORT_STREAMS).unwrap();
        for id in 1..=ports {
            assert_eq!(pair.open_for(id, &port), MAX_STREAMS + id as usize - 1);
        }
        let mut bytes = [0; 8];
        let n = port.encode(&mut bytes).unwrap();
        let part = &bytes[..n];
        let one_more = Message::Open(RequestPart { more: false, part });
        assert_eq!(pair.take(ports + 1, &one_more), "None");
        assert_eq!(pair.sent()[0].1, FrameKind::Reply);
        assert_eq!(pair.open(ports + 2), 0, "others are not kept out");
        let slot = pair.session.find(ports).unwrap();
        let mut total = 0;
        while let Some(n) = pair.session.data_space(slot).map(|s| s.len()) {
            pair.session.data_commit(slot, DataChannel::Port, n);
            total += n;
        }
        assert_eq!(total, PORT_WINDOW as usize);
        pair.session.end_data(slot);
        assert_eq!(pair.sent().last(), Some(&(ports, FrameKind::End, 0)));
    }

    fn pair_busy_len() -> usize {
        let text = format!("{MAX_STREAMS} streams are open already");
        1 + 1 + 4 + 4 + text.len()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Any sequence of frames keeps the tables whole: never a panic, never more data than
        /// window.
        #[test]
        fn any_order_of_frames_is_survived(
            steps in proptest::collection::vec((0u32..6, 0u8..6, 0u32..70_000), 1..200),
        ) {
            let mut pair = Pair::new();
            let body = vec![7; MAX_PAYLOAD];
            let mut opened = 0;
            for (id, what, n) in steps {
                let len = usize::try_from(n).unwrap().clamp(1, MAX_PAYLOAD);
                let id = id.min(opened).max(1);
                match what {
                    0 => {
                        opened += 1;
                        pair.open(opened);
                    }
                    _ if opened == 0 => {}
                    1 => {
                        let (channel, bytes) = (DataChannel::Stdin, &body[..len]);
                        pair.take(id, &Message::Data { channel, bytes });
                    }
                    2 => {
                        pair.take(id, &Message::Credit(n));
                    }
                    3 => {
                        pair.take(id, &Message::End);
                    }
                    4 => {
                        pair.take(id, &Message::Reset { code: ResetCode::Cancelled, message: "" });
                    }
                    _ => {
                        if let Some(slot) = pair.session.find(id) {
                            pair.session.consumed(slot, len);
                            if let Some(space) = pair.session.data_space(slot) {
                                let n = space.len().min(len);
                                pair.session.data_commit(slot, DataChannel::Stdout, n);
                            }
                        }
                    }
                }
                if !pair.session.has_room() {
                    pair.sent();
                }
                if opened > 200 {
                    break;
                }
            }
            pair.sent();
        }
    }
}
