//! One request: to the control plane or to a sandbox, and always a response.

use crate::budget::BodyBudget;
use crate::control::{
    batch, checkpoints, connect, create, egress, fork, get, health, kill, list, logs, metrics,
    pause, reset, snapshots, templates, timeout,
};
use crate::error::{ApiError, ProxyError};
use crate::linger::LingeringBody;
use crate::ports::{self, PortServer};
use crate::route::{self, RequestTarget, Route};
use crate::state::AppState;
use crate::{Body, BodyError, envd, host, slots};
use bytes::Bytes;
use engine::facts::SandboxFacts;
use engine::registry::Entrance;
use engine::sandbox::Sandbox;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, SizeHint};
use hyper::{Request, Response};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;
use tracing::Instrument as _;

impl AppState {
    /// Answers any request.
    pub async fn serve(self: &Arc<Self>, request: Request<LingeringBody>) -> Response<Body> {
        let (begin, method) = (Instant::now(), request.method().clone());
        let path: String = request.uri().path().chars().take(256).collect();
        let response = self.answer(request).await;
        let (status, time) = (response.status().as_u16(), begin.elapsed());
        tracing::debug!(target: "access", %method, ?path, status, ?time);
        response
    }

    async fn answer(self: &Arc<Self>, request: Request<LingeringBody>) -> Response<Body> {
        match route::target(request.method(), request.uri(), request.headers()) {
            Ok(RequestTarget::Control) => self
                .control(request)
                .await
                .unwrap_or_else(|error| error.response()),
            Ok(RequestTarget::Data { id, port }) => self.data(&id, port, request).await,
            Ok(RequestTarget::Signed) => self.signed(request).await,
            Err(error) => error.response(),
        }
    }

    /// The control plane.
    async fn control(
        self: &Arc<Self>,
        request: Request<LingeringBody>,
    ) -> Result<Response<Body>, ApiError> {
        let route = route::route(request.method(), request.uri().path());
        if matches!(route, Ok(Route::Health)) {
            return Ok(health::handle(self));
        }
        // Only who has a key learns which endpoints there are.
        let key = request
            .headers()
            .get("x-api-key")
            .ok_or(ApiError::Unauthorized)?;
        let known = self.options.keys.caller(key.as_bytes());
        let who = known.ok_or(ApiError::Unauthorized)?;
        slots::accepted(&request);
        // What belongs to another caller is not there, in each of these: see the engine's `owner`.
        match route? {
            Route::Health => Ok(health::handle(self)),
            Route::Create(version) => create::handle(self, who, version, request).await,
            Route::Batch => batch::handle(self, who, request).await,
            Route::List(version) => list::handle(self, who, version, request.uri().query()),
            Route::MetricsOfMany => metrics::of_many(self, who, request.uri().query()).await,
            Route::Get(id) => get::handle(self, who, &id),
            Route::Kill(id) => kill::handle(self, who, &id).await,
            Route::Timeout(id) => timeout::set(self, who, &id, request).await,
            Route::Network(id) => egress::set(self, who, &id, request).await,
            Route::Refresh(id) => timeout::refresh(self, who, &id, request).await,
            Route::Connect(id, version) => connect::handle(self, who, &id, version, request).await,
            Route::Pause(id) => pause::handle(self, who, &id, request).await,
            Route::Resume(id) => connect::resume(self, who, &id, request).await,
            Route::Fork(id) => fork::fork(self, who, &id, request).await,
            Route::Reset(id) => reset::reset(self, who, &id, request).await,
            Route::Checkpoint(id) => checkpoints::take(self, who, &id, request).await,
            Route::Checkpoints(id) => checkpoints::list(self, who, &id),
            Route::DeleteCheckpoint(id, word) => checkpoints::delete(self, who, &id, &word).await,
            Route::Snapshot(id) => snapshots::take(self, who, &id, request).await,
            Route::Snapshots => snapshots::list(self, who, request.uri().query()),
            Route::DeleteTemplate(name) => snapshots::delete(self, who, &name).await,
            Route::Metrics(id) => metrics::of_one(self, who, &id, request.uri().query()).await,
            Route::Logs(id, version) => {
                logs::handle(self, who, &id, version, request.uri().query())
            }
            Route::Templates => Ok(templates::list(self)),
            Route::Template(name) => templates::get(self, &name),
            Route::TemplateAlias(name) => templates::alias(self, &name),
            Route::NotYet(what) => Err(ApiError::NotYet(what)),
        }
    }

