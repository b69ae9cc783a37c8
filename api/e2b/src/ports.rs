//! Which port of a sandbox is served by whom (`api/PROTOCOL.md` §2.4).

/// Who serves a port of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortServer {
    /// The façade of E2B's guest daemon, on the host.
    Envd,
    /// A program in the guest, if one listens there.
    Guest,
}

/// The port on which a sandbox's envd is reached.
pub const ENVD_PORT: u16 = 49_983;

/// The ports that have a server of their own; all others are [`OTHER_PORTS`].
const SERVERS: &[(u16, PortServer)] = &[(ENVD_PORT, PortServer::Envd)];
/// Who serves every other port.
const OTHER_PORTS: PortServer = PortServer::Guest;

/// Who serves this port.
#[must_use]
pub fn server_of(port: u16) -> PortServer {
    let own = SERVERS.iter().find(|(own, _)| *own == port);
    own.map_or(OTHER_PORTS, |(_, server)| *server)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_port_has_one_server() {
        assert_eq!(server_of(49_983), PortServer::Envd);
        for port in [1, 80, 8080, 49_982, 49_999, u16::MAX] {
            assert_eq!(server_of(port), PortServer::Guest, "{port}");
        }
        let ports = SERVERS.iter().map(|(port, _)| port);
        let once: std::collections::BTreeSet<_> = ports.collect();
        assert_eq!(once.len(), SERVERS.len(), "no port is in the table twice");
    }
}
