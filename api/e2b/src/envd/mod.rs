//! The envd facade: port 49983 of a sandbox (api/PROTOCOL.md §7). Everything E2B's guest daemon
//! answers is answered here, on the host, in terms of the link to the guest agent.
//!
//! | Path | Where |
//! |---|---|
//! | `/process.Process/*` | `process_rpc`, over the engine's table of processes |
//! | `/filesystem.Filesystem/*` | `filesystem` |
//! | `/files` | `files`, `upload` |
//! | `/health`, `/metrics`, `/envs` | here |

mod auth;
mod fail;
mod files;
mod filesystem;
mod http;
mod message;
mod metrics;
mod multipart;
mod paths;
mod process_rpc;
mod range;
#[cfg(test)]
mod test;
mod upload;

use crate::Body;
use crate::budget::{BodyBudget, BodyRefusal};
use crate::connect::request::{self, CallKind, MessageStream, RequestBody};
use crate::connect::{ConnectCode, ConnectError, stream};
use crate::linger::LingeringBody;
pub use auth::{SignedQuery, admits, fuzz_signature};
use engine::sandbox::Sandbox;
pub use filesystem::fuzz_filesystem_json;
use http::HttpError;
use http_body_util::BodyExt;
use hyper::header::{self, HeaderValue};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
pub use message::fuzz_process_json;
pub use multipart::fuzz_multipart;
use paths::GuestCaller;
pub use range::fuzz_range;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::sync::Arc;

/// Answers one request to port 49983 of `sandbox`. The caller has resolved the sandbox; the access
/// token is checked here (api/PROTOCOL.md §7.5). Never fails: errors are responses. A body that
/// cannot be finished because the sandbox ended yields an error, so that the connection is dropped.
///
/// What the body takes of `bodies` it holds until the answer begins.
pub async fn serve(
    bodies: &Arc<BodyBudget>,
    sandbox: &Arc<Sandbox>,
    request: Request<LingeringBody>,
) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let hold = bodies.hold(Some(&sandbox.id));
    let body = RequestBody::new(body.map_err(Into::into).boxed_unsync(), hold.clone());
    tokio::select! {
        biased;
        why = hold.ended() => too_slow(&parts.headers, why),
        response = serve_parts(sandbox, &parts, body) => response,
    }
}

/// The answer to a request that held memory, was slow, and was ended because others waited.
fn too_slow(headers: &HeaderMap, why: BodyRefusal) -> Response<Body> {
    match request::kind(headers) {
        Some(CallKind::Stream) => stream::finished(None, Err(&why.into())),
        Some(CallKind::Unary) => request::answer::<Value>(&Err(why.into())),
        None => HttpError::new(StatusCode::TOO_MANY_REQUESTS, why.to_string()).response(),
    }
}

async fn serve_parts(sandbox: &Arc<Sandbox>, parts: &Parts, body: RequestBody) -> Response<Body> {
    if http::is_preflight(&parts.method, &parts.headers) {
        return http::preflight(&parts.headers);
    }
    let mut response = route(sandbox, parts, body).await;
    if parts.headers.contains_key(header::ORIGIN) {
        http::allow_origin(&mut response);
    }
    response
}

async fn route(sandbox: &Arc<Sandbox>, parts: &Parts, body: RequestBody) -> Response<Body> {
    let path = parts.uri.path();
    match (&parts.method, path) {
        (&Method::GET | &Method::HEAD, "/health") => return health(),
        (method, "/files") if [Method::GET, Method::HEAD, Method::POST].contains(method) => {
            let result = files::serve(sandbox, parts, body).await;
            return result.unwrap_or_else(|error| error.response());
        }
        _ => {}
    }
    if !auth::token_ok(sandbox.access_token.as_deref(), &parts.headers) {
        return HttpError::new(StatusCode::UNAUTHORIZED, auth::UNAUTHORIZED).response();
    }
    crate::slots::accepted_parts(&parts.extensions);
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    match (&parts.method, segments.as_slice()) {
        (&Method::POST, ["process.Process", method]) => {
            process_service(sandbox, method, &parts.headers, body).await
        }
        (&Method::POST, ["filesystem.Filesystem", method]) => {
            filesystem_service(sandbox, method, &parts.headers, body).await
        }
        (&Method::GET, ["metrics"]) => metrics::serve(sandbox).await,
        (&Method::GET, ["envs"]) => http::json_response(&serde_json::json!(sandbox.env)),
        _ if crate::route::reserved(path).is_some() => {
            let text = format!("{path} is reserved for the control plane");
            HttpError::new(StatusCode::NOT_FOUND, text).response()
        }
        (_, ["process.Process" | "filesystem.Filesystem", _]) => {
            http::bare(StatusCode::METHOD_NOT_ALLOWED)
        }
        _ => {
            let text = format!("{} {path} is not an endpoint of envd", parts.method);
            HttpError::new(StatusCode::NOT_FOUND, text).response()
        }
    }
}

