//! The gateway's name server: asks the host's, or the policy's, and passes on what is allowed.
//!
//! Each question has a socket of its own, so a number and a port of its own. A name that is not
//! allowed does not exist (NXDOMAIN), at once: resolvers differ in what they make of REFUSED, and
//! musl waits for another answer until its time is out. What no server has answered in time has
//! failed (SERVFAIL). Answers pass as they came, but for their number.

use crate::dns_message::{self, DnsFault, DnsVerdict};
use crate::flow_context::FlowContext;
use crate::flow_table::FlowTable;
use crate::host_socket;
use crate::poller::{FlowId, PollEvent, PollToken, Watch};
use crate::tcp_table::DNS_PORT;
use control::{DenyReason, NetProtocol};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::rand::{GetRandomFlags, getrandom};
use simple_dns::RCODE;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// Most questions that have no answer yet.
const MAX_QUERIES: usize = 128;
/// How long a server has, before another is asked.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How often servers are asked in all: within five seconds, a resolver's own patience.
const ATTEMPTS: usize = 3;
/// Most bytes of a message over TCP, with its length.
const MAX_STREAMED: usize = 2 + 65_535;

/// Who has asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum DnsAsker {
    /// A port of the guest's, by UDP, of one of the gateway's addresses.
    Datagram { port: u16, gateway: IpAddr },
    /// A connection.
    Stream(FlowId),
}

/// What an asker hears.
#[derive(Debug)]
pub(crate) struct DnsAnswer {
    pub(crate) asker: DnsAsker,
    /// `None`: the question gets no answer, and is not waited for.
    pub(crate) message: Option<Vec<u8>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct QueryKey {
    asker: DnsAsker,
    id: u16,
}

#[derive(Debug)]
struct DnsQuery {
    key: QueryKey,
    name: String,
    /// The question, with the number under which it is asked.
    message: Vec<u8>,
    servers: Vec<SocketAddr>,
    attempt: usize,
    until: Instant,
    socket: OwnedFd,
    /// What has come of an answer over TCP.
    input: Vec<u8>,
    /// Over TCP: the question has gone.
    sent: bool,
}

/// The questions that have no answer yet.
#[derive(Debug)]
pub(crate) struct DnsRelay {
    host_servers: Vec<SocketAddr>,
    queries: FlowTable<QueryKey, DnsQuery>,
    scratch: Vec<u8>,
}

impl DnsRelay {
    /// A relay that asks the host's servers, unless the policy has its own.
    pub(crate) fn new(host_servers: Vec<SocketAddr>) -> Self {
        Self {
            host_servers,
            queries: FlowTable::new(),
            scratch: Vec::new(),
        }
    }

    /// When a server's time is out.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        self.queries.iter().map(|(_, _, query)| query.until).min()
    }

    /// Asks, or knows what comes of it: `None` where that is told later.
    pub(crate) fn ask(
        &mut self,
        asker: DnsAsker,
        mut message: Vec<u8>,
        ctx: &mut FlowContext,
    ) -> Option<DnsAnswer> {
        let question = match dns_message::question(&message) {
            Ok(question) => question,
            Err(fault) => {
                let message = match fault {
                    DnsFault::Garbage => None,
                    DnsFault::Refused(message) => Some(message),
                };
                return Some(DnsAnswer { asker, message });
            }
        };
        ctx.report.counters.dns_queries += 1;
        let id = question.id;
        let key = QueryKey { asker, id };
        if self.queries.find(&key).is_some() {
            // Asked again: the answer to the first is that to both.
            let message = None;
            return Some(DnsAnswer { asker, message });
        }
        if let Err(reason) = ctx.rules.question(&question.name) {
            deny(&question.name, reason, ctx);
            return Some(failure(asker, &message, RCODE::NameError));
        }
        let servers = ctx.name_servers();
        let servers = servers.unwrap_or_else(|| self.host_servers.clone());
        let mut fresh = [0; 2];
        let drawn = getrandom(&mut fresh, GetRandomFlags::empty()).is_ok();
        let asked = message.clone();
        message[..2].copy_from_slice(&fresh);
        let token = PollToken::Dns(self.queries.next_id());
        let begun = if drawn && self.queries.len() < MAX_QUERIES {
            begin(asker, &message, &servers, 0, token, ctx)
        } else {
            None
        };
        let Some((attempt, socket)) = begun else {
            ctx.report.counters.dns_failed += 1;
            return Some(failure(asker, &asked, RCODE::ServerFailure));
        };
        let query = DnsQuery {
            key,
            name: question.name,
            message,
            servers,
            attempt,
            until: ctx.now + PATIENCE,
            socket,
            input: Vec::new(),
            sent: false,
        };
        self.queries.insert(key, query);
        None
    }