    /// A port of a sandbox.
    pub(crate) async fn data(
        &self,
        id: &str,
        port: u16,
        request: Request<LingeringBody>,
    ) -> Response<Body> {
        let sandbox = match self.admit(id, port, &request).await {
            Ok(sandbox) => sandbox,
            Err(error) => return error.response(),
        };
        if self.is_rebound(sandbox.access_token.as_deref(), &request) {
            return ProxyError::ForeignHost.response();
        }
        match ports::server_of(port) {
            PortServer::Envd => envd_request(&self.bodies, &sandbox, request).await,
            PortServer::Nobody => ProxyError::PortClosed {
                id: id.to_owned(),
                port,
            }
            .response(),
        }
    }

    /// Whether a request would reach a sandbox without a token under a name that is not ours, as a
    /// web page can make a browser do.
    fn is_rebound<B>(&self, token: Option<&str>, request: &Request<B>) -> bool {
        let domain = self.options.domain.as_deref();
        token.is_none()
            && self.options.on_loopback
            && host::is_foreign(request.uri(), request.headers(), domain)
    }

    /// The sandbox that a request is for, resumed if it may be: whoever has no token cannot.
    async fn admit(
        &self,
        id: &str,
        port: u16,
        request: &Request<LingeringBody>,
    ) -> Result<Arc<Sandbox>, ProxyError> {
        let admits = |facts: &SandboxFacts| match ports::server_of(port) {
            PortServer::Envd => {
                let token = facts.access_token.as_deref();
                envd::admits(token, request) && !self.is_rebound(token, request)
            }
            PortServer::Nobody => false,
        };
        let id = id.to_owned();
        match self.registry.enter(&id, admits).await {
            Ok(Entrance::Open(sandbox)) => Ok(sandbox),
            Ok(Entrance::Pausing) => Err(ProxyError::Pausing { id }),
            Ok(Entrance::Closed) => Err(ProxyError::NotFound { id }),
            Err(error) => {
                let error = ApiError::from(error);
                Err(ProxyError::NotResumed {
                    id,
                    status: error.status(),
                    message: error.to_string(),
                })
            }
        }
    }
}

/// One request to a sandbox's envd. Ends with the sandbox: before the response has begun by a 502,
/// afterwards by breaking the connection, which is what the SDKs take for an ended sandbox.
async fn envd_request(
    bodies: &Arc<BodyBudget>,
    sandbox: &Arc<Sandbox>,
    request: Request<LingeringBody>,
) -> Response<Body> {
    if let Some(path) = route::reserved(request.uri().path()) {
        return ProxyError::Reserved(path).response();
    }
    let span = tracing::info_span!("envd", sandbox_id = sandbox.id);
    tokio::select! {
        biased;
        () = sandbox.gone() => ended(sandbox).response(),
        response = envd::serve(bodies, sandbox, request).instrument(span) => {
            let sandbox = Arc::clone(sandbox);
            response.map(|inner| UntilGone::wrap(sandbox, inner))
        }
    }
}

/// What the requests to a sandbox get that had no answer yet when it ended.
fn ended(sandbox: &Sandbox) -> ProxyError {
    let id = sandbox.id.clone();
    match sandbox.end_words() {
        Some(how) => ProxyError::Ended {
            id,
            how: how.to_owned(),
        },
        None => ProxyError::NotFound { id },
    }
}

/// A body that breaks off when its sandbox ends.
struct UntilGone {
    inner: Body,
    gone: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl UntilGone {
    fn wrap(sandbox: Arc<Sandbox>, inner: Body) -> Body {
        if inner.is_end_stream() {
            return inner;
        }
        let gone = Box::pin(async move { sandbox.gone().await });
        Self { inner, gone }.boxed_unsync()
    }
}

impl hyper::body::Body for UntilGone {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(context) {
            return Poll::Ready(frame);
        }
        match self.gone.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Some(Err("the sandbox has ended".into()))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
