//! `POST /sandboxes/{id}/connect` and `/v2/…` (e2b.md §2.4): what `Sandbox.connect` calls.

use crate::Body;
use crate::app::App;
use crate::error::{ApiError, json_response};
use crate::linger::Lingering;
use crate::route::Version;
use crate::sandboxes::create::seconds;
use crate::sandboxes::view::Created;
use hyper::{Request, Response, StatusCode};
use serde::Deserialize;
use std::sync::Arc;

#[derive(Deserialize)]
struct Connect {
    timeout: Option<i64>,
}

/// Answers with the running sandbox, its token included. The time to live is only ever extended.
///
/// # Errors
/// [`ApiError::SandboxNotFound`], [`ApiError::Invalid`].
pub async fn handle(
    app: &Arc<App>,
    id: &str,
    version: Version,
    request: Request<Lingering>,
) -> Result<Response<Body>, ApiError> {
    let wanted: Connect = app.json(request.into_body()).await?;
    let timeout = match (wanted.timeout, version) {
        (Some(timeout), _) => timeout,
        (None, Version::V2) => 300,
        (None, Version::V1) => {
            return Err(ApiError::Invalid("The field timeout is missing".into()));
        }
    };
    let time = seconds(timeout, 0, &app.settings)?;
    let sandbox = app.sandbox(id)?;
    sandbox.extend(time);
    let view = Created::new(&sandbox, app.settings.domain.as_deref());
    Ok(json_response(StatusCode::OK, &view))
}