    /// A server has said something, or that it says nothing.
    pub(crate) fn event(
        &mut self,
        id: FlowId,
        event: PollEvent,
        ctx: &mut FlowContext,
    ) -> Option<DnsAnswer> {
        self.scratch.resize(MAX_STREAMED, 0);
        loop {
            let query = self.queries.get_mut(id)?;
            let message = match receive(query, event, &mut self.scratch) {
                Ok(Some(message)) => message,
                Ok(None) | Err(Errno::AGAIN | Errno::INTR) => return None,
                Err(_) => return self.next_server(id, ctx),
            };
            let (rules, now) = (&mut ctx.rules, ctx.now);
            let (asked, name) = (&query.message, &query.name);
            match dns_message::answer(asked, name, message, rules, now) {
                DnsVerdict::Foreign => {}
                DnsVerdict::Failed => return self.next_server(id, ctx),
                DnsVerdict::Pass => {
                    let mut message = message.to_vec();
                    message[..2].copy_from_slice(&query.key.id.to_be_bytes());
                    let (asker, message) = (query.key.asker, Some(message));
                    self.queries.remove(id);
                    return Some(DnsAnswer { asker, message });
                }
                DnsVerdict::Denied(reason) => {
                    let query = self.queries.remove(id)?;
                    deny(&query.name, reason, ctx);
                    return Some(query.failure(RCODE::NameError));
                }
            }
        }
    }

    /// Asks the next server; the answer that none has answered.
    fn next_server(&mut self, id: FlowId, ctx: &mut FlowContext) -> Option<DnsAnswer> {
        let query = self.queries.get_mut(id)?;
        let (asker, next) = (query.key.asker, query.attempt + 1);
        let token = PollToken::Dns(id);
        let begun = begin(asker, &query.message, &query.servers, next, token, ctx);
        if let Some((attempt, socket)) = begun {
            (query.attempt, query.socket) = (attempt, socket);
            query.until = ctx.now + PATIENCE;
            query.sent = false;
            query.input.clear();
            return None;
        }
        ctx.report.counters.dns_failed += 1;
        let query = self.queries.remove(id)?;
        Some(query.failure(RCODE::ServerFailure))
    }

    /// Asks other servers where the time of one is out.
    pub(crate) fn expire(&mut self, ctx: &mut FlowContext) -> Vec<DnsAnswer> {
        let late = self
            .queries
            .iter()
            .filter(|(.., query)| query.until <= ctx.now);
        let late: Vec<_> = late.map(|(id, ..)| id).collect();
        let answers = late.into_iter().filter_map(|id| self.next_server(id, ctx));
        answers.collect()
    }
}

impl DnsQuery {
    fn failure(mut self, code: RCODE) -> DnsAnswer {
        self.message[..2].copy_from_slice(&self.key.id.to_be_bytes());
        failure(self.key.asker, &self.message, code)
    }
}

fn deny(name: &str, reason: DenyReason, ctx: &mut FlowContext) {
    let to = SocketAddr::new(ctx.wire.gateway.into(), DNS_PORT);
    ctx.report
        .deny(NetProtocol::Dns, to, Some(name), reason, ctx.now);
}

fn failure(asker: DnsAsker, message: &[u8], code: RCODE) -> DnsAnswer {
    let message = dns_message::failure(message, code);
    DnsAnswer { asker, message }
}

/// Asks the first server that can be asked, from the attempt with this number on.
fn begin(
    asker: DnsAsker,
    message: &[u8],
    servers: &[SocketAddr],
    first: usize,
    token: PollToken,
    ctx: &FlowContext,
) -> Option<(usize, OwnedFd)> {
    let attempts = ATTEMPTS.max(servers.len());
    let begin = |attempt: usize| -> Option<OwnedFd> {
        let server = *servers.get(attempt % servers.len().max(1))?;
        let socket = match asker {
            DnsAsker::Datagram { .. } => {
                let socket = host_socket::connect_udp(server).ok()?;
                send(&socket, message, SendFlags::NOSIGNAL).ok()?;
                socket
            }
            DnsAsker::Stream(_) => host_socket::connect_tcp(server).ok()?,
        };
        let watched = ctx.poller.add(&socket, token, Watch::ReadWrite);
        watched.ok().map(|()| socket)
    };
    (first..attempts).find_map(|attempt| begin(attempt).map(|socket| (attempt, socket)))
}

/// One message of a server, if there is a whole one.
fn receive<'a>(
    query: &mut DnsQuery,
    event: PollEvent,
    scratch: &'a mut [u8],
) -> Result<Option<&'a [u8]>, Errno> {
    if matches!(query.key.asker, DnsAsker::Datagram { .. }) {
        let (count, _) = recv(&query.socket, &mut *scratch, RecvFlags::DONTWAIT)?;
        return Ok(Some(&scratch[..count]));
    }
    if !query.sent && event.writable {
        let length = u16::try_from(query.message.len())
            .unwrap_or(0)
            .to_be_bytes();
        let message = [&length[..], &query.message].concat();
        // A socket that is new takes this much, or is no good.
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        if send(&query.socket, &message, flags)? != message.len() {
            return Err(Errno::PIPE);
        }
        query.sent = true;
    }
    loop {
        if let [a, b, body @ ..] = &query.input[..] {
            let length = usize::from(u16::from_be_bytes([*a, *b]));
            if let Some(message) = body.get(..length) {
                scratch[..length].copy_from_slice(message);
                query.input.clear();
                return Ok(Some(&scratch[..length]));
            }
        }
        let (count, _) = recv(&query.socket, &mut *scratch, RecvFlags::DONTWAIT)?;
        if count == 0 || query.input.len() + count > MAX_STREAMED {
            return Err(Errno::PIPE);
        }
        query.input.extend_from_slice(&scratch[..count]);
    }
}
