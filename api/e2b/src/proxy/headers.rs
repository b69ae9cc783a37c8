//! What a program is told of a request, and a client of its answer: everything but what concerns
//! one connection, what is ours, and what the client says of itself that we know better.

use crate::linger::LingeringBody;
use crate::proxy::access::TOKEN_HEADER;
use crate::slots;
use engine::sandbox::Sandbox;
use hyper::body::Body as _;
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, EXPECT, HOST, HeaderName, HeaderValue,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};
use hyper::http::uri::{Authority, PathAndQuery, Scheme};
use hyper::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};

/// Headers between two neighbours (RFC 9110 §7.6.1), beside what `Connection` names.
const OF_ONE_CONNECTION: [HeaderName; 8] = [
    CONNECTION,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];
/// What tells this server where a request goes, and that it may.
const OURS: [&str; 3] = ["e2b-sandbox-id", "e2b-sandbox-port", TOKEN_HEADER];
/// What is said of a client is said by us.
const FORWARDED_BY_US: [&str; 3] = [FORWARDED_FOR, FORWARDED_PROTO, FORWARDED_HOST];
const FORWARDED_FOR: &str = "x-forwarded-for";
const FORWARDED_PROTO: &str = "x-forwarded-proto";
const FORWARDED_HOST: &str = "x-forwarded-host";
/// What else others say of where a request came from.
const OTHERS: [&str; 5] = [
    "forwarded",
    "x-real-ip",
    "x-forwarded-port",
    "x-forwarded-server",
    "x-forwarded-prefix",
];

/// What is to be known of a request that has been made ready.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProgramRequest {
    /// A call of gRPC that came over HTTP/2, and goes on over it.
    pub(super) grpc: bool,
    /// Its answer has no body.
    pub(super) is_head: bool,
}

/// Whether a list of words, as `Connection` is, has this one.
fn names(headers: &HeaderMap, list: HeaderName, word: &str) -> bool {
    let values = headers.get_all(list).into_iter();
    let mut words = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','));
    words.any(|found| found.trim().eq_ignore_ascii_case(word))
}

/// The protocol that a request asks its connection to change to, if it may. HTTP/2 is none of them:
/// requests in such a tunnel would not be looked at.
pub(super) fn upgrade<B>(request: &Request<B>) -> Option<HeaderValue> {
    let headers = request.headers();
    if request.version() != Version::HTTP_11 || !names(headers, CONNECTION, "upgrade") {
        return None;
    }
    let mut asked = headers.get_all(UPGRADE).into_iter();
    let (first, second) = (asked.next()?, asked.next());
    let text = first.to_str().ok()?.trim();
    let one = second.is_none() && !text.is_empty() && !text.contains(',');
    let lower = text.to_ascii_lowercase();
    let http = lower.starts_with("h2") || lower.starts_with("http");
    (one && !http).then(|| first.clone())
}

/// Whether the program has changed to the protocol that was asked for.
pub(super) fn is_upgraded<B>(response: &Response<B>, protocol: &HeaderValue) -> bool {
    let changed = response.headers().get(UPGRADE);
    changed.is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(protocol.as_bytes()))
}

/// Removes what concerns one connection.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&OF_ONE_CONNECTION) {
        headers.remove(name);
    }
}

/// Removes what is not for programs or not to be believed, also as it is written for programs that
/// take `_` for `-`, as those behind CGI and WSGI do.
fn strip_ours(headers: &mut HeaderMap) {
    let ours = |name: &HeaderName| {
        let name = name.as_str().replace('_', "-");
        let all = OURS.iter().chain(&OTHERS).chain(&FORWARDED_BY_US);
        all.into_iter().any(|ours| *ours == name)
    };
    let found: Vec<_> = headers.keys().filter(|name| ours(name)).cloned().collect();
    for name in found {
        headers.remove(name);
    }
}

