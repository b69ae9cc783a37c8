//! One flow whose TLS is ended here: the guest's on one side, the host's on the other, and requests
//! that get their headers between.
//!
//! ```text
//!  guest ═ TLS by the sandbox's authority ═> requests ─> head with headers ═ TLS, verified ═> host
//!        <═══════════════════════════════════ answers as they are <════════════════════════════
//! ```
//!
//! The host's handshake comes first, while the guest's first message waits: a host that is not what
//! it says is known before the guest has sent a request. What one side does not take is not read
//! from the other: every buffer between has a limit, and a full one ends the reading.

use crate::intercept_fault::InterceptFault;
use crate::interception::{HostOpening, HostRule, Interception};
use crate::request_head::{HeadRule, RequestFault};
use crate::request_stream::RequestStream;
use crate::tls_io::{HostSide, SocketWriter};
use rustls::{ClientConnection, Error, ServerConnection};
use smoltcp::socket::tcp::{Socket, State};
use std::io::{self, BufRead, ErrorKind, Write};
use std::sync::Arc;

/// Most bytes of each direction that are sealed and not yet taken.
const SEALED: usize = 32 * 1024;
/// What a guest hears whose handshake does not begin: a fatal alert, `handshake_failure`.
const HANDSHAKE_FAILURE: [u8; 7] = [21, 3, 3, 0, 2, 2, 40];

/// How one side's bytes have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TlsEnd {
    /// They go on.
    Open,
    /// It said so.
    Said,
    /// Its connection has ended, and it had not said so.
    Cut,
}

/// Such a flow.
pub(crate) struct InterceptedFlow {
    name: String,
    rule: HostRule,
    host: ClientConnection,
    /// Once the host is verified.
    guest: Option<ServerConnection>,
    requests: RequestStream,
    /// What the host is to hear, and how much of it has been sealed.
    out: Vec<u8>,
    sealed: usize,
    guest_end: TlsEnd,
    host_end: TlsEnd,
    /// The ends have been passed on.
    host_told: bool,
    guest_told: bool,
    _held: Arc<()>,
}

impl std::fmt::Debug for InterceptedFlow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InterceptedFlow")
            .field("name", &self.name)
            .field("requests", &self.requests)
            .finish_non_exhaustive()
    }
}

impl InterceptedFlow {
    /// One that begins: the host's handshake is next.
    pub(crate) fn new(name: &str, rule: HostRule, opening: HostOpening) -> Self {
        let HostOpening {
            connection: mut host,
            held,
        } = opening;
        host.set_buffer_limit(Some(SEALED));
        Self {
            name: name.to_owned(),
            rule,
            host,
            guest: None,
            requests: RequestStream::new(),
            out: Vec::new(),
            sealed: 0,
            guest_end: TlsEnd::Open,
            host_end: TlsEnd::Open,
            host_told: false,
            guest_told: false,
            _held: held,
        }
    }

    /// Whether its requests get what other rules say.
    pub(crate) fn follows(&self, interception: &Interception) -> bool {
        interception.rule(&self.name) == Some(&*self.rule)
    }

    /// Moves what can be moved, both ways. `guest_ended`: the guest's connection says nothing more.
    pub(crate) fn turn(
        &mut self,
        socket: &mut Socket<'_>,
        host: &mut HostSide<'_>,
        interception: &mut Interception,
        guest_ended: bool,
    ) -> Result<(), InterceptFault> {
        loop {
            self.tell_host(host)?;
            let mut moved = self.hear_host(host)?;
            if self.guest.is_none() && !self.host.is_handshaking() {
                let mut guest = interception.accept(&self.name)?;
                guest.set_buffer_limit(Some(SEALED));
                self.guest = Some(guest);
                moved = true;
            }
            moved |= self.hear_guest(socket)?;
            self.tell_host(host)?;
            moved |= self.tell_guest(socket)?;
            if !moved {
                break;
            }
        }
        let silent = guest_ended && !socket.can_recv();
        if self.is_in_vain(guest_ended, silent) {
            Err(InterceptFault::Lost)
        } else {
            Ok(())
        }
    }

