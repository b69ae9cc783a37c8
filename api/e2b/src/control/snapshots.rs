//! `POST /sandboxes/{id}/snapshots`, `GET /snapshots` and `DELETE /templates/{id}`
//! (api/PROTOCOL.md §4.10).

use crate::Body;
use crate::control::pause::kept;
use crate::error::{ApiError, json_response};
use crate::linger::LingeringBody;
use crate::query::QueryString;
use crate::state::{AppState, no_content};
use engine::error::EngineError;
use engine::owner::Caller;
use engine::store::snapshots::SandboxSnapshot;
use hyper::header::HeaderValue;
use hyper::{Request, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// Most entries of a list.
const MAX_LIMIT: usize = 100;

#[derive(Deserialize)]
struct SnapshotRequest {
    name: Option<String>,
    memory: Option<bool>,
}

/// Stores a snapshot of a sandbox.
///
/// # Errors
/// As [`engine::registry::SandboxRegistry::take_snapshot`].
pub async fn take(
    app: &Arc<AppState>,
    who: &Caller,
    id: &str,
    request: Request<LingeringBody>,
) -> Result<Response<Body>, ApiError> {
    let wanted: SnapshotRequest = app.json(request.into_body()).await?;
    let (name, kept) = (wanted.name.as_deref(), kept(wanted.memory));
    let taken = app.registry.take_snapshot((who, id), name, kept).await?;
    Ok(json_response(StatusCode::CREATED, &view(&taken)))
}

/// Lists the caller's snapshots. The token is the name in the store of the last entry of the page
/// before, since several owners may have one of the same id; an id is taken as well.
///
/// # Errors
/// [`ApiError::Invalid`].
pub fn list(
    app: &Arc<AppState>,
    who: &Caller,
    query: Option<&str>,
) -> Result<Response<Body>, ApiError> {
    let invalid = |what: &str| ApiError::Invalid(format!("{what} is not valid"));
    let query =
        QueryString::parse(query.unwrap_or_default()).ok_or_else(|| invalid("The query"))?;
    let limit = query
        .get("limit")
        .map_or(Some(MAX_LIMIT), |text| text.parse().ok());
    let limit = limit.filter(|limit| (1..=MAX_LIMIT).contains(limit));
    let limit = limit.ok_or_else(|| invalid("limit (1 to 100)"))?;
    let filter = |name: &str| query.get(name).filter(|text| !text.is_empty());
    let mut all = app.registry.snapshots(who);
    if let Some(sandbox) = filter("sandboxID") {
        all.retain(|s| s.sandbox_id == sandbox);
    }
    if let Some(name) = filter("name") {
        let plain = name.rsplit('/').next().unwrap_or(name);
        all.retain(|s| s.id == plain || s.id.split(':').next() == Some(plain));
    }
    if let Some(token) = filter("nextToken") {
        let is = |s: &SandboxSnapshot| s.stored.as_str() == token || s.id == token;
        let last = all.iter().position(|s| is(s));
        all.drain(..=last.ok_or_else(|| invalid("nextToken"))?);
    }
    let more = all.len() > limit;
    all.truncate(limit);
    let views: Vec<_> = all.iter().map(|s| view(s)).collect();
    let mut response = json_response(StatusCode::OK, &views);
    let token = all.last().filter(|_| more);
    if let Some(token) = token.and_then(|s| HeaderValue::from_str(s.stored.as_str()).ok()) {
        response.headers_mut().insert("x-next-token", token);
    }
    Ok(response)
}

/// `DELETE /templates/{id}`: a snapshot goes, a template of the configuration stays.
///
/// # Errors
/// [`EngineError::TemplateNotFound`], [`ApiError::NotYet`], [`EngineError::KillFailed`].
pub async fn delete(
    app: &Arc<AppState>,
    who: &Caller,
    id: &str,
) -> Result<Response<Body>, ApiError> {
    if app.registry.delete_snapshot(who, id).await? {
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
