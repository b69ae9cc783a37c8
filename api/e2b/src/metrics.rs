//! `GET /metrics` on an address of its own: what the engine counts, for Prometheus. Without a key:
//! whoever reaches the address reads it.

use crate::accept::accept;
use crate::body::{self, Body};
use crate::state::AppState;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Most connections at one time; more wait in the listen queue.
const MAX_CONNECTIONS: usize = 16;
/// Longest time for a request's head to arrive.
const HEAD: Duration = Duration::from_secs(10);
/// Longest time that a connection lives.
const CONNECTION: Duration = Duration::from_secs(60);
/// What Prometheus asks for.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Answers until the process ends.
pub async fn serve(app: Arc<AppState>, listener: TcpListener) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        let (stream, _) = accept(&listener, "metrics").await;
        let app = Arc::clone(&app);
        let service = service_fn(move |request: Request<Incoming>| {
            let response = answer(&app, request.method(), request.uri().path());
            async move { Ok::<_, Infallible>(response) }
        });
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEAD);
        let serving = http.serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            let _ = timeout(CONNECTION, serving).await;
            drop(slot);
        });
    }
}

fn answer(app: &AppState, method: &Method, path: &str) -> Response<Body> {
    let status = match (method, path) {
        (&Method::GET | &Method::HEAD, "/metrics") => match app.registry.metrics_text() {
            Ok(text) => {
                let mut response = Response::new(body::full(text));
                let kind = HeaderValue::from_static(OPEN_METRICS);
                response.headers_mut().insert(CONTENT_TYPE, kind);
                return response;
            }
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
        },
        (_, "/metrics") => StatusCode::METHOD_NOT_ALLOWED,
        _ => StatusCode::NOT_FOUND,
    };
    let mut response = Response::new(body::empty());
    *response.status_mut() = status;
    response
}
