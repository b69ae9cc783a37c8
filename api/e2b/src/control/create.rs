//! `POST /sandboxes`, `POST /v2/sandboxes` (api/PROTOCOL.md §4.2).

use crate::Body;
use crate::control::egress::{self, is_empty};
pub use crate::control::idempotency::{IdempotencyClaim, IdempotencyTable};
use crate::control::network;
use crate::control::view::CreatedView;
use crate::error::{ApiError, json_response};
use crate::linger::LingeringBody;
use crate::options::ServerOptions;
use crate::route::ApiVersion;
use crate::state::{AppState, parse_json};
use engine::environment::is_variable;
use engine::facts::{KeptState, LifecyclePolicy, TimeoutAction};
use engine::owner::Caller;
use engine::registry::{AskedSandbox, CreationSource, NewSandbox};
use engine::timings::StepTimings;
use hyper::header::HeaderValue;
use hyper::{Request, Response, StatusCode};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Most entries of `metadata`.
const MAX_METADATA: usize = 512;
/// Most bytes of them, keys and values.
const MAX_METADATA_BYTES: usize = 64 << 10;

/// The body. Fields that are not here are ignored, as the SDKs expect.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CreateRequest {
    #[serde(rename = "templateID")]
    template_id: String,
    timeout: Option<i64>,
    auto_pause: Option<bool>,
    auto_pause_memory: Option<bool>,
    auto_resume: Option<AutoResume>,
    secure: Option<bool>,
    network: Option<Value>,
    #[serde(rename = "allow_internet_access")]
    allow_internet_access: Option<bool>,
    metadata: Option<BTreeMap<String, String>>,
    env_vars: Option<BTreeMap<String, String>>,
    iam: Option<Value>,
    volume_mounts: Option<Vec<Value>>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct AutoResume {
    enabled: Option<bool>,
}

/// Creates a sandbox and answers when code can run in it.
///
/// # Errors
/// What is wrong with the request, or why no sandbox came of it.
pub async fn handle(
    app: &Arc<AppState>,
    who: &Caller,
    version: ApiVersion,
    request: Request<LingeringBody>,
) -> Result<Response<Body>, ApiError> {
    let mut timings = StepTimings::default();
    let (head, body) = request.into_parts();
    let body = app.body(body).await?;
    let wanted: CreateRequest = parse_json(&body)?;
    let (template, asked) = wanted.check(&app.options, version)?;
    let key = head.headers.get("idempotency-key");
    let key = key.map(|key| (key, IdempotencyTable::digest(&[&body])));
    drop(body);
    timings.step("request");

    let claim = match key {
        None => None,
        Some((key, sent)) => match app.idempotency.claim((&who.owner, key), sent).await? {
            Ok(claim) => Some(claim),
            Err(known) => {
                tracing::info!(sandbox_id = known, "creation asked again");
                let known = app.look(who, &known)?;
                let view = CreatedView::new(&known.facts, app.options.domain.as_deref());
                return Ok(json_response(StatusCode::CREATED, &view));
            }
        },
    };
    let source = find(app, who, &template).await?;
    let new = NewSandbox::new(who.owner.clone(), source, asked)?;
    let sandbox = app.registry.create(new, &mut timings).await?;
    if let Some(claim) = claim {
        claim.settle(&sandbox.id);
    }
    let view = CreatedView::new(&sandbox, app.options.domain.as_deref());
    let mut response = json_response(StatusCode::CREATED, &view);
    if let Ok(value) = HeaderValue::from_str(&timings.header()) {
        response.headers_mut().insert("server-timing", value);
    }
    Ok(response)
}

/// The template of this name, or the caller's snapshot, which is loaded by whoever makes a sandbox
/// of it.
pub(super) async fn find(
    app: &AppState,
    who: &Caller,
    name: &str,
) -> Result<CreationSource, ApiError> {
    match app.template(name) {
        Some(template) => Ok(CreationSource::Template(template)),
        None => Ok(app.registry.snapshot_source(who, name).await?),
    }
}

