//! Connections: accepting, bounding, and ending them.

use crate::accept::accept;
use crate::linger::LingeringBody;
use crate::pace::{BusyConnection, ConnectionPace, PaceLimits, PacedStream};
use crate::state::AppState;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use rustix::net::sockopt;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long requests may take to finish once the server shuts down.
const DRAIN: Duration = Duration::from_secs(3);
/// How long the sandboxes may take to end then.
const CLOSE: Duration = Duration::from_secs(15);
/// Most requests at one time over one HTTP/2 connection.
const MAX_STREAMS: u32 = 256;

/// Serves until `stop` completes, then ends every sandbox and every connection. True if nothing was
/// left over.
pub async fn serve(
    app: Arc<AppState>,
    listener: TcpListener,
    stop: impl Future<Output = ()>,
) -> bool {
    let graceful = GracefulShutdown::new();
    let builder = builder(&app);
    let slots = Arc::new(Semaphore::new(app.options.max_connections));
    let accept = async {
        loop {
            // While all slots are taken, clients wait in the listen queue.
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
                return;
            };
            let stream = accept(&listener, "requests").await;
            connection(&app, &builder, &graceful, stream, slot);
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
        .max_header_list_size(64 * 1024);
    builder
}

fn connection(
    app: &Arc<AppState>,
    builder: &Builder<TokioExecutor>,
    graceful: &GracefulShutdown,
    stream: TcpStream,
    slot: OwnedSemaphorePermit,
) {
    // Small frames of process output must not wait for each other.
    let _ = stream.set_nodelay(true);
    // A client whose machine is gone must not keep its connection for ever.
    let _ = sockopt::set_socket_keepalive(&stream, true);
    let _ = sockopt::set_tcp_keepidle(&stream, Duration::from_secs(60));
    let app = Arc::clone(app);
    let pace = Arc::<ConnectionPace>::default();
    let limits = PaceLimits {
        head: app.options.header_timeout,
        rest: app.options.idle_timeout,
    };
    let stream = PacedStream::new(stream, Arc::clone(&pace), limits);
    let service = service_fn(move |request: Request<Incoming>| {
        let request = request.map(LingeringBody::from);
        let app = Arc::clone(&app);
        let busy = BusyConnection::begin(&pace, request.version());
        async move { Ok::<_, Infallible>(busy.until_written(app.serve(request).await)) }
    });
    let serving = builder
        .serve_connection(TokioIo::new(stream), service)
        .into_owned();
    let serving = graceful.watch(serving);
    tokio::spawn(async move {
        if let Err(error) = serving.await {
            tracing::debug!(%error, "connection ended");
        }
        drop(slot);
    });
}
