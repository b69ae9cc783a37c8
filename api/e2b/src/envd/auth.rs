//! Who may, and as whom: access tokens, Basic usernames, signed file URLs
//! (api/PROTOCOL.md §7.5, §7.13).

use crate::connect::{ConnectCode, ConnectError};
use crate::query::QueryString;
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use hyper::{HeaderMap, Method, header};
use jiff::Timestamp;
use sha2::{Digest, Sha256};

/// The words of a refused call; tests of the SDKs compare them.
pub(super) const UNAUTHORIZED: &str =
    "unauthorized access, please provide a valid access token or method signing if supported";

/// Compares without telling by its time where the difference is.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len()
        && a.iter()
            .zip(b)
            .fold(0, |difference, (x, y)| difference | (x ^ y))
            == 0
}

/// Whether the request may go on by its access token alone.
pub(super) fn token_ok(token: Option<&str>, headers: &HeaderMap) -> bool {
    let Some(token) = token else { return true };
    header_token(headers).is_some_and(|given| same(given, token.as_bytes()))
}

/// Whether a request shows that it may use the sandbox with this token, by the token or by a signed
/// URL that is not expired; the request itself is checked again when it is served.
#[must_use]
pub fn admits<B>(token: Option<&str>, request: &hyper::Request<B>) -> bool {
    let query = FileQuery::parse(request.uri().query().unwrap_or_default());
    let (headers, method) = (request.headers(), request.method());
    let now = Timestamp::now().as_second();
    let signed = |query: FileQuery| query.authorize(token, headers, method, now).is_ok();
    token_ok(token, headers) || request.uri().path() == "/files" && query.is_some_and(signed)
}

fn header_token(headers: &HeaderMap) -> Option<&[u8]> {
    headers
        .get("x-access-token")
        .map(header::HeaderValue::as_bytes)
}

/// The user name of `Authorization: Basic`, if the request has one.
///
/// # Errors
/// `unauthenticated` for a header that is not Basic with a name.
pub(super) fn username(headers: &HeaderMap) -> Result<Option<String>, ConnectError> {
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return Ok(None);
    };
    let decode = || {
        let (scheme, text) = value.to_str().ok()?.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let pair = crate::connect::json::decode_base64(text.trim()).ok()?;
        let pair = String::from_utf8(pair).ok()?;
        // The SDKs write `user:` with an empty password; what is before may be `uid:gid`.
        let name = pair
            .strip_suffix(':')
            .unwrap_or_else(|| pair.split_once(':').map_or(pair.as_str(), |(name, _)| name));
        Some(name.to_owned())
    };
    match decode() {
        Some(name) if name.is_empty() => Ok(None),
        Some(name) => Ok(Some(name)),
        None => Err(ConnectError::new(
            ConnectCode::Unauthenticated,
            "The Authorization header is not Basic with a user name",
        )),
    }
}

/// The parameters of `GET|POST /files`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FileQuery {
    pub(super) path: Option<String>,
    pub(super) username: Option<String>,
    signature: Option<String>,
    expiration: Option<String>,
}

impl FileQuery {
    /// `None` when an escape is broken.
    pub(super) fn parse(query: &str) -> Option<Self> {
        let query = QueryString::parse(query)?;
        let take = |key| query.get(key).map(str::to_owned);
        Some(Self {
            path: take("path"),
            username: take("username").filter(|name| !name.is_empty()),
            signature: take("signature"),
            expiration: take("signature_expiration").filter(|text| !text.is_empty()),
        })
    }

    /// What the signature must be under `token`.
    fn expected(&self, token: &str, write: bool) -> String {
        let operation = if write { "write" } else { "read" };
        let path = self.path.as_deref().unwrap_or_default();
        let user = self.username.as_deref().unwrap_or_default();
        let mut text = format!("{path}:{operation}:{user}:{token}");
        if let Some(expiration) = &self.expiration {
            text.push(':');
            text.push_str(expiration);
        }
        format!("v1_{}", STANDARD_NO_PAD.encode(Sha256::digest(text)))
    }

    fn matches(&self, token: &str, write: bool) -> bool {
        let Some(given) = &self.signature else {
            return false;
        };
        same(given.as_bytes(), self.expected(token, write).as_bytes())
    }

    /// The check of file requests, in its fixed order and words.
    ///
    /// # Errors
    /// The message of the 401.
    pub(super) fn authorize(
        &self,
        token: Option<&str>,
        headers: &HeaderMap,
        method: &Method,
        now: i64,
    ) -> Result<(), &'static str> {
        let Some(token) = token else { return Ok(()) };
        if let Some(given) = header_token(headers) {
            return if same(given, token.as_bytes()) {
                Ok(())
            } else {
                Err("access token present in header but does not match")
            };
        }
        if self.signature.is_none() {
            return Err("missing signature query parameter");
        }
        if !self.matches(token, method == Method::POST) {
            return Err("invalid signature");
        }
        match self.expiration.as_deref().map(str::parse::<i64>) {
            None => Ok(()),
            Some(Ok(expiration)) if expiration >= now => Ok(()),
            Some(Ok(_)) => Err("signature is already expired"),
            Some(Err(_)) => Err("invalid signature"),
        }
    }
}

