//! The `[network]` table: what sandboxes may have of the network.

use crate::config::error::ConfigError;
use crate::config::limits::in_range;
use crate::config::typed::NetworkFile;
use control::{JailMode, MAX_NET_FLOWS, NetLimits, NetPolicy};
use engine::network::NetworkSettings;
use std::path::Path;

/// The program, beside that of VM processes.
const PROGRAM: &str = "hatchery-net";

/// Checks the table and fills the defaults in.
pub(super) fn network(
    file: NetworkFile,
    vmm: &Path,
    jail: JailMode,
) -> Result<NetworkSettings, ConfigError> {
    let default = NetLimits::default();
    let flows = file.max_flows.unwrap_or(default.flows);
    let bytes_per_s = file.max_bytes_per_second;
    let packets_per_s = file.max_packets_per_second;
    let opened = NetPolicy {
        openings: file.openings.clone(),
        ..NetPolicy::default()
    };
    opened.check().map_err(ConfigError::Openings)?;
    Ok(NetworkSettings {
        program: vmm.with_file_name(PROGRAM),
        jail,
        openings: file.openings,
        extra_roots: file.extra_roots,
        limits: NetLimits {
            flows: in_range("network.max_flows", flows, 1..=MAX_NET_FLOWS)?,
            bytes_per_s: bytes_per_s.unwrap_or(default.bytes_per_s),
            packets_per_s: packets_per_s.unwrap_or(default.packets_per_s),
        },
    })
}
