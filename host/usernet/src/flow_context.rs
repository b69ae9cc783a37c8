//! What every flow needs around it while it has its turn.

use crate::host_socket;
use crate::inbound::WireAddresses;
use crate::interception::Interception;
use crate::outbox::Outbox;
use crate::poller::Poller;
use crate::report::EventReport;
use crate::rules::{PolicyRules, Verdict};
use control::{DenyReason, NetProtocol};
use std::net::SocketAddr;
use std::time::Instant;

/// The parts of one network that its flows share.
#[derive(Debug)]
pub(crate) struct FlowContext {
    pub(crate) wire: WireAddresses,
    pub(crate) outbox: Outbox,
    pub(crate) rules: PolicyRules,
    pub(crate) interception: Interception,
    pub(crate) report: EventReport,
    pub(crate) poller: Poller,
    /// The time of this turn of the loop.
    pub(crate) now: Instant,
    /// How many flows there may be.
    pub(crate) most_flows: usize,
}

impl FlowContext {
    /// What becomes of a flow to this address: by the policy, and by whether it is the host's own.
    pub(crate) fn verdict(&self, to: SocketAddr) -> Verdict {
        self.unless_own(self.rules.verdict(to, self.now), to)
    }

    /// The policy's verdict, unless the host would answer at this address itself and the operator
    /// has not opened it.
    fn unless_own(&self, verdict: Verdict, to: SocketAddr) -> Verdict {
        match verdict {
            Verdict::Deny(_) => verdict,
            _ if self.rules.is_opening(to) || !host_socket::is_own(to) => verdict,
            _ => Verdict::Deny(DenyReason::Host),
        }
    }

    /// The name servers of the policy, those of them that it allows; `None` if it has none.
    pub(crate) fn name_servers(&self) -> Option<Vec<SocketAddr>> {
        let servers = self.rules.name_servers();
        let allowed = |server: &SocketAddr| self.verdict(*server) == Verdict::Allow;
        (!servers.is_empty()).then(|| servers.iter().copied().filter(allowed).collect())
    }

    /// Whether a new flow may go to an address, and whether only by a name. What may not is told.
    /// `room` is whether there is a place for it, asked only of one that the policy allows.
    pub(crate) fn admit(
        &mut self,
        protocol: NetProtocol,
        to: SocketAddr,
        room: impl FnOnce() -> bool,
    ) -> Option<Admitted> {
        let verdict = self.rules.verdict(to, self.now);
        let reason = match verdict {
            _ if self.wire.is_gateway(to.ip()) => DenyReason::Reserved,
            Verdict::Deny(reason) => reason,
            // Before the host is asked: a full table costs no socket.
            _ if !room() => DenyReason::Flows,
            _ => match self.unless_own(verdict, to) {
                Verdict::Deny(reason) => reason,
                Verdict::Allow => return Some(Admitted { by_name: false }),
                Verdict::ByName => return Some(Admitted { by_name: true }),
            },
        };
        self.report.deny(protocol, to, None, reason, self.now);
        None
    }
}

/// A flow that may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Admitted {
    /// It has to say an allowed name.
    pub(crate) by_name: bool,
}
