//! Bounds, with every default filled in.

use crate::config::error::ConfigError;
use crate::config::typed::LimitsFile;
use std::time::Duration;

/// Bounds, with defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitSettings {
    /// Most sandboxes at one time.
    pub max_sandboxes: usize,
    /// Most paused sandboxes.
    pub max_paused: usize,
    /// Most snapshots.
    pub max_snapshots: usize,
    /// Most bytes of what is stored.
    pub max_stored_bytes: u64,
    /// Most checkpoints of one sandbox.
    pub max_checkpoints: usize,
    /// Memory that has to be left when a creation, a batch, a warm VM or a resumption begins, MiB.
    pub min_memory_mb: u64,
    /// Longest time to live.
    pub max_timeout: Duration,
    /// Longest wait for a new sandbox's agent.
    pub boot_timeout: Duration,
    /// Most client connections.
    pub max_connections: usize,
    /// Most of them from one address; 0: as many as there are.
    pub max_peer_connections: usize,
    /// Most connections to ports of one sandbox.
    pub max_port_connections: usize,
    /// Longest wait for a request's head.
    pub header_timeout: Duration,
    /// Longest wait for the next request on a connection.
    pub idle_timeout: Duration,
    /// Most bytes of a control-plane body.
    pub max_json_bytes: usize,
    /// Memory of all request bodies together, MiB.
    pub body_memory_mb: usize,
}

impl LimitSettings {
    pub(super) fn new(file: &LimitsFile) -> Result<Self, ConfigError> {
        let seconds = |key, value: Option<u32>, default: u32| {
            let value = in_range(key, value.unwrap_or(default), 1..=31_536_000)?;
            Ok(Duration::from_secs(value.into()))
        };
        let count = |key, value: Option<usize>, default, most| {
            in_range(key, value.unwrap_or(default), 1..=most)
        };
        let stored =
            |key, value: Option<usize>| in_range(key, value.unwrap_or(1000), 0..=1_000_000);
        Ok(Self {
            max_sandboxes: count("limits.max_sandboxes", file.max_sandboxes, 64, 65_536)?,
            max_paused: stored("limits.max_paused", file.max_paused)?,
            max_snapshots: stored("limits.max_snapshots", file.max_snapshots)?,
            max_stored_bytes: in_range(
                "limits.max_stored_bytes",
                file.max_stored_bytes.unwrap_or(1 << 40),
                0..=1 << 60,
            )?,
            max_checkpoints: count("limits.max_checkpoints", file.max_checkpoints, 64, 4096)?,
            min_memory_mb: in_range(
                "limits.min_memory_mb",
                file.min_memory_mb.unwrap_or(128),
                0..=1 << 24,
            )?,
            max_timeout: seconds("limits.max_timeout", file.max_timeout, 86_400)?,
            boot_timeout: seconds("limits.boot_timeout", file.boot_timeout, 60)?,
            max_connections: count(
                "limits.max_connections",
                file.max_connections,
                4096,
                1 << 20,
            )?,
            max_peer_connections: in_range(
                "limits.max_peer_connections",
                file.max_peer_connections.unwrap_or(0),
                0..=1 << 20,
            )?,
            max_port_connections: count(
                "limits.max_port_connections",
                file.max_port_connections,
                wire::MAX_PORT_STREAMS,
                wire::MAX_PORT_STREAMS,
            )?,
            header_timeout: seconds("limits.header_timeout", file.header_timeout, 10)?,
            idle_timeout: seconds("limits.idle_timeout", file.idle_timeout, 620)?,
            max_json_bytes: count(
                "limits.max_json_bytes",
                file.max_json_bytes,
                1 << 20,
                1 << 28,
            )?,
            body_memory_mb: in_range(
                "limits.body_memory_mb",
                file.body_memory_mb.unwrap_or(256),
                64..=1 << 20,
            )?,
        })
    }
}

/// A value, if it is in its range.
pub(super) fn in_range<T: PartialOrd + ToString>(
    key: &str,
    value: T,
    range: std::ops::RangeInclusive<T>,
) -> Result<T, ConfigError> {
    if range.contains(&value) {
        return Ok(value);
    }
    Err(ConfigError::Range {
        key: key.to_owned(),
        value: value.to_string(),
        range: format!(
            "{} to {}",
            range.start().to_string(),
            range.end().to_string()
        ),
    })
}
