//! Reading Connect requests: their kind, their deadline, their messages.

use crate::budget::{BodyHold, BodyRefusal};
use crate::connect::{ConnectCode, ConnectError, MAX_MESSAGE, envelope};
use crate::{Body, BodyError, body};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body as _, Frame};
use hyper::{HeaderMap, Response, StatusCode, header};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// How long a client may pause inside one message.
const PATIENCE: Duration = Duration::from_secs(60);

/// A request body, its HTTP origin forgotten, and what its request holds of the budget.
#[derive(Debug)]
pub struct RequestBody {
    inner: UnsyncBoxBody<Bytes, BodyError>,
    hold: BodyHold,
}

impl RequestBody {
    /// This body, with a hold that lives as long as its request.
    #[must_use]
    pub fn new(inner: UnsyncBoxBody<Bytes, BodyError>, hold: BodyHold) -> Self {
        Self { inner, hold }
    }

    /// The next frame; `None` at the end.
    pub async fn frame(&mut self) -> Option<Result<Frame<Bytes>, BodyError>> {
        self.inner.frame().await
    }

    /// What its request holds.
    #[must_use]
    pub fn hold(&self) -> &BodyHold {
        &self.hold
    }

    /// How long it says that it is.
    fn announced(&self) -> Option<usize> {
        let exact = self.inner.size_hint().exact()?;
        Some(usize::try_from(exact).unwrap_or(usize::MAX))
    }

    /// For tests: with a budget of its own.
    #[cfg(test)]
    pub(crate) fn alone(inner: Body) -> Self {
        Self::new(inner, crate::budget::BodyBudget::new(64).hold(None))
    }
}

impl From<BodyRefusal> for ConnectError {
    fn from(why: BodyRefusal) -> Self {
        Self::new(ConnectCode::ResourceExhausted, why.to_string())
    }
}

/// The two shapes of a Connect call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallKind {
    /// One bare JSON message each way.
    Unary,
    /// Envelopes each way.
    Stream,
}

/// Which kind the content type announces; `None` for a type this server does not speak.
#[must_use]
pub fn kind(headers: &HeaderMap) -> Option<CallKind> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let essence = value.split(';').next()?.trim().to_ascii_lowercase();
    match essence.as_str() {
        crate::connect::UNARY_TYPE => Some(CallKind::Unary),
        crate::connect::STREAM_TYPE => Some(CallKind::Stream),
        _ => None,
    }
}

/// The answer to a content type this server does not speak.
#[must_use]
pub fn unsupported_type() -> Response<Body> {
    let mut response = Response::new(body::empty());
    *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    response.headers_mut().insert(
        "accept-post",
        header::HeaderValue::from_static("application/json, application/connect+json"),
    );
    response
}

/// `Connect-Timeout-Ms`; absent and 0 mean no deadline.
///
/// # Errors
/// `invalid_argument` for anything but up to ten digits, as the protocol says.
pub fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, ConnectError> {
    let Some(value) = headers.get("connect-timeout-ms") else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or("?");
    let digits = !text.is_empty() && text.len() <= 10 && text.bytes().all(|b| b.is_ascii_digit());
    let millis: u64 = match text.parse() {
        Ok(millis) if digits => millis,
        _ => {
            return Err(ConnectError::invalid(format!(
                "Connect-Timeout-Ms is {text:?}; give milliseconds, at most ten digits"
            )));
        }
    };
    Ok((millis > 0).then(|| Duration::from_millis(millis)))
}

/// Refuses a compressed request. `identity` is no compression (api/PROTOCOL.md §1.5).
///
/// # Errors
/// `unimplemented` for any other encoding.
pub fn check_encoding(headers: &HeaderMap, kind: CallKind) -> Result<(), ConnectError> {
    let name = match kind {
        CallKind::Unary => "content-encoding",
        CallKind::Stream => "connect-content-encoding",
    };
    for value in headers.get_all(name) {
        let value = value.to_str().unwrap_or("?").trim();
        if !value.is_empty() && !value.eq_ignore_ascii_case("identity") {
            return Err(ConnectError::unimplemented(format!(
                "unknown compression {value:?}: supported encodings are identity"
            )));
        }
    }
    Ok(())
}

