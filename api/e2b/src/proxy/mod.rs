//! Ports of a sandbox other than envd's: HTTP to the program that listens there
//! (api/PROTOCOL.md §2.4).
//!
//! ```text
//! client ──request──> headers ──> upstream ──hyper's client──> PortStream ═link═> program
//!        <─response── headers <── upstream <─     (over TLS: program_tls)
//!        <═════════════════════ tunnel ═════════════════════> after an upgrade
//! ```
//!
//! Each request has a connection of its own inside the guest, which ends with it: nothing that was
//! sent to a machine before a reset, a fork or a resume can be answered after it, and no program
//! holds a connection that another client's request comes on. Both ends are parsed and written by
//! hyper, so that no program sees another request than the one that was let in.

mod access;
mod headers;
mod idle;
mod program_tls;
mod tunnel;
mod upstream;

pub(crate) use access::may_enter;

use crate::error::ProxyError;
use crate::linger::LingeringBody;
use crate::options::ServerOptions;
use crate::{Body, slots};
use engine::sandbox::Sandbox;
use hyper::{Method, Request, Response, StatusCode};
use idle::IdleStream;
use link::{LinkError, PortStream};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

/// Longest wait for a program to take a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// The kernel's number for a port on which nobody listens (`errno(3)`).
const REFUSED: i32 = 111;

/// Answers a request with what the program on this port answers.
///
/// # Errors
/// [`ProxyError`]: nobody listens there, too many connections are open, or the program broke off.
pub(crate) async fn serve(
    options: &ServerOptions,
    sandbox: &Arc<Sandbox>,
    port: u16,
    mut request: Request<LingeringBody>,
) -> Result<Response<Body>, ProxyError> {
    if request.method() == Method::CONNECT {
        return Err(ProxyError::NoTunnel);
    }
    let upgrade = headers::upgrade(&request);
    let head = headers::for_program(&mut request, sandbox, port, upgrade.as_ref());
    let stream = connect(options, sandbox, port).await?;
    // Who knows the id of a sandbox and a port that is open is no stranger.
    slots::accepted(&request);
    let stream = IdleStream::new(stream, options.idle_timeout);
    let stream = if sandbox.facts.ingress.tls_ports.contains(&port) {
        Either::Right(tls(sandbox, port, stream, head.grpc).await?)
    } else {
        Either::Left(stream)
    };
    let failed = |error: upstream::UpstreamError| error.told(&sandbox.id, port, options);
    if head.grpc {
        return upstream::http2(stream, request).await.map_err(failed);
    }
    let client = hyper::upgrade::on(&mut request);
    let connection = upgrade.as_ref().and_then(|_| slots::upgradable(&request));
    let sent = upstream::http1(stream, request).await;
    let (response, driven) = sent.map_err(failed)?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(upstream::answer(response, driven, head.is_head));
    }
    let protocol = upgrade.filter(|protocol| headers::is_upgraded(&response, protocol));
    match (protocol, connection) {
        (Some(protocol), Some(connection)) => {
            let both = (client, driven);
            Ok(tunnel::begin(
                sandbox, connection, both, response, &protocol,
            ))
        }
        _ => {
            let why = "it changed to a protocol that was not asked for";
            Err(ProxyError::broken(&sandbox.id, port, why))
        }
    }
}

/// A connection to the program.
async fn connect(
    options: &ServerOptions,
    sandbox: &Sandbox,
    port: u16,
) -> Result<PortStream, ProxyError> {
    let most = options.max_port_connections;
    let id = || sandbox.id.clone();
    let made = sandbox.link.connect_port(port, most);
    match tokio::time::timeout(CONNECT, made).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(LinkError::PortsBusy(most))) => Err(ProxyError::TooManyPorts { id: id(), most }),
        Ok(Err(error)) if error.refusal().is_some_and(|r| r.errno == REFUSED) => {
            Err(ProxyError::PortClosed { id: id(), port })
        }
        Ok(Err(error)) => Err(ProxyError::broken(&sandbox.id, port, &words(&error))),
        Err(_) => {
            let why = format!("it took no connection within {} s", CONNECT.as_secs());
            Err(ProxyError::broken(&sandbox.id, port, &why))
        }
    }
}

/// The same stream over TLS.
async fn tls(
    sandbox: &Sandbox,
    port: u16,
    stream: IdleStream<PortStream>,
    grpc: bool,
) -> Result<TlsStream<IdleStream<PortStream>>, ProxyError> {
    let protocol: &[u8] = if grpc { b"h2" } else { b"http/1.1" };
    let shaken = tokio::time::timeout(CONNECT, program_tls::begin(stream, protocol)).await;
    let shaken = shaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    shaken.map_err(|error| {
        let why = format!("it is one of network.httpsPorts, and its TLS failed: {error}");
        ProxyError::broken(&sandbox.id, port, &why)
    })
}

/// What the agent said, as far as it did.
fn words(error: &LinkError) -> String {
    match error.refusal() {
        Some(refusal) => format!("the guest could not connect to it: {refusal}"),
        None => error.to_string(),
    }
}