    /// Whether nobody waits for it any more: the guest has gone before its handshake was over, or
    /// the host before it has answered an upgrade.
    fn is_in_vain(&self, guest_ended: bool, guest_silent: bool) -> bool {
        match &self.guest {
            None => guest_ended,
            Some(guest) if guest.is_handshaking() => guest_silent || self.guest_end != TlsEnd::Open,
            Some(_) => self.host_end != TlsEnd::Open && self.requests.is_upgrading(),
        }
    }

    /// Whether all that the guest had to say is on its way to the host.
    pub(crate) fn host_is_told(&self) -> bool {
        self.host_told && !self.host.wants_write()
    }

    /// Whether all that the host had to say is on its way to the guest.
    pub(crate) fn guest_is_told(&self) -> bool {
        self.guest_told && self.guest.as_ref().is_none_or(|guest| !guest.wants_write())
    }

    /// Tells the guest, as far as it can be told, why its flow ends here.
    pub(crate) fn refuse(&mut self, fault: InterceptFault, socket: &mut Socket<'_>) {
        let Some(guest) = &mut self.guest else {
            let _ = socket.send_slice(&HANDSHAKE_FAILURE);
            return;
        };
        if let InterceptFault::Request(fault) = fault
            && self.requests.is_first()
        {
            let _ = guest.writer().write_all(refusal(fault).as_bytes());
            guest.send_close_notify();
        }
        while guest.wants_write() && socket.can_send() {
            if guest.write_tls(&mut SocketWriter(socket)).is_err() {
                return;
            }
        }
    }

    /// Sends sealed bytes to the host, and seals what waits.
    fn tell_host(&mut self, host: &mut HostSide<'_>) -> Result<(), InterceptFault> {
        loop {
            while *host.writable && self.host.wants_write() {
                match self.host.write_tls(host) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(_) => return Err(InterceptFault::Lost),
                }
            }
            if self.out.is_empty() {
                break;
            }
            let rest = &self.out[self.sealed..];
            let taken = self.host.writer().write(rest).map_err(lost)?;
            self.sealed += taken;
            if self.sealed == self.out.len() {
                self.out.clear();
                self.out.shrink_to(SEALED);
                self.sealed = 0;
            } else if taken == 0 {
                return Ok(());
            }
        }
        if self.guest_end != TlsEnd::Open && !self.host_told {
            self.host_told = true;
            if self.guest_end == TlsEnd::Said {
                self.host.send_close_notify();
            }
            return self.tell_host(host);
        }
        Ok(())
    }

    /// Opens what the host has sent, as far as the guest takes it.
    fn hear_host(&mut self, host: &mut HostSide<'_>) -> Result<bool, InterceptFault> {
        let mut moved = false;
        while self.pass_answers(&mut moved)? && *host.readable && self.host_end == TlsEnd::Open {
            match self.host.read_tls(host) {
                Ok(_) => moved = true,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return Err(InterceptFault::Lost),
            }
            if let Err(error) = self.host.process_new_packets() {
                // It hears why.
                let _ = self.host.write_tls(host);
                return Err(match error {
                    Error::InvalidCertificate(_) | Error::NoCertificatesPresented => {
                        InterceptFault::Untrusted
                    }
                    _ => InterceptFault::HostTls,
                });
            }
            if self.guest.is_none() && !self.host.is_handshaking() {
                break;
            }
        }
        Ok(moved)
    }

    /// Seals the host's answers for the guest; whether all of them.
    fn pass_answers(&mut self, moved: &mut bool) -> Result<bool, InterceptFault> {
        let Some(guest) = &mut self.guest else {
            let eof = matches!(
                self.host.reader().fill_buf(),
                Err(error) if error.kind() == ErrorKind::UnexpectedEof
            );
            return if eof {
                Err(InterceptFault::HostTls)
            } else {
                Ok(true)
            };
        };
        if guest.is_handshaking() {
            return Ok(false);
        }
        let mut reader = self.host.reader();
        loop {
            let chunk = match reader.fill_buf() {
                Ok([]) => {
                    self.host_end = TlsEnd::Said;
                    break;
                }
                Ok(chunk) => chunk,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(_) => {
                    self.host_end = TlsEnd::Cut;
                    break;
                }
            };
            let taken = guest.writer().write(chunk).map_err(lost)?;
            if taken == 0 {
                return Ok(false);
            }
            *moved = true;
            let answered = self.requests.answered(&chunk[..taken]);
            answered.map_err(InterceptFault::Request)?;
            reader.consume(taken);
        }
        if !self.guest_told {
            self.guest_told = true;
            *moved = true;
            if self.host_end == TlsEnd::Said {
                guest.send_close_notify();
            }
        }
        Ok(true)
    }

    /// Opens what the guest has sent, as far as the host takes it.
    fn hear_guest(&mut self, socket: &mut Socket<'_>) -> Result<bool, InterceptFault> {
        let Some(guest) = &mut self.guest else {
            return Ok(false);
        };
        let rule = HeadRule {
            host: &self.name,
            headers: &self.rule.headers,
        };
        let mut moved = false;
        while self.out.is_empty() && self.guest_end == TlsEnd::Open {
            let taken = match guest.reader().fill_buf() {
                Ok([]) => {
                    self.guest_end = TlsEnd::Said;
                    break;
                }
                Ok(chunk) => {
                    let taken = self.requests.push(chunk, rule, &mut self.out);
                    Some(taken.map_err(InterceptFault::Request)?)
                }
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                    self.guest_end = TlsEnd::Cut;
                    break;
                }
                Err(_) => None,
            };
            match taken {
                // Until the host has answered.
                Some(0) => break,
                Some(taken) => guest.reader().consume(taken),
                None if open_bytes(guest, socket)? => {}
                None => break,
            }
            moved = true;
        }
        Ok(moved)
    }

    /// Sends sealed bytes to the guest.
    fn tell_guest(&mut self, socket: &mut Socket<'_>) -> Result<bool, InterceptFault> {
        let Some(guest) = &mut self.guest else {
            return Ok(false);
        };
        let mut moved = false;
        while guest.wants_write() && socket.can_send() {
            let taken = guest.write_tls(&mut SocketWriter(socket)).map_err(lost)?;
            moved |= taken > 0;
        }
        Ok(moved)
    }
}

