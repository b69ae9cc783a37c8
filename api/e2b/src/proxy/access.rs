//! Who may come to a sandbox's ports: everybody, or who shows its traffic token.

use crate::auth::same;
use engine::facts::IngressPolicy;
use hyper::HeaderMap;

/// The header with the token.
pub(super) const TOKEN_HEADER: &str = "e2b-traffic-access-token";

/// Whether a request with these headers may come to a port of a sandbox with this policy. Compares
/// without telling by its time where the difference is.
pub(crate) fn may_enter(policy: &IngressPolicy, headers: &HeaderMap) -> bool {
    let Some(token) = &policy.traffic_token else {
        return true;
    };
    let given = headers.get(TOKEN_HEADER);
    given.is_some_and(|given| same(given.as_bytes(), token.as_bytes()))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn only_the_token_itself_opens_what_has_one() {
        let open = IngressPolicy::default();
        let shut = IngressPolicy {
            traffic_token: Some("secret".into()),
            ..IngressPolicy::default()
        };
        let mut headers = HeaderMap::new();
        assert!(may_enter(&open, &headers));
        assert!(!may_enter(&shut, &headers));
        for wrong in ["", "secre", "secret2", "Secret"] {
            headers.insert(TOKEN_HEADER, wrong.parse().unwrap());
            assert!(!may_enter(&shut, &headers), "{wrong}");
        }
        headers.insert(TOKEN_HEADER, "secret".parse().unwrap());
        assert!(may_enter(&shut, &headers));
    }
}
