//! The name that a flow says it wants: TLS server name, or HTTP host.

/// Most bytes of a flow that are looked at. A `ClientHello` with post-quantum keys has 2 KiB.
pub(crate) const MAX_SNIFF: usize = 8 * 1024;

const RECORD_HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const EXTENSION_SERVER_NAME: u16 = 0;
const METHODS: &[&[u8]] = &[
    b"GET ",
    b"POST ",
    b"PUT ",
    b"HEAD ",
    b"DELETE ",
    b"OPTIONS ",
    b"PATCH ",
    b"CONNECT ",
    b"TRACE ",
];

/// What the first bytes of a flow say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sniffed {
    /// Not enough yet.
    More,
    /// The only name of a TLS or HTTP flow, in small letters.
    Name(String),
    /// TLS or HTTP without a name, with two, or not well formed.
    Nameless,
    /// Something else.
    Other,
}

/// Whether a flow that has said its name speaks TLS.
pub(crate) fn is_tls(bytes: &[u8]) -> bool {
    bytes.first() == Some(&RECORD_HANDSHAKE)
}

/// Looks at the first bytes of a flow.
pub(crate) fn sniff(bytes: &[u8]) -> Sniffed {
    let full = bytes.len() >= MAX_SNIFF;
    let said = match bytes {
        [] => Sniffed::More,
        [RECORD_HANDSHAKE, 3, ..] | [RECORD_HANDSHAKE] => client_hello(bytes),
        _ => http(bytes),
    };
    match said {
        Sniffed::More if full => Sniffed::Nameless,
        said => said,
    }
}

/// Takes a name as rules want it.
fn name(bytes: &[u8]) -> Sniffed {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.is_empty() && bytes.iter().all(plain) => {
            let text = text.strip_suffix('.').unwrap_or(text);
            Sniffed::Name(text.to_ascii_lowercase())
        }
        _ => Sniffed::Nameless,
    }
}

/// Reads big-endian fields; `None` beyond the end.
struct FieldReader<'a>(&'a [u8]);

impl<'a> FieldReader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    /// A number of `count` bytes.
    fn number(&mut self, count: usize) -> Option<usize> {
        let bytes = self.take(count)?;
        Some(bytes.iter().fold(0, |n, b| n << 8 | usize::from(*b)))
    }

    /// A field behind its length of `count` bytes.
    fn field(&mut self, count: usize) -> Option<&'a [u8]> {
        let length = self.number(count)?;
        self.take(length)
    }
}

fn client_hello(bytes: &[u8]) -> Sniffed {
    // A handshake message may be cut into records.
    let mut message = Vec::new();
    let mut records = FieldReader(bytes);
    let whole = loop {
        if let [CLIENT_HELLO, a, b, c, body @ ..] = &message[..] {
            let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            if length > MAX_SNIFF {
                return Sniffed::Nameless;
            }
            if let Some(body) = body.get(..length) {
                break body;
            }
        } else if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Sniffed::Nameless;
        }
        let Some(head) = records.take(3) else {
            return Sniffed::More;
        };
        if !matches!(head, [RECORD_HANDSHAKE, 3, _]) {
            return Sniffed::Nameless;
        }
        let Some(length) = records.number(2) else {
            return Sniffed::More;
        };
        if length == 0 {
            return Sniffed::Nameless;
        }
        let part = records.0;
        message.extend_from_slice(part.get(..length).unwrap_or(part));
        if records.take(length).is_none() {
            records.0 = &[];
        }
    };
    server_name(whole).unwrap_or(Sniffed::Nameless)
}

/// The only server name of a whole `ClientHello`; `None` if it is not well formed.
fn server_name(hello: &[u8]) -> Option<Sniffed> {
    let mut hello = FieldReader(hello);
    hello.take(2 + 32)?; // version, random
    hello.field(1)?; // session
    hello.field(2)?; // ciphers
    hello.field(1)?; // compressions
    if hello.0.is_empty() {
        return Some(Sniffed::Nameless);
    }
    let mut extensions = FieldReader(hello.field(2)?);
    let mut found = None;
    while !extensions.0.is_empty() {
        let kind = extensions.number(2)?;
        let body = extensions.field(2)?;
        if kind == usize::from(EXTENSION_SERVER_NAME) {
            let mut names = FieldReader(FieldReader(body).field(2)?);
            let is_host = names.number(1)? == 0;
            let host = names.field(2)?;
            if found.is_some() || !is_host || !names.0.is_empty() {
                return None;
            }
            found = Some(host);
        }
    }
    Some(found.map_or(Sniffed::Nameless, name))
}

