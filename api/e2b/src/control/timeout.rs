//! `POST /sandboxes/{id}/timeout` and `/refreshes` (api/PROTOCOL.md §4.6).

use crate::Body;
use crate::control::create::seconds;
use crate::error::ApiError;
use crate::linger::LingeringBody;
use crate::state::{AppState, no_content};
use engine::owner::Caller;
use hyper::{Request, Response};
use serde::Deserialize;
use std::sync::Arc;

/// The shortest time a refresh gives, seconds.
const LEAST_REFRESH: i64 = 15;

#[derive(Deserialize)]
struct TimeoutRequest {
    timeout: i64,
}

#[derive(Deserialize)]
struct RefreshRequest {
    duration: Option<i64>,
}

/// Moves the end to `timeout` seconds from now, earlier or later; 0 ends the sandbox now.
///
/// # Errors
/// [`engine::error::EngineError::SandboxNotFound`], [`ApiError::Invalid`].
pub async fn set(
    app: &Arc<AppState>,
    who: &Caller,
    id: &str,
    request: Request<LingeringBody>,
) -> Result<Response<Body>, ApiError> {
    let wanted: TimeoutRequest = app.json(request.into_body()).await?;
    let time = seconds(wanted.timeout, 0, &app.options)?;
    app.sandbox(who, id)?.set_timeout(time);
    Ok(no_content())
}

/// Moves the end to `duration` seconds from now if that is later than it is.
///
/// # Errors
/// [`engine::error::EngineError::SandboxNotFound`], [`ApiError::Invalid`].
pub async fn refresh(
    app: &Arc<AppState>,
    who: &Caller,
    id: &str,
    request: Request<LingeringBody>,
) -> Result<Response<Body>, ApiError> {
    let wanted: RefreshRequest = app.json(request.into_body()).await?;
    let wanted = wanted.duration.unwrap_or(LEAST_REFRESH).max(LEAST_REFRESH);
    let time = seconds(wanted, LEAST_REFRESH, &app.options)?;
    app.sandbox(who, id)?.extend(time);
    Ok(no_content())
}
