//! Asks a lab's agent whether it is there, and what time it is.

use super::frame::{self, CommandRequest, FrameKind};
use anyhow::{Context, Result, bail};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

/// Where a lab's agent listens, and what it wants to hear.
#[derive(Clone, Debug)]
pub(super) struct AgentAddress {
    /// A port of this machine's loopback.
    pub(super) port: u16,
    /// The lab's secret.
    pub(super) token: String,
}

impl AgentAddress {
    /// Connects, for at most so long.
    pub(super) fn connect(&self, limit: Duration) -> Result<TcpStream> {
        let address = (Ipv4Addr::LOCALHOST, self.port).into();
        let connection = TcpStream::connect_timeout(&address, limit)
            .with_context(|| format!("Connecting to the lab's agent at {address}"))?;
        connection.set_nodelay(true)?;
        Ok(connection)
    }

    /// The lab's time since the epoch; first so many nanoseconds are added to its clock.
    ///
    /// # Errors
    /// If no answer comes within the limit.
    pub(super) fn time(&self, step_ns: Option<i64>, limit: Duration) -> Result<Duration> {
        let connection = self.connect(limit)?;
        connection.set_read_timeout(Some(limit))?;
        let request = CommandRequest {
            token: self.token.clone(),
            step_clock_ns: step_ns,
            ..CommandRequest::default()
        };
        let body = serde_json::to_vec(&request)?;
        frame::write(&mut &connection, FrameKind::CommandRequest, &body)?;
        let mut payload = Vec::new();
        match frame::read(&mut &connection, &mut payload)? {
            Some(FrameKind::Stdout) => {
                let bytes = payload.as_slice().try_into();
                let time = bytes.context("The lab's time must have 8 bytes")?;
                Ok(Duration::from_nanos(u64::from_le_bytes(time)))
            }
            Some(FrameKind::Refused) => bail!("The lab: {}", String::from_utf8_lossy(&payload)),
            other => bail!("The lab's agent answered a question for its time with {other:?}"),
        }
    }
}
