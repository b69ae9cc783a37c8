//! All TCP flows of a guest.

use crate::dns_stream::{DnsStream, StreamOutcome};
use crate::flow_context::FlowContext;
use crate::flow_table::FlowTable;
use crate::host_socket;
use crate::inbound::TcpSegment;
use crate::poller::{FlowId, PollEvent, PollToken, Watch};
use crate::reply::{self, SHOWN, Unreachable};
use crate::rules::Verdict;
use crate::tcp_flow::{FlowOutcome, NameAsked, TcpFlow};
use crate::tcp_stack::TcpStack;
use control::{DenyReason, NetProtocol};
use rustix::io::Errno;
use rustix::net::sockopt::socket_error;
use smoltcp::wire::{IPV6_HEADER_LEN, IpProtocol};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// The port of the gateway's name server.
pub(crate) const DNS_PORT: u16 = 53;
/// A host that does not answer for so long is unreachable: before a guest's own patience ends.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);

/// Which flow a segment belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct TcpKey {
    from: SocketAddr,
    to: SocketAddr,
}

/// A flow whose host has not answered yet.
#[derive(Debug)]
struct PendingConnect {
    /// Its socket, until the flow is open.
    host: Option<OwnedFd>,
    syn: Box<[u8]>,
    by_name: bool,
}

#[derive(Debug)]
enum TcpState {
    Connecting(PendingConnect),
    Open(TcpFlow),
    Resolver(DnsStream),
}

#[derive(Debug)]
struct TcpEntry {
    key: TcpKey,
    state: TcpState,
    /// When it has to be looked at; of one whose host has not answered, when it is given up.
    wake: Option<Instant>,
}

/// A question that came over TCP: which flow has to hear the answer.
#[derive(Debug)]
pub(crate) struct StreamQuestion {
    pub(crate) asker: FlowId,
    pub(crate) message: Vec<u8>,
}

/// The flows, and when each has to be looked at though nothing happens.
#[derive(Debug)]
pub(crate) struct TcpTable {
    stack: TcpStack,
    flows: FlowTable<TcpKey, TcpEntry>,
    wakes: BTreeSet<(Instant, FlowId)>,
    /// Flows that have something to do in this turn of the loop.
    touched: Vec<FlowId>,
}

impl TcpTable {
    /// Without flows.
    pub(crate) fn new(stack: TcpStack) -> Self {
        Self {
            stack,
            flows: FlowTable::new(),
            wakes: BTreeSet::new(),
            touched: Vec::new(),
        }
    }

