//! `POST /sandboxes/{id}/connect` and `/v2/…` (api/PROTOCOL.md §4.8): what `Sandbox.connect` calls.

use crate::Body;
use crate::control::create::seconds;
use crate::control::pause::kept;
use crate::control::view::CreatedView;
use crate::error::{ApiError, json_response};
use crate::linger::LingeringBody;
use crate::route::ApiVersion;
use crate::state::AppState;
use engine::error::EngineError;
use engine::facts::KeptState;
use engine::owner::Caller;
use engine::timings::StepTimings;
use hyper::header::HeaderValue;
use hyper::{Request, Response, StatusCode};
use serde::Deserialize;
use std::sync::Arc;

#[derive(Deserialize)]
struct ConnectRequest {
    timeout: Option<i64>,
    /// False: a paused sandbox boots over its files, whatever memory is kept of it.
    memory: Option<bool>,
}

/// What a resumption gives when its client does not say, seconds.
const RESUME_TIMEOUT: i64 = 15;

/// Answers with the sandbox, its token included: 200 if it was running, whose time to live is only
/// ever extended, and which is not booted anew; 201 if it was paused, which gets a new one.
///
/// # Errors
/// [`ApiError::Invalid`], and those of [`engine::registry::SandboxRegistry::connect`].
pub async fn handle(
    app: &Arc<AppState>,
    who: &Caller,
    id: &str,
    version: ApiVersion,
    request: Request<LingeringBody>,
) -> Result<Response<Body>, ApiError> {
    let wanted: ConnectRequest = app.json(request.into_body()).await?;
    let timeout = match (wanted.timeout, version) {
        (Some(timeout), _) => timeout,
        (None, ApiVersion::V2) => 300,
        (None, ApiVersion::V1) => {
            return Err(ApiError::Invalid("The field timeout is missing".into()));
        }
    };
    answer(app, who, id, (kept(wanted.memory), timeout)).await
}

/// `POST /sandboxes/{id}/resume`, which old clients use.
///
/// # Errors
/// [`ApiError::Conflict`] for a sandbox that runs, else as [`handle`].
pub async fn resume(
    app: &Arc<AppState>,
    who: &Caller,
    id: &str,
    request: Request<LingeringBody>,
) -> Result<Response<Body>, ApiError> {
    let wanted: ConnectRequest = app.json(request.into_body()).await?;
    if app
        .registry
        .look(who, id)
        .is_some_and(|s| s.paused.is_none())
    {
        return Err(ApiError::Conflict(format!("Sandbox {id:?} is running")));
    }
    let timeout = wanted.timeout.unwrap_or(RESUME_TIMEOUT);
    answer(app, who, id, (kept(wanted.memory), timeout)).await
}

async fn answer(
    app: &Arc<AppState>,
    who: &Caller,
    id: &str,
    (wanted, timeout): (KeptState, i64),
) -> Result<Response<Body>, ApiError> {
    let mut timings = StepTimings::default();
    let how = (wanted, seconds(timeout, 0, &app.options)?);
    let (sandbox, resumed) = match app.registry.connect((who, id), how, &mut timings).await {
        Err(EngineError::SandboxNotFound(_)) => {
            return Err(app.registry.why_missing(who, id).await.into());
        }
        other => other?,
    };
    let view = CreatedView::new(&sandbox, app.options.domain.as_deref());
    if !resumed {
        return Ok(json_response(StatusCode::OK, &view));
    }
    let mut response = json_response(StatusCode::CREATED, &view);
    if let Ok(value) = HeaderValue::from_str(&timings.header()) {
        response.headers_mut().insert("server-timing", value);
    }
    Ok(response)
}
