//! One request: to the control plane or to a sandbox, and always a response.

use crate::budget::BodyBudget;
use crate::control::{
    batch, checkpoints, connect, create, egress, fork, get, health, kill, list, logs, metrics,
    pause, reset, snapshots, templates, timeout,
};
use crate::error::{ApiError, ProxyError};
use crate::linger::LingeringBody;
use crate::options::ServerOptions;
use crate::ports::{self, PortServer};
use crate::route::{self, RequestTarget, Route};
use crate::state::AppState;
use crate::{Body, BodyError, envd, host, page, proxy, slots};
use bytes::Bytes;
use engine::facts::SandboxFacts;
use engine::registry::Entrance;
use engine::sandbox::Sandbox;
use futures_util::FutureExt;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, SizeHint};
use hyper::{Request, Response};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
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
        let navigates = page::is_navigation(&request);
        match self.port_request(id, port, request).await {
            Ok(response) => response,
            Err(error) if navigates => page::of(&error),
            Err(error) => error.response(),
        }
    }

    async fn port_request(
        &self,
        id: &str,
        port: u16,
        request: Request<LingeringBody>,
    ) -> Result<Response<Body>, ProxyError> {
        let sandbox = self.admit(id, port, &request).await?;
        self.may_enter(port, &sandbox, &request)?;
        match ports::server_of(port) {
            PortServer::Envd => envd_request(&self.bodies, &sandbox, request).await,
            PortServer::Guest => guest_request(&self.options, &sandbox, port, request).await,
        }
    }

    /// Whether a request may come to a port of a sandbox at all. Envd asks for its token by itself.
    fn may_enter<B>(
        &self,
        port: u16,
        facts: &SandboxFacts,
        request: &Request<B>,
    ) -> Result<(), ProxyError> {
        let (token, foreign) = match ports::server_of(port) {
            PortServer::Envd => (&facts.access_token, ProxyError::ForeignHost),
            PortServer::Guest if !proxy::may_enter(&facts.ingress, request.headers()) => {
                let id = facts.id.clone();
                return Err(ProxyError::TrafficToken { id });
            }
            PortServer::Guest => (&facts.ingress.traffic_token, ProxyError::ForeignPortHost),
        };
        // Under a name that is not ours a web page can make a browser ask; over TLS it has no
        // certificate for that name.
        let domain = self.options.domain.as_deref();
        let rebound = token.is_none()
            && self.options.on_loopback
            && host::is_foreign(request.uri(), request.headers(), domain)
            && !slots::client(request).is_some_and(|client| client.tls);
        if rebound { Err(foreign) } else { Ok(()) }
    }

    /// The sandbox that a request is for, resumed if it may be: whoever has no token cannot.
    async fn admit(
        &self,
        id: &str,
        port: u16,
        request: &Request<LingeringBody>,
    ) -> Result<Arc<Sandbox>, ProxyError> {
        let mut refused = None;
        let admits = |facts: &SandboxFacts| {
            let envd = ports::server_of(port) == PortServer::Envd;
            let may = self.may_enter(port, facts, request);
            let token = facts.access_token.as_deref();
            let admitted = may.is_ok() && (!envd || envd::admits(token, request));
            // To a stranger, a paused sandbox's envd is not there.
            refused = may.err().filter(|_| !envd);
            admitted
        };
        let id = id.to_owned();
        match self.registry.enter(&id, admits).await {
            Ok(Entrance::Open(sandbox)) => Ok(sandbox),
            Ok(Entrance::Pausing) => Err(ProxyError::Pausing { id }),
            Ok(Entrance::Closed) => Err(refused.unwrap_or(ProxyError::NotFound { id })),
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

/// One request to a sandbox's envd.
async fn envd_request(
    bodies: &Arc<BodyBudget>,
    sandbox: &Arc<Sandbox>,
    request: Request<LingeringBody>,
) -> Result<Response<Body>, ProxyError> {
    if let Some(path) = route::reserved(request.uri().path()) {
        return Err(ProxyError::Reserved(path));
    }
    let span = tracing::info_span!("envd", sandbox_id = sandbox.id);
    let serving = async { Ok(envd::serve(bodies, sandbox, request).await) };
    until_gone(sandbox, serving.instrument(span)).await
}

/// How long the end of a sandbox may take to be known after its link's.
const SETTLE: Duration = Duration::from_secs(1);

/// One request to a program in a sandbox.
async fn guest_request(
    options: &ServerOptions,
    sandbox: &Arc<Sandbox>,
    port: u16,
    request: Request<LingeringBody>,
) -> Result<Response<Body>, ProxyError> {
    let span = tracing::info_span!("port", sandbox_id = sandbox.id, port);
    let serving = async {
        let served = proxy::serve(options, sandbox, port, request).await;
        // A link that breaks is most often its machine's end, which is told in other words.
        if served.is_err() && sandbox.link.closed().now_or_never().is_some() {
            let _ = tokio::time::timeout(SETTLE, sandbox.gone()).await;
        }
        served
    };
    until_gone(sandbox, serving.instrument(span)).await
}

/// The answer of a sandbox. Ends with it: before the response has begun by a 502, afterwards by
/// breaking the connection, which is what the SDKs take for an ended sandbox.
async fn until_gone(
    sandbox: &Arc<Sandbox>,
    serving: impl Future<Output = Result<Response<Body>, ProxyError>>,
) -> Result<Response<Body>, ProxyError> {
    tokio::select! {
        biased;
        () = sandbox.gone() => Err(ended(sandbox)),
        response = serving => {
            let sandbox = Arc::clone(sandbox);
            response.map(|whole| whole.map(|inner| UntilGone::wrap(sandbox, inner)))
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