    /// How many flows there are.
    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    /// The time at which a flow has to be looked at.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        self.wakes.first().map(|(at, _)| *at)
    }

    /// A segment from the guest. `open_flows` are those of all protocols.
    pub(crate) fn segment(
        &mut self,
        segment: &TcpSegment<'_>,
        open_flows: usize,
        ctx: &mut FlowContext,
    ) {
        let key = TcpKey {
            from: segment.from,
            to: segment.to,
        };
        let Some(id) = self.flows.find(&key) else {
            if segment.opens {
                self.open(key, segment, open_flows, ctx);
            } else {
                // Of a connection that ended, or of a life before this clone's.
                self.refuse(segment.packet, ctx);
            }
            return;
        };
        let Some(entry) = self.flows.get_mut(id) else {
            return;
        };
        let endpoint = match &mut entry.state {
            // The SYN again, or an end that is told when the host has answered.
            TcpState::Connecting(_) => return,
            TcpState::Open(flow) => &mut flow.endpoint,
            TcpState::Resolver(stream) => &mut stream.endpoint,
        };
        let outbox = &mut ctx.outbox;
        self.stack
            .input(segment.packet, Some(endpoint), outbox, ctx.now);
        self.touch(id);
    }

    fn touch(&mut self, id: FlowId) {
        if self.touched.last() != Some(&id) {
            self.touched.push(id);
        }
    }

    /// Answers a segment by a reset.
    fn refuse(&mut self, packet: &[u8], ctx: &mut FlowContext) {
        self.stack.input(packet, None, &mut ctx.outbox, ctx.now);
    }

    fn open(
        &mut self,
        key: TcpKey,
        segment: &TcpSegment<'_>,
        open_flows: usize,
        ctx: &mut FlowContext,
    ) {
        if ctx.wire.is_gateway(key.to.ip()) && key.to.port() == DNS_PORT {
            if open_flows < ctx.most_flows {
                self.open_resolver(key, segment, ctx);
            } else {
                let reason = DenyReason::Flows;
                ctx.report
                    .deny(NetProtocol::Tcp, key.to, None, reason, ctx.now);
                self.refuse(segment.packet, ctx);
            }
            return;
        }
        let most = ctx.most_flows;
        let Some(admitted) = ctx.admit(NetProtocol::Tcp, key.to, || open_flows < most) else {
            self.refuse(segment.packet, ctx);
            return;
        };
        let token = PollToken::Tcp(self.flows.next_id());
        let begun = host_socket::connect_tcp(key.to).and_then(|host| {
            ctx.poller.add(&host, token, Watch::ReadWrite)?;
            Ok(host)
        });
        let host = match begun {
            Ok(host) => host,
            Err(error) => {
                self.unreachable(error, key, segment.packet, ctx);
                return;
            }
        };
        let connecting = PendingConnect {
            host: Some(host),
            syn: segment.packet.into(),
            by_name: admitted.by_name,
        };
        let id = self.insert(key, TcpState::Connecting(connecting), ctx);
        self.wake(id, Some(ctx.now + CONNECT_LIMIT));
    }

    fn open_resolver(&mut self, key: TcpKey, segment: &TcpSegment<'_>, ctx: &mut FlowContext) {
        let Some(mut endpoint) = self.stack.listen(key.to) else {
            return;
        };
        let packet = segment.packet;
        self.stack
            .input(packet, Some(&mut endpoint), &mut ctx.outbox, ctx.now);
        let stream = DnsStream::new(endpoint, ctx.now);
        let id = self.insert(key, TcpState::Resolver(stream), ctx);
        self.touch(id);
    }

    fn insert(&mut self, key: TcpKey, state: TcpState, ctx: &mut FlowContext) -> FlowId {
        ctx.report.counters.flows_opened += 1;
        let wake = None;
        self.flows.insert(key, TcpEntry { key, state, wake })
    }

    /// Tells the guest that the host has not connected.
    fn unreachable(&mut self, error: Errno, key: TcpKey, syn: &[u8], ctx: &mut FlowContext) {
        let why = match error {
            Errno::TIMEDOUT | Errno::HOSTUNREACH | Errno::HOSTDOWN => Unreachable::Host,
            Errno::NETUNREACH | Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT => Unreachable::Net,
            Errno::ACCESS | Errno::PERM => Unreachable::Prohibited,
            _ => return self.refuse(syn, ctx),
        };
        let head = match syn.first() {
            Some(first) if first >> 4 == 4 => usize::from(first & 15) * 4,
            _ => IPV6_HEADER_LEN,
        };
        let shown = syn.get(head..head + SHOWN).and_then(|s| s.try_into().ok());
        let to = key.to.ip();
        if let Some(shown) = shown {
            let (wire, outbox) = (ctx.wire, &mut ctx.outbox);
            reply::unreachable(why, IpProtocol::Tcp, to, shown, &wire, outbox);
        }
    }

    /// A host socket has something to do.
    pub(crate) fn event(&mut self, id: FlowId, event: PollEvent, ctx: &mut FlowContext) {
        let Some(entry) = self.flows.get_mut(id) else {
            return;
        };
        match &mut entry.state {
            TcpState::Open(flow) => {
                flow.event(event.readable, event.writable, event.ended);
                self.touch(id);
            }
            TcpState::Connecting(connecting) => {
                match connecting.host.as_ref().map_or(Ok(Ok(())), socket_error) {
                    Ok(Ok(())) if event.writable => self.connected(id, event.ended, ctx),
                    Ok(Ok(())) | Err(_) => {}
                    Ok(Err(error)) => self.failed(id, error, ctx),
                }
            }
            TcpState::Resolver(_) => {}
        }
    }

    /// The host has connected: now the guest is answered.
    fn connected(&mut self, id: FlowId, ending: bool, ctx: &mut FlowContext) {
        self.wake(id, None);
        let Some(entry) = self.flows.get_mut(id) else {
            return;
        };
        let TcpState::Connecting(connecting) = &mut entry.state else {
            return;
        };
        let to = entry.key.to;
        let begun = (self.stack.listen(to), connecting.host.take());
        let (Some(mut endpoint), Some(host)) = begun else {
            self.end(id);
            return;
        };
        let (syn, outbox) = (&connecting.syn, &mut ctx.outbox);
        self.stack.input(syn, Some(&mut endpoint), outbox, ctx.now);
        let asked = match connecting.by_name {
            true => NameAsked::ToPass,
            false if ctx.interception.is_on() => NameAsked::ForHeaders,
            false => NameAsked::No,
        };
        entry.state = TcpState::Open(TcpFlow::new(endpoint, host, to, asked, ending));
        self.touch(id);
    }

    fn failed(&mut self, id: FlowId, error: Errno, ctx: &mut FlowContext) {
        if let Some(entry) = self.take(id)
            && let TcpState::Connecting(connecting) = entry.state
        {
            self.unreachable(error, entry.key, &connecting.syn, ctx);
        }
    }

    fn take(&mut self, id: FlowId) -> Option<TcpEntry> {
        self.wake(id, None);
        self.flows.remove(id)
    }

    /// Sets when a flow has to be looked at.
    fn wake(&mut self, id: FlowId, at: Option<Instant>) {
        let Some(entry) = self.flows.get_mut(id) else {
            return;
        };
        let before = std::mem::replace(&mut entry.wake, at);
        if before == at {
            return;
        }
        if let Some(before) = before {
            self.wakes.remove(&(before, id));
        }
        if let Some(at) = at {
            self.wakes.insert((at, id));
        }
    }

    /// Looks at flows whose time has come.
    pub(crate) fn expire(&mut self, ctx: &mut FlowContext) {
        let due: Vec<_> = self
            .wakes
            .iter()
            .take_while(|(at, _)| *at <= ctx.now)
            .map(|(_, id)| *id)
            .collect();
        for id in due {
            self.wake(id, None);
            match self.flows.get_mut(id).map(|entry| &entry.state) {
                Some(TcpState::Connecting(_)) => self.failed(id, Errno::TIMEDOUT, ctx),
                Some(_) => self.touch(id),
                None => {}
            }
        }
    }

    /// Gives each flow that has something to do its turn. What was asked of the name server comes
    /// back.
    pub(crate) fn turn(&mut self, ctx: &mut FlowContext) -> Vec<StreamQuestion> {
        let mut questions = Vec::new();
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_unstable();
        touched.dedup();
        for id in touched.drain(..) {
            let Some(entry) = self.flows.get_mut(id) else {
                continue;
            };
            let (stack, outbox, now) = (&mut self.stack, &mut ctx.outbox, ctx.now);
            let (ended, denied) = match &mut entry.state {
                TcpState::Connecting(_) => continue,
                TcpState::Open(flow) => {
                    let by = (&ctx.rules, &mut ctx.interception);
                    match flow.turn(stack, outbox, by, now) {
                        FlowOutcome::Open => (false, None),
                        FlowOutcome::Ended => (true, None),
                        FlowOutcome::Denied(reason, name) => (true, Some((reason, name))),
                    }
                }
                TcpState::Resolver(stream) => match stream.turn(stack, outbox, now) {
                    StreamOutcome::Open(asked) => {
                        let of_flow = |message| StreamQuestion { asker: id, message };
                        questions.extend(asked.into_iter().map(of_flow));
                        (false, None)
                    }
                    StreamOutcome::Ended => (true, None),
                },
            };
            if let Some((reason, name)) = denied {
                let (protocol, to) = (NetProtocol::Tcp, entry.key.to);
                ctx.report.deny(protocol, to, name.as_deref(), reason, now);
            }
            if ended {
                self.end(id);
            } else {
                self.plan(id, now);
            }
        }
        // Its memory is used again.
        self.touched = touched;
        questions
    }

    fn plan(&mut self, id: FlowId, now: Instant) {
        let at = match self.flows.get_mut(id).map(|entry| &entry.state) {
            Some(TcpState::Open(flow)) => self.stack.wake_at(&flow.endpoint, now),
            Some(TcpState::Resolver(stream)) => {
                let idle = stream.idle_at();
                let at = self.stack.wake_at(&stream.endpoint, now);
                Some(at.map_or(idle, |at| at.min(idle)))
            }
            Some(TcpState::Connecting(_)) | None => return,
        };
        self.wake(id, at);
    }

    fn end(&mut self, id: FlowId) {
        match self.take(id).map(|entry| entry.state) {
            Some(TcpState::Open(flow)) => self.stack.close(flow.endpoint),
            Some(TcpState::Resolver(stream)) => self.stack.close(stream.endpoint),
            Some(TcpState::Connecting(_)) | None => {}
        }
    }

    /// Gives the answer to a question that came over TCP; `None`: it gets none.
    pub(crate) fn answer(&mut self, asker: FlowId, message: Option<&[u8]>, now: Instant) {
        if let Some(entry) = self.flows.get_mut(asker)
            && let TcpState::Resolver(stream) = &mut entry.state
        {
            stream.answer(message, now);
            self.touch(asker);
        }
    }

    /// Cuts what the policy does not allow any more; how many.
    pub(crate) fn cut(&mut self, ctx: &mut FlowContext) -> u64 {
        let all = self.flows.iter().map(|(id, key, _)| (id, *key));
        let all: Vec<_> = all.collect();
        let mut cut = 0;
        for (id, key) in all {
            let verdict = ctx.verdict(key.to);
            let Some(entry) = self.flows.get_mut(id) else {
                continue;
            };
            let stays = match (verdict, &entry.state) {
                // The gateway's own: what it may ask for is asked of each question.
                (_, TcpState::Resolver(_)) => true,
                (_, TcpState::Open(flow)) if !flow.follows(&ctx.interception) => false,
                (Verdict::Allow, _) => true,
                (Verdict::ByName, TcpState::Open(flow)) => flow.may_stay(&ctx.rules),
                (Verdict::ByName, TcpState::Connecting(connecting)) => connecting.by_name,
                _ => false,
            };
            if stays {
                continue;
            }
            cut += 1;
            let endpoint = match self.take(id).map(|entry| entry.state) {
                Some(TcpState::Open(mut flow)) => {
                    flow.reset(&mut self.stack, &mut ctx.outbox, ctx.now);
                    flow.endpoint
                }
                Some(TcpState::Resolver(stream)) => stream.endpoint,
                Some(TcpState::Connecting(connecting)) => {
                    self.refuse(&connecting.syn, ctx);
                    continue;
                }
                None => continue,
            };
            self.stack.close(endpoint);
        }
        cut
    }
}
