//! The connection of a link: one task reads, one writes, both end together.
//!
//! The reader never waits for anything but the socket: what it hands out is bounded by windows, and
//! what it answers (resets, pongs) needs no room. So a slow stream cannot stall another one, and no
//! circle of waiting can form with an agent that waits for us.

use crate::LinkError;
use crate::stream::{Core, End, News, Stream};
use bytes::{Buf, Bytes, BytesMut};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::{OwnedReadHalf, OwnedWriteHalf},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
};
use wire::{
    EncodeError, Frame, FrameHeader, HEADER_LEN, MAX_FRAME, MAX_REQUEST, MAX_STREAMS, Message,
    Request, RequestPart, ResetCode, StreamEvent, StringList,
};

/// Bytes of requests and data that may wait for the socket.
const ROOM: usize = 1 << 20;
/// Read buffer: a few frames, so that one system call brings many small ones.
const READ: usize = 64 * 1024;
/// Bytes the writer joins into one system call.
const JOIN: usize = 64 * 1024;

/// Encoded frames on their way to the socket, with the room they take.
#[derive(Debug)]
pub(crate) struct Outgoing {
    bytes: Bytes,
    _room: Option<OwnedSemaphorePermit>,
}

impl Outgoing {
    /// One message. It must fit a frame: data of at most [`wire::MAX_PAYLOAD`], or a short control
    /// message.
    pub(crate) fn message(
        stream: u32,
        message: &Message<'_>,
        room: Option<OwnedSemaphorePermit>,
    ) -> Self {
        let space = match message {
            Message::Data { bytes, .. } => HEADER_LEN + bytes.len(),
            _ => 1024,
        };
        let mut out = vec![0; space];
        // The sizes above always suffice; an empty write would merely be skipped.
        let length = message.encode(stream, &mut out).unwrap_or(0);
        out.truncate(length);
        Self {
            bytes: out.into(),
            _room: room,
        }
    }
}

#[derive(Debug, Default)]
struct Table {
    last_id: u32,
    streams: HashMap<u32, Arc<Core>>,
    closed: Option<String>,
}

/// What the handles, the streams and the two tasks of a link share.
#[derive(Debug)]
pub(crate) struct Shared {
    table: Mutex<Table>,
    outgoing: mpsc::UnboundedSender<Outgoing>,
    room: Arc<Semaphore>,
    closed: watch::Sender<bool>,
}

impl Shared {
    /// Streams are numbered from `last_id` on.
    pub(crate) fn new(last_id: u32) -> (Arc<Self>, mpsc::UnboundedReceiver<Outgoing>) {
        let (outgoing, queue) = mpsc::unbounded_channel();
        let shared = Self {
            table: Mutex::new(Table {
                last_id,
                ..Table::default()
            }),
            outgoing,
            room: Arc::new(Semaphore::new(ROOM)),
            closed: watch::Sender::new(false),
        };
        (Arc::new(shared), queue)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Nothing panics while it holds the lock.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for room for `bytes` on the connection; `None` when it has ended.
    pub(crate) async fn room(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes).ok()?;
        self.room.clone().acquire_many_owned(bytes).await.ok()
    }

    pub(crate) fn queue(&self, outgoing: Outgoing) {
        // Fails only when the writer has ended; then the streams are ended too.
        let _ = self.outgoing.send(outgoing);
    }

    /// Queues a short message without waiting for room. Bounded all the same: one End or Reset per
    /// stream, and one Credit per half window that the agent was able to send.
    pub(crate) fn control(&self, stream: u32, message: &Message<'_>) {
        self.queue(Outgoing::message(stream, message, None));
    }

    pub(crate) fn last_id(&self) -> u32 {
        self.lock().last_id
    }

    /// Drops a stream from the table: frames that still come for it are ignored.
    pub(crate) fn forget(&self, id: u32) {
        self.lock().streams.remove(&id);
    }

