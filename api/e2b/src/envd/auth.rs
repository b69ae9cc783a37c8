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
        match self.signed(method == Method::POST) {
            Some(signed) if signed.is_by(token) && signed.is_over(now) => {
                Err("signature is already expired")
            }
            Some(signed) if signed.is_by(token) => Ok(()),
            _ => Err("invalid signature"),
        }
    }
}

impl FileQuery {
    /// Its signature, if it has one that can be one. `write` is true for an upload.
    fn signed(&self, write: bool) -> Option<SignedQuery> {
        let given = self.signature.as_deref()?.strip_prefix("v1_")?;
        let given = STANDARD_NO_PAD.decode(given).ok()?.try_into().ok()?;
        let operation = if write { "write" } else { "read" };
        let path = self.path.as_deref().unwrap_or_default();
        let user = self.username.as_deref().unwrap_or_default();
        // The fields are joined by colons. A path may have some; with one in the user's name what
        // was signed for one path and user would be the signature of other ones, too.
        if user.contains(':') {
            return None;
        }
        let digits = |text: &String| text.bytes().all(|byte| byte.is_ascii_digit());
        let until = match &self.expiration {
            None => None,
            Some(text) if digits(text) => Some((text.clone(), text.parse().ok()?)),
            Some(_) => return None,
        };
        Some(SignedQuery {
            given,
            before: Sha256::new_with_prefix(format!("{path}:{operation}:{user}:")),
            until,
        })
    }
}

/// The signature of a file URL (api/PROTOCOL.md §7.13), to be held against tokens: what is hashed
/// before the token is hashed once.
#[derive(Clone, Debug)]
pub struct SignedQuery {
    given: [u8; 32],
    before: Sha256,
    /// The end of its time, as it stands there and in seconds.
    until: Option<(String, i64)>,
}

impl SignedQuery {
    /// The one in `query`; `None` if there is none that can be a signature. `write` is true for
    /// `POST`.
    #[must_use]
    pub fn parse(query: &str, write: bool) -> Option<Self> {
        FileQuery::parse(query)?.signed(write)
    }

    /// The hash that is given.
    #[must_use]
    pub fn signature(&self) -> &[u8; 32] {
        &self.given
    }

    /// Whether its time is over.
    #[must_use]
    pub fn is_over(&self, now: i64) -> bool {
        self.until.as_ref().is_some_and(|(_, until)| *until < now)
    }

    /// Whether it was made with this token.
    #[must_use]
    pub fn is_by(&self, token: &str) -> bool {
        let mut hash = self.before.clone();
        hash.update(token);
        if let Some((text, _)) = &self.until {
            hash.update(":");
            hash.update(text);
        }
        same(&self.given, &hash.finalize())
    }
}

/// Fuzz entry point: any bytes as the query of a signed URL and as an Authorization header.
pub fn fuzz_signature(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Some(query) = FileQuery::parse(&text) {
        let _ = query.authorize(Some("token"), &HeaderMap::new(), &Method::GET, 0);
        let _ = query
            .signed(true)
            .is_some_and(|signed| signed.is_by("token"));
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
        let signature = "v1_Zb1fHPqtqc4hy46/xswhKkmMyq3sFC8ry211eUZxm6k";
        let query = format!(
            "path=%2Fhome%2Fuser%2Fa+b.txt&signature={}&signature_expiration=1700000000",
            signature.replace('+', "%2B").replace('/', "%2F")
        );
        let by = |token, write| SignedQuery::parse(&query, write).unwrap().is_by(token);
        assert!(by("tok", false) && !by("tok", true) && !by("tik", false));
        let query = FileQuery::parse(&query).unwrap();
        let check = |now| query.authorize(Some("tok"), &HeaderMap::new(), &Method::GET, now);
        assert_eq!(check(1_700_000_000), Ok(()));
        assert_eq!(check(1_700_000_001), Err(EXPIRED));
    }

    /// What was signed for one file of one user is not good for another file or user, whatever the
    /// names have in them.
    #[test]
    fn a_colon_shifts_no_field() {
        let sign = |text: &str| STANDARD_NO_PAD.encode(Sha256::digest(text));
        let signature = sign("/a:read:b:read:user:tok").replace('+', "%2B");
        let query = |path: &str, user: &str, more: &str| {
            let query = format!("path={path}&username={user}&signature=v1_{signature}{more}");
            FileQuery::parse(&query).unwrap()
        };
        let none = HeaderMap::new();
        let check =
            |query: &FileQuery| query.authorize(Some("tok"), &none, &Method::GET, 1_700_000_000);
        assert_eq!(check(&query("/a:read:b", "user", "")), Ok(()));
        let shifted = query("/a", "b:read:user", "");
        assert_eq!(check(&shifted), Err("invalid signature"));
        for expiration in ["1:2", "+1", "-1", "soon", "99999999999999999999"] {
            let text = format!("/a:read:user:tok:{expiration}");
            let query = FileQuery {
                path: Some("/a".into()),
                username: Some("user".into()),
                signature: Some(format!("v1_{}", sign(&text))),
                expiration: Some(expiration.into()),
            };
            assert_eq!(check(&query), Err("invalid signature"), "{expiration}");
        }
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