fn http(bytes: &[u8]) -> Sniffed {
    let starts = |method: &&&[u8]| {
        let common = method.len().min(bytes.len());
        method[..common] == bytes[..common]
    };
    match METHODS.iter().find(starts) {
        None => return Sniffed::Other,
        Some(method) if method.len() > bytes.len() => return Sniffed::More,
        Some(_) => {}
    }
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Sniffed::More;
    };
    let mut lines = bytes[..end].split(|b| *b == b'\n');
    let request = lines.next().unwrap_or_default();
    let target = request.split(|b| *b == b' ').nth(1).unwrap_or_default();
    let mut hosts = Vec::new();
    if let Some(at) = target.windows(3).position(|three| three == b"://") {
        let authority = target[at + 3..].split(|b| matches!(b, b'/' | b'?' | b'#'));
        hosts.push(authority.into_iter().next().unwrap_or_default());
    } else if request.starts_with(b"CONNECT ") {
        hosts.push(target);
    }
    for line in lines {
        // A line that goes on with the one before, or is no field, hides what a server may read.
        let Some(colon) = line.iter().position(|b| *b == b':') else {
            return Sniffed::Nameless;
        };
        if line.first().is_some_and(u8::is_ascii_whitespace) {
            return Sniffed::Nameless;
        }
        let (field, value) = (&line[..colon], &line[colon + 1..]);
        if field.trim_ascii().eq_ignore_ascii_case(b"host") {
            hosts.push(value.trim_ascii());
        }
    }
    let mut names: Vec<_> = hosts
        .into_iter()
        .map(|host| name(without_port(host)))
        .collect();
    names.dedup();
    match names.pop() {
        Some(only) if names.is_empty() => only,
        _ => Sniffed::Nameless,
    }
}

fn without_port(host: &[u8]) -> &[u8] {
    match host.iter().rposition(|b| *b == b':') {
        Some(colon) if host[colon + 1..].iter().all(u8::is_ascii_digit) => &host[..colon],
        _ => host,
    }
}

#[cfg(test)]
pub(crate) mod test {
    use super::*;
    use proptest::prelude::*;

    /// A `ClientHello` in one record, with this server name.
    pub(crate) fn hello(name: Option<&str>) -> Vec<u8> {
        let sized = |count: usize, body: &[u8]| {
            let length = body.len().to_be_bytes();
            [&length[8 - count..], body].concat()
        };
        let mut extensions = vec![0, 43, 0, 3, 2, 3, 4];
        if let Some(name) = name {
            let host = [&[0][..], &sized(2, name.as_bytes())].concat();
            extensions.extend([0, 0]);
            extensions.extend(sized(2, &sized(2, &host)));
        }
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend(sized(1, &[1; 32]));
        body.extend(sized(2, &[0x13, 1]));
        body.extend(sized(1, &[0]));
        body.extend(sized(2, &extensions));
        let message = [&[CLIENT_HELLO][..], &sized(3, &body)].concat();
        [&[RECORD_HANDSHAKE, 3, 1][..], &sized(2, &message)].concat()
    }

    fn named(name: &str) -> Sniffed {
        Sniffed::Name(name.to_owned())
    }

    #[test]
    fn tls_says_its_server() {
        let bytes = hello(Some("Example.COM"));
        assert_eq!(sniff(&bytes), named("example.com"));
        for end in 0..bytes.len() {
            assert_eq!(sniff(&bytes[..end]), Sniffed::More, "{end}");
        }
        assert_eq!(sniff(&hello(None)), Sniffed::Nameless);
        assert_eq!(sniff(&hello(Some("a b"))), Sniffed::Nameless);
        assert_eq!(sniff(&hello(Some(""))), Sniffed::Nameless);
    }

    #[test]
    fn tls_in_many_records_says_the_same() {
        let bytes = hello(Some("example.com"));
        let mut cut = Vec::new();
        for part in bytes[5..].chunks(7) {
            cut.extend([RECORD_HANDSHAKE, 3, 1, 0, u8::try_from(part.len()).unwrap()]);
            cut.extend(part);
        }
        assert_eq!(sniff(&cut), named("example.com"));
        let other = [&cut[..12], &[23, 3, 3, 0, 1, 0]].concat();
        assert_eq!(sniff(&other), Sniffed::Nameless);
    }

    #[test]
    fn http_says_its_host() {
        for (text, said) in [
            (
                "GET / HTTP/1.1\r\nHost: A.example.com:8080\r\n\r\n",
                named("a.example.com"),
            ),
            (
                "GET / HTTP/1.1\r\nAccept: */*\r\nhost:b.net\r\n\r\nbody",
                named("b.net"),
            ),
            (
                "GET http://c.net/x HTTP/1.1\r\nHost: c.net\r\n\r\n",
                named("c.net"),
            ),
            ("CONNECT c.net:443 HTTP/1.1\r\n\r\n", named("c.net")),
            (
                "GET http://c.net/x HTTP/1.1\r\nHost: d.net\r\n\r\n",
                Sniffed::Nameless,
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
                Sniffed::Nameless,
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\n b: c\r\n\r\n",
                Sniffed::Nameless,
            ),
            ("GET / HTTP/1.0\r\n\r\n", Sniffed::Nameless),
            ("GET / HTTP/1.1\r\nHost: a", Sniffed::More),
            ("PO", Sniffed::More),
            ("PRI * HTTP/2.0\r\n\r\n", Sniffed::Other),
            ("SSH-2.0-x\r\n", Sniffed::Other),
            ("", Sniffed::More),
        ] {
            assert_eq!(sniff(text.as_bytes()), said, "{text:?}");
        }
        let endless = [&b"GET / HTTP/1.1\r\n"[..], &[b'a'; MAX_SNIFF]].concat();
        assert_eq!(sniff(&endless), Sniffed::Nameless);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = sniff(&bytes);
            let _ = sniff(&[&[22, 3, 1], &bytes[..]].concat());
            let mut hello = hello(Some("example.com"));
            for (at, byte) in bytes.iter().enumerate() {
                let length = hello.len();
                hello[at * 7 % length] ^= byte;
            }
            let _ = sniff(&hello);
        }
    }
}
