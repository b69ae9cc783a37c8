//! `POST /sandboxes/{id}/fork` (api/PROTOCOL.md §4.9).

use crate::Body;
use crate::control::create::seconds;
use crate::control::view::CreatedView;
use crate::error::{ApiError, json_response};
use crate::linger::LingeringBody;
use crate::state::AppState;
use engine::owner::Caller;
use engine::registry::CaptureTimings;
use hyper::header::HeaderValue;
use hyper::{Request, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// Most children of one fork.
const MAX_CHILDREN: usize = 100;

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
    who: &Caller,
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
    let forked = app
        .registry
        .fork((who, id), checkpoint, count, timeout)
        .await?;
    let (children, copied) = forked;
    let views: Vec<Value> = children
        .into_iter()
        .map(|child| match child {
            Ok(sandbox) => {
                json!({ "sandbox": CreatedView::new(&sandbox, app.options.domain.as_deref()) })
            }
            Err(error) => json!({ "error": ApiError::from(error).view() }),
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
    let (ahead, quiesced) = (ms(copied.ahead), ms(copied.quiesced));
    let pages = copied.quiesced_pages;
    let text = format!(
        "ahead;dur={ahead:.3}, quiesced;dur={quiesced:.3}, quiesced-pages;desc=\"{pages}\""
    );
    text.try_into().ok()
}
