//! `POST /sandboxes/{id}/reset`, which E2B does not have.

use crate::Body;
use crate::error::ApiError;
use crate::linger::LingeringBody;
use crate::state::{AppState, no_content};
use engine::owner::Caller;
use engine::timings::StepTimings;
use hyper::header::HeaderValue;
use hyper::{Request, Response};
use serde::Deserialize;
use std::sync::Arc;

#[derive(Deserialize)]
struct ResetRequest {
    checkpoint: Option<String>,
}

/// Puts a sandbox back to where it began, or to a checkpoint.
///
/// # Errors
/// As [`engine::registry::SandboxRegistry::reset`].
pub async fn reset(
    app: &Arc<AppState>,
    who: &Caller,
    id: &str,
    request: Request<LingeringBody>,
) -> Result<Response<Body>, ApiError> {
    let mut timings = StepTimings::default();
    let wanted: ResetRequest = app.json(request.into_body()).await?;
    let checkpoint = wanted.checkpoint.as_deref();
    app.registry
        .reset((who, id), checkpoint, &mut timings)
        .await?;
    let mut response = no_content();
    if let Ok(value) = HeaderValue::from_str(&timings.header()) {
        response.headers_mut().insert("server-timing", value);
    }
    Ok(response)
}
