//! `POST /sandboxes/{id}/fork`, `…/snapshots` and `GET /snapshots` (api/PROTOCOL.md §4.9, §4.10).

use crate::Body;
use crate::control::create::seconds;
use crate::control::view::CreatedView;
use crate::error::{ApiError, json_response};
use crate::linger::LingeringBody;
use crate::query::QueryString;
use crate::state::{AppState, no_content};
use engine::error::EngineError;
use engine::facts::KeptState;
use engine::registry::CaptureTimings;
use engine::store::snapshots::SandboxSnapshot;
use hyper::header::HeaderValue;
use hyper::{Request, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// Most children of one fork.
const MAX_CHILDREN: usize = 100;
/// Most entries of a list.
const MAX_LIMIT: usize = 100;

#[derive(Deserialize)]
struct ForkRequest {
    timeout: Option<i64>,
    count: Option<usize>,
    /// Not E2B's: a checkpoint to fork from, instead of the present.
    checkpoint: Option<String>,
}

/// Makes sandboxes that go on where one stands, or stood.
///
/// # Errors
/// [`ApiError::Invalid`], else as [`engine::registry::SandboxRegistry::fork`].
pub async fn fork(
    app: &Arc<AppState>,
    id: &str,
    request: Request<LingeringBody>,
) -> Result<Response<Body>, ApiError> {
    let wanted: ForkRequest = app.json(request.into_body()).await?;
    let timeout = seconds(wanted.timeout.unwrap_or(15), 1, &app.options)?;
    let count = wanted.count.unwrap_or(1);
    if !(1..=MAX_CHILDREN).contains(&count) {
        return Err(ApiError::Invalid(format!(
            "A count of {count} is out of range: 1 to {MAX_CHILDREN}"
        )));
    }
    let checkpoint = wanted.checkpoint.as_deref();
    let forked = app.registry.fork(id, checkpoint, count, timeout).await?;
    let (children, copied) = forked;
    let views: Vec<Value> = children
        .into_iter()
        .map(|child| match child {
            Ok(sandbox) => {
                json!({ "sandbox": CreatedView::new(&sandbox, app.options.domain.as_deref()) })
            }
            Err(error) => {
                let error = ApiError::from(error);
                let code = error.status().as_u16();
                json!({ "error": { "code": code, "message": error.to_string() } })
            }
        })
        .collect();
    let mut response = json_response(StatusCode::CREATED, &views);
    if let Some(value) = copied.and_then(timing) {
        response.headers_mut().insert("server-timing", value);
    }
    Ok(response)
}

/// How a sandbox was copied that goes on, as a `Server-Timing` header: milliseconds that it
/// was copied while it ran and that it was quiesced, and pages that were copied in the latter.
fn timing(copied: CaptureTimings) -> Option<HeaderValue> {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let (ahead, still) = (ms(copied.ahead), ms(copied.quiesced));
    let pages = copied.quiesced_pages;
    let text = format!("ahead;dur={ahead:.3}, still;dur={still:.3}, still-pages;desc=\"{pages}\"");
    text.try_into().ok()
}

#[derive(Deserialize)]
struct SnapshotRequest {
    name: Option<String>,
    memory: Option<bool>,
}

/// Stores a snapshot of a sandbox.
///
/// # Errors
/// As [`engine::registry::SandboxRegistry::take_snapshot`].
pub async fn snapshot(
    app: &Arc<AppState>,
    id: &str,
    request: Request<LingeringBody>,
) -> Result<Response<Body>, ApiError> {
    let wanted: SnapshotRequest = app.json(request.into_body()).await?;
    let kept = match wanted.memory {
        Some(false) => KeptState::Files,
        _ => KeptState::Memory,
    };
    let taken = app
        .registry
        .take_snapshot(id, wanted.name.as_deref(), kept)
        .await?;
    Ok(json_response(StatusCode::CREATED, &view(&taken)))
}

/// Lists snapshots. The token is the id of the last entry of the page before.
///
/// # Errors
/// [`ApiError::Invalid`].
pub fn snapshots(app: &Arc<AppState>, query: Option<&str>) -> Result<Response<Body>, ApiError> {
    let invalid = |what: &str| ApiError::Invalid(format!("{what} is not valid"));
    let query =
        QueryString::parse(query.unwrap_or_default()).ok_or_else(|| invalid("The query"))?;
    let limit = query
        .get("limit")
        .map_or(Some(MAX_LIMIT), |text| text.parse().ok());
    let limit = limit.filter(|limit| (1..=MAX_LIMIT).contains(limit));
    let limit = limit.ok_or_else(|| invalid("limit (1 to 100)"))?;
    let filter = |name: &str| query.get(name).filter(|text| !text.is_empty());
    let mut all = app.registry.snapshots();
    if let Some(sandbox) = filter("sandboxID") {
        all.retain(|s| s.sandbox_id == sandbox);
    }
    if let Some(name) = filter("name") {
        let plain = name.rsplit('/').next().unwrap_or(name);
        all.retain(|s| s.id == plain || s.id.split(':').next() == Some(plain));
    }
    if let Some(token) = filter("nextToken") {
        let last = all.iter().position(|s| s.id == token);
        all.drain(..=last.ok_or_else(|| invalid("nextToken"))?);
    }
    let more = all.len() > limit;
    all.truncate(limit);
    let views: Vec<_> = all.iter().map(|s| view(s)).collect();
    let mut response = json_response(StatusCode::OK, &views);
    let token = all.last().filter(|_| more);
    if let Some(token) = token.and_then(|s| HeaderValue::from_str(&s.id).ok()) {
        response.headers_mut().insert("x-next-token", token);
    }
    Ok(response)
}

/// `DELETE /templates/{id}`: a snapshot goes, a template of the configuration stays.
///
/// # Errors
/// [`EngineError::TemplateNotFound`], [`ApiError::NotYet`], [`EngineError::KillFailed`].
pub async fn delete(app: &Arc<AppState>, id: &str) -> Result<Response<Body>, ApiError> {
    if app.registry.delete_snapshot(id).await? {
        return Ok(no_content());
    }
    match app.template(id) {
        Some(_) => Err(ApiError::NotYet("Deleting a template")),
        None => Err(EngineError::no_template(id).into()),
    }
}

fn view(snapshot: &SandboxSnapshot) -> Value {
    json!({ "snapshotID": snapshot.id, "names": [snapshot.id] })
}
