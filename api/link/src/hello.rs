//! The greeting at the beginning of a link.

use crate::{AgentHello, LinkError, io};
use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use wire::{Frame, FrameKind, GoAwayCode, MAX_FRAME, Message, PROTOCOL_VERSION};

/// Waits for the agent's Hello and answers it. What came after it stays in `buffer`.
pub(super) async fn exchange(
    stream: &mut UnixStream,
    buffer: &mut BytesMut,
) -> Result<AgentHello, LinkError> {
    let hello = read_hello(stream, buffer).await?;
    if hello.version != PROTOCOL_VERSION {
        let text = "the host speaks another version";
        let goodbye = Message::GoAway {
            code: GoAwayCode::Version,
            message: text,
        };
        // The peer may be gone already, and is to go anyway.
        let _ = send(stream, &goodbye).await;
        return Err(LinkError::Version {
            theirs: hello.version,
        });
    }
    let ours = wire::Hello {
        version: PROTOCOL_VERSION,
        agent: concat!("hatchery ", env!("CARGO_PKG_VERSION")),
        generation: 0,
        flags: 0,
        agent_start_ns: 0,
        ready_ns: 0,
    };
    send(stream, &Message::Hello(ours))
        .await
        .map_err(|why| broken(&why))?;
    Ok(hello)
}

fn broken(why: &std::io::Error) -> LinkError {
    LinkError::Closed(format!("greeting the guest agent failed: {why}"))
}

async fn send(stream: &mut UnixStream, message: &Message<'_>) -> std::io::Result<()> {
    let mut out = [0; 1024];
    let length = message.encode(0, &mut out).map_err(std::io::Error::other)?;
    stream.write_all(&out[..length]).await
}

async fn read_hello(
    stream: &mut UnixStream,
    buffer: &mut BytesMut,
) -> Result<AgentHello, LinkError> {
    loop {
        let frame = io::next_frame(buffer)
            .map_err(|why| LinkError::Closed(format!("the peer is no guest agent: {why}")))?;
        if let Some((header, payload)) = frame {
            let unexpected = |got: String| LinkError::Unexpected {
                request: "a new connection",
                got,
            };
            if header.kind != FrameKind::Hello {
                return Err(unexpected(format!("{:?}", header.kind)));
            }
            return match Message::decode(&Frame {
                header,
                payload: &payload,
            }) {
                Ok(Message::Hello(hello)) => Ok(hello.into()),
                Ok(other) => Err(unexpected(format!("{:?}", other.kind()))),
                Err(why) => Err(unexpected(format!("a Hello that is wrong: {why}"))),
            };
        }
        buffer.reserve(MAX_FRAME);
        if stream.read_buf(buffer).await.map_err(|why| broken(&why))? == 0 {
            return Err(LinkError::Closed("the peer left before its Hello".into()));
        }
    }
}
