//! Connections: accepting, bounding, and ending them.
//!
//! ```text
//! plain listener ──────────────────┐
//!                 place in the     ├──> requests
//! TLS listener ── one table ── handshake
//! ```

use crate::accept::accept;
use crate::linger::LingeringBody;
use crate::pace::{BusyConnection, PaceLimits, PacedStream};
use crate::slots::{
    ConnectionPlace, ConnectionSlot, ConnectionTable, RequestConnection, SlotLimits, SlotRefusal,
};
use crate::state::AppState;
use crate::tls::TlsServer;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulConnection, GracefulShutdown};
use rustix::net::sockopt;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use std::{future, io};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How long requests may take to finish once the server shuts down.
const DRAIN: Duration = Duration::from_secs(3);
/// How long the sandboxes may take to end then.
const CLOSE: Duration = Duration::from_secs(15);
/// Most requests at one time over one HTTP/2 connection.
const MAX_STREAMS: u32 = 256;

/// Most bytes of one request, and of one connection, that HTTP/2 holds before anybody reads them.
const STREAM_WINDOW: u32 = 128 << 10;
const CONNECTION_WINDOW: u32 = 256 << 10;

/// Why a connection broke off, as hyper says it.
type ConnectionError = Box<dyn std::error::Error + Send + Sync>;

/// Where clients come in.
#[derive(Debug)]
pub struct Listeners {
    /// Those that speak HTTP as it is.
    pub plain: TcpListener,
    /// Those that speak it over TLS.
    pub tls: Option<(TcpListener, Arc<TlsServer>)>,
}

/// What connections share.
struct Service {
    app: Arc<AppState>,
    builder: Builder<TokioExecutor>,
    graceful: GracefulShutdown,
    table: Arc<ConnectionTable>,
    /// Closed when no handshake is wanted any more.
    open: watch::Sender<()>,
}

/// Serves until `stop` completes, then ends every sandbox and every connection. True if nothing was
/// left over.
pub async fn serve(
    app: Arc<AppState>,
    listeners: Listeners,
    stop: impl Future<Output = ()>,
) -> bool {
    let service = Service {
        builder: builder(&app),
        graceful: GracefulShutdown::new(),
        table: ConnectionTable::new(SlotLimits {
            all: app.options.max_connections,
            peer: app.options.max_peer_connections,
        }),
        open: watch::Sender::new(()),
        app,
    };
    let Listeners { plain, tls } = listeners;
    let mut background = JoinSet::new();
    if let Some((_, tls)) = &tls {
        background.spawn(Arc::clone(tls).keep_current());
    }
    tokio::select! {
        () = service.accept_plain(&plain) => {}
        () = service.accept_tls(tls.as_ref()) => {}
        () = stop => {}
    }
    drop((plain, tls, background));
    service.end().await
}

impl Service {
    async fn accept_plain(&self, listener: &TcpListener) {
        loop {
            let (stream, peer) = accept(listener, "requests").await;
            match place(&self.table, peer).await {
                Some(slot) => self.serve_plain(stream, slot),
                None => refuse(&stream, &self.app, peer),
            }
        }
    }

    async fn accept_tls(&self, tls: Option<&(TcpListener, Arc<TlsServer>)>) {
        let Some((listener, tls)) = tls else {
            return future::pending().await;
        };
        loop {
            let (stream, peer) = accept(listener, "requests over TLS").await;
            match place(&self.table, peer).await {
                Some(slot) => self.serve_tls(stream, slot, tls),
                // In words it would cost a handshake.
                None => log_refusal(&self.app, peer),
            }
        }
    }

    fn serve_plain(&self, stream: TcpStream, slot: Arc<ConnectionSlot>) {
        tune(&stream);
        let place = self.taken(slot, false);
        let serving = connection(&self.app, &self.builder, stream, &place);
        tokio::spawn(until_ended(self.graceful.watch(serving), place));
    }

    /// The same after a handshake, which has no more time than a request's head has, and gives way
    /// as a stranger does.
    fn serve_tls(&self, stream: TcpStream, slot: Arc<ConnectionSlot>, tls: &Arc<TlsServer>) {
        tune(&stream);
        let place = self.taken(slot, true);
        let (app, builder, tls) = (self.app.clone(), self.builder.clone(), tls.clone());
        let (watcher, mut open) = (self.graceful.watcher(), self.open.subscribe());
        tokio::spawn(async move {
            let shaken = tokio::select! {
                shaken = tls.accept(stream, app.options.header_timeout) => shaken,
                () = place.slot.given_up() => Err(io::ErrorKind::ConnectionAborted.into()),
                _ = open.changed() => Err(io::ErrorKind::Interrupted.into()),
            };
            match shaken {
                Ok(stream) => {
                    let serving = connection(&app, &builder, stream, &place);
                    until_ended(watcher.watch(serving), place).await;
                }
                Err(error) => tracing::debug!(%error, "a TLS handshake failed"),
            }
        });
    }

    fn taken(&self, slot: Arc<ConnectionSlot>, tls: bool) -> Arc<ConnectionPlace> {
        let table = Arc::clone(&self.table);
        Arc::new(ConnectionPlace { table, slot, tls })
    }

    /// Ends every sandbox and every connection; true if nothing is left over.
    async fn end(self) -> bool {
        drop(self.open);
        let registry = &self.app.registry;
        tracing::info!(sandboxes = registry.in_use(), "shutting down");
        let clean = registry.close(CLOSE).await;
        let drained = tokio::time::timeout(DRAIN, self.graceful.shutdown()).await;
        if drained.is_err() {
            tracing::info!("connections cut");
        }
        if !clean {
            let left = registry.in_use();
            tracing::error!(left, "sandboxes did not end in time");
        }
        clean
    }
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
    log_refusal(app, peer);
    let most = app.options.max_peer_connections;
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

fn log_refusal(app: &AppState, peer: SocketAddr) {
    let most = app.options.max_peer_connections;
    tracing::debug!(%peer, most, "a connection over limits.max_peer_connections");
}

fn tune(stream: &TcpStream) {
    // Small frames of process output must not wait for each other.
    let _ = stream.set_nodelay(true);
    // A client whose machine is gone must not keep its connection for ever.
    let _ = sockopt::set_socket_keepalive(stream, true);
    let _ = sockopt::set_tcp_keepidle(stream, Duration::from_secs(60));
}

/// The requests that come over a stream.
fn connection<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    app: &Arc<AppState>,
    builder: &Builder<TokioExecutor>,
    stream: T,
    place: &Arc<ConnectionPlace>,
) -> impl GracefulConnection<Error = ConnectionError> + Send + use<T> {
    let app = Arc::clone(app);
    let pace = Arc::clone(&place.slot.pace);
    let own = RequestConnection::new(place);
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
    builder
        .serve_connection_with_upgrades(TokioIo::new(stream), service)
        .into_owned()
}

/// Drives a connection to its end, or until it has to give way.
async fn until_ended(
    serving: impl Future<Output = Result<(), ConnectionError>>,
    place: Arc<ConnectionPlace>,
) {
    tokio::select! {
        served = serving => if let Err(error) = served {
            tracing::debug!(%error, "connection ended");
        },
        () = place.slot.given_up() => tracing::debug!("a connection gave way to another"),
    }
    drop(place);
}
