//! The connection of a link: one task reads, one writes, both end together.
//!
//! The reader never waits for anything but the socket: what it hands out is bounded by windows, and
//! what it answers (resets, pongs) needs no room. So a slow stream cannot stall another one, and no
//! circle of waiting can form with an agent that waits for us.

use crate::core::{StreamCore, StreamEnd, StreamNews};
use crate::shared::{LinkState, OutgoingFrames};
use bytes::{Buf, BytesMut};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::Instant;
use wire::{Frame, FrameHeader, HEADER_LEN, MAX_FRAME, Message, ResetCode, StreamEvent};

/// Read buffer: a few frames, so that one system call brings many small ones.
const READ: usize = 64 * 1024;
/// Bytes the writer joins into one system call.
const JOIN: usize = 64 * 1024;

/// Writes the queue to the socket until the link ends.
pub(crate) async fn write(
    shared: Arc<LinkState>,
    mut queue: mpsc::UnboundedReceiver<OutgoingFrames>,
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
pub(crate) async fn read(shared: Arc<LinkState>, socket: OwnedReadHalf, buffer: BytesMut) {
    let why = tokio::select! {
        why = read_frames(&shared, socket, buffer) => why,
        () = shared.closed() => return,
    };
    tracing::debug!(why, "the link to a guest agent ended");
    shared.close(&why);
}

async fn read_frames(
    shared: &LinkState,
    mut socket: OwnedReadHalf,
    mut buffer: BytesMut,
) -> String {
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
fn dispatch(shared: &LinkState, header: FrameHeader, payload: BytesMut) -> Result<(), String> {
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
        let core = match message {
            Message::Reply(_) | Message::Reset { .. } => shared.remove(&mut table, id),
            _ => table.streams.get(&id).cloned(),
        };
        let Some(core) = core else {
            // A stream that this side has given up; the agent does not know it yet.
            let data = matches!(message, Message::Data { .. });
            return table.unasked.late(if data { payload.len() } else { 0 });
        };
        core
    };
    match message {
        Message::Data { channel, .. } => {
            if core.data(channel, payload).is_err() {
                let text = "more data than the window allows";
                give_up(shared, id, &core, ResetCode::FlowControl, text);
            }
        }
        Message::Event(event) => {
            let news = match event {
                StreamEvent::Started { pid } => StreamNews::Started { pid },
                StreamEvent::Opened(entry) => StreamNews::Opened(entry.into()),
                StreamEvent::Connected => StreamNews::Connected,
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
        Message::End if core.data_end() => {}
        Message::Reply(reply) => core.end(StreamEnd::Answer(reply.into())),
        Message::Reset { code, message } => {
            core.end(StreamEnd::Reset {
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

fn give_up(shared: &LinkState, id: u32, core: &StreamCore, code: ResetCode, message: &str) {
    shared.forget(id);
    shared.control(id, &Message::Reset { code, message });
    core.end(StreamEnd::Reset {
        code,
        message: message.to_owned(),
    });
}

fn connection_message(shared: &LinkState, message: &Message<'_>) -> Result<(), String> {
    match message {
        Message::Ping(number) => {
            shared.lock().unasked.ping(Instant::now())?;
            // A guest that floods us with pings gets as many answers as there is room for.
            if let Ok(room) = shared.room.clone().try_acquire_many_owned(64) {
                shared.queue(OutgoingFrames::message(
                    0,
                    &Message::Pong(*number),
                    Some(room),
                ));
            }
            Ok(())
        }
        Message::Pong(_) => Err("the agent answered a ping that nobody sent".into()),
        Message::GoAway { code, message } => {
            Err(format!("the agent ended it ({code:?}): {message}"))
        }
        other => Err(format!("the agent sent a second {:?}", other.kind())),
    }
}
