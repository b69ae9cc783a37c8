//! What requests share, and what they do with it alike.

use crate::body::{self, Body};
use crate::control::idempotency::IdempotencyTable;
use crate::error::ApiError;
use crate::linger::LingeringBody;
use crate::options::ServerOptions;
use bytes::Bytes;
use engine::error::EngineError;
use engine::registry::{SandboxRegistry, SandboxView};
use engine::sandbox::Sandbox;
use engine::template::Template;
use http_body_util::{BodyExt, LengthLimitError, Limited};
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
}

impl AppState {
    /// Ready to serve.
    #[must_use]
    pub fn new(options: ServerOptions, registry: Arc<SandboxRegistry>) -> Arc<Self> {
        Arc::new(Self {
            options,
            registry,
            idempotency: IdempotencyTable::default(),
        })
    }

    /// The template of this name or alias. E2B's `namespace/` and `:tag` are accepted when they say
    /// nothing: any namespace, and the tag `default` or `latest`.
    #[must_use]
    pub fn template(&self, name: &str) -> Option<Arc<Template>> {
        self.registry.templates().find(template_name(name)?)
    }

    /// A sandbox in whatever state it is, or 404.
    ///
    /// # Errors
    /// [`engine::error::EngineError::SandboxNotFound`].
    pub fn look(&self, id: &str) -> Result<SandboxView, ApiError> {
        let missing = || EngineError::no_sandbox(id);
        Ok(self.registry.look(id).ok_or_else(missing)?)
    }

    /// A running sandbox, or 404.
    ///
    /// # Errors
    /// [`engine::error::EngineError::SandboxNotFound`], [`ApiError::Conflict`].
    pub fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>, ApiError> {
        Ok(self.registry.running_one(id)?)
    }

    /// The body as JSON; an absent body reads as `{}`.
    ///
    /// # Errors
    /// [`ApiError::BodyTooLarge`], [`ApiError::BodyTooSlow`], [`ApiError::Invalid`].
    pub async fn json<T: DeserializeOwned>(&self, body: LingeringBody) -> Result<T, ApiError> {
        parse_json(&self.body(body).await?)
    }

    /// The whole body, within the limits of size and time.
    ///
    /// # Errors
    /// [`ApiError::BodyTooLarge`], [`ApiError::BodyTooSlow`], [`ApiError::Invalid`].
    pub async fn body(&self, body: LingeringBody) -> Result<Bytes, ApiError> {
        let max = self.options.max_json_bytes;
        if body.size_hint().lower() > max as u64 {
            return Err(ApiError::BodyTooLarge(max)); // as announced: not a byte of it is waited for
        }
        match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, max).collect()).await {
            Ok(Ok(whole)) => Ok(whole.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::BodyTooLarge(max)),
            Ok(Err(error)) => Err(ApiError::Invalid(format!(
                "The request body broke off: {error}"
            ))),
            Err(_) => Err(ApiError::BodyTooSlow(BODY_TIMEOUT.as_secs())),
        }
    }
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