impl CreateRequest {
    /// What is to happen at the deadline and after.
    fn lifecycle(&self, timeout: Duration) -> Result<LifecyclePolicy, ApiError> {
        let invalid = |text: &str| Err(ApiError::Invalid(text.into()));
        let auto_resume = self.auto_resume.and_then(|a| a.enabled).unwrap_or(false);
        let on_timeout = match (self.auto_pause, self.auto_pause_memory) {
            (Some(true), Some(false)) if auto_resume => {
                return invalid("autoResume needs the memory: autoPauseMemory must not be false");
            }
            (Some(true), Some(false)) => TimeoutAction::Pause(KeptState::Files),
            (Some(true), _) => TimeoutAction::Pause(KeptState::Memory),
            (_, Some(false)) => return invalid("autoPauseMemory needs autoPause"),
            _ => TimeoutAction::Kill,
        };
        Ok(LifecyclePolicy {
            timeout,
            on_timeout,
            auto_resume,
        })
    }

    /// Whether it can be had; the name of its template or snapshot, and what else is asked for.
    pub(super) fn check(
        self,
        options: &ServerOptions,
        version: ApiVersion,
    ) -> Result<(String, AskedSandbox), ApiError> {
        let default_timeout = match version {
            ApiVersion::V1 => 15,
            ApiVersion::V2 => 300,
        };
        let timeout = seconds(self.timeout.unwrap_or(default_timeout), 1, options)?;
        let lifecycle = self.lifecycle(timeout)?;
        if self.volume_mounts.is_some_and(|mounts| !mounts.is_empty()) {
            return Err(ApiError::NotYet("Mounting volumes (volumeMounts)"));
        }
        if self.iam.is_some_and(|iam| !is_empty(&iam)) {
            return Err(ApiError::NotYet("Workload identity (iam)"));
        }
        let egress = egress::asked(self.network.as_ref(), self.allow_internet_access)?;
        // From v2 on there is no choice.
        let secure =
            version == ApiVersion::V2 || options.require_token || self.secure.unwrap_or(false);
        let ingress = network::ingress(self.network.as_ref(), secure)?;
        let metadata = self.metadata.unwrap_or_default();
        if metadata.len() > MAX_METADATA {
            return Err(ApiError::Invalid(format!(
                "metadata has {} entries, over {MAX_METADATA}",
                metadata.len()
            )));
        }
        let each = metadata.iter().map(|(key, value)| key.len() + value.len());
        let bytes: usize = each.sum();
        if bytes > MAX_METADATA_BYTES {
            return Err(ApiError::Invalid(format!(
                "metadata has {bytes} bytes of keys and values, over {MAX_METADATA_BYTES}"
            )));
        }
        let env = self.env_vars.unwrap_or_default();
        if let Some((key, _)) = env.iter().find(|(key, value)| !is_variable(key, value)) {
            return Err(ApiError::Invalid(format!(
                "envVars: {key:?} is empty, has a '=', or it or its value has a NUL byte"
            )));
        }
        let asked = AskedSandbox {
            lifecycle,
            metadata,
            env,
            secure,
            ingress,
            egress,
        };
        Ok((self.template_id, asked))
    }
}

/// A time to live, checked against the operator's limit.
///
/// # Errors
/// [`ApiError::Invalid`] below `least` or above the limit.
pub fn seconds(value: i64, least: i64, options: &ServerOptions) -> Result<Duration, ApiError> {
    let most = options.max_timeout.as_secs();
    match u64::try_from(value) {
        Ok(time) if value >= least && time <= most => Ok(Duration::from_secs(time)),
        _ => Err(ApiError::Invalid(format!(
            "Timeout {value} is out of range: {least} to {most} seconds (limits.max_timeout)"
        ))),
    }
}