fn health() -> Response<Body> {
    let mut response = http::bare(StatusCode::NO_CONTENT);
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn process_service(
    sandbox: &Arc<Sandbox>,
    method: &str,
    headers: &HeaderMap,
    body: RequestBody,
) -> Response<Body> {
    let kind = match method {
        "Start" | "Connect" | "StreamInput" => CallKind::Stream,
        "List" | "SendInput" | "SendSignal" | "CloseStdin" | "Update" => CallKind::Unary,
        _ => return unknown(headers, "process.Process", method),
    };
    if request::kind(headers) != Some(kind) {
        return request::unsupported_type();
    }
    match method {
        "Start" | "Connect" => {
            let result = open_stream(sandbox, method, headers, body).await;
            match result {
                Ok((items, timing)) => {
                    let body = stream::StreamBody::new(items, message::stream_item, timing);
                    stream::response(body)
                }
                Err(error) => stream::finished(None, Err(&error)),
            }
        }
        "StreamInput" => {
            let checked = request::check_encoding(headers, kind);
            let result = within(headers, async {
                checked?;
                process_rpc::stream_input(sandbox, MessageStream::new(body)).await
            });
            match result.await {
                Ok(message) => {
                    stream::finished(Some(crate::connect::envelope::message(&message)), Ok(()))
                }
                Err(error) => stream::finished(None, Err(&error)),
            }
        }
        _ => {
            let result = within(headers, process_unary(sandbox, method, headers, body)).await;
            request::answer(&result)
        }
    }
}

async fn open_stream(
    sandbox: &Arc<Sandbox>,
    method: &str,
    headers: &HeaderMap,
    body: RequestBody,
) -> Result<process_rpc::ProcessStreaming, ConnectError> {
    request::check_encoding(headers, CallKind::Stream)?;
    let messages = MessageStream::new(body);
    if method == "Start" {
        process_rpc::start(sandbox, headers, messages).await
    } else {
        process_rpc::connect(sandbox, headers, messages).await
    }
}

async fn process_unary(
    sandbox: &Arc<Sandbox>,
    method: &str,
    headers: &HeaderMap,
    mut body: RequestBody,
) -> Result<Value, ConnectError> {
    request::check_encoding(headers, CallKind::Unary)?;
    match method {
        "List" => {
            request::unary::<Value>(&mut body).await?;
            Ok(process_rpc::list(sandbox))
        }
        "SendInput" => process_rpc::send_input(sandbox, request::unary(&mut body).await?).await,
        "SendSignal" => process_rpc::send_signal(sandbox, request::unary(&mut body).await?).await,
        "CloseStdin" => process_rpc::close_stdin(sandbox, request::unary(&mut body).await?).await,
        _ => process_rpc::update(sandbox, request::unary(&mut body).await?).await,
    }
}

async fn filesystem_service(
    sandbox: &Arc<Sandbox>,
    method: &str,
    headers: &HeaderMap,
    body: RequestBody,
) -> Response<Body> {
    match (method, request::kind(headers)) {
        ("WatchDir", Some(CallKind::Stream)) => {
            stream::finished(None, Err(&filesystem::no_watching(method)))
        }
        ("CreateWatcher" | "GetWatcherEvents" | "RemoveWatcher", Some(CallKind::Unary)) => {
            request::answer::<Value>(&Err(filesystem::no_watching(method)))
        }
        ("Stat" | "MakeDir" | "Move" | "ListDir" | "Remove", Some(CallKind::Unary)) => {
            let result = within(headers, filesystem_unary(sandbox, method, headers, body)).await;
            request::answer(&result)
        }
        (
            "WatchDir" | "CreateWatcher" | "GetWatcherEvents" | "RemoveWatcher" | "Stat"
            | "MakeDir" | "Move" | "ListDir" | "Remove",
            _,
        ) => request::unsupported_type(),
        _ => unknown(headers, "filesystem.Filesystem", method),
    }
}

async fn filesystem_unary(
    sandbox: &Arc<Sandbox>,
    method: &str,
    headers: &HeaderMap,
    mut body: RequestBody,
) -> Result<Value, ConnectError> {
    async fn read<M: DeserializeOwned>(body: &mut RequestBody) -> Result<M, ConnectError> {
        request::unary(body).await
    }
    request::check_encoding(headers, CallKind::Unary)?;
    let caller = &mut GuestCaller::checked(sandbox, auth::username(headers)?).await?;
    match method {
        "Stat" => filesystem::stat(sandbox, caller, &read(&mut body).await?).await,
        "MakeDir" => filesystem::make_dir(sandbox, caller, &read(&mut body).await?).await,
        "Move" => filesystem::rename(sandbox, caller, &read(&mut body).await?).await,
        "ListDir" => filesystem::list_dir(sandbox, caller, &read(&mut body).await?).await,
        _ => filesystem::remove(sandbox, caller, &read(&mut body).await?).await,
    }
}

/// Runs a unary call within its `Connect-Timeout-Ms`.
async fn within(
    headers: &HeaderMap,
    call: impl Future<Output = Result<Value, ConnectError>>,
) -> Result<Value, ConnectError> {
    match request::timeout(headers)? {
        None => call.await,
        Some(timeout) => tokio::time::timeout(timeout, call)
            .await
            .unwrap_or_else(|_| {
                Err(ConnectError::new(
                    ConnectCode::DeadlineExceeded,
                    "context deadline exceeded",
                ))
            }),
    }
}

fn unknown(headers: &HeaderMap, service: &str, method: &str) -> Response<Body> {
    let name: String = method.chars().take(64).collect();
    let error = ConnectError::unimplemented(format!("{service} has no method {name:?}"));
    match request::kind(headers) {
        Some(CallKind::Stream) => stream::finished(None, Err(&error)),
        _ => request::answer::<Value>(&Err(error)),
    }
}
