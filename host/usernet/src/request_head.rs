//! One request's head: whether it may have the headers, and the head with them.

use control::SecretHeader;

/// Most bytes of a request's head, the empty line at its end included.
pub(crate) const MAX_HEAD: usize = 64 * 1024;
/// Most lines of it that are headers.
const MAX_LINES: usize = 128;

/// Why a request is not passed on. Nothing of it is in here but what it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestFault {
    /// It is for another host, or does not say for which one.
    OtherHost,
    /// It is malformed, too long, can be read in two ways, or would be answered with its headers.
    Form,
}

/// What follows a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestBody {
    /// So many bytes.
    Length(u64),
    /// Pieces, each behind its length.
    Chunked,
    /// Nothing; what the connection is from then on is the host's decision.
    Upgrade,
}

/// What a request gets, and for whom it has to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadRule<'a> {
    /// The host's name, in small letters.
    pub(crate) host: &'a str,
    pub(crate) headers: &'a [SecretHeader],
}

/// Where the head ends, behind its empty line; `None`: not yet. Lines end in CRLF: one that does
/// not is read in two ways.
pub(crate) fn head_end(bytes: &[u8], from: usize) -> Result<Option<usize>, RequestFault> {
    for at in from..bytes.len() {
        if bytes[at] != b'\n' {
            continue;
        }
        match bytes[..=at] {
            [.., b'\r', b'\n', b'\r', b'\n'] => return Ok(Some(at + 1)),
            [.., b'\r', b'\n'] => {}
            _ => return Err(RequestFault::Form),
        }
    }
    Ok(None)
}

/// Appends a whole head to `out`, with the rule's headers in place of its own of the same names.
pub(crate) fn rewrite(
    head: &[u8],
    rule: HeadRule<'_>,
    out: &mut Vec<u8>,
) -> Result<RequestBody, RequestFault> {
    let mut lines = [httparse::EMPTY_HEADER; MAX_LINES];
    let mut request = httparse::Request::new(&mut lines);
    match request.parse(head) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        _ => return Err(RequestFault::Form),
    }
    let (Some(method), Some(target), Some(version)) =
        (request.method, request.path, request.version)
    else {
        return Err(RequestFault::Form);
    };
    // TRACE is answered with the request, headers and all. CONNECT and a target with a host of its
    // own are for proxies.
    let to_a_proxy = !target.starts_with('/') && target != "*";
    if matches!(method, "TRACE" | "CONNECT") || to_a_proxy {
        return Err(RequestFault::Form);
    }
    let mut framing = Framing::default();
    let replaced = |name: &str| {
        let named = |header: &SecretHeader| header.name.eq_ignore_ascii_case(name);
        rule.headers.iter().any(named)
    };
    out.extend_from_slice(method.as_bytes());
    out.push(b' ');
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(if version == 1 {
        b" HTTP/1.1\r\n"
    } else {
        b" HTTP/1.0\r\n"
    });
    for header in request.headers.iter() {
        framing.look(header)?;
        // A body follows in any case: a host that refuses it would take it for the next request.
        let expects = header.name.eq_ignore_ascii_case("expect");
        if !replaced(header.name) && !expects {
            line(header.name, header.value, out);
        }
    }
    if !framing.host.is_some_and(|host| is_host(host, rule.host)) {
        return Err(RequestFault::OtherHost);
    }
    for SecretHeader { name, value } in rule.headers {
        line(name, value.expose(), out);
    }
    out.extend_from_slice(b"\r\n");
    framing.body(version)
}

fn line(name: &str, value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Whether a `Host` header is this name, with or without a port.
fn is_host(value: &[u8], name: &str) -> bool {
    let Ok(value) = std::str::from_utf8(value) else {
        return false;
    };
    let host = match value.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => value,
    };
    host.strip_suffix('.')
        .unwrap_or(host)
        .eq_ignore_ascii_case(name)
}

/// What the headers say about the request's host and end. Each may say so once.
#[derive(Default)]
struct Framing<'a> {
    host: Option<&'a [u8]>,
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
    to_upgrade: bool,
}

impl<'a> Framing<'a> {
    fn look(&mut self, header: &httparse::Header<'a>) -> Result<(), RequestFault> {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        let value = header.value.trim_ascii();
        if is("host") {
            if self.host.replace(value).is_some() {
                return Err(RequestFault::Form);
            }
        } else if is("content-length") {
            let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
            let number = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok());
            let length = number.filter(|_| digits).ok_or(RequestFault::Form)?;
            if self.length.replace(length).is_some() {
                return Err(RequestFault::Form);
            }
        } else if is("transfer-encoding") {
            if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(RequestFault::Form);
            }
            self.chunked = true;
        } else if is("upgrade") {
            self.upgrade = true;
        } else if is("connection") {
            let mut options = value.split(|b| *b == b',');
            let named = |option: &[u8]| option.trim_ascii().eq_ignore_ascii_case(b"upgrade");
            self.to_upgrade |= options.any(named);
        }
        Ok(())
    }

    fn body(self, version: u8) -> Result<RequestBody, RequestFault> {
        let upgrades = self.upgrade && self.to_upgrade && version == 1;
        match (self.length, self.chunked) {
            (None | Some(0), false) if upgrades => Ok(RequestBody::Upgrade),
            // Also where some hosts would change the protocol and others would not.
            (_, _) if self.upgrade => Err(RequestFault::Form),
            (length, false) => Ok(RequestBody::Length(length.unwrap_or(0))),
            (None, true) if version == 1 => Ok(RequestBody::Chunked),
            (_, true) => Err(RequestFault::Form),
        }
    }
}