/// Opens some of what the guest's socket has, or sees its end; whether there was anything.
fn open_bytes(
    guest: &mut ServerConnection,
    socket: &mut Socket<'_>,
) -> Result<bool, InterceptFault> {
    let opened = !matches!(socket.state(), State::Listen | State::SynReceived);
    if socket.can_recv() {
        let read = socket.recv(|bytes| {
            let (length, mut rest) = (bytes.len(), &*bytes);
            let read = guest.read_tls(&mut rest);
            (length - rest.len(), read)
        });
        read.map_err(|_| InterceptFault::Lost)?.map_err(lost)?;
    } else if !socket.may_recv() && opened {
        guest.read_tls(&mut io::empty()).map_err(lost)?;
    } else {
        return Ok(false);
    }
    let processed = guest.process_new_packets();
    processed.map_err(|_| InterceptFault::GuestTls)?;
    Ok(true)
}

fn lost(_: io::Error) -> InterceptFault {
    InterceptFault::Lost
}

/// What a guest reads whose first request is not passed on.
fn refusal(fault: RequestFault) -> String {
    let (status, why) = match fault {
        RequestFault::OtherHost => (
            "403 Forbidden",
            "the request's Host is not the name that its connection is for",
        ),
        RequestFault::Form => (
            "400 Bad Request",
            "the request is malformed, too long, for a proxy, or can be read in two ways",
        ),
    };
    let text = format!("Hatchery adds headers to requests to this host: {why}\n");
    let head = "Content-Type: text/plain\r\nConnection: close";
    let length = text.len();
    format!("HTTP/1.1 {status}\r\n{head}\r\nContent-Length: {length}\r\n\r\n{text}")
}