/// Makes a request ready for the program on this port.
pub(super) fn for_program(
    request: &mut Request<LingeringBody>,
    sandbox: &Sandbox,
    port: u16,
    upgrade: Option<&HeaderValue>,
) -> ProgramRequest {
    let over_http2 = request.version() == Version::HTTP_2;
    let content = request.headers().get(CONTENT_TYPE);
    let is_grpc = content.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    let client = slots::client(request);
    let asked_host = host(request);
    let mask = sandbox.ingress.mask_host.as_deref();
    let masked = mask.and_then(|mask| mask.replace("${PORT}", &port.to_string()).parse().ok());
    let seen_host: Option<HeaderValue> = masked.or_else(|| asked_host.clone());
    // HTTP/2 needs a host.
    let grpc = over_http2 && is_grpc && seen_host.is_some();
    let length = request.headers().contains_key(CONTENT_LENGTH);
    let trailers = names(request.headers(), TE, "trailers");
    let (size, empty) = (request.body().size_hint(), request.body().is_end_stream());

    let headers = request.headers_mut();
    strip(headers);
    strip_ours(headers);
    // The body is cut anew, as it was read.
    headers.remove(CONTENT_LENGTH);
    match size.exact() {
        Some(exact) if length => drop(headers.insert(CONTENT_LENGTH, exact.into())),
        None if !empty && !grpc => {
            headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        _ => {}
    }
    // Ours answers it when the body is read.
    headers.remove(EXPECT);
    set(headers, FORWARDED_HOST, asked_host);
    let (address, scheme) = client.map_or((None, "http"), |client| {
        let scheme = if client.tls { "https" } else { "http" };
        (client.address.to_string().parse().ok(), scheme)
    });
    set(headers, FORWARDED_FOR, address);
    let scheme = HeaderValue::from_static(scheme);
    headers.insert(FORWARDED_PROTO, scheme);
    set(headers, HOST.as_str(), seen_host.clone());
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if over_http2 && !grpc {
        join_cookies(headers);
    }
    if !grpc {
        let end = HeaderValue::from_static("close");
        let change = HeaderValue::from_static("Upgrade");
        headers.insert(CONNECTION, upgrade.map_or(end, |_| change));
        if let Some(protocol) = upgrade {
            headers.insert(UPGRADE, protocol.clone());
        }
    }
    retarget(request, seen_host.as_ref().filter(|_| grpc));
    ProgramRequest {
        grpc,
        is_head: request.method() == Method::HEAD,
    }
}

fn set(headers: &mut HeaderMap, name: &str, value: Option<HeaderValue>) {
    let name = HeaderName::from_bytes(name.as_bytes());
    if let Ok(name) = name {
        headers.remove(&name);
        if let Some(value) = value {
            headers.insert(name, value);
        }
    }
}

/// The host as the client named it.
fn host<B>(request: &Request<B>) -> Option<HeaderValue> {
    match request.uri().authority() {
        Some(authority) => authority.as_str().parse().ok(),
        None => request.headers().get(HOST).cloned(),
    }
}

/// HTTP/1.1 has one line of cookies (RFC 9113 §8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let all: Vec<_> = headers.get_all(COOKIE).into_iter().collect();
    if all.len() < 2 {
        return;
    }
    let bytes: Vec<_> = all.iter().map(|value| value.as_bytes()).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&bytes.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

/// The path alone for HTTP/1.1; with a host for HTTP/2.
fn retarget<B>(request: &mut Request<B>, host: Option<&HeaderValue>) {
    let root = PathAndQuery::from_static("/");
    let path = request.uri().path_and_query().cloned().unwrap_or(root);
    let authority = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    *request.uri_mut() = match authority {
        Some(authority) => {
            let mut parts = hyper::http::uri::Parts::default();
            parts.scheme = Some(Scheme::HTTP);
            parts.authority = Some(authority);
            parts.path_and_query = Some(path);
            request.headers_mut().remove(HOST);
            *request.version_mut() = Version::HTTP_2;
            Uri::from_parts(parts).unwrap_or_default()
        }
        None => {
            *request.version_mut() = Version::HTTP_11;
            Uri::from(path)
        }
    };
}

/// Makes a program's answer ready for the client.
pub(super) fn for_client<B>(response: &mut Response<B>, is_head: bool) {
    let cut = response.headers().contains_key(TRANSFER_ENCODING);
    strip(response.headers_mut());
    // The length of a body that is not there is only told; that of one that is, is counted.
    let told = is_head || response.status() == StatusCode::NOT_MODIFIED;
    if cut || !told {
        response.headers_mut().remove(CONTENT_LENGTH);
    }
}

/// The same of the answer to an upgrade.
pub(super) fn for_upgraded<B>(response: &mut Response<B>, protocol: &HeaderValue) {
    for_client(response, false);
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, protocol.clone());
}

#[cfg(test)]
mod test {
    use super::*;

    fn asked(version: Version, headers: &[(&str, &str)]) -> Option<HeaderValue> {
        let mut request = Request::builder().version(version);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        upgrade(&request.body(()).unwrap())
    }

    #[test]
    fn an_upgrade_is_one_protocol_that_is_not_http() {
        let change = ("connection", "keep-alive, Upgrade");
        let socket = ("upgrade", "websocket");
        let http1 = Version::HTTP_11;
        assert_eq!(asked(http1, &[change, socket]).unwrap(), "websocket");
        assert!(asked(http1, &[socket]).is_none());
        assert!(asked(http1, &[change]).is_none());
        assert!(asked(http1, &[change, socket, socket]).is_none());
        assert!(asked(Version::HTTP_10, &[change, socket]).is_none());
        assert!(asked(Version::HTTP_2, &[change, socket]).is_none());
        for http in ["h2c", "H2C", "http/2.0", "websocket, h2c", "", "é"] {
            assert!(
                asked(http1, &[change, ("upgrade", http)]).is_none(),
                "{http}"
            );
        }
    }

    #[test]
    fn what_concerns_one_connection_goes_and_the_rest_stays() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-One"),
            ("connection", "x-two, not a name"),
            ("x-one", "1"),
            ("x-two", "2"),
            ("x-three", "3"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "x"),
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
        ] {
            headers.append(name, value.parse().unwrap());
        }
        strip(&mut headers);
        let left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["x-three", "set-cookie"]);
        assert_eq!(headers.get_all("set-cookie").iter().count(), 2);
    }

    #[test]
    fn a_length_is_told_only_where_there_is_no_body() {
        let length = |status: u16, cut: bool, is_head: bool| {
            let mut response = Response::builder()
                .status(status)
                .header(CONTENT_LENGTH, "5");
            if cut {
                response = response.header(TRANSFER_ENCODING, "chunked");
            }
            let mut response = response.body(()).unwrap();
            for_client(&mut response, is_head);
            response.headers().contains_key(CONTENT_LENGTH)
        };
        assert!(length(200, false, true) && length(304, false, false));
        assert!(!length(200, false, false) && !length(200, true, true));
    }
}