/// The next piece of a body; `None` at its end.
///
/// # Errors
/// `canceled` when the client broke off, `deadline_exceeded` when it paused too long.
pub async fn piece(body: &mut RequestBody) -> Result<Option<Bytes>, ConnectError> {
    loop {
        let frame = tokio::time::timeout(PATIENCE, body.frame())
            .await
            .map_err(|_| {
                ConnectError::new(
                    ConnectCode::DeadlineExceeded,
                    format!(
                        "The request body paused for more than {} s",
                        PATIENCE.as_secs()
                    ),
                )
            })?;
        match frame {
            None => return Ok(None),
            Some(Err(why)) => {
                return Err(ConnectError::new(
                    ConnectCode::Canceled,
                    format!("The request body broke off: {why}"),
                ));
            }
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// Reads a unary request. An empty body is an empty message.
///
/// # Errors
/// A body that is too long, broken, or not the JSON of an `M`.
pub async fn unary<M: DeserializeOwned>(body: &mut RequestBody) -> Result<M, ConnectError> {
    let announced = body.announced();
    let length = announced.unwrap_or(0);
    if length > MAX_MESSAGE {
        return Err(envelope::too_large(length as u64));
    }
    let hold = body.hold.clone();
    hold.begin(announced, MAX_MESSAGE);
    // A long one waits for its turn before any of it is read.
    hold.keep(0).await?;
    let mut text = BytesMut::with_capacity(length);
    while let Some(data) = piece(body).await? {
        if text.len() + data.len() > MAX_MESSAGE {
            return Err(envelope::too_large((text.len() + data.len()) as u64));
        }
        hold.keep(data.len()).await?;
        text.extend_from_slice(&data);
    }
    parse(&text)
}

/// Parses one message.
///
/// # Errors
/// `invalid_argument` when it is not the JSON of an `M`.
pub fn parse<M: DeserializeOwned>(text: &[u8]) -> Result<M, ConnectError> {
    let text = if text.is_empty() { b"{}" } else { text };
    // serde would take an array for a struct, field by field.
    if !text.trim_ascii_start().starts_with(b"{") {
        return Err(ConnectError::invalid(
            "unmarshal message: not a JSON object",
        ));
    }
    serde_json::from_slice(text)
        .map_err(|why| ConnectError::invalid(format!("unmarshal message: {why}")))
}

/// The messages of a client stream, one at a time: each is held until the next one is asked for.
#[derive(Debug)]
pub struct MessageStream {
    body: RequestBody,
    decoder: envelope::EnvelopeDecoder,
}

impl MessageStream {
    /// The messages in `body`.
    #[must_use]
    pub fn new(body: RequestBody) -> Self {
        Self {
            body,
            decoder: envelope::EnvelopeDecoder::new(),
        }
    }

    /// The next message; `None` when the client has finished.
    ///
    /// # Errors
    /// A broken body, a bad envelope, or a message that is not an `M`.
    pub async fn next<M: DeserializeOwned>(&mut self) -> Result<Option<M>, ConnectError> {
        let hold = &self.body.hold;
        hold.release();
        hold.begin(self.decoder.announced(), MAX_MESSAGE);
        hold.keep(self.decoder.len()).await?;
        self.another().await
    }

    /// The next message beside those that are held.
    async fn another<M: DeserializeOwned>(&mut self) -> Result<Option<M>, ConnectError> {
        loop {
            if let Some(envelope) = self.decoder.decode()? {
                if envelope.end_stream {
                    return Ok(None);
                }
                return parse(&envelope.payload).map(Some);
            }
            let Some(data) = self.body_piece().await? else {
                if self.decoder.is_empty() {
                    return Ok(None);
                }
                return Err(ConnectError::invalid(
                    "The request ended inside an envelope",
                ));
            };
            self.decoder.push(&data);
            let hold = &self.body.hold;
            hold.begin(self.decoder.announced(), MAX_MESSAGE);
            hold.keep(data.len()).await?;
        }
    }

    /// The only message of a server stream's request; reads the body to its end, so that the
    /// connection notices when the client leaves.
    ///
    /// # Errors
    /// As [`MessageStream::next`]; and when there is no message, or a second one.
    pub async fn only<M: DeserializeOwned>(mut self) -> Result<M, ConnectError> {
        let Some(message) = self.next().await? else {
            return Err(ConnectError::invalid("The request has no message"));
        };
        let more = self.another::<serde::de::IgnoredAny>().await?;
        if more.is_some() {
            return Err(ConnectError::invalid(
                "The request has more than one message",
            ));
        }
        Ok(message)
    }

    /// A client stream may be silent between messages for as long as it likes, not inside one.
    async fn body_piece(&mut self) -> Result<Option<Bytes>, ConnectError> {
        if !self.decoder.is_empty() {
            return piece(&mut self.body).await;
        }
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(why)) => {
                    return Err(ConnectError::new(
                        ConnectCode::Canceled,
                        format!("The request body broke off: {why}"),
                    ));
                }
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }
}

/// The answer to a unary call.
#[must_use]
pub fn answer<M: Serialize>(result: &Result<M, ConnectError>) -> Response<Body> {
    let (status, text) = match result {
        Ok(message) => (
            StatusCode::OK,
            serde_json::to_vec(message).unwrap_or_default(),
        ),
        Err(error) => (
            error.code.http_status(),
            error.to_json().to_string().into_bytes(),
        ),
    };
    let mut response = Response::new(body::full(text));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static(crate::connect::UNARY_TYPE),
    );
    response
}

#[cfg(test)]
mod test {
    use super::*;
    use serde_json::{Value, json};

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap()))
            .collect()
    }

    #[test]
    fn kinds_by_content_type() {
        let of = |value: &str| kind(&headers(&[("content-type", value)]));
        assert_eq!(of("application/json"), Some(CallKind::Unary));
        assert_eq!(of("Application/JSON; charset=utf-8"), Some(CallKind::Unary));
        assert_eq!(of("application/connect+json"), Some(CallKind::Stream));
        assert_eq!(of("application/proto"), None);
        assert_eq!(kind(&HeaderMap::new()), None);
    }

    #[test]
    fn timeouts() {
        let of = |value: &str| timeout(&headers(&[("connect-timeout-ms", value)]));
        assert_eq!(of("60000"), Ok(Some(Duration::from_secs(60))));
        assert_eq!(of("0"), Ok(None));
        assert_eq!(timeout(&HeaderMap::new()), Ok(None));
        for bad in ["", "-1", "+1", "1.5", "12345678901", "soon"] {
            assert_eq!(
                of(bad).unwrap_err().code,
                ConnectCode::InvalidArgument,
                "{bad:?}"
            );
        }
    }

    #[test]
    fn identity_is_no_encoding_and_gzip_is_refused() {
        let identity = headers(&[("content-encoding", "identity")]);
        check_encoding(&identity, CallKind::Unary).unwrap();
        let gzip = headers(&[("connect-content-encoding", "gzip")]);
        assert_eq!(
            check_encoding(&gzip, CallKind::Stream).unwrap_err().code,
            ConnectCode::Unimplemented
        );
        check_encoding(&gzip, CallKind::Unary).unwrap();
    }

    #[tokio::test]
    async fn unary_bodies_are_bounded() {
        let mut big = RequestBody::alone(body::full(vec![b' '; MAX_MESSAGE + 1]));
        let error = unary::<Value>(&mut big).await.unwrap_err();
        assert_eq!(error.code, ConnectCode::ResourceExhausted);
        let mut none = RequestBody::alone(body::empty());
        assert_eq!(unary::<Value>(&mut none).await, Ok(json!({})));
        for bad in ["{", "[]", "null", " 7", "\"{}\""] {
            let mut bad_one = RequestBody::alone(body::full(bad));
            let error = unary::<Value>(&mut bad_one).await.unwrap_err();
            assert_eq!(error.code, ConnectCode::InvalidArgument, "{bad}");
        }
    }

    #[tokio::test]
    async fn a_server_streams_request_has_exactly_one_message() {
        let one = envelope::message(&json!({"a": 1}));
        let got = MessageStream::new(RequestBody::alone(body::full(one.clone())))
            .only::<Value>()
            .await;
        assert_eq!(got, Ok(json!({"a": 1})));
        for bad in [
            Vec::new(),
            [one.clone(), one.clone()].concat(),
            one[..7].to_vec(),
        ] {
            let error = MessageStream::new(RequestBody::alone(body::full(bad)))
                .only::<Value>()
                .await
                .unwrap_err();
            assert_eq!(error.code, ConnectCode::InvalidArgument);
        }
    }
}