    /// Opens a stream with `request`.
    pub(crate) async fn open(self: &Arc<Self>, request: &Request<'_>) -> Result<Stream, LinkError> {
        let bound = encoded_bound(request);
        let mut encoded = vec![0; bound.min(MAX_REQUEST)];
        let length = request.encode(&mut encoded).map_err(|error| match error {
            EncodeError::Full => EncodeError::TooLong {
                field: "request",
                len: bound,
                max: MAX_REQUEST,
            },
            other => other,
        })?;
        encoded.truncate(length);
        let frames = length + HEADER_LEN * (length / wire::MAX_PAYLOAD + 1);
        let Some(room) = self.room(frames).await else {
            return Err(LinkError::Closed(self.why()));
        };
        // The id and the place in the queue are taken under one lock: ids increase on the wire.
        let mut table = self.lock();
        if let Some(why) = &table.closed {
            return Err(LinkError::Closed(why.clone()));
        }
        if table.streams.len() >= MAX_STREAMS {
            return Err(LinkError::Busy);
        }
        let Some(id) = table.last_id.checked_add(1) else {
            return Err(LinkError::Closed("all stream ids are used up".into()));
        };
        let mut bytes = vec![0; frames];
        let mut end = 0;
        // The parts of one request follow each other directly: one piece of the queue.
        for part in RequestPart::parts(&encoded) {
            end += Message::Open(part).encode(id, &mut bytes[end..])?;
        }
        bytes.truncate(end);
        table.last_id = id;
        let core = Arc::new(Core::new());
        table.streams.insert(id, core.clone());
        self.queue(Outgoing {
            bytes: bytes.into(),
            _room: Some(room),
        });
        drop(table);
        Ok(Stream::new(id, core, self.clone()))
    }

    fn why(&self) -> String {
        self.lock().closed.clone().unwrap_or_default()
    }

    /// Ends the link; the first reason counts.
    pub(crate) fn close(&self, why: &str) {
        let streams = {
            let mut table = self.lock();
            table.closed.get_or_insert_with(|| why.to_owned());
            std::mem::take(&mut table.streams)
        };
        self.room.close();
        for core in streams.into_values() {
            core.end(End::Closed(why.to_owned()));
        }
        self.closed.send_replace(true);
    }

    /// Completes when the link has ended.
    pub(crate) async fn closed(&self) {
        // The sender lives in `self`: waiting cannot fail.
        let _ = self.closed.subscribe().wait_for(|closed| *closed).await;
    }
}

/// A size that the encoded request does not exceed.
fn encoded_bound(request: &Request<'_>) -> usize {
    // Paths, names, a tag and numbers.
    const REST: usize = 3 * (wire::MAX_PATH + 64);
    let strings = |list: &StringList<'_>| list.iter().map(|text| text.len() + 1).sum::<usize>();
    let lists = match request {
        Request::Start(start) => strings(&start.argv) + strings(&start.env),
        Request::SetIdentity(identity) => strings(&identity.env),
        _ => 0,
    };
    REST + lists
}

/// Writes the queue to the socket until the link ends.
pub(crate) async fn write(
    shared: Arc<Shared>,
    mut queue: mpsc::UnboundedReceiver<Outgoing>,
    mut socket: OwnedWriteHalf,
) {
    let mut batch = Vec::new();
    let work = async {
        while queue.recv_many(&mut batch, 32).await > 0 {
            let mut joined = BytesMut::new();
            for outgoing in batch.drain(..) {
                if joined.len() + outgoing.bytes.len() > JOIN && !joined.is_empty() {
                    socket.write_all_buf(&mut joined).await?;
                }
                if outgoing.bytes.len() >= JOIN / 2 {
                    socket.write_all_buf(&mut joined).await?;
                    socket.write_all(&outgoing.bytes).await?;
                } else {
                    joined.extend_from_slice(&outgoing.bytes);
                }
            }
            socket.write_all_buf(&mut joined).await?;
        }
        Ok::<(), std::io::Error>(())
    };
    tokio::select! {
        outcome = work => {
            if let Err(why) = outcome {
                shared.close(&format!("writing to the guest agent failed: {why}"));
            }
        }
        () = shared.closed() => {}
    }
}

/// Reads frames from the socket until the link ends.
pub(crate) async fn read(shared: Arc<Shared>, socket: OwnedReadHalf, buffer: BytesMut) {
    let why = tokio::select! {
        why = read_frames(&shared, socket, buffer) => why,
        () = shared.closed() => return,
    };
    tracing::debug!(why, "the link to a guest agent ended");
    shared.close(&why);
}

