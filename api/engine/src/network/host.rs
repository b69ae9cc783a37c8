//! What the host's own network says about itself: looked up for each network process, since it
//! changes while the service runs.

use control::{MAX_HOST_ADDRESSES, MAX_NAME_SERVERS};
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};

/// The host's resolver configuration.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where name servers listen.
const DNS_PORT: u16 = 53;

/// The host's name servers, which sandboxes' questions go to unless they name others.
///
/// # Errors
/// The file, and why it cannot be read or understood.
pub fn host_name_servers() -> Result<Vec<SocketAddr>, String> {
    let wrong = |error: &dyn Display| format!("{RESOLV_CONF}: {error}");
    let text = std::fs::read(RESOLV_CONF).map_err(|error| wrong(&error))?;
    let config = resolv_conf::Config::parse(text).map_err(|error| wrong(&error))?;
    let servers = config.nameservers.iter();
    Ok(servers
        .map(|server| SocketAddr::new(server.into(), DNS_PORT))
        .take(MAX_NAME_SERVERS)
        .collect())
}

/// The same; none, and a word in the log, where they are not known.
pub(super) fn name_servers() -> Vec<SocketAddr> {
    host_name_servers().unwrap_or_else(|error| {
        tracing::warn!(error, "no names for sandboxes");
        Vec::new()
    })
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
