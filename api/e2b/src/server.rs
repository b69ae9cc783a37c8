//! Connections: accepting, bounding, and ending them.

use crate::accept::accept;
use crate::linger::LingeringBody;
use crate::pace::{BusyConnection, PaceLimits, PacedStream};
use crate::slots::{
    ConnectionPlace, ConnectionSlot, ConnectionTable, RequestConnection, SlotLimits, SlotRefusal,
};
use crate::state::AppState;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use rustix::net::sockopt;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// How long requests may take to finish once the server shuts down.
const DRAIN: Duration = Duration::from_secs(3);
/// How long the sandboxes may take to end then.
const CLOSE: Duration = Duration::from_secs(15);
/// Most requests at one time over one HTTP/2 connection.
const MAX_STREAMS: u32 = 256;

/// Most bytes of one request, and of one connection, that HTTP/2 holds before anybody reads them.
const STREAM_WINDOW: u32 = 128 << 10;
const CONNECTION_WINDOW: u32 = 256 << 10;

/// Serves until `stop` completes, then ends every sandbox and every connection. True if nothing was
/// left over.
pub async fn serve(
    app: Arc<AppState>,
    listener: TcpListener,
    stop: impl Future<Output = ()>,
) -> bool {
    let graceful = GracefulShutdown::new();
    let builder = builder(&app);
    let table = ConnectionTable::new(SlotLimits {
        all: app.options.max_connections,
        peer: app.options.max_peer_connections,
    });
    let accept = async {
        loop {
            let (stream, peer) = accept(&listener, "requests").await;
            if let Some(slot) = place(&table, peer).await {
                connection(
                    &app,
                    &builder,
                    &graceful,
                    stream,
                    ConnectionPlace {
                        table: Arc::clone(&table),
                        slot,
                        tls: false,
                    },
                );
            } else {
                refuse(&stream, &app, peer);
            }
        }
    };
    tokio::select! {
        () = accept => {}
        () = stop => {}
    }
    drop(listener);
    tracing::info!(sandboxes = app.registry.in_use(), "shutting down");
    let clean = app.registry.close(CLOSE).await;
    if tokio::time::timeout(DRAIN, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::info!("connections cut");
    }
    if !clean {
        tracing::error!(
            left = app.registry.in_use(),
            "sandboxes did not end in time"
        );
    }
    clean
}

fn builder(app: &Arc<AppState>) -> Builder<TokioExecutor> {
    let limits = &app.options;
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.idle_timeout)
        .max_buf_size(64 * 1024);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(60))
        .keep_alive_timeout(Duration::from_secs(20))
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(64 * 1024);
    builder
}

/// How often a newcomer that waits looks for a connection that has begun to rest.
const LOOK: Duration = Duration::from_millis(100);

/// A place for a newcomer. Waits while all are busy: others wait in the listen queue meanwhile.
async fn place(table: &Arc<ConnectionTable>, peer: SocketAddr) -> Option<Arc<ConnectionSlot>> {
    loop {
        match table.admit(peer) {
            Ok(slot) => return Some(slot),
            Err(SlotRefusal::Peer) => return None,
            // One that begins to rest may give way, and says nothing.
            Err(SlotRefusal::Full) => {
                let _ = tokio::time::timeout(LOOK, table.freed()).await;
            }
        }
    }
}

/// Says why, as far as that can be said without waiting.
fn refuse(stream: &TcpStream, app: &AppState, peer: SocketAddr) {
    let most = app.options.max_peer_connections;
    tracing::debug!(%peer, most, "a connection over limits.max_peer_connections");
    let text = format!(
        "{{\"code\":503,\"message\":\"Your address has {most} connections already: close some, \
         or raise limits.max_peer_connections\"}}"
    );
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{text}",
        text.len()
    );
    let _ = stream.try_write(head.as_bytes());
}

fn connection(
    app: &Arc<AppState>,
    builder: &Builder<TokioExecutor>,
    graceful: &GracefulShutdown,
    stream: TcpStream,
    place: ConnectionPlace,
) {
    // Small frames of process output must not wait for each other.
    let _ = stream.set_nodelay(true);
    // A client whose machine is gone must not keep its connection for ever.
    let _ = sockopt::set_socket_keepalive(&stream, true);
    let _ = sockopt::set_tcp_keepidle(&stream, Duration::from_secs(60));
    let app = Arc::clone(app);
    let slot = Arc::clone(&place.slot);
    let pace = Arc::clone(&slot.pace);
    let place = Arc::new(place);
    let own = RequestConnection::new(&place);
    let limits = PaceLimits {
        head: app.options.header_timeout,
        rest: app.options.idle_timeout,
    };
    let stream = PacedStream::new(stream, Arc::clone(&pace), limits);
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(LingeringBody::from);
        request.extensions_mut().insert(own.clone());
        let app = Arc::clone(&app);
        let busy = BusyConnection::begin(&pace, request.version());
        async move { Ok::<_, Infallible>(busy.until_written(app.serve(request).await)) }
    });
    let serving = builder
        .serve_connection_with_upgrades(TokioIo::new(stream), service)
        .into_owned();
    let serving = graceful.watch(serving);
    tokio::spawn(async move {
        tokio::select! {
            served = serving => if let Err(error) = served {
                tracing::debug!(%error, "connection ended");
            },
            () = slot.given_up() => tracing::debug!("a connection gave way to another"),
        }
        drop(place);
    });
}