async fn read_frames(shared: &Shared, mut socket: OwnedReadHalf, mut buffer: BytesMut) -> String {
    loop {
        loop {
            match next_frame(&mut buffer) {
                Ok(Some((header, payload))) => {
                    if let Err(why) = dispatch(shared, header, payload) {
                        return why;
                    }
                }
                Ok(None) => break,
                Err(why) => return format!("the agent sent what is not a frame: {why}"),
            }
        }
        buffer.reserve(READ);
        match socket.read_buf(&mut buffer).await {
            Ok(0) => return "the agent closed the connection".into(),
            Ok(_) => {}
            Err(why) => return format!("reading from the guest agent failed: {why}"),
        }
    }
}

/// Takes the next whole frame off the buffer.
pub(crate) fn next_frame(
    buffer: &mut BytesMut,
) -> Result<Option<(FrameHeader, BytesMut)>, wire::FrameError> {
    let Some(head) = buffer.first_chunk::<HEADER_LEN>() else {
        return Ok(None);
    };
    let header = FrameHeader::decode(head)?;
    debug_assert!(header.len + HEADER_LEN <= MAX_FRAME);
    if buffer.len() < HEADER_LEN + header.len {
        return Ok(None);
    }
    buffer.advance(HEADER_LEN);
    Ok(Some((header, buffer.split_to(header.len))))
}

/// Acts on one frame. An error ends the link.
fn dispatch(shared: &Shared, header: FrameHeader, payload: BytesMut) -> Result<(), String> {
    let frame = Frame {
        header,
        payload: &payload,
    };
    let message = Message::decode(&frame).map_err(|why| {
        format!(
            "the agent sent a {:?} frame that is wrong: {why}",
            header.kind
        )
    })?;
    let id = header.stream;
    if id == 0 {
        return connection_message(shared, &message);
    }
    let core = {
        let mut table = shared.lock();
        if id > table.last_id {
            return Err(format!(
                "the agent speaks of stream {id}, which was never opened"
            ));
        }
        match message {
            Message::Reply(_) | Message::Reset { .. } => table.streams.remove(&id),
            _ => table.streams.get(&id).cloned(),
        }
    };
    // A stream that this side has given up; the agent does not know it yet.
    let Some(core) = core else { return Ok(()) };
    match message {
        Message::Data { channel, .. } => {
            if core.data(channel, payload).is_err() {
                let text = "more data than the window allows";
                give_up(shared, id, &core, ResetCode::FlowControl, text);
            }
        }
        Message::Event(event) => {
            let news = match event {
                StreamEvent::Started { pid } => News::Started { pid },
                StreamEvent::Opened(entry) => News::Opened(entry.into()),
            };
            if !core.news(news) {
                give_up(shared, id, &core, ResetCode::Protocol, "a second event");
            }
        }
        Message::Credit(bytes) => {
            if core.credit(bytes).is_err() {
                give_up(shared, id, &core, ResetCode::FlowControl, "too much credit");
            }
        }
        Message::Reply(reply) => core.end(End::Answer(reply.into())),
        Message::Reset { code, message } => {
            core.end(End::Reset {
                code,
                message: message.to_owned(),
            });
        }
        other => {
            return Err(format!(
                "the agent sent {:?}, which only a host sends",
                other.kind()
            ));
        }
    }
    Ok(())
}

fn give_up(shared: &Shared, id: u32, core: &Core, code: ResetCode, message: &str) {
    shared.forget(id);
    shared.control(id, &Message::Reset { code, message });
    core.end(End::Reset {
        code,
        message: message.to_owned(),
    });
}

fn connection_message(shared: &Shared, message: &Message<'_>) -> Result<(), String> {
    match message {
        Message::Ping(number) => {
            // A guest that floods us with pings gets as many answers as there is room for.
            if let Ok(room) = shared.room.clone().try_acquire_many_owned(64) {
                shared.queue(Outgoing::message(0, &Message::Pong(*number), Some(room)));
            }
            Ok(())
        }
        Message::Pong(_) => Ok(()),
        Message::GoAway { code, message } => {
            Err(format!("the agent ended it ({code:?}): {message}"))
        }
        other => Err(format!("the agent sent a second {:?}", other.kind())),
    }
}
