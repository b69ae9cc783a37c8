//! What requests share, and what they do with it alike.

use crate::body::{self, Body};
use crate::budget::{BodyBudget, BodyHold};
use crate::control::idempotency::IdempotencyTable;
use crate::error::ApiError;
use crate::linger::LingeringBody;
use crate::options::ServerOptions;
use crate::query::QueryString;
use crate::signers::SignerSearch;
use bytes::{Bytes, BytesMut};
use engine::error::EngineError;
use engine::owner::Caller;
use engine::registry::{SandboxRegistry, SandboxView};
use engine::sandbox::Sandbox;
use engine::template::Template;
use http_body_util::BodyExt;
use hyper::body::Body as _;
use hyper::{Response, StatusCode};
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;

/// How long the body of a control-plane request may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Everything that requests share.
#[derive(Debug)]
pub struct AppState {
    /// What the operator decided about the server.
    pub options: ServerOptions,
    /// The sandboxes.
    pub registry: Arc<SandboxRegistry>,
    /// Answers to creations that may be asked again.
    pub idempotency: IdempotencyTable,
    /// Whose signatures were found.
    pub signers: SignerSearch,
    /// The memory of request bodies.
    pub bodies: Arc<BodyBudget>,
}

/// A whole body, and its share of the budget.
#[derive(Debug)]
pub struct HeldBytes {
    bytes: Bytes,
    _hold: BodyHold,
}

impl std::ops::Deref for HeldBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl AppState {
    /// Ready to serve.
    #[must_use]
    pub fn new(options: ServerOptions, registry: Arc<SandboxRegistry>) -> Arc<Self> {
        Arc::new(Self {
            bodies: BodyBudget::new(options.body_memory_mb),
            options,
            registry,
            idempotency: IdempotencyTable::default(),
            signers: SignerSearch::default(),
        })
    }

    /// The template of this name or alias. E2B's `namespace/` and `:tag` are accepted when they say
    /// nothing: any namespace, and the tag `default` or `latest`.
    #[must_use]
    pub fn template(&self, name: &str) -> Option<Arc<Template>> {
        self.registry.templates().find(template_name(name)?)
    }

    /// A sandbox of the caller's in whatever state it is, or 404.
    ///
    /// # Errors
    /// [`engine::error::EngineError::SandboxNotFound`].
    pub fn look(&self, who: &Caller, id: &str) -> Result<SandboxView, ApiError> {
        let missing = || EngineError::no_sandbox(id);
        Ok(self.registry.look(who, id).ok_or_else(missing)?)
    }

    /// A running sandbox of the caller's, or 404.
    ///
    /// # Errors
    /// [`engine::error::EngineError::SandboxNotFound`], [`ApiError::Conflict`].
    pub fn sandbox(&self, who: &Caller, id: &str) -> Result<Arc<Sandbox>, ApiError> {
        Ok(self.registry.running_one(who, id)?)
    }

    /// The body as JSON; an absent body reads as `{}`.
    ///
    /// # Errors
    /// [`ApiError::BodyTooLarge`], [`ApiError::BodyTooSlow`], [`ApiError::Invalid`].
    pub async fn json<T: DeserializeOwned>(&self, body: LingeringBody) -> Result<T, ApiError> {
        parse_json(&self.body(body).await?)
    }

    /// The whole body, within the limits of size, time and memory.
    ///
    /// # Errors
    /// [`ApiError::BodyTooLarge`], [`ApiError::BodyTooSlow`], [`ApiError::BodyMemory`],
    /// [`ApiError::Invalid`].
    pub async fn body(&self, body: LingeringBody) -> Result<HeldBytes, ApiError> {
        let hold = self.bodies.hold(None);
        let read = read_whole(body, self.options.max_json_bytes, &hold);
        let bytes = tokio::select! {
            biased;
            why = hold.ended() => return Err(why.into()),
            read = tokio::time::timeout(BODY_TIMEOUT, read) => {
                read.unwrap_or(Err(ApiError::BodyTooSlow(BODY_TIMEOUT.as_secs())))?
            }
        };
        hold.settle();
        Ok(HeldBytes { bytes, _hold: hold })
    }
}

async fn read_whole(
    mut body: LingeringBody,
    max: usize,
    hold: &BodyHold,
) -> Result<Bytes, ApiError> {
    let hint = body.size_hint();
    if hint.lower() > max as u64 {
        return Err(ApiError::BodyTooLarge(max)); // as announced: not a byte of it is waited for
    }
    let announced = hint.exact().and_then(|exact| usize::try_from(exact).ok());
    hold.begin(announced, max);
    hold.keep(0).await?;
    let mut text = BytesMut::with_capacity(announced.unwrap_or(0));
    while let Some(frame) = body.frame().await {
        let broken = |why| ApiError::Invalid(format!("The request body broke off: {why}"));
        let Ok(data) = frame.map_err(broken)?.into_data() else {
            continue;
        };
        if text.len() + data.len() > max {
            return Err(ApiError::BodyTooLarge(max));
        }
        hold.keep(data.len()).await?;
        text.extend_from_slice(&data);
    }
    Ok(text.freeze())
}

/// A template's name out of what clients write; `None` if it can be no template's.
fn template_name(text: &str) -> Option<&str> {
    let name = match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() => name,
        Some(_) => return None,
        None => text,
    };
    match name.split_once(':') {
        Some((name, "default" | "latest")) => Some(name),
        Some(_) => None,
        None => Some(name),
    }
}

/// Decodes a query; none reads as an empty one.
///
/// # Errors
/// [`ApiError::Invalid`] when it does not decode.
pub fn parse_query(query: Option<&str>) -> Result<QueryString, ApiError> {
    QueryString::parse(query.unwrap_or_default())
        .ok_or_else(|| ApiError::Invalid("The query does not decode".into()))
}

/// Decodes a request body; an empty one reads as `{}`.
///
/// # Errors
/// [`ApiError::Invalid`] with the place and the reason.
pub fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let bytes = if bytes.is_empty() { b"{}" } else { bytes };
    // Serde would also take an array for a struct.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        let text = "The request body is not a JSON object".to_owned();
        return Err(ApiError::Invalid(text));
    }
    serde_json::from_slice(bytes)
        .map_err(|error| ApiError::Invalid(format!("The request body is not as expected: {error}")))
}

/// 204.
#[must_use]
pub fn no_content() -> Response<Body> {
    let mut response = Response::new(body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

#[cfg(test)]
mod test {
    use super::template_name;

    #[test]
    fn namespaces_and_empty_tags_say_nothing() {
        for text in ["base", "team/base", "base:latest", "team/base:default"] {
            assert_eq!(template_name(text), Some("base"));
        }
        assert_eq!(template_name("base:v2"), None);
        assert_eq!(template_name("/base"), None);
    }
}
