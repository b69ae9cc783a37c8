//! What the host's own network says about itself: looked up for each network process, since it
//! changes while the service runs.

use control::{MAX_HOST_ADDRESSES, MAX_NAME_SERVERS};
use std::net::{IpAddr, SocketAddr};

/// The host's resolver configuration.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where name servers listen.
const DNS_PORT: u16 = 53;

/// The host's name servers; none, and a word in the log, where it has none that can be read.
pub(super) fn name_servers() -> Vec<SocketAddr> {
    let read = std::fs::read(RESOLV_CONF).map_err(|error| error.to_string());
    let parsed =
        read.and_then(|text| resolv_conf::Config::parse(text).map_err(|error| error.to_string()));
    match parsed {
        Ok(config) => config
            .nameservers
            .iter()
            .map(|server| SocketAddr::new(server.into(), DNS_PORT))
            .take(MAX_NAME_SERVERS)
            .collect(),
        Err(error) => {
            tracing::warn!(
                error,
                "no names for sandboxes: {RESOLV_CONF} cannot be used"
            );
            Vec::new()
        }
    }
}

/// The addresses of the host's interfaces, loopback left out, as that is denied in any case.
pub(super) fn addresses() -> std::io::Result<Vec<IpAddr>> {
    let interfaces = if_addrs::get_if_addrs()?;
    let own = interfaces
        .iter()
        .filter(|interface| !interface.is_loopback());
    Ok(own
        .map(if_addrs::Interface::ip)
        .take(MAX_HOST_ADDRESSES)
        .collect())
}
