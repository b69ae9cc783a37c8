//! What the handles, the streams and the two tasks of a link share: the table of streams, and the
//! queue to the socket.

use crate::LinkError;
use crate::core::{StreamCore, StreamEnd};
use crate::unasked::UnaskedFrames;
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, mpsc, watch};
use tokio::time::timeout;
use wire::{
    EncodeError, HEADER_LEN, MAX_PORT_STREAMS, MAX_REQUEST, MAX_STREAMS, Message, Request,
    RequestPart, StringList,
};

/// Bytes of requests and data that may wait for the socket.
const ROOM: usize = 1 << 20;
/// Streams that processes leave to other requests: however many processes run, they can be listed
/// and killed.
const NOT_FOR_PROCESSES: usize = 32;
/// How long a request waits for a stream while all are in use.
const TURN: Duration = Duration::from_secs(30);

/// Encoded frames on their way to the socket, with the room they take.
#[derive(Debug)]
pub(crate) struct OutgoingFrames {
    pub(crate) bytes: Bytes,
    _room: Option<OwnedSemaphorePermit>,
}

impl OutgoingFrames {
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
pub(crate) struct StreamTable {
    pub(crate) last_id: u32,
    pub(crate) streams: HashMap<u32, Arc<StreamCore>>,
    pub(crate) unasked: UnaskedFrames,
    closed: Option<String>,
}

/// What the handles, the streams and the two tasks of a link share.
#[derive(Debug)]
pub(crate) struct LinkState {
    table: Mutex<StreamTable>,
    outgoing: mpsc::UnboundedSender<OutgoingFrames>,
    pub(crate) room: Arc<Semaphore>,
    /// Streams that are not in use.
    free: Semaphore,
    /// The same of connections to ports.
    free_ports: Semaphore,
    closed: watch::Sender<bool>,
}

impl LinkState {
    /// Streams are numbered from `last_id` on.
    pub(crate) fn new(last_id: u32) -> (Arc<Self>, mpsc::UnboundedReceiver<OutgoingFrames>) {
        let (outgoing, queue) = mpsc::unbounded_channel();
        let shared = Self {
            table: Mutex::new(StreamTable {
                last_id,
                ..StreamTable::default()
            }),
            outgoing,
            room: Arc::new(Semaphore::new(ROOM)),
            free: Semaphore::new(MAX_STREAMS),
            free_ports: Semaphore::new(MAX_PORT_STREAMS),
            closed: watch::Sender::new(false),
        };
        (Arc::new(shared), queue)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, StreamTable> {
        // Nothing panics while it holds the lock.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for room for `bytes` on the connection; `None` when it has ended.
    pub(crate) async fn room(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes).ok()?;
        self.room.clone().acquire_many_owned(bytes).await.ok()
    }

    /// Room for `bytes`, if there is some now.
    pub(crate) fn room_now(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes).ok()?;
        self.room.clone().try_acquire_many_owned(bytes).ok()
    }

    pub(crate) fn queue(&self, outgoing: OutgoingFrames) {
        // Fails only when the writer has ended; then the streams are ended too.
        let _ = self.outgoing.send(outgoing);
    }

    /// Queues a short message without waiting for room. Bounded all the same: one End or Reset per
    /// stream, and one Credit per half window that the agent was able to send.
    pub(crate) fn control(&self, stream: u32, message: &Message<'_>) {
        self.queue(OutgoingFrames::message(stream, message, None));
    }

    pub(crate) fn last_id(&self) -> u32 {
        self.lock().last_id
    }

    /// Drops a stream from the table: frames that are under way on it are ignored.
    pub(crate) fn forget(&self, id: u32) {
        let mut table = self.lock();
        if let Some(core) = self.remove(&mut table, id) {
            table.unasked.gave_up(core.window);
        }
    }

    /// Takes a stream out of the table, and lets another one begin.
    pub(crate) fn remove(&self, table: &mut StreamTable, id: u32) -> Option<Arc<StreamCore>> {
        let core = table.streams.remove(&id)?;
        match core.is_port {
            true => self.free_ports.add_permits(1),
            false => self.free.add_permits(1),
        }
        Some(core)
    }

    /// Opens a stream with `request`: its id, and what it and the reader share. While all streams
    /// are in use it waits for its turn; a process does not, nor a connection to a port, for others
    /// may run for ever. Of connections to ports there are `most_ports` at most.
    pub(crate) async fn open(
        &self,
        request: &Request<'_>,
        most_ports: usize,
    ) -> Result<(u32, Arc<StreamCore>), LinkError> {
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
        let Some(turn) = self.turn(request, most_ports).await else {
            return Err(match self.free.is_closed() {
                true => LinkError::Closed(self.why()),
                false if request.is_port() => LinkError::PortsBusy(most_ports),
                false => LinkError::Busy,
            });
        };
        // The id and the place in the queue are taken under one lock: ids increase on the wire.
        let mut table = self.lock();
        if let Some(why) = &table.closed {
            return Err(LinkError::Closed(why.clone()));
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
        let core = Arc::new(StreamCore::new(request));
        table.streams.insert(id, core.clone());
        turn.forget(); // until the stream is
        self.queue(OutgoingFrames {
            bytes: bytes.into(),
            _room: Some(room),
        });
        drop(table);
        Ok((id, core))
    }

    /// A stream for `request`, or `None` when there is none for too long.
    async fn turn(&self, request: &Request<'_>, most_ports: usize) -> Option<SemaphorePermit<'_>> {
        match request {
            Request::Start(_) | Request::Attach { .. } => {
                let left = self.free.available_permits() > NOT_FOR_PROCESSES;
                self.free.try_acquire().ok().filter(|_| left)
            }
            Request::ConnectPort { .. } => {
                // One caller at a time, or two at the limit would each count the other.
                let _alone = self.lock();
                let turn = self.free_ports.try_acquire().ok()?;
                let open = MAX_PORT_STREAMS - self.free_ports.available_permits();
                Some(turn).filter(|_| open <= most_ports)
            }
            _ => timeout(TURN, self.free.acquire()).await.ok()?.ok(),
        }
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
        self.free.close();
        self.free_ports.close();
        for core in streams.into_values() {
            core.end(StreamEnd::Closed(why.to_owned()));
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