/// Whether `query` of `GET|POST /files` carries a signature made with `token`
/// (api/PROTOCOL.md §7.13).
/// Used to find the sandbox of a signed URL that does not name it (§1.6, rule 4). Only compares the
/// hash; expiry is checked when the request is served. `write` is true for `POST`.
#[must_use]
pub fn signature_matches(token: &str, query: &str, write: bool) -> bool {
    FileQuery::parse(query).is_some_and(|query| query.matches(token, write))
}

/// Fuzz entry point: any bytes as the query of a signed URL and as an Authorization header.
pub fn fuzz_signature(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Some(query) = FileQuery::parse(&text) {
        let _ = query.authorize(Some("token"), &HeaderMap::new(), &Method::GET, 0);
        let _ = query.matches("token", true);
    }
    if let Ok(value) = header::HeaderValue::from_bytes(data) {
        let _ = username(&HeaderMap::from_iter([(header::AUTHORIZATION, value)]));
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    const EXPIRED: &str = "signature is already expired";

    #[test]
    fn signatures_are_the_sdks() {
        // Computed with Python: hashlib.sha256(b"/home/user/a b.txt:read::tok:1700000000").
        let signature = FileQuery {
            path: Some("/home/user/a b.txt".into()),
            expiration: Some("1700000000".into()),
            ..FileQuery::default()
        }
        .expected("tok", false);
        assert_eq!(signature, "v1_Zb1fHPqtqc4hy46/xswhKkmMyq3sFC8ry211eUZxm6k");
        let query = format!(
            "path=%2Fhome%2Fuser%2Fa+b.txt&signature={}&signature_expiration=1700000000",
            signature.replace('+', "%2B").replace('/', "%2F")
        );
        assert!(signature_matches("tok", &query, false));
        assert!(!signature_matches("tok", &query, true));
        assert!(!signature_matches("tik", &query, false));
        let query = FileQuery::parse(&query).unwrap();
        let check = |now| query.authorize(Some("tok"), &HeaderMap::new(), &Method::GET, now);
        assert_eq!(check(1_700_000_000), Ok(()));
        assert_eq!(check(1_700_000_001), Err(EXPIRED));
    }

    #[test]
    fn the_order_of_checks_is_fixed() {
        let plain = FileQuery::parse("path=x").unwrap();
        let none = HeaderMap::new();
        let good: HeaderMap = [(
            header::HeaderName::from_static("x-access-token"),
            "tok".parse().unwrap(),
        )]
        .into_iter()
        .collect();
        let ask =
            |query: &FileQuery, token, headers| query.authorize(token, headers, &Method::GET, 0);
        assert_eq!(ask(&plain, None, &none), Ok(()));
        assert_eq!(ask(&plain, Some("tok"), &good), Ok(()));
        assert_eq!(
            ask(&plain, Some("other"), &good),
            Err("access token present in header but does not match")
        );
        assert_eq!(
            ask(&plain, Some("tok"), &none),
            Err("missing signature query parameter")
        );
        let bad = FileQuery::parse("path=x&signature=v1_x").unwrap();
        assert_eq!(ask(&bad, Some("tok"), &none), Err("invalid signature"));
        assert!(token_ok(Some("tok"), &good));
        assert!(!token_ok(Some("tok"), &none));
        assert!(!token_ok(Some("to"), &good));
        assert!(token_ok(None, &none));
    }

    #[test]
    fn basic_names() {
        let of = |value: &str| {
            username(&HeaderMap::from_iter([(
                header::AUTHORIZATION,
                value.parse().unwrap(),
            )]))
        };
        assert_eq!(of("Basic dXNlcjo="), Ok(Some("user".into())));
        assert_eq!(of("basic cm9vdDpwdw"), Ok(Some("root".into())));
        assert_eq!(of("Basic MTAwMDoxMDAxOg=="), Ok(Some("1000:1001".into())));
        assert_eq!(of("Basic Og=="), Ok(None));
        assert_eq!(username(&HeaderMap::new()), Ok(None));
        for bad in ["Bearer x", "Basic", "Basic %", "Basic /w=="] {
            assert_eq!(
                of(bad).unwrap_err().code,
                ConnectCode::Unauthenticated,
                "{bad}"
            );
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(data in prop::collection::vec(any::<u8>(), 0..200)) {
            fuzz_signature(&data);
        }
    }
}
